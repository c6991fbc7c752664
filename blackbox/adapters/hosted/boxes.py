"""The boxes of a `Hosted`: where runs begin, what follows an answer, what a run leaves at its end."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.hosted.call import ENDED, IDLE, Slot
from blackbox.adapters.hosted.programs import KEY, Place
from blackbox.errors import SessionError
from blackbox.failures import Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger
from blackbox.spec import ArraySpec

if TYPE_CHECKING:
    from blackbox.adapters.hosted.hosted import Hosted

Array = np.ndarray[Any, Any]
HISTORY = ArraySpec("history", (KEY,), "uint8", differentiable=False, modelled=False)
ASKED = ArraySpec("asked", (), "int64", differentiable=False, modelled=False)


class HostBox(BlackBoxFunction, abstract=True):
    """A box of a host: rows are of its programs, and go on from one another."""

    settable = False
    of_process = True

    def __init__(self, host: Hosted) -> None:
        self.host = host

    @property
    def failures(self) -> Policy:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The policy for failed rows, which is the host's."""
        return self.host.failures

    @failures.setter
    def failures(self, policy: Policy) -> None:
        self.host.failures = policy

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The box itself: its rows are of running programs."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled, as the host does."""
        return self.host.__reduce__()

    @property
    def ledger(self) -> Ledger:
        """One for all boxes of the host."""
        return self.host.ledger

    @property
    def identity(self) -> str:
        """A cache's key for this box: the host's settings."""
        return f"{self.host.identity}, {self!r}"


class HostStart(HostBox):
    """Cases to the first calls of their runs."""

    inputs = (ArraySpec("case", (), "int64"),)

    def __init__(self, host: Hosted) -> None:
        super().__init__(host)
        # floats are rounded where they are used, not here
        self.outputs = tuple(
            replace(spec, dtype="float64") if spec.dtype is None else spec for spec in host.state
        )

    @property
    def ledger(self) -> Ledger:
        """Of its own: a start is no row."""
        return self._ledger

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All runs are started before the first is waited for."""
        with self.host.programs.turn():
            self.host.programs.begin(inputs[0].tolist())
            return super().run_rows(inputs)

    def evaluate(self, case: Array) -> tuple[Array, ...]:
        """Start one run."""
        return self.host.state_of(self.host.programs.first(int(case)))

    def __repr__(self) -> str:
        """Whose starts."""
        return f"{self.host!r}.start"


class Exchange(HostBox):
    """What follows when a call is answered: the next call, of whatever name, or the end.

    Args:
        host: whose program asks.
        call: the name of the call.
        stage: its number among the call's stages.
    """

    def __init__(self, host: Hosted, call: str, stage: int) -> None:
        super().__init__(host)
        self.call_name, self.stage = call, stage
        form = host.form
        self.kind = form.kinds.index((call, stage))
        self.slots = [*form.seen[call], *form.remembered()]
        prefix = f"{call}_" if len(form.calls) > 1 else ""
        self.given = tuple(replace(spec, name=prefix + spec.name) for spec in form.calls[call].given)
        self.inputs = (*(slot.named() for slot in self.slots), *self.given, HISTORY)
        self.outputs = host.state

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Rows after which something is asked."""
        return outputs[-2] >= 0

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All programs are given their answers before the first is waited for."""
        with self.host.programs.turn():
            moves = []
            for row in range(len(inputs[0])):
                place = self.place(inputs[-1][row].cpu().numpy())
                if place is not None and int(place.vector[0]) == self.kind:
                    moves.append((place, self.numbers([array[row].cpu().numpy() for array in inputs])))
            self.host.programs.go_on(moves)
            return super().run_rows(inputs)

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """Answer one call."""
        place = self.checked(arrays)
        if int(place.vector[0]) != self.kind:
            return self.idle(arrays)
        after = self.host.programs.after(place, self.numbers(arrays))
        if int(after.vector[0]) == ENDED:
            return (*self.idle(arrays)[:-2], np.asarray(ENDED), _bytes(after))
        return self.host.state_of(after)

    def place(self, history: Array) -> Place | None:
        """Where a row is; None if it is not known."""
        return self.host.programs.find(history.tobytes())

    def numbers(self, arrays: tuple[Array, ...] | list[Array]) -> Array:
        """What is given, one number behind the other, as the program gets it."""
        given = arrays[len(self.slots) : -1]
        parts = [
            np.asarray(array).astype(spec.dtype or np.float64).astype(np.float64).ravel()
            for spec, array in zip(self.given, given, strict=True)
        ]
        return np.concatenate(parts)

    def checked(self, arrays: tuple[Array, ...]) -> Place:
        """Where a row is, whose arrays are what the program sent there.

        Raises:
            RuntimeError: the row goes on from one that failed.
            SessionError: the history is not known, or the arrays were changed.
        """
        if not arrays[-1].any():
            raise RuntimeError("the row goes on from one that failed")
        place = self.place(arrays[-1])
        if place is None:
            raise SessionError(
                f"{self!r}, history: expected one of a run that is under way in this process, got another. "
                "Runs begin and end with host.run(cases, ...), in one process."
            )
        if int(place.vector[0]) == self.kind:
            for slot, array in zip(self.slots, arrays, strict=False):
                if not _same(array, slot.of(place.vector)):
                    raise SessionError(
                        f"{self!r}, {slot.name!r}: expected what the program sent, got something else in "
                        f"case {place.case} after {place.count} calls. A program cannot be set to a state of "
                        "one's choice: take zo.TangentGradient or zo.LossGradient, not differences at the "
                        "box's inputs."
                    )
        return place

    def idle(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        """A row as it is, which waits for another call or has ended."""
        known = {slot.name: array for slot, array in zip(self.slots, arrays, strict=False)}
        rest = [
            known[spec.name] if spec.name in known else np.zeros(spec.shape, spec.dtype or np.float64)
            for spec in self.outputs[:-2]
        ]
        return (*rest, np.asarray(IDLE), arrays[-1])

    def __repr__(self) -> str:
        """Whose call."""
        stage = f"[{self.stage}]" if self.host.form.calls[self.call_name].stages > 1 else ""
        return f"{self.host!r}.{self.call_name}{stage}"


class Ending(Exchange):
    """What a run has left at its end, where an answer to a call was the last.

    Rows that go on, or wait for another call, have zeros.
    """

    def __init__(self, host: Hosted, call: str, stage: int) -> None:
        super().__init__(host, call, stage)
        self.outputs = (*(slot.spec for slot in host.form.outputs), ArraySpec("ended", (), "bool"))

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Rows that have ended."""
        return outputs[-1].bool()

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """The outputs of one run."""
        place = self.checked(arrays)
        slots = self.host.form.outputs
        if int(place.vector[0]) == self.kind:
            after = self.host.programs.after(place, self.numbers(arrays))
            if int(after.vector[0]) == ENDED:
                return (*(slot.of(after.vector) for slot in slots), np.asarray(True))
        return (*(np.zeros(s.spec.shape, s.spec.dtype or np.float64) for s in slots), np.asarray(False))

    def __repr__(self) -> str:
        """Whose end."""
        return f"{super().__repr__()}.end"


