"""The image-classification run from the command line: what it leaves; a killed one resumes to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tasks
from tasks import Progress, Run
from tasks.applications.image_classification import ImageClassification, networks, sparse_set
from tasks.command import cli
from tasks.errors import CheckpointError, ProblemWarning
from tasks.folder import checkpoint
from tests.tasks.applications.image_classification.small import SETTINGS, small, words
from tests.tasks.made_runs import begun_run
from zo.errors import FailedQueriesError

pytestmark = pytest.mark.slow  # their common run
TIMES = ("seconds",)
TRAINED = tuple(ImageClassification.methods)


def started(folder: Path, *more: str, **changes) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return cli.main(words(*more, **changes))


def run_in(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def outcome(path: Path) -> dict:
    """All that a run found, without times of day and durations."""
    table = json.loads((path / "result.json").read_text())["table"]
    return {
        "table": [{k: v for k, v in row.items() if k not in TIMES} for row in table],
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in Run.open(path).metrics()],
        "weights": {
            (method, name): tensor.numpy().tobytes()
            for method in TRAINED
            for name, tensor in state_of(path, method)["state"]["network"].items()
        },
    }


def state_of(path: Path, method: str) -> dict:
    """The checkpoint of a method."""
    return checkpoint.load(checkpoint.of_stage(path, f"seed-0/{method}"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawing) -> Path:
    """A finished run of all methods."""
    folder = tmp_path_factory.mktemp("images")
    with drawing():
        assert started(folder) == 0
    return run_in(folder)


def test_every_method_has_a_line_with_what_it_cost(finished):
    rows = {row["method"]: row for row in json.loads((finished / "result.json").read_text())["table"]}
    assert tuple(rows) == ("none", *TRAINED)
    assert all(row["metric"] == "accuracy" and 0 <= row["value"] <= 1 for row in rows.values())
    steps, batch = SETTINGS["steps"], SETTINGS["batch"]
    assert all(rows[method]["extra"]["steps"] == steps for method in TRAINED)
    assert rows["none"]["queries"] == rows["none"]["rows"] == 0
    for method in ("fo", "fo-sparse-weight"):
        assert (rows[method]["queries"], rows[method]["rows"]) == (0, steps * batch)
    pruning = json.loads((finished / "layer_ratios-seed-0.json").read_text())["queries"]
    assert pruning >= 2 * SETTINGS["pruning_directions"]
    assert rows["fo-sparse-gradient"]["queries"] == pruning
    network = networks.make(SETTINGS["network"], 10, (1, 8, 8), width=SETTINGS["width"])
    size = sum(tensor.numel() for tensor in network.parameters())
    for method, each in (
        ("deepzero", sparse_set.coordinates(network, small())),
        ("cge", size),
        ("sparse-cge", SETTINGS["zeroth_order"].coordinates),
        ("rge", SETTINGS["zeroth_order"].directions),
    ):
        spent = pruning if method == "deepzero" else 0
        assert rows[method]["queries"] - spent >= steps * each  # and the check of the evaluator
        assert rows[method]["rows"] == (rows[method]["queries"] - spent + steps) * batch + spent * 16


def test_what_a_run_is_said_to_cost_bounds_what_it_counts(finished):
    problem = ImageClassification(small())
    for row in json.loads((finished / "result.json").read_text())["table"]:
        if row["method"] in TRAINED:
            cost = problem.methods[row["method"]].cost
            assert cost is not None
            plan = cost(problem, SETTINGS["steps"])
            assert row["queries"] >= plan.queries
            most = plan.evaluations if plan.most is None else plan.most
            assert plan.evaluations * SETTINGS["batch"] <= row["rows"] <= most * SETTINGS["batch"]


def test_the_plan_scores_by_no_more_images_than_there_are():
    cost = ImageClassification.methods["deepzero"].cost
    assert cost is not None
    more, all_of_them = (cost(ImageClassification(small(pruning_images=count)), 12) for count in (500, 32))
    assert more == all_of_them != cost(ImageClassification(small()), 12)


def test_metrics_have_loss_validation_learning_rate_and_queries(finished):
    lines = Run.open(finished).metrics("seed-0/deepzero")
    steps = [line for line in lines if "loss" in line]
    assert all({"learning_rate", "queries", "rows"} <= line.keys() for line in steps)
    checks = [line for line in lines if "validation" in line]
    assert [line["step"] for line in checks] == [0, 2, 4, 6]
    assert all(0 <= line["validation"] <= 1 for line in checks)


def test_the_report_holds_its_pictures_and_opens_offline(finished):
    page = (finished / "report.html").read_text()
    own = {"layer_ratios.png", "confusions.png", "examples.png"}
    pictures = {path.name for path in finished.glob("*.png")}
    assert own <= pictures
    assert page.count("data:image/png;base64,") == len(pictures)
    assert "of the accuracy that exact gradients on the same sets give" in page
    assert "://" not in page


def test_the_picture_s_arrays_are_those_of_the_table(finished):
    """Counted again from what was kept: the confusion's trace is the accuracy, its rows the classes."""
    from tasks import load

    found = load(finished)
    for row in found.result.table:
        fields = found.fields(row.method)
        counts = fields["confusion"]
        assert counts.sum() == SETTINGS["test_images"]
        assert counts.trace() / counts.sum() == row.value
        assert fields["examples"].shape == (20, 1, 8, 8)
        assert (fields["taken"] == fields["labels"]).mean() == row.value  # all twenty are shown
        assert (counts.sum(1) == [(fields["labels"] == label).sum() for label in range(10)]).all()


