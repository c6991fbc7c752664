"""Surrogate gradients, filled and corrected: against autograd, closed forms, and plain CGE and RGE."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

import zo
from tests.oracles.problems import PROBLEMS, OracleProblem

EVALUATORS = ["loop", "stacked"]
ROLLOUT = next(problem for problem in PROBLEMS if problem.name == "rollout")
SURROGATE = torch.tensor([3.0, -1.0, 0.0, 0.5, -0.25]).double()


def flat_grad(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def set_grad(network: nn.Module, flat: torch.Tensor) -> None:
    parameters = zo.estimators.Parameters(network)
    for tensor, piece in zip(parameters.tensors, parameters.split(flat), strict=True):
        tensor.grad = piece.clone()


def corrected(problem: OracleProblem, estimator, surrogate: torch.Tensor, evaluator, seed=0) -> torch.Tensor:
    network, batch = problem.make()
    set_grad(network, surrogate)
    gradient = zo.LossGradient(
        network, problem.objective, estimator, evaluator=evaluator, chunk=50, seed=seed
    )
    gradient.backward(batch)
    return flat_grad(network)


def with_cosine(truth: torch.Tensor, cosine: float, seed: int) -> torch.Tensor:
    """A vector of the truth's length at this cosine to it."""
    other = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=truth.dtype)
    other -= (other @ truth) / (truth @ truth) * truth
    return cosine * truth + math.sqrt(1 - cosine**2) * truth.norm() / other.norm() * other


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_with_all_coordinates_it_is_cge(problem, scheme, evaluator="stacked"):
    network, batch = problem.make()
    size = zo.estimators.Parameters(network).size
    zo.LossGradient(
        network, problem.objective, zo.CGE(1e-5, central=scheme != "forward"), evaluator=evaluator, chunk=50
    ).backward(batch)
    surrogate = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = corrected(problem, zo.SurrogateFilled(1e-5, size, scheme != "forward"), surrogate, evaluator)
    assert torch.allclose(found, flat_grad(network), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("evaluator", "scale"), [("loop", 1.0), *(("stacked", s) for s in (-3e4, 1e-200, 1e200))]
)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_true_gradient_at_any_scale_is_filled_to_the_true_gradient(problem, evaluator, scale):
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    found = corrected(problem, zo.SurrogateFilled(1e-4, 9, True), scale * truth, evaluator)
    # Of central differences: mu^2 / 6 times third derivatives of order ten, and rounding eps / mu.
    assert (found - truth).abs().max() < 1e-6 * truth.abs().max()


def drawn(surrogate: torch.Tensor, count: int, key: zo.estimators.Key) -> torch.Tensor:
    """The coordinates that are measured at a key, `(count,)`."""
    network = nn.ParameterList([torch.zeros_like(surrogate)])
    network[0].grad = surrogate.clone()
    plan = zo.SurrogateFilled(1e-3, count).plan(zo.estimators.Parameters(network), key)
    return plan.chunk(0, count).indices


@pytest.mark.parametrize("surrogate", [SURROGATE, torch.zeros(5).double()], ids=["some", "zero"])
def test_one_coordinate_is_drawn_with_the_stated_probability(surrogate):
    """Chi-square of 1,500 draws over five coordinates: at .999 one false alarm in a thousand seeds."""
    part = surrogate.abs() / surrogate.abs().sum() if surrogate.any() else torch.zeros(5).double()
    expected = part + 0.2 / 5
    expected = 1500 * expected / expected.sum()
    found = [int(drawn(surrogate, 1, zo.estimators.Key(3, step))) for step in range(1500)]
    counts = torch.bincount(torch.tensor(found), minlength=5)
    assert ((counts - expected).square() / expected).sum() < chi2.ppf(0.999, df=4)


@pytest.mark.parametrize("scale", [-1.0, 1e-300, 1e300])
def test_the_surrogates_scale_is_of_no_account_for_the_draw(scale):
    keys = [zo.estimators.Key(3, step) for step in range(30)]
    found = [drawn(scale * SURROGATE, 2, key).tolist() for key in keys]
    assert found == [drawn(SURROGATE, 2, key).tolist() for key in keys]


