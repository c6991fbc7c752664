"""Wrappers in wrappers: one ledger that counts each row as the contract says, in whatever order they are."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxFunction, Budgeted, BudgetError, Ledger
from blackbox.wrappers import Cached, Fallback, Parallel, RateLimited, Retrying
from tests.blackbox.boxes import Doubling
from tests.blackbox.wrappers.test_parallel import processes, threads
from tests.blackbox.wrappers.troubled import FINE, KILL_ONCE, NAN, RAISE, Troubled, in_blocks, rows


class Named(Troubled):
    """With an identity, as the folder is no part of its answers."""

    identity = "troubled"


@pytest.mark.parametrize("make", [threads, processes])
def test_budgeted_cached_retrying_parallel(tmp_path, make):
    inner = Named(tmp_path)
    with Parallel(inner, make, block=1) as parallel:
        box = Budgeted(Cached(Retrying(parallel, attempts=2), tmp_path / "answers"), rows=14)
        state = rows(FINE, FINE, RAISE, FINE, NAN, FINE)
        truth = in_blocks(tmp_path, state, 1)
        for _ in range(2):
            np.testing.assert_array_equal(
                box(np.concatenate([state, state[:1]])), truth[[0, 1, 2, 3, 4, 5, 0]]
            )
        ran = inner.rows_run()
        assert {x: ran.count(x) for x in state[:, 0]} == dict(
            zip(state[:, 0], [1, 1, 4, 1, 4, 1], strict=True)
        )
        seconds = box.ledger.seconds
        assert box.ledger == Ledger(
            calls=2,
            rows_asked=14,
            rows_run=12,
            rows_cached=1 + 5,
            rows_failed=4,
            rows_raised=2,
            rows_not_finite=2,
            seconds=seconds,
        )
        assert (len(ran), box.rows_left) == (12, 2)
        assert all(one.ledger is box.ledger for one in (parallel, inner))
        # Four more rows of which two are known fit into a budget of two.
        more = np.concatenate([state[:2], rows(*[FINE] * 8)[6:]])
        np.testing.assert_array_equal(box(more), in_blocks(tmp_path, more, 1))
        with pytest.raises(BudgetError, match="at most 0 rows, got one of 2"):
            box(state)
        assert box.rows_left == 0 and len(inner.rows_run()) == 14


def test_the_cache_in_the_workers_keeps_what_they_finished(tmp_path):
    state = rows(*[FINE] * 5, KILL_ONCE)
    plain = state.copy()
    plain[:, 1] = FINE
    with Parallel(Cached(Named(tmp_path), tmp_path / "answers"), processes) as box:
        np.testing.assert_array_equal(box(state), in_blocks(tmp_path, plain, 1))
        np.testing.assert_array_equal(box(state), in_blocks(tmp_path, plain, 1))
    ran = Troubled(tmp_path).rows_run()
    # The one that was killed, and what the other worker may have been at just then, if anything.
    again = [x for x in state[:, 0] if ran.count(x) > 1]
    assert state[5, 0] in again and len(again) <= 2 and len(ran) == 6 + len(again)
    assert box.ledger.rows_run >= len(ran)
    assert box.ledger.rows_cached >= 6
    later = Cached(Named(tmp_path), tmp_path / "answers")
    later(state)
    assert (later.ledger.rows_run, later.ledger.rows_cached) == (0, 6)


def test_a_row_that_fails_by_chance_is_retried_recovered_and_not_cached_as_recovered(tmp_path):
    inner = Named(tmp_path)
    recovered = Cached(Fallback(Retrying(inner, attempts=2), -5.0), tmp_path / "answers")
    plain = Cached(Retrying(inner), tmp_path / "answers")
    state = rows(FINE, NAN)
    assert recovered(state)[1].tolist() == [-5.0, -5.0]
    assert np.isnan(plain(state)[1]).all()  # not taken from the other's answers


def test_every_wrapper_around_every_other_answers_alike(tmp_path):
    names = itertools.count()
    with ThreadPoolExecutor(2) as one, ThreadPoolExecutor(2) as other:
        executors = itertools.cycle([one, other])
        wrap: dict[str, Any] = {
            "budgeted": lambda box: Budgeted(box, rows=100),
            "cached": lambda box: Cached(box, tmp_path / f"{next(names)}.db"),
            "retrying": Retrying,
            "recovering": lambda box: Fallback(box, 0.0),
            "limited": lambda box: RateLimited(box, 1e6),
            "parallel": lambda box: Parallel(box, next(executors), block=2),
        }
        state = np.random.default_rng(1).normal(size=(5, 2))
        for outer in wrap.values():
            for middle in wrap.values():
                box = outer(middle(Doubling(3.0)))
                np.testing.assert_array_equal(box(state), 3 * state)
                seconds = box.ledger.seconds
                assert box.ledger == Ledger(1, 5, 5, seconds=seconds)
                assert box.failures == "raise"


class Yielding(int):
    """A number that lets other threads run while it is added."""

    def __radd__(self, other: int) -> int:
        time.sleep(1e-4)
        return other + int(self)


class Counted(BlackBoxFunction):
    """One row at a time, called from many threads at once."""

    inputs = (ArraySpec("x", ()),)
    outputs = (ArraySpec("x", ()),)

    def evaluate(self, x: Any) -> Any:
        return x


def test_threads_lose_no_count():
    box = Counted()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(box, [np.ones(25)] * 40))
        assert (box.ledger.calls, box.ledger.rows_asked, box.ledger.rows_run) == (40, 1000, 1000)
        # Others get their turn between reading a count and writing it, which is where counts are lost.
        list(pool.map(lambda _: box.ledger.count(calls=Yielding(1)), range(200)))
    assert box.ledger.calls == 240
