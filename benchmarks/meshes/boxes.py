"""Boxes on meshes whose equations and discretisations are not those of the tangents, with exact adjoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import splu
from scipy.spatial import Delaunay
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction, Mesh
from simulators.implicit_diffusion import ImplicitDiffusion

HOLE = np.array([0.62, 0.58]), 0.16  # centre and radius, in the unit square


def plate(nodes: int, seed: int = 0) -> Mesh:
    """Triangles of the unit square with a round hole, with exactly so many nodes, irregular inside."""
    generator = np.random.default_rng([seed, nodes])
    centre, radius = HOLE
    spacing = math.sqrt((1 - math.pi * radius**2) / nodes)
    side = np.linspace(0, 1, round(1 / spacing) + 1)[:-1]
    zero, one = np.zeros_like(side), np.ones_like(side)
    edges = [(side, zero), (one, side), (1 - side, one), (zero, 1 - side)]
    angles = np.linspace(0, 2 * math.pi, round(2 * math.pi * radius / spacing), endpoint=False)
    ring = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    border = np.concatenate([*(np.stack(edge, axis=1) for edge in edges), ring])
    for dense in np.arange(1.0, 0.5, -0.01):  # a lattice that is a little too fine, of which some points go
        lattice = np.arange(spacing * dense / 2, 1, spacing * dense)
        inner = np.stack(np.meshgrid(lattice, lattice), axis=-1).reshape(-1, 2)
        inner = inner + generator.uniform(-0.3, 0.3, inner.shape) * spacing
        gap = 0.6 * spacing
        inside = ((inner > gap) & (inner < 1 - gap)).all(axis=1)
        inner = inner[inside & (np.linalg.norm(inner - centre, axis=1) > radius + gap)]
        if len(inner) + len(border) >= nodes:
            break
    kept = np.sort(generator.permutation(len(inner))[: nodes - len(border)])
    points = np.concatenate([border, inner[kept]])
    triangles = Delaunay(points).simplices
    corners = points[triangles]
    outside = np.linalg.norm(corners.mean(axis=1) - centre, axis=1) > radius
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    return Mesh(triangles=triangles[outside & (area > 1e-3 * spacing**2)], coordinates=points)


def refined(mesh: Mesh) -> tuple[Mesh, np.ndarray]:
    """A mesh with each triangle split in four, and the ends of the edges whose middles are the new nodes."""
    links = mesh.links()
    place = {tuple(link): mesh.size + n for n, link in enumerate(links.tolist())}
    triangles = []
    for a, b, c in mesh.triangles.tolist():
        ab, bc, ca = (place[min(e), max(e)] for e in ((a, b), (b, c), (c, a)))
        triangles += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    points = np.concatenate([mesh.coordinates, mesh.coordinates[links].mean(axis=1)])
    return Mesh(triangles=triangles, coordinates=points), links


class MeshBox(BlackBoxFunction):
    """A box in float64 with states `(rows, nodes, fields)` or `(rows, nodes)` and its own adjoint.

    Attributes:
        mesh: of the states.
        calls: in training.
        sizes: of the meshes that are measured, in nodes.
        trained: those of them that are trained on.
    """

    arrays = "torch"
    calls = 4
    sizes = (318, 1_141, 3_324, 10_000)
    trained = (318,)
    mesh: Mesh

    @abstractmethod
    def advance(self, state: Tensor) -> Tensor:
        """A call of the box, which torch can differentiate."""

    def evaluate_rows(self, state: Tensor) -> Tensor:
        """One call."""
        with torch.no_grad():
            return self.advance(state.double()).to(state)

    def vjp(self, state: Tensor, v: Tensor) -> Tensor:
        """The exact vector-Jacobian product."""
        leaf = state.detach().clone().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.advance(leaf), leaf, v)[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a state."""
        return self.inputs[0].shape

    def smooth(self, rows: int, seed: int, length: float = 0.12) -> Tensor:
        """Random smooth fields of spread one, `(rows, *shape)`."""
        generator = np.random.default_rng(seed)
        count = rows * math.prod(self.shape[1:])
        places = self._places()
        waves = generator.standard_normal((places.shape[1], 96)) / length / math.sqrt(2)
        phase = places @ waves
        weights = generator.standard_normal((2, count, 96)) / math.sqrt(96)
        fields = weights[0] @ np.cos(phase).T + weights[1] @ np.sin(phase).T
        split = torch.from_numpy(fields).reshape(rows, *self.shape[1:], self.shape[0])
        return split.movedim(-1, 1)

    def start(self, rows: int, seed: int) -> Tensor:
        """States to begin with."""
        return self.smooth(rows, seed)

    def _places(self) -> np.ndarray:
        return self.mesh.coordinates


