"""A beam of two by one on FEniCS's triangles, by the density at its nodes: the box, and its derivative.

Clamped at its left and loaded at its right; Young's modulus is .001 + .999 d^3 of the density d, Poisson's
number .3. The box is dolfinx with linear elements in a Python of its own, which gives the displacements, or
the energies of the triangles, and no derivative. `Elements` are the same ones, written here, whose values are
dolfinx's to rounding; `Coarser` has fewer of them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from benchmarks.mosaic.fenics import Dolfinx
from blackbox import ArraySpec, BlackBoxFunction, Mesh

LOADS = ("corner", "end", "middle")  # seeds 0, 1, 2
LEAST, POWER, POISSON = 1e-3, 3, 0.3  # of the modulus, where there is no material; of the density

SERVER = """
import sys
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
from dolfinx import fem, mesh
from dolfinx.fem import petsc
import ufl

side, least, power, poisson = int(sys.argv[1]), *map(float, sys.argv[2:])
beam = mesh.create_rectangle(MPI.COMM_WORLD, [(0.0, 0.0), (2.0, 1.0)], [2 * side, side])
plane = fem.VectorFunctionSpace(beam, ("CG", 1))
nodal, each = (fem.FunctionSpace(beam, kind) for kind in (("CG", 1), ("DG", 0)))
stiff, moved, force = fem.Function(nodal), fem.Function(plane), fem.Function(plane)
left = mesh.locate_entities_boundary(beam, 1, lambda x: np.isclose(x[0], 0))
clamp = fem.dirichletbc(np.zeros(2), fem.locate_dofs_topological(plane, 1, left), plane)

def strain(u):
    return ufl.sym(ufl.grad(u))

def stress(u):
    scale = stiff / (1 - poisson**2)
    return scale * ((1 - poisson) * strain(u) + poisson * ufl.tr(strain(u)) * ufl.Identity(2))

u, v, q = ufl.TrialFunction(plane), ufl.TestFunction(plane), ufl.TestFunction(each)
form = fem.form(ufl.inner(stress(u), strain(v)) * ufl.dx)
energy = fem.form(ufl.inner(stress(moved), strain(moved)) * q * ufl.dx)
matrix = petsc.create_matrix(form)
solver = PETSc.KSP().create(beam.comm)
solver.setOperators(matrix)
solver.setType("preonly")
solver.getPC().setType("lu")
places = plane.tabulate_dof_coordinates()[:, :2]
assert np.allclose(places, nodal.tabulate_dof_coordinates()[:, :2])
triangles = nodal.dofmap.list.array.reshape(-1, 3)
out = sys.stdout.buffer
out.write(np.array([len(places), len(triangles)], dtype=np.int64).tobytes())
out.write(places.astype(np.float64).tobytes() + triangles.astype(np.int64).tobytes())
out.flush()
size = 8 * len(places)
force.x.array[:] = np.frombuffer(sys.stdin.buffer.read(2 * size))
fem.set_bc(force.vector, [clamp])
while len(told := sys.stdin.buffer.read(size)) == size:
    stiff.x.array[:] = least + (1 - least) * np.frombuffer(told) ** power
    matrix.zeroEntries()
    petsc.assemble_matrix(matrix, form, bcs=[clamp])
    matrix.assemble()
    solver.solve(force.vector, moved.vector)
    out.write(moved.x.array.tobytes() + petsc.assemble_vector(energy).array.tobytes())
    out.flush()
"""


class Beam(BlackBoxFunction):
    """Density at the nodes to the displacements there, or to the energies of the triangles, by dolfinx.

    Args:
        side: squares along the height.
        load: one of `LOADS`.
        energies: whether it gives energies, and not displacements.
    """

    def __init__(self, side: int, load: str, energies: bool = False) -> None:
        self.side, self.load, self.energies = side, load, energies
        self._program = Dolfinx(SERVER, side, LEAST, POWER, POISSON)
        self.places, self.triangles = self._program.places, self._program.triangles
        nodes, cells = len(self.places), len(self.triangles)
        self.force = forced(self.places, load, side)
        self._program.write(self.force)
        mesh = Mesh(triangles=self.triangles, coordinates=self.places)
        self.inputs = (ArraySpec("density", (nodes,), "float64", layout=mesh),)
        self.outputs = (
            ArraySpec("energy", (cells,), "float64")
            if energies
            else ArraySpec("displacement", (nodes, 2), "float64", layout=mesh),
        )

    def evaluate_rows(self, density: NDArray[Any]) -> NDArray[Any]:
        """One row after another."""
        found = []
        for row in density:
            self._program.write(row)
            moved = self._program.read(2 * len(self.places)).reshape(-1, 2)
            energy = self._program.read(len(self.triangles))
            found.append(energy if self.energies else moved)
        return np.stack(found)

    def close(self) -> None:
        """End the process."""
        self._program.close()


def forced(places: NDArray[Any], load: str, side: int) -> NDArray[Any]:
    """A force of one at the right: `(nodes, 2)`.

    Args:
        places: of the nodes.
        load: "corner", upwards at the last edge below, which is that of Mosaic's optimisation; "end",
            downwards along the whole end, as in its other tasks; "middle", downwards at the two edges there.
        side: edges of the end.
    """
    x, y = places.T
    low, high = {"corner": (0, 1 / side), "end": (0, 1), "middle": (0.5 - 1 / side, 0.5 + 1 / side)}[load]
    near = 1e-9
    there = (x > 2 - near) & (y > low - near) & (y < high + near)
    ends = (abs(y - low) < near) | (abs(y - high) < near)
    size = there * np.where(ends, 0.5, 1.0)
    up = 1 if load == "corner" else -1
    return np.stack([np.zeros_like(x), up * size / size.sum()], axis=1)


def modulus(density: Any) -> Any:
    """Young's, of a density: arrays and tensors."""
    return LEAST + (1 - LEAST) * density**POWER


