"""Autograd's way back through tangents, and what it leaves in `.grad`: as plain autograd, or refused."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch
from zo.tangents import ModelTangent

SPEC = ArraySpec("z", (3,))
ROWS = 6


def function(z: Tensor) -> Tensor:
    return torch.sin(1.3 * z) + 0.3 * z.roll(1, dims=1) * z


def make_box() -> FromTorch:
    return FromTorch(function, (SPEC,), (ArraySpec("y", (3,)),))


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch_of() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(ROWS, 4, generator=draws).double(), torch.randn(ROWS, 3, generator=draws).double()


def error(solver, network, batch):
    return (solver(network(batch[0])) - batch[1]).square().mean(dim=1)


def tangents(network, objective, box) -> zo.TangentGradient:
    return zo.TangentGradient(network, objective, boxes=[box], tangent=ModelTangent(function))


def grads(network: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in network.parameters()]  # pyright: ignore[reportReturnType]


def by_autograd(network: nn.Module, objective) -> list[Tensor]:
    loss = objective(network, batch_of()).mean()
    return list(torch.autograd.grad(loss, list(network.parameters())))


class Summed(nn.Module):
    """Two weights that are added: to autograd's engine their gradients are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(ROWS, 3).double())
        self.second = nn.Parameter(torch.zeros(ROWS, 3).double())

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + self.first + self.second


def gradient_of(kind: str, network, box):
    def objective(network, batch):
        return error(box, network, batch)

    if kind == "tangents":
        return tangents(network, objective, box)
    return zo.LossGradient(network, objective, zo.CGE(1e-6, central=True))


@pytest.mark.parametrize("kind", ["tangents", "values"])
def test_gradients_of_weights_that_are_added_are_two_tensors(kind):
    """As one they would be clipped twice: in the square of the factor."""
    network, box = Summed(), make_box()
    gradient_of(kind, network, box).backward(batch_of())
    truth = by_autograd(network, lambda network, batch: error(function, network, batch))
    for factor in (1.0, 0.5):
        torch.testing.assert_close(grads(network), [factor * true for true in truth], rtol=1e-7, atol=1e-9)
        for grad in grads(network):
            grad.mul_(0.5)


@pytest.mark.parametrize("kind", ["tangents", "values"])
def test_a_grad_that_is_there_is_added_to_where_it_lies(kind):
    """As of DistributedDataParallel and others, whose `.grad` are views of one buffer."""
    network, box = make_network(), make_box()
    buffer = torch.zeros(sum(weight.numel() for weight in network.parameters())).double()
    for weight, view in zip(
        network.parameters(), buffer.split([w.numel() for w in network.parameters()]), strict=True
    ):
        weight.grad = view.view_as(weight)
    gradient = gradient_of(kind, network, box)
    for _ in range(2):
        gradient.backward(batch_of())
    truth = by_autograd(network, lambda network, batch: error(function, network, batch))
    torch.testing.assert_close(buffer, 2 * torch.cat([g.flatten() for g in truth]), rtol=1e-7, atol=1e-9)


def test_a_block_that_is_computed_anew_may_not_hold_a_box():
    network, box = make_network(), make_box()

    def objective(network, batch):
        block = checkpoint(lambda x: torch.tanh(box(network(x))).exp(), batch[0], use_reentrant=False)
        return block.sum(dim=1)

    with pytest.raises(
        zo.errors.TangentError, match=r"got one on the way back.*Leave boxes outside of such blocks"
    ):
        tangents(network, objective, box).backward(batch_of())
    assert all(grad is None for grad in grads(network))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("inside", [True, False])
