"""The files of a run: safe names, and arrays in .npy, HDF5 and text; nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from blackbox.adapters.command.columns import read_column
from blackbox.adapters.command.packed import check_written, unpacked
from blackbox.adapters.command.tables import read_table
from blackbox.errors import ConfigurationError
from blackbox.outside import exactly
from blackbox.spec import ArraySpec

Array = np.ndarray[Any, Any]
FileName = str | tuple[str, Callable[..., Any]]
SUFFIXES = {
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".csv": "text",
    ".txt": "text",
    ".dat": "text",
}


@dataclass(frozen=True)
class ArrayFile:
    """An array, its file, and where an HDF5 file has it; or the function that writes or reads the file."""

    spec: ArraySpec
    file: str
    dataset: str
    function: Callable[..., Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ColumnFile(ArrayFile):
    """An array that is one column of a table of text; `dataset` is the column's number or heading."""


def array_files_of(
    where: str, files: Mapping[str, FileName] | None, specs: Sequence[ArraySpec], *, read: bool = False
) -> list[ArrayFile]:
    """The files for arrays by name: "NAME.npy", "NAME.h5:place/in/it", "NAME.csv", or ("NAME", function).

    Files that are `read` may have several arrays: each in a column, "NAME.csv:2" or "NAME.csv:heading", or
    taken out by a function.

    Raises:
        ConfigurationError: an array is not known, or a file cannot be used for it.
    """
    by_name = {spec.name: spec for spec in specs}
    array_files: list[ArrayFile] = []
    for name, file in (files or {}).items():
        if name not in by_name:
            raise ConfigurationError(
                f"{where}: expected names among {', '.join(by_name)}, got {name!r}. Write array: file."
            )
        file, function = file if isinstance(file, tuple) and len(file) == 2 else (file, None)
        file, _, place = file.partition(":") if isinstance(file, str) else (file, "", "")
        file = checked_name(f"{where}, {name!r}", file)
        if not (function is None or callable(function)):
            raise ConfigurationError(
                f"{where}, {name!r}: expected (file, function), got {function!r} for the function. Name "
                "one of your own, which takes the file's path."
            )
        form = kind(f"{where}, {name!r}", file) if function is None else "own"
        column = read and form == "text" and bool(place)
        if (place and form != "hdf5" and not column) or (column and place.isdecimal() and not int(place)):
            raise ConfigurationError(
                f"{where}, {name!r}: expected after ':' a place in an HDF5 file, or a column from 1 of a "
                f"text that is read, got {file}:{place}. Correct it, or leave it out."
            )
        file_type, place = (ColumnFile, place) if column else (ArrayFile, place.strip("/") or name)
        new = file_type(by_name[name], file, place, function)
        for earlier in array_files:
            if read and function is not None and earlier.function is not None:
                continue
            may_share = form == "hdf5" or (column and isinstance(earlier, ColumnFile))
            if earlier.file == file and not (may_share and earlier.dataset != new.dataset):
                mend = "take one .h5 file for all"
                mend += ", or a column (file:2) or (file, function) for each" if read else ""
                raise ConfigurationError(
                    f"{where}: expected a file for each array, got {file!r} for {earlier.spec.name!r} and "
                    f"{name!r}. Name another, or {mend}."
                )
        array_files.append(new)
    return array_files


def checked_name(where: str, name: object) -> str:
    """A file name for use inside the folder, in its plain form.

    Raises:
        ConfigurationError: it leads elsewhere.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(name):
        raise ConfigurationError(
            f"{where}: expected the name of a file in the run's own folder, got {name!r}. "
            "Give a relative name without '..'."
        )
    return str(path)


def time_of(folder: Path) -> int:
    """Return the time of the last change in a folder, in ns of the clock of its files."""
    return folder.stat().st_mtime_ns


def output(folder: Path, name: str, began: int = 0) -> Path:
    """A file that the program left in the folder, safe to open.

    Args:
        folder: the folder of the run.
        name: the name of the file.
        began: the time when the run began, by `time_of`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a symbolic link leads out of the folder, it is no plain file, or it is older than the run.
    """
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # the second: links in a circle
        names = ", ".join(sorted(item.name for item in folder.iterdir())[:20])
        raise FileNotFoundError(f"expected the program to write {name}, found only {names}.") from None
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: expected a file in the run's own folder, got a link that leads out of it.")
    if not path.is_file():
        raise ValueError(f"{name}: expected a plain file, got a folder, a device or a pipe.")
    mtime = path.stat().st_mtime_ns
    if mtime < (began if mtime % 10**9 else began - 2 * 10**9):  # archives keep whole seconds, or two
        raise ValueError(
            f"{name}: expected a file that this run wrote, got one from before its start, such as an earlier "
            "run's, moved or copied with its time from a folder that all runs share. Have the program write "
            "into the run's own folder, or `touch` a file that is not to be told by its time."
        )
    return path


def copy_into(folder: Path, name: str, source: Path) -> None:
    """Copy a file or a whole folder to a name in the folder."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


