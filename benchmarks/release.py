"""Measure again, at one commit, what pages show.

    python -m benchmarks all              how many files each benchmark has, and of which commits they are
    python -m benchmarks all --hours 8    measure what is not of today's code, cheapest first, for so long
    python -m benchmarks all --hours 8 --benchmarks budget closed_loop

A file is of today's code if nothing in `blackbox`, `simulators`, `tasks` and `zo` has changed since its
commit, nor since those that its parts note, where they were measured one by one. A file that is measured
again is put aside, in `runs/benchmarks/before`, and comes back if its benchmark fails. Afterwards
`python -m benchmarks page` brings pages up to date.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks import protocol
from benchmarks.catalogue import BENCHMARKS, Benchmark, read

UNKNOWN = "before commits were noted"
ASIDE = protocol.SCRATCH / "before"
MINUTES = {"minute": 1, "minutes": 1, "hour": 60, "hours": 60}


@dataclass(frozen=True)
class Part:
    """A command and the files that it writes.

    Attributes:
        benchmark: The benchmark that it belongs to.
        command: The command, as users type it.
        files: The files in `benchmarks/results`.
    """

    benchmark: Benchmark
    command: str
    files: Sequence[str]

    @property
    def minutes(self) -> float:
        """The share of the benchmark's minutes, for one core."""
        return minutes(self.benchmark.time) / len(self.benchmark.commands)

    def measure(self) -> bool:
        """Measure it again; whether that went well."""
        for file in self.files:
            _move(protocol.RESULTS / file, ASIDE / file)
        went_well = False
        try:
            words = self.command.split()[1:]
            went_well = subprocess.run([sys.executable, *words], check=False).returncode == 0
        finally:  # also where a user interrupts it
            for file in self.files:
                if not went_well or not (protocol.RESULTS / file).exists():
                    _move(ASIDE / file, protocol.RESULTS / file)
        return went_well


def minutes(words: str) -> float:
    """The minutes of "half an hour" or "2 hours"."""
    *count, unit = words.split()
    number = {("half", "an"): 0.5, ("a",): 1.0, ("an",): 1.0}.get(tuple(count))
    return MINUTES[unit] * (float(count[0]) if number is None else number)


def stale(names: Iterable[str]) -> Iterator[Part]:
    """What is not of today's code, cheapest first."""
    parts = [
        Part(benchmark, command, files)
        for benchmark in (BENCHMARKS[name] for name in names)
        for command, files in benchmark.commands.items()
    ]
    for part in sorted(parts, key=lambda part: part.minutes):
        if not all(is_of_today(commit) for file in part.files for commit in commits(read(file))):
            yield part


def commits(result: Mapping[str, Any]) -> frozenset[str | None]:
    """The commits of which a file is: its own, and those of its parts; None where none was noted."""
    return frozenset([result.get("commit"), *_noted(list(result.values()))])


def _noted(value: object) -> Iterator[str | None]:
    if isinstance(value, dict):
        if "commit" in value:
            yield value["commit"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _noted(part)


@cache
def is_of_today(commit: str | None) -> bool:
    """Whether the product is as it was at a commit."""
    if commit is None or protocol.CHANGED in commit:
        return False
    return protocol.git("diff", "--quiet", commit, "--", *protocol.PRODUCT) is not None


def _move(one: Path, other: Path) -> None:
    if one.exists():
        other.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(one, other)


def _listed(names: Iterable[str]) -> str:
    lines = []
    for name in names:
        benchmark = BENCHMARKS[name]
        of_files = Counter(commits(read(file)) for file in benchmark.results)
        words = "; ".join(
            f"{count} of {' and '.join(sorted(commit or UNKNOWN for commit in several))}"
            f"{', as today' if all(map(is_of_today, several)) else ''}"
            for several, count in of_files.most_common()
        )
        lines.append((name, benchmark.time, words or "none"))
    return protocol.markdown(("benchmark", "small takes", "files"), lines)


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks all", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    asked = parser.parse_args(words)
    if not asked.hours:
        left = sum(part.minutes for part in stale(asked.benchmarks))
        print(_listed(asked.benchmarks))
        print(f"About {left / 60:.0f} hours on one core measure what is not of today's code.")
        return
    until, failed = monotonic() + 3600 * asked.hours, []
    for part in list(stale(asked.benchmarks)):
        if monotonic() + 60 * part.minutes > until:
            print(f"left, for it takes {part.minutes:.0f} minutes: {part.command}")
        elif not part.measure():
            failed.append(part.command)
    if failed:
        raise SystemExit(
            f"benchmarks: {len(failed)} failed, and their files are as before: {'; '.join(failed)}"
        )
