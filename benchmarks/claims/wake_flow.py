"""The figures of wake_flow.md."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import geometric_mean

from benchmarks.catalogue import read
from benchmarks.claims.figures import Claim, Figure, figure, mean_of
from benchmarks.claims.pages import in_table, in_text
from benchmarks.tangents.report import ratios, spent

WAKE = "docs/applications/wake_flow.md"


def of_wake_flow() -> Iterator[Claim]:
    """The demo, the rates that were tried, and the published grids."""

    def ours(row: tuple[str, str], column: str) -> tuple[Figure, str]:
        return mean_of(f"wake_flow_{row[0]}.json", column, method=row[1])

    demo = (
        *("SRC", "NON large", "TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800"),
        *("NON", "FO-SOL", "ZO-SOL"),
    )
    small = (
        "SRC", "NON", "PRE", "PRE-SR", "chain", "identity", "ZO-SOL", "TAN-SOL small", "FO-SOL", "NON large",
        "identity large", "TAN-SOL", "FO-SOL large",
    )  # fmt: skip
    rows = [("demo", method) for method in demo]
    yield from in_table(WAKE, "## The demo, three seeds", rows, {2: "value", 3: "rows"}, ours)
    paces = dict(enumerate(((1, 0.0005), (1, 0.001), (1, 0.002), (4, 0.001), (4, 0.002)), start=1))
    yield from in_table(WAKE, "seeds that are not in the table:", demo[2:5], paces, _tried)
    rows = [("small", method) for method in small]
    yield from in_table(WAKE, "## The published grids, three seeds", rows, {2: "value", 5: "rows"}, ours)
    file = "tangents/wake-32x64.json"
    curves = read(file)["curves"]
    errors = [Figure(tuple(ratios(curves, method))) for method in ("chosen", "no-gradient")]
    cost = spent(curves, "chosen")
    assert cost is not None
    words = (
        "end at # of first order's error with # times its rows, and with the gradient cut at the solver "
        "training ends at # ("
    )
    end_figures = (errors[0], Figure((cost,)), errors[1])
    yield from in_text(WAKE, words, *((end_figure, file) for end_figure in end_figures))
    rows = [("small", method) for method in ("SRC", "NON", "ZO-SOL", "FO-SOL")]
    yield from in_table(WAKE, "## The published figure", rows, {3: "value"}, ours)


def _tried(method: str, pace: tuple[int, float]) -> tuple[Figure, str]:
    """The validation error of a pace of the demo, the geometric mean over seeds."""
    where = {"batch": pace[0], "learning rate": pace[1]}
    errors = figure("wake_rows.json", "tried", "validation", 1.0, method=method, **where)
    return Figure((geometric_mean(errors.values),)) if errors.values else errors, "wake_rows.json"
