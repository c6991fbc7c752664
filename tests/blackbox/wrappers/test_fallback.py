"""`Fallback`: failed rows get the value, others do not, and the ledger still says that they failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from typeguard import suppress_type_checks

from blackbox import ArraySpec
from blackbox.errors import ConfigurationError, NonFiniteInputError, RowFailedError
from blackbox.wrappers import Fallback, Retrying
from tests.blackbox.boxes import KINDS, PAIR, STATE, EachBox, ErrorCase, RowsBox, error_table

COUNT = ArraySpec("count", (), "int64")


def root(state: Any) -> Any:
    """Raises for a first entry of 2, is not finite for one below 0."""
    if (np.atleast_2d(np.asarray(state))[:, 0] == 2).any():
        raise ValueError("two")
    with np.errstate(invalid="ignore"):
        return state**0.5


X = np.array([[1.0, 4.0], [2.0, 4.0], [-1.0, 9.0], [9.0, 16.0]])


@KINDS
@pytest.mark.parametrize("policy", ["raise", "keep"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_failed_rows_are_answered_under_either_policy(kind, arrays, policy, dtype):
    box = Fallback(kind(root, arrays=arrays, failures=policy), [0.1, -7.0])
    expected = np.array([[1, 2], [0.1, -7], [0.1, -7], [3, 4]], dtype)
    np.testing.assert_array_equal(box(X.astype(dtype)), expected)
    assert (box.ledger.rows_failed, box.ledger.rows_recovered) == (2, 2)


def test_numbers_and_arrays_for_several_outputs():
    def function(field: Any, number: Any) -> Any:
        if number == 1:
            raise ValueError
        return field, number, np.int64(3)

    outputs = (*PAIR, COUNT)
    field, number = np.ones((2, 2, 3)), np.arange(2.0)
    found = Fallback(EachBox(function, PAIR, outputs), 5)(field, number)
    assert [one[1].tolist() for one in found] == [[[5.0] * 3] * 2, 5.0, 5]
    own = np.arange(6.0).reshape(2, 3)
    found = Fallback(EachBox(function, PAIR, outputs), (own, 0.5, -1))(field, number)
    np.testing.assert_array_equal(found[0][1], own)
    assert (found[1][1], found[2].tolist()) == (0.5, [3, -1])


def test_what_a_16_bit_answer_cannot_hold_is_recovered_all_the_same():
    def function(state: np.ndarray) -> np.ndarray:
        return np.where(state > 1, np.nan, state).astype("f2")

    box = Fallback(RowsBox(function), 1e6)
    np.testing.assert_array_equal(box(np.array([[1.0, 1], [2, 2]])), [[1, 1], [1e6, 1e6]])


def test_rows_that_were_not_finite_before_are_none_of_its_business():
    box = Fallback(RowsBox(root, failures="keep"), 0)
    x = np.array([[np.nan, 0], [-1, 4]])
    np.testing.assert_array_equal(box(x), [[np.nan, np.nan], [0, 0]])
    assert (box.ledger.rows_skipped, box.ledger.rows_failed) == (1, 1)
    box.failures = "raise"
    with pytest.raises(NonFiniteInputError):
        box(x)


def test_retried_first_then_recovered():
    calls: list[float] = []

    def function(state: np.ndarray) -> np.ndarray:
        calls.append(state[0])
        return root(state)

    box = Fallback(Retrying(EachBox(function), attempts=3), 0)
    np.testing.assert_array_equal(box(X), [[1, 2], [0, 0], [0, 0], [3, 4]])
    assert (calls.count(2), calls.count(-1), calls.count(1)) == (3, 3, 1)
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (8, 2)
    with pytest.raises(RowFailedError):
        box.box(X)


@suppress_type_checks
def recovering(value: Any, outputs: tuple[ArraySpec, ...] = (STATE,)) -> Any:
    return Fallback(RowsBox(root, outputs=outputs), value)


ERRORS = [
    ErrorCase("nan", lambda: recovering(np.nan), ConfigurationError, ["'state'", "got nan", "'keep'"]),
    ErrorCase("overflow", lambda: recovering(1e300, (ArraySpec("y", (), "float32"),)), ConfigurationError,
              ["'y'", "that float32 can hold", "1e+300"]),
    ErrorCase("half", lambda: recovering(0.5, (COUNT,)), ConfigurationError, ["that int64 can hold", "0.5"]),
    ErrorCase("shape", lambda: recovering([1, 2, 3]), ConfigurationError, ["broadcasts to (2,), got (3,)"]),
    ErrorCase("text", lambda: recovering("zero"), ConfigurationError, ["array of numbers, got str"]),
    ErrorCase("none", lambda: recovering(None), ConfigurationError, ["array of numbers, got NoneType"]),
    ErrorCase("many", lambda: recovering((1, 2, 3), PAIR), ConfigurationError, ["2 outputs (field", "got 3"]),
]  # fmt: skip


@error_table(ERRORS)
def test_refused(case):
    case.check()
