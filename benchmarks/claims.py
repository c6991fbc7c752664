"""The figures that README and docs state, read where they stand, each beside what the committed results say.

No figure is written here: `in_table` and `in_text` say in which cell or words of a page one stands, and which
committed value it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from statistics import fmean, geometric_mean, median, stdev
from typing import Any

from benchmarks import protocol
from benchmarks.catalogue import read
from benchmarks.mosaic.comparison import gain
from benchmarks.rows.report import BOUND, BY_STEPS, FOLDER, NOT_RUN, over, over_bound, over_tuned
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED
from benchmarks.tangents.problems import CONTROLLERS
from benchmarks.tangents.report import ratios, spent

UNCORRECTED = "tangents_uncorrected.json"
SEVERAL_CHOSEN_ON = {  # problems and seeds on which the rule of `zo.RatePopulation` was chosen; decision 143
    *((name, "3") for name in ("bicycle", "coupled-map", "double-pendulum", "henon-heiles", "shallow-water")),
    *(("torque-pendulum", seed) for seed in ("3", "4", "5")),
}
NO_SUCH = "none"  # in a cell for what does not exist, such as a design's box alone


@dataclass(frozen=True)
class Figure:
    """Ours: a value for each seed; none where it was not run."""

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Over the seeds; NaN where it was not run."""
        return fmean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Claim:
    """A figure that a page states.

    Attributes:
        page: From the repository's root.
        what: In words.
        stated: As it is read there.
        ours: From the committed results.
        source: The file in `benchmarks/results`; a sentence where there is none.
    """

    page: str
    what: str
    stated: str
    ours: Figure
    source: str

    @property
    def difference(self) -> str:
        """In a sentence."""
        if not self.ours.values:
            return "not run"
        number = float(self.stated.replace(",", ""))
        decimals = len(self.stated.partition(".")[2])
        off = self.ours.mean - number
        if abs(off) <= 0.5 * 10.0**-decimals + 1e-9:
            return "The same, rounded as there."
        return f"Ours is {abs(off):.2g} {'above' if off > 0 else 'below'} it."


def line(name: str, label: object, method: str) -> dict[str, Any] | None:
    """A line of a reproduction's table; None where it was not run."""
    lines = read(f"{name}/result.json").get("table", ())
    return next((entry for entry in lines if (entry["label"], entry["method"]) == (label, method)), None)


def figure(file: str, table: str, column: str, /, unit: float = 1.0, **where: object) -> Figure:
    """The values of a column in the rows of a file's table, such as a row for each seed.

    Args:
        file: In `benchmarks/results`.
        table: Its name in the file, or several with "/" between; a table of one row may be the row itself.
        column: Of the rows, or of what they have in "extra"; with "/" between names a value further in.
        unit: In which the values are.
        **where: What other columns hold in these rows.
    """
    entries: Any = read(file)
    for name in table.split("/"):
        entries = entries.get(name, {})
    values = []
    for row in entries if isinstance(entries, list) else [entries] if entries else []:
        if all(row[name] == wanted for name, wanted in where.items()):
            value: Any = {**row.get("extra", {}), row.get("metric"): row.get("value"), **row}
            for name in column.split("/") if column not in value else (column,):
                value = value[name]
            values.append(value)
    return Figure() if None in values else Figure(tuple(value / unit for value in values))


def ratio(one: Figure, other: Figure) -> Figure:
    """Of the means."""
    return Figure((one.mean / other.mean,)) if one.values and other.values else Figure()


# Where figures stand

ROOT = Path(__file__).parents[1]
NUMBER = r"(-?(?:\d[\d,]*)?\.?\d+)"
Ours = Callable[[Any, Any], tuple[Figure, str]]
"""(row, column) -> the figure and its file."""


@cache
def text(page: str) -> str:
    """Of a page; without the signs of bold."""
    return (ROOT / page).read_text(encoding="utf-8").replace("**", "")