class Elements:
    """The same elements with their adjoint: plane stress, linear on triangles, the modulus too.

    Args:
        places: of the nodes, `(nodes, 2)`.
        triangles: three nodes each.
        force: `(nodes, 2)`.
    """

    def __init__(self, places: NDArray[Any], triangles: NDArray[Any], force: NDArray[Any]) -> None:
        self.triangles, self.force = triangles, force.ravel()
        corners = places[triangles]
        sides = np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1)  # opposite to each corner
        twice = sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0]  # the area, with a sign
        slopes = np.stack([-sides[..., 1], sides[..., 0]], axis=2) / twice[:, None, None]
        strains = np.zeros((len(triangles), 3, 3, 2))  # xx, yy, and twice xy of each corner's displacement
        strains[:, 0, :, 0], strains[:, 1, :, 1] = slopes[..., 0], slopes[..., 1]
        strains[:, 2, :, 0], strains[:, 2, :, 1] = slopes[..., 1], slopes[..., 0]
        strains = strains.reshape(-1, 3, 6)
        law = np.array([[1, POISSON, 0], [POISSON, 1, 0], [0, 0, (1 - POISSON) / 2]]) / (1 - POISSON**2)
        self.area = abs(twice) / 2
        self.stiffness = self.area[:, None, None] * (strains.transpose(0, 2, 1) @ law @ strains)
        self.numbers = (2 * triangles[:, :, None] + np.arange(2)).reshape(-1, 6)
        self.free = np.flatnonzero(np.repeat(places[:, 0] > 1e-9, 2))
        self.share = np.bincount(triangles.ravel(), np.repeat(self.area / 3, 3)) / self.area.sum()

    @cached_property
    def _at(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.repeat(self.numbers, 6, axis=1).ravel(), np.tile(self.numbers, (1, 6)).ravel()

    def solved(self, density: NDArray[Any]) -> tuple[NDArray[Any], Any]:
        """The displacements, `(2 nodes,)`, and the factors of the matrix between free ones."""
        means, size = modulus(density)[self.triangles].mean(axis=1), len(self.force)
        entries = (means[:, None, None] * self.stiffness).ravel()
        matrix = coo_matrix((entries, self._at), shape=(size, size)).tocsc()
        factors = splu(matrix[self.free][:, self.free].tocsc())
        moved = np.zeros(size)
        moved[self.free] = factors.solve(self.force[self.free])
        return moved, factors

    def vjp(
        self, density: NDArray[Any], moved: NDArray[Any], factors: Any, back: NDArray[Any]
    ) -> NDArray[Any]:
        """The gradient by the density, `(nodes,)`."""
        adjoint = np.zeros_like(moved)
        adjoint[self.free] = factors.solve(back[self.free])
        first, second = adjoint[self.numbers], moved[self.numbers]
        of_triangle = -np.einsum("ti,tij,tj->t", first, self.stiffness, second) / 3
        by_modulus = np.bincount(self.triangles.ravel(), np.repeat(of_triangle, 3), len(density))
        return by_modulus * (1 - LEAST) * POWER * density ** (POWER - 1)

    def advance(self, density: Tensor) -> Tensor:
        """Densities `(rows, nodes)` to displacements `(rows, nodes, 2)`, for autograd."""
        return _Exact.apply(density, self)  # type: ignore[no-any-return]


class _Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: Tensor, elements: Elements) -> Tensor:
        ctx.elements, ctx.density = elements, density.detach().numpy()
        ctx.solved = [elements.solved(row) for row in ctx.density]
        return torch.from_numpy(np.stack([moved.reshape(-1, 2) for moved, _ in ctx.solved]))

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        rows = zip(ctx.density, ctx.solved, back.flatten(1).numpy(), strict=True)
        found = [ctx.elements.vjp(density, *solved, row) for density, solved, row in rows]
        return torch.from_numpy(np.stack(found)), None


class Coarser:
    """A solver with half as many squares along a side, of the densities' means, for autograd.

    Args:
        places: of the nodes of the finer mesh.
        force: there.
        side: its squares along the height.
    """

    def __init__(self, places: NDArray[Any], force: NDArray[Any], side: int) -> None:
        half = side // 2
        own, triangles = rectangle(half)
        hats = (1 - abs(places[:, None] - own) * half).clip(0).prod(axis=2)  # (finer, own nodes)
        self.elements = Elements(own, triangles, hats.T @ force)
        self.hats, self.means = map(torch.from_numpy, (hats, hats / hats.sum(axis=0)))

    def advance(self, density: Tensor) -> Tensor:
        """Densities `(rows, nodes)` to displacements `(rows, nodes, 2)`."""
        return self.hats @ self.elements.advance(density @ self.means)


def rectangle(side: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Nodes `(nodes, 2)` and triangles of the beam, so many squares along its height."""
    axes = np.linspace(0, 2, 2 * side + 1), np.linspace(0, 1, side + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    corner = (np.arange(2 * side)[:, None] * (side + 1) + np.arange(side)).ravel()
    right, above = corner + side + 1, corner + 1
    lower, upper = (corner, right, right + 1), (corner, right + 1, above)
    return np.stack([x, y], axis=1), np.concatenate([np.stack(each, axis=1) for each in (lower, upper)])
