"""Arrays that come from outside: their numbers as they are, or an error that says why they cannot be taken.

The one way in for what boxes, simulators, files and services give, whose numbers NumPy would convert in
silence: what lies behind a mask, 1.7 as 1, 300 as 44 in a byte, 1+2j as 1, 350 mm as 350.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]
_SIMPLE = (bool, int, float, complex, np.number, np.bool_)


def plain(value: object) -> Array:
    """An array's numbers in their own dtype; masked floats are NaN.

    A mask, as files of netCDF4 have it where a value is missing, hides a fill value, or an earlier value.

    Raises:
        TypeError: the numbers have a unit, or masked ones cannot be NaN.
        ValueError, RuntimeError: a list is ragged, or tensors require a gradient.
    """
    if type(value) is np.ndarray:  # no subclass: as it is
        return value
    if unit := unit_of(value):
        raise TypeError(f"numbers in {unit}, which would be dropped")
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_neg().resolve_conj()
        return (value.float() if value.dtype.itemsize == 2 and value.is_floating_point() else value).numpy()
    if isinstance(value, list | tuple) and not all(isinstance(part, _SIMPLE) for part in value):
        # NumPy itself drops the masks of what is in a list, and refuses tensors that require a gradient
        return np.asarray([part if isinstance(part, Tensor) else plain(part) for part in value])
    if hasattr(value, "dims") and hasattr(value, "data"):  # xarray, around any of these
        return plain(value.data)  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(value, "dask"):
        return plain(value.compute())  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asanyarray(value)
    mask = getattr(array, "mask", getattr(value, "mask", None))  # of NumPy, astropy, a quantity around these
    array = np.asarray(array)
    if isinstance(mask, np.ndarray | np.bool_) and mask.any():
        if array.dtype.kind != "f":
            raise TypeError("masked numbers that are not floating, which cannot be NaN")
        return np.where(mask, array.dtype.type(np.nan), array)
    return array


def exactly(value: object, dtype: object) -> Array:
    """An array's numbers in a dtype, as a copy: rounded where that is one of floats, else unchanged.

    Masked numbers, also whole ones, are NaN among floats.

    Args:
        value: numbers in any form that NumPy takes, or a tensor.
        dtype: a dtype of floats, whole numbers or booleans.

    Raises:
        TypeError: they are no real numbers, or have a unit.
        ValueError: the dtype cannot hold one of them.
    """
    target = np.dtype(dtype)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if isinstance(value, np.ma.MaskedArray) and target.kind == "f" and value.dtype.kind in "biu":
        value = value.astype(np.float64)
    array = plain(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"expected real numbers, got dtype {array.dtype}")
    if target.kind == "f":
        with np.errstate(over="ignore"):  # infinite, as which a row fails
            return array.astype(target)
    least, most = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
    if array.dtype.kind == "f" and not (whole := np.isfinite(array) & (array == np.floor(array))).all():
        raise ValueError(
            f"expected whole numbers, which alone {target} can hold, got {array[~whole].flat[0].item()!r}"
        )
    for number in (array.min().item(), array.max().item()) if array.size else ():
        if not least <= int(number) <= most:
            raise ValueError(f"expected numbers that {target} can hold, got {number!r}")
    return array.astype(target)


def unit_of(value: object) -> str:
    """The unit of a quantity, as astropy, pint and unyt have them; "" for plain numbers.

    A text, such as the attribute of a variable of netCDF4, says what the numbers are, and binds nobody.
    """
    if isinstance(value, Tensor) or type(value) in (np.ndarray, *_SIMPLE):
        return ""
    unit = getattr(value, "unit", None)
    unit = getattr(value, "units", None) if unit is None else unit
    if unit is None or isinstance(unit, str | bytes) or hasattr(unit, "__len__"):  # a column of a table
        return ""
    return "" if str(unit) in ("", "1", "dimensionless") else str(unit)
