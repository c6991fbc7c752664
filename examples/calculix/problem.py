"""A network chooses a bracket's thickness field for loads that it has not met, trained through CalculiX."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

import tasks
from blackbox import ArraySpec, Parallel
from blackbox.adapters import CommandLine
from tasks.configuration import Count, Positive, ZerothOrder

NX, NY, LENGTH, HEIGHT = 16, 4, 100.0, 20.0  # cells; mm
NODES = [(i, j) for i in range(NX + 1) for j in range(NY + 1)]
EDGE = [NODES.index((i, NY)) for i in range(4, NX)] + [NODES.index((NX, j)) for j in range(NY, -1, -1)]
PLACES = torch.tensor([[LENGTH * i / NX, HEIGHT * j / NY] for i, j in NODES])
INSIDE = torch.tensor([(1 + (0 < i < NX)) * (1 + (0 < j < NY)) for i, j in NODES])
SHARE = INSIDE / INSIDE.sum()  # what a node's thickness counts in the volume
LEVELS = [0.3, 0.5, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4, 3.2]  # of the picture, mm
THINNEST, STRENGTH = 0.3, 1000.0  # mm, where the mean is 1 mm; N


def deck():
    """CalculiX's input: the mesh is fixed, {thickness[..]} and {force[..]} are filled in for each row."""
    lines = ["*NODE, NSET=ALL"]
    lines += [f"{n}, {x:g}, {y:g}, 0" for n, (x, y) in enumerate(PLACES.tolist(), 1)]
    lines += ["*ELEMENT, TYPE=CPS4, ELSET=PLATE"]
    for number, (i, j) in enumerate([(i, j) for i in range(NX) for j in range(NY)], 1):
        corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)]
        lines += [f"{number}, " + ", ".join(str(1 + NODES.index(corner)) for corner in corners)]
    lines += ["*NSET, NSET=WALL", *(f"{1 + NODES.index((0, j))}," for j in range(NY + 1))]
    lines += ["*MATERIAL, NAME=STEEL", "*ELASTIC", "210000, 0.3"]
    lines += ["*SOLID SECTION, ELSET=PLATE, MATERIAL=STEEL, NODAL THICKNESS", "1.", "*NODAL THICKNESS"]
    lines += [f"{n + 1}, {{thickness[{n}]:.9e}}" for n in range(len(NODES))]
    lines += ["*BOUNDARY", "WALL, 1, 2", "*STEP", "*STATIC", "*CLOAD"]
    lines += [
        f"{node + 1}, {axis + 1}, {{force[{k},{axis}]:.9e}}" for k, node in enumerate(EDGE) for axis in (0, 1)
    ]
    return "\n".join([*lines, "*NODE PRINT, NSET=ALL", "U", "*END STEP", ""])


def bracket():
    """The program ccx: a row is a process of some 30 ms."""
    return CommandLine(
        ["ccx", "-i", "bracket"],
        inputs=[
            ArraySpec("thickness", (len(NODES),)),  # mm
            ArraySpec("force", (len(EDGE), 2), differentiable=False),  # N
        ],
        outputs=[ArraySpec("moved", (len(NODES), 4))],  # node, mm
        input_templates={"bracket.inp": deck()},
        output_files={"moved": "bracket.dat"},
        environment={"OMP_NUM_THREADS": "1"},
        timeout=60,
        failures="keep",
    )


class Bracket(tasks.Problem):
    """A network lays out the thickness of a bracket for the load that it sees; CalculiX bends it."""

    units = dict.fromkeys(("bending", "worst"), "of the uniform plate's")
    higher_is_better = False

    @dataclass(frozen=True)
    class Config(tasks.Config):
        methods: tuple[str, ...] = ("none", "tangents", "row-rge")
        steps: Count = 60
        batch: Count = 8
        learning_rate: Positive = 3e-3
        zeroth_order: ZerothOrder = ZerothOrder(input_mu=1e-2)  # mm
        test: Count = 32
        """Loads in the test."""

    presets = {"small": Config(), "large": Config(steps=200, batch=16, test=128)}
    presets["ci"] = Config(steps=3, batch=2, test=2)

    def box(self):
        return Parallel(bracket(), lambda: ThreadPoolExecutor(2))

    def network(self):
        layers = torch.nn.Linear(4, 64), torch.nn.GELU(), torch.nn.Linear(64, len(NODES))
        network = torch.nn.Sequential(*layers)
        torch.nn.init.normal_(network[2].weight, std=0.01)
        torch.nn.init.zeros_(network[2].bias)
        return network

    def data(self):  # where on the edge a load acts, and in which direction, both from 0 to 1
        rows = torch.rand(1000 + 16 + self.config.test, 2, generator=torch.Generator().manual_seed(0))
        return tasks.Data.split(rows, batch=self.config.batch, validation=16, test=self.config.test)

    def thickness(self, network, loads):
        """Its volume is that of a plate of 1 mm whatever the network says."""
        place, angle = loads[:, 0], math.pi * loads[:, 1]
        seen = torch.stack((2 * place - 1, (6 * place).sin(), (2 * angle).cos(), (2 * angle).sin()), dim=1)
        return THINNEST + (1 - THINNEST) * network(seen).softmax(dim=1) / SHARE.to(loads)

    def bending(self, thickness, loads):
        """How far the edge moves, in mm: the root of its mean square, (rows,)."""
        place, angle = (len(EDGE) - 1) * loads[:, :1], math.pi * loads[:, 1:]
        near = torch.exp(-((torch.arange(len(EDGE), device=loads.device) - place) ** 2))
        near = STRENGTH * near / near.sum(1, keepdim=True)
        force = near[..., None] * torch.stack((angle.cos(), angle.sin()), -1)
        moved = self.box(thickness, force)
        return moved[:, EDGE, 1:3].square().sum(-1).mean(-1).sqrt()

    def objective(self, network, loads):
        return self.bending(self.thickness(network, loads), loads).log()

    def evaluate(self, network):
        loads = self.data.test
        with torch.no_grad():
            chosen = self.thickness(network, loads)
            bent, plain = (self.bending(thickness, loads) for thickness in (chosen, torch.ones_like(chosen)))
        return {
            "bending": (bent / plain).mean().item(),
            "worst": (bent / plain).max().item(),
            "thickness": chosen[:3],
            "loads": loads[:3],
        }

    def pictures(self, fields):
        def plate(axes, arrays, row):
            field = torch.as_tensor(arrays["thickness"][row]).reshape(NX + 1, NY + 1).T
            grid = PLACES.reshape(NX + 1, NY + 1, 2).permute(2, 1, 0)
            place, angle = arrays["loads"][row]
            x, y = PLACES[EDGE[round(float(place) * (len(EDGE) - 1))]].tolist()
            tail = (x - 15 * math.cos(math.pi * angle), y - 15 * math.sin(math.pi * angle))
            axes.annotate("", (x, y), tail, arrowprops={"color": "red"})
            return axes.contourf(*grid, field, levels=LEVELS, extend="both")

        rows = min(len(arrays["loads"]) for arrays in fields.values())
        bounds = {"xlim": (0, 120), "ylim": (-20, 40), "xticks": [], "yticks": [], "aspect": "equal"}
        shown = tasks.panels(fields, plate, rows=rows, size=(3, 4 / 3), colours="mm", **bounds)
        return {"Thickness for three test loads (red).": shown}
