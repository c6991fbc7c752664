"""Figures of rows: errors over first order tuned at all of its rows, of `benchmarks/results/rows`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.figures.measured import (
    advised,
    as_advised,
    beside,
    curves,
    over_tuned,
    rows,
)
from benchmarks.figures.summaries import families, interval, middle, summary
from benchmarks.rows.chosen import RULES_CHOSEN_ON
from benchmarks.rows.report import results_of_steps
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED, long_lines
from benchmarks.tangents.problems import CONTROLLERS, HELD_OUT

WAYS = {  # name of a figure -> line of the results
    "fo": "first order, tuned",
    "tangents": "tangents",
    "replay": "replay",
    "several": "replay, several rates",
    "surrogate": "surrogate",
}
SHARES = {"20": 0.2, "05": 0.05}  # mark -> of first order's rows
CONTROLS = ("no derivative", "model alone", "stored derivative", "true derivative")
ENOUGH = 1.05  # times the error of first order tuned at all rows
TRUE = "replay, tuned rate, true derivative, 0.2"
LITTLE = 0.85  # times that error: what is above has gained little
KERNELS = {  # where decision 77 compared kernels and perceptrons by test errors of seeds 0 to 2
    *("double-pendulum", "double-pendulum-wall", "van-der-pol", "mixed-units", "filter"),
}
LOOKED_AT = KERNELS | {  # where decisions 54, 55 and 61 compared rules of replay so, and their variants
    *("gray-scott", "brusselator", "brusselator-20k", "kuramoto-sivashinsky", "coupled-map", "lorenz-96"),
}


def figures() -> dict[str, float]:
    """Figures of all rows, by name."""
    return _ways() | _advised() | _costs() | _narrow() | _controls() | _tuning() | _long()


def _ways() -> dict[str, float]:
    """Each way to spend rows: over the problems, over those of a kind, and of each."""
    values = summary("fo", over_tuned(AS_BENCHMARKED))
    for mark, share in SHARES.items():
        for way, line in WAYS.items():
            ratios = over_tuned(f"{line}, {share:g}")
            values |= _of_way(f"{way}.{mark}", ratios)
            values |= {f"{problem}, {way}.{mark}": median(seeds) for problem, seeds in ratios.items()}
        bound = f"replay, tuned rate, true derivative, {share:g}"
        values |= _of_way(f"bound.{mark}", over_tuned(f"replay, several rates, {share:g}", bound))
        values |= summary(f"gain.{mark}", over_tuned(f"replay, {share:g}", f"tangents, {share:g}"))
    return values | {"gain.better": _below(over_tuned("replay, 0.2", "tangents, 0.2"), 0.995)}


def _long() -> dict[str, float]:
    """Trainings with ten times first order's rows, over first order with all of these."""
    whole, fifth, population = long_lines()
    runs = [run for result in results_of_steps().values() for run in result["runs"].values()]
    long = [run for run in runs if whole in run and population in run]
    ratios = {
        "long.population": [run[population]["error"] / run[whole]["error"] for run in long],
        "long.fifth": [run[fifth]["error"] / run[whole]["error"] for run in long],
        "long.gain": [run[whole]["error"] / run[ALL_ROWS]["error"] for run in long],
    }
    figures: dict[str, float] = {name: median(of_runs) for name, of_runs in ratios.items() if of_runs}
    figures |= {f"{name}.most": max(of_runs) for name, of_runs in ratios.items() if of_runs}
    return figures | {"long.problems": len(long)} | _held_out(whole)


def _held_out(whole: str) -> dict[str, float]:
    """Errors of the held-out problems with ten times the rows, and with replays that the box answers."""
    figures: dict[str, float] = {}
    for name, line in (("long", whole), ("bound.20", TRUE)):
        ends = {}
        for problem in HELD_OUT:
            runs = results_of_steps()[problem]["runs"].values()
            if ratios := [run[line]["error"] / run[ALL_ROWS]["error"] for run in runs if line in run]:
                ends[problem] = figures[f"{problem}, {name}"] = median(ratios)
        held_out = f"{name}.held-out"
        figures |= {held_out: median(ends.values()), f"{held_out}.problems": len(ends)}
        figures |= {f"{held_out}.least": min(ends.values()), f"{held_out}.most": max(ends.values())}
        figures[f"{held_out}.little"] = sum(end > LITTLE for end in ends.values())
    return figures


def _of_way(name: str, ratios: Mapping[str, Sequence[float]]) -> dict[str, float]:
    values = summary(name, ratios)
    for kind, of_kind in (("controllers", True), ("corrections", False)):
        part = {problem: each for problem, each in ratios.items() if (problem in CONTROLLERS) == of_kind}
        if part:
            values |= {f"{name}.{kind}": middle(part), f"{name}.{kind}.problems": len(part)}
            values[f"{name}.{kind}.worst"] = max(map(median, part.values()))
    ends = [median(each) for each in ratios.values()]
    return values | {
        f"{name}.below": sum(end <= 1 for end in ends),
        f"{name}.reach": sum(end <= ENOUGH for end in ends),
    }


