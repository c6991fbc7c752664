"""Recovery of an inflow: 1,024 numbers that enter a channel by its boundary, seen downstream.

After Mosaic's `optimization/drag_opt` (arXiv 2606.27895): a unit square of 32 x 32 cells, periodic across,
with an inflow on the left, an outlet on the right and a cylinder of diameter .1 in the middle, at Reynolds
20. Mosaic lowers the cylinder's drag by 32 numbers, a profile that does not change. Here the profile changes
with each of 32 calls of the solver, and the one is looked for that leads to the velocities that were seen;
the search begins at Mosaic's flat inflow. The solver is written here, in torch, so that its derivative is one
column; all others call it for its values alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks.mosaic import cells, search
from blackbox import ArraySpec, BlackBoxFunction, Grid
from zo.objective import Objective

SPEED, VISCOSITY = 0.5, 0.0025  # of the flat inflow, and of the fluid
MIDDLE, RADIUS = 0.5, 0.05  # of the cylinder
EARLIER = 1_000  # added to the seed of an inflow: of that before it
SHORT = 8  # iterations between evaluations, of moves by a rough model
RATE = 0.03  # of Adam, in units of the speed
METHODS = (
    "adjoint, L-BFGS",
    "adjoint, L-BFGS, as few rows as fit_field",
    "identity, L-BFGS",
    "differences, L-BFGS",
    "random directions",
    "fit_field",
    "fit_field, a simpler solver as its model",
    f"fit_field, the same in moves of {SHORT} iterations",
    "fit_field, begun where the flow has settled",
)


@dataclass(frozen=True)
class Task:
    """Sizes.

    Attributes:
        points: cells along a side.
        calls: of the solver in which the inflow is looked for, each with a profile of its own.
        after: further calls, with the flat inflow, in which what entered last goes by what is seen.
        steps: of time in a call.
        rms: of the inflow's deviation from the flat one, over that one.
        evaluations: of the loss by all but `fit_field`.
        few: evaluations of the loss by `fit_field`.
        inner: its iterations between evaluations.
    """

    points: int = 32
    calls: int = 32
    after: int = 8
    steps: int = 2
    rms: float = 0.2
    evaluations: int = 40
    few: int = 16
    inner: int = 30

    @property
    def rows(self) -> int:
        """Of an evaluation."""
        return self.calls + self.after


SMALL = Task()
CI = Task(points=8, calls=2, after=1, steps=1, evaluations=3, few=2, inner=2)


class Channel(BlackBoxFunction):
    """A velocity in a channel with a cylinder to that after some steps of time.

    Incompressible Navier and Stokes on staggered cells with central differences, Heun's two stages, a
    projection after each. Row 0 of `velocity` is along the flow, on the left faces of the cells, row 1 across
    it, on their lower faces. The first faces along the flow are the inlet: what the state has there is held
    during a call. Nothing flows across there, and the pressure is zero at the outlet.

    Args:
        points: cells along a side of the unit square.
        steps: of time in a call.
        dt: a step of time.
        viscosity: kinematic, of the fluid.
        radius: of the cylinder; 0 for none.
    """

    arrays = "torch"

    def __init__(
        self,
        points: int,
        steps: int,
        dt: float = 0.04,
        viscosity: float = VISCOSITY,
        radius: float = RADIUS,
    ) -> None:
        self.points, self.steps, self.dt, self.viscosity = points, steps, dt, viscosity
        self.inputs = self.outputs = (
            ArraySpec("velocity", (2, points, points), layout=Grid(periodic=(False, True))),
        )
        along = torch.arange(points, dtype=torch.float64) / points - MIDDLE
        half = 0.5 / points  # from a face to the middle of its cell
        self._free = torch.stack(  # where there is no cylinder
            [
                torch.hypot(along[:, None] + x, along[None, :] + y) > radius
                for x, y in ((0.0, half), (half, 0.0))
            ]
        )
        length = -2.0 * torch.eye(points, dtype=torch.float64)
        length += torch.diag(torch.ones(points - 1, dtype=torch.float64), 1)
        length += torch.diag(torch.ones(points - 1, dtype=torch.float64), -1)
        across = length.clone()
        across[0, -1] = across[-1, 0] = 1.0
        length[0, 0], length[-1, -1] = -1.0, -3.0  # no slope at the inlet, zero at the outlet's face
        (self._rates, self._waves), (rates, self._waves_across) = (
            torch.linalg.eigh(matrix * points**2) for matrix in (length, across)
        )
        self._rates = self._rates[:, None] + rates

    def evaluate_rows(self, velocity: Tensor) -> Tensor:
        """All rows: `(rows, 2, points, points)` to the same."""
        with torch.no_grad():
            return self.advance(velocity)

    def advance(self, velocity: Tensor) -> Tensor:
        """What a call does, for autograd; float32 or float64."""
        for _ in range(self.steps):
            first = self._rate(velocity)
            middle = self._projected(velocity + self.dt * first)
            second = self._rate(middle)
            velocity = self._projected(velocity + 0.5 * self.dt * (first + second))
        return velocity

    def _rate(self, velocity: Tensor) -> Tensor:
        """By advection and friction, and zero at the inlet: `(rows, 2, points, points)`."""
        u, v = velocity.unbind(1)
        size = 1 / self.points
        up, down = (lambda f: f.roll(-1, -1)), (lambda f: f.roll(1, -1))
        last = u[:, -1:] - up(v[:, -1:]) + v[:, -1:]  # at the outlet, as much as leaves the last cells
        whole = torch.cat([u, last], 1)  # (rows, points + 1, points)
        beside = torch.cat([-v[:, :1], v, v[:, -1:]], 1)  # (rows, points + 2, points)
        corner = 0.25 * (whole + down(whole)) * (beside[:, :-1] + beside[:, 1:])
        square = (0.5 * (whole[:, 1:] + whole[:, :-1])).square()  # in the middle of the cells
        square_across = (0.5 * (v + up(v))).square()
        of_u = -(square[:, 1:] - square[:, :-1] + up(corner)[:, 1:-1] - corner[:, 1:-1]) / size
        of_v = -(square_across - down(square_across) + corner[:, 1:] - corner[:, :-1]) / size
        inner = whole[:, 1:-1]
        rough_u = whole[:, 2:] + whole[:, :-2] + up(inner) + down(inner) - 4 * inner
        rough_v = beside[:, 2:] + beside[:, :-2] + up(v) + down(v) - 4 * v
        of_u = of_u + self.viscosity / size**2 * rough_u
        of_v = of_v + self.viscosity / size**2 * rough_v
        return torch.stack([torch.cat([torch.zeros_like(u[:, :1]), of_u], 1), of_v], 1)

    def _projected(self, velocity: Tensor) -> Tensor:
        """Without the cylinder and without divergence; the inlet stays."""
        velocity = velocity * self._free.to(velocity.dtype)
        u, v = velocity.unbind(1)
        whole = torch.cat([u, u[:, -1:]], 1)
        divergence = (whole[:, 1:] - whole[:, :-1] + v.roll(-1, -1) - v) * self.points
        rates, waves, across = (
            matrix.to(velocity.dtype) for matrix in (self._rates, self._waves, self._waves_across)
        )
        pressure = waves @ ((waves.T @ divergence @ across) / rates) @ across.T
        u = torch.cat([u[:, :1], u[:, 1:] - (pressure[:, 1:] - pressure[:, :-1]) * self.points], 1)
        return torch.stack([u, v - (pressure - pressure.roll(1, -1)) * self.points], 1)


def wanted(task: Task, seed: int) -> Tensor:
    """An inflow, `(calls, points)`: the flat one and waves of up to three lengths in time and across."""
    draws, waves = np.random.default_rng(seed), range(4)
    time = (np.arange(task.calls)[:, None] + 0.5) / task.calls
    place = (np.arange(task.points)[None, :] + 0.5) / task.points
    field = np.zeros((task.calls, task.points))
    for slow in waves:
        for across in waves:
            phase, size = draws.uniform(0, 2 * np.pi), draws.normal()
            field += size * np.cos(np.pi * slow * time) * np.cos(2 * np.pi * across * place + phase)
    field -= field.mean()
    field *= task.rms / np.sqrt(np.mean(np.square(field)))
    return torch.from_numpy(SPEED * (1 + field)).float()


def run_through(advance: Callable[[Tensor], Tensor], start: Tensor, inflow: Tensor, after: int) -> Tensor:
    """The velocities after each call.

    Args:
        advance: the solver.
        start: the state to begin with, `(2, points, points)`.
        inflow: a profile for each call, `(rows, calls, points)`.
        after: calls with the flat inflow that follow.

    Returns:
        `(rows, calls + after, 2, points, points)`.
    """
    state, states = start.expand(len(inflow), -1, -1, -1), []
    flat = torch.full_like(inflow[:, 0], SPEED)
    for profile in (*inflow.unbind(1), *[flat] * after):
        along = torch.cat([profile[:, None], state[:, 0, 1:]], 1)
        state = advance(torch.stack([along, state[:, 1]], 1))
        states.append(state)
    return torch.stack(states, 1)


def downstream(states: Tensor) -> Tensor:
    """What is seen: all velocities behind the first quarter of the channel."""
    return states[..., states.shape[-2] // 4 :, :]


def case(task: Task, seed: int, settled: bool = False) -> search.Case:
    """What is looked for, from a state that is known.

    Args:
        task: the sizes.
        seed: of the inflow.
        settled: whether the flow has settled to the flat inflow before. If not, it comes of another inflow
            that changed as this one does, so that there are waves in it.
    """
    box, truth = Channel(task.points, task.steps), wanted(task, seed)
    flat = torch.full_like(truth, SPEED)
    start = torch.zeros(2, task.points, task.points)
    start[0] = SPEED
    with torch.no_grad():
        earlier = flat if settled else wanted(task, seed + EARLIER)
        start = run_through(box.advance, start, earlier[None], 0)[0, -1]
        seen, before = (
            downstream(run_through(box.advance, start, each[None], task.after)) for each in (truth, flat)
        )
    unit = (seen - before).square().sum()

    def objective_of(advance: Callable[[Tensor], Tensor]) -> Objective:
        def objective(field: nn.Module, rows: Tensor) -> Tensor:
            states = run_through(advance, start, field(rows), task.after)
            return (downstream(states) - seen).square().flatten(1).sum(dim=1) / unit

        return objective

    field = zo.Field(flat)
    return search.Case(box, objective_of(box.advance), objective_of(box), field, truth, origin=SPEED)


def searched(method: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least loss and its error, the errors on the way, rows and seconds."""
    this = case(task, seed, settled=method.endswith("settled"))
    note, field, ledger = search.Course(this.error), this.field, this.box.ledger
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method.startswith("adjoint"):
            most = task.few if "few" in method else task.evaluations
            search.bfgs(field, search.by_adjoint(this), most, note)
            return note.figures(seed, len(note.losses) * task.rows)
        if method.startswith("random"):
            most = task.evaluations * task.rows
            gradient = search.by_directions(this, seed)
            search.adam(field, gradient, RATE * SPEED, lambda: ledger.rows_run < most, note)
            return note.figures(seed, ledger.rows_run)
        simple = "simpler" in method or method.endswith("iterations")
        fit = zo.fit_field(
            field,
            this.objective,
            boxes=[this.box],
            rows=task.few * task.rows,
            tangent=zo.tangents.ModelTangent(simpler(task).advance) if simple else None,
            inner=SHORT if method.endswith("iterations") else task.inner,
            seed=seed,
            evaluated=note,
        )
    return note.figures(seed, fit.rows, why=fit.why)


def simpler(task: Task) -> Channel:
    """A channel without the cylinder, of twice the viscosity: a model that somebody may have."""
    return Channel(task.points, task.steps, viscosity=2 * VISCOSITY, radius=0.0)


def excluded(method: str, task: Task) -> str | None:
    """Why a method is not measured; None where it is."""
    if method.startswith("identity"):
        return "its gradient is zero: a call leaves the inlet as it is, and what is seen lies downstream"
    if method.startswith("differences"):
        rows = (task.calls * task.points + 1) * task.rows
        return f"one gradient takes {rows:,} rows"
    return None


result = partial(cells.of_study, "inflow", METHODS, searched, excluded)
"""All cells, by method: (task, seeds, an earlier result, what is called after each cell)."""


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each method."""
    task = found["task"]
    numbers, calls = task["calls"] * task["points"], task["calls"] + task["after"]
    return cells.of_searches(
        found,
        "Relative error of the inflow's deviation from the flat one at the least loss (1 where it begins), "
        f"and that loss (1 too): mean of the seeds, least and greatest; {numbers:,} numbers, {calls} rows an "
        "evaluation.",
    )
