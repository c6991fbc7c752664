"""`Budgeted`: a call that does not fit is refused whole; nested budgets; what counts."""

from __future__ import annotations

import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from typeguard import suppress_type_checks

from blackbox import Budgeted
from blackbox.errors import BudgetError, ConfigurationError
from tests.blackbox.boxes import KINDS, Doubling, EachBox, ErrorCase, RowsBox, error_table


def rows(count: int) -> np.ndarray:
    return np.ones((count, 2))


@suppress_type_checks
def budget(value: Any) -> Any:
    return Budgeted(Doubling(), rows=value)


def spend(budget: int, *calls: int) -> Any:
    box = Budgeted(Doubling(), rows=budget)
    return [box(rows(count)) for count in calls]


ERRORS = [
    ErrorCase("negative", lambda: budget(-1), ConfigurationError, ["Budgeted, rows", ">= 0", "got -1"]),
    ErrorCase("float", lambda: budget(1e6), ConfigurationError, ["whole number", "got 1000000.0"]),
    ErrorCase("bool", lambda: budget(True), ConfigurationError, ["got True"]),
    ErrorCase(
        "too-large", lambda: spend(3, 4), BudgetError, ["Doubling", "rows=3", "at most 3 rows, got one of 4"]
    ),
    ErrorCase(
        "second", lambda: spend(5, 3, 3), BudgetError, ["at most 2 rows", "3 of 5 are spent", "None of it"]
    ),
    ErrorCase("nothing-left", lambda: spend(0, 1), BudgetError, ["at most 0 rows"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


@KINDS
def test_a_call_is_run_whole_or_not_at_all(kind, arrays):
    inner = kind(lambda state: state + 1, arrays=arrays, failures="keep")
    box = Budgeted(inner, rows=5)
    np.testing.assert_array_equal(box(rows(3)), rows(3) + 1)
    asked = len(inner.calls)
    for count in (3, 100):
        with pytest.raises(BudgetError):
            box(rows(count))
    assert (len(inner.calls), box.ledger.rows_run, box.ledger.rows_failed, box.rows_left) == (asked, 3, 0, 2)
    box(rows(2))  # what fits still runs, to the last row
    box(rows(0))
    assert box.rows_left == 0


def test_the_tighter_of_nested_budgets_holds_and_both_read_one_ledger():
    inner = Budgeted(Doubling(), rows=4)
    outer = Budgeted(inner, rows=10)
    outer(rows(3))
    assert (inner.rows_left, outer.rows_left) == (1, 7)
    with pytest.raises(BudgetError, match="of 4 are spent"):
        outer(rows(2))
    with pytest.raises(BudgetError, match="of 2 are spent"):
        Budgeted(outer, rows=2)(rows(1))  # rows before the wrapping count
    assert outer.ledger.rows_run == 3
    assert repr(outer) == "Budgeted(Budgeted(Doubling, rows=4), rows=10)"


def test_skipped_rows_cost_nothing():
    box = Budgeted(EachBox(lambda state: state, failures="keep"), rows=1)
    y = box(np.array([[np.nan, 0], [1, 2], [0, np.inf]]))
    np.testing.assert_array_equal(y[1], [1, 2])
    assert box.rows_left == 0


def test_rows_are_run_again_after_a_block_raised_as_far_as_the_budget_goes():
    def function(state: np.ndarray) -> np.ndarray:
        if (state[:, 0] == 3).any():
            raise ValueError
        return state

    state = np.arange(16.0).reshape(8, 2) + 1
    # Halving runs 8, then 4 + 4, then 2 + 2, then 1 + 1 rows.
    for budget, lost in ((8, 8), (16, 4), (20, 2), (22, 1), (30, 1)):
        inner = RowsBox(function, failures="keep")
        box = Budgeted(inner, rows=budget)
        assert np.isnan(box(state)).any(1).sum() == lost
        spent = min(budget, 22)
        assert box.ledger.rows_run == sum(len(state) for (state,) in inner.calls) == spent
        with pytest.raises(BudgetError):
            box(rows(budget - spent + 1))
        assert (box(rows(budget - spent)) == 1).all() and box.rows_left == 0


def test_a_pickled_budget_stays_spent():
    box = Budgeted(Doubling(), rows=5)
    box(rows(4))
    twin = pickle.loads(pickle.dumps(box))
    assert (twin.rows, twin.rows_left) == (5, 1)


def test_calls_of_several_threads_do_not_go_over_together():
    def slowly(state: np.ndarray) -> np.ndarray:
        time.sleep(0.001)
        return state

    box = Budgeted(EachBox(slowly), rows=100)  # which counts a row when it comes to it
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(box, rows(30)) for _ in range(8)]
    refused = [call.exception() for call in calls if call.exception() is not None]
    assert len(refused) == 5 and all(isinstance(error, BudgetError) for error in refused)
    assert (box.ledger.rows_run, box.rows_left) == (90, 10)


def test_a_call_that_might_fit_waits_for_another_s_end():
    """Of 60 rows set aside none is spent, since the call fails before it runs any: the next 60 fit."""
    started = []

    class Stops(RowsBox):
        def run_rows(self, inputs: Any) -> Any:
            started.append(len(inputs[0]))
            if len(started) == 1:
                time.sleep(0.2)
                raise KeyboardInterrupt
            return super().run_rows(inputs)

    box = Budgeted(Stops(lambda state: state), rows=100)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(box, rows(60))
        while not started:
            time.sleep(0.001)
        second = pool.submit(box, rows(60))
        assert isinstance(first.exception(), KeyboardInterrupt)
        np.testing.assert_array_equal(second.result(), rows(60))
    assert box.ledger.rows_run == 60
    assert pickle.loads(pickle.dumps(Budgeted(Doubling(), rows=5))).rows_left == 5
