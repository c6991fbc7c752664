"""The figures of `python -m benchmarks rows`, from results that are made up."""

import json
import math
from typing import Any, cast

import pytest
import torch

from benchmarks.rows import report, training
from benchmarks.rows.report import (
    BOUND,
    NOT_RUN,
    SEVERAL,
    over,
    over_tuned,
    regrets,
    share_needed,
    steps_table,
    table,
)
from benchmarks.rows.training import Stored, tuned
from benchmarks.rows.ways import ALL_ROWS, AS_BENCHMARKED, BATCHES, RATES, Way, controls
from blackbox import ArraySpec
from zo.tangents import CallPairs


def measured(*errors):
    """Of a problem: in each seed first order tuned at all rows has 2, replays at both shares these errors."""
    return {
        "runs": {
            str(seed): {
                AS_BENCHMARKED: {"error": 3.0, "rows": 1000, "warnings": 0},
                ALL_ROWS: {"error": 2.0, "rows": 1000, "warnings": 0},
                "replay, 0.05": {"error": few, "rows": 50, "warnings": 0},
                "replay, 0.2": {"error": many, "rows": 210, "warnings": seed},
            }
            for seed, (few, many) in enumerate(errors)
        }
    }


def test_errors_are_medians_over_seeds_of_ratios_within_a_seed():
    own = measured((8.0, 1.0), (4.0, 2.0), (2.0, 6.0))
    assert over_tuned(own, "replay, 0.05") == 2.0
    assert over_tuned(own, "replay, 0.2") == 1.0
    assert over_tuned(own, "tangents, 0.2") is None
    assert over(own, "replay, 0.2", "rows", AS_BENCHMARKED) == pytest.approx(0.21)


@pytest.mark.parametrize(
    ("errors", "share"), [((2.1, 9.0), 0.05), ((2.2, 2.0), 0.2), ((2.2, 2.2), None), ((1.0, 1.0), 0.05)]
)
def test_the_smallest_share_that_is_enough(errors, share):
    assert share_needed(measured(errors)) == share


def test_the_table_tells_what_was_not_run_what_was_warned_of_and_what_is_enough():
    more = measured((2.2, 2.0), (2.2, 2.0))
    for seed, at in (("0", None), ("1", 21)):
        more["runs"][seed]["replay, 0.2"]["first warning at"] = at
    more["runs"]["0"]["tangents, 0.4"] = {"error": 2.6, "rows": 400, "warnings": 0}
    text = table({"a": more, "b": measured((2.0, 1.0))}, {"a": 5.0})
    head, _, first, second, last = text.splitlines()[-5:]
    assert "tangents, 0.4" in head and "tangents, 0.2" not in head  # which nobody has run
    assert "| uncorrected |" in head and first.startswith("| a | 2 | 2.50 |")
    assert second.startswith("| b | 1 | none |") and last.startswith("| **median** | | 2.50, worst 2.50 |")
    assert "1.30 (0.40)" in first
    assert "1.10 (0.05)" in first and "1.00* (0.21)" in first and first.endswith("| 0.2 | none, 0.10 |")
    assert "0.50 (0.21)" in second and NOT_RUN in second and second.endswith("| 0.05 |  |")
    assert "0.75, worst 1.00" in last and last.endswith("| 1 at 0.05, 1 at 0.2 of 2 | |")


def test_a_stored_derivative_is_that_of_the_recorded_input_wherever_it_is_replayed():
    spec, z = ArraySpec("x", (2,)), torch.tensor([[1.0, -2.0]])
    pairs = CallPairs((spec,), (spec,), z, z**3)
    there = torch.tensor([[3.0, 1.0]], requires_grad=True)
    change = Stored(lambda x: x**3).at(pairs).to(there, ())
    assert torch.allclose(change, 3 * z**2 * (there - z))
    (slope,) = torch.autograd.grad(change.sum(), there)
    assert torch.allclose(slope, 3 * z**2)


def test_controls_are_those_that_are_named_at_the_shares_that_are_asked_for():
    assert set(controls((0.2,), ("stored-derivative", "no-derivative"))) == {
        "replay, stored derivative, 0.2",
        "replay, no derivative, 0.2",
    }
    assert len(controls()) == 2 * 4


