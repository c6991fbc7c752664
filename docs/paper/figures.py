"""Figures, tables and numbers of the report, and the figure of the front page, from `benchmarks/results`.

    python docs/paper/figures.py          what each name stands for, a line each; draws the figures, and
                                          brings the numbers up to date that pages show on a code host

Where the report's source has {{name}} the site's build puts `numbers()[name]`, or the table of that name.
Other pages have the number itself between comments, <!--=name-->1.02<!--/-->, so that they can be read
unbuilt too; the build puts today's there all the same. A name that is not there is an error, so no number of
the site can differ from the files. Figures go into `docs/paper/figures`, which git ignores. What decisions
measured by hand is read off the records.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.catalogue import BENCHMARKS  # noqa: E402
from benchmarks.rows import ALL_ROWS, AS_BENCHMARKED, best, results  # noqa: E402
from benchmarks.tangents.report import ratios, spent  # noqa: E402

RESULTS, FIGURES = ROOT / "benchmarks" / "results", HERE / "figures"
SAID_ON = ("index.md", "which.md", "howto/diagnose.md", "concepts/learned_tangents.md")
PAGES = {HERE / "index.md", *(ROOT / "docs" / name for name in SAID_ON)}
FOUND = r"(\d[\d,]*) of (\d[\d,]*)"
DRAWS = 10_000  # of a bootstrap
BLUE, SKY, ORANGE, GREY, GREEN = "#0072b2", "#56b4e9", "#e69f00", "#777777", "#009e73"
Problems = Mapping[str, Sequence[float]]  # problem -> a value for each seed

# What the files hold


@cache
def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@cache
def rows() -> dict[str, dict[str, Any]]:
    """`python -m benchmarks rows`: problem -> seed -> line -> what was measured, where replays were."""
    found = {name: own["runs"] for name, own in results().items()}
    return {name: runs for name, runs in found.items() if any("replay, 0.2" in run for run in runs.values())}


def over_tuned(line: str, against: str = ALL_ROWS) -> dict[str, list[float]]:
    """Error of a line over that of first order tuned at all rows, by problem and seed."""
    found = {
        name: [r[line]["error"] / r[against]["error"] for r in runs.values() if line in r and against in r]
        for name, runs in rows().items()
    }
    return {name: each for name, each in found.items() if each}


def beside(line: str, *others: str) -> dict[str, list[list[float]]]:
    """Errors of lines over that of first order tuned at all rows, where a seed has all: [line][seed]."""
    found = {}
    for name, runs in rows().items():
        both = [run for run in runs.values() if {line, *others, ALL_ROWS} <= set(run)]
        if both:
            found[name] = [
                [r[each]["error"] / r[ALL_ROWS]["error"] for r in both] for each in (line, *others)
            ]
    return found


@cache
def curves(folder: str = "tangents") -> dict[str, Any]:
    """`python -m benchmarks tangents --size small`: problem -> method -> seed -> a curve."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    found = {path.stem: read(f"{folder}/{path.name}") for path in paths}
    return {name: own["curves"] for name, own in found.items() if own["size"] == "small"}


def over_first(method: str, folder: str = "tangents") -> dict[str, list[float]]:
    """Error of a method over first order's with the same steps, by problem and seed."""
    found = {name: ratios(own, method) for name, own in curves(folder).items()}
    return {name: each for name, each in found.items() if each}


@cache
def trusts() -> list[tuple[float, float, bool]]:
    """All points of trainings: cosine to the true gradient, agreement of the last check, whether warned."""
    found = []
    for folder in ("tangents", "tangents/fresh"):
        for own in curves(folder).values():
            for curve in own.get("chosen", {}).values():
                for cosine, trust in zip(curve["cosines"], curve["trust"], strict=False):
                    agreement = trust.get("tangent_agreement")
                    if cosine is not None and agreement is not None and math.isfinite(agreement):
                        found.append((cosine, agreement, bool(curve["warned"])))
    return found


@cache
def record(number: int) -> str:
    """The text of a decision."""
    (path,) = (ROOT / "docs" / "decisions").glob(f"{number:04d}-*.md")
    return path.read_text(encoding="utf-8")


def found_of(number: int, line: str, behind: str = "## Figures") -> list[int]:
    """The pairs "m of n" in the line of a decision's table that begins with some words."""
    (row,) = [
        each for each in record(number).partition(behind)[2].splitlines() if each.startswith(f"| {line}")
    ][:1]
    return [int(each.replace(",", "")) for pair in re.findall(FOUND, row) for each in pair]


# Statistics


Average = Callable[[Sequence[float]], float]


def middle(own: Problems, over_seeds: Average = median) -> float:
    """The median over problems of the median (or mean) over seeds."""
    return median(over_seeds(each) for each in own.values())


