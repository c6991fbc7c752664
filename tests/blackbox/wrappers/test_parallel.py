"""`Parallel`: equal answers in order, one count for each row run, and whatever can happen to a worker."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import loky
import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

from blackbox import BlackBoxFunction, Budgeted
from blackbox.errors import ConfigurationError, ExecutorError, OutputError, RowFailedError
from blackbox.failures import Failure
from blackbox.wrappers import Cached, Parallel
from blackbox.wrappers.executors import cancelled
from tests.blackbox.boxes import Doubling, EachBox, ErrorCase, RowsBox, error_table
from tests.blackbox.wrappers import troubled
from tests.blackbox.wrappers.troubled import (
    FINE,
    HANG,
    KILL,
    KILL_LATER,
    KILL_ONCE,
    NAN,
    PAUSE,
    PICKY,
    RAISE,
    SHAPE,
    SLOW,
    Troubled,
    alive,
    in_blocks,
    rows,
)

pytestmark = pytest.mark.timeout(120)


def processes() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([troubled.__name__])
    return ProcessPoolExecutor(2, mp_context=context)


def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


def loky_processes() -> Executor:
    return loky.get_reusable_executor(2, timeout=60)


# loky's workers are new interpreters, which import torch each: a few seconds for each pool.
LOKY = pytest.param(loky_processes, id="loky", marks=pytest.mark.slow)
each_kind = pytest.mark.parametrize("make", [threads, processes, LOKY])
each_process = pytest.mark.parametrize("make", [processes, LOKY])


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Callable[..., Parallel]]:
    """Makes a `Parallel` around a `Troubled`, and closes it."""
    made: list[Parallel] = []

    def make(executor: Any = processes, **settings: Any) -> Parallel:
        made.append(Parallel(Troubled(tmp_path), executor, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def inner(stack: Parallel) -> Troubled:
    assert isinstance(stack.box, Troubled)
    return stack.box


def outcome(stack: Parallel, state: np.ndarray) -> Any:
    return stack.run_rows((torch.from_numpy(state),))


def failures(stack: Parallel, state: np.ndarray) -> dict[int, Failure]:
    return {row: why.failure for row, why in outcome(stack, state).failed.items()}


# Answers


@pytest.mark.parametrize(
    "make, block",
    [(threads, 1), (threads, 3), (threads, 50), (processes, 3)]
    + [pytest.param(processes, n, marks=pytest.mark.slow) for n in (1, 50)]
    + [pytest.param(loky_processes, 3, marks=pytest.mark.slow)],
)
def test_the_answer_is_the_boxs_for_equal_blocks_to_the_bit(stack, tmp_path, make, block):
    box = stack(make, block=block)
    state = rows(*[FINE] * 11)
    np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, block))
    assert sorted(inner(box).rows_run()) == state[:, 0].tolist()
    assert (box.ledger.calls, box.ledger.rows_asked, box.ledger.rows_run) == (1, 11, 11)
    assert box.ledger.seconds > 0


@pytest.mark.quick_cases(1)
@each_kind
def test_kind_device_and_leading_axes_come_back(stack, tmp_path, make):
    state = torch.from_numpy(rows(*[FINE] * 6).astype("f4")).reshape(2, 3, 2)
    found = stack(make, block=2)(state)
    assert (found.dtype, found.shape) == (torch.float32, (2, 3, 2))
    np.testing.assert_array_equal(found.reshape(6, 2), in_blocks(tmp_path, state.reshape(6, 2).numpy(), 2))
    assert stack(make)(state[:, :0]).shape == (2, 0, 2)


@pytest.mark.slow
def test_a_box_is_made_once_in_each_process_and_never_for_threads(stack):
    box = stack(block=1)
    for _ in range(3):
        box(rows(*[PAUSE] * 6))
    assert sorted(inner(box).made()) == inner(box).workers()
    assert len(inner(box).workers()) == 2
    count = len(inner(box).made())
    other = stack(threads)
    other(rows(FINE, FINE))
    assert len(inner(other).made()) == count


@pytest.mark.parametrize("in_flight", [1, 3])
def test_blocks_in_flight_are_bounded(in_flight):
    flying, most = 0, 0
    lock = threading.Lock()

    class Counting(ThreadPoolExecutor):
        def submit(self, *args: Any, **keywords: Any) -> Future[Any]:
            nonlocal flying, most
            with lock:
                flying += 1
                most = max(most, flying)
            future = super().submit(*args, **keywords)
            future.add_done_callback(landed)
            return future

    def landed(_: Any) -> None:
        nonlocal flying
        with lock:
            flying -= 1

    with Counting(8) as executor:
        Parallel(Doubling(), executor, in_flight=in_flight)(np.ones((20, 2)))
    assert most == in_flight


@pytest.mark.slow
def test_workers_follow_a_change_of_policy(stack):
    box = stack(block=2)
    state = rows(FINE, RAISE)
    assert np.isnan(box(state)).any(1).tolist() == [False, True]
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="does not converge"):
        box(state)
    assert box.ledger.rows_run == 2 + 2 + 2  # the block, its halves, and once more without halving


def make_a_box_that_cannot_be_pickled(folder: Path) -> BlackBoxFunction:
    box = Troubled(folder)
    box.lock = threading.Lock()  # pyright: ignore[reportAttributeAccessIssue]
    return box


class Holding(BlackBoxFunction):
    inputs = outputs = Troubled.inputs

    def __init__(self, holder: Any, place: Any) -> None:
        super().__init__()
        self.holder, self.place = holder, place

    def evaluate(self, state: Any) -> Any:
        return state * (self.holder.weight.item() if self.place is None else self.holder[self.place])


@pytest.mark.slow
def test_a_function_makes_a_box_that_cannot_be_pickled(tmp_path):
    with Parallel(make_a_box_that_cannot_be_pickled(tmp_path), processes) as box:
        with pytest.raises(ConfigurationError, match=r"can be pickled for other processes.*Give a function"):
            box(rows(FINE))
        budget = Budgeted(box, rows=2)
        for _ in range(2):  # and again, not for want of rows that the first call had set aside
            with pytest.raises(ConfigurationError, match="can be pickled"):
                budget(rows(FINE, FINE))
    with Parallel(partial(make_a_box_that_cannot_be_pickled, tmp_path), processes, block=2) as box:
        state = rows(*[FINE] * 5)
        np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, 2))
        assert box.ledger.rows_run == 5


@pytest.mark.slow
def test_a_process_follows_an_attribute_that_is_assigned_anew(stack, tmp_path):
    box, state = stack(block=2), rows(*[FINE] * 4)
    first = box(state)
    box.box.offset = 3.0
    for _ in range(3):
        np.testing.assert_array_equal(box(state), first + 3)
    made = Troubled(tmp_path).made()  # by process, of which a slow one may have had no block for some calls
    assert max(map(made.count, made)) == 2
    with Parallel(partial(Troubled, tmp_path), processes) as box:
        box(state)
        box.box.offset = 3.0  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(ConfigurationError, match="as the function makes it"):
            box(state)


def test_a_process_follows_what_is_written_into_a_list_a_dictionary_an_array_and_weights():
    held: list[tuple[Any, Any]] = [
        ([1.0], 0),
        ({"a": 1.0}, "a"),
        (np.ones(1), 0),
        (torch.nn.Linear(1, 1), None),
    ]
    state = rows(*[FINE] * 2)
    with processes() as pool:
        for holder, place in held:
            box = Parallel(Holding(holder, place), pool, block=1)
            first = box(state)
            if place is None:
                with torch.no_grad():
                    holder.weight.mul_(2)
            else:
                holder[place] = 2.0
            np.testing.assert_allclose(box(state), 2 * first, rtol=1e-6)


@pytest.mark.slow
def test_a_cache_and_the_processes_behind_it_follow_what_is_written_into_an_array(stack, tmp_path):
    inner, state = stack(block=2), rows(*[FINE] * 4)
    inner.box.offset = np.zeros(())
    box = Cached(inner, tmp_path / "answers")
    first = box(state)
    inner.box.offset[()] = 3.0
    with pytest.warns(RuntimeWarning, match="offset"):
        np.testing.assert_array_equal(box(state), first + 3)


def test_a_pickled_stack_gives_the_same_answers_with_an_executor_of_its_own(stack, tmp_path):
    state = rows(*[FINE] * 4)
    with pickle.loads(pickle.dumps(stack(threads, block=2))) as twin:
        np.testing.assert_array_equal(twin(state), in_blocks(tmp_path, state, 2))
    with threads() as executor, pytest.raises(TypeError, match="a function that makes the executor"):
        pickle.dumps(stack(executor))


@pytest.mark.slow
def test_parallel_in_parallel_counts_once(tmp_path):
    with Parallel(Parallel(Troubled(tmp_path), threads, block=1), processes, block=3) as box:
        state = rows(*[FINE] * 7)
        np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, 1))
        assert box.ledger.rows_run == 7 == len(Troubled(tmp_path).rows_run())


@pytest.mark.parametrize("given", [True, False], ids=["executor", "function"])
def test_parallel_in_parallel_on_one_executor_does_not_wait_for_itself(tmp_path, given):
    with ThreadPoolExecutor(1) as pool:
        executor = pool if given else lambda: pool
        inner = Parallel(Troubled(tmp_path), executor, block=2)
        box = Budgeted(Parallel(inner, executor, block=3), rows=7)
        state = rows(FINE, FINE, RAISE, *[FINE] * 4)
        expected = np.concatenate(
            [in_blocks(tmp_path, part, 2) for part in (state[:3], state[3:6], state[6:])]
        )
        np.testing.assert_array_equal(box(state), expected)
        assert np.isnan(expected[2]).all() and box.ledger.rows_run == 7 and box.rows_left == 0

        class Calling(Troubled):  # a box that has one inside
            def evaluate_rows(self, state: Any) -> Any:
                return inner(state)

        calling = Parallel(Calling(tmp_path), executor, block=2)
        np.testing.assert_array_equal(calling(state[3:6]), expected[3:6])


# Failed rows


@pytest.mark.quick_cases(1)
@each_kind
@pytest.mark.parametrize("block", [1, 4])
def test_rows_that_raise_or_are_not_finite_fail_and_no_others(stack, tmp_path, make, block):
    box = stack(make, block=block)
    state = rows(FINE, RAISE, FINE, FINE, NAN, FINE, PICKY)
    assert failures(box, state) == {1: Failure.RAISED, 4: Failure.NON_FINITE, 6: Failure.RAISED}
    np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, block))
    assert (box.ledger.rows_failed, box.ledger.rows_run) == (3, len(inner(box).rows_run()))


def test_the_error_of_a_worker_is_told_with_its_traceback(stack):
    box = stack()
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="FloatingPointError: this row does not converge") as caught:
        box(rows(RAISE))
    cause = caught.value.__cause__
    assert isinstance(cause, FloatingPointError)
    assert any("in act" in note and "troubled.py" in note for note in cause.__notes__)
    with pytest.raises(RowFailedError, match="UnpicklableError: two words"):
        box(rows(PICKY))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("make", [threads, processes])
def test_under_raise_nothing_is_handed_in_after_the_first_failure(stack, make):
    box = stack(make, in_flight=2)
    box.failures = "raise"
    with pytest.raises(RowFailedError):
        box(rows(RAISE, *[PAUSE] * 30))
    assert box.ledger.rows_run == len(inner(box).rows_run()) <= 4
    np.testing.assert_array_equal(box(rows(FINE)), in_blocks(inner(box).folder, rows(FINE), 1))


@pytest.mark.quick_cases(1)
@each_kind
def test_a_wrong_shape_is_the_boxs_fault_and_is_raised(stack, make):
    box = stack(make, block=2)
    with pytest.raises(OutputError, match=r"expected shape \(.*2,?\), got \(.*1,?\)"):
        box(rows(*[SHAPE] * 4))
    assert np.isfinite(box(rows(FINE))).all()
    answers = box(rows(FINE, FINE, FINE, SHAPE, *[FINE] * 4))  # a run that ended early fails alone
    np.testing.assert_array_equal(np.isnan(answers).all(axis=1), [False] * 3 + [True] + [False] * 4)


# Workers that die


@pytest.mark.slow
@each_process
@pytest.mark.parametrize("block", [1, 3])
def test_a_killed_worker_is_replaced_and_its_rows_run_again(stack, tmp_path, make, block):
    box = stack(make, block=block)
    state = rows(*[FINE] * 4, KILL_ONCE, *[FINE] * 6)
    found = box(state)
    plain = state.copy()
    plain[:, 1] = FINE
    np.testing.assert_array_equal(found, in_blocks(tmp_path, plain, block))
    ran = inner(box).rows_run()
    assert set(ran) == set(state[:, 0])
    assert ran.count(state[4, 0]) == 2
    assert len(state) < box.ledger.rows_run
    # Blocks that were with the broken pool count as run, and nothing else does.
    assert len(ran) <= box.ledger.rows_run <= len(ran) + 2 * block
    assert box.ledger.rows_failed == 0


@pytest.mark.slow
@each_process
@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_row_that_kills_every_worker_has_failed_alone(stack, tmp_path, make, block):
    box = stack(make, block=block)
    state = rows(*[FINE] * 4, KILL, *[FINE] * 3)
    result = outcome(box, state)
    assert {row: why.failure for row, why in result.failed.items()} == {4: Failure.LOST}
    whole = [row for row in range(8) if not 3 <= row < 6] if block == 3 else [0, 1, 2, 3, 5, 6, 7]
    plain = state.copy()
    plain[4, 1] = FINE
    np.testing.assert_array_equal(result.outputs[0][whole], in_blocks(tmp_path, plain, block)[whole])
    alone = [row for row in (3, 5) if block == 3]
    np.testing.assert_array_equal(result.outputs[0][alone], in_blocks(tmp_path, plain, 1)[alone])
    assert inner(box).rows_run().count(state[4, 0]) == (2 if block == 1 else 3)
    assert box.ledger.rows_run >= len(inner(box).rows_run())
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="the worker that ran the row died"):
        box(rows(FINE, KILL))


@pytest.mark.slow
def test_a_dead_worker_under_raise_runs_nothing_again(stack):
    box = stack(block=1, in_flight=2)
    box.failures = "raise"
    with pytest.raises(RowFailedError, match="died, and another"):
        box(rows(KILL, KILL, *[PAUSE] * 20))
    assert len(inner(box).rows_run()) <= box.ledger.rows_run <= 5


@pytest.mark.slow
def test_a_given_executor_that_breaks_is_an_error_that_says_what_to_give(stack):
    with processes() as executor:
        box = stack(executor)
        with pytest.raises(ExecutorError, match=r"it broke \(BrokenProcessPool.*Give a function"):
            box(rows(KILL, FINE))
        with pytest.raises(ExecutorError, match="it takes no more"):
            box(rows(FINE))


def die() -> None:
    raise SystemExit("no licence")


@pytest.mark.slow
def test_workers_that_never_come_up_end_in_an_error(stack):
    context = multiprocessing.get_context("forkserver")
    box = stack(lambda: ProcessPoolExecutor(1, mp_context=context, initializer=die))
    with pytest.raises(ExecutorError, match="4 times in a row"):
        box(rows(FINE, FINE))
    assert inner(box).rows_run() == [] and box.ledger.rows_run == 0


def test_no_future_is_kept_once_its_answer_has_come(tmp_path):
    """A cluster would run it anew if the worker with the answer died, and no one would count that."""
    go, futures = threading.Event(), []

    class Noting(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = super().submit(fn, *args, **kwargs)
            futures.append(weakref.ref(future))
            return future

    class Waits(Troubled):
        def act(self, what: int) -> None:
            if what == PAUSE:
                go.wait(60)

    with Noting(2) as executor:
        box = Parallel(Waits(tmp_path), executor, block=1)
        call = threading.Thread(target=box, args=(rows(FINE, PAUSE),), daemon=True)
        call.start()
        deadline = time.monotonic() + 20
        try:
            while len(futures) < 2 or futures[0]() is not None:
                assert time.monotonic() < deadline, "it is kept"
                time.sleep(0.01)
        finally:
            go.set()
            call.join()


def deaf_processes() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(2, mp_context=context, initializer=troubled.hear_no_wish_to_end)


@pytest.mark.slow
def test_no_worker_of_a_broken_pool_is_left_for_python_to_wait_for(stack):
    box = stack(deaf_processes, block=1)
    box(rows(*[PAUSE] * 6))
    first = set(inner(box).workers())
    assert len(first) == 2
    box(rows(KILL_ONCE, *[PAUSE] * 6))
    ended(first)


def ended(workers: set[int]) -> None:
    """Wait until none is there."""
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "one is left"
        time.sleep(0.01)


# The thread of a process pool of Python 3.11 that meets a cancelled future while the pool breaks.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_after_a_row_was_raised_for_leaves_no_other(stack):
    """What was taken back is still in the pool's queue then."""
    box = stack(processes, block=1, in_flight=8)
    box(rows(*[PAUSE] * 6))
    first = set(inner(box).workers())
    inner(box).failures = "raise"
    with pytest.raises(RowFailedError, match="does not converge"):
        box(rows(RAISE, KILL_LATER, *[SLOW] * 6))
    ended(first)
    assert len(inner(box).rows_run()) < 6 + 8  # the last ones did not begin


