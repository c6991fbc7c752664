"""A network heats a plate around a window so that it is as warm inside as wanted, through scikit-fem.

The plate has a hole and, at a place that the network does not know, an inclusion that hardly conducts. A film
around the window gives its nodes a pulse of heat, four times, and scikit-fem conducts it: quadratic elements,
a conductivity that rises with temperature, losses to the air. Nothing is heated where temperatures count.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import splu
from scipy.spatial import Delaunay
from skfem import Basis, BilinearForm, ElementTriP2, MeshTri
from skfem.helpers import dot, grad

import tasks
from blackbox import ArraySpec, BlackBoxFunction, Mesh
from tasks.configuration import Count, Positive
from zo.estimators import Key

HOLE, INCLUSION = ((0.66, 0.62), 0.14), ((0.3, 0.36), 0.17)  # centre and radius, in the unit square
POOR = 0.05  # conductivity of the inclusion, of the plate's
RISE = 0.5  # of the conductivity, by a unit of temperature
LOSS = 2.0  # to the air, a unit of time
INTERVAL = 0.015  # in which heat goes some 0.25 far
WINDOW = (0.35, 0.25), (0.75, 0.75)  # two corners; the film is outside


@cache
def plate(nodes):
    """Irregular triangles of the unit square with a hole, of about so many nodes."""
    random, (centre, radius) = np.random.default_rng(nodes), HOLE
    count = round((nodes / (1 - np.pi * radius**2)) ** 0.5)
    side = np.linspace(0, 1, count)
    x, y = (axis.ravel() for axis in np.meshgrid(side, side))
    points = np.stack((x, y), axis=1)
    inner = ((points > 0) & (points < 1)).all(axis=1)
    points[inner] += random.uniform(-0.25, 0.25, (inner.sum(), 2)) / count
    points = points[np.linalg.norm(points - centre, axis=1) > radius + 0.6 / count]
    turns = np.linspace(0, 2 * np.pi, round(2 * np.pi * radius * count), endpoint=False)
    ring = centre + radius * np.stack((np.cos(turns), np.sin(turns)), axis=1)
    points = np.concatenate((points, ring))
    triangles = Delaunay(points).simplices
    middles = points[triangles].mean(axis=1)
    return Mesh(triangles=triangles[np.linalg.norm(middles - centre, axis=1) > radius], coordinates=points)


@BilinearForm
def mass(u, v, w):
    return u * v


@BilinearForm
def conduction(u, v, w):
    return w["k"] * (1 + RISE * w["before"]) * dot(grad(u), grad(v))


@BilinearForm
def rise(u, v, w):
    """What `conduction` changes by with the temperature that it was computed at."""
    return w["k"] * RISE * u * dot(w["after"].grad, grad(v))


class Conduction(BlackBoxFunction):
    """An interval without heating; a row is an assembly and a sparse factorisation, some ten milliseconds."""

    def __init__(self, mesh, **settings):
        self.mesh = mesh
        spec = ArraySpec("temperature", (mesh.nodes,), layout=mesh)
        self.inputs, self.outputs = (spec,), (spec,)
        super().__init__(**settings)
        made = MeshTri(mesh.coordinates.T.copy(), mesh.triangles.T.copy())
        self.basis = Basis(made, ElementTriP2(), intorder=4)
        x, y = np.asarray(self.basis.global_coordinates())
        centre, radius = INCLUSION
        self.k = np.where(np.hypot(x - centre[0], y - centre[1]) < radius, POOR, 1.0)
        self.mass = mass.assemble(self.basis).tocsr()
        # linear from nodes to the middles of edges
        ends, middles, nodes = made.facets, self.basis.facet_dofs[0], self.basis.nodal_dofs[0]
        rows, columns = (
            np.concatenate((nodes, middles, middles)),
            np.concatenate((np.arange(mesh.nodes), *ends)),
        )
        values = np.concatenate((np.ones(mesh.nodes), np.full(2 * len(middles), 0.5)))
        self.up, self.nodes = csr_matrix((values, (rows, columns))), nodes

    def step(self, temperature):
        """Temperatures of all degrees of freedom before and after, and the factorised matrix."""
        before = self.up @ temperature
        stiffness = conduction.assemble(self.basis, before=self.basis.interpolate(before), k=self.k)
        solver = splu(((1 + LOSS * INTERVAL) * self.mass + INTERVAL * stiffness).tocsc())
        return before, solver.solve(self.mass @ before), solver

    def evaluate(self, temperature):
        return self.step(temperature.astype(float))[1][self.nodes]

    def vjp(self, temperature, cotangent):
        """The exact adjoint of a row, which needs the box's own matrices."""
        before, after, solver = self.step(temperature)
        right = np.zeros(len(before))
        right[self.nodes] = cotangent
        solved = solver.solve(right, trans="T")
        moved = rise.assemble(self.basis, after=self.basis.interpolate(after), k=self.k)
        return self.up.T @ (self.mass.T @ solved - INTERVAL * (moved.T @ solved))


class Adjoint(torch.autograd.Function):
    """The box with its adjoint, for the problem's reference."""

    @staticmethod
    def forward(context, box, temperature):
        context.box = box
        context.save_for_backward(temperature)
        after = [box.step(row.double().numpy())[1][box.nodes] for row in temperature]
        return torch.from_numpy(np.stack(after)).to(temperature)

    @staticmethod
    def backward(context, cotangent):
        (temperature,) = context.saved_tensors
        pairs = zip(temperature.double().numpy(), cotangent.double().numpy(), strict=True)
        products = [context.box.vjp(row, v) for row, v in pairs]
        return None, torch.from_numpy(np.stack(products)).to(cotangent)


