"""Twins below learned rests: what the boxes' twins are, and tables from results that are made up."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.posterior import contest
from benchmarks.rows import twins
from benchmarks.tangents.problems import problems


@pytest.mark.parametrize("name", [name for name in contest.BOXES if name != "rotated"])
def test_a_boxes_twin_is_rough_and_no_stranger(name):
    box = contest.BOXES[name]()
    x = box.draw(20, torch.Generator().manual_seed(5))
    assert box.twin is not None
    assert box.twin(x).shape == box.values(x).shape
    exact, rough = (box.gradient(x, values) for values in (box.values, box.twin))
    assert 0.6 < torch.cosine_similarity(exact, rough).median() < 0.99


def test_a_model_above_a_twin_that_lacks_a_line_is_right_and_is_selected(monkeypatch):
    for name in ("additive", "mlp"):
        monkeypatch.delitem(contest.MODELS, name)
    box = contest.of_normal(
        lambda x: torch.sin(3 * x) * x.roll(1, 1) + x, 5, 1.0, 0.1, lambda x: torch.sin(3 * x) * x.roll(1, 1)
    )
    found = contest.measure(box, 30, 0)
    assert found["kind"] in ("linear", "kernel")
    assert found["kind above prior"].endswith(" above prior")
    cosines = found["cosines"]
    assert cosines["linear above prior"][1] > 0.999
    assert cosines["selected above prior"][1] > 0.999
    assert cosines["selected"] == pytest.approx(cosines[found["kind"]], abs=1e-6)
    assert cosines["selected"][0] < 0.9
    assert cosines["twin"][1] < 0.99


def test_what_is_selected_is_held_against_the_best_of_its_own_candidates():
    names = "linear", "kernel", "linear above prior"
    run = {
        "kind": "linear",
        "kind above prior": "linear above prior",
        "errors": dict.fromkeys(names, 0.1),
        "cosines": {
            "linear": [0.6, 0.5],
            "kernel": [0.7, 0.51],
            "selected": [0.6, 0.5],
            "twin": [0.99, 0.99],  # which learns nothing, and is no candidate
            "linear above prior": [0.9, 0.8],
            "selected above prior": [0.9, 0.8],
        },
    }
    said = (
        "Selected is more than 0.02 below the best model in {} of 1 medians, at most by {:.3f} and in 0 of 1"
    )
    assert contest.missed({"a": run}, "kind").startswith(said.format(1, 0.1))
    assert contest.missed({"a": run}, "kind above prior").startswith(said.format(0, 0))
    assert contest.missed({"a": run}, "kind above prior").endswith("0.000.")


def test_a_seed_that_lacks_a_prior_is_not_in_the_table():
    def done(first, *ratios):  # what `rows` has measured says no kind
        others = zip(("twin", "wrong sign"), ratios, strict=False)
        return {"default": {"ratio": first}} | {n: {"ratio": ratio, "kind": "prior"} for n, ratio in others}

    text = twins.table(
        {
            "0.2": {"drone": {"3": done(1.0, 0.5, 3.0)}},
            "0.05": {
                "filter": {"3": done(2.0, 1.0, 2.0), "4": done(4.0, 1.0, 4.0), "5": done(100.0, 1.0)},
                "drone": {"3": done(1.0, 4.0, 3.0)},
                "bicycle": {"3": done(1.0)},
            },
        }
    )
    assert "| filter | 2 | 3.00 | 1.00 | 3.00 | prior, prior | prior, prior |" in text
    assert "bicycle |" not in text
    over = 0.375, 4.0
    mean = math.sqrt(over[0] * over[1])
    assert (
        f"With 'twin', over the default: {sum(over) / 2:.2f} in the median of 2 problems, {mean:.2f}" in text
    )
    least, more = text.split("Error at 0.2 of the rows")
    assert "4.00 at worst (drone)" in least
    assert "0.50 at worst (drone)" in more


def test_twins_have_seeds_of_first_order_and_shapes_of_their_boxes():
    box = problems("small")["torque-pendulum"]().box
    state, action = torch.full((3, 2), 0.3), torch.zeros(3, 1)
    assert twins.TWINS["torque-pendulum"](state, action) == pytest.approx(box(state, action), abs=0.2)
    assert not torch.allclose(twins.TWINS["torque-pendulum"](state, action), box(state, action), atol=0.01)
    assert all((twins.BY_STEPS / f"{name}.json").exists() for name in twins.TWINS)
