"""`RateLimited`: never more rows in any stretch of time than allowed, and no slower than that."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from typeguard import suppress_type_checks

from blackbox.errors import ConfigurationError, RowFailedError, TryAgain, WaitWarning
from blackbox.wrappers import Cached, RateLimited, Retrying
from tests.blackbox.boxes import Doubling, EachBox, ErrorCase, RowsBox, error_table
from tests.blackbox.wrappers.test_retrying import FakeClock


def recorded(
    limits: Any, per_second: float, **settings: Any
) -> tuple[RateLimited, FakeClock, list[tuple[float, int]]]:
    """A box whose blocks are noted with the time at which they start."""
    fake, blocks = FakeClock(limits), []

    def function(state: np.ndarray) -> np.ndarray:
        blocks.append((fake.time, len(state)))
        return 2 * state

    return RateLimited(RowsBox(function), per_second, **settings), fake, blocks


def rows(count: int) -> np.ndarray:
    return np.arange(2.0 * count).reshape(count, 2)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("rate, block", [(0.1, None), (1, None), (7.5, None), (100, 8), (3, 50)])
def test_no_stretch_of_time_holds_more_than_allowed_and_none_is_wasted(rate, block, limits):
    box, fake, blocks = recorded(limits, rate, block=block)
    draws = np.random.default_rng(1)
    total = 0
    for _ in range(30):
        count = int(draws.integers(1, 40))
        np.testing.assert_array_equal(box(rows(count)), 2 * rows(count))
        total += count
        if draws.random() < 0.3:
            fake.time += float(draws.exponential(5 / rate))  # somebody else's time
    assert sum(size for _, size in blocks) == total == box.ledger.rows_run
    assert max(size for _, size in blocks) <= box.block == (block or max(1, int(rate)))
    for first in range(len(blocks)):
        started = 0
        for time, size in blocks[first:]:
            started += size
            assert started <= box.block + rate * (time - blocks[first][0]) + 1e-6
    busy, fake, blocks = recorded(limits, rate, block=block)
    busy(rows(500))
    assert fake.time - 100 == pytest.approx((500 - busy.block) / rate)


def test_an_idle_hour_gives_no_more_than_one_block(limits):
    box, fake, blocks = recorded(limits, 10)
    box(rows(10))
    fake.time += 3600
    box(rows(30))
    assert [size for _, size in blocks] == [10] * 4
    np.testing.assert_allclose([time - 3700 for time, _ in blocks[1:]], [0, 1, 2])


def test_threads_share_one_limit(limits):
    box, fake, _ = recorded(limits, 2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(box, [rows(2)] * 12))
    # With a clock that only sleep moves, each sleeps off its own debt; all debts together are the rest.
    assert sum(fake.slept) >= (24 - 2) / 2 - 1e-9
    assert box.ledger.rows_run == 24


def test_under_raise_a_failed_block_ends_the_call(limits):
    fake = FakeClock(limits)
    inner = RowsBox(lambda state: np.where(state == 4, np.nan, state))
    box = RateLimited(inner, 2)
    with pytest.raises(RowFailedError, match="row 2"):
        box(rows(10))
    assert (len(inner.calls), len(fake.slept)) == (2, 1)
    box.failures = "keep"
    assert np.isnan(box(rows(10))).any(1).tolist() == [False, False, True] + [False] * 7


def test_after_a_row_that_asks_for_time_none_starts_before(limits):
    fake, started = FakeClock(limits), []

    def function(state: np.ndarray) -> np.ndarray:
        started.append(fake.time - 100)
        if len(started) == 2:
            raise TryAgain(after=40)
        return state

    box = RateLimited(EachBox(function, failures="keep"), 1.0, block=1)
    assert np.isnan(box(rows(4))).any(1).tolist() == [False, True, False, False]
    assert started == [0, 1, 41, 42]
    fake, started[:] = FakeClock(limits), []
    box = Retrying(RateLimited(EachBox(function), 1.0, block=1))
    np.testing.assert_array_equal(box(rows(3)), rows(3))
    assert started == [0, 1, 41, 81] or started == [0, 1, 41, 42]


def test_a_wait_of_more_than_a_minute_that_the_box_asks_for_is_told(limits):
    fake, asked = FakeClock(limits), [90.0]

    def function(state: np.ndarray) -> np.ndarray:
        if asked:
            raise TryAgain(after=asked.pop())
        return state

    box = RateLimited(EachBox(function, failures="keep"), 0.01, block=2)
    with pytest.warns(WaitWarning, match="left alone for 90 s") as told:
        box(rows(1))
        box(rows(2))  # its own rate, which is slower, says nothing
    assert [warning.filename for warning in told] == [__file__]
    assert sum(fake.slept) == pytest.approx(100.0)


def test_rows_that_a_cache_inside_answers_take_no_tokens(tmp_path, limits):
    fake = FakeClock(limits)
    box = RateLimited(Cached(Doubling(), tmp_path / "answers"), 1, block=4)
    box(rows(4))
    box(rows(4))
    assert (fake.slept, box.ledger.rows_cached) == ([], 4)


def test_a_pickled_one_starts_with_a_full_bucket():
    twin = pickle.loads(pickle.dumps(RateLimited(Doubling(), 5.0, block=2)))
    np.testing.assert_array_equal(twin(rows(2)), 2 * rows(2))
    assert (twin.block, repr(twin)) == (2, "RateLimited(Doubling, per_second=5)")


@suppress_type_checks
def limited(**settings: Any) -> Any:
    return RateLimited(Doubling(), **settings)


ERRORS = [
    ErrorCase("zero", lambda: limited(per_second=0), ConfigurationError, ["per_second", "> 0", "got 0"]),
    ErrorCase("inf", lambda: limited(per_second=math.inf), ConfigurationError, ["finite", "got inf"]),
    ErrorCase("block", lambda: limited(per_second=1, block=0), ConfigurationError, ["block", "got 0"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()