def test_a_block_that_is_taken_back_while_its_pool_says_that_it_broke_ends_no_thread():
    """The pool's thread may look whether a future is cancelled just before it is."""

    class CancelledMeanwhile(Future):
        def cancelled(self) -> bool:
            before = super().cancelled()
            super().cancel()
            return before

        def cancel(self) -> bool:
            self.set_exception(BrokenProcessPool())  # as the pool's thread does
            return super().cancel()

    future = CancelledMeanwhile()
    cancelled(future)
    with pytest.raises(BrokenProcessPool):
        future.result(timeout=0)
    taken_back: Future[Any] = Future()
    assert cancelled(taken_back)
    taken_back.set_exception(BrokenProcessPool())
    assert taken_back.cancelled()


# Rows that hang


@each_process
@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_row_that_hangs_is_killed_and_its_block_mates_run_alone(stack, tmp_path, make, block):
    box = stack(make, block=block, timeout=1.0)
    state = rows(FINE, HANG, *[FINE] * 5)
    result = outcome(box, state)
    assert {row: why.failure for row, why in result.failed.items()} == {1: Failure.TIMED_OUT}
    assert "more than 1 s" in result.failed[1].sentence()
    plain = state.copy()
    plain[1, 1] = FINE
    whole, alone = [3, 4, 5, 6], [0, 2]
    np.testing.assert_array_equal(result.outputs[0][whole], in_blocks(tmp_path, plain, block)[whole])
    np.testing.assert_array_equal(result.outputs[0][alone], in_blocks(tmp_path, plain, 1)[alone])
    ran = inner(box).rows_run()
    # A row alone may be taken by the pool of the killed worker before that has noticed, and so run again.
    assert ran.count(state[1, 0]) in ([1] if block == 1 else [2, 3])
    assert len(ran) <= box.ledger.rows_run <= len(ran) + 2 * block
    hung = [int(line.split()[0]) for line in (tmp_path / "rows").read_text().splitlines()]
    box.close()
    deadline = time.monotonic() + 20
    while any(map(alive, set(hung))) and make is processes and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, set(hung))) or make is loky_processes


