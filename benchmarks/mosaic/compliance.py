"""The stiffest cantilever of half the material, on FEniCS's triangles: adjoint, differences, tangents.

After Mosaic's `optimization/topopt` (arXiv 2606.27895), in the plane: a beam of two by one is clamped at its
left and loaded at its right; Young's modulus is .001 + .999 d^3 of the density d, Poisson's number .3. The
density at the nodes is looked for whose compliance, force times displacement, is least. Mosaic holds the
material by a penalty; here the field is a logit, and the densities are sigmoids whose mean is one half,
whatever the field. The box is dolfinx (FEniCS) with linear elements in a Python of its own, which gives the
displacements, or the energies of the triangles, and no derivative. The adjoint beside it is that of the same
elements, written here, whose values are dolfinx's to rounding.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn

import zo
from benchmarks.mosaic import cells
from benchmarks.mosaic.heat import ALONE, Gradient, _by_bfgs, missing, python
from blackbox import ArraySpec, BlackBoxFunction, Mesh
from zo.objective import Objective
from zo.tangents import CallPairs, Linearised, Tangent

METHODS = (
    "adjoint, L-BFGS",
    "adjoint, Adam",
    "differences, L-BFGS",
    "random directions",
    "tangents with probes",
    "fit_field",
    "fit_field, a coarser solver as its model",
    "fit_field, stresses held",
)
LOADS = ("corner", "end", "middle")  # seeds 0, 1, 2
LEAST, POWER, POISSON = 1e-3, 3, 0.3  # of the modulus, where there is no material; of the density
PART = 0.5  # of the beam that is material
STEP = 1e-4  # of a difference, in the logit
PROBES, RATE = 8, 0.3  # beside an evaluation, of tangents; of Adam, in the logit
DIRECTIONS = 9  # of random directions a step

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


@dataclass(frozen=True)
class Task:
    """Sizes.

    Attributes:
        side: squares along the beam's height, of two triangles each; twice as many along its length.
        evaluations: of the adjoint.
        gradients: by differences.
        rows: of random directions, and of tangents with probes.
        few: of `fit_field`.
    """

    side: int = 12
    evaluations: int = 200
    gradients: int = 10
    rows: int = 600
    few: int = 40


SMALL = Task()
CI = Task(side=4, evaluations=4, gradients=2, rows=20, few=3)


class Beam(BlackBoxFunction):
    """Density at the nodes to the displacements there, or to the energies of the triangles, by dolfinx.

    Args:
        side: squares along the height.
        load: one of `LOADS`.
        energies: whether it gives energies, and not displacements.
    """

    def __init__(self, side: int, load: str, energies: bool = False) -> None:
        name = python()
        assert name is not None
        self.side, self.load, self.energies = side, load, energies
        self._process = subprocess.Popen(
            [name, "-c", SERVER, *map(str, (side, LEAST, POWER, POISSON))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ALONE,
        )
        self._count, cells = np.frombuffer(self._read(16), dtype=np.int64).tolist()
        self.places = np.frombuffer(self._read(16 * self._count)).reshape(-1, 2)
        self.triangles = np.frombuffer(self._read(24 * cells), dtype=np.int64).reshape(-1, 3)
        self.force = forced(self.places, load, side)
        self._write(self.force)
        mesh = Mesh(triangles=self.triangles, coordinates=self.places)
        self.inputs = (ArraySpec("density", (self._count,), "float64", layout=mesh),)
        self.outputs = (
            ArraySpec("energy", (cells,), "float64")
            if energies
            else ArraySpec("displacement", (self._count, 2), "float64", layout=mesh),
        )

    def _read(self, size: int) -> bytes:
        assert self._process.stdout is not None
        found = self._process.stdout.read(size)
        if len(found) < size:
            raise RuntimeError("dolfinx: expected an answer, got the end of its process. See its own output.")
        return found

    def _write(self, numbers: NDArray[Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(numbers.astype(np.float64).tobytes())
        self._process.stdin.flush()

    def evaluate_rows(self, density: NDArray[Any]) -> NDArray[Any]:
        """One row after another."""
        found = []
        for row in density:
            self._write(row)
            moved = np.frombuffer(self._read(16 * self._count)).reshape(-1, 2)
            energy = np.frombuffer(self._read(8 * len(self.triangles)))
            found.append(energy if self.energies else moved)
        return np.stack(found)

    def close(self) -> None:
        """End the process."""
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                end.close()
        self._process.wait()


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


class Material(zo.Field):
    """Densities whose mean over the beam is `PART`, whatever the field: sigmoids of it and one shift.

    Args:
        share: of the beam that belongs to each node.
    """

    def __init__(self, share: NDArray[Any]) -> None:
        super().__init__(torch.zeros(len(share), dtype=torch.float64))
        self.share = torch.from_numpy(share)

    def forward(self, rows: Tensor) -> Tensor:
        """`(rows, nodes)`."""
        return self.densities().expand(len(rows), -1)

    def densities(self) -> Tensor:
        """`(nodes,)`: the shift by bisection and a step of Newton, through which its derivative is exact."""
        with torch.no_grad():
            low, high = -self.values.max() - 1, -self.values.min() + 1
            for _ in range(60):
                shift = (low + high) / 2
                if self.share @ torch.sigmoid(self.values + shift) < PART:
                    low = shift
                else:
                    high = shift
            first = torch.sigmoid(self.values + shift)
            slope = self.share @ (first * (1 - first))
        shift = shift - (self.share @ torch.sigmoid(self.values + shift) - PART) / slope
        return torch.sigmoid(self.values + shift)


class HeldStresses(Tangent):
    """Energies where stresses stay as they are: each triangle's is as its modulus was over what it is.

    These stresses bear the load whatever the material, so that the sum of such energies is never below the
    compliance of the same densities, and touches it where the box was run (the principle of the least
    complementary energy): who lowers the one has lowered the other. The law of the material is known.

    Args:
        triangles: three nodes each.
    """

    learns = False

    def __init__(self, triangles: NDArray[Any]) -> None:
        self.triangles = torch.from_numpy(triangles.copy())

    def at(self, rows: CallPairs) -> Linearised:
        """What the box said of these rows, in other material."""
        return _Held(rows, self.triangles)


class _Held(Linearised):
    def __init__(self, rows: CallPairs, triangles: Tensor) -> None:
        super().__init__(rows)
        self._triangles = triangles

    def _of(self, z: Tensor) -> Tensor:
        moduli = (modulus(each)[:, self._triangles].mean(dim=2) for each in (self.rows.z, z))
        before, now = moduli
        return self.rows.y * before / now

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        return self._of(z) - self.rows.y

    def push(self, d: Tensor) -> Tensor:
        return torch.stack([torch.func.jvp(self._of, (self.rows.z,), (each,))[1] for each in d])

    def pull(self, v: Tensor) -> Tensor:
        return torch.func.vjp(self._of, self.rows.z)[1](v)[0]


@dataclass(frozen=True)
class Case:
    """What is to be made stiff.

    Attributes:
        box: the solver; of `HeldStresses` it gives energies.
        exact: the objective by the adjoint.
        objective: that by the box; both are one where the search begins.
        field: as it begins, of one density everywhere.
    """

    box: Beam
    exact: Objective
    objective: Objective
    field: Material

    def slope(self) -> Tensor:
        """The exact gradient where the field is."""
        loss = self.exact(self.field, torch.zeros(1, 1)).mean()
        return torch.autograd.grad(loss, [self.field.values])[0]

    def cosine(self) -> float:
        """Of the gradient that the field has with the exact one."""
        own, exact = self.field.values.grad, self.slope()
        self.field.values.grad = own
        return (
            0.0 if own is None else float((own * exact).sum() / (own.norm() * exact.norm()).clamp_min(1e-30))
        )


def case(box: Beam) -> Case:
    """The task of a box."""
    elements, force = Elements(box.places, box.triangles, box.force), torch.from_numpy(box.force)
    field = Material(elements.share)
    with torch.no_grad():
        unit = (elements.advance(field(torch.zeros(1, 1))) * force).sum()

    def objective_of(advance: Callable[[Tensor], Tensor], weights: Tensor) -> Objective:
        def objective(field: nn.Module, rows: Tensor) -> Tensor:
            field.zero_grad()  # of what a replay left: the cosine is that of an evaluation alone
            return (advance(field(rows)) * weights).flatten(1).sum(dim=1) / unit

        return objective

    weights = torch.ones(len(box.triangles)) if box.energies else force
    return Case(box, objective_of(elements.advance, force), objective_of(box, weights), field)


def searched(method: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least compliance over that at the beginning, those on the way, rows and seconds."""
    box = Beam(task.side, LOADS[seed % len(LOADS)], energies="held" in method)
    try:
        return _searched(method, case(box), task, seed)
    finally:
        box.close()


