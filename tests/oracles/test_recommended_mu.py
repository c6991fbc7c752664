"""The recommended mu against the best of a sweep: how well gradients found with it point, by autograd."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.conformance import Recommendation, check_black_box

SIZE, CLASSES = 16, 6


@functools.cache
def classifier() -> nn.Sequential:
    """A network trained to tell six clouds of points apart; float64, frozen."""
    with torch.random.fork_rng(), torch.enable_grad():  # the first to ask may be a box
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(SIZE, 32), nn.Tanh(), nn.Linear(32, CLASSES)).double()
        x, wanted = clouds()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), wanted).backward()
            optimizer.step()
    return network.requires_grad_(False)


def clouds() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, SIZE, generator=generator).double()
    wanted = torch.arange(60 * CLASSES) % CLASSES
    return centres[wanted] + torch.randn(len(wanted), SIZE, generator=generator).double(), wanted


def probabilities(x: Tensor) -> Tensor:
    return classifier()(x).softmax(dim=1)


def exact(y: Tensor, dtype: torch.dtype) -> Tensor:
    return y.to(dtype)


def to_three_decimals(y: Tensor, dtype: torch.dtype) -> Tensor:
    return (y * 1000).round().to(dtype) / 1000


def with_noise(y: Tensor, dtype: torch.dtype) -> Tensor:
    return (y + 1e-4 * torch.randn(y.shape, generator=NOISE, dtype=torch.float64)).to(dtype)


NOISE = torch.Generator().manual_seed(2)


class Spoiled(BlackBoxFunction):
    """The classifier's probabilities as they come out of something less exact."""

    inputs = (ArraySpec("x", (SIZE,)),)
    outputs = (ArraySpec("p", (CLASSES,)),)
    arrays = "torch"
    deterministic = False

    def __init__(self, spoil: Callable[[Tensor, torch.dtype], Tensor]) -> None:
        self.spoil = spoil
        super().__init__()

    def evaluate_rows(self, x: Tensor) -> Tensor:
        return self.spoil(probabilities(x.double()), x.dtype)


class InFloat32(BlackBoxFunction):
    """All of the network in float32, with the rounding of every layer."""

    inputs = (ArraySpec("x", (SIZE,), "float32"),)
    outputs = (ArraySpec("p", (CLASSES,), "float32"),)
    arrays = "torch"

    def evaluate_rows(self, x: Tensor) -> Tensor:
        first, _, last = classifier()
        hidden = torch.tanh(x @ first.weight.T.float() + first.bias.float())
        return (hidden @ last.weight.T.float() + last.bias.float()).softmax(dim=1)


BOXES = {
    "three-decimals": lambda: Spoiled(to_three_decimals),
    "noise-1e-4": lambda: Spoiled(with_noise),
    "rounded-to-float32": lambda: Spoiled(exact),
    "float32-inside": InFloat32,
}
ESTIMATORS = {
    "coordinates-forward": (
        lambda mu: zo.CGE(mu),
        lambda advice: advice.coordinates.forward,
    ),
    "coordinates-central": (
        lambda mu: zo.CGE(mu, central=True),
        lambda advice: advice.coordinates.central,
    ),
    "orthogonal": (
        lambda mu: zo.box_gradient.RowRGE(mu, q=SIZE),
        lambda advice: advice.directions.forward,
    ),
    "gaussian-antithetic": (
        lambda mu: zo.box_gradient.RowRGE(mu, q=4 * SIZE, distribution="gaussian", central=True),
        lambda advice: advice.long_directions[1],
    ),
}
SWEEP = [10.0**power for power in np.arange(-5, 0.76, 0.25)]


@functools.cache
def recommended(name: str) -> Recommendation:
    samples = clouds()[0][:32].float()
    (advice,) = check_black_box(BOXES[name](), samples, processes=False).recommendations
    return advice


def cosine(name: str, estimator: object) -> float:
    """Between gradients of the square loss at 60 inputs, end to end, and autograd's in float64."""
    x, wanted = (part[60:120] for part in clouds())
    target = nn.functional.one_hot(wanted, CLASSES)
    x = x.float().requires_grad_()
    solver = zo.differentiable(BOXES[name](), estimator, seed=3)
    grad = torch.autograd.grad((solver(x) - target).square().sum(), x)[0].double()
    exactly = x.detach().double().requires_grad_()
    truth = torch.autograd.grad((probabilities(exactly) - target).square().sum(), exactly)[0]
    return float(nn.functional.cosine_similarity(grad.flatten(), truth.flatten(), dim=0))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", BOXES)
def test_the_recommended_mu_is_within_ten_percent_of_the_best(name, estimator):
    make, pick = ESTIMATORS[estimator]
    mu = pick(recommended(name))
    with warnings.catch_warnings():  # from far below the rounding to far above the curvature
        warnings.simplefilter("ignore")
        sweep = [cosine(name, make(other)) for other in SWEEP]
    assert cosine(name, make(mu)) >= 0.9 * max(sweep)  # and no word of doubt: warnings are errors here
    assert min(sweep) < 0.9 * max(sweep)  # else any mu would pass
