"""Unusual objectives, batches and modes: each is served rightly, or refused with words that help."""

from __future__ import annotations

import collections
import copy
import dataclasses
import typing
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.zo.boxes import Sine
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch

ROWS = 6


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def batch_of() -> torch.Tensor:
    return torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(1))


def mean_square(network, batch):
    return network(batch).square().mean(dim=1)


def flat_grad(network) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in network.parameters()]).double()


def by_autograd(network, objective, batch) -> torch.Tensor:
    weights = list(network.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective(network, batch).mean(), weights)])


def off(estimated: torch.Tensor, truth: torch.Tensor) -> float:
    return float((estimated - truth).norm() / truth.norm())


# ---------------------------------------------------------------------------- what an objective returns

RETURNED = {
    "nothing": (lambda loss: None, ["None", "`return`"]),
    "a float": (lambda loss: 0.5, ["got float", ".item()"]),
    "a list": (lambda loss: loss.tolist(), ["got list", ".tolist()"]),
    "a NumPy array": (lambda loss: loss.detach().numpy(), ["got numpy.ndarray", ".numpy()"]),
    "a pair": (lambda loss: (loss, loss), ["got tuple", "Return the tensor itself"]),
    "a scalar": (lambda loss: loss.mean(), ["shape ()", "flatten(1).mean(dim=1)"]),
    "a column": (lambda loss: loss[:, None], [f"shape ({ROWS}, 1)", "flatten(1).mean(dim=1)"]),
    "whole numbers": (lambda loss: loss.round().long(), ["int64", "before it is rounded"]),
    "truth values": (lambda loss: loss > 0, ["bool", "before it is rounded"]),
    "complex numbers": (lambda loss: loss.to(torch.complex64), ["complex64", "abs()"]),
    "no numbers": (lambda loss: loss.to("meta"), ["'meta'", "no numbers"]),
}


def loss_gradient(objective):
    zo.LossGradient(small(), objective, zo.CGE(1e-3)).backward(batch_of())


def tangent_gradient(objective):
    box = Sine()
    gradient = zo.TangentGradient(
        small(), lambda network, batch: (box(batch), objective(network, batch))[1], boxes=[box]
    )
    gradient.backward(batch_of())


def pruning_score(objective):
    zo.pruning.scores("grasp", small(), objective, batch_of())


@pytest.mark.parametrize("use", [loss_gradient, tangent_gradient, pruning_score])
@pytest.mark.parametrize(("returned", "words"), RETURNED.values(), ids=RETURNED)
def test_what_an_objective_may_not_return(returned, words, use):
    with pytest.raises(zo.errors.ObjectiveError) as raised:
        use(lambda network, batch: returned(mean_square(network, batch)))
    for word in ["one floating loss per row", *words]:
        assert word in str(raised.value)


@pytest.mark.parametrize("returned", [None, "much"])
def test_a_validation_that_returns_no_loss(returned):
    with pytest.raises(zo.errors.ConfigurationError, match="returns a loss, or one for each row, got"):
        zo.KeepBest(small(), lambda: returned).before_step()


# --------------------------------------------------------------- objectives that need a graph of their own


def residual(network, batch):
    """Of u' = u along the first axis, as a network for a differential equation has it."""
    with torch.enable_grad():
        batch = batch.clone().requires_grad_()
        u = network(batch)
        (slope,) = torch.autograd.grad(u.sum(), batch, create_graph=True)
    return (slope[:, :1] - u).square().mean(dim=1)


def residual_by_func(network, batch):
    u = network(batch)
    slope = torch.func.vmap(torch.func.grad(lambda x: network(x).sum()))(batch)
    return (slope[:, :1] - u).square().mean(dim=1)


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
@pytest.mark.parametrize("directions", [False, True])
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
@pytest.mark.parametrize("objective", [residual, residual_by_func])
def test_an_objective_with_a_gradient_inside(objective, evaluator, directions):
    estimator = zo.RGE(1e-3, q=200, central=True) if directions else zo.CGE(1e-3, central=True)
    if evaluator == "difference":
        inner = objective
        objective = zo.OutputLoss(
            lambda output, _: output, inputs=lambda batch: batch, targets=lambda batch: batch
        )
    network = small()
    if evaluator == "difference":
        network = Residual(network, inner)
    truth = by_autograd(copy.deepcopy(network).double(), objective, batch_of().double())
    zo.LossGradient(network, objective, estimator, evaluator=evaluator).backward(batch_of())
    # 200 random directions of 19 weights leave an error of (19 / 200) ** .5 = .31
    assert off(flat_grad(network), truth) < (0.6 if directions else 1e-3)


