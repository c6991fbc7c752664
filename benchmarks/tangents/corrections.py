"""Problems in which a network corrects a system that is wrong, after each step along a trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from benchmarks.tangents.boxes import Failing, InUnits
from benchmarks.tangents.problem import Problem
from blackbox import BlackBoxFunction
from simulators.noisy import Noisy
from simulators.state_system import StateSystem
from zo.objective import Objective

WINDOWS, PAIRS = 101, 102  # first words of the keys' paths for these draws
TRAIN, VALIDATION, TEST = 32, 8, 32  # trajectories
LENGTH = 40  # steps of each
BATCH = 4
WARM_STEPS = 400


class Closure(nn.Module):
    """The state plus layers of it: convolutions on a grid, dense layers on a vector.

    Args:
        shape: of the state, `(channels, *space)` with one or two axes of space, or `(numbers,)`.
        hidden: channels of each layer between.
        kernel: width of the convolutions, odd.
        scale: standard deviation of each channel (or number), which divides the input.
        correction: that of the correction, which multiplies the output.
        periodic: whether the ends meet, else zeros are around.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        hidden: tuple[int, ...],
        kernel: int,
        scale: Tensor,
        correction: Tensor,
        periodic: bool,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("correction", correction)
        mode = "circular" if periodic else "zeros"
        sizes = (shape[0], *hidden, shape[0])
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            if len(shape) == 1:
                layers += [nn.Linear(before, after), nn.Tanh()]
            else:
                convolution = nn.Conv1d if len(shape) == 2 else nn.Conv2d
                layers += [
                    convolution(before, after, kernel, padding=kernel // 2, padding_mode=mode),
                    nn.Tanh(),
                ]
        self.layers = nn.Sequential(*layers[:-1])

    scale: Tensor
    correction: Tensor

    def forward(self, state: Tensor) -> Tensor:
        """`(rows, *shape)` to the same."""
        return state + self.correction * self.layers(state / self.scale)


@dataclass(frozen=True)
class System:
    """A wrong system, the right one, and what is seen of it.

    Attributes:
        wrong: the black box, with `advance` as its twin.
        right: the reference; a call of it takes as long as one of the box.
        hard: one sentence: why it is in the table.
        seen: what the box's state is of the reference's.
        unroll: steps in a loss and, twice as many, in the error.
        last: whether a loss sees the state after the last of its steps alone, as where one measures rarely.
            There are no single steps to start on then: the network begins with no correction.
        hidden: channels of the network's layers.
        kernel: width of its convolutions.
        periodic: whether the ends meet.
        noise: standard deviation added to what the box answers, in standard deviations of the state.
        failing: share of the box's rows that fail.
        steps: of training.
        batch: windows in a step.
        length: frames of a trajectory.
        trajectories: to train on, to choose and to judge by.
        learning_rate: of Adam.
        states: what makes the first states instead of the reference: `(rows, seed)`.
    """

    wrong: StateSystem | InUnits
    right: StateSystem | InUnits
    hard: str
    seen: Callable[[Tensor], Tensor] = lambda state: state
    unroll: int = 8
    last: bool = False
    hidden: tuple[int, ...] = (16,)
    kernel: int = 5
    periodic: bool = True
    noise: float = 0.0
    failing: float = 0.0
    steps: int = 300
    batch: int = BATCH
    length: int = LENGTH
    trajectories: tuple[int, int, int] = (TRAIN, VALIDATION, TEST)
    learning_rate: float = 2e-3
    states: Callable[[int, int], Tensor] | None = None


def coarse(state: Tensor) -> Tensor:
    """Means over 2 x 2 cells: `(..., channels, height, width)` to half as many each way."""
    return functional.avg_pool2d(state.flatten(0, -4), 2).unflatten(0, state.shape[:-3])


def rollout(network: nn.Module, solver: Callable[[Tensor], Tensor], state: Tensor, steps: int) -> Tensor:
    """`(rows, steps, *shape)` after each step of solver, then network."""
    states = []
    for _ in range(steps):
        state = network(solver(state))
        states.append(state)
    return torch.stack(states, dim=1)


def window_loss(scale: Tensor, last: bool = False) -> Callable[[Callable[..., Any]], Objective]:
    """Mean square error over a window or at its last step, in squares of `scale`, in float64: `(rows,)`."""

    def with_solver(solver: Callable[..., Any]) -> Objective:
        def objective(network: nn.Module, batch: Tensor) -> Tensor:
            states = rollout(network, solver, batch[:, 0], batch.shape[1] - 1)
            missed = (states - batch[:, 1:]) / scale
            return (missed[:, -1:] if last else missed).square().flatten(1).mean(dim=1, dtype=torch.float64)

        return objective

    return with_solver


def correction(system: System) -> Problem:
    """The problem of a system."""
    train, validation, test = _trajectories(system)
    quiet, shape = system.wrong, system.wrong.shape
    axes = (0, 1, *range(3, train.ndim))  # all but the channels
    stepped = quiet(train[:, :-1])
    wide = (-1,) + (1,) * (len(shape) - 1)
    scale = train.std(axes).view(wide)
    missed = (train[:, 1:] - stepped).square().mean(axes).sqrt().view(wide)
    box: BlackBoxFunction = quiet
    if system.noise:
        box = Noisy(box, system.noise * train.std().item(), seed=0)
    if system.failing:
        box = Failing(box, system.failing, seed=0)

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Closure(shape, system.hidden, system.kernel, scale, missed, system.periodic)
        if system.last:
            for parameter in network.layers[-1].parameters():
                nn.init.zeros_(parameter)
            return network
        before, after = stepped.flatten(0, 1), train[:, 1:].flatten(0, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for step in range(WARM_STEPS):
            generator = zo.estimators.Key(seed, step).generator(PAIRS)
            chosen = torch.randint(len(before), (64,), generator=generator)
            optimizer.zero_grad()
            (((network(before[chosen]) - after[chosen]) / missed) ** 2).mean().backward()
            optimizer.step()
        return network

    @torch.no_grad()
    def error(network: nn.Module, truth: Tensor) -> float:
        steps = system.unroll if system.last else 2 * system.unroll
        found = rollout(network, quiet, truth[:, 0], steps)
        squares = ((found - truth[:, 1 : 1 + steps]) / scale).square()
        if system.last:
            return squares[:, -1].mean().sqrt().item()
        return squares.mean((0, *range(2, squares.ndim))).sqrt().mean().item()

    def batch(seed: int, step: int) -> Tensor:
        """Windows drawn at random, `(rows, unroll + 1, *shape)`."""
        generator = zo.estimators.Key(seed, step).generator(WINDOWS)
        which = torch.randint(len(train), (system.batch,), generator=generator)
        first = torch.randint(train.shape[1] - system.unroll, (system.batch,), generator=generator)
        return train[which[:, None], first[:, None] + torch.arange(system.unroll + 1)]

    when = f"after {system.unroll} steps" if system.last else f"over {2 * system.unroll} steps"
    return Problem(
        box=box,
        exact=quiet.advance,
        start=start,
        objective=window_loss(scale, system.last),
        batch=batch,
        error=lambda network: error(network, test),
        validate=lambda network: error(network, validation),
        unit=f"RMS error {when}, over the standard deviation of each channel",
        steps=system.steps,
        learning_rate=system.learning_rate,
        hard=system.hard,
        known=None if system.last else ((train[:, :-1].flatten(0, 1),), stepped.flatten(0, 1)),
        periodic=system.periodic,
    )


def _trajectories(system: System) -> tuple[Tensor, ...]:
    """Reference states `(trajectories, length + 1, *shape)` to train on, to choose and to judge by."""
    make = system.states or system.right.start
    state = make(sum(system.trajectories), 0)
    states = [system.seen(state)]
    for _ in range(system.length):
        state = system.right(state)
        states.append(system.seen(state))
    return torch.stack(states, dim=1).split(system.trajectories)
