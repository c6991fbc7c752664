"""The rows that a run has run in all, whatever became of its processes."""

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Cached, Ledger, Parallel
from blackbox.errors import BudgetError, ConfigurationError
from tasks import Progress
from tasks.configuration import ZerothOrder
from tasks.errors import CheckpointWarning, Interrupted, StorageError
from tasks.folder import row_counts
from tasks.methods.by_name import methods_named
from tasks.planning.plan import plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import TRIES, asked
from tasks.rows.binding import Bound
from tasks.rows.run_ledger import calls_noted, recall
from tests.tasks.made_runs import begun_run
from tests.tasks.problems import MATRIX, Beside, Mixed, Said, Steering, cost_of

ROOT = Path(__file__).parents[2]


class Counting(BlackBoxFunction):
    """Counts its rows by itself too, in a list that a test can read."""

    inputs = (ArraySpec("x", (2,)),)
    outputs = (ArraySpec("y", (2,)),)

    def __init__(self):
        self.rows = []

    def evaluate_rows(self, x):
        self.rows.append(len(x))
        return x**2


class Late(Counting):
    """As a client does it, whose server counts."""

    def run_rows(self, inputs):
        before = self.ledger.copy()
        found = super().run_rows(inputs)
        assert self.ledger.since(before).rows_run
        return found


def test_all_rows_are_noted_those_of_several_blocks_together(tmp_path):
    box = Counting()
    for count in (3, 4):
        with calls_noted(tmp_path, [box]), calls_noted(tmp_path, [box]):
            box(np.ones((count, 2)))
            box.ledger.add(Ledger(rows_run=100))  # of an earlier process, which has noted them itself
            assert row_counts.read(tmp_path)["rows"] == sum(box.rows)
    box(np.ones((5, 2)))  # outside of a run
    assert row_counts.read(tmp_path) == {"rows": 7, "exact": True}
    assert row_counts.in_words(row_counts.read(tmp_path)) == "7"
    with calls_noted(tmp_path, [box]):
        pass
    assert len(list((tmp_path / "calls").iterdir())) == 1


def test_where_rows_are_counted_late_a_kill_makes_them_a_bound(tmp_path):
    box = Late()
    with calls_noted(tmp_path, [box]):
        box(np.ones((3, 2)))
        assert row_counts.in_words(row_counts.read(tmp_path)) == "at least 3"  # what a kill here would leave
    assert row_counts.in_words(row_counts.read(tmp_path)) == "3"
    with calls_noted(tmp_path, [Counting(), box], within_reach=False):
        box(np.ones((3, 2)))
    assert row_counts.in_words(row_counts.read(tmp_path)) == "at least 6"


@pytest.mark.parametrize(
    ("box", "error", "exact"),
    [(Late(), KeyboardInterrupt, False), (Late(), Interrupted, True), (Counting(), KeyboardInterrupt, True)],
)
def test_rows_that_threads_still_run_when_a_block_is_cut_short_make_it_a_bound(tmp_path, box, error, exact):
    """A step that is finished before the run stops leaves none."""
    with pytest.raises(error), calls_noted(tmp_path, [box]):
        box(np.ones((3, 2)))
        raise error
    assert row_counts.read(tmp_path) == {"rows": 3, "exact": exact}


def test_a_box_has_the_rows_of_its_own_notes_not_those_of_another(tmp_path):
    one, other = Counting(), Counting()
    with calls_noted(tmp_path, [one, other]):
        one(np.ones((5, 2)))
        other(np.ones((2, 2)))
    again = Counting(), Counting()
    for _ in range(2):  # in the second block the ledgers have them
        with calls_noted(tmp_path, again):
            again[1](np.ones((1, 2)))
    assert [box.ledger.rows_run for box in again] == [5, 4]
    assert row_counts.read(tmp_path) == {"rows": 9, "exact": True}


@pytest.mark.parametrize("memory", [0, 2])
def test_a_box_whose_answers_depend_on_earlier_calls_has_the_rows_of_earlier_processes_too(tmp_path, memory):
    box = Mixed()
    box.remembers = memory
    with calls_noted(tmp_path, [box]):
        box(np.zeros((7, 3)))
    again = Mixed()
    again.remembers = memory
    recall(tmp_path, [Budgeted(again, 10)])
    assert again.ledger.rows_run == 7


