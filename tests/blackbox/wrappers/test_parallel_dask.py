"""`Parallel` on a Dask cluster of processes: answers, one count a row, workers that retire, die or hang."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from blackbox import Budgeted
from blackbox.errors import ExecutorError, OutputError
from blackbox.failures import Failure
from blackbox.wrappers import Parallel
from tests.blackbox.wrappers.troubled import (
    FINE,
    KILL,
    KILL_ONCE,
    NAN,
    PAUSE,
    RAISE,
    SHAPE,
    SLEEP,
    Troubled,
    in_blocks,
    rows,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(150),
    # Dask's own words about its workers when they are killed under it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@contextmanager
def workers() -> Iterator[Client]:
    settings: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, **settings) as cluster:
        with Client(cluster) as client:
            yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with workers() as client:
        yield client


def test_answers_are_equal_to_the_bit_counted_once_and_failures_are_values(client, tmp_path):
    box = Parallel(Troubled(tmp_path), client.get_executor, block=3)
    state = rows(FINE, RAISE, *[PAUSE] * 9, NAN, FINE)
    np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, 3))
    inner = Troubled(tmp_path)
    assert box.ledger.rows_run == len(inner.rows_run())
    assert (box.ledger.rows_failed, box.ledger.rows_asked) == (2, 13)
    # Two threads a worker, each with a box of its own that it keeps.
    made = inner.made()
    assert set(made) == set(inner.workers()) and max(map(made.count, made)) <= 2
    box(state)
    assert max(map(inner.made().count, made)) <= 2
    assert np.isnan(box(rows(SHAPE, SHAPE))).all()  # such rows end early, since others have come back whole
    with pytest.raises(OutputError, match="expected shape"):
        Parallel(inner, client.get_executor, block=3)(rows(SHAPE, SHAPE))


def test_an_executor_given_as_it_is(client, tmp_path):
    box = Parallel(Troubled(tmp_path), client.get_executor(), block=2)
    state = rows(*[FINE] * 5)
    np.testing.assert_array_equal(box(state), in_blocks(tmp_path, state, 2))
    assert box.ledger.rows_run == 5


def test_a_row_that_hangs_is_given_up_and_told(client, tmp_path):
    client.run(Troubled, tmp_path)  # what workers import is no part of a row's time
    box = Parallel(Troubled(tmp_path), client.get_executor, timeout=4.0, in_flight=4)
    state = rows(FINE, SLEEP, FINE, FINE)
    result = box.run_rows((torch.from_numpy(state),))
    assert {row: why.failure for row, why in result.failed.items()} == {1: Failure.TIMED_OUT}
    fine = [0, 2, 3]
    np.testing.assert_array_equal(result.outputs[0][fine], in_blocks(tmp_path, state[fine], 1))
    assert box.ledger.rows_run == 4


def test_a_worker_that_retires_in_the_middle(client, tmp_path):
    box = Parallel(Troubled(tmp_path), client.get_executor, in_flight=8)
    state = rows(*[PAUSE] * 40)

    def retire() -> None:
        while not (tmp_path / "rows").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        client.retire_workers([next(iter(client.scheduler_info()["workers"]))])

    helper = threading.Thread(target=retire, daemon=True)
    helper.start()
    found = box(state)
    helper.join()
    np.testing.assert_array_equal(found, in_blocks(tmp_path, state, 1))
    ran = Troubled(tmp_path).rows_run()
    assert set(ran) == set(state[:, 0])
    assert box.ledger.rows_run == 40 <= len(ran)  # Dask may run anew what it had on that worker


@contextmanager
def lone_worker(address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that nobody starts again."""
    words = ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address, *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_cluster_whose_workers_have_all_died_is_not_waited_for_without_end(tmp_path, limits):
    limits(patience_with_clusters=2.0)
    settings: dict[str, Any] = {"host": "127.0.0.1", "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(n_workers=0, **settings) as cluster, Client(cluster) as client:
        box = Parallel(Troubled(tmp_path), client.get_executor)
        budget, answers = Budgeted(box, rows=100), []
        # Before its first worker a cluster is waited for: a queue may take hours to start one.
        waiting = threading.Thread(target=lambda: answers.append(budget(rows(FINE))), daemon=True)
        waiting.start()
        waiting.join(5)
        assert waiting.is_alive()
        with lone_worker(cluster.scheduler_address) as worker:
            waiting.join(60)
            np.testing.assert_array_equal(answers[0], in_blocks(tmp_path, rows(FINE), 1))
            with pytest.raises(ExecutorError, match="all of them have ended and none has come for 2 s"):
                budget(rows(FINE, KILL, FINE))
            assert worker.wait(20) != 0
        with lone_worker(cluster.scheduler_address):  # and with another one it goes on
            client.wait_for_workers(1, timeout=60)
            np.testing.assert_array_equal(budget(rows(FINE)), in_blocks(tmp_path, rows(FINE), 1))


def test_a_client_that_is_closed_is_an_error(client, tmp_path):
    with Client(client.cluster) as other:
        box = Parallel(Troubled(tmp_path), other.get_executor)
        box(rows(FINE))
    with pytest.raises(ExecutorError, match="4 times in a row"):
        box(rows(FINE))
    assert box.ledger.rows_run == 1


@pytest.mark.timeout(400)  # each of Dask's workers that is killed is replaced by a new interpreter
def test_a_killed_worker_costs_a_second_run_and_a_row_that_kills_all_fails(tmp_path):
    with workers() as client:  # two of its own: another test retires one
        box = Parallel(Troubled(tmp_path), client.get_executor, block=2)
        state = rows(FINE, FINE, KILL_ONCE, FINE, FINE)
        plain = state.copy()
        plain[:, 1] = FINE
        np.testing.assert_array_equal(box(state), in_blocks(tmp_path, plain, 2))
        assert len(Troubled(tmp_path).rows_run()) >= 7  # Dask runs it again by itself, and does not tell
        assert box.ledger.rows_run == 5
        state = rows(FINE, FINE, FINE, KILL)
        box = Parallel(Troubled(tmp_path), client.get_executor, block=1)
        result = box.run_rows((torch.from_numpy(state),))
        assert {row: why.failure for row, why in result.failed.items()} == {3: Failure.LOST}
        np.testing.assert_array_equal(result.outputs[0][:3], in_blocks(tmp_path, plain[:3], 1))