def in_table(
    page: str, behind: str, rows: Sequence[Any], columns: Mapping[int, Any], ours: Ours
) -> Iterator[Claim]:
    """The numbers at the beginning of cells of a table; "not run" stands where there is none.

    Args:
        page: From the repository's root.
        behind: Words of the page; the first table behind them is read.
        rows: What each row is, in their order; None for one that is not looked at.
        columns: Place of a column -> what it is; the first is 0.
        ours: The figure of a row and a column.

    Raises:
        ValueError: The table has other rows, or a cell no number.
    """
    lines = text(page).partition(behind)[2].splitlines()
    first = next((number for number, text_line in enumerate(lines) if text_line.startswith("|")), len(lines))
    cut = [
        text_line.split("|")[1:-1]
        for text_line in takewhile(lambda line: line.startswith("|"), lines[first:])
    ]
    if len(cut) != len(rows) + 2:
        raise ValueError(
            f"{page}: expected a table of {len(rows)} rows behind {behind!r}, got {len(cut) - 2}."
        )
    for cells, row in zip(cut[2:], rows, strict=True):
        for place, column in columns.items() if row is not None else ():
            stated = re.match(NUMBER, cells[place].strip())
            if cells[place].strip() in (NOT_RUN, NO_SUCH) and not ours(row, column)[0].values:
                continue
            if stated is None:
                raise ValueError(f"{page}: expected a number in {cells[0].strip()!r}, got {cells[place]!r}.")
            yield Claim(page, f"{cells[0].strip()}: {cut[0][place].strip()}", stated[1], *ours(row, column))


def in_text(page: str, words: str, *ours: tuple[Figure, str]) -> Iterator[Claim]:
    """Numbers among words.

    Args:
        page: From the repository's root.
        words: Of the page, with # in the place of each number; they stand there once.
        *ours: The figure and its file for each.

    Raises:
        ValueError: The words are not there, or more than once.
    """
    pattern = r"\s+".join(re.escape(word).replace(r"\#", NUMBER) for word in words.split())
    matches = list(re.finditer(pattern, text(page)))
    if len(matches) != 1:
        raise ValueError(f"{page}: expected {words!r} once, got it {len(matches)} times.")
    for stated, (figure_, file) in zip(matches[0].groups(), ours, strict=True):
        yield Claim(page, words, stated, figure_, file)


# What they are

README, BOXES = "README.md", "docs/applications/boxes.md"
TANGENTS, SPEED = "docs/concepts/learned_tangents.md", "docs/guide/evaluators.md"
PRIOR_ART = "docs/reference/prior_art.md"
WAKE, DEFENCE = "docs/applications/wake_flow.md", "docs/applications/denoised_smoothing.md"
IMAGES = "docs/applications/image_classification.md"
MOSAIC = "docs/applications/mosaic.md"


def claims() -> list[Claim]:
    """All of them, in the order of the pages."""
    return [
        *_readme(),
        *_tangents(),
        *_steps(),
        *_queries(),
        *_wake(),
        *_defence(),
        *_safeguard(),
        *_images(),
        *_mosaic(),
    ]


def _mean(file: str, column: str, /, unit: float = 1.0, **where: object) -> tuple[Figure, str]:
    """A column of a file's table."""
    return figure(file, "table", column, unit, **where), file


def _readme() -> Iterator[Claim]:
    demo, grids = "wake_flow_demo.json", "wake_flow_small.json"
    zo_over_fo = [
        (ratio(*(_mean(grids, column, method=name)[0] for name in ("ZO-SOL", "FO-SOL"))), grids)
        for column in ("rows", "value")
    ]
    names = ("TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800")
    errors = [_mean(demo, "value", method=name) for name in names]
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
        rows, middle, least, worst, count = _over_all("tangents", method)
        said = f"{words} | # | median # of # problems, # to # |"
        yield from in_text(README, said, rows, middle, count, least, worst)
    alone = [
        fmean(over_first)
        for name in read(UNCORRECTED).get("errors", {})
        if (over_first := _alone(name, _first_order(name), fmean)[0].values)
    ]
    values = (median(alone), len(alone), min(alone), max(alone))
    said = "does not always | 0 | median # of # problems, # to # |"
    yield from in_text(README, said, *((Figure((value,)), UNCORRECTED) for value in values))
    measured = _of_steps()
    errors = {name: over_tuned(result, "replay, 0.2") for name, result in measured.items()}
    ends = [error for error in errors.values() if error is not None]
    rows = [over(result, "replay, 0.2", "rows", AS_BENCHMARKED) for result in measured.values()]
    values = (median(filter(None, rows)), median(ends), len(ends), min(ends), max(ends))
    said = "or more | # | median # of # problems, # to #, against"
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    kinds = [
        [e for n, e in errors.items() if e is not None and (n in CONTROLLERS) == c] for c in (False, True)
    ]
    beyond = [*ends, *_beyond()]
    values = (len(kinds[0]), median(kinds[0]), len(kinds[1]), median(kinds[1]))
    values = (*values, len(beyond), median(beyond), min(_beyond()), max(_beyond()))
    said = (
        "# corrections (#) and # controllers (#), three seeds each; with three solvers of Mosaic and two "
        "closures the median of # is # (these # to #)"
    )
    yield from in_text(README, said, *((Figure((value,)), "rows/steps/table.md") for value in values))
    again = [_over_all("tangents/fresh", method) for method in ("chosen", "no-gradient")]
    middles, worst = [figures[1] for figures in again], [figures[3] for figures in again]
    yield from in_text(README, "medians of # and #, worst # and #.", *middles, *worst)


