"""Finite differences that are no slopes: each way to be wrong is told with its size; what is right is not."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import BudgetError
from blackbox.wrappers import Budgeted
from tests.both import Both
from tests.gradients.trials import of_the_library

OFFSET = 101325.0  # a pressure in Pa


def small(inputs: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)


def by_autograd(network: nn.Module, objective, batch) -> Tensor:
    """In the dtype of the network, whose `.grad` stays as it is."""
    slopes = torch.autograd.grad(objective(network, batch).mean(), list(network.parameters()))
    return torch.cat([slope.flatten().double() for slope in slopes])


def taken(
    network: nn.Module, objective, estimator, batch, **options
) -> tuple[Tensor, list[Warning | str], zo.LossGradient]:
    """The gradient of one step, and what the library said of it."""
    gradient = zo.LossGradient(network, objective, estimator, seed=0, **options)
    network.zero_grad()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient.backward(batch)
    grad = torch.cat([weight.grad.flatten().double() for weight in network.parameters()])
    return grad, [w.message for w in said if of_the_library(w.category)], gradient


def error(grad: Tensor, truth: Tensor) -> float:
    return float((grad - truth).norm() / truth.norm())


def doubted(said: list[Warning], kind: type[Warning]) -> float:
    """By how much slopes are said to be off half of mu; that it is said alone."""
    assert [type(warning) for warning in said] == [kind], said
    match = re.search(r"got some that (?:are off|differ) by (\d+)%", str(said[0]))
    assert match, said[0]
    return int(match[1]) / 100


class Box(BlackBoxFunction):
    arrays = "torch"
    inputs = outputs = (ArraySpec("y", shape=(1,)),)

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def evaluate_rows(self, y: Tensor) -> Tensor:
        return self.function(y)


def squared(box):
    return lambda network, batch: (box(network(batch)) - batch[:, :1]).square().mean(dim=1)


def plain(network: nn.Module, batch: Tensor) -> Tensor:
    return (network(batch) - batch[:, :1]).square().mean(dim=1)


# --------------------------------------------------------------------------------------------- offsets


def shifted(network: nn.Module, batch: Tensor) -> Tensor:
    return ((OFFSET + network(batch)) - (OFFSET + batch.sum(1, keepdim=True))).square().mean(dim=1)


SHIFTED = zo.OutputLoss(
    lambda output, batch: ((OFFSET + output) - (OFFSET + batch.sum(1, keepdim=True))).square().mean(1),
    inputs=lambda batch: batch,
    targets=lambda batch: batch,
)


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
@pytest.mark.parametrize("central", [False, True])
def test_an_offset_in_float32_is_told(evaluator, central):
    network, batch = small(), torch.randn(32, 4)
    truth = by_autograd(small(dtype=torch.float64), shifted, batch.double())
    grad, said, _ = taken(network, shifted, zo.CGE(1e-3, central=central), batch, evaluator=evaluator)
    assert error(grad, truth) > 0.3 and doubted(said, zo.errors.NoiseWarning) > 0.1
    assert "OutputLoss" in str(said[0]) and "Take a mu longer than the steps" in str(said[0])


@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference", "auto"])
def test_an_output_loss_loses_nothing_to_an_offset_whatever_evaluates_it(evaluator):
    network, batch = small(), torch.randn(32, 4)
    truth = by_autograd(small(dtype=torch.float64), shifted, batch.double())
    grad, said, gradient = taken(network, SHIFTED, zo.CGE(1e-3), batch, evaluator=evaluator)
    assert error(grad, truth) < 2e-3 and not said
    served = {"auto": "Difference"}.get(evaluator, evaluator.capitalize())
    assert gradient.state_dict()["evaluators"] == {"Coordinates, training": served}


class Pressure(nn.Module):
    """An offset inside of the network, where no loss can take it out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, x: Tensor) -> Tensor:
        return OFFSET + self.inner(x)


