"""`Probe`: a black box under examination, whose calls are counted and ended in time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import numpy as np
import torch

from blackbox.arrays import finite_rows, spreads, spreads_apart
from blackbox.conformance.check_report import Finding, Recommendation, Unit, Verdict
from blackbox.conformance.overdue import ended_after
from blackbox.failures import Outcome, whereabouts
from blackbox.function import BlackBoxFunction
from blackbox.words import counted

Arrays = tuple[np.ndarray, ...]


class OutOfRowsError(Exception):
    """A check asked for more rows than the budget has left; none was run. Never leaves the package."""


class OutOfSecondsError(OutOfRowsError):
    """The rows that a check asked for would take longer than is left; none was run. Nor does this leave."""


class CallEndedError(OutOfSecondsError):
    """A call did not return in time, and was ended. Nor does this leave."""


class BoxRaisedError(Exception):
    """The black box raised out of a call; `__cause__` is its error. Never leaves the package."""


class Probe:
    """A black box under examination and the rows to examine it with.

    Args:
        box: the black box; its policy must let failed rows pass while the probe is at work (`keeping`).
        samples: one array `(rows, *spec.shape)` for each input, at least two rows.
        rows: the most rows that may be run; None for no limit.
        seed: the seed of everything that is drawn.
        processes: whether checks may start processes.
        seconds: the most seconds that may pass from now on; None for no limit. The time of a call is
            estimated beforehand, by the calls so far.

    Attributes:
        jitter: for each output, the largest difference of equal calls, in the output's units.
        quanta: for each output, the step of the grid that its values are on, or the worth of the last
            significant digit of the largest value; 0 where values have all digits of their dtype.
        recommendations: the recommended mu for each differentiable input.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        samples: Arrays,
        rows: int | None,
        seed: int,
        processes: bool,
        seconds: float | None = None,
    ) -> None:
        self.box = box
        self.samples = samples
        self.drawn = False  # by us, not given
        self.places = np.arange(len(samples[0]))  # of the samples among those that were given
        self.base: Arrays = ()  # the samples' answers, once they are known
        self.called_before = box.ledger.calls > 0
        self.first: tuple[Arrays, Arrays | str] | None = None  # the first call's rows, and answers or error
        self.limit = rows
        # Rows for what is asked last: once more the first one, and NaN.
        self.kept_back = 1 + 2 * sum(spec.floating for spec in box.inputs)
        self.spent = 0
        self.failed, self.first_failure = 0, ""  # rows that came back as failed, and the first in words
        self.seconds = seconds
        self.began = monotonic()
        self.took: dict[int, float] = {}  # seconds of the last call in which so many rows were answered
        self.check = "answers"  # what is being done, and who wants to know
        self.progress: Callable[[str, int], None] = lambda check, rows: None
        self.processes = processes
        self.generator = np.random.default_rng(seed)
        self.jitter, self.quanta = [0.0] * len(box.outputs), [0.0] * len(box.outputs)
        self.recommendations: list[Recommendation] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the probe was made."""
        return monotonic() - self.began

    @property
    def seconds_left(self) -> float:
        """Seconds that may still pass; infinite without a limit, and never negative."""
        return math.inf if self.seconds is None else max(0.0, self.seconds - self.elapsed)

    @property
    def rows_left(self) -> float:
        """Rows that may still be run, whatever they take; infinite without a limit."""
        return math.inf if self.limit is None else max(0, self.limit - self.spent - self.kept_back)

    @property
    def left(self) -> float:
        """Rows that may still be run, and that the time left is enough for; infinite without a limit."""
        pace = self.pace
        in_time = self.seconds_left / pace if pace else math.inf
        return min(self.rows_left, in_time)

    @property
    def pace(self) -> float:
        """Seconds of a row, in the calls where rows took least; 0 before a row was answered."""
        return min((seconds / rows for rows, seconds in self.took.items()), default=0.0)

    def expected(self, rows: int) -> float:
        """Seconds that a call of so many rows takes at most: no more than several calls of fewer rows did."""
        return min((math.ceil(rows / size) * took for size, took in self.took.items()), default=0.0)

    def spend(self, rows: int) -> None:
        """Count rows that are about to be run.

        Raises:
            OutOfRowsError: they do not fit, or (`OutOfSecondsError`) would take too long.
        """
        if rows > self.rows_left:
            raise OutOfRowsError(f"{rows:,} rows needed, {self.rows_left:,.0f} left")
        if self.expected(rows) > self.seconds_left or self.seconds_left == 0:
            sentence = f"{counted(rows, 'row')} would take about {self.expected(rows):.2g} s"
            raise OutOfSecondsError(f"{sentence}, {self.seconds_left:.2g} s of {self.seconds:g} are left")
        self.progress(self.check, self.spent)
        self.spent += rows

    def __call__(self, arrays: Arrays) -> Arrays:
        """The answers to NumPy rows, `(rows, *spec.shape)` for each output; NaN where a row failed.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        copies = tuple(array.copy() for array in arrays)  # a wrapper may write to its inputs
        started, first_failure = monotonic(), self.box.ledger.first_failure
        try:
            answers = self.uncounted(arrays)
        except BoxRaisedError as raised:
            self.first = self.first or (copies, f"{type(raised.__cause__).__name__}: {raised.__cause__}")
            raise
        took = monotonic() - started
        self.first = self.first or (copies, answers)
        # Rows that fail at once say nothing about what others take.
        finite = finite_rows(tuple(torch.from_numpy(array) for array in answers))
        answered = int(finite.sum())
        self._count_failed(arrays, finite, first_failure)
        if answered:
            self.took[answered] = took
        return answers

    def _count_failed(self, arrays: Arrays, finite: torch.Tensor, known: str | None) -> None:
        """Count rows that came back as failed; of the first, keep the ledger's words, or its inputs."""
        failed_rows = torch.nonzero(~finite).flatten().tolist()
        if failed_rows and not self.failed:
            tensors = tuple(torch.from_numpy(array) for array in arrays)
            noted = None if known else self.box.ledger.first_failure
            first = failed_rows[0]
            self.first_failure = noted or whereabouts(self.box.inputs, tensors, first, first, ())
        self.failed += len(failed_rows)

    @property
    def patience(self) -> float:
        """Seconds after which a call is ended: those that are left, and a quarter of all for its end."""
        return math.inf if self.seconds is None else self.seconds_left + max(1.0, self.seconds / 4)

    @contextmanager
    def _called(self, patience: float) -> Iterator[None]:
        """A call of the box: its errors are `BoxRaisedError`, and its end has come after so many seconds."""
        began = monotonic()
        try:
            with ended_after(patience), np.errstate(all="ignore"):
                yield
        except TimeoutError as error:
            if type(error) is not TimeoutError or error.args or monotonic() - began < patience / 2:
                raise BoxRaisedError from error
            raise CallEndedError(f"a call had not returned after {patience:.2g} s, and was ended") from error
        except Exception as error:
            raise BoxRaisedError from error

    def uncounted(self, arrays: Arrays) -> Arrays:
        """The answers to rows that have been counted already; threads ask for them."""
        with self._called(self.patience):
            answer = self.box(*arrays)
        return answer if isinstance(answer, tuple) else (answer,)

    def below_the_call(self, arrays: Arrays, patience: float = math.inf) -> Outcome:
        """The outcome of rows that go straight to `run_rows`, past the checks that keep NaN away.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        with self._called(min(patience, self.patience)):
            return self.box.run_rows(tuple(torch.from_numpy(array.copy()) for array in arrays))

    def unit(self, place: int) -> tuple[np.ndarray, Unit]:
        """Return the unit in which each number of an input is moved, `(size,)`, and the unit's kind.

        The spec's scale; without one, where the units of the numbers seem to differ, their spreads over the
        samples (the median one for numbers that are constant); else 1.
        """
        spec = self.box.inputs[place]
        if spec.scale is not None:
            return np.array(spec.scale), "scale"
        deviations = spreads(torch.from_numpy(self.samples[place])).numpy()
        if spreads_apart(spec, torch.from_numpy(self.samples[place])) is None:
            return np.ones(len(deviations)), "own"
        return np.where(deviations > 0, deviations, np.median(deviations[deviations > 0])), "spread"

    def rows(self, first: int, count: int) -> Arrays:
        """`count` samples from the `first` on; beyond the last they begin anew."""
        return self.pick(np.arange(first, first + count) % len(self.samples[0]))

    def pick(self, index: np.ndarray) -> Arrays:
        """The samples at these places, as new arrays."""
        return tuple(array[index] for array in self.samples)


def not_measured(probe: Probe, check: str, out: OutOfRowsError) -> Finding:
    """The finding of a check that did not fit into the rows, with how many measure every line."""
    more = more_rows(probe, isinstance(out, OutOfSecondsError))
    return Finding(check, Verdict.SKIPPED, f"Not measured: {out}. Take more, such as {more}.")


def more_rows(probe: Probe, in_time: bool) -> str:
    """The settings by which every line is measured: of rows, or of seconds where time is short."""
    inputs = sum(spec.differentiable for spec in probe.box.inputs)
    wide = any(array.dtype == np.float64 for array in probe.samples)
    rows = 1000 * math.ceil((8 if wide else 6) * (1 + 2 / 3 * max(0, inputs - 1)))
    if not in_time:
        return f"--rows {rows}, in Python rows={rows}"
    # A third more than the rows take, for what else takes time.
    seconds_wanted = probe.elapsed + 4 / 3 * probe.pace * (
        rows if probe.limit is None else min(rows, probe.limit)
    )
    seconds = 60 * math.ceil(max(seconds_wanted, 2 * (probe.seconds or 0)) / 60)
    return f"--seconds {seconds}, in Python seconds={seconds}"


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
