"""Arrays written to and read from files: .npy, HDF5, and numbers as text; nothing in them is ever run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from blackbox.errors import ConfigurationError

Array = np.ndarray[Any, Any]
SUFFIXES = {
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".csv": "text",
    ".txt": "text",
    ".dat": "text",
}
_NUMPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def kind(where: str, name: str) -> str:
    """The format that a file's suffix says: "npy", "hdf5" or "text".

    Raises:
        ConfigurationError: none of them.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigurationError(
            f"{where}: expected a file name that ends in one of {', '.join(SUFFIXES)}, got {name!r}. "
            "For any other text take a template."
        )
    return SUFFIXES[suffix]


def write(path: Path, name: str, array: Array, vectorized: bool) -> None:
    """Write one array: a .npy file, a dataset at `name`, or lines of numbers.

    Text has the last axis on a line (commas in .csv, spaces elsewhere), with as many digits as name the
    value; where `vectorized`, a line holds all of a row. Several arrays may go to one HDF5 file.
    """
    form = SUFFIXES[path.suffix.lower()]
    if form == "npy":
        np.save(path, array, allow_pickle=False)
    elif form == "hdf5":
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
    """Read one array of the expected shape; what is larger is never loaded.

    Raises:
        ValueError, OSError: the file holds no such array of numbers.
    """
    form = SUFFIXES[path.suffix.lower()]
    if form == "npy":
        return _read_npy(path, shape)
    if form == "hdf5":
        return _read_hdf5(path, name, shape)
    return _read_text(path, shape, floating)


def _read_npy(path: Path, shape: tuple[int, ...]) -> Array:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in _NUMPY_HEADERS:
            raise ValueError(f"{path.name}: expected .npy version 1.0 or 2.0, got {version}. Use numpy.save.")
        found, _, dtype = _NUMPY_HEADERS[version](file)
        _check(path, found, dtype, shape)  # before anything is allocated, or unpickled
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_hdf5(path: Path, name: str, shape: tuple[int, ...]) -> Array:
    with h5py.File(path, "r") as file:
        dataset: Any = file
        for part in name.split("/"):
            # links, virtual and external data could lead to files outside the scratch folder
            inside = isinstance(dataset, h5py.Group) and isinstance(
                dataset.get(part, getlink=True), h5py.HardLink
            )
            dataset = dataset[part] if inside else None
        if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
            raise ValueError(
                f"{path.name}: expected a dataset {name!r} whose numbers are in this file, "
                f"found {', '.join(file) or 'none'}."
            )
        _check(path, dataset.shape, dataset.dtype, shape)
        return np.asarray(dataset[()])


def _read_text(path: Path, shape: tuple[int, ...], floating: bool) -> Array:
    count = math.prod(shape)
    delimiter = "," if path.suffix.lower() == ".csv" else None
    numbers: list[float] = []
    with path.open(encoding="utf-8") as file:
        for index, line in enumerate(file):
            words = [word for word in line.partition("#")[0].split(delimiter) if word.strip()]
            try:
                numbers += [float(word) if floating else int(word) for word in words]
            except ValueError:
                if index > 0:  # the first line may say what the columns are
                    raise ValueError(
                        f"{path.name}: expected numbers in line {index + 1}, got {line[:80].strip()!r}."
                    ) from None
            if len(numbers) > count:
                break
    if len(numbers) != count:
        found = "more" if len(numbers) > count else str(len(numbers))
        raise ValueError(f"{path.name}: expected {count} numbers for shape {shape}, found {found}.")
    return np.array(numbers, np.float64 if floating else np.int64).reshape(shape)


def _check(path: Path, found: tuple[int, ...] | None, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.kind not in "biuf":
        raise ValueError(f"{path.name}: expected real numbers, got dtype {dtype}.")
    if found != shape:
        raise ValueError(f"{path.name}: expected an array of shape {shape}, got {found}.")
