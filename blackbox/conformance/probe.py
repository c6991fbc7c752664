"""`Probe`: calls a black box for the checks; counts rows, keeps to the budget, turns errors into values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction

if TYPE_CHECKING:
    from blackbox.conformance.recommendation import Recommendation

Arrays = tuple[np.ndarray, ...]


class OutOfRowsError(Exception):
    """A check asked for more rows than the budget has left; none was run. Never leaves the package."""


class BoxRaisedError(Exception):
    """The black box raised out of a call; `__cause__` is its error. Never leaves the package."""


@dataclass
class Measured:
    """What a check found that later ones need.

    Attributes:
        jitter: for each output, the largest difference of equal calls, in its units.
        quanta: for each output, the step of the grid that its values are on; 0 where there is none.
        noise: for each output, the noise level in its units; NaN before it is measured.
        recommendations: one for each differentiable input.
    """

    jitter: list[float]
    quanta: list[float]
    noise: list[float]
    recommendations: list[Recommendation] = field(default_factory=list)


class Probe:
    """A black box under examination and the rows to examine it with.

    Args:
        box: it; its policy must let failed rows pass while the probe is at work (`keeping`).
        samples: one array `(rows, *spec.shape)` for each input, at least two rows.
        rows: the most rows that may be run; None for no limit.
        seed: of everything that is drawn.
        processes: whether checks may start processes.
    """

    def __init__(
        self, box: BlackBoxFunction, samples: Arrays, rows: int | None, seed: int, processes: bool
    ) -> None:
        self.box = box
        self.samples = samples
        self.base: Arrays = ()  # the samples' answers, once they are known
        self.limit = rows
        self.spent = 0
        self.processes = processes
        self.generator = np.random.default_rng(seed)
        count = len(box.outputs)
        self.measured = Measured([0.0] * count, [0.0] * count, [math.nan] * count)

    @property
    def left(self) -> float:
        """Rows that may still be run; infinite without a limit."""
        return math.inf if self.limit is None else self.limit - self.spent

    def spend(self, rows: int) -> None:
        """Count rows that are about to be run.

        Raises:
            OutOfRowsError: they do not fit.
        """
        if rows > self.left:
            raise OutOfRowsError(f"{rows} rows are needed, {self.left:.0f} are left")
        self.spent += rows

    def __call__(self, arrays: Arrays) -> Arrays:
        """The answers to NumPy rows, `(rows, *spec.shape)` for each output; NaN where a row failed.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        return self.uncounted(arrays)

    def uncounted(self, arrays: Arrays) -> Arrays:
        """The same for rows that have been spent already; threads use it."""
        try:
            with np.errstate(all="ignore"):
                given = self.box(*arrays)
        except Exception as error:
            raise BoxRaisedError from error
        return given if isinstance(given, tuple) else (given,)

    def below_the_call(self, arrays: Arrays) -> Outcome:
        """The rows handed straight to `run_rows`, past the checks that keep NaN and empty batches away.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        try:
            with np.errstate(all="ignore"):
                return self.box.run_rows(tuple(torch.from_numpy(array.copy()) for array in arrays))
        except Exception as error:
            raise BoxRaisedError from error

    def rows(self, first: int, count: int) -> Arrays:
        """`count` samples from the `first` on; beyond the last they begin anew."""
        return self.pick(np.arange(first, first + count) % len(self.samples[0]))

    def pick(self, index: np.ndarray) -> Arrays:
        """The samples at these places, as new arrays."""
        return tuple(array[index] for array in self.samples)


@contextmanager
def keeping(box: BlackBoxFunction) -> Iterator[None]:
    """Failed rows pass as NaN, and warnings of the box's libraries are not shown, inside the block."""
    policy = box.failures
    box.failures = "keep"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        box.failures = policy
