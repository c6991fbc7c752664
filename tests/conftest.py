"""What every test begins with, and how a process ends that something keeps from ending."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from typing import Any

import pytest

PATIENCE = 120.0  # seconds after the last test
WORKERS: list[Any] = []  # pytest-xdist's, in the process that started them


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Python waits for threads and processes without end: say where it waits, and fail."""

    def end() -> None:
        time.sleep(PATIENCE)
        print(f"Still here {PATIENCE:g} s after the last test:", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(pytest.ExitCode.TESTS_FAILED)

    threading.Thread(target=end, daemon=True).start()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodeready(node: Any) -> None:
    """A worker has the same patience: pytest-xdist would kill it after ten seconds, without a word."""
    node.nodemanager.EXIT_TIMEOUT = PATIENCE + 30
    WORKERS.append(node)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Any:
    """How its workers ended is no matter to pytest-xdist: one that had to be killed fails the run."""
    result = yield  # pytest-xdist waits for them here
    ends = {node.gateway.id: node.gateway._io.wait() for node in WORKERS}
    for name, status in ends.items():
        if status:
            print(f"Worker {name} ended with status {status} after its tests.", file=sys.__stderr__)
    if any(ends.values()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    return result