@cache
def _of_rows() -> dict[str, dict[str, Any]]:
    """What `python -m benchmarks rows` measured, by problem."""
    names = (path.relative_to(protocol.RESULTS).as_posix() for path in sorted(FOLDER.glob("*.json")))
    results = {Path(name).stem: read(name) for name in names}
    return {name: result for name, result in results.items() if over_tuned(result, "replay, 0.2") is not None}


@cache
def _of_steps() -> dict[str, dict[str, Any]]:
    """What `python -m benchmarks rows --steps` measured, by problem."""
    folder = BY_STEPS.relative_to(protocol.RESULTS).as_posix()
    return {path.stem: read(f"{folder}/{path.name}") for path in sorted(BY_STEPS.glob("*.json"))}


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


def _over_all(folder: str, method: str) -> list[tuple[Figure, str]]:
    """Rows and error over first order's: medians, least and worst error, number of problems of size small."""
    curves = [
        read(path.relative_to(protocol.RESULTS).as_posix())["curves"]
        for path in sorted((protocol.RESULTS / folder).glob("*.json"))
        if not path.stem.endswith("-paper")
    ]
    ends = [fmean(seeds) for methods in curves if (seeds := ratios(methods, method))]
    rows = [share for methods in curves if (share := spent(methods, method)) is not None]
    values = (median(rows), median(ends), min(ends), max(ends), len(ends))
    return [(Figure((value,)), f"{folder}/table.md") for value in values]  # which is of the same files


def _steps() -> Iterator[Claim]:
    """What few steps and fresh batches buy, medians over the problems of a kind."""
    folder = BY_STEPS.relative_to(protocol.RESULTS).as_posix()
    measured = _of_steps()

    def bought(line: str, controllers: bool = True) -> list[float]:
        of_kind = [result for name, result in measured.items() if (name in CONTROLLERS) == controllers]
        return [error for result in of_kind if (error := over_tuned(result, line)) is not None]

    def figures(*values: float) -> list[tuple[Figure, str]]:
        return [(Figure((value,)), f"{folder}/table.md") for value in values]

    suggested, several = "replay, suggested rate", "replay, several rates"
    usual, at_once, alone = bought("replay, 0.05"), bought(f"{several}, 0.05"), bought("surrogate, 0.05")
    imagined = bought(f"{several}, imagined, 0.05")
    words = (
        "medians of # controllers: replays at the usual rate #, at several rates #, with imagined batches "
        "#, a surrogate alone #"
    )
    values = (len(alone), *map(median, (usual, at_once, imagined, alone)))
    yield from in_text("docs/which.md", words, *figures(*values))
    words = (
        "Over # controllers they are # in the median at the usual rate, # at several, # with imagined "
        "batches beside (worst #) and # by a surrogate alone (worst #)"
    )
    values = (len(alone), *map(median, (usual, at_once, imagined)), max(imagined), median(alone), max(alone))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    usual, at_once = bought("replay, 0.05", False), bought(f"{several}, 0.05", False)
    by_rule = bought(f"{suggested}, 0.05", False)
    words = (
        "Over # corrections errors at a twentieth of the rows are # in the median at the usual rate (worst "
        "#), # at several (worst #), and # at a rate that a rule suggests (worst #)"
    )
    several_each = [(median(each), max(each)) for each in (usual, at_once, by_rule)]
    values = (len(at_once), *(value for each in several_each for value in each))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))

    ends = {
        (name, seed): run[f"{several}, 0.05"]["error"] / run["replay, 0.05"]["error"]
        for name, result in measured.items()
        for seed, run in result["runs"].items()
        if f"{several}, 0.05" in run
    }
    others = [end for training, end in ends.items() if training not in SEVERAL_CHOSEN_ON]
    words = (
        "Training by training several rates end below one, the usual, in # of #, level with it in # and "
        "above in #, by a factor of # at most. Of the # on which nothing was chosen these are #, # and #, "
        "and the geometric mean is # of it."
    )
    below, level, above = _sides(ends.values())
    values = (below, len(ends), level, above, max(ends.values()))
    values = (*values, len(others), *_sides(others), geometric_mean(others))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    bounds = bought(BOUND, False)
    ends_of = {name: end for name, result in measured.items() if (end := over_bound(result)) is not None}
    beside = {name: end for name, end in ends_of.items() if name not in CONTROLLERS}
    steered = [end for name, end in ends_of.items() if name in CONTROLLERS]
    words = (
        "and the best of several rates # corrections end at # in the median at a twentieth; what is learned "
        "ends at # times that in the median, at # times on the Brusselator and # in different units."
    )
    values = (len(bounds), median(bounds), median(beside.values()), beside["brusselator"])
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values, beside["mixed-units"]))
    words = "# controllers end at # with it, and what is learned at # times that (worst #)."
    values = (len(steered), median(bought(BOUND)), median(steered), max(steered))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    fifth = [result for result in measured.values() if over_tuned(result, f"{several}, 0.2") is not None]
    pairs = [over_tuned(result, line) for line in (f"{several}, 0.2", "replay, 0.2") for result in fifth]
    known = [end for end in pairs if end is not None]
    middle = median(known[: len(fifth)]), median(known[len(fifth) :])
    words = "At a fifth of the rows # problems end at # in the median at several rates and # at one"
    yield from in_text("docs/howto/spend_rows.md", words, *figures(len(fifth), *middle))
    words = "At a twentieth they end at # and #, and at"
    yield from in_text("README.md", words, *figures(median(usual), median(bought("replay, 0.05"))))
    words = "at once at # and #."
    yield from in_text("README.md", words, *figures(median(at_once), median(bought(f"{several}, 0.05"))))


