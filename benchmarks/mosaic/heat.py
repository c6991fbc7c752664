"""A conductivity from temperatures, on FEniCS's triangles: adjoint, differences, `zo.fit_field`.

After Mosaic's heat conduction on meshes. The unit square, cold at its edge, has a source of heat in each of
its quarters, one at a time: four rows of the box are an evaluation. The temperatures at all nodes are known;
the logarithm of the conductivity at the nodes is looked for, from zero on. The box is dolfinx (FEniCS) with
linear elements, which runs in a Python of its own, such as Debian's, and gives no derivative. The adjoint
beside it is that of the same elements, written here, whose values are dolfinx's to rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn

import zo
from benchmarks.mosaic import cells, search
from benchmarks.mosaic.fenics import Dolfinx, missing
from blackbox import ArraySpec, BlackBoxFunction, Mesh

SHORT = 8  # iterations between evaluations, by a coarser solver
METHODS = (
    "adjoint, L-BFGS",
    "differences, L-BFGS",
    "fit_field",
    "fit_field, a coarser solver as its model, in short moves",
)

SERVER = """
import sys
import numpy as np
from mpi4py import MPI
from dolfinx import fem, mesh
from dolfinx.fem import petsc
import ufl

side = int(sys.argv[1])
square = mesh.create_unit_square(MPI.COMM_WORLD, side, side)
space = fem.FunctionSpace(square, ("CG", 1))
conductivity, heat = fem.Function(space), fem.Function(space)
edge = mesh.locate_entities_boundary(square, 1, lambda x: np.isclose(x[:2] * (1 - x[:2]), 0).any(axis=0))
cold = fem.dirichletbc(np.float64(0), fem.locate_dofs_topological(space, 1, edge), space)
known, tested = ufl.TrialFunction(space), ufl.TestFunction(space)
form = conductivity * ufl.inner(ufl.grad(known), ufl.grad(tested)) * ufl.dx
direct = {"ksp_type": "preonly", "pc_type": "lu"}
problem = petsc.LinearProblem(form, heat * tested * ufl.dx, bcs=[cold], petsc_options=direct)
places = space.tabulate_dof_coordinates()[:, :2]
triangles = space.dofmap.list.array.reshape(-1, 3)
out = sys.stdout.buffer
out.write(np.array([len(places), len(triangles)], dtype=np.int64).tobytes())
out.write(places.astype(np.float64).tobytes() + triangles.astype(np.int64).tobytes())
out.flush()
size = 8 * len(places)
while len(told := sys.stdin.buffer.read(2 * size)) == 2 * size:
    conductivity.x.array[:] = np.frombuffer(told[:size])
    heat.x.array[:] = np.frombuffer(told[size:])
    out.write(problem.solve().x.array.tobytes())
    out.flush()
