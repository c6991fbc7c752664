"""What a soak found: every fault by kind and how it was recovered from, as JSON, table and picture."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.protocol import RESULTS
from benchmarks.soak.faults import ROWS, STOPPING
from tasks.report import pictures
from tasks.runs.machine import machine, versions

FOLDER = RESULTS


@dataclass(frozen=True)
class Options:
    """What was asked for: seconds under faults, seed of the faults, the most processes of a run."""

    seconds: float
    seed: int
    workers: int


Round = Mapping[str, Any]


def good(rounds: Sequence[Round]) -> bool:
    """Whether every round ended as undisturbed, and every fault was met as documented."""
    whole = all(not found["different"] and found["broken"] is None for found in rounds)
    return whole and all(fault["as_promised"] for found in rounds for fault in found["faults"])


def line(found: Round) -> str:
    """A round in a line, and what went wrong in it."""
    kinds = Counter(fault["kind"] for fault in found["faults"])
    end = "the same bits" if not found["different"] else f"OTHER BITS: {found['different'][:8]}"
    end = end if found["broken"] is None else f"BROKEN: {found['broken']}"
    others = [f"\n  not as documented: {fault}" for fault in found["faults"] if not fault["as_promised"]]
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    times = f"{found['seconds']:.0f} s ({found['seconds undisturbed']:.0f} undisturbed)"
    begun = f"{found['job']}, round {found['round']}: {times}, {found['starts']} starts"
    return f"{begun}, {listed or 'no fault'}: {end}{''.join(others)}"


def counts(rounds: Sequence[Round]) -> dict[str, dict[str, int]]:
    """Kind of fault -> how it was recovered from -> how often."""
    found: dict[str, Counter[str]] = {kind: Counter() for kind in [*STOPPING, *ROWS]}
    for fault in (fault for played in rounds for fault in played["faults"]):
        found[fault["kind"]][_way(fault)] += 1
    return {kind: dict(ways.most_common()) for kind, ways in found.items()}


def markdown(rounds: Sequence[Round], options: Options) -> str:
    """The counts as a table, and each round in a line."""
    found, kinds = counts(rounds), STOPPING | ROWS
    rows = [
        f"| {kind} | {kinds[kind]} | {sum(ways.values())} | "
        f"{'; '.join(f'{count} {way}' for way, count in ways.items()) or '-'} |"
        for kind, ways in found.items()
    ]
    total = sum(sum(ways.values()) for ways in found.values())
    same = sum(not played["different"] and played["broken"] is None for played in rounds)
    missed = sum(not fault["as_promised"] for played in rounds for fault in played["faults"])
    return "\n".join(
        [
            "# Soak",
            "",
            f"`python -m benchmarks.soak --seconds {options.seconds:g} --seed {options.seed} "
            f"--workers {options.workers}`: {total} faults in {len(rounds)} rounds. {same} rounds ended with "
            "the bits of the undisturbed run (final weights, optimiser, generators, metrics, table); "
            f"{missed} faults were not met as documented.",
            "",
            "| fault | what is done | how often | recovered |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            *(f"- {line(played)}" for played in rounds),
            "",
        ]
    )


def picture(rounds: Sequence[Round], path: Path) -> Path:
    """How far each round was, against time, with its faults where they came."""
    made, axes = pictures.figure(9.0, 1.3 * len(rounds) + 0.8, rows=len(rounds))
    for axis, played in zip(axes.flat, rounds, strict=True):
        seconds = [second for second, _ in played["track"]]
        axis.plot(seconds, [lines / played["lines"] for _, lines in played["track"]], color="0.3", lw=1)
        for fault in played["faults"]:
            stops = fault["kind"] in STOPPING
            axis.axvline(fault["second"], color="C3" if stops else "C0", lw=0.8, alpha=0.8)
        axis.set(ylim=(-0.05, 1.05), yticks=(0, 1), ylabel="part done")
        axis.set_title(f"{played['job']}, round {played['round']}", fontsize="small", loc="left")
    axes.flat[-1].set_xlabel("seconds; red: a fault that stops the run, blue: of a row")
    return pictures.save(made, path)


def write(rounds: Sequence[Round], options: Options, folder: Path) -> None:
    """Write `soak.json`, `soak.md` and `soak.png`, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown(rounds, options)
    content = {
        "command": " ".join(["python", "-m", "benchmarks.soak", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "counts": counts(rounds),
        "rounds": list(rounds),
    }
    (folder / "soak.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "soak.md").write_text(text)
    print(text)
    print(f"written to {picture(rounds, folder / 'soak.png').parent}/soak.{{json,md,png}}")


def _way(fault: Mapping[str, Any]) -> str:
    way = fault["recovered"] or "ended before"
    return way if fault["as_promised"] else f"{way} (NOT AS DOCUMENTED)"
