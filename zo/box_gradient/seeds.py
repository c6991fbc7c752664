"""Seeds by default: a number for each box of a process, in the order in which they are made."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch

from zo.draws import ROW_DIRECTIONS, Key

BY_ORDER = 1  # second word for seeds by default: seed=0 and the first box without a seed draw apart

_lock = threading.Lock()
_count = 0
_passes: dict[
    RowSeed, tuple[int, dict[int, weakref.ref[Any]]]
] = {}  # the last backward pass: who drew, by call


@dataclass(frozen=True)
class RowSeed:
    """The seed of a box's draws; the number of the call is its other part.

    Attributes:
        number: the user's seed, or the box's place in the order of making.
        by_order: whether it is the latter.
    """

    number: int
    by_order: bool = False

    @classmethod
    def of(cls, seed: int | None) -> RowSeed:
        """The user's seed; for None the next number of this process.

        Raises:
            ConfigurationError: it is no seed.
        """
        global _count
        if seed is not None:
            return cls(Key(seed).seed)
        with _lock:
            _count += 1
            return cls(_count - 1, by_order=True)

    def again(self) -> RowSeed:
        """The seed of a deep copy: the user's, or by default another number."""
        return RowSeed.of(None) if self.by_order else self

    def keep_free(self) -> RowSeed:
        """The same seed; no box that is made later takes its number, which came from elsewhere."""
        global _count
        if self.by_order:
            with _lock:
                _count = max(_count, self.number + 1)
        return self

    def generator(self, call: int) -> torch.Generator:
        """A generator for the directions of a call."""
        path = (ROW_DIRECTIONS, BY_ORDER) if self.by_order else (ROW_DIRECTIONS,)
        return Key(self.number, call).generator(*path)

    def shared(self, call: int, owner: object) -> bool:
        """Say whether another box has drawn the same in this backward pass, and note this box's draw."""
        task = torch._C._current_graph_task_id()
        if task < 0:  # of no backward pass
            return False
        with _lock:
            last, draws = _passes.get(self, (task, {}))
            _passes[self] = (task, draws if last == task else {})
            first = _passes[self][1].setdefault(call, weakref.ref(owner))()
        return first is not None and first is not owner

    def words(self) -> str:
        """The seed as the user gave it, in words."""
        return "None" if self.by_order else str(self.number)
