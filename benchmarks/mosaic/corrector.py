"""The solver-in-the-loop study: a network corrects a coarse solver after each call, trained in several ways.

As Mosaic's `solver_in_loop` has it (pull request 116): 32 x 32 points, four time steps of .02 in a call, 16
starts to train on and 8 others to test on, windows of 8 calls, a periodic network of 56,098 weights (size
`small`: 15,250) that begins as the bare solver, its output projected to fields without divergence; Adam
1e-4, gradients of length 5 at most, 200 updates on one window each. The loss is the mean over the calls of
the squared error over the target's square, plus a tenth of that of the last call before its correction, all
over what the bare solver has; size `terminal` has the loss of the last call alone (pull request 118). Errors
are relative, over 36 calls from the starts of the test.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import zo
from benchmarks.mosaic.flow import projected, start, trajectory
from benchmarks.mosaic.lattice import Lattice
from benchmarks.mosaic.solvers import STEP, STEPS, with_vjp
from blackbox import BlackBoxFunction
from zo.objective import Objective

COLUMNS = (
    "uncorrected",
    "ONE",
    "NOG",
    "WIG",
    "NOG, four windows",
    "WIG, four windows",
    "tangents",
    "tangents with replay",
)
REPLAYS = 4  # of each window, and so a fifth of the windows
SEVERAL = 4  # windows of an update where a column has several: as many as a replay draws rows
ORDER = 2026  # seed of the windows, the same for all columns and seeds


@dataclass(frozen=True)
class Task:
    """Sizes of the study; the defaults are Mosaic's.

    Attributes:
        points: along a side.
        viscosity: of the fluid.
        train: starts to train on.
        test: starts to test on.
        frames: calls in a trajectory to train on.
        unroll: calls in a window.
        updates: of the weights.
        free: calls of a test.
        channels: of the network's first layer; the second has twice as many.
        rate: of Adam.
        last: whether the loss is that of the last call alone.
    """

    points: int = 32
    viscosity: float = 0.001
    train: int = 16
    test: int = 8
    frames: int = 24
    unroll: int = 8
    updates: int = 200
    free: int = 36
    channels: int = 32
    rate: float = 1e-4
    last: bool = False


PAPER = Task()
SMALL = Task(channels=16)  # 15,250 weights, a quarter of the time
TERMINAL = Task(channels=16, last=True)
CI = Task(points=18, train=2, test=2, frames=5, unroll=2, updates=5, free=3, channels=4, rate=1e-3)


class Corrector(nn.Module):
    """Velocity to a change of it without divergence, which is zero at first.

    Args:
        channels: of the first layer.
        scale: of velocities.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        same: dict[str, Any] = {"padding": 2, "padding_mode": "circular"}
        sizes = (2, channels), (channels, 2 * channels), (2 * channels, 2)
        first, second, last = (nn.Conv2d(*size, 5, **same) for size in sizes)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))
        nn.init.zeros_(last.weight)
        for layer in (first, second, last):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType] - there is one
        self.layers = nn.Sequential(first, nn.GELU("tanh"), second, nn.GELU("tanh"), last)
        self.scale = scale

    def forward(self, velocity: Tensor) -> Tensor:
        """Of `(rows, 2, points, points)`, the corrected velocity."""
        return velocity + projected(self.scale * self.layers(velocity / self.scale))


@cache
def flows(task: Task, test: bool) -> Tensor:
    """References from the starts to train or to test on, `(starts, frames + 1, 2, points, points)`."""
    seeds, frames = (range(100, 100 + task.test), task.free) if test else (range(task.train), task.frames)
    span, fine = STEPS * STEP, 2 * task.points
    found = [
        trajectory(start(fine, seed), frames, task.points, task.viscosity, span, 2 * STEPS) for seed in seeds
    ]
    return torch.from_numpy(np.stack(found))


def windows(task: Task, count: int = 1) -> Tensor:
    """What each update sees, `(updates, count, unroll + 1, 2, points, points)`."""
    draws, known = np.random.default_rng(ORDER), flows(task, False)
    found = []
    for _ in range(task.updates * count):
        flow, first = draws.integers(task.train), draws.integers(task.frames - task.unroll + 1)
        found.append(known[flow, first : first + task.unroll + 1])
    return torch.stack(found).unflatten(0, (task.updates, count))


class Plain:
    """A solver whose state is the velocity; `Lattice` is one of which the velocity is a part."""

    @staticmethod
    def populations(velocity: Tensor) -> Tensor:
        """The state of a velocity."""
        return velocity

    @staticmethod
    def velocity(state: Tensor) -> Tensor:
        """Return the value of a state."""
        return state

    @staticmethod
    def with_velocity(state: Tensor, velocity: Tensor) -> Tensor:
        """The state with another velocity."""
        return velocity


def states_of(box: BlackBoxFunction) -> Any:
    """What makes states of velocities, and reads velocities off states."""
    return box if isinstance(box, Lattice) else Plain


