"""`CommandLine`: a program that reads and writes files, as a black box."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.command import files, process
from blackbox.adapters.command.files import (
    ArrayFile,
    FileName,
    array_files_of,
    by_name,
    checked_name,
    content,
    existing,
)
from blackbox.adapters.command.numbers import text_of
from blackbox.adapters.command.reports import line_after, line_before
from blackbox.adapters.command.templates import Template, template_of, templates_of, unknown
from blackbox.checks import check_count, check_positive
from blackbox.errors import ConfigurationError
from blackbox.failures import Policy
from blackbox.function import BlackBoxFunction
from blackbox.outside import exactly
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

    Each run has its own new folder, in which the program starts and which is removed afterwards. There is no
    shell: arguments are passed as they are. Placeholders are replaced by numbers, and the result is not
    parsed again. If a spec leaves the float dtype open, files hold float64.

    A run fails, and with it its rows, if the program cannot be started, exits with a status that is not among
    `statuses`, prints words of `fails_if`, takes longer than `timeout`, or leaves no file with numbers of the
    expected shape. A file that is older than the run is none. The message has the last lines of stderr. Calls
    from several threads run side by side. A folder at an absolute path is shared by all runs: let the program
    write into its own.

    No process outlives its run. On Linux this includes processes that left their process group (`setsid`),
    and the case that this process is killed; they are found by the variable BLACKBOX_RUN in their
    environment. Its folders are removed too, unless all processes of the machine are killed at once; without
    Linux they remain in `scratch` after a kill.

    Files are named relative to the run's folder; the suffix gives the format: `.npy`; `.h5` or `.hdf5` with a
    dataset of the array's name (`"out.h5:fields/drag"` for another); `.csv` (commas; or semicolons or tabs,
    whose numbers may have decimal commas), `.txt` or `.dat` (spaces) with the numbers in C order, where a
    first line of words is skipped. Commas that may be decimal or not are an error. A line of text has a row
    of the last axis or several whole ones, or each row, or all of it, is wrapped after so many numbers; lines
    as those of another shape are an error. An output may be one column of such a text, by its number or its
    heading: `"flows.csv:2"`, `"flows.csv:q"`. A heading is an error where headings do not match the columns
    one to one, as in `time (s) T (K)` with single spaces between. A dataset that a NetCDF-4 file packs
    (`scale_factor`, `add_offset`) is unpacked, and its missing numbers are NaN. For any other file, pass a
    function that writes or reads it, `input_files={"velocity": ("0/U", write_field)}`. It is called with the
    file's path and the array, or with only the path to return the array. The program's output is in
    `stdout.txt` and `stderr.txt`.

    Args:
        arguments: the program and its arguments. The program is found on the PATH, or at its path; a `Path`
            without a folder is one in the working directory. A `Path` among the arguments (such as a script)
            is made absolute and must exist. Placeholders in text are replaced.
        inputs: the specs of the inputs.
        outputs: the specs of the outputs.
        input_files: the file that each input is written to, by the input's name; or `(file, function)`.
        output_files: the file that each output is read from, by the output's name; or `(file, function)`.
            Several outputs may come from one file if each is a column, a dataset, or has a function that
            takes it out. A table that is cut within its last number reads as one with a shorter number: where
            a program may not notice a full disk, have it write a last line, and a function look for it.
        input_templates: the texts of files to write, by the file's name. A text has placeholders such as
            `{angle}`, `{shape[3]}`, `{shape}` (all of its numbers, with spaces between) or `{angle:.3f}`;
            instead of the text you can give the `Path` of a file that contains it.
        stdin: the text that the program reads as its standard input, with placeholders as in
            `input_templates`, or none; or the `Path` of a file that contains it. Where the text ends the
            program gets the end of file. None if it reads nothing: then that is the first thing that it gets.
        output_templates: the texts used to read files, by the file's name. Outputs are read where the file
            matches the text; if it does so several times, the last match counts. A text matches where a line
            begins, or behind a number or a sign on it, not behind a word: `drag = {drag}` is not in
            `max drag = 3`. A row fails if the words in front of a number come again behind the last match
            (`drag = diverged`) or on its line, and at what looks like a number and is none (`1,234`, `3kN`),
            at more numbers than the array has, also behind an empty line or a comment, and at a unit with a
            prefix, or a power of ten, that the text does not name (`350 mm`, `1.5 M`). Other words may follow
            on the last line; nothing if the text ends in a line end.
        copies: files or folders that the program needs in its folder, such as a mesh, by their name there.
        vectorized: False for one run per row, with arrays of the specs' shapes; True for one run per block of
            rows, with `(rows, *shape)` in `input_files` and `output_files` and no placeholders.
        max_rows: the most rows of a block; None for all rows of a call.
        timeout: the seconds that a run may take before all its processes are ended and its rows count as
            timed out; None for no limit.
        statuses: the exit statuses of a run that worked.
        fails_if: words, or several, that mean failure where they stand in what the program prints, or in a
            file of `output_templates`: `"ERROR"`.
        environment: variables set for the program, in addition to those of this process. LC_ALL is C.UTF-8,
            so that numbers have decimal points, unless a locale is set here, by LANG or a variable of LC.
        scratch: the folder in which runs' folders are created; None for the system's temporary folder.
        keep_failed: True to keep the folder of a failed run; the message names it.
        deterministic: False if equal inputs may give different outputs.
        failures: "raise" or "keep", as in `BlackBoxFunction`.

    Raises:
        ConfigurationError: a program or path does not exist, a name leads out of the folder, an array has no
            file or two, or a number is out of range.
        DefinitionError: the specs are inconsistent.
    """

    def __init__(
        self,
        arguments: Sequence[str | PathLike],
        inputs: Sequence[ArraySpec],
        outputs: Sequence[ArraySpec],
        *,
        input_files: Mapping[str, FileName] | None = None,
        output_files: Mapping[str, FileName] | None = None,
        input_templates: Mapping[str, str | PathLike] | None = None,
        output_templates: Mapping[str, str | PathLike] | None = None,
        stdin: str | PathLike | None = None,
        copies: Mapping[str, str | PathLike] | None = None,
        vectorized: bool = False,
        max_rows: int | None = None,
        timeout: float | None = None,
        statuses: Collection[int] = (0,),
        fails_if: str | Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        scratch: str | PathLike | None = None,
        keep_failed: bool = False,
        deterministic: bool = True,
        failures: Policy = "raise",
    ) -> None:
        """Check everything that can be checked before a run."""
        if os.name != "posix":
            raise ConfigurationError("CommandLine: expected a POSIX system (Linux, macOS), got another one.")
        if max_rows is not None:
            check_count("CommandLine", "max_rows", max_rows)
        if timeout is not None:
            check_positive("CommandLine", "timeout", timeout)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        check_specs("CommandLine", "inputs", self.inputs)
        check_specs("CommandLine", "outputs", self.outputs)
        self.vectorized, self.timeout = vectorized, timeout
        self.max_rows = max_rows if vectorized else 1
        self.environment = dict(environment or {})
        self.statuses = _statuses(statuses)
        self.fails_if = _words(fails_if)
        self.keep_failed, self.deterministic = keep_failed, deterministic
        self.scratch = None if scratch is None else existing("CommandLine, scratch", scratch)
        self._command = command_of(arguments, self.inputs, self._environment().get("PATH"))
        self._input_files = array_files_of("CommandLine, input_files", input_files, self.inputs)
        self._output_files = array_files_of(
            "CommandLine, output_files", output_files, self.outputs, read=True
        )
        self._input_templates = templates_of("CommandLine, input_templates", input_templates, self.inputs)
        self._stdin = None if stdin is None else template_of("CommandLine, stdin", stdin, self.inputs)
        self._output_templates = templates_of("CommandLine, output_templates", output_templates, self.outputs)
        self._copies = {
            checked_name("CommandLine, copies", name): existing(f"CommandLine, copies, {name!r}", source)
            for name, source in by_name("CommandLine, copies", copies).items()
        }
        templates = [*(input_templates or {}).values(), *(output_templates or {}).values()]
        templates += [] if stdin is None else [stdin]
        self._template_files = [Path(path) for path in templates if not isinstance(path, str)]
        self._check_use()
        super().__init__(failures=failures)

    def _check_use(self) -> None:
        filled = [*self._input_templates.values()]
        words = [part for part in self._command if isinstance(part, Template)]
        words += [] if self._stdin is None else [self._stdin]
        output_templates = [*self._output_templates.values()]
        placed = [text for text in (*words, *filled, *output_templates) if text.names()]
        if self.vectorized and placed:
            raise ConfigurationError(
                f"{placed[0].where}: expected no placeholder with vectorized=True, got "
                f"{{{placed[0].placeholders[0].name}}}. Hand blocks over in input_files and output_files."
            )
        for template in output_templates:
            template.check_complete()
        plain = [part for part in self._command if isinstance(part, str)]
        texts = [text.text for text in (*filled, *words)] + plain
        check_use(self.inputs, _named(self._input_files, [*words, *filled]), "input", texts)
        check_use(
            self.outputs,
            _named(self._output_files, output_templates),
            "output",
            [text.text for text in output_templates],
        )
        file_names = [file.file for file in self._input_files]
        for name in self._input_templates:
            if name in file_names:
                raise ConfigurationError(
                    f"CommandLine, input_templates: expected files of their own, got {name!r}, which is in "
                    "input_files too. Rename one."
                )
        check_no_stdin([*file_names, *self._input_templates, *self._copies])
        file_names += [] if self._stdin is None else [process.STDIN]
        check_apart([*file_names, *self._input_templates], [*self._results()])
        check_own(self._results(), texts)

    def evaluate_rows(self, *arrays: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """One run, with a block of rows or, if not `vectorized`, with one."""
        if self.vectorized:
            return self._run(arrays, (len(arrays[0]),))
        row = tuple(array.squeeze(0) for array in arrays)  # the only one
        return tuple(output[None] for output in self._run(row, ()))

    def _run(
        self, arrays: tuple[np.ndarray[Any, Any], ...], leading: tuple[int, ...]
    ) -> tuple[np.ndarray[Any, Any], ...]:
        inputs = {
            spec.name: np.asarray(array, spec.dtype or np.float64)
            for spec, array in zip(self.inputs, arrays, strict=True)
        }
        with process.scratch_folder(self.scratch, self.keep_failed) as folder:
            began = files.time_of(folder)
            self._prepare(folder, inputs)
            command = [
                part.fill(inputs) if isinstance(part, Template) else str(part) for part in self._command
            ]
            stdin = self._stdin is not None
            process.run(command, folder, self._environment(), self.timeout, stdin, self.statuses)
            self._refuse_words(folder)
            outputs = self._collect(folder, leading, began)
        return tuple(_converted(spec, outputs[spec.name]) for spec in self.outputs)

    def _prepare(self, folder: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        for name, source in self._copies.items():
            files.copy_into(folder, name, source)
        for name in self._results():  # copied along: an old answer must not pass for a new one
            (folder / name).unlink(missing_ok=True)
        for file in self._input_files:
            files.write_file(folder, file, arrays[file.spec.name], self.vectorized)
        for name, template in self._input_templates.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(template.fill(arrays), encoding="utf-8")
        if self._stdin is not None:
            (folder / process.STDIN).write_text(self._stdin.fill(arrays), encoding="utf-8")

    def _refuse_words(self, folder: Path) -> None:
        """Fail a run whose output has words that mean failure."""
        for name in [process.STDOUT, process.STDERR, *self._output_templates] if self.fails_if else ():
            path = folder / name
            text = text_of(path) if path.is_file() and not path.is_symlink() else ""
            for words in self.fails_if:
                if (place := text.find(words)) >= 0:
                    line = (line_before(text, 0, place) + line_after(text, place)).strip()
                    raise RuntimeError(f"{name} has {words!r}, which is in fails_if: {line[:200]}")

    def _collect(self, folder: Path, leading: tuple[int, ...], began: int) -> dict[str, np.ndarray[Any, Any]]:
        arrays = {}
        for file in self._output_files:
            arrays[file.spec.name] = files.read_file(folder, file, leading, began)
        for name, template in self._output_templates.items():
            arrays |= template.find(text_of(files.output(folder, name, began)))
        return arrays

    @property
    def identity(self) -> tuple[Any, ...]:
        """The identity of the answers: settings, functions, and contents of program, files and copies."""
        texts = {
            name: template.text for name, template in (self._input_templates | self._output_templates).items()
        }
        copies = [(name, content(path)) for name, path in sorted(self._copies.items())]
        arrays = self._input_files, self._output_files, self.vectorized
        stdin = None if self._stdin is None else self._stdin.text
        settings = sorted(self.environment.items()), stdin, self.statuses, self.fails_if
        functions = [file.function for file in (*self._input_files, *self._output_files)]
        return (
            known_command(self._command),
            repr((copies, sorted(texts.items()), arrays, settings)),
            functions,
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and folders that the answers depend on: program, paths, templates and copies."""
        named = [part for part in self._command if isinstance(part, Path)]
        return (*named, *self._template_files, *self._copies.values())

    def _results(self) -> list[str]:
        return [*dict.fromkeys(file.file for file in self._output_files), *self._output_templates]

    def _environment(self) -> dict[str, str]:
        return process.environment_of(self.environment)

    def __repr__(self) -> str:
        """Named after the program."""
        return f"CommandLine({Path(str(self._command[0])).name!r})"


def _named(arrays: Sequence[ArrayFile], texts: Sequence[Template]) -> list[str]:
    """The names of arrays with a file, and of arrays with a placeholder in a text."""
    return [file.spec.name for file in arrays] + [name for text in texts for name in text.names()]


def _converted(spec: ArraySpec, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers in the spec's dtype; refuse those that it cannot hold exactly."""
    try:
        return exactly(array, spec.dtype or np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"output {spec.name!r}: {error}.") from None


def command_of(
    arguments: Sequence[str | os.PathLike[str]], specs: Sequence[ArraySpec], path: str | None
) -> list[Template | Path | str]:
    """Look the program up, make paths among its arguments absolute, and split text with placeholders.

    Raises:
        ConfigurationError: there is no such program or path.
    """
    where = "CommandLine, arguments"
    if isinstance(arguments, str | os.PathLike) or not list(arguments):
        raise ConfigurationError(
            f"{where}: expected a list of the program and its arguments, got {arguments!r}. "
            "There is no shell that would split it: write ['./solver', '--steps', '10']."
        )
    program, *rest_of_command = arguments
    name = os.fspath(program)
    # A Path without a folder is a file here; such a text is looked up on the PATH, as in a shell.
    executable = shutil.which(os.path.abspath(name) if isinstance(program, os.PathLike) else name, path=path)
    if executable is None:
        mend = "Give its path, and see that it is executable."
        if os.path.basename(name) == name and os.access(name, os.X_OK):
            mend = f"The working directory has such a file: write Path({name!r}) or './{name}'."
        elif os.path.basename(name) != name and not os.path.exists(name):
            mend = "There is no such file: build the program first, or give another path."
        raise ConfigurationError(f"{where}: expected a program that can be run, got {name!r}. {mend}")
    command: list[Template | Path | str] = [Path(executable).absolute()]
    for index, argument in enumerate(rest_of_command, start=1):
        if isinstance(argument, os.PathLike):
            command.append(existing(f"{where}[{index}]", argument))
        elif isinstance(argument, str) and "\0" not in argument:
            template = Template(f"{where}[{index}]", argument, specs)
            command.append(template if template.names() else argument)
        else:
            raise ConfigurationError(
                f"{where}[{index}]: expected text or a path, got {argument!r}. Convert it with str()."
            )
    return command


def known_command(command: Sequence[Template | Path | str]) -> list[tuple[str, str]]:
    """The parts of a command, with the digests of folders' contents, and of files that a text names."""
    words = [part.text if isinstance(part, Template) else str(part) for part in command]
    folders = [content(part) if isinstance(part, Path) and part.is_dir() else "" for part in command]
    return list(zip(words, folders, strict=True))


def check_use(specs: Sequence[ArraySpec], used: Sequence[str], kind: str, texts: Sequence[str]) -> None:
    """Refuse inputs that reach the program in no way, and outputs that come from nowhere or twice."""
    for spec in specs:
        times = used.count(spec.name)
        if times == 0 or (kind == "output" and times > 1):
            expectation = "some way to the program" if kind == "input" else "one file to be read from"
            raise ConfigurationError(
                f"CommandLine, {kind} {spec.name!r}: expected {expectation}, got {times or 'none'}. "
                f"{unknown(texts, specs) if not times else ''}Name it in {kind}_files or in {kind}_templates."
            )


def check_apart(written: Sequence[str], read: Sequence[str]) -> None:
    """Refuse a file for input and output: if a program fails to write it, its input passes for an answer."""
    for file in written:
        if file in read or file in (process.STDOUT, process.STDERR):
            raise ConfigurationError(
                f"CommandLine: expected other files for inputs than for outputs, {process.STDOUT} and "
                f"{process.STDERR}, got {file!r} for both. Rename one."
            )


def check_own(results: Sequence[str], texts: Sequence[str]) -> None:
    """Refuse a result that is taken from a folder of all runs: one that fails would have another's answer."""
    for name in {Path(result).name for result in results}:
        place = re.compile(rf"(?:^|[\s\"'=(:;|&<>])(/(?:[^\s\"'`;|&<>]*/)?){re.escape(name)}(?![\w.-])")
        for folder in (match[1] for text in texts for match in place.finditer(text)):
            if Path(folder).is_dir():  # else it is a container's
                raise ConfigurationError(
                    f"CommandLine: expected each run to write {name!r} into its own folder, got "
                    f"{folder + name!r}, which all runs share: one that fails would have the answer of "
                    "another. Give the program a relative path, or another name to what it reads there."
                )


def _statuses(statuses: Collection[int]) -> tuple[int, ...]:
    """Check exit statuses, each a whole number from 0 to 255, and return them."""
    values = [] if isinstance(statuses, int) else list(statuses)
    if not values or any(not isinstance(status, int) or not 0 <= status <= 255 for status in values):
        raise ConfigurationError(
            f"CommandLine, statuses: expected exit statuses from 0 to 255, got {statuses!r}. Write (0, 1)."
        )
    return tuple(sorted(set(values)))


def _words(words: str | Sequence[str]) -> tuple[str, ...]:
    """Check the words that mean failure, and return them."""
    texts = [words] if isinstance(words, str) else list(words)
    if any(not isinstance(text, str) or not text.strip() for text in texts):
        raise ConfigurationError(
            f"CommandLine, fails_if: expected words that a failed run prints, got {words!r}. Write "
            '"ERROR", or a list of such words.'
        )
    return tuple(texts)


def check_no_stdin(names: Sequence[str]) -> None:
    """Refuse a file that looks as if the program read it as its standard input, which it does not."""
    for name in names:
        if name in (process.STDIN, Path(process.STDIN).stem):
            raise ConfigurationError(
                f"CommandLine: expected what the program reads as standard input in stdin=, got {name!r}, "
                "which is a file like others. Give its text as stdin=, or rename it."
            )