@pytest.mark.parametrize("rows", [1, 4, 32])
def test_what_loop_rounds_away_is_not_held_against_difference(rows):
    network = Pressure()
    batch = torch.randn(rows, 4)
    target = OFFSET + batch.double().sum(1, keepdim=True)
    loss = zo.OutputLoss(lambda output, target: (output - target).square().mean(dim=1))
    truth = by_autograd(
        small(dtype=torch.float64),
        lambda n, b: (n(b) - b.sum(1, keepdim=True)).square().mean(1),
        batch.double(),
    )
    grad, said, gradient = taken(network, loss, zo.CGE(1e-3), (batch, target))
    assert error(grad, truth) < 1e-2 and not said
    assert gradient.state_dict()["evaluators"] == {"Coordinates, training": "Difference"}


def test_a_wrong_rule_is_found_beside_an_offset_too():
    """What rounding explains is no more than rounding."""

    class Off(zo.evaluators.Difference):
        def begin(self, problem, base):
            right = super().begin(problem, base)
            return lambda queries: 1.5 * right(queries)

    batch = torch.randn(32, 4)
    loss = zo.OutputLoss(lambda output, target: (output - target).square().mean(dim=1))
    gradient = zo.LossGradient(Pressure(), loss, zo.CGE(1e-3), evaluator=Off())
    with pytest.warns(zo.errors.EvaluatorWarning, match="Off disagreed with loop"), warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.errors.NoiseWarning)
        warnings.simplefilter("always", zo.errors.EvaluatorWarning)
        gradient.backward((batch, OFFSET + batch.double().sum(1, keepdim=True)))


def test_a_loss_that_does_not_run_in_float64_gets_what_the_network_gives():
    torch.manual_seed(0)
    judge, box = nn.Linear(1, 3).requires_grad_(False), Box(torch.sin)
    seen: list[torch.dtype] = []

    def noted(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.dtype)
        return (judge(output) - target).square().mean(dim=1)

    def asked(output: Tensor, target: Tensor) -> Tensor:
        seen.append(output.dtype)
        return (box(output) - target).square().mean(dim=1)

    batch = torch.randn(16, 4), torch.randn(16, 1)
    for loss in (noted, asked):
        seen.clear()
        objective, network = zo.OutputLoss(loss), small().requires_grad_(False)
        losses = objective(network, batch)
        assert seen == [torch.float64, torch.float32] and losses.dtype == torch.float32
        assert box.ledger.rows_run == (16 if loss is asked else 0)  # and none in float64
        objective(network, batch)
        assert seen[2:] == [torch.float32]  # the first call decides
    assert zo.OutputLoss(lambda output, target: output[:, 0])(small(), batch).dtype == torch.float64


# ------------------------------------------------------------------------------- boxes that are rough


def printed(y: Tensor) -> Tensor:
    return torch.tensor([[float(f"{value:.4g}")] for value in (3 + torch.sin(y)).flatten().tolist()])


def single(y: Tensor) -> Tensor:
    return 3 + torch.sin(y.float())


ROUGH = [
    (printed, torch.float32, zo.CGE(1e-3)),
    (single, torch.float64, zo.CGE(1e-7)),
    (single, torch.float64, zo.CGE(1e-7, central=True)),
]


@pytest.mark.parametrize(
    ("function", "dtype", "estimator"), ROUGH, ids=lambda of: getattr(of, "__name__", str(of))
)
def test_a_box_with_few_digits_is_told(function, dtype, estimator):
    network, batch = small(dtype=dtype), torch.randn(32, 4, dtype=dtype)
    truth = by_autograd(small(dtype=torch.float64), squared(lambda y: 3 + torch.sin(y)), batch.double())
    grad, said, _ = taken(network, squared(Box(function)), estimator, batch)
    assert error(grad, truth) > 0.2 and doubted(said, zo.errors.NoiseWarning) > 0.1


