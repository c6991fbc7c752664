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
    asked = ["-m", "gpu", "tests/gpu"]
    if place.device == "cpu":
        asked = ["-m", "slow", "tests/gpu/test_cuda.py", "-k", "cpu and resumed"]
    # Plugins of a machine that is not ours import what tests do not see: see `tests/needs.py`.
    ours = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    plugins = ["-p", "pytest_timeout", "-p", "xdist", "-n", "4", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-v", "-rfEs", "--tb=short", *plugins, *asked]
    said = place.scratch / "tests.txt"
    try:
        with said.open("w") as file:
            code = subprocess.run(
                command, cwd=ROOT, env=ours, stdout=file, stderr=file, check=False
            ).returncode
    finally:
        output = said.read_text()
        place.so_far["output"] = output[-6000:]
    counts = {what: int(many) for many, what in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    if code not in (0, 1) or not counts.get("passed", 0) + counts.get("failed", 0):
        raise RuntimeError(f"pytest ended with {code}: {output[-1500:]}")
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    rows = [{"tests": what, "number": many} for what, many in counts.items()]
    return {"rows": [*rows, *({"failed": line} for line in failed)], "output": output[-6000:]}
