"""Speed, failures by kind and the workers' use: against a clock and workers that the test moves."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.wrappers import Budgeted, Fallback, Parallel
from tasks import pace as module
from tasks.pace import Pace, parallel_in
from tasks.training import train
from tests.tasks.test_progress import Clock, plain
from tests.tasks.test_training import Walk


class Fragile(BlackBoxFunction):
    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def evaluate(self, x):
        if x > 1:
            raise ValueError("too large")
        return x if x >= 0 else x * np.inf


def test_figures_come_once_a_span_and_are_those_of_the_span():
    clock = Clock()
    pace = Pace(100, 0, every=60, clock=clock)
    found = {}
    for step in range(1, 41):
        clock.now += 5
        found[step] = pace.figures(step, {"loss": 1.0, "queries": 10 * step * step, "rows": 40 * step})
    assert [step for step, figures in found.items() if figures] == [12, 24, 36]
    assert found[12] == {"queries_per_second": 1440 / 60, "rows_per_second": 8, "seconds_left": 88 * 5}
    assert found[24] == {
        "queries_per_second": (5760 - 1440) / 60,
        "rows_per_second": 8,
        "seconds_left": 76 * 5,
    }
    assert pace.last == found[36]


def test_a_resumed_stage_counts_from_its_first_step_on():
    clock = Clock()
    pace = Pace(100, 50, every=60, clock=clock)
    clock.now += 1000  # validation, say
    assert pace.figures(51, {"queries": 5100}) == {}
    clock.now += 60
    assert pace.figures(57, {"queries": 5700}) == {"queries_per_second": 10, "seconds_left": 430}
    clock.now += 60
    assert pace.figures(57, {"queries": 5700}) == {}  # no step, no pace


class Meeting(BlackBoxFunction):
    """Rows wait for each other, so that each has a worker of its own."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("y", ()),)

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=60)

    def evaluate(self, x):
        self.barrier.wait()
        return x


def test_the_use_of_each_worker_is_part_of_the_span():
    with ThreadPoolExecutor(2) as executor:
        parallel = Parallel(Meeting(), executor)
        clock = Clock()
        pace = Pace(10, 0, [parallel], every=1, clock=clock)
        parallel(torch.zeros(2))
        clock.now += 10
        figures, seconds = pace.figures(1, {}), parallel.worker_seconds
        assert figures["workers"] == 2
        assert figures["worker_use"] == pytest.approx(sum(seconds.values()) / 20)
        assert figures["worker_use_least"] == pytest.approx(min(seconds.values()) / 10)
        clock.now += 10
        assert "workers" not in pace.figures(2, {})  # none has run anything since


def test_the_parallel_of_a_stack_is_found():
    with ThreadPoolExecutor(1) as executor:
        inner = Parallel(Fragile(), executor)
        assert parallel_in(Budgeted(Fallback(inner, 0.0), rows=5)) is inner
    assert parallel_in(Fallback(Fragile(), 0.0)) is None and parallel_in(None) is None


def test_training_logs_and_shows_them(run, monkeypatch):
    box = Fragile(failures="keep")
    monkeypatch.setattr(module, "EVERY", 0.0)
    progress, stream, shown = plain()
    model = Walk()

    def step(i):
        box(torch.tensor([float(i)]))
        shown.now += 20
        return {"loss": 1.0, "queries": i + 1}

    train(run, "s", steps=4, step=step, state={"m": model}, model="m", progress=progress, boxes=[box])
    lines = [line for line in run.metrics() if "seconds_left" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line.get("failed_raised") for line in lines] == [None, None, 1, 2]
    assert all(line["queries_per_second"] > 0 for line in lines)
    assert (
        "step 3 of 4, loss 1, 0 queries/s, 3 rows, 1 row raised, 1 min 00 s elapsed, 20 s left"
        in stream.getvalue()
    )


def test_progress_shows_the_workers_use():
    progress, stream, clock = plain()
    progress.begin("s", 10)
    clock.now += 10
    progress.update(1, {"loss": 1.0, "workers": 3, "worker_use": 0.456, "worker_use_least": 0.1})
    assert "loss 1, 3 workers 46% busy, 10 s elapsed" in stream.getvalue()
