"""`blackbox report --export`: what xarray and meshio read is what `evaluate` gave."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import tasks
from tasks import Row
from tasks.errors import ProblemError
from tasks.folder import checkpoint
from tasks.folder.run import Run, stage_name
from tasks.folder.terms import Terms
from tasks.progress import Progress
from tasks.wake_flow.problem import WakeFlow
from tests.tasks.problems import Steering
from tests.tasks.wake_flow.test_report import CONFIG, evaluation

FLOW = np.arange(2 * 3 * 2 * 4 * 5, dtype=np.float32).reshape(2, 3, 2, 4, 5)


class Room(Steering):
    """What is computed with a network that steers."""

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
        }


def run_of(kind, tmp_path, **settings):
    return tasks.run(kind(steps=2, methods=("none", "cge")), runs=tmp_path, progress=Progress(), **settings)


@pytest.mark.needs("fields")
def test_xarray_reads_what_evaluate_gave(tmp_path):
    import xarray

    run = run_of(Room, tmp_path, seeds=2)
    path = run.export("netcdf")
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert {group for group in tree.groups if group.count("/") == 2} == {
            f"/seed-{seed}/{method}" for seed in (0, 1) for method in ("none", "cge")
        }
        assert tree.attrs["problem"] == "room" and '"steps": 2' in tree.attrs["settings"]
        found = tree["seed-1/cge"]
        assert found.attrs["figure"] == "error" and found.attrs["value"] == 0.5
        np.testing.assert_array_equal(found["flow"], FLOW)
        assert found["flow"].dims == Room.dimensions["flow"]
        assert found["flow"].sel(x=0.25, method="nearest").values.tolist() == FLOW[..., 2].tolist()
        assert found["sensor"].values.tolist() == [True, False]
        assert found["at-all"].values.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert "unused" not in found.variables


@pytest.mark.needs("fields")
def test_coordinates_are_found_by_names_that_no_file_has_and_no_array_takes_another_s_place(tmp_path):
    import xarray

    class Timed(Room):
        dimensions: ClassVar = {"at all": ("time (s)", "x")}

        def coordinates(self):
            return {"time (s)": np.array([0.5, 1.5])}

    run = run_of(Timed, tmp_path)
    with xarray.open_datatree(run.export("netcdf"), engine="h5netcdf") as tree:
        found = tree["seed-0/cge"]["at-all"]
        assert found.dims == ("time-s-", "x")
        assert found["time-s-"].values.tolist() == [0.5, 1.5]
    fields = {"a b": torch.zeros(2), "a/b": torch.ones(2)}
    for method in ("none", "cge"):
        path = checkpoint.evaluation(run.path, stage_name(0, method))
        checkpoint.save(path, {**checkpoint.load(path), "fields": fields})
    with pytest.raises(ProblemError, match="got 'a b' and 'a/b', which would both be 'a-b'"):
        run.export("netcdf")


@pytest.mark.needs("fields")
def test_meshio_reads_the_values_of_cells_where_they_belong(tmp_path):
    import meshio

    folder = run_of(Room, tmp_path).export("vtk") / "seed-0" / "cge"
    assert {path.name for path in folder.iterdir()} == {"flow-0000.vtu", "flow-0001.vtu", "heat.vtu"}
    solid, flat = meshio.read(folder / "flow-0001.vtu"), meshio.read(folder / "heat.vtu")
    for mesh, kind in ((solid, "hexahedron"), (flat, "quad")):
        (cells,) = mesh.cells
        assert cells.type == kind
        middles = mesh.points[cells.data].mean(axis=1)
        corners = mesh.points[cells.data]
        # in VTK's order a cell's first two edges span it with a positive side
        turns = np.cross(corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0])
        assert (turns[:, 2] > 0).all()
        x, y, z = np.round(middles / [0.1, 1, 1] - 0.5).astype(int).T
        if kind == "quad":
            np.testing.assert_array_equal(mesh.cell_data["heat"][0], 4 * x + y)
        else:
            assert (corners[:, 4, 2] > corners[:, 0, 2]).all()
            values = mesh.cell_data["flow"][0]
            np.testing.assert_array_equal(values[:, :2], FLOW[1, z, :, y, x])
            assert (values[:, 2] == 0).all()


@pytest.mark.needs("fields")
def test_axes_without_names_are_numbered_and_wrong_ones_refused(tmp_path, monkeypatch):
    import xarray

    run = run_of(Room, tmp_path)
    for wrong in ({"heat": ("x",)}, {"heat": ("x", "x2"), "sensor": ("x",)}):
        monkeypatch.setattr(Room, "dimensions", wrong)
        with pytest.raises(
            ProblemError, match=r"Room.dimensions and coordinates: expected a name for each axis"
        ):
            run.export("netcdf")
    monkeypatch.setattr(Room, "dimensions", {})
    with xarray.open_datatree(run.export("netcdf"), engine="h5netcdf") as tree:
        assert tree["seed-0/none"]["heat"].dims == ("heat-0", "heat-1")
    with pytest.raises(ProblemError, match="expected arrays with axes named 'x' and 'y', got none"):
        run.export("vtk")
    with pytest.raises(ProblemError, match="expected arrays beside the figures"):
        run_of(Steering, tmp_path).export("netcdf")


@pytest.mark.needs("fields")
def test_the_wake_s_flow_goes_out_with_its_axes(tmp_path):
    """From an evaluation that is written down, as the tests of its report have it."""
    import meshio
    import xarray

    known = evaluation(("SRC", "NON"), 0)
    config = replace(CONFIG, methods=("SRC", "NON"))
    run = Run.create(
        tmp_path / "runs", Terms("wake-flow", "demo", config, [0], problem="tasks.wake_flow.problem:WakeFlow")
    )
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
    with xarray.open_datatree(found.export("netcdf"), engine="h5netcdf") as tree:
        moving = tree["seed-0/NON"]["moving"]
        assert moving.dims == ("time", "component", "y", "x")
        np.testing.assert_array_equal(moving, flow)
        assert moving["x"][[0, -1]].values.tolist() == [6.25, 93.75]  # eight cells over 100
        assert all("-0" not in axis for axis in tree["seed-0/SRC"].dims), "an axis has no name"
    mesh = meshio.read(found.export("vtk") / "seed-0" / "NON" / "moving-0005.vtu")
    np.testing.assert_array_equal(
        mesh.cell_data["moving"][0][:, :2].reshape(16, 8, 2), flow[5].transpose(1, 2, 0)
    )
    assert mesh.points.max(axis=0).tolist() == [100, 200, 0]


def test_the_command_line_says_where_it_is_or_what_is_missing(toy, tmp_path, capsys, monkeypatch):
    assert toy("run", "toy", "--methods", "none", "--runs", "runs") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    from blackbox import extras

    real = extras.import_module

    def missing(name):
        if name == "meshio":
            raise ModuleNotFoundError(name=name)
        return real(name)

    monkeypatch.setattr(extras, "import_module", missing)
    assert toy("report", str(folder), "--export", "vtk") == 1
    assert "pip install 'blackbox-coupling[fields]'" in capsys.readouterr().err