class Heating(tasks.Problem):
    """A network heats a plate with a hidden inclusion; scikit-fem says how warm it gets."""

    units = {"error": "of the spread of wanted temperatures"}

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "first-order")
        steps: Count = 100
        batch: Count = 4
        learning_rate: Positive = 0.01
        nodes: Count = 160
        """Of the plate, about."""
        pulses: Count = 4
        """Of heat, each with an interval of conduction behind it: calls of the box in a loss."""
        test: Count = 32
        """Wanted profiles in the test."""

    presets = {
        "small": Config(),
        "large": Config(steps=200, nodes=320),
        "fine": Config(nodes=1141),
        "ci": Config(steps=3, batch=2, nodes=100, pulses=2, test=2),
    }

    def box(self):
        return Conduction(plate(self.config.nodes))

    def network(self):  # for a node: where it is, when, how warm it is, and what is wanted
        network = torch.nn.Sequential(
            *(torch.nn.Linear(7, 32), torch.nn.Tanh(), torch.nn.Linear(32, 32), torch.nn.Tanh()),
            torch.nn.Linear(32, 1),
        )
        torch.nn.init.constant_(network[-1].bias, -2.0)  # little heat at first
        return network

    def data(self):  # in the window's middle the temperature, and its slopes
        def wanted(rows, *path):
            lowest, highest = torch.tensor([0.4, -0.5, -0.5]), torch.tensor([0.8, 0.5, 0.5])
            return lowest + (highest - lowest) * torch.rand(rows, 3, generator=Key(*path).generator())

        config = self.config
        validation, test = wanted(16, 1_000_001, 0), wanted(config.test, 1_000_002, 0)
        return tasks.Data(lambda seed, step: wanted(config.batch, seed, step), validation, test)

    @property
    def places(self):
        return torch.tensor(plate(self.config.nodes).coordinates, dtype=torch.float32)

    @property
    def window(self):
        """Which nodes count; the others are heated."""
        lowest, highest = map(torch.tensor, WINDOW)
        return ((self.places > lowest) & (self.places < highest)).all(dim=1)

    def heated(self, network, wanted):
        """Temperatures at the end, (rows, nodes)."""
        rows, nodes = len(wanted), len(self.places)
        film, places = ~self.window, (2 * self.places - 1).expand(rows, -1, -1)
        goals = (torch.tensor([2.0, 1.0, 1.0]) * wanted)[:, None].expand(-1, nodes, -1)
        temperature = torch.zeros(rows, nodes)
        for pulse in range(self.config.pulses):
            when = torch.full((rows, nodes, 1), 2 * pulse / self.config.pulses - 1)
            seen = torch.cat((places, goals, when, temperature[..., None]), dim=-1)
            heat = torch.nn.functional.softplus(network(seen)[..., 0]) * film
            temperature = self.box(temperature + heat)
        return temperature

    def profile(self, wanted):
        """Temperatures that are wanted, (rows, nodes): a plane."""
        middle = torch.tensor(WINDOW).mean(dim=0)
        return wanted[:, :1] + wanted[:, 1:] @ (self.places - middle).T

    def objective(self, network, wanted):
        missed = self.heated(network, wanted) - self.profile(wanted)
        return missed[:, self.window].square().mean(dim=1)

    def evaluate(self, network):
        wanted = self.data.test
        with torch.no_grad():
            temperature = self.heated(network, wanted)
        missed, profile = (temperature - self.profile(wanted))[:, self.window], self.profile(wanted)
        spread = (profile[:, self.window] - profile[:, self.window].mean()).square().mean().sqrt()
        error = missed.square().mean().sqrt() / spread
        return {"error": error.item(), "found": temperature[0], "wanted": profile[0]}

    def reference(self, temperature):
        """The same with its exact adjoint."""
        box = self.__dict__.setdefault("twin", Conduction(plate(self.config.nodes)))
        return Adjoint.apply(box, temperature)

    def pictures(self, fields):
        mesh = plate(self.config.nodes)
        x, y = mesh.coordinates.T

        def draw(axes, arrays):
            triangles = mesh.triangles[arrays["found"][mesh.triangles].min(axis=1) > 0]
            shown = axes.tripcolor(x, y, triangles, arrays["found"], vmin=0.1, vmax=1, shading="gouraud")
            (centre, radius), turns = INCLUSION, np.linspace(0, 2 * np.pi, 60)
            around = centre[0] + radius * np.cos(turns), centre[1] + radius * np.sin(turns)
            axes.plot(*around, color="black", linewidth=1, linestyle=":")
            (left, low), (right, high) = WINDOW
            axes.plot((left, right, right, left, left), (low, low, high, high, low), color="black")
            axes.set(aspect="equal", xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
            return shown

        inside = np.where(self.window, next(iter(fields.values()))["wanted"], 0.0)
        kept = {name: arrays for name, arrays in fields.items() if name != "identity"}  # which is the start
        shown = {"wanted": {"found": inside}, **kept}
        caption = "Temperatures of a test profile; wanted in the window; dotted: what hardly conducts."
        return {caption: tasks.panels(shown, draw, columns=2, colours="temperature")}
