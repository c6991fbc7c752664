"""An inflow in a channel: its solver's derivative, and what a cell of its study says."""

from __future__ import annotations

import pytest
import torch

from benchmarks.mosaic import inflow


def disturbed(points, seed):
    """A velocity that is not at rest, `(1, 2, points, points)`, in float64."""
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, 2, points, points, generator=draws, dtype=torch.float64)
    return torch.tensor([inflow.SPEED, 0.0], dtype=torch.float64)[:, None, None] + 0.1 * noise


def test_the_channel_s_derivative_is_that_of_its_values():
    box, velocity, step = inflow.Channel(8, 2), disturbed(8, 0), 1e-6
    direction, back = disturbed(8, 1) - inflow.SPEED, disturbed(8, 2)
    asked = velocity.clone().requires_grad_()
    (found,) = torch.autograd.grad(box.advance(asked), asked, back)
    change = box.advance(velocity + step * direction) - box.advance(velocity - step * direction)
    assert float((found * direction).sum()) == pytest.approx(
        float((change * back).sum()) / (2 * step), rel=1e-6
    )


def test_the_inlet_is_held_and_what_enters_leaves():
    velocity = disturbed(16, 3)
    found = inflow.Channel(16, 3).advance(velocity)
    u, v = found.unbind(1)
    assert torch.equal(u[:, 0], velocity[:, 0, 0])
    divergence = u[:, 1:] - u[:, :-1] + (v.roll(-1, -1) - v)[:, :-1]
    assert float(divergence.abs().max()) < 1e-12
    through = u.sum(dim=2)  # of each column of faces
    assert torch.allclose(through, through[:, :1].expand_as(through), atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_a_cell_says_what_was_found_and_what_it_took():
    adjoint, directions = (inflow.searched(inflow.METHODS[place], inflow.CI, 0) for place in (0, 4))
    assert adjoint["rows"] == inflow.CI.evaluations * inflow.CI.rows and adjoint["error"] < 0.9
    assert directions["rows"] % inflow.CI.rows == 0 and directions["losses"][0] == pytest.approx(1)
    named = {"task": {"points": 8, "calls": 2, "after": 1}}
    cells = {
        inflow.METHODS[0]: {"state": "measured", "runs": [adjoint]},
        inflow.METHODS[3]: {"state": "excluded", "why": inflow.excluded(inflow.METHODS[3], inflow.CI)},
    }
    table = inflow.table({**named, "cells": cells})
    assert f"| {inflow.METHODS[0]} | measured | {adjoint['error']:.2g} " in table
    assert f"| {inflow.METHODS[3]} | excluded, one gradient takes 51 rows |" in table