FAMILY = {"double-pendulum-wall": "double-pendulum", "fitzhugh-nagumo-noise": "fitzhugh-nagumo"}
FAMILY |= {"fitzhugh-nagumo-failing": "fitzhugh-nagumo", "mixed-units": "lorenz-96"}
FAMILY |= {"brusselator-20k": "brusselator", "ks-3k": "ks-26-8", "ks-3k-noise": "ks-26-8"}
FAMILY |= dict.fromkeys(("wake-30k", "wake-30k-unroll-16", "wake-260k", "wake-32x64"), "wake-1k")
KERNELS = {  # where decision 77 compared kernels and perceptrons by test errors of seeds 0 to 2
    *("double-pendulum", "double-pendulum-wall", "van-der-pol", "mixed-units", "filter"),
}
LOOKED_AT = KERNELS | {  # where decisions 54, 55 and 61 compared rules of replay so, and their variants
    *("gray-scott", "brusselator", "brusselator-20k", "kuramoto-sivashinsky", "coupled-map", "lorenz-96"),
}


def families(own: Problems) -> dict[str, list[float]]:
    """Medians over seeds of problems, those that are variants of one simulator together."""
    found: dict[str, list[float]] = {}
    for name, each in own.items():
        found.setdefault(FAMILY.get(name, name), []).append(median(each))
    return found


def quartiles(own: Problems, over_seeds: Average = median) -> tuple[float, float]:
    """Over problems, of medians (or means) over seeds."""
    low, high = np.percentile([over_seeds(each) for each in own.values()], [25, 75])
    return float(low), float(high)


def interval(own: Problems, over_seeds: Average = median) -> tuple[float, float]:
    """95 % of `middle`, by a bootstrap of two stages: problems are drawn anew, and their seeds."""
    draw, seeds = np.random.default_rng(0), [np.asarray(each, dtype=float) for each in own.values()]
    average = np.median if over_seeds is median else np.mean
    drawn = [[average(draw.choice(each, (DRAWS, len(each))), axis=1)] for each in seeds]
    table = np.concatenate(drawn)  # (problems, DRAWS): of drawn seeds
    which = draw.integers(len(seeds), size=(len(seeds), DRAWS))
    low, high = np.percentile(np.median(np.take_along_axis(table, which, 0), axis=0), [2.5, 97.5])
    return float(low), float(high)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


def _summary(name: str, own: Problems, over_seeds: Average = median) -> dict[str, str]:
    (low, high), (least, most) = quartiles(own, over_seeds), interval(own, over_seeds)
    ends = sorted(over_seeds(each) for each in own.values())
    return {
        f"{name}": f"{middle(own, over_seeds):.2f}",
        f"{name}.quartiles": f"{low:.2f} to {high:.2f}",
        f"{name}.interval": f"{least:.2f} to {most:.2f}",
        f"{name}.problems": str(len(own)),
        f"{name}.trainings": str(sum(map(len, own.values()))),
        f"{name}.worst": f"{ends[-1]:.2f}",
        f"{name}.best": f"{ends[0]:.2f}",
        f"{name}.second": f"{ends[-2:][0]:.2f}",
        f"{name}.worst.seed": f"{max(max(each) for each in own.values()):.2f}",
    }


# The numbers


@cache
def numbers() -> dict[str, str]:
    """What each {{name}} of the report stands for."""
    found = {"problems": str(len(curves())), "unmeasured": str(len(curves()) - len(rows()))}
    for name, line in (
        ("fo.20", "first order, tuned, 0.2"),
        ("fo.05", "first order, tuned, 0.05"),
        ("fo", AS_BENCHMARKED),
        ("tangents.20", "tangents, 0.2"),
        ("tangents.05", "tangents, 0.05"),
        ("replay.20", "replay, 0.2"),
        ("replay.05", "replay, 0.05"),
    ):
        found |= _summary(name, over_tuned(line))
    found |= _summary("equal.20", over_tuned("replay, 0.2", "first order, tuned, 0.2"))
    found |= _summary("equal.05", over_tuned("replay, 0.05", "first order, tuned, 0.05"))
    found |= _summary("gain.20", over_tuned("replay, 0.2", "tangents, 0.2"))
    for share, line in (("20", "replay, 0.2"), ("05", "replay, 0.05")):
        own = over_tuned(line)
        found |= {f"families.{share}": f"{middle(families(own)):.2f}", "families": str(len(families(own)))}
        found[f"families.{share}.interval"] = "{:.2f} to {:.2f}".format(*interval(families(own)))
        medians = list(map(median, own.values()))
        found[f"replay.{share}.reach"] = str(sum(each <= 1.05 for each in medians))
        found[f"replay.{share}.below"] = str(sum(each <= 1 for each in medians))
    unseen = {name: own for name, own in over_tuned("replay, 0.2").items() if name not in LOOKED_AT}
    found |= _summary("unseen", unseen)
    fresh = {
        name: own[2:]
        for name, own in over_tuned("replay, 0.2").items()
        if own[2:] and name not in KERNELS | {"brusselator"}
    }
    found |= _summary("seed 2", fresh)
    gains = [each for own in over_tuned("replay, 0.2", "tangents, 0.2").values() for each in own]
    found["gain.better"] = str(sum(each < 0.995 for each in gains))
    equals = [each for own in over_tuned("replay, 0.2", "first order, tuned, 0.2").values() for each in own]
    found["equal.better"] = str(sum(each < 1 for each in equals))
    own = [run for runs in rows().values() for run in runs.values() if "replay, 0.2" in run]
    silent = [r for r in own if not r["replay, 0.2"]["warnings"]]
    found["replay.silent"] = f"{len(silent)} of {len(own)}"
    low, high = interval(over_tuned("replay, 0.2"))
    found["replay.20.contains"] = "contains" if low <= 1 <= high else "does not contain"
    found["replay.silent.worst"] = (
        f"{max(r['replay, 0.2']['error'] / r[ALL_ROWS]['error'] for r in silent):.2f}"
    )
    found["replay.rows"] = f"{median(r['replay, 0.2']['rows'] / r[AS_BENCHMARKED]['rows'] for r in own):.2f}"
    found["replay.seconds"] = f"{_over_problems('replay, 0.2', 'seconds', AS_BENCHMARKED):.1f}"
    found["replay.seconds.tuned"] = f"{_over_problems('replay, 0.2', 'seconds', ALL_ROWS):.1f}"
    found["replay.replays"] = f"{median(r['replay, 0.2']['replays'] for r in own):,.0f}"
    for mark, against in (("", AS_BENCHMARKED), (".tuned", ALL_ROWS)):
        saved = [
            (r["replay, 0.2"]["seconds"] - r[against]["seconds"])
            / (r[against]["rows"] - r["replay, 0.2"]["rows"])
            for r in own
        ]
        found[f"replay.even{mark}"] = f"{1000 * median(saved):.0f}"
        found[f"replay.even{mark}.most"] = f"{1000 * max(saved):.0f}"
    for share in ("0.2", "0.05"):
        for name, own in over_tuned(f"replay, {share}").items():
            found[f"{name}, {share}"] = f"{median(own):.2f}"
            found[f"{name}, {share}, seeds"] = _listed(own)
    return found | _tuning() | _controls() | _tangents() | _wake() | _trust() | _meshes()