def by_name(where: str, files: Any) -> dict[str, Any]:
    """A mapping by names of files; empty for None.

    Raises:
        ConfigurationError: it is none.
    """
    if files is not None and not isinstance(files, Mapping):
        raise ConfigurationError(
            f"{where}: expected a mapping by the file's name in the run's own folder, got {files!r}. "
            'Write {"NAME": ...}.'
        )
    return dict(files or {})


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


def kind(where: str, name: str) -> str:
    """A file's format, by its suffix: "npy", "hdf5" or "text".

    Raises:
        ConfigurationError: none of them.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{where}: expected a file name that ends in one of {', '.join(SUFFIXES)}, got {name!r}. "
            "For any other text take a template, for any other file (name, function)."
        )
    return SUFFIXES[suffix]


def write_file(folder: Path, file: ArrayFile, array: Array, vectorized: bool) -> None:
    """Write an array to its file, by its function if it has one."""
    path = folder / file.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.function is not None:
        file.function(path, array)
    else:
        write(path, file.dataset, array, vectorized)


def read_file(folder: Path, file: ArrayFile, leading: tuple[int, ...], began: int = 0) -> Array:
    """Read an array of the shape `(*leading, *spec.shape)` from its file, of a run that began then.

    Raises:
        ValueError, OSError: the file holds no such array of numbers.
    """
    path, shape = output(folder, file.file, began), (*leading, *file.spec.shape)
    if isinstance(file, ColumnFile):
        return read_column(path, file.dataset, shape, file.spec.floating)
    if file.function is None:
        return read(path, file.dataset, shape, file.spec.floating)
    answer = file.function(path)
    try:
        array = exactly(answer, file.spec.dtype or np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: {error}.") from None
    _check(path, array.shape, array.dtype, shape)
    return array


def write(path: Path, name: str, array: Array, vectorized: bool) -> None:
    """Write one array: a .npy file, a dataset at `name`, or lines of numbers.

    Text has the last axis on a line (commas in .csv, spaces elsewhere), with as many digits as name the
    value; where `vectorized`, a line holds all of a row. Several arrays may go to one HDF5 file.
    """
    form = SUFFIXES[path.suffix.lower()]
    if form == "npy":
        np.save(path, array, allow_pickle=False)
    elif form == "hdf5":
        import h5py  # here, so that a box with other files does not wait for it

        with h5py.File(path, "a") as file:
            if name in file:  # from a file that was copied here
                del file[name]
            file.create_dataset(name, data=array)
    else:
        columns = math.prod(array.shape[1:]) if vectorized else (array.shape or (1,))[-1]
        style = "%.17g" if array.dtype.kind == "f" else "%d"
        delimiter = "," if path.suffix.lower() == ".csv" else " "
        np.savetxt(path, array.reshape(-1, columns), fmt=style, delimiter=delimiter)


def read(path: Path, name: str, shape: tuple[int, ...], floating: bool) -> Array:
    """Read one array of the expected shape.

    Raises:
        ValueError, OSError: the file holds no such array of numbers.
    """
    form = SUFFIXES[path.suffix.lower()]
    if form == "text":
        return read_table(path, shape, floating)
    if form == "npy":
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError(f"{path.name}: expected one array, got more behind it. Save it alone.")
        _check(path, array.shape, array.dtype, shape)
        return array
    import h5py

    with h5py.File(path, "r") as file:
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise ValueError(f"{path.name}: expected a dataset {name!r}, found {', '.join(file) or 'none'}.")
        _check(path, dataset.shape, dataset.dtype, shape)
        check_written(path, dataset)
        return unpacked(dataset)


def _check(path: Path, actual: tuple[int, ...] | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: expected real numbers, got dtype {dtype}.")
    if actual != shape:
        raise ValueError(f"{path.name}: expected an array of shape {shape}, got {actual}.")
