"""What every test begins with, and how a process ends that something keeps from ending."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time

import pytest

PATIENCE = 120.0  # seconds after the last test
CAME_TO = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Python waits for threads and processes without end: say where, and end with what the tests came to."""
    status = config.stash.get(CAME_TO, int(pytest.ExitCode.INTERNAL_ERROR))

    def end() -> None:
        time.sleep(PATIENCE)
        print(f"Still here {PATIENCE:g} s after the last test:", file=sys.__stderr__, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(status)

    threading.Thread(target=end, daemon=True).start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep it for `pytest_unconfigure`."""
    session.config.stash[CAME_TO] = int(exitstatus)
