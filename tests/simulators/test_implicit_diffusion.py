"""Implicit diffusion: its equations, conservation, reach, derivative, and rows that do not converge."""

import math

import pytest
import torch
from scipy.optimize import fsolve

from blackbox.errors import RowFailedError
from simulators.implicit_diffusion import ImplicitDiffusion
from simulators.tridiagonal import solve_tridiagonal


def states(box: ImplicitDiffusion, rows: int = 4) -> torch.Tensor:
    """Rough, and of both signs in places."""
    generator = torch.Generator().manual_seed(0)
    return 0.7 + torch.randn(rows, *box.shape, generator=generator, dtype=torch.float64)


def equations(box: ImplicitDiffusion, after: torch.Tensor, before: torch.Tensor) -> list[float]:
    """As they are printed, cell by cell, for one row each `(points,)`."""
    n, p = box.points, box.power
    integral = [box.floor * u + abs(u) ** p * u / (p + 1) for u in after.tolist()]
    left = []
    for i in range(n):
        inflow = sum(integral[j] - integral[i] for j in (i - 1, i + 1) if 0 <= j < n)
        source = box.heating * math.cos(math.pi * (i + 0.5) / n)
        left.append(float(after[i]) - box.dt * n**2 * inflow - float(before[i]) - box.dt * source)
    return left


@pytest.mark.parametrize("settings", [{}, {"power": 3.0, "dt": 1.0}, {"power": 1.0, "dt": 1e-3, "points": 5}])
def test_a_step_solves_the_equations(settings):
    box = ImplicitDiffusion(**settings)
    before = states(box)
    after = box.step(before)
    for row in range(4):
        left = torch.tensor(equations(box, after[row, 0], before[row, 0]))
        scale = (before[row] + box.dt).norm() + 1e-3 * box.dt * box.points**2
        assert left.norm() < 1e-10 * scale


def test_the_root_is_scipys():
    box = ImplicitDiffusion(points=8, dt=0.2)
    before = states(box, 1).abs()
    found = fsolve(
        lambda u: equations(box, torch.from_numpy(u), before[0, 0]), before[0, 0].numpy(), xtol=1e-12
    )
    assert (box.step(before)[0, 0] - torch.from_numpy(found)).abs().max() < 1e-9


def test_small_waves_decay_as_in_linear_diffusion():
    """On u = 1, k = floor + 1: a step divides cos(pi n x) by 1 + dt k (2 N sin(pi n / 2N))^2."""
    box = ImplicitDiffusion(points=32, heating=0.0, dt=0.05)
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    for n in (1, 3, 8):
        wave = 1e-6 * torch.cos(math.pi * n * x)
        rate = 1.05 * (64 * math.sin(math.pi * n / 64)) ** 2
        found = box.step((1 + wave)[None]) - 1
        assert (found - wave / (1 + 0.05 * rate)).abs().max() < 1e-11


@pytest.mark.slow
def test_first_order_in_time():
    state = ImplicitDiffusion(points=24).start(3, seed=0).double()
    finals = [ImplicitDiffusion(points=24, dt=0.2 / n, steps=n)(state) for n in (8, 16, 32, 256)]
    errors = [float((final - finals[-1]).abs().max()) for final in finals[:-1]]
    orders = [math.log2(errors[i] / errors[i + 1]) for i in (0, 1)]
    assert all(0.85 < order < 1.15 for order in orders), orders


def test_the_sum_is_conserved_and_no_extrema_are_new():
    box = ImplicitDiffusion(heating=0.0)
    before = states(box)
    after = box.step(before)
    assert (after.sum(-1) - before.sum(-1)).abs().max() < 1e-8
    assert (after.amax(-1) < before.amax(-1)).all() and (after.amin(-1) > before.amin(-1)).all()
    heated = ImplicitDiffusion(heating=2.0)
    assert (heated.step(before).sum(-1) - before.sum(-1)).abs().max() < 1e-8


