"""`blackbox report FOLDER --export`: the arrays of a run's evaluation as NetCDF files, for other programs.

One file for each seed and method, `seed-0/METHOD.nc`, written by xarray in NetCDF's classic format, which
`xarray.open_dataset(path)` and ParaView open. What axes are called, the problem says: `Problem.dimensions`
and `Problem.coordinates`. ParaView takes axes named "time", "z", "y" and "x", in this order, for what they
are called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blackbox.extras import import_extra
from tasks.errors import ProblemError
from tasks.report.findings import Findings

if TYPE_CHECKING:
    from tasks.problem.problem import Problem

FOLDER = "export"
CONVENTIONAL = {"x": "X", "y": "Y", "z": "Z", "time": "T"}  # as the conventions of climate and forecast say


def export(findings: Findings, problem: Problem | None) -> Path:
    """Write the arrays that `evaluate` gave.

    Args:
        findings: A finished run.
        problem: Names the axes; if None they are numbered.

    Returns:
        The folder of the files.

    Raises:
        MissingExtraError: xarray is not installed.
        ProblemError: There are no such arrays; or the problem names their axes wrongly.
    """
    xarray = import_extra("--export", "xarray", "fields")
    folder = findings.run.path / FOLDER
    settings = {"problem": findings.run.task, "settings": json.dumps(findings.run.config)}
    rows = [row for row in findings.result.table if findings.fields[row.seed].get(row.method)]
    for row in rows:
        about = {"method": row.method, "seed": row.seed, "figure": row.metric, "unit": row.unit, **settings}
        about |= {} if row.value is None else {"value": row.value}
        arrays = findings.fields[row.seed][row.method]
        try:
            dataset = xarray.Dataset(**_named(arrays, problem), attrs=about)
        except ValueError as error:
            raise ProblemError(
                f"{type(problem).__name__}.dimensions and coordinates: expected a name for each axis of what "
                f"evaluate returns, and one length for each name, got: {error}."
            ) from None
        for name, variable in _file_names(arrays).items():
            if name in row.units:
                dataset[variable].attrs["units"] = row.units[name]
        for axis in CONVENTIONAL.keys() & dataset.sizes:
            if axis not in dataset.coords:
                dataset = dataset.assign_coords({axis: np.arange(float(dataset.sizes[axis]))})
            dataset[axis].attrs["axis"] = CONVENTIONAL[axis]
        path = folder / f"seed-{row.seed}" / f"{_file_names([row.method])[row.method]}.nc"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_netcdf(path, engine="scipy")
    if not rows:
        raise ProblemError(
            f"{findings.run.path}: expected arrays beside the figures that evaluate returned, got none. "
            "Return some: {'test error': error, 'velocity': velocity}."
        )
    return folder


def _named(arrays: Mapping[str, Any], problem: Problem | None) -> dict[str, dict[str, Any]]:
    """Each array, and the coordinates that it has, with its axes; "NAME 0", "NAME 1" where none are named."""
    dimensions, values = ({}, {}) if problem is None else (problem.dimensions, problem.coordinates())
    axes_of = {
        name: tuple(dimensions.get(name, [f"{name} {axis}" for axis in range(np.ndim(array))]))
        for name, array in arrays.items()
    }
    axis_names = {axis for axes in axes_of.values() for axis in axes}
    files, files_of_axes = _file_names(arrays), _file_names({**dict.fromkeys(axis_names), **values})
    return {
        "data_vars": {
            files[name]: ([files_of_axes[axis] for axis in axes], _storable(arrays[name]))
            for name, axes in axes_of.items()
        },
        "coords": {
            files_of_axes[axis]: (files_of_axes[axis], _storable(along))
            for axis, along in values.items()
            if axis in axis_names
        },
    }


def _storable(values: Any) -> np.ndarray:
    """An array as classic NetCDF has it: whole numbers have a sign and 32 bits; larger ones are floats."""
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        return array
    fits = np.all((array >= -(2**31)) & (array < 2**31))
    return array.astype(np.int32 if fits else np.float64)


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to that of a file, or a variable or axis in it; refused where two would be one."""
    files = {name: re.sub(r"[^\w.@+-]+", "-", name) for name in names}
    for (one, file), (other, same) in combinations(files.items(), 2):
        if file == same:
            raise ProblemError(
                f"export: expected names that differ in letters or digits, got {one!r} and {other!r}, which "
                f"would both be {file!r}. Give one of them another name."
            )
    return files
