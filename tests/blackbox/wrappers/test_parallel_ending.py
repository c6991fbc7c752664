"""What is left of a `Parallel` that ends: of one that is killed, or interrupted, no worker and no program."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import CommandLine
from blackbox.failures import Failure
from blackbox.wrappers import Parallel, RateLimited, Retrying
from tests.blackbox.wrappers.troubled import HANG, Troubled, alive, rows
from tests.waiting import interrupted_once, wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.needs("linux")]

SCRIPT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from blackbox.wrappers import Parallel
from tests.blackbox.wrappers.test_parallel_ending import X, program

def loky_pool():
    import loky
    return loky.get_reusable_executor(2)

if __name__ == "__main__":
    kind, folder, in_flight = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    context = None if kind == "loky" else multiprocessing.get_context(kind)
    pool = loky_pool if kind == "loky" else partial(ProcessPoolExecutor, 2, mp_context=context)
    box = Parallel(program(folder), pool, in_flight=in_flight)
    box(X)
"""
X = np.ones((4, 1))


def program(folder: Path, seconds: float = 600.0) -> CommandLine:
    """Writes its process number into the folder `programs`, and waits."""
    (folder / "programs").mkdir(exist_ok=True)
    return CommandLine(
        ["sh", "-c", f"touch {folder}/programs/$$; sleep {seconds}; echo y: 1"],
        [ArraySpec("x", (1,))],
        [ArraySpec("y", (1,))],
        input_templates={"i.txt": "{x}"},
        output_templates={"stdout.txt": "y: {y}"},
        scratch=folder,
        failures="keep",
    )


def programs(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "programs").glob("*")]


def children(process: int) -> list[int]:
    """Of a process, those of its children too."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        own = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return own + [grandchild for child in own for grandchild in children(child)]


def test_workers_of_a_process_that_is_killed_end_with_it(tmp_path):
    context = multiprocessing.get_context("fork")
    owner = os.fork()
    if owner == 0:
        try:
            box = Parallel(Troubled(tmp_path), partial(ProcessPoolExecutor, 2, mp_context=context))
            box(rows(HANG, HANG, HANG))
        finally:
            os._exit(0)
    box = Troubled(tmp_path)
    try:
        wait_until(lambda: len(box.workers()) == 2)
        assert all(map(alive, box.workers()))
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    wait_until(lambda: not any(map(alive, box.workers())))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver", "loky"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
@pytest.mark.parametrize("in_flight", [1, 2], ids=["one-is-idle", "both-at-work"])
def test_a_killed_parent_takes_workers_and_their_programs_with_it(tmp_path, kind, how, in_flight):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script), kind, str(tmp_path), str(in_flight)]
    parent = subprocess.Popen(command, env=environment)
    try:
        wait_until(lambda: len(programs(tmp_path)) == in_flight)
        time.sleep(0.5)  # another worker may just be starting
        family = children(parent.pid)
        assert set(programs(tmp_path)) <= set(family)
    finally:
        parent.send_signal(how)
        parent.wait()
    wait_until(lambda: not any(map(alive, [*family, *programs(tmp_path)])))
    wait_until(lambda: not list(tmp_path.glob("blackbox-*")))


def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


STACKS: dict[str, Callable[[CommandLine], Parallel]] = {
    "rows": lambda box: Parallel(box, threads),
    "blocks": lambda box: Parallel(box, threads, block=2),
    "threads-in-threads": lambda box: Parallel(Parallel(box, threads), threads, block=4),
    "retried": lambda box: Parallel(Retrying(box, attempts=9, backoff=600.0), threads),
    "rate-limited": lambda box: Parallel(RateLimited(box, 0.001, block=1), threads, block=2),
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_first_interrupt_ends_programs_that_threads_wait_for(tmp_path, stack):
    before_it, box = threading.active_count(), STACKS[stack](program(tmp_path))
    count = 1 if stack == "rate-limited" else 2
    with interrupted_once(lambda: len(programs(tmp_path)) == count), pytest.raises(KeyboardInterrupt):
        box(X)
    if isinstance(box.box, Parallel):
        box.box.close()  # its threads are idle
    wait_until(lambda: threading.active_count() == before_it)  # Python waits for them when it exits
    wait_until(lambda: not any(map(alive, programs(tmp_path))))
    wait_until(lambda: not list(tmp_path.glob("blackbox-*")))
    assert len(programs(tmp_path)) == count  # rows that had not begun start none


def test_a_program_of_a_row_that_is_given_up_ends_and_its_thread_with_it(tmp_path):
    box = Parallel(program(tmp_path), threads, timeout=0.3)
    outcome = box.run_rows((torch.ones(2, 1, dtype=torch.float64),))
    assert {why.failure for why in outcome.failed.values()} == {Failure.TIMED_OUT}
    wait_until(lambda: not any(map(alive, programs(tmp_path))))
    box.close()
