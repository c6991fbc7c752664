"""`Fit`: coefficients of a form on a mesh by rows, a linear guess and then least squares on the outputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from zo.tangents.models.mesh.implicit_step import ImplicitStep, Trajectory
from zo.tangents.models.mesh.mesh_form import MeshForm, applied, stiff
from zo.tangents.models.mesh.rows_on_mesh import Rows
from zo.tangents.models.mesh.step_fit import StepFit

ALONG_RIDGE = 1e-3  # of the guess of convection
IMPLICIT = 0.6  # how implicit its steps are, to begin with; decision 83
DIFFUSED = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # beside it, to begin with: what keeps it from growing; decision 72
PART = 0.03  # of the usual change: the effect below which a matrix has none; decision 62
LARGE = 4_000  # numbers of a row's outputs from which a fit saves work; decision 83
FEWEST_ROWS, OF_LARGE = 4, 2  # of a Jacobian; where rows are large; decision 83
WORK = 2_000_000  # coefficients x steps x numbers of the rows of a Jacobian, at most; decision 72
WORK_OF_STATIC = 8_000_000  # the same of a plain static form, where rows are large; decision 90
AT_ONCE = 1_000_000  # numbers of Jacobians that are solved for together
FAINT = 1e-12  # of the largest effect of a coefficient: the ridge's weight of one without any; rounding
ROUNDS = 3  # of L-BFGS, each in coordinates that a Jacobian makes round; decision 72
ONCE_MORE = 0.7  # of the cost: where it falls below this part there is another round
ITERATIONS = 25  # of a round
ENOUGH, LOOSELY = (
    1e-3,
    0.02,
)  # of the cost that a round began with: the gain below which it ends; of large rows
SMALL_MASS = 0.1  # beside diffusion of one, in units of the mesh's extent
AGAIN = 3  # times that a first guess of a static box is made better; decision 83
RINGING = 0.01  # the cost of steps at whose end the roughest waves are as high as before; decision 83


class Fit(StepFit):
    """Coefficients of a form by rows: a linear guess, then least squares on the outputs."""

    def __init__(self, form: MeshForm, rows: Rows, ridge: float) -> None:
        super().__init__(rows, ridge)
        self.form = form
        self.centre = form.start()
        self.weights: np.ndarray | None = None  # of the ridge, as of the first Jacobian
        self._gram_kept: np.ndarray | None = None  # the last one

    @property
    def large(self) -> bool:
        """True if rows are so large that a fit saves work."""
        return self.rows.goal[:1].size > LARGE

    def first(self, known: dict[Any, float] | None = None) -> np.ndarray:
        """Coefficients to begin with: of several guesses the one that costs least.

        Args:
            known: coefficients of a poorer form, by what they multiply.
        """
        guess = self._linear_guess()
        if self.form.answering():  # such equations have no centre but this
            self.centre = guess.copy()
            starts = [guess, *([] if self.form.carried.any() else self._elliptic_guesses())]
        else:
            starts = [guess, self.centre.copy()]
        if known is not None:
            starts.append(np.array([known.get(name, 0.0) for name in self.form.names]))
        starts += self._convection_guesses()
        return min(starts, key=lambda start: self.cost(start)[0])

    def _linear_guess(self) -> np.ndarray:
        """Coefficients that fulfil the equations best in one step, without solving any."""
        rows, one = self.rows, replace(self.form, steps=1)
        at = np.concatenate([rows.state, rows.extras], axis=1)
        weight = rows.weight() / np.sqrt(self.form.basis.lumped.diagonal())
        begun = applied(one.base[0], rows.goal - rows.state)
        step = one.step(self.centre, rows.free)
        target = -self.unexplained((begun - step.source(at)) * weight)
        forcings = self._forcings(one, self.centre, [rows.state, rows.goal], step)
        columns = [self.unexplained(forcing * weight) for forcing in forcings]
        free = self._free()
        design = np.stack([columns[place] for place in free], axis=1)
        size = _sizes(design)
        design = design / size
        gram = design.T @ design
        guess = self.centre.copy()
        guess[free] += np.linalg.solve(gram + self.ridge * np.eye(len(free)), design.T @ -target) / size
        return guess

    def _free(self) -> list[int]:
        """The places of coefficients that a linear guess may change."""
        form = self.form
        constants = {0, 1, *(2 + len(form.linear) + place for place, _ in form.answering())}
        return [place for place in range(form.count) if place not in constants]

    def _elliptic_guesses(self) -> list[np.ndarray]:
        """Guesses for a static box: each makes the one before better, for as long as that costs less."""
        guesses: list[np.ndarray] = []
        last, best = self._elliptic(), math.inf
        for _ in range(AGAIN + 1):
            try:
                last = self._smoothed(last)
            except (RuntimeError, np.linalg.LinAlgError):  # a singular matrix
                break
            guesses.append(last)
            cost = self.cost(last)[0]
            if not cost < best:
                break
            best = cost
        return guesses

    def _convection_guesses(self) -> list[np.ndarray]:
        """Guesses for a form with convection: that of a call's mean, with more and more diffusion."""
        form = self.form
        if not any(form.kinds[place][2][0] == "convection" for place in form.varied):
            return []
        along = self.along()
        diffusion = [
            place
            for place, name in enumerate(form.names)
            if isinstance(name, tuple) and name[0] == name[1] and name[2:] == (("laplace",), 0)
        ]
        guesses = [along.copy() for _ in DIFFUSED]
        for guess, level in zip(guesses, DIFFUSED, strict=True):
            guess[diffusion] = level
        return guesses

    def _elliptic(self) -> np.ndarray:
        """Coefficients of a matrix that smooths: diffusion and a little mass, field by field."""
        theta = self.form.start()
        for place, name in enumerate(self.form.names):
            if isinstance(name, tuple) and name[0] == name[1] and not name[3]:
                theta[place] = {"laplace": 1.0, "mass": SMALL_MASS}.get(name[2][0], 0.0)
        return theta

    def _smoothed(self, theta: np.ndarray) -> np.ndarray:
        """Coefficients whose equations are fulfilled best after a solve with the matrix of `theta`.

        A field that is not carried misses the outputs by K^-1 (q - K y), with K and q of the same
        coefficients. With K^-1 of the coefficients before, that error is linear (Sanathanan and Koerner).
        Without K^-1 the rough part of y decides.
        """
        rows, start = self.rows, self.form.start()
        step = self.step(theta)
        columns = [
            self.unexplained(step.solve(forcing, np.zeros_like(forcing)) * rows.weight())
            for forcing in self._forcings(self.form, theta, [rows.state, rows.goal], step)
        ]
        free = self._free()
        design = np.stack([columns[place] for place in free], axis=1)
        size = _sizes(design)
        constants = set(range(self.form.count)) - set(free)
        target = sum(start[place] * columns[place] for place in constants)
        gram = (design / size).T @ (design / size) + self.ridge * np.eye(len(free))
        start[free] -= np.linalg.solve(gram, (design / size).T @ target) / size
        return start

    def along(self) -> np.ndarray:
        """Coefficients of convection and mass by the equations' mean over a call, without solving any.

        Where states are smooth that is good to a movement over many elements.
        """
        theta = self.form.start()
        target, columns = self._means(self.rows)
        design = np.stack([self.unexplained(column) for column in columns.values()], axis=1)
        size = _sizes(design)
        design = design / size
        gram = design.T @ design + ALONG_RIDGE * np.eye(len(size))
        theta[list(columns)] = np.linalg.solve(gram, design.T @ self.unexplained(target)) / size
        theta[1] = IMPLICIT
        return theta

    def missed(self, theta: np.ndarray, held: Rows) -> float:
        """The part of the change that these leave in the equations of rows held out."""
        residuals, target = [], []
        for rows in (held, self.rows):
            goal, columns = self._means(rows)
            residuals.append(goal - sum(theta[place] * column for place, column in columns.items()))
            target.append(goal)
        norms = [
            np.linalg.norm(
                of_held.reshape(len(of_held), -1)
                - held.explained(self.rows, of_rows.reshape(len(of_rows), -1))
            )
            for of_held, of_rows in (residuals, target)
        ]
        return float(norms[0] / max(float(norms[1]), 1e-300))

    def _means(self, rows: Rows) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """The change, and what convection and mass make of the mean of both ends, by coefficient."""
        form = replace(self.form, steps=1)
        theta, middle = form.start(), (rows.state + rows.goal) / 2
        weight = rows.weight() / np.sqrt(form.basis.lumped.diagonal())
        step = form.step(theta, rows.free)
        forcings = Fit(form, rows, self.ridge)._forcings(form, theta, [middle, middle], step)
        columns = {
            place: forcing * weight
            for place, (name, forcing) in enumerate(zip(form.names, forcings, strict=True))
            if isinstance(name, tuple) and name[0] == name[1] and name[2][0] in ("convection", "mass")
        }
        return applied(form.base[0], rows.goal - rows.state) * weight, columns

    def improved(self, theta: np.ndarray, like: Fit | None = None) -> np.ndarray:
        """Better coefficients by L-BFGS with exact gradients, in coordinates that a Jacobian makes round.

        A gradient takes 2 S solves a row, a Jacobian as many as there are coefficients.

        Args:
            theta: to begin with.
            like: a fit of the same form that ended at `theta`, whose last Jacobian serves for the first.
        """
        for number in range(ROUNDS):
            if self.cost(theta)[1] is None:
                return theta
            gram = like._gram_kept if like is not None and not number else None
            gram = self._gram_kept = self._gram(theta) if gram is None else gram
            if self.weights is None:
                self.weights = _weights(gram)
            penalty = np.diag(self.ridge * self.weights)
            penalty[1, 1] += self._ringing(theta)[2]
            try:
                factor = np.linalg.cholesky(2 * (gram + penalty))
            except np.linalg.LinAlgError:  # nothing moves the outputs, as in a box that is constant
                return theta
            cost, slope = self.sloped(theta)
            newton = float(np.linalg.norm(solve_triangular(factor, slope, lower=True)))
            if not newton or not cost:
                return theta
            # L-BFGS-B's first step has length one: here that is Gauss-Newton's.
            round_one = _Round(
                self, theta, solve_triangular(factor, newton * np.eye(len(theta)), lower=True), cost
            )
            result = minimize(
                round_one, np.zeros_like(theta), jac=True, method="L-BFGS-B",
                options={"maxiter": ITERATIONS, "maxcor": 20, "ftol": LOOSELY if self.large else ENOUGH},
            )  # fmt: skip
            if not result.fun < 1:
                return theta
            theta = round_one.at(result.x)
            if result.fun > ONCE_MORE:
                break
        return theta

    def parts(self, theta: np.ndarray) -> tuple[int, ...]:
        """The matrices, of a form of degree 0, whose effect on the outputs is not small."""
        if self.weights is None or self.form.degree:
            return ()
        effect = np.abs(theta) * np.sqrt(self.weights)
        return tuple(np.flatnonzero(effect[2 : 2 + len(self.form.linear)] > PART).tolist())

    def step(self, theta: np.ndarray) -> ImplicitStep:
        """The implicit step with these coefficients."""
        return self.form.step(theta, self.rows.free)

    def penalty(self, theta: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        """The ridge, once there is a Jacobian, and the cost of ringing."""
        ringing, by_w, _ = self._ringing(theta)
        ridge, slope = 0.0, np.zeros_like(theta)
        if self.weights is not None:
            ridge = float(self.ridge * self.weights @ (theta - self.centre) ** 2)
            slope += 2 * self.ridge * self.weights * (theta - self.centre)
        slope[1] += by_w
        return (ridge, ringing), slope

    def _ringing(self, theta: np.ndarray) -> tuple[float, float, float]:
        """The cost of rough waves that stay, its slope by w, and what Gauss-Newton's matrix has of it.

        A step keeps (w - 1) / w of the roughest. Values of smooth states do not show it, and diffusion leaves
        none; convection does.
        """
        form = self.form
        if not form.carried.any() or any(form.kinds[place][2][0] == "convection" for place in form.varied):
            return 0.0, 0.0, 0.0
        w = max(float(theta[1]), 0.1)
        share, steps = (1 - w) / w, form.steps
        slope = -steps * share ** (steps - 1) / w**2  # of kept^S
        return RINGING * share ** (2 * steps), 2 * RINGING * share**steps * slope, RINGING * slope**2

    def _gram(self, theta: np.ndarray) -> np.ndarray:
        """Products of how residuals follow coefficients, `(coefficients, coefficients)`, by few rows."""
        plain = self.large and not self.form.carried.any() and not self.form.degree
        work = WORK_OF_STATIC if plain else WORK
        few = Fit(self.form, _affordable(self.form, self.rows, work), self.ridge)
        step = few.step(theta)
        states = step.run(few.rows.state, few.rows.extras)
        jacobian = few._jacobian(theta, (step, states))
        return jacobian.T @ jacobian

    def _jacobian(self, theta: np.ndarray, run: tuple[ImplicitStep, Trajectory]) -> np.ndarray:
        """Return the derivative of residuals, `(residuals, coefficients)`; some coefficients at a time."""
        step, states = run
        at_once = max(1, AT_ONCE // self.rows.goal.size)
        by_step = [
            self._forcings(self.form, theta, states[at : at + 2], step) for at in range(self.form.steps)
        ]
        columns: list[np.ndarray] = []
        while len(columns) < self.form.count:
            parts = [np.stack(list(itertools.islice(forcings, at_once))) for forcings in by_step]
            change = step.tangent(states, self.rows.extras, np.zeros_like(parts[0]), forcing=parts)
            columns += [self.unexplained(response * self.rows.weight()) for response in change]
        return np.stack(columns, axis=1)

    def slope(
        self, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep, multiplier: np.ndarray
    ) -> np.ndarray:
        """Return each coefficient's forcing of a step, times a multiplier, summed over rows."""
        form, (before, after) = self.form, states
        share = form.implicit(theta).reshape(1, *before.shape[1:])
        fallen = before - after
        sums = [
            float((multiplier * applied(form.base[1], fallen)).sum()),
            float((multiplier * form.carried[None, :, None] * stiff(step, fallen)).sum()),
        ]
        # w is of an equation, the same for all of its nodes
        by_out = [share[:, out] * after + (1 - share[:, out]) * before for out in range(len(form.carried))]
        products = form.basis.products(multiplier, by_out)
        for place, (out, into, kind) in enumerate(form.kinds):
            integral = products(kind, out, into)
            if kind[0] == "boundary":
                sums.append(-float(integral) / form.steps)
            else:
                count = form.places(place)
                sums += (-(form.basis.weights(form.degree)[:count] @ integral) / form.steps).tolist()
        at = np.concatenate([before, self.rows.extras], axis=1)
        for term, product in zip(form.terms, step.products(at), strict=True):
            sums.append(float((multiplier[:, term.out] * product).sum()) / form.steps)
        return np.array(sums)

    def _forcings(
        self, form: MeshForm, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep
    ) -> Iterator[np.ndarray]:
        """Yield each coefficient's forcing of a step's equation, between the states before and after."""
        before, after = states
        share = form.implicit(theta).reshape(1, *before.shape[1:])
        carries = form.carried[None, :, None]
        yield applied(form.base[1], before - after)
        yield carries * stiff(step, before - after)
        for out, into, matrix in form.linear:
            forcing = np.zeros_like(before)
            values = share[:, out] * after[:, into] + (1 - share[:, out]) * before[:, into]
            forcing[:, out] = -(matrix @ values.T).T / form.steps
            yield forcing
        at = np.concatenate([before, self.rows.extras], axis=1)
        for term, product in zip(form.terms, step.products(at), strict=True):
            forcing = np.zeros_like(before)
            forcing[:, term.out] = product / form.steps
            yield forcing


@dataclass(frozen=True)
class _Round:
    """The cost in units of the cost that a round began with, in its coordinates, and its slope.

    Attributes:
        fit: the fit that has the cost.
        begun: the coefficients at the start, where coordinates are zero.
        ways: the derivative of coefficients by coordinates, transposed.
        cost: the cost at the start.
    """

    fit: Fit
    begun: np.ndarray
    ways: np.ndarray
    cost: float

    def at(self, u: np.ndarray) -> np.ndarray:
        """The coefficients."""
        return self.begun + u @ self.ways

    def __call__(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        """Cost and slope."""
        cost, slope = self.fit.sloped(self.at(u))
        return cost / self.cost, self.ways @ slope / self.cost


def _affordable(form: MeshForm, rows: Rows, work: float) -> Rows:
    """Return as many of the rows as the work allows, at least a few, evenly taken."""
    size = rows.goal[:1].size
    most = max(OF_LARGE if size > LARGE else FEWEST_ROWS, int(work / (form.count * form.steps * size)))
    if most >= len(rows.goal):
        return rows
    return rows.fitted(np.linspace(0, len(rows.goal) - 1, most).round().astype(int))


def _sizes(design: np.ndarray) -> np.ndarray:
    """The sizes of columns; infinite where one is rounding beside the largest, as a constant's slopes are."""
    size = np.linalg.norm(design, axis=0)
    return np.where(size > FAINT * size.max(initial=0.0), size, np.inf)


def _weights(gram: np.ndarray) -> np.ndarray:
    """The weights of the ridge: squares of the coefficients' effects, at least one for psi and w."""
    weights = np.maximum(gram.diagonal(), FAINT * gram.diagonal().max())
    weights[:2] = np.maximum(weights[:2], 1.0)
    return weights