class Residual(nn.Module):
    def __init__(self, network, objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, x):
        return self.objective(self.network, x)


def test_an_objective_that_asks_for_a_gradient_where_there_is_no_graph():
    def objective(network, batch):
        batch = batch.clone().requires_grad_()
        return torch.autograd.grad(network(batch).sum(), batch)[0].square().mean(dim=1)

    with pytest.raises(zo.errors.ObjectiveError, match=r"needs no graph.*`with torch.enable_grad\(\):`"):
        zo.LossGradient(small(), objective, zo.CGE(1e-3)).backward(batch_of())


LISTENING = {
    "a hook": lambda y: y.register_hook(lambda gradient: 0.5 * gradient),
    "its gradient": lambda y: y.retain_grad(),
    "its edge": torch.autograd.graph.get_gradient_edge,
}


@pytest.mark.parametrize("through_a_box", [False, True])
@pytest.mark.parametrize("listen", LISTENING.values(), ids=LISTENING)
def test_an_objective_that_listens_to_a_gradient_where_there_is_no_graph(listen, through_a_box):
    box = Sine()

    def objective(network, batch):
        y = network(batch)
        listen(y)
        return (box(y) if through_a_box else y).square().mean(dim=1)

    network = nn.Linear(4, 4)
    if through_a_box:
        gradient = zo.TangentGradient(network, objective, boxes=[box])
    else:
        gradient = zo.LossGradient(network, objective, zo.CGE(1e-3))
    with pytest.raises(zo.errors.ObjectiveError, match=r"needs no graph.*`if y.requires_grad:`"):
        gradient.backward(batch_of())


def test_a_hook_on_a_tensor_that_requires_a_gradient_is_heard():
    """As the sentence says; the gradient is autograd's, hook included."""
    network, box = nn.Linear(4, 4), Sine()

    def objective(network, batch, function):
        y = network(batch)
        if y.requires_grad:
            y.register_hook(lambda gradient: 0.5 * gradient)
        return function(y).square().mean(dim=1)

    def sine(x):
        return torch.sin(1.3 * x)

    gradient = zo.TangentGradient(
        network, lambda n, b: objective(n, b, box), boxes=[box], tangent=zo.tangents.ModelTangent(sine)
    )
    truth = by_autograd(network, lambda n, b: objective(n, b, sine), batch_of())
    for _ in range(2):  # the first is recorded and played back, the second has its graph
        network.zero_grad()
        gradient.backward(batch_of())
        assert off(flat_grad(network), truth) < 1e-5


@pytest.mark.parametrize("all_of_them", [False, True])
@pytest.mark.parametrize("call", ["backward", "replay"])
def test_weights_that_a_pattern_chose_and_that_are_frozen_later_are_refused(call, all_of_them):
    """By a gradient that goes by autograd, before boxes run."""
    network, box = nn.ModuleDict({"g": nn.Linear(4, 4), "d": nn.Linear(4, 4)}), Sine()
    gradient = zo.TangentGradient(
        network,
        lambda _, batch: box(network["g"](batch)).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.ModelTangent(lambda x: torch.sin(1.3 * x)),
        parameters=["g.*"],
        limits=zo.tangents.Limits(replays=1),
    )
    gradient.backward(batch_of())
    assert gradient.replays() == 1
    rows = box.ledger.rows_asked
    (network["g"] if all_of_them else network["g"].weight).requires_grad_(False)
    with pytest.raises(
        zo.errors.ConfigurationError, match=r"'g\.weight', which does not\..*requires_grad=True"
    ):
        gradient.replay() if call == "replay" else gradient.backward(batch_of())
    assert box.ledger.rows_asked == rows
    network["g"].requires_grad_(True)
    gradient.backward(batch_of())


# ------------------------------------------------------------------------------- containers of a batch