class _Fine:
    """A finer mesh inside a box: lumped mass, edges with weights, and its way to and from the box's nodes."""

    def __init__(
        self, mesh: Mesh, conductivity: Callable[[np.ndarray], np.ndarray], finer: bool = True
    ) -> None:
        self.mesh, self.ends = refined(mesh) if finer else (mesh, np.zeros((0, 2), dtype=np.int64))
        self.outer = mesh.size
        points, triangles = self.mesh.coordinates, self.mesh.triangles
        corners = points[triangles]
        weight = conductivity(corners.mean(axis=1))
        mass = np.zeros(self.mesh.size)
        weights: dict[tuple[int, int], float] = {}
        for number, (place, k) in enumerate(zip(corners, weight, strict=True)):
            first, second = place[1] - place[0], place[2] - place[0]
            area = abs(first[0] * second[1] - first[1] * second[0]) / 2
            mass[triangles[number]] += area / 3
            for far in range(3):  # the cotangent of the angle opposite to an edge
                a, b = (n for n in range(3) if n != far)
                p, q = place[a] - place[far], place[b] - place[far]
                ends = int(triangles[number][a]), int(triangles[number][b])
                key = min(ends), max(ends)
                weights[key] = weights.get(key, 0.0) + k * float(p @ q) / (4 * area)
        self.i, self.j = (torch.tensor(ends_of_edges) for ends_of_edges in np.array(list(weights)).T)
        self.weight = torch.tensor(list(weights.values()), dtype=torch.float64)
        self.mass = torch.from_numpy(mass)
        sides = points[self.i] - points[self.j]
        self.shortest = float(np.linalg.norm(sides, axis=1).min())
        self.lengths = torch.from_numpy(sides)

    def onto(self, u: Tensor) -> Tensor:
        """Values at the box's nodes, brought onto the finer mesh."""
        return torch.cat([u, (u[:, self.ends[:, 0]] + u[:, self.ends[:, 1]]) / 2], dim=1)

    def laplacian(self, u: Tensor) -> Tensor:
        """The divergence of conductivity x gradient, over the mass: `(rows, nodes)`."""
        return self.gathered(self.weight * (u[:, self.i] - u[:, self.j])) / -self.mass

    def gathered(self, flux: Tensor) -> Tensor:
        """The sum of the fluxes that leave each node by its edges."""
        total = flux.new_zeros(len(flux), len(self.mass))
        return total.index_add(1, self.i, flux).index_add(1, self.j, -flux)


