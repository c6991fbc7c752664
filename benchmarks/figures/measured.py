"""What was measured: errors, rows and curves in `benchmarks/results`, and what decisions counted by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows.report import results, results_of_steps
from benchmarks.rows.ways import ALL_ROWS
from benchmarks.tangents.problems import CONTROLLERS, HELD_OUT
from benchmarks.tangents.report import ratios

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAIR = r"(\d[\d,]*) of (\d[\d,]*)"


@cache
def read(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@cache
def rows(narrow: bool = False) -> dict[str, dict[str, Any]]:
    """`python -m benchmarks rows --steps`: problem -> seed -> line -> what was measured, where replays were.

    Problems that were held out are those of the command, see `budget`: few of these lines were run on them.

    Args:
        narrow: whether of `rows` without `--steps`, where first order has four settings to choose from.
    """
    measured = results() if narrow else results_of_steps()
    by_problem = {name: result["runs"] for name, result in measured.items()}
    return {
        name: runs
        for name, runs in by_problem.items()
        if name not in HELD_OUT and any("replay, 0.2" in run for run in runs.values())
    }


def over_tuned(
    line: str, against: str = ALL_ROWS, key: str = "error", narrow: bool = False
) -> dict[str, list[float]]:
    """A line's error, rows or seconds over those of another, by problem and seed.

    Args:
        line: the line's name.
        against: the other's, by default first order tuned at all rows.
        key: "error", "rows" or "seconds".
        narrow: as of `rows`.
    """
    ratios_by_problem = {
        name: [r[line][key] / r[against][key] for r in runs.values() if line in r and against in r]
        for name, runs in rows(narrow).items()
    }
    return {name: ratios for name, ratios in ratios_by_problem.items() if ratios}


def advised(problem: str, share: float) -> str:
    """The line of what the pages advise: replay at several rates; of a controller a surrogate in rounds."""
    return f"{'surrogate' if problem in CONTROLLERS else 'replay, several rates'}, {share:g}"


def as_advised(share: float, against: str = ALL_ROWS) -> dict[str, list[float]]:
    """Errors over tuned first order, see `over_tuned`, of the line that is advised for each problem."""
    by_problem = {name: over_tuned(advised(name, share), against).get(name, []) for name in rows()}
    return {name: ratios for name, ratios in by_problem.items() if ratios}


def beside(line: str, *others: str) -> dict[str, list[list[float]]]:
    """Errors of lines over that of first order tuned at all rows, where a seed has all: [line][seed].

    First order has the narrow grid: controls were measured beside that.
    """
    ratios_by_problem = {}
    for name, runs in rows(narrow=True).items():
        both = [run for run in runs.values() if {line, *others, ALL_ROWS} <= set(run)]
        if both:
            ratios_by_problem[name] = [
                [r[name_of_line]["error"] / r[ALL_ROWS]["error"] for r in both]
                for name_of_line in (line, *others)
            ]
    return ratios_by_problem


@cache
def curves(folder: str = "tangents") -> dict[str, Any]:
    """`python -m benchmarks tangents --size small`: problem -> method -> seed -> a curve."""
    paths = sorted((RESULTS / folder).glob("*.json"))
    results = {path.stem: read(f"{folder}/{path.name}") for path in paths}
    return {name: result["curves"] for name, result in results.items() if result["size"] == "small"}


def over_first(method: str, folder: str = "tangents") -> dict[str, list[float]]:
    """Error of a method over first order's with the same steps, by problem and seed."""
    ratios_by_problem = {name: ratios(methods, method) for name, methods in curves(folder).items()}
    return {name: ratios_of_seeds for name, ratios_of_seeds in ratios_by_problem.items() if ratios_of_seeds}


class CheckedGradient(NamedTuple):
    """A gradient in the middle of a training.

    Attributes:
        cosine: to the true gradient.
        agreement: of the last check.
        warned: whether the training ended with a warning.
    """

    cosine: float
    agreement: float
    warned: bool


@cache
def checked_gradients() -> list[CheckedGradient]:
    """The gradients of all trainings whose true one is known, and that a check has judged."""
    gradients = []
    for folder in ("tangents", "tangents/fresh"):
        for methods in curves(folder).values():
            for curve in methods.get("chosen", {}).values():
                for cosine, trust in zip(curve["cosines"], curve["trust"], strict=False):
                    agreement = trust.get("tangent_agreement")
                    if cosine is not None and agreement is not None and math.isfinite(agreement):
                        gradients.append(CheckedGradient(cosine, agreement, bool(curve["warned"])))
    return gradients


@cache
def record(number: int) -> str:
    """The text of a decision, a section of the page of its subject."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "decisions").glob("*.md"))
    (text,) = re.findall(rf"^## {number:04d} .*?(?=^##? |\Z)", pages, flags=re.DOTALL | re.MULTILINE)
    return text


@dataclass(frozen=True)
class Detections:
    """How many gradients a rule called wrong, on the problems that it was chosen on and on others.

    Attributes:
        found: of the wrong gradients, on the problems that the rule was chosen on.
        wrong: how many wrong gradients there are.
        false: of the right gradients.
        right: how many right gradients there are.
        fresh_found: as `found`, on problems that were new to the rule.
        fresh_wrong: as `wrong`, on those.
        fresh_false: as `false`, on those.
        fresh_right: as `right`, on those.
    """

    found: int
    wrong: int
    false: int
    right: int
    fresh_found: int
    fresh_wrong: int
    fresh_false: int
    fresh_right: int

    @property
    def found_share(self) -> float:
        """Percent of all wrong gradients that the rule found."""
        return 100 * (self.found + self.fresh_found) / (self.wrong + self.fresh_wrong)

    @property
    def false_share(self) -> float:
        """Percent of all right gradients that the rule called wrong."""
        return 100 * (self.false + self.fresh_false) / (self.right + self.fresh_right)


def detections(line: str, behind: str = "## Figures") -> Detections:
    """A line of decision 59's tables, which has four pairs "m of n".

    Args:
        line: the words with which it begins.
        behind: the words after which the table comes.
    """
    entries = record(59).partition(behind)[2].splitlines()
    entry = next(entry for entry in entries if entry.startswith(f"| {line}"))
    return Detections(*(int(digits.replace(",", "")) for pair in re.findall(PAIR, entry) for digits in pair))
