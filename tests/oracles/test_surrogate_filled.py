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
from zo.estimators.control_variate import ControlVariate
from zo.estimators.surrogate_filled import SurrogateFilled, draw_by_weight
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked

EVALUATORS = [Loop(), Stacked()]
ROLLOUT = next(problem for problem in PROBLEMS if problem.name == "rollout")
SURROGATE = torch.tensor([3.0, -1.0, 0.0, 0.5, -0.25]).double()


def flat_grad(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def set_grad(network: nn.Module, flat: torch.Tensor) -> None:
    parameters = zo.Parameters(network)
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


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_with_all_coordinates_it_is_cge(problem, scheme, evaluator):
    network, batch = problem.make()
    size = zo.Parameters(network).size
    zo.LossGradient(
        network, problem.objective, zo.CGE(1e-5, central=scheme != "forward"), evaluator=evaluator, chunk=50
    ).backward(batch)
    surrogate = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = corrected(problem, SurrogateFilled(1e-5, size, scheme != "forward"), surrogate, evaluator)
    assert torch.allclose(found, flat_grad(network), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1.0, -3e4, 1e-200, 1e200])
@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_true_gradient_at_any_scale_is_filled_to_the_true_gradient(problem, evaluator, scale):
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    found = corrected(problem, SurrogateFilled(1e-4, 9, True), scale * truth, evaluator)
    # Of central differences: mu^2 / 6 times third derivatives of order ten, and rounding eps / mu.
    assert (found - truth).abs().max() < 1e-6 * truth.abs().max()


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
def test_one_coordinate_is_drawn_with_the_stated_probability(scale):
    """Chi-square of 20,000 draws over five coordinates: at .999 one false alarm in a thousand seeds."""
    expected = (SURROGATE.abs() / SURROGATE.abs().sum() + 0.2 / 5) / 1.2
    assert expected.sum() == pytest.approx(1)
    drawn = [int(draw_by_weight(scale * SURROGATE, 1, zo.Key(3, step))) for step in range(20_000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=5)
    statistic = ((counts - 20_000 * expected).square() / (20_000 * expected)).sum()
    assert statistic < chi2.ppf(0.999, df=4)


def test_several_are_drawn_one_after_another_from_those_that_are_left():
    """All ordered draws of three, by hand, give how often each is among them; |z| < 4.5 for five (3e-5)."""
    p = ((SURROGATE.abs() / SURROGATE.abs().sum() + 0.2 / 5) / 1.2).tolist()
    expected = torch.zeros(5).double()
    for a, b, c in itertools.permutations(range(5), 3):
        expected[[a, b, c]] += p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b])
    draws = torch.stack([draw_by_weight(SURROGATE, 3, zo.Key(4, step)) for step in range(20_000)])
    assert (draws[:, 1:] > draws[:, :-1]).all()
    found = torch.bincount(draws.flatten(), minlength=5) / 20_000
    z = (found - expected) / (expected * (1 - expected) / 20_000).sqrt()
    assert z.abs().max() < 4.5


def test_a_surrogate_of_zero_draws_uniformly_and_fills_nothing():
    drawn = [int(draw_by_weight(torch.zeros(5), 1, zo.Key(5, step))) for step in range(10_000)]
    counts = torch.bincount(torch.tensor(drawn), minlength=5)
    assert ((counts - 2000).square() / 2000).sum() < chi2.ppf(0.999, df=4)
    network, batch = ROLLOUT.make()
    truth = ROLLOUT.autograd(network, batch)
    found = corrected(ROLLOUT, SurrogateFilled(1e-5, 20, True), 0 * truth, Stacked())
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
        fill = SurrogateFilled(1e-5, k)
        assert fill.queries(zo.Parameters(network)) == sparse.queries(zo.Parameters(network)) == k
        errors["filled"] += error(corrected(problem, fill, surrogate, Loop(), seed), truth) / 8
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
@pytest.mark.parametrize("scheme", ["forward", "antithetic"])
def test_the_mean_is_the_gradient_of_the_smoothed_loss_whatever_the_surrogate(distribution, scheme):
    """l = sum c_i theta_i^3, 500 draws of q = 5: within 4 standard errors in three numbers (2e-4 a case).

    Autograd differentiates the smoothed loss in closed form, sum c_i (theta_i^3 + m mu^2 theta_i), with m =
    E u_i^4: 3 for Gaussian u, where that is E l(theta + mu u), 1 for signs, and d E u_i^4 = 3 / (d + 2) on
    the sphere, where it is the mean over the ball.
    """
    mu, trials = 0.5, 500
    c, surrogate = torch.tensor([[1.0, -2.0, 0.5], [2.0, 1.0, -3.0]]).double()
    moment = {"gaussian": 3.0, "rademacher": 1.0, "sphere": 3 / 5}[distribution]
    theta = torch.tensor([0.7, -0.4, 1.1]).double().requires_grad_()
    truth = torch.autograd.grad((c * (theta**3 + moment * mu**2 * theta)).sum(), theta)[0]
    network = nn.ParameterList([theta.detach().clone()])
    network[0].grad = surrogate.clone()
    parameters = zo.Parameters(network)
    estimator = ControlVariate(zo.RGE(mu, 5, distribution, scheme != "forward"))
    queries = estimator.queries(parameters)
    draws = []
    for step in range(trials):
        plan = estimator.plan(parameters, zo.Key(1, step))
        moved = theta.detach() + plan.chunk(0, queries).steps
        differences = (c * moved**3).sum(dim=1) - (c * theta.detach() ** 3).sum()
        draws.append(estimator.reduce(plan, differences, torch.ones(queries, dtype=torch.bool)))
    found = torch.stack(draws)
    z = (found.mean(dim=0) - truth) / (found.std(dim=0) / math.sqrt(trials))
    assert z.abs().max() < 4


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_perfect_surrogate_leaves_nothing_to_chance(problem, evaluator):
    """The slopes left are those of the curvature: mu / 2 times u' H u; RGE has the whole gradient's noise."""
    network, batch = problem.make()
    truth = problem.autograd(network, batch)
    estimator = zo.RGE(1e-6, 3)
    found = corrected(problem, ControlVariate(estimator), truth, evaluator)
    assert error(found, truth) < 2e-3
    assert error(corrected(problem, ControlVariate(estimator), 0 * truth, evaluator), truth) > 1


@pytest.mark.parametrize("scheme", ["forward", "antithetic"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
def test_it_is_the_surrogate_and_rge_of_the_loss_less_the_surrogates_line(distribution, scheme):
    """The same draws, of l(theta) - <s, theta>, by the plain estimator: more than one block of them."""
    directions = zo.RGE(1e-3, 70, distribution, scheme != "forward")
    surrogate = torch.randn(
        QUADRATIC.make()[0].theta.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64
    )
    found = corrected(QUADRATIC, ControlVariate(directions), surrogate, "loop")
    network, batch = QUADRATIC.make()

    def bent(network, batch):
        return QUADRATIC.objective(network, batch) - network.theta @ surrogate

    zo.LossGradient(network, bent, directions, evaluator="loop").backward(batch)
    assert torch.allclose(found, surrogate + flat_grad(network), rtol=0, atol=1e-9)
