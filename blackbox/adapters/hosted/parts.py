"""`HostParts`: a host as its boxes and its loop see it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from blackbox.adapters.hosted.call import Slot, VectorForm
from blackbox.adapters.hosted.programs import Place, Programs
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.group import BoxGroup
from blackbox.ledger import Ledger
from blackbox.notices import Notices
from blackbox.spec import ArraySpec


class HostParts(BoxGroup):
    """A host as its boxes and its loop see it; `Hosted` makes it.

    Attributes:
        form: the layout of its calls' arrays in a vector.
        slots: the arrays in a row's vector.
        state: the specs of the known arrays of a row between two calls.
        programs: the running programs.
        ledger: the rows of all boxes.
        failures: "raise" or "keep", as in `BlackBoxFunction`.
        start: the black box of the runs' first calls.
        exchanges: the black boxes of all calls and stages.
        boxes: the exchanges, and the black boxes of the ends of runs.
        notices: the notices given so far.
    """

    form: VectorForm
    slots: list[Slot]
    state: tuple[ArraySpec, ...]
    programs: Programs
    ledger: Ledger
    failures: Policy
    start: BlackBoxFunction
    exchanges: Sequence[Any]
    boxes: tuple[BlackBoxFunction, ...]
    notices: Notices

    @property
    @abstractmethod
    def identity(self) -> str:
        """The identity of the answers."""

    @abstractmethod
    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: programs are of this process."""

    @abstractmethod
    def state_of(self, place: Place) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the known arrays of a row at a place, in the order of `state`."""
