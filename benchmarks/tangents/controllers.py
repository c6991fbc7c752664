"""Problems in which a network steers a system to a target: where rows begin, and targets, cost no row.

The network sees state and target and gives an action in each call; the loss is looked at in the last calls
alone. Everything that a batch holds is drawn, so that there are as many batches as anybody wants.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import zo
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import ArraySpec, BlackBoxFunction
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.state_system import runge_kutta
from zo.objective import Objective

DRAWN = 103  # first word of the keys' paths for these draws
HELD_OUT = 1_000_003  # the seed of validation and test rows
ROWS = 256  # of each of these


class Plant(BlackBoxFunction, abstract=True):
    """A system whose state an action moves on."""

    arrays = "torch"
    numbers: int
    actions: int = 1

    def __init__(self) -> None:
        super().__init__(failures="keep")
        state = ArraySpec("state", (self.numbers,))
        self.inputs = state, ArraySpec("action", (self.actions,))
        self.outputs = (state,)

    @abstractmethod
    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """What a call does, differentiable: `(rows, numbers)`, `(rows, actions)` to `(rows, numbers)`."""

    def evaluate_rows(self, state: Tensor, action: Tensor) -> Tensor:
        """All rows."""
        with torch.no_grad():
            return self.advance(state, action)


class Continuous(Plant, abstract=True):
    """A plant that follows differential equations, while a call's action is held."""

    dt: float
    substeps: int

    @abstractmethod
    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """The state's rate of change: `(rows, numbers)`, `(rows, actions)` to `(rows, numbers)`."""

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """Steps of Runge-Kutta."""
        for _ in range(self.substeps):
            state = runge_kutta(lambda now: self.tendency(now, action), state, self.dt)
        return state


class TorquePendulum(Continuous):
    """A damped pendulum with a motor at its joint, whose torque cannot hold it up: angle and speed."""

    numbers, dt, substeps = 2, 0.05, 4

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """By gravity, torque and friction."""
        angle, speed = state.unbind(-1)
        return torch.stack([speed, 6 * torch.tanh(action[:, 0]) - 9.81 * torch.sin(angle) - 0.1 * speed], -1)


class HenonHeiles(Plant):
    """A body in the potential of Henon and Heiles (1964), kicked at the start of each call."""

    numbers, actions = 4, 2

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """The kick, and half a unit of time by ten leapfrog steps."""
        place, speed = state[:, :2], state[:, 2:] + 0.3 * torch.tanh(action)
        dt = 0.05
        for _ in range(10):
            speed = speed + dt / 2 * self.force(place)
            place = place + dt * speed
            speed = speed + dt / 2 * self.force(place)
        return torch.cat([place, speed], -1)

    @staticmethod
    def force(place: Tensor) -> Tensor:
        """Of the potential."""
        x, y = place.unbind(-1)
        return -torch.stack([x + 2 * x * y, y + x.square() - y.square()], -1)


class Bicycle(Continuous):
    """A car as a bicycle at 20 m/s, with tyres that slide: offset, heading, sideways speed, yaw rate."""

    numbers, dt, substeps = 4, 0.025, 4

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """By the forces of both tyres, at one steering angle."""
        steer, speed, grip, stiffness = 0.3 * torch.tanh(action[:, 0]), 20.0, 6.0, 60.0

        def tyre(slip: Tensor) -> Tensor:
            return grip / 2 * torch.tanh(stiffness / grip * slip)

        _, heading, slip, yaw = state.unbind(-1)
        front, rear = tyre(steer - (slip + 1.2 * yaw) / speed), tyre(-(slip - 1.5 * yaw) / speed)
        return torch.stack(
            [speed * heading + slip, yaw, front + rear - speed * yaw, (1.2 * front - 1.5 * rear) / 1.6], -1
        )


class ForcedLorenz(Continuous):
    """The system of Lorenz (1963) with a force on each of its numbers, too weak to stop it."""

    numbers, actions, dt, substeps = 3, 3, 0.02, 5

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """In tenths of his numbers."""
        x, y, z = (10 * state).unbind(-1)
        rate = torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], -1)
        return rate / 10 + 3 * torch.tanh(action)


