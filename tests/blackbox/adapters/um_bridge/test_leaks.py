"""Thousands of calls at ten numbers each: threads, sockets and memory stay what they were."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from blackbox.adapters.um_bridge import UmBridge
from tests.blackbox.adapters.um_bridge.servers import served_elsewhere

pytestmark = pytest.mark.needs("linux")  # counts what it shows in /proc


def counts(process: int) -> tuple[int, int, float]:
    """Threads, open files and sockets, and MiB in memory of a process."""
    folder = Path(f"/proc/{process}")
    pages = int((folder / "statm").read_text().split()[1])
    size = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir())), size


@pytest.mark.slow
@pytest.mark.parametrize("calls", [50, 10_000])
def test_calls_leak_nothing(calls, record_property):
    with served_elsewhere("Cubes()") as (server, url):
        processes = {"client": os.getpid(), "server": server.pid}
        own_threads = threading.active_count()
        with UmBridge(url, connections=2) as box:
            x = np.linspace(-1, 1, 10)
            for _ in range(60):  # what is made once is made
                box(x)
                box(np.stack([x, -x]))
            gc.collect()
            before = {name: counts(pid) for name, pid in processes.items()}
            for _ in range(calls // 2):
                np.testing.assert_array_equal(box(np.stack([x, 2 * x])), [x**3, (2 * x) ** 3])
            gc.collect()
            after = {name: counts(pid) for name, pid in processes.items()}
        for name in processes:
            record_property(name, (before[name], after[name]))
            print(f"{name}: threads, files, MiB: {before[name]} -> {after[name]}")
            # Fewer where a thread of an earlier test has ended.
            assert all(now <= then for now, then in zip(after[name][:2], before[name][:2], strict=True))
            # A leak of one request's or answer's text a call, 200 bytes, would be 2 MiB in 10,000.
            assert after[name][2] - before[name][2] < 1.5
        assert threading.active_count() <= own_threads
