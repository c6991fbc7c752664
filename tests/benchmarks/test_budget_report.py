"""The headline of `python -m benchmarks budget`, from results that are made up; the commit beside them."""

import json
import re
from statistics import median

import numpy as np
import pytest

from benchmarks.budget import report
from benchmarks.figures import budget
from benchmarks.rows import chosen
from benchmarks.rows.families import spread
from benchmarks.tangents.problems import HELD_OUT

OWN = {"lens": {"3": 1.0, "4": 3.0}, "crane": {"3": 4.0}, "gray-scott": {"3": 6.0}, "drone": {"3": 1.2}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """First order, tuned, ends at 2, replays at half of the command's error, at a twentieth of the rows."""
    own, others = tmp_path / "budget", tmp_path / "steps"
    for name, errors in OWN.items():
        for folder in (own, others):
            folder.mkdir(exist_ok=True)
        mine = {
            seed: {
                "0.05": {
                    "error": 2 * error,
                    "rows": 100,
                    "rows in training": 80,
                    "rates": [1.0],
                    "leader": "rate 1, from step 1",
                    "warnings": ["Step 3: expected this"] * (int(seed) - 3),
                    "seconds": 3.0,
                    "seconds of first order": 1.5,
                }
            }
            for seed, error in errors.items()
        }
        beside = {
            seed: {
                "first order, tuned, 1": {"error": 2.0, "seconds": 1.0, "rows": 2000},
                "first order, tuned, 0.05": {"error": 4.0},
                "replay, 0.05": {"error": error},
            }
            for seed, error in errors.items()
        }
        (own / f"{name}.json").write_text(json.dumps({"runs": mine}))
        (others / f"{name}.json").write_text(json.dumps({"runs": beside}))
    monkeypatch.setattr(report, "FOLDER", own)
    monkeypatch.setattr(report, "BY_STEPS", others)


@pytest.mark.usefixtures("files")
def test_the_headline_is_of_all_problems_and_of_those_that_were_held_out():
    parts = report.parts(report.trainings(0.05))
    assert {one["time"] for one in parts["all"]} == {2.0}  # over first order beside it, not over an older one
    assert {name: len(part) for name, part in parts.items()} == {
        "all": 5,
        "held out": 3,
        "with replay's rules from elsewhere": 1,
        "rules were chosen on": 1,
    }
    alone = report.headline(parts["held out"])
    assert (alone[""], alone["worst"], alone["above"], alone["problems"]) == (3.0, 4.0, 1.0, 2)
    every = report.headline(parts["all"])
    assert (every[""], every["worst"], every["above"]) == (median([2, 4, 6, 1.2]), 6.0, 0.75)
    assert all(one["regret"] == 2.0 for one in parts["all"])


@pytest.mark.usefixtures("files")
def test_each_problem_is_marked_and_each_part_has_a_line_and_figures():
    text = report.write()
    assert "| lens | design | held out | 2 |" in text and "| crane | controller | held out |" in text
    assert (
        "| gray-scott | correction | chosen |" in text and "| drone | controller | replay's elsewhere" in text
    )
    assert re.search(r"\*\*Held out\*\*, at 0.05: .* 3.00 in the median of 2 problems", text)
    found = budget.figures()
    assert found["command.05.held-out"] == 3.0 and found["command.05.worst"] == 6.0
    assert "command.20" not in found
    warned = {name.removeprefix("command.05.warned."): n for name, n in found.items() if "05.warned" in name}
    assert warned == {"none": 4, "none.bad": 2, "one": 1, "one.bad": 1, "more": 0, "more.bad": 0}
    assert "above 1.3 end 2 of 4 with none, 1 of 1 with one." in text


def test_no_rule_was_chosen_on_what_is_held_out():
    assert not set(HELD_OUT) & chosen.RULES_CHOSEN_ON
    assert {chosen.chosen_on(name) for name in HELD_OUT} == {chosen.NOTHING}


def test_an_interval_contains_what_is_certain_and_knows_of_families():
    same = spread({name: [2.0, 2.0] for name in "abc"}, above=1.3, draws=50)
    assert set(same.values()) == {2.0, 1.0}
    values = np.random.default_rng(1).normal(2.0, 0.5, 20)
    apart = spread({str(n): [value] for n, value in enumerate(values)}, above=1.3, draws=500)
    assert apart["low"] < np.median(values) < apart["high"] and apart["worst.high"] == max(values)
    # variants of one simulator count as one: four of two families leave more open than four of four
    few = spread({"wake-1k": [1.0], "wake-30k": [1.0], "ks-3k": [3.0], "ks-26-8": [3.0]}, 1.3, draws=200)
    assert (few["low"], few["high"]) == (1.0, 3.0)
