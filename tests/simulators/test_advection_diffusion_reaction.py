"""Advection, diffusion, reaction: each term against its closed form; mass, bounds, shocks, order."""

import math
from itertools import pairwise

import pytest
import torch

from simulators.advection_diffusion_reaction import DIRECTIONS, LARGEST, AdvectionDiffusionReaction


def burgers(cells: int, **settings) -> AdvectionDiffusionReaction:
    """Advection alone."""
    return AdvectionDiffusionReaction(cells, cells, **({"diffusion": 0.0, "reaction": 0.0} | settings))


def rough(rows: int, cells: int = 12) -> torch.Tensor:
    """Values of every sign from cell to cell, up to the largest that a step is made for."""
    draw = torch.rand(rows, 2, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return LARGEST * (2 * draw - 1)


def advance(box: AdvectionDiffusionReaction, state: torch.Tensor, time: float) -> torch.Tensor:
    with torch.no_grad():
        for _ in range(round(time / box.dt)):
            state = box.step(state)
    return state


def along_x(cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of the cells, and a wave of one period along x that all rows of cells share."""
    x = torch.arange(cells, dtype=torch.float64)
    return x, torch.sin(2 * math.pi * x / cells).expand(2, cells, cells)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("diffusion", [0.0, 0.1, 1.0])
def test_mass_is_conserved_and_no_new_extrema_appear(diffusion):
    box = burgers(12, diffusion=diffusion, dt=0.5)
    state = rough(8)
    for _ in range(30):
        after = box.step(state)
        assert (after.sum((-1, -2)) - state.sum((-1, -2))).abs().max() < 1e-11
        assert (after.amax((-1, -2)) <= state.amax((-1, -2)) + 1e-12).all()
        assert (after.amin((-1, -2)) >= state.amin((-1, -2)) - 1e-12).all()
        state = after
    assert state.std() < 0.5 * rough(8).std()  # shocks have eaten most of the energy


def test_total_variation_does_not_grow_along_a_line():
    box = burgers(24, dt=0.5)
    state = rough(4, 24)[:, :, :1, :].expand(-1, -1, 24, -1)  # the same along y: one dimension
    variation = [float(state.diff(dim=-1, append=state[..., :1]).abs().sum())]
    for _ in range(20):
        state = box.step(state)
        variation.append(float(state.diff(dim=-1, append=state[..., :1]).abs().sum()))
    assert all(b <= a + 1e-9 for a, b in pairwise(variation))
    assert variation[-1] < 0.5 * variation[0]


def exact_burgers(x: torch.Tensor, time: float, speed: float, cells: int) -> torch.Tensor:
    """Before the shock: u(x, t) = sin(2 pi (x - speed u t) / cells), by Newton's method on u."""
    k = 2 * math.pi / cells
    u = torch.sin(k * x)
    for _ in range(60):
        phase = k * (x - speed * u * time)
        u = u - (u - torch.sin(phase)) / (1 + k * speed * time * torch.cos(phase))
    return u


def test_second_order_before_the_shock():
    """Mean error over grids of 24, 48 and 96 cells at half the time to the shock, t = 1 / (k |a|)."""
    errors = []
    for cells in (24, 48, 96):
        x, state = along_x(cells)
        box = burgers(cells, dt=cells / 96)
        time = cells / 4 / math.pi
        steps = round(time / box.dt)
        with torch.no_grad():
            for _ in range(steps):
                state = box.step(state)
        error = 0.0
        for species, (speed, _) in enumerate(DIRECTIONS):
            exact = exact_burgers(x, steps * box.dt, speed, cells)
            error += float((state[species] - exact).abs().mean())
        errors.append(error)
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[0] < 0.05 and all(order > 1.6 for order in orders), (errors, orders)


@pytest.mark.slow
def test_a_shock_forms_when_the_characteristics_say():
    """Energy is kept by a smooth solution and lost by a shock, from t = cells / (2 pi) on (speed 1)."""
    cells = 96
    _, state = along_x(cells)
    box = burgers(cells, dt=0.5)
    breaking = cells / (2 * math.pi)
    before = advance(box, state, 0.8 * breaking)[0]
    assert 1 - float(before.square().mean() / state[0].square().mean()) < 0.01
    after = advance(box, state, 3.0 * breaking)[0]
    assert float(after.square().mean() / state[0].square().mean()) < 0.75
    # Then the jump from top to bottom takes three cells or fewer.
    profile = after[0]
    assert float(profile.roll(-3).sub(profile).min()) < 0.9 * float(profile.min() - profile.max())


def test_a_shock_moves_at_the_mean_of_its_sides():
    """Rankine-Hugoniot: a step from 1 down to 0 runs with speed (1 + 0) / 2 along x (direction 1)."""
    cells = 64
    box = burgers(cells, dt=0.5)
    x = torch.arange(cells, dtype=torch.float64)
    state = ((x >= 8) & (x < 24)).double().expand(2, cells, cells)
    after = advance(box, state, 20.0)[0, 0]
    front = (
        40 + int((after[40:] < 0.5).nonzero()[0])
        if after[40] > 0.5
        else int((after[24:40] < 0.5).nonzero()[0]) + 24
    )
    assert abs(front - (24 + 0.5 * 20)) <= 1


def test_diffusion_decays_waves_at_the_grids_own_rate():
    """A wave of amplitude 1e-9 is not carried; central differences damp it by nu (2 sin(k / 2))^2."""
    cells, nu = 24, 0.3
    box = AdvectionDiffusionReaction(cells, cells, diffusion=nu, reaction=0.0, dt=0.05)
    _, wave = along_x(cells)
    k = 2 * math.pi * 2 / cells
    y = torch.arange(cells, dtype=torch.float64)[:, None]
    state = 1e-9 * (wave + torch.sin(k * y))
    rates = nu * (2 * math.sin(math.pi / cells)) ** 2, nu * (2 * math.sin(k / 2)) ** 2
    expected = 1e-9 * (wave * math.exp(-4 * rates[0]) + torch.sin(k * y) * math.exp(-4 * rates[1]))
    assert (advance(box, state, 4.0) - expected).abs().max() < 1e-13


def test_the_reaction_alone_is_stuart_landau():
    """Uniform states: |u|^2 follows the logistic equation, the angle turns evenly."""
    rate, turn, time = 0.5, 1.3, 3.0
    box = AdvectionDiffusionReaction(4, 4, reaction=rate, turn=turn, dt=0.01)
    state = torch.tensor([0.3, 0.0], dtype=torch.float64).view(2, 1, 1).expand(2, 4, 4)
    after = advance(box, state, time)[:, 0, 0]
    square = 1 / (1 + (1 / 0.09 - 1) * math.exp(-2 * rate * time))
    expected = square**0.5 * torch.tensor([math.cos(rate * turn * time), math.sin(rate * turn * time)])
    assert (after - expected).abs().max() < 1e-4


@pytest.mark.slow
def test_second_order_in_time():
    state = AdvectionDiffusionReaction(12, 12, diffusion=1.0).start(2, seed=0).double()
    finals = []
    for dt in (0.04, 0.02, 0.01, 0.00125):
        box = AdvectionDiffusionReaction(12, 12, diffusion=1.0, dt=dt)
        assert box.substeps == 1
        finals.append(advance(box, state, 0.4))
    errors = [float((f - finals[-1]).abs().mean()) for f in finals[:-1]]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(1.7 < order < 2.4 for order in orders), orders


@pytest.mark.slow
def test_stays_bounded_and_alive_for_long():
    box = AdvectionDiffusionReaction(steps=200)
    start = box.start(4, seed=0)
    after = box(start)  # 50 time units
    assert start.abs().max() < LARGEST and after.abs().max() < LARGEST
    assert (after.std((-1, -2)) > 0.2).all()
    steepest = (after - after.roll(1, -1)).abs().amax((1, 2, 3))
    assert (steepest > 0.5).all()  # shocks; a wave around the torus rises by 2 pi / 24 from cell to cell


def test_both_axes_are_treated_alike():
    """Turned by 90 degrees, (a_1, a_2) = ((1, .5), (-.5, 1)): species 1 goes where species 2 did."""
    box = burgers(12)
    state = rough(2)
    once = box.step(state)
    # u_1(x, y) carried along (1, .5) becomes, with x' = -y and y' = x, carried along (-.5, 1).
    turned = state[:, :1].transpose(-1, -2).flip(-1)
    found = box.step(torch.cat([turned, turned], 1))[:, 1:]
    assert (found - once[:, :1].transpose(-1, -2).flip(-1)).abs().max() < 1e-12
