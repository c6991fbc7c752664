"""What the checks work with: samples, a `Probe` that calls the box and counts, lines through samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Literal

import numpy as np
import torch

from blackbox.arrays import finite_rows, spreads, spreads_apart, to_rows
from blackbox.conformance.overdue import ended_after
from blackbox.conformance.report import Finding, Recommendation, Unit, Verdict
from blackbox.errors import InputError
from blackbox.failures import Outcome, whereabouts
from blackbox.function import BlackBoxFunction, check_complete
from blackbox.spec import ArraySpec
from blackbox.words import counted
from blackbox.wrappers.wrapper import Wrapper

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
        seconds: the most seconds that may pass from now on; None for no limit. A call is judged beforehand by
            what calls took so far.

    Attributes:
        jitter: for each output, the largest difference of equal calls, in the output's units.
        quanta: for each output, the step of the grid that its values are on, or what the last significant
            digit of its largest is worth; 0 where they have all digits of their dtype.
        recommendations: which mu to take, for each differentiable input.
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
            said = f"{counted(rows, 'row')} would take about {self.expected(rows):.2g} s"
            raise OutOfSecondsError(f"{said}, {self.seconds_left:.2g} s of {self.seconds:g} are left")
        self.progress(self.check, self.spent)
        self.spent += rows

    def __call__(self, arrays: Arrays) -> Arrays:
        """The answers to NumPy rows, `(rows, *spec.shape)` for each output; NaN where a row failed.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        asked = tuple(array.copy() for array in arrays)  # a wrapper may write to its inputs
        before, known = monotonic(), self.box.ledger.first_failure
        try:
            answers = self.uncounted(arrays)
        except BoxRaisedError as raised:
            self.first = self.first or (asked, f"{type(raised.__cause__).__name__}: {raised.__cause__}")
            raise
        took = monotonic() - before
        self.first = self.first or (asked, answers)
        # Rows that fail at once say nothing about what others take.
        finite = finite_rows(tuple(torch.from_numpy(array) for array in answers))
        answered = int(finite.sum())
        self._count_failed(arrays, finite, known)
        if answered:
            self.took[answered] = took
        return answers

    def _count_failed(self, arrays: Arrays, finite: torch.Tensor, known: str | None) -> None:
        """Count rows that came back as failed; of the first, keep the ledger's words, or its inputs."""
        lost = torch.nonzero(~finite).flatten().tolist()
        if lost and not self.failed:
            tensors = tuple(torch.from_numpy(array) for array in arrays)
            noted = None if known else self.box.ledger.first_failure
            self.first_failure = noted or whereabouts(self.box.inputs, tensors, lost[0], lost[0], ())
        self.failed += len(lost)

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
        """What each number of an input is moved in, `(size,)`, and what that is.

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
    inputs = sum(spec.differentiable for spec in probe.box.inputs)
    wide = any(array.dtype == np.float64 for array in probe.samples)
    rows = 1000 * math.ceil((8 if wide else 6) * (1 + 2 / 3 * max(0, inputs - 1)))
    more = f"--rows {rows}, in Python rows={rows}"
    if isinstance(out, OutOfSecondsError):
        # A third more than the rows take, for what else takes time.
        wanted = probe.elapsed + 4 / 3 * probe.pace * (
            rows if probe.limit is None else min(rows, probe.limit)
        )
        seconds = 60 * math.ceil(max(wanted, 2 * (probe.seconds or 0)) / 60)
        more = f"--seconds {seconds}, in Python seconds={seconds}"
    return Finding(check, Verdict.SKIPPED, f"Not measured: {out}. Take more, such as {more}.")


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


DRAWN_ROWS = 32  # as many as any check looks at
TAKEN = 64  # samples of the user's, at most: more show rows that fail

Samples = Sequence[np.ndarray | torch.Tensor] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class TakenSamples:
    """The samples that a check works with.

    Attributes:
        arrays: one `(rows, *spec.shape)` for each input, at most 64 rows.
        places: `(rows,)`, where these rows are among those that the user gave.
        offered: how many rows the user gave; 0 where they were drawn.
    """

    arrays: Arrays
    places: np.ndarray
    offered: int

    def thinned(self, most: int) -> TakenSamples:
        """At most so many of them, spread over all."""
        kept = np.unique(np.linspace(0, len(self.places) - 1, most).astype(int))
        return TakenSamples(tuple(array[kept] for array in self.arrays), self.places[kept], self.offered)


def checked_samples(box: BlackBoxFunction, samples: Samples) -> TakenSamples:
    """The user's samples, checked, as arrays of their own.

    Raises:
        InputError: they do not fit the input specs, have no leading axis, fewer than two rows, or NaN.
    """
    arrays = tuple(samples) if isinstance(samples, Sequence) else (samples,)
    check_complete(box)
    rows = to_rows(repr(box), box.inputs, arrays)
    if len(rows.leading) != 1 or rows.count < 2:
        raise InputError(
            f"check_black_box, samples: expected one leading axis of at least 2 rows, got {rows.leading}. "
            "Stack inputs such as training will meet; 32 are enough."
        )
    inputs = tuple(np.array(tensor.cpu().numpy()) for tensor in rows.inputs)
    for spec, array in zip(box.inputs, inputs, strict=True):
        if not np.isfinite(array).all():
            raise InputError(
                f"check_black_box, samples of {spec.name!r}: expected finite numbers, got NaN or infinity. "
                "Leave those rows out; what the box does with NaN is tried anyway."
            )
    index = np.unique(np.linspace(0, rows.count - 1, TAKEN).astype(int))  # spread over all of them
    return TakenSamples(tuple(array[index] for array in inputs), index, rows.count)


def standard_draws(box: BlackBoxFunction, generator: np.random.Generator) -> Arrays:
    """32 rows: usual floats (`ArraySpec.usual_numbers`), float32 if left open; small integers, coins.

    A box that cannot be set has 32 rows that it has led to.
    """
    check_complete(box)
    if not box.settable:
        return drawn_by(box, generator)
    return tuple(_drawn(spec, generator) for spec in box.inputs)


def drawn_by(box: BlackBoxFunction, generator: np.random.Generator) -> Arrays:
    """Rows that a box which cannot be set has led to, by the `draw` of the innermost box.

    Raises:
        InputError: it has none.
    """
    inner = box
    while isinstance(inner, Wrapper):
        inner = inner.box
    draw = getattr(inner, "draw", None)
    if draw is None:
        raise InputError(
            f"check_black_box, samples: expected some, as {box!r} cannot be set to inputs that are drawn. "
            f"Got none. Give {how_to_give_samples(box)}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the check will say what is wrong
        return draw(DRAWN_ROWS, generator)


def read_samples(box: BlackBoxFunction, path: str | Path) -> Arrays:
    """Samples from an `.npz` file with one array for each input under its name, or `.npy` for one input.

    Raises:
        InputError: a name is missing, or the file holds something else than arrays of numbers.
        OSError: the file cannot be read.
    """
    check_complete(box)
    names = [spec.name for spec in box.inputs]
    try:
        content = np.load(path, allow_pickle=False)  # what comes from elsewhere is never unpickled
        if isinstance(content, np.ndarray):
            if len(names) == 1:
                return (content,)
            raise InputError(
                f"{path}: expected {len(names)} arrays, {', '.join(names)}, got the one of an .npy file. "
                f"{_savez(names)}"
            )
        with content:
            missing = [name for name in names if name not in content.files]
            if not missing:
                return tuple(content[name] for name in names)
            names_there = ", ".join(content.files)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path}: expected arrays of numbers, got: {error} Save them with numpy.savez."
        ) from error
    raise InputError(
        f"{path}: expected the arrays {', '.join(names)}, got {names_there or 'none'}. {_savez(names)}"
    )


def _savez(names: Sequence[str]) -> str:
    keywords = ", ".join(f"{name}=..." for name in names)
    return f"Save them under the inputs' names, with numpy.savez('samples.npz', {keywords})."


def how_to_give_samples(box: BlackBoxFunction) -> str:
    """The words that end a message about samples: the command's option, its files, and Python's argument."""
    names = ", ".join(spec.name for spec in box.inputs)
    one = len(box.inputs) == 1
    file = "FILE.npy" if one else f"FILE.npz (with the arrays {names})"
    return f"--samples {file}, in Python check_black_box(box, samples=...)"


def _drawn(spec: ArraySpec, generator: np.random.Generator) -> np.ndarray:
    if spec.floating:
        return spec.usual_numbers(generator, DRAWN_ROWS).astype(spec.dtype or "float32")
    shape = (DRAWN_ROWS, *spec.shape)
    return generator.integers(0, 2 if spec.dtype == "bool" else 10, shape).astype(spec.dtype)


def precision(array: np.ndarray) -> float:
    """The rounding unit of an array's floats; 0 for whole numbers."""
    return float(np.finfo(array.dtype).eps) if np.issubdtype(array.dtype, np.floating) else 0.0