def test_noise_as_small_as_rounding_is_told_where_differences_are_smaller():
    noise = torch.Generator().manual_seed(0)

    def noisy(y: Tensor) -> Tensor:
        return (2 + 0.03 * torch.sin(y)) * (1 + 1e-5 * torch.randn(y.shape, generator=noise))

    box, batch = Box(noisy), torch.randn(32, 4)
    _, said, _ = taken(small(), lambda n, b: box(n(b))[:, 0].square(), zo.CGE(1e-3), batch)
    assert any("two evaluations of the objective at the same weights" in str(warning) for warning in said), (
        said
    )


# ------------------------------------------------------------------------------- jumps and curvature


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.CGE(1e-3, central=True), zo.RGE(1e-3, q=60)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_jump_at_the_weights_is_told(estimator, seed):
    torch.manual_seed(seed)
    layer = parametrizations.orthogonal(nn.Linear(6, 4))  # truncates a diagonal of +-1 to whole numbers
    network, batch = nn.Sequential(layer, nn.Tanh(), nn.Linear(4, 1)), torch.randn(32, 6)
    truth = by_autograd(network, plain, batch)
    grad, said, _ = taken(network, plain, estimator, batch)
    assert grad.norm() > 10 * truth.norm() and doubted(said, zo.errors.SlopeWarning) > 0.8
    assert "jumps" in str(said[0])


def jumping(network: nn.Module, batch: Tensor, place: float, size: float, mu: float = 1e-3):
    """The plain loss, and in the first row's a jump: so many mu beyond its output, so many mu high."""
    limit = float(network(batch)[0, 0].detach()) + place * mu
    return lambda network, batch: plain(network, batch) + size * mu * (network(batch)[:, 0] > limit)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("place", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.CGE(1e-3, central=True)], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_a_jump_anywhere_within_mu_is_told_as_one_with_its_size(estimator, place, seed):
    """Half of mu crosses some of what mu crosses. The error is of the size that the gradient has without."""
    network = small(seed=seed).double()
    batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)).double()
    truth = by_autograd(network, plain, batch)
    grad, said, _ = taken(network, jumping(network, batch, place, 40.0), estimator, batch)
    wrong = error(grad, truth)
    assert wrong > 0.8
    doubted(said, zo.errors.SlopeWarning)
    words = str(said[0])
    assert "jumps" in words and "rounding" not in words
    times = re.search(r"gradient is off by about (\d+)% of the size that it has without", words)
    if times:
        assert 0.4 < int(times[1]) / 100 / wrong < 5  # by some slopes of many
    else:
        assert "more than ten times" in words and wrong > 4


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_rounding_are_no_jumps(seed):
    network = small(seed=seed).double()
    batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)).double()

    def rounded(network: nn.Module, batch: Tensor) -> Tensor:
        return ((network(batch) * 1e3).round() / 1e3 - batch[:, :1]).square().mean(dim=1)

    _, said, _ = taken(network, rounded, zo.CGE(1e-3), batch)
    assert doubted(said, zo.errors.NoiseWarning) > 0.1


def test_a_kink_within_mu_is_no_jump():
    network = small().double()
    batch = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).double()
    limit = float(network(batch)[0, 0].detach()) + 2e-4

    def kinked(network: nn.Module, batch: Tensor) -> Tensor:
        return plain(network, batch) + 100 * (network(batch)[:, 0] - limit).relu()

    _, said, _ = taken(network, kinked, zo.CGE(1e-3), batch)
    assert not any("jumps" in str(words) for words in said)


