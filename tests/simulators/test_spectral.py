"""Flows by Fourier modes: the equations, order in time, exact solutions, what is conserved, what blows up."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch

from blackbox.errors import ConfigurationError, DtypeError, ShapeError
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.spectral import KuramotoSivashinskyETD, Vorticity, etd, resampled
from tests.simulators.systems import assert_derivative_is_the_differences

LENGTHS = torch.tensor([0.9, 1.0, 1.3], dtype=torch.float64)


def on_the_attractor(frames: int = 100) -> torch.Tensor:
    reference = KuramotoSivashinskyETD(order=2)
    state = reference.start(3, 0, LENGTHS)
    for _ in range(frames):
        state = reference(state, LENGTHS)
    return state


def grid(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    along = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    return along[None, :].expand(points, points), along[:, None].expand(points, points)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("order", [1, 2])
def test_kuramoto_sivashinsky_has_the_order_that_it_says(order):
    """Against ETDRK4 at small steps, which shares no code of the steps, on a grid fine enough for both."""
    smooth = KuramotoSivashinskyETD(points=192, dt=0.05, order=2, steps=600)
    state = smooth(smooth.start(3, 0, LENGTHS), LENGTHS)
    expected = torch.cat(
        [
            KuramotoSivashinsky(points=192, length=16 * math.pi * float(length), dt=1 / 128, steps=128)(
                row[None]
            )
            for length, row in zip(LENGTHS, state, strict=True)
        ]
    )
    errors = [
        float(
            (
                KuramotoSivashinskyETD(points=192, order=order, dt=1 / n, steps=n)(state, LENGTHS) - expected
            ).norm()
        )
        for n in (32, 64, 128)
    ]
    assert all(order - 0.3 < math.log2(a / b) < order + 0.5 for a, b in pairwise(errors)), errors
    assert errors[-1] < 1e-2 * float((expected - state).norm())


def test_small_waves_grow_at_the_linear_rate_of_their_ring():
    box = KuramotoSivashinskyETD()
    x = torch.arange(48, dtype=torch.float64) / 48
    for waves in (1, 6, 9):
        state = (1e-9 * torch.cos(2 * math.pi * waves * x)).expand(3, 1, 48)
        k = waves / (8 * LENGTHS)
        expected = state * torch.exp(k**2 - k**4)[:, None, None]  # one time unit
        assert torch.allclose(box(state, LENGTHS), expected, rtol=1e-6, atol=1e-17)


def test_the_solver_in_the_loop_blows_up_and_the_reference_does_not():
    length = torch.linspace(0.9, 1.3, 24, dtype=torch.float64)
    reference, box = KuramotoSivashinskyETD(order=2), KuramotoSivashinskyETD(failures="keep")
    state = reference.start(24, 0, length)
    for _ in range(100):
        state = reference(state, length)
    alone = state
    for _ in range(60):
        alone, state = box(alone, length), reference(state, length)
    assert alone.isnan().flatten(1).any(1).sum() > 12
    assert 1 < state.std() < 2 and state.abs().max() < 10


def test_kuramoto_sivashinskys_derivative_is_that_of_its_values():
    box = KuramotoSivashinskyETD()
    assert_derivative_is_the_differences(lambda u: box.advance(u, LENGTHS), on_the_attractor())


def test_rows_choose_their_ring_alone():
    state, box = on_the_attractor(), KuramotoSivashinskyETD()
    whole = box(state, LENGTHS)
    alone = torch.cat([box(u[None], length[None]) for u, length in zip(state, LENGTHS, strict=True)])
    assert (whole - alone).abs().max() < 1e-12
    assert (box(state, LENGTHS.flip(0)) - whole)[1].abs().max() < 1e-12
    assert (box(state, LENGTHS.flip(0)) - whole)[0].abs().max() > 1e-3


def test_kuramoto_sivashinsky_pickles_and_names_its_settings():
    box = KuramotoSivashinskyETD(points=32, order=2, steps=3, failures="keep")
    state = box.start(2, 0, LENGTHS[:2])
    again = eval(repr(box), {"KuramotoSivashinskyETD": KuramotoSivashinskyETD})
    thawed = pickle.loads(pickle.dumps(box))
    assert torch.equal(thawed(state, LENGTHS[:2]), box(state, LENGTHS[:2])) and thawed.failures == "keep"
    assert torch.equal(again(state, LENGTHS[:2]), box(state, LENGTHS[:2]))


def test_bad_states_and_settings_are_named():
    box, state = KuramotoSivashinskyETD(), on_the_attractor(1)
    with pytest.raises(ShapeError, match=r"expected a state \(\.\.\., 1, 48\) and a length"):
        box.advance(state, LENGTHS[:2])
    with pytest.raises(DtypeError, match="expected float32 or float64, got float16"):
        box.advance(state.half(), LENGTHS)
    with pytest.raises(ConfigurationError, match=r"order: expected 1 \(ETD1\) or 2 \(ETDRK2\), got 3"):
        KuramotoSivashinskyETD(order=3)
    with pytest.raises(ConfigurationError, match="Vorticity, viscosity"):
        Vorticity(viscosity=-1.0)
    with pytest.raises(ConfigurationError, match="Vorticity, order"):
        Vorticity(order=0)
    with pytest.raises(ConfigurationError, match=r"Vorticity, waves: expected .*<= 4, got 5"):
        Vorticity(8, waves=5)
    with pytest.raises(ConfigurationError, match="Vorticity, order: expected a whole number"):
        Vorticity(order=True)
    with pytest.raises(ConfigurationError, match="Vorticity, dealias: expected True or False, got 'no'"):
        Vorticity(dealias="no")  # type: ignore[arg-type]


def test_etds_coefficients_are_their_integrals():
    """`dt * integral of exp(z (1 - s)) s^n` over s from 0 to 1, on both sides of the series."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s, w = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    linear = torch.tensor([-30.0, -1.0, -0.21, -0.19, -1e-9, 0.0, 1e-3, 0.5], dtype=torch.float64)
    whole, first, second = etd(linear, 0.5)
    decay = torch.exp(0.5 * linear[:, None] * (1 - s))
    assert torch.allclose(whole, torch.exp(0.5 * linear))
    assert torch.allclose(first, 0.5 * (decay * w).sum(1), rtol=1e-12)
    assert torch.allclose(second, 0.5 * (decay * s * w).sum(1), rtol=1e-12)


