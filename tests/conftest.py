"""What every test begins with."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """What an earlier test compiled makes no choice of this one cheaper: as in a process of its own."""
    from zo.evaluators.difference.compiling import Compiled  # typeguard's hook is older than this import

    monkeypatch.setattr(Compiled, "programs", 0)
