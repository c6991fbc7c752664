"""What a check has in its hands: rows to examine a black box with, and a `Probe` that calls it and counts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from blackbox.arrays import to_rows
from blackbox.conformance.report import Recommendation
from blackbox.definition import check_complete
from blackbox.errors import InputError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec

Arrays = tuple[np.ndarray, ...]


class OutOfRowsError(Exception):
    """A check asked for more rows than the budget has left; none was run. Never leaves the package."""


class BoxRaisedError(Exception):
    """The black box raised out of a call; `__cause__` is its error. Never leaves the package."""


@dataclass
class Measured:
    """What a check found that later ones need.

    Attributes:
        jitter: for each output, the largest difference of equal calls, in the output's units.
        quanta: for each output, the step of the grid that its values are on; 0 where there is none.
        noise: for each output, the noise level in the output's units; NaN before it is measured.
        recommendations: which mu to take, for each differentiable input.
    """

    jitter: list[float]
    quanta: list[float]
    noise: list[float]
    recommendations: list[Recommendation] = field(default_factory=list)


class Probe:
    """A black box under examination and the rows to examine it with.

    Args:
        box: the black box; its policy must let failed rows pass while the probe is at work (`keeping`).
        samples: one array `(rows, *spec.shape)` for each input, at least two rows.
        rows: the most rows that may be run; None for no limit.
        seed: the seed of everything that is drawn.
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
            raise OutOfRowsError(f"{rows:,} rows needed, {self.left:,.0f} left")
        self.spent += rows

    def __call__(self, arrays: Arrays) -> Arrays:
        """The answers to NumPy rows, `(rows, *spec.shape)` for each output; NaN where a row failed.

        Raises:
            OutOfRowsError, BoxRaisedError.
        """
        self.spend(len(arrays[0]))
        return self.uncounted(arrays)

    def uncounted(self, arrays: Arrays) -> Arrays:
        """The answers to rows that have been counted already; threads ask for them."""
        try:
            with np.errstate(all="ignore"):
                given = self.box(*arrays)
        except Exception as error:
            raise BoxRaisedError from error
        return given if isinstance(given, tuple) else (given,)

    def below_the_call(self, arrays: Arrays) -> Outcome:
        """The outcome of rows that go straight to `run_rows`, past the checks that keep NaN away.

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


DRAWN_ROWS = 32  # as many as any check looks at

Samples = Sequence[np.ndarray | torch.Tensor] | np.ndarray | torch.Tensor


def given_samples(box: BlackBoxFunction, samples: Samples) -> Arrays:
    """The user's samples, checked, as NumPy arrays that share no memory with theirs.

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
    index = np.unique(np.linspace(0, rows.count - 1, DRAWN_ROWS).astype(int))  # spread over all of them
    return tuple(array[index] for array in inputs)


def standard_draws(box: BlackBoxFunction, generator: np.random.Generator) -> Arrays:
    """32 rows: standard normal floats (float32 where the spec leaves it open), small integers, coins."""
    check_complete(box)
    return tuple(_drawn(spec, generator) for spec in box.inputs)


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
            return (content,)
        with content:
            missing = [name for name in names if name not in content.files]
            if not missing:
                return tuple(content[name] for name in names)
            found = ", ".join(content.files)
    except ValueError as error:
        raise InputError(
            f"{path}: expected arrays of numbers, got: {error} Save them with numpy.savez."
        ) from error
    raise InputError(
        f"{path}: expected the arrays {', '.join(names)}, got {found or 'none'}. "
        f"Save them with numpy.savez(path, {', '.join(f'{name}=...' for name in names)})."
    )


def _drawn(spec: ArraySpec, generator: np.random.Generator) -> np.ndarray:
    shape = (DRAWN_ROWS, *spec.shape)
    if spec.floating:
        return generator.standard_normal(shape).astype(spec.dtype or "float32")
    return generator.integers(0, 2 if spec.dtype == "bool" else 10, shape).astype(spec.dtype)
