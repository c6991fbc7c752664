"""Cells of the tables: measured, failed with a sentence, or excluded with a reason; a file keeps them.

A cell that is in the file of its study is not measured again: delete it there where its code has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from benchmarks import protocol


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

    Measured cells of the same task and seeds are kept.

    Args:
        study: its name.
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
    same = all(done.get(key) == value for key, value in about.items())
    found: dict[str, Any] = {**about, "cells": dict(done["cells"]) if same else {}}
    for name in names:
        if only not in name or found["cells"].get(name, {}).get("state") == "measured":
            continue

        def run(name: str = name) -> dict[str, Any]:
            return {"runs": [searched(name, task, seed) for seed in seeds[: most(name)]]}

        why = without(name, task)
        cell = found["cells"][name] = excluded(why) if why else measured(run)
        said = [
            (each.get("error", each.get("loss")), each.get("rows"), each["seconds"])
            for each in cell.get("runs", ())
        ]
        print(f"{study}, {name}: {cell.get('why') or said}", flush=True)
        if keep is not None:
            keep(found)
    return found


def spread(values: Sequence[float], form: str = ".2g") -> str:
    """The mean, and the least and the greatest where there are several."""
    mean, least, most = (
        f"{value:{form}}" if form.endswith("g") or value >= 0.0005 else f"{value:.0e}"
        for value in (fmean(values), min(values), max(values))
    )
    return mean if len(values) == 1 else f"{mean} ({least} to {most})"


def between(counts: Sequence[int]) -> str:
    """The least and the greatest of counts, or the one that all are."""
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def ended(runs: Sequence[Mapping[str, Any]]) -> str:
    """The state of a measured cell, and why its searches ended where they say so."""
    return ", ".join(["measured", *sorted({run["why"] for run in runs if "why" in run})])


def of_searches(found: Mapping[str, Any], about: str) -> str:
    """In Markdown: a line for each method of a study with errors and losses.

    Args:
        found: the study's result.
        about: what its figures are.
    """
    lines = []
    for method, cell in found["cells"].items():
        runs = cell.get("runs", ())
        if not runs:
            lines.append((method, f"{cell['state']}, {cell['why'].rstrip('.')}", "", "", "", ""))
            continue
        errors, losses = (spread([run[name] for run in runs]) for name in ("error", "loss"))
        rows = between([run["rows"] for run in runs])
        lines.append((method, ended(runs), errors, losses, rows, str(len(runs))))
    heads = "method", "state", "error", "loss", "rows", "seeds"
    return f"{about}\n\n{protocol.markdown(heads, lines)}"
