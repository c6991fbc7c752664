"""`Retrying`: what is run again, when, how often, and what it costs."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from typing import Any

import numpy as np
import pytest
from typeguard import suppress_type_checks

from blackbox import Budgeted
from blackbox.errors import ConfigurationError, OutputError, RowFailedError, TryAgain, WaitWarning
from blackbox.wrappers import Retrying
from tests.blackbox.boxes import KINDS, Doubling, EachBox, ErrorCase, RowsBox, error_table


class FakeClock:
    """Time of the wrappers that wait, which passes in sleep, and as told."""

    def __init__(self, limits: Any) -> None:
        self.time, self.slept = 100.0, []
        limits(clock_of_rates=self.now, clock_of_retries=self.now)
        limits(pause_of_rates=self.sleep, pause_of_retries=self.sleep)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def passing(faults: dict[float, int], nan: bool = False) -> tuple[Any, Counter[float]]:
    """Twice the state, where rows whose first entry is in `faults` fail so often; and how often each ran."""
    asked: Counter[float] = Counter()

    def function(state: Any) -> Any:
        rows = np.atleast_2d(np.asarray(state))[:, 0].tolist()
        for x in rows:
            asked[x] += 1
        bad = [x for x in rows if asked[x] <= faults.get(x, 0)]
        if bad and not nan:
            raise ConnectionError(f"busy at {bad}")
        answer = 2 * state
        if bad:
            answer[..., 0] = math.nan
        return answer

    return function, asked


def states(*first: float) -> np.ndarray:
    return np.stack([np.array(first, float), np.ones(len(first))], 1)


@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("attempts", [1, 2, 3, 4])
@pytest.mark.parametrize("policy", ["keep", "raise"])
def test_only_failed_rows_are_run_again(attempts, policy, nan):
    function, asked = passing({2: 1, 4: 2}, nan)
    box = Retrying(EachBox(function, failures=policy), attempts=attempts)
    state = states(1, 2, 3, 4, 5)
    lost = [] if attempts >= 3 else [3] if attempts == 2 else [1, 3]
    if policy == "raise" and lost:
        with pytest.raises(RowFailedError, match=f"row {lost[0]}"):
            box(state)
    else:
        expected = 2 * state
        expected[lost] = math.nan
        np.testing.assert_array_equal(box(state), expected)
    assert asked == {1: 1, 2: min(2, attempts), 3: 1, 4: min(3, attempts), 5: 1}
    assert (box.ledger.rows_run, box.ledger.rows_failed) == (asked.total(), len(lost))
    assert box.ledger.rows_retried == asked.total() - 5


@KINDS
def test_a_block_is_taken_apart_and_its_bad_row_retried(kind, arrays):
    function, asked = passing({2: 4})
    box = Retrying(kind(function, arrays=arrays), attempts=9)  # "raise", which alone would not halve
    np.testing.assert_array_equal(box(states(1, 2, 3, 4)), 2 * states(1, 2, 3, 4))
    assert asked[2] == 5
    assert box.ledger.rows_run == asked.total()


def test_waits_double_up_to_a_minute_with_a_random_part(limits):
    def waits() -> list[float]:
        fake = FakeClock(limits)
        never = EachBox(passing({1: 10**9})[0], failures="keep")
        Retrying(never, 7, backoff=2.0)(states(1))
        return fake.slept

    many = np.array([waits() for _ in range(100)])
    bounds = np.array([2.0, 4, 8, 16, 32, 60])
    assert (many <= bounds).all() and (many >= bounds / 2).all()
    # Uniform on [1/2, 1]: mean 3/4, standard deviation 1 / sqrt(48); six means within 6 sigma.
    assert np.abs((many / bounds).mean(0) - 0.75).max() < 6 / math.sqrt(48 * 100)
    assert np.abs(np.corrcoef(many.T) - np.eye(6)).max() < 6 / math.sqrt(100)


def test_no_attempt_begins_after_the_timeout_and_none_sleeps_past_it(limits):
    fake = FakeClock(limits)

    def slow(state: np.ndarray) -> np.ndarray:
        fake.time += 3
        raise TimeoutError

    for timeout, attempts in ((1.0, 1), (3.0, 1), (3.1, 2), (10.0, 4), (None, 50)):
        box = Retrying(RowsBox(slow, failures="keep"), 50, timeout=timeout)
        assert np.isnan(box(states(1))).all()
        assert box.ledger.rows_run == attempts
    fake.slept.clear()
    box = Retrying(RowsBox(slow, failures="keep"), 50, timeout=10.0, backoff=30.0)
    box(states(1))
    assert (fake.slept, box.ledger.rows_run) == ([], 1)


def test_nothing_waits_where_nothing_fails(limits):
    fake = FakeClock(limits)
    box = Retrying(Doubling(), backoff=5.0)
    np.testing.assert_array_equal(box(states(1, 2)), 2 * states(1, 2))
    assert (fake.slept, box.ledger.rows_retried, box.ledger.rows_run) == ([], 0, 2)


def test_a_fault_of_the_box_is_raised_at_once():
    box = RowsBox(lambda state: state[:, :1])
    with pytest.raises(OutputError):
        Retrying(box, attempts=5)(states(1))
    assert box.ledger.rows_run == 1


def test_a_budget_inside_ends_the_attempts_and_keeps_what_was_paid_for():
    function, asked = passing({2: 10})
    box = Retrying(Budgeted(EachBox(function, failures="keep"), rows=4), attempts=9)
    np.testing.assert_array_equal(box(states(1, 2, 3)), [[2, 2], [math.nan] * 2, [6, 2]])
    assert (asked[2], box.ledger.rows_run, box.ledger.rows_retried) == (2, 4, 1)


def test_a_budget_around_ends_the_attempts_and_is_kept_to_the_row():
    # Ten attempts at 30 rows of which each fails each time: 300 rows are the budget, 310 were run.
    box = Budgeted(Retrying(EachBox(passing(dict.fromkeys(range(31), 99))[0], failures="keep"), 11), rows=300)
    assert np.isnan(box(states(*range(30)))).all()
    assert (box.ledger.rows_run, box.ledger.rows_retried, box.rows_left) == (300, 270, 0)


def refusing(after: dict[float, float], fake: FakeClock) -> Any:
    """The state, unless the row's first entry has to wait until a time yet to come."""

    def function(state: np.ndarray) -> np.ndarray:
        wait = 100.0 + after.get(float(state[0]), 0.0) - fake.time
        if wait > 0:
            raise TryAgain("busy", after=wait)
        return state

    return EachBox(function, failures="keep")


