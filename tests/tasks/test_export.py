"""`blackbox report --export`: what xarray and SciPy read is what `evaluate` gave."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import tasks
from tasks import Progress, Row
from tasks.applications.wake_flow import WakeFlow
from tasks.errors import ProblemError
from tasks.folder import checkpoint
from tasks.folder.run import stage_name
from tests.tasks.applications.wake_flow.test_report import CONFIG, evaluation
from tests.tasks.made_runs import begun_run
from tests.tasks.problems import Steering

FLOW = np.arange(2 * 3 * 2 * 4 * 5, dtype=np.float32).reshape(2, 3, 2, 4, 5)


class Room(Steering):
    """What is computed with a network that steers."""

    units: ClassVar = {"at all": "m", "at-all": "s", "heat": "K"}
    dimensions: ClassVar = {
        "flow": ("time", "z", "component", "y", "x"),
        "heat": ("x", "y"),
        "sensor": ("sensor",),
    }

    def coordinates(self):
        return {"x": np.array([0.5, 1.5, 2.5, 3.5, 4.5]) / 10, "unused": np.zeros(3)}

    def evaluate(self, network):
        return {
            "error": 0.5,
            "flow": FLOW,
            "heat": np.arange(20.0).reshape(5, 4),
            "sensor": torch.tensor([True, False]),
            "at all": torch.arange(6).reshape(2, 3),
            "pixels": torch.tensor([0, 255], dtype=torch.uint8),
            "cells": np.array([[-(2**31), 2**31 - 1], [2**31, 2**40]]),
        }


def run_of(kind, tmp_path, **settings):
    return tasks.run(kind(steps=2, methods=("none", "cge")), runs=tmp_path, progress=Progress(), **settings)


@pytest.mark.needs("fields")
def test_xarray_reads_what_evaluate_gave(tmp_path):
    import xarray

    run = run_of(Room, tmp_path, seeds=2)
    folder = run.export()
    assert {str(path.relative_to(folder)) for path in folder.glob("*/*")} == {
        f"seed-{seed}/{method}.nc" for seed in (0, 1) for method in ("none", "cge")
    }
    with xarray.open_dataset(folder / "seed-1" / "cge.nc") as found:
        assert found.attrs["problem"] == "room" and '"steps": 2' in found.attrs["settings"]
        assert found.attrs["figure"] == "error" and found.attrs["value"] == 0.5
        np.testing.assert_array_equal(found["flow"], FLOW)
        assert found["flow"].dims == Room.dimensions["flow"]
        assert found["flow"].sel(x=0.25, method="nearest").values.tolist() == FLOW[..., 2].tolist()
        assert found["sensor"].values.tolist() == [True, False]
        assert found["at-all"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["pixels"].values.tolist() == [0, 255]
        assert found["cells"].values.tolist() == [[-(2**31), 2**31 - 1], [2**31, 2**40]]
        assert (found["at-all"].attrs["units"], found["heat"].attrs["units"]) == ("m", "K")
        assert "unused" not in found.variables


@pytest.mark.needs("fields")
def test_coordinates_are_found_by_names_that_no_file_has_and_no_array_takes_another_s_place(tmp_path):
    import xarray

    class Timed(Room):
        dimensions: ClassVar = {"at all": ("time (s)", "x")}

        def coordinates(self):
            return {"time (s)": np.array([0.5, 1.5])}

    run = run_of(Timed, tmp_path)
    with xarray.open_dataset(run.export() / "seed-0" / "cge.nc") as file:
        found = file["at-all"]
        assert found.dims == ("time-s-", "x")
        assert found["time-s-"].values.tolist() == [0.5, 1.5]
    fields = {"a b": torch.zeros(2), "a/b": torch.ones(2)}
    for method in ("none", "cge"):
        path = checkpoint.evaluation(run.path, stage_name(0, method))
        checkpoint.save(path, {**checkpoint.load(path), "fields": fields})
    with pytest.raises(ProblemError, match="got 'a b' and 'a/b', which would both be 'a-b'"):
        run.export()


@pytest.mark.needs("fields")
def test_files_are_what_paraview_reads(tmp_path):
    """Classic NetCDF, in which axes say which they are as the conventions want it: it needs both."""
    from scipy.io import netcdf_file

    path = run_of(Room, tmp_path).export() / "seed-0" / "cge.nc"
    with netcdf_file(path, mmap=False) as raw:  # a reader of its own, which knows the classic format alone
        flow = raw.variables["flow"]
        assert flow.dimensions == Room.dimensions["flow"] and flow[:].tolist() == FLOW.tolist()
        named = {name: raw.variables[name].axis for name in ("time", "x", "y", "z")}
        assert named == {"time": b"T", "x": b"X", "y": b"Y", "z": b"Z"}
        np.testing.assert_array_equal(raw.variables["x"][:], Room.coordinates(None)["x"])
        np.testing.assert_array_equal(
            raw.variables["time"][:], [0, 1]
        )  # the problem gives none: they are counted


@pytest.mark.needs("fields")
def test_axes_without_names_are_numbered_and_wrong_ones_refused(tmp_path, monkeypatch):
    import xarray

    run = run_of(Room, tmp_path)
    for wrong in ({"heat": ("x",)}, {"heat": ("x", "x2"), "sensor": ("x",)}):
        monkeypatch.setattr(Room, "dimensions", wrong)
        with pytest.raises(
            ProblemError, match=r"Room.dimensions and coordinates: expected a name for each axis"
        ):
            run.export()
    monkeypatch.setattr(Room, "dimensions", {})
    with xarray.open_dataset(run.export() / "seed-0" / "none.nc") as file:
        assert file["heat"].dims == ("heat-0", "heat-1")
    with pytest.raises(ProblemError, match="expected arrays beside the figures"):
        run_of(Steering, tmp_path).export()


@pytest.mark.needs("fields")
def test_the_wake_s_flow_goes_out_with_its_axes(tmp_path):
    """From an evaluation that is written down, as the tests of its report have it."""
    import xarray

    known = evaluation(("SRC", "NON"), 0)
    config = replace(CONFIG, methods=("SRC", "NON"))
    problem = "tasks.applications.wake_flow.problem:WakeFlow"
    run = begun_run(tmp_path / "runs", "wake-flow", "demo", config, [0], problem=problem)
    table = []
    for method in config.methods:
        fields = {name: torch.as_tensor(values) for name, values in known[method].items()}
        path = checkpoint.evaluation(run.path, stage_name(0, method))
        path.parent.mkdir(exist_ok=True)
        checkpoint.save(path, {"fields": fields, "figures": {"MAE": 0.1}, "ledger": {}})
        table.append(Row(method=method, seed=0, metric="MAE", value=0.1))
    run.finish(table)
    found = tasks.FinishedRun(run, WakeFlow(config))
    flow = known["NON"]["moving"]
    folder = found.export() / "seed-0"
    with xarray.open_dataset(folder / "NON.nc") as file, xarray.open_dataset(folder / "SRC.nc") as alone:
        moving = file["moving"]
        assert moving.dims == ("time", "component", "y", "x")
        np.testing.assert_array_equal(moving, flow)
        assert moving["x"][[0, -1]].values.tolist() == [6.25, 93.75]  # eight cells over 100
        assert all("-0" not in axis for axis in alone.sizes), "an axis has no name"


def test_the_command_line_says_where_it_is_or_what_is_missing(toy, tmp_path, capsys, monkeypatch):
    assert toy("run", "toy", "--methods", "none", "--runs", "runs") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    from blackbox import extras

    real = extras.import_module

    def missing(name):
        if name == "xarray":
            raise ModuleNotFoundError(name=name)
        return real(name)

    monkeypatch.setattr(extras, "import_module", missing)
    assert toy("report", str(folder), "--export") == 1
    assert "pip install 'blackbox-coupling[fields]'" in capsys.readouterr().err
