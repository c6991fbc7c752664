"""Tables and pictures of what rows buy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from benchmarks import protocol
from benchmarks.rows.ways import (
    ALL_ROWS,
    AS_BENCHMARKED,
    FIFTH_OF_LONG,
    LONG,
    MORE_SHARES,
    SHARES,
    by_steps_lines,
    controls,
    long_lines,
    ways,
)
from benchmarks.tangents.problems import CONTROLLERS, DESIGNS
from benchmarks.tangents.report import uncorrected
from blackbox.words import counted
from tasks.folder import atomic
from tasks.report.pictures import figure, save

FOLDER = protocol.RESULTS / "rows"
BY_BATCH, CONTROLLED, BY_STEPS = FOLDER / "by_batch", FOLDER / "controls", FOLDER / "steps"
ENOUGH = 1.05  # times the error of first order tuned at all rows
NOT_RUN, NONE = "not run", "none"
SHOWN = (  # in the picture: line, label, colour, mark, size
    ("replay, 0.2", "no derivative, replay: a fifth of the rows", "#0072b2", "o", 46),
    ("replay, 0.05", "no derivative, replay: a twentieth", "#56b4e9", "o", 22),
    ("tangents, 0.2", "no derivative, no replay: a fifth", "#e69f00", "s", 26),
    ("first order, tuned, 0.2", "first order tuned at a fifth", "#666666", "^", 30),
)
HEAD = """Error on data that no training has seen, over that of first order tuned at all of its rows (1
or 4 rows a batch, the usual learning rate or twice that, chosen on validation data); in brackets the rows,
over those of first order as `tangents` benchmarks it. The median over seeds. "Uncorrected": the box alone,
where a network corrects one. A star: a warning came in the
run. Tangents and replays have one row a batch and the usual learning rate;
no setting is chosen for a problem. Controls replay without a derivative, with the model's own values,
with first order's own derivative as it was stored, and with answers of the box itself, which cost nothing
there. "First warning": the share of the rows of a training with replays at a fifth that was spent where its
first warning came, a number for each seed, where it was noted. Made by `python -m benchmarks rows --size
small`, with `--controls` for these.

Nothing here is measured with the wider grid and the bound on gradients that first order has now: four
trainings to choose from, of which it takes the highest rate in most, and no bound, where tangents have one.
What a wider grid makes of it: `steps/table.md`. On periodic grids of at most 4,096 cells tangents and
replays are of before an equation took part in the default's contest of models (decision 145).

"""


HEAD_OF_STEPS = """Error on data that no training has seen, over that of first order tuned at all of its
rows: from batches of 1 and 4 rows and twice or four times the usual rate on to half and twice the rate and a
quarter and four times the batch, until none of these is better on validation data; gradients are shortened at
twice the median of the last 25, for first order as for tangents. "First order's choice": rows of a batch x
factor on the usual rate, for each seed. "Uncorrected": the box alone, where a network corrects one.
"Suggested rate": by a rule, such that all steps, thirteen a window, go ten times as far as the usual ones,
but within the usual rate and eight times that. "Several rates": `zo.Population(surrogate=False)`, 1, 4 and 16
times the usual rate at once. "Tuned rate": that one, or half, a quarter, an eighth of it, and on until
neither half nor twice the rate is better on validation data; by the true derivative from that one, half and
an eighth of it on (without the eighth but for shallow water). "True derivative": the box itself answers
replays, for nothing: what these windows allow with as many steps, at a fifth with one seed. "Surrogate": a
model alone (`zo.tangents.Surrogate`), fitted in six rounds to the network's rows, 1,200 steps on batches of
eight rows that the box is not asked for, the best of three rates or more on validation data. "Population":
several rates and a network that is trained through the tangents' values share the rows of one training
(decision 194). Medians over the seeds that have a line, which may be fewer than "seeds". "First order, tuned"
at fewer rows is as at all of them; "tangents" have one row a batch, the usual rate and no replays. On
periodic grids a tuned rate and the suggested one are of before an equation took part in the default's contest
(decision 145); of boxes of few numbers these are of before a kernel had a length for each input (decision
148), and of controllers of before decision 150. Made by `python -m benchmarks rows --size small --steps`.

"""


SEVERAL_RATES = "replay, several rates"
SEVERAL, BOUND = f"{SEVERAL_RATES}, 0.05", "replay, tuned rate, true derivative, 0.05"
KINDS = "controller", "design", "correction"
Measured = dict[str, dict[str, Any]]  # problem -> what its file holds


def kind(problem: str) -> str:
    """What its network does, one of `KINDS`; a filter's design, whose batches cost rows, is a correction."""
    if problem in DESIGNS:
        return "design"
    return "controller" if problem in CONTROLLERS else "correction"