def test_a_box_that_asks_for_time_is_given_it(limits):
    fake = FakeClock(limits)
    box = Retrying(refusing({1: 90.0, 3: 7.0}, fake), 2, backoff=1.0)
    with pytest.warns(WaitWarning, match="left alone for 90 s") as told:
        np.testing.assert_array_equal(box(states(1, 2, 3)), states(1, 2, 3))
    assert [warning.filename for warning in told] == [__file__]  # and no line of the library
    assert fake.slept == [90.0] and box.ledger.causes == {"TryAgain": 2}
    fake = FakeClock(limits)
    late = Retrying(refusing({1: 90.0}, fake), 2, timeout=30.0)
    assert np.isnan(late(states(1))).all() and fake.slept == []  # it asks for more than the timeout leaves
    assert "TryAgain: busy" in late.ledger.first_failure


def test_retrying_in_retrying_multiplies():
    function, asked = passing({1: 5})
    np.testing.assert_array_equal(Retrying(Retrying(EachBox(function), 2), 3)(states(1)), [[2, 2]])
    assert asked[1] == 6


def test_a_pickled_one_has_its_settings():
    twin = pickle.loads(pickle.dumps(Retrying(Doubling(), 4, timeout=3, backoff=0.5)))
    assert (twin.attempts, twin.timeout, twin.backoff) == (4, 3, 0.5)
    assert repr(twin) == "Retrying(Doubling, attempts=4)"
    np.testing.assert_array_equal(twin(states(1)), [[2, 2]])


@suppress_type_checks
def retrying(**settings: Any) -> Any:
    return Retrying(Doubling(), **settings)


ERRORS = [
    ErrorCase("none", lambda: retrying(attempts=0), ConfigurationError, ["Retrying, attempts", "got 0"]),
    ErrorCase("float", lambda: retrying(attempts=2.0), ConfigurationError, ["whole number", "got 2.0"]),
    ErrorCase("timeout", lambda: retrying(timeout=-1), ConfigurationError, ["timeout", "> 0", "got -1"]),
    ErrorCase("backoff", lambda: retrying(backoff=math.inf), ConfigurationError, ["backoff", "got inf"]),
    ErrorCase("bool", lambda: retrying(backoff=True), ConfigurationError, ["backoff", "got True"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


def refused(error: Exception, until: int) -> tuple[Any, Counter[float]]:
    """Twice the state; the first so many rows that are asked are refused, for one reason."""
    asked: Counter[float] = Counter()

    def function(state: Any) -> Any:
        asked[float(state[0])] += 1
        if asked.total() <= until:
            raise error
        return 2 * state

    return function, asked


def test_a_server_that_refuses_every_row_gets_one_in_each_further_attempt():
    function, asked = refused(RuntimeError("401 Unauthorized"), until=10**9)
    box = Retrying(EachBox(function, failures="keep"), attempts=4)
    assert np.isnan(box(states(*range(30)))).all()
    assert asked.total() == 30 + 3 and box.ledger.failures() == {"raised": 30}


def test_when_that_one_row_is_answered_the_others_follow():
    function, asked = refused(RuntimeError("500"), until=31)  # the second attempt's row too
    box = Retrying(EachBox(function), attempts=3)
    np.testing.assert_array_equal(box(states(*range(30))), 2 * states(*range(30)))
    assert asked.total() == 30 + 1 + 30


def test_what_is_permanent_is_not_run_again():
    function, asked = refused(PermissionError("no"), until=1)
    box = Retrying(EachBox(function, failures="keep"), attempts=3, permanent=(PermissionError,))
    answers = box(states(1, 2, 3))
    assert np.isnan(answers[0]).all() and np.isfinite(answers[1:]).all() and asked.total() == 3
    with pytest.raises(ConfigurationError, match="kinds of exceptions"):
        with suppress_type_checks():
            Retrying(EachBox(function), permanent=("401",))  # pyright: ignore[reportArgumentType]