def state(slots: list[Slot]) -> tuple[ArraySpec, ...]:
    """The specs of what is known of a row between two calls."""
    return (*(slot.named() for slot in slots), ASKED, HISTORY)


def state_of(slots: list[Slot], place: Place) -> tuple[Array, ...]:
    """What is known of a row at a place."""
    return (*(slot.of(place.vector) for slot in slots), np.asarray(int(place.vector[0])), _bytes(place))


def _bytes(place: Place) -> Array:
    return np.frombuffer(place.key, np.uint8).copy()


def _same(array: Array, sent: Array) -> bool:
    """Whether an array is what was sent, as it is or rounded to single precision."""
    if np.array_equal(array, sent):
        return True
    with np.errstate(over="ignore"):
        return array.dtype.kind == "f" and np.array_equal(array, sent.astype(np.float32))


def given_arrays(owner: str, specs: tuple[ArraySpec, ...], given: Any, rows: int) -> list[Tensor]:
    """What a network gave for a call, in the order of the specs.

    Raises:
        SessionError: number or shapes are others.
    """
    parts = tuple(given) if isinstance(given, tuple | list) else (given,)
    if isinstance(given, dict):
        parts = tuple(given.get(spec.name) for spec in specs)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    wanted = [(rows, *spec.shape) for spec in specs]
    flat = [(rows,) if spec.shape == () else None for spec in specs]
    if shapes != wanted:
        # a last axis of one number is usual for a number
        if len(parts) == len(specs) and all(
            shape == want or (free is not None and shape == (rows, 1))
            for shape, want, free in zip(shapes, wanted, flat, strict=True)
        ):
            return [part.reshape(want) for part, want in zip(parts, wanted, strict=True)]
        names = ", ".join(f"{spec.name} {want}" for spec, want in zip(specs, wanted, strict=True))
        raise SessionError(
            f"{owner}: expected tensors {names} from the network, got {', '.join(map(str, shapes))}. Mend "
            "the network's last layer, or the Call."
        )
    return list(parts)


def numbers_in(specs: tuple[ArraySpec, ...]) -> int:
    """How many numbers arrays have together."""
    return sum(math.prod(spec.shape) for spec in specs)


def filled(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """Rows of a tensor among others, which are zero."""
    whole = part.new_zeros(count, *part.shape[1:])
    return whole.index_put((rows,), part)


def chosen(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows where the mask is, else the old ones."""
    return torch.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