def over(result: dict[str, Any], line: str, key: str, against: str) -> float | None:
    """A line's error or rows, over another's, the median over seeds; None where one of them was not run."""
    runs = [run for run in result["runs"].values() if line in run and against in run]
    return median(run[line][key] / run[against][key] for run in runs) if runs else None


def over_tuned(result: dict[str, Any], line: str) -> float | None:
    """A line's error over that of first order tuned at all rows."""
    return over(result, line, "error", ALL_ROWS)


def over_bound(result: dict[str, Any]) -> float | None:
    """The error at several rates over that with the box's true derivative, at a twentieth of the rows."""
    return over(result, SEVERAL, "error", BOUND)


def replayed(result: dict[str, Any]) -> list[float]:
    """The shares of the rows at which replays were run."""
    return [share for share in MORE_SHARES if over_tuned(result, f"replay, {share:g}") is not None]


def share_needed(result: dict[str, Any]) -> float | None:
    """The smallest share of the rows at which replays end near first order tuned at all rows, if any."""
    shares = (
        share for share in MORE_SHARES if (over_tuned(result, f"replay, {share:g}") or math.inf) <= ENOUGH
    )
    return next(shares, None)


def first_warnings(result: dict[str, Any], line: str = "replay, 0.2") -> str:
    """The share of a line's rows that was spent where the first warning came, of each seed that has it."""
    noted = [run[line] for run in result["runs"].values() if "first warning at" in run.get(line, ())]
    spent = [(run["first warning at"], run["rows"]) for run in noted]
    return ", ".join("none" if at is None else f"{at / rows:.2f}" for at, rows in spent)


def over_alone(result: dict[str, Any], alone: float | None) -> float | None:
    """The error of the box alone over that of first order tuned at all rows; None where it has none."""
    firsts = [run[ALL_ROWS]["error"] for run in result["runs"].values() if ALL_ROWS in run]
    return None if alone is None or not firsts else median(alone / first for first in firsts)


def table(measured: Measured, alone: Mapping[str, float]) -> str:
    """Errors over those of first order tuned at all rows, in brackets the rows; a last line with medians.

    Args:
        measured: of each problem.
        alone: the error of the box alone, of problems whose networks correct it.
    """
    every = ways(MORE_SHARES) | controls(MORE_SHARES)
    lines = [
        line for line in every if line != ALL_ROWS and any(over_tuned(o, line) for o in measured.values())
    ]
    text = [
        "| problem | seeds | uncorrected | " + " | ".join(lines) + f" | rows to {ENOUGH:g} | first warning |",
        "| --- " * (5 + len(lines)) + "|",
    ]
    for name, result in measured.items():
        cells = []
        for line in lines:
            error, rows = over_tuned(result, line), over(result, line, "rows", AS_BENCHMARKED)
            said = any(run[line]["warnings"] for run in result["runs"].values() if line in run)
            cells.append(NOT_RUN if error is None else f"{error:.2f}{'*' * said} ({rows:.2f})")
        seeds = sum(any(line.startswith("replay") for line in run) for run in result["runs"].values())
        share = share_needed(result)
        reached = f"{share:g}" if share else f"more than {replayed(result)[-1]:g}"
        text.append(
            f"| {name} | {seeds} | {_alone(over_alone(result, alone.get(name)))} | "
            + " | ".join(cells)
            + f" | {reached} | {first_warnings(result)} |"
        )
    middle = [_middle([over_alone(result, alone.get(name)) for name, result in measured.items()], NONE)]
    for line in lines:
        middle.append(_middle([over_tuned(result, line) for result in measured.values()]))
    counts = [sum(share_needed(result) == share for result in measured.values()) for share in MORE_SHARES]
    reached = ", ".join(
        f"{count} at {share:g}" for count, share in zip(counts, MORE_SHARES, strict=True) if count
    )
    text.append("| **median** | | " + " | ".join(middle) + f" | {reached} of {len(measured)} | |")
    return HEAD + "\n".join(text) + "\n"


def _alone(over: float | None) -> str:
    return NONE if over is None else f"{over:.2f}"


def _middle(errors: Sequence[float | None], without: str = NOT_RUN) -> str:
    known = [error for error in errors if error is not None]
    return f"{median(known):.2f}, worst {max(known):.2f}" if known else without


