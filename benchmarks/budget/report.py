"""The table of what the command makes of a budget, over all problems and over those that were held out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from statistics import median, quantiles
from typing import Any

from benchmarks import protocol
from benchmarks.rows.chosen import CHOSEN, ELSEWHERE, NOTHING, chosen_on
from benchmarks.rows.families import FAMILY, spread
from benchmarks.rows.report import BY_STEPS, kind
from benchmarks.rows.ways import ALL_ROWS, BY_VALUES
from blackbox.words import counted
from tasks.folder import atomic

FOLDER = protocol.RESULTS / "budget"
SHARES = (0.05, 0.2)
FAR = 1.3  # times the error of first order tuned at all rows
# how warnings begin that the command gave when it was measured, and gives no more; decision 249
WITHDRAWN = "After ", "std(): "
RIVALS = {  # line of `rows --steps`: head of a column
    "first order, tuned": "first order, tuned at these rows",
    "tangents": "tangents",
    "replay": "one rate",
    "replay, several rates": "several rates",
    "surrogate": "surrogate, tuned",
    BY_VALUES: "CMA-ES, tuned",
}
HEAD = """`python -m benchmarks budget --size small`: the plan of `blackbox run --rows N`. N is a share of
first order's rows and all of them count, also those that are timed or tested. Errors are on data that no
training has seen, over the error of first order *tuned* on validation data at all of its rows (see
`rows/steps/table.md`, from where the other columns are; of each seed that the command has, the median). The
other ways have N rows for training alone, their rates are tuned and their weights chosen on validation data
for nothing. "Rules": a problem is held out if no rule, constant or default was chosen on it, and it was
committed before anything but first order was run on it; on the others models or the rules of the surrogate
were looked at, and on those that say "chosen" the rules of replay. "Regret": the command's error over the
least of the other ways without a derivative that were run. "Rows in training": of N. "Processor time": of
the whole command, report included, over that of one training by first order, tuned, on the same
machine. In brackets: 95 % by a
bootstrap of three stages, which draws families of simulators, their problems and their seeds anew.

"""


def write() -> str:
    """Write the table, and return it."""
    pages = [HEAD, *(_of(share) for share in SHARES)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = "\n".join(pages)
    atomic.write_bytes(FOLDER / "table.md", text.encode())
    return text


def trainings(share: float) -> list[dict[str, Any]]:
    """Each training at a share, with its error and those of other ways over tuned first order's.

    "even" is how long a row has to take, in ms, for the command to end sooner than first order at all rows.
    """
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        others = json.loads((BY_STEPS / path.name).read_text(encoding="utf-8"))["runs"]
        for seed, by_share in json.loads(path.read_text(encoding="utf-8"))["runs"].items():
            mine, beside = by_share.get(str(share)), others.get(seed, {})
            if mine is None or ALL_ROWS not in beside:
                continue
            tuned = beside[ALL_ROWS]
            ratio = {
                rival: beside[f"{rival}, {share:g}"]["error"] / tuned["error"]
                for rival in RIVALS
                if f"{rival}, {share:g}" in beside
            }
            own = mine["error"] / tuned["error"]
            without = [error for rival, error in ratio.items() if rival != "first order, tuned"]
            found.append(
                {
                    "problem": path.stem,
                    "kind": kind(path.stem),
                    "rules": chosen_on(path.stem),
                    "seed": seed,
                    "rates": len(mine["rates"]),
                    "leader": mine["leader"].split(",")[0],
                    "own": own,
                    "regret": own / min(without) if without else None,
                    "in training": mine["rows in training"] / mine["rows"],
                    "time": mine["seconds"] / mine["seconds of first order"],
                    "warnings": _count(mine["warnings"]),
                    "even": 1000
                    * (mine["seconds"] - mine["seconds of first order"])
                    / (tuned["rows"] - mine["rows"]),
                    **ratio,
                }
            )
    return found


def _of(share: float) -> str:
    found = trainings(share)
    if not found:
        return ""
    heads = "problem", "kind", "rules", "seeds", "rates", "led", "command", *RIVALS.values(), "regret", *_LAST
    lines = [
        f"## {share:g} of first order's rows\n",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("---" for _ in heads) + " |",
    ]
    for name in sorted({one["problem"] for one in found}):
        several = [one for one in found if one["problem"] == name]
        first = several[0]
        led = "; ".join(one["leader"] for one in several)
        cells = [name, first["kind"], first["rules"], f"{len(several)}", f"{first['rates']}", led]
        numbers = ["own", *RIVALS, "regret", "in training", "time"]
        lines.append("| " + " | ".join([*cells, *(_middle(several, number) for number in numbers)]) + " |")
    summaries = (f"{_summary(part, share, name)}\n" for name, part in parts(found).items())
    return "\n".join([*lines, "", *summaries, f"- **Warnings**: {_of_warnings(found)}.\n"])


def parts(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Trainings of all problems, of those that were held out, and of the others by what was chosen there."""
    rules = {
        "held out": {NOTHING},
        "with replay's rules from elsewhere": {ELSEWHERE},
        "rules were chosen on": {CHOSEN},
    }
    some = {name: [one for one in found if one["rules"] in which] for name, which in rules.items()}
    return {name: part for name, part in ({"all": found} | some).items() if part}


