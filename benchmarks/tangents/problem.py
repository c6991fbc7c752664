"""`BenchmarkProblem`: what is trained around which black box, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.objective import Objective


@dataclass(frozen=True)
class BenchmarkProblem:
    """A network around a black box.

    Attributes:
        box: what only answers.
        exact: its differentiable twin, for first order and for cosines; None where there is none.
        start: seed -> the network from which all methods start.
        objective: what takes the box's place (the box itself, its twin) -> objective.
        batch: (seed, step) -> a batch.
        error: of a network, on data that no training has seen, through the box without noise or failures.
        validate: the same on other data, by which weights are chosen.
        unit: of the error.
        steps: optimiser steps of the methods that use autograd around the box.
        learning_rate: of Adam, at the start; it falls along a cosine, for all methods.
        hard: one sentence: why it is in the table.
        known: rows of the box that exist before training, `(inputs, outputs)` with the rows first: the pairs
            on which the start was trained. None where the start saw none.
        periodic: whether the sides of the state's grid meet; it says nothing where the state is no grid.
        mu: standard deviation of a probe's weights.
        fresh: (seed, step, rows) -> a batch that costs no row of any box; None where the right answers that a
            batch holds were computed by one that is no less expensive.
        alone: a network that corrects nothing, for the error of the box alone; None where the network does
            something else than correct.
    """

    box: BlackBoxFunction
    exact: Callable[..., Any] | None
    start: Callable[[int], nn.Module]
    objective: Callable[[Callable[..., Any]], Objective]
    batch: Callable[[int, int], Any]
    error: Callable[[nn.Module], float]
    validate: Callable[[nn.Module], float]
    unit: str
    steps: int
    learning_rate: float
    hard: str = ""
    known: tuple[tuple[Tensor, ...], Tensor] | None = None
    periodic: bool = True
    mu: float = 1e-3
    fresh: Callable[[int, int, int], Any] | None = None
    alone: nn.Module | None = None


class Unchanged(nn.Module):
    """The correction that is none: what the box answered, whatever else the network sees."""

    def forward(self, answered: Tensor, *others: Tensor) -> Tensor:
        """`(rows, *shape)`, as given."""
        return answered
