"""The Poisson problem's adjoint and mesh, rivals against closed forms, and calibration that refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import gamma

from benchmarks.posterior import calibration, comparison, reference, rivals
from benchmarks.posterior.poisson import Membrane, measurements, potential
from tests.zo.row_boxes import weights


def test_the_adjoint_is_the_derivative():
    x, box = weights(2, 64).requires_grad_(), Membrane(8)
    assert torch.autograd.gradcheck(lambda x: potential(x, box.torch(x)), x, rtol=1e-4, eps=1e-5)


def test_meshes_converge():
    x = 0.3 * weights(1, 64).numpy()
    fine, middle, coarse = (Membrane(cells)(x) for cells in (64, 32, 16))
    assert abs(fine - middle).max() < 0.6 * abs(fine - coarse).max() < 0.05


def test_what_is_published_fits_its_data_only_where_it_should():
    """No coefficient that is one everywhere gives the published displacements."""
    x = torch.zeros(64).double()
    at = Membrane().torch(x)
    assert measurements().shape == at.shape == (169,)
    assert potential(x, at) > 100


def test_another_mesh_is_refused():
    with pytest.raises(ValueError, match="a multiple of 8, got 12"):
        Membrane(12)


class Gaussian(rivals.Posterior):
    """A linear box of three unknowns: the posterior has a closed form."""

    size, prior = 3, 2.0
    matrix = np.array([[1.0, 0.5, 0.0], [-0.3, 1.2, 0.4], [0.7, 0.7, -0.8], [0.2, 0.0, 0.5]]) / 0.5
    data = np.array([1.0, -0.5, 0.3, 0.8]) / 0.5

    def __init__(self):
        self.rows = 0

    def misfit(self, x):
        self.rows += 1
        return self.matrix @ x - self.data

    def slope(self, x):
        value, missed = self.value(x), self.misfit(x)
        return value, self.matrix.T @ missed + x / self.prior**2

    def closed_form(self):
        covariance = np.linalg.inv(self.matrix.T @ self.matrix + np.eye(3) / self.prior**2)
        return covariance @ self.matrix.T @ self.data, np.sqrt(np.diag(covariance))


RIVALS = {
    "plain": lambda p, start, rng: rivals.random_walk(p, start[:4], 20000, rng, "plain"),
    "covariance": lambda p, start, rng: rivals.random_walk(p, start[:4], 20000, rng, "covariance"),
    "pcn": lambda p, start, rng: rivals.random_walk(p, start[:4], 20000, rng, "pcn"),
    "hmc": lambda p, start, rng: rivals.hamiltonian(p, start[:4], 20000, rng),
    "emcee": lambda p, start, rng: rivals.ensemble(p, 20000, 0, start[:8]),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.needs("emcee")) if name == "emcee" else name for name in RIVALS],
)
def test_rivals_draw_a_gaussian_posterior_within_their_errors(name):
    """Means and spreads, with all rows counted; walks are accepted as they are tuned."""
    posterior, rng = Gaussian(), np.random.default_rng(0)
    draws = RIVALS[name](posterior, rng.normal(size=(8, 3)), rng)
    found = reference.summary(draws.x)
    mean, spread = posterior.closed_form()
    assert (np.abs(found["mean"] - mean) < 5 * np.array(found["mcse"])).all()
    assert (np.abs(found["sd"] - spread) < 5 * np.array(found["sd_mcse"])).all()
    assert max(found["mcse"]) < 0.1 and found["ess_min"] > 100
    assert draws.rows == posterior.rows <= 20100 and 0 < draws.tuning <= draws.rows * 0.51
    if name in ("plain", "covariance", "pcn"):
        assert draws.acceptance == pytest.approx(rivals.WALKED, abs=0.05)


def test_an_ensemble_without_a_gradient_has_the_mean_of_a_gaussian():
    """It is unbiased where the box is linear and steps are short."""
    posterior, rng = Gaussian(), np.random.default_rng(0)
    draws = rivals.aldi(posterior, 20000, rng, rng.normal(size=(40, 3)), time=0.2)
    mean, spread = posterior.closed_form()
    assert (np.abs(draws.x.mean((0, 1)) - mean) < 0.1 * spread).all()
    assert (np.abs(draws.x.std((0, 1)) / spread - 1) < 0.15).all()


def test_the_gradient_of_the_rivals_is_the_potentials():
    """And two rows are counted for it, a solve and its adjoint."""
    posterior, x = rivals.Posterior(), 0.3 * weights(1, 64).numpy()[0]
    value, gradient = posterior.slope(x)
    assert posterior.rows == 2
    along = np.linspace(-1, 1, 64)
    change = posterior.value(x + 1e-5 * along) - posterior.value(x - 1e-5 * along)
    assert change / 2e-5 == pytest.approx(gradient @ along, rel=1e-5)
    at = torch.as_tensor(x)
    assert value == pytest.approx(float(potential(at, Membrane().torch(at))))


def test_z_values_find_a_mean_that_is_off():
    """Errors of both count, and spreads are the reference's."""
    known = {"mean": [0.0, 1.0], "sd": [2.0, 1.0], "mcse": [0.03, 0.03]}
    missed = reference.against(np.array([0.02, 1.3]), np.array([0.04, 0.04]), known)
    assert missed.z == pytest.approx([0.4, 6.0]) and missed.beyond == 1
    assert missed.spreads == pytest.approx([0.01, 0.3])