def _searched(method: str, this: Case, task: Task, seed: int) -> dict[str, Any]:
    began, box, field = process_time(), this.box, this.field
    losses, cosines = list[float](), list[float]()
    more: dict[str, Any] = {}

    def note(loss: float) -> None:
        losses.append(loss)
        if not method.startswith(("adjoint", "differences")):
            cosines.append(this.cosine())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "adjoint, L-BFGS":
            _by_bfgs(field, _adjoint(this), task.evaluations, note)
        elif method == "adjoint, Adam":
            _by_adam(field, _adjoint(this), lambda: len(losses) < task.evaluations, note)
        elif method.startswith("differences"):
            _by_bfgs(field, _differences(this), task.gradients, note)
        elif method.startswith("fit_field"):
            tangent: Tangent | None = None
            if "coarser" in method:
                model = Coarser(box.places, box.force, task.side)
                tangent = zo.tangents.ModelTangent(model.advance)
            elif "held" in method:
                tangent = HeldStresses(box.triangles)
            fit = zo.fit_field(
                field, this.objective, boxes=[box], rows=task.few, tangent=tangent, seed=seed, evaluated=note
            )
            more = {"why": fit.why}
        else:
            gradient = _sampled(method, this, seed)
            _by_adam(field, gradient, lambda: box.ledger.rows_run < task.rows, note)
    rows = box.ledger.rows_run or len(losses)  # the adjoint's are those of its forward runs
    if cosines:
        more |= {"cosines": [round(each, 3) for each in cosines]}
    return {
        "seed": seed,
        "load": box.load,
        "loss": min(losses),
        "rows": rows,
        "evaluations": len(losses),
        "losses": [float(f"{each:.4g}") for each in losses],
        "seconds": round(process_time() - began, 1),
        **more,
    }