COUNTS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def _counted(number: int) -> str:
    """In words up to twelve."""
    return COUNTS[number] if number < len(COUNTS) else str(number)


def _tuning() -> dict[str, str]:
    """How many seeds there are, what was not measured, and where in its grid first order's choice lies."""
    counts = [len(each) for each in over_tuned("replay, 0.2").values()]
    seeds = {count: counts.count(count) for count in sorted(set(counts), reverse=True)}
    said = [
        f"{_counted(count)} {'seeds' if count > 1 else 'seed'} of {_counted(number)}"
        for count, number in seeds.items()
    ]
    found = {"replay.20.seeds": ", ".join([f"{said[0]} problems", *said[1:]])}
    found |= {f"time.{name}": BENCHMARKS[name].time for name in ("tangents", "rows", "meshes")}
    found["unmeasured.names"] = ", ".join(sorted(set(curves()) - set(rows())))
    chosen = [run[ALL_ROWS] for runs in rows().values() for run in runs.values() if "replay, 0.2" in run]
    found["fo.one"] = f"{sum(each['batch'] == 1 for each in chosen)} of {len(chosen)}"
    found["fo.twice"] = f"{sum(each['rate'] == 2 for each in chosen)} of {len(chosen)}"
    wider, replay = {}, {}
    for name, runs in rows().items():
        for run in runs.values():
            if {"first order, wider, 1", "replay, 0.2"} <= set(run):
                most = best([run[ALL_ROWS], run["first order, wider, 1"]])["error"]
                wider.setdefault(name, []).append(most / run[ALL_ROWS]["error"])
                replay.setdefault(name, []).append(run["replay, 0.2"]["error"] / most)
    if wider:
        found |= _summary("wider", wider) | _summary("wider.replay", replay)
    return found


CONTROLS = ("no derivative", "model alone", "stored derivative", "true derivative")


def _controls() -> dict[str, str]:
    """What replays give with another derivative, beside the learned one's, of the same seeds."""
    found = {}
    for control in CONTROLS:
        for share in ("0.2", "0.05"):
            both = beside(f"replay, {control}, {share}", f"replay, {share}")
            for problem, (own, learned) in both.items():
                found[f"{problem}, {control}, {share}"] = f"{median(own):.2f}"
                found[f"{problem}, {control}, {share}, seeds"] = _listed(own)
                found[f"{problem}, beside {control}, {share}, seeds"] = _listed(learned)
            if both and share == "0.2":
                found |= _summary(control, {name: own for name, (own, _) in both.items()})
                found |= _summary(f"beside {control}", {name: own for name, (_, own) in both.items()})
                over = [a / b for own in both.values() for a, b in zip(*own, strict=True)]
                found[f"{control}.worse"] = f"{sum(each > 1.05 for each in over)} of {len(over)}"
                found[f"{control}.reach"] = str(sum(median(own) <= 1.05 for own, _ in both.values()))
    return found


def _over_problems(line: str, key: str, against: str) -> float:
    each = {
        n: [r[line][key] / r[against][key] for r in runs.values() if line in r] for n, runs in rows().items()
    }
    return middle(each)