class Root(nn.Module):
    """Scales that begin at 1e-6, under a root."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.full((8,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)) * self.scale.clamp(min=0).sqrt())


class Constant(nn.Module):
    """Instance norm on a channel that hardly differs along its length."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(1, 3, 1), nn.InstanceNorm1d(3, eps=1e-12)
        self.first.weight.data[0] *= 1e-6
        self.last = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x[:, None]))).flatten(1))


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Root, Constant])
def test_mu_beyond_the_curvature_is_told(kind, dtype, central):
    torch.manual_seed(0)
    network, batch = kind().to(dtype), torch.randn(32, 4, dtype=dtype)
    truth = by_autograd(kind_in_float64(network), plain, batch.double())
    grad, said, _ = taken(network, plain, zo.CGE(1e-3, central=central), batch)
    assert error(grad, truth) > 0.9 and doubted(said, zo.errors.SlopeWarning) > 0.2
    assert "smaller mu" in str(said[0])


def kind_in_float64(network: nn.Module) -> nn.Module:
    twin = type(network)().double()
    twin.load_state_dict(network.state_dict())
    return twin


def test_a_forward_difference_of_what_curves_is_told_with_its_error_and_a_central_one_is_right():
    """On a quadratic loss of four weights, all of which are asked, the error that is said is the true one."""
    torch.manual_seed(0)
    network, batch = nn.Linear(3, 1).double(), torch.randn(32, 3).double()
    truth = by_autograd(network, plain, batch)
    grad, said, _ = taken(network, plain, zo.CGE(0.5), batch)
    assert doubted(said, zo.errors.SlopeWarning) > 0.1 and "central=True" in str(said[0])
    match = re.search(r"off by about (\d+)% of its size", str(said[0]))
    length = float(truth.norm() / grad.norm())  # it is said as a part of what was found
    assert match and abs(int(match[1]) / 100 - length * error(grad, truth)) < 0.01
    grad, said, _ = taken(network, plain, zo.CGE(0.5, central=True), batch)
    assert error(grad, truth) < 1e-9 and not said


# ------------------------------------------------------------------------------ kinks, and a few of many


def zeroed() -> nn.Sequential:
    network = small()
    nn.init.zeros_(network[2].weight)
    nn.init.zeros_(network[2].bias)
    return network


def absolute(network: nn.Module, batch: Tensor) -> Tensor:
    return network(batch).abs().mean(dim=1)


@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=4), zo.RGE(1e-3, q=20)], ids=str)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_kink_at_the_weights_is_told(estimator, evaluator):
    """At w = 0 the derivative of |w| is 0, to autograd and in the mean of both sides; forward it is 1."""
    truth = by_autograd(zeroed(), absolute, batch := torch.randn(32, 4))
    grad, said, _ = taken(zeroed(), absolute, estimator, batch, evaluator=evaluator)
    assert not truth.any() and grad.norm() > 0.5
    assert doubted(said, zo.errors.SlopeWarning) > 1.5 and "has a kink" in str(said[0])
    assert "central=True" in str(said[0])


