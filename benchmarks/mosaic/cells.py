"""Cells of the table and their states: measured, failed, excluded, stale where code or versions changed."""

from __future__ import annotations

import ast
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CODE = {
    "solvers": ("flow.py", "solvers.py", "corrector.py"),
    "recovery": ("recovery.py",),
    "bands": ("recovery.py", "bands.py"),
    "field": ("recovery.py", "field.py", "flow.py", "solvers.py", "space.py"),
    "heat": ("heat.py", "fenics.py"),
    "compliance": ("heat.py", "fenics.py", "beam.py", "compliance.py"),
    "inflow": ("inflow.py",),
    "lattice": ("flow.py", "solvers.py", "corrector.py", "lattice.py"),
}  # study -> the files that decide its figures
SAME = "a cell measured again has the same digits"
ONE_LOOP = f"one loop over methods and seeds serves several studies now, and one class their programs; {SAME}"
LIMITS = "a gradient takes the number of replays in one value with others; nothing else of this code changed"
NO_PROBES = "a method that took a probe in each evaluation was taken out; the others are as they were"
STALE: dict[str, str] = {
    "field.json": "flows in three dimensions came beside these; since then an equation's flow takes fewer "
    "transforms, its fits halve a correction that does not help, and it may be that of a reaction: "
    "fit_field's vorticities of seed 0 end at .0028 (here .0031) and .031 (.030) with that",
    "heat.json": ONE_LOOP,
    "compliance.json": ONE_LOOP,
    "inflow.json": ONE_LOOP,
    "bands.json": NO_PROBES,
    "recovery.json": NO_PROBES,
    **dict.fromkeys(("exponax.json", "jax-cfd.json", "jax-cfd-paper.json", "jax-cfd-terminal.json"), LIMITS),
    **dict.fromkeys(("openfoam.json", "phiflow.json", "phiflow-paper.json", "xlb.json"), LIMITS),
}
"""File in `benchmarks/results/mosaic` -> why its figures stand though code has changed since."""


def code(study: str) -> str:
    """A digest of the code that decides a study's figures, without comments, docstrings and annotations."""
    trees = (ast.parse((HERE / name).read_text(encoding="utf-8")) for name in CODE[study])
    text = "".join(_words(tree) for tree in trees)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(node: object) -> str:
    """A syntax tree in words, the same by all versions of Python."""
    if isinstance(node, list):
        parts = (_words(each) for each in node if not _is_text(each))
        return f"[{', '.join(parts)}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    kind = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
    parts = (
        f"{'targets' if name == 'target' else name}={_words([value] if name == 'target' else value)}"
        for name, value in ast.iter_fields(node)
        if value not in (None, []) and name not in ("annotation", "returns", "simple", "kind")
    )
    return f"{kind}({', '.join(parts)})"


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def measured(run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A cell: what a run gives, or the sentence with which it failed."""
    try:
        return {"state": "measured", **run()}
    except Exception as error:  # whatever a solver of others raises is the cell's content
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return {"state": "failed", "why": said[:300]}


def excluded(why: str) -> dict[str, Any]:
    """A cell that is not to be measured."""
    return {"state": "excluded", "why": why}


def of_study(
    study: str,
    names: Sequence[str],
    searched: Callable[[str, Any, int], dict[str, Any]],
    without: Callable[[str, Any], str | None],
    task: Any,
    seeds: Sequence[int],
    done: Mapping[str, Any],
    keep: Callable[[dict[str, Any]], None] | None = None,
    only: str = "",
    most: Callable[[str], int | None] = lambda _: None,
) -> dict[str, Any]:
    """The result of a study: a cell for each name, with a run for each seed.

    Measured cells of the same task, seeds and code are kept. So are those of other code, as stale ones, where
    `STALE` says why they stand; what is measured beside them has its code by itself.

    Args:
        study: its name in `CODE`, and that of its file.
        names: of the cells.
        searched: (name, task, seed) -> a run.
        without: (name, task) -> why a cell is not to be measured; None where it is.
        task: a dataclass of sizes.
        seeds: of what is looked for.
        done: an earlier result.
        keep: what is called with the result after each cell.
        only: of the cells those that have this in their names; the others stay as they are, or away.
        most: how many of the seeds a cell has; None for all.
    """
    about = {"seeds": list(seeds), "task": json.loads(json.dumps(asdict(task)))}  # as a file has them
    now = code(study)
    same = all(done.get(key) == value for key, value in about.items())
    same = same and (f"{study}.json" in STALE or (done["code"] == now and not outdated(done)))
    found = {**about, "code": done["code"] if same else now, "cells": dated(done) if same else {}}
    for name in names:
        if only not in name or found["cells"].get(name, {}).get("state") == "measured":
            continue

        def run(name: str = name) -> dict[str, Any]:
            return {"runs": [searched(name, task, seed) for seed in seeds[: most(name)]]}

        why = without(name, task)
        cell = found["cells"][name] = excluded(why) if why else measured(run)
        if found["code"] != now:
            cell["code"] = now
        said = [
            (each.get("error", each["loss"]), each["rows"], each["seconds"]) for each in cell.get("runs", ())
        ]
        print(f"{study}, {name}: {cell.get('why') or said}", flush=True)
        if keep is not None:
            keep(found)
    return found


def pinned() -> dict[str, str]:
    """Package -> the version with which the project is built and tested; its own beside them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {project["name"]: project["version"]} | {name.strip(): version.strip() for name, version in pins}


def outdated(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Package -> the version that a result was measured with and the one that is pinned, where they differ.

    What follows a + says for which device a package was built, and makes no difference.
    """
    pins = pinned()
    with_it: dict[str, str] = {**result.get("versions", {}), **result.get("solver versions", {})}
    return {
        name: (was, pins[name])
        for name, was in with_it.items()
        if pins.get(name, was).split("+")[0] != was.split("+")[0]
    }


def dated(result: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a result that others will join: those of other versions than today's have them noted."""
    if not outdated(result):
        return dict(result["cells"])
    return {name: {"versions": result["versions"], **cell} for name, cell in result["cells"].items()}


def states(result: Mapping[str, Any], study: str) -> dict[str, str]:
    """The state of each cell, in a word: what was measured with other code or other versions is stale."""
    now = code(study)
    return {
        name: "stale"
        if cell["state"] == "measured"
        and (
            cell.get("code", result["code"]) != now
            or outdated({**result, "versions": cell.get("versions", result.get("versions", {}))})
        )
        else cell["state"]
        for name, cell in result["cells"].items()
    }


def stale(study: str) -> str:
    """Why stale figures of a study stand, to be put below its table; empty where there are none."""
    why = STALE.get(f"{study}.json")
    return f"\n\nStale: {why}." if why else ""