def _advised() -> dict[str, float]:
    """What the pages advise for each kind of problem, and what remains of it where nothing was chosen."""
    values: dict[str, float] = {}
    for mark, share in SHARES.items():
        ratios = as_advised(share)
        values |= _of_way(f"advised.{mark}", ratios)
        new = {problem: each for problem, each in ratios.items() if problem not in RULES_CHOSEN_ON}
        values |= summary(f"advised.{mark}.held-out", new)
        values |= summary(f"equal.{mark}", as_advised(share, f"first order, tuned, {share:g}"))
    together = families(as_advised(0.2))
    low, high = interval(together)
    values |= {"families": len(together), "families.20": middle(together)}
    values |= {"families.20.low": low, "families.20.high": high}
    return values | {"equal.better": _below(as_advised(0.2, "first order, tuned, 0.2"), 1)}


def _below(ratios: Mapping[str, Sequence[float]], limit: float) -> int:
    return sum(ratio < limit for seeds in ratios.values() for ratio in seeds)


def _costs() -> dict[str, float]:
    """Rows and seconds at a fifth of the rows, warnings, and how slow a row has to be for it to pay."""
    values = {}
    lines = {"replay": lambda _: "replay, 0.2", "several": lambda _: "replay, several rates, 0.2"}
    lines["advised"] = lambda problem: advised(problem, 0.2)
    for name, line_of in lines.items():
        runs = [
            (problem, run[line], run)
            for problem, by_seed in rows().items()
            for run in by_seed.values()
            if (line := line_of(problem)) in run
        ]
        silent = [own["error"] / run[ALL_ROWS]["error"] for _, own, run in runs if not own["warnings"]]
        values |= {f"{name}.silent": len(silent), f"{name}.silent.worst": max(silent)}
        values[f"{name}.rows"] = median(own["rows"] / run[AS_BENCHMARKED]["rows"] for _, own, run in runs)
        if (
            name == "advised"
        ):  # of a surrogate the seconds of those trainings that were not chosen are missing
            continue
        values[f"{name}.replays"] = median(own["replays"] for _, own, _ in runs)
        for mark, against in (("", AS_BENCHMARKED), (".tuned", ALL_ROWS)):
            seconds: dict[str, list[float]] = {}
            for problem, own, run in runs:
                seconds.setdefault(problem, []).append(own["seconds"] / run[against]["seconds"])
            saved = [
                1000 * (own["seconds"] - run[against]["seconds"]) / (run[against]["rows"] - own["rows"])
                for _, own, run in runs
            ]
            values[f"{name}.seconds{mark}"] = middle(seconds)
            values[f"{name}.seconds{mark}.worst"] = max(map(median, seconds.values()))
            values |= {f"{name}.even{mark}": median(saved), f"{name}.even{mark}.most": max(saved)}
    surrogates = [
        run[line]
        for by_seed in rows().values()
        for run in by_seed.values()
        for line in run
        if "surrogate" in line
    ]
    tried = [own["tried"] for own in surrogates]
    values |= {"surrogate.tried.least": min(tried), "surrogate.tried.most": max(tried)}
    return values | {"surrogate.seconds": median(own["seconds"] for own in surrogates)}


def _narrow() -> dict[str, float]:
    """Replay over first order that had a narrow grid, and where no rule was chosen on the data."""
    replayed = over_tuned("replay, 0.2", narrow=True)
    values = summary("narrow.20", replayed)
    values |= {f"{name}, narrow.20": median(ratios) for name, ratios in replayed.items()}
    for mark, line in (("first order", AS_BENCHMARKED), ("first order.20", "first order, tuned, 0.2")):
        for name, ratios in over_tuned(line, narrow=True).items():
            values[f"{name}, narrow.{mark}"] = median(ratios)
    values |= summary("unseen", {name: ratios for name, ratios in replayed.items() if name not in LOOKED_AT})
    chosen_on = KERNELS | {"brusselator"}
    fresh = {name: each[2:] for name, each in replayed.items() if each[2:] and name not in chosen_on}
    return values | summary("seed 2", fresh)


def _controls() -> dict[str, float]:
    """What replays give with another derivative, beside the learned one's, of the same seeds."""
    values = {}
    for control in CONTROLS:
        for mark, share in SHARES.items():
            both = beside(f"replay, {control}, {share:g}", f"replay, {share:g}")
            for problem, (of_control, learned) in both.items():
                values[f"{problem}, {control}.{mark}"] = median(of_control)
                values[f"{problem}, beside {control}.{mark}"] = median(learned)
            if both and mark == "20":
                values |= summary(control, {name: of_control for name, (of_control, _) in both.items()})
                values |= summary(f"beside {control}", {name: learned for name, (_, learned) in both.items()})
                over = [a / b for pair in both.values() for a, b in zip(*pair, strict=True)]
                values |= {f"{control}.worse": sum(ratio > ENOUGH for ratio in over)}
                values[f"{control}.reach"] = sum(median(ratios) <= ENOUGH for ratios, _ in both.values())
    return values


def _tuning() -> dict[str, float]:
    """What first order chose, and how many problems were not measured."""
    chosen = [run[ALL_ROWS] for runs in rows().values() for run in runs.values() if "replay, 0.2" in run]
    return {
        "fo.one": sum(run["batch"] == 1 for run in chosen),
        "fo.four": sum(run["rate"] >= 4 for run in chosen),
        "fo.highest": max(run["rate"] for run in chosen),
        "fo.tried": median(run["tried"] for run in chosen),
        "problems": len(curves()),
        "unmeasured": len(set(curves()) - set(rows())),
    }
