"""What rows, rates and batches buy: which.md, spend_rows.md and a sentence of the README."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import geometric_mean, median

from benchmarks.claims.figures import Claim, Figure
from benchmarks.claims.pages import in_text
from benchmarks.rows.report import BOUND, budgeted, over, over_bound, over_tuned, results_of_steps
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED
from benchmarks.tangents.problems import CONTROLLERS

SEVERAL_CHOSEN_ON = {  # problems and seeds on which the rule of `zo.RatePopulation` was chosen; decision 143
    *((name, "3") for name in ("bicycle", "coupled-map", "double-pendulum", "henon-heiles", "shallow-water")),
    *(("torque-pendulum", seed) for seed in ("3", "4", "5")),
}


def of_spending_rows() -> Iterator[Claim]:
    """What few steps and fresh batches buy, medians over the problems of a kind."""
    measured = results_of_steps()

    def bought(line: str, controllers: bool = True) -> list[float]:
        of_kind = [result for name, result in measured.items() if (name in CONTROLLERS) == controllers]
        return [error for result in of_kind if (error := over_tuned(result, line)) is not None]

    def figures(*values: float) -> list[tuple[Figure, str]]:
        return [(Figure((value,)), "rows/steps/table.md") for value in values]

    suggested, several = "replay, suggested rate", "replay, several rates"
    usual, at_once, alone = bought("replay, 0.05"), bought(f"{several}, 0.05"), bought("surrogate, 0.05")
    imagined = bought(f"{several}, imagined, 0.05")
    words = (
        "medians of # controllers: at a twentieth of the rows replays at the usual rate #, at several rates "
        "#, with imagined batches #, a surrogate alone #; at a fifth #, #, # and #"
    )
    lines = "replay", several, f"{several}, imagined", "surrogate"
    fifth = [bought(f"{line}, 0.2") for line in lines]
    values = (len(alone), *map(median, (usual, at_once, imagined, alone, *fifth)))
    yield from in_text("docs/which.md", words, *figures(*values))
    words = (
        "Over # controllers they are # in the median at the usual rate, # at several, # with imagined "
        "batches beside (worst #) and # by a surrogate alone (worst #)"
    )
    values = (len(alone), *map(median, (usual, at_once, imagined)), max(imagined), median(alone), max(alone))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    usual, at_once = bought("replay, 0.05", False), bought(f"{several}, 0.05", False)
    by_rule = bought(f"{suggested}, 0.05", False)
    words = (
        "Over # corrections errors at a twentieth of the rows are # in the median at the usual rate (worst "
        "#), # at several (worst #), and # at a rate that a rule suggests (worst #)"
    )
    several_each = [(median(each), max(each)) for each in (usual, at_once, by_rule)]
    values = (len(at_once), *(value for each in several_each for value in each))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))

    ends = {
        (name, seed): run[f"{several}, 0.05"]["error"] / run["replay, 0.05"]["error"]
        for name, result in measured.items()
        for seed, run in result["runs"].items()
        if f"{several}, 0.05" in run
    }
    others = [end for training, end in ends.items() if training not in SEVERAL_CHOSEN_ON]
    words = (
        "Training by training several rates end below one, the usual, in # of #, level with it in # and "
        "above in #, by a factor of # at most. Of the # on which nothing was chosen these are #, # and #, "
        "and the geometric mean is # of it."
    )
    below, level, above = _sides(ends.values())
    values = (below, len(ends), level, above, max(ends.values()))
    values = (*values, len(others), *_sides(others), geometric_mean(others))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    bounds = bought(BOUND, False)
    ends_of = {name: end for name, result in measured.items() if (end := over_bound(result)) is not None}
    beside = {name: end for name, end in ends_of.items() if name not in CONTROLLERS}
    steered = [end for name, end in ends_of.items() if name in CONTROLLERS]
    words = (
        "and the best of several rates # corrections end at # in the median at a twentieth; what is learned "
        "ends at # times that in the median, at # times on the Brusselator and # in different units."
    )
    values = (len(bounds), median(bounds), median(beside.values()), beside["brusselator"])
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values, beside["mixed-units"]))
    words = "# controllers end at # with it, and what is learned at # times that (worst #)."
    values = (len(steered), median(bought(BOUND)), median(steered), max(steered))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    fifth = [result for result in measured.values() if over_tuned(result, f"{several}, 0.2") is not None]
    pairs = [over_tuned(result, line) for line in (f"{several}, 0.2", "replay, 0.2") for result in fifth]
    known = [end for end in pairs if end is not None]
    both = known[: len(fifth)], known[len(fifth) :]
    values = (len(fifth), *(value for each in both for value in (median(each), max(each))))
    words = (
        "Without imagined batches # problems end at # in the median at several rates (worst #) and # at one "
        "(#)"
    )
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    new = {
        training: run[f"{several}, 0.2"]["error"] / run["replay, 0.2"]["error"]
        for name, result in measured.items()
        for seed, run in result["runs"].items()
        if f"{several}, 0.2" in run and (training := (name, seed)) not in SEVERAL_CHOSEN_ON
    }
    values = (len(new), *_sides(new.values()), geometric_mean(new.values()), max(new.values()))
    words = (
        "Of the # trainings on which nothing was chosen # end below that at one rate, # level with it and # "
        "above; the geometric mean is # of it, the worst # times it."
    )
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    words = (
        "At a twentieth they end at # and #, at one rate at # and #; a surrogate alone, tuned, ends "
        "controllers at #, and with a fifth at #."
    )
    values = (median(at_once), median(bought(f"{several}, imagined, 0.05")))
    values = (*values, median(usual), median(bought("replay, 0.05")))
    values = (*values, median(bought("surrogate, 0.05")), median(bought("surrogate, 0.2")))
    yield from in_text("README.md", words, *figures(*values))

    bounded = {
        "coupled maps at": "coupled-map",
        "kicks": "henon-heiles",
        "different units": "mixed-units",
        "a filter": "filter",
        "a drone": "drone",
        "jets": "ks-32-jets",
        "Lorenz-96\n ": "lorenz-96",
        "a bicycle": "bicycle",
        "a stirred tank": "stirred-tank",
        "the torque pendulum": "torque-pendulum",
        "the double pendulum": "double-pendulum",
    }
    runs = {words: measured[name]["runs"]["3"] for words, name in bounded.items()}
    bounds, learned = (
        {words: run[line]["error"] / run[ALL_ROWS]["error"] for words, run in runs.items()}
        for line in ("replay, tuned rate, true derivative, 0.2", f"{several}, 0.2")
    )
    words = "end at # in the median at a fifth, with one seed, where what is learned ends at # at several"
    values = (median(bounds.values()), median(learned.values()))
    yield from in_text("docs/howto/spend_rows.md", words, *figures(*values))
    for words in bounded:
        said = f"{words} # (learned #)" if words == "coupled maps at" else f"{words} # (#)"
        yield from in_text("docs/howto/spend_rows.md", said, *figures(bounds[words], learned[words]))
    ends = [
        run[f"{several}, 0.2"]["error"] / run[ALL_ROWS]["error"]
        for result in measured.values()
        for run in result["runs"].values()
        if f"{several}, 0.2" in run
    ]
    values = (sum(end > 1.3 for end in ends), len(ends))
    yield from in_text("docs/howto/spend_rows.md", "Above 1.3 of first order are # of #", *figures(*values))


def of_imagined_batches() -> Iterator[Claim]:
    """At a fifth of the rows: what they buy controllers, and all problems as `--rows` spends it."""
    measured, page = results_of_steps(), "docs/howto/spend_rows.md"
    controllers = {name: result for name, result in measured.items() if name in CONTROLLERS}
    imagined, without, alone = (
        f"{line}, 0.2" for line in ("replay, several rates, imagined", "replay, several rates", "surrogate")
    )

    def figures(*values: float) -> list[tuple[Figure, str]]:
        return [(Figure((value,)), "rows/steps/table.md") for value in values]

    values: list[float] = [len(controllers)]
    for line in (imagined, without, alone):
        ends = [end for each in controllers.values() if (end := over_tuned(each, line)) is not None]
        values += [median(ends), max(ends)]
    words = (
        "At a fifth of the rows # controllers end at # in the median with imagined batches (worst #), at # "
        "without (worst #), and by a surrogate alone at # (worst #)."
    )
    yield from in_text(page, words, *figures(*values))
    runs = [run for result in controllers.values() for run in result["runs"].values()]
    gains = [run[imagined]["error"] / run[without]["error"] for run in runs]
    seconds = [over(result, imagined, "seconds", AS_BENCHMARKED) for result in controllers.values()]
    words = (
        "Training by training they end below those without in # of #; the geometric mean is # of it, for # "
        "times first order's processor time."
    )
    values = [_sides(gains)[0], len(gains), geometric_mean(gains), median(filter(None, seconds))]
    yield from in_text(page, words, *figures(*values))
    lines = {name: budgeted(name, 0.2) for name in measured}
    ends = [end for name, line in lines.items() if (end := over_tuned(measured[name], line)) is not None]
    trainings = [
        run[lines[name]]["error"] / run[ALL_ROWS]["error"]
        for name, result in measured.items()
        for run in result["runs"].values()
        if lines[name] in run
    ]
    words = (
        "# problems end at # in the median (worst #). Of # trainings # is above 1.3 (the double pendulum's "
        "wall, #)"
    )
    high = sum(end > 1.3 for end in trainings)
    values = [len(ends), median(ends), max(ends), len(trainings), high, max(trainings)]
    yield from in_text(page, words, *figures(*values))


def _sides(ends: Iterable[float]) -> tuple[int, int, int]:
    """How many are below 1, within a hundredth of it, and above."""
    ends = list(ends)
    below, above = sum(end < 0.99 for end in ends), sum(end > 1.01 for end in ends)
    return below, len(ends) - below - above, above
