"""Rounds that buy rows where the posterior by the model lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from zo.posterior.hmc import Move, tuned, walk
from zo.posterior.target import Model, Target

ROUND, NEAR = 25, 0.8  # rows of a round; part of all rows, the likeliest, that the model learns
LEAST = 50  # rows that it learns at least
WALK, LEFT_OUT = 30, 10  # states of each chain of a round, and those at its begin that say nothing
SHRINK = 0.2  # of a covariance, towards its diagonal
HELD = 0.999  # of the mass of a normal density, which lies within some depth of its mode; decision 237

Fit = Callable[[Tensor, Tensor], Model]


def near(target: Target, q: Tensor, answers: Tensor) -> Tensor:
    """The places of the likeliest rows, the likeliest first."""
    potential = target.potential(q, answers)
    finite = int(potential.isfinite().sum())
    return potential.argsort()[: min(finite, max(LEAST, int(NEAR * len(q))))]


def spread(target: Target, q: Tensor, answers: Tensor, generator: torch.Generator, least: int) -> Tensor:
    """The places of rows to begin from, in random order: all that the posterior may hold, at least `least`.

    A likelier row may lie in a mode that has hardly any mass. So the likeliest rows alone do not do.

    Args:
        target: the density.
        q: unknowns, `(rows, size)`.
        answers: the box's answers there.
        generator: of the order.
        least: how many of the likeliest rows there are where the posterior holds fewer.
    """
    potential = target.potential(q, answers)
    depth = float(chi2.ppf(HELD, q.shape[1])) / 2
    count = int((potential <= potential.min() + depth).sum())
    finite = int(potential.isfinite().sum())
    places = potential.argsort()[: max(count, min(finite, least))]
    return places[torch.randperm(len(places), generator=generator)]


def fitted(target: Target, fit: Fit, state: dict[str, Any]) -> Model:
    """The model of the likeliest rows so far; the same to the bit from the same rows."""
    places = near(target, state["q"], state["answers"])
    return fit(state["q"][places], state["answers"][places])


def buy(target: Target, fit: Fit, state: dict[str, Any], generator: torch.Generator, most: int) -> None:
    """One round: learn, go through the posterior by the model, ask the box there."""
    q, answers = state["q"], state["answers"]
    model = fitted(target, fit, state)
    begin = q[spread(target, q, answers, generator, ROUND)[:ROUND]]
    move = Move(state["size"], 6, state["root"])
    ends, rate, states = walk(model, begin, move, WALK, generator)
    state["size"] = min(1.0, max(1e-3, move.size * float(torch.tensor(rate - 0.8).exp())))
    state["root"] = root_of(states[LEFT_OUT:])
    ends = ends[:most]
    state["q"] = torch.cat([q, ends])
    state["answers"] = torch.cat([answers, target.answers(ends)])


def freeze(target: Target, fit: Fit, state: dict[str, Any], generator: torch.Generator) -> Model:
    """The last model; the move is found on it alone, for no row."""
    model = fitted(target, fit, state)
    begin = state["q"][spread(target, state["q"], state["answers"], generator, ROUND)[:ROUND]]
    _, _, states = walk(model, begin, Move(state["size"], 6, state["root"]), 2 * WALK, generator)
    state["root"] = root_of(states[LEFT_OUT:])
    move = tuned(model, states[-1], Move(state["size"], 6, state["root"]), generator)
    state["size"], state["steps"] = move.size, move.steps
    return model


def root_of(states: list[Tensor]) -> Tensor:
    """The Cholesky root of the covariance of states, `(size, size)`, shrunk towards the diagonal."""
    rows = torch.cat(states)
    covariance = torch.atleast_2d(torch.cov(rows.T))
    diagonal = covariance.diag()
    floor = 1e-6 * diagonal.mean() + 1e-12
    return torch.linalg.cholesky((1 - SHRINK) * covariance + (SHRINK * diagonal + floor).diag())
