"""Batches: any nesting of tuples, lists, dicts, dataclasses and the like of tensors with their rows first."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES, tree_flatten, tree_unflatten

from zo.errors import ObjectiveError

# Any nesting of tuples, lists, dicts, dataclasses and the like of tensors with their rows first.
Batch: TypeAlias = Any
Leaf = TypeVar("Leaf")
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


def map_tensors(
    function: Callable[[Any], Any],
    batch: Batch,
    kind: type | tuple[type, ...] = Tensor,
) -> Batch:
    """Replace each tensor of a nesting (or what else is of the kind) by what a function makes of it."""
    if isinstance(batch, kind):
        return function(batch)
    if isinstance(batch, dict | UserDict):  # the second as tokenizers give them
        mapped = copy.copy(batch)  # not made anew: a defaultdict wants its factory first
        for key, value in batch.items():
            mapped[key] = map_tensors(function, value, kind)
        return mapped
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value, kind) for value in batch))
    if isinstance(batch, tuple | list | UserList | deque):
        return type(batch)(map_tensors(function, value, kind) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = [field.name for field in dataclasses.fields(batch) if field.init]
        values = {name: map_tensors(function, getattr(batch, name), kind) for name in fields}
        return dataclasses.replace(batch, **values)
    if type(batch) in SUPPORTED_NODES:  # a class that is registered with torch, as a TensorDict is
        parts, form = tree_flatten(batch, is_leaf=lambda part: part is not batch)
        return tree_unflatten([map_tensors(function, part, kind) for part in parts], form)
    return batch


def leaves(nesting: Any, kind: type[Leaf]) -> Iterator[Leaf]:
    """All that is of a kind in a nesting, in order."""
    in_order: list[Leaf] = []

    def noted(leaf: Leaf) -> Leaf:
        in_order.append(leaf)
        return leaf

    map_tensors(noted, nesting, kind)
    yield from in_order


def tensors(batch: Batch) -> Iterator[Tensor]:
    """The tensors of a batch, in order."""
    return leaves(batch, Tensor)


class _Slot(int):
    """Place of a tensor in a nesting that was emptied of them."""


def emptied(nesting: Any, tensors: list[Tensor], taken: Callable[[Tensor], Tensor | None]) -> Any:
    """The nesting with a slot for each tensor that is taken; those go into the list, as taken."""

    def slot(tensor: Tensor) -> Any:
        leaf = taken(tensor)
        if leaf is None:
            return tensor
        tensors.append(leaf)
        return _Slot(len(tensors) - 1)

    return map_tensors(slot, nesting)


def filled(nesting: Any, tensors: list[Tensor]) -> Any:
    """The nesting with its slots filled again."""
    return map_tensors(lambda slot: tensors[slot], nesting, kind=_Slot)


def count_rows(batch: Batch) -> int:
    """The size of the tensors' common first axis.

    Raises:
        ObjectiveError: there is no tensor or a NumPy array, one has no shape, the first axes differ, or there
            are no rows.
    """
    arrays: list[str] = []
    map_tensors(lambda array: arrays.append(f"{array.dtype} of shape {array.shape}"), batch, kind=np.ndarray)
    if arrays:
        raise ObjectiveError(
            f"batch: expected torch tensors, got NumPy arrays ({', '.join(arrays[:3])}), whose rows would "
            "not be repeated for the variants. Convert them with torch.from_numpy."
        )
    if any(tensor.is_nested and tensor.layout is torch.strided for tensor in tensors(batch)):
        raise ObjectiveError(
            "batch: expected tensors with a shape, got a nested one of torch's older kind, which has none. "
            "Make it with layout=torch.jagged."
        )
    shapes = [tuple(tensor.shape) for tensor in tensors(batch)]
    if not shapes:
        got = "None" if batch is None else f"{type(batch).__name__}, in which none is found"
        raise ObjectiveError(
            f"batch: expected tensors that have their rows first, got {got}. Give a tensor, a tuple, list, "
            "dict or dataclass of them, or register the class with torch.utils._pytree.register_pytree_node."
        )
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ObjectiveError(
            f"batch: expected tensors that all have their rows first, got shapes {shapes}. "
            "Expand what is common to all rows, or keep it out of the batch."
        )
    if shapes[0][0] == 0:
        raise ObjectiveError(
            f"batch: expected at least one row, got shapes {shapes}. Leave out empty batches, such as the "
            "last of a loader."
        )
    return shapes[0][0]


def some_rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor at some places, `(n,)`, in that order; a sparse one keeps its layout.

    Raises:
        ObjectiveError: no rows can be taken of it, as of a jagged one.
    """
    rows = rows.to(tensor.device)
    _refuse_without_rows(tensor)
    if tensor.layout is torch.strided:
        return tensor[rows]
    return tensor.to_sparse_coo().index_select(0, rows).to_sparse(layout=tensor.layout)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several tensors of one layout, strided or sparse, one after another.

    Raises:
        ObjectiveError: they are of another layout, as jagged ones.
    """
    _refuse_without_rows(parts[0])
    if parts[0].layout is torch.strided:
        return torch.cat(list(parts))
    return torch.cat([part.to_sparse_coo() for part in parts]).to_sparse(layout=parts[0].layout)


def _refuse_without_rows(tensor: Tensor) -> None:
    if tensor.is_nested or tensor.layout not in (torch.strided, *_SPARSE):
        kind = "nested (jagged)" if tensor.is_nested else str(tensor.layout)
        raise ObjectiveError(
            "batch: expected tensors whose rows can be taken, for replays or in the place of failed ones, "
            f"got one that is {kind}. Pad it, as by torch.nested.to_padded_tensor, with its lengths "
            "beside it, or train without replays (Limits(replays=0))."
        )


def joined_batches(batches: Sequence[Batch]) -> Batch:
    """Rows of several batches, one after another; the first alone where others differ in more than rows."""
    first, *others = map(_form, batches)
    if any(other != first for other in others):
        return batches[0]
    parts = iter([joined(column) for column in zip(*map(tensors, batches), strict=True)])
    return map_tensors(lambda _: next(parts), batches[0])


def _form(batch: Batch) -> tuple[list[Any], str]:
    """Return shapes and types of a batch's rows, and the contents beside its tensors as text."""
    rows = [(tensor.shape[1:], tensor.dtype, tensor.layout) for tensor in tensors(batch)]
    return rows, beside_tensors(batch)