@pytest.mark.slow
def test_at_rest_the_flux_carries_the_source():
    """k(u) u_x = -heating sin(pi x) / pi, so K(u) is a cosine: the profile after a long time."""
    box = ImplicitDiffusion(points=64, steps=300)
    u = box(torch.ones(1, 1, 64, dtype=torch.float64))[0, 0]
    x = (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    integral = box.floor * u + u**3 / 3
    cosine = torch.cos(math.pi * x) / math.pi**2
    assert (integral - integral.mean() - cosine).abs().max() < 1e-3


def test_one_cell_feels_all_others():
    """At a long dt the farthest cell answers a push much as the nearest does; at a short one not."""
    reach = []
    for dt in (1.0, 1e-5):
        box = ImplicitDiffusion(dt=dt)
        state = box.start(1, seed=0).double()
        jacobian = torch.autograd.functional.jacobian(lambda s, box=box: box.step(s[None])[0], state[0])[
            0, :, 0
        ]
        assert (jacobian > -1e-12).all() and (jacobian.sum(0) - 1).abs().max() < 1e-8  # an M-matrix's inverse
        reach.append(float(jacobian[-1, 0] / jacobian[0, 0]))
    assert reach[0] > 0.1 and reach[1] < 1e-10


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("settings", [{}, {"power": 3.0, "dt": 1.0}, {"power": 1.0, "points": 9, "dt": 10.0}])
def test_the_derivative_is_that_of_the_values(settings):
    box = ImplicitDiffusion(**settings)
    state = box.start(1, seed=3).double()
    h = 1e-5
    jacobian = torch.autograd.functional.jacobian(box.step, state)[0, 0, :, 0, 0]
    for cell in range(0, box.points, 4):
        push = torch.zeros_like(state)
        push[..., cell] = h
        with torch.no_grad():
            difference = (box.step(state + push) - box.step(state - push))[0, 0] / (2 * h)
        assert (jacobian[:, cell] - difference).abs().max() < 1e-6


@pytest.mark.slow
def test_gradcheck_over_rows_and_leading_axes():
    box = ImplicitDiffusion(points=7, steps=2)
    state = box.start(6, seed=0).double().reshape(2, 3, 1, 7).requires_grad_()
    assert torch.autograd.gradcheck(box.advance, (state,), eps=1e-6, atol=1e-7)


def test_a_second_derivative_is_refused_not_wrong():
    box = ImplicitDiffusion(points=5)
    state = box.start(1, seed=0).double().requires_grad_()
    (gradient,) = torch.autograd.grad(box.step(state).square().sum(), state, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_rows_that_do_not_converge_fail_alone():
    """Three Newton steps are enough close to rest, not for a state that is far from it."""
    box = ImplicitDiffusion(iterations=3, heating=0.0, failures="keep")
    state = 1 + 1e-4 * states(box)
    calm = box.step(state)
    state[2] = 30 * states(box, 1)[0]
    found = box(state)
    assert found[2].isnan().all()
    assert (found[[0, 1, 3]] - calm[[0, 1, 3]]).abs().max() < 1e-10
    assert box.ledger.rows_failed == 1 and box.ledger.rows_run == 4
    assert ImplicitDiffusion(heating=0.0)(state).isfinite().all()  # it has a root
    with pytest.raises(RowFailedError, match=r"iterations=3.*row 2 failed"):
        ImplicitDiffusion(iterations=3, heating=0.0)(state)


def test_a_lost_row_spoils_no_others_derivative():
    box = ImplicitDiffusion(iterations=3, heating=0.0)
    state = (1 + 1e-4 * states(box)).requires_grad_()
    (expected,) = torch.autograd.grad(box.step(state).square().sum(), state)
    spoilt = torch.cat([state.detach()[:3], 30 * states(box, 1)]).requires_grad_()
    (found,) = torch.autograd.grad(box.step(spoilt).square().sum(), spoilt)
    assert torch.allclose(found[:3], expected[:3], atol=1e-12) and found[3].isnan().all()


def test_numbers_too_large_for_float64_do_not_converge():
    box = ImplicitDiffusion(points=8)
    assert box.step(torch.full((1, 1, 8), 1e200, dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 13])
def test_tridiagonal_systems_against_a_dense_solve(size):
    generator = torch.Generator().manual_seed(0)
    beside = torch.randn(5, size - 1, generator=generator, dtype=torch.float64)
    padded = torch.nn.functional.pad(beside.abs(), (1, 1))
    diagonal = padded[:, 1:] + padded[:, :-1] + 0.01
    right = torch.randn(5, size, generator=generator, dtype=torch.float64)
    dense = torch.diag_embed(diagonal) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    expected = torch.linalg.solve(dense, right)
    assert torch.allclose(solve_tridiagonal(diagonal, beside, right), expected, rtol=1e-10, atol=1e-10)
