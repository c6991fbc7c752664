"""Memory that an evaluation takes while it runs, from which the number of queries in a chunk follows."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zo.batches import memory_of
from zo.evaluators.operations import Operations
from zo.objective import uncompiled


class MemoryPeak(Operations):
    """Counts bytes of the tensors that are made inside the block and live at the same time.

    The same numbers on every machine, since what an allocator does is not asked. What code outside of
    torch takes, or a kernel for itself, is not seen.

    Attributes:
        peak: most bytes alive at once so far, those not counted that are still alive at the end of the
            block: they were made to stay, as what a box builds at its first call.
        narrow: whether there are floats of 16 bits or less among them.
        written: memories (see `memory_of`) that operations wrote to, in whatever way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._now = 0
        self._most = 0
        self.narrow = False
        self.written: set[int] = set()

    @property
    def peak(self) -> int:
        """The most bytes alive at once so far, see the class."""
        return self._most - self._now

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Count what the operation made."""
        args, named = arguments
        if operation._schema.is_mutable:  # what it writes to stands first, or is `out`
            targets = tree_leaves((args[:1], named.get("out")))
            self.written |= {memory_of(tensor) for tensor in targets if isinstance(tensor, Tensor)}
        keys = {_key(tensor) for tensor in tree_leaves(arguments) if _is_real(tensor)}
        for tensor in tree_leaves(result):
            # A view of what was there before, such as a transposed weight, takes nothing.
            if _is_real(tensor) and _key(tensor) not in keys:
                self._add(tensor)
                self.narrow |= is_narrow(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._alive:
            return
        size = storage.nbytes()

        def gone(_: object) -> None:
            self._now -= self._alive.pop(key)[1]

        self._alive[key] = weakref.ref(storage, gone), size
        self._now += size
        self._most = max(self._most, self._now)


@contextmanager
def measured(wanted: bool) -> Iterator[MemoryPeak]:
    """A block whose peak is counted, if it is wanted; else the peak is 0."""
    peak = MemoryPeak()
    if not wanted:
        yield peak
        return
    with uncompiled(), peak:
        yield peak


def is_narrow(tensor: Tensor) -> bool:
    """Say whether it holds floats of 16 bits or less."""
    return tensor.is_floating_point() and tensor.element_size() < 4


def _is_real(value: Any) -> bool:
    return type(value) is Tensor and value.device.type != "meta" and value.layout is torch.strided


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