class Killed(BaseException):
    """The process is gone."""


def new_run(folder: Path, **changes) -> Run:
    return begun_run(folder, "image-classification", "demo", small(**changes), [0])


def go_on(run: Run) -> None:
    """As `blackbox resume` does."""
    problem = ImageClassification(Run.open(run.path).configuration(ImageClassification.Config))
    tasks.run(problem, resume=run.path, progress=Progress())


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_method_resumes_to_the_bits_of_an_undisturbed_one(finished, tmp_path):
    log, killed = Run.log, set()

    def dying(run, stage, step, **values):
        log(run, stage, step, **values)
        if step == 3 and stage not in killed:  # a step after the checkpoint
            killed.add(stage)
            raise Killed

    run = new_run(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", dying)
        for _ in TRAINED:
            torch.manual_seed(99)  # another process has another state
            with pytest.raises(Killed):
                go_on(run)
        assert not run.finished
        go_on(run)
    assert len(killed) == len(TRAINED)
    found, wanted = outcome(run.path), outcome(finished)
    assert not [key for key in wanted["weights"] if found["weights"][key] != wanted["weights"][key]]
    assert not [line for line in found["metrics"] if line not in wanted["metrics"]]
    assert found == wanted


def test_a_loss_that_is_no_number_stops_with_the_reason_and_keeps_the_last_checkpoint(tmp_path):
    run = new_run(tmp_path, methods=("fo",), learning_rate=1e30, warm_up=0.0, validate_every=1)
    with (
        pytest.warns(ProblemWarning, match="validation after step 1: expected a finite loss"),
        pytest.raises(FailedQueriesError, match="finite loss"),
    ):
        go_on(run)
    kept = state_of(run.path, "fo")
    assert not kept["finished"] and kept["outcome"]["step"] >= 1
    assert all(torch.isfinite(tensor).all() for tensor in kept["best"].values())


def test_a_checkpoint_of_other_settings_is_refused_before_any_step(tmp_path):
    run = new_run(tmp_path, methods=("fo",))
    go_on(run)
    (run.path / "result.json").unlink()
    content = json.loads((run.path / "config.json").read_text())
    content["config"]["width"] = 4
    (run.path / "config.json").write_text(json.dumps(content))
    (run.path / "begun.json").unlink()  # by which it is noticed before
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"width 3 \(now 4\)"):
        go_on(run)
    assert (run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "words_of_it"),
    [
        ({"methods": ("deepzerro",)}, ["methods", "Did you mean 'deepzero'?"]),
        ({"methods": ("fo", "fo")}, ["methods", "every method once"]),
        ({"methods": ("tangents",)}, ["methods", "black box"]),
        ({"rows": 1000}, ["rows", "black box"]),
        ({"sparsity": 0.999, "methods": ("deepzero",)}, ["sparsity", "each of the 3 layers keeps a weight"]),
        ({"train_images": 10_000}, ["1,797"]),
        ({"network": "simple-1"}, ["simple-1", "Did you mean"]),
        ({"batch": 33}, ["batch", "at most the 32 training images"]),
        ({"dataset": "cifar10"}, ["cifar10", "md5"]),
        ({"augment": True}, ["augment", "digits", "--no-augment"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, capsys, changes, words_of_it):
    assert started(tmp_path, **changes) in (1, 2)
    said = capsys.readouterr().err
    assert all(word in said for word in words_of_it), said
    assert not any((tmp_path / "runs").glob("*"))  # nothing was begun, so no folder is left
