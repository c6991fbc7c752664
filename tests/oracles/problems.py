"""Training problems in float64 whose gradient autograd knows: non-linear, asymmetric, layers unequal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zo.estimators import Coordinates
from zo.evaluators import Loop


@dataclass(frozen=True)
class OracleProblem:
    """A network, an objective and a batch, made anew (and the same) at every call of `make`."""

    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Any]
    objective: Callable[[nn.Module, Any], Tensor]

    def make(self) -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            network = self.network().double()
            return network, self.batch()

    def autograd(self, network: nn.Module, batch: Any) -> Tensor:
        loss = self.objective(network, batch).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    def curvature(self, network: nn.Module, batch: Any) -> Tensor:
        """The diagonal of the Hessian, flat."""
        parameters = list(network.parameters())
        loss = self.objective(network, batch).mean()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        diagonal = []
        for parameter, slope in zip(parameters, first, strict=True):
            for entry, value in enumerate(slope.flatten()):
                second = torch.autograd.grad(value, parameter, retain_graph=True, materialize_grads=True)[0]
                diagonal.append(second.flatten()[entry])
        return torch.stack(diagonal)

    def __str__(self) -> str:
        return self.name


def squared_error(network: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (network(x) - y).square().flatten(1).mean(dim=1)


def rollout_error(network: nn.Module, batch: Any) -> Tensor:
    """A network in the loop of a non-linear map that is applied five times."""
    state, target = batch
    error = torch.zeros(len(state), dtype=state.dtype)
    for _ in range(5):
        state = torch.sin(1.3 * state) + 0.1 * network(state)
        error = error + (state - target).square().flatten(1).mean(dim=1)
    return error


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2), nn.Softplus())


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
        nn.SiLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, dilation=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, (2, 3), padding="same", dilation=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 3, 2),
    )


def _corrector() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 2, 5, padding=2))


def _normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 2),
        nn.GroupNorm(2, 2),
        nn.Flatten(),
        nn.Linear(2 * 4 * 4, 2),
    )


PROBLEMS = [
    OracleProblem(
        "mlp", _mlp, lambda: (torch.randn(5, 3).double(), torch.randn(5, 2).double()), squared_error
    ),
    OracleProblem(
        "convolutions",
        _convolutions,
        lambda: (torch.randn(3, 2, 6, 5).double(), torch.randn(3, 2).double()),
        squared_error,
    ),
    OracleProblem(
        "rollout",
        _corrector,
        lambda: (torch.randn(2, 2, 6, 7).double(), torch.randn(2, 2, 6, 7).double()),
        rollout_error,
    ),
    OracleProblem(
        "normed",
        _normed,
        lambda: (torch.randn(4, 2, 5, 5).double(), torch.randn(4, 2).double()),
        squared_error,
    ),
]


@torch.no_grad()
def perturbed_losses(evaluator, problem, queries) -> torch.Tensor:
    """Losses `(queries, rows)` of the variants: those of the base and an evaluator's changes."""
    still = Coordinates(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=problem.parameters.dtype))
    nothing = torch.zeros(problem.rows, dtype=problem.parameters.dtype)
    base = Loop().begin(problem, nothing)(still)[0]
    return base + evaluator.begin(problem, base)(queries)