class StirredTank(Continuous):
    """A cooled tank in which a reaction heats itself (Uppal, Ray and Poore 1974): conversion, temperature.

    Both are without units. At `STEADY` it rests, but does not stay.
    """

    numbers, dt, substeps = 2, 0.0625, 4
    STEADY = 0.4472, 2.7517

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """By flow, reaction and a jacket, whose temperature is the action."""
        conversion, temperature = state.unbind(-1)
        jacket = 2 * torch.tanh(action[:, 0])
        reaction = 0.072 * (1 - conversion) * torch.exp(temperature / (1 + temperature / 20))
        return torch.stack(
            [reaction - conversion, 8 * reaction - temperature + 0.3 * (jacket - temperature)], -1
        )


class BouncingBall(Continuous):
    """A ball over a plate that is raised or lowered: height in m, speed in m/s.

    The plate is a spring without loss, so an action does something while the ball touches it alone.
    """

    numbers, dt, substeps = 2, 0.0125, 8
    STIFFNESS, GRAVITY = 100.0, 9.81

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """By gravity, and by the plate."""
        height, speed = state.unbind(-1)
        pressed = torch.relu(0.1 * torch.tanh(action[:, 0]) - height)
        return torch.stack([speed, self.STIFFNESS * pressed - self.GRAVITY], -1)


class Drone(Continuous):
    """A drone in a plane, which has to tilt before it can go aside: two places, tilt, and their speeds."""

    numbers, actions, dt, substeps = 6, 2, 0.025, 4
    GRAVITY = 9.81

    def tendency(self, state: Tensor, action: Tensor) -> Tensor:
        """By gravity, thrust along the tilted axis, and torque."""
        tilt, speeds = state[:, 2], state[:, 3:]
        thrust = self.GRAVITY * (1 + 0.8 * torch.tanh(action[:, 0]))
        forces = -thrust * torch.sin(tilt), thrust * torch.cos(tilt) - self.GRAVITY
        return torch.cat([speeds, torch.stack([*forces, 10 * torch.tanh(action[:, 1])], -1)], -1)


class JetsOnKuramotoSivashinsky(Plant):
    """Kuramoto-Sivashinsky on 32 points with four jets, which push at the start of each call."""

    numbers, actions = 32, 4
    APART = 8  # points between jets

    def __init__(self) -> None:
        super().__init__()
        self.waves = KuramotoSivashinsky(points=self.numbers, dt=0.25, steps=4)
        point = torch.arange(self.numbers)
        away = (point - self.APART * torch.arange(self.actions)[:, None] + 16) % self.numbers - 16
        self.push = torch.exp(-0.5 * (away / 2.0).square())  # (jets, points)

    def advance(self, state: Tensor, action: Tensor) -> Tensor:
        """The push, and a unit of time."""
        pushed = state + 0.5 * torch.tanh(action) @ self.push.to(state)
        return self.waves.advance(pushed[:, None])[:, 0]


@dataclass(frozen=True)
class Task:
    """What a network is to do with a plant.

    Attributes:
        plant: the plant.
        start: standard deviations of each number where rows begin, around `middle`.
        target: standard deviations of each number of the target, around `middle`; NaN for one that has none.
        hard: one sentence: why it is in the table.
        middle: of both.
        calls: of a row.
        looked_at: of these, the last ones whose states are compared with the target.
    """

    plant: Plant
    start: tuple[float, ...]
    target: tuple[float, ...]
    hard: str
    middle: tuple[float, ...] = ()
    calls: int = 8
    looked_at: int = 2


