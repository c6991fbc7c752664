"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once something is so; fail where it is not within so many seconds."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"it was not so within {seconds:g} s"
        time.sleep(0.02)
