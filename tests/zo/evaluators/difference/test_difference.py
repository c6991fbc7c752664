"""`Difference` as an evaluator: what it falls back from, what it refuses, boxes behind it, and its record."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.zo.boxes import Sine
from zo.estimators import Coordinates
from zo.evaluators import Loop, Stacked, Step
from zo.evaluators.difference.changes import OneChannel
from zo.evaluators.difference.difference_evaluator import LARGE
from zo.evaluators.difference.rule_registry import RULES
from zo.evaluators.difference.tape_mode import NotReadable
from zo.evaluators.state import Snapshot


def squared(output, target):
    return (output - target).square().flatten(1).mean(dim=1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 2))


def batch(rows: int = 5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 2, generator=generator)


def gradient_of(network, evaluator, objective=None, estimator=None, data=None, **settings):
    objective = objective or zo.OutputLoss(squared)
    gradient = zo.LossGradient(network, objective, estimator or zo.CGE(1e-3), evaluator=evaluator, **settings)
    gradient.backward(batch() if data is None else data)
    return torch.cat([p.grad.flatten() for p in network.parameters()]), gradient


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


def step_of(network, objective, data) -> Step:
    return Step(network, zo.estimators.Parameters(network), objective, data, len(data[0]))


@torch.no_grad()
def agree(network, objective, data, atol=1e-12):
    """In float64, every coordinate, with a step of 0.01."""
    network, data = network.double(), tuple(t.double() if t.is_floating_point() else t for t in data)
    step = step_of(network, objective, data)
    size = step.parameters.size
    queries = Coordinates(torch.arange(size), torch.full((size,), 0.01, dtype=torch.float64))
    start = Snapshot(network)
    base = objective(network, data)
    start.restore()  # queries start from the state that the base did
    truth = Loop().changes(step, queries, base)
    changes = zo.evaluators.Difference().changes(step, queries, base)
    assert torch.equal(torch.isfinite(changes), torch.isfinite(truth))
    assert torch.allclose(changes.nan_to_num(), truth.nan_to_num(), rtol=0, atol=atol)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "estimator",
    [
        zo.CGE(1e-4, central=True),
        zo.CGE(1e-4, zo.RandomCoordinates(20)),
        zo.RGE(1e-4, q=5),
    ],
    ids=["central", "sparse", "directions"],
)
@pytest.mark.parametrize("evaluator", ["difference", "auto"])
def test_every_estimator_gets_what_loop_gives(estimator, evaluator):
    gradients = []
    data = tuple(t.double() for t in batch())
    for name in ("loop", evaluator):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradients.append(gradient_of(made(mlp).double(), name, None, estimator, data)[0])
    assert torch.allclose(*gradients, rtol=0, atol=1e-9)


def test_a_wrong_rule_is_found_on_first_use_and_named_by_its_parameters(monkeypatch):
    rule = RULES[F.linear]

    def doubled(*args, **kwargs):
        change = rule(*args, **kwargs)
        return change.like(2 * change.values) if isinstance(change, OneChannel) else 2 * change

    monkeypatch.setitem(RULES, F.linear, doubled)
    with pytest.warns(
        zo.errors.EvaluatorWarning, match=r"Difference disagreed with loop for 0\.weight.*stacked"
    ) as caught:
        grads, gradient = gradient_of(made(mlp), "difference")
        gradient.backward(batch())
    assert len(caught) == 1
    assert torch.allclose(grads, gradient_of(made(mlp), "loop")[0], atol=1e-3)


class Odd(nn.Module):
    def forward(self, x):
        return x * (x > 0).any().item()


def test_a_function_that_changes_cannot_be_carried_through_warns_once_and_is_named():
    def make():
        return nn.Sequential(nn.Linear(3, 4), Odd(), nn.Linear(4, 2))

    with pytest.warns(
        zo.errors.EvaluatorWarning, match=r"1 \(Odd\).*Tensor\.item.*stacked is used"
    ) as caught:
        grads, gradient = gradient_of(made(make), "difference")
        gradient.backward(batch())
    assert len([w for w in caught if w.category is zo.errors.EvaluatorWarning]) == 1
    assert torch.equal(grads, gradient_of(made(make), Stacked())[0])


@pytest.mark.slow
def test_activations_beyond_the_bound_are_left_to_stacked():
    with pytest.warns(zo.errors.EvaluatorWarning, match=r"take at most .* got more.*stacked is used"):
        grads, gradient = gradient_of(made(mlp), zo.evaluators.Difference(memory=4))
    # Chunks are those that suit the evaluator that was asked for: of 16 here, of 25 if Stacked is. In passes
    # of other lengths a processor may round losses otherwise, by 1e-7, which mu divides.
    assert torch.equal(grads, gradient_of(made(mlp), Stacked(), chunk=gradient.chunk)[0])
    assert torch.allclose(grads, gradient_of(made(mlp), Stacked())[0], atol=1e-3)
    twin, data = made(mlp).double(), tuple(part.double() for part in batch())
    with pytest.warns(zo.errors.EvaluatorWarning, match="stacked is used"):
        grads, _ = gradient_of(twin, zo.evaluators.Difference(memory=4), data=data)
    alone, _ = gradient_of(made(mlp).double(), Stacked(), data=data)
    assert torch.allclose(grads, alone, rtol=0, atol=1e-12)  # rounding of 1e-16, over mu


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize("elementwise", [False, True])
def test_a_rule_of_the_user_serves_its_function(elementwise, monkeypatch):
    network = made(lambda: nn.Sequential(nn.Linear(3, 4), Bessel(), nn.Linear(4, 2)))
    agree(network, zo.OutputLoss(squared), batch())  # without it too
    monkeypatch.setitem(RULES, torch.special.bessel_j0, None)  # so that it is taken out again
    asked = []

    @zo.evaluators.difference_rule(torch.special.bessel_j0, elementwise=elementwise)
    def rule(call, input):
        asked.append(input.change.shape[-1])
        return torch.special.bessel_j0(input.value) - torch.special.bessel_j0(input.base)

    agree(network, zo.OutputLoss(squared), batch())
    assert set(asked) == {1 if elementwise else 4}  # the one feature that a weight moves, or all


@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
def test_rows_that_failed_in_the_base_are_left_out():
    x, y = batch()
    x[2] = float("nan")
    grads, gradient = gradient_of(made(lambda: nn.Linear(3, 2)), "difference", data=(x, y))
    keep = [0, 1, 3, 4]
    alone, _ = gradient_of(made(lambda: nn.Linear(3, 2)), "difference", data=(x[keep], y[keep]))
    assert torch.allclose(grads, alone, atol=1e-6)
    assert gradient.counts.dropped == 0


class Sums(BlackBoxFunction):
    """The mean square of two numbers; fails where the first is above `limit`."""

    inputs = (ArraySpec("y", shape=(2,)),)
    outputs = (ArraySpec("loss", shape=()),)

    def __init__(self, limit: float = np.inf) -> None:
        super().__init__(failures="keep")
        self.limit, self.calls = limit, []

    def evaluate_rows(self, y):
        self.calls.append(len(y))
        return np.where(y[:, 0] > self.limit, np.nan, np.sin(y).mean(axis=1))


def test_a_black_box_behind_the_network_gets_base_and_change_of_all_variants_together():
    box = Sums()
    objective = zo.OutputLoss(lambda output, target: box(output) + target[:, 0])
    agree(made(mlp), objective, batch(), atol=1e-12)
    box.calls.clear()
    step = step_of(made(mlp), objective, batch())
    queries = Coordinates(torch.arange(7), torch.full((7,), 1e-2))
    with torch.no_grad():
        zo.evaluators.Difference(variants=7).changes(step, queries, objective(step.network, step.batch))
    assert box.calls == [5, 7 * 5]  # the base here, and the queries; none while it was recorded


def test_rows_that_fail_in_the_box_behind_drop_their_queries():
    x, y = batch()
    network = made(mlp)
    with torch.no_grad():
        limit = network(x)[:, 0].sort().values[-2:].mean().item()  # one row fails in the base, others may
    box = Sums(limit)
    objective = zo.OutputLoss(lambda output, target: box(output))
    agree(network, objective, (x, y))
    assert (
        zo.LossGradient(made(mlp), objective, zo.CGE(1e-3), evaluator="difference", max_dropped=1.0)
        .backward((x, y))
        .isfinite()
    )


class WithMask(nn.Module):
    """Gives beside its output what depends on no weight: a factor of the input's, and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return {"y": self.layer(x), "factor": 1 + x[:, :2].square(), "used": x[:, :2] > -0.3}


