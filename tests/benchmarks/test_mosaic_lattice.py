"""XLB's populations: what is made of a velocity and back, and a wave that decays as in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.mosaic import comparison, lattice
from benchmarks.mosaic.corrector import CI, loss_scale
from benchmarks.mosaic.flow import start

pytestmark = [pytest.mark.needs("xlb"), pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
POINTS, VISCOSITY = 18, 0.02


@pytest.fixture(scope="module")
def box():
    return lattice.Lattice(POINTS, VISCOSITY)


def test_populations_have_the_velocity_and_give_it_back(box):
    velocity = torch.from_numpy(start(POINTS, 2))[None]
    state = box.populations(velocity)
    assert torch.allclose(box.velocity(state), velocity, atol=1e-12)
    other = box.with_velocity(state, 0.5 * velocity)
    assert torch.allclose(box.velocity(other), 0.5 * velocity, atol=1e-12)
    assert torch.allclose(other.sum(dim=1), state.sum(dim=1), atol=1e-12)


def test_a_shear_wave_decays_by_its_viscosity(box):
    """u_0 = sin(y) and nothing else: exp(-viscosity k^2 t), k = 1, t = .08 a call."""
    along = torch.arange(POINTS, dtype=torch.float64) * 2 * math.pi / POINTS
    velocity = torch.zeros(1, 2, POINTS, POINTS, dtype=torch.float64)
    velocity[0, 0] = 0.3 * torch.sin(along)[None, :]
    state = box.populations(velocity).float()
    for _ in range(10):
        state = box(state)
    found = box.velocity(state)[0].double()
    assert float(found[0].norm() / velocity[0, 0].norm()) == pytest.approx(
        math.exp(-0.8 * VISCOSITY), rel=1e-3
    )
    assert float(found[1].abs().max()) < 1e-4


def test_its_own_derivative_is_that_of_its_values(box):
    state = box.populations(torch.from_numpy(start(POINTS, 3))[None]).float()
    draws = torch.Generator().manual_seed(0)
    back, along = (torch.randn(state.shape, generator=draws) for _ in range(2))
    through = lattice.with_vjp(box)
    assert through is not None
    asked = state.clone().requires_grad_()
    (through(asked) * back).sum().backward()
    assert asked.grad is not None
    with torch.no_grad():
        wanted = ((box(state + 1e-3 * along) - box(state - 1e-3 * along)) / 2e-3 * back).sum()
    assert float((asked.grad * along).sum()) == pytest.approx(float(wanted), rel=0.02)


def test_a_cell_is_measured_for_each_seed_that_is_missing():
    maker = lattice.SOLVERS["XLB"]
    box = maker.make(CI.points, CI.viscosity)
    assert isinstance(box, lattice.Lattice)
    scale = loss_scale(box, CI)
    one = comparison.cell("NOG", box, maker, CI, (0,), scale, {})
    two = comparison.cell("NOG", box, maker, CI, (0, 1), scale, {"NOG": one})
    assert two["runs"][0] == one["runs"][0] and len(two["runs"]) == 2
    assert np.isfinite(two["runs"][1]["final"]) and two["runs"][1]["rows"] == CI.updates * CI.unroll
