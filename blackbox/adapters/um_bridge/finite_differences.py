"""Derivatives of a served black box by central differences: one row's `sens^T J` and `J vec`."""

from __future__ import annotations

from typing import Any

import numpy as np

from blackbox.function import BlackBoxFunction

# Numbers in the inputs of one call: what is asked for at a time, 32 MiB in float64.
NUMBERS_PER_CALL = 2**22


def gradient(
    box: BlackBoxFunction, inputs: tuple[np.ndarray, ...], out: int, wrt: int, sens: np.ndarray, mu: float
) -> np.ndarray:
    """`sens^T J` from two rows for each number of the input.

    Args:
        box: the black box.
        inputs: one row, each of its spec's shape.
        out: which output.
        wrt: which input.
        sens: `(size of the output,)`.
        mu: the smoothing parameter, in the input's units.

    Returns:
        `(size of the input,)`; NaN where a row failed and was kept.

    Raises:
        ValueError: the input's precision does not resolve mu.
        What the box raises.
    """
    size = inputs[wrt].size
    block = max(1, NUMBERS_PER_CALL // (2 * sum(array.size for array in inputs)))
    result = np.empty(size)
    for first in range(0, size, block):
        places = np.arange(first, min(first + block, size))
        steps = np.zeros((len(places), size))
        steps[np.arange(len(places)), places] = mu
        change, moved = _central(box, inputs, out, wrt, steps)
        # Divided by the step that the float took, which in float32 is not mu.
        result[places] = (change @ sens) / moved[np.arange(len(places)), places]
    return result


def apply_jacobian(
    box: BlackBoxFunction, inputs: tuple[np.ndarray, ...], out: int, wrt: int, vec: np.ndarray, mu: float
) -> np.ndarray:
    """`J vec` from two rows: the input is moved along `vec`, no number of it by more than mu.

    Args:
        box: the black box.
        inputs: one row, each of its spec's shape.
        out: which output.
        wrt: which input.
        vec: `(size of the input,)`.
        mu: the smoothing parameter, in the input's units.

    Returns:
        `(size of the output,)`; NaN where a row failed and was kept.

    Raises:
        As `gradient`.
    """
    largest = np.abs(vec).max()
    if largest == 0:
        return np.zeros(int(np.prod(box.outputs[out].shape)))
    change, _ = _central(box, inputs, out, wrt, (vec / largest * mu)[None])
    return change[0] * (largest / (2 * mu))


def _central(
    box: BlackBoxFunction, inputs: tuple[np.ndarray, ...], out: int, wrt: int, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Changes `(rows, size of the output)` from input - steps to input + steps, and the steps taken."""
    centre = inputs[wrt]
    wanted = steps.reshape(len(steps), *centre.shape)
    moved = np.concatenate([centre + wanted, centre - wanted]).astype(centre.dtype)
    arrays: list[Any] = [np.broadcast_to(array, (len(moved), *array.shape)) for array in inputs]
    arrays[wrt] = moved
    answer = box(*arrays)
    values = np.asarray(answer[out] if isinstance(answer, tuple) else answer, dtype=np.float64)
    plus, minus = values.reshape(2, len(steps), -1)
    up, down = moved.astype(np.float64).reshape(2, len(steps), -1)
    taken = up - down
    if not np.take_along_axis(taken, np.abs(steps).argmax(axis=1)[:, None], axis=1).all():
        name, dtype = box.inputs[wrt].name, centre.dtype
        raise ValueError(
            f"expected numbers of input {name!r} that {dtype} can move by mu, got larger ones. Raise mu"
        )
    return plus - minus, taken