def test_stages_of_a_loop_of_ones_own_have_a_budget_for_each_box(tmp_path):
    def train(run, stage, box, steps):
        network = torch.nn.Linear(2, 2)

        def step(_):
            box(np.ones((4, 2)))
            return {"loss": 1.0}

        kept = {"network": network}
        return tasks.methods.train(
            run, stage, steps=steps, step=step, state=kept, model="network", boxes=[box]
        )

    run = begun_run(tmp_path, "own", "demo", tasks.Config(), [0])
    train(run, "seed-0/one", Counting(), 20)
    other = Budgeted(Counting(), 40)
    train(run, "seed-0/other", other, 10)  # 40 rows of its own: the 80 of the other box are not its
    for boxes in (
        {"one": Counting()},
        {"one": Counting(), "other": Counting()},
    ):  # it goes on: both are finished
        for stage, box in boxes.items():
            train(run, f"seed-0/{stage}", box, 20 if stage == "one" else 10)
        assert [box.ledger.rows_run for box in boxes.values()] == [80, 40][: len(boxes)]


def test_a_line_that_cannot_be_read_makes_it_a_bound(tmp_path):
    with calls_noted(tmp_path, [box := Counting()]):
        box(np.ones((3, 2)))
    with open(tmp_path / "calls" / "0", "ab") as file:
        file.write(b"\0\0\n4 ")  # as a power cut may leave it
    assert row_counts.in_words(row_counts.read(tmp_path)) == "at least 4"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("half", [False, True])