def beside_tensors(batch: Batch) -> str:
    """Return the contents of a batch beside its tensors, as text."""
    return repr(emptied(batch, [], lambda tensor: tensor))


def bytes_of(tensor: Tensor) -> int:
    """The bytes that a tensor's numbers take; of a sparse one those that it holds, with their places."""
    if tensor.layout not in _SPARSE:
        return tensor.numel() * tensor.element_size()
    dense = math.prod(tensor.shape[tensor.ndim - tensor.dense_dim() :])
    return tensor._nnz() * (dense * tensor.element_size() + 8 * tensor.sparse_dim())


def repeat(batch: Batch, variants: int) -> Batch:
    """The batch `variants` times over: `(rows, ...)` to `(variants * rows, ...)`, variants outermost."""
    return map_tensors(lambda tensor: tensor.repeat(variants, *[1] * (tensor.ndim - 1)), batch)


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor where it is needed, without the host waiting for the device.

    From memory that is not pinned a GPU is sent nothing before it has finished what it has to do.
    """
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, end to end: a NaN equals itself in them."""
    whole = tensor.detach().contiguous()
    # not by flatten: of a single number that was expanded the step is 0 as if it were contiguous
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8)


def memory_of(tensor: Tensor) -> int:
    """A number that all views of a tensor share; -1 for one without a memory of its own, as a sparse one."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:
        return -1
