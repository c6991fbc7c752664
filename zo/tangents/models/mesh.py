"""`MeshTangent`: for boxes on triangles or tetrahedra, an implicit step on the mesh's own P1 operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from blackbox import Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.implicit_step import ImplicitStep, Trajectory
from zo.tangents.models.mesh_form import Basis, Form, applied, stiff
from zo.tangents.models.mesh_operators import Elements
from zo.tangents.models.on_mesh import ImplicitTangent, Rows

# Forms from poor to rich: steps, and which products of fields; and then degrees of the coefficients'
# polynomials, and steps, for those matrices that had a part in the best of these.
PLAIN = ((1, "none"), (2, "nodes"), (2, "cells"))
STATIC = ((1, "none"), (1, "nodes"))
VARIED = ((1, 2), (3, 2), (6, 2))
ALONG = (6, 8)  # degrees of a convection that alone differs from place to place
ALONG_PART = 0.7  # of the error of the best plain form: what it must leave less than in the equations
ALONG_FROM = 0.2  # an error of the plain form below which it is not tried
ALONG_RIDGE = 1e-3  # of that guess
IMPLICIT = 0.6  # how implicit its steps are, to begin with
DIFFUSED = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)  # beside it, to begin with: what keeps it from growing
FINE = 4  # steps that are taken where rows held out do not speak against them
NO_WORSE = 1.05  # times the error with fewer: that they do not
PART = 0.03  # of the usual change: the effect below which a matrix has none
MOST_COEFFICIENTS = 192
FEWEST_ROWS = 4  # of a Jacobian
WORK = 2_000_000  # coefficients x steps x numbers of the rows of a Jacobian, at most
CLEARLY = 0.9  # times the error of the poorer form: what a richer one must fall below
AT_ONCE = 1_000_000  # numbers of Jacobians that are solved for together
FAINT = 1e-12  # of the largest effect of a coefficient: the ridge's weight of one without any
GOOD = 1e-3  # an error at which no richer form is tried
ROUNDS = 3  # of L-BFGS, each in coordinates that a Jacobian makes round
ONCE_MORE = 0.7  # of the cost: where it falls below this part there is another round
ITERATIONS, ENOUGH = 25, 1e-4  # of a round, and the relative gain below which it ends
HIGH = 1e12  # a cost that counts as none


class MeshTangent(ImplicitTangent):
    """J(z) is that of a learned implicit step on the finite elements of the box's mesh.

    For a box whose outputs are arrays `(nodes,)`, `(nodes, fields)` or `(fields, nodes)` on a mesh of
    triangles or tetrahedra with coordinates, and that has at least one input on it. The model is S steps of

        (B + w K / S) y+ = (B - (1 - w) K / S) y + M q(y, extras) / S,

    with B the mass matrix, in part lumped, K a sum of stiffness, convection, mass and boundary matrices
    between all pairs of fields, whose coefficients are polynomials of position, q a polynomial of the fields
    and of other inputs on the mesh, with fluxes that depend on the state (k(u) grad u, u . grad u). An output
    that no input moves on to, as a displacement that answers a load, solves K y = M q(extras). These numbers,
    10 to 192, are fitted to the outputs by L-BFGS with gradients by transposed sparse solves, in coordinates
    that Gauss-Newton's matrix of few rows makes round; degree and S by rows held out, the poorest first.
    Convection that differs from place to place begins with what the equations say of the outputs themselves,
    and takes so many steps that it passes about an element in each.
    A ridge regression beside the step learns what inputs that lie on no
    node add. It needs no probes, and a few dozen rows.

    It knows a second-order equation's kind of physics, not the box's: a finer mesh, other time steps, and
    terms that it has not are within its reach in part; what jumps or reaches over the whole mesh in other
    ways is not.

    Memory: window x (size_in + size_out) numbers and a sparse factorisation. A fit of each of at most
    7 forms takes S x 4 x coefficients sparse solves, up to three times, and 2 S solves for each row and each
    of some 20 iterations: seconds for a thousand nodes. A call's VJP takes 2 S solves a row, on one CPU core.

    Args:
        mesh: the mesh; None, the default: the layout of the box's outputs.
        ridge: on the coefficients, each in units of its effect on the outputs. Rows held out do not show what
            a smaller one leaves undetermined.
        window: rows kept, the oldest going.

    Attributes:
        measured: the form that the last fit chose, the number of its coefficients, and its error on rows held
            out in units of the box's usual change; empty before.

    Raises:
        ConfigurationError: a value out of its range, a mesh without cells or coordinates; when it is first
            used, a box that has not all outputs and some input on the mesh.
    """

    def __init__(self, mesh: Mesh | None = None, *, ridge: float = 1e-4, window: int = 500) -> None:
        super().__init__(mesh, ridge, window)

    def check_mesh(self, mesh: Mesh) -> None:
        """Refuse one without cells or coordinates."""
        if (
            mesh.cells is None
            or mesh.coordinates is None
            or mesh.coordinates.shape[1] < mesh.cells.shape[1] - 1
        ):
            raise ConfigurationError(
                f"MeshTangent: expected a mesh with triangles in two dimensions or tetrahedra in three, and "
                f"coordinates, got {mesh!r}. Give these, or take zo.GraphTangent, which needs edges alone."
            )

    def fitted(self, mesh: Mesh, rows: Rows, before: dict[str, Any] | None, longer: bool) -> dict[str, Any]:
        """The form that predicts held-out rows best, fitted to all rows."""
        basis = self._basis(mesh)
        kept = rows.held
        best: _FittedForm | None = None
        poor = Form(basis, 0, 1, "none", (), rows.carried, rows.extras.shape[1])
        if before is not None:
            degree, steps, products, varied = before["form"]
            form = replace(poor, degree=degree, steps=steps, products=products, varied=varied)
            fit = _Fit(form, rows.fitted(~kept), self.ridge)
            theta = fit.improved(fit.first(dict(zip(form.names, before["theta"].tolist(), strict=True))))
            error = fit.error(theta, rows.fitted(kept) if kept.any() else None)
            return self._result(_FittedForm(form, theta, error, ()), rows)
        for steps, products in PLAIN if rows.carried.any() else STATIC:
            best = self._better(best, replace(poor, steps=steps, products=products), rows)
            if steps == 1:
                plain, best = best, self._carried_along(best, poor, rows)
                if best is not plain:
                    break
        assert best is not None
        plain, parts = best.form, best.parts
        for degree, steps in VARIED:
            steps = steps if rows.carried.any() else 1
            richer = replace(plain, degree=degree, steps=steps, varied=parts)
            last, best = best, self._better(best, richer, rows)
            if degree > 1 and best is last:
                break
        return self._result(self._finer_steps(best, rows), rows)

    def _finer_steps(self, best: _FittedForm, rows: Rows) -> _FittedForm:
        """More steps, unless rows held out speak against them.

        Values of smooth states do not show how few long steps bend what is rough.
        """
        if not rows.carried.any() or best.form.steps >= FINE or best.error < GOOD:
            return best
        form = replace(best.form, steps=FINE)
        fit = _Fit(form, rows.fitted(~rows.held), self.ridge)
        theta = fit.improved(fit.first(best.named()))
        error = fit.error(theta, rows.fitted(rows.held) if rows.held.any() else None)
        return _FittedForm(form, theta, error, best.parts) if error < NO_WORSE * best.error else best

    def _carried_along(self, best: _FittedForm, poor: Form, rows: Rows) -> _FittedForm:
        """Convection that differs from place to place, where it explains more than the best so far."""
        varied = tuple(
            place
            for place, (out, into, kind) in enumerate(poor.kinds)
            if kind[0] == "convection" and out == into and rows.carried[out]
        )
        if not varied or not best.error > ALONG_FROM or not rows.held.any():
            return best
        guesses = []
        for degree in ALONG:
            form = replace(poor, degree=degree, steps=1, products="none", varied=varied)
            fit = _Fit(form, rows.fitted(~rows.held), self.ridge)
            theta = fit.along()
            guesses.append((fit.missed(theta, rows.fitted(rows.held)), form, theta))
        missed, form, theta = min(guesses, key=lambda guess: guess[0])
        if missed > ALONG_PART * best.error:
            return best
        return self._better(best, replace(form, steps=form.passed(theta)), rows)

    def _result(self, best: _FittedForm, rows: Rows) -> dict[str, Any]:
        """The chosen form, fitted to all rows, in plain values and tensors."""
        form, theta, error = best.form, best.theta, best.error
        if rows.held.any() and math.isfinite(error):
            theta = _Fit(form, rows, self.ridge).improved(theta)
        return {
            "form": (form.degree, form.steps, form.products, form.varied),
            "carried": torch.from_numpy(rows.carried),
            "extras": rows.extras.shape[1],
            "free": torch.from_numpy(rows.free),
            "theta": torch.from_numpy(theta),
            "measured": {
                "degree": form.degree,
                "steps": form.steps,
                "products": form.products,
                "coefficients": form.count,
                "error": error,
            },
        }

    def _better(self, best: _FittedForm | None, form: Form, rows: Rows) -> _FittedForm:
        """The form, if it predicts held-out rows clearly better than the best so far."""
        if best is not None and (
            best.error < GOOD or form.count > MOST_COEFFICIENTS or (form.degree and not form.varied)
        ):
            return best
        fit = _Fit(form, rows.fitted(~rows.held), self.ridge)
        theta = fit.improved(fit.first(None if best is None else best.named()))
        error = fit.error(theta, rows.fitted(rows.held) if rows.held.any() else None)
        if best is not None and not error < CLEARLY * best.error:
            return best
        return _FittedForm(form, theta, error, fit.parts(theta))

    def step(self, mesh: Mesh, fit: dict[str, Any]) -> ImplicitStep:
        """The implicit step with the fitted coefficients."""
        degree, steps, products, varied = fit["form"]
        carried = fit["carried"].numpy()
        form = Form(self._basis(mesh), degree, steps, products, varied, carried, fit["extras"])
        return form.step(fit["theta"].numpy(), fit["free"].numpy())

    def _basis(self, mesh: Mesh) -> Basis:
        if getattr(self, "_kept_basis", (None, None))[0] is not mesh:
            self._kept_basis = mesh, Basis(Elements.of(mesh))
        return self._kept_basis[1]

    def __repr__(self) -> str:
        """The settings; a resumed run is held to them, so what was measured is not among them."""
        return f"MeshTangent({self.mesh!r}, ridge={self.ridge})"


@dataclass(frozen=True)
class _FittedForm:
    """A form with its coefficients, its error on rows held out, and the matrices that have a part in it."""

    form: Form
    theta: np.ndarray
    error: float
    parts: tuple[int, ...]

    def named(self) -> dict[Any, float]:
        """Its coefficients, by what they multiply."""
        return dict(zip(self.form.names, self.theta.tolist(), strict=True))


class _Fit:
    """Coefficients of a form by rows: a linear guess, then least squares on the outputs."""

    def __init__(self, form: Form, rows: Rows, ridge: float) -> None:
        self.form, self.rows, self.ridge = form, rows, ridge
        self.hat = rows.hat()
        self.norm = np.sqrt(max(1.0, rows.free.sum() * len(rows.goal)))
        self.centre = form.start()
        self.weights: np.ndarray | None = None  # of the ridge, as of the first Jacobian

    def first(self, known: dict[Any, float] | None = None) -> np.ndarray:
        """Coefficients that fulfil the equations best in one step, without solving any; or known ones.

        Args:
            known: of a poorer form, by what they multiply.
        """
        form, rows = self.form, self.rows
        theta, one = self.centre, replace(form, steps=1)
        at = np.concatenate([rows.state, rows.extras], axis=1)
        lumped = np.sqrt(self.form.basis.lumped.diagonal())
        weight = rows.weight() / lumped
        mass, _ = one.base
        begun = applied(mass, rows.goal - rows.state)
        step = one.step(theta, rows.free)
        target = -self._left((begun - step.source(at)) * weight)
        forcings = self._forcings(one, theta, [rows.state, rows.goal], step)
        columns = [self._left(forcing * weight) for forcing in forcings]
        fixed = {0, 1, *(2 + len(form.linear) + place for place, _ in form.answering())}
        free = [place for place in range(form.count) if place not in fixed]
        design = np.stack([columns[place] for place in free], axis=1)
        size = np.linalg.norm(design, axis=0)
        design = design / np.where(size > 0, size, 1.0)
        gram = design.T @ design
        solution = np.linalg.solve(gram + self.ridge * np.eye(len(free)), design.T @ -target)
        guess = theta.copy()
        guess[free] += solution / np.where(size > 0, size, 1.0)
        answered = form.answering()
        if answered:  # such equations have no centre but this
            self.centre = guess.copy()
        starts = [guess] if answered else [guess, theta.copy()]
        if known is not None:
            starts.append(np.array([known.get(name, 0.0) for name in form.names]))
        if any(form.kinds[place][2][0] == "convection" for place in form.varied):
            along = self.along()
            diffusion = [
                place
                for place, name in enumerate(form.names)
                if isinstance(name, tuple) and name[0] == name[1] and name[2:] == (("laplace",), 0)
            ]
            for level in DIFFUSED:
                starts.append(along.copy())
                starts[-1][diffusion] = level
        return min(starts, key=lambda start: self._cost(start)[0])

    def along(self) -> np.ndarray:
        """Coefficients of convection and mass by the equations' mean over a call, without solving any.

        Where states are smooth that is good to a movement over many elements.
        """
        theta = self.form.start()
        target, columns = self._means(self.rows)
        design = np.stack([self._left(column) for column in columns.values()], axis=1)
        size = np.linalg.norm(design, axis=0)
        size = np.where(size > 0, size, 1.0)
        design = design / size
        gram = design.T @ design + ALONG_RIDGE * np.eye(len(size))
        theta[list(columns)] = np.linalg.solve(gram, design.T @ self._left(target)) / size
        theta[1] = IMPLICIT
        return theta

    def missed(self, theta: np.ndarray, held: Rows) -> float:
        """The part of the change that these leave in the equations of rows held out."""
        left, target = [], []
        for rows in (held, self.rows):
            goal, columns = self._means(rows)
            left.append(goal - sum(theta[place] * column for place, column in columns.items()))
            target.append(goal)
        norms = [
            np.linalg.norm(
                of_held.reshape(len(of_held), -1)
                - held.explained(self.rows, of_rows.reshape(len(of_rows), -1))
            )
            for of_held, of_rows in (left, target)
        ]
        return float(norms[0] / max(float(norms[1]), 1e-300))

    def _means(self, rows: Rows) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """The change, and what convection and mass make of the mean of both ends, by coefficient."""
        form = replace(self.form, steps=1)
        theta, middle = form.start(), (rows.state + rows.goal) / 2
        weight = rows.weight() / np.sqrt(form.basis.lumped.diagonal())
        step = form.step(theta, rows.free)
        forcings = _Fit(form, rows, self.ridge)._forcings(form, theta, [middle, middle], step)
        columns = {
            place: forcing * weight
            for place, (name, forcing) in enumerate(zip(form.names, forcings, strict=True))
            if isinstance(name, tuple) and name[0] == name[1] and name[2][0] in ("convection", "mass")
        }
        return applied(form.base[0], rows.goal - rows.state) * weight, columns

    def improved(self, theta: np.ndarray) -> np.ndarray:
        """Better coefficients by L-BFGS with exact gradients, in coordinates that a Jacobian makes round.

        A gradient takes 2 S solves a row, a Jacobian as many as there are coefficients.
        """
        for _ in range(ROUNDS):
            cost, run = self._cost(theta)
            if run is None:
                return theta
            gram = self._gram(theta)
            if self.weights is None:
                self.weights = _weights(gram)
                cost, _ = self._cost(theta)
            try:
                factor = np.linalg.cholesky(2 * (gram + np.diag(self.ridge * self.weights)))
            except np.linalg.LinAlgError:  # nothing moves the outputs, as in a box that is constant
                return theta
            result = minimize(
                self._in_round, np.zeros_like(theta), (theta, factor), jac=True, method="L-BFGS-B",
                options={"maxiter": ITERATIONS, "maxcor": 20, "ftol": ENOUGH},
            )  # fmt: skip
            if not result.fun < cost:
                return theta
            theta = theta + solve_triangular(factor.T, result.x)
            if result.fun > ONCE_MORE * cost:
                break
        return theta

    def _in_round(self, u: np.ndarray, begun: np.ndarray, factor: np.ndarray) -> tuple[float, np.ndarray]:
        cost, slope = self._sloped(begun + solve_triangular(factor.T, u))
        return cost, solve_triangular(factor, slope, lower=True)

    def parts(self, theta: np.ndarray) -> tuple[int, ...]:
        """The matrices, of a form of degree 0, whose effect on the outputs is not small."""
        if self.weights is None or self.form.degree:
            return ()
        effect = np.abs(theta) * np.sqrt(self.weights)
        return tuple(np.flatnonzero(effect[2 : 2 + len(self.form.linear)] > PART).tolist())

    def error(self, theta: np.ndarray, held: Rows | None) -> float:
        """The error on rows that are held out, in units of the change; on the fitted rows where none are."""
        step = self._step(theta)
        try:
            residual = self._left_of(step.run(self.rows.state, self.rows.extras)[-1], self.rows)
            if held is None:
                return float(np.linalg.norm(residual - self.hat @ residual) / self.norm)
            left = self._left_of(step.run(held.state, held.extras)[-1], held)
        except RuntimeError:  # a singular matrix
            return math.inf
        left = left - held.explained(self.rows, residual)
        error = float(np.linalg.norm(left) / np.sqrt(max(1.0, held.free.sum() * len(left))))
        return error if math.isfinite(error) else math.inf

    def _step(self, theta: np.ndarray) -> ImplicitStep:
        return self.form.step(theta, self.rows.free)

    def _cost(self, theta: np.ndarray) -> tuple[float, tuple[ImplicitStep, Trajectory] | None]:
        step = self._step(theta)
        try:
            with np.errstate(all="ignore"):
                states = step.run(self.rows.state, self.rows.extras)
                cost = self._total(self._residual(states), theta)
        except (RuntimeError, ValueError):  # a singular matrix
            return math.inf, None
        return (cost, (step, states)) if math.isfinite(cost) else (math.inf, None)

    def _total(self, residual: np.ndarray, theta: np.ndarray) -> float:
        held = 0.0 if self.weights is None else self.ridge * self.weights @ (theta - self.centre) ** 2
        return float(residual @ residual + held)

    def _left_of(self, end: np.ndarray, rows: Rows) -> np.ndarray:
        return ((end - rows.goal) * rows.weight()).reshape(len(end), -1)

    def _residual(self, states: Trajectory) -> np.ndarray:
        return self._left((states[-1] - self.rows.goal) * self.rows.weight())

    def _left(self, values: np.ndarray) -> np.ndarray:
        """Less what a constant and the numbers explain, as one vector of length about one."""
        flat = values.reshape(len(values), -1)
        return (flat - self.hat @ flat).ravel() / self.norm

    def _gram(self, theta: np.ndarray) -> np.ndarray:
        """Products of how residuals follow coefficients, `(coefficients, coefficients)`, by few rows."""
        few = _Fit(self.form, _affordable(self.form, self.rows, WORK), self.ridge)
        step = few._step(theta)
        states = step.run(few.rows.state, few.rows.extras)
        jacobian = few._jacobian(theta, (step, states))
        return jacobian.T @ jacobian

    def _jacobian(self, theta: np.ndarray, run: tuple[ImplicitStep, Trajectory]) -> np.ndarray:
        """How residuals follow coefficients, `(residuals, coefficients)`; some coefficients at a time."""
        step, states = run
        at_once = max(1, AT_ONCE // self.rows.goal.size)
        by_step = [
            self._forcings(self.form, theta, states[at : at + 2], step) for at in range(self.form.steps)
        ]
        columns: list[np.ndarray] = []
        while len(columns) < self.form.count:
            parts = [np.stack(list(itertools.islice(forcings, at_once))) for forcings in by_step]
            change = step.tangent(states, self.rows.extras, np.zeros_like(parts[0]), forcing=parts)
            columns += [self._left(response * self.rows.weight()) for response in change]
        return np.stack(columns, axis=1)

    def _sloped(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The cost and its gradient, by the adjoint of the steps."""
        cost, run = self._cost(theta)
        if run is None or cost > HIGH:
            return HIGH, np.zeros_like(theta)
        step, states = run
        rows = self.rows
        left = self._residual(states).reshape(len(rows.goal), -1)
        pulled = 2 / self.norm * (left - self.hat.T @ left)
        _, _, multipliers = step.adjoint(states, rows.extras, pulled.reshape(rows.goal.shape) * rows.weight())
        slope = np.zeros_like(theta)
        if self.weights is not None:
            slope += 2 * self.ridge * self.weights * (theta - self.centre)
        for at, multiplier in enumerate(multipliers):
            slope += self._pulled(theta, states[at : at + 2], step, multiplier)
        return cost, slope

    def _pulled(
        self, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep, multiplier: np.ndarray
    ) -> np.ndarray:
        """What the forcings of a step are times a multiplier, summed up over rows, for each coefficient."""
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
        self, form: Form, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep
    ) -> Iterator[np.ndarray]:
        """What a coefficient adds to a step's equation, from the state before to that after it."""
        before, after = states
        share = form.implicit(theta).reshape(1, *before.shape[1:])
        carried = form.carried[None, :, None]
        yield applied(form.base[1], before - after)
        yield carried * stiff(step, before - after)
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


def _affordable(form: Form, rows: Rows, work: float) -> Rows:
    """As many of the rows as the work allows, at least four, evenly taken."""
    most = max(FEWEST_ROWS, int(work / (form.count * form.steps * rows.goal[:1].size)))
    if most >= len(rows.goal):
        return rows
    return rows.fitted(np.linspace(0, len(rows.goal) - 1, most).round().astype(int))


def _weights(gram: np.ndarray) -> np.ndarray:
    """The weights of the ridge: squares of the coefficients' effects, at least one for psi and w."""
    weights = np.maximum(gram.diagonal(), FAINT * gram.diagonal().max())
    weights[:2] = np.maximum(weights[:2], 1.0)
    return weights
