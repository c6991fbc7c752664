"""A run that was stopped: its report and comparison say what there is, and it goes on without a method."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

import tasks
from blackbox.errors import BudgetError
from tasks import Progress, Run
from tasks.command.cli import main
from tasks.errors import CheckpointWarning, NotApplicableError
from tasks.folder.result import Result
from tasks.report.incomplete import comparable
from tasks.report.method_scores import meaning, scores, with_error
from tests.tasks.problems import Steering
from tests.tasks.shared_runs import PROGRAM

FAULTS: set[int] = set()  # seeds with which `broken` does not end
STOPS: set[str] = set()  # "data"; the seeds of `broken`


def broken(setup):
    """Trains as first-order does, where it ends."""
    from tasks.methods.by_name import METHODS

    if setup.seed in FAULTS:
        raise FloatingPointError("a solver that blows up")
    if str(setup.seed) in STOPS:
        signal.raise_signal(signal.SIGTERM)
    if "not applicable" in STOPS:
        raise NotApplicableError("nothing to go by")
    return METHODS["first-order"].train(setup)


class Stopped(Steering):
    """A network says what to put into a box; one of its methods breaks."""

    methods: ClassVar = {"broken": tasks.methods.Method("Breaks.", broken)}

    @dataclass(frozen=True)
    class Config(Steering.Config):
        methods: tuple[str, ...] = ("none", "broken", "first-order", "identity")

    def data(self):
        if "data" in STOPS:
            raise FloatingPointError("no data")
        return super().data()


@pytest.fixture(autouse=True)
def ends():
    yield
    FAULTS.clear()
    STOPS.clear()


def go(folder, **settings):
    return tasks.run(Stopped(), runs=folder, progress=Progress(), **settings)


def stopped(folder, **settings):
    """The folder of a run in which `broken` has raised an error."""
    with pytest.raises(FloatingPointError, match="blows up"):
        go(folder, **settings)
    (path,) = folder.iterdir()
    return path


def lines(result):
    """Of each method and seed what does not depend on clocks."""
    return {
        (row.method, row.seed): (row.value, row.rows, row.queries, row.ledger["rows_run"])
        for row in result.table
    }


def bits(run, method, seed):
    return [weight.detach().numpy().tobytes() for weight in run.network(method, seed).parameters()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run in which nothing breaks."""
    return go(tmp_path_factory.mktemp("undisturbed"), seeds=2)


def said(capfd):
    return " ".join(capfd.readouterr().out.split())


def test_a_stopped_run_has_a_report_of_what_is_finished(tmp_path, capfd, undisturbed):
    FAULTS.add(0)
    path = stopped(tmp_path, methods=["none", "first-order", "broken", "identity"])
    assert main(["report", str(path)]) == 0
    out = said(capfd)
    assert f"This run is not finished; `blackbox resume {path}` goes on with it." in out
    assert "What is missing: broken, identity." in out
    page = (path / "report.html").read_text()
    assert "is not finished" in page and "What is missing: broken, identity." in page
    kept = json.loads((path / "so_far.json").read_text())["table"]
    truth = {row.method: row.value for row in undisturbed.result.table if row.seed == 0}
    assert {line["method"]: line["value"] for line in kept} == {
        method: truth[method] for method in ("none", "first-order")
    }
    FAULTS.clear()  # networks behind it are loaded by way of it
    with pytest.warns(CheckpointWarning, match=f"not finished. Go on with: blackbox resume {path}"):
        assert bits(tasks.load(path), "first-order", 0) == bits(undisturbed, "first-order", 0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("faults", [(1,), (0, 1)], ids=["the second seed", "no seed"])
def test_without_a_method_the_others_end_with_their_bits(faults, tmp_path, capfd, undisturbed):
    FAULTS.update(faults)
    path = stopped(tmp_path, seeds=2)
    assert main(["resume", str(path), "--without", "broken"]) == 0
    FAULTS.clear()  # networks are taken from their checkpoints, in the order of training
    lost = {("broken", seed) for seed in faults}
    assert f"(--without): {', '.join(f'broken (seed {seed})' for seed in faults)}." in said(capfd)
    run = tasks.load(path)
    truth = lines(undisturbed.result)
    assert lines(run.result) == {key: line for key, line in truth.items() if key not in lost}
    for method, seed in truth.keys() - lost:
        assert bits(run, method, seed) == bits(undisturbed, method, seed)
    assert not (path / "so_far.json").exists()
    page = (path / "report.html").read_text()
    assert ("In no table, since other seeds or methods lack them: broken (seed 0)" in page) == (
        faults == (1,)
    )
    assert "broken" not in (path / "table.md").read_text()  # a mean of one seed beside means of two


def test_a_seed_that_is_half_done_is_in_no_mean(tmp_path, capfd, undisturbed):
    FAULTS.add(1)
    path = stopped(tmp_path, seeds=2, methods=["none", "first-order", "broken", "identity"])
    assert main(["report", str(path)]) == 0
    out = said(capfd)
    assert "What is missing: broken (seed 1), identity (seed 1)." in out
    values = {(row.method, row.seed): row.value for row in undisturbed.result.table}
    shown = [f"{method} (seed 1) {values[method, 1]:.4g}" for method in ("none", "first-order")]
    listed = ", ".join(f"{figure} (8 rows)" for figure in shown)
    assert f"In no table, since other seeds or methods lack them: {listed}." in out
    table = (path / "table.md").read_text()
    assert "standard deviation" not in table and "± is the standard error over test rows." in table
    errors = {row.method: row.standard_error for row in undisturbed.result.table if row.seed == 0}
    for method in ("none", "first-order", "broken", "identity"):
        assert f"{with_error(values[method, 0], errors[method])} (8 rows)" in table


def test_a_table_without_a_seed_has_means_over_the_same_seeds():
    """A loop of one's own may finish with such a result."""
    values = {("a", 0): 1.0, ("a", 1): 3.0, ("b", 0): 1.5}
    table = tuple(tasks.Row(method, seed, "loss", value) for (method, seed), value in values.items())
    part = comparable(Result("own", "own", {}, (0, 1, 2), table, {}, {}, (), "", "finished"))
    assert part.seeds == (0, 1) and [(score.method, score.mean) for score in scores(part)] == [("a", 2.0)]
    assert meaning(part) == "± is the standard deviation of 2 seeds."


@pytest.mark.slow
def test_without_the_option_a_later_resume_goes_on_with_the_method(tmp_path, undisturbed):
    FAULTS.update((0, 1))
    path = stopped(tmp_path, seeds=2)
    STOPS.add("data")
    assert main(["resume", str(path), "--without", "broken", "first-order"]) != 0  # stopped again
    FAULTS.clear()
    STOPS.clear()
    assert main(["resume", str(path)]) == 0
    run = tasks.load(path)
    assert lines(run.result) == lines(undisturbed.result)
    assert bits(run, "broken", 1) == bits(undisturbed, "broken", 1)


def test_a_comparison_is_of_what_is_finished(tmp_path, capfd, undisturbed):
    FAULTS.add(0)
    path = stopped(tmp_path / "runs")
    page = tmp_path / "comparison.html"
    assert main(["compare", str(undisturbed.path), str(path), "--page", str(page)]) == 0
    out = said(capfd)
    assert f"B: This run is not finished; `blackbox resume {path}`" in out
    assert "What is missing: broken, first-order, identity." in out
    assert "The seeds differ: A has 0, 1, B 0." in out
    assert "What is missing" in page.read_text()


@pytest.mark.parametrize("stop", ["data", "0"])
def test_a_run_without_a_finished_method_is_refused_by_report(stop, tmp_path, capfd):
    STOPS.add(stop)
    with pytest.raises((FloatingPointError, KeyboardInterrupt)):
        go(tmp_path, methods=["broken", "none"])
    if not (folders := list(tmp_path.iterdir())):
        return  # nothing was done: there is no run
    assert main(["report", str(folders[0])]) == 2
    assert "expected a run of which a method is finished" in capfd.readouterr().err
    assert main(["compare", str(folders[0]), str(tmp_path)]) == 2


def test_a_run_that_a_signal_stopped_says_the_steps_that_are_done(tmp_path, capfd):
    STOPS.add("0")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, validate_every=1)
    (path,) = tmp_path.iterdir()
    assert main(["report", str(path)]) == 0
    assert "What is missing: broken" in said(capfd)