"""


@dataclass(frozen=True)
class Task:
    """Sizes.

    Attributes:
        side: squares along a side, of two triangles each.
        evaluations: of the adjoint, and of `fit_field`.
        gradients: by differences.
    """

    side: int = 20
    evaluations: int = 60
    gradients: int = 10


SMALL = Task()
CI = Task(side=6, evaluations=4, gradients=2)


class Heat(BlackBoxFunction):
    """Conductivity and source at the nodes to the temperature there, by dolfinx.

    Args:
        side: squares along a side.
    """

    def __init__(self, side: int) -> None:
        self.side, self._program = side, Dolfinx(SERVER, side)
        self.places, self.triangles = self._program.places, self._program.triangles
        nodes = len(self.places)
        mesh = Mesh(triangles=self.triangles, coordinates=self.places)
        self.inputs = (
            ArraySpec("conductivity", (nodes,), "float64", layout=mesh),
            ArraySpec("source", (nodes,), "float64", differentiable=False, layout=mesh),
        )
        self.outputs = (ArraySpec("temperature", (nodes,), "float64", layout=mesh),)

    def evaluate_rows(self, conductivity: NDArray[Any], source: NDArray[Any]) -> NDArray[Any]:
        """One row after another."""
        found = []
        for row in zip(conductivity, source, strict=True):
            self._program.write(*row)
            found.append(self._program.read(len(self.places)))
        return np.stack(found)

    def close(self) -> None:
        """End the process."""
        self._program.close()


class Elements:
    """The same elements with their adjoint: linear on triangles, the conductivity too.

    Args:
        places: of the nodes, `(nodes, 2)`.
        triangles: three nodes each.
    """

    def __init__(self, places: NDArray[Any], triangles: NDArray[Any]) -> None:
        self.triangles, self.nodes = triangles, len(places)
        corners = places[triangles]
        sides = np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1)  # opposite to each corner
        first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        self.area = abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
        self.stiffness = sides @ sides.transpose(0, 2, 1) / (4 * self.area[:, None, None])
        self.inner = np.flatnonzero(((places > 1e-9) & (places < 1 - 1e-9)).all(axis=1))

    @cached_property
    def _at(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.repeat(self.triangles, 3, axis=1).ravel(), np.tile(self.triangles, (1, 3)).ravel()

    def _matrix(self, entries: NDArray[Any]) -> Any:
        return coo_matrix((entries.ravel(), self._at), shape=(self.nodes, self.nodes)).tocsc()

    @cached_property
    def mass(self) -> Any:
        """The mass matrix."""
        return self._matrix(self.area[:, None, None] * (1 + np.eye(3)) / 12)

    def solved(self, conductivity: NDArray[Any], source: NDArray[Any]) -> tuple[NDArray[Any], Any]:
        """The temperature, `(nodes,)`, and the factors of the matrix between inner nodes."""
        means = conductivity[self.triangles].mean(axis=1)
        matrix = self._matrix(means[:, None, None] * self.stiffness)
        factors = splu(matrix[self.inner][:, self.inner].tocsc())
        found = np.zeros(self.nodes)
        found[self.inner] = factors.solve((self.mass @ source)[self.inner])
        return found, factors

    def vjp(self, temperature: NDArray[Any], factors: Any, back: NDArray[Any]) -> NDArray[Any]:
        """The gradient by the conductivity, `(nodes,)`."""
        adjoint = np.zeros(self.nodes)
        adjoint[self.inner] = factors.solve(back[self.inner])
        of_triangle = -np.einsum(
            "ti,tij,tj->t", adjoint[self.triangles], self.stiffness, temperature[self.triangles]
        )
        return np.bincount(self.triangles.ravel(), np.repeat(of_triangle / 3, 3), self.nodes)

    def advance(self, conductivity: Tensor, source: Tensor) -> Tensor:
        """All rows, for autograd."""
        return _Exact.apply(conductivity, source, self)  # type: ignore[no-any-return]


class Coarser:
    """The same elements on a grid of fewer nodes, for autograd: what somebody may have beside the box.

    Conductivity and source there are weighted means of the logarithm, and of the source, at the box's nodes;
    temperatures between its nodes are linear along each side.

    Args:
        places: of the box's nodes, `(nodes, 2)`.
        side: squares along a side, of two triangles each.
    """

    def __init__(self, places: NDArray[Any], side: int) -> None:
        count = side + 1
        corner = np.add.outer(np.arange(side) * count, np.arange(side)).ravel()
        upper, lower = ([0, count, count + 1], [0, count + 1, 1])
        triangles = np.concatenate([np.add.outer(corner, each) for each in (upper, lower)])
        grid = np.stack(np.divmod(np.arange(count**2), count), 1) / side
        elements = Elements(grid, triangles)
        self.stiffness, self.inner = map(torch.from_numpy, (elements.stiffness, elements.inner))
        self.triangles, self.mass = torch.from_numpy(triangles), torch.from_numpy(elements.mass.toarray())
        near = np.maximum(1 - side * abs(places[:, None] - grid), 0).prod(axis=2)
        self.between = torch.from_numpy(near)  # (nodes of the box, nodes)
        self.means = self.between / self.between.sum(dim=0)

    def advance(self, conductivity: Tensor, source: Tensor) -> Tensor:
        """All rows: `(rows, nodes)` each to the temperatures there."""
        rows, nodes = len(conductivity), self.means.shape[1]
        of_triangles = (conductivity.log() @ self.means).exp()[:, self.triangles].mean(dim=-1)
        entries = (of_triangles[:, :, None, None] * self.stiffness).flatten(1)
        at = (self.triangles[:, :, None] * nodes + self.triangles[:, None, :]).flatten()
        matrix = entries.new_zeros(rows, nodes**2).index_add(1, at, entries).view(rows, nodes, nodes)
        inner = matrix[:, self.inner[:, None], self.inner]
        found = torch.linalg.solve(inner, (source @ self.means @ self.mass)[:, self.inner])
        return found @ self.between[:, self.inner].T


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, conductivity: Tensor, source: Tensor, elements: Elements) -> Tensor:
        rows = zip(conductivity.detach().numpy(), source.numpy(), strict=True)
        ctx.solved, ctx.elements = [elements.solved(*row) for row in rows], elements
        return torch.from_numpy(np.stack([temperature for temperature, _ in ctx.solved]))

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        parts = zip(ctx.solved, back.numpy(), strict=True)
        return torch.from_numpy(np.stack([ctx.elements.vjp(*found, row) for found, row in parts])), None, None


def wanted(places: NDArray[Any], seed: int) -> Tensor:
    """The logarithm of a conductivity: cosines of up to three half waves along the square, rms .5."""
    draws, waves = np.random.default_rng(seed), range(4)
    x, y = places.T
    field = sum(
        draws.normal() * np.cos(np.pi * a * x) * np.cos(np.pi * b * y) for a in waves for b in waves if a + b
    )
    return torch.from_numpy(0.5 * field / np.sqrt(np.mean(np.square(field))))


def sources(places: NDArray[Any]) -> Tensor:
    """A bump in each quarter, `(4, nodes)`."""
    middles = [(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)]
    bumps = [np.exp(-(np.square(places - middle).sum(axis=1)) / 0.02) for middle in middles]
    return torch.from_numpy(50 * np.stack(bumps))


def objective_of(advance: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The squared error of the temperatures over their square; a row is a source and what was seen."""

    def objective(field: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        source, seen = batch
        found = advance(field(source).exp(), source)
        return (found - seen).square().sum(dim=1) / seen.square().sum(dim=1)

    return objective


def searched(method: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least loss and its error, the errors on the way, rows and seconds."""
    box = Heat(task.side)
    try:
        return _searched(method, box, task, seed)
    finally:
        box.close()


def _searched(method: str, box: Heat, task: Task, seed: int) -> dict[str, Any]:
    truth, source = wanted(box.places, seed), sources(box.places)
    with torch.no_grad():
        seen = box(truth.exp().expand(4, -1), source)
    exact = objective_of(Elements(box.places, box.triangles).advance)
    field = zo.Field(torch.zeros_like(truth))
    case = search.Case(box, exact, objective_of(box), field, truth, batch=(source, seen))
    note, before = search.Course(case.error), box.ledger.rows_run
    if method.startswith("fit_field"):
        rows, coarser = 4 * task.evaluations, Coarser(box.places, task.side // 2)
        tangent = zo.tangents.ModelTangent(coarser.advance) if "coarser" in method else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = zo.fit_field(
                field,
                case.objective,
                boxes=[box],
                rows=rows,
                batch=case.batch,
                tangent=tangent,
                inner=30 if tangent is None else SHORT,
                seed=seed,
                evaluated=note,
            )
        return note.figures(seed, box.ledger.rows_run - before, why=fit.why)
    if method.startswith("differences"):
        search.bfgs(field, search.by_differences(case), task.gradients, note)
    else:
        search.bfgs(field, search.by_adjoint(case), task.evaluations, note)
    return note.figures(seed, box.ledger.rows_run - before or 4 * len(note.losses))


result = partial(cells.of_study, "heat", METHODS, searched, lambda *_: missing())
"""All cells, by method: (task, seeds, an earlier result, what is called after each cell)."""


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each method."""
    nodes = (found["task"]["side"] + 1) ** 2
    return cells.of_searches(
        found,
        "Relative error of the logarithm of the conductivity at the least loss (1 where it begins): mean of "
        f"the seeds, least and greatest; {nodes} nodes, four sources, so that an evaluation takes 4 rows and "
        f"a gradient by differences {4 * (nodes + 1):,}.",
    )
