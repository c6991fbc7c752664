"""The tables of the report, in Markdown, each under the name by which pages ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import fmean, median

import numpy as np

from benchmarks.figures import kept
from benchmarks.figures.measured import ROOT, beside, curves, over_first, over_tuned, rows
from benchmarks.figures.rows import CONTROLS
from benchmarks.rows.ways import AS_BENCHMARKED
from benchmarks.tangents.report import spent

ENDINGS = ("", ".low", ".high", ".quartile.low", ".quartile.high", ".best", ".worst")


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headers, ["---"] * len(headers), *lines))


def table_replay() -> str:
    """Every problem: what a fifth and a twentieth of the rows buy."""
    columns = {
        "first order tuned, 1/5": "first order, tuned, 0.2",
        "no replay, 1/5": "tangents, 0.2",
        "replay, 1/5": "replay, 0.2",
        "several rates, 1/5": "replay, several rates, 0.2",
        "surrogate, 1/5": "surrogate, 0.2",
        "first order tuned, 1/20": "first order, tuned, 0.05",
        "replay, 1/20": "replay, 0.05",
        "several rates, 1/20": "replay, several rates, 0.05",
    }
    several = over_tuned(columns["several rates, 1/5"])
    lines = []
    for name in sorted(several, key=lambda problem: median(several[problem])):
        runs, cells = rows()[name].values(), []
        for line in columns.values():
            ratios = over_tuned(line).get(name, [])
            cell = f"{median(ratios):.2f}" if ratios else ("none" if "surrogate" in line else "not run")
            if "several" in line and len(ratios) > 1:
                cell += f" ({min(ratios):.2f} to {max(ratios):.2f})"
            said = "replay," in line and any(run[line]["warnings"] for run in runs if line in run)
            cells.append(cell + "*" * said)
        seconds = median(over_tuned("replay, several rates, 0.2", AS_BENCHMARKED, "seconds")[name])
        lines.append((name, str(len(several[name])), *cells, f"{seconds:.0f}"))
    return table(("problem", "seeds", *columns, "seconds"), lines)


def table_summary() -> str:
    """Medians, quartiles and intervals of the ways to spend rows."""
    known, lines = kept(), []
    for key, label in (
        ("fo", "first order, usual settings, all rows"),
        ("fo.20", "first order tuned at a fifth"),
        ("tangents.20", "tangents, no replay, a fifth"),
        ("replay.20", "tangents with replay, a fifth"),
        ("several.20", "the same at several rates, a fifth"),
        ("advised.20", "**and for controllers a surrogate in rounds, a fifth**"),
        ("fo.05", "first order tuned at a twentieth"),
        ("tangents.05", "tangents, no replay, a twentieth"),
        ("replay.05", "tangents with replay, a twentieth"),
        ("several.05", "the same at several rates, a twentieth"),
        ("advised.05", "and for controllers a surrogate in rounds, a twentieth"),
    ):
        value = {end: f"{known[f'{key}{end}']:.2f}" for end in ENDINGS}
        ranges = (f"{value[f'{end}low']} to {value[f'{end}high']}" for end in (".", ".quartile."))
        lines.append((label, value[""], *ranges, value[".best"], value[".worst"]))
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
        "zo-muon": "subspace differences, orthogonalised (after ZO-Muon)",
        "eggroll": "low-rank evolution strategy (after EGGROLL)",
        "sparse-cge": "coordinate differences in the weights",
    }
    lines = []
    for method, label in names.items():
        ratios = over_first(method)
        ends = {name: fmean(values) for name, values in ratios.items()}
        costs = [ratio for methods in curves().values() if (ratio := spent(methods, method)) is not None]
        seeds = "1 to 6" if method in ("chosen", "no-gradient") else "1"
        low, high = np.percentile(list(ends.values()), [25, 75])
        cells = (f"{median(ends.values()):.2f}", f"{low:.2f} to {high:.2f}", f"{max(ends.values()):.2f}")
        there = f"{median(fmean(over_first('chosen')[name]) for name in ratios):.2f}"
        lines.append((label, str(len(ratios)), seeds, *cells, f"{median(costs):.2f}", there))
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
        lines_of_runs = json.loads((ROOT / "examples" / folder / name).read_text(encoding="utf-8"))["table"]
        for method in dict.fromkeys(row["method"] for row in lines_of_runs):
            lines_of_method = [row for row in lines_of_runs if row["method"] == method]
            value = ", ".join(f"{row['value']:.3g}" for row in lines_of_method)
            unit = lines_of_method[0].get("unit", "")
            cells = (
                value + f" {unit}" * bool(unit),
                f"{lines_of_method[0]['rows']:,}",
                f"{lines_of_method[0]['seconds']:,.0f}",
            )
            if (folder, name, method) != ("openfoam", "large-tangents.json", "none"):  # the same start again
                lines.append((folder, method, lines_of_method[0]["metric"], *cells))
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
            lines_of_runs = json.loads(file.read_text(encoding="utf-8"))["table"] if file.exists() else []
            lines_of_way = [row for row in lines_of_runs if row["method"] == method]
            values = ", ".join(f"{row['value']:.3g}" for row in lines_of_way)
            most = max((row["rows"] for row in lines_of_way), default=0)
            cells.append(f"{values} ({most:,})" if lines_of_way else "")
        lines.append((folder, *cells))
    few = "tangents, a fifth of the steps"
    return table(("program", few, "with replays", "tangents, all steps", "CMA-ES", "exact adjoint"), lines)


TABLES: dict[str, Callable[[], str]] = {
    "replayed": table_replayed,
    "replay": table_replay,
    "summary": table_summary,
    "rivals": table_rivals,
    "controls": table_controls,
    "examples": table_examples,
}