def _sides(ends: Iterable[float]) -> tuple[int, int, int]:
    """How many are below 1, within a hundredth of it, and above."""
    ends = list(ends)
    below, above = sum(end < 0.99 for end in ends), sum(end > 1.01 for end in ends)
    return below, len(ends) - below - above, above


def _tangents() -> Iterator[Claim]:
    rows, middle, least, worst, _ = _over_all("tangents/fresh", "chosen")
    words = "median # at # times the rows, from # to #;"
    yield from in_text(TANGENTS, words, middle, rows, least, worst)
    _, middle, least, worst, _ = _over_all("tangents/fresh", "no-gradient")
    yield from in_text(TANGENTS, "`no-gradient` #, from # to # (", middle, least, worst)

    def spent_well(name: str, line: str) -> tuple[Figure, str]:
        if line == UNCORRECTED:
            runs = [run[ALL_ROWS]["error"] for run in _of_steps()[name]["runs"].values() if ALL_ROWS in run]
            return _alone(name, runs, median)
        error = over_tuned(_of_steps()[name], line)
        return Figure(() if error is None else (error,)), f"rows/steps/{name}.json"

    replayed = sorted(_of_steps(), key=lambda name: over_tuned(_of_steps()[name], "replay, 0.2") or 0)
    lines = (UNCORRECTED, "first order, tuned, 0.2", "tangents, 0.2", "replay, 0.05", "replay, 0.2")
    lines = (*lines, "replay, several rates, 0.05", "replay, several rates, 0.2")
    columns = dict(enumerate(lines, start=2))
    yield from in_table(TANGENTS, "### What replay buys", (*replayed, None), columns, spent_well)

    def ours(name: str, what: tuple[str, str]) -> tuple[Figure, str]:
        file, (method, column) = f"tangents/{name}.json", what
        curves = read(file).get("curves", {})
        if method == UNCORRECTED:
            return _alone(name, _first_order(name), fmean)
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
    file, runs = f"tangents/{name}.json", _of_rows()[name]["runs"]
    curves = read(file).get("curves", {}).get("ni-gbms", {})
    parts = [curves[seed]["errors"][-1] / runs[seed][ALL_ROWS]["error"] for seed in curves if seed in runs]
    return Figure((median(parts),) if parts else ()), file


def _first_order(name: str) -> list[float]:
    """Errors of first order on a problem, by seed."""
    curves = read(f"tangents/{name}.json").get("curves", {}).get("first-order", {})
    return [curve["errors"][-1] for curve in curves.values()]


