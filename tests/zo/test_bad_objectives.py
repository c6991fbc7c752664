"""Bad input to `LossGradient`, case by case: each a named error that helps, or `loop` with one warning."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxError
from blackbox.adapters import from_callable
from zo.evaluators import Loop, Stacked

ROWS = 4


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


def batch_of(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1))


def act(batch=None, context=None, **changes):
    """What `backward` does with one thing changed."""
    settings = {"network": nn.Linear(3, 2), "objective": mean_square, "estimator": zo.CGE(1e-3)}
    gradient = zo.LossGradient(**(settings | changes))
    if context is None:
        return gradient.backward(batch_of() if batch is None else batch)
    with context:
        return gradient.backward(batch_of())


def under_autocast(dtype):
    def objective(network, batch):
        with torch.autocast("cpu", dtype):
            return mean_square(network, batch).float()

    return objective


def with_integers() -> nn.Module:
    network = nn.Linear(3, 2)
    network.table = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
    return network


ERRORS = {
    "a mean over rows": (
        {"objective": lambda n, b: mean_square(n, b).mean()},
        zo.errors.ObjectiveError,
        ["(4,)", "()", "flatten(1).mean(dim=1)"],
    ),
    "a column": ({"objective": lambda n, b: n(b)[:, :1]}, zo.errors.ObjectiveError, ["(4,)", "(4, 1)"]),
    "one loss per output": ({"objective": lambda n, b: n(b)}, zo.errors.ObjectiveError, ["(4,)", "(4, 2)"]),
    "a number": ({"objective": lambda n, b: 0.5}, zo.errors.ObjectiveError, ["(4,)", "float"]),
    "whole numbers": (
        {"objective": lambda n, b: n(b).argmax(dim=1)},
        zo.errors.ObjectiveError,
        ["floating", "int64"],
    ),
    "an empty batch": (
        {"batch": torch.zeros(0, 3)},
        zo.errors.ObjectiveError,
        ["at least one row", "(0, 3)"],
    ),
    "integer parameters": (
        {"network": with_integers(), "parameters": ["*"]},
        zo.errors.ParameterError,
        ["'table'", "int64", "float32"],
    ),
    "half parameters": (
        {"network": nn.Linear(3, 2).half()},
        zo.errors.ParameterError,
        ["'weight'", "float16"],
    ),
    "bfloat16 parameters": ({"network": nn.Linear(3, 2).bfloat16()}, zo.errors.ParameterError, ["bfloat16"]),
    "autocast around": (
        {"context": torch.autocast("cpu", torch.bfloat16)},
        zo.errors.ObjectiveError,
        ["backward: expected a call outside", "bfloat16", "step of mu is lost", "behind that block"],
    ),
    "autocast inside": (
        {"objective": under_autocast(torch.bfloat16)},
        zo.errors.ObjectiveError,
        ["Linear", "bfloat16", "enabled=False"],
    ),
    "autocast to float16 inside, for loop": (
        {"objective": under_autocast(torch.float16), "evaluator": "loop"},
        zo.errors.ObjectiveError,
        ["Linear", "float16"],
    ),
    "no chunk": ({"chunk": 0}, zo.errors.ConfigurationError, ["chunk", ">= 1"]),
    "a closure, stacked": (
        {"objective": lambda: torch.zeros(3), "evaluator": "stacked"},
        zo.errors.ConfigurationError,
        ["'loop'", "closure", "objective(network, batch)"],
    ),
    "a closure, Stacked": (
        {"objective": lambda: torch.zeros(3), "evaluator": Stacked()},
        zo.errors.ConfigurationError,
        ["'loop'", "closure"],
    ),
    "a closure with a batch": (
        {"objective": lambda: torch.zeros(3)},
        zo.errors.ObjectiveError,
        ["no batch", "Tensor", "backward()"],
    ),
    "stacked by name of no evaluator": (
        {"evaluator": "stack"},
        zo.errors.ConfigurationError,
        ["'stacked'", "'stack'"],
    ),
}


@pytest.mark.parametrize(("changes", "error", "words"), ERRORS.values(), ids=ERRORS)
def test_a_named_error_before_any_gradient(changes, error, words):
    network = changes.get("network", nn.Linear(3, 2))
    with pytest.raises(error) as raised:
        act(**{"network": network} | changes)
    assert isinstance(raised.value, BlackBoxError)
    for word in words:
        assert word in str(raised.value)
    assert all(parameter.grad is None for parameter in network.parameters())


TARGET = torch.linspace(-1, 1, ROWS * 2).view(ROWS, 2)


def times_first(network, batch):
    """Two times of each row, flattened the other way round; the second counts for more."""
    outputs = network(torch.stack([batch, batch.sin()]).flatten(0, 1)).view(2, len(batch), -1)
    return (outputs * torch.tensor([1.0, 3.0]).view(2, 1, 1)).square().mean(dim=(0, 2))


FALLBACKS = {
    "a closure over rows": lambda n, b: (n(b) - TARGET).square().mean(dim=1),
    "a fixed number of rows": lambda n, b: n(b).view(ROWS, -1).square().mean(dim=1),
    "rows stacked by hand": lambda n, b: torch.stack([n(b[i]).square().mean() for i in range(ROWS)]),
    "scaled by the batch": lambda n, b: mean_square(n, b) / mean_square(n, b).mean(),
    "centred over the batch": lambda n, b: (n(b) - n(b).mean(dim=0)).square().mean(dim=1),
    "ranked in the batch": lambda n, b: mean_square(n, b).sort().values,
    "the network's own rows": lambda n, b: mean_square(n, b) + n(torch.ones(1, 3)).square().mean(),
    "times before rows": times_first,
    "weights without a call": lambda n, b: (b @ n.weight.T + n.bias).square().mean(dim=1),
}


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("objective", FALLBACKS.values(), ids=FALLBACKS)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=5)], ids=["cge", "rge"])
@pytest.mark.filterwarnings(
    "ignore::zo.errors.NoiseWarning"
)  # scaled by the batch, the mean loss is constant
def test_what_cannot_be_stacked_runs_in_loop_with_one_warning(objective, estimator):
    gradients = []
    for evaluator in ("loop", "auto"):
        torch.manual_seed(0)
        network = nn.Linear(3, 2)
        gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator)
        if evaluator == "loop":
            gradient.backward(batch_of())
        else:
            with pytest.warns(zo.errors.EvaluatorWarning, match="loop is used from here on") as caught:
                gradient.backward(batch_of())
                network.zero_grad()
                gradient.counts.steps = 0  # the same draws
                gradient.backward(batch_of())
            assert len([warning for warning in caught if warning.category is zo.errors.EvaluatorWarning]) == 1
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    assert torch.equal(*gradients)


def test_autocast_switched_off_inside_is_let_through():
    def objective(network, batch):
        with torch.autocast("cpu", enabled=False):
            loss = mean_square(network, batch)
        with torch.autocast("cpu", torch.bfloat16):  # what comes after the network may be coarse
            return loss + (batch @ batch.T).float().mean() * 0

    network = nn.Linear(3, 2)
    act(network=network, objective=objective)
    assert network.weight.grad is not None


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("evaluator", ["auto", "loop", Loop()], ids=["auto", "loop", "Loop"])
def test_a_closure_without_arguments_gives_one_loss_or_one_a_row(rows, evaluator):
    network, x = nn.Linear(3, 2).double(), batch_of().double()

    def closure():
        return mean_square(network, x[:rows]) if rows else mean_square(network, x).mean()

    gradient = zo.LossGradient(network, closure, zo.CGE(1e-6), evaluator=evaluator)
    loss = gradient.backward()
    expected = closure().mean()
    assert torch.equal(loss, expected.detach())
    truth = torch.autograd.grad(expected, list(network.parameters()))
    for parameter, slope in zip(network.parameters(), truth, strict=True):
        assert torch.allclose(parameter.grad, slope, atol=1e-5)


def test_a_batch_that_was_forgotten():
    gradient = zo.LossGradient(nn.Linear(3, 2), mean_square, zo.CGE(1e-3))
    with pytest.raises(zo.errors.ObjectiveError, match="rows first"):
        gradient.backward()


class PartlyCoarse(nn.Module):
    """A frozen layer in 16 bits, in front of the perturbed one or behind it."""

    def __init__(self, dtype, before):
        super().__init__()
        torch.manual_seed(0)
        self.own, self.frozen, self.before = nn.Linear(6, 6), nn.Linear(6, 6).to(dtype), before
        self.frozen.requires_grad_(False)

    def forward(self, x):
        first, second = (self.frozen, self.own) if self.before else (self.own, self.frozen)
        middle = torch.tanh(first(x.to(first.weight.dtype)))
        return second(middle.to(second.weight.dtype)).to(x.dtype)


def squared(output, target):
    return (output - target).square().mean(dim=1)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference", "auto"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_behind_perturbed_weights_are_refused_and_in_front_of_them_are_right(dtype, evaluator):
    batch = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(64, 6)
    behind = PartlyCoarse(dtype, before=False)
    with pytest.raises(zo.errors.ObjectiveError, match=r"Linear: .* got b?float16, .* Convert the module"):
        zo.LossGradient(behind, zo.OutputLoss(squared), zo.CGE(1e-3), evaluator=evaluator).backward(batch)
    assert all(parameter.grad is None for parameter in behind.parameters())
    network = PartlyCoarse(dtype, before=True)
    truth = copy.deepcopy(network).double()
    truth.frozen.to(dtype)  # its rounding is part of the function
    squared(truth(batch[0].double()), 0.0).mean().backward()
    zo.LossGradient(network, zo.OutputLoss(squared), zo.CGE(1e-3), evaluator=evaluator).backward(batch)
    for narrow, wide in zip(network.own.parameters(), truth.own.parameters(), strict=True):
        # a forward difference of a quadratic is off by mu / 2 times its curvature; rounding by eps / mu
        assert (narrow.grad - wide.grad).norm() < 1e-2 * wide.grad.norm()


class CastInside(nn.Module):
    """Casts to 16 bits and back in its forward, which no module's output shows."""

    def __init__(self, where: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.last, self.where = nn.Linear(6, 6), nn.Linear(6, 6), where

    def forward(self, x):
        x = x.bfloat16().float() if self.where == "in front" else x
        middle = self.own(x).tanh()
        if self.where == "behind":
            middle = middle.bfloat16().float()
        if self.where == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                middle = (middle @ middle.mT @ middle).float()
        return self.last(middle)


@pytest.mark.quick_cases(2)
@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
@pytest.mark.parametrize("where", ["behind", "autocast"])
def test_16_bits_inside_of_a_forward_behind_perturbed_weights_are_told(where, evaluator):
    network, objective = CastInside(where), zo.OutputLoss(squared)
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), parameters="own.*", evaluator=evaluator)
    batch = torch.randn(8, 6), torch.zeros(8, 6)
    with pytest.warns(
        zo.errors.NoiseWarning, match=r"expected float32 or float64 between .* got bfloat16 from"
    ):
        gradient.backward(batch)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["in front", "beside"])