@pytest.mark.slow
def test_an_interrupt_ends_workers_that_hang_so_that_python_can_exit(stack):
    box, caught = stack(processes, block=1), threading.Event()

    def interrupt() -> None:
        while not (inner(box).workers() or caught.is_set()):
            time.sleep(0.01)
        patience = 1.0  # by then it waits: while a process starts, Python may swallow an interrupt
        while not caught.wait(patience):
            os.kill(os.getpid(), signal.SIGINT)
            patience = 15.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            box(rows(HANG))
    finally:
        caught.set()
        waiting.join()
        signal.signal(signal.SIGINT, before)
    (hung,) = inner(box).workers()
    deadline = time.monotonic() + 60
    while alive(hung):
        assert time.monotonic() < deadline, "it still hangs"
        time.sleep(0.01)
    assert np.isfinite(box(rows(FINE))).all()  # by another worker
    box.close()


def one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))


@pytest.mark.slow
def test_an_interrupt_leaves_workers_to_another_threads_call(stack):
    box, answers, caught = stack(one_process, block=1), [], threading.Event()
    other = threading.Thread(target=lambda: answers.append(outcome(box, rows(SLOW))))
    other.start()
    while not inner(box).workers():
        time.sleep(0.01)

    def interrupt() -> None:
        patience = 0.5  # by then the call of the main thread waits for the worker
        while not caught.wait(patience):
            os.kill(os.getpid(), signal.SIGINT)
            patience = 15.0

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    waiting = threading.Thread(target=interrupt, daemon=True)
    waiting.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            box(rows(*[SLOW] * 3) + np.array([10, 0]))
    finally:
        caught.set()
        waiting.join()
        signal.signal(signal.SIGINT, before)
    other.join()
    (found,) = answers
    assert not found.failed and torch.isfinite(found.outputs[0]).all()
    assert inner(box).rows_run().count(1 / 7) == 1  # and once


