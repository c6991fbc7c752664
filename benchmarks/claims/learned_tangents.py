"""What tangents end at, on four pages: what they are, their applications, prior art."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from benchmarks.catalogue import read
from benchmarks.claims.figures import Claim, Figure
from benchmarks.claims.measured import UNCORRECTED, box_alone, first_order, over_all
from benchmarks.claims.pages import in_table, in_text
from benchmarks.rows.report import budgeted, over_tuned, results, results_of_steps
from benchmarks.rows.ways import ALL_ROWS
from benchmarks.tangents.report import ratios, spent

BOXES, TANGENTS = "docs/applications/boxes.md", "docs/concepts/learned_tangents.md"
PRIOR_ART = "docs/reference/prior_art.md"
BUDGET = "as a run with a number of rows does"


def of_learned_tangents() -> Iterator[Claim]:
    """Errors over those of first order, on problems of several kinds."""
    rows, middle, least, worst, _ = over_all("tangents/fresh", "chosen")
    words = "median # at # times the rows, from # to #;"
    yield from in_text(TANGENTS, words, middle, rows, least, worst)
    _, middle, least, worst, _ = over_all("tangents/fresh", "no-gradient")
    yield from in_text(TANGENTS, "`no-gradient` #, from # to # (", middle, least, worst)

    measured = results_of_steps()

    def spent_well(name: str, line: str) -> tuple[Figure, str]:
        if name == "median":
            every = [() if line == UNCORRECTED else spent_well(each, line)[0].values for each in measured]
            ends = [values[0] for values in every if values]
            return Figure((median(ends),) if ends else ()), "rows/steps/table.md"
        if line == UNCORRECTED:
            runs = [run[ALL_ROWS]["error"] for run in measured[name]["runs"].values() if ALL_ROWS in run]
            return box_alone(name, runs, median)
        error = over_tuned(measured[name], budgeted(name, 0.2) if line == BUDGET else line)
        return Figure(() if error is None else (error,)), f"rows/steps/{name}.json"

    replayed = sorted(measured, key=lambda name: over_tuned(measured[name], "replay, 0.2") or 0)
    lines = (UNCORRECTED, "first order, tuned, 0.2", "tangents, 0.2", "replay, 0.05", "replay, 0.2")
    lines = (*lines, "replay, several rates, 0.05", "replay, several rates, 0.2", BUDGET)
    columns = dict(enumerate(lines, start=2))
    yield from in_table(TANGENTS, "### What replay buys", (*replayed, "median"), columns, spent_well)

    def ours(name: str, what: tuple[str, str]) -> tuple[Figure, str]:
        file, (method, column) = f"tangents/{name}.json", what
        curves = read(file).get("curves", {})
        if method == UNCORRECTED:
            return box_alone(name, first_order(name), fmean)
        cost = spent(curves, method)
        rows = Figure() if cost is None else Figure((cost,))
        return rows if column == "rows" else Figure(tuple(ratios(curves, method))), file

    problems = (
        "ks-26-8", "wake-30k", "gray-scott", "brusselator-20k", "shallow-water", "fitzhugh-nagumo-failing",
        "double-pendulum", "filter",
    )  # fmt: skip
    columns = {
        2: (UNCORRECTED, "error"),
        3: ("no-gradient", "error"),
        4: ("chosen", "error"),
        5: ("chosen", "rows"),
    }
    yield from in_table(BOXES, "# Eight boxes", problems, columns, ours)
    more = (
        "ks-26-8", "ks-26-8-unroll-8", "ks-52-12", "wake-30k", "wake-30k-unroll-16", "wake-260k",
        "wake-32x64", "gray-scott", "brusselator-20k", "shallow-water", "fitzhugh-nagumo-failing",
        "double-pendulum", "filter", "ks-3k", "ks-3k-noise", "wake-1k", "fitzhugh-nagumo",
        "fitzhugh-nagumo-noise", "coupled-map", "kuramoto-sivashinsky", "double-pendulum-wall", "van-der-pol",
        "mixed-units", "advection-reaction", "vorticity", "kolmogorov",
    )  # fmt: skip
    yield from in_table(TANGENTS, "## What was measured", more, columns, ours)
    said = (
        "it ends at # of first order's error from a quarter of each batch (thirteen\nsteps), at # from whole "
        "batches (three steps), where tangents end at #, no gradient through the box at # and the box alone "
        "at # ("
    )
    methods = ("evolution-30-quarter", "evolution-30", "chosen", "no-gradient", UNCORRECTED)
    yield from in_text(PRIOR_ART, said, *(ours("coupled-map", (method, "error")) for method in methods))
    said = (
        "it ends at # of\nfirst order's error (1.52, 2.69 and 1.52), where tangents end at # (at # times the "
        "rows)"
    )
    three = (("ni-gbms", "error"), ("chosen", "error"), ("chosen", "rows"))
    yield from in_text(PRIOR_ART, said, *(ours("double-pendulum", what) for what in three))
    others = ("ni-gbms", "chosen", "no-gradient")
    words = "it ends at # of first order's error, where tangents end at # and the cut gradient at # ("
    yield from in_text(
        PRIOR_ART, words, *(ours("kuramoto-sivashinsky", (method, "error")) for method in others)
    )
    words = "it ends at # of first order's error at the usual rate, and at # of that of first order tuned"
    yield from in_text(PRIOR_ART, words, ours("coupled-map", ("ni-gbms", "error")), _tuned("coupled-map"))
    ends = [ours("kuramoto-sivashinsky", (method, "error")) for method in ("equation", "chosen")]
    words = "# of first order's error with it alone (two seeds), where the default ended at # before (three)."
    yield from in_text(TANGENTS, words, *ends)


def _tuned(name: str) -> tuple[Figure, str]:
    """NI-GBMS's error over that of first order tuned at all rows, the median over the seeds."""
    file, runs = f"tangents/{name}.json", results()[name]["runs"]
    curves = read(file).get("curves", {}).get("ni-gbms", {})
    parts = [curves[seed]["errors"][-1] / runs[seed][ALL_ROWS]["error"] for seed in curves if seed in runs]
    return Figure((median(parts),) if parts else ()), file
