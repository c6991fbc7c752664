"""Samplers beside `zo.sample` on the Poisson problem, tuned alike: each finds its step on rows that count.

Random walk Metropolis and preconditioned Crank-Nicolson (Cotter et al., 2013) take a step that is accepted at
23.4 %, the second random walk with the covariance of what it has seen. Hamiltonian Monte Carlo takes the
exact adjoint, a mass of its own pilot and jittered lengths; an adjoint solve counts as a row. `emcee` is the
affine-invariant ensemble (Goodman and Weare, 2010), its stretch halved until a fifth is accepted. ALDI is the
gradient-free interacting ensemble (Garbuno-Inigo, Nüsken and Reich, 2020): it is biased where the box is not
linear, so that its means are what compares. PyMC's NUTS has its own defaults, and the exact adjoint as its
gradient.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.posterior.poisson import NOISE, PRIOR, UNKNOWNS, Membrane, Solution, measurements

Array = NDArray[np.float64]

FAR = 15.0  # a logarithm beyond it, 7.5 spreads of the prior out, is rejected: solves lose their accuracy
CHAINS = 4
WALKED, LEAPT = 0.234, 0.8  # acceptances: of walks (Roberts et al., 1997), and of trajectories
TURN, LONGEST = 3.0, 40  # of a trajectory: its mean length, better here than 1.5, and its steps at most
WINDOWS = (0.12, 0.3, 0.6)  # parts of a pilot, at whose ends a mass is found
SHRINK = 0.1  # of a covariance, towards its diagonal


class Draws(NamedTuple):
    """Draws of a sampler, and what they cost.

    Attributes:
        x: `(chains, draws, size)`, after tuning.
        rows: all that the box ran, adjoint solves and those of tuning among them.
        tuning: those before the first draw.
        acceptance: of what was proposed after tuning.
        step: what was found: a step, or a stretch.
    """

    x: Array
    rows: int
    tuning: int
    acceptance: float
    step: float


class Posterior:
    """Minus the logarithm of a density, half a sum of squares, with rows counted.

    Attributes:
        size: number of unknowns.
        prior: standard deviation of each, about zero.
        rows: solves and adjoint solves so far.
    """

    size, prior = UNKNOWNS, PRIOR

    def __init__(self) -> None:
        self.rows = 0
        self._membrane, self._data = Membrane(), measurements().numpy()

    def misfit(self, x: Array) -> Array | None:
        """The distance to data in units of noise; None where nothing is solved. One row."""
        self.rows += 1
        solution = self._solution(x)
        return None if solution is None else (solution.measured - self._data) / NOISE

    def value(self, x: Array) -> float:
        """The potential at x, `(size,)`; one row."""
        missed = self.misfit(x)
        return np.inf if missed is None else float(missed @ missed + x @ x / self.prior**2) / 2

    def slope(self, x: Array) -> tuple[float, Array]:
        """The potential and its gradient; two rows, a solve and its adjoint."""
        self.rows += 2
        solution = self._solution(x)
        if solution is None:
            return np.inf, np.zeros_like(x)
        missed = (solution.measured - self._data) / NOISE
        value = float(missed @ missed + x @ x / self.prior**2) / 2
        return value, self._membrane.pulled(x, solution, missed / NOISE) + x / self.prior**2

    def _solution(self, x: Array) -> Solution | None:
        if not np.abs(x).max() < FAR:
            return None
        try:
            return self._membrane.solve(x)
        except np.linalg.LinAlgError:
            return None


def random_walk(
    posterior: Posterior, start: Array, rows: int, rng: np.random.Generator, kind: str = "plain"
) -> Draws:
    """Metropolis with Gaussian steps; the first half of the rows finds the step.

    Args:
        posterior: to draw from.
        start: of each chain, `(chains, size)`.
        rows: in all.
        rng: of all that is drawn.
        kind: "plain" steps the same in all directions, "covariance" those of the covariance of the states
            of tuning, "pcn" those that leave the prior as it is.
    """
    begun, x = posterior.rows, start.copy()
    value = np.array([posterior.value(row) for row in x])
    pcn, root, log_step = kind == "pcn", np.eye(posterior.size), np.log(0.05)
    states: list[Array] = []
    accepted, tuning = 0.0, 0
    while posterior.rows - begun + len(x) <= rows:
        if tuning == 0 and posterior.rows - begun >= rows // 2:
            tuning, accepted, states = posterior.rows - begun, 0.0, []
        step = np.exp(log_step)
        for k, at in enumerate(x):
            noise = root @ rng.normal(size=posterior.size)
            if pcn:
                step = min(step, 1.0)
                new = np.sqrt(1 - step**2) * at + step * posterior.prior * noise
            else:
                new = at + step * noise
            v = posterior.value(new)
            gain = value[k] - v
            if pcn:
                gain -= (at @ at - new @ new) / (2 * posterior.prior**2)
            gain = min(gain, 0.0)
            accepted += np.exp(gain)
            if tuning == 0:
                count = posterior.rows - begun
                log_step += min(0.1, 4 * count**-0.6) * (np.exp(gain) - WALKED)
            if np.log(rng.uniform()) < gain:
                x[k], value[k] = new, v
        states.append(x.copy())
        if kind == "covariance" and tuning == 0 and len(states) % 1000 == 0:
            fresh = root_of(np.concatenate(states[len(states) // 2 :]))
            log_step += (
                np.log(np.trace(root @ root.T) / np.trace(fresh @ fresh.T)) / 2 * (len(states) == 1000)
            )
            root = fresh
    drawn = np.stack(states, 1)
    return Draws(
        drawn, posterior.rows - begun, tuning, accepted / (drawn[..., 0].size), float(np.exp(log_step))
    )


def hamiltonian(
    posterior: Posterior,
    start: Array,
    rows: int,
    rng: np.random.Generator,
    *,
    tuning: int | None = None,
) -> Draws:
    """Hamiltonian Monte Carlo by the adjoint, a pilot before it finding step and mass.

    Args:
        posterior: to draw from.
        start: of each chain, `(chains, size)`.
        rows: in all, two for each gradient.
        rng: of all that is drawn.
        tuning: rows of the pilot, among them; None for a third.
    """
    begun, x = posterior.rows, start.copy()
    at = [posterior.slope(row) for row in x]
    root, log_step = 0.1 * np.eye(posterior.size), np.log(0.5)
    states: list[Array] = []
    wanted, windows = rows // 3 if tuning is None else tuning, list(WINDOWS)
    accepted, piloted, adapted = 0.0, 0, 0
    while (used := posterior.rows - begun) < rows:
        if windows and used >= windows[0] * wanted:
            del windows[0]
            root, log_step, adapted = root_of(np.concatenate(states[len(states) // 2 :])), np.log(0.15), 0
        if piloted == 0 and used >= wanted:
            piloted, accepted, states = used, 0.0, []
        size = np.exp(log_step)
        mean = max(1, min(LONGEST, round(TURN / size)))
        for k in range(len(x)):
            steps = int(rng.integers(1, 2 * mean)) if mean > 1 else 1
            new, end, gain = leap(posterior, x[k], at[k], root, size * rng.uniform(0.8, 1.2), steps, rng)
            accepted += np.exp(gain)
            if np.log(rng.uniform()) < gain:
                x[k], at[k] = new, end
            if piloted == 0:
                adapted += 1
                log_step = min(log_step + 2 / (10 + adapted**0.75) * (np.exp(gain) - LEAPT), 0.0)
        states.append(x.copy())
    drawn = np.stack(states, 1)
    return Draws(
        drawn, posterior.rows - begun, piloted, accepted / drawn[..., 0].size, float(np.exp(log_step))
    )


def leap(
    posterior: Posterior,
    x: Array,
    at: tuple[float, Array],
    root: Array,
    size: float,
    steps: int,
    rng: np.random.Generator,
) -> tuple[Array, tuple[float, Array], float]:
    """A trajectory with new momenta: its end, potential and gradient there, and acceptance's logarithm."""
    (begin, gradient), p = at, rng.normal(size=len(x))
    kinetic, value = p @ p / 2, begin
    for _ in range(steps):
        p = p - size / 2 * root.T @ gradient
        x = x + size * root @ p
        value, gradient = posterior.slope(x)
        if not np.isfinite(value):
            return x, (value, gradient), -np.inf
        p = p - size / 2 * root.T @ gradient
    return x, (value, gradient), min(0.0, float(begin + kinetic - value - p @ p / 2))