def _adjoint(this: Case) -> Gradient:
    def gradient() -> tuple[float, Tensor]:
        loss = this.exact(this.field, torch.zeros(1, 1)).mean()
        (found,) = torch.autograd.grad(loss, [this.field.values])
        return float(loss.detach()), found

    return gradient


def _differences(this: Case) -> Gradient:
    """Forward differences, a number after another."""
    values, one = this.field.values, torch.zeros(1, 1)

    @torch.no_grad()
    def gradient() -> tuple[float, Tensor]:
        loss, found = this.objective(this.field, one).mean(), torch.zeros_like(values)
        for number in range(len(values)):
            values[number] += STEP
            found[number] = (this.objective(this.field, one).mean() - loss) / STEP
            values[number] -= STEP
        return float(loss), found

    return gradient


def _sampled(method: str, this: Case, seed: int) -> Gradient:
    """By slopes along random directions, or by a matrix that is fitted to the answers to probes."""
    estimator: zo.LossGradient | zo.ProbedGradient
    if method.startswith("random"):
        directions = zo.RGE(mu=1e-3, q=DIRECTIONS)
        estimator = zo.LossGradient(this.field, this.objective, directions, evaluator="loop", seed=seed)
    else:
        estimator = zo.ProbedGradient(
            this.field,
            this.objective,
            boxes=[this.box],
            tangent=zo.LowRankTangent(zo.tangents.ZeroTangent()),
            probes=PROBES,
            max_rows=1 + PROBES,
            trust_policy=zo.TrustPolicy(check_every=None),
            excite=0,
            clip=None,
            seed=seed,
        )

    def gradient() -> tuple[float, Tensor]:
        this.field.zero_grad()
        loss = float(estimator.backward(torch.zeros(1, 1)))
        assert this.field.values.grad is not None
        return loss, this.field.values.grad

    return gradient


def _by_adam(
    field: Material, gradient: Gradient, goes_on: Callable[[], bool], note: Callable[[float], None]
) -> None:
    optimizer = torch.optim.Adam(field.parameters(), RATE)
    while goes_on():
        loss, field.values.grad = gradient()
        note(loss)
        optimizer.step()


result = partial(cells.of_study, "compliance", METHODS, searched, lambda *_: missing())
"""All cells, by method: (task, seeds, an earlier result, what is called after each cell)."""


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each method."""
    state_of, lines, size = cells.states(found, "compliance"), [], found["task"]["side"]
    by_adjoint = (cell.get("runs", ()) for name, cell in found["cells"].items() if name.startswith("adjoint"))
    least = {seed: math.inf for seed in found["seeds"]}
    for run in itertools.chain(*by_adjoint):
        least[run["seed"]] = min(least[run["seed"]], run["loss"])
    for method, cell in found["cells"].items():
        runs = cell.get("runs", ())
        if not runs:
            lines.append(f"| {method} | {cell['state']}, {cell['why']} | | | | | | |")
            continue
        ends = ", ".join(sorted({run["why"] for run in runs if "why" in run}))
        state = f"{state_of[method]}, {ends}" if ends else state_of[method]
        counts, evaluations = ([run[name] for run in runs] for name in ("rows", "evaluations"))
        cosines = [float(np.median(run["cosines"])) for run in runs if "cosines" in run]
        row = (
            method,
            state,
            _spread([run["loss"] for run in runs]),
            _spread([run["loss"] / least[run["seed"]] for run in runs]),
            _between(counts),
            _between([round(count / each) for count, each in zip(counts, evaluations, strict=True)]),
            ", ".join(f"{each:.2f}" for each in cosines),
            str(len(runs)),
        )
        lines.append(f"| {' | '.join(row)} |")
    nodes = (2 * size + 1) * (size + 1)
    return (
        "Compliance over that of one density everywhere, and over the lower one of the two by the adjoint: "
        f"mean of the loads, least and greatest; {nodes} nodes, so that a gradient by differences takes "
        f"{nodes + 1} rows. Cosine: of the gradient with the adjoint's, the median over a search's "
        "evaluations, for each load.\n\n"
        "| method | state | compliance | over the adjoint's | rows | rows an evaluation | cosine | loads |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(lines)
    )


def _spread(values: Sequence[float]) -> str:
    """The mean, and the least and the greatest."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _between(counts: Sequence[int]) -> str:
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
