"""The methods of all problems that take finite differences of the whole loss, and what they cost."""

from __future__ import annotations

from typing import Any

from torch import nn

import zo
from tasks.problem.method import Cost
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from zo.estimators import Parameters


def train(setup: Setup, kind: str) -> Trained:
    """Finite differences of the whole loss, by a kind of `estimator` with the settings that all have."""
    return setup.descend(loss_gradient(setup, _planned(kind, setup.problem, setup.network)))


def estimator(
    kind: str,
    mu: float,
    *,
    sparsity: zo.estimators.Sparsity | None = None,
    directions: int = 1,
    central: bool = False,
) -> zo.estimators.Estimator[Any]:
    """The estimator of a kind: "cge", "sparse-cge", or with `directions` "rge", "sparse-rge"."""
    if kind in ("cge", "sparse-cge"):
        return zo.CGE(mu, None if kind == "cge" else sparsity, central=central)
    return zo.RGE(mu, directions, central=central, sparsity=sparsity if kind == "sparse-rge" else None)


def loss_gradient(
    setup: Setup, estimator: zo.estimators.Estimator[Any], evaluator: str = "auto"
) -> zo.LossGradient:
    """A `zo.LossGradient` with the run's settings."""
    return zo.LossGradient(
        setup.network,
        setup.objective,
        estimator,
        evaluator=evaluator,
        seed=setup.seed,
        chunk=setup.config.zeroth_order.chunk,
        process_group=setup.process_group,
    )


def _planned(kind: str, problem: Problem, network: nn.Module) -> zo.estimators.Estimator[Any]:
    settings, size = problem.config.zeroth_order, Parameters(network).size
    some = zo.RandomCoordinates(min(settings.coordinates, size))
    return estimator(
        kind, settings.mu, sparsity=some, directions=settings.directions, central=settings.central
    )


def cost_of_queries(gradient: zo.LossGradient, steps: int) -> Cost:
    """Return the cost of a gradient of the whole loss, with all queries that may check it."""
    queries = steps * gradient.next_queries()
    most = steps + queries + gradient.most_checks(steps)
    return Cost(steps + queries, queries, most, first=gradient.most_checks(1))


def cost_of_loss(problem: Problem, steps: int, kind: str) -> Cost:
    """Return the cost of `train`."""
    network = problem.network()
    planned = _planned(kind, problem, network)
    gradient = zo.LossGradient(network, problem.objective, planned, chunk=problem.config.zeroth_order.chunk)
    return cost_of_queries(gradient, steps)