def _alone(
    name: str, errors: Sequence[float], middle: Callable[[Sequence[float]], float]
) -> tuple[Figure, str]:
    """The box alone over some errors of first order, the mean or the median; none for a design."""
    alone = read(UNCORRECTED).get("errors", {}).get(name)
    return Figure(
        () if alone is None or not errors else (middle([alone / error for error in errors]),)
    ), UNCORRECTED


def _queries() -> Iterator[Claim]:
    file = "query_speed.json"

    def ours(network: str, mode: str) -> tuple[Figure, str]:
        times = (
            figure(file, "measured", f"microseconds, mean/{name}", network=network, mode=mode)
            for name in ("published", "difference")
        )
        return ratio(*times), file

    networks = ("resnet20", "resnet56", "dncnn", "wake")
    yield from in_table(SPEED, "## Time of a query", networks, {1: "training", 2: "evaluation"}, ours)


def _wake() -> Iterator[Claim]:
    def ours(row: tuple[str, str], column: str) -> tuple[Figure, str]:
        return _mean(f"wake_flow_{row[0]}.json", column, method=row[1])

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


def _defence() -> Iterator[Claim]:
    def ours(row: tuple[str, str], radius: str) -> tuple[Figure, str]:
        case, method = row
        return _mean(f"table_defense-{case}.json", f"certified accuracy at r = {radius}", 0.01, method=method)

    def line(case: str, *methods: str) -> list[tuple[Figure, str]]:
        return [ours((case, method), radius) for method in methods for radius in RADII]

    columns = {2: "0", 3: "0.25", 4: "0.5"}
    methods = (
        "none",
        "mse",
        "zo-ds:dct",
        "zo-ds:dct@2500000",
        "deepzero",
        "student@5000",
        "student",
        "fo-ds",
    )
    rows = [("small-b-logits", method) for method in methods]
    yield from in_table(DEFENCE, "## What was measured", rows, columns, ours)
    labels = ("small-b-labels", "student"), ("small-b-labels", "zo-ds:wide")
    rows = [("small-b-probabilities-3", "student"), *labels]
    yield from in_table(DEFENCE, "less informative answers", rows, columns, ours)
    rows = [("few-b-logits", method) for method in ("mse", "student", "fo-ds")]
    yield from in_table(DEFENCE, "`--preset few`: half of", rows, columns, ours)
    fragile = [ours(("small-a-logits", method), "0.25") for method in ("none", "mse", "student", "fo-ds")]
    yield from in_text(DEFENCE, "none # ± .3, mse # ± 1.0, student # ± 1.7, fo-ds # ± .5.", *fragile)
    words = "#, # and # at r = 0, .25 and .5, where `mse` had #, # and #, and"
    yield from in_text(DEFENCE, words, *line("labels-b-labels", "student", "mse"))
    words = "`mse` has #, # and #, the student #, # and #, `fo-ds` #, # and #."
    yield from in_text(DEFENCE, words, *line("shapes-cnn-logits", "mse", "student", "fo-ds"))


RADII = ("0", "0.25", "0.5")


def _safeguard() -> Iterator[Claim]:
    """The table of a forest and an SVM: accuracy on noisy test images."""

    def ours(case: str, column: tuple[str, str], once: str = "") -> tuple[Figure, str]:
        file, (method, what) = f"denoised_smoothing_safeguard{once}.json", column
        return figure(file, f"boxes/{case}/lines", what, method=method), file

    methods = ("student@2500", "student", "zo-ds:rge", "zo-ds:wide")
    columns = dict(enumerate(((method, "test accuracy") for method in methods), 2))
    columns[1] = ("student@2500", "test accuracy, start")
    rows = ("forest, logits", "forest, labels", "svm, logits", "svm, labels")
    yield from in_table(DEFENCE, "20,000 queries\nunless stated otherwise:", rows, columns, ours)
    two = columns[2], columns[3]
    forest, svm = ([ours(f"{box}, labels", end, "-once") for end in two] for box in ("forest", "svm"))
    words = "ended at # ± .009 (2,500 queries) and # ± .004 (20,000), the SVM at # ± .005 and # ± .001."
    yield from in_text(DEFENCE, words, *forest, *svm)