@pytest.mark.slow
def test_two_rows_that_hang_at_once(stack):
    box = stack(timeout=0.7)
    state = rows(HANG, HANG, FINE, FINE)
    assert failures(box, state) == {0: Failure.TIMED_OUT, 1: Failure.TIMED_OUT}


def test_a_row_that_gives_itself_up_in_time_is_counted_like_one_that_is_given_up():
    def late(state: np.ndarray) -> np.ndarray:
        if state[0] < 0:
            raise TimeoutError("the solver ran longer than 60 s")
        return 2 * state

    with Parallel(EachBox(late, failures="keep"), threads, timeout=30) as box:
        assert failures(box, np.array([[1.0, 0], [-1, 1]])) == {1: Failure.TIMED_OUT}
        box(np.array([[-1.0, 0]]))
        assert box.ledger.failures() == {"timed_out": 1} == box.ledger.causes


def test_threads_that_hang_are_left_behind_and_replaced():
    go_on = threading.Event()

    def hang(state: np.ndarray) -> np.ndarray:
        if state[0] < 0:
            go_on.wait(60)
        return 2 * state

    state = np.array([[-1.0, 0], [1, 1], [-1, 2], [2, 2], [3, 3]])
    box = Parallel(EachBox(hang, failures="keep"), threads, timeout=0.3)
    try:
        result = outcome(box, state)
        assert {row: why.failure for row, why in result.failed.items()} == dict.fromkeys(
            (0, 2), Failure.TIMED_OUT
        )
        np.testing.assert_array_equal(result.outputs[0][[1, 3, 4]], 2 * state[[1, 3, 4]])
        assert box.ledger.rows_run == 5
    finally:
        go_on.set()
        box.close()


