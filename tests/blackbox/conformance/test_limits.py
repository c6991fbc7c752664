"""What bounds a check: rows, seconds by a clock of our own, and Ctrl-C."""

from __future__ import annotations

import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.conformance import CheckInterrupted, Report, Verdict, check_black_box, command
from blackbox.conformance.check import CHECKS, ROWS, SECONDS
from tests.blackbox.conformance.probes import draws


class Clock:
    """Goes on when a box says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(limits) -> Clock:
    made = Clock()
    limits(clock_of_checks=made)
    return made


class Slow(BlackBoxFunction):
    """A smooth function that takes its time: for the first call, for each call and for each row."""

    outputs = (ArraySpec("y", ()),)

    def __init__(
        self,
        clock: Clock,
        row: float = 0.0,
        call: float = 0.0,
        first: float = 0.0,
        inputs: int = 1,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.inputs = tuple(ArraySpec(f"x{place}", (), dtype) for place in range(inputs))
        self.clock, self.of_a_row, self.of_a_call, self.of_the_first = clock, row, call, first

    def evaluate_rows(self, *inputs: Any) -> Any:
        self.clock.now += self.of_the_first + self.of_a_call + self.of_a_row * len(inputs[0])
        self.of_the_first = 0.0
        return sum(np.sin(each) for each in inputs)


def check(box: BlackBoxFunction, **settings: Any) -> Report:
    return check_black_box(box, processes=False, **settings)


def left_out(report: Report) -> dict[str, str]:
    """What was not measured for want of rows or seconds, and why."""
    skipped = report.of(Verdict.SKIPPED)
    return {found.check: found.sentence for found in skipped if "Take more" in found.sentence}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("inputs", [1, 2, 12])
def test_however_many_inputs_there_are_ten_thousand_rows_are_the_most(clock, inputs):
    report = check(Slow(clock, inputs=inputs, dtype="float64"))
    assert 4000 < report.rows <= ROWS
    assert len(report.recommendations) == inputs
    assert not left_out(report)
    lines = {1: 28, 2: 14, 12: 2}[inputs]
    assert f"On {lines} lines for each input" in report.finding("noise level").sentence


def test_ten_scalar_inputs_are_measured_within_the_rows_that_the_command_allows_them(clock):
    report = check(Slow(clock, inputs=10, dtype="float64"), rows=1000 + 9 * 400)
    assert len(report.recommendations) == 10 and not left_out(report)


@pytest.mark.slow
def test_without_a_limit_rows_are_what_the_docstring_says(clock):
    took = {
        (inputs, dtype): check(Slow(clock, inputs=inputs, dtype=dtype), rows=None).rows
        for inputs in (1, 3)
        for dtype in ("float32", "float64")
    }
    assert 4000 <= took[1, "float32"] <= 4800 and 5000 <= took[1, "float64"] <= 6000
    assert 2500 <= (took[3, "float32"] - took[1, "float32"]) / 2 <= 3100
    assert 3600 <= (took[3, "float64"] - took[1, "float64"]) / 2 <= 4400


@pytest.mark.parametrize("row", [0.05, 0.3, 1.5, 7.0])
def test_a_slow_box_is_left_alone_when_the_time_is_up_and_the_report_says_what_was_left_out(clock, row):
    report = check(Slow(clock, row))
    assert SECONDS / 2 < report.seconds <= SECONDS
    assert report.finding("answers").verdict is Verdict.OK and report.finding("determinism")
    missing = left_out(report)
    assert bool(missing) == (row > 0.05)
    for sentence in missing.values():
        assert "would take about" in sentence and f"of {SECONDS:g} are left" in sentence
        assert "--seconds " in sentence and "in Python seconds=" in sentence
    fewer = report.taken < 32
    assert fewer == (row > 0.3) and f"{report.taken} standard normal draws" in report.summary()


def test_as_many_seconds_as_it_asks_for_measure_every_line(clock):
    box = Slow(clock, 0.3)
    ((sentence, *_),) = [list(left_out(check(box)).values())]
    seconds = float(sentence.rpartition("seconds=")[2].rstrip("."))
    assert not left_out(check(box, seconds=seconds))


def test_a_large_call_that_would_take_too_long_is_said(clock):
    box = Slow(clock, 0.05)
    sentence = check(box).finding("batch size").sentence
    assert "Not tried in a call of 129 rows: take more, such as --seconds " in sentence
    seconds = float(sentence.rpartition("seconds=")[2].rstrip("."))
    assert "129" not in check(box, seconds=seconds).finding("batch size").sentence


def test_given_samples_that_are_left_out_for_the_time_are_counted(clock):
    report = check(Slow(clock, 1.5), samples=draws(200))
    assert f"{report.taken} of the 200 samples were taken" in report.summary() and report.taken < 20


def test_a_first_call_that_compiles_is_not_what_rows_cost(clock):
    report = check(Slow(clock, row=1e-4, first=20.0))
    assert report.taken == 32 and not left_out(report)


def test_calls_that_cost_the_same_for_any_rows_are_not_taken_for_slow_rows(clock):
    report = check(Slow(clock, call=0.1))
    assert report.taken == 32 and report.recommendations and not left_out(report)


def test_a_call_longer_than_foreseen_is_the_last(clock):
    class Worse(Slow):
        def evaluate_rows(self, *inputs: Any) -> Any:
            self.of_a_row = 1e-3 if np.abs(inputs[0]).max() < 2.5 else 0.5
            return super().evaluate_rows(*inputs)

    report = check(Worse(clock), samples=np.linspace(-2, 2, 32, dtype="float32"))
    assert report.seconds > SECONDS and left_out(report)


def test_without_a_limit_of_seconds_nothing_is_left_out(clock):
    report = check(Slow(clock, 1.0), seconds=None)
    assert report.seconds > 3000 and report.taken == 32 and not left_out(report)


def test_the_limits_are_in_the_json(clock):
    content = json.loads(check(Slow(clock, 0.1), rows=500, seconds=30).to_json())
    assert (content["most_rows"], content["most_seconds"], content["interrupted"]) == (500, 30, False)
    assert 0 < content["seconds"] <= 30


# Ctrl-C


class Stopped(Slow):
    """Ctrl-C comes after so many rows."""

    def __init__(self, clock: Clock, rows: int) -> None:
        super().__init__(clock)
        self.rows = rows

    def evaluate_rows(self, *inputs: Any) -> Any:
        self.rows -= len(inputs[0])
        if self.rows < 0:
            raise KeyboardInterrupt
        return super().evaluate_rows(*inputs)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rows", [0, 100, 1000, 3000])
def test_what_was_found_before_ctrl_c_comes_with_it(clock, rows):
    box = Stopped(clock, rows)
    with pytest.raises(CheckInterrupted) as caught:
        check(box)
    report = caught.value.report
    assert isinstance(caught.value, KeyboardInterrupt) and report.interrupted
    assert str(report) in str(caught.value) and "what was found so far" in report.summary()
    stopped = [found.check for found in report.findings if "stopped before" in found.sentence]
    assert stopped[-1] == CHECKS[-1][0]
    assert ("answers" in stopped) == (rows == 0) and ("memory" in stopped) == (rows < 1000)
    assert ("thread safety" in stopped) == (rows < 3000)
    assert box.failures == "raise"


def test_the_command_prints_what_was_found_before_ctrl_c(clock, capsys):
    console = Console(width=110, file=io.StringIO(), no_color=True)
    assert command(Stopped(clock, 400), processes=False, console=console) == 130
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "determinism ok" in text and "noise level not measured" in text and "Stopped after" in text
    assert command(Stopped(clock, 400), out="-", processes=False) == 130
    assert json.loads(capsys.readouterr().out)["interrupted"] is True


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_and_nowhere_else(clock, monkeypatch, terminal):
    monkeypatch.setenv("TERM", "xterm")
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    check(Slow(clock, 0.1))
    assert ("rows run" in shown.getvalue()) == terminal
    assert terminal or not shown.getvalue()


class Endless(BlackBoxFunction):
    """A solver whose step size becomes NaN with its input, and whose time then never reaches its end."""

    inputs = (ArraySpec("rate", ()),)
    outputs = (ArraySpec("left", ()),)

    def __init__(self, never: bool = False) -> None:
        super().__init__()
        self.never = never

    def evaluate(self, rate: Any) -> Any:
        left, time = 1.0, 0.0
        while not time >= 1.0 or self.never:
            time += 0.1 + 0.0 * float(rate)
            left *= 1.0 - 0.1 * float(np.tanh(rate))
        return np.array(left)


@pytest.mark.slow
def test_a_call_that_never_returns_for_nan_is_ended_and_named():
    report = check(Endless(), seconds=2.0, rows=600)
    found = report.finding("NaN inputs")
    assert found.verdict is Verdict.WARNING
    assert "With NaN in 'rate' a call had not returned after" in found.sentence
    assert not report.faults


def test_a_box_that_never_returns_ends_the_check():
    report = check(Endless(never=True), seconds=0.2)
    assert "had not returned after" in report.finding("answers").sentence


@pytest.mark.slow
def test_in_another_thread_a_call_is_ended_too():
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(lambda: check(Endless(never=True), seconds=0.2)).result()
    assert "had not returned after" in report.finding("answers").sentence
