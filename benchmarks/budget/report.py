"""The table of what the command makes of a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import median, quantiles
from typing import Any

from benchmarks import protocol
from benchmarks.rows.report import BY_STEPS
from benchmarks.rows.ways import ALL_ROWS
from benchmarks.tangents.problems import CONTROLLERS
from tasks.folder import atomic

FOLDER = protocol.RESULTS / "budget"
SHARES = (0.05, 0.2)
RIVALS = {  # line of `rows --steps`: head of a column
    "first order, tuned": "first order, tuned at these rows",
    "tangents": "tangents",
    "replay": "one rate",
    "replay, several rates": "several rates",
    "surrogate": "surrogate, tuned",
}
HEAD = """`python -m benchmarks budget --size small`: the plan of `blackbox run --rows N`. N is a share of
first order's rows and all of them count, also those that are timed or tested. Errors are on data that no
training has seen, over the error of first order *tuned* on validation data at all of its rows (see
`rows/steps/table.md`, from where the other columns are; of each seed that the command has, the median). The
other ways have N rows for training alone, their rates are tuned and their weights chosen on validation data
for nothing. "Regret": the command's error over the least of the other ways without a derivative. "Rows in
training": of N. "Processor time": of the whole command, report included, over that of one training by first
order, tuned.

"""


def write() -> str:
    """Write the table, and return it."""
    parts = [HEAD, *(_of(share) for share in SHARES)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = "\n".join(parts)
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
                    "kind": "controller" if path.stem in CONTROLLERS else "correction",
                    "seed": seed,
                    "rates": len(mine["rates"]),
                    "leader": mine["leader"].split(",")[0],
                    "own": own,
                    "regret": own / min(without) if without else None,
                    "in training": mine["rows in training"] / mine["rows"],
                    "time": mine["seconds"] / tuned["seconds"],
                    "even": 1000 * (mine["seconds"] - tuned["seconds"]) / (tuned["rows"] - mine["rows"]),
                    **ratio,
                }
            )
    return found


def _of(share: float) -> str:
    found = trainings(share)
    if not found:
        return ""
    heads = "problem", "kind", "seeds", "rates", "led", "command", *RIVALS.values(), "regret", *_LAST
    lines = [
        f"## {share:g} of first order's rows\n",
        "| " + " | ".join(heads) + " |",
        "| " + " | ".join("---" for _ in heads) + " |",
    ]
    for name in sorted({one["problem"] for one in found}):
        several = [one for one in found if one["problem"] == name]
        first = several[0]
        led = "; ".join(one["leader"] for one in several)
        cells = [name, first["kind"], f"{len(several)}", f"{first['rates']}", led]
        numbers = ["own", *RIVALS, "regret", "in training", "time"]
        lines.append("| " + " | ".join([*cells, *(_middle(several, number) for number in numbers)]) + " |")
    return "\n".join([*lines, "", _summary(found, share), ""])


_LAST = "rows in training", "processor time"


def _middle(several: list[dict[str, Any]], number: str) -> str:
    values = [one[number] for one in several if one.get(number) is not None]
    return f"{median(values):.2f}" if values else "not run"


def _summary(found: list[dict[str, Any]], share: float) -> str:
    regrets = sorted(one["regret"] for one in found if one["regret"] is not None)
    nine = quantiles(regrets, n=10, method="inclusive")[-1] if len(regrets) > 1 else regrets[0]
    problems = {name: [one["own"] for one in found if one["problem"] == name] for name in _names(found)}
    return (
        f"At {share:g}: regret {median(regrets):.2f} in the median of {len(regrets)} trainings, {nine:.2f} "
        f"in nine of ten, {regrets[-1]:.2f} at worst; over tuned first order at all rows "
        f"{median(map(median, problems.values())):.2f} in the median of {len(problems)} problems; rows in "
        f"training {median(one['in training'] for one in found):.2f} of N, at least "
        f"{min(one['in training'] for one in found):.2f}; processor time "
        f"{median(one['time'] for one in found):.1f} times that of first order, tuned."
    )


def _names(found: list[dict[str, Any]]) -> Mapping[str, None]:
    return dict.fromkeys(one["problem"] for one in found)