def test_rows_of_an_executor_that_reports_nothing_time_out():
    class Silent(Executor):
        """As that of a queue whose job has died."""

        def submit(self, *given: Any, **named: Any) -> Future[Any]:
            return Future()

    box = Parallel(RowsBox(lambda state: state, failures="keep"), Silent(), timeout=0.3, in_flight=2)
    assert np.isnan(box(np.ones((3, 2)))).all() and box.ledger.rows_timed_out == 3


def test_an_executor_all_of_whose_threads_hang_is_an_error():
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        box = Parallel(
            RowsBox(lambda state: go_on.wait(60) and state, failures="keep"), executor, timeout=0.3
        )
        try:
            with pytest.raises(ExecutorError, match=r"all its 1 workers are at rows that hang"):
                box(np.ones((3, 2)))
        finally:
            go_on.set()


# Executors that shrink


def test_an_executor_that_is_shut_down_while_it_works():
    executor, down = threads(), threading.Event()

    def answer(state: np.ndarray) -> np.ndarray:
        if state[0] == 3:
            executor.shutdown(wait=False)
            down.set()
        down.wait(60)  # or the other worker might have answered all other rows before
        return 2 * state

    state = np.arange(20.0).reshape(10, 2) + 1
    with pytest.raises(ExecutorError, match=r"it takes no more.*after shutdown"):
        Parallel(EachBox(answer), executor, block=1, in_flight=2)(state)

    made: list[Executor] = []
    down.clear()

    def make() -> Executor:
        nonlocal executor
        executor = threads()
        made.append(executor)
        return executor

    with Parallel(EachBox(answer), make, in_flight=2) as box:
        np.testing.assert_array_equal(box(state), 2 * state)
        assert (len(made), box.ledger.rows_run) == (2, 10)


