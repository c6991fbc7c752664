"""Keyed draws, and what depends on them: no global state, no chunk, no order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo


def test_draws_depend_on_seed_step_and_path_alone():
    def draw(seed: int, step: int, *path: int) -> float:
        torch.rand(3)
        return torch.rand((), generator=zo.estimators.Key(seed, step).generator(*path)).item()

    keys = [(0, 0), (1, 0), (0, 1), (0, 0, 1), (0, 0, 2), (0, 0, 1, 0)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]


def test_the_global_generator_is_not_moved():
    parameters = zo.estimators.Parameters(nn.Linear(10, 10))
    before = torch.get_rng_state()
    zo.RGE(1e-3, q=3).plan(parameters, zo.estimators.Key(0)).chunk(0, 3)
    zo.RandomCoordinates(4).draw(parameters, zo.estimators.Key(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scheme", ["forward", "antithetic"])
def test_directions_do_not_depend_on_the_chunk(scheme):
    parameters = zo.estimators.Parameters(nn.Linear(10, 10))
    plan = zo.RGE(1e-3, q=9, central=scheme != "forward").plan(parameters, zo.estimators.Key(3))
    whole = plan.chunk(0, plan.queries).steps
    parts = [plan.chunk(p, min(p + 4, plan.queries)).steps for p in range(0, plan.queries, 4)]
    assert torch.equal(torch.cat(parts), whole)
    if scheme == "antithetic":
        assert torch.equal(whole[0::2], -whole[1::2])


def test_sparse_set_is_redrawn_every_k_steps():
    parameters = zo.estimators.Parameters(nn.Linear(50, 50))
    sparsity = zo.RandomCoordinates(20, every=3)
    sets = [tuple(sparsity.draw(parameters, zo.estimators.Key(0, step)).tolist()) for step in range(7)]
    assert sets[0] == sets[1] == sets[2] != sets[3] == sets[5] != sets[6]
    assert all(list(s) == sorted(set(s)) and len(s) == 20 for s in sets)


def test_every_coordinate_is_drawn_about_equally_often():
    """Chi-square of 4,000 draws of 5 out of 25; the 1 - 1e-6 quantile for 24 degrees is 76."""
    parameters = zo.estimators.Parameters(nn.Linear(24, 1))
    counts = torch.zeros(25)
    for step in range(4000):
        counts[zo.RandomCoordinates(5).draw(parameters, zo.estimators.Key(1, step))] += 1
    assert ((counts - 800) ** 2 / 800).sum() < 76
