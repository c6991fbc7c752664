"""The numbers of an HDF5 dataset: where they are, and which NetCDF calls packed, unsigned or missing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_BY_USER = 2  # H5D_FILL_VALUE_USER_DEFINED
# where a NetCDF-4 variable was never written, by kind and bytes; a byte has none, which every value may be
_NEVER_WRITTEN = {
    "f4": 9.969209968386869e36,
    "f8": 9.969209968386869e36,
    "i2": -32767,
    "i4": -2147483647,
    "i8": -9223372036854775806,
    "u2": 65535,
    "u4": 4294967295,
    "u8": 18446744073709551614,
}


def check_written(path: Path, dataset: Any) -> None:
    """Refuse a dataset whose numbers were not all written, or are in files outside of its own folder.

    Args:
        path: the path of the file.
        dataset: a dataset of h5py.

    Raises:
        ValueError: the message says which numbers.
    """
    sources = [dataset.file.filename, *(name for name, *_ in dataset.external or ())]
    sources += [source.file_name for source in dataset.virtual_sources()] if dataset.is_virtual else []
    folder = path.parent.resolve()
    for source in set(sources) - {".", str(path)}:
        place = (folder / source).resolve()
        if not place.is_relative_to(folder) or not place.is_file():
            raise ValueError(
                f"{path.name}, {dataset.name}: expected numbers in the run's own folder, "
                f"got a link to {source}."
            )
    plan = dataset.id.get_create_plist()
    if dataset.is_virtual or not dataset.size or plan.fill_value_defined() == _BY_USER:
        return
    whole = dataset.id.get_storage_size() > 0
    if dataset.chunks:
        parts = (math.ceil(size / chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        whole = dataset.id.get_num_chunks() == math.prod(parts)
    if not whole:
        raise ValueError(
            f"{path.name}, {dataset.name}: expected numbers that were written, got places that were not, "
            "which read as 0. Have the program write all of them, or create it with a fill value."
        )


def unpacked(dataset: Any) -> Array:
    """The numbers that a dataset stands for; missing numbers are NaN.

    Without one of the attributes the numbers are as they are stored. Sources: the NetCDF users' guide,
    appendix "Attribute Conventions"; CF conventions 1.11, sections 2.5.1 and 8.1.

    Args:
        dataset: a dataset of h5py, of real numbers.

    Raises:
        ValueError: an attribute is no number.
    """
    stored, attributes = np.asarray(dataset[()]), dataset.attrs
    if stored.dtype.kind == "i" and _text(attributes.get("_Unsigned")) == "true":
        stored = stored.view(stored.dtype.str.replace("i", "u"))
    missing = np.zeros(stored.shape, bool)
    for name in ("_FillValue", "missing_value"):
        for value in _numbers(dataset, name):
            with np.errstate(over="ignore"):
                missing |= stored == (value.astype(stored.dtype) if stored.dtype.kind in "uf" else value)
    kind = stored.dtype.str[1:]
    if "_FillValue" not in attributes and "_NCProperties" in dataset.file.attrs and kind in _NEVER_WRITTEN:
        missing |= stored == np.array(_NEVER_WRITTEN[kind], stored.dtype)
    least, most = _numbers(dataset, "valid_min"), _numbers(dataset, "valid_max")
    if len(limits := _numbers(dataset, "valid_range")) == 2:
        least, most = limits[:1], limits[1:]
    if len(least) == 1:
        missing |= stored < least[0]
    if len(most) == 1:
        missing |= stored > most[0]
    scale, offset = _numbers(dataset, "scale_factor"), _numbers(dataset, "add_offset")
    values = stored
    if len(scale) or len(offset):
        values = stored.astype(np.float64) * (scale[0] if len(scale) else 1) + (
            offset[0] if len(offset) else 0
        )
    return np.where(missing, np.nan, values) if missing.any() else values


def _numbers(dataset: Any, name: str) -> Array:
    """The numbers of an attribute; none where it is not there."""
    array = np.ravel(dataset.attrs.get(name, ()))
    if array.size and array.dtype.kind not in "biuf":
        raise ValueError(
            f"{dataset.name}: expected numbers in its attribute {name!r}, got {array}. Have the program "
            "write numbers, or take (file, function)."
        )
    return array


def _text(value: object) -> str:
    return (value.decode(errors="replace") if isinstance(value, bytes) else str(value)).lower()