# Straight lines through samples, and the answers along them as plain columns of numbers.

COLUMNS = 512  # output numbers looked at; more say nothing new
ROWS, NUMBERS = 512, 2**22  # of one call, at most; and of its inputs, which bounds the memory for images
ROUNDING = 0.2  # of a rounding unit: the standard deviation of rounding, for numbers spread over a binade

Kind = Literal["coordinates", "directions"]


@dataclass(frozen=True)
class Lines:
    """Lines in one input; all other inputs stay as in the samples.

    Attributes:
        place: which input.
        rows: `(lines,)`, the sample that each line goes through.
        directions: `(lines, size)`, of unit length in the unit of the input's numbers (`Probe.unit`).
        longest: the length over which the input varies along such a line, in that unit, as all lengths are.
        shortest: the length below which the input's own rounding shows.
    """

    place: int
    rows: np.ndarray
    directions: np.ndarray
    longest: float
    shortest: float

    def points(self, probe: Probe, which: np.ndarray, lengths: np.ndarray) -> Arrays:
        """The inputs on the lines `which`, `(points,)`, at these lengths from the samples, `(points,)`."""
        arrays = list(probe.pick(self.rows[which]))
        values = arrays[self.place]
        moved = values.reshape(len(values), -1).astype(np.float64) + self.directions[which] * lengths[:, None]
        arrays[self.place] = moved.reshape(values.shape).astype(values.dtype)
        return tuple(arrays)