def headline(found: list[dict[str, Any]]) -> dict[str, float]:
    """The command's errors over tuned first order's: their median, worst, share above a bound, intervals.

    Args:
        found: trainings, see `trainings`.
    """
    problems = {name: [one["own"] for one in found if one["problem"] == name] for name in _names(found)}
    ends = [median(values) for values in problems.values()]
    return {
        "": median(ends),
        "worst": max(ends),
        "above": sum(end > FAR for end in ends) / len(ends),
        "problems": len(ends),
        "families": len({FAMILY.get(name, name) for name in problems}),
        **spread(problems, FAR),
    }


_LAST = "rows in training", "processor time"


def _middle(several: list[dict[str, Any]], number: str) -> str:
    values = [one[number] for one in several if one.get(number) is not None]
    return f"{median(values):.2f}" if values else "not run"


def _summary(found: list[dict[str, Any]], share: float, name: str) -> str:
    ends = headline(found)
    return (
        f"- **{name[0].upper()}{name[1:]}**, at {share:g}: over tuned first order at all rows "
        f"{ends['']:.2f} in the median of {counted(int(ends['problems']), 'problem')} ({ends['low']:.2f} to "
        f"{ends['high']:.2f}), {ends['worst']:.2f} at worst ({ends['worst.low']:.2f} to "
        f"{ends['worst.high']:.2f}), above {FAR:g} in {ends['above']:.0%} ({ends['above.low']:.0%} to "
        f"{ends['above.high']:.0%}); {_regret(found)}; rows in training "
        f"{median(one['in training'] for one in found):.2f} of N, at least "
        f"{min(one['in training'] for one in found):.2f}; processor time "
        f"{median(one['time'] for one in found):.1f} times that of first order, tuned."
    )


def _regret(found: list[dict[str, Any]]) -> str:
    regrets = sorted(one["regret"] for one in found if one["regret"] is not None)
    if not regrets:
        return "the other ways were not run"
    nine = quantiles(regrets, n=10, method="inclusive")[-1] if len(regrets) > 1 else regrets[0]
    return (
        f"regret {median(regrets):.2f} in the median of {counted(len(regrets), 'training')}, {nine:.2f} in "
        f"nine of ten, {regrets[-1]:.2f} at worst"
    )


def warned(found: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Trainings, and those among them that end above `FAR`, by how many warnings a training had."""
    groups = {"none": (0, 0), "one": (1, 1), "more": (2, math.inf)}
    ends = {
        name: [one["own"] > FAR for one in found if a <= one["warnings"] <= b]
        for name, (a, b) in groups.items()
    }
    return {name: (len(some), sum(some)) for name, some in ends.items()}


def _of_warnings(found: list[dict[str, Any]]) -> str:
    by_count = warned(found)
    told = (f"{bad} of {count} with {name}" for name, (count, bad) in by_count.items() if count)
    return f"above {FAR:g} end {', '.join(told)}"


def _count(warnings: list[str]) -> int:
    """The number of warnings, but for those that the command gives no more."""
    return sum(not warning.startswith(WITHDRAWN) for warning in warnings)


def _names(found: list[dict[str, Any]]) -> Mapping[str, None]:
    return dict.fromkeys(one["problem"] for one in found)
