"""Beside Mosaic: flows and losses against closed forms, columns on a small box, and states of cells."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.mosaic import bands, cells, comparison, field, recovery, space
from benchmarks.mosaic.corrector import (
    CI,
    COLUMNS,
    PAPER,
    Corrector,
    errors,
    flows,
    loss_scale,
    objective_of,
    trained,
)
from benchmarks.mosaic.flow import SIDE, half_cell, projected, start, trajectory, wavenumbers
from benchmarks.mosaic.solvers import SOLVERS, with_vjp
from blackbox import ArraySpec, BlackBoxFunction


class Damped(BlackBoxFunction):
    """A velocity that the fluid carries too slowly, by Fourier modes and two explicit steps."""

    arrays = "torch"

    def __init__(self, points: int) -> None:
        self.inputs = self.outputs = (ArraySpec("velocity", (2, points, points)),)

    def evaluate_rows(self, velocity):
        with torch.no_grad():
            return self.advance(velocity)

    @staticmethod
    def advance(velocity):
        first, second = (torch.tensor(each) for each in wavenumbers(velocity.shape[-1]))
        for _ in range(2):
            modes = torch.fft.fft2(velocity.double())
            slopes = [torch.fft.ifft2(1j * each * modes).real for each in (first, second)]
            carried = velocity[:, :1] * slopes[0] + velocity[:, 1:] * slopes[1]
            velocity = projected(velocity - 0.01 * carried).float()
        return velocity


def divergence(velocity):
    first, second = wavenumbers(velocity.shape[-1])
    modes = np.fft.fft2(velocity)
    return np.fft.ifft2(1j * first * modes[..., 0, :, :] + 1j * second * modes[..., 1, :, :]).real


def test_starts_are_the_same_on_all_grids_and_have_no_divergence():
    coarse, fine = start(32, 7), start(64, 7)
    assert np.abs(fine[:, ::2, ::2] - coarse).max() < 1e-12
    assert np.abs(divergence(coarse)).max() < 1e-12
    assert np.hypot(*start(128, 7)).max() == pytest.approx(0.5)


def test_the_reference_decays_a_taylor_green_vortex_as_its_closed_form_says():
    along = np.arange(24) * SIDE / 24
    vortex = np.stack([np.outer(np.sin(along), np.cos(along)), -np.outer(np.cos(along), np.sin(along))])
    found = trajectory(vortex, 3, 12, viscosity=0.05, span=0.5, substeps=5)
    for frame in range(4):
        wanted = vortex[:, ::2, ::2] * math.exp(-2 * 0.05 * 0.5 * frame)
        assert np.abs(found[frame] - wanted).max() < 1e-6


def test_the_reference_has_converged_in_space_and_time():
    own, finer = (
        trajectory(start(points, 3), 2, 24, 1e-3, 0.08, steps) for points, steps in ((48, 8), (72, 16))
    )
    assert np.linalg.norm(own - finer) < 1e-4 * np.linalg.norm(finer)


def test_the_projection_keeps_what_has_no_divergence_and_drops_slopes_and_the_mean():
    velocity = torch.from_numpy(start(20, 1))
    assert (projected(velocity) - velocity).abs().max() < 1e-12
    along = torch.arange(20, dtype=torch.float64) * SIDE / 20
    slope = torch.stack([along.cos()[:, None].expand(20, 20), torch.full((20, 20), 3.0, dtype=torch.float64)])
    assert projected(slope).abs().max() < 1e-12


def test_half_a_cell_is_half_a_cell():
    along = np.arange(16) * SIDE / 16
    wave = np.stack([np.sin(3 * along)[:, None] + 0 * along, 0 * along[:, None] + np.cos(2 * along)])
    moved = np.fft.ifft2(np.fft.fft2(wave) * half_cell(16, 1)).real
    half = SIDE / 32
    wanted = np.stack(
        [np.sin(3 * (along + half))[:, None] + 0 * along, 0 * along[:, None] + np.cos(2 * (along + half))]
    )
    assert np.abs(moved - wanted).max() < 1e-12
    assert np.abs(half_cell(16, 1) * half_cell(16, -1) - (half_cell(16, 1) != 0)).max() < 1e-12


def test_the_published_network_has_its_weights_and_begins_as_the_bare_solver():
    network = Corrector(PAPER.channels, 0.3)
    assert sum(each.numel() for each in network.parameters()) == 56_098
    velocity = torch.from_numpy(start(32, 0)).float()[None]
    assert torch.equal(network(velocity), velocity)


@pytest.mark.slow
def test_each_column_trains_and_counts_its_rows():
    task = replace(CI, updates=5, free=2, test=1)
    box = Damped(task.points)
    scale = loss_scale(box, task)
    found = {column: trained(column, box, task, 0, scale) for column in COLUMNS}
    window = task.unroll  # rows of an update
    rows = {column: each["rows"] for column, each in found.items()}
    assert rows["uncorrected"] == 0 and rows["ONE"] == task.train * task.frames
    assert rows["NOG"] == rows["WIG"] == 5 * window
    assert rows["NOG, four windows"] == rows["WIG, four windows"] == 20 * window
    assert 5 * window <= rows["tangents"] <= 8 * window
    assert window <= rows["tangents with replay"] <= 3 * window
    bare = errors(None, box, task)
    assert found["uncorrected"]["final"] == pytest.approx(float(bare[:, -1].mean()))
    assert found["uncorrected"]["log"] == pytest.approx(float(bare.log().mean()))
    assert all(math.isfinite(each["log"]) for each in found.values())
    assert len({each["final"] for each in found.values()}) == len(COLUMNS)


def test_the_loss_is_that_of_the_calls_and_a_tenth_of_the_last_before_its_correction():
    task, box = CI, Damped(CI.points)
    window = flows(task, False)[:2, : task.unroll + 1]
    network = lambda velocity: 0.5 * velocity  # noqa: E731
    wanted, velocity = torch.zeros(2), window[:, 0]
    for call in range(1, task.unroll + 1):
        plain = box(velocity)
        velocity = 0.5 * plain
        target = window[:, call]
        size = target.flatten(1).square().sum(1)
        wanted += (velocity - target).flatten(1).square().sum(1) / size / task.unroll
        if call == task.unroll:
            wanted += 0.1 * (plain - target).flatten(1).square().sum(1) / size
    assert torch.allclose(objective_of(box, 4.0)(network, window), wanted / 4)  # type: ignore[arg-type]
    off = (velocity - window[:, -1]).flatten(1).square().sum(1) / window[:, -1].flatten(1).square().sum(1)
    assert torch.allclose(objective_of(box, last=True)(network, window), off)  # type: ignore[arg-type]


def _by_differences(box, velocity, back, direction):
    change = box(velocity + direction) - box(velocity - direction)
    return float((change.double() / 2 * back).sum())


@pytest.mark.parametrize("name", ["JAX-CFD", "PhiFlow", "Exponax"])
@pytest.mark.needs("solvers in jax")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_solver_s_own_derivative_is_that_of_its_values(name):
    box = SOLVERS[name].make(18, 1e-3)
    velocity = torch.from_numpy(trajectory(start(18, 2), 1, 18, 1e-3, 0.08, 8)[1:])
    draws = torch.Generator().manual_seed(0)
    smooth = projected(torch.from_numpy(start(18, 5))).float()[None]
    back = torch.randn(velocity.shape, generator=draws)
    through = with_vjp(box)
    assert through is not None
    asked = velocity.clone().requires_grad_()
    through(asked).backward(back)
    assert asked.grad is not None
    wanted = _by_differences(box, velocity, back, 0.02 * smooth)
    assert float((asked.grad * 0.02 * smooth).sum()) == pytest.approx(wanted, rel=0.03, abs=1e-3)


@pytest.mark.needs("solvers in jax")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_solvers_follow_the_reference_for_a_call():
    flow = torch.from_numpy(trajectory(start(64, 2), 1, 32, 1e-3, 0.08, 8))
    for name, least, most in (("JAX-CFD", 1e-5, 0.01), ("PhiFlow", 1e-4, 0.02), ("Exponax", 0, 1e-4)):
        off = SOLVERS[name].make(32, 1e-3)(flow[:1]) - flow[1:]
        assert least <= float(off.norm() / flow[1:].norm()) < most, name


@pytest.mark.needs("openfoam")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # a folder as long as its box
def test_icofoam_follows_the_reference_for_a_call():
    flow = torch.from_numpy(trajectory(start(64, 2), 1, 32, 1e-3, 0.08, 8))
    off = SOLVERS["OpenFOAM"].make(32, 1e-3)(flow[:1]) - flow[1:]
    assert 1e-5 < float(off.norm() / flow[1:].norm()) < 0.02


def test_a_solver_that_is_not_installed_is_skipped_by_name(capsys):
    """Optional packages and programs are hidden from a test that does not name them."""
    comparison.main(["--study", "solvers"])
    said = capsys.readouterr().out
    assert all(f"{name}: skipped, " in said for name in SOLVERS)
    assert "pip install jax jax-cfd" in said and "apt-get install openfoam" in said


def test_a_cell_that_raises_has_failed_with_its_sentence():
    def run():
        raise ArithmeticError("errors of free runs\n are not finite")

    assert cells.measured(run) == {
        "state": "failed",
        "why": "ArithmeticError: errors of free runs are not finite",
    }


def _of_study(done, names=("a", "b"), seeds=(0, 1)):
    def run(name, task, seed):
        return {"loss": seed, "rows": 1, "seconds": 0.0}

    def without(name, task):
        return "not installed" if name == "x" else None

    return cells.of_study("bands", names, run, without, recovery.CI, seeds, done)


def test_a_study_keeps_what_was_measured_with_its_task_and_seeds():
    first = _of_study({"cells": {}}, ("a", "x"))
    assert [run["loss"] for run in first["cells"]["a"]["runs"]] == [0, 1]
    assert first["cells"]["x"] == {"state": "excluded", "why": "not installed"}
    first["cells"]["a"]["runs"] = "as they were"
    assert _of_study(first)["cells"]["a"]["runs"] == "as they were"
    for key, other in (("task", {}), ("seeds", [0])):
        assert _of_study({**first, key: other})["cells"]["a"]["runs"] != "as they were"


def test_a_start_in_space_has_no_divergence_and_a_speed_of_one():
    velocity = space.wanted(8, 3).double()
    waves = space.wavenumbers(8)
    modes = torch.fft.fftn(velocity, dim=(1, 2, 3))
    assert float((waves * modes).sum(0).abs().max()) < 1e-4 * float(modes.abs().max())
    assert float(velocity.square().sum(0).mean()) == pytest.approx(1, rel=1e-5)
    assert torch.allclose(space.projected(velocity), velocity, atol=1e-6)
    slope = torch.fft.ifftn(1j * waves * torch.fft.fftn(velocity[0]), dim=(1, 2, 3)).real
    assert float(space.projected(slope).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["Exponax", "JAX-CFD"])
@pytest.mark.needs("solvers in jax")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_solvers_in_space_decay_a_shear_as_its_closed_form_says(name):
    """sin(z) along the first axis: it carries nothing, and diffuses."""
    along = torch.arange(8) * SIDE / 8
    shear = torch.stack([along.sin().expand(8, 8, 8), torch.zeros(8, 8, 8), torch.zeros(8, 8, 8)])[None]
    found = space.box(name, 8)(shear)
    wanted = shear * math.exp(-space.VISCOSITY * space.STEPS * space.STEP)
    assert float((found - wanted).abs().max()) < 1e-3


def test_a_gain_is_the_geometric_mean_of_ratios_by_seed():
    runs = {"NOG": (0.4, 0.2), "WIG": (0.2, 0.2), "uncorrected": (0.8,)}
    done = {name: {"runs": [{"log": math.log(each)} for each in values]} for name, values in runs.items()}
    assert comparison.gain({"cells": done}, "WIG", "NOG") == pytest.approx(100 * (math.sqrt(2) - 1))
    assert comparison.gain({"cells": done}, "WIG", "uncorrected") == pytest.approx(300)
    assert comparison.gain({"cells": done}, "tangents", "NOG") is None
    done["tangents"] = {"runs": done["WIG"]["runs"][:1]}  # of its own seed alone
    assert comparison.gain({"cells": done}, "tangents", "NOG") == pytest.approx(100)


def test_the_table_is_that_of_the_committed_files():
    """If not: `python -m benchmarks mosaic --tables`."""
    assert (comparison.FOLDER / "table.md").read_text(encoding="utf-8") == comparison.tables()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", recovery.METHODS)
@pytest.mark.filterwarnings("ignore")
def test_a_search_lowers_its_loss_within_its_rows(method):
    task = replace(recovery.CI, evaluations=12 if "directions" in method else 4)
    found = recovery.search(method, task, 0.7, 0)
    one = 40 if "directions" in method else 3  # evaluations that a step takes at most, its checks included
    assert found["rows"] <= (task.evaluations + one) * task.calls
    assert len(found["cosines"]) >= 1 and abs(found["cosines"][0]) <= 1 + 1e-6
    if method == "adjoint":
        assert found["cosines"][0] == pytest.approx(1, abs=1e-5)
    if "directions" not in method:  # to which so few evaluations are nothing
        assert found["error"] < 0.1 * found["start"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_field_s_cell_says_what_was_found_and_what_it_took():
    found = field.searched(field.METHODS[1], field.FLOWS[0], field.CI, 0)
    assert found["rows"] == field.CI.rows and found["error"] < 0.1 * found["start"]
    cell = {"state": "measured", "runs": [found]}
    other = {"state": "excluded", "why": "not installed"}
    name = f"{field.METHODS[1]}: {field.FLOWS[0]}"
    table = field.table({"cells": {name: cell, f"x: {field.FLOWS[2]}": other}})
    assert f"| {field.FLOWS[0]} | {field.METHODS[1]} | {found['start']:.2f} |" in table
    assert f"- {field.FLOWS[2]}, x: excluded, not installed." in table


def test_bands_add_up_and_hold_their_wavenumbers():
    along = torch.arange(32, dtype=torch.float64) * SIDE / 32
    field = torch.sin(2 * along)[:, None] + torch.cos(9 * along)[None, :]
    found = bands.parts(field)
    assert torch.allclose(sum(found[1:], found[0]), field)
    assert [round(float(part.square().mean()), 9) for part in found] == [0.5, 0, 0.5, 0]


@pytest.mark.filterwarnings("ignore")
def test_looks_along_a_search_compare_it_with_the_adjoint():
    search = bands.Looking("adjoint", replace(recovery.CI, evaluations=2), 0.7, 0)
    search.by_bfgs(2)
    first = search.seen[0]
    assert first["evaluation"] == 1
    assert first["bands"][0]["cosine"] == pytest.approx(1) and first["bands"][0]["length"] == pytest.approx(1)
    assert math.hypot(*(band["error"] for band in first["bands"])) == pytest.approx(first["error"], abs=1e-3)


@pytest.mark.parametrize(
    ("solver", "why"), [("XLB", comparison.UNRUN["XLB"]), ("PhiFlow", comparison.UNASKED)]
)
def test_a_column_without_a_cell_has_a_word(monkeypatch, solver, why):
    cell = {"state": "failed", "why": "no"}
    found = {"cells": {"uncorrected": cell, "NOG": cell}}
    monkeypatch.setattr(comparison, "results", lambda size: {solver: found})
    table = comparison.solvers_table("small")
    left = [column for column in comparison.COLUMNS if column not in found["cells"]]
    assert f"- {solver}, {'; '.join(left)}: not run, {why}." in table