def test_controls_stand_beside_the_lines_of_their_seed_and_replace_none(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FOLDER", tmp_path)
    monkeypatch.setattr(report, "CONTROLLED", tmp_path / "controls")
    own = measured((8.0, 1.0))
    control = {"replay, no derivative, 0.2": {"error": 5.0, "rows": 200, "warnings": 0}}
    report.CONTROLLED.mkdir()
    (tmp_path / "a.json").write_text(json.dumps(own))
    (report.CONTROLLED / "a.json").write_text(
        json.dumps({"runs": {"0": control | {"replay, 0.2": {"error": 9.0, "rows": 1, "warnings": 0}}}})
    )
    (report.CONTROLLED / "b.json").write_text(json.dumps({"runs": {"0": control}}))
    assert report.results() == {"a": {"runs": {"0": own["runs"]["0"] | control}}}


def test_a_choice_is_looked_for_until_its_neighbours_are_worse(monkeypatch):
    """Against all of the grid: of a function with one valley the search ends in its lowest place."""

    def validation(way):
        return 1 + (math.log2(way.rate) - 3.2) ** 2 + (math.log2(way.batch) - 2.4) ** 2 / 9

    monkeypatch.setattr(training, "train", lambda problem, way, seed: {"validation": validation(way)})
    several = [Way(1.0, batch, rate) for batch in BATCHES for rate in RATES]
    chosen = tuned(cast(Any, lambda: None), several, 0)
    grid = [Way(1.0, batch, 2.0**power) for batch in (1, 4, 16, 64) for power in range(-2, 7)]
    assert chosen["validation"] == min(map(validation, grid))
    assert chosen["tried"] == len(chosen["grid"]) < len(grid)
    alone = tuned(cast(Any, lambda: None), several[:1], 0)
    assert alone == {"validation": validation(several[0]), "tried": 1}


def test_the_table_of_steps_has_a_median_of_each_kind():
    both = {"torque-pendulum": measured((4.0, 1.0)), "coupled-map": measured((2.0, 3.0))}
    for result in both.values():
        for run in result["runs"].values():
            run[ALL_ROWS] |= {"batch": 1, "rate": 8.0}
    both["torque-pendulum"]["runs"]["0"]["surrogate, 0.05"] = {"error": 1.0, "rows": 50, "warnings": 0}
    of_coupled = both["coupled-map"]["runs"]["0"]
    of_coupled[SEVERAL] = {"error": 3.0, "rows": 50, "warnings": 0}
    of_coupled[BOUND] = {"error": 1.5, "rows": 50, "warnings": 0}
    text = steps_table(both, {"coupled-map": 3.0})
    head, _, pendulum, coupled, *medians = [line for line in text.splitlines() if line.startswith("|")]
    lines = f"replay, 0.05 | {SEVERAL} | {BOUND} | surrogate, 0.05 | replay, 0.2"
    assert head.endswith(f"| {lines} | several rates over true derivative, 0.05 |")
    assert pendulum == (
        "| torque-pendulum | controller | 1 | 1 x 8 | none | 2.00 | not run | not run | 0.50 | 0.50 | "
        "not run |"
    )
    assert (
        coupled
        == "| coupled-map | correction | 1 | 1 x 8 | 1.50 | 1.00 | 1.50 | 0.75 | not run | 1.50 | 2.00 |"
    )
    of_one = [f"{value} of 1, worst {value}" for value in ("2.00", "0.50", "1.00", "1.50", "0.75")]
    assert medians[0] == (
        f"| **median** | controller | | | not run | {of_one[0]} | not run | not run | {of_one[1]} | "
        f"{of_one[1]} | "
        "not run |"
    )
    assert medians[1] == (
        f"| **median** | correction | | | {of_one[3]} | {of_one[2]} | {of_one[3]} | {of_one[4]} | "
        f"not run | {of_one[3]} | {of_one[0]} |"
    )
    assert text.count("As `blackbox run --rows`") == 1  # at a fifth neither has several rates
    both["torque-pendulum"]["runs"]["0"][SEVERAL] = {"error": 2.2, "rows": 50}
    assert steps_table(both, {}).endswith(
        "several rates: 1.30 in the median of 2, 1.10 to 1.50; 0 within 1.05, 1 within 1.3.\n"
    )


def test_a_regret_is_over_the_best_other_way_of_the_same_training():
    def run(**errors):
        return {f"{line.replace('_', ' ')}, 0.05": {"error": error} for line, error in errors.items()}

    measured = {
        "one": {"runs": {"3": run(population=2.0, replay=4.0, surrogate=1.0), "4": run(replay=1.0)}},
        "two": {
            "runs": {"3": run(population=3.0, replay=6.0) | {"replay, several rates, 0.05": {"error": 4.0}}}
        },
    }
    assert regrets(measured, 0.05) == [0.75, 2.0] and regrets(measured, 0.2) == []
