"""Problems that no rule, constant or default of the library was chosen on, made for that alone.

They were committed before any method but first order was run on them; their steps and rates were set by
first order alone. Who changes a rule because of a result here takes the problem out of `HELD_OUT`. Beside the
designs of `designs` there are two controllers, and three solvers that a network corrects, in each call or
behind it. Lorenz's two levels are in `benchmarks.closure` too, with other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.controllers import UNAIMED, Plant, Task, controller
from benchmarks.tangents.designs import DESIGNS
from benchmarks.tangents.formulas import Formula, library
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import ArraySpec
from zo.objective import Objective

WINDOWS = 182  # first word of the keys' paths for these draws
TRACKS, LENGTH = (32, 8, 32), 16  # trajectories to train on, to choose and to judge by, and their calls


class HeatExchanger(Formula, Plant):
    """Counter-flow in eight cells, first order upwind; conductances go as flow^.8 (Dittus and Boelter 1930).

    The state is both inlets' temperatures, which stay, then eight of the hot side from its inlet on and eight
    of the cold side from its outlet on, in degrees C. Actions are the logarithms of both flows over the usual
    ones, bounded by 1; a usual flow fills its side in 10 s, and heat goes over at .2 per s. A call is 3 s.
    """

    numbers, actions, CELLS = 18, 2, 8

    def __init__(self) -> None:
        Plant.__init__(self)

    def law(self, state: Any, action: Any) -> Any:
        """`(rows, 18)`, `(rows, 2)` to `(rows, 18)`."""
        of, dt = library(state), 0.25
        flow = of.exp(of.tanh(action))
        conductance = 0.4 / (flow**-0.8).sum(1)[:, None]
        carried = 0.8 * flow
        hot_in, cold_in, hot, cold = state[:, :1], state[:, 1:2], state[:, 2:10], state[:, 10:]
        for _ in range(12):
            before = of.concatenate([hot_in, hot[:, :-1]], 1)
            behind = of.concatenate([cold[:, 1:], cold_in], 1)
            over = conductance * (hot - cold)
            hot, cold = (
                hot + dt * (carried[:, :1] * (before - hot) - over),
                cold + dt * (carried[:, 1:] * (behind - cold) + over),
            )
        return of.concatenate([hot_in, cold_in, hot, cold], 1)

    def rest(self) -> tuple[float, ...]:
        """The state at usual flows and inlets of 90 and 20 degrees, after ten minutes."""
        state = np.array([[90.0, 20.0] + 16 * [55.0]])
        for _ in range(200):
            state = self.law(state, np.zeros((1, 2)))
        return tuple(state[0].tolist())


class GantryCrane(Formula, Plant):
    """A trolley of 1 t with a load of .8 t on 4 m of rope (Fang et al. 2003, IEEE/ASME Trans. Mechatron. 8).

    The state is the load's place in m and its speed in m/s, both along the rail, then the rope's angle and
    its rate. The action is the drive's force, bounded by 2 kN. A call is .4 s by Runge-Kutta in two steps.
    """

    numbers, actions = 4, 1
    TROLLEY, LOAD, ROPE, GRAVITY = 1.0, 0.8, 4.0, 9.81

    def __init__(self) -> None:
        Plant.__init__(self)

    def law(self, state: Any, action: Any) -> Any:
        """`(rows, 4)`, `(rows, 1)` to `(rows, 4)`."""
        of, dt = library(state), 0.2
        force = 2 * of.tanh(action[:, 0])

        def rate(now: Any) -> Any:
            speed, angle, turning = now[:, 1], now[:, 2], now[:, 3]
            sine, cosine = of.sin(angle), of.cos(angle)
            rail = speed - self.ROPE * cosine * turning  # of the trolley, which has friction
            pull = self.LOAD * sine * (self.ROPE * turning**2 + self.GRAVITY * cosine)
            trolley = (force - 0.2 * rail + pull) / (self.TROLLEY + self.LOAD * sine**2)
            bent = -(cosine * trolley + self.GRAVITY * sine) / self.ROPE
            load = trolley + self.ROPE * (cosine * bent - sine * turning**2)
            return of.stack([speed, load, turning, bent], 1)

        for _ in range(2):
            first = rate(state)
            second = rate(state + dt / 2 * first)
            third = rate(state + dt / 2 * second)
            state = state + dt / 6 * (first + 2 * (second + third) + rate(state + dt * third))
        return state


class PredatorPrey(Formula):
    """Prey and predators that diffuse on a ring of 24 cells (Medvinsky et al. 2002, SIAM Review 44, eq. 11).

    `u_t = u_xx + u (1 - u) - u v / (u + h)`, `v_t = v_xx + k u v / (u + h) - m v`, with h = .4, k = 2 and
    m = .6, on cells of side 4, by Euler's method. A call is two units of time.

    Args:
        steps: of a call; four are too few.
    """

    shape = (2, 24)
    inputs = outputs = (ArraySpec("state", shape),)

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps

    def law(self, state: Any) -> Any:
        """`(rows, 2, 24)` to the same."""
        of, dt = library(state), 2.0 / self.steps
        for _ in range(self.steps):
            u, v = state[:, 0], state[:, 1]
            eaten = u * v / (u + 0.4)
            spread = (of.roll(state, 1, 2) + of.roll(state, -1, 2) - 2 * state) / 16
            state = state + dt * (spread + of.stack([u * (1 - u) - eaten, 2 * eaten - 0.6 * v], 1))
        return state


class ForcedBurgers(Formula):
    """`u_t + (u^2 / 2)_x = .002 u_xx + f` on a ring of length 1, by the fluxes of Engquist and Osher (1981).

    A call is .08, in Euler steps of .32 cells at a speed of one, while the force is held.

    Args:
        cells: of the grid.
    """

    def __init__(self, cells: int = 32) -> None:
        super().__init__()
        self.cells, self.steps, self.shape = cells, cells // 4, (1, cells)
        state = ArraySpec("velocity", self.shape)
        self.inputs = state, ArraySpec("force", self.shape, differentiable=False)
        self.outputs = (state,)

    def law(self, velocity: Any, force: Any) -> Any:
        """`(rows, 1, cells)` twice to the same."""
        of, dt, dx = library(velocity), 0.08 / self.steps, 1 / self.cells
        for _ in range(self.steps):
            behind = of.roll(velocity, -1, 2)
            flux = ((velocity + abs(velocity)) ** 2 + (behind - abs(behind)) ** 2) / 8
            flux = flux - 0.002 * (behind - velocity) / dx
            velocity = velocity + dt * (force - (flux - of.roll(flux, 1, 2)) / dx)
        return velocity


class ResolvedLorenz(Formula):
    """Eight slow cells of Lorenz's system of two levels (1996), F = 20, with a term in each from elsewhere.

    A call is .05, in two steps of Runge-Kutta.
    """

    shape = (1, 8)
    inputs = ArraySpec("slow", shape), ArraySpec("term", shape)
    outputs = (ArraySpec("slow", shape),)

    def law(self, slow: Any, term: Any) -> Any:
        """`(rows, 1, 8)` twice to the same."""
        of, dt = library(slow), 0.025

        def rate(x: Any) -> Any:
            return of.roll(x, 1, 2) * (of.roll(x, -1, 2) - of.roll(x, 2, 2)) - x + 20.0 + term

        for _ in range(2):
            first = rate(slow)
            second = rate(slow + dt / 2 * first)
            third = rate(slow + dt / 2 * second)
            slow = slow + dt / 6 * (first + 2 * (second + third) + rate(slow + dt * third))
        return slow


class Local(nn.Module):
    """Convolutions on a ring, zero to begin with: `(rows, channels, cells)` of each field to those of one.

    Args:
        scales: of the fields' channels, by which they are divided.
        size: of the output's channels, by which they are multiplied.
    """

    def __init__(self, scales: Sequence[Tensor], size: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.cat([scale.flatten() for scale in scales])[:, None])
        self.register_buffer("size", size.flatten()[:, None])
        layers: list[nn.Module] = []
        for before, after in pairwise((len(self.scale), 16, 16, len(self.size))):
            layers += [nn.Conv1d(before, after, 5, padding=2, padding_mode="circular"), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    scale: Tensor
    size: Tensor

    def forward(self, *fields: Tensor) -> Tensor:
        """All fields to a correction."""
        return self.size * self.layers(torch.cat(fields, 1) / self.scale)


@dataclass(frozen=True)
class Followed:
    """A solver that is to follow the truth over some calls.

    Attributes:
        box: the solver.
        step: (solver, network, state, forces of the call) -> the next state.
        truth: states `(trajectories, calls + 1, channels, cells)`.
        size: of a correction, of each channel, or of a term.
        hard: one sentence: why it is in the table.
        forces: `(trajectories, calls, channels, cells)`, where there are any.
        calls: of a row.
        looked_at: of these, the last ones whose states are compared with the truth.
        steps: of training.
        learning_rate: of Adam.
    """

    box: Formula
    step: Callable[..., Tensor]
    truth: Tensor
    size: Tensor
    hard: str
    forces: Tensor | None = None
    calls: int = 4
    looked_at: int = 1
    steps: int = 200
    learning_rate: float = 2e-3


def followed(of: Followed) -> BenchmarkProblem:
    """The problem of such a solver."""
    tracks = [of.truth] if of.forces is None else [of.truth, of.forces]
    train, validation, test = zip(*(track.split(TRACKS) for track in tracks), strict=True)
    scales = [track.std((0, 1, 3)) for track in train]
    scale, last = scales[0][:, None], slice(of.calls - of.looked_at + 1, of.calls + 1)

    def with_solver(solver: Callable[..., Any]) -> Objective:
        def objective(network: nn.Module, rows: tuple[Tensor, ...]) -> Tensor:
            state, wanted, *forces = rows
            total = torch.zeros(len(state), dtype=torch.float64)
            for call in range(of.calls):
                state = of.step(solver, network, state, *(force[:, call] for force in forces))
                if (left := of.calls - 1 - call) < of.looked_at:
                    off = (state - wanted[:, -1 - left]) / scale
                    total = total + off.square().flatten(1).mean(1, dtype=torch.float64)
            return total / of.looked_at

        return objective

    def cut(tracks: tuple[Tensor, ...], which: Tensor, first: Tensor) -> tuple[Tensor, ...]:
        """The states where windows begin, those wanted, and the forces between."""
        calls = first[:, None] + torch.arange(of.calls + 1)
        states = tracks[0][which[:, None], calls]
        forces = [track[which[:, None], calls[:, :-1]] for track in tracks[1:]]
        return states[:, 0], states[:, last], *forces

    def batch(seed: int, step: int) -> tuple[Tensor, ...]:
        generator = zo.estimators.Key(seed, step).generator(WINDOWS)
        which = torch.randint(TRACKS[0], (2,), generator=generator)
        return cut(train, which, torch.randint(LENGTH - of.calls + 1, (2,), generator=generator))

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return Local(scales, of.size)

    @torch.no_grad()
    def error(network: nn.Module, tracks: tuple[Tensor, ...]) -> float:
        which = torch.arange(len(tracks[0])).repeat(2)
        first = torch.tensor([0, LENGTH // 2]).repeat_interleave(len(tracks[0]))
        return with_solver(of.box.advance)(network, cut(tracks, which, first)).mean().sqrt().item()

    return BenchmarkProblem(
        box=of.box,
        exact=of.box.advance,
        start=start,
        objective=with_solver,
        batch=batch,
        error=lambda network: error(network, test),
        validate=lambda network: error(network, validation),
        unit="RMS error of the last calls, over the standard deviation of each channel",
        steps=of.steps,
        learning_rate=of.learning_rate,
        hard=of.hard,
        alone=start(0),
    )


def along(solver: Callable[..., Any], state: np.ndarray, forces: Sequence[Any] | None = None) -> np.ndarray:
    """States of each call, in NumPy: `(rows, ...)` to `(rows, calls + 1, ...)`."""
    states = [state]
    for call in range(LENGTH):
        states.append(solver(states[-1], *(() if forces is None else (forces[call],))))
    return np.stack(states, 1)


def waves(draw: np.random.Generator, shape: tuple[int, ...], cells: int, modes: int) -> np.ndarray:
    """Random waves of equal power in the first modes, of variance one: `(*shape, cells)`."""
    phase = 2 * np.pi * np.arange(1, modes + 1)[:, None] * np.arange(cells) / cells
    both = np.concatenate([np.sin(phase), np.cos(phase)])
    return draw.standard_normal((*shape, 2 * modes)) @ both / np.sqrt(modes)


def predator_prey() -> BenchmarkProblem:
    """Euler steps of half a unit of time, against steps of a fortieth."""
    wrong, right, draw = PredatorPrey(), PredatorPrey(80), np.random.default_rng(0)
    state = np.array([0.4, 0.4])[:, None] * np.exp(0.5 * waves(draw, (sum(TRACKS), 2), 24, 3))
    for _ in range(60):
        state = right.law(state)
    truth = torch.from_numpy(along(right.law, state)).float()
    missed = (truth[:, 1:].flatten(0, 1) - wrong.advance(truth[:, :-1].flatten(0, 1))).std((0, 2))

    def step(solver: Callable[..., Any], network: nn.Module, state: Tensor) -> Tensor:
        state = solver(state)
        return state + network(state)

    hard = "steps too long for waves that go round; a species must not fall below none"
    return followed(Followed(wrong, step, truth, missed, hard))


def burgers() -> BenchmarkProblem:
    """32 cells against means of 256, under forces that are drawn anew for each call."""
    wrong, right, draw = ForcedBurgers(), ForcedBurgers(256), np.random.default_rng(0)
    forces = 2 * waves(draw, (LENGTH, sum(TRACKS), 1), 256, 8)
    state = 0.5 * waves(draw, (sum(TRACKS), 1), 256, 2)
    fine = along(right.law, state, list(forces))

    def seen(cells: np.ndarray) -> Tensor:
        return torch.from_numpy(cells.reshape(*cells.shape[:-1], 32, 8).mean(-1)).float()

    truth, coarse = seen(fine), seen(forces).transpose(0, 1).contiguous()
    answered = wrong.advance(truth[:, :-1].flatten(0, 1), coarse.flatten(0, 1))
    missed = (truth[:, 1:].flatten(0, 1) - answered).std((0, 2))

    def step(solver: Callable[..., Any], network: nn.Module, state: Tensor, force: Tensor) -> Tensor:
        state = solver(state, force)
        return state + network(state, force)

    hard = "shocks that a coarse grid smears, and forces as fine as its cells"
    return followed(Followed(wrong, step, truth, missed, hard, coarse, 6, 3, steps=300, learning_rate=5e-3))


def two_levels(steps: int = 10) -> BenchmarkProblem:
    """The term that stands for 32 quick numbers in each cell (h = 1, b = 10, c = 4: Arnold et al. 2013)."""
    box, draw, fast, b, c = ResolvedLorenz(), np.random.default_rng(0), 32, 10.0, 4.0

    def rate(both: np.ndarray) -> np.ndarray:
        x, y = both[:, :8], both[:, 8:]
        coupled = (c / b) * y.reshape(-1, 8, fast).sum(2)
        slow = np.roll(x, 1, 1) * (np.roll(x, -1, 1) - np.roll(x, 2, 1)) - x + 20.0 - coupled
        quick = c * b * np.roll(y, -1, 1) * (np.roll(y, 1, 1) - np.roll(y, -2, 1)) - c * y
        return np.concatenate([slow, quick + (c / b) * np.repeat(x, fast, 1)], 1)

    def call(both: np.ndarray) -> np.ndarray:
        dt = 0.05 / steps
        for _ in range(steps):
            first = rate(both)
            second = rate(both + dt / 2 * first)
            third = rate(both + dt / 2 * second)
            both = both + dt / 6 * (first + 2 * (second + third) + rate(both + dt * third))
        return both

    rows = sum(TRACKS)
    slow, quick = 3 + draw.standard_normal((rows, 8)), 0.1 * draw.standard_normal((rows, 8 * fast))
    both = np.concatenate([slow, quick], 1)
    for _ in range(60):
        both = call(both)
    truth = torch.from_numpy(along(call, both)[:, :, None, :8]).float()

    def step(solver: Callable[..., Any], network: nn.Module, state: Tensor) -> Tensor:
        return solver(state, network(state))

    hard = "the network's term goes in before each call, and values alone do not show what it does"
    return followed(Followed(box, step, truth, torch.tensor([5.0]), hard, calls=8, looked_at=8))


def heat_exchanger() -> BenchmarkProblem:
    """Both outlets to wanted temperatures, by both flows."""
    plant = HeatExchanger()
    aimed = {9: 4.0, 10: 4.0}  # the hot side's last cell, and the cold side's
    task = Task(
        plant,
        start=(4.0, 2.0) + 16 * (4.0,),
        target=tuple(aimed.get(number, UNAIMED) for number in range(plant.numbers)),
        hard="two flows that each move both outlets, and one of them late",
        middle=plant.rest(),
        calls=6,
    )
    return controller(task, steps=200, batch=2)


def crane() -> BenchmarkProblem:
    """The load to a place, where it has to stay."""
    task = Task(
        GantryCrane(),
        start=(0.5, 0.3, 0.1, 0.1),
        target=(1.0, UNAIMED, UNAIMED, UNAIMED),
        hard="what moves the load first swings it the other way",
        calls=10,
        looked_at=3,
    )
    return controller(task, steps=200, batch=2)


CONTROLLERS = "heat-exchanger", "crane"
PROBLEMS: dict[str, Callable[[], BenchmarkProblem]] = {
    **DESIGNS,
    "predator-prey": predator_prey,
    "burgers": burgers,
    "two-levels": two_levels,
    "heat-exchanger": heat_exchanger,
    "crane": crane,
}
