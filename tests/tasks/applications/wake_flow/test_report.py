"""The problem's part of a report, made from evaluations that are written down here: no solver runs."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tasks import Row, report
from tasks.applications.wake_flow import WakeFlow, curves, flow_pictures, vorticity
from tasks.applications.wake_flow.evaluation import SERIES, TRACK, tracks
from tasks.folder import checkpoint
from tasks.folder.result import NOT_APPLICABLE, Result
from tasks.folder.run import stage_name
from tasks.problem.trained import Trained, TrainingOutcome
from tasks.training.judge import warn_of_units
from tests.tasks.applications.wake_flow.small import SMALL
from tests.tasks.made_runs import begun_run
from tests.tasks.test_html_report import read

pytestmark = pytest.mark.usefixtures("drawn")

CONFIG = replace(SMALL, horizon=12, frames=40, test_reynolds=(170.0, 340.0))  # 340 is outside the range
ROLLOUTS, FLOWS, TIMES = 4, 2, 6


def track(size, seed):
    """Arrays of a rollout whose errors grow in time, by `size` in all, differently for each rollout."""
    generator = np.random.default_rng(seed)
    error = size * np.linspace(0.1, 1, CONFIG.horizon) * np.array([[1.0], [1.2], [2.0], [2.2]])
    shape = (2, 2 * CONFIG.width, CONFIG.width)
    values = dict(
        error=error, wake_error=2 * error, divergence_mean=0.01 * error, divergence_max=0.1 * error,
        energy=0.5 + error, drag=1.5 + error, lift=error * (-1.0) ** np.arange(CONFIG.horizon),
        error_map=generator.random(shape[1:]) * size,
        moving=generator.standard_normal((TIMES, *shape)),
    )  # fmt: skip
    return {name: value.astype(np.float32) for name, value in values.items()}  # as torch gives them


def evaluation(methods, seed):
    """The arrays of methods, each with those that all have."""
    common = {
        "times": np.arange(2, CONFIG.horizon + 1, 2),
        "reynolds": np.array([170.0, 170, 340, 340]),
        "extrapolated": np.array([False, False, True, True]),
    }
    own = {method: track(0.2 / (1 + place) + 0.01 * seed, seed) for place, method in enumerate(methods)}
    for prefix, known in (("reference", track(0.0, 0)), ("SRC", own.get("SRC", track(0.3, seed)))):
        common |= {f"{prefix} {name}": values for name, values in known.items()}
    return {method: common | arrays for method, arrays in own.items()}


def finished(folder, methods, seeds=(0, 1), change=lambda found: found):
    """A finished run with these methods."""
    run = begun_run(folder, "wake-flow", "demo", CONFIG, list(seeds))
    table = []
    for seed in seeds:
        found = change(evaluation(methods, seed))
        for place, method in enumerate(methods):
            errors = found[method]["error"][:2]
            lost = int(np.isnan(errors).any(axis=1).sum())
            value = None if lost else float(errors.mean())
            table.append(
                Row(method, seed, "MAE", value, "U", 100 * place, place, 1.0, {"weights": 10 * place})
            )
            fields = {name: torch.as_tensor(array) for name, array in found[method].items()}
            path = checkpoint.evaluation(run.path, stage_name(seed, method))
            path.parent.mkdir(exist_ok=True)
            checkpoint.save(path, {"figures": {"MAE": value}, "fields": fields, "ledger": {}})
    run.finish(table)
    return run


def page_of(run):
    return report.write(run, WakeFlow(CONFIG)).read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every method that there is, out of order."""
    methods = ["SRC", *reversed([method for method in WakeFlow.methods if method != "SRC"])]
    run = finished(tmp_path_factory.mktemp("runs"), methods)
    return run, methods, page_of(run)


def rows_of(page, caption):
    """Cells of the table whose caption holds the words."""
    (found,) = [
        figure for figure in re.findall(r"<figure[^>]*>.*?</figure>", page, re.S) if caption in figure
    ]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", found)]


def test_every_table_has_the_methods_of_the_run_in_its_order(whole):
    _, methods, page = whole
    assert [line[0] for line in rows_of(page, "by Reynolds number")][1:] == methods