class Membrane(MeshBox):
    """A damped membrane with a cubic spring, u_tt = div(c^2 grad u) - g u_t - u^3: leapfrog on a finer mesh.

    Fields: deflection and velocity; half as fast in a disc. Boundaries are free.
    """

    sizes = (318, 1_141)
    trained = ()
    duration = 0.06
    finer = True

    def __init__(self, nodes: int) -> None:
        self.mesh = plate(nodes)
        self.inputs = self.outputs = (ArraySpec("state", (nodes, 2), layout=self.mesh),)
        inside = np.array([0.25, 0.3])
        self._fine = _Fine(
            self.mesh,
            lambda x: np.where(np.linalg.norm(x - inside, axis=1) < 0.2, 0.25, 1.0),
            self.finer,
        )
        fine = self._fine
        most = torch.zeros(len(fine.mass), dtype=torch.float64)
        most.index_add_(0, fine.i, fine.weight.abs()).index_add_(0, fine.j, fine.weight.abs())
        self._substeps = math.ceil(self.duration * float((2 * most / fine.mass).max().sqrt()) / 1.6)

    def start(self, rows: int, seed: int) -> Tensor:
        """Deflections of spread .7, velocities of spread 2."""
        return self.smooth(rows, seed) * torch.tensor([0.7, 2.0], dtype=torch.float64)

    def advance(self, state: Tensor) -> Tensor:
        """.06 units of time."""
        fine, dt = self._fine, self.duration / self._substeps
        u, v = fine.onto(state[..., 0]), fine.onto(state[..., 1])
        for _ in range(self._substeps):
            v = v + dt * (fine.laplacian(u) - 0.5 * v - u**3)
            u = u + dt * v
        return torch.stack([u, v], dim=-1)[:, : fine.outer]


class OwnMembrane(Membrane):
    """The membrane on the mesh of its state, in a dozen steps or more.

    The other one answers with waves of the finer mesh, which interpolation and sampling put there: they do
    not fade, and no operator on the coarser mesh has them.
    """

    finer = False

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self._substeps = max(12, self._substeps)


class Reaction(MeshBox):
    """Two substances that react, as Schnakenberg has it, and diffuse at different speeds.

    Half as fast in a disc; explicit steps on a finer mesh. On more than 2,000 nodes these would be thousands:
    there diffusion is implicit (two stages, of second order and L-stable) between halves of explicit
    reactions, with VJPs that differ by .003 of their size.

    Args:
        nodes: of its mesh.
        implicit: whether diffusion is; None: on more than 2,000 nodes.
    """

    duration = 0.2
    stages = 1 - math.sqrt(0.5)  # of a time step

    def __init__(self, nodes: int, implicit: bool | None = None) -> None:
        self.mesh = plate(nodes)
        self.inputs = self.outputs = (ArraySpec("substances", (nodes, 2), layout=self.mesh),)
        middle = np.array([0.25, 0.3])
        fine = self._fine = _Fine(
            self.mesh, lambda x: np.where(np.linalg.norm(x - middle, axis=1) < 0.2, 0.01, 0.02)
        )
        most = fine.mass.new_zeros(len(fine.mass)).index_add(0, fine.i, fine.weight.abs())
        most = most.index_add(0, fine.j, fine.weight.abs())
        self._substeps = max(8, math.ceil(self.duration * float((2 * most / fine.mass).max()) / 1.8))
        self._factors: list[Any] = []
        if nodes > 2_000 if implicit is None else implicit:
            self._substeps = 16
            mass = sparse.diags_array(fine.mass.numpy())
            ends = (
                sparse.coo_array(
                    (np.ones(len(fine.i)), (np.arange(len(fine.i)), fine.i.numpy())),
                    shape=(len(fine.i), len(fine.mass)),
                ).tocsr()
                - sparse.coo_array(
                    (np.ones(len(fine.j)), (np.arange(len(fine.j)), fine.j.numpy())),
                    shape=(len(fine.j), len(fine.mass)),
                ).tocsr()
            )
            stiff = ends.T @ sparse.diags_array(fine.weight.numpy()) @ ends
            part = self.stages * self.duration / self._substeps
            for speed in (0.2, 1.0):
                self._factors.append(
                    splu(
                        (mass + part * speed * stiff).tocsc(),
                        permc_spec="MMD_AT_PLUS_A",
                        options={"SymmetricMode": True},
                    )
                )

    def start(self, rows: int, seed: int) -> Tensor:
        """Around the state at rest, with a spread of .3."""
        return torch.tensor([1.0, 0.9], dtype=torch.float64) + 0.3 * self.smooth(rows, seed)

    def advance(self, state: Tensor) -> Tensor:
        """.2 units of time."""
        fine, dt = self._fine, self.duration / self._substeps
        u, v = fine.onto(state[..., 0]), fine.onto(state[..., 1])
        for _ in range(self._substeps):
            if self._factors:
                u, v = self._reacted(u, v, dt / 2)
                u, v = self._spread(u, 0, dt), self._spread(v, 1, dt)
                u, v = self._reacted(u, v, dt / 2)
                continue
            meet = u**2 * v
            u, v = (
                u + dt * (0.2 * fine.laplacian(u) + 0.1 - u + meet),
                v + dt * (fine.laplacian(v) + 0.9 - meet),
            )
        return torch.stack([u, v], dim=-1)[:, : fine.outer]

    def _reacted(self, u: Tensor, v: Tensor, dt: float) -> tuple[Tensor, Tensor]:
        """The reaction alone, by the midpoint rule."""
        meet = u**2 * v
        a, b = u + dt / 2 * (0.1 - u + meet), v + dt / 2 * (0.9 - meet)
        meet = a**2 * b
        return u + dt * (0.1 - a + meet), v + dt * (0.9 - meet)

    def _spread(self, u: Tensor, place: int, dt: float) -> Tensor:
        """Diffusion alone, y' = A y: twice k = (1 - c dt A)^-1 A y at the stages of the SDIRK rule."""
        fine, part = self._fine, self.stages * dt

        def solved(right: Tensor) -> Tensor:
            return _Linear.apply(
                right * fine.mass,
                lambda x: self._factors[place].solve(x.T).T,
                lambda x: self._factors[place].solve(x.T, trans="T").T,
            )

        first = (solved(u) - u) / part  # what the first stage moves on by
        second = (solved(u + (dt - part) * first) - u - (dt - part) * first) / part
        return u + (dt - part) * first + part * second


