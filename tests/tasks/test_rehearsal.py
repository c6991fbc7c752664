"""What learned models compute beside the boxes, as `--dry-run` estimates it, for no row."""

import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import tasks
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.failures import FailedRow, Failure, Outcome
from blackbox.words import duration
from tasks.configuration import Count
from tasks.errors import ProblemWarning
from tasks.methods import Cost, Method
from tasks.methods.by_name import methods_named
from tasks.planning import cost
from tasks.planning.plan import POPULATION, plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import asked
from tasks.rows.binding import Bound
from tasks.running import rehearsal
from tests.tasks.problems import Steering
from tests.tasks.test_surrogate import Drawn

SETTINGS = {"calls": 1, "steps": 40}


class Cart(BlackBoxFunction):
    """A step of a body that is pushed."""

    inputs = ArraySpec("state", (2,)), ArraySpec("force", (1,))
    outputs = (ArraySpec("state", (2,)),)

    def evaluate_rows(self, state, force):
        """Its place, and how fast it is."""
        return state + 0.1 * np.stack([state[:, 1], force[:, 0] - np.sin(state[:, 0])], axis=1)


class Loop(tasks.Problem):
    """The force is a function of the state alone, so that the first steps wait."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        """Its settings."""

        calls: Count = 6

    def box(self):
        return Cart()

    def network(self):
        return torch.nn.Linear(2, 1)

    def data(self):
        def draw(seed, step, rows):
            return torch.as_tensor(np.random.default_rng([seed, step]).normal(size=(rows, 2))).float()

        return tasks.Data.drawn(draw, batch=self.config.batch, validation=4, test=4)

    def objective(self, network, state):
        for _ in range(self.config.calls):
            state = self.box(state, network(state))
        return state.square().sum(dim=1)


def planned(problem):
    bound = Bound.of(problem)
    bound.bound()
    plan = plan_of(problem, methods_named(problem), (0,))
    return settled(plan, bound, asked(bound, plan.methods, 1), timed=True, keep=True), bound


def told(plan, bound, rehearsed):
    return cost.sentences(replace(plan, work=rehearsed), bound, dry=True)


def rows_run(bound):
    return sum(box.ledger.rows_run for box in bound.problem.boxes.values())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("replays", [0, 3, None])
def test_no_row_is_run_and_nothing_is_drawn(replays):
    method = "tangents"
    plan, bound = planned(Steering(methods=("none", method), replays=replays, **SETTINGS))
    before, drawn = rows_run(bound), torch.get_rng_state()
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rows_run(bound) == before and torch.equal(torch.get_rng_state(), drawn)
    (name,) = rehearsed
    assert name == method and rehearsed[method].seconds(40) > 0
    assert rehearsed[method].replays == {0: 0, 3: 3, None: 13}[replays]  # 13 is between nine and nineteen
    (line,) = [line for line in told(plan, bound, rehearsed) if line.startswith(f"  {method}: ")]
    assert re.search(r"in the box, and (under 1 s|about .*) beside it(, up to .*)?$", line)


def test_rows_that_fail_are_rehearsed_as_others_are():
    """A first batch of one row that failed left a plan without any time of computing."""
    plan, bound = planned(Steering(methods=("none", "tangents"), replays=3, **SETTINGS))
    answers = [
        Outcome(outcome.outputs, dict.fromkeys(range(len(outcome.outputs[0])), FailedRow(Failure.RAISED)))
        for outcome in plan.trial.answers
    ]
    failed = replace(plan, trial=replace(plan.trial, answers=answers))
    assert rehearsal.rehearsed(failed, bound)["tangents"].replays == 3


def test_what_ends_a_rehearsal_is_told():
    """A division by zero of our own stayed hidden: the plan had no computing time, and nobody knew why."""
    plan, bound = planned(Steering(methods=("none", "tangents"), replays=3, **SETTINGS))
    assert rehearsal.rehearsed(plan, bound)["tangents"] is not None
    bound.problem.objective = divided
    with pytest.warns(ProblemWarning, match="tangents: .* ended in ZeroDivisionError: "):
        assert rehearsal.rehearsed(plan, bound) == {"tangents": None}


def divided(network, state):
    """An objective with an error."""
    return state / (1 // 0)


@pytest.mark.slow
def test_what_a_surrogate_and_a_student_compute_is_known_too():
    plan, bound = planned(Drawn(methods=("student", "surrogate"), prefit=0, **SETTINGS))
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed["student"].seconds(40) > 0
    few, many = (rehearsed["surrogate"].seconds(steps) for steps in (1, 40))
    assert few > 0.9 * many > 0  # nearly all of it is what does not depend on the number of steps


@pytest.mark.parametrize("calls", [1, 2])
def test_a_surrogate_of_many_rows_that_are_asked_once_is_known_to_take_longer(calls):
    plan, bound = planned(Drawn(methods=(POPULATION,), batch=8, steps=200, calls=calls))
    rehearsed = rehearsal.rehearsed(plan, bound)[POPULATION]
    assert rehearsed.rows == (8 if calls == 1 else 0) and rehearsed.update > 0
    quick = replace(rehearsed, update=1.0, update_of_many=10.0)
    of_surrogate = quick.seconds(200) - replace(quick, update=0.0, update_of_many=0.0).seconds(200)
    assert of_surrogate == pytest.approx(2.25 * 8 * 200 * 10 if calls == 1 else 1000)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("steps", [40, 24])  # of which a quarter waits: longer than is tried, and shorter
def test_in_closed_loop_what_follows_the_steps_that_wait_is_known_too(steps):
    """It had no replays, nearly all of the time: 1 min 53 s for half an hour."""
    rates = (1.0, 4.0, 16.0)
    settings = {"replays": None, "rates": rates, "batch": 4, "steps": steps}
    plan, bound = planned(Loop(methods=(POPULATION,), **settings))
    rehearsed = rehearsal.rehearsed(plan, bound)
    found = rehearsed[POPULATION]
    assert (found.replays, found.most_replays, found.networks) == (13, 19, 3)
    assert found.replay > 0
    further = found.seconds(steps) - found.without(steps)
    assert further == pytest.approx(steps * (3 * 13 + 2) * found.replay)
    assert found.most(steps) > found.seconds(steps)
    said = told(plan, bound, rehearsed)
    assert any(line.endswith(f" beside it, up to {duration(found.most(steps))}") for line in said)


class Timed:
    """A gradient by the clock: its first step takes 5 s, each other 1 s, a replay half of one."""

    def __init__(self, clock, number):
        self.clock, self.number, self.steps = clock, number, 0

    def backward(self, batch):
        self.clock[0] += 1.0 if self.steps else 5.0
        self.steps += 1

    def metrics(self):
        return {}

    def replays(self):
        return self.number

    def replay(self):
        self.clock[0] += 0.5


@pytest.mark.parametrize("replays", [2, 200])
def test_the_time_is_that_of_the_first_step_and_of_all_others(monkeypatch, replays):
    clock = [0.0]
    monkeypatch.setattr(rehearsal, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(rehearsal, "process_time", lambda: 3 * clock[0])  # of threads

    def train(setup):
        return setup.descend(Timed(clock, replays), replayed=True)

    class Ours(Steering):
        methods: ClassVar = {"ours": Method("Ours.", train, lambda problem, steps: Cost(steps, learns=True))}

    plan, bound = planned(Ours(methods=("ours",), replays=replays, **SETTINGS))
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed["ours"].seconds(40) == 5 + 39 * 1 + 40 * replays * 0.5
    sentences = told(plan, bound, rehearsed)
    took = {2: "1 min 24 s", 200: "1 h 07 min"}[replays]
    assert any(line.endswith(f"in the box, and about {took} beside it") for line in sentences)


@pytest.mark.parametrize("raises", [True, False])  # or it learns without end
def test_where_it_is_not_known_the_plan_says_where_it_will_be(monkeypatch, raises):
    def train(setup):
        if raises:
            raise RuntimeError("no")
        monkeypatch.setattr(rehearsal, "PATIENCE", -1.0)
        from zo.tangents.models.lessons import report

        report(50, 400)

    class Ours(Steering):
        methods: ClassVar = {"ours": Method("Ours.", train, lambda problem, steps: Cost(steps, learns=True))}

    plan, bound = planned(Ours(methods=("ours",), **SETTINGS))
    with pytest.warns(ProblemWarning, match="ended in RuntimeError: no") if raises else nullcontext():
        rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed == {"ours": None}
    said = "  How long ours will compute beside the box is said in the lines of progress."
    assert said in told(plan, bound, rehearsed)
    in_a_run = said.replace(".", "; --dry-run estimates it before.")
    assert in_a_run in cost.sentences(plan, bound)


def test_a_run_says_in_its_progress_what_is_left_beside_the_box(tmp_path):
    seen = []

    class Watching(tasks.Progress):
        def update(self, step, metrics=None):
            seen.append(metrics)

    run = tasks.run(Steering(methods=("tangents",), steps=3), runs=tmp_path, progress=Watching())
    (box,) = run.problem.boxes.values()
    boxes = [metrics["box_seconds"] for metrics in seen]
    assert 0 < boxes[0] <= boxes[1] <= boxes[2] <= box.ledger.seconds
    assert not any(
        "box_seconds" in line for line in run.path.joinpath("metrics.jsonl").read_text().split("\n")
    )
