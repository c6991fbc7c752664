"""`MeshTangent`: for boxes on triangles or tetrahedra, an implicit step on the mesh's own P1 operators."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse

from blackbox import Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.implicit_step import ImplicitStep, Term, Trajectory
from zo.tangents.models.mesh_operators import Elements
from zo.tangents.models.on_mesh import ImplicitTangent, Rows

# Forms from poor to rich: steps, and which products of fields; and then degrees of the coefficients'
# polynomials, and steps, for those matrices that had a part in the best of these.
PLAIN = ((1, "none"), (2, "nodes"), (2, "cells"))
STATIC = ((1, "none"), (1, "nodes"))
VARIED = ((1, 2), (3, 2), (6, 2))
PART = 0.03  # of the usual change: the effect below which a matrix has none
MOST_COEFFICIENTS = 192
FEWEST_ROWS = 4
WORK = 12_000_000  # coefficients x steps x numbers of the rows in a step of Gauss-Newton, at most
CLEARLY = 0.9  # times the error of the poorer form: what a richer one must fall below
AT_ONCE = 1_000_000  # numbers of Jacobians that are solved for together
FAINT = 1e-12  # of the largest effect of a coefficient: the ridge's weight of one without any
GOOD = 1e-3  # an error at which no richer form is tried
ITERATIONS, ENOUGH = 6, 3e-3  # of Gauss-Newton, and the relative gain below which it ends
DAMPING = 1e-3, 1e8  # of Levenberg-Marquardt: the first, and where it gives up


class MeshTangent(ImplicitTangent):
    """J(z) is that of a learned implicit step on the finite elements of the box's mesh.

    For a box whose outputs are arrays `(nodes,)`, `(nodes, fields)` or `(fields, nodes)` on a mesh of
    triangles or tetrahedra with coordinates, and that has at least one input on it. The model is S steps of

        (B + w K / S) y+ = (B - (1 - w) K / S) y + M q(y, extras) / S,

    with B the mass matrix, in part lumped, K a sum of stiffness, convection, mass and boundary matrices
    between all pairs of fields, whose coefficients are polynomials of position, q a polynomial of the fields
    and of other inputs on the mesh, with fluxes that depend on the state (k(u) grad u, u . grad u). An output
    that no input moves on to, as a displacement that answers a load, solves K y = M q(extras). These numbers,
    10 to 192, are fitted to the outputs by Gauss-Newton; degree and S by rows held out, the poorest first.
    VJPs are transposed sparse solves. A ridge regression beside the step learns what inputs that lie on no
    node add. It needs no probes, and a few dozen rows.

    It knows a second-order equation's kind of physics, not the box's: a finer mesh, other time steps, and
    terms that it has not are within its reach in part; what jumps or reaches over the whole mesh in other
    ways is not.

    Memory: window x (size_in + size_out) numbers and a sparse factorisation. A fit takes coefficients x S x
    rows sparse solves for each of at most 10 iterations and 6 forms; a call's VJP 2 S solves a row, on one
    CPU core.

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
        """The form that foretells held-out rows best, fitted to all rows."""
        basis = self._basis(mesh)
        kept = rows.held
        work = WORK * (2 if longer else 1)
        best: _Found | None = None
        poor = _Form(basis, 0, 1, "none", (), rows.carried, rows.extras.shape[1])
        if before is not None:
            degree, steps, products, varied = before["form"]
            form = replace(poor, degree=degree, steps=steps, products=products, varied=varied)
            fit = _Fit(form, _affordable(form, rows.fitted(~kept), work), self.ridge)
            theta = fit.improved(fit.first(dict(zip(form.names, before["theta"].tolist(), strict=True))))
            error = fit.error(theta, rows.fitted(kept) if kept.any() else None)
            return self._result(_Found(form, theta, error, ()), rows)
        for steps, products in PLAIN if rows.carried.any() else STATIC:
            best = self._better(best, replace(poor, steps=steps, products=products), rows, work)
        assert best is not None
        plain, parts = best.form, best.parts
        for degree, steps in VARIED:
            steps = steps if rows.carried.any() else 1
            richer = replace(plain, degree=degree, steps=steps, varied=parts)
            last, best = best, self._better(best, richer, rows, work)
            if degree > 1 and best is last:
                break
        return self._result(best, rows)

    def _result(self, best: _Found, rows: Rows) -> dict[str, Any]:
        """With all rows."""
        form, theta, error = best.form, best.theta, best.error
        if rows.held.any() and math.isfinite(error):
            theta = _Fit(form, _affordable(form, rows, 1.4 * WORK), self.ridge).improved(theta)
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

    def _better(self, best: _Found | None, form: _Form, rows: Rows, work: int) -> _Found:
        """The form, if it foretells held-out rows clearly better than the best so far."""
        if best is not None and (
            best.error < GOOD or form.count > MOST_COEFFICIENTS or (form.degree and not form.varied)
        ):
            return best
        told = _affordable(form, rows.fitted(~rows.held), work)
        fit = _Fit(form, told, self.ridge)
        theta = fit.improved(fit.first(None if best is None else best.named()))
        error = fit.error(theta, rows.fitted(rows.held) if rows.held.any() else None)
        if best is not None and not error < CLEARLY * best.error:
            return best
        return _Found(form, theta, error, fit.parts(theta))

    def step(self, mesh: Mesh, fit: dict[str, Any]) -> ImplicitStep:
        """With the coefficients."""
        degree, steps, products, varied = fit["form"]
        carried = fit["carried"].numpy()
        form = _Form(self._basis(mesh), degree, steps, products, varied, carried, fit["extras"])
        return form.step(fit["theta"].numpy(), fit["free"].numpy())

    def _basis(self, mesh: Mesh) -> _Basis:
        if getattr(self, "_kept_basis", (None, None))[0] is not mesh:
            self._kept_basis = mesh, _Basis(Elements.of(mesh))
        return self._kept_basis[1]

    def __repr__(self) -> str:
        """With what was set; a resumed run is held to it, so what was measured is not in it."""
        return f"MeshTangent({self.mesh!r}, ridge={self.ridge})"


