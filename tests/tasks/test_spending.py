"""A budget of rows: what a run chooses by it, and that it keeps to it."""

import copy
import itertools
import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import pytest
import torch

import tasks
import zo
from blackbox import Budgeted
from blackbox.errors import BudgetError
from tasks import Progress, Run
from tasks.command.cli import main
from tasks.errors import ConfigurationError, ProblemWarning
from tasks.methods.by_name import methods_named
from tasks.planning import cost, spending, trial
from tasks.planning.plan import POPULATION, left_to_the_budget, plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import Rehearsal, asked
from tasks.rows import binding
from tasks.rows.binding import Bound
from tasks.training import training_loop
from tasks.training.course import Course
from tests.tasks.problems import Beside, Mixed, Preset, Said, Steering, Stopped, Stops

HERE = "tests.tasks.problems:Steering"


def go(problem, runs, **settings):
    return tasks.run(problem, runs=runs, progress=Progress(), **settings)


def rows_in_all(run):
    """Rows of the run's box, of training, validation, test and timing together."""
    return run.result.calls["rows"]


def weights_of(run, method, seed=0):
    return torch.cat([weight.flatten() for weight in run.network(method, seed).parameters()])


class Answered(Beside):
    """The box makes 150 rows of its data."""

    def data(self):
        self.box(torch.zeros(150, 3))
        return super().data()


@pytest.mark.slow
def test_steps_leave_room_for_the_rows_that_make_the_data(tmp_path):
    run = go(Answered(), tmp_path, rows=400, methods=("no-gradient",))
    row = run.result.table[0]
    assert row.extra["rows of validation"] == 0
    assert 0.95 * 400 < rows_in_all(run) <= 0.98 * 400
    assert (
        rows_in_all(run) == 150 + row.rows + row.extra["rows of test"] + 2
    )  # of the evaluation that is timed


class Normed(Steering):
    """A loss of two calls, whose network has batch norm and so takes no single row."""

    def network(self):
        return torch.nn.Sequential(torch.nn.BatchNorm1d(3, dtype=torch.float64), super().network())


@pytest.mark.parametrize(("calls", "batch"), [(2, 2), (1, 8)])
def test_a_network_that_takes_no_single_row_gets_batches(tmp_path, calls, batch):
    run = go(Normed(calls=calls), tmp_path, rows=280, rates=(1.0,), replays=1, surrogate=False)
    assert run.problem.config.batch == batch
    assert run.result.calls["rows"] <= 280
    assert run.problem.config.steps * batch * calls > 140


class Priced(Steering):
    """It says itself what it costs, and has the box make data, in batches of a size of its own."""

    made = 0

    def cost(self, seeds):
        return ["What it takes."]

    def data(self):
        type(self).made += 1
        self.box(torch.zeros(150, 3))
        return replace(super().data(), train=lambda seed, step: torch.zeros(5, 3, dtype=torch.float64))


def test_a_problem_that_says_its_cost_makes_its_data_once(tmp_path):
    run = go(Priced(), tmp_path, rows=400, methods=("first-order",))
    assert Priced.made == 1 and 150 < run.result.calls["rows"] <= 400


class Picky(Steering):
    """An objective that takes zeros from no box, whatever the batch."""

    made = ()

    def data(self):
        type(self).made += (self.config.batch,)
        return super().data()

    def objective(self, network, wanted):
        if not self.box(network(wanted)).any():
            raise ValueError("zeros")
        return super().objective(network, wanted)


def test_data_of_more_rows_that_are_no_help_are_not_made_thrice(tmp_path):
    run = go(Picky(), tmp_path, rows=400, methods=("first-order",))
    assert Picky.made == (1, 2) and run.result.calls["rows"] <= 400


class Asking(Steering):
    """Methods of a user's own, of which one asks for what the problem knows: 70 rows of the box."""

    methods: ClassVar = {
        name: tasks.methods.Method(
            "Ours.", lambda setup: None, lambda problem, steps: tasks.methods.Cost(steps), **declared
        )
        for name, declared in {"plain": {}, "ours": {"learns_answers": True, "replays": True}}.items()
    }

    def answers(self):
        z = torch.zeros(70, 3, dtype=torch.float64)
        return {"box": ([z], self.box(z))}