def _listed(values: Sequence[float], form: str = ".2f") -> str:
    shown = [f"{each:{form}}" for each in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _tangents() -> dict[str, str]:
    found = {}
    for folder, mark in (("tangents", ""), ("tangents/fresh", "fresh.")):
        for method in ("chosen", "no-gradient"):
            found |= _summary(f"{mark}{method}", over_first(method, folder), fmean)
            cost = [each for own in curves(folder).values() if (each := spent(own, method)) is not None]
            found[f"{mark}{method}.rows"] = f"{median(cost):.2f}"
            cost = [s for own in curves(folder).values() if (s := spent(own, method, "seconds")) is not None]
            found[f"{mark}{method}.seconds"] = f"{median(cost):.1f}"
            for name, each in over_first(method, folder).items():
                found[f"{mark}{name}, {method}"] = f"{fmean(each):.2f}"
                found[f"{mark}{name}, {method}, seeds"] = _listed(each)
    for method in (
        "emulator-online",
        "emulator-frozen",
        "identity",
        "sparse-cge",
        "rge",
        "eggroll",
        "row-rge",
        "astralora",
    ):
        found |= _summary(method, over_first(method), fmean)
    near = {name: fmean(each) for name, each in over_first("no-gradient").items() if fmean(each) <= 1.03}
    found["no-gradient.enough"] = ", ".join(
        f"{name} ({near[name]:.2f})" for name in sorted(near, key=lambda each: near[each])
    )
    wall = curves()["double-pendulum-wall"]
    ends = [curve["errors"][-1] for curve in wall["first-order"].values()]
    found["wall.spread"] = f"{max(ends) / min(ends):.1f}"
    warned = [bool(curve["warned"]) for curve in wall["chosen"].values()]
    found["wall.warned"] = f"{sum(warned)} of {len(warned)}"
    (low, high) = quartiles(over_first("first-order-perturbed"))
    found["perturbed.quartiles"] = f"{low:.2f} to {high:.2f}"
    found["ks, perturbed"] = _listed(over_first("first-order-perturbed")["ks-26-8"])
    long = read("tangents/ks-26-8-paper.json")["curves"]
    for method, own in long.items():
        found[f"long, {method}"] = f"{own['0']['errors'][-1]:.6f}"
    chosen, first = long["chosen"]["0"], long["first-order"]["0"]
    found["long.rows"] = f"{chosen['rows'][-1] / first['rows'][-1]:.2f}"
    found["long.seconds"] = f"{chosen['seconds'] / first['seconds']:.1f}"
    for method in ("first-order", "chosen"):
        seconds = [curve["seconds"] for curve in curves()["ks-26-8"][method].values()]
        found[f"ks.seconds, {method}"] = f"{fmean(seconds):.0f}"
    return found


def _wake() -> dict[str, str]:
    found = {}
    for method in ("SRC", "NON large", "TAN-SOL@960", "FO-SOL large@960", "FO-SOL large@4800"):
        own = [row for row in read("wake_flow_demo.json")["table"] if row["method"] == method]
        values = [row["value"] for row in own]
        found[f"wake, {method}"] = spread(values if len(set(values)) > 1 else values[:1], ".4f")
        found[f"wake, {method}, rows"] = f"{fmean(row['rows'] for row in own):,.0f}"
        found[f"wake, {method}, seconds"] = f"{fmean(row['seconds'] for row in own):,.0f}"
    own = read("table_defense-small-b-logits.json")["table"]
    for method in ("student", "fo-ds"):
        each = [100 * r["extra"]["certified accuracy at r = 0.25"] for r in own if r["method"] == method]
        found[f"defence, {method}"] = spread(each, ".1f")
    own = read("wake_flow_small.json")["table"]
    for key, column in (("zo.error", "value"), ("zo.rows", "rows")):
        zo, fo = (fmean(r[column] for r in own if r["method"] == name) for name in ("ZO-SOL", "FO-SOL"))
        found[key] = f"{zo / fo:.2f}" if column == "value" else f"{zo / fo:.0f}"
    return found


def _trust() -> dict[str, str]:
    usual = "Tangents of usual strength alone"
    found = {}
    for name, line, behind in (
        ("rows", "rows' cosine below .896", "## Figures"),
        ("rule", "**the rule now**", "## Figures"),
        ("usual.rows", "rows' cosine below .9 ", usual),
        ("usual.rule", "**the rule now**", usual),
    ):
        a, n, f, m, b, k, g, o = found_of(59, line, behind)
        found[f"trust.{name}.found"] = f"{a + b:,} of {n + k:,}"
        found[f"trust.{name}.share"] = f"{100 * (a + b) / (n + k):.0f} %"
        found[f"trust.{name}.false"] = f"{f + g:,} of {m + o:,}"
        found[f"trust.{name}.false.share"] = f"{100 * (f + g) / (m + o):.1f} %"
        found[f"trust.{name}.fresh"] = (
            f"{100 * b / k:.0f} % of the wrong ones and {100 * g / o:.0f} % false alarms"
        )
    wrong = [agreement for cosine, agreement, _ in trusts() if cosine < 0.8]
    right = [agreement for cosine, agreement, _ in trusts() if cosine >= 0.8]
    found["points"] = f"{len(trusts()):,}"
    found["points.wrong"] = f"{len(wrong):,}"
    found["points.found"] = f"{sum(each < 0.5 for each in wrong):,}"
    found["points.false"] = f"{sum(each < 0.5 for each in right):,}"
    found["points.right"] = f"{len(right):,}"
    found["points.share"] = f"{100 * sum(each < 0.5 for each in wrong) / len(wrong):.0f} %"
    page = (ROOT / "docs" / "concepts" / "learned_tangents.md").read_text(encoding="utf-8")
    words = r"found (\d+) of the (\d+) that were wrong \(cosine below .8\), with (\d+)"
    ((own, wrongs, false),) = re.findall(words, page)
    found["trust.all.share"] = f"{100 * int(own) / int(wrongs):.0f} %"
    found["trust.all.found"], found["trust.all.false"] = (
        f"{own} of {wrongs}",
        f"{false} of {found_of(59, '**the rule now**')[3] + found_of(59, '**the rule now**')[7]}",
    )
    (late,) = re.findall(r"first warning: (\d+) of\s+([\d,]+)", record(60))
    return found | {"late": f"{late[0]} of {late[1]}"}


def _meshes() -> dict[str, str]:
    found = {}
    for path in sorted((RESULTS / "meshes").glob("*.json")):
        own = read(f"meshes/{path.name}")
        for nodes, ways in own["vectors"].items():
            for way, measured in ways.items():
                found[f"mesh, {path.stem}, {nodes}, {way}"] = (
                    f"{measured['white']:.3f} / {measured['smooth']:.3f}"
                )
        for way, measured in own.get("training", {}).get("318", {}).items():
            exact = own["training"]["318"]["exact"]["error"]
            found[f"mesh, {path.stem}, training, {way}"] = f"{measured['error'] / exact:.2f}"
    layouts = [
        (f"{path.stem}, {int(nodes):,} nodes", ways["layout"])
        for path in sorted((RESULTS / "meshes").glob("*.json"))
        for nodes, ways in read(f"meshes/{path.name}")["vectors"].items()
    ]
    missed = [
        f"{name} ({own['white']:.2f} / {own['smooth']:.2f})" for name, own in layouts if own["white"] < 0.9
    ]
    found["mesh.missed"] = "; ".join(missed)
    found["mesh.missed.count"] = f"{_counted(len(missed))} of {len(layouts)}"
    return found


# Tables


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *lines))


