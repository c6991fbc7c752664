"""The report's figures and tables, from `benchmarks/results`; `python docs/paper/figures.py` draws them.

Figures and tables go into `docs/paper/figures`, which git ignores; each build of the site makes those anew
that are older than the results. Numbers in the report's text are marked as those of all pages are
(`benchmarks/figures/marks.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from paper.drawings import DRAWN  # noqa: E402
from paper.tables import TABLES  # noqa: E402

from benchmarks.figures.measured import RESULTS  # noqa: E402

FIGURES = HERE / "figures"


def sources() -> list[Path]:
    """What a figure or a table can come from."""
    decisions = (ROOT / "docs" / "decisions").glob("*.md")
    of_examples = (ROOT / "examples").glob("*/*.json")
    return [*HERE.glob("*.py"), *RESULTS.rglob("*.json"), *decisions, *of_examples]


def draw(kind: str = "svg") -> None:
    """Write figures and tables that are older than the results."""
    FIGURES.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in sources())
    old = [path for path in _files(kind) if not path.exists() or path.stat().st_mtime < newest]
    for path in old:
        if path.suffix == ".txt":
            path.write_text(TABLES[path.stem]() + "\n", encoding="utf-8")
            continue
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):
            about = {"Date": None} if kind == "svg" else None
            DRAWN[path.stem]().savefig(path, format=kind, dpi=130, metadata=about)


def _files(kind: str) -> list[Path]:
    return [FIGURES / f"{name}.{kind}" for name in DRAWN] + [FIGURES / f"{name}.txt" for name in TABLES]


if __name__ == "__main__":
    draw()
