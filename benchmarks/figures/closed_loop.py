"""Figures of networks that are asked in closed loop, of what that costs, and of a step on large grids."""

from __future__ import annotations

from statistics import fmean, median

from benchmarks.closed_loop import over_tuned
from benchmarks.figures.measured import read


def figures() -> dict[str, float]:
    """Figures whose names begin with "closure, ", "closed loop, ", "exchange, " or "size, "."""
    return _closure() | _programs() | _exchange() | _size()


def _closure() -> dict[str, float]:
    """Errors of free runs at the rate that is best in the mean, their least and most over seeds; and rows.

    A rate behind a line's name is that line at this rate.
    """
    values = {"closure, no closure": read("closure_uncorrected.json")["error"]}
    for line, by_rate in read("closure.json")["lines"].items():
        for rate, runs in by_rate.items():
            values[f"closure, {line}, {rate}"] = fmean(run["error"] for run in runs)
        best = min(by_rate.values(), key=lambda runs: fmean(run["error"] for run in runs))
        errors, name = [run["error"] for run in best], f"closure, {line}"
        values |= {name: fmean(errors), f"{name}.least": min(errors), f"{name}.most": max(errors)}
        values[f"{name}, rows"] = fmean(run["rows"] for run in best)
    return values


def _programs() -> dict[str, float]:
    """Each program's error over first order's, steps without a gradient, and warnings; means over seeds.

    "late" is first order that waits as long as the training did, over first order. "replays" is a population
    for the same rows, over first order at its best rate; ".replays" is that of the median program, and
    ".replays.worst" of the worst training.
    """
    values, beyond, replayed = dict[str, float](), list[float](), list[list[float]]()
    for name, runs in read("closed_loop.json")["programs"].items():
        values |= {
            f"closed loop, {name}": fmean(run["over"] for run in runs),
            f"closed loop, {name}.worst": max(run["over"] for run in runs),
            f"closed loop, {name}, late": fmean(run["late"] for run in runs),
            f"closed loop, {name}, waits": fmean(run["without"] for run in runs),
            f"closed loop, {name}, warnings": fmean(len(run["warnings"]) for run in runs),
        }
        beyond.append(fmean(run["over"] / run["late"] for run in runs))
        if found := [over_tuned(run) for run in runs if "replayed" in run]:
            values[f"closed loop, {name}, replays"] = fmean(found)
            replayed.append(found)
    if replayed:
        values["closed loop.replays"] = median(map(fmean, replayed))
        values["closed loop.replays.worst"] = max(map(max, replayed))
        values["closed loop.replays.programs"] = len(replayed)
    return values | {"closed loop.beyond the wait": median(beyond)}


def _exchange() -> dict[str, float]:
    """Microseconds of the processor, by the array's KiB and what hands it over; and those over FTorch's."""
    return {
        f"exchange, {int(count) * 8 // 1024} KiB, {line}": cost
        for count, found in read("exchange.json")["sizes"].items()
        for line, cost in found["of the processor"].items()
    } | {
        f"exchange, over FTorch, {line}": ratio
        for line, ratio in read("exchange_ftorch.json")["columns"]["of the processor, over FTorch"].items()
    }


def _size() -> dict[str, float]:
    """Seconds of a later step, and memory, over first order's, by box and state."""
    values, cases = {}, read("size/size.json")["cases"]
    for case, own in cases.items():
        name = case.removesuffix(" tangents")
        first = cases.get(f"{name} first-order")
        if name != case and first is not None:
            values[f"size, {name}, seconds"] = own["later"] / first["later"]
            values[f"size, {name}, memory"] = own["memory"] / first["memory"]
    return values