class Responses:
    """What checks look at in answers: up to 512 numbers of the differentiable outputs, over their spread.

    Attributes:
        probe: calls the black box.
        places: which outputs are differentiable.
        output: `(columns,)`, the output that each column is a number of.
        spread: for each output, the standard deviation of its numbers over the samples.
        precision: for each output, the rounding unit of its floats.
        size: `(columns,)`, root mean square over the samples, in units of the spread.
        rounding: `(columns,)`, standard deviation of the rounding of such numbers, in units of the spread.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        specs = probe.box.outputs
        self.places = [place for place, spec in enumerate(specs) if spec.differentiable]
        counts = [math.prod(specs[place].shape) for place in self.places]
        total = sum(counts)
        keep = probe.generator.permutation(total)[:COLUMNS] if total > COLUMNS else np.arange(total)
        ends = np.cumsum([0, *counts])
        self.columns = [np.sort(keep[(keep >= a) & (keep < b)] - a) for a, b in pairwise(ends)]
        self.output = np.concatenate(
            [np.full(len(c), p) for p, c in zip(self.places, self.columns, strict=True)]
        )
        self.spread = [_spread(base) for base in probe.base]
        self.precision = [precision(base) for base in probe.base]
        self.size = np.sqrt(np.square(self(probe.base)).mean(axis=0))
        self.rounding = ROUNDING * np.array([self.precision[place] for place in self.output]) * self.size

    def __call__(self, answers: Arrays) -> np.ndarray:
        """`(rows, columns)` float64."""
        parts = [
            answers[place].reshape(len(answers[place]), -1)[:, columns].astype(np.float64)
            / self.spread[place]
            for place, columns in zip(self.places, self.columns, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def at(self, lines: Lines, which: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """`(points, columns)` on the lines `which` at these lengths, `(points,)`; NaN where a row failed."""
        most = max(1, min(ROWS, NUMBERS // lines.directions.shape[1]))
        blocks, first = [], 0
        while first < len(which):
            # At most four times what was answered together before: no call is far longer than foreseen.
            block = most if self.probe.seconds is None else min(most, 4 * max(self.probe.took, default=1))
            part = slice(first, first + block)
            blocks.append(self(self.probe(lines.points(self.probe, which[part], lengths[part]))))
            first += block
        answers = np.concatenate(blocks)
        answers[~np.isfinite(answers)] = np.nan
        return answers

    def along(self, lines: Lines, lengths: np.ndarray) -> np.ndarray:
        """`(lines, points, columns)` at these lengths, `(points,)`, on every line."""
        count = len(lines.rows)
        answers = self.at(lines, np.repeat(np.arange(count), len(lengths)), np.tile(lengths, count))
        return answers.reshape(count, len(lengths), -1)


def draw_lines(probe: Probe, place: int, count: int, kind: Kind) -> Lines:
    """Lines through samples taken in turn: along single coordinates, or in directions of a sphere."""
    unit, _ = probe.unit(place)
    samples = probe.samples[place].reshape(len(probe.samples[place]), -1).astype(np.float64) / unit
    size = samples.shape[1]
    if kind == "directions":
        directions = probe.generator.standard_normal((count, size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        stretch = math.sqrt(size)  # so that a single number moves as far as along a coordinate
    else:
        order = np.resize(probe.generator.permutation(size), count)
        directions = np.zeros((count, size))
        directions[np.arange(count), order] = 1.0
        stretch = 1.0
    longest = _spread(samples) * stretch
    rounding = precision(probe.samples[place]) * math.sqrt(np.square(samples).mean()) * stretch
    rows = np.resize(probe.generator.permutation(len(samples)), count)
    return Lines(place, rows, directions * unit, longest, min(longest, 16 * rounding))


def _spread(values: np.ndarray) -> float:
    """Root mean square of the deviations of each number from its mean over rows; else the size; else 1."""
    values = values.reshape(len(values), -1).astype(np.float64)
    away = math.sqrt(np.square(values - values.mean(axis=0)).mean())
    size = math.sqrt(np.square(values).mean())
    return away if away > 1e-12 * size else size or 1.0