class Named(typing.NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@dataclasses.dataclass
class Data:
    x: torch.Tensor
    y: torch.Tensor


class Registered:
    """As a TensorDict is one."""

    def __init__(self, x, y) -> None:
        self.x, self.y = x, y


class Unknown(Registered):
    """torch does not know it."""


torch.utils._pytree.register_pytree_node(
    Registered, lambda it: ([it.x, it.y], None), lambda parts, _: Registered(*parts)
)
CONTAINERS = {
    "a dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
    "a UserDict": (lambda x, y: collections.UserDict(x=x, y=y), lambda b: (b["x"], b["y"])),
    "a UserList": (lambda x, y: collections.UserList([x, y]), lambda b: (b[0], b[1])),
    "a deque": (lambda x, y: collections.deque([x, y]), lambda b: (b[0], b[1])),
    "a NamedTuple": (Named, lambda b: (b.x, b.y)),
    "a dataclass": (Data, lambda b: (b.x, b.y)),
    "a registered class": (Registered, lambda b: (b.x, b.y)),
    "one in another": (lambda x, y: [Registered({"x": x}, (y,))], lambda b: (b[0].x["x"], b[0].y[0])),
}


@pytest.mark.quick_cases(6)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize(("made", "parts"), CONTAINERS.values(), ids=CONTAINERS)
def test_containers_of_a_batch(made, parts, evaluator):
    def objective(network, batch):
        x, y = parts(batch)
        return (network(x) - y).square().mean(dim=1)

    network, x, y = small(), batch_of(), torch.ones(ROWS, 1)
    truth = by_autograd(copy.deepcopy(network).double(), objective, made(x.double(), y.double()))
    zo.LossGradient(network, objective, zo.CGE(1e-3, central=True), evaluator=evaluator).backward(made(x, y))
    assert off(flat_grad(network), truth) < 1e-3


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (None, ["got None"]),
        ([], ["got list, in which none is found"]),
        (Unknown(batch_of(), batch_of()), ["got Unknown, in which", "register"]),
        ("rows", ["got str"]),
    ],
)
def test_a_batch_in_which_no_tensor_is_found(batch, words):
    with pytest.raises(zo.errors.ObjectiveError, match="rows first") as raised:
        zo.LossGradient(small(), mean_square, zo.CGE(1e-3)).backward(batch)
    for word in words:
        assert word in str(raised.value)


# ------------------------------------------------------------------------------------- inference mode


def test_a_network_made_in_inference_mode_is_refused_and_a_copy_of_it_is_not():
    with torch.inference_mode():
        network = small()
    with pytest.raises(zo.errors.ParameterError, match=r"inference_mode.* copy.deepcopy"):
        zo.LossGradient(network, mean_square, zo.CGE(1e-3))
    network = copy.deepcopy(network)
    zo.LossGradient(network, mean_square, zo.CGE(1e-3)).backward(batch_of())
    torch.optim.SGD(network.parameters(), lr=0.1).step()


@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
def test_a_loss_gradient_in_inference_mode(evaluator):
    """Two micro-batches, of tensors of inference mode too, and what a loop does with `.grad` outside."""
    network = small()
    objective = zo.OutputLoss(
        lambda output, _: output.square().mean(dim=1), inputs=lambda b: b, targets=lambda b: b
    )
    truth = by_autograd(copy.deepcopy(network).double(), objective, batch_of().double())
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3, central=True), evaluator=evaluator)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(batch_of())
    gradient.backward(batch_of())
    assert off(flat_grad(network), 2 * truth) < 1e-3
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)
    torch.optim.Adam(network.parameters()).step()


class Shifted(BlackBoxFunction):
    """Its derivative is the identity, to the last bit."""

    inputs = outputs = (ArraySpec("x", shape=(1,), dtype="float32"),)

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        return x + 1


def shifted(network, batch):
    return (network(batch) + 1).square().mean(dim=1)


def test_tangents_in_inference_mode():
    network, box = small(), Shifted()
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: box(network(batch)).square().mean(dim=1),
        boxes=[box],
        tangent=zo.tangents.IdentityTangent(),
    )
    truth = by_autograd(network, shifted, batch_of()).double()
    with torch.inference_mode():
        gradient.backward(batch_of())
    gradient.backward(batch_of())
    assert off(flat_grad(network), 2 * truth) < 1e-5
    nn.utils.clip_grad_norm_(network.parameters(), 1e-3)


@pytest.mark.parametrize(
    "tangent", [zo.tangents.KernelTangent(), learner(zo.tangents.MLPTangent, 4, first_steps=1, batch=8)]
)
def test_what_tangents_learn_before_the_first_step_in_inference_mode_is_learned_on_from(tangent):
    network, box = small(), Shifted()
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: box(network(batch)).square().mean(dim=1),
        boxes=[box],
        tangent=tangent,
    )
    with torch.inference_mode():
        gradient.prefit([batch_of()], steps=1)
    assert gradient.backward(batch_of()).isfinite() and gradient.counts.rows > 2 * ROWS


