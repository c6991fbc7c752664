"""The inputs that a check begins with: given by the user and checked, read from a file, or drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from blackbox.arrays import to_rows
from blackbox.conformance.probe import Arrays
from blackbox.errors import InputError
from blackbox.function import BlackBoxFunction, check_complete
from blackbox.spec import ArraySpec
from blackbox.wrappers.wrapper import Wrapper

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
        """Return at most so many of them, spread over all."""
        rows = np.unique(np.linspace(0, len(self.places) - 1, most).astype(int))
        return TakenSamples(tuple(array[rows] for array in self.arrays), self.places[rows], self.offered)


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