@dataclass(frozen=True)
class _Found:
    """A form with its coefficients, its error on rows held out, and the matrices that have a part in it."""

    form: _Form
    theta: np.ndarray
    error: float
    parts: tuple[int, ...]

    def named(self) -> dict[Any, float]:
        """Its coefficients, by what they multiply."""
        return dict(zip(self.form.names, self.theta.tolist(), strict=True))


class _Basis:
    """A mesh's matrices, made when first asked for."""

    def __init__(self, elements: Elements) -> None:
        self.elements = elements
        self._made: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def mass(self) -> Any:  # noqa: ANN401 - sparse
        return self.elements.mass()

    @cached_property
    def lumped(self) -> Any:  # noqa: ANN401 - sparse
        return self.elements.lumped()

    @cached_property
    def maps(self) -> dict[str, Any]:
        """For the terms of q."""
        elements = self.elements
        volume = sparse.diags_array(elements.volume)
        own: dict[str, Any] = {
            "node": None,
            "mass": self.mass,
            "mean": elements.average(),
            "integral": (elements.average().T @ volume).tocsr(),
        }
        for axis in range(elements.dimensions):
            slope = elements.slope(axis)
            own |= {f"slope {axis}": slope, f"flux {axis}": (-slope.T @ volume).tocsr()}
        return own

    def of(self, kind: tuple[Any, ...], degree: int, place: int) -> Any:  # noqa: ANN401 - sparse
        """A matrix of K: what it is, and the place of its coefficient's polynomial in those of a degree."""
        key = (*kind, degree, place)
        if key not in self._made:
            weight = self.elements.polynomials(degree)[place]
            self._made[key] = self._matrix(kind, weight)
        return self._made[key]

    def _matrix(self, kind: tuple[Any, ...], weight: np.ndarray) -> Any:  # noqa: ANN401 - sparse
        if kind[0] == "stiffness":
            return self.elements.stiffness(kind[1], kind[2], weight)
        if kind[0] == "both":
            a, b = kind[1:]
            return self.elements.stiffness(a, b, weight) + self.elements.stiffness(b, a, weight)
        if kind[0] in ("laplace", "aniso"):
            axes = range(1, self.elements.dimensions)
            signs = [1.0, *(1.0 if kind[0] == "laplace" else -1.0 * (a == kind[1]) for a in axes)]
            return sum(sign * self.elements.stiffness(a, a, weight) for a, sign in enumerate(signs) if sign)
        if kind[0] == "convection":
            return self.elements.convection(kind[1], weight)
        return self.elements.boundary() if kind[0] == "boundary" else self.elements.mass(weight)


