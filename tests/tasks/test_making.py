"""What boxes run to make data, in steps, validations and tests: kept, counted, bounded, and not run again."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Parallel, Retrying
from blackbox.errors import BudgetError
from tasks import Progress
from tasks.command import commands
from tasks.configuration import Count, ZerothOrder
from tasks.folder import checkpoint, row_counts
from tasks.rows.kept_answers import KeptAnswers
from tasks.training.stage import Stage
from tests.tasks.problems import Beside

FIRST = 5  # rows of a batch, which a resumed run asks again


class Killed(BaseException):
    pass


class Fine(BlackBoxFunction):
    """A slow solver that only `data` knows. `asked` has the rows of all of them; at one it may die."""

    inputs = (ArraySpec("z", shape=(3,)),)
    outputs = (ArraySpec("y", shape=(3,)),)
    deterministic = False
    identity = "fine"  # without which `asked` would be part of it
    asked: ClassVar[list[float]] = []
    dies_at: int | None = None

    def evaluate(self, z):
        if len(Fine.asked) == Fine.dies_at:
            Fine.dies_at = None
            raise Killed
        Fine.asked.append(float(z[0]))
        return z.sin() if isinstance(z, torch.Tensor) else z * 0 + len(Fine.asked)


class Blocks(Fine):
    """The same, of blocks of rows."""

    max_rows = 4

    def evaluate_rows(self, z):
        return torch.stack([torch.as_tensor(self.evaluate(row)) for row in z]).numpy()


class Finely(Beside):
    """Its data is what a fine solver gives."""

    @dataclass(frozen=True)
    class Config(Beside.Config):
        methods: tuple[str, ...] = ("no-gradient",)
        steps: Count = 4

    fine = Fine

    def data(self):
        data, fine = super().data(), self.fine()
        return tasks.Data(data.train, data.validation, fine(fine(data.test)) / 100)


class Viscous(BlackBoxFunction):
    """A solver with a setting: at a low one some rows may fail, at a high one it may die."""

    inputs, outputs = Fine.inputs, Fine.outputs

    def __init__(self):
        super().__init__(failures="keep")
        self.nu = 0.1

    def evaluate(self, z):
        if self.nu < 1 and z[0] < 0 and "AWAY" in os.environ:
            raise RuntimeError("the licence server is away")
        if self.nu > 1 and str(float(z[0])) == os.environ.get("DIES_AT"):
            raise Killed
        return self.nu * z


class AtTwo(Beside):
    """Its data is of two viscosities, asked at the same rows."""

    Config = Finely.Config

    def data(self):
        data, box = super().data(), Viscous()
        low = box(data.test)
        box.nu = 5.0
        return tasks.Data(data.train, data.validation, torch.cat([low.nan_to_num(7.0), box(data.test)]))


class Crash(tasks.Callback):
    strict = True

    def on_step(self, stage, step, metrics):
        if step == 3:
            raise OSError("the machine is gone")


class Said(Progress):
    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(autouse=True)
def fresh(limits, monkeypatch):
    monkeypatch.setattr(Fine, "asked", [])
    monkeypatch.setattr(Fine, "dies_at", None)
    limits(first_write=0.0, later_writes=0.0, writes_share=0.0, rows_together=0.0)  # row by row


def folder_in(path: Path) -> Path:
    (folder,) = path.iterdir()
    return folder


@pytest.mark.slow
def test_rows_of_a_box_that_only_data_knows_are_counted_and_run_once(tmp_path):
    said = Said()
    whole = tasks.run(Finely(), runs=tmp_path / "whole", progress=said)
    rows = len(Fine.asked)
    assert (
        rows == 2 * len(Finely().data.test)
        and "  making the data: 16 rows, which have been run" in said.lines
    )
    Fine.asked.clear()
    box = Finely()
    with pytest.raises(OSError, match="the machine is gone"):
        tasks.run(box, runs=tmp_path / "cut", callbacks=[Crash()], progress=Progress())
    assert len(Fine.asked) == rows
    said = Said()
    again = tasks.run(Finely(), resume=folder_in(tmp_path / "cut"), progress=said)
    assert len(Fine.asked) == rows and "  making the data: 16 rows, which have been run" in said.lines
    assert again.result.table[0].value == whole.result.table[0].value
    assert again.result.calls["exact"]
    assert row_counts.read(again.path, "data") == {"rows": rows, "exact": True}
    steps = whole.result.table[0].rows // 4
    # the third one, run again; and the first batch, by which it is seen whether the box is the same
    assert again.result.calls["rows"] == whole.result.calls["rows"] + steps + FIRST
    assert len(Finely().data.test) == 8 and len(Fine.asked) == 2 * rows  # outside of a run they are asked
    assert tasks.load(again.path).problem.data.test is not None and len(Fine.asked) == 2 * rows


@pytest.mark.slow
def test_rows_that_failed_leave_their_place_so_that_no_answer_goes_to_another_setting(tmp_path, monkeypatch):
    """Killed twice in the second setting; some rows of the first one fail, and are answered after it."""
    rows = Beside().data.test
    for away, dies_at in ((True, rows[6]), (False, rows[7])):
        monkeypatch.setenv("DIES_AT", str(float(dies_at[0])))
        with monkeypatch.context() as server, pytest.raises(Killed):
            if away:
                server.setenv("AWAY", "1")
            made = {"resume": folder_in(tmp_path)} if any(tmp_path.iterdir()) else {"runs": tmp_path}
            tasks.run(AtTwo(), **made, progress=Progress())
    monkeypatch.delenv("DIES_AT")
    run = tasks.run(AtTwo(), resume=folder_in(tmp_path), progress=Progress())
    assert run.problem is not None
    assert torch.allclose(run.problem.data.test, torch.cat([0.1 * rows, 5 * rows]))


def test_two_boxes_that_nothing_tells_apart_keep_their_answers_over_two_kills(tmp_path):
    """The rows that failed are answered in the second life, and asked once more in the third."""

    class Handle(Fine):
        identity, away = "handle", True

        def __init__(self, nu):
            super().__init__(failures="keep")
            self.handle = [nu]

        def evaluate(self, z):
            Fine.asked.append(float(z[0]))
            if self.handle[0] == 1 and Handle.away:
                raise RuntimeError("the licence server is away")
            return self.handle[0] * z

    def asked(*settings):
        kept = KeptAnswers("data", tmp_path)
        with kept.used():
            found = [float(Handle(nu)(torch.ones(1, 3))[0, 0]) for nu in settings]
        kept.write()
        return found

    assert asked(1, 5)[1] == 5
    Handle.away = False
    assert asked(1, 5, 7) == asked(1, 5, 7, 9)[:3] == [1, 5, 7]
    assert len(Fine.asked) == 2 + 2 + 1


class Square(BlackBoxFunction):
    inputs = outputs = (ArraySpec("x", ()),)

    def evaluate_rows(self, x):
        return x * x


def test_one_row_of_a_column_of_a_table_is_kept(tmp_path):
    """Its stride is that of the table although it lies in one piece: a run with one test row ended so."""
    kept, box, table = KeptAnswers("data", tmp_path), Square(), torch.rand(1, 5)
    with kept.used():
        assert box(table[:, 3]) == box(table[:, 3].clone()) == table[0, 3].square()


def test_a_setting_that_is_assigned_between_calls_makes_another_box(tmp_path):
    """The row asked at another setting has another answer, also where that setting comes first."""

    def asked(*calls):
        kept, box = KeptAnswers("data", tmp_path), Viscous()
        with kept.used():
            found = []
            for nu, row in calls:
                box.nu = nu
                found.append(float(box(torch.full((1, 3), row))[0, 0]))
        kept.write()
        return found, box.ledger.rows_run

    assert asked((1.0, 1.0), (5.0, 2.0)) == ([1, 10], 2)
    assert asked((1.0, 1.0), (1.0, 2.0), (5.0, 2.0)) == ([1, 2, 10], 1)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_box_that_counts_its_calls_stays_one_box(tmp_path, wrapped):
    """And a setting that is assigned in front of a call of a wrapper makes another box of what is inside."""

    class Counting(Viscous):
        calls = 0

        def evaluate(self, z):
            self.calls += 1
            return super().evaluate(z)

    def asked(*calls):
        kept, box = KeptAnswers("data", tmp_path), Counting()
        way, other = (Retrying(box), box) if wrapped else (box, Retrying(box))
        with kept.used():
            found = []
            for nu, row, through in calls:
                box.nu = nu
                found.append(float((way if through else other)(torch.full((1, 3), row))[0, 0]))
        kept.write()
        return found, box.ledger.rows_run

    calls = [(1.0, 1.0, True), (1.0, 2.0, True), (5.0, 2.0, True)]
    assert asked(*calls) == ([1, 2, 10], 3)
    assert asked(*calls, (1.0, 3.0, True)) == ([1, 2, 10, 3], 1)
    assert asked(*calls, (7.0, 1.0, False), (7.0, 1.0, True), (1.0, 2.0, True))[0] == [1, 2, 10, 7, 7, 2]


def test_a_budget_bounds_what_makes_the_data_too(tmp_path):
    whole = tasks.run(Finely(), runs=tmp_path / "whole", progress=Progress())
    needed = whole.result.calls["rows"]
    Fine.asked.clear()
    for budget in (10, 16):
        with pytest.raises((BudgetError, tasks.errors.ConfigurationError)):
            tasks.run(Finely(), rows=budget, runs=tmp_path / str(budget), progress=Progress())
    assert len(Fine.asked) <= 10 + 16
    quick = {"methods": ["no-gradient"], "runs": tmp_path / "bounded"}
    run = tasks.run(Finely(), rows=needed, progress=Progress(), **quick)
    assert run.result.calls["rows"] <= needed
    assert run.problem is not None and not isinstance(run.problem.box, Budgeted)  # behind the run's end


def test_a_box_with_a_bound_of_its_own_has_what_the_data_left_of_the_budget(tmp_path):
    class Bounded(Finely):
        def box(self):
            return Budgeted(super().box(), 200)

        def check(self):  # before the box is made
            assert self.data

        def evaluate(self, network):
            with pytest.raises(BudgetError):
                while True:
                    self.box(torch.zeros(1, 3, dtype=torch.float64))
            return {"loss": 1.0}

    run = tasks.run(Bounded(), methods=["none"], rows=200, runs=tmp_path, progress=Progress())
    assert Fine.asked and run.result.calls["rows"] == 200


def test_answers_of_other_code_are_not_used_and_a_noisy_box_stays_noisy(tmp_path):
    def ask(code, *rows):
        answered = KeptAnswers("data", tmp_path, 0, {"problem.py": code})
        box, found = Fine(), []
        with answered.used():
            for row in rows:
                found.append(float(box(torch.full((1, 3), row, dtype=torch.float64).numpy())[0, 0]))
        answered.write()
        return found, len(Fine.asked), answered.recalled.rows_run

    assert ask("a", 1.0, 1.0, 2.0) == ([1.0, 2.0, 3.0], 3, 0)
    assert ask("a", 1.0, 2.0, 1.0, 1.0) == ([1.0, 3.0, 2.0, 4.0], 4, 3)
    assert ask("b", 1.0) == ([5.0], 5, 0)


def test_answers_of_other_code_may_be_removed_by_another_process_first(tmp_path, monkeypatch):
    answered, load = KeptAnswers("data", tmp_path, 0, {"problem.py": "a"}), checkpoint.load
    with answered.used():
        Fine()(torch.ones(1, 3, dtype=torch.float64))
    answered.write()

    def removed_meanwhile(path):
        content = load(path)
        path.unlink()
        return content

    monkeypatch.setattr(checkpoint, "load", removed_meanwhile)
    assert not KeptAnswers("data", tmp_path, 1, {"problem.py": "b"}).any_known


def test_rows_that_failed_are_asked_again(tmp_path):
    class Failing(Fine):
        identity = "failing"

        def evaluate(self, z):
            Fine.asked.append(float(z[0]))
            if z[0] == 2 and len(Fine.asked) < 4:
                raise ValueError("too steep")
            return z

    for expected in (3, 4):
        answered, box = KeptAnswers("data", tmp_path), Failing(failures="keep")
        with answered.used():
            found = box(torch.arange(1.0, 4.0)[:, None].expand(3, 3))
        answered.write()
        assert len(Fine.asked) == expected
        assert found[:, 0].isfinite().tolist() == [True, expected == 4, True]


class Row(BlackBoxFunction):
    """One input at a time. `rows` counts those of all; at `dies_at` it dies."""

    inputs, outputs = Fine.inputs, Fine.outputs
    rows, dies_at, identity = 0, -1, "row"  # without which the counts would be part of it

    def evaluate(self, z):
        Row.rows += 1
        if Row.rows == Row.dies_at:
            raise Killed
        return z**3


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("where", ["validate", "evaluate"])
def test_a_validation_or_test_that_is_cut_short_runs_only_the_rows_that_are_left(
    tmp_path, monkeypatch, where
):
    monkeypatch.setattr(Row, "rows", 0)
    monkeypatch.setattr(Row, "dies_at", -1)
    monkeypatch.setattr(Row, "dying", None, raising=False)

    class Judged(Beside):
        def box(self):
            return Row()

    def judged(self, *given):
        if before := Row.dying:
            Row.dying = None
            Row.dies_at = Row.rows + before
        Fine()(torch.zeros(2, 3))  # of a box that is not the problem's, which the table does not count
        return original(self, *given)

    original = getattr(Judged, where)
    setattr(Judged, where, judged)
    settings = {"methods": ("no-gradient",), "steps": 4, "progress": Progress()}
    whole = tasks.run(Judged(), runs=tmp_path / "whole", **settings).result
    Row.dying, Row.rows = 6, 0
    with pytest.raises(Killed):
        tasks.run(Judged(), runs=tmp_path / "cut", **settings)
    again = tasks.run(Judged(), resume=folder_in(tmp_path / "cut"), **settings).result
    assert again.table[0].extra == whole.table[0].extra and again.table[0].rows == whole.table[0].rows
    # the row of the kill; and the first batch, by which it is seen whether the box is the same
    assert again.calls["rows"] == whole.calls["rows"] + 1 + FIRST or where == "validate"
    assert Row.rows == again.calls["rows"]
    assert not (folder_in(tmp_path / "cut") / "answers").exists()


def test_a_test_that_is_cut_short_goes_on_in_a_budget_without_room_for_all_of_it(tmp_path, monkeypatch):
    class Judged(Beside):
        def box(self):
            return Row()

    settings = {"methods": ("none", "no-gradient"), "steps": 4, "progress": Progress()}
    monkeypatch.setattr(Row, "rows", 0)
    monkeypatch.setattr(Row, "dies_at", -1)
    whole = tasks.run(Judged(), runs=tmp_path / "whole", rows=1000, **settings).result
    total, Row.rows = Row.rows, 0
    monkeypatch.setattr(Row, "dies_at", total - 2)  # three rows of the last test are left
    settings["rows"] = total + 1  # the row of the kill is run again
    with pytest.raises(Killed):
        tasks.run(Judged(), runs=tmp_path / "cut", **settings)
    again = tasks.run(Judged(), resume=folder_in(tmp_path / "cut"), **settings).result
    assert [row.value for row in again.table] == [row.value for row in whole.table]
    assert again.calls["rows"] == Row.rows == total + 1


class Stepped(Beside):
    @dataclass(frozen=True)
    class Config(Beside.Config):
        steps: Count = 4
        validate_every: Count = 100
        zeroth_order: ZerothOrder = ZerothOrder(coordinates=3)

    def box(self):
        return Row()

    def reference(self, z):
        return z**3


def outcome(run: tasks.FinishedRun) -> list:
    (row,) = run.result.table
    weights = [weight.tolist() for weight in run.network(row.method).parameters()]
    return [row.value, row.rows, row.extra, row.ledger["rows_run"], weights]


class Dying(tasks.Callback):
    """The box dies at a row of the third step."""

    def __init__(self, row):
        self.row = row

    def on_step(self, stage, step, metrics):
        Row.dies_at = Row.rows + self.row if step == 2 else -1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "method",
    ["row-rge", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tangents", "sparse-cge"))],
)
@pytest.mark.parametrize("saved", [True, False])
def test_a_step_that_is_cut_short_runs_only_the_rows_that_are_left(
    tmp_path, limits, monkeypatch, method, saved
):
    limits(remembered_in_steps=0.0)
    monkeypatch.setattr(Row, "rows", 0)
    monkeypatch.setattr(Row, "dies_at", -1)
    if not saved:  # there is a checkpoint before the first step alone
        monkeypatch.setattr(Stage, "due", property(lambda stage: stage.outcome.step == 0))
    settings = {"methods": (method,), "progress": Progress()}
    whole = tasks.run(Stepped(), runs=tmp_path / "whole", **settings)
    rows, Row.rows = Row.rows, 0
    with pytest.raises(Killed):
        tasks.run(Stepped(), runs=tmp_path / "cut", callbacks=[Dying(6)], **settings)
    again = tasks.run(Stepped(), resume=folder_in(tmp_path / "cut"), **settings)
    assert outcome(again) == outcome(whole)
    # the row of the kill, the first batch, by which it is seen whether the box is the same; and the
    # first base, of which evaluators measure how much memory it takes
    assert Row.rows == rows + 1 + FIRST + (10 if method == "sparse-cge" and not saved else 0)
    assert not (again.path / "answers").exists()


def test_blocks_of_workers_are_kept_as_they_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(Row, "rows", 0)
    rows = torch.arange(21.0).reshape(7, 3)
    for dies_at, expected in ((5, 5), (-1, 8)):  # in the third block of two: its first row is run again
        monkeypatch.setattr(Row, "dies_at", dies_at)
        answered = KeptAnswers("seed-0/x.steps", tmp_path)
        with ThreadPoolExecutor(1) as pool, answered.used():
            box = Parallel(Row(), pool, block=2, in_flight=1)
            if dies_at > 0:
                with pytest.raises(Killed):
                    box(rows)
            else:
                assert torch.equal(box(rows), rows**3)
        assert Row.rows == expected and answered.recalled.rows_run == (0 if dies_at > 0 else 4)
    answered.end()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_who_looks_at_a_run_leaves_its_answers_as_they_are(tmp_path):
    """Another process may be at work on it: what is torn or damaged here is half written there."""
    run = tasks.run(Finely(), runs=tmp_path, progress=Progress())
    folder = run.path / "answers"
    (folder / "data.0.0.99.pt").write_bytes(b"damaged")
    (folder / ".data.0.0.98.pt.1.tmp").write_bytes(b"torn")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert len(before) > 2
    asked = len(Fine.asked)
    assert tasks.load(run.path).problem.data.test is not None and len(Fine.asked) == asked
    assert commands.report(run.path) == 0
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_answers_of_a_box_that_changes_the_working_directory_are_in_the_runs_folder(tmp_path, monkeypatch):
    class Moving(Row):
        identity = "moving"

        def evaluate(self, z):
            os.chdir(tmp_path / "elsewhere")
            return super().evaluate(z)

    monkeypatch.setattr(Row, "dies_at", -1)
    for name in ("run", "elsewhere"):
        (tmp_path / name).mkdir()
    for expected in (3, 3):
        monkeypatch.chdir(tmp_path)
        answered = KeptAnswers("data", Path("run"))
        with answered.used():
            Moving()(torch.ones(3, 3).cumsum(0))
        answered.write()
        assert Row.rows == expected
    assert not list((tmp_path / "elsewhere").iterdir())


ROW = torch.ones(1, 3, dtype=torch.float64)
WRONG = {
    "code": (None, [], {"a": 1}),
    "entries": (None, 1, "text", [1], [[]], [{}], {"a": 1}, [{"keys": []}]),
    "keys": (None, 1, [1], [[]], ["a", "b"]),
    "lengths": (None, 1, ["a"], [-1], [2], [0], [1, 1], [1.0]),
    "outputs": (
        None,
        1,
        [1],
        [ROW.to_sparse()],
        [ROW.to("meta")],
        [ROW[0]],
        [ROW[:, :2]],
        [ROW, ROW],
        [],
        [ROW.T],
    ),
    "extra": (None, "a", -9, 0.5, ROW),
    "place": (None, "a", 0.5, [0]),
    "more": (1,),
}


@pytest.mark.quick_cases(21)
@pytest.mark.parametrize(("part", "value"), [(part, value) for part in WRONG for value in WRONG[part]])
def test_files_of_answers_that_are_none_are_asked_again(tmp_path, monkeypatch, part, value):
    monkeypatch.setattr(Row, "dies_at", -1)
    answered = KeptAnswers("data", tmp_path)
    with answered.used():
        Row()(ROW)
    (path,) = (tmp_path / "answers").iterdir()
    content = checkpoint.load(path)
    (content if part in content else content["entries"][0])[part] = value
    checkpoint.save(path, content)
    monkeypatch.setattr(Row, "rows", 0)
    again = KeptAnswers("data", tmp_path)
    with again.used():
        assert torch.equal(Row()(ROW), ROW**3)
    assert Row.rows == 1


def test_only_what_this_process_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    names = {".data.4.0.1.pt.77.tmp", ".data.4.1.1.pt.77.tmp", ".data.tmp", ".data.more.4.0.1.pt.77.tmp"}
    for name in names:
        (folder / name).touch()
    KeptAnswers("data", tmp_path)
    assert {path.name for path in folder.iterdir()} == names - {".data.4.0.1.pt.77.tmp"}