def test_calls_from_several_threads_share_executor_and_ledger(tmp_path, stack):
    box = stack(threads, block=2)
    state = rows(*[FINE] * 9)
    truth = in_blocks(tmp_path, state, 2)
    with ThreadPoolExecutor(4) as callers:
        for found in callers.map(box, [state] * 8):
            np.testing.assert_array_equal(found, truth)
    assert (box.ledger.calls, box.ledger.rows_run) == (8, 72)
    assert len(inner(box).rows_run()) == 72


# Settings


@suppress_type_checks
def parallel(**settings: Any) -> Any:
    return Parallel(**({"box": Doubling(), "executor": threads} | settings))


def broken_given() -> Any:
    executor = threads()
    executor.shutdown()
    return Parallel(Doubling(), executor)(np.ones((1, 2)))


ERRORS = [
    ErrorCase("block", lambda: parallel(block=0), ConfigurationError, ["Parallel, block", ">= 1", "got 0"]),
    ErrorCase("flight", lambda: parallel(in_flight=1.5), ConfigurationError, ["in_flight", "got 1.5"]),
    ErrorCase("time", lambda: parallel(timeout=0), ConfigurationError, ["timeout", "> 0", "got 0"]),
    ErrorCase("workers", lambda: parallel(executor=4), ConfigurationError, ["executor", "got int", "Dask"]),
    ErrorCase("box", lambda: parallel(box=3), ConfigurationError, ["Parallel, box", "got int"]),
    ErrorCase("maker", lambda: parallel(box=dict), ConfigurationError, ["Parallel, box", "got dict"]),
    ErrorCase("shut", broken_given, ExecutorError, ["it takes no more", "Give a function"]),
]


@error_table(ERRORS)
def test_refused(case):
    case.check()


def test_the_size_of_blocks_is_told():
    assert repr(parallel(block=4)) == "Parallel(Doubling, block=4)"