def test_a_run_that_its_budget_stopped_has_a_report(tmp_path, capfd):
    with pytest.raises(BudgetError):
        go(tmp_path, rows=120, steps=6, methods=["none", "broken"])  # what `broken` costs is not known
    (path,) = tmp_path.iterdir()
    assert main(["report", str(path)]) == 0
    done = max(line["step"] for line in Run.open(path).metrics("seed-0/broken"))
    assert 0 < done <= 6 and f"What is missing: broken ({done} steps done)." in said(capfd)
    assert main(["resume", str(path), "--without", "broken"]) == 0
    assert [row.method for row in tasks.load(path).result.table] == ["none"]


@pytest.mark.slow
def test_a_method_with_nothing_to_go_by_is_no_missing_one(tmp_path, capfd):
    FAULTS.add(1)
    STOPS.add("not applicable")
    path = stopped(tmp_path, seeds=2)
    assert main(["report", str(path)]) == 0
    assert "What is missing: broken (seed 1), first-order (seed 1), identity (seed 1)." in said(capfd)


@pytest.mark.slow
def test_callbacks_have_the_result_though_there_was_a_page_before(tmp_path):
    class Told(tasks.Callback):
        results: ClassVar[list[object]] = []

        def on_result(self, run, result):
            self.results.append(result.finished)

    FAULTS.add(0)
    path = stopped(tmp_path)
    assert main(["report", str(path)]) == 0
    FAULTS.clear()
    run = go(tmp_path, resume=path, callbacks=[Told()])
    assert Told.results == [run.result.finished] != [""]
    assert "is not finished" not in run.report.read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tangents"], "--without: expected methods of the run, got 'tangents'"),
        (["none", "broken", "first-order", "identity"], "--without: expected to leave some method, got all."),
    ],
)
def test_what_cannot_be_left_out_is_refused(words, sentence, tmp_path, capfd):
    FAULTS.add(0)
    path = stopped(tmp_path)
    assert main(["resume", str(path), "--without", *words]) == 2
    assert sentence in capfd.readouterr().err
    assert "so_far.json" in {file.name for file in path.iterdir()}


@pytest.mark.slow
def test_two_processes_leave_a_method_out(tmp_path, undisturbed):
    FAULTS.update((0, 1))
    path = stopped(tmp_path, seeds=2)
    command = [sys.executable, PROGRAM, "resume", str(path), "--without", "broken", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    truth = lines(undisturbed.result)
    assert lines(tasks.load(path).result) == {key: truth[key] for key in truth if key[0] != "broken"}
