"""Problems in which a network corrects a system that is wrong, measured after some calls alone.

The network acts after each call and begins with no correction: there are no single steps to train it on. What
the solver does with the corrections then matters. Where that is left out (NOG), the network takes what has
gone wrong in all calls for the error of the last.
"""

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
from benchmarks.tangents.problem import BenchmarkProblem, Unchanged
from blackbox import BlackBoxFunction
from simulators.noisy import Noisy
from simulators.state_system import StateSystem
from zo.objective import Objective

WINDOWS = 101  # first word of the keys' paths for these draws


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
        unroll: calls until the state is measured, in loss and error.
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
    hidden: tuple[int, ...] = (16, 16)
    kernel: int = 5
    periodic: bool = True
    noise: float = 0.0
    failing: float = 0.0
    steps: int = 100
    batch: int = 4
    length: int = 16
    trajectories: tuple[int, int, int] = (32, 8, 32)
    learning_rate: float = 2e-3
    states: Callable[[int, int], Tensor] | None = None


def coarse(state: Tensor) -> Tensor:
    """Means over 2 x 2 cells: `(..., channels, height, width)` to half as many each way."""
    return functional.avg_pool2d(state.flatten(0, -4), 2).unflatten(0, state.shape[:-3])


def last_loss(scale: Tensor, calls: int) -> Callable[[Callable[..., Any]], Objective]:
    """Mean square error after `calls` of solver, then network, in squares of `scale`: `(rows,)`."""

    def with_solver(solver: Callable[..., Any]) -> Objective:
        def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            state, wanted = batch
            for _ in range(calls):
                state = network(solver(state))
            return ((state - wanted) / scale).square().flatten(1).mean(1, dtype=torch.float64)

        return objective

    return with_solver


def correction(system: System) -> BenchmarkProblem:
    """The problem of a system."""
    train, validation, test = _trajectories(system)
    quiet, shape = system.wrong, system.wrong.shape
    axes = (0, 1, *range(3, train.ndim))  # all but the channels
    wide = (-1,) + (1,) * (len(shape) - 1)
    scale = train.std(axes).view(wide)
    missed = (train[:, 1:] - quiet(train[:, :-1])).square().mean(axes).sqrt().view(wide)
    box: BlackBoxFunction = quiet
    if system.noise:
        box = Noisy(box, system.noise * train.std().item(), seed=0)
    if system.failing:
        box = Failing(box, system.failing, seed=0)

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Closure(shape, system.hidden, system.kernel, scale, missed, system.periodic)
        for parameter in network.layers[-1].parameters():
            nn.init.zeros_(parameter)
        return network

    objective = last_loss(scale, system.unroll)

    @torch.no_grad()
    def error(network: nn.Module, truth: Tensor) -> float:
        return objective(quiet)(network, (truth[:, 0], truth[:, system.unroll])).mean().sqrt().item()

    def batch(seed: int, step: int) -> tuple[Tensor, Tensor]:
        """States drawn at random and those that come `unroll` calls later, each `(rows, *shape)`."""
        generator = zo.estimators.Key(seed, step).generator(WINDOWS)
        which = torch.randint(len(train), (system.batch,), generator=generator)
        first = torch.randint(train.shape[1] - system.unroll, (system.batch,), generator=generator)
        return train[which, first], train[which, first + system.unroll]

    return BenchmarkProblem(
        box=box,
        exact=quiet.advance,
        start=start,
        objective=objective,
        batch=batch,
        error=lambda network: error(network, test),
        validate=lambda network: error(network, validation),
        unit=f"RMS error after {system.unroll} calls, over the standard deviation of each channel",
        steps=system.steps,
        learning_rate=system.learning_rate,
        hard=system.hard,
        periodic=system.periodic,
        alone=Unchanged(),
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
