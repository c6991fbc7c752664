"""The rows of one run of a hosted program, from call to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blackbox.adapters.hosted.boxes import chosen, filled, given_arrays
from blackbox.adapters.hosted.program_call import ENDED
from blackbox.adapters.hosted.record import HostedRun, Rounds, lost_rows
from blackbox.errors import SessionError
from blackbox.failures import FailedRow, last_cause
from blackbox.words import counted

if TYPE_CHECKING:
    from blackbox.adapters.hosted.hosted import Hosted

LONG = 10_000  # calls of a run that nothing bounds, at which it is said that it goes on


class Loop:
    """The rows of one call of `Hosted.run`, from call to call."""

    def __init__(
        self,
        host: Hosted,
        cases: Tensor,
        dtype: torch.dtype,
        networks: Mapping[str, Callable[..., Any]],
        causes: Sequence[FailedRow],
    ) -> None:
        self._host, self._networks, self._rows, self._cases = host, networks, len(cases), cases.tolist()
        self._causes = causes  # why rows fail, which come in meanwhile
        try:  # not a call that gradients see: it depends on cases alone
            *arrays, self._next_kinds, self._history = host.start.call(cases)
        except BaseException:
            host.programs.release(self._cases)
            raise
        self._state = {
            spec.name: array.to(dtype) if spec.dtype is None else array
            for spec, array in zip(host.state, arrays, strict=False)
        }
        self._records = {
            name: Rounds([s.name for s in call.seen], [s.name for s in call.given])
            for name, call in host.form.calls.items()
        }
        self._bounded = False
        self._ended = torch.zeros(self._rows, dtype=torch.bool, device=cases.device)
        self._answers = torch.zeros(self._rows, dtype=torch.int64, device=cases.device)  # to each row
        like = next((array for array in self._state.values() if array.is_floating_point()), torch.empty(0))
        self._outputs = {
            slot.name: torch.zeros(
                self._rows, *slot.spec.shape, dtype=slot.spec.torch_dtype or like.dtype, device=cases.device
            )
            for slot in host.form.outputs
        }

    def run(self, calls: int | None) -> HostedRun:
        """Answer what the programs ask until all have ended, or `calls` times."""
        self._bounded, calls_answered = calls is not None, 0
        try:
            while bool(self._going().any()) and (calls is None or calls_answered < calls):
                next_kinds = self._next_kinds
                for kind in self._waiting(next_kinds):
                    self._answer(kind, next_kinds)
                calls_answered += 1
                if calls is None and calls_answered == LONG:
                    self._host.notices.once(
                        "long",
                        f"{self._host!r}: a run has called {calls_answered:,} times and goes on, since "
                        "run(...) bounds it by no calls=. If the program chooses its own steps, what a "
                        "gradient adds to its inputs to learn from them is noise to its error control, which "
                        "may never end: hold an answer over an interval of its own, take fixed steps, or "
                        "run(..., calls=). Without what is added (Limits(excite=0)) nothing shows the "
                        "derivative.",
                    )
            for kind in self._waiting(self._next_kinds):
                name = self._host.form.kinds[kind][0]
                self._see(name, self._mask(kind, self._next_kinds))
        finally:
            self._host.programs.release(self._cases)
        if calls is not None:
            self._tell_early(calls)
        failed, nowhere = self._failed(), (self._history == 0).all(dim=1)
        count, reasons = int(failed.sum()), dict[str, str]()
        whole_rounds = {name: rounds for name, rounds in self._records.items() if rounds.masks}
        if count:
            # entries up to the last failure only would be taken for whole
            whole_rounds = {} if count == self._rows else whole_rounds
            reasons = {name: self._why(name, count) for name in self._records if name not in whole_rounds}
            self._outputs = {name: lost_rows(failed, array) for name, array in self._outputs.items()}
        records = {name: rounds.record(failed) for name, rounds in whole_rounds.items()}
        going = int((self._ended | nowhere).logical_not().sum())
        return HostedRun(records, self._outputs, self._ended, reasons, self._zeros_notice(going))

    def _zeros_notice(self, going: int) -> Callable[[], None] | None:
        """Make the warning, said once where results are asked for, that runs ended before they sent any.

        It holds no program, so that the record can be pickled.
        """
        if not going or not self._outputs:
            return None
        return partial(
            self._host.notices.once,
            "zeros",
            f"{self._host!r}.run: expected runs that go on to their own end, where they send "
            f"{', '.join(self._outputs)}, got {going:,} of {counted(self._rows, 'run')} ended by calls=: "
            "their outputs are zeros. Give more calls=, or none; or leave such rows out by run.ended.",
        )

    def _tell_early(self, calls: int) -> None:
        """Say once that runs ended before others did: what lies behind their ends was not sent."""
        early = self._ended & ((self._answers < calls) | self._going().any())
        if not bool(early.any()):
            return
        counts = self._answers[early]
        least, most = int(counts.min()), int(counts.max())
        call_counts = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        self._host.notices.once(
            "early",
            f"{self._host!r}.run: expected runs that all go on for calls={calls}, got "
            f"{int(early.sum()):,} of {counted(self._rows, 'run')} that ended by themselves, without an "
            f"error, after {call_counts} calls. What lies behind a run's end is zeros, or missing where no "
            f"run goes on. Leave it out of the loss by run.{next(iter(self._records))}.mask, (rows, "
            "entries); run.ended says which runs have ended. Or let a program that gives up exit with "
            "another status than 0, as stop 1 and error stop do in Fortran: then its row fails. This is said "
            "once.",
        )

    def _why(self, call: str, failed: int) -> str:
        """Why there are no arrays of a call, where rows failed."""
        cause = last_cause()
        if self._causes:
            cause = f" The first cause: {self._causes[0].sentence_with_inputs().rstrip('.')}."
        return (
            f"{self._host!r}.run: expected a row that shows how long the arrays of {call!r} are, got none: "
            f"{failed} of {counted(self._rows, 'row')} failed.{cause} Mend the program, or what it is given; "
            "in a loop of your own go on with the next batch."
        )

    def _going(self) -> Tensor:
        """Say which rows wait for an answer."""
        going = (self._next_kinds >= 0) & self._failed().logical_not()
        if not self._bounded and bool((going & (self._history == 0).all(dim=1)).any()):
            raise SessionError(  # no program has answered: it is a rehearsal
                f"{self._host!r}.run: expected calls=, by which it is known beforehand how often a run asks, "
                "got none. Write run(..., calls=) to know it."
            )
        return going

    def _failed(self) -> Tensor:
        """Say which rows have failed: without a place, and with NaN alone in each array of floats."""
        nowhere = (self._history == 0).all(dim=1)
        if not bool(nowhere.any()):  # as usual: then arrays, which may be large, are not looked at
            return nowhere
        nothing = torch.zeros(self._rows, dtype=torch.bool, device=self._history.device)
        for array in self._state.values():
            if array.is_floating_point():
                nothing = nothing | array.reshape(self._rows, -1).isnan().all(dim=1)
        return nothing & nowhere

    def _waiting(self, asked: Tensor) -> list[int]:
        """Return the calls and stages that some rows wait for."""
        return sorted(set(asked[self._going()].tolist()))

    def _mask(self, kind: int, asked: Tensor) -> Tensor:
        return (asked == kind) & self._going()

    def _see(self, name: str, mask: Tensor) -> list[Tensor]:
        form, rounds = self._host.form, self._records[name]
        arrays = [self._state[slot.name] for slot in form.seen[name]]
        rounds.masks.append(mask | self._failed())
        for record, array in zip(rounds.seen.values(), arrays, strict=True):
            record.append(array)
        return arrays

    def _answer(self, kind: int, asked: Tensor) -> None:
        host = self._host
        name, _ = host.form.kinds[kind]
        box, mask = host.exchanges[kind], self._mask(kind, asked)
        everywhere, places = bool(mask.all()), mask.nonzero().flatten()
        arrays_seen = self._see(name, mask)
        rows_seen = arrays_seen if everywhere else [array[places] for array in arrays_seen]
        answer = given_arrays(repr(box), box.given, self._networks[name](*rows_seen), len(places))
        if not everywhere:
            answer = [filled(part, places, self._rows) for part in answer]
        for record, array in zip(self._records[name].given.values(), answer, strict=True):
            record.append(array)
        row = (*(self._state[slot.name] for slot in box.slots), *answer, self._history)
        *arrays, kinds_after, history = host.boxes[kind](*row)
        ends = mask & (kinds_after == ENDED)
        if host.form.outputs and bool(ends.any()):
            self._end(kind, row, ends)
        self._ended, self._answers = self._ended | ends, self._answers + mask
        names = [spec.name for spec in host.state]
        for array_name, array in zip(names, arrays, strict=False):
            old = self._state[array_name]
            self._state[array_name] = array if everywhere else chosen(mask, array, old)
        self._next_kinds = kinds_after if everywhere else torch.where(mask, kinds_after, self._next_kinds)
        self._history = history if everywhere else chosen(mask, history, self._history)

    def _end(self, kind: int, row: tuple[Tensor, ...], ends: Tensor) -> None:
        *arrays, _ = self._host.boxes[len(self._host.exchanges) + kind](*row)
        for slot, array in zip(self._host.form.outputs, arrays, strict=True):
            self._outputs[slot.name] = chosen(ends, array, self._outputs[slot.name])