def test_the_page_is_whole_and_asks_for_nothing_from_outside(whole):
    run, _, page = whole
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert "://" not in without_pictures
    images = [attributes for tag, attributes in read(page).tags if tag == "img"]
    assert all(len(image["alt"]) > 20 for image in images)
    shown = {base64.b64decode(image["src"].split(",")[1]) for image in images}
    own = ("vorticity", "mae_over_time", "error_maps")
    files = {(run.path / name).read_bytes() for name in (*(f"{name}.png" for name in own), "wakes.webp")}
    assert files <= shown and len(files) == 4


def test_extrapolated_numbers_are_marked_and_outside_the_mean(whole):
    _, _, page = whole
    header, *lines = rows_of(page, "by Reynolds number")
    assert header == ["method", "Re 170", "Re 340 *"]
    inside, outside = (lines[0][column].split(" ± ")[0] for column in (1, 2))
    growth = np.linspace(0.1, 1, CONFIG.horizon).mean()
    assert float(inside) == pytest.approx(0.205 * growth * 1.1, abs=1e-4)  # two seeds: .2 and .21
    assert float(outside) == pytest.approx(0.205 * growth * 2.1, abs=1e-4)
    assert "Held-out Re 170;" in page


def test_the_reference_s_drag_and_lift_are_told(whole):
    assert "they are 1.500 (mean drag) and 0.000 (rms lift)." in whole[2]


@pytest.mark.slow
def test_methods_that_all_problems_have_are_told_too(tmp_path):
    page = page_of(finished(tmp_path, ["SRC", "tangents"], seeds=[0]))
    assert "tangents: autograd around a model of the box, fitted to its values." in page


@pytest.mark.slow
def test_rollouts_that_blew_up_are_listed_and_in_no_mean(tmp_path):
    def spoil(found):
        lost = found["ZO-SOL"]
        for name in SERIES:
            lost[name][1, 7:] = np.nan
        lost["error_map"][:] = np.nan
        lost["moving"][3:] = np.nan
        return found

    run = finished(tmp_path, ["SRC", "NON", "ZO-SOL", "FO-SOL"], seeds=[0], change=spoil)
    page = page_of(run)
    assert rows_of(page, "None of them")[1:] == [["ZO-SOL", "0", "170", "1", "8"]]
    assert {line[0]: line[1] for line in rows_of(page, "by Reynolds number")}["ZO-SOL"] == "not finite"
    assert "Not finite: the MAE of ZO-SOL (seed 0)." in page


