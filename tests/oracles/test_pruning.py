"""Pruning scores against the whole Hessian by autograd, closed forms and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call, grad, vmap

import zo
from tests.oracles.problems import PROBLEMS, OracleProblem
from zo import pruning

SMOOTH = [problem for problem in PROBLEMS if problem.name in ("mlp", "normed")]  # no ReLU, and few weights


def flat_loss(problem: OracleProblem, network: nn.Module, batch):
    """The loss as a function of the flat parameters."""
    parameters = zo.estimators.Parameters(network)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(parameters.names, parameters.split(theta), strict=True))
        return problem.objective(lambda x: functional_call(network, weights, (x,)), batch).mean()

    return parameters.flat(), loss


def true_grasp(problem: OracleProblem) -> torch.Tensor:
    """-theta * Hg with the whole matrix H, another route than our own."""
    network, batch = problem.make()
    theta, loss = flat_loss(problem, network, batch)
    return -theta * (hessian(loss, theta) @ problem.autograd(network, batch))


def relative(scores: torch.Tensor, truth: torch.Tensor) -> float:
    return float((scores - truth).norm() / truth.norm())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("problem", SMOOTH, ids=str)
def test_grasp_by_autograd(problem):
    network, batch = problem.make()
    scores = pruning.scores("grasp", network, problem.objective, batch)
    assert relative(scores.values, true_grasp(problem)) < 1e-10
    assert scores.removes == "largest"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("problem", SMOOTH, ids=str)
def test_zo_grasp_with_cge_is_grasp_to_first_order_in_the_step(problem):
    network, batch = problem.make()
    truth = true_grasp(problem)

    def error(step: float) -> float:
        scores = pruning.scores(
            "zo-grasp",
            network,
            problem.objective,
            batch,
            estimator=zo.CGE(1e-5),
            step=step,
            evaluator="stacked",
        )
        return relative(scores.values, truth)

    first, half = error(2e-3), error(1e-3)
    assert first < 0.05  # far from noise, and from any wrong scale
    assert 1.7 < first / half < 2.3


def test_zo_snip_with_cge_is_snip_and_snip_is_the_loss_of_a_weight_to_first_order():
    problem = PROBLEMS[0]
    network, batch = problem.make()
    exact = pruning.scores("snip", network, problem.objective, batch).values
    scores = pruning.scores(
        "zo-snip", network, problem.objective, batch, estimator=zo.CGE(1e-4, central=True)
    )
    assert scores.removes == "smallest"
    assert relative(scores.values, exact) < 1e-6
    theta, loss = flat_loss(problem, network, batch)
    shrink = 1e-6
    for i in range(len(theta)):
        less = theta.clone()
        less[i] *= 1 - shrink
        assert abs(abs(loss(theta) - loss(less)) / shrink - exact[i]) < 1e-4


def test_the_largest_scores_are_those_whose_weights_hold_the_gradient_back():
    """Shrinking weight i by a part e changes |g|^2 by 2 e score_i: the sign, from its definition."""
    problem = PROBLEMS[0]
    network, batch = problem.make()
    scores = pruning.scores("grasp", network, problem.objective, batch)
    theta, loss = flat_loss(problem, network, batch)
    shrink = 1e-6
    variants = theta.repeat(len(theta), 1) * (1 - shrink * torch.eye(len(theta), dtype=theta.dtype))
    norms = vmap(lambda t: grad(loss)(t).square().sum())(variants)
    growth = (norms - grad(loss)(theta).square().sum()) / shrink
    assert torch.allclose(growth / 2, scores.values, atol=1e-4 * float(growth.abs().max()))
    mask = pruning.kept_weights(scores, 0.7, minimum=0.0)
    kept, removed = growth[mask], growth[~mask]
    forced = 4  # at least one weight of each tensor stays
    assert kept.sort().values[: len(kept) - forced].max() <= removed.min() + 1e-6
    assert removed.mean() > kept.mean()
    assert scores.values[mask].abs().max() > scores.values[~mask].abs().min()


@pytest.mark.slow
def test_mean_of_zo_grasp_with_rge_on_a_quadratic():
    """Gaussian, q directions: -theta [(1 + 1/q) H g + trace(H) / q g], as its docstring says.

    z-tests of 6 weights, 400 draws; false alarm at |z| > 4.7: 2e-5 in all. Plain GraSP stands far off.
    """
    size, q, trials = 6, 2, 400
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    curvature = a @ a.T / size
    theta = torch.randn(size, generator=generator, dtype=torch.float64)
    network = nn.ParameterList([theta.clone()])

    def objective(network, batch):
        x = network[0]
        return (0.5 * x @ curvature @ x).expand(len(batch))

    def score(seed: int) -> torch.Tensor:
        return pruning.scores(
            "zo-grasp",
            network,
            objective,
            torch.zeros(1, 1),
            estimator=zo.RGE(1e-2, q),
            step=0.5,
            seed=seed,
            evaluator="loop",
        ).values

    samples = torch.stack([score(seed) for seed in range(trials)])
    g = curvature @ theta
    expected = -theta * ((1 + 1 / q) * (curvature @ g) + curvature.trace() / q * g)
    spread = samples.std(dim=0) / math.sqrt(trials)
    assert (((samples.mean(dim=0) - expected) / spread).abs() < 4.7).all()
    assert (((samples.mean(dim=0) + theta * (curvature @ g)) / spread).abs() > 4.7).any()


def test_synflow_of_one_round_against_sums_over_paths():
    """A network of two linear layers: R = sum over paths |w2||w1|; the score of a weight is its share."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    first, second = (network[i].weight.detach().abs().double() for i in (0, 2))
    shares = torch.cat([(first * second.sum(0)[:, None]).flatten(), (second * first.sum(1)).flatten()])
    scores = pruning.scores("synflow", network, inputs=torch.zeros(7, 3), rounds=1)
    assert scores.values.argsort().tolist() == shares.argsort().tolist()


