"""Batches: any nesting of tuples, lists and dicts of tensors that have their rows first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from zo.errors import ObjectiveError


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:  # noqa: ANN401
    """The same nesting with each tensor replaced; what is no tensor stays."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return type(batch)((key, map_tensors(function, value)) for key, value in batch.items())
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(function, value) for value in batch)
    return batch


def tensors(batch: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors of a batch, in order."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: (found.append(tensor), tensor)[1], batch)
    yield from found


def count_rows(batch: Any) -> int:  # noqa: ANN401
    """The size of the tensors' common first axis.

    Raises:
        ObjectiveError: there is no tensor, or the first axes differ.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors(batch)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ObjectiveError(
            f"batch: expected tensors that all have their rows first, got shapes {shapes}. "
            "Expand what is common to all rows, or keep it out of the batch."
        )
    return shapes[0][0]


def repeat(batch: Any, variants: int) -> Any:  # noqa: ANN401
    """The batch `variants` times over: `(rows, ...)` to `(variants * rows, ...)`, variants outermost."""
    return map_tensors(lambda tensor: tensor.repeat(variants, *[1] * (tensor.ndim - 1)), batch)