def test_16_bits_that_do_not_depend_on_perturbed_weights_are_silent(where):
    teacher = nn.Linear(6, 6).bfloat16()

    def objective(network, batch):
        return squared(network(batch), teacher(batch.bfloat16()).float())

    zo.LossGradient(CastInside(where), objective, zo.CGE(1e-3)).backward(torch.randn(8, 6))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
@pytest.mark.parametrize("step", [1, 10])
def test_16_bits_that_begin_after_the_first_step_are_told_once_at_a_step_that_is_checked(step, evaluator):
    network = CastInside("nowhere")
    gradient = zo.LossGradient(network, zo.OutputLoss(squared), zo.CGE(1e-3), evaluator=evaluator)
    batch = torch.randn(8, 6), torch.zeros(8, 6)

    def act_at(step: int) -> list[str]:
        gradient.counts.steps = step
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            gradient.backward(batch)
        return [str(warning.message) for warning in said if "bfloat16" in str(warning.message)]

    assert act_at(0) == []
    network.where = "behind"
    (message,) = act_at(step)
    assert f"Step {step + 1}: expected float32 or float64 between" in message
    assert act_at(10 * step) == []


@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
def test_the_look_for_16_bits_takes_a_query_and_is_foreseen(evaluator):
    network = CastInside("in front")  # which no weight changes
    gradient = zo.LossGradient(
        network, zo.OutputLoss(squared), zo.CGE(1e-3), parameters="own.bias", evaluator=evaluator
    )
    batch = torch.randn(8, 6), torch.zeros(8, 6)
    for step in (0, 10):
        gradient.counts.steps = step
        most, before = gradient.most_checks(1), gradient.counts.checks
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradient.backward(batch)
        # where there are such numbers, a further evaluation or two see whether weights change them
        assert gradient.counts.checks - before <= most + 2


def test_a_batch_of_another_dtype_than_the_weights_is_named_in_a_note():
    network = nn.Linear(3, 1)
    box = from_callable(lambda x: 2 * x, inputs=[ArraySpec("x", (1,))], outputs=[ArraySpec("y", (1,))])
    steps = zo.TangentGradient(network, lambda net, rows: box(net(rows))[:, 0].square(), boxes=[box])
    with pytest.raises(RuntimeError, match="dtype") as caught:
        steps.backward(batch_of().double())
    (note,) = caught.value.__notes__
    assert "weights are float32, the batch has float64" in note and "batch.float()" in note