def test_taylor_green_vortices_decay_and_keep_their_shape():
    """An exact solution: vorticity cos(2x) cos(3y) advects itself nowhere and decays at nu |k|^2 + drag."""
    x, y = grid(24)
    state = (5 * torch.cos(2 * x) * torch.cos(3 * y))[None, None]
    box = Vorticity(24, viscosity=0.03, drag=0.1, dt=0.05, steps=20)
    assert (box(state) - state * math.exp(-(0.03 * 13 + 0.1))).abs().max() < 1e-12


def test_a_stirred_fluid_without_eddies_tends_to_the_laminar_profile():
    """Force against friction: w = -stirring waves cos(waves y) / (nu waves^2 + drag)."""
    _, y = grid(16)
    box = Vorticity(16, viscosity=0.5, drag=0.3, stirring=0.7, waves=3, dt=0.05, steps=200)
    expected = -0.7 * 3 * torch.cos(3 * y) / (0.5 * 9 + 0.3)
    assert (box(torch.zeros(1, 1, 16, 16, dtype=torch.float64)) - expected).abs().max() < 1e-10


def test_the_tendency_is_the_equation():
    """dw/dt by tiny steps against derivatives by hand, for a stream function of two waves."""
    x, y = grid(32)
    nu, drag = 0.02, 0.1
    psi_x = 2 * torch.cos(2 * x + y) - torch.sin(x) * torch.cos(3 * y)  # psi = sin(2x+y) + cos(x) cos(3y)
    psi_y = torch.cos(2 * x + y) - 3 * torch.cos(x) * torch.sin(3 * y)
    w = 5 * torch.sin(2 * x + y) + 10 * torch.cos(x) * torch.cos(3 * y)
    w_x = 10 * torch.cos(2 * x + y) - 10 * torch.sin(x) * torch.cos(3 * y)
    w_y = 5 * torch.cos(2 * x + y) - 30 * torch.cos(x) * torch.sin(3 * y)
    laplace = -25 * torch.sin(2 * x + y) - 100 * torch.cos(x) * torch.cos(3 * y)
    force = -0.5 * 4 * torch.cos(4 * y)
    expected = -(psi_y * w_x - psi_x * w_y) + nu * laplace - drag * w + force
    dt = 1e-6
    box = Vorticity(32, viscosity=nu, drag=drag, stirring=0.5, waves=4, dt=dt)
    found = (box.step(w[None, None]) - w)[0, 0] / dt
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_without_friction_energy_and_enstrophy_stay():
    """Truncated to the modes that are free of aliasing, both are conserved but for the steps' error."""
    box = Vorticity(32, viscosity=0.0, dt=0.002, steps=100)
    state = box.start(2, seed=0).double()
    state = torch.fft.irfft2(torch.fft.rfft2(state) * box._tables[1], (32, 32))
    after = box(state)

    def energy(w: torch.Tensor) -> torch.Tensor:
        modes = torch.fft.fft2(w)
        k = torch.fft.fftfreq(32, dtype=torch.float64) * 32
        square = k[:, None] ** 2 + k[None] ** 2
        return (modes.abs().square() / square.clamp_min(1)).sum((1, 2, 3))

    assert ((energy(after) / energy(state)) - 1).abs().max() < 1e-4
    assert ((after.square().sum() / state.square().sum()) - 1).abs() < 1e-4
    assert (after - state).norm() > 0.1 * state.norm()  # and it moved


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.slow
def test_vorticitys_order_in_time(order):
    state = Vorticity(24).start(2, seed=0).double()
    fine = Vorticity(24, viscosity=0.02, dt=0.2 / 512, steps=512)(state)
    errors = [
        float((Vorticity(24, viscosity=0.02, dt=0.2 / n, steps=n, order=order)(state) - fine).norm())
        for n in (16, 32, 64)
    ]
    assert all(order - 0.3 < math.log2(a / b) < order + 0.5 for a, b in pairwise(errors)), errors


def test_a_finer_grid_gives_the_same_flow():
    coarse, fine = Vorticity(32, viscosity=0.05, steps=10), Vorticity(64, viscosity=0.05, steps=10)
    state = coarse.start(1, seed=0).double()
    assert (resampled(fine(resampled(state, 64)), 32) - coarse(state)).norm() < 1e-2 * state.norm()


def test_resampling_keeps_what_both_grids_carry():
    x, y = grid(16)
    fine_x, fine_y = grid(40)
    wave = torch.cos(3 * x - 5 * y) + torch.sin(2 * y)
    fine = torch.cos(3 * fine_x - 5 * fine_y) + torch.sin(2 * fine_y)
    assert (resampled(wave, 40) - fine).abs().max() < 1e-12
    assert (resampled(fine + torch.cos(12 * fine_x), 16) - wave).abs().max() < 1e-12