def objective_of(
    box: BlackBoxFunction,
    scale: float = 1.0,
    advance: Callable[[Tensor], Tensor] | None = None,
    *,
    cut: bool = False,
    last: bool = False,
) -> Objective:
    """The loss of windows `(rows, unroll + 1, 2, points, points)`, of each row.

    Args:
        box: the solver.
        scale: over which the loss is.
        advance: a call of the solver, with a derivative; None for the box.
        cut: whether no gradient goes through the solver.
        last: whether it is that of the last call alone.
    """
    of, advance = states_of(box), advance or box

    def off(found: Tensor, wanted: Tensor) -> Tensor:
        return (found - wanted).square().sum(dim=(1, 2, 3)) / wanted.square().sum(dim=(1, 2, 3))

    def objective(network: nn.Module, window: Tensor) -> Tensor:
        state, losses, before = of.populations(window[:, 0]), [], torch.zeros(len(window))
        for call in range(1, window.shape[1]):
            state = advance(state.detach() if cut else state)
            plain = of.velocity(state)
            before = off(plain, window[:, call])
            velocity = network(plain)
            losses.append(off(velocity, window[:, call]))
            state = of.with_velocity(state, velocity)
        if last:
            return losses[-1] / scale
        return (0.1 * before + torch.stack(losses).mean(dim=0)) / scale

    return objective


def errors(network: nn.Module | None, box: BlackBoxFunction, task: Task) -> Tensor:
    """Relative errors of free runs from the starts of the test, `(starts, free)`."""
    truth, found, of = flows(task, True), [], states_of(box)
    state = of.populations(truth[:, 0])
    with torch.no_grad():
        for call in range(1, task.free + 1):
            state = box(state)
            velocity = of.velocity(state)
            if network is not None:
                velocity = network(velocity)
                state = of.with_velocity(state, velocity)
            off = (velocity - truth[:, call]).flatten(1).norm(dim=1)
            found.append(off / truth[:, call].flatten(1).norm(dim=1))
    return torch.stack(found, dim=1)


def loss_scale(box: BlackBoxFunction, task: Task) -> float:
    """The bare solver's mean loss over the first windows of all trajectories."""
    seen = flows(task, False)[:, : task.unroll + 1]
    with torch.no_grad():
        return float(objective_of(box, last=task.last)(nn.Identity(), seen).mean())


def trained(column: str, box: BlackBoxFunction, task: Task, seed: int, scale: float) -> dict[str, Any]:
    """A cell's figures for one seed: errors of free runs, rows of the box, seconds, warnings.

    Args:
        column: one of `COLUMNS`.
        box: the solver.
        task: the sizes.
        seed: of the weights.
        scale: of the loss.
    """
    began, before = process_time(), box.ledger.rows_run
    if column == "uncorrected":
        return _figures(errors(None, box, task), 0, process_time() - began, [])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Corrector(task.channels, float(flows(task, False).square().mean().sqrt()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if column.startswith("tangents"):
            _by_tangents(column, network, box, task, seed, scale)
        else:
            _by_autograd(column, network, box, task, scale)
    rows = box.ledger.rows_run - before
    if column == "ONE":  # answers on the references are asked once
        rows = task.train * task.frames
    elif not column.startswith("tangents"):
        rows = task.updates * windows_of(column) * task.unroll
    said = [str(each.message) for each in caught if issubclass(each.category, zo.TangentWarning)]
    return _figures(errors(network, box, task), rows, process_time() - began, said)


def windows_of(column: str) -> int:
    """Fresh windows of an update."""
    return SEVERAL if column.endswith("four windows") else 1


def _figures(found: Tensor, rows: int, seconds: float, said: list[str]) -> dict[str, Any]:
    """The geometric mean of errors over frames and starts, and the mean of the last frame's."""
    logs = found.clamp_min(1e-12).log()
    return {
        "log": logs.mean().item(),
        "final": found[:, -1].mean().item(),
        "frames": [round(each, 6) for each in found.mean(dim=0).tolist()],
        "rows": rows,
        "seconds": round(seconds, 1),
        "warnings": said,
    }


def _moved(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    optimizer.zero_grad()


def _by_autograd(column: str, network: nn.Module, box: BlackBoxFunction, task: Task, scale: float) -> None:
    """ONE, NOG and WIG, the last two with a window for each update or several."""
    optimizer = torch.optim.Adam(network.parameters(), task.rate)
    exact = column.startswith("WIG")
    through = with_vjp(box) if exact else box
    assert through is not None
    objective = objective_of(box, scale, through, cut=not exact, last=task.last)
    for window in windows(task, windows_of(column)):
        if column == "ONE":  # each call alone, from the reference
            window = torch.stack([window[0, :-1], window[0, 1:]], dim=1)
        objective(network, window).mean().backward()
        _moved(network, optimizer)


def _by_tangents(
    column: str, network: nn.Module, box: BlackBoxFunction, task: Task, seed: int, scale: float
) -> None:
    """Learned tangents; with replay a fifth of the windows is fresh."""
    optimizer = torch.optim.Adam(network.parameters(), task.rate)
    replays = REPLAYS if column.endswith("replay") else 0
    gradient = zo.TangentGradient(
        network,
        objective_of(box, scale, last=task.last),
        boxes=[box],
        seed=seed,
        limits=zo.tangents.Limits(replays=replays or None),
    )
    for window in windows(task)[:: 1 + replays]:
        gradient.backward(window)
        _moved(network, optimizer)
        for _ in range(gradient.replays() if replays else 0):
            gradient.replay()
            _moved(network, optimizer)
