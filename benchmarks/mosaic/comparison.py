"""Mosaic's tasks by methods that only call the solver, beside the solver's own derivative.

    python -m benchmarks mosaic --size ci                        a few updates; written nowhere
    python -m benchmarks mosaic --size small --study solvers     solvers in the loop, those installed
    python -m benchmarks mosaic --size small --study recovery    an initial condition
    python -m benchmarks mosaic --size small --study field       the same by zo.fit_field
    python -m benchmarks mosaic --size small --study heat        a conductivity, on a mesh
    python -m benchmarks mosaic --size small --study compliance  a stiff beam, on a mesh
    python -m benchmarks mosaic --size small --study inflow      an inflow, in a channel
    python -m benchmarks mosaic --size small --solvers PhiFlow   one solver; measured cells are kept

Mosaic (Rehmann, Zimmermann, Häfner 2026, arXiv 2606.27895) compares differentiable solvers. Here their
solvers are black boxes, and their derivative is one column among others. Solvers that are not installed are
skipped by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import protocol
from benchmarks.mosaic import bands, cells, compliance, field, heat, inflow, lattice, recovery
from benchmarks.mosaic.cells import spread
from benchmarks.mosaic.corrector import CI, COLUMNS, PAPER, SMALL, TERMINAL, Task, loss_scale, trained
from benchmarks.mosaic.solvers import SOLVERS as BY_VELOCITY
from benchmarks.mosaic.solvers import Maker
from blackbox import BlackBoxFunction

SOLVERS: dict[str, Maker] = {**BY_VELOCITY, **lattice.SOLVERS}
STUDIES = {
    "recovery": (recovery, recovery.SMALL, recovery.CI, "Recovery of an initial condition"),
    "field": (field, field.SMALL, field.CI, "Recovery by zo.fit_field"),
    "heat": (heat, heat.SMALL, heat.CI, "A conductivity on a mesh"),
    "compliance": (compliance, compliance.SMALL, compliance.CI, "A stiff beam on a mesh"),
    "inflow": (inflow, inflow.SMALL, inflow.CI, "An inflow"),
    "bands": (bands, recovery.SMALL, recovery.CI, "Why the recovery stalls"),
}  # module, sizes, those of ci, heading of its table
SEEDS = (0, 1, 2)
SIZES = {"ci": CI, "small": SMALL, "terminal": TERMINAL, "paper": PAPER}
FOLDER = protocol.RESULTS / "mosaic"
ELSEWHERE = {
    "INS.jl": "in Julia, which is not installed; Mosaic's gain 38.8 %",
    "PICT": "needs a GPU; Mosaic's gain -4.2 %",
    "Warp-NS": "not a package: Mosaic's own kernels; its gain -0.3 %",
}
UNRUN = {  # a solver -> why what has no cell was not run
    "XLB": "its own derivative ends behind the bare solver, and tangents were stopped for want of time",
    "OpenFOAM": "a call starts a process, and these say nothing of tangents",
    "Exponax": "nothing to correct",
    "JAX-CFD": "the other loss has these columns",
}
UNASKED = "nobody has asked for it with the code as it is"
MORE = {"terminal": "the loss of the last call alone", "paper": "the published network"}
LEAST = 5.0  # percent that WIG has to gain over NOG, for a share of it to mean anything
NOTHING = 1e-3  # of relative error, below which there is nothing to correct


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("mosaic", __doc__, tuple(SIZES))
    parser.add_argument("--study", choices=("solvers", *STUDIES, "all"), default="all")
    parser.add_argument("--solvers", nargs="+", choices=tuple(SOLVERS), default=tuple(SOLVERS))
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=COLUMNS)
    parser.add_argument("--only", default="", help="of all studies but solvers: cells so named")
    parser.add_argument("--tables", action="store_true", help="write the table anew, and measure nothing")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    asked = parser.parse_args(words)
    if asked.tables:
        (FOLDER / "table.md").write_text(tables(), encoding="utf-8")
        return
    torch.set_num_threads(1)
    task, seeds, keep = SIZES[asked.size], tuple(asked.seeds), asked.size != "ci"
    if not keep:
        seeds = seeds[:1]
    if asked.study in ("solvers", "all"):
        for name in asked.solvers:
            _solver(name, task, seeds, words, asked.size, asked.columns)
    for study, (module, small, ci, _) in STUDIES.items():
        if asked.study not in (study, "all"):
            continue
        path = FOLDER / f"{study}.json"

        def note(found: dict[str, Any], path: Path = path) -> None:
            if keep:
                protocol.write("mosaic", words, found, path)

        before = read(path) if keep else {"cells": {}}
        print(module.table(module.result(small if keep else ci, seeds, before, note, asked.only)))
    if keep:
        (FOLDER / "table.md").write_text(tables(), encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A file of results; without cells where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}


def path_of(solver: str, size: str = "small") -> Path:
    """The file of a solver's cells."""
    return FOLDER / f"{solver.lower()}{'' if size == 'small' else f'-{size}'}.json"