def steps_table(measured: Measured, alone: Mapping[str, float]) -> str:
    """What steps and fresh batches buy: errors over those of first order tuned at all rows, and medians.

    Args:
        measured: of each problem.
        alone: the error of the box alone, of problems whose networks correct it.
    """
    every = [line for line in by_steps_lines() if any(over_tuned(o, line) for o in measured.values())]
    text = [
        "| problem | kind | seeds | first order's choice | uncorrected | "
        + " | ".join(every)
        + " | several rates over true derivative, 0.05 |",
        "| --- " * (6 + len(every)) + "|",
    ]
    kinds = {name: kind(name) for name in measured}
    errors = {
        name: [
            over_alone(result, alone.get(name)),
            *(over_tuned(result, line) for line in every),
            over_bound(result),
        ]
        for name, result in measured.items()
    }
    for name, result in measured.items():
        runs = [run for run in result["runs"].values() if ALL_ROWS in run]
        choices = [f"{run[ALL_ROWS]['batch']} x {run[ALL_ROWS]['rate']:g}" for run in runs]
        cells = [NOT_RUN if error is None else f"{error:.2f}" for error in errors[name][1:]]
        cells = [_alone(errors[name][0]), *cells]
        text.append(f"| {name} | {kinds[name]} | {len(runs)} | {', '.join(choices)} | {' | '.join(cells)} |")
    for of_kind in sorted(set(kinds.values()), key=KINDS.index):
        cells = []
        for column in zip(*(errors[name] for name in measured if kinds[name] == of_kind), strict=True):
            known = [error for error in column if error is not None]
            middle = f"{median(known):.2f} of {len(known)}, worst {max(known):.2f}" if known else NOT_RUN
            cells.append(middle)
        text.append(f"| **median** | {of_kind} | | | {' | '.join(cells)} |")
    for share in MORE_SHARES:
        ends = {
            name: over_tuned(result, f"replay, several rates, {share:g}") for name, result in measured.items()
        }
        known = sorted(end for end in ends.values() if end is not None)
        if known:
            text.append(
                f"\nAs `blackbox run --rows` spends {share:g} of the rows, at several rates: "
                f"{median(known):.2f} in the median of {len(known)}, "
                f"{known[0]:.2f} to {known[-1]:.2f}; {sum(end <= ENOUGH for end in known)} within "
                f"{ENOUGH:g}, {sum(end <= 1.3 for end in known)} within 1.3."
            )
    for share in MORE_SHARES:
        known = regrets(measured, share)
        if known:
            text.append(
                "\nThe population over the best of one rate, several rates and the tuned surrogate, at "
                f"{share:g} of the rows: {median(known):.2f} in the median of "
                f"{counted(len(known), 'training')}, {known[int(0.9 * len(known))]:.2f} in nine of ten, "
                f"{known[-1]:.2f} at worst."
            )
    text += long_table(measured)
    return HEAD_OF_STEPS + "\n".join(text) + "\n"


def long_table(measured: Measured) -> list[str]:
    """Long trainings: lines of text, none where none was run."""
    whole, fifth, population = long_lines()
    cells = []
    for name, result in measured.items():
        for seed, run in result["runs"].items():
            if whole in run and population in run:
                error = {line: run[line]["error"] for line in (ALL_ROWS, whole, fifth, population)}
                over = [error[whole] / error[ALL_ROWS]]
                over += [error[line] / error[whole] for line in (ALL_ROWS, fifth, population)]
                cells.append((f"| {name} | {seed} |", over))
    if not cells:
        return []
    text = [
        f"\nTrainings with {LONG:g} times first order's rows. The first column has its error over that with "
        "the usual rows, the others are errors over that of the first. The population has a fifth of these "
        "rows, twice the usual ones.\n",
        f"| problem | seed | first order, {LONG:g} | first order, 1 | first order, {FIFTH_OF_LONG:g} "
        f"| population, {FIFTH_OF_LONG:g} |",
        "| --- " * 6 + "|",
    ]
    text += [f"{head} {' | '.join(f'{ratio:.2f}' for ratio in over)} |" for head, over in cells]
    middle = [median(column) for column in zip(*(over for _, over in cells), strict=True)]
    return [*text, f"| **median** | | {' | '.join(f'{ratio:.2f}' for ratio in middle)} |"]


def regrets(measured: Measured, share: float) -> list[float]:
    """The population's error over that of the best other way at the same rows, of all trainings, in order.

    Args:
        measured: of each problem.
        share: of first order's rows.
    """
    own, *others = (f"{line}, {share:g}" for line in ("population", "replay", SEVERAL_RATES, "surrogate"))
    runs = [run for result in measured.values() for run in result["runs"].values() if own in run]
    best = [min(run[line]["error"] for line in others if line in run) for run in runs]
    return sorted(run[own]["error"] / least for run, least in zip(runs, best, strict=True))


SHOWN_OF_STEPS = (  # as `SHOWN`
    ("replay, 0.05", "replay, the usual rate", "#999999", "o", 26),
    ("replay, suggested rate, 0.05", "replay, a rate by a rule", "#56b4e9", "o", 26),
    ("replay, several rates, 0.05", "replay, several rates", "#0072b2", "o", 46),
    ("replay, tuned rate, true derivative, 0.05", "by the true derivative", "#cc79a7", "x", 30),
    ("surrogate, 0.05", "a surrogate alone", "#d55e00", "^", 34),
)


