"""The figures of README.md."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median

from benchmarks.catalogue import read
from benchmarks.claims.figures import Claim, Figure, mean_of, ratio
from benchmarks.claims.measured import UNCORRECTED, box_alone, first_order, over_all
from benchmarks.claims.pages import in_text
from benchmarks.rows.families import by_family
from benchmarks.rows.report import budgeted, over, over_tuned, results_of_steps
from benchmarks.rows.ways import AS_BENCHMARKED
from benchmarks.tangents.problems import CONTROLLERS

README = "README.md"


def of_readme() -> Iterator[Claim]:
    """The demo, and a line for each way to spend rows."""
    demo, grids = "wake_flow_demo.json", "wake_flow_small.json"
    zo_over_fo = [
        (ratio(*(mean_of(grids, column, method=name)[0] for name in ("ZO-SOL", "FO-SOL"))), grids)
        for column in ("rows", "value")
    ]
    names = ("TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800")
    errors = [mean_of(demo, "value", method=name) for name in names]
    said = "After 960 further rows TAN-SOL's error is # and FO-SOL's #; after 4,800 FO-SOL's is # ("
    yield from in_text(README, said, *errors)
    yield from in_text(
        README,
        "thousands of weights at most | # | #, the wake of 1,010 weights on the published grid",
        *zo_over_fo,
    )
    for words, method in (
        ("works around the box", "chosen"),
        ("is the box's gradient needed?", "no-gradient"),
    ):
        rows, middle, least, worst, count = over_all("tangents", method)
        said = f"{words} | # | median # of # problems, # to # |"
        yield from in_text(README, said, rows, middle, count, least, worst)
    alone = [
        fmean(over_first)
        for name in read(UNCORRECTED).get("errors", {})
        if (over_first := box_alone(name, first_order(name), fmean)[0].values)
    ]
    values = (median(alone), len(alone), min(alone), max(alone))
    said = "does not always | 0 | median # of # problems, # to # |"
    yield from in_text(README, said, *((Figure((value,)), UNCORRECTED) for value in values))
    measured = results_of_steps()
    lines = {name: ("replay, 0.2", "replay, several rates, 0.2", budgeted(name, 0.2)) for name in measured}
    at_one, at_several, at_budget = (
        {
            name: end
            for name, result in measured.items()
            if (end := over_tuned(result, lines[name][which])) is not None
        }
        for which in range(3)
    )
    ends, spent = list(at_one.values()), list(at_budget.values())
    rows = [over(result, "replay, 0.2", "rows", AS_BENCHMARKED) for result in measured.values()]
    values = (median(filter(None, rows)), median(spent), len(spent), min(spent), max(spent))
    said = "for all of it | # | median # of # problems, # to #, at [several"
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    together = [median(each) for each in by_family(at_budget).values()]
    said = "With variants of one simulator taken together line 1 is # of #."
    values = (median(together), len(together))
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    values = (median(ends), min(ends), max(ends))
    said = "where they cost nothing; # (# to #) at one rate alone, against first order"
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    seconds = [
        median(
            filter(
                None,
                (over(measured[n], lines[n][which], "seconds", AS_BENCHMARKED) for n in measured),
            )
        )
        for which in (2, 0)
    ]
    said = "All of it takes # times first order's processor time in the median, one rate alone #."
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in seconds))
    corrections, controllers = (
        [
            [end for name, end in each.items() if (name in CONTROLLERS) == steered]
            for each in (at_budget, at_several, at_one)
        ]
        for steered in (False, True)
    )
    beyond = [*ends, *_beyond()]
    values = (len(corrections[0]), median(corrections[0]), median(corrections[2]))
    values = (*values, len(controllers[0]), *map(median, controllers))
    values = (*values, len(beyond), median(beyond), min(_beyond()), max(_beyond()))
    said = (
        "# corrections (#, at one rate #) and # controllers (#, without imagined batches #, at one rate #), "
        "three seeds each, the wake one; at one rate with three solvers of Mosaic and two closures the "
        "median of # is # (these # to #)"
    )
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    again = [over_all("tangents/fresh", method) for method in ("chosen", "no-gradient")]
    middles, worst = [figures[1] for figures in again], [figures[3] for figures in again]
    yield from in_text(README, "medians of # and #, worst # and #.", *middles, *worst)


def _beyond() -> list[float]:
    """Replays at a fifth of the rows over the own derivative at all: Mosaic's solvers, and two closures.

    Of Mosaic's solvers over WIG, of the closures over batches of one row; medians over the seeds.
    """
    found = []
    for solver in ("jax-cfd", "phiflow", "xlb"):
        cells = read(f"mosaic/{solver}.json")["cells"]
        both = zip(*(cells[column]["runs"] for column in ("tangents with replay", "WIG")), strict=True)
        found.append(median(own["final"] / exact["final"] for own, exact in both))
    python = read("closure.json")["lines"]
    lines = "learned tangents, batches of 1, a fifth, 4 replays", "first order, batches of 1"
    both = zip(*(python[line]["0.003"] for line in lines), strict=True)
    found.append(median(own["error"] / exact["error"] for own, exact in both))
    program = read("lorenz96.json")["lines"]
    own, exact = (
        program[line]
        for line in ("tangents, batches of 1, a fifth, 4 replays of all rows", "adjoint, batches of 1")
    )
    return [*found, median(own[seed]["error"] / exact[seed]["error"] for seed in own)]
