"""`GraphTangent`: for boxes on graphs, an implicit step of flows along edges, whose conductances are free."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize

from blackbox import Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.mesh.implicit_step import ImplicitStep, Term
from zo.tangents.models.mesh.mesh_operators import incidence
from zo.tangents.models.mesh.on_mesh import ImplicitTangent
from zo.tangents.models.mesh.rows_on_mesh import Rows
from zo.tangents.models.mesh.step_fit import StepFit
from zo.tangents.models.prior import Below, said

# Forms from poor to rich: steps, powers of the fields as sources, and a flow's cube beside its difference.
FORMS = ((1, False, False), (2, True, False), (2, True, True))
CLEARLY = 0.95  # times the error of the poorer form: what a richer one must fall below
GOOD = 0.01  # an error at which no richer form is tried
ITERATIONS = 60  # of L-BFGS for the richest form; half as many where a form only leads to the next
UNIFORM = np.arange(-8.0, 5.0)  # logarithms of a conductance that all edges share, to begin with
STEEPEST = 12.0  # a logarithm's largest size


class GraphTangent(ImplicitTangent):
    """The derivative of a learned implicit step of flows on the edges of a graph.

    It is for a box with outputs `(nodes,)`, `(nodes, fields)` or `(fields, nodes)`, and at least one input,
    on a mesh with edges but without cells, such as a network of pipes. The model is S steps of

        (C + L / S) y+ = C y + q(y, extras) / S.

    C is a capacity of each node. L are flows between neighbours, with a symmetric and positive conductance of
    each edge, and a loss at each node. q are powers of the fields, other inputs on the graph, and cubes of
    differences along edges. An output without an input that it follows, such as heads that answer demands,
    solves L y = q. All numbers are fitted to the outputs by L-BFGS, with gradients by transposed sparse
    solves. A ridge regression beside the step learns the effect of inputs that lie on no node.

    Edges are symmetric: transport along with a flow is not within its reach. Where there are triangles and
    coordinates, `zo.tangents.MeshTangent` needs fewer rows.

    Memory: window x (size_in + size_out) numbers and a sparse factorisation. A fit takes 2 S solves for each
    row and iteration, some 150 iterations in all; a call's VJP 2 S solves a row, on one CPU core.

    Args:
        mesh: the mesh; None, the default: the layout of the box's outputs.
        ridge: the penalty on the spread of conductances, and of capacities, in logarithms, beside an error of
            the outputs in units of the box's usual change.
        window: rows kept, the oldest going.
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        measured: the form that the last fit chose, and its error on rows held out in units of the box's usual
            change; empty before.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box that has not all outputs
            and some input on the mesh.
    """

    most_rows = 96
    numbers = 240_000
    most_tried = len(FORMS) + 1  # all rows

    def __init__(
        self, mesh: Mesh | None = None, *, ridge: float = 1e-3, window: int = 500, prior: Below | None = None
    ) -> None:
        super().__init__(mesh, ridge, window, prior)

    def check_mesh(self, mesh: Mesh) -> None:
        """Refuse one without an edge."""
        if not len(mesh.links()):
            raise ConfigurationError(
                f"GraphTangent: expected a mesh with edges between different nodes, got {mesh!r}. Take "
                "zo.tangents.MLPTangent for nodes that nothing joins."
            )

    def fitted(self, mesh: Mesh, rows: Rows, before: dict[str, Any] | None, longer: bool) -> dict[str, Any]:
        """The form that predicts held-out rows best, fitted to all rows."""
        training = rows.fitted(~rows.held)
        holdout = rows.fitted(rows.held) if rows.held.any() else None
        links = self._links(mesh)
        best: tuple[float, GraphForm, np.ndarray] | None = None
        if before is not None:
            steps, powers, cubes = before["form"]
            flows = GraphForm(links, mesh.size, steps, powers, cubes, rows.carried, rows.extras.shape[1])
            fit = FlowFit(flows, training, self.ridge)
            theta = fit.improved(before["theta"].numpy(), ITERATIONS // 4)
            return self._result(flows, rows, theta, fit.error(theta, holdout), ITERATIONS // 4)
        for steps, powers, cubes in FORMS:
            flows = GraphForm(links, mesh.size, steps, powers, cubes, rows.carried, rows.extras.shape[1])
            fit = FlowFit(flows, training, self.ridge)
            start = fit.uniform() if best is None else flows.from_other(best[1], best[2])
            theta = fit.improved(start, (ITERATIONS if cubes else ITERATIONS // 2) * (2 if longer else 1))
            error = fit.error(theta, holdout)
            self.tried()
            if best is None or error < CLEARLY * best[0]:
                best = error, flows, theta
            if best[0] < GOOD:
                break
        assert best is not None
        error, flows, theta = best
        return self._result(flows, rows, theta, error, ITERATIONS // (2 if flows.powers else 1))

    def _result(
        self, flows: GraphForm, rows: Rows, theta: np.ndarray, error: float, iterations: int
    ) -> dict[str, Any]:
        """The chosen form, fitted to all rows, in plain values and tensors."""
        if rows.held.any() and math.isfinite(error):
            theta = FlowFit(flows, rows, self.ridge).improved(theta, iterations)
        return {
            "form": (flows.steps, flows.powers, flows.cubes),
            "carried": torch.from_numpy(rows.carried),
            "extras": rows.extras.shape[1],
            "free": torch.from_numpy(rows.free),
            "theta": torch.from_numpy(theta),
            "measured": {
                "steps": flows.steps,
                "cubes": flows.cubes,
                "coefficients": len(theta),
                "error": error,
            },
        }

    def step(self, mesh: Mesh, fit: dict[str, Any]) -> ImplicitStep:
        """The implicit step with the fitted coefficients."""
        links, nodes = self._links(mesh), mesh.size
        steps, powers, cubes = fit["form"]
        flows = GraphForm(links, nodes, steps, powers, cubes, fit["carried"].numpy(), fit["extras"])
        return flows.step(fit["theta"].numpy(), fit["free"].numpy())

    def _links(self, mesh: Mesh) -> np.ndarray:
        if getattr(self, "_kept_links", (None, None))[0] is not mesh:
            self._kept_links = mesh, mesh.links()
        return self._kept_links[1]

    def __repr__(self) -> str:
        """The settings; a resumed run is held to them, so what was measured is not among them."""
        return f"GraphTangent({self.mesh!r}, ridge={self.ridge}{said(self.prior)})"


@dataclass(frozen=True)
class GraphForm:
    """The numbers of a flow: logarithms of conductances and capacities, fields' flow and loss, and q."""

    links: np.ndarray
    nodes: int
    steps: int
    powers: bool
    cubes: bool
    carried: np.ndarray
    extras: int

    @cached_property
    def difference(self) -> Any:
        """The difference of nodes along each edge, `(edges, nodes)`, sparse."""
        return incidence(self.links, self.nodes)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """The count of numbers of each kind."""
        return len(self.links), self.nodes, len(self.carried), len(self.carried), len(self.terms)

    def split(self, theta: np.ndarray) -> list[np.ndarray]:
        """The numbers of each kind."""
        return np.split(theta, np.cumsum(self.sizes)[:-1])

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of q, cubes along edges last."""
        count = len(self.carried)
        terms = [
            Term(out, (("node", count + extra),), "node")
            for out in range(count)
            for extra in range(self.extras)
        ]
        if self.powers:
            terms += [
                Term(out, tuple(("node", field) for field in fields), "node")
                for out in range(count)
                for n in (0, 1, 2, 3)
                for fields in itertools.combinations_with_replacement(range(count), n)
                if n != 1 or fields[0] != out
            ]
        if self.cubes:
            terms += [Term(out, (("edge", out),) * 3, "flux") for out in range(count)]
        return terms

    def start(self) -> np.ndarray:
        """The numbers to begin with: nothing flows much, and what is not carried answers its own extra."""
        _, _, flow, loss, _ = parts = self.split(np.zeros(sum(self.sizes)))
        flow[:] = 1.0
        loss[~self.carried] = 0.1
        for number, field in enumerate(np.flatnonzero(~self.carried).tolist()):
            extra = len(self.carried) + (number % self.extras if self.extras else 0)
            for place, term in enumerate(self.terms):
                if term.out == field and term.factors == (("node", extra),):
                    parts[4][place] = 1.0
        return np.concatenate(parts)

    def from_other(self, other: GraphForm, theta: np.ndarray) -> np.ndarray:
        """The numbers of a poorer form in this one."""
        values = dict(zip(other.terms, other.split(theta)[4], strict=True))
        q = np.array([values.get(term, 0.0) for term in self.terms])
        return np.concatenate([*other.split(theta)[:4], q])

    def step(self, theta: np.ndarray, free: np.ndarray) -> ImplicitStep:
        """The implicit step with these numbers."""
        edges, tanks, flow, loss, q = self.split(theta)
        conductance, capacity = np.exp(edges), np.exp(tanks)
        weighted = sparse.diags_array(conductance) @ self.difference
        laplacian, bulk = self.difference.T @ weighted, sparse.diags_array(capacity)
        matrices = [
            float(carries) * bulk + (flow[field] * laplacian + loss[field] * bulk) / self.steps
            for field, carries in enumerate(self.carried)
        ]
        right = [float(carries) * bulk for carries in self.carried]
        maps = {"node": None, "edge": self.difference, "flux": -weighted.T.tocsr()}
        return ImplicitStep(
            sparse.block_diag(matrices, format="csr"),
            sparse.block_diag(right, format="csr"),
            self.terms,
            q / self.steps,
            maps,
            len(self.carried),
            self.nodes,
            self.steps,
            free,
        )


class FlowFit(StepFit):
    """The numbers by rows: a conductance that all edges share, and then all by L-BFGS."""

    def __init__(self, flows: GraphForm, rows: Rows, ridge: float) -> None:
        super().__init__(rows, ridge)
        self.flows = flows

    def uniform(self) -> np.ndarray:
        """The best of some conductances that all edges share."""
        starts = []
        for level in UNIFORM:
            theta = self.flows.start()
            self.flows.split(theta)[0][:] = level
            starts.append(theta)
        return min(starts, key=lambda start: self.cost(start)[0])

    def improved(self, theta: np.ndarray, iterations: int) -> np.ndarray:
        """Better numbers by L-BFGS, with bounds far away."""
        edges, tanks, *_ = self.flows.sizes
        far = [(-STEEPEST, STEEPEST)] * (edges + tanks) + [(None, None)] * (len(theta) - edges - tanks)
        result = minimize(
            self.sloped, theta, jac=True, method="L-BFGS-B", bounds=far,
            options={"maxiter": iterations, "maxcor": 20},
        )  # fmt: skip
        return result.x if np.isfinite(result.fun) else theta

    def step(self, theta: np.ndarray) -> ImplicitStep:
        """The implicit step with these numbers."""
        return self.flows.step(theta, self.rows.free)

    def penalty(self, theta: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        """The ridge on how far conductances and capacities are apart, and on what else is not as at first."""
        edges, tanks, flow, loss, q = self.flows.split(theta)
        start = self.flows.split(self.flows.start())
        away = [edges - edges.mean(), tanks, flow - start[2], 0.1 * (loss - start[3]), 0.1 * (q - start[4])]
        counts = [len(edges), len(tanks), 1, 1, 1]
        cost = sum(float((part**2).sum()) / count for part, count in zip(away, counts, strict=True))
        scales = (1.0, 1.0, 1.0, 0.1, 0.1)
        slope = [2 * s * part / count for s, part, count in zip(scales, away, counts, strict=True)]
        return (self.ridge * cost,), self.ridge * np.concatenate(slope)

    def slope(
        self, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep, multiplier: np.ndarray
    ) -> np.ndarray:
        """Return the derivative of a step's flows, capacities, losses and sources, times a multiplier."""
        flows, steps, (before, after) = self.flows, self.flows.steps, states
        edges, tanks, flow, loss, q = flows.split(theta)
        conductance, capacity = np.exp(edges), np.exp(tanks)
        slopes = flows.split(np.zeros_like(theta))
        carries = flows.carried[None, :, None]
        pull, ahead = (_differences(flows.difference, values) for values in (multiplier, after))
        by_edge = np.einsum("rfe,rfe->fe", pull, ahead)
        slopes[0] -= conductance / steps * (flow[:, None] * by_edge).sum(axis=0)
        if flows.cubes:
            cubes = q[len(q) - len(flow) :]
            behind = _differences(flows.difference, before)
            bent = (cubes[None, :, None] * pull * behind * behind * behind).sum(axis=(0, 1))
            slopes[0] -= conductance / steps * bent
        slopes[2] -= by_edge @ conductance / steps
        by_loss = np.einsum("rfn,rfn->fn", multiplier, after)
        transport = (multiplier * carries * (after - before)).sum(axis=(0, 1))
        slopes[1] -= capacity * (transport + (loss[:, None] * by_loss).sum(axis=0) / steps)
        slopes[3] -= by_loss @ capacity / steps
        products = step.products(np.concatenate([before, self.rows.extras], axis=1))
        for place, (term, product) in enumerate(zip(flows.terms, products, strict=True)):
            slopes[4][place] += (multiplier[:, term.out] * product).sum() / steps
        return np.concatenate(slopes)


def _differences(matrix: Any, values: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1, values.shape[-1])
    return (matrix @ flat.T).T.reshape(*values.shape[:-1], -1)


CANDIDATE = Candidate(
    "graph",
    lambda specs: None if specs.structure.kind == "graph" else f"it is a {specs.structure.kind}, not a graph",
    lambda box, seed: GraphTangent(),
)