def test_a_block_that_ends_with_a_box_in_closed_loop_is_as_one_without(inside):
    """Where inputs are dithered the network's spread is looked for by autograd too, through such blocks."""
    network, box = nn.Linear(3, 3).double(), make_box()

    def objective(network, batch, block: Any = checkpoint):
        state, kind = batch, {"use_reentrant": False}
        for _ in range(3):
            if inside:
                state = block(lambda z: box(z + 0.1 * network(z)), state, **kind)
            else:
                state = box(state + 0.1 * block(network, state, **kind))
        return state.square().mean(dim=1)

    batches = torch.randn(3, ROWS, 3, generator=torch.Generator().manual_seed(5)).double()
    with_blocks = zo.TangentGradient(network, objective, boxes=[box], seed=0)
    plain = zo.TangentGradient(
        network,
        lambda network, batch: objective(network, batch, lambda f, z, **_: f(z)),
        boxes=[box],
        seed=0,
    )
    for batch in batches:
        network.zero_grad()
        with_blocks.backward(batch)
        found = [grad.clone() for grad in grads(network)]
        network.zero_grad()
        plain.backward(batch)
        torch.testing.assert_close(found, grads(network), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_box_in_one_of_the_older_checkpoints_is_refused_in_our_words():
    network, box = make_network(), make_box()

    def objective(network, batch):
        return checkpoint(box, network(batch[0]), use_reentrant=True).square().sum(dim=1)

    with pytest.raises(zo.errors.TangentError, match="leave boxes outside of it"):
        tangents(network, objective, box).backward(batch_of())


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_older_checkpoints_hide_weights_and_are_refused_and_the_newer_are_right(reentrant):
    network, box = make_network(), make_box()

    def objective(network, batch, solver: Any = box):
        inputs = batch[0].clone().requires_grad_()
        hidden = checkpoint(lambda x: network[1](network[0](x)), inputs, use_reentrant=reentrant)
        return (solver(network[2](hidden)) - batch[1]).square().mean(dim=1)

    gradient = tangents(network, objective, box)
    if reentrant:
        with pytest.raises(zo.errors.TangentError, match="use_reentrant=False"):
            gradient.backward(batch_of())
        assert all(grad is None for grad in grads(network))
    else:
        gradient.backward(batch_of())
        truth = by_autograd(network, lambda network, batch: objective(network, batch, function))
        torch.testing.assert_close(grads(network), truth)


@pytest.mark.parametrize("kind", [nn.Parameter, Tensor.requires_grad_])
def test_a_tensor_behind_the_loss_that_is_no_parameter_of_the_network_is_said_once(kind):
    network, box, scale = make_network(), make_box(), kind(torch.zeros(3).double())

    def objective(network, batch):
        return ((box(network(batch[0])) - batch[1]).square() * scale.exp() - scale).mean(dim=1)

    gradient = tangents(network, objective, box)
    with pytest.warns(zo.TangentWarning, match=r"got 1 tensor more \(of shape \(3,\)\)"):
        gradient.backward(batch_of())
    gradient.backward(batch_of())
    assert scale.grad is None


def test_a_batch_that_requires_a_gradient_is_said_once():
    """As of inputs that are to be optimised; what an objective asks for on its own batch is its own."""
    network, box, (inputs, wanted) = make_network(), make_box(), batch_of()

    def objective(network, batch):
        return error(box, network, (batch[0].requires_grad_(), batch[1]))

    gradient = tangents(network, objective, box)
    gradient.backward((inputs.clone(), wanted))  # no warning, which would be an error
    gradient = tangents(network, objective, box)
    with pytest.warns(zo.TangentWarning, match=r"not the batch, got 1 tensor more") as said:
        gradient.backward((inputs.requires_grad_(), wanted))
    assert len(said) == 1
    gradient.backward((inputs, wanted))


def test_inputs_that_need_a_gradient_and_frozen_parameters_are_no_reason_to_warn():
    """As of the residual of a differential equation, and of a teacher."""
    network, box, teacher = make_network(), make_box(), nn.Linear(4, 3).double().requires_grad_(False)

    def objective(network, batch):
        inputs = batch[0].clone().requires_grad_()
        with torch.enable_grad():
            given = network(inputs)
            (slope,) = torch.autograd.grad(given.sum(), inputs, create_graph=True)
        return (box(given) - teacher(batch[0])).square().mean(dim=1) + slope.square().mean(dim=1)

    tangents(network, objective, box).backward(batch_of())


@pytest.mark.parametrize("steps", [1, 3])
def test_a_call_without_rows_is_no_call(steps):
    """A mask that takes none, in the first step and where the base has its graph; learned tangents too."""
    network, box = make_network(), make_box()

    def objective(network, batch, solver: Any = box):
        given = network(batch[0])
        none = solver(given[batch[1][:, 0] > 100])
        return (solver(given) - batch[1]).square().mean(dim=1) + none.sum()

    truth = by_autograd(network, lambda network, batch: objective(network, batch, function))
    learned = zo.TangentGradient(copy.deepcopy(network), objective, boxes=[box])
    gradient = tangents(network, objective, box)
    for _ in range(steps):
        network.zero_grad()
        gradient.backward(batch_of())
        learned.backward(batch_of())
    torch.testing.assert_close(grads(network), truth)
    if steps == 1:  # of one window all rows are drawn
        gradient.replays()
        network.zero_grad()
        gradient.replay()
        torch.testing.assert_close(grads(network), truth)


@pytest.mark.parametrize("kind", ["tangents", "values"])
def test_losses_whose_sum_is_too_large_for_float32_have_a_mean_and_a_gradient(kind):
    network, box = make_network().float(), make_box()
    batch = tuple(part.float() for part in batch_of())
    largest = float(error(function, network, batch).detach().max())
    size = 3e38 / largest

    def objective(network, batch, solver: Any = box):
        return error(solver, network, batch) * size

    truth = by_autograd(network.double(), lambda network, batch: objective(network, batch, function))
    mean = error(function, network, batch_of()).mean().detach() * size
    network.float()
    gradient = tangents(network, objective, box)
    if kind == "values":
        gradient = zo.LossGradient(network, objective, zo.CGE(1e-3, central=True))
    for _ in range(2):
        network.zero_grad()
        loss = gradient.backward(batch)
        torch.testing.assert_close(float(loss), float(mean), rtol=1e-5, atol=0.0)
        torch.testing.assert_close(
            [grad.double() / size for grad in grads(network)],
            [true / size for true in truth],
            rtol=5e-3,
            atol=5e-4,
        )


def test_too_large_losses_beside_rows_that_failed_are_not_called_dependent():
    network = make_network().float()
    batch = tuple(part.float() for part in batch_of())

    def fails(z: Tensor) -> Tensor:
        return torch.where(torch.arange(len(z))[:, None] == 0, torch.nan, function(z))

    box = FromTorch(fails, (SPEC,), (ArraySpec("y", (3,)),))

    known = error(function, network, batch)[1:].detach()
    size = 3e38 / float(known.max())
    assert float(known.sum()) * size > torch.finfo(torch.float32).max

    def objective(network, batch):
        return error(box, network, batch) * size

    loss = tangents(network, objective, box).backward(batch)
    torch.testing.assert_close(float(loss), float(known.mean()) * size, rtol=1e-5, atol=0.0)


class Replicas(DistributedDataParallel):
    """One of two processes' replicas, without the other process."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module
        self.process_group = SimpleNamespace(size=lambda: 2)


@pytest.mark.parametrize("kind", ["tangents", "values"])
def test_replicas_that_only_autograd_averages_are_refused(kind):
    with pytest.raises(zo.errors.ParameterError, match=r"averages gradients.*process_group="):
        gradient_of(kind, Replicas(make_network()), make_box())


class FullyShardedDataParallel(nn.Sequential):
    """By name torch's wrapper, which needs processes; a step through it ended them by a signal."""


@pytest.mark.parametrize("kind", ["tangents", "values"])
def test_a_network_of_which_a_process_has_a_shard_is_refused(kind):
    network = nn.Sequential(FullyShardedDataParallel(make_network()))
    with pytest.raises(
        zo.errors.ParameterError, match=r"got FullyShardedDataParallel as 0, .*before it was wrapped"
    ):
        gradient_of(kind, network, make_box())


def with_derivative(take):
    """An objective of the box's answers and of a derivative that it takes itself."""

    def objective(network, batch, solver):
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            return take(network, solver, x) + error(solver, network, batch)

    return objective


def penalty_through(network, solver, x):
    (slope,) = torch.autograd.grad(solver(network(x)).sum(), x, create_graph=True)
    return (slope - 1).square().mean(dim=1)


def sensitivity_read(network, solver, x):
    (slope,) = torch.autograd.grad(solver(network(x)).sum(), x)
    return slope.square().mean(dim=1)


def slope_of_backward(network, solver, x):
    solver(network(x)).sum().backward(inputs=[x])
    return x.grad.square().mean(dim=1)


def by_functorch(network, solver, x):
    slope = torch.func.grad(lambda moved: solver(network(moved)).sum())(x.detach())
    return slope.square().mean(dim=1)


def by_forward_mode(network, solver, x):
    x = x.detach()
    _, slope = torch.func.jvp(lambda moved: solver(network(moved)), (x,), (torch.ones_like(x),))
    return slope.square().mean(dim=1)


THROUGH = [penalty_through, sensitivity_read, slope_of_backward, by_functorch, by_forward_mode]


@pytest.mark.quick_cases(6)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, of its jvp
@pytest.mark.parametrize("take", THROUGH)
def test_a_derivative_through_a_box_inside_of_an_objective_is_refused_in_the_first_step(take):
    box, network, objective = make_box(), make_network(), with_derivative(take)
    gradient = zo.TangentGradient(
        network,
        lambda n, b: objective(n, b, box),
        boxes=[box],
        tangent=ModelTangent(function),
    )
    with pytest.raises(zo.errors.TangentError, match=r"a derivative through it.*by differences"):
        gradient.backward(batch_of())
    assert all(weight.grad is None for weight in network.parameters())


def penalty_in_front(network, solver, x):
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return slope.square().mean(dim=1) + 0 * solver(network(x)).sum(dim=1)


def penalty_behind(network, solver, x):
    answer = solver(network(x))
    (slope,) = torch.autograd.grad((answer**3).sum(), answer, create_graph=True)
    return slope.square().mean(dim=1)


@pytest.mark.parametrize("take", [penalty_in_front, penalty_behind])
def test_a_derivative_in_front_of_a_box_or_behind_it_is_right_in_each_step(take):
    box, network, objective = make_box(), make_network(), with_derivative(take)
    gradient = zo.TangentGradient(
        network,
        lambda n, b: objective(n, b, box),
        boxes=[box],
        tangent=ModelTangent(function),
    )
    expected = by_autograd(network, lambda n, b: objective(n, b, function))
    for _ in range(3):
        network.zero_grad()
        gradient.backward(batch_of())
        for found, true in zip(grads(network), expected, strict=True):
            torch.testing.assert_close(found, true)


def failing_above(limit: float) -> FromTorch:
    return FromTorch(
        lambda z: torch.where((z > limit).any(dim=1, keepdim=True), torch.nan, function(z)),
        (SPEC,),
        (ArraySpec("y", (3,)),),
    )


@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
@pytest.mark.parametrize("needed", [[1, 2, 3, 4], [0, 1, 2, 3], [1, 3]])
def test_a_mask_of_rows_of_which_one_fails_is_refused_with_the_way_to_write_it(needed, evaluator):
    """Row 0 stands in for a failed one, whether the mask has it or not; by `torch.where` it is right."""
    network, batch = make_network(), batch_of()
    answers = network(batch[0]).detach()
    limit = float(answers[needed].amax(dim=1).sort().values[-2:].mean())  # the largest of them fails
    needs = torch.zeros(ROWS, dtype=torch.bool)
    needs[needed] = True
    rows = torch.cat([batch[0], needs[:, None].double()], dim=1), batch[1]

    def masked(network, batch, solver):
        z, needs = network(batch[0][:, :4]), batch[0][:, 4] > 0
        y = z.clone()
        y[needs] = solver(z[needs])
        return (y - batch[1]).square().mean(dim=1)

    def chosen(network, batch, solver):
        z, needs = network(batch[0][:, :4]), batch[0][:, 4] > 0
        y = torch.where(needs[:, None], solver(torch.where(needs[:, None], z, 0.0)), z)
        return (y - batch[1]).square().mean(dim=1)

    def gradient_of(objective):
        box = failing_above(limit)
        return zo.TangentGradient(
            network,
            lambda n, b: objective(n, b, box),
            boxes=[box],
            tangent=ModelTangent(function),
        )

    with pytest.raises(zo.errors.TangentError, match=r"a mask, as in box\(z\[needs\]\).*torch\.where"):
        gradient_of(masked).backward(rows)
    assert all(weight.grad is None for weight in network.parameters())
    gradient_of(chosen).backward(rows)
    alive = ~(needs & (answers > limit).any(dim=1))
    assert int((~alive).sum()) == 1
    loss = masked(network, rows, function)[alive].mean()
    for found, true in zip(
        grads(network), torch.autograd.grad(loss, list(network.parameters())), strict=True
    ):
        torch.testing.assert_close(found, true)