@pytest.mark.parametrize("large", [LARGE, 0], ids=["changes", "values"])
@pytest.mark.parametrize("boxed", [False, True])
def test_what_no_weight_moves_stays_as_it_is_before_a_loss_without_a_rule(large, boxed, limits):
    limits(activations_followed=large)
    box = Sums()

    def odd(output, target):
        y = output["factor"] * output["y"] * output["used"]
        return box(y - target) if boxed else torch.special.bessel_j0(y - target).mean(dim=1)

    objective = zo.OutputLoss(odd)
    step = step_of(made(WithMask), objective, batch())
    queries = Coordinates(torch.arange(8), torch.full((8,), 1e-3, dtype=torch.float64))
    wide = step_of(made(WithMask).double(), objective, tuple(t.double() for t in batch()))
    with torch.no_grad():
        changes = zo.evaluators.Difference().changes(step, queries, objective(step.network, step.batch))
        true = Loop().changes(wide, queries, objective(wide.network, wide.batch))
    assert torch.allclose(changes.double(), true, rtol=1e-3, atol=3e-7 if large == 0 or boxed else 1e-8)
    assert true.abs().max() > 1e-4


def test_a_loss_without_a_rule_is_taken_in_float64():
    def odd(output, target):
        return torch.special.bessel_j0(output - target).mean(dim=1)

    network = made(mlp)
    step = step_of(network, zo.OutputLoss(odd), batch())
    queries = Coordinates(torch.arange(20), torch.full((20,), 1e-6))
    wide = step_of(made(mlp).double(), zo.OutputLoss(odd), tuple(t.double() for t in batch()))
    with torch.no_grad():
        changes = (
            zo.evaluators.Difference().changes(step, queries, step.objective(network, step.batch)).double()
        )
        steps = Coordinates(queries.indices, queries.steps.double())
        truth = Loop().changes(wide, steps, wide.objective(wide.network, wide.batch))
    # In float32 the losses themselves are rounded to 6e-8, a tenth of most of these changes.
    assert (changes - truth).abs().max() <= 1e-3 * truth.abs().max()


