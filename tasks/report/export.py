"""`blackbox report FOLDER --export`: the arrays of a run's evaluation as NetCDF files, for other programs.

One file for each seed and method, `seed-0/METHOD.nc`, written by xarray in NetCDF's classic format, which
`xarray.open_dataset(path)` and ParaView open. What axes are called, the problem says: `Problem.dimensions`
and `Problem.coordinates`. ParaView takes axes named "time", "z", "y" and "x", in this order, for what they
are called.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.extras import import_extra
from tasks.errors import ProblemError
from tasks.report.findings import Findings, Reported

FOLDER = "export"
EXTRA = "fields"
CONVENTIONAL = {
    "x": "X",
    "y": "Y",
    "z": "Z",
    "time": "T",
}  # how the conventions of climate and forecast call them


def export(findings: Findings, problem: Reported | None) -> Path:
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
    xarray = import_extra("--export", "xarray", EXTRA)
    folder = findings.run.path / FOLDER
    rows = {(row.seed, row.method): row for row in findings.result.table}
    settings = {"problem": findings.run.task, "settings": json.dumps(findings.run.config)}
    written = 0
    for seed, method, arrays in _evaluations(findings):
        row = rows[seed, method]
        about = {"method": method, "seed": seed, "figure": row.metric, "unit": row.unit, **settings}
        if row.value is not None:
            about["value"] = row.value
        named = _named(arrays, problem)
        try:
            made = xarray.Dataset(named, _coordinates(problem, named), about)
        except ValueError as error:
            raise _wrong(problem, str(error)) from None
        for name in made.data_vars:
            made[name].attrs |= {"units": row.units[name]} if name in row.units else {}
        for axis in CONVENTIONAL.keys() & made.sizes:
            made = (
                made
                if axis in made.coords
                else made.assign_coords({axis: np.arange(float(made.sizes[axis]))})
            )
            made[axis].attrs["axis"] = CONVENTIONAL[axis]
        path = folder / f"seed-{seed}" / f"{_file_name(method)}.nc"
        path.parent.mkdir(parents=True, exist_ok=True)
        made.to_netcdf(path, engine="scipy")
        written += 1
    if not written:
        raise _none(findings)
    return folder


def _evaluations(findings: Findings) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for seed, methods in findings.fields.items():
        for method, arrays in methods.items():
            if arrays:
                yield seed, method, arrays


def _named(
    arrays: Mapping[str, Any], problem: Reported | None
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Each array with the names of its axes; "NAME 0", "NAME 1" where the problem gives none."""
    known = {} if problem is None else problem.dimensions
    every = {
        name: tuple(known.get(name, [f"{name} {axis}" for axis in range(np.ndim(values))]))
        for name, values in arrays.items()
    }
    files, axes_of = _file_names(arrays), _file_names(axis for axes in every.values() for axis in axes)
    named = {}
    for name, axes in every.items():
        if len(axes) != np.ndim(arrays[name]):
            raise _wrong(problem, f"{name!r} has {np.ndim(arrays[name])} axes, of which {axes} are named")
        named[files[name]] = (tuple(axes_of[axis] for axis in axes), np.asarray(arrays[name]))
    return named


def _coordinates(problem: Reported | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the problem knows and some array has."""
    known = {} if problem is None else problem.coordinates()
    used = {axis for axes, _ in named.values() for axis in axes}
    files = _file_names(known)
    return {
        files[axis]: (files[axis], np.asarray(values))
        for axis, values in known.items()
        if files[axis] in used
    }


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.@+-]+", "-", name)


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """By name what a file, or a variable or axis in it, is called; refused where two would be one."""
    names_of: dict[str, str] = {}
    for name in dict.fromkeys(names):
        same = next((other for other, file in names_of.items() if file == _file_name(name)), None)
        if same is not None:
            raise ProblemError(
                f"export: expected names that differ in letters or digits, got {same!r} and {name!r}, which "
                f"would both be {_file_name(name)!r}. Give one of them another name."
            )
        names_of[name] = _file_name(name)
    return names_of


def _wrong(problem: Reported | None, why: str) -> ProblemError:
    return ProblemError(
        f"{type(problem).__name__}.dimensions and coordinates: expected a name for each axis of what "
        f"evaluate returns, and one length for each name, got: {why}."
    )


def _none(findings: Findings) -> ProblemError:
    return ProblemError(
        f"{findings.run.path}: expected arrays beside the figures that evaluate returned, got none. Return "
        "some: {'test error': error, 'velocity': velocity}."
    )
