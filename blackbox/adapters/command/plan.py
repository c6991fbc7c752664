"""Which arrays go to which files of a run, checked when the box is made."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blackbox.adapters.command import array_files
from blackbox.adapters.command.process import STDERR, STDOUT
from blackbox.adapters.command.scratch import checked_name
from blackbox.adapters.command.templates import Template
from blackbox.errors import ConfigurationError
from blackbox.spec import ArraySpec


@dataclass(frozen=True)
class ArrayFile:
    """An array, its file, and where an HDF5 file has it."""

    spec: ArraySpec
    file: str
    dataset: str


def array_files_of(
    where: str, files: Mapping[str, str] | None, specs: Sequence[ArraySpec]
) -> list[ArrayFile]:
    """The files for arrays by name: "NAME.npy", "NAME.h5" or "NAME.h5:place/in/it", "NAME.csv".

    Raises:
        ConfigurationError: an array is not known, or a file cannot be used for it.
    """
    known = {spec.name: spec for spec in specs}
    found: list[ArrayFile] = []
    for name, file in (files or {}).items():
        if name not in known:
            raise ConfigurationError(
                f"{where}: expected names among {', '.join(known)}, got {name!r}. Write array: file."
            )
        file, _, place = file.partition(":") if isinstance(file, str) else (file, "", "")
        file = checked_name(f"{where}, {name!r}", file)
        form = array_files.kind(f"{where}, {name!r}", file)
        if place and form != "hdf5":
            raise ConfigurationError(
                f"{where}, {name!r}: expected a place after ':' for HDF5 files alone, got {file}:{place}. "
                "Leave it out."
            )
        new = ArrayFile(known[name], file, place.strip("/") or name)
        for other in found:
            if other.file == file and (form != "hdf5" or other.dataset == new.dataset):
                raise ConfigurationError(
                    f"{where}: expected a file for each array, got {file!r} for {other.spec.name!r} and "
                    f"{name!r}. Name another, or take one .h5 file for all."
                )
        found.append(new)
    return found


def templates_of(
    where: str, templates: Mapping[str, str | os.PathLike[str]] | None, specs: Sequence[ArraySpec]
) -> dict[str, Template]:
    """Templates by file; a path is read now, so that later changes of it change nothing.

    Raises:
        ConfigurationError: a name leads out of the folder, or the text has a wrong placeholder.
    """
    found = {}
    for file, text in (templates or {}).items():
        name = checked_name(where, file)
        content = text if isinstance(text, str) else existing(where, text).read_text(encoding="utf-8")
        found[name] = Template(f"{where}, {name!r}", content, specs)
        if not found[name].names():
            raise ConfigurationError(
                f"{where}, {name!r}: expected a placeholder such as {{{specs[0].name}}}, found none. "
                "Name an array in braces; a template's own file is given as a Path."
            )
    return found


def command_of(
    arguments: Sequence[str | os.PathLike[str]], specs: Sequence[ArraySpec], path: str | None
) -> list[Template | Path | str]:
    """The program, found now, and its arguments: paths made absolute, text with placeholders split.

    Raises:
        ConfigurationError: there is no such program or path.
    """
    where = "CommandLine, arguments"
    if isinstance(arguments, str | os.PathLike) or not list(arguments):
        raise ConfigurationError(
            f"{where}: expected a list of the program and its arguments, got {arguments!r}. "
            "There is no shell that would split it: write ['./solver', '--steps', '10']."
        )
    program, *others = arguments
    found = shutil.which(os.fspath(program), path=path)
    if found is None:
        raise ConfigurationError(
            f"{where}: expected a program that can be run, got {os.fspath(program)!r}. "
            "Give its path, and see that it is executable."
        )
    command: list[Template | Path | str] = [Path(found).absolute()]
    for index, argument in enumerate(others, start=1):
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


def existing(where: str, path: str | os.PathLike[str]) -> Path:
    """The absolute form of a path to something that is there.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(path, str | os.PathLike) or not Path(path).exists():
        raise ConfigurationError(f"{where}: expected a path that exists, got {path!r}. Give one that does.")
    return Path(path).resolve()


def content(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder with their names; in hexadecimal."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = sorted(item for item in path.rglob("*") if item.is_file())
    listed = [(item.relative_to(path).as_posix(), content(item)) for item in inside]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def check_use(specs: Sequence[ArraySpec], used: Sequence[str], kind: str) -> None:
    """Refuse inputs that reach the program in no way, and outputs that come from nowhere or twice."""
    for spec in specs:
        times = used.count(spec.name)
        if times == 0 or (kind == "output" and times > 1):
            wanted = "some way to the program" if kind == "input" else "one file to be read from"
            raise ConfigurationError(
                f"CommandLine, {kind} {spec.name!r}: expected {wanted}, got {times or 'none'}. "
                f"Name it in {kind}_files or in {kind}_templates."
            )


def check_apart(written: Sequence[str], read: Sequence[str]) -> None:
    """Refuse a file that is both: where the program fails to write it, its input would pass for an answer."""
    for file in written:
        if file in read or file in (STDOUT, STDERR):
            raise ConfigurationError(
                f"CommandLine: expected other files for inputs than for outputs, {STDOUT} and {STDERR}, got "
                f"{file!r} for both. Rename one."
            )