def test_a_penalty_on_the_weights_in_the_loss_is_seen():
    network = made(mlp).double()

    def penalised(output, target):
        return squared(output, target) + 0.1 * sum(p.square().sum() for p in network.parameters())

    agree(network, zo.OutputLoss(penalised), batch())


class ByNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) + float(np.asarray(self.layer.weight.detach()).sum())


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if y.sum() > 0 else 2 * y


class Rewriting(nn.Module):
    """Writes to a tensor that a view of it was made of before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        y = self.layer(x)
        view = y[:, :1]
        y.mul_(2)
        return y + view


@pytest.mark.parametrize("make", [ByNumpy, Asking, Rewriting], ids=lambda make: make.__name__)
def test_what_cannot_be_read_is_refused(make):
    network = made(make)
    before = [p.detach().clone() for p in network.parameters()]
    step = step_of(network, zo.OutputLoss(squared), batch())
    with torch.no_grad(), pytest.raises(NotReadable, match="stacked"):
        zo.evaluators.Difference().changes(
            step, Coordinates(torch.tensor([0]), torch.ones(1)), torch.zeros(5)
        )
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert not any("forward" in vars(module) for module in network.modules())


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = self.a(x)
        y += 1
        y = F.relu(y, True)
        z = self.b(y)
        z *= y
        total = torch.zeros_like(z)
        total = total + z.clamp_(-1, 1)
        return F.leaky_relu_(total)


def test_results_of_functions_in_place_are_used_as_any_others():
    agree(made(InPlace), zo.OutputLoss(squared), batch())


def test_an_objective_that_is_no_output_loss_goes_to_stacked():
    def objective(network, data):
        return squared(network(data[0]), data[1])

    with pytest.warns(zo.errors.EvaluatorWarning, match="expected a zo.OutputLoss") as caught:
        grads, _ = gradient_of(made(mlp), "difference", objective, chunk=16)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "auto" knows, and says nothing
        assert torch.equal(grads, gradient_of(made(mlp), "auto", objective, chunk=16)[0])


def test_a_box_inside_the_network_falls_back_and_is_not_called_with_hidden_numbers():
    box = Sine()

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(box(self.a(x)))

    with pytest.warns(zo.errors.EvaluatorWarning, match="no black box between"):
        grads, _ = gradient_of(made(Around), "difference")
    assert box.ledger.rows_skipped == 0
    assert torch.allclose(grads, gradient_of(made(Around), "loop")[0], atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"variants": 0}, "variants: expected a whole number >= 1, got 0"),
        ({"variants": 2.0}, r"variants: expected a whole number >= 1, got 2\.0"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        zo.evaluators.Difference(**settings)


def test_a_closure_has_no_batch_to_read():
    with pytest.raises(zo.errors.ConfigurationError, match="expected 'loop' for a closure"):
        zo.LossGradient(mlp(), lambda: torch.zeros(1), zo.CGE(1e-3), evaluator="difference")
