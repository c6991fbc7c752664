"""The lattice of maps: against its formula, its bounds, and the exponents that are known in closed form."""

import math

import torch

from simulators.coupled_map_lattice import CoupledMapLattice
from tests.simulators.systems import lyapunov_exponent


def test_the_formula_site_by_site():
    box = CoupledMapLattice(sites=5, nonlinearity=1.7, coupling=0.4)
    x = [0.3, -0.8, 0.1, 0.9, -0.2]
    f = [1 - 1.7 * v * v for v in x]
    expected = [0.6 * f[k] + 0.2 * (f[k - 1] + f[(k + 1) % 5]) for k in range(5)]
    found = box(torch.tensor([x], dtype=torch.float64))
    assert (found - torch.tensor([expected], dtype=torch.float64)).abs().max() < 1e-15


def test_values_from_minus_one_to_one_stay_there():
    box = CoupledMapLattice(nonlinearity=2.0, coupling=0.3)
    state = box.start(50, seed=0).double()
    for _ in range(100):
        state = box.step(state)
        assert state.abs().max() <= 1


def test_one_map_alone_has_the_exponent_ln_2():
    """x -> 1 - 2 x^2 is conjugate to the tent map. Coupling 0: each site is a map of its own."""
    box = CoupledMapLattice(sites=400, nonlinearity=2.0, coupling=0.0)
    x = box.start(10, seed=0).double().requires_grad_()
    total = torch.zeros(())
    for _ in range(50):
        after = box.step(x)
        (slope,) = torch.autograd.grad(after.sum(), x)
        total = total + slope.abs().log().mean()
        x = after.detach().requires_grad_()
    assert abs(float(total) / 50 - math.log(2)) < 0.02


def test_equal_sites_stay_equal_and_follow_one_map():
    box = CoupledMapLattice(nonlinearity=1.9, coupling=0.3)
    assert torch.allclose(box(torch.full((1, 1, 40), 0.4)), torch.tensor(1 - 1.9 * 0.16))


def test_the_default_is_chaotic_and_a_weak_map_is_not():
    """Growth is at most that of the steepest slope, 2 a. At a = .5 one fixed point attracts all states."""
    turbulent = CoupledMapLattice()
    exponent = lyapunov_exponent(turbulent, turbulent.start(8, seed=0).double(), steps=500)
    assert (exponent > 0.1).all() and (exponent < math.log(2 * 1.9)).all()
    calm = CoupledMapLattice(nonlinearity=0.5)
    fixed = math.sqrt(3) - 1  # 1 - x^2 / 2 = x
    assert (calm.start(3, seed=0) - fixed).abs().max() < 1e-6