def ensemble(posterior: Posterior, rows: int, seed: int, start: Array) -> Draws:
    """`emcee`'s stretch moves; the first half of the rows finds the stretch and is left out.

    Args:
        posterior: to draw from.
        rows: in all.
        seed: of all that is drawn.
        start: of each walker, `(walkers, size)`, at least twice as many as unknowns.

    Raises:
        ModuleNotFoundError: emcee is not installed.
    """
    emcee = import_module("emcee")
    begun, stretch, at = posterior.rows, 2.0, start

    def sampler() -> Any:
        move = emcee.moves.StretchMove(a=stretch)
        made = emcee.EnsembleSampler(*start.shape, lambda x: -posterior.value(x), moves=move)
        made.random_state = np.random.RandomState(seed).get_state()
        return made

    pieces = 10
    for _ in range(pieces):
        tried = sampler()
        tried.run_mcmc(at, rows // (2 * pieces * len(start)))
        at, seed = tried.get_last_sample(), seed + 1
        if tried.acceptance_fraction.mean() < 0.2:
            stretch = 1 + (stretch - 1) / 2
    tuning, last = posterior.rows - begun, sampler()
    last.run_mcmc(at, (rows - tuning) // len(start))
    drawn = np.asarray(last.get_chain()).swapaxes(0, 1)
    return Draws(drawn, posterior.rows - begun, tuning, float(last.acceptance_fraction.mean()), stretch)


def pymc(posterior: Posterior, seed: int, start: Array, tuning: int = 1000, draws: int = 1000) -> Draws:
    """PyMC's NUTS with its defaults, its gradient the adjoint: two rows at each point.

    Args:
        posterior: to draw from.
        seed: of its draws.
        start: of each chain, `(chains, size)`.
        tuning: trajectories of a chain before its draws.
        draws: of a chain.

    Raises:
        ModuleNotFoundError: pymc is not installed.
    """
    pm, tensor = import_module("pymc"), import_module("pytensor.tensor")
    graph = import_module("pytensor.graph")
    begun = rows = posterior.rows
    tuned, accepted = 0, list[float]()

    class Misfit(graph.Op):
        """Half the squared misfit, and its gradient, of which PyMC asks at once."""

        itypes, otypes = (tensor.dvector,), (tensor.dscalar, tensor.dvector)

        def perform(self, node: Any, inputs: Any, outputs: Any) -> None:
            """Set both."""
            (x,) = inputs
            value, slope = posterior.slope(x)
            outputs[0][0] = np.array(value - x @ x / posterior.prior**2 / 2)
            outputs[1][0] = slope - x / posterior.prior**2

        def grad(self, inputs: Any, given: Any) -> Any:
            """The value's derivative is the second output; nobody asks for that one's."""
            return [given[0] * self(inputs[0])[1]]

    def count(trace: Any, draw: Any) -> None:
        nonlocal rows, tuned
        tuned += draw.tuning * (posterior.rows - rows)
        rows = posterior.rows
        if not draw.tuning:
            accepted.append(draw.stats[0]["mean_tree_accept"])

    with pm.Model():
        x = pm.Normal("x", 0.0, posterior.prior, shape=posterior.size)
        pm.Potential("data", -Misfit()(x)[0])
        trace = pm.sample(
            draws,
            tune=tuning,
            chains=len(start),
            cores=1,
            random_seed=seed,
            initvals=[{"x": row} for row in start],
            callback=count,
            progressbar=False,
            compute_convergence_checks=False,
        )
    import_module("arviz").Numba.disable_numba()  # which PyMC brings, and ArviZ's errors of spreads fail with
    step = float(trace.sample_stats["step_size"].mean())
    return Draws(trace.posterior["x"].values, posterior.rows - begun, tuned, float(np.mean(accepted)), step)


def aldi(posterior: Posterior, rows: int, rng: np.random.Generator, start: Array, time: float = 0.5) -> Draws:
    """The gradient-free ALDI; each step moves the ensemble by its own covariances. It is biased.

    Args:
        posterior: to draw from.
        rows: in all; the second half's states are the draws.
        rng: of all that is drawn.
        start: the ensemble, `(members, size)`, more members than unknowns.
        time: of a step, over the largest entry of the drift's matrix.
    """
    begun, u, (members, size) = posterior.rows, start.copy(), start.shape
    states: list[Array] = []
    while posterior.rows - begun + members <= rows:
        found = [posterior.misfit(row) for row in u]
        solved = np.array([missed is not None for missed in found])
        u[~solved] = u[rng.choice(np.flatnonzero(solved), members - solved.sum())]  # they go on as others do
        missed = np.zeros((members, len(next(m for m in found if m is not None))))
        missed[solved] = [m for m in found if m is not None]
        missed[~solved] = missed[solved].mean(0)
        centred = u - u.mean(0)
        weights = missed @ (missed - missed.mean(0)).T / members
        drift = weights @ centred + u / posterior.prior**2 @ (centred.T @ centred) / members
        drift -= (size + 1) / members * centred
        step = time / (np.linalg.norm(weights, 2) + 1.0)
        noise = rng.normal(size=(members, members)) @ centred / np.sqrt(members)
        u = (u - step * drift + np.sqrt(2 * step) * noise).clip(-FAR + 1, FAR - 1)
        states.append(u.copy())
    kept = states[len(states) // 2 :]
    tuning = (len(states) - len(kept)) * members
    return Draws(np.stack(kept, 1), posterior.rows - begun, tuning, 1.0, time)


def root_of(states: Array) -> Array:
    """The Cholesky root of the covariance of states, `(size, size)`, shrunk towards the diagonal."""
    covariance = np.cov(states.T)
    diagonal = np.diag(np.diag(covariance))
    shrunk = (1 - SHRINK) * covariance + SHRINK * diagonal + 1e-10 * np.eye(len(covariance))
    return np.linalg.cholesky(shrunk).astype(np.float64)
