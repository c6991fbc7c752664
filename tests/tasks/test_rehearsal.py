"""What learned models compute beside the boxes, as `--dry-run` estimates it, for no row."""

import re
from typing import ClassVar

import pytest
import torch

import tasks
from tasks import Cost, Method
from tasks.methods.shared import methods_named
from tasks.planning import cost
from tasks.planning.plan import plan_of
from tasks.planning.spending import settled
from tasks.planning.trial import asked
from tasks.rows.binding import Bound
from tasks.running import rehearsal
from tests.tasks.problems import Steering
from tests.tasks.test_surrogate import Drawn

SETTINGS = {"calls": 1, "steps": 40}


def planned(problem):
    bound = Bound.of(problem)
    bound.bound()
    plan = plan_of(problem, methods_named(problem), (0,))
    return settled(plan, bound, asked(bound, plan.methods, 1), timed=True, keep=True), bound


def rows_run(bound):
    return sum(box.ledger.rows_run for box in bound.problem.boxes.values())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", ["tangents", "secant"])
@pytest.mark.parametrize("replays", [0, 3, None])
def test_no_row_is_run_and_nothing_is_drawn(method, replays):
    plan, bound = planned(Steering(methods=("none", method), replays=replays, **SETTINGS))
    before, drawn = rows_run(bound), torch.get_rng_state()
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rows_run(bound) == before and torch.equal(torch.get_rng_state(), drawn)
    (name,) = rehearsed
    assert name == method and rehearsed[method].seconds(40) > 0
    assert rehearsed[method].replays == {0: 0, 3: 3, None: 13}[replays]  # 13 is between nine and nineteen
    (line,) = [line for line in cost.sentences(plan, bound, rehearsed) if line.startswith(f"  {method}: ")]
    assert re.search(r"in the box, and (under 1 s|about .*) beside it$", line)


@pytest.mark.slow
def test_what_a_surrogate_and_a_student_compute_is_known_too():
    plan, bound = planned(Drawn(methods=("student", "surrogate"), prefit=0, **SETTINGS))
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed["student"].seconds(40) > 0 and rehearsed["student"].imaginations == 0
    assert rehearsed["surrogate"].imaginations == 9  # what it takes where the settings name no number


class Timed:
    """A gradient by the clock: its first step takes 5 s, each other 1 s, a replay half of one."""

    def __init__(self, clock):
        self.clock, self.steps = clock, 0

    def backward(self, batch):
        self.clock[0] += 1.0 if self.steps else 5.0
        self.steps += 1

    def replays(self):
        return 2

    def replay(self):
        self.clock[0] += 0.5

    def imaginations(self):
        return 3

    def imagine(self, batch):
        assert len(batch) >= 8
        self.clock[0] += 0.25


@pytest.mark.parametrize("imaginations", [0, 4])
def test_the_time_is_that_of_the_first_step_and_of_all_others(monkeypatch, imaginations):
    clock = [0.0]
    monkeypatch.setattr(rehearsal, "perf_counter", lambda: clock[0])

    def train(setup):
        return setup.descend(Timed(clock), replayed=True, imagined=imaginations > 0)

    class Ours(Steering):
        methods: ClassVar = {"ours": Method("Ours.", train, lambda problem, steps: Cost(steps, learns=True))}

    plan, bound = planned(Ours(methods=("ours",), replays=2, imaginations=imaginations, **SETTINGS))
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed["ours"].seconds(40) == 5 + 39 * 1 + 40 * 2 * 0.5 + 40 * imaginations * 0.25
    sentences = cost.sentences(plan, bound, rehearsed)
    took = "2 min 04 s" if imaginations else "1 min 24 s"
    assert any(line.endswith(f"in the box, and about {took} beside it") for line in sentences)
    assert any(line.endswith("that ran no row, each with 2 replays.") for line in sentences)


@pytest.mark.parametrize("fault", ["it raises", "it learns without end"])
def test_where_it_is_not_known_the_plan_says_where_it_will_be(monkeypatch, fault):
    def train(setup):
        if fault == "it raises":
            raise RuntimeError("no")
        monkeypatch.setattr(rehearsal, "PATIENCE", -1.0)
        from zo.tangents.models.lessons import report

        report(50, 400)

    class Ours(Steering):
        methods: ClassVar = {"ours": Method("Ours.", train, lambda problem, steps: Cost(steps, learns=True))}

    plan, bound = planned(Ours(methods=("ours",), **SETTINGS))
    rehearsed = rehearsal.rehearsed(plan, bound)
    assert rehearsed == {"ours": None}
    said = "  How long ours will compute beside the box is said in the lines of progress."
    assert said in cost.sentences(plan, bound, rehearsed)
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