def table_replay() -> str:
    """Every problem: what a fifth and a twentieth of the rows buy."""
    shown = (
        "first order, tuned, 0.2",
        "tangents, 0.2",
        "replay, 0.2",
        "first order, tuned, 0.05",
        "replay, 0.05",
    )
    lines = []
    for name in sorted(rows(), key=lambda each: median(over_tuned("replay, 0.2")[each])):
        found = [over_tuned(line).get(name, []) for line in shown]
        cells = [f"{median(each):.2f}" if each else "not run" for each in found]
        own = [run for run in rows()[name].values() if "replay, 0.2" in run]
        for place, line in ((2, "replay, 0.2"), (4, "replay, 0.05")):
            each = found[place]
            cells[place] += f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
            cells[place] += "*" * any(run[line]["warnings"] for run in own if line in run)
        seconds = median(run["replay, 0.2"]["seconds"] / run[AS_BENCHMARKED]["seconds"] for run in own)
        lines.append((name, str(len(own)), *cells, f"{seconds:.1f}"))
    headers = (
        "problem",
        "seeds",
        "first order tuned, 1/5",
        "no replay, 1/5",
        "replay, 1/5",
        "first order tuned, 1/20",
    )
    return table((*headers, "replay, 1/20", "seconds"), lines)


def table_summary() -> str:
    """Medians, quartiles and intervals of the ways to spend rows."""
    own = numbers()
    lines = []
    for key, label in (
        ("fo", "first order, usual settings, all rows"),
        ("fo.20", "first order tuned at a fifth"),
        ("tangents.20", "tangents, no replay, a fifth"),
        ("replay.20", "**tangents with replay, a fifth**"),
        ("fo.05", "first order tuned at a twentieth"),
        ("tangents.05", "tangents, no replay, a twentieth"),
        ("replay.05", "tangents with replay, a twentieth"),
    ):
        lines.append(
            (label, *(own[f"{key}{each}"] for each in ("", ".interval", ".quartiles", ".best", ".worst")))
        )
    return table(("way to spend rows", "median", "95 % interval", "quartiles", "least", "worst"), lines)


def table_rivals() -> str:
    """Other ways to a gradient, over first order at the same number of steps."""
    names = {
        "chosen": "learned tangents, default",
        "no-gradient": "gradient cut at the box (NOG)",
        "identity": "box's derivative taken for the identity",
        "emulator-online": "model alone, learned during training",
        "emulator-frozen": "model alone, fitted once",
        "astralora": "low-rank surrogate (after Astralora)",
        "row-rge": "random differences at the box's inputs",
        "rge": "random differences in the weights",
        "eggroll": "low-rank evolution strategy (after EGGROLL)",
        "sparse-cge": "coordinate differences in the weights",
    }
    lines = []
    for method, label in names.items():
        own = over_first(method)
        ends = {name: fmean(each) for name, each in own.items()}
        costs = [each for found in curves().values() if (each := spent(found, method)) is not None]
        seeds = "1 to 6" if method in ("chosen", "no-gradient") else "1"
        low, high = np.percentile(list(ends.values()), [25, 75])
        cells = (f"{median(ends.values()):.2f}", f"{low:.2f} to {high:.2f}", f"{max(ends.values()):.2f}")
        there = f"{median(fmean(over_first('chosen')[name]) for name in own):.2f}"
        lines.append((label, str(len(own)), seeds, *cells, f"{median(costs):.2f}", there))
    headers = ("derivative of the box", "problems", "seeds", "median", "quartiles", "worst", "rows")
    return table((*headers, "default, same problems"), lines)


