"""`Hosted`: a program that calls the network from inside of its own loop, as black boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.command import files
from blackbox.adapters.command.command_line import command_of, known_command
from blackbox.adapters.command.files import array_files_of, checked_name, content, existing
from blackbox.adapters.command.numbers import text_of
from blackbox.adapters.command.process import environment_of
from blackbox.adapters.command.templates import Template, templates_of
from blackbox.adapters.hosted import boxes as hosted_boxes
from blackbox.adapters.hosted.boxes import Ending, Exchange, HostStart
from blackbox.adapters.hosted.client.bb_host import Host
from blackbox.adapters.hosted.host_loop import Loop
from blackbox.adapters.hosted.in_thread import InThread, name_of
from blackbox.adapters.hosted.program import Program, Start
from blackbox.adapters.hosted.program_call import Call, VectorForm, numbers_in
from blackbox.adapters.hosted.programs import HostCounts, Place, Programs
from blackbox.adapters.hosted.record import HostedRun
from blackbox.box_group import BoxGroup
from blackbox.checks import check_choice, check_count, check_positive
from blackbox.errors import ConfigurationError, DtypeError, InputError
from blackbox.failures import POLICIES, Policy, noted
from blackbox.function import BlackBoxFunction
from blackbox.ledger import Ledger
from blackbox.notices import Notices
from blackbox.outside import plain
from blackbox.spec import ArraySpec, check_specs

Array = np.ndarray[Any, Any]
PathLike = os.PathLike[str]
CASE = ArraySpec("case", (), "int64")


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
    C, C++, Fortran and Python (`blackbox host DIR` writes the files). A row is one answer: its inputs are the
    arrays that the program sent and got, its outputs the arrays at the program's next call. `run` starts a
    process for each row of a batch, in a folder of its own. The processes go on side by side, and one forward
    of the network answers all rows of a call. Tangents learn the effect of an answer from the runs that
    training makes anyway.

    A program has to do the same whenever it runs a case and gets the same answers. It need not be able to
    stop, go back, or save its state: a row that is asked again is answered from memory, or by a run that is
    started once more.

    A program that crashes, ends with another status than 0, hangs, or sends NaN or an array of another shape
    fails its row, with its last lines in the message. Its processes are ended with it, and all are when this
    process dies. Under "keep" the row's arrays are NaN from there on. Where all rows of a run fail, the
    lengths of the arrays are unknown, and code that asks for a call's arrays gets a `NoRowLeftError` with the
    first row's last lines. For gradients of `zo`, and in runs, all rows of the batch have failed then.

    Args:
        arguments: the program and its arguments, as for `CommandLine`; `{case}` is the number of the row's
            case.
        calls: the calls of the program, or its only one, see `Call`.
        outputs: the specs of a run's outputs at its end: sent by `bb_output`, or read from files.
        output_files: the files from which outputs are read, as for `CommandLine`.
        output_templates: the texts from which they are read, as for `CommandLine`.
        copies: files or folders that the program needs in its folder, by their name there.
        prepare: `prepare(case, folder)` puts the files of a case into the folder of its run.
        timeout: the seconds that a program may take between two calls; None for any time.
        environment: variables of the program, in addition to those of this process; LC_ALL as for
            `CommandLine`.
        live: the most programs that run at a time. As many as there are rows in a batch, or some have to be
            started again from the beginning.
        scratch: the folder in which runs' folders are created; None for the system's temporary folder.
        keep_failed: True to keep the folder of a failed run; the message names it.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Attributes:
        boxes: the black boxes that gradients go through: one for each call and stage, and as many for the
            ends of runs if there are outputs. `TangentGradient` takes the host itself in their place.
        start: the black box of the runs' first calls.
        counts: the counts of the programs, see `HostCounts`.
        ledger: the rows of all boxes.
        notices: the notices given so far.

    Raises:
        ConfigurationError: a program or path does not exist, a name occurs twice, or a number is out of
            range.
        DefinitionError: the specs make no sense.
    """

    def __init__(
        self,
        arguments: Sequence[str | PathLike] | Callable[[int, Host], object],
        *,
        calls: Call | Sequence[Call],
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
        self.calls = (calls,) if isinstance(calls, Call) else tuple(calls)
        self.live, self.timeout = live, timeout
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
        self.ledger, self.notices = Ledger(), Notices()
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

    def check(self, out: str | Path | None = None, *, seed: int = 0) -> int:
        """Check the program for a person or for CI: see `BoxGroup.check`."""
        from blackbox.adapters.hosted.host_check import command  # which makes hosts of its own

        return command(self, out, seed=seed)

    def wrapped(self, wrap: Callable[[BlackBoxFunction], BlackBoxFunction]) -> Hosted:
        """The same host, whose runs go through wrappers around its boxes."""
        host: Hosted = object.__new__(type(self))  # copy.copy would ask for what pickle does: it is refused
        vars(host).update(vars(self))
        host.boxes = tuple(wrap(box) for box in self.boxes)
        return host

    @property
    def counts(self) -> HostCounts:
        """The counts of the programs: runs, answers, replays."""
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
            cases: the cases for `{case}` and `prepare`: whole numbers `(rows,)`, a tensor, an array or a
                list.
            calls: the most answers that a run gets; then it is ended. None to let it run to its end.
            dtype: the dtype of arrays whose spec leaves it open; None for torch's default.
            **networks: the network of each call, by its name: a function of the seen arrays, tensors
                `(rows, *shape)`, that returns the given arrays as a tensor, a tuple or a dictionary.

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
            return Loop(self, whole.long(), dtype or torch.get_default_dtype(), networks, causes).run(calls)

    def state_of(self, place: Place) -> tuple[Array, ...]:
        """Return the known arrays of a row at a place, in the order of `state`."""
        return hosted_boxes.state_of(self.slots, place)

    def close(self) -> None:
        """End all programs; the next run starts new ones."""
        self.programs.close()

    @property
    def identity(self) -> tuple[Any, ...]:
        """The identity of the answers: settings, contents of the program and of copies, the function."""
        copies = [(name, content(path)) for name, path in sorted(self._copies.items())]
        texts = {name: template.text for name, template in self._templates.items()}
        settings = repr((copies, texts, self._files, self.calls, sorted(self.environment.items())))
        return known_command(self._command), self._function, settings, [file.function for file in self._files]

    def __deepcopy__(self, copies: dict[int, Any]) -> Hosted:
        """Return the host itself: its programs are processes, which cannot be copied."""
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

        began = 0

        def prepare(folder: Path) -> None:
            nonlocal began
            began = files.time_of(folder)
            for name, source in self._copies.items():
                files.copy_into(folder, name, source)
            for name in [*(file.file for file in self._files), *self._templates]:
                (folder / name).unlink(missing_ok=True)  # an old answer must not pass for a new one
            if self.prepare is not None:
                self.prepare(case, folder)

        def results(folder: Path) -> dict[str, Array]:
            return self._results(folder, began)

        return self._program(Start(arguments, environment_of(self.environment), prepare, results))

    def _program(self, start: Start) -> Program:
        most = max(numbers_in(specs) for call in self.calls for specs in (call.seen, call.given))
        return Program(self.form, start, self.timeout, 8 * most, self.scratch, self.keep_failed)

    def _results(self, folder: Path, began: int) -> dict[str, Array]:
        results: dict[str, Array] = {}
        for file in self._files:
            results[file.spec.name] = files.read_file(folder, file, (), began)
        for name, template in self._templates.items():
            results |= template.find(text_of(files.output(folder, name, began)))
        return results


def _check_calls(calls: tuple[Call, ...]) -> None:
    names = [call.name for call in calls if isinstance(call, Call)]
    if not calls or len(names) < len(calls):
        raise ConfigurationError(
            f"Hosted, calls: expected a list of Call, got {list(calls)!r}. Write "
            "calls=[Call(name, sees=..., gives=...)]."
        )
    for call in calls if sum(call.stages for call in calls) > 1 else ():
        if call.same is not None:
            raise ConfigurationError(
                f"Hosted, calls: expected same= of a program that makes one call in a step, got it for "
                f"{call.name!r} beside others, or in stages. Leave same= out."
            )
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"Hosted, calls: expected names of their own, got {name!r} twice. If a program asks several "
                "times in a step by one name, give the number: Call(..., stages=2)."
            )