def test_the_table_counts_all_rows_and_says_what_has_not_mixed():
    """A gradient by differences is 65 rows in place of two, and the worst seed's means are told."""
    known = {"mean": [0.0] * 64, "sd": [1.0] * 64, "mcse": [1e-4] * 64, "ess_min": 9.0, "rows": 1000}
    good = {"rows": 2000, "rows_learned": 600, "acceptance": 0.8, "ess_min": 10.0, "ess_median": 20.0}
    good |= {"r_hat_worst": 1.01, "mean": [0.01] * 64, "mcse": [0.01] * 64}
    bad = good | {"r_hat_worst": 1.5, "mean": [0.3, *[0.0] * 63]}
    results = {"hmc, seed 1": good, "hmc, seed 2": good, "walk, seed 1": bad}
    results["differences, seed 1"] = comparison.by_differences(good)
    lines = comparison.table(results, known).splitlines()[2:5]
    assert lines[0].startswith(
        "| HMC, exact adjoint | 2 | 2,000 | 600 | 0.80 | 5 | 10 | 1.01 | 0 of 64 | 1.0 |"
    )
    assert lines[1].startswith("| HMC, differences | 1 | 65,000 | 19,500 | 0.80 | 0.154 | 0.308 |")
    assert "| below 5 | below 10 | 1.50 | 1 of 64 | 30.0 | 0.30 | 0.00 |" in lines[2]


def exact(problem, data, seed, width=1.0):
    """The linear problem's posterior, drawn without a chain; `width` times as wide as it is."""
    matrix = calibration.MATRIX.numpy()
    covariance = np.linalg.inv(matrix.T @ matrix / problem.noise**2 + np.eye(3))
    mean = covariance @ matrix.T @ data.numpy() / problem.noise**2
    noise = np.random.default_rng(seed).normal(size=(8, 4, 3))
    return mean + width * noise @ np.linalg.cholesky(covariance).T


@pytest.mark.parametrize("width, refused", [(1.0, False), (0.7, True), (1.4, True)])
def test_ranks_refuse_draws_that_are_too_narrow_or_too_wide(width, refused):
    problem = calibration.PROBLEMS["linear"]
    found = [calibration.ranks(problem, seed, partial(exact, width=width)) for seed in range(300)]
    p = calibration.uniformity(found)
    assert len(p) == 4 and (min(p) < 1e-4 if refused else min(p) > 1e-3)


def test_the_oscillator_solves_its_equation():
    """Below and beyond critical damping, against steps of Euler's so short that they agree."""
    x = np.array([[4.0, 0.4], [1.0, 3.0]])
    place, speed, step = np.ones(2), np.zeros(2), 1e-4
    for _ in range(round(float(calibration.TIMES[-1]) / step)):
        speed = speed - step * (x[:, 1] * speed + x[:, 0] * place)
        place = place + step * speed
    assert calibration.Oscillator().evaluate_rows(x)[:, -1] == pytest.approx(place, abs=1e-3)


def test_the_prior_of_the_oscillator_is_the_density_it_is_drawn_from():
    """Gamma: means and variances of draws, and the energy's differences."""
    problem = calibration.PROBLEMS["oscillator"]
    x = problem.draw(20000, torch.Generator().manual_seed(0))
    assert x.mean(0).tolist() == pytest.approx([4.0, 0.5], rel=0.03)
    assert x.var(0).tolist() == pytest.approx([4.0, 0.125], rel=0.06)
    pair = torch.tensor([[3.0, 0.2], [5.0, 0.6]]).double()
    density = gamma.logpdf(pair.numpy(), [4.0, 2.0], scale=[1.0, 0.25]).sum(1)
    energy = problem.energy(pair)
    assert float(energy[0] - energy[1]) == pytest.approx(density[1] - density[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", calibration.PROBLEMS)
def test_ranks_do_not_refuse_zo_sample(name):
    """Of 30 repetitions; the benchmark has more."""
    found = [calibration.ranks(calibration.PROBLEMS[name], seed) for seed in range(1000, 1030)]
    assert min(calibration.uniformity(found)) > 1e-3