def table_controls() -> str:
    """Replays at a fifth of the rows with another derivative in the model's place."""
    shown = [f"replay, {control}, 0.2" for control in CONTROLS]
    every = {line: beside(line, "replay, 0.2") for line in shown}
    names = sorted({name for both in every.values() for name in both})
    lines = []
    for name in names:
        seeds = [len(both[name][0]) for both in every.values() if name in both]
        cells = [f"{median(both[name][0]):.2f}" if name in both else "" for both in every.values()]
        learned = max((both[name][1] for both in every.values() if name in both), key=len)
        lines.append((name, str(max(seeds)), f"{median(learned):.2f}", *cells))
    return table(("problem", "seeds", "replay", *CONTROLS), lines)


def table_examples() -> str:
    """Real programs: the committed runs of `examples`, the larger preset."""
    lines = []
    for folder, name in (
        *((folder, "large.json") for folder in ("ngspice", "lammps", "calculix", "fortran")),
        *(("openfoam", name) for name in ("large.json", "large-tangents.json")),
        ("sumo", "large.json"),
    ):
        found = json.loads((ROOT / "examples" / folder / name).read_text(encoding="utf-8"))["table"]
        for method in dict.fromkeys(row["method"] for row in found):
            own = [row for row in found if row["method"] == method]
            value = ", ".join(f"{row['value']:.3g}" for row in own)
            unit = own[0].get("unit", "")
            cells = (value + f" {unit}" * bool(unit), f"{own[0]['rows']:,}", f"{own[0]['seconds']:,.0f}")
            if (folder, name, method) != ("openfoam", "large-tangents.json", "none"):  # the same start again
                lines.append((folder, method, own[0]["metric"], *cells))
    return table(("program", "method", "metric", "value", "rows", "seconds"), lines)


def table_replayed() -> str:
    """Simulators with replays, beside the committed rivals: two seeds each, in brackets the rows."""
    lines = []
    ways = (
        *(("few", "tangents"), ("replays", "tangents"), ("small", "tangents")),
        *(("cma", "cma-es"), ("batch", "first-order")),
    )
    for folder in ("cantera", "epanet", "pybamm", "scikit_fem"):
        cells = []
        for name, method in ways:
            file = ROOT / "examples" / folder / f"{name}.json"
            found = json.loads(file.read_text(encoding="utf-8"))["table"] if file.exists() else []
            own = [row for row in found if row["method"] == method]
            values = ", ".join(f"{row['value']:.3g}" for row in own)
            most = max((row["rows"] for row in own), default=0)
            cells.append(f"{values} ({most:,})" if own else "")
        lines.append((folder, *cells))
    few = "tangents, a fifth of the steps"
    return table(("program", few, "with replays", "tangents, all steps", "CMA-ES", "exact adjoint"), lines)


TABLES: dict[str, Callable[[], str]] = {
    "table: replayed": table_replayed,
    "table: replay": table_replay,
    "table: summary": table_summary,
    "table: rivals": table_rivals,
    "table: controls": table_controls,
    "table: examples": table_examples,
}


UNBUILT = "unbuilt"  # the name of a sentence that only a page has that was not built
SHOWN = r"<!--=([^{}]+?)-->.*?<!--/-->"  # a number that a page shows unbuilt too


def filled(text: str, where: str) -> str:
    """A text with numbers and tables in the place of names.

    Raises:
        KeyError: A name that is not known.
    """

    def value(match: re.Match[str]) -> str:
        name = (match[1] or match[2]).strip()
        if name == UNBUILT:
            return ""
        if name in TABLES:
            return TABLES[name]()
        if name not in numbers():
            raise KeyError(
                f"{where}: expected a name that `python docs/paper/figures.py` lists, got {{{{{name}}}}}."
            )
        return numbers()[name]

    return re.sub(rf"\{{\{{([^{{}}]+)\}}\}}|{SHOWN}", value, text)


def shown(text: str, where: str) -> str:
    """A text whose numbers between comments are today's; the comments stay, and what is for unbuilt pages."""

    def value(match: re.Match[str]) -> str:
        return match[0] if match[1] == UNBUILT else f"<!--={match[1]}-->{filled(match[0], where)}<!--/-->"

    return re.sub(SHOWN, value, text)


# Figures


