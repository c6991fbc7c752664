"""The ledger: what each kind of call adds to it, and its arithmetic."""

from __future__ import annotations

import json
import time
from dataclasses import astuple, fields
from typing import Any

import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxFunction, Ledger
from blackbox.errors import ConfigurationError, RowFailedError, ShapeError
from blackbox.failures import FailedRow, Failure
from tests.blackbox.boxes import KINDS, EachBox


@KINDS
def test_calls_and_rows_are_counted(kind, arrays):
    box = kind(lambda state: state, arrays=arrays)
    assert box.ledger == Ledger()
    for leading in ((), (3,), (2, 4), (0,)):
        box(np.ones((*leading, 2)))
    spent = box.ledger.seconds
    assert box.ledger == Ledger(calls=4, rows_asked=12, rows_run=12, seconds=spent)
    assert spent > 0


def test_a_refused_call_is_not_counted():
    box = EachBox(lambda state: state)
    with pytest.raises(ShapeError):
        box(np.ones(3))
    assert box.ledger == Ledger()


@pytest.mark.parametrize("raises", [False, True])
def test_seconds_are_those_inside_the_box_also_of_a_call_that_fails(raises):
    def slow(state: Any) -> Any:
        time.sleep(0.02)
        if raises:
            raise ValueError
        return state

    box = EachBox(slow)
    started = time.perf_counter()
    try:
        box(np.ones((2, 2)))
    except RowFailedError:
        assert raises
    assert 0.02 * box.ledger.rows_run <= box.ledger.seconds <= time.perf_counter() - started


def test_boxes_of_a_class_do_not_share_a_ledger():
    first, second = EachBox(lambda state: state), EachBox(lambda state: state)
    first(np.ones(2))
    assert (first.ledger.calls, second.ledger.calls) == (1, 0)


A = Ledger(*range(1, 14), causes={"busy": 3, "lost": 1}, first_failure="busy at 3")
B = Ledger(*(n**2 for n in range(1, 14)), causes={"busy": 2, "raised": 5})
NUMBERS = 13


def test_add_and_since_undo_each_other_in_every_field():
    total = A.copy()
    total.add(B)
    pairs = zip(astuple(A)[:NUMBERS], astuple(B)[:NUMBERS], strict=True)
    assert astuple(total)[:NUMBERS] == tuple(a + b for a, b in pairs)
    assert total.causes == {"busy": 5, "lost": 1, "raised": 5} and total.first_failure == "busy at 3"
    assert total.since(A) == B and total.since(B) == A
    assert len(fields(Ledger)) == NUMBERS + 2


def test_a_state_goes_through_json_and_stands_for_the_ledger():
    ledger = Ledger(calls=7)
    ledger.load_state_dict(json.loads(json.dumps(A.state_dict())))
    assert ledger == A
    ledger.causes["busy"] += 1
    assert A.causes["busy"] == 3  # nothing is shared
    for state, words in (({}, "lacks"), (A.state_dict() | {"call": 3}, "has 'call'.*Did you mean 'calls'")):
        with pytest.raises(ConfigurationError, match=words):
            ledger.load_state_dict(state)


def test_a_copy_stands_still():
    ledger = A.copy()
    earlier = ledger.copy()
    ledger.calls += 5
    assert ledger.since(earlier) == Ledger(calls=5) and earlier == A


def test_failed_rows_are_counted_by_kind():
    def faulty(state: Any) -> Any:
        if state[0] > 1:
            raise ValueError
        return state / 0 if state[0] > 0 else state

    box = EachBox(faulty, failures="keep")
    with np.errstate(all="ignore"):
        box(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [np.nan, 0.0]]))
    assert box.ledger.failures() == {"not_finite": 2, "raised": 1, "skipped": 1}
    assert box.ledger.rows_failed == 3
    assert box.ledger.causes == {"not_finite": 2, "ValueError": 1}
    which = "row 1 (state=[1, 1]), output 'state': "
    assert box.ledger.first_failure == which + Failure.NON_FINITE.value


def test_the_first_failure_says_which_row_of_what_gave_which_output():
    class Two(BlackBoxFunction):
        inputs = (ArraySpec("flow", ()), ArraySpec("field", (2, 2)))
        outputs = (ArraySpec("heat", ()), ArraySpec("drop", ()))

        def evaluate(self, flow, field):
            if flow < 0:
                raise ValueError("it flows back")
            return field.sum(), 1 / flow

    field = np.arange(12.0).reshape(3, 2, 2)
    box = Two(failures="keep")
    with np.errstate(all="ignore"):
        box(np.array([np.nan, 0.25, 0.0]), field)
    said = box.ledger.first_failure
    assert said.startswith("row 2 (flow=0, field=[[8, 9], [10, 11]]), output 'drop': ")
    box = Two(failures="keep")
    box(np.array([0.5, -0.012345, 1.0]), field)
    assert box.ledger.first_failure == (
        "row 1 (flow=-0.012345, field=[[4, 5], [6, 7]]): the black box raised an error "
        "(ValueError: it flows back)"
    )
    ledger = Ledger()
    ledger.count_failed(
        {row: FailedRow(kind) for row, kind in enumerate(Failure) if kind is not Failure.SKIPPED}
    )
    assert ledger.failures() == {"raised": 1, "not_finite": 1, "timed_out": 1, "lost": 1}