def steps_picture(measured: Measured) -> Figure:
    """What a twentieth of the rows buys by steps and fresh batches, controllers above corrections."""
    made, axes = figure(7.2, 1.3 + 0.34 * len(measured))
    (place,) = axes.flat
    names = sorted(measured, key=lambda name: (name in CONTROLLERS, name))
    for line, label, colour, mark, size in SHOWN_OF_STEPS:
        points = [(over_tuned(measured[name], line), row) for row, name in enumerate(names)]
        known = [(error, row) for error, row in points if error is not None]
        if known:
            place.scatter(*zip(*known, strict=True), s=size, c=colour, marker=mark, label=label, zorder=3)
    place.axvline(1.0, color="#333333", linewidth=1)
    place.set_yticks(range(len(names)), names)
    place.set_xscale("log")
    place.set_xticks(ticks := [0.25, 0.5, 1, 2, 5, 20], [f"{tick:g}" for tick in ticks])
    place.minorticks_off()
    place.set_xlabel("test error at a twentieth of the rows, over that of first order tuned at all of them")
    made.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return made


def picture(measured: Measured) -> Figure:
    """What a fifth and a twentieth of the rows buy on each problem."""
    made, axes = figure(7.2, 1.1 + 0.32 * len(measured))
    (place,) = axes.flat
    names = sorted(
        measured, key=lambda name: over_tuned(measured[name], SHOWN[0][0]) or math.inf, reverse=True
    )
    for line, label, colour, mark, size in SHOWN:
        points = [(over_tuned(measured[name], line), row) for row, name in enumerate(names)]
        known = [(error, row) for error, row in points if error is not None]
        place.scatter(*zip(*known, strict=True), s=size, c=colour, marker=mark, label=label, zorder=3)
    place.axvline(1.0, color="#333333", linewidth=1)
    place.set_yticks(range(len(names)), names)
    place.set_xscale("log")
    place.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    place.set_xlabel("test error, over that of first order tuned at all of its rows")
    made.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return made


def batches_picture(measured: Measured) -> Figure:
    """Error over rows for each size of batch, a panel for each problem."""
    made, axes = figure(2.6 * len(measured), 2.9, 1, len(measured), sharey=True)
    for place, (name, result) in zip(axes.flat, measured.items(), strict=True):
        for batch, colour in ((1, "#0072b2"), (4, "#56b4e9"), (16, "#e69f00")):
            points = [
                (over(result, f"batch {batch}, {share:g}", key, AS_BENCHMARKED) or math.nan)
                for key in ("rows", "error")
                for share in (*SHARES, 1.0)
            ]
            place.loglog(points[:3], points[3:], "o-", color=colour, label=f"{counted(batch, 'row')} a batch")
        place.set_title(name, fontsize=9)
        place.set_xticks([*SHARES, 1.0], ["1/20", "1/5", "1"])
        place.minorticks_off()
        place.set_yticks(ticks := [0.5, 1, 2, 5], [f"{tick:g}" for tick in ticks])
    axes.flat[0].set_ylabel("test error of first order")
    made.supxlabel("rows, over the usual number", fontsize=9)
    made.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return made


def results() -> Measured:
    """All problems on which replays were run, with the controls beside them."""
    by_problem = _of_files(FOLDER)
    for name, controlled in _of_files(CONTROLLED).items():
        for seed, lines in controlled["runs"].items():
            runs = by_problem.get(name, {"runs": {}})["runs"]
            runs[seed] = lines | runs.get(seed, {})
    return {name: result for name, result in by_problem.items() if replayed(result)}


def results_of_steps() -> Measured:
    """All problems on which first order had the wider grid and the bound on its gradients."""
    return _of_files(BY_STEPS)


def _of_files(folder: Path) -> Measured:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def write() -> None:
    """Write the table and the pictures of all problems that were measured, and print the table."""
    measured, alone = results(), uncorrected()
    if measured:
        text = table(measured, alone)
        atomic.write_bytes(FOLDER / "table.md", text.encode())
        save(picture(measured), FOLDER / "rows.png")
        print(text)
    by_rate = results_of_steps()
    if by_rate:
        text = steps_table(by_rate, alone)
        atomic.write_bytes(BY_STEPS / "table.md", text.encode())
        save(steps_picture(by_rate), BY_STEPS / "steps.png")
        print(text)
    batches = _of_files(BY_BATCH)
    if batches:
        save(batches_picture(batches), FOLDER / "batches.png")