@pytest.mark.parametrize(
    ("limit", "error"), [(np.inf, zo.errors.NonFiniteGradientError), (-np.inf, zo.errors.FailedQueriesError)]
)
def test_rows_of_a_step_that_is_refused_are_counted(limit, error):
    network, box, spoiled = nn.Linear(4, 4), Sine(), False

    def objective(network, batch):
        losses = box(network(batch)).square().mean(dim=1)
        return losses + (0 * network.weight).sqrt().sum() if spoiled else losses  # whose derivative is NaN

    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.KernelTangent())
    for _ in range(3):
        gradient.backward(batch_of())
        before, spoiled, box.limit = flat_grad(network), True, limit
        with pytest.raises(error):
            gradient.backward(batch_of())
        spoiled, box.limit = False, np.inf
        assert torch.equal(flat_grad(network), before)
        assert gradient.counts.rows == sum(box.calls)
    box.limit = -np.inf
    with pytest.raises(zo.errors.FailedQueriesError):
        gradient.prefit([batch_of()])
    assert gradient.counts.rows == sum(box.calls) and gradient.counts.steps == 3


def test_a_gradient_that_grows_beyond_numbers_says_so_and_how_to_cut_it():
    """Fifty calls, each of which makes it seven times as large."""

    class Unstable(BlackBoxFunction):
        arrays, inputs, outputs = "torch", Sine.inputs, Sine.outputs

        def evaluate_rows(self, x):
            return unstable(x)

    def unstable(x):
        return torch.remainder(7 * x, 1)

    def objective(network, batch):
        x = torch.zeros_like(batch)
        for call in range(50):
            x = box((x.detach() if cut and call % cut == 0 else x) + network(batch))
        return x.square().mean(dim=1)

    network, box, cut = nn.Linear(4, 4), Unstable(), 0
    limits, known = zo.tangents.Limits(check_every=None), zo.tangents.ModelTangent(unstable)
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=known, limits=limits)
    with pytest.raises(zo.errors.NonFiniteGradientError, match=r"many calls: .*detach\(\)"):
        gradient.backward(batch_of())
    assert network.weight.grad is None and gradient.counts.steps == 0
    cut = 25
    gradient.backward(batch_of())
    assert flat_grad(network).isfinite().all()


class WithBox:
    """An objective that holds its box, which a deep copy copies too."""

    def __init__(self, box) -> None:
        self.box = box

    def __call__(self, network, batch):
        return self.box(network(batch)).square().mean(dim=1)


@pytest.mark.parametrize("kind", ["a function", "an object"])
def test_a_deep_copy_of_tangents_trains_its_own_network(kind):
    network, box = small(), Shifted()
    held = WithBox(box)
    objective = held if kind == "an object" else lambda network, batch: held(network, batch)
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=zo.tangents.IdentityTangent())
    truth = by_autograd(network, shifted, batch_of()).double()
    twin = copy.deepcopy(gradient)
    twin.backward(batch_of())
    assert all(weight.grad is None for weight in network.parameters())
    assert off(flat_grad(twin.network), truth) < 1e-5
    gradient.backward(batch_of())
    assert torch.equal(flat_grad(network), flat_grad(twin.network)) and twin.counts == gradient.counts


# --------------------------------------------------------------- two gradients at once on one network


@pytest.mark.parametrize("kind", ["loss", "tangent"])
def test_a_gradient_is_refused_while_another_is_at_work_on_the_same_weights(kind):
    """Queries move the weights, which the other would see: its gradient was wrong without a word."""
    network, box, refused = small(), Sine(), []

    def objective(network, batch):
        if not refused:
            refused.append(None)
            with ThreadPoolExecutor(1) as pool:
                refused[0] = pool.submit(other.backward, batch).exception()
        return box(batch + network(batch)).square().mean(dim=1)

    def made(objective):
        if kind == "loss":
            return zo.LossGradient(network, objective, zo.CGE(1e-3))
        return zo.TangentGradient(network, objective, boxes=[box])

    other = made(lambda network, batch: box(batch + network(batch)).square().mean(dim=1))
    gradient = made(objective)
    gradient.backward(batch_of())
    assert isinstance(refused[0], zo.errors.ParameterError) and "no other gradient at work" in str(refused[0])
    assert all(weight.grad is not None for weight in network.parameters())
    other.backward(batch_of())  # and afterwards it may


def test_a_compiled_objective_runs_as_it_was_written():
    box = FromTorch(torch.sin, (ArraySpec("x", (2,)),), (ArraySpec("y", (2,)),))

    def objective(network, batch):
        return box(network(batch)).square().sum(dim=1)

    found = []
    for each in (objective, torch.compile(objective, backend="eager")):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        gradient = zo.TangentGradient(network, each, boxes=[box], tangent=zo.tangents.MLPTangent(8), seed=0)
        for step in range(2):
            gradient.backward(torch.randn(8, 3, generator=torch.Generator().manual_seed(step)))
        found.append(network.weight.grad)
    assert found[0].any() and torch.equal(*found)