class Positive(nn.Module):
    """Six weights near zero, of which none may be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((6,), 1e-5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if bool((self.w < 0).any()):
            raise ValueError("expected weights of zero or more")
        return x + self.w.sum()


def test_a_step_back_that_the_objective_does_not_bear_is_left_out():
    batch = torch.randn(4, 1).double()
    grad, said, _ = taken(Positive(), lambda net, x: net(x)[:, 0], zo.CGE(1e-4), batch, evaluator="loop")
    assert torch.allclose(grad, torch.ones(6).double()) and not said


class Branches(nn.Module):
    """Ten branches that are added; what one gives is rounded to hundredths."""

    def __init__(self, rounded: int) -> None:
        super().__init__()
        self.branches, self.rounded = nn.ModuleList(small() for _ in range(10)), rounded

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        outputs[self.rounded] = outputs[self.rounded].mul(100).round() / 100
        return torch.stack(outputs).sum(dim=0)


@pytest.mark.slow
@pytest.mark.parametrize("central", [False, True])
def test_a_part_of_the_weights_behind_a_rounding_is_told(central):
    """A tenth of the weights; at the first two steps, at both of which slopes are asked again, in most runs.

    Of four draws, which were asked before, 8 of 12 runs told, and of eight central ones 7.
    """
    warned, errors = 0, []
    for seed in range(12):
        torch.manual_seed(seed)
        network, batch = Branches(seed % 10), torch.randn(32, 4)
        gradient = zo.LossGradient(network, plain, zo.CGE(1e-3, central=central), seed=seed, evaluator="loop")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(2):
                network.zero_grad()
                gradient.backward(batch)
        grad, other = (network.get_parameter(f"branches.{(seed + k) % 10}.2.bias").grad for k in (0, 1))
        assert grad is not None and other is not None  # equal but for rounding
        errors.append(abs(float(grad - other)) / abs(float(other)))
        warned += any(
            issubclass(warning.category, zo.errors.NoiseWarning | zo.errors.SlopeWarning) for warning in said
        )
    assert sorted(errors)[6] > 0.2 and warned >= 9


# ---------------------------------------------------------------------------------------- what is right

SUITED = [
    *((zo.CGE(mu, central=central), torch.float64) for mu in (1e-6, 1e-4) for central in (False, True)),
    *((zo.RGE(1e-6, q=q), torch.float64) for q in (1, 2, 20)),
    *((zo.CGE(1e-3), torch.float32), (zo.CGE(3e-3, central=True), torch.float32)),
    (zo.CGE(1e-3, zo.RandomCoordinates(7)), torch.float32),
    (Both(zo.CGE(1e-3, zo.RandomCoordinates(7)), zo.RGE(1e-3, q=3)), torch.float32),
]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("estimator", "dtype"), SUITED, ids=str)
def test_nothing_is_said_of_a_smooth_network_at_a_mu_that_suits_its_dtype(estimator, dtype):
    for seed in range(4):
        network, batch = small(dtype=dtype, seed=seed), torch.randn(32, 4, dtype=dtype)
        gradient = zo.LossGradient(network, plain, estimator, seed=seed, evaluator="loop")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                gradient.backward(batch)


# ------------------------------------------------------------------------------------------ what it costs


@pytest.mark.parametrize(
    ("estimator", "asked"),
    [
        (
            zo.CGE(1e-6, zo.estimators.FixedCoordinates(torch.arange(3))),
            6,
        ),  # all, where there are few; and back
        (zo.CGE(1e-6, zo.estimators.FixedCoordinates(torch.arange(3)), central=True), 6),
        (zo.RGE(1e-6, q=2), 4),
        (zo.RGE(1e-6, q=2, central=True), 4),
        (Both(zo.CGE(1e-6, zo.estimators.FixedCoordinates(torch.arange(3))), zo.RGE(1e-6, q=2)), 10),
    ],
    ids=str,
)
def test_queries_that_are_asked_again_are_counted_and_no_more_than_said(estimator, asked):
    calls = 0

    def counted(network: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(network, batch)

    network, batch = small(dtype=torch.float64), torch.randn(8, 4).double()
    gradient = zo.LossGradient(network, counted, estimator, evaluator="loop")
    for step in range(4):
        before, most = gradient.counts.checks, gradient.most_checks(1)
        gradient.backward(batch)
        checks = gradient.counts.checks - before
        # the base again, before and behind; and from the second step on, for numbers of 16 bits
        assert checks == (2 + asked + step if step < 2 else 0) and checks <= most
    assert calls == 4 + gradient.counts.queries == 4 + 4 * gradient.next_queries() + gradient.counts.checks


class Cast(nn.Module):
    """Numbers of 16 bits in the middle of a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).bfloat16().float())