def test_several_are_drawn_one_after_another_from_those_that_are_left():
    """All ordered draws of three, by hand, give how often each is among them; |z| < 4.5 for five (3e-5)."""
    p = ((SURROGATE.abs() / SURROGATE.abs().sum() + 0.2 / 5) / 1.2).tolist()
    expected = torch.zeros(5).double()
    for a, b, c in itertools.permutations(range(5), 3):
        expected[[a, b, c]] += p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
    draws = torch.stack([drawn(SURROGATE, 3, zo.estimators.Key(4, step)) for step in range(1500)])
    assert (draws[:, 1:] > draws[:, :-1]).all()
    found = torch.bincount(draws.flatten(), minlength=5) / 1500
    z = (found - expected) / (expected * (1 - expected) / 1500).sqrt()
    assert z.abs().max() < 4.5


def test_a_surrogate_of_zero_fills_nothing():
    network, batch = ROLLOUT.make()
    truth = ROLLOUT.autograd(network, batch)
    found = corrected(ROLLOUT, zo.SurrogateFilled(1e-5, 20, True), 0 * truth, "stacked")
    measured = found != 0
    assert measured.sum() == 20
    assert torch.allclose(found[measured], truth[measured], rtol=1e-4, atol=1e-7)


class Quadratic(nn.Module):
    """l(theta) = theta' A theta / 2 + b' theta, with entries of unequal size."""

    def __init__(self, size: int = 120) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        a = torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
        self.a = a @ a.T
        self.b = torch.logspace(-2, 1, size, dtype=torch.float64)
        self.theta = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))


QUADRATIC = OracleProblem(
    "quadratic",
    Quadratic,
    lambda: torch.zeros(1, 1),
    lambda network, batch: (0.5 * network.theta @ network.a @ network.theta + network.b @ network.theta)[
        None
    ],
)


@pytest.mark.parametrize("problem", [QUADRATIC, PROBLEMS[0], ROLLOUT], ids=str)
def test_a_surrogate_of_cosine_point_nine_has_a_lower_error_than_sparse_cge_and_than_itself(problem):
    """At equal queries, a quarter of the coordinates; the mean over 8 surrogates and draws."""
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    k = len(truth) // 4
    errors: dict[str, float] = {"filled": 0.0, "sparse": 0.0, "surrogate": 0.0}
    for seed in range(8):
        surrogate = with_cosine(truth, 0.9, seed)
        sparse = zo.CGE(1e-5, zo.RandomCoordinates(k))
        fill = zo.SurrogateFilled(1e-5, k)
        assert (
            fill.queries(zo.estimators.Parameters(network))
            == sparse.queries(zo.estimators.Parameters(network))
            == k
        )
        errors["filled"] += error(corrected(problem, fill, surrogate, "loop", seed), truth) / 8
        network.zero_grad()
        zo.LossGradient(network, problem.objective, sparse, evaluator="loop", seed=seed).backward(batch)
        errors["sparse"] += error(flat_grad(network), truth) / 8
        errors["surrogate"] += error(surrogate, truth) / 8
    assert errors["surrogate"] == pytest.approx(math.sqrt(2 - 1.8))
    # Measuring a quarter takes at least a quarter of the squared error away, were it spread evenly.
    assert errors["filled"] < 0.9 * errors["surrogate"]
    assert errors["filled"] < 0.55 * errors["sparse"]


# The unbiased one


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
@pytest.mark.parametrize("central", [False, True], ids=["forward", "central"])
def test_it_is_the_surrogate_and_rge_of_the_loss_less_the_surrogates_line(distribution, central):
    """The same draws, of l(theta) - <s, theta>, by the plain estimator, in more than one block of them.

    So its mean is RGE's, whatever the surrogate is.
    """
    directions = zo.RGE(1e-3, 70, distribution, central)
    surrogate = torch.randn(
        QUADRATIC.make()[0].theta.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    found = corrected(QUADRATIC, zo.ControlVariate(directions), surrogate, "loop")
    network, batch = QUADRATIC.make()

    def bent(network, batch):
        return QUADRATIC.objective(network, batch) - network.theta @ surrogate

    zo.LossGradient(network, bent, directions, evaluator="loop").backward(batch)
    assert torch.allclose(found, surrogate + flat_grad(network), rtol=0, atol=1e-9)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_perfect_surrogate_leaves_nothing_to_chance(problem, evaluator):
    """The slopes left are those of the curvature: mu / 2 times u' H u; RGE has the whole gradient's noise."""
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    estimator = zo.RGE(1e-6, 3)
    found = corrected(problem, zo.ControlVariate(estimator), truth, evaluator)
    assert error(found, truth) < 2e-3
    assert error(corrected(problem, zo.ControlVariate(estimator), 0 * truth, evaluator), truth) > 1