@dataclass(frozen=True)
class _Form:
    """Which coefficients there are: psi, w, those of K, and those of q, in this order.

    psi is the part of the mass that is lumped, w how implicit a step is; both are of states that are carried.
    """

    basis: _Basis
    degree: int
    steps: int
    products: str
    varied: tuple[int, ...]
    carried: np.ndarray
    extras: int

    @cached_property
    def kinds(self) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Field, field and what matrix."""
        count, axes = len(self.carried), range(self.basis.elements.dimensions)
        own: list[tuple[Any, ...]] = [("mass",), ("laplace",), *(("aniso", a) for a in axes[1:])]
        own += [("convection", a) for a in axes]
        if count == 1:
            own += [("both", a, b) for a in axes for b in axes if a < b]
        else:
            own += [("stiffness", a, b) for a in axes for b in axes if a != b]
        found = [(a, b, kind) for a, b in itertools.product(range(count), repeat=2) for kind in own]
        return found + [(each, each, ("boundary",)) for each in range(count)]

    @cached_property
    def names(self) -> list[Any]:
        """Of the coefficients, the same in all forms."""
        most = len(self.basis.elements.polynomials(self.degree))
        places = [
            (*kind, place)
            for own, kind in enumerate(self.kinds)
            for place in range(most if own in self.varied and kind[2] != ("boundary",) else 1)
        ]
        return ["psi", "w", *places, *self.terms]

    @cached_property
    def linear(self) -> list[tuple[int, int, Any]]:
        """Of K: the field whose equation it is in, the field that it multiplies, and the matrix."""
        places = [each for each in self.names[2:] if isinstance(each, tuple)]
        return [(out, into, self.basis.of(kind, self.degree, place)) for out, into, kind, place in places]

    @cached_property
    def terms(self) -> list[Term]:
        """Of q."""
        count = len(self.carried)
        found = [
            Term(out, (("node", count + own),), "mass") for out in range(count) for own in range(self.extras)
        ]
        if self.products == "none":
            return found
        fields = range(count)
        degrees = {1: (0, 2, 3), 2: (0, 2, 3)}.get(count, (0, 2))
        powers = [each for n in degrees for each in itertools.combinations_with_replacement(fields, n)]
        powers += [(own, count + extra) for own in fields for extra in range(self.extras)]
        powers += [(count + extra,) * 2 for extra in range(self.extras)]
        found += [
            Term(out, tuple(("node", own) for own in each), "mass") for out in fields for each in powers
        ]
        if self.products == "cells":
            axes = range(self.basis.elements.dimensions)
            found += [
                Term(out, (("mean", out), (f"slope {a}", out)), f"flux {a}") for out in fields for a in axes
            ]
            found += [
                Term(out, (("mean", by), (f"slope {a}", out)), "integral")
                for out in fields
                for by in fields
                for a in axes
            ]
        return found

    @property
    def count(self) -> int:
        """Of all coefficients."""
        return 2 + len(self.linear) + len(self.terms)

    def start(self) -> np.ndarray:
        """Of a box of which nothing is known: nothing changes; what is not carried answers its own extra."""
        theta = np.zeros(self.count)
        theta[1] = 1.0
        for own, term in self.answering():
            del term
            theta[2 + len(self.linear) + own] = 1.0
        return theta

    def answering(self) -> list[tuple[int, Term]]:
        """For each output that no input moves on to the term that says in which units K is, and its place."""
        first = {}
        waiting = [field for field in range(len(self.carried)) if not self.carried[field]]
        for own, field in enumerate(waiting):
            wanted = len(self.carried) + (own % self.extras if self.extras else 0)
            for place, term in enumerate(self.terms):
                if term.out == field and term.factors == (("node", wanted),):
                    first[field] = (place, term)
        return list(first.values())

    @cached_property
    def base(self) -> tuple[Any, Any]:
        """The mass of carried fields, and how it changes with psi."""
        nodes = self.basis.elements.nodes
        empty = sparse.csr_array((nodes, nodes))
        mass, lump = self.basis.mass, self.basis.lumped - self.basis.mass
        return tuple(
            sparse.block_diag([each if own else empty for own in self.carried], format="csr")
            for each in (mass, lump)
        )  # type: ignore[return-value]

    def operator(self, theta: np.ndarray) -> Any:  # noqa: ANN401 - sparse
        """K of all fields."""
        count, nodes = len(self.carried), self.basis.elements.nodes
        blocks: list[list[Any]] = [
            [sparse.csr_array((nodes, nodes)) for _ in range(count)] for _ in range(count)
        ]
        for value, (out, into, matrix) in zip(theta[2:], self.linear, strict=False):
            if value:
                blocks[out][into] = blocks[out][into] + value * matrix
        return sparse.block_array(blocks, format="csr")

    def implicit(self, theta: np.ndarray) -> np.ndarray:
        """W of each number: 1 where nothing is carried."""
        return np.repeat(np.where(self.carried, theta[1], 1.0), self.basis.elements.nodes)

    def step(self, theta: np.ndarray, free: np.ndarray) -> ImplicitStep:
        """With these coefficients."""
        mass, lump = self.base
        bulk = mass + theta[0] * lump
        stiff = self.operator(theta) / self.steps
        share = self.implicit(theta)
        return ImplicitStep(
            bulk + sparse.diags_array(share) @ stiff,
            bulk - sparse.diags_array(1 - share) @ stiff,
            self.terms,
            theta[2 + len(self.linear) :] / self.steps,
            self.basis.maps,
            len(self.carried),
            self.basis.elements.nodes,
            self.steps,
            free,
        )


class _Fit:
    """Coefficients of a form by rows: a linear guess, then Gauss-Newton on the outputs, damped."""

    def __init__(self, form: _Form, rows: Rows, ridge: float) -> None:
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
        begun = _applied(mass, rows.goal - rows.state)
        step = one.step(theta, rows.free)
        target = -self._left((begun - step.source(at)) * weight)
        forcings = self._forcings(one, theta, [rows.state, rows.goal], step)
        columns = [self._left(each * weight) for each in forcings]
        fixed = {0, 1, *(2 + len(form.linear) + own for own, _ in form.answering())}
        free = [own for own in range(form.count) if own not in fixed]
        design = np.stack([columns[own] for own in free], axis=1)
        size = np.linalg.norm(design, axis=0)
        design = design / np.where(size > 0, size, 1.0)
        gram = design.T @ design
        found = np.linalg.solve(gram + self.ridge * np.eye(len(free)), design.T @ -target)
        guess = theta.copy()
        guess[free] += found / np.where(size > 0, size, 1.0)
        answered = form.answering()
        if answered:  # such equations have no centre but this
            self.centre = guess.copy()
            return guess
        starts = [guess, theta.copy()]
        if known is not None:
            starts.append(np.array([known.get(name, 0.0) for name in form.names]))
        return min(starts, key=lambda each: self._cost(each)[0])

    def improved(self, theta: np.ndarray) -> np.ndarray:
        """By Gauss-Newton, as long as it gains."""
        cost, run = self._cost(theta)
        damping, most = DAMPING
        for _ in range(ITERATIONS):
            if not math.isfinite(cost) or run is None:
                return theta
            jacobian, residual = self._jacobian(theta, run), self._residual(run[1])
            gram, slope = jacobian.T @ jacobian, jacobian.T @ residual
            if self.weights is None:
                self.weights = _weights(gram)
            weights = self.weights
            ridged = gram + np.diag(self.ridge * weights)
            slope = slope + self.ridge * weights * (theta - self.centre)
            cost = self._total(residual, theta)
            while damping < most:
                try:
                    ahead = theta - np.linalg.solve(ridged + np.diag(damping * weights), slope)
                except np.linalg.LinAlgError:  # nothing moves the outputs, as in a box that is constant
                    return theta
                new, new_run = self._cost(ahead)
                if new < cost:
                    break
                damping *= 10
            else:
                return theta
            gain = (cost - new) / cost
            theta, cost, run, damping = ahead, new, new_run, max(damping / 10, 1e-12)
            if gain < ENOUGH:
                break
        return theta

    def parts(self, theta: np.ndarray) -> tuple[int, ...]:
        """The matrices, of a form of degree 0, whose effect on the outputs is not small."""
        if self.weights is None or self.form.degree:
            return ()
        effect = np.abs(theta) * np.sqrt(self.weights)
        return tuple(np.flatnonzero(effect[2 : 2 + len(self.form.linear)] > PART).tolist())

    def error(self, theta: np.ndarray, held: Rows | None) -> float:
        """On rows that are held out, in units of the change; on its own where none are."""
        step = self._step(theta)
        try:
            own = self._left_of(step.run(self.rows.state, self.rows.extras)[-1], self.rows)
            if held is None:
                return float(np.linalg.norm(own - self.hat @ own) / self.norm)
            left = self._left_of(step.run(held.state, held.extras)[-1], held)
        except RuntimeError:  # a singular matrix
            return math.inf
        left = left - held.explained(self.rows, own)
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

    def _left_of(self, found: np.ndarray, rows: Rows) -> np.ndarray:
        return ((found - rows.goal) * rows.weight()).reshape(len(found), -1)

    def _residual(self, states: Trajectory) -> np.ndarray:
        return self._left((states[-1] - self.rows.goal) * self.rows.weight())

    def _left(self, values: np.ndarray) -> np.ndarray:
        """Less what a constant and the numbers explain, as one vector of length about one."""
        flat = values.reshape(len(values), -1)
        return (flat - self.hat @ flat).ravel() / self.norm

    def _jacobian(self, theta: np.ndarray, run: tuple[ImplicitStep, Trajectory]) -> np.ndarray:
        """How residuals follow coefficients, `(residuals, coefficients)`; some coefficients at a time."""
        step, states = run
        at_once = max(1, AT_ONCE // self.rows.goal.size)
        by_step = [
            self._forcings(self.form, theta, states[at : at + 2], step) for at in range(self.form.steps)
        ]
        columns: list[np.ndarray] = []
        while len(columns) < self.form.count:
            parts = [np.stack(list(itertools.islice(each, at_once))) for each in by_step]
            change = step.tangent(states, self.rows.extras, np.zeros_like(parts[0]), forcing=parts)
            columns += [self._left(own * self.rows.weight()) for own in change]
        return np.stack(columns, axis=1)

    def _forcings(
        self, form: _Form, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep
    ) -> Iterator[np.ndarray]:
        """What a coefficient adds to a step's equation, from the state before to that after it."""
        before, after = states
        share = form.implicit(theta).reshape(1, *before.shape[1:])
        carried = form.carried[None, :, None]
        yield _applied(form.base[1], before - after)
        stiff = form.operator(theta) / form.steps
        yield carried * _applied(stiff, before - after)
        for out, into, matrix in form.linear:
            found = np.zeros_like(before)
            each = share[:, out] * after[:, into] + (1 - share[:, out]) * before[:, into]
            found[:, out] = -(matrix @ each.T).T / form.steps
            yield found
        at = np.concatenate([before, self.rows.extras], axis=1)
        for term, product in zip(form.terms, step.products(at), strict=True):
            found = np.zeros_like(before)
            found[:, term.out] = product / form.steps
            yield found


def _affordable(form: _Form, rows: Rows, work: float) -> Rows:
    """As many of the rows as the work allows, at least four, evenly taken."""
    most = max(FEWEST_ROWS, int(work / (form.count * form.steps * rows.goal[:1].size)))
    if most >= len(rows.goal):
        return rows
    return rows.fitted(np.linspace(0, len(rows.goal) - 1, most).round().astype(int))


def _applied(matrix: Any, values: np.ndarray) -> np.ndarray:  # noqa: ANN401 - sparse
    return (matrix @ values.reshape(len(values), -1).T).T.reshape(values.shape)


def _weights(gram: np.ndarray) -> np.ndarray:
    """Of the ridge: squares of the coefficients' effects, at least one for psi and w."""
    weights = np.maximum(gram.diagonal(), FAINT * gram.diagonal().max())
    weights[:2] = np.maximum(weights[:2], 1.0)
    return weights
