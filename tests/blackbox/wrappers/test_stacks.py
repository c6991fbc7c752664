"""Wrappers in wrappers: one ledger that counts each row as the contract says, in whatever order they are."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import blackbox.wrappers
from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Ledger
from blackbox.errors import BudgetError
from blackbox.wrappers import Cached, Fallback, Parallel, RateLimited, Retrying
from tests.blackbox.boxes import Doubling
from tests.blackbox.wrappers.test_parallel import processes, threads
from tests.blackbox.wrappers.troubled import FINE, KILL_ONCE, NAN, RAISE, Troubled, in_blocks, rows


class Named(Troubled):
    """With an identity, as the folder is no part of its answers."""

    identity = "troubled"


@pytest.mark.parametrize("make", [threads, pytest.param(processes, marks=pytest.mark.slow)])
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
            rows_retried=4,
            causes={"FloatingPointError": 4, "not_finite": 4},
            first_failure=f"row 2 (state=[{state[2, 0]}, {state[2, 1]:.0f}]): the black box raised an error "
            "(FloatingPointError: this row does not converge)",
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


@pytest.mark.slow
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


def test_every_wrapper_around_every_other_gives_the_same_answers(tmp_path):
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
        assert len(wrap) == len(blackbox.wrappers.__all__) - 1  # a new one has its line; Wrapper is abstract
        state = np.random.default_rng(1).normal(size=(5, 2))
        for outer in wrap.values():
            for middle in wrap.values():
                box = outer(middle(Doubling(3.0)))
                np.testing.assert_array_equal(box(state), 3 * state)
                seconds = box.ledger.seconds
                assert box.ledger == Ledger(1, 5, 5, seconds=seconds)
                assert box.failures == "raise"


class Faulty(BlackBoxFunction, abstract=True):
    """Rows whose first entry is above 5 fail: always, or the first time that they are asked for."""

    inputs = outputs = (ArraySpec("state", (2,)),)
    identity = "faulty"
    passing = False

    def __init__(self) -> None:
        super().__init__(failures="keep")
        self.rows_run, self.seen, self.lock = 0, set(), threading.Lock()

    def count(self, state: Any) -> None:
        with self.lock:
            self.rows_run += len(state)
            bad = set(state[state[:, 0] > 5, 0].tolist())
            new, self.seen = bad - self.seen, self.seen | bad
        if new if self.passing else bad:
            raise ConnectionError("busy")


class FaultyEach(Faulty):
    """One row at a time."""

    def evaluate(self, state: Any) -> Any:
        self.count(state[None])
        return 3 * state


class FaultyRows(Faulty):
    """A block at a time, which is halved where it raises."""

    def evaluate_rows(self, state: Any) -> Any:
        self.count(state)
        return 3 * state


WRAPPERS = ("budgeted", "retrying", "cached", "limited", "fallback", "parallel")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 73])  # of 720 orders
@pytest.mark.parametrize("kind", [FaultyEach, FaultyRows])
@pytest.mark.parametrize("passing", [False, True])
def test_a_budget_is_exact_in_every_order_of_wrappers(tmp_path, kind, passing, every):
    state = np.stack([np.arange(10.0), np.ones(10)], 1)
    orders = itertools.islice(itertools.permutations(WRAPPERS), 0, None, every)
    with ThreadPoolExecutor(2) as executor:
        for number, order in enumerate(orders):
            box = inner = kind()
            inner.passing = passing
            wrap: dict[str, Any] = {
                "budgeted": lambda box: Budgeted(box, rows=25),
                "retrying": lambda box: Retrying(box, 9),
                "cached": lambda box, number=number: Cached(box, tmp_path / f"{number}.db"),
                "limited": lambda box: RateLimited(box, 1e9, block=3),
                "fallback": lambda box: Fallback(box, 0.0),
                "parallel": lambda box: Parallel(box, executor, block=2),
            }
            for name in order:
                box = wrap[name](box)
            refused = 0
            for _ in range(4):
                try:
                    found = box(state)
                except BudgetError:
                    refused += 1
                    continue
                wrong = (found != 3 * state).any(1)
                assert not wrong[:6].any() or kind is FaultyRows, box
                assert ((found[wrong] == 0) | np.isnan(found[wrong])).all(), box
            assert inner.rows_run == box.ledger.rows_run <= 25, box
            assert refused == 0 or box.ledger.rows_run > 15, box
            close = [one for one in stack_of(box) if isinstance(one, Cached)]
            for one in close:
                one.close()


def stack_of(box: Any) -> Iterator[Any]:
    yield box
    while hasattr(box, "box"):
        box = box.box
        yield box


def test_threads_spend_one_budget_to_the_row_and_no_further():
    box = FaultyEach()
    stack = Budgeted(Retrying(box, 3), rows=500)
    state = np.stack([np.arange(10.0), np.ones(10)], 1)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(stack, state) for _ in range(60)]
        errors = [call.exception() for call in calls]
    assert all(error is None or isinstance(error, BudgetError) for error in errors)
    assert 490 < box.rows_run == stack.ledger.rows_run <= 500


@pytest.mark.slow
@pytest.mark.parametrize("budget", [24, 30, 60])
def test_a_budget_around_processes_that_retry_is_exact(tmp_path, budget):
    state = rows(*[FINE] * 5, RAISE, FINE, RAISE, RAISE, FINE)
    with Parallel(Retrying(Named(tmp_path), attempts=4), processes, block=2) as parallel:
        box = Budgeted(parallel, rows=budget)
        for attempt in range(3):
            try:
                failed = np.isnan(box(state)).any(1).tolist()
            except BudgetError:
                continue
            if budget == 60 and attempt == 0:  # a call takes 2 + 2 + 3 * (2 + 2 + 3) rows
                assert failed == (state[:, 1] == RAISE).tolist()
            assert failed[:4] == [False] * 4  # first runs are sure, of those that have begun
        ran = len(Named(tmp_path).rows_run())
        assert budget - 10 < ran == box.ledger.rows_run <= budget  # with ten more, another call had fitted


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