def _images() -> Iterator[Claim]:
    def ours(name: str, method: str, *labels: object) -> list[tuple[Figure, str]]:
        return [_mean(f"{name}/result.json", "ours", label=label, method=method) for label in labels]

    def demo(method: str, column: str) -> tuple[Figure, str]:
        return _mean("image_classification_demo/result.json", column, method=method)

    rows = ("fo", "fo-sparse-gradient", "deepzero", "rge")
    yield from in_table(IMAGES, "The demo, one seed", rows, {1: "ours", 2: "queries"}, demo)
    both = [ours("shapes_sparse", method, 0.99)[0] for method in ("deepzero", "fo-sparse-gradient")]
    yield from in_text(IMAGES, "The means are # ± 8.3 and # ± 2.6,", *both)
    sizes = (3700, 6670, 9640)
    cge, fo, rge = (ours("figure2_cge_vs_rge", method, *sizes) for method in ("cge", "fo", "rge"))
    pairs = [mean for pair in zip(cge, fo, strict=True) for mean in pair]
    words = "(# / #, # / #, # / # %), and RGE with as many queries at (#, #, #)"
    yield from in_text(IMAGES, words, *pairs, *rge)
    yield from in_text(IMAGES, "CGE falls to # %", *ours("table_smoothing_parameter", "cge", 0.5))
    words = "RGE rises from # % at one query a step to # % at 500"
    yield from in_text(IMAGES, words, *ours("table_query_number", "rge", 1, 500))
    deepzero, exact, fixed = (
        ours("figure4_sparsity", method, 0.9, 0.95, 0.99)
        for method in ("deepzero", "fo-sparse-gradient", "fo-sparse-weight")
    )
    yield from in_text(
        IMAGES, "deepzero ends at # / # / # %, exact gradients on its sets at # / # / #", *deepzero, *exact
    )
    yield from in_text(IMAGES, "GraSP's fixed mask at # / # / #.", *fixed)
    means = [
        ours("shapes_sparsity", method, label)[0]
        for method, label in (
            *(("fo-sparse-gradient", share) for share in (0.9, 0.95, 0.99)),
            *(("fo-sparse-weight", share) for share in (0.9, 0.95, 0.99)),
            ("fo", 0.0),
        )
    ]
    words = (
        "sets end at #, # and # %, a fixed mask at #, # and #, the last of which is chance, first order on "
        "all weights at #."
    )
    yield from in_text(IMAGES, words, *means)
    methods = ("deepzero", "pattern-search", "dfa", "fa", "align-ada", "forward-gradient", "fo")
    words = (
        "deepzero # %, pattern search with as many queries #, direct feedback alignment #, feedback "
        "alignment #, Align-ada #, forward gradients #, first order on all weights #."
    )
    means = [ours("figure3_baselines", method, "ResNet")[0] for method in methods]
    yield from in_text(IMAGES, words, *means)


def _mosaic() -> Iterator[Claim]:
    def ends(solver: str, *columns: str) -> list[tuple[Figure, str]]:
        """Of each column a figure for each seed."""
        file = f"mosaic/{solver}.json"
        values = (figure(file, f"cells/{column}/runs", "final").values for column in columns)
        return [(Figure((value,)), file) for seeds in values for value in seeds]

    def ahead(solver: str, column: str, over: str) -> tuple[Figure, str]:
        file = f"mosaic/{solver}.json"
        found = gain(read(file), column, over)
        return Figure(() if found is None else (found,)), file

    four = "NOG, four windows", "WIG, four windows", "tangents with replay"
    words = "NOG ends at #, # and # and WIG at #, # and #, where replay has #, # and #:"
    yield from in_text(MOSAIC, words, *ends("jax-cfd", *four))
    words = "NOG has #, # and # with four windows, and replay #, # and #:"
    yield from in_text(MOSAIC, words, *ends("phiflow", four[0], four[-1]))
    through = "# in 1,080 rows, `fit_field` by default at #"
    space = [f"{method}: velocity in 3-D, Exponax" for method in ("adjoint, L-BFGS", "fit_field")]
    found = [figure("mosaic/field.json", f"cells/{name}/runs", "error") for name in space]
    words = f"L-BFGS on its own derivative ends at {through} in 60."
    yield from in_text(MOSAIC, words, *((each, "mosaic/field.json") for each in found))
    words = "is worth # % over NOG there, and tangents with replay are # % ahead of NOG"
    columns = "WIG", "tangents with replay"
    yield from in_text(MOSAIC, words, *(ahead("phiflow", column, "NOG") for column in columns))
