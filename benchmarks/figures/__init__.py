"""The figures that pages state, each under a name: computed from the committed results, kept in one file.

`python -m benchmarks page` writes `benchmarks/results/figures.json`, and brings up to date the numbers that
pages have marked: `1.01<!--=replay.20-->`, see `marks`. Each module here computes those of one group of
results. Who mends a sentence looks a name up in the file; a name that ends otherwise than by its problem is
of all problems: a median, `.worst`, `.best`, `.low` and `.high` (95 % by a bootstrap).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from benchmarks import protocol
from benchmarks.figures import applications, budget, checks, closed_loop, mosaic, rows, tangents, twins
from tasks.folder import atomic

FILE = protocol.RESULTS / "figures.json"


def computed() -> dict[str, float]:
    """All figures by name, in the order of the alphabet, to six digits."""
    groups = (rows, budget, tangents, checks, closed_loop, applications, mosaic, twins)
    every = {name: value for group in groups for name, value in group.figures().items()}
    return {name: _rounded(every[name]) for name in sorted(every)}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) or not math.isfinite(value) else float(f"{value:.6g}")


def written(figures: Mapping[str, float]) -> str:
    """The text of the file, a line for each figure."""
    return json.dumps(figures, indent=1) + "\n"


def write() -> dict[str, float]:
    """Write the file; what is in it."""
    figures = computed()
    atomic.write_bytes(FILE, written(figures).encode())
    return figures


def kept() -> dict[str, float]:
    """The figures that the file holds, by name."""
    return json.loads(FILE.read_text(encoding="utf-8"))
