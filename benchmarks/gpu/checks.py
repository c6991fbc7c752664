"""The part that checks: the tests for a GPU, with two processes on one card among them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Place

ROOT = Path(__file__).parents[2]


def tests(place: Place) -> dict[str, Any]:
    """`pytest -m gpu`, its last line and the names of what failed.

    Raises:
        RuntimeError: No test ran.
    """
    asked = ["-m", "gpu", "tests"]
    if place.device == "cpu":
        asked = ["-m", "slow", "tests/gpu/test_cuda.py", "-k", "cpu and resumed"]
    # Plugins of a machine that is not ours import what tests do not see: see `tests/needs.py`.
    ours = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = ["-p", "pytest_timeout", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-rfs", *plugins, *asked]
    ran = subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True, check=False)
    counts = {
        what: int(many) for many, what in re.findall(r"(\d+) (passed|failed|skipped|error)", ran.stdout)
    }
    if ran.returncode not in (0, 1) or not counts.get("passed", 0) + counts.get("failed", 0):
        raise RuntimeError(f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-1500:]}")
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    rows = [{"tests": what, "number": many} for what, many in counts.items()]
    return {"rows": [*rows, *({"failed": line} for line in failed)], "output": ran.stdout[-6000:]}
