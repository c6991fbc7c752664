"""The methods by name: what gives the gradient, and how its budget of rows is spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.problem import Problem

COORDINATES = 24  # of sparse CGE, and directions of RGE, in a step
DIRECTIONS = 4  # of RGE at the box's inputs


class Gradient(Protocol):
    """What fills `.grad`."""

    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """Add the gradient of a batch; the loss."""
        ...


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        make: of a problem, a network and a seed.
        variants: of the network in a step, where its steps are so many fewer that the rows are those of the
            problem's own budget; None for the problem's steps.
        keeps_best: whether the weights with the lowest validation error are kept, the start's too; the rows
            of that are counted.
    """

    make: Callable[[Problem, nn.Module, int], Gradient]
    variants: int | None = None
    keeps_best: bool = False


class FirstOrder:
    """Autograd through the box's differentiable twin.

    Attributes:
        rows: of the twin, forward; as many go backward.
    """

    def __init__(self, problem: Problem, network: nn.Module) -> None:
        exact = problem.exact
        assert exact is not None
        self.rows = 0

        def counted(*arrays: Tensor) -> Tensor:
            self.rows += len(arrays[0])
            return exact(*arrays)

        self.network = network
        self.objective = problem.objective(counted)

    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """As any loss's."""
        loss = self.objective(self.network, batch).mean()
        loss.backward()
        return loss.detach()


class AtTheInput:
    """Random directions at the box's inputs, autograd around it."""

    def __init__(self, problem: Problem, network: nn.Module, seed: int) -> None:
        solver = zo.differentiable(problem.box, zo.RowRGE(mu=0.05, q=DIRECTIONS), seed=seed)
        self.network = network
        self.objective = problem.objective(solver)

    def backward(self, batch: Any) -> Tensor:  # noqa: ANN401
        """As any loss's."""
        loss = self.objective(self.network, batch).mean()
        loss.backward()
        return loss.detach()


def tangent(make: Callable[[Problem], zo.tangents.Tangent], probes: int) -> Method:
    """A learned tangent, with a fixed number of probes."""

    def gradient(problem: Problem, network: nn.Module, seed: int) -> Gradient:
        return tangent_gradient(
            problem, network, seed, make(problem), probes, zo.tangents.TrustPolicy(check_every=None)
        )

    return Method(gradient)


def recommended(problem: Problem, network: nn.Module, seed: int) -> Gradient:
    """The library's own choice, allowed sixteen probes and the checks where trust is lost."""
    return tangent_gradient(problem, network, seed, None, 2, zo.tangents.TrustPolicy(), max_rows=17.1)


def student(problem: Problem, network: nn.Module, seed: int) -> Gradient:
    """A student of the classifier, fitted to the answers for a tenth of the rows first."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        own = zo.StudentTangent(nn.Sequential(*layers), loss="kl", seed=seed)
    with torch.no_grad():
        images = torch.cat([network(problem.batch(seed, 10**6 + n)[0]) for n in range(problem.steps // 10)])
    own.fit(images, problem.box(images), steps=400)
    return tangent_gradient(problem, network, seed, own, 0, zo.tangents.TrustPolicy())


def tangent_gradient(
    problem: Problem,
    network: nn.Module,
    seed: int,
    tangent: zo.tangents.Tangent | None,
    probes: int,
    policy: zo.tangents.TrustPolicy,
    max_rows: float | None = None,
) -> zo.TangentGradient:
    """Around the problem's box; with as many probes as are given, unless more rows are allowed."""
    return zo.TangentGradient(
        network,
        problem.objective(problem.box),
        boxes=[problem.box],
        tangent=tangent,
        probes=probes,
        max_rows=1 + probes if max_rows is None else max_rows,
        mu=problem.mu,
        seed=seed,
        trust_policy=policy,
    )


def whole_loss(estimator: Callable[[], zo.estimators.Estimator[Any]]) -> Method:
    """The gradient of the weights from values of the whole loss; its few steps have many queries."""

    def gradient(problem: Problem, network: nn.Module, seed: int) -> Gradient:
        objective = problem.objective(problem.box)
        return zo.LossGradient(network, objective, estimator(), seed=seed, max_dropped=0.5)

    return Method(gradient, variants=1 + COORDINATES)


def convolution(problem: Problem) -> zo.ConvTangent:
    """The problem's stencil."""
    kernel, padding = problem.stencil
    return zo.ConvTangent(kernel=kernel, padding=padding)


METHODS: dict[str, Method] = {
    "FO": Method(lambda problem, network, seed: FirstOrder(problem, network)),
    "identity": tangent(lambda problem: zo.IdentityTangent(), 0),
    "dense": tangent(lambda problem: zo.LowRankTangent(), 2),
    "memory": tangent(lambda problem: zo.WindowTangent(), 2),
    "conv + memory": tangent(lambda problem: zo.WindowTangent(convolution(problem)), 2),
    "local, 8 probes": tangent(lambda problem: zo.SecantTangent(), 8),
    "recommended": Method(recommended, keeps_best=True),
    "student": Method(student),
    "student, best kept": Method(student, keeps_best=True),
    "RGE at the input": Method(AtTheInput, variants=1 + DIRECTIONS),
    "sparse CGE": whole_loss(
        lambda: zo.CGE(mu=1e-3, sparsity=zo.RandomCoordinates(COORDINATES)),
    ),
    "RGE": whole_loss(lambda: zo.RGE(mu=1e-3, q=COORDINATES)),
}
