"""Rows to examine a box with: the user's, or standard draws from the input specs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from blackbox.arrays import to_rows
from blackbox.conformance.probe import Arrays
from blackbox.definition import check_complete
from blackbox.errors import InputError
from blackbox.function import BlackBoxFunction
from blackbox.spec import ArraySpec

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
