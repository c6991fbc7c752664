"""`blackbox report FOLDER --export netcdf|vtk`: the arrays of a run's evaluation, for other programs.

NetCDF: one file, `fields.nc`, with a group `seed-0/METHOD` for each method and seed, written by xarray:
`xarray.open_datatree(path, engine="h5netcdf")`. VTK: for ParaView, a file for each array that has axes named
"x" and "y" (and "z"), and for each of its times: values of the cells of a regular grid, written by meshio.

What axes are called, the problem says: `Problem.dimensions` and `Problem.coordinates`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.extras import import_extra
from tasks.errors import ProblemError
from tasks.report.findings import Findings, Reported

FOLDER = "export"
EXTRA = "fields"
SPACE = ("x", "y", "z")
COMPONENT = "component"  # the axis of a vector's components


def export(found: Findings, problem: Reported | None, kind: str) -> Path:
    """Write the arrays that `evaluate` gave.

    Args:
        found: A finished run.
        problem: Names the axes; if None they are numbered.
        kind: "netcdf" or "vtk".

    Returns:
        The file, or for "vtk" the folder.

    Raises:
        MissingExtraError: xarray or meshio is not installed.
        ProblemError: There are no such arrays; or the problem names their axes wrongly.
    """
    folder = found.run.path / FOLDER
    return _netcdf(found, problem, folder) if kind == "netcdf" else _vtk(found, problem, folder)


def _netcdf(found: Findings, problem: Reported | None, folder: Path) -> Path:
    xarray = import_extra("--export netcdf", "xarray", EXTRA)
    import_extra("--export netcdf", "h5netcdf", EXTRA)
    rows = {(row.seed, row.method): row for row in found.result.table}
    groups: dict[str, Any] = {}
    for seed, method, arrays in _evaluations(found):
        row = rows[seed, method]
        about = {"method": method, "seed": seed, "figure": row.metric, "unit": row.unit}
        if row.value is not None:
            about["value"] = row.value
        named = _named(arrays, problem)
        axes = _coordinates(problem, named)
        try:
            made = xarray.Dataset(named, axes, about)
            for name in made.data_vars:
                made[name].attrs |= {"units": row.units[name]} if name in row.units else {}
            groups[f"/seed-{seed}/{_file_name(method)}"] = made
        except ValueError as error:
            raise _wrong(problem, str(error)) from None
    if not groups:
        raise _none(found)
    groups["/"] = xarray.Dataset(attrs={"problem": found.run.task, "settings": json.dumps(found.run.config)})
    folder.mkdir(exist_ok=True)
    path = folder / "fields.nc"
    xarray.DataTree.from_dict(groups).to_netcdf(path, engine="h5netcdf")
    return path


def _vtk(found: Findings, problem: Reported | None, folder: Path) -> Path:
    meshio = import_extra("--export vtk", "meshio", EXTRA)
    written = 0
    for seed, method, arrays in _evaluations(found):
        place = folder / f"seed-{seed}" / _file_name(method)
        named = _named(arrays, problem)
        axes = _coordinates(problem, named)
        for name, (dimensions, values) in named.items():
            space = [axis for axis in SPACE if axis in dimensions]
            if len(space) < 2:
                continue
            points, cells = _grid(
                [_edges(axes, axis, values.shape[dimensions.index(axis)]) for axis in space]
            )
            for number, part in _parts(dimensions, values, space):
                place.mkdir(parents=True, exist_ok=True)
                mesh = meshio.Mesh(points, cells, cell_data={name: [part]})
                mesh.write(place / f"{_file_name(name)}{number}.vtu", file_format="vtu")
                written += 1
    if not written:
        raise ProblemError(
            f"{found.run.path}: expected arrays with axes named 'x' and 'y', got none. Name the axes of what "
            "evaluate returns in the problem's class: dimensions = {'velocity': ('time', 'y', 'x')}; give "
            "--trust too, if the run's code has to be executed for that. Or take --export netcdf."
        )
    return folder


def _evaluations(found: Findings) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for seed, methods in found.fields.items():
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


def _edges(axes: Mapping[str, Any], axis: str, count: int) -> np.ndarray:
    """Where cells begin and end along an axis, halfway between their middles; 0, 1, 2... if not known."""
    if axis not in axes or count < 2:
        return np.arange(count + 1.0)
    middles = np.asarray(axes[axis][1], float)
    inner = (middles[1:] + middles[:-1]) / 2
    return np.concatenate(([2 * middles[0] - inner[0]], inner, [2 * middles[-1] - inner[-1]]))


def _grid(edges: list[np.ndarray]) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Points (points, 3) and cells of a regular grid, both with x running fastest."""
    axes = [*edges, *[np.zeros(1)] * (3 - len(edges))]
    z, y, x = np.meshgrid(*reversed(axes), indexing="ij")
    points = np.stack((x, y, z), axis=-1).reshape(-1, 3)
    index = np.arange(len(points)).reshape(x.shape)
    if len(edges) == 2:
        flat = index[0]
        corners = (flat[:-1, :-1], flat[:-1, 1:], flat[1:, 1:], flat[1:, :-1])
        return points, [("quad", np.stack(corners, axis=-1).reshape(-1, 4))]
    below, above = index[:-1], index[1:]
    corners = [
        part[place]
        for part in (below, above)
        for place in (np.s_[:, :-1, :-1], np.s_[:, :-1, 1:], np.s_[:, 1:, 1:], np.s_[:, 1:, :-1])
    ]
    return points, [("hexahedron", np.stack(corners, axis=-1).reshape(-1, 8))]


def _parts(
    dimensions: tuple[str, ...], values: np.ndarray, space: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The values of cells, (cells,) or (cells, 3), for each place along the axes that are no space."""
    vector = COMPONENT in dimensions and values.shape[dimensions.index(COMPONENT)] <= 3
    last = [*reversed(space), *([COMPONENT] if vector else [])]
    others = [axis for axis in dimensions if axis not in last]
    ordered = np.transpose(values, [dimensions.index(axis) for axis in (*others, *last)])
    for place in product(*map(range, ordered.shape[: len(others)])):
        part = ordered[place]
        if vector:  # VTK's vectors have three components
            part = part.reshape(-1, part.shape[-1])
            part = np.pad(part, ((0, 0), (0, 3 - part.shape[1])))
        yield (
            "".join(f"-{number:04d}" for number in place),
            np.ascontiguousarray(part if vector else part.ravel()),
        )


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.@+-]+", "-", name)


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """By name what a file, or a variable or axis in it, is called; refused where two would be one."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        same = next((other for other, file in found.items() if file == _file_name(name)), None)
        if same is not None:
            raise ProblemError(
                f"export: expected names that differ in letters or digits, got {same!r} and {name!r}, which "
                f"would both be {_file_name(name)!r}. Give one of them another name."
            )
        found[name] = _file_name(name)
    return found


def _wrong(problem: Reported | None, why: str) -> ProblemError:
    return ProblemError(
        f"{type(problem).__name__}.dimensions and coordinates: expected a name for each axis of what "
        f"evaluate returns, and one length for each name, got: {why}."
    )


def _none(found: Findings) -> ProblemError:
    return ProblemError(
        f"{found.run.path}: expected arrays beside the figures that evaluate returned, got none. Return "
        "some: {'test error': error, 'velocity': velocity}."
    )