CHECKED = {
    "smooth": (small, plain),
    "rounded": (small, squared(Box(printed))),
    "kinked": (zeroed, absolute),
    "16 bits": (Cast, plain),
}
COUNTED = [
    zo.CGE(1e-3),
    zo.RGE(1e-3, q=3, central=True),
    Both(zo.CGE(1e-3, zo.RandomCoordinates(7), central=True), zo.RGE(1e-3, q=1, central=True)),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("evaluator", [pytest.param("loop", marks=pytest.mark.slow), "stacked"])
@pytest.mark.parametrize("estimator", COUNTED, ids=str)
@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.filterwarnings("ignore")
def test_a_step_takes_no_more_queries_than_is_said_before_also_where_slopes_are_in_doubt(
    name, estimator, evaluator
):
    """By the ledger of a box that the objective asks once."""
    make, objective = CHECKED[name]
    seen = Box(lambda y: y)

    def counted(network: nn.Module, batch: Tensor) -> Tensor:
        return objective(network, batch) + 0 * seen(batch[:, :1])[:, 0]

    batch = torch.randn(8, 4)
    gradient = zo.LossGradient(make(), counted, estimator, evaluator=evaluator)
    for step in (0, 10):
        gradient.counts.steps = step
        before, most = seen.ledger.rows_run, gradient.next_queries() + gradient.most_checks(1)
        gradient.backward(batch)
        assert seen.ledger.rows_run - before <= len(batch) * (1 + most)  # and the base


def test_rows_of_a_doubtful_step_are_kept_to_a_budget():
    rows, plan = 8, 1 + 3  # the base, and three queries
    estimator = zo.CGE(1e-3, zo.estimators.FixedCoordinates(torch.tensor([40, 41, 47])))
    for most, enough in ((rows * (plan + 2), False), (rows * (plan + 2 + 9), True)):
        box = Budgeted(Box(printed), rows=most)
        gradient = zo.LossGradient(small(), squared(box), estimator, evaluator="loop")
        batch = torch.randn(rows, 4)
        if enough:  # at half and at twice of mu, and back
            with pytest.warns(zo.errors.NoiseWarning):
                gradient.backward(batch)
            assert box.ledger.rows_run == rows * (1 + gradient.counts.queries) == most
        else:
            with pytest.raises(BudgetError):
                gradient.backward(batch)


@pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning")
def test_a_resumed_run_asks_what_an_undisturbed_one_asks():
    def run(interrupted: bool) -> tuple[Tensor, dict[str, float]]:
        network, batch = small(), torch.randn(32, 4, generator=torch.Generator().manual_seed(3))
        gradient = zo.LossGradient(network, squared(Box(printed)), zo.CGE(1e-3), seed=0)
        for step in range(3):
            if interrupted and step == 1:
                state = gradient.state_dict()
                gradient = zo.LossGradient(network, squared(Box(printed)), zo.CGE(1e-3), seed=0)
                gradient.load_state_dict(state)
            gradient.backward(batch)
        return torch.cat([weight.grad.flatten() for weight in network.parameters()]), gradient.metrics()

    first, second = run(False), run(True)
    assert torch.equal(first[0], second[0]) and first[1] == second[1]


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_merged_adapters_leave_no_gradient_in_silence(evaluator):
    """Their product was added to the weight of the layer: nothing reads them, and kernels round."""

    class Adapted(torch.nn.Linear):
        def __init__(self, size_in, size_out):
            super().__init__(size_in, size_out)
            self.a = torch.nn.Parameter(torch.randn(2, size_in) / 10)
            self.b = torch.nn.Parameter(torch.randn(size_out, 2) / 10)
            with torch.no_grad():
                self.weight += self.b @ self.a

    torch.manual_seed(0)
    network, x = (
        torch.nn.Sequential(Adapted(300, 500), torch.nn.Tanh(), Adapted(500, 100)),
        torch.randn(7, 300),
    )
    gradient = zo.LossGradient(
        network,
        lambda net, x: net(x).square().mean(1),
        zo.RGE(1e-3, q=16),
        parameters=["*.a", "*.b"],
        seed=0,
        evaluator=evaluator,
    )
    warned = zo.errors.ZeroGradientWarning, zo.errors.NoiseWarning
    with pytest.warns(warned, match="exactly zero|a merged adapter"):
        gradient.backward(x)
