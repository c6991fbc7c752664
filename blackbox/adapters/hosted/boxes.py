"""The boxes of a `Hosted`: the start of runs, the step from an answer to the next call, and the end."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.hosted.program_call import ENDED, IDLE, Slot
from blackbox.adapters.hosted.programs import KEY, Place
from blackbox.errors import BlackBoxError, SessionError, TryAgain
from blackbox.failures import Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger
from blackbox.running import ends_early, failed_by, mark_non_finite, unanswered
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

    def __deepcopy__(self, copies: dict[int, Any]) -> Self:
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
    def identity(self) -> tuple[Any, ...]:
        """The identity of the answers: the host's settings, and which of its boxes this is."""
        return self.host.identity, repr(self)


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
        """A ledger of its own: a start is no row, unless it fails."""
        return self._ledger

    def _count_failed(self, run: Tensor, outcome: Outcome, inputs: tuple[Tensor, ...]) -> None:
        failed = len(outcome.failed)
        self.host.ledger.count(rows_asked=failed, rows_run=failed)
        self.host.ledger.count_failed(
            outcome.failed, lambda row: self._whereabouts(inputs, outcome, row, int(run[row]))
        )
        super()._count_failed(run, outcome, inputs)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All runs are started before the first is waited for."""
        with self.host.programs.turn():
            self.host.programs.begin(inputs[0].tolist())
            return super().run_rows(inputs)

    def evaluate(self, case: Array) -> tuple[Array, ...]:
        """Start one run."""
        return self.host.state_of(self.host.programs.first(int(case)))

    def __repr__(self) -> str:
        """Show the host of the starts."""
        return f"{self.host!r}.start"


class Exchange(HostBox):
    """The step that follows an answered call: the next call, of whatever name, or the end.

    Args:
        host: the host whose program asks.
        call: the name of the call.
        stage: its number among the call's stages.
    """

    def __init__(self, host: Hosted, call: str, stage: int) -> None:
        super().__init__(host)
        self.call_name, self.stage = call, stage
        form = host.form
        self.kind = form.kinds.index((call, stage))
        self.alike = form.calls[call].same
        single = len(form.kinds) == 1
        self.remembers = form.memory if single else 0  # models are shown it in another form
        self.earlier = form.earlier((call, stage))
        self.slots = [*form.seen[call], *form.remembered((call, stage))]
        prefix = f"{call}_" if len(form.calls) > 1 else ""
        self.given = tuple(replace(spec, name=prefix + spec.name) for spec in form.calls[call].given)
        remembered_names = {slot.name for slot in form.remembered()} if single else set[str]()
        seen_specs = [slot.named() for slot in self.slots]
        self.inputs = (
            *(
                replace(s, differentiable=False, modelled=False) if s.name in remembered_names else s
                for s in seen_specs
            ),
            *self.given,
            HISTORY,
        )
        copies, derivatives = form.handed_on(call), {spec.name: spec.differentiable for spec in self.inputs}
        self.outputs = tuple(
            # what is remembered is an input as it was; what this stage is not shown, the next is not either
            replace(spec, copy_of=copies[spec.name])
            if spec.name in copies
            and spec.name not in remembered_names
            and derivatives.get(copies[spec.name])
            else replace(spec, differentiable=spec.name not in copies and spec.differentiable)
            for spec in host.state
        )

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Rows after which something is asked."""
        return outputs[-2] >= 0

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """All programs are given their answers before the first is waited for.

        Raises:
            SessionError: the history of a row is not known, or its arrays were changed.
        """
        started = perf_counter()
        try:
            with self.host.programs.turn():
                return self._run(inputs)
        finally:
            self.ledger.count(seconds=perf_counter() - started)

    def _run(self, inputs: tuple[Tensor, ...]) -> Outcome:
        arrays = [array.cpu().numpy() for array in inputs]
        places = [self._place(history) for history in arrays[-1]]
        asking = {row: place for row, place in enumerate(places) if place and place.vector[0] == self.kind}
        self._refuse_changed(asking, arrays)
        numbers = self._numbers(arrays)
        self.host.programs.go_on([(place, numbers[row].copy()) for row, place in asking.items()])
        outcome, after = unanswered(self, inputs), dict[int, Place]()
        for row, place in enumerate(places):
            self.ledger.spend(1)
            try:
                if place is None:
                    raise RuntimeError("the row goes on from one that failed")
                if row in asking:
                    after[row] = self.host.programs.after(place, numbers[row].copy())
            except Exception as error:
                if isinstance(error, BlackBoxError) and not isinstance(error, TryAgain):
                    raise
                outcome.failed[row] = failed_by(self, error)
                if ends_early(self, outcome):
                    return outcome
        self.fill(outcome, inputs, after)
        return mark_non_finite(outcome)

    def fill(self, outcome: Outcome, inputs: tuple[Tensor, ...], after: dict[int, Place]) -> None:
        """Write the outputs after an answer; rows that wait for another call, or have ended, stay.

        Args:
            outcome: the outcome of all rows.
            inputs: the inputs of all rows.
            after: the places that answers have led to, by row.
        """
        *arrays, next_kinds, histories = outcome.outputs
        going = [row for row, place in after.items() if place.vector[0] != ENDED]
        still = [row for row in range(len(next_kinds)) if row not in going and row not in outcome.failed]
        inputs_by_name = {slot.name: array for slot, array in zip(self.slots, inputs, strict=False)}
        vectors = np.stack([after[row].vector for row in going]) if going else None
        for slot, whole in zip(self.host.slots, arrays, strict=True):
            if vectors is not None:
                whole[going] = torch.from_numpy(slot.of(vectors)).to(whole.device)
            if still:
                whole[still] = (
                    inputs_by_name[slot.name][still].to(whole.dtype) if slot.name in inputs_by_name else 0
                )
        if still:
            next_kinds[still], histories[still] = IDLE, inputs[-1][still]
        if after:
            keys = np.frombuffer(b"".join(place.key for place in after.values()), np.uint8).copy()
            next_kinds[[*after]] = torch.tensor([int(place.vector[0]) for place in after.values()]).to(
                next_kinds
            )
            histories[[*after]] = torch.from_numpy(keys.reshape(-1, KEY)).to(histories)

    def evaluate(self, *arrays: Array) -> tuple[Array, ...]:
        """Completes the class: a call ends in `run_rows`, and never reaches this."""
        raise NotImplementedError

    def _place(self, history: Array) -> Place | None:
        """Return the place of a row; None if it goes on from one that failed."""
        place = self.host.programs.find(history.tobytes())
        if place is None and history.any():
            raise SessionError(
                f"{self!r}, history: expected one of a run that is under way in this process, got another. "
                "Runs begin and end with host.run(cases, ...), in one process."
            )
        return place

    def _numbers(self, arrays: list[Array]) -> Array:
        """Return the given arrays, `(rows, numbers)`, one number behind the other, as programs get them."""
        arrays_given = arrays[len(self.slots) : -1]
        parts = [
            array.astype(spec.dtype or np.float64).astype(np.float64).reshape(len(array), -1)
            for spec, array in zip(self.given, arrays_given, strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def _refuse_changed(self, asking: dict[int, Place], arrays: list[Array]) -> None:
        """Refuse rows whose arrays are not what the program sent."""
        if not asking:
            return
        rows, sent = list(asking), np.stack([place.vector for place in asking.values()])
        for slot, array in zip(self.slots, arrays, strict=False):
            expected, came = slot.of(sent), array[rows]
            if _same(came, expected):
                continue
            changed = [place for row, place in asking.items() if not _same(array[row], slot.of(place.vector))]
            if not changed:  # some rows are rounded, and others are not
                continue
            place = changed[0]
            raise SessionError(
                f"{self!r}, {slot.name!r}: expected what the program sent, got something else in "
                f"case {place.case} after {place.count} calls. A program cannot be set to a state of "
                "one's choice: take zo.TangentGradient or zo.LossGradient, not differences at the "
                "box's inputs."
            )

    def __repr__(self) -> str:
        """Show the host and the call."""
        stage = f"[{self.stage}]" if self.host.form.calls[self.call_name].stages > 1 else ""
        return f"{self.host!r}.{self.call_name}{stage}"


class Ending(Exchange):
    """The results that a run has left at its end, where an answer to a call was the last.

    Rows that go on, or wait for another call, have zeros.
    """

    def __init__(self, host: Hosted, call: str, stage: int) -> None:
        super().__init__(host, call, stage)
        self.alike, self.remembers = None, 0
        self.outputs = (*(slot.spec for slot in host.form.outputs), ArraySpec("ended", (), "bool"))

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor:
        """Rows that have ended."""
        return outputs[-1].bool()

    def fill(self, outcome: Outcome, inputs: tuple[Tensor, ...], after: dict[int, Place]) -> None:
        """Write the outputs of runs that have ended."""
        *arrays, ended = outcome.outputs
        live_rows = [row for row in range(len(ended)) if row not in outcome.failed]
        for whole in arrays:
            whole[live_rows] = 0
        for row, place in after.items():
            ended[row] = over = int(place.vector[0]) == ENDED
            for slot, whole in zip(self.host.form.outputs, arrays, strict=True):
                if over:
                    whole[row] = torch.from_numpy(slot.of(place.vector)).to(whole.device)

    def __repr__(self) -> str:
        """Show the host and the call before the end."""
        return f"{super().__repr__()}.end"


def state(slots: list[Slot]) -> tuple[ArraySpec, ...]:
    """The specs of the known arrays of a row between two calls."""
    return (*(slot.named() for slot in slots), ASKED, HISTORY)


def state_of(slots: list[Slot], place: Place) -> tuple[Array, ...]:
    """Return the known arrays of a row at a place."""
    return (*(slot.of(place.vector) for slot in slots), np.asarray(int(place.vector[0])), _bytes(place))


def _bytes(place: Place) -> Array:
    return np.frombuffer(place.key, np.uint8).copy()


def _same(array: Array, sent: Array) -> bool:
    """Say whether an array equals the one sent, as it is or rounded to single precision."""
    if np.array_equal(array, sent):
        return True
    with np.errstate(over="ignore"):
        return array.dtype.kind == "f" and np.array_equal(array, sent.astype(np.float32))


def given_arrays(owner: str, specs: tuple[ArraySpec, ...], given: Any, rows: int) -> list[Tensor]:
    """Return a network's answer for a call, in the order of the specs.

    Raises:
        SessionError: number or shapes are others.
    """
    parts = tuple(given) if isinstance(given, tuple | list) else (given,)
    if isinstance(given, dict):
        parts = tuple(given.get(spec.name) for spec in specs)
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    shapes_wanted = [(rows, *spec.shape) for spec in specs]
    flat = [(rows,) if spec.shape == () else None for spec in specs]
    if shapes != shapes_wanted:
        # a last axis of one number is usual for a number
        if len(parts) == len(specs) and all(
            shape == want or (free is not None and shape == (rows, 1))
            for shape, want, free in zip(shapes, shapes_wanted, flat, strict=True)
        ):
            return [part.reshape(want) for part, want in zip(parts, shapes_wanted, strict=True)]
        names = ", ".join(f"{spec.name} {want}" for spec, want in zip(specs, shapes_wanted, strict=True))
        raise SessionError(
            f"{owner}: expected tensors {names} from the network, got {', '.join(map(str, shapes))}. Mend "
            "the network's last layer, or the Call."
        )
    return list(parts)


def filled(part: Tensor, rows: Tensor, count: int) -> Tensor:
    """Rows of a tensor among others, which are zero."""
    whole = part.new_zeros(count, *part.shape[1:])
    return whole.index_put((rows,), part)


def chosen(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new rows where the mask is, else the old ones."""
    return torch.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