def _solver(
    name: str, task: Task, seeds: Sequence[int], words: Sequence[str], size: str, columns: Sequence[str]
) -> None:
    """Measure the cells of a solver that are not there yet, or say that it is not installed."""
    maker = SOLVERS[name]
    if missing := maker.missing():
        print(f"{name}: skipped, {missing}")
        return
    path, keep = path_of(name, size), size != "ci"
    about = {"solver": name, "task": asdict(task), "seeds": list(seeds)}
    about["solver versions"] = maker.versions()
    found = read(path) if keep else {"cells": {}}
    done = kept(found, about)
    box = maker.make(task.points, task.viscosity)
    scale = loss_scale(box, task)
    for column in columns:
        if complete(done.get(column, {}), 1 if column == "uncorrected" else len(seeds)):
            continue
        done[column] = cell(column, box, maker, task, seeds, scale, done)
        print(f"{name}, {column}: {said(done[column])}", flush=True)
        if keep:
            protocol.write("mosaic", words, {**about, "cells": done}, path)


def kept(found: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of an earlier result that stand; none where anything but the number of seeds differs.

    Args:
        found: the result.
        about: what it has to be about; where it has fewer seeds than these, or more, its runs are kept.
    """
    same = all(found.get(key) == value for key, value in about.items() if key != "seeds")
    together = all(one == other for one, other in zip(found.get("seeds", ()), about["seeds"], strict=False))
    return dict(found["cells"]) if same and together else {}


def complete(found: Mapping[str, Any], seeds: int) -> bool:
    """Whether nothing is left to measure in a cell for so many seeds."""
    return found.get("state") == "excluded" or len(found.get("runs", ())) >= seeds


def cell(
    column: str, box: BlackBoxFunction, maker: Maker, task: Task, seeds: Sequence[int], scale: float,
    done: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One cell of a solver, with its state.

    Args:
        column: one of `COLUMNS`.
        box: the solver.
        maker: what says which columns it cannot have.
        task: the sizes.
        seeds: of the weights.
        scale: of the loss.
        done: the cells before it, of which the first is that of the bare solver; its own runs are kept.
    """
    if maker.excluded and column in maker.excluded:
        return cells.excluded(maker.excluded[column])
    bare = done.get("uncorrected", {}).get("runs")
    if bare and bare[0]["final"] < NOTHING and task.points == SMALL.points:
        return cells.excluded(f"nothing to correct: the bare solver ends at {bare[0]['final']:.1e}")

    def run() -> dict[str, Any]:
        wanted = seeds[:1] if column == "uncorrected" else seeds
        runs = [*done.get(column, {}).get("runs", ())]
        for seed in wanted[len(runs) :]:
            runs.append(trained(column, box, task, seed, scale))
        if not all(math.isfinite(each["log"]) for each in runs):
            raise ArithmeticError("errors of free runs are not finite")
        return {"runs": runs}

    return cells.measured(run)


def said(found: Mapping[str, Any]) -> str:
    """A cell in words."""
    if found["state"] != "measured":
        return f"{found['state']}, {found['why']}"
    finals = ", ".join(f"{each['final']:.4g}" for each in found["runs"])
    return f"{finals}; {found['runs'][0]['rows']:,} rows, {found['runs'][0]['seconds']:.0f} s"


def logs(found: Mapping[str, Any], column: str) -> list[float]:
    """Of a measured cell the mean logarithm of the error for each seed; none of another."""
    return [each["log"] for each in found["cells"].get(column, {}).get("runs", ())]


def gain(found: Mapping[str, Any], column: str, over: str) -> float | None:
    """By how much a column's errors are below another's, in percent: Mosaic's measure, paired by seed."""
    own, other = logs(found, column), logs(found, over)
    if not own or not other:
        return None
    if over == "uncorrected":  # it has no seeds
        other = other * len(own)
    pairs = zip(other, own, strict=False)  # those seeds that both have
    return 100 * (math.exp(fmean(base - log for base, log in pairs)) - 1)


def results(size: str = "small") -> dict[str, dict[str, Any]]:
    """The committed files of a size, by solver."""
    paths = {name: path_of(name, size) for name in SOLVERS}
    return {name: read(path) for name, path in paths.items() if path.exists()}


def tables() -> str:
    """All studies, in Markdown, from the committed files."""
    parts = ["## Solvers in the loop", solvers_table("small")]
    for size, about in MORE.items():
        if results(size):
            parts += [f"## Solvers in the loop, {about}", solvers_table(size)]
    for study, (module, *_, heading) in STUDIES.items():
        if (found := read(FOLDER / f"{study}.json"))["cells"]:
            parts += [f"## {heading}", module.table(found)]
    return "\n\n".join(parts) + "\n"


def solvers_table(size: str) -> str:
    """Of a size: a line for each cell that was measured, and what was not and why."""
    lines, why = [], []
    for name, found in results(size).items():
        for column in COLUMNS:
            if (entry := found["cells"].get(column)) is None:
                continue
            if entry["state"] != "measured":
                why.append(f"- {name}, {column}: {entry['state']}, {entry['why']}.")
                continue
            finals = [each["final"] for each in entry["runs"]]
            rows = entry["runs"][0]["rows"]
            over = gain(found, column, "NOG") if column not in ("uncorrected", "NOG") else None
            bare = gain(found, column, "uncorrected") if column != "uncorrected" else None
            true = gain(found, "WIG", "NOG")
            part = None
            if true is not None and true > LEAST and over is not None and column.startswith("tangents"):
                part = over / true
            lines.append(
                (
                    name,
                    column,
                    spread(finals, ".3f"),
                    "" if bare is None else f"{bare:+.1f} %",
                    "" if over is None else f"{over:+.1f} %",
                    "" if part is None else f"{part:.2f}",
                    f"{rows:,}" if rows else "",
                    str(len(finals)),
                )
            )
        missing = [column for column in COLUMNS if column not in found["cells"]]
        if missing:
            why.append(f"- {name}, {'; '.join(missing)}: not run, {UNRUN.get(name, UNASKED)}.")
    if size == "small":
        why += [f"- {name}: excluded, {reason}." for name, reason in ELSEWHERE.items()]
    heads = (
        "solver",
        "column",
        "error after 36 calls",
        "gain over the bare solver",
        "over NOG",
        "of WIG's gain",
        "rows",
        "seeds",
    )
    return (
        "Relative error of the velocity after 36 calls on eight starts that were not trained on: mean of the "
        "seeds, least and greatest. Gains are Mosaic's measure: the geometric mean over calls, starts and "
        f"seeds of the other's error over the column's, less one.\n\n{protocol.markdown(heads, lines)}"
        + ("\n\nNot measured:\n\n" + "\n".join(why) if why else "")
    )
