"""`CommandLine`: a program that reads and writes files, as a black box."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from blackbox.adapters.command import array_files, plan, process
from blackbox.adapters.command.scratch import checked_name, copy_into, output, scratch_folder
from blackbox.adapters.command.templates import Template
from blackbox.arrays import failed_outputs
from blackbox.checks import check_count, check_positive
from blackbox.errors import ConfigurationError
from blackbox.failures import Outcome, Policy
from blackbox.function import BlackBoxFunction
from blackbox.running import run_block, run_each
from blackbox.spec import ArraySpec, check_specs

PathLike = os.PathLike[str]


class CommandLine(BlackBoxFunction):
    r"""Run a program for each row, or for each block of rows, with input and output in files. POSIX only.

        wing = CommandLine(
            ["./solver", "case.txt", "--steps", "200"],
            inputs=[ArraySpec("angle", ()), ArraySpec("shape", (12,))],
            outputs=[ArraySpec("drag", ())],
            input_files={"shape": "shape.npy"},
            input_templates={"case.txt": "angle = {angle}\n"},
            output_templates={"stdout.txt": "drag: {drag}"},
            timeout=60,
        )

    Each run has a new folder to itself, in which the program starts and which is removed afterwards.
    There is no shell: arguments are handed over as they are, and what is put in for a placeholder is
    numbers, never looked at again. Where a spec leaves the float dtype open, files hold float64.

    A run fails, and with it its rows, when the program cannot be started, ends with another status than
    0, takes longer than `timeout`, or leaves no file with numbers of the expected shape. The message
    has the last lines of stderr. Calls from several threads run side by side.

    Files are named relative to the run's folder; their suffix says the format: `.npy`; `.h5` or `.hdf5`
    with a dataset of the array's name (`"out.h5:fields/drag"` for another); `.csv` (commas), `.txt` or
    `.dat` (spaces) with the numbers in C order, where a first line of words is skipped. What the program
    prints is in `stdout.txt` and `stderr.txt`.

    Args:
        arguments: the program, found on the PATH or by its path, and its arguments. A `Path` is made
            absolute and must exist (for a script, say); in text, placeholders are filled in.
        inputs: specs of what goes in.
        outputs: specs of what comes out.
        input_files: input -> the file it is written to.
        output_files: output -> the file it is read from.
        input_templates: file -> text with placeholders such as `{angle}`, `{shape[3]}`, `{angle:.3f}`, or
            the `Path` of a file with it.
        output_templates: likewise; the output is read where the file looks like the text, the last time.
        copies: name in the run's folder -> a file or folder that the program needs there, such as a mesh.
        vectorized: False for a run a row, with arrays of the specs' shapes; True for a run a block, with
            `(rows, *shape)` in `input_files` and `output_files` and no placeholders.
        max_rows: rows of a block at most; None for all rows of a call.
        timeout: seconds a run may take, then all its processes are ended; None for any time.
        environment: variables set for the program.
        inherit: the variables of ours that it gets too; None for all of them.
        max_bytes: the size that a file of a run may have.
        scratch: where runs' folders are made; None for the system's temporary folder.
        keep_failed: whether the folder of a failed run stays there, named in the message.
        deterministic: False where equal inputs may give different outputs.
        failures: "raise" or "keep", see `BlackBoxFunction`.

    Raises:
        ConfigurationError: a program or path is not there, a name leads out of the folder, an array has no
            file or two, or a number is out of its range.
        DefinitionError: the specs make no sense.
    """

    def __init__(
        self,
        arguments: Sequence[str | PathLike],
        inputs: Sequence[ArraySpec],
        outputs: Sequence[ArraySpec],
        *,
        input_files: Mapping[str, str] | None = None,
        output_files: Mapping[str, str] | None = None,
        input_templates: Mapping[str, str | PathLike] | None = None,
        output_templates: Mapping[str, str | PathLike] | None = None,
        copies: Mapping[str, str | PathLike] | None = None,
        vectorized: bool = False,
        max_rows: int | None = None,
        timeout: float | None = None,
        environment: Mapping[str, str] | None = None,
        inherit: Sequence[str] | None = None,
        max_bytes: int = 2**30,
        scratch: str | PathLike | None = None,
        keep_failed: bool = False,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Check everything that can be checked before a run."""
        if os.name != "posix":
            raise ConfigurationError("CommandLine: expected a POSIX system (Linux, macOS), got another one.")
        if isinstance(inherit, str):  # its letters would be taken for names
            raise ConfigurationError(
                f"CommandLine, inherit: expected a list of names, got {inherit!r}. Write [{inherit!r}]."
            )
        check_count("CommandLine", "max_bytes", max_bytes)
        if max_rows is not None:
            check_count("CommandLine", "max_rows", max_rows)
        if timeout is not None:
            check_positive("CommandLine", "timeout", timeout)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        check_specs("CommandLine", "inputs", self.inputs)
        check_specs("CommandLine", "outputs", self.outputs)
        self.vectorized, self.max_rows, self.timeout = vectorized, max_rows, timeout
        self.environment, self.inherit = dict(environment or {}), None if inherit is None else tuple(inherit)
        self.max_bytes, self.keep_failed, self.deterministic = max_bytes, keep_failed, deterministic
        self.scratch = None if scratch is None else plan.existing("CommandLine, scratch", scratch)
        self._command = plan.command_of(arguments, self.inputs, self._environment().get("PATH"))
        self._written = plan.array_files_of("CommandLine, input_files", input_files, self.inputs)
        self._read = plan.array_files_of("CommandLine, output_files", output_files, self.outputs)
        self._filled = plan.templates_of("CommandLine, input_templates", input_templates, self.inputs)
        self._found = plan.templates_of("CommandLine, output_templates", output_templates, self.outputs)
        self._copies = {
            checked_name("CommandLine, copies", name): plan.existing(f"CommandLine, copies, {name!r}", source)
            for name, source in (copies or {}).items()
        }
        self._check_use()
        super().__init__(failures=failures)

    def _check_use(self) -> None:
        texts = [part for part in self._command if isinstance(part, Template)] + [*self._filled.values()]
        if self.vectorized and (texts or self._found):
            text = (texts or [*self._found.values()])[0]
            raise ConfigurationError(
                f"{text.where}: expected no placeholder with vectorized=True, got "
                f"{{{text.placeholders[0].name}}}. Hand blocks over in input_files and output_files."
            )
        for template in self._found.values():
            template.check_complete()
        used_in = [file.spec.name for file in self._written] + [
            name for text in texts for name in text.names()
        ]
        used_out = [file.spec.name for file in self._read]
        used_out += [name for text in self._found.values() for name in text.names()]
        plan.check_use(self.inputs, used_in, "input")
        plan.check_use(self.outputs, used_out, "output")
        written = [file.file for file in self._written]
        for name in self._filled:
            if name in written:
                raise ConfigurationError(
                    f"CommandLine, input_templates: expected files of their own, got {name!r}, which is in "
                    "input_files too. Rename one."
                )
        plan.check_apart([*written, *self._filled], [*self._results()])

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """A run a row, or blocks of `max_rows`; see `BlackBoxFunction.run_rows`."""
        started = perf_counter()
        try:
            return self._run_blocks(inputs) if self.vectorized else run_each(self, inputs)
        finally:
            self.ledger.count(seconds=perf_counter() - started)

    def _run_blocks(self, inputs: tuple[Tensor, ...]) -> Outcome:
        whole = Outcome(failed_outputs(self.outputs, inputs))
        count = len(inputs[0])
        size = self.max_rows or count
        for first in range(0, count, size):
            block = slice(first, first + size)
            part = run_block(self, tuple(t[block] for t in inputs))
            for into, values in zip(whole.outputs, part.outputs, strict=True):
                into[block] = values
            whole.failed |= {first + row: why for row, why in part.failed.items()}
            if whole.failed and self.failures == "raise" and not self.isolates:
                break
        return whole

    def evaluate(self, *arrays: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """One run with one row."""
        return self._run(arrays, ())

    def evaluate_rows(self, *arrays: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """One run with a block of rows."""
        return self._run(arrays, (len(arrays[0]),))

    def _run(
        self, arrays: tuple[np.ndarray[Any, Any], ...], leading: tuple[int, ...]
    ) -> tuple[np.ndarray[Any, Any], ...]:
        by_name = {
            spec.name: np.asarray(array, spec.dtype or np.float64)
            for spec, array in zip(self.inputs, arrays, strict=True)
        }
        with scratch_folder(self.scratch, self.keep_failed) as folder:
            self._prepare(folder, by_name)
            command = [
                part.fill(by_name) if isinstance(part, Template) else str(part) for part in self._command
            ]
            process.run(command, folder, self._environment(), self.timeout, self.max_bytes)
            found = self._collect(folder, leading)
        return tuple(_converted(spec, found[spec.name]) for spec in self.outputs)

    def _prepare(self, folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        for name, source in self._copies.items():
            copy_into(folder, name, source)
        for name in self._results():  # copied along: an old answer must not pass for a new one
            (folder / name).unlink(missing_ok=True)
        for file in self._written:
            (folder / file.file).parent.mkdir(parents=True, exist_ok=True)
            array_files.write(folder / file.file, file.dataset, arrays[file.spec.name], self.vectorized)
        for name, template in self._filled.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(template.fill(arrays), encoding="utf-8")

    def _collect(self, folder: Path, leading: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
        found = {}
        for file in self._read:
            path = output(folder, file.file, self.max_bytes)
            shape = (*leading, *file.spec.shape)
            found[file.spec.name] = array_files.read(path, file.dataset, shape, file.spec.floating)
        for name, template in self._found.items():
            text = output(folder, name, self.max_bytes).read_text(encoding="utf-8", errors="replace")
            found |= template.find(text)
        return found

    @property
    def identity(self) -> str:
        """What a cache knows this box by: settings, and what program, paths and copies hold now."""
        texts = {name: template.text for name, template in (self._filled | self._found).items()}
        command = [part.text if isinstance(part, Template) else str(part) for part in self._command]
        files = [part for part in self._command if isinstance(part, Path)]
        content = [plan.content(path) for path in files]
        copies = [(name, plan.content(path)) for name, path in sorted(self._copies.items())]
        settings = (self._written, self._read, self.vectorized, sorted(self.environment.items()))
        return repr((command, content, copies, sorted(texts.items()), settings))

    def _results(self) -> list[str]:
        return [*dict.fromkeys(file.file for file in self._read), *self._found]

    def _environment(self) -> dict[str, str]:
        names = os.environ if self.inherit is None else [n for n in self.inherit if n in os.environ]
        return {name: os.environ[name] for name in names} | self.environment

    def __repr__(self) -> str:
        """Named after the program."""
        return f"CommandLine({Path(str(self._command[0])).name!r})"


def _converted(spec: ArraySpec, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers in the spec's dtype, refused where they would not be the same there."""
    if spec.floating:
        return array.astype(spec.dtype or np.float64)
    converted = array.astype(spec.dtype)
    if array.dtype.kind == "f" or not np.array_equal(converted, array):
        raise ValueError(
            f"output {spec.name!r}: expected numbers of {spec.dtype}, got {array.dtype} beyond it."
        )
    return converted