def test_a_disk_that_takes_no_note_of_rows_is_one_sentence_and_the_run_goes_on(tmp_path, monkeypatch, half):
    settings = {"methods": ["first-order"], "steps": 4, "validate_every": 1, "progress": Progress()}
    whole = tasks.run(Steering(), runs=tmp_path / "whole", **settings)
    write, noted = os.write, []

    def full(file, content):
        noted.append(content)
        if len(noted) == 20 and half:
            return write(file, content[:2])
        if len(noted) == 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError) as caught:
        tasks.run(Steering(), runs=tmp_path / "cut", **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    assert str(caught.value) == (
        f"expected to write in {folder / 'calls'} that rows are run, got 'No space left on device'. "
        "Free some space there. `blackbox resume` goes on from the last checkpoint."
    )
    again = tasks.run(Steering(), resume=folder, **settings)
    assert again.result.table[0].extra == whole.result.table[0].extra
    assert again.result.calls["exact"] and again.result.calls["rows"] > whole.result.calls["rows"]


@pytest.mark.slow
def test_a_run_tells_the_rows_of_training_validation_test_and_timing(tmp_path):
    problem = Steering(methods=("none", "first-order", "cge"))
    run = tasks.run(problem, runs=tmp_path, progress=Progress())
    assert run.problem is not None
    box = run.problem.box
    assert run.result.calls == {"rows": box.ledger.rows_run, "exact": True}
    told = sum(
        row.rows + row.extra["rows of validation"] + row.extra["rows of test"] for row in run.result.table
    )
    assert told < run.result.calls["rows"]  # some were timed
    assert f"{run.result.calls['rows']:,} rows" in run.report.read_text()


class Made(Beside):
    """Its data is what the box answers."""

    def data(self):
        data = super().data()
        return tasks.Data(data.train, data.validation, self.box(data.test))


class Checked(Made):
    """It looks at its data before a run."""

    def check(self):
        assert len(self.data.test) == 8


class Scaled(Made):
    """Its network is made by data; some rows fail, which a run keeps."""

    def box(self):
        return Mixed(0.0)

    def network(self):
        assert len(self.data.test) == 8
        return super().network()


def planned_and_run(tmp_path, methods):
    """The plan by its lines, and the run that it was made for."""
    said = Said()
    problem = Made(methods=methods, zeroth_order=ZerothOrder(coordinates=6, directions=4), steps=4)
    run = tasks.run(problem, runs=tmp_path, seeds=2, progress=said)
    line = re.compile(r"  ([a-z -]+?)(?:, of each method| 2 seeds)?: ([0-9,]+) rows")
    found = filter(None, map(line.match, said.lines))
    return {each[1]: int(each[2].replace(",", "")) for each in found}, run


class Crash(tasks.Callback):
    """Ends a run in its second step, before there is a checkpoint."""

    strict = True

    def on_step(self, stage, step, metrics):
        if step == 2:
            raise OSError("the machine is gone")


def test_rows_that_the_check_asks_for_are_noted_and_planned(tmp_path):
    found = []
    for problem in (Made(), Checked()):
        said = Said()
        run = tasks.run(problem, methods=["none"], runs=tmp_path, progress=said)
        found.append((run.result.calls, [line for line in said.lines if "making the data" in line]))
    assert found[0] == found[1]
    assert "making the data: 8 rows" in found[1][1][0]


def test_data_that_a_network_asks_for_keep_failed_rows_where_methods_are_checked():
    problem = Scaled(methods=("tangents",))
    plan, bound = plan_of(problem, methods_named(problem), [0]), Bound.of(problem)
    bound.bound()
    settled(plan, bound, asked(bound, plan.methods, 1), timed=False)
    problem = bound.problem
    failed = problem.data.test.isnan().any(dim=1)
    assert 0 < int(failed.sum()) == problem.box.ledger.rows_failed < 8


@pytest.mark.filterwarnings("ignore:.*does nothing here:tasks.errors.ProblemWarning")
def test_the_plan_is_what_the_run_runs(tmp_path):
    names = ("none", "no-gradient", "identity", "student", "first-order")
    plan, run = planned_and_run(tmp_path, names)
    assert run.problem is not None
    table = {row.method: row for row in run.result.table if row.seed == 1}
    for name in names:
        judged = table[name].extra["rows of validation"] - (plan["validation"] if name != "none" else 0)
        assert plan[name] == table[name].rows + judged, name  # first-order compares its reference first
        assert plan["test"] == table[name].extra["rows of test"]
    assert plan["making the data"] == 8 and plan["timing"] > 0
    assert plan["in all"] == run.result.calls["rows"] == run.problem.box.ledger.rows_run


@pytest.mark.slow
def test_where_queries_may_be_checked_the_plan_says_the_least_and_the_most(tmp_path):
    said = Said()
    problem = Made(methods=("cge", "rge", "row-rge"), zeroth_order=ZerothOrder(directions=4), steps=4)
    run = tasks.run(problem, runs=tmp_path, seeds=2, progress=said)

    def bounds(start, end):
        (line,) = [line for line in said.lines if line.strip().startswith(start)]
        return [int(each.replace(",", "")) for each in re.search(end, line).groups()]

    for row in run.result.table:
        least, most = bounds(f"{row.method}: ", r"([0-9,]+) rows \(at most ([0-9,]+) with every check")
        assert least < row.rows <= most
        assert row.method == "row-rge" or row.rows == (4 + row.queries) * 5 * 2
    least, most = bounds("in all 2 seeds: ", r": ([0-9,]+) to ([0-9,]+) rows")
    assert least < run.result.calls["rows"] <= most


@pytest.mark.slow
def test_a_budget_that_may_do_is_not_refused_and_one_that_cannot_is(tmp_path):
    settings = {"methods": ("rge",), "zeroth_order": ZerothOrder(directions=4), "steps": 4, "runs": tmp_path}
    whole = tasks.run(Made(), **settings)
    needed, said = whole.result.calls["rows"], Said()
    run = tasks.run(Made(), rows=needed, progress=said, **settings)  # fewer than all checks may take
    assert run.result.table[0].value == whole.result.table[0].value
    assert any("may be more than the budget" in line for line in said.lines)
    least = 4 * (1 + 4) * 10 + 8  # four steps of base and directions, and what makes the data
    with pytest.raises(
        ConfigurationError, match=f"within its budget of {least:,} rows, got a plan of at least"
    ):
        tasks.run(Made(), rows=least, **settings)


@pytest.mark.slow
def test_runs_whose_class_has_one_box_have_a_budget_each(tmp_path):
    class Lasting(Steering):
        box = Mixed()
        asked = 0

        def evaluate(self, network):
            self.box(torch.zeros(self.asked, 3))
            return super().evaluate(network)

    settings = {"methods": ("first-order",), "steps": 4, "validate_every": 1, "progress": Progress()}
    whole = tasks.run(Lasting(), runs=tmp_path, **settings).result
    settings["rows"] = budget = whole.calls["rows"] + 20  # what a killed step runs again
    assert tasks.run(Lasting(), runs=tmp_path, **settings).result.table[0].value == whole.table[0].value
    with pytest.raises(OSError, match="the machine is gone"):
        tasks.run(Lasting(), runs=tmp_path / "cut", callbacks=[Crash()], **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    tasks.run(Lasting(), runs=tmp_path, **settings)
    spent = row_counts.read(folder)["rows"]
    Lasting.asked = budget  # its own rows count, those before the crash and those after
    changed = partial(pytest.warns, CheckpointWarning, match="class Lasting")  # `evaluate` reads it
    with changed(), pytest.raises(BudgetError, match="None of it was run"):
        tasks.run(Lasting(), resume=folder, **settings)
    Lasting.asked = budget - row_counts.read(folder)["rows"] - 2 * 8  # and its own two calls
    with changed():
        ended = tasks.run(Lasting(), resume=folder, **settings).result
    assert ended.calls["rows"] == budget > spent > 0


def test_the_time_of_a_row_is_not_that_of_a_cached_answer(limits, tmp_path):
    class Kept(Steering):
        def box(self):
            return Cached(Mixed(), tmp_path / "answers")

    clock = itertools.count(0.0, 0.02)  # each look at it is 20 ms after the one before
    limits(clock_of_rows=lambda: next(clock))

    problem = Kept(methods=("none", "no-gradient", "tangents"))
    first, *lines = cost_of(problem, tmp_path / "first")
    (timing,) = [line for line in lines if line.startswith("  timing: ")]
    run = int(timing.split()[1])  # by the first evaluation: all others ask for the same rows again
    assert 0 < run <= 10 and first.endswith(f"runs 10 box rows, {20 / run:.3g} ms a row.")
    learned = [line for line in lines if line.endswith("in the box, plus what it takes to learn")]
    assert len(learned) == 1 and learned[0].startswith("  tangents: ")
    again, *lines = cost_of(problem, tmp_path / "again")
    assert again.endswith("box rows; answers came from a cache, so their time is not known.")
    assert not any("in the box" in line for line in lines)


def test_the_time_of_a_row_is_not_that_of_starting_a_pool(limits, tmp_path):
    now = [0.0]

    class Slow(Mixed):
        def evaluate_rows(self, z):
            now[0] += 0.02 if self.ledger.rows_run > 5 else 14.0  # the first call starts the workers
            return np.tanh(z @ MATRIX.numpy().T)

    class Pooled(Steering):
        def box(self):
            return Parallel(Slow(), ThreadPoolExecutor(1), block=5)

    limits(clock_of_rows=lambda: now[0])
    first, *_ = cost_of(Pooled(methods=("none",)), tmp_path)
    assert first.endswith("runs 10 box rows, 4 ms a row.")


def test_a_row_of_seconds_is_told_in_seconds(limits, tmp_path):
    clock = itertools.count(0.0, 100.0)
    limits(clock_of_rows=lambda: next(clock))
    first, *_ = cost_of(Steering(methods=("none",)), tmp_path)
    assert " ms " not in first and first.endswith(" s a row."), first


def test_why_the_cost_is_not_known_is_said_in_a_line(tmp_path):
    class Wrong(Steering):
        def objective(self, network, wanted):
            return super().objective(network.float(), wanted)

    (line,) = cost_of(Wrong(methods=("none",)), tmp_path)
    assert line.startswith(
        "Cost: not known before the first step: the objective, on zeros from its box, raised"
    )
    assert "RuntimeError: " in line and "dtype" in line and "\n" not in line


def test_what_a_problem_evaluates_by_itself_is_said_not_to_be_in_the_sum(tmp_path):
    class Judged(Steering):
        def evaluate(self, network):
            return {"error": 0.0}

    assert cost_of(Judged(methods=("none",)), tmp_path)[-1].endswith(" rows, beside those of test")
    assert cost_of(Steering(methods=("none",)), tmp_path)[-1].endswith(" rows")


def test_longer_runs_of_held_out_rows_cost_more(tmp_path):
    """A call of the box for each column of the data: 2 in training, 3 in validation, 5 in the test."""

    class Runs(Steering):
        def data(self):
            return tasks.Data(lambda seed, step: torch.zeros(4, 2), torch.zeros(3, 3), torch.zeros(1, 5))

        def objective(self, network, wanted):
            total = torch.zeros(len(wanted), dtype=torch.float64)
            for _ in range(wanted.shape[1]):
                total = total + self.box(
                    network(torch.zeros(len(wanted), 3, dtype=torch.float64))
                ).square().mean(dim=1)
            return total

    lines = cost_of(Runs(methods=("none", "cge"), steps=1, validate_every=1), tmp_path)
    assert "one evaluation of the objective on 4 rows of data runs 8 box rows" in lines[0]
    assert "  validation, of each method: 18 rows" in lines  # before the step and behind it
    assert "  test, of each method: 5 rows" in lines


@pytest.mark.parametrize(("one_is_late", "evaluations"), [(True, 1), (False, TRIES)])
def test_processes_that_time_rows_end_alike_and_plan_alike(limits, tmp_path, one_is_late, evaluations):
    """Each asks in step with the others, but has a clock, and a share of the rows, of its own."""
    limits(
        any_process=lambda flag: one_is_late,
        total_of_processes=lambda *counts: [100 + count for count in counts],
    )
    problem = Steering(methods=("none",))
    lines = cost_of(problem, tmp_path)
    assert f"  timing: {evaluations * 5 * 2} rows, which have been run" in lines
    assert any(line.startswith("  making the data: 100 rows, which have been run") for line in lines)


KILLED = """
import os, signal
from dataclasses import dataclass
import tasks
from tasks.configuration import Count
from tests.tasks.problems import Mixed, Steering

class Noted(Mixed):
    def evaluate(self, z):
        with open("rows", "a") as file:  # what the box itself saw
            file.write("x")
        if os.path.getsize("rows") == 900 and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().evaluate(z)

class Killed(Steering):
    @dataclass(frozen=True)
    class Config(Steering.Config):
        methods: tuple[str, ...] = ("cge",)
        validate_every: Count = 3

    def box(self):
        return Noted(self.config.limit)
"""


def blackbox(folder, *words):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tasks.command.cli", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_after_a_kill_in_a_step_the_result_tells_every_row_that_the_box_saw(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    assert blackbox(tmp_path, "run", "killed.py:Killed").returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "runs").iterdir()
    done = blackbox(tmp_path, "resume", str(folder))
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    (row,) = result["table"]
    kept = row["rows"] + row["extra"]["rows of validation"] + row["extra"]["rows of test"]
    seen = (tmp_path / "rows").stat().st_size
    assert result["calls"] == {"rows": seen, "exact": True} and seen > kept


def test_a_disk_that_once_took_no_note_ends_the_run_whoever_went_on_from_the_error(tmp_path, monkeypatch):
    box = Mixed()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    z = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(StorageError), calls_noted(tmp_path, [box]):
        box(z)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(StorageError):
                box(z)
        with pytest.raises(StorageError):
            box(z)
    assert row_counts.read(tmp_path)["rows"] == 2


def test_rows_of_a_folder_under_two_spellings_are_taken_in_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    box, z = Mixed(), torch.zeros(2, 3, dtype=torch.float64)
    (tmp_path / "run").mkdir()
    for folder in (Path("run"), tmp_path / "run"):
        with calls_noted(folder, [box]):
            box(z)
    assert box.ledger.rows_run == row_counts.read(tmp_path / "run")["rows"] == 4