def test_evaluations_are_kept_as_hdf5_for_other_tools(whole):
    run, methods, _ = whole
    for seed in run.seeds:
        found = evaluation(methods, seed)
        with h5py.File(run.path / f"evaluation-seed-{seed}.h5") as file:
            assert list(file.attrs["methods"]) == ["reference", *methods]
            assert (file.attrs["shown_reynolds"], file.attrs["dt"]) == (170.0, 1.0)
            assert np.array_equal(file["reynolds"], found["SRC"]["reynolds"])
            for method, arrays in found.items():
                for name in TRACK:
                    assert np.array_equal(file[f"tracks/{method}/{name}"], arrays[name])
                    assert np.array_equal(file[f"tracks/reference/{name}"], arrays[f"reference {name}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods", [["SRC"], pytest.param(["NON", "identity"], marks=pytest.mark.slow)], ids=" ".join
)
def test_a_run_with_few_methods_has_its_report(tmp_path, methods):
    run = finished(tmp_path, methods, seeds=[0])
    page = page_of(run)
    named = [line[0] for line in rows_of(page, "by Reynolds number")][1:]
    assert named == list(dict.fromkeys(["SRC", *methods]))  # the solver alone is always there
    assert "No rollout blew up." in page


@pytest.mark.parametrize("without", [pytest.param([0], marks=pytest.mark.slow), [0, 1]], ids=str)
def test_seeds_without_an_applicable_method_are_left_out(tmp_path, without):
    run = finished(tmp_path, ["NON"])
    lost = {seed: Row("NON", seed, "", None, extra={NOT_APPLICABLE: "no derivative"}) for seed in without}
    run.finish([lost.get(row.seed, row) for row in Result.read(run.path).table])
    page = page_of(run)
    assert "could not be made" not in page
    assert ("by Reynolds number" in page) == (without == [0])
    for seed in run.seeds:
        assert (run.path / f"evaluation-seed-{seed}.h5").exists() == (seed not in without)


@pytest.mark.slow
def test_the_animation_has_a_picture_for_every_time_and_is_small(tmp_path):
    found = tracks(evaluation(["SRC", "NON"], 0))
    path = flow_pictures.animated(found, CONFIG, tmp_path / "w.webp")
    assert path.stat().st_size < 1_500_000  # it becomes a part of the page
    with Image.open(path) as image:
        assert image.n_frames == TIMES
        shown = []
        for index in range(TIMES):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB"), float))
    half = shown[0].shape[1] // 2
    # Noise that differs from time to time: every panel changes, and the two halves do not share a field.
    for before, after in pairwise(shown):
        assert np.abs(after - before)[:, :half].mean() > 2
        assert np.abs(after - before)[:, half:].mean() > 2
    panel = vorticity(found["reference"]["moving"], 1.0)
    assert np.abs(np.diff(panel, axis=0)).min(axis=0).max() > 0


@pytest.mark.slow
def test_a_method_without_derivative_is_told_beside_first_order_at_each_of_its_budgets(tmp_path):
    names = ["SRC", "TAN-SOL@24", "FO-SOL large@24", "FO-SOL large@48", "FO-SOL"]
    page = page_of(finished(tmp_path, names, seeds=[0]))
    assert (
        "TAN-SOL@24's error is 50% of the solver's own, for 100 solver rows: 1.50 times that of FO-SOL "
        "large@24, for 200; 2.00 times that of FO-SOL large@48, for 300."
    ) in page.replace("&#39;", "'").replace("&#x27;", "'")


def test_a_picture_shows_the_larger_network_of_each_family_with_its_budget():
    assert flow_pictures.shown(
        ["ZO-SOL", "NON", "NON large", "PRE", "FO-SOL large@9", "FO-SOL", "FO-SOL large@1000"]
    ) == [
        *("NON large", "ZO-SOL", "FO-SOL large@9", "FO-SOL large@1000"),
    ]
    assert flow_pictures.label("FO-SOL large@1000") == "FO-SOL large, 1,000 rows"
    assert flow_pictures.label("reference") == "reference"


def test_the_first_picture_has_the_colours_of_the_report(tmp_path):
    run = begun_run(tmp_path, "wake-flow", "demo", CONFIG, [0])
    outcome = TrainingOutcome("seed-0/tan-sol")
    trained = {name: Trained(torch.nn.Identity(), outcome, 0, 0) for name in ("NON", "TAN-SOL")}
    fields = evaluation(trained, 0)
    WakeFlow(CONFIG).so_far(run, 0, trained, fields, last=False)
    with report.pictures.palette(WakeFlow.looks):
        again = flow_pictures.wakes(tracks(fields), CONFIG, tmp_path / "again.png", list(trained))
    assert (run.path / "first.png").read_bytes() == again.read_bytes()


def test_errors_by_reynolds_number_are_means_over_its_rollouts():
    found = {seed: tracks(evaluation(["SRC"], seed)) for seed in (0, 1, 2)}
    numbers, seeds = curves.by_reynolds(found, "SRC")
    assert numbers.tolist() == [170, 340]
    assert seeds.shape == (3, 2)
    for seed, line in enumerate(seeds):
        error = found[seed]["SRC"]["error"]
        assert line.tolist() == pytest.approx([error[:2].mean(), error[2:].mean()])


def test_no_array_of_an_evaluation_is_taken_for_a_figure_whose_unit_is_misspelt(recwarn):
    warn_of_units(WakeFlow(CONFIG), [*TRACK, *SERIES, "MAE", "extrapolated", "reynolds"])
    assert not recwarn.list
