"""Timed queries: seconds of a query of a parameter by an evaluator, within a number of queries."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter, process_time

import torch
from torch import Tensor

from zo.evaluators.evaluator import Evaluator, Problem
from zo.perturbation import Coordinates, Perturbation

FASTER = 0.95  # of the time before, to be worth a wider pass or another evaluator
FEW = 16  # variants, from which on one call will do; the first of fewer is spent on filling caches


@dataclass(frozen=True)
class Took:
    """What queries of a parameter took.

    Attributes:
        seconds: of each.
        changes: `(queries, rows)` that they gave.
    """

    seconds: float
    changes: Tensor


class Timing:
    """Times queries of a step's problem.

    Args:
        problem: of the step.
        base: losses of the base, `(rows,)`.
        step: of the queries.
        waits: whether they may wait for something, as a black box does, so that time passes without work.

    Attributes:
        spent: queries so far.
        checks: queries of checks, likewise.
    """

    def __init__(self, problem: Problem, base: Tensor, step: float, waits: bool = False) -> None:
        self.problem, self.base, self.step, self.waits = problem, base, step, waits
        self.spent = self.checks = 0

    def each(self, evaluator: Evaluator, number: int, width: int, most: int, calls: int = 2) -> Took | None:
        """What `width` queries of a parameter, by its number, take when they are asked at once.

        Args:
            evaluator: to time.
            number: of the parameter.
            width: queries of a call.
            most: queries that may have been spent afterwards; if more would be, nothing runs and it is None.
            calls: of which the fastest counts; one if they are of many.
        """
        return self.took(evaluator, self.queries(number, width, self.step), most, calls)

    def took(self, evaluator: Evaluator, queries: Perturbation, most: int, calls: int = 2) -> Took | None:
        """What some queries take when they are asked at once; the arguments are those of `each`."""
        count = len(queries)
        calls = calls if count < FEW else 1
        if self.spent + calls * count > most:
            return None
        times, found = [], self.base
        for _ in range(calls):
            begun = self._now()
            found = evaluator.changes(self.problem, queries, self.base)
            times.append(self._now() - begun)
            self.spent += count
        return Took(min(times) / count, found)

    def queries(self, number: int, count: int, step: float) -> Coordinates:
        """Entries of a parameter, spread over it."""
        parameters = self.problem.parameters
        size = parameters.tensors[number].numel()
        entries = torch.arange(count) * max(1, size // count) % size
        return Coordinates(
            parameters.starts[number] + entries, torch.full((count,), step, dtype=parameters.dtype)
        )

    def _now(self) -> float:
        """Seconds, once the device has done what it was asked; of one thread that never waits its own.

        So what else runs on a shared core does not decide.
        """
        if self.base.is_cuda:
            torch.cuda.synchronize(self.base.device)
        elif not self.waits and torch.get_num_threads() == 1:
            return process_time()
        return perf_counter()