class Controller(nn.Module):
    """State and target to an action, by two hidden layers.

    Args:
        numbers: of the state.
        targets: of the target.
        actions: of the action.
        middle: of states, `(numbers,)`.
        scale: of states, `(numbers,)`.
    """

    def __init__(self, numbers: int, targets: int, actions: int, middle: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("middle", middle)
        self.register_buffer("scale", scale)
        self.layers = nn.Sequential(
            nn.Linear(numbers + targets, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, actions)
        )

    middle: Tensor
    scale: Tensor

    def forward(self, state: Tensor, target: Tensor) -> Tensor:
        """`(rows, numbers)`, `(rows, targets)` in units of their spread, to `(rows, actions)`."""
        return self.layers(torch.cat([(state - self.middle) / self.scale, target], dim=1))


def controller(task: Task, steps: int = 100, batch: int = 4, learning_rate: float = 3e-3) -> BenchmarkProblem:
    """The problem of a task."""
    plant = task.plant
    start = torch.tensor(task.start)
    middle = torch.tensor(task.middle or (0.0,) * plant.numbers)
    spread = torch.tensor(task.target)
    aimed = ~spread.isnan()

    def drawn(seed: int, step: int, rows: int) -> tuple[Tensor, Tensor]:
        """Where rows begin, `(rows, numbers)`, and targets in units of their spread, `(rows, targets)`."""
        generator = zo.estimators.Key(seed, step).generator(DRAWN)
        state = middle + start * torch.randn(rows, plant.numbers, generator=generator)
        return state, torch.randn(rows, int(aimed.sum()), generator=generator).clamp(-2, 2)

    def with_plant(advance: Callable[..., Tensor]) -> Objective:
        def objective(network: nn.Module, rows: tuple[Tensor, Tensor]) -> Tensor:
            state, target = rows
            total = state.new_zeros(len(state))
            for call in range(1, task.calls + 1):
                state = advance(state, network(state, target))
                if call > task.calls - task.looked_at:
                    off = (state - middle)[:, aimed] / spread[aimed] - target
                    total = total + off.square().mean(1, dtype=torch.float64)
            return total / task.looked_at

        return objective

    def network(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return Controller(plant.numbers, int(aimed.sum()), plant.actions, middle, start)

    quiet = with_plant(plant.advance)

    @torch.no_grad()
    def error(trained: nn.Module, step: int) -> float:
        return math.sqrt(quiet(trained, drawn(HELD_OUT, step, ROWS)).mean().item())

    return BenchmarkProblem(
        box=plant,
        exact=plant.advance,
        start=network,
        objective=with_plant,
        batch=lambda seed, step: drawn(seed, step, batch),
        error=lambda trained: error(trained, 1),
        validate=lambda trained: error(trained, 0),
        unit="RMS distance to the target in the last calls, in standard deviations of the targets",
        steps=steps,
        learning_rate=learning_rate,
        hard=task.hard,
        fresh=drawn,
    )


UNAIMED = math.nan
TASKS: dict[str, Callable[[], Task]] = {
    "torque-pendulum": lambda: Task(
        TorquePendulum(),
        start=(0.5, 0.5),
        target=(0.5, UNAIMED),
        hard="a swing that has to be timed: the motor is weaker than gravity",
    ),
    "henon-heiles": lambda: Task(
        HenonHeiles(),
        start=(0.15, 0.15, 0.15, 0.15),
        target=(0.15, 0.15, UNAIMED, UNAIMED),
        hard="kicks that saturate, and a potential that mixes both directions",
    ),
    "bicycle": lambda: Task(
        Bicycle(),
        start=(0.5, 0.02, 0.3, 0.1),
        target=(1.0, UNAIMED, UNAIMED, UNAIMED),
        hard="tyres that saturate: a steering angle that does too much does nothing more",
        calls=10,
    ),
    "forced-lorenz": lambda: Task(
        ForcedLorenz(),
        start=(0.6, 0.6, 0.6),
        target=(0.3, UNAIMED, 0.3),
        middle=(0.0, 0.0, 2.0),
        hard="chaos that a weak force has to steer early",
    ),
    "stirred-tank": lambda: Task(
        StirredTank(),
        start=(0.05, 0.3),
        target=(0.1, UNAIMED),
        middle=StirredTank.STEADY,
        hard="a reaction that dies or runs away by itself, and a jacket that acts late",
    ),
    "bouncing-ball": lambda: Task(
        BouncingBall(),
        start=(0.1, 0.3),
        target=(0.15, UNAIMED),
        middle=(0.4, 0.0),
        hard="contact: in most calls an action does nothing at all",
        calls=9,
        looked_at=1,
    ),
    "drone": lambda: Task(
        Drone(),
        start=(0.2, 0.2, 0.1, 0.2, 0.2, 0.2),
        target=(0.3, 0.3, UNAIMED, UNAIMED, UNAIMED, UNAIMED),
        hard="six numbers, two actions, of which one reaches its target by two turns",
        calls=10,
    ),
    "ks-32-jets": lambda: Task(
        JetsOnKuramotoSivashinsky(),
        start=(1.0,) * 32,
        target=tuple(0.5 if point % JetsOnKuramotoSivashinsky.APART == 0 else UNAIMED for point in range(32)),
        hard="a chaotic field, of which a network sees all and pushes at four places",
    ),
}
