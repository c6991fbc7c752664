"""`MeshTangent`: for boxes on triangles or tetrahedra, an implicit step on the mesh's own P1 operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from blackbox import Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.mesh.implicit_step import ImplicitStep
from zo.tangents.models.mesh.mesh_fit import Fit
from zo.tangents.models.mesh.mesh_form import MeshForm, MeshMatrices
from zo.tangents.models.mesh.mesh_operators import Elements
from zo.tangents.models.mesh.on_mesh import ImplicitTangent
from zo.tangents.models.mesh.rows_on_mesh import Rows
from zo.tangents.models.prior import Below, said

# Forms from poor to rich: steps, and which products of fields; and then degrees of the coefficients'
# polynomials, and steps, for those matrices that had a part in the best of these.
PLAIN = ((1, "none"), (2, "nodes"), (2, "cells"))
STATIC = ((1, "none"), (1, "nodes"))
VARIED = ((1, 2), (3, 2), (6, 2))  # decision 62
ALONG = (6, 8)  # degrees of a convection that alone differs from place to place; decision 72
ALONG_PART = 0.7  # of the error of the best plain form: what it must leave less than in the equations
ALONG_FROM = 0.2  # an error of the plain form below which it is not tried; decision 72
FINE = 4  # steps that are taken where rows held out do not speak against them; decision 72
NO_WORSE = 1.05  # times the error with fewer: that they do not; decision 72
MOST_COEFFICIENTS = 192
CLEARLY = 0.9  # times the error of the poorer form: what a richer one must fall below
GOOD = 1e-3  # an error at which no richer form is tried


class MeshTangent(ImplicitTangent):
    """The derivative of a learned implicit step on the finite elements of the box's mesh.

    It is for a box with outputs `(nodes,)`, `(nodes, fields)` or `(fields, nodes)`, and at least one input,
    on a mesh of triangles or tetrahedra with coordinates. The model is S steps of

        (B + w K / S) y+ = (B - (1 - w) K / S) y + M q(y, extras) / S.

    B is the mass matrix, in part lumped. K is a sum of stiffness, convection, mass and boundary matrices
    between all pairs of fields, with coefficients that are polynomials of position. q is a polynomial of the
    fields and of other inputs on the mesh, with fluxes that depend on the state (k(u) grad u, u . grad u). An
    output without an input that it follows, such as a displacement that answers a load, solves
    K y = M q(extras).

    These 10 to 192 numbers are fitted to the outputs by L-BFGS, with gradients by transposed sparse solves,
    in coordinates that Gauss-Newton's matrix of few rows makes round. Rows held out choose degree and S, the
    poorest form first. Convection that differs from place to place begins with the coefficients that fulfil
    the equations at the outputs themselves, and takes so many steps that it passes about an element in each.
    A ridge regression beside the step learns the effect of inputs that lie on no node. The fit needs a few
    dozen rows.

    The model knows the physics of second-order equations, not the box's. A finer mesh, other time steps, and
    further terms are within its reach in part. Jumps, and other effects across the whole mesh, are not.

    Memory: window x (size_in + size_out) numbers and a sparse factorisation. A fit of each of at most
    7 forms takes S x 4 x coefficients sparse solves, up to three times, and 2 S solves for each row and each
    of some 20 iterations: seconds for a thousand nodes. A call's VJP takes 2 S solves a row, on one CPU core.

    Args:
        mesh: the mesh; None, the default: the layout of the box's outputs.
        ridge: the penalty on the coefficients, each in units of its effect on the outputs. Rows held out do
            not show the coefficients that a smaller ridge leaves undetermined.
        window: rows kept, the oldest going.
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        measured: the form that the last fit chose, the number of its coefficients, and its error on rows held
            out in units of the box's usual change; empty before.

    Raises:
        ConfigurationError: a value out of its range, a mesh without cells or coordinates; when it is first
            used, a box that has not all outputs and some input on the mesh.
    """

    most_tried = len(PLAIN) + len(VARIED) + 3  # convection along, finer steps, all rows

    def __init__(
        self, mesh: Mesh | None = None, *, ridge: float = 1e-4, window: int = 500, prior: Below | None = None
    ) -> None:
        super().__init__(mesh, ridge, window, prior)

    def check_mesh(self, mesh: Mesh) -> None:
        """Refuse one without cells or coordinates."""
        if (
            mesh.cells is None
            or mesh.coordinates is None
            or mesh.coordinates.shape[1] < mesh.cells.shape[1] - 1
        ):
            raise ConfigurationError(
                f"MeshTangent: expected a mesh with triangles in two dimensions or tetrahedra in three, and "
                f"coordinates, got {mesh!r}. Give these, or take GraphTangent, which needs edges alone."
            )

    def fitted(self, mesh: Mesh, rows: Rows, before: dict[str, Any] | None, longer: bool) -> dict[str, Any]:
        """The form that predicts held-out rows best, fitted to all rows."""
        basis = self._basis(mesh)
        best: _FittedForm | None = None
        poor = MeshForm(basis, 0, 1, "none", (), rows.carried, rows.extras.shape[1])
        if before is not None:
            degree, steps, products, variables = before["form"]
            form = replace(poor, degree=degree, steps=steps, products=products, varied=variables)
            values = dict(zip(form.names, before["theta"].tolist(), strict=True))
            return self._result(self._fitted(form, rows, values), rows)
        for steps, products in PLAIN if rows.carried.any() else STATIC:
            best = self._better(best, replace(poor, steps=steps, products=products), rows)
            if steps == 1:
                plain, best = best, self._carried_along(best, poor, rows)
                if best is not plain:
                    break
        assert best is not None
        plain, parts = best.form, best.parts
        for degree, steps in VARIED[1:] if best.fit.large else VARIED:
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
        finer = self._fitted(replace(best.form, steps=FINE), rows, best.named())
        return finer if finer.error < NO_WORSE * best.error else best

    def _carried_along(self, best: _FittedForm, poor: MeshForm, rows: Rows) -> _FittedForm:
        """Convection that differs from place to place, where it explains more than the best so far."""
        variables = tuple(
            place
            for place, (out, into, kind) in enumerate(poor.kinds)
            if kind[0] == "convection" and out == into and rows.carried[out]
        )
        if not variables or not best.error > ALONG_FROM or not rows.held.any():
            return best
        guesses = []
        for degree in ALONG:
            form = replace(poor, degree=degree, steps=1, products="none", varied=variables)
            fit = Fit(form, rows.fitted(~rows.held), self.ridge)
            theta = fit.along()
            guesses.append((fit.missed(theta, rows.fitted(rows.held)), form, theta))
        error, form, theta = min(guesses, key=lambda guess: guess[0])
        if error > ALONG_PART * best.error:
            return best
        return self._better(best, replace(form, steps=form.passed(theta)), rows)

    def _result(self, best: _FittedForm, rows: Rows) -> dict[str, Any]:
        """The chosen form, fitted to all rows, in plain values and tensors."""
        form, theta, error = best.form, best.theta, best.error
        if rows.held.any() and math.isfinite(error):
            fit = Fit(form, rows, self.ridge)
            fit.centre = best.fit.centre  # about another one the ridge would draw the coefficients away
            theta = fit.improved(theta, like=best.fit if best.fit.large else None)
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

    def _better(self, best: _FittedForm | None, form: MeshForm, rows: Rows) -> _FittedForm:
        """The form, if it predicts held-out rows clearly better than the best so far."""
        if best is not None and (
            best.error < GOOD or form.count > MOST_COEFFICIENTS or (form.degree and not form.varied)
        ):
            return best
        richer = self._fitted(form, rows, None if best is None else best.named())
        if best is not None and not richer.error < CLEARLY * best.error:
            return best
        return richer

    def _fitted(self, form: MeshForm, rows: Rows, values: dict[Any, float] | None) -> _FittedForm:
        """A form fitted to the rows that are not held out, from what is known of its coefficients."""
        fit = Fit(form, rows.fitted(~rows.held), self.ridge)
        holdout = rows.fitted(rows.held) if rows.held.any() else None
        theta = fit.improved(fit.first(values))
        self.tried()
        return _FittedForm(form, theta, fit.error(theta, holdout), fit)

    def step(self, mesh: Mesh, fit: dict[str, Any]) -> ImplicitStep:
        """The implicit step with the fitted coefficients."""
        degree, steps, products, variables = fit["form"]
        carries = fit["carried"].numpy()
        form = MeshForm(self._basis(mesh), degree, steps, products, variables, carries, fit["extras"])
        return form.step(fit["theta"].numpy(), fit["free"].numpy())

    def _basis(self, mesh: Mesh) -> MeshMatrices:
        if getattr(self, "_kept_basis", (None, None))[0] is not mesh:
            self._kept_basis = mesh, MeshMatrices(Elements.of(mesh))
        return self._kept_basis[1]

    def __repr__(self) -> str:
        """The settings; a resumed run is held to them, so what was measured is not among them."""
        return f"MeshTangent({self.mesh!r}, ridge={self.ridge}{said(self.prior)})"


@dataclass(frozen=True)
class _FittedForm:
    """A form with its coefficients, its error on rows held out, and the fit that they are of."""

    form: MeshForm
    theta: np.ndarray
    error: float
    fit: Fit

    @property
    def parts(self) -> tuple[int, ...]:
        """The matrices that have a part in it."""
        return self.fit.parts(self.theta)

    def named(self) -> dict[Any, float]:
        """Its coefficients, by what they multiply."""
        return dict(zip(self.form.names, self.theta.tolist(), strict=True))


CANDIDATE = Candidate(
    "mesh",
    lambda specs: None if specs.structure.kind == "mesh" else f"it is a {specs.structure.kind}, not a mesh",
    lambda box, seed: MeshTangent(),
)