def test_synflow_in_rounds_against_the_loop_of_the_paper():
    """Algorithm 1 of Tanaka et al. written out for two linear layers; three rounds, 90 %."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False))
    scores = pruning.scores("synflow", network, inputs=torch.zeros(1, 6), rounds=3, sparsity=0.9)
    first, second = (network[i].weight.detach().abs().double() for i in (0, 2))
    for k in range(1, 4):
        shares = torch.cat([(first * second.sum(0)[:, None]).flatten(), (second * first.sum(1)).flatten()])
        left = round(80 * 0.1 ** (k / 3))
        mask = torch.zeros(80, dtype=torch.float64)
        mask[shares.argsort(descending=True, stable=True)[:left]] = 1
        first, second = first * mask[:48].view(8, 6), second * mask[48:].view(4, 8)
    mask = torch.cat([first.flatten(), second.flatten()]) > 0
    assert torch.equal(pruning.kept_weights(scores, 0.9, minimum=0.0), mask)


class _Routed(nn.Module):
    """Two linear layers; of the first one's outputs a mask keeps some, and negative places order them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.register_buffer("kept", torch.tensor([True, False, True, True]))
        self.register_buffer("places", torch.tensor([-1, 0, -3, -2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second((self.first(x).relu() * self.kept)[:, self.places])


def test_synflow_leaves_masks_and_places_as_they_are():
    """Places and masks of a network are no weights, so that their absolute values are not taken."""
    torch.manual_seed(2)
    network = _Routed()
    first, second = (layer.weight.detach().abs().double() for layer in (network.first, network.second))
    out = torch.zeros(4, dtype=torch.float64)
    out[[3, 0, 1, 2]] = second.sum(0)  # what each output of the first layer adds to the sum
    hidden = (first.sum(1) * torch.tensor([1.0, 0, 1, 1]))[[3, 0, 1, 2]]
    shares = [(first * (out * torch.tensor([1.0, 0, 1, 1]))[:, None]).flatten(), (second * hidden).flatten()]
    scores = pruning.scores("synflow", network, inputs=torch.zeros(1, 3), rounds=1)
    assert scores.values.argsort(stable=True).tolist() == torch.cat(shares).argsort(stable=True).tolist()


def test_synflow_of_a_network_without_flow_is_a_draw_that_is_told():
    """Before a last layer of zeros no weight has a share: by index the first layers would lose all of theirs.

    Of 200 and 400 weights half are kept, each by chance: hypergeometric, 5 standard deviations.
    """
    torch.manual_seed(3)
    layers = nn.Linear(10, 20, bias=False), nn.Linear(20, 20, bias=False), nn.Linear(20, 5, bias=False)
    nn.init.zeros_(layers[2].weight)
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    scores = pruning.scores("synflow", network, inputs=torch.zeros(1, 10), rounds=10, sparsity=0.5)
    with pytest.warns(zo.errors.PruningWarning, match=r"none in 0\.weight, 2\.weight, 4\.weight"):
        ratios = pruning.layer_ratios(scores, 0.5)
    for layer in ratios.layers[:2]:
        n = layer.size
        assert abs(layer.kept - n / 2) < 5 * math.sqrt(n / 4 * (700 - n) / 699)