@pytest.mark.parametrize(("method", "made"), [("plain", 0), ("ours", 70)])
def test_what_a_users_method_declares_is_planned_and_said(method, made):
    problem = Asking(methods=(method,), replays=None, rows=500)
    plan = plan_of(problem, methods_named(problem), [0], chosen={"steps": None, "validate_every": None})
    bound = Bound.of(plan.problem)
    bound.bound()
    plan = settled(plan, bound, asked(bound, plan.methods, 1), timed=False)
    assert plan.rows is not None and plan.rows.made == made
    chosen, *_ = cost.sentences(plan, bound)
    assert chosen.startswith("For 500 rows")
    assert ("replays as far as they are trusted" in chosen) == bool(made)


class Surveyed(Steering):
    """A method whose rows do not depend on its steps."""

    methods: ClassVar = {
        "survey": tasks.methods.Method(
            "All rows come first.",
            lambda setup: setup.descend(
                tasks.methods.autograd.AutogradGradient(setup.network, setup.objective, {})
            ),
            cost=lambda problem, steps: tasks.methods.Cost(evaluations=20),
        )
    }


def test_a_validation_is_the_mean_of_losses_before_a_step_on_them(tmp_path):
    run = go(Steering(), tmp_path, rows=120, methods=("first-order",))
    lines = run.metrics
    every, steps = run.problem.config.validate_every, run.problem.config.steps
    losses = dict(lines[lines.loss.notna()][["step", "loss"]].itertuples(index=False))
    judged = dict(lines[lines.validation.notna()][["step", "validation"]].itertuples(index=False))
    assert list(judged) == [*range(every, steps, every), steps] and 0 not in judged
    for end, mean in judged.items():
        window = [losses[step] for step in range(1, end + 1) if step > (end - 1) // every * every]
        assert mean == pytest.approx(sum(window) / len(window), rel=1e-12)


def kept_at_the_start(setup):
    """Trains a network, and keeps another."""
    gradient = zo.TangentGradient(setup.network, setup.objective, boxes=setup.boxes)
    return setup.descend(gradient, judged=copy.deepcopy(setup.network))


class Averaged(Steering):
    """A method that keeps other weights than those that train."""

    methods: ClassVar = {
        "averaged": tasks.methods.Method(
            "Ours.", kept_at_the_start, lambda problem, steps: tasks.methods.Cost(steps)
        )
    }


def test_the_losses_of_the_weights_that_train_are_no_validation_of_others_that_are_kept(tmp_path):
    run = go(Averaged(), tmp_path, rows=120, methods=("averaged",))
    assert run.result.table[0].extra["validation"] is None
    assert "validation" not in run.metrics or run.metrics.validation.isna().all()


def test_a_finished_run_s_problem_is_asked_beyond_the_budget(tmp_path):
    """To test a network on more rows; what the user bounds stays bounded."""

    class Bounded(Steering):
        def box(self):
            return Budgeted(super().box(), 500)

    run = go(Steering(), tmp_path, rows=120, methods=("first-order",))
    before = run.problem.box.ledger.rows_run
    assert run.problem.losses(run.network("first-order"), torch.zeros(200, 3).double()).isfinite().all()
    assert run.problem.box.ledger.rows_run == before + 2 * 200 and rows_in_all(run) <= 120
    run = go(Bounded(), tmp_path, rows=120, methods=("first-order",))
    with pytest.raises(BudgetError, match="of 500"):
        run.problem.losses(run.network("first-order"), torch.zeros(300, 3).double())


@pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")
def test_batches_whose_rows_fail_choose_no_weights(tmp_path):
    """The mean over the rows that came back says nothing of those that did not."""

    class Breaks(Steering):
        def objective(self, network, wanted):
            return super().objective(network, wanted).where(wanted[:, 0] > -0.3, torch.nan)

    with pytest.warns(ProblemWarning, match="at most a tenth of 25 losses not to be finite, got 6"):
        run = go(Breaks(), tmp_path, rows=120, methods=("first-order",), batch=5)
    judged = run.metrics[run.metrics.validation.notna()].set_index("step")
    assert judged.validation_failed.dropna().to_dict() == {5: 6}
    assert run.result.table[0].extra["rejected validations"] == 1


def test_a_budget_trains_by_one_method_unless_others_are_named(tmp_path):
    problem, left = left_to_the_budget(Steering(rows=100), None, {"rows"})
    assert problem.config.methods == ("none", POPULATION) and set(left) == {
        "steps",
        "validate_every",
        "rates",
        "batch",
    }
    problem, left = left_to_the_budget(Steering(rows=100, methods=("cge",), batch=4), None, {"rates"})
    assert (problem.config.methods, problem.config.batch) == (("cge",), 4) and "rates" not in left
    assert left_to_the_budget(Steering(rows=100, steps=7), None, {"steps"})[1] == {}
    assert left_to_the_budget(Steering(), None, ())[1] == {}


@pytest.mark.parametrize(
    ("second", "budget", "rates"),
    [
        (0.001, {"rows": 200, "minutes": 9.0}, (1.0,)),
        (0.5, {"rows": 200, "minutes": 9.0}, (1.0, 4.0, 16.0)),
        (0.001, {"rows": 200}, (1.0, 4.0, 16.0)),  # a hundred steps: 8 s
        (0.001, {"rows": 20_000}, (1.0,)),  # ten thousand: 14 minutes
    ],
)
def test_several_rates_are_tried_where_they_take_no_longer_than_rows(monkeypatch, second, budget, rates):
    """At 3 ms a replay, 13 of them, two further networks add 2 * 14 * 3 = 84 ms to a step."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: second / 2))  # two calls
    problem, left = left_to_the_budget(Steering(**budget), None, set(budget))
    plan, bound = plan_of(problem, methods_named(problem), (0,), chosen=left), Bound.of(problem)
    bound.bound()
    work = {POPULATION: Rehearsal(1.0, 0.01, 0.003, 13)}
    said = asked(bound, plan.methods, 1)
    plan = settled(plan, bound, said, timed=True, rehearse=lambda plan, bound: work)
    assert plan.config.rates == rates == bound.problem.config.rates
    one, _, three = cost.sentences(plan, bound)
    assert ("at 1, 4 and 16 times" in one) == (len(rates) > 1)
    assert f"{1e3 * second / 2:.3g} ms a row" in three


@pytest.mark.parametrize(
    ("minutes", "surrogate", "several", "steps"),
    [
        (1, False, True, 9),  # 40 s for steps, all of which a surrogate would take
        (0.5, False, False, 5),  # with several rates there would be three
        (3, True, True, 26),  # without it 36
        (60, True, True, 804),
    ],
)
def test_minutes_leave_out_what_leaves_few_steps_of_a_population(
    monkeypatch, minutes, surrogate, several, steps
):
    """A surrogate of 40 s left one step in a minute, since its steps are as many for any training."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: 1.0))  # two calls
    budget = {"minutes": float(minutes)}
    problem, left = left_to_the_budget(Steering(**budget), None, set(budget))
    plan, bound = plan_of(problem, methods_named(problem), (0,), chosen=left), Bound.of(problem)
    bound.bound()
    work = {POPULATION: Rehearsal(1.0, 0.01, 0.05, 13, update=0.04)}
    said = asked(bound, plan.methods, 1)
    plan = settled(plan, bound, said, timed=True, rehearse=lambda plan, bound: work)
    config = plan.config
    assert (config.surrogate, len(config.rates) > 1) == (surrogate, several)
    assert config.steps == steps
    one, *_ = cost.sentences(plan, bound)
    assert ("without a surrogate" in one) == (not surrogate)


class Clock:
    """Time that passes in boxes alone."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (binding, training_loop, trial):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)

    def slowed(self, evaluate, seconds):
        def slow(box, *arrays):
            self.now += seconds()
            return evaluate(box, *arrays)

        return slow


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dearer", [True, False])
def test_a_run_ends_in_its_minutes(tmp_path, monkeypatch, dearer):
    clock, rows = Clock(monkeypatch), itertools.count()
    monkeypatch.setattr(
        Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: 1.0 if dearer and next(rows) > 60 else 0.25)
    )
    run = go(Beside(), tmp_path, minutes=2, methods=("none", "no-gradient"))
    assert 0.75 * 120 < clock.now <= 120
    steps, planned = run.result.table[1].extra["steps"], Run.open(run.path).chosen["steps"]
    assert steps < planned if dearer else steps == planned
    assert run.network("no-gradient") is not None  # whose checkpoint says how far it was


def test_a_run_whose_rows_turn_out_far_quicker_goes_on_and_ends_in_its_minutes(tmp_path, monkeypatch):
    clock, rows = Clock(monkeypatch), itertools.count()
    monkeypatch.setattr(Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: 0.25 + (next(rows) < 20)))
    run = go(Beside(), tmp_path, minutes=1, methods=("none", "no-gradient"))
    assert 0.5 * 60 < clock.now <= 60
    row = run.result.table[1]
    assert row.extra["steps"] >= 1.5 * Run.open(run.path).chosen["steps"]
    again = go(Beside(), tmp_path, resume=run.path, minutes=1, methods=("none", "no-gradient"))
    assert again.result.table[1].extra["steps"] == row.extra["steps"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_population_knows_where_its_training_ends_when_steps_become_fewer(tmp_path, monkeypatch):
    clock, rows, ends = Clock(monkeypatch), itertools.count(), []
    monkeypatch.setattr(
        Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: 1.0 if next(rows) > 12 else 0.25)
    )

    class Knows(zo.Population):
        def step(self, batch):
            ends.append(self.steps)
            return super().step(batch)

    monkeypatch.setattr(zo, "Population", Knows)
    run = go(Beside(calls=1, batch=1, rates=[1.0]), tmp_path, minutes=0.5, methods=("population",))
    planned = Run.open(run.path).chosen["steps"]
    assert ends[0] == planned > ends[-1] == run.result.table[0].extra["steps"]


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_with_what_was_decided(tmp_path, monkeypatch):
    clock, rows = Clock(monkeypatch), itertools.count()
    monkeypatch.setattr(
        Mixed, "evaluate", clock.slowed(Mixed.evaluate, lambda: 1.0 if 60 < next(rows) < 90 else 0.25)
    )
    settings = {"minutes": 2, "methods": ("no-gradient",)}
    whole = go(Beside(), tmp_path / "whole", **settings)
    steps = whole.result.table[0].extra["steps"]
    assert steps < Run.open(whole.path).chosen["steps"]

    class Stops(tasks.Callback):
        strict = True

        def on_step(self, stage, step, metrics):
            if step == steps - 5:
                raise RuntimeError("stopped")

    clock.now, rows = 0.0, itertools.count()
    with pytest.raises(RuntimeError, match="stopped"):
        go(Beside(), tmp_path / "cut", callbacks=[Stops()], **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    again = go(Beside(), tmp_path, resume=folder, **settings)
    assert again.result.table[0].extra["steps"] == steps
    first, second = (
        torch.cat([weight.flatten() for weight in run.network("no-gradient").parameters()])
        for run in (whole, again)
    )
    assert torch.equal(first, second)


def test_a_schedule_has_no_jump_where_steps_become_fewer():
    course, seconds, angles = Course(100, 60.0), 0.0, []
    for step in range(1000):
        if step == course.steps:
            break
        angles.append(course.angle(step))
        seconds += 0.4 if step < 20 else 2.0
        course.changes(step + 1, seconds)
    assert len(angles) < 60 and seconds <= 60 * 1.1
    assert angles[:20] == [math.pi * step / 100 for step in range(20)]  # as without a limit
    steps = [later - before for before, later in pairwise(angles)]
    assert min(steps) > 0 and max(steps) < 6 * math.pi / 100 and angles[-1] > 0.9 * math.pi


def test_steps_that_slow_first_ones_took_come_back_and_the_time_is_used():
    course, seconds, angles, most = Course(100, 60.0), 0.0, [], []
    for step in range(1000):
        if step == course.steps:
            break
        angles.append(course.angle(step))
        seconds += 4.0 if step < 6 else 0.5
        course.changes(step + 1, seconds)
        most.append(course.steps)
        again = Course(100, 60.0)
        again.load_state_dict(course.state_dict())
        assert (again.steps, again.angle(step)) == (course.steps, course.angle(step))
        if step + 1 < course.steps:  # where it goes on, the pace is not known yet
            assert not again.changes(step + 1, seconds)
    assert min(most) < 20 and course.steps > 60 and 50 < seconds <= 60 * 1.1
    turns = [later - before for before, later in pairwise(angles)]
    assert min(turns) > 0 and angles[-1] > 0.9 * math.pi


@pytest.mark.parametrize("hung", [3, 12, 50])
def test_one_step_that_hung_changes_nothing(hung):
    """There is time for it, and the learning rate would not come back."""
    course, seconds = Course(100, 80.0), 0.0
    for step in range(100):
        assert course.steps == 100 and course.angle(step) == math.pi * step / 100
        seconds += 20.0 if step == hung else 0.5
        course.changes(step + 1, seconds)
    assert seconds < 80


def test_bursts_of_learning_change_a_plan_seldom():
    """A median of ten steps was now one, now ten times the mean, and a plan by minutes changed 62 times."""
    course, seconds, step, changes = Course(2000, 300.0, grows=True), 0.0, 0, 0
    while step < course.steps:
        burst = step % 60 < 15
        seconds, step = seconds + (0.6 if burst else 0.06), step + 1
        changes += course.changes(step, seconds)
    assert changes < 20 and 270 < seconds <= 306


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_plan_by_time_that_took_far_too_few_steps_goes_on(steps, grows):
    """One step or three of a second were all that was planned for a minute."""
    course, seconds, angles = Course(steps, 60.0, grows=grows), 0.0, []
    while len(angles) < course.steps:
        angles.append(course.angle(len(angles)))
        seconds += 5.0 if len(angles) == 1 else 1.0
        course.changes(len(angles), seconds)
        again = Course(steps, 60.0, grows=grows)
        again.load_state_dict(course.state_dict())
        assert (again.steps, again.angle(0)) == (course.steps, course.angle(0))
    early = sum(angle < math.pi / 2 for angle in angles)  # at more than half of the learning rate
    assert angles[-1] < math.pi and early > 0.3 * len(angles)
    assert 40 < seconds <= 60 if grows else course.steps == steps


def test_a_plan_by_time_does_not_go_on_for_a_few_steps_more():
    """Few further steps would be at the learning rate of the end."""
    course, seconds = Course(40, 60.0, grows=True), 0.0
    for step in range(40):
        seconds += 1.1
        assert not course.changes(step + 1, seconds)


@pytest.mark.parametrize("checked", [{0: 1}, {0: 1, 4: 3, 9: 1}, {0: 1, 8: 3, 10: 1}, {0: 1, 13: 3}])
def test_rows_that_are_too_few_for_a_check_are_taken_by_steps(checked):
    """A step needs 8 rows, and each query of its check as many."""
    left, queries, step = 128, 0, 0
    course = Course(20, None, lambda: left, lambda: queries)
    course.changes(0, 0.0)
    while step < course.steps:
        more = 0 if course.is_tight else checked.get(step, 0)
        queries, left, step = queries + more, left - 8 * (1 + more), step + 1
        course.changes(step, 0.0)
        again = Course(20, None, lambda: 0, lambda: 0)
        again.load_state_dict(course.state_dict())
        assert (again.steps, again.is_tight) == (course.steps, course.is_tight)
    assert left == 0 and step == 16 - queries


@pytest.mark.parametrize("rows", [400, pytest.param(1200, marks=pytest.mark.slow)])
def test_a_run_takes_as_many_steps_as_its_rows_allow(tmp_path, rows):
    run = go(Steering(), tmp_path, rows=rows, methods=("none", "first-order"))
    config = Run.open(run.path).config
    assert config["batch"] == 1 and config["replays"] is None
    each, steps = 2, config["steps"]  # rows of the box for a row of data
    timing, tested = each, min(8, max(2, steps // 30))
    told = (steps + 1) * each + 2 * tested * each + timing
    assert rows_in_all(run) == told <= 0.98 * rows
    assert 0.98 * rows < told + each + 2 * each  # with a step, and a row more in both tests
    row = run.result.table[1]
    assert row.extra["steps"] == steps and row.extra["rows of validation"] == each  # to see the reference
    assert row.rows >= 0.85 * rows


class Scarce(Steering):
    """Its data have fewer rows to train on than a step would ask for, or batches of a size of their own."""

    def data(self):
        rows = torch.linspace(-1, 1, 3 * (6 + 8 + 2), dtype=torch.float64).reshape(-1, 3)
        return tasks.Data.split(rows, batch=self.config.batch, validation=6, test=8)


class Odd(Steering):
    """Its batches have three rows, and their numbers are of the size that was asked for."""

    def data(self):
        rows = torch.full((40, 3), 0.1 * self.config.batch, dtype=torch.float64)
        return tasks.Data(lambda seed, step: rows[:3], rows[:6], rows[:8])


@pytest.mark.parametrize("problem", [Scarce, Odd])
def test_batches_stay_of_one_row_where_data_give_no_others(problem):
    """And data are those of one row."""
    made, left = left_to_the_budget(problem(rows=2000, calls=1), None, {"rows"})
    plan, bound = plan_of(made, methods_named(made), (0,), chosen=left), Bound.of(made)
    bound.bound()
    settled(plan, bound, asked(bound, plan.methods, 1), timed=False)
    given = bound.problem.data.train(0, 0)
    assert bound.problem.config.batch == 1
    assert problem is Scarce or torch.equal(given, torch.full((3, 3), 0.1, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rows"), [pytest.param("cge", 4000, marks=pytest.mark.slow), ("rge", 3000)]
)
def test_checks_of_queries_are_within_the_rows(tmp_path, method, rows):
    run = go(Steering(), tmp_path, rows=rows, methods=(method,))
    assert 0.45 * rows < rows_in_all(run) <= rows


def test_where_steps_take_no_rows_their_number_stays(tmp_path):
    run = go(Steering(), tmp_path, rows=400, methods=("none",))
    assert run.problem.config.steps == Steering.Config().steps


def test_where_rows_do_not_grow_with_the_steps_their_number_stays(capsys):
    """As of a method that asks for all its rows before the first: a million million steps fitted."""
    assert main(["run", f"{__name__}:Surveyed", "--rows", "400", "--methods", "survey", "--dry-run"]) == 0
    steps = Steering.Config().steps
    assert f" {steps} steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_preset_keeps_its_settings_and_takes_fewer_steps_where_its_rows_have_no_room(tmp_path):
    problem = Preset(Preset.presets["long"], methods=("first-order",))
    run = go(problem, tmp_path, rows=600)
    config = run.problem.config
    assert (config.batch, config.replays) == (3, 0)
    assert rows_in_all(run) <= 600 and 40 < config.steps < 100  # of 3 rows of data, 2 of the box each
    assert Run.open(run.path).chosen == {"steps": config.steps, "validate_every": config.validate_every}
    again = go(problem, tmp_path, rows=600, resume=run.path)
    assert again.path == run.path and again.problem.config == config


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("settings", [{}, {"steps": 3}])
def test_a_preset_with_room_and_steps_by_hand_stay_as_they_are(tmp_path, settings):
    rows = 5_000 if settings else 50_000
    run = go(Preset(Preset.presets["short"], methods=("first-order",)), tmp_path, rows=rows, **settings)
    assert run.problem.config.steps == settings.get("steps", Steering.Config().steps)
    assert Run.open(run.path).chosen == {}


def test_the_command_line_says_that_a_preset_takes_fewer_steps(capsys):
    words = ["run", "tests.tasks.problems:Preset", "--preset", "long", "--methods", "first-order"]
    assert main([*words, "--rows", "600", "--dry-run"]) == 0
    told = r"For 600 rows: first-order; batches of 3, (\d+) steps; .*\n  The preset's 200 steps would take"
    said = re.search(told, capsys.readouterr().out, re.DOTALL)
    assert said is not None and 40 < int(said.group(1)) < 100
    assert main([*words, "--rows", "600", "--steps", "200"]) != 0
    refusal = capsys.readouterr().err
    assert "expected a run within its budget of 600 rows" in refusal
    assert "--methods none population" in refusal


@pytest.mark.slow
def test_what_is_set_by_hand_stays(tmp_path):
    run = go(Steering(), tmp_path, rows=1000, steps=7, methods=("first-order",))
    assert (run.problem.config.steps, run.problem.config.batch, run.problem.config.replays) == (7, 5, 0)
    run = go(Steering(batch=2), tmp_path, rows=500, replays=1, validate_every=50, methods=("first-order",))
    config = run.problem.config
    assert (config.batch, config.replays, config.validate_every) == (2, 1, 50) and config.steps > 50


@pytest.mark.slow
def test_a_run_that_chose_goes_on_with_what_it_chose(tmp_path):
    class Stops(tasks.Callback):
        strict = True

        def on_step(self, stage, step, metrics):
            if step == 5:
                raise RuntimeError("stopped")

    settings = {"rows": 800, "methods": ("first-order",)}
    whole = go(Steering(), tmp_path / "whole", **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        go(Steering(), tmp_path / "cut", callbacks=[Stops()], **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    chosen = Run.open(folder).chosen
    assert chosen == Run.open(whole.path).chosen and chosen["steps"] > 5
    again = go(Steering(), tmp_path, resume=folder, **settings)
    assert torch.equal(weights_of(whole, "first-order"), weights_of(again, "first-order"))
    assert whole.result.table[0].extra == again.result.table[0].extra


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
@pytest.mark.parametrize("method", ["tangents", "population"])
def test_the_first_step_takes_over_the_rows_that_were_timed(tmp_path, monkeypatch, limits, method):
    limits(updates_of_a_population=20)
    settings = {"methods": ("none", method), "steps": 4, "seeds": [3, 4]}
    run = go(Steering(), tmp_path / "once", **settings)
    monkeypatch.setattr(spending, "BEGIN", ())
    twice = go(Steering(), tmp_path / "twice", **settings)
    assert rows_in_all(run) == rows_in_all(twice) - 10  # a batch of five, in two calls
    assert [row.rows for row in run.result.table] == [row.rows for row in twice.result.table]
    for seed in (3, 4):
        assert torch.equal(weights_of(run, method, seed), weights_of(twice, method, seed))


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_no_row_of_a_budget_is_for_its_time_alone(tmp_path, limits):
    limits(updates_of_a_population=20)
    run = tasks.run(Steering(), runs=tmp_path, rows=60, rates=(1.0,), replays=1, progress=(said := Said()))
    none, trained = run.result.table
    assert rows_in_all(run) == trained.rows + none.extra["rows of test"] + trained.extra["rows of test"]
    (rows,) = (line for line in said.lines if line.startswith("Rows: "))
    assert "in training" in rows and "timed" not in rows


class Waking(Mixed):
    """Its first row fails, as of a server that is not up yet."""

    rows_seen = 0

    def evaluate(self, z):
        self.rows_seen += 1
        if self.rows_seen == 1:
            raise ConnectionError("not up yet")
        return super().evaluate(z)


def test_a_batch_of_which_a_row_failed_while_it_was_timed_is_asked_again(tmp_path):
    class Served(Steering):
        def box(self):
            return Waking()

    settings = {"methods": ("none", "tangents"), "steps": 2}
    run = go(Served(), tmp_path / "served", **settings)
    whole = go(Steering(), tmp_path / "whole", **settings)
    assert rows_in_all(run) > rows_in_all(whole) and run.result.table[1].ledger["rows_failed"] == 0
    assert torch.equal(weights_of(run, "tangents"), weights_of(whole, "tangents"))


def test_a_run_that_ends_before_its_first_step_times_anew_and_ends_alike(tmp_path):
    settings = {"methods": ("none", "tangents"), "steps": 4}
    with pytest.raises(Stopped):
        go(Steering(), tmp_path / "cut", callbacks=[Stops()], **settings)
    (folder,) = (tmp_path / "cut").iterdir()
    whole = go(Steering(), tmp_path / "whole", **settings)
    again = go(Steering(), tmp_path, resume=folder, **settings)
    assert torch.equal(weights_of(again, "tangents"), weights_of(whole, "tangents"))
    assert [row.rows for row in again.result.table] == [row.rows for row in whole.result.table]
    assert not (folder / "answers").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_a_population_has_eight_rows_a_step_also_where_a_run_goes_on(tmp_path, limits):
    limits(updates_of_a_population=60)

    class Stops(tasks.Callback):
        strict = True

        def on_step(self, stage, step, metrics):
            if step == 1:
                raise RuntimeError("stopped")

    whole = go(Steering(calls=1), tmp_path / "whole", rows=300)
    assert Run.open(whole.path).config["batch"] == 8
    with pytest.raises(RuntimeError, match="stopped"):
        go(Steering(calls=1), tmp_path / "cut", rows=300, callbacks=[Stops()])
    (folder,) = (tmp_path / "cut").iterdir()
    again = go(Steering(calls=1), tmp_path, rows=300, resume=folder)
    assert Run.open(folder).chosen == Run.open(whole.path).chosen
    assert torch.equal(weights_of(whole, "population"), weights_of(again, "population"))


@pytest.mark.slow
def test_the_command_line_says_what_it_chose(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", HERE, "--rows", "600", "--methods", "first-order"]
    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "For 600 rows: first-order; batches of 1, " in told and "of 600 allowed" in told
    assert main(words) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    content = json.loads((folder / "config.json").read_text())
    steps = content["config"]["steps"]
    assert content["chosen"] == {
        name: content["config"][name] for name in ("batch", "steps", "validate_every", "rates")
    }
    assert f"batches of 1, {steps} steps; validation" in told
    capsys.readouterr()
    assert main([*words, "--steps", "6", "--dry-run"]) == 0
    assert "batches of" not in capsys.readouterr().out


def test_a_budget_without_room_for_a_step_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"budget of 16 rows, .* Give --rows 17 or more"):
        go(Steering(), tmp_path, rows=16, methods=("first-order",))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_budget_without_room_for_checks_is_refused_with_what_would_do(tmp_path):
    methods = ("none", "first-order", "rge")
    with pytest.raises(ConfigurationError, match=r"take first-order \d+, rge \d+") as error:
        go(Steering(), tmp_path, rows=200, methods=methods)
    enough = int(re.search(r"Give --rows (\d+)", str(error.value))[1])
    with pytest.raises(ConfigurationError, match=f"Give --rows {enough} or more"):
        go(Steering(), tmp_path, rows=enough - 1, methods=methods)
    assert not list(tmp_path.iterdir())
    run = go(Steering(), tmp_path, rows=enough, methods=methods)  # the judgement has its rows
    assert [row.extra["steps"] for row in run.result.table] == [0, 5, 5] and rows_in_all(run) <= enough


class Thorough(Steering):
    """Its test asks the box five times as often as there are data."""

    def evaluate(self, network):
        return {"error": float(self.losses(network, torch.cat([self.data.test] * 5)).mean())}


@pytest.mark.slow
def test_what_the_first_test_took_stops_a_run_that_would_run_out_and_says_how_many_rows_do(tmp_path):
    settings = {"methods": ("none", "first-order"), "steps": 50, "validate_every": 50, "batch": 1}
    with pytest.raises(BudgetError, match="the first test took 80 rows, and there is 1 more") as error:
        go(Thorough(), tmp_path, rows=200, **settings)
    (folder,) = tmp_path.iterdir()
    assert not list((folder / "checkpoints").iterdir())  # no row went into training
    with pytest.raises(BudgetError):
        go(Thorough(), tmp_path, resume=folder, rows=201, **settings)
    run = go(Thorough(), tmp_path, resume=folder, rows=error.value.enough + 20, **settings)  # 201 timed again
    assert rows_in_all(run) <= error.value.enough + 20


def test_where_a_test_takes_more_than_was_thought_steps_become_fewer(tmp_path):
    run = go(Thorough(), tmp_path, rows=200, methods=("none", "first-order"))
    assert run.result.table[1].extra["steps"] < Run.open(run.path).chosen["steps"]
    assert 0.9 * 200 < rows_in_all(run) <= 200


@pytest.mark.slow
def test_a_test_that_asks_for_more_than_its_data_stops_and_goes_on(tmp_path):
    settings = {"methods": ("first-order",)}
    with pytest.raises(BudgetError):
        go(Thorough(), tmp_path, rows=600, **settings)
    (folder,) = tmp_path.iterdir()
    run = go(Thorough(), tmp_path, resume=folder, rows=700, **settings)
    assert run.result.table[0].extra["steps"] == Run.open(folder).chosen["steps"]


@pytest.mark.slow
def test_tangents_replay_within_their_rows(tmp_path):
    run = go(Steering(), tmp_path, rows=120, methods=("tangents",))
    row = run.result.table[0]
    assert row.extra["replays"] > row.extra["steps"]
    assert rows_in_all(run) <= 120
    assert {"gradient_tangent_replays", "gradient_tangent_window_bytes"} <= set(run.metrics.columns)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", ["no-gradient", "first-order"])
def test_controls_replay_as_often_as_is_said(tmp_path, method):
    settings = {"methods": (method,), "validate_every": 50}
    plain = go(Beside(steps=8), tmp_path / "plain", **settings)
    run = go(Beside(steps=8, replays=3), tmp_path / "replayed", **settings)
    assert run.result.table[0].extra["replays"] == 24
    looked = 10 * (method == "no-gradient")  # a batch of five, two calls: is there a way beside the box?
    assert rows_in_all(run) == rows_in_all(plain) + looked
    assert run.result.table[0].value < plain.result.table[0].value


@pytest.mark.slow
def test_no_gradient_is_not_applicable_with_replays_either(tmp_path):
    run = go(Steering(replays=2), tmp_path, methods=("no-gradient", "first-order"))
    assert "expected some weight" in run.result.table[0].extra["not applicable"]
    assert run.result.table[1].extra["replays"] == 12