class Transport(MeshBox):
    """Convection-dominated: two vortices carry a tracer that decays: upwind volumes on a finer mesh.

    With diffusion .001 the flow passes a node's distance at 318 nodes 50 times as fast as diffusion does.
    """

    duration = 0.05

    def __init__(self, nodes: int) -> None:
        self.mesh = plate(nodes)
        self.inputs = self.outputs = (ArraySpec("tracer", (nodes,), layout=self.mesh),)
        fine = self._fine = _Fine(self.mesh, lambda x: np.full(len(x), 0.001))
        middle = (fine.mesh.coordinates[fine.i] + fine.mesh.coordinates[fine.j]) / 2
        # An edge's dual face: of the area of the triangles beside it, as from a Laplacian of weight one.
        self._rate = (
            fine.weight
            / 0.001
            * torch.from_numpy(np.einsum("ea,ea->e", _velocity(middle), fine.lengths.numpy()))
        )
        out = fine.mass.new_zeros(len(fine.mass)).index_add(0, fine.i, self._rate.abs())
        out = out.index_add(0, fine.j, self._rate.abs())
        self._substeps = math.ceil(self.duration * float((out / fine.mass).max()) / 0.9)

    def advance(self, state: Tensor) -> Tensor:
        """.05 units of time."""
        fine, dt, u = self._fine, self.duration / self._substeps, self._fine.onto(state)
        for _ in range(self._substeps):
            # From j to i where the rate is positive; in the form that keeps constants.
            into = torch.relu(self._rate) * (u[:, fine.j] - u[:, fine.i])
            out = torch.relu(-self._rate) * (u[:, fine.i] - u[:, fine.j])
            change = u.new_zeros(u.shape).index_add(1, fine.i, into).index_add(1, fine.j, out)
            u = u + dt * (change / fine.mass + fine.laplacian(u) - 2 * u / (1 + u**2))
        return u[:, : fine.outer]


