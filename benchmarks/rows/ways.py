"""The ways to spend rows, and in which lines of a table they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.tangents.problem import BenchmarkProblem
from zo.tangents.population import FACTORS

SHARES = (0.05, 0.2)  # of first order's rows
MORE_SHARES = (0.05, 0.1, 0.2, 0.4)  # which may be asked for
LONG, FIFTH_OF_LONG = 10.0, 2.0  # of long trainings: ten times first order's rows, and a fifth of these
BATCHES, RATES = (1, 4), (1.0, 2.0)  # with which first order is tuned, to begin with
LARGEST_BATCH, HIGHEST_RATE = 64, 64.0  # where that ends
AROUND, BOUND_AROUND = (0.125, 0.25, 0.5, 1.0), (0.125, 0.5, 1.0)  # times the suggested rate, to begin with
CONTROLS = ("no-derivative", "model-alone", "stored-derivative", "true-derivative")
AS_BENCHMARKED, ALL_ROWS, BY_VALUES = "first order", "first order, tuned, 1", "CMA-ES"
SPREAD = 0.1  # of each weight in the first generation of CMA-ES, at a rate of one


@dataclass(frozen=True)
class Way:
    """A way to spend rows.

    Attributes:
        share: of the rows of first order.
        batch: rows of a batch; None for the problem's.
        rate: factor on the problem's learning rate.
        derivative: of the box: its twin's ("true"), learned ("learned"), learned with the model's own values
            in replays ("model"), its twin's where it was recorded ("stored"), none, as in no-gradient
            ("cut"), that of a model that stands for the box ("surrogate"), or no gradient of anything, but
            sep-CMA-ES, whose first standard deviation is `SPREAD` times the rate ("values").
        replays: whether recorded windows are replayed.
        suggested: whether the rate is the one that is suggested for so many steps, times `rate`.
        factors: on the rate, of members of a `zo.Population`; none for one training.
        surrogate: whether that has a member that is trained through the model.
    """

    share: float = 1.0
    batch: int | None = None
    rate: float = 1.0
    derivative: Literal["true", "learned", "model", "stored", "cut", "surrogate", "values"] = "true"
    replays: bool = False
    suggested: bool = False
    factors: tuple[float, ...] = ()
    surrogate: bool = False


def ways(shares: Sequence[float] = SHARES) -> dict[str, list[Way]]:
    """The lines of the table: of several ways the one that is best on validation data counts."""
    lines = {AS_BENCHMARKED: [Way()]}
    for share in (*shares, 1.0):
        lines[f"first order, tuned, {share:g}"] = [Way(share, b, rate) for b in BATCHES for rate in RATES]
    for share in shares:
        lines[f"tangents, {share:g}"] = [Way(share, 1, derivative="learned")]
        lines[f"replay, {share:g}"] = [Way(share, 1, derivative="learned", replays=True)]
    return lines


def controls(shares: Sequence[float] = SHARES, names: Sequence[str] = CONTROLS) -> dict[str, list[Way]]:
    """The lines of what a gain may come from: reuse alone, the model's values, and the derivative."""
    by_line = {}
    for share in shares:
        lines = {
            "no-derivative": Way(share, 1, derivative="cut", replays=True),
            "model-alone": Way(share, 1, derivative="model", replays=True),
            "stored-derivative": Way(share, 1, derivative="stored", replays=True),
            "true-derivative": Way(share, 1, replays=True),
        }
        by_line |= {f"replay, {n.replace('-', ' ')}, {share:g}": [w] for n, w in lines.items() if n in names}
    return by_line


def by_batch() -> dict[str, list[Way]]:
    """First order with batches of three sizes, at three numbers of rows, each with the better rate."""
    lines = {AS_BENCHMARKED: [Way()]}
    for batch in (1, 4, 16):
        for share in (*SHARES, 1.0):
            lines[f"batch {batch}, {share:g}"] = [Way(share, batch, rate) for rate in RATES]
    return lines


def by_steps(problem: BenchmarkProblem, shares: Sequence[float] = SHARES) -> dict[str, list[Way]]:
    """What steps and fresh batches buy at the same rows, beside first order on a wide grid."""
    begun = [Way(1.0, batch, rate) for batch, rate in ((1, 2.0), (1, 4.0), (4, 4.0))]
    lines = {AS_BENCHMARKED: [Way()], ALL_ROWS: begun}
    for share in shares:
        lines[f"first order, tuned, {share:g}"] = [replace(way, share=share) for way in begun]
        lines[f"tangents, {share:g}"] = [Way(share, 1, derivative="learned")]
        replayed = Way(share, 1, derivative="learned", replays=True)
        lines[f"replay, {share:g}"] = [replayed]
        lines[f"replay, suggested rate, {share:g}"] = [replace(replayed, suggested=True)]
        lines[f"replay, several rates, {share:g}"] = [replace(replayed, factors=FACTORS)]
        lines[f"population, {share:g}"] = [replace(replayed, factors=FACTORS, surrogate=True)]
        if share == min(shares):
            tuned = [replace(replayed, rate=rate, suggested=True) for rate in AROUND]
            lines[f"replay, tuned rate, {share:g}"] = tuned
            if problem.exact is not None:
                bound = [replace(way, derivative="true") for way in tuned if way.rate in BOUND_AROUND]
                lines[f"replay, tuned rate, true derivative, {share:g}"] = bound
        if share == min(shares) and problem.fresh is not None:
            rates = (2.0, 4.0)  # to begin with
            lines[f"surrogate, {share:g}"] = [Way(share, 1, rate, derivative="surrogate") for rate in rates]
        if share == min(shares):
            spreads = (0.25, 1.0)  # to begin with
            lines[f"{BY_VALUES}, {share:g}"] = [Way(share, 1, rate, derivative="values") for rate in spreads]
    return lines


def neighbours(way: Way) -> list[Way]:
    """Ways with half and twice the rate; of first order those with a quarter and four times the batch too."""
    batch = way.batch or 1
    rates = [way.rate / 2, way.rate * 2] if way.rate < HIGHEST_RATE else [way.rate / 2]
    sizes = [size for size in (batch // 4, 4 * batch) if 1 <= size <= LARGEST_BATCH]
    same = [replace(way, rate=rate) for rate in rates]
    rate_alone = way.replays or way.derivative in ("surrogate", "values")
    return same if rate_alone else same + [replace(way, batch=size) for size in sizes]


def long_lines() -> tuple[str, str, str]:
    """The lines of a long training: first order with ten times its rows, and two others with a fifth."""
    fifth = f"{FIFTH_OF_LONG:g}"
    return f"first order, tuned, {LONG:g}", f"first order, tuned, {fifth}", f"population, {fifth}"


def by_steps_lines() -> list[str]:
    """The lines of `by_steps` beside first order, in the order of the table."""
    suggested, several, tuned = (
        f"replay, {rate}" for rate in ("suggested rate", "several rates", "tuned rate")
    )
    equal_rows = "first order, tuned", "tangents"
    named = (
        *equal_rows,
        "replay",
        suggested,
        several,
        "population",
        tuned,
        f"{tuned}, true derivative",
        "surrogate",
        BY_VALUES,
    )
    return [f"{line}, {share:g}" for share in MORE_SHARES for line in named]
