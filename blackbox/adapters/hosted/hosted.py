"""`Hosted`: a program that calls the network from inside of its own loop, as black boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.command import files
from blackbox.adapters.command.box import command_of
from blackbox.adapters.command.files import array_files_of, checked_name, content, existing
from blackbox.adapters.command.templates import Template, templates_of
from blackbox.adapters.hosted import boxes as hosted_boxes
from blackbox.adapters.hosted.boxes import (
    Ending,
    Exchange,
    HostStart,
    chosen,
    filled,
    given_arrays,
    numbers_in,
)
from blackbox.adapters.hosted.call import ENDED, Call, VectorForm
from blackbox.adapters.hosted.client.bb_host import Host
from blackbox.adapters.hosted.in_thread import InThread, name_of
from blackbox.adapters.hosted.program import Program, Start
from blackbox.adapters.hosted.programs import HostCounts, Place, Programs
from blackbox.checks import check_choice, check_count, check_positive
from blackbox.errors import ConfigurationError, DtypeError, InputError, NoRowLeftError
from blackbox.failures import POLICIES, FailedRow, Policy, last_cause, noted
from blackbox.function import BlackBoxFunction
from blackbox.group import BoxGroup
from blackbox.ledger import Ledger
from blackbox.notices import warn
from blackbox.outside import plain
from blackbox.spec import ArraySpec, check_specs
from blackbox.words import counted
from blackbox.wrappers.described import described

Array = np.ndarray[Any, Any]
PathLike = os.PathLike[str]
CASE = ArraySpec("case", (), "int64")
LONG = 10_000  # calls of a run that nothing bounds, at which it is said that it goes on


class Hosted(BoxGroup):
    """A program, in any language, that runs its own time loop and calls the network inside of it.

        host = Hosted(
            ["./ocean", "{case}"],
            calls=[Call("closure", sees=ArraySpec("q", (64, 64)), gives=ArraySpec("tendency", (64, 64)))],
        )

        def objective(network, batch):
            cases, truth = batch
            run = host.run(cases, calls=16, closure=network)
            return (run.closure.q[:, 1:] - truth).square().mean(dim=(1, 2, 3))

        gradient = zo.TangentGradient(network, objective, boxes=host.boxes, seed=0)

    In the program, a line stands where the closure is computed: `bb_exchange("closure", ...)` of bb_host, for
    C, C++, Fortran and Python (`blackbox host DIR` writes the files). A row is one answer: what the program
    saw and was given, to what it sees at its next call. `run` starts a process for each row of a batch, in a
    folder of its own; they go on side by side, and all rows of a call are answered by one forward of the
    network. Tangents learn what an answer does from what training runs anyway.

    A program has to do the same whenever it runs a case and gets the same answers. It is not asked to be
    able to stop, go back, or save its state: a row that is asked again is answered from memory, or by a run
    that is started once more.

    A program that crashes, ends with another status than 0, hangs, or sends NaN or an array of another shape
    fails its row, with its last lines in the message. Its processes are ended with it, and all are when this
    process dies. Under "keep" the row's arrays are NaN from there on. Where all rows of a run fail, nothing
    says how long they are, and what asks for a call's arrays gets a `NoRowLeftError` with the first row's
    last lines: for gradients of `zo`, and in runs, all rows of the batch have failed then.

    Args:
        arguments: the program and its arguments, as for `CommandLine`; `{case}` is the number of the row's
            case.
        calls: what the program calls, see `Call`.
        outputs: the specs of what a run has at its end: sent by `bb_output`, or read from files.
        output_files: the files from which outputs are read, as for `CommandLine`.
        output_templates: the texts from which they are read, as for `CommandLine`.
        copies: files or folders that the program needs in its folder, by their name there.
        prepare: `prepare(case, folder)` puts what a case needs into the folder of its run.
        timeout: the seconds that a program may take between two calls; None for any time.
        environment: variables of the program, in addition to those of this process.
        live: the most programs that run at a time. As many as there are rows in a batch, or some have to be
            started again from the beginning.
        scratch: the folder in which runs' folders are created; None for the system's temporary folder.
        keep_failed: True to keep the folder of a failed run; the message names it.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Attributes:
        boxes: the black boxes that gradients go through: one for each call and stage, and as many for the
            ends of runs if there are outputs. `TangentGradient` takes the host itself in their place.
        start: the black box of the runs' first calls.
        counts: what the programs did, see `HostCounts`.
        ledger: the rows of all boxes.
        said_early: whether it was said that runs ended before the calls that were asked for.
        said_long: whether it was said that a run has called very often.

    Raises:
        ConfigurationError: a program or path does not exist, a name occurs twice, or a number is out of
            range.
        DefinitionError: the specs make no sense.
    """

    def __init__(
        self,
        arguments: Sequence[str | PathLike] | Callable[[int, Host], object],
        *,
        calls: Sequence[Call],
        outputs: Sequence[ArraySpec] = (),
        output_files: Mapping[str, Any] | None = None,
        output_templates: Mapping[str, str | PathLike] | None = None,
        copies: Mapping[str, str | PathLike] | None = None,
        prepare: Callable[[int, Path], object] | None = None,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        live: int = 256,
        scratch: str | PathLike | None = None,
        keep_failed: bool = False,
        failures: Policy = "raise",
    ) -> None:
        """Check everything that can be checked before a run."""
        if os.name != "posix":
            raise ConfigurationError("Hosted: expected a POSIX system (Linux, macOS), got another one.")
        check_count("Hosted", "live", live)
        if timeout is not None:
            check_positive("Hosted", "timeout", timeout)
        check_choice("Hosted", "failures", failures, POLICIES)
        self.calls, self.live, self.timeout = tuple(calls), live, timeout
        self.failures: Policy = failures
        _check_calls(self.calls)
        outputs = tuple(outputs)
        if outputs:
            check_specs("Hosted", "outputs", outputs)
        self.form = VectorForm(self.calls, outputs)
        self.environment, self.prepare, self.keep_failed = dict(environment or {}), prepare, keep_failed
        self.scratch = None if scratch is None else existing("Hosted, scratch", scratch)
        path = (os.environ | self.environment).get("PATH")
        self._function = arguments if callable(arguments) else None
        if self._function is not None and (output_files or output_templates or copies or prepare):
            raise ConfigurationError(
                "Hosted: expected no output_files, output_templates, copies or prepare with a Python "
                "function, which runs in no folder, got some. Let the function do what they do; results go "
                "by host.output(name, values)."
            )
        self._command = [] if callable(arguments) else command_of(arguments, (CASE,), path)
        self._files = array_files_of("Hosted, output_files", output_files, outputs, read=True)
        self._templates = templates_of("Hosted, output_templates", output_templates, outputs)
        self._copies = {
            checked_name("Hosted, copies", name): existing(f"Hosted, copies, {name!r}", source)
            for name, source in (copies or {}).items()
        }
        self.slots = [slot for name in self.form.calls for slot in self.form.seen[name]]
        self.slots += self.form.remembered()
        self.state = hosted_boxes.state(self.slots)
        check_specs("Hosted", "arrays of the calls", self.state)
        self.programs = Programs(repr(self), self._started, live)
        self.ledger, self.said_early, self.said_long = Ledger(), False, False
        self.start = HostStart(self)
        self.exchanges = [Exchange(self, *kind) for kind in self.form.kinds]
        endings = [Ending(self, *kind) for kind in self.form.kinds] if outputs else []
        self.boxes: tuple[BlackBoxFunction, ...] = (*self.exchanges, *endings)

    @property
    def named_boxes(self) -> dict[str, BlackBoxFunction]:
        """The boxes by name: "closure", and "closure_end" for the ends of runs; "closure_2" is a stage."""
        names = [
            f"{name}_{stage + 1}" if self.form.calls[name].stages > 1 else name
            for name, stage in self.form.kinds
        ]
        ends = [f"{name}_end" for name in names]
        return dict(zip([*names, *ends], self.boxes, strict=False))

    def wrapped(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> Hosted:
        """The same host, whose runs go through wrappers around its boxes."""
        other: Hosted = object.__new__(type(self))  # copy.copy would ask for what pickle does: it is refused
        vars(other).update(vars(self))
        other.boxes = tuple(wrap(box) for box in self.boxes)
        return other

    @property
    def counts(self) -> HostCounts:
        """What the programs did: runs, answers, replays."""
        return self.programs.counts

    def run(
        self,
        cases: Any,
        calls: int | None = None,
        dtype: torch.dtype | None = None,
        **networks: Callable[..., Any],
    ) -> HostedRun:
        """Run the program for some cases, all side by side, with networks that answer its calls.

        Args:
            cases: whole numbers `(rows,)`, a tensor, an array or a list: what `{case}` and `prepare` get.
            calls: how many answers a run gets at most; then it is ended. None to let it run to its end.
            dtype: of arrays whose spec leaves it open; None for torch's default.
            **networks: what answers each call, by its name: a function of the arrays that it sees, tensors
                `(rows, *shape)`, that gives a tensor, a tuple or a dictionary of those that it gives.

        Raises:
            ConfigurationError: a call has no network, or a network no call.
            DtypeError: the cases are no whole numbers.
            RowFailedError: under "raise", a run failed. Under "keep" none is raised here: see `HostedRun`.
        """
        if sorted(networks) != sorted(self.form.calls):
            raise ConfigurationError(
                f"{self!r}.run: expected a network for each of the calls {', '.join(self.form.calls)}, got "
                f"{', '.join(networks) or 'none'}. Write {next(iter(self.form.calls))}=network."
            )
        if calls is not None:
            check_count(f"{self!r}.run", "calls", calls)
        whole = cases if isinstance(cases, Tensor) else torch.as_tensor(plain(cases))
        if whole.is_floating_point() or whole.is_complex() or whole.dtype is torch.bool:
            raise DtypeError(
                f"{self!r}.run, cases: expected whole numbers, got {str(whole.dtype)[6:]}. Convert them: "
                "cases.long()."
            )
        if whole.ndim != 1:
            raise InputError(
                f"{self!r}.run, cases: expected (rows,), got {tuple(whole.shape)}. Flatten them."
            )
        with noted() as causes:
            return _Way(self, whole.long(), dtype or torch.get_default_dtype(), networks, causes).run(calls)

    def state_of(self, place: Place) -> tuple[Array, ...]:
        """What is known of a row at a place, in the order of `state`."""
        return hosted_boxes.state_of(self.slots, place)

    def close(self) -> None:
        """End all programs; the next run starts new ones."""
        self.programs.close()

    @property
    def identity(self) -> str:
        """What the answers depend on: settings, and contents of the program and of copies."""
        command = [part.text if isinstance(part, Template) else str(part) for part in self._command]
        programs = [content(part) for part in self._command if isinstance(part, Path)]
        programs += [described("the host's function", self._function)] if self._function is not None else []
        copies = [(name, content(path)) for name, path in sorted(self._copies.items())]
        texts = {name: template.text for name, template in self._templates.items()}
        return repr(
            (command, programs, copies, texts, self._files, self.calls, sorted(self.environment.items()))
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Hosted:
        """The host itself: its programs are processes, of which there is no copy."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse to be pickled: programs are of this process.

        Raises:
            ConfigurationError: always.
        """
        raise ConfigurationError(
            f"{self!r}: expected to stay in the process that runs its programs, was to be pickled for "
            "another. Programs run side by side as they are; make a Hosted in each process, not a Parallel "
            "around it."
        )

    def __repr__(self) -> str:
        """Named after the program."""
        if self._function is not None:
            return f"Hosted({name_of(self._function)!r})"
        return f"Hosted({Path(str(self._command[0])).name!r})"

    def _started(self, case: int) -> Program:
        if self._function is not None:
            return self._program(Start([], {}, kind=partial(InThread, self._function, case)))
        values = {"case": np.asarray(case)}
        arguments = [part.fill(values) if isinstance(part, Template) else str(part) for part in self._command]

        def prepare(folder: Path) -> None:
            for name, source in self._copies.items():
                files.copy_into(folder, name, source)
            for name in [*(file.file for file in self._files), *self._templates]:
                (folder / name).unlink(missing_ok=True)  # an old answer must not pass for a new one
            if self.prepare is not None:
                self.prepare(case, folder)

        return self._program(Start(arguments, {**os.environ, **self.environment}, prepare, self._results))

    def _program(self, start: Start) -> Program:
        most = max(numbers_in(specs) for call in self.calls for specs in (call.seen, call.given))
        return Program(self.form, start, self.timeout, 8 * most, self.scratch, self.keep_failed)

    def _results(self, folder: Path) -> dict[str, Array]:
        results: dict[str, Array] = {}
        for file in self._files:
            results[file.spec.name] = files.read_file(folder, file, ())
        for name, template in self._templates.items():
            text = files.output(folder, name).read_text(encoding="utf-8", errors="replace")
            results |= {key: np.asarray(value) for key, value in template.find(text).items()}
        return results


class CallRecord:
    """What a call has seen and given in the rows of a run; its arrays are attributes, by their names.

    What is seen has an entry more than what is given where a run was ended while the call waited.

    Attributes:
        mask: which entries are of a row's run, `(rows, entries)` bool, of what is seen; the others are zeros.
            True to the end in a row that failed, whose arrays are NaN.
        seen_names: the names of the arrays that are seen.
    """

    def __init__(self, seen: dict[str, Tensor], given: dict[str, Tensor], mask: Tensor) -> None:
        self._arrays, self.mask, self.seen_names = {**seen, **given}, mask, tuple(seen)

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["_arrays"][name]
        except KeyError:
            raise AttributeError(f"expected one of {', '.join(self)}, or mask, got {name!r}") from None

    def __getitem__(self, name: str) -> Tensor:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__.get("_arrays", ()))


class HostedRun:
    """What the runs of some cases have shown; each call's `CallRecord` is an attribute, by its name.

    Where rows failed and none is left that shows how long a call's arrays are, to ask for them raises
    `NoRowLeftError`.

    Attributes:
        outputs: what runs have left at their ends by name, `(rows, *shape)`; zeros in rows that have not
            ended, NaN in those that failed.
        ended: which rows have come to their own end, `(rows,)` bool.
    """

    def __init__(
        self, records: dict[str, CallRecord], outputs: dict[str, Tensor], ended: Tensor, lost: dict[str, str]
    ) -> None:
        self._records, self.outputs, self.ended = records, outputs, ended
        self._lost = lost  # why calls have no record where rows failed, by their names

    def __getattr__(self, name: str) -> CallRecord:
        try:
            return self.__dict__["_records"][name]
        except KeyError:
            self._refuse_lost(name)
            known = ", ".join(self.__dict__.get("_records", ()))
            raise AttributeError(f"expected a call, one of {known}, outputs or ended, got {name!r}") from None

    def __getitem__(self, name: str) -> CallRecord:
        self._refuse_lost(name)
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        if not self._records:
            self._refuse_lost(next(iter(self._lost), ""))
        return iter(self._records)

    def _refuse_lost(self, name: str) -> None:
        lost = self.__dict__.get("_lost", {})
        if name in lost:
            raise NoRowLeftError(lost[name]) from None


class _Way:
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
            *arrays, self._asked, self._history = host.start.call(cases)
        except BaseException:
            host.programs.release(self._cases)
            raise
        self._state = {
            spec.name: array.to(dtype) if spec.dtype is None else array
            for spec, array in zip(host.state, arrays, strict=False)
        }
        self._records = {
            name: _Rounds([s.name for s in call.seen], [s.name for s in call.given])
            for name, call in host.form.calls.items()
        }
        self._bounded = False
        self._ended = torch.zeros(self._rows, dtype=torch.bool, device=cases.device)
        like = next((array for array in self._state.values() if array.is_floating_point()), torch.empty(0))
        self._outputs = {
            slot.name: torch.zeros(
                self._rows, *slot.spec.shape, dtype=slot.spec.torch_dtype or like.dtype, device=cases.device
            )
            for slot in host.form.outputs
        }

    def run(self, calls: int | None) -> HostedRun:
        self._bounded, done = calls is not None, 0
        try:
            while bool(self._going().any()) and (calls is None or done < calls):
                asked = self._asked
                for kind in self._waiting(asked):
                    self._answer(kind, asked)
                done += 1
                if calls is None and done == LONG and not self._host.said_long:
                    self._host.said_long = True
                    warn(
                        f"{self._host!r}: a run has called {done:,} times and goes on, since run(...) bounds "
                        "it by no calls=. If the program chooses its own steps, what a gradient adds to its "
                        "inputs to learn from them is noise to its error control, which may never end: "
                        "take excite=0, fixed steps, or run(..., calls=).",
                        RuntimeWarning,
                    )
            for kind in self._waiting(self._asked):
                name = self._host.form.kinds[kind][0]
                self._see(name, self._mask(kind, self._asked))
        finally:
            self._host.programs.release(self._cases)
        early = int(self._ended.sum()) if calls is not None and done < calls else 0
        if early and not self._host.said_early:
            self._host.said_early = True
            warn(
                f"{self._host!r}: {early} of {self._rows} runs ended by themselves after at most {done} of "
                f"{calls} calls. What lies behind is zeros, or missing where no row goes on: leave it out "
                "by the mask of each call, or let the program go on.",
                RuntimeWarning,
            )
        failed = self._failed()
        count, lost = int(failed.sum()), dict[str, str]()
        seen = {name: rounds for name, rounds in self._records.items() if rounds.masks}
        if count:
            # entries up to the last failure only would be taken for whole
            seen = {} if count == self._rows else seen
            lost = {name: self._why(name, count) for name in self._records if name not in seen}
            self._outputs = {name: _lost(failed, array) for name, array in self._outputs.items()}
        records = {name: rounds.record(failed) for name, rounds in seen.items()}
        return HostedRun(records, self._outputs, self._ended, lost)

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
        """Which rows wait for an answer."""
        going = (self._asked >= 0) & self._failed().logical_not()
        if not self._bounded and bool((going & (self._history == 0).all(dim=1)).any()):
            raise RuntimeError(  # no program has answered: it is a rehearsal
                "how many calls a run makes is known once it has run; run(..., calls=) bounds them"
            )
        return going

    def _failed(self) -> Tensor:
        """Which rows have failed: a place that is none, and nothing to be seen."""
        nowhere = (self._history == 0).all(dim=1)
        if not bool(nowhere.any()):  # as usual: then arrays, which may be large, are not looked at
            return nowhere
        nothing = torch.zeros(self._rows, dtype=torch.bool, device=self._history.device)
        for array in self._state.values():
            if array.is_floating_point():
                nothing = nothing | array.reshape(self._rows, -1).isnan().all(dim=1)
        return nothing & nowhere

    def _waiting(self, asked: Tensor) -> list[int]:
        """Which calls and stages some rows wait for."""
        return sorted(set(asked[self._going()].tolist()))

    def _mask(self, kind: int, asked: Tensor) -> Tensor:
        return (asked == kind) & self._going()

    def _see(self, name: str, mask: Tensor) -> list[Tensor]:
        form, rounds = self._host.form, self._records[name]
        seen = [self._state[slot.name] for slot in form.seen[name]]
        rounds.masks.append(mask | self._failed())
        for record, array in zip(rounds.seen.values(), seen, strict=True):
            record.append(array)
        return seen

    def _answer(self, kind: int, asked: Tensor) -> None:
        host = self._host
        name, _ = host.form.kinds[kind]
        box, mask = host.exchanges[kind], self._mask(kind, asked)
        everywhere, places = bool(mask.all()), mask.nonzero().flatten()
        seen = self._see(name, mask)
        shown = seen if everywhere else [array[places] for array in seen]
        given = given_arrays(repr(box), box.given, self._networks[name](*shown), len(places))
        if not everywhere:
            given = [filled(part, places, self._rows) for part in given]
        for record, array in zip(self._records[name].given.values(), given, strict=True):
            record.append(array)
        row = (*(self._state[slot.name] for slot in box.slots), *given, self._history)
        *arrays, after, history = host.boxes[kind](*row)
        ends = mask & (after == ENDED)
        if host.form.outputs and bool(ends.any()):
            self._end(kind, row, ends)
        self._ended = self._ended | ends
        names = [spec.name for spec in host.state]
        for array_name, array in zip(names, arrays, strict=False):
            old = self._state[array_name]
            self._state[array_name] = array if everywhere else chosen(mask, array, old)
        self._asked = after if everywhere else torch.where(mask, after, self._asked)
        self._history = history if everywhere else chosen(mask, history, self._history)

    def _end(self, kind: int, row: tuple[Tensor, ...], ends: Tensor) -> None:
        *arrays, _ = self._host.boxes[len(self._host.exchanges) + kind](*row)
        for slot, array in zip(self._host.form.outputs, arrays, strict=True):
            self._outputs[slot.name] = chosen(ends, array, self._outputs[slot.name])


class _Rounds:
    """What a call has seen and given, round by round, over all rows."""

    def __init__(self, seen: list[str], given: list[str]) -> None:
        self.seen: dict[str, list[Tensor]] = {name: [] for name in seen}
        self.given: dict[str, list[Tensor]] = {name: [] for name in given}
        self.masks: list[Tensor] = []

    def record(self, failed: Tensor) -> CallRecord:
        """With each row's entries one behind the other, and zeros behind the last.

        Args:
            failed: `(rows,)` bool, rows whose last entry is NaN: the others may have had no call since.
        """
        mask = torch.stack(self.masks, dim=1)
        order = None
        if not bool((mask[:, 1:] <= mask[:, :-1]).all()):  # rows ask in different rounds
            order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)
            mask = mask.gather(1, order)
        count = int(mask.sum(dim=1).max())

        def entries(arrays: list[Tensor]) -> Tensor:
            stacked = torch.stack(arrays, dim=1)
            kept = torch.stack(self.masks[: len(arrays)], dim=1)
            stacked = chosen_entries(kept, stacked)
            if order is not None:
                place = torch.argsort(kept.int(), dim=1, descending=True, stable=True)
                stacked = stacked[torch.arange(len(stacked), device=place.device)[:, None], place]
            stacked = stacked[:, :count]
            if not bool(failed.any()):
                return stacked
            return torch.cat([stacked[:, :-1], _lost(failed, stacked[:, -1])[:, None]], dim=1)

        seen = {name: entries(arrays) for name, arrays in self.seen.items()}
        given = {name: entries(arrays) for name, arrays in self.given.items() if arrays}
        return CallRecord(seen, given, mask[:, :count])


def chosen_entries(mask: Tensor, stacked: Tensor) -> Tensor:
    """Entries of rows where the mask is, else zeros."""
    if bool(mask.all()):
        return stacked
    return torch.where(mask.reshape(*mask.shape, *[1] * (stacked.ndim - 2)), stacked, 0.0)


def _lost(failed: Tensor, array: Tensor) -> Tensor:
    """NaN in the rows that failed; whole numbers stay, which have none."""
    if not array.is_floating_point():
        return array
    return chosen(failed, torch.full_like(array, float("nan")), array)


def _check_calls(calls: tuple[Call, ...]) -> None:
    names = [call.name for call in calls if isinstance(call, Call)]
    if not calls or len(names) < len(calls):
        raise ConfigurationError(
            f"Hosted, calls: expected a list of Call, got {list(calls)!r}. Write "
            "calls=[Call(name, sees=..., gives=...)]."
        )
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"Hosted, calls: expected names of their own, got {name!r} twice. If a program asks several "
                "times in a step by one name, give the number: Call(..., stages=2)."
            )