def _velocity(x: np.ndarray) -> np.ndarray:
    velocity = np.zeros_like(x)
    for centre, strength in (((0.3, 0.35), 2.5), ((0.7, 0.8), -1.8)):
        away = x - np.array(centre)
        size = strength * np.exp(-((away**2).sum(axis=1)) / 0.08)
        velocity += size[:, None] * np.stack([-away[:, 1], away[:, 0]], axis=1) / 0.2
    return velocity + np.array([0.4, 0.1])


class Elastic(MeshBox):
    """Plane stress of a plate clamped on the left, with a stiff disc: loads to displacements, finer mesh."""

    calls = 1

    def __init__(self, nodes: int) -> None:
        self.mesh = plate(nodes)
        spec = {"shape": (nodes, 2), "layout": self.mesh}
        self.inputs, self.outputs = (ArraySpec("load", **spec),), (ArraySpec("displacement", **spec),)
        fine, self._ends = refined(self.mesh)
        stiffness, area = self._assembled(fine)
        self._clamped = np.repeat(fine.coordinates[:, 0] < 1e-9, 2)
        free = sparse.diags_array((~self._clamped).astype(float))
        system = free @ stiffness @ free + sparse.diags_array(self._clamped.astype(float))
        self._factors = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        self._area = np.repeat(area, 2) * ~self._clamped

    def advance(self, state: Tensor) -> Tensor:
        """Displacements of unit Young's modulus, loads by area."""
        return _Linear.apply(state, self._solved, self._back)

    def _solved(self, state: np.ndarray) -> np.ndarray:
        nodes = self.shape[0]
        fine = np.concatenate([state, state[:, self._ends].mean(axis=2)], axis=1).reshape(len(state), -1)
        return self._factors.solve((fine * self._area).T).T.reshape(len(state), -1, 2)[:, :nodes]

    def _back(self, v: np.ndarray) -> np.ndarray:
        nodes = self.shape[0]
        fine = np.zeros((len(v), len(self._area) // 2, 2))
        fine[:, :nodes] = v
        fine = self._factors.solve(fine.reshape(len(v), -1).T, trans="T").T * self._area
        fine = fine.reshape(len(v), -1, 2)
        product = fine[:, :nodes].copy()
        for end in range(2):
            np.add.at(product.swapaxes(0, 1), self._ends[:, end], fine[:, nodes:].swapaxes(0, 1) / 2)
        return product

    def _assembled(self, mesh: Mesh) -> tuple[sparse.csr_array, np.ndarray]:
        corners = mesh.coordinates[mesh.triangles]
        soft = np.linalg.norm(corners.mean(axis=1) - np.array([0.3, 0.7]), axis=1) > 0.18
        young, poisson = np.where(soft, 1.0, 4.0), 0.3
        law = np.array([[1, poisson, 0], [poisson, 1, 0], [0, 0, (1 - poisson) / 2]]) / (1 - poisson**2)
        sides = corners[:, 1:] - corners[:, :1]
        area = np.abs(np.linalg.det(sides)) / 2
        last = np.linalg.inv(sides).swapaxes(1, 2)
        slopes = np.concatenate([-last.sum(axis=1, keepdims=True), last], axis=1)
        strain = np.zeros((len(area), 3, 6))
        strain[:, 0, 0::2], strain[:, 1, 1::2] = slopes[:, :, 0], slopes[:, :, 1]
        strain[:, 2, 0::2], strain[:, 2, 1::2] = slopes[:, :, 1], slopes[:, :, 0]
        local = (young * area)[:, None, None] * strain.swapaxes(1, 2) @ law @ strain
        numbers = (2 * mesh.triangles[:, :, None] + np.arange(2)).reshape(len(area), 6)
        rows, columns = np.repeat(numbers, 6, axis=1), np.tile(numbers, (1, 6))
        size = 2 * mesh.size
        whole = sparse.coo_array((local.ravel(), (rows.ravel(), columns.ravel())), shape=(size, size))
        share = np.zeros(mesh.size)
        np.add.at(share, mesh.triangles.ravel(), np.repeat(area / 3, 3))
        return whole.tocsr(), share


class Pipes(MeshBox):
    """Tanks that pipes join: flows go with the power .54 of the difference in head (Hazen and Williams).

    The mesh has edges alone: half of a triangulation's, so that all nodes are joined. Pipes and tanks have
    sizes that differ by factors.
    """

    duration = 1.0

    def __init__(self, nodes: int) -> None:
        generator = np.random.default_rng([7, nodes])
        around = plate(nodes)
        links = around.links()
        order = generator.permutation(len(links))
        tree = sparse.csgraph.minimum_spanning_tree(
            sparse.coo_array((order + 1.0, links.T), shape=(nodes, nodes)).tocsr()
        ).tocoo()
        joined = {tuple(sorted(link)) for link in zip(tree.row.tolist(), tree.col.tolist(), strict=True)}
        rest = [link for link in map(tuple, links.tolist()) if link not in joined]
        chosen = generator.permutation(len(rest))[: max(0, round(1.5 * nodes) - len(joined))]
        edges = np.array(sorted(joined | {rest[index] for index in chosen}))
        self.mesh = Mesh(edges=edges, nodes=nodes)
        self._around = around
        self.inputs = self.outputs = (ArraySpec("head", (nodes,), layout=self.mesh),)
        self._i, self._j = torch.from_numpy(edges[:, 0].copy()), torch.from_numpy(edges[:, 1].copy())
        self._size = torch.from_numpy(np.exp(0.5 * generator.standard_normal(len(edges))))
        self._tanks = torch.from_numpy(np.exp(0.3 * generator.standard_normal(nodes)))

    def start(self, rows: int, seed: int) -> Tensor:
        """Smooth heads, and differences from tank to tank."""
        rough = torch.from_numpy(np.random.default_rng(seed + 1).standard_normal((rows, *self.shape)))
        return 2 * self.smooth(rows, seed) + 0.5 * rough

    def advance(self, state: Tensor) -> Tensor:
        """One unit of time in twenty explicit steps."""
        h, dt = state, self.duration / 20
        for _ in range(20):
            d = h[:, self._i] - h[:, self._j]
            flow = 0.6 * self._size * d * (d**2 + 0.01) ** -0.23
            change = h.new_zeros(h.shape).index_add(1, self._i, -flow).index_add(1, self._j, flow)
            h = h + dt * (change - 0.1 * torch.tanh(h)) / self._tanks
        return h

    def _places(self) -> np.ndarray:
        return self._around.coordinates


class LongSteps(MeshBox):
    """A line of cells is a mesh too: `ImplicitDiffusion` in steps of .2 units of time.

    Every cell feels every other, and conductivities depend on the state. Its diffusion number is some 600.
    """

    sizes = (64,)
    trained = ()

    def __init__(self, nodes: int) -> None:
        self.mesh = Mesh.of_grid(np.ones(nodes, dtype=bool), spacing=1 / nodes)
        self.inputs = self.outputs = (ArraySpec("u", (nodes,), layout=self.mesh),)
        self._system = ImplicitDiffusion(points=nodes, floor=0.3, dt=0.2)

    def advance(self, state: Tensor) -> Tensor:
        """One long step."""
        return self._system.step(state[:, None])[:, 0]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, state, ahead, back):  # noqa: ANN001, ANN205
        ctx.back = back
        return torch.from_numpy(np.ascontiguousarray(ahead(state.detach().numpy())))

    @staticmethod
    def backward(ctx, v):  # noqa: ANN001, ANN205
        return torch.from_numpy(np.ascontiguousarray(ctx.back(v.numpy()))), None, None


BOXES: dict[str, type[Any]] = {
    "reaction": Reaction,
    "transport": Transport,
    "elastic": Elastic,
    "pipes": Pipes,
    "membrane": Membrane,
    "membrane-own-mesh": OwnMembrane,
    "long-steps": LongSteps,
}