def canvas(width: float, height: float, columns: int = 1, **settings: Any) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side."""
    made = Figure((width, height), layout="constrained")
    axes = list(np.atleast_1d(made.subplots(1, columns, **settings)).flat)
    for place in axes:
        place.spines[["top", "right"]].set_visible(False)
        place.tick_params(labelsize=8)
    return made, axes


def _ratio_axis(place: Axes, ticks: Sequence[float], axis: str = "y") -> None:
    getattr(place, f"set_{axis}scale")("log")
    getattr(place, f"set_{axis}ticks")(ticks, [f"{each:g}" for each in ticks])
    place.minorticks_off()


WAYS = (
    ("first order (true derivative), tuned", "first order, tuned", GREY, "^", (0.05, 0.2, 1)),
    ("learned tangents, no replay", "tangents", ORANGE, "s", (0.05, 0.2)),
    ("learned tangents with replay", "replay", BLUE, "o", (0.05, 0.2)),
)


def draw_rows(ink: str = "black", width: float = 6.6) -> Figure:
    """Error over rows: medians over problems with their 95 % intervals, and single problems behind."""
    made, (place,) = canvas(width, 3.5)
    for number, (label, line, colour, mark, shares) in enumerate(WAYS):
        at = [share * 1.035 ** (number - 1) for share in shares]
        each = [over_tuned(f"{line}, {share:g}") for share in shares]
        for name in rows():
            points = [median(own[name]) if name in own else math.nan for own in each]
            place.plot(at, points, color=colour, lw=0.7, alpha=0.22, zorder=1)
        medians = [middle(own) for own in each]
        low, high = zip(
            *(interval(own) if share < 1 else (1, 1) for own, share in zip(each, shares, strict=True)),
            strict=True,
        )
        errors = [
            [m - below for m, below in zip(medians, low, strict=True)],
            [above - m for m, above in zip(medians, high, strict=True)],
        ]
        place.errorbar(
            at,
            medians,
            yerr=errors,
            color=colour,
            marker=mark,
            ms=7,
            lw=2.2,
            capsize=4,
            label=label,
            zorder=3,
        )
    place.axhline(1, color=ink, lw=0.8, ls=":")
    place.set_xscale("log")
    place.set_xticks([0.05, 0.2, 1], ["a twentieth", "a fifth", "all"])
    _ratio_axis(place, (0.5, 1, 2, 5, 10, 20))
    place.set_xlabel("simulator rows spent in training, over the usual number", fontsize=9)
    place.set_ylabel("test error, over first order's\ntuned at all rows", fontsize=9)
    legend = place.legend(frameon=False, fontsize=9, loc="upper right")
    for text in [*legend.get_texts(), place.xaxis.label, place.yaxis.label]:
        text.set_color(ink)
    place.tick_params(colors=ink)
    for spine in place.spines.values():
        spine.set_color(ink)
    return made


def draw_problems() -> Figure:
    """Every training: replay at a fifth, and tangents at the same number of steps."""
    made, (left, right) = canvas(7.2, 5.6, 2, width_ratios=(1, 1.15))
    own = over_tuned("replay, 0.2")
    names = sorted(own, key=lambda each: median(own[each]), reverse=True)
    for height, name in enumerate(names):
        equal = over_tuned("first order, tuned, 0.2")[name]
        left.scatter(
            equal,
            [height + 0.18] * len(equal),
            s=13,
            c=GREY,
            marker="^",
            label="first order tuned at a fifth" * (not height),
        )
        left.scatter(
            own[name], [height - 0.1] * len(own[name]), s=18, c=BLUE, label="replay at a fifth" * (not height)
        )
        left.scatter([median(own[name])], [height - 0.1], s=110, c=BLUE, marker="|")
    left.set_yticks(range(len(names)), names, fontsize=7)
    left.set_xlabel("test error, over first order tuned at all rows", fontsize=8)
    _ratio_axis(left, (0.25, 0.5, 1, 2, 4), "x")
    chosen, cut = over_first("chosen"), over_first("no-gradient")
    names = sorted(chosen, key=lambda each: fmean(chosen[each]), reverse=True)
    for height, name in enumerate(names):
        right.scatter(
            [fmean(cut[name])],
            [height],
            s=16,
            facecolors="none",
            edgecolors=GREY,
            marker="D",
            label="gradient cut (mean)" * (not height),
        )
        right.scatter(
            chosen[name],
            [height] * len(chosen[name]),
            s=15,
            c=ORANGE,
            marker="s",
            label="tangents, each seed" * (not height),
        )
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.set_xlabel("test error, over first order, same steps", fontsize=8)
    _ratio_axis(right, (0.5, 1, 2, 5, 10, 40), "x")
    for place in (left, right):
        place.axvline(1, color="black", lw=0.8)
        place.grid(axis="y", alpha=0.25)
        place.set_axisbelow(True)
        place.legend(
            frameon=False,
            fontsize=7,
            loc="lower center",
            bbox_to_anchor=(0.45, 1.04),
            ncols=2,
            columnspacing=1,
        )
    return made


def draw_ks() -> Figure:
    """Kuramoto-Sivashinsky as in List et al.: error over steps, 1,600 of them, and 40,000 with one seed."""
    made, (left, right) = canvas(7.2, 2.9, 2, sharey=True)
    shown = (
        ("first-order", "with the solver's gradient", GREY),
        ("no-gradient", "gradient cut (NOG)", ORANGE),
        ("chosen", "learned tangents", BLUE),
    )
    for place, own, title, ticks in (
        (left, curves()["ks-26-8"], "1,600 steps, three seeds", (200, 400, 800, 1600)),
        (
            right,
            read("tangents/ks-26-8-paper.json")["curves"],
            "40,000 steps, one seed",
            (5000, 10000, 20000, 40000),
        ),
    ):
        for method, label, colour in shown:
            for number, curve in enumerate(own[method].values()):
                place.loglog(
                    curve["steps"][1:],
                    curve["errors"][1:],
                    color=colour,
                    lw=1.4,
                    marker=".",
                    ms=4,
                    label=label * (not number),
                )
        place.set_title(title, fontsize=9)
        place.set_xticks(ticks, [f"{each:,}" for each in ticks])
        place.minorticks_off()
        place.set_xlabel("steps of training", fontsize=9)
        place.grid(alpha=0.25)
    left.set_ylabel("error over 12 frames", fontsize=9)
    left.legend(frameon=False, fontsize=8)
    return made


def draw_trust() -> Figure:
    """What a check says of a gradient, beside its cosine to the true one; and what limits find."""
    made, (left, right) = canvas(7.2, 3.1, 2)
    cosines, agreements, _ = zip(*trusts(), strict=True)
    left.scatter(cosines, np.clip(agreements, -1, 2.5), s=7, alpha=0.35, c=BLUE, linewidths=0)
    left.axvline(0.8, color="black", lw=0.8, ls=":")
    left.axhline(0.5, color="black", lw=0.8, ls=":")
    left.set_xlabel("cosine of the gradient to the true one", fontsize=9)
    left.set_ylabel("agreement in the last check\n(cut at -1 and 2.5)", fontsize=9)
    lines = (
        ("agreement below .5", "agreement < .5", "s", ORANGE),
        ("rows' cosine below .9 ", "rows < .9", "o", BLUE),
        ("rows' cosine below .95", "rows < .95", "o", SKY),
        ("`missed` above .496", "missed > .5", "v", GREEN),
        ("the rule before", "the rule before", "D", GREY),
        ("**the rule now**", "the rule now", "*", "black"),
    )
    for line, label, mark, colour in lines:
        a, n, f, m, b, k, g, o = found_of(59, line, "Tangents of usual strength alone")
        right.scatter(
            [100 * (f + g) / (m + o)], [100 * (a + b) / (n + k)], marker=mark, c=colour, s=60, label=label
        )
    right.scatter([5.5], [80], marker="x", c="black", s=50, label="the goal")
    right.set_xlabel("false alarms, % of right gradients", fontsize=9)
    right.set_ylabel("found, % of wrong gradients", fontsize=9)
    right.set_xlim(0, 25)
    right.set_ylim(40, 100)
    right.legend(frameon=False, fontsize=7, loc="lower right")
    return made


def draw_meshes() -> Figure:
    """Cosines of the VJP with the exact adjoint's, boxes on meshes that are not of the tangent's own form."""
    own = {
        path.stem: read(f"meshes/{path.name}")["vectors"]
        for path in sorted((RESULTS / "meshes").glob("*.json"))
    }
    cases = [(box, nodes) for box, found in own.items() for nodes in found]
    made, places = canvas(7.2, 0.9 + 0.15 * len(cases), 2, sharey=True)
    ways = (
        ("identity", "identity", GREY, "D"),
        ("perceptron", "perceptron", ORANGE, "s"),
        ("layout", "learned implicit step", BLUE, "o"),
    )
    for place, kind in zip(places, ("white", "smooth"), strict=True):
        for way, label, colour, mark in ways:
            points = [
                (own[box][nodes][way][kind], height)
                for height, (box, nodes) in enumerate(cases)
                if way in own[box][nodes]
            ]
            place.scatter(*zip(*points, strict=True), c=colour, marker=mark, s=24, label=label, zorder=3)
        place.set_title(f"{kind} cotangents", fontsize=9)
        place.set_xlim(-0.1, 1.05)
        place.axvline(1, color="black", lw=0.8)
        place.grid(axis="y", alpha=0.25)
        place.set_xlabel("cosine with the exact adjoint", fontsize=9)
    places[0].set_yticks(
        range(len(cases)), [f"{box}, {int(nodes):,} nodes" for box, nodes in cases], fontsize=7
    )
    made.legend(
        *places[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8
    )
    return made


DRAWN: dict[str, Callable[[], Figure]] = {
    "rows": draw_rows,
    "rows-light": lambda: draw_rows("#333333", 5.0),
    "rows-dark": lambda: draw_rows("#dddddd", 5.0),
    "problems": draw_problems,
    "ks": draw_ks,
    "trust": draw_trust,
    "meshes": draw_meshes,
}


def sources() -> list[Path]:
    """What a number or a figure can come from."""
    decisions = ROOT / "docs" / "decisions"
    read_off = [*decisions.glob("0059*"), *decisions.glob("0060*"), *(ROOT / "examples").glob("*/*.json")]
    return [Path(__file__), *RESULTS.rglob("*.json"), *read_off]


def draw(kind: str = "svg") -> None:
    """Write figures that are older than the results or this file; those of the front page are transparent."""
    FIGURES.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in sources())
    for name, make in DRAWN.items():
        path = FIGURES / f"{name}.{kind}"
        if not path.exists() or path.stat().st_mtime < newest:
            with matplotlib.rc_context({"svg.hashsalt": name}):
                clear = "-" in name
                data = {"metadata": {"Date": None}} if kind == "svg" else {}
                make().savefig(path, format=kind, dpi=130, transparent=clear, **data)


if __name__ == "__main__":
    draw()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        if (now := shown(before, page.name)) != before:
            page.write_text(now, encoding="utf-8")
    for key, said in numbers().items():
        print(f"{{{{{key}}}}}: {said}")
