"""The smallest reference flows are computed in this process: others take longer to start than to work."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="package", autouse=True)
def one_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield
