"""Problems in which a network corrects a system that is wrong, after each step along a trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from benchmarks.tangents.problem import Problem
from simulators.advection_diffusion_reaction import AdvectionDiffusionReaction
from simulators.coupled_map_lattice import CoupledMapLattice
from simulators.implicit_diffusion import ImplicitDiffusion
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from simulators.noisy import Noisy
from simulators.state_system import StateSystem
from zo.objective import Objective

WINDOWS, PAIRS = 101, 102  # first words of the keys' paths for these draws
TRAIN, VALIDATION, TEST = 32, 8, 32  # trajectories
LENGTH = 40  # steps of each


class Closure(nn.Module):
    """The state plus two convolutions of it, periodic or with zeros around.

    Args:
        channels: of the state.
        space: its axes, 1 or 2.
        hidden: channels between.
        scale: standard deviation of the state, which divides the input.
        correction: that of the correction, which multiplies the output.
        periodic: whether the ends meet.
    """

    def __init__(
        self, channels: int, space: int, hidden: int, scale: float, correction: float, periodic: bool
    ) -> None:
        super().__init__()
        convolution = nn.Conv1d if space == 1 else nn.Conv2d
        mode = "circular" if periodic else "zeros"
        self.scale, self.correction = scale, correction
        self.layers = nn.Sequential(
            convolution(channels, hidden, 5, padding=2, padding_mode=mode),
            nn.Tanh(),
            convolution(hidden, channels, 5, padding=2, padding_mode=mode),
        )

    def forward(self, state: Tensor) -> Tensor:
        """`(rows, channels, *space)` to the same."""
        return state + self.correction * self.layers(state / self.scale)


@dataclass(frozen=True)
class System:
    """A wrong system, the right one, and how to compare them.

    Attributes:
        wrong: the black box.
        right: the reference; a call of it takes as long as one of the box.
        seen: what the box's state is of the reference's.
        unroll: steps in a loss and in the error.
        hidden: channels of the network.
        periodic: whether the ends meet.
        noise: standard deviation added to what the box answers, in standard deviations of the state.
    """

    wrong: StateSystem
    right: StateSystem
    seen: Callable[[Tensor], Tensor]
    unroll: int = 8
    hidden: int = 16
    periodic: bool = True
    noise: float = 0.0


def same(state: Tensor) -> Tensor:
    """The state itself."""
    return state


def coarse(state: Tensor) -> Tensor:
    """Means over 2 x 2 cells: `(..., 2, height, width)` to half as many each way."""
    return functional.avg_pool2d(state.flatten(0, -4), 2).unflatten(0, state.shape[:-3])


def systems() -> dict[str, System]:
    """All of them; the reference's step is what is wrong in the box."""
    ring = {"dt": 0.25, "steps": 4}
    kuramoto = System(
        KuramotoSivashinsky(length=22.5, **ring, failures="keep"), KuramotoSivashinsky(**ring), same
    )
    return {
        "kuramoto-sivashinsky": kuramoto,
        "kuramoto-sivashinsky-noise": replace(kuramoto, noise=1e-4),
        "kuramoto-sivashinsky-long": System(
            KuramotoSivashinsky(dt=2.0, failures="keep"), KuramotoSivashinsky(dt=0.25, steps=8), same
        ),
        "lorenz-96": System(Lorenz96(dt=0.125, failures="keep"), Lorenz96(dt=0.025, steps=5), same, hidden=4),
        "coupled-map": System(
            CoupledMapLattice(coupling=0.25, failures="keep"), CoupledMapLattice(), same, unroll=4
        ),
        "advection-reaction": System(
            AdvectionDiffusionReaction(16, 16, dt=0.25, diffusion=0.05, reaction=1.0, failures="keep"),
            AdvectionDiffusionReaction(32, 32, dt=0.5),
            coarse,
        ),
        "implicit-diffusion": System(
            ImplicitDiffusion(floor=0.3, dt=0.2, failures="keep"),
            ImplicitDiffusion(dt=0.2),
            same,
            periodic=False,
        ),
    }


@dataclass(frozen=True)
class Trajectories:
    """Reference states `(trajectories, LENGTH + 1, *shape)`, to train on, choose and judge by."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def windows(self, seed: int, step: int, rows: int, length: int) -> Tensor:
        """Windows drawn at random, `(rows, length + 1, *shape)`."""
        generator = zo.estimators.Key(seed, step).generator(WINDOWS)
        which = torch.randint(len(self.train), (rows,), generator=generator)
        first = torch.randint(self.train.shape[1] - length, (rows,), generator=generator)
        return self.train[which[:, None], first[:, None] + torch.arange(length + 1)]


def rollout(network: nn.Module, solver: Callable[[Tensor], Tensor], state: Tensor, steps: int) -> Tensor:
    """`(rows, steps, *shape)` after each step of solver, then network."""
    states = []
    for _ in range(steps):
        state = network(solver(state))
        states.append(state)
    return torch.stack(states, dim=1)


def window_loss(scale: float) -> Callable[[Callable[..., Any]], Objective]:
    """Mean square error over a window, in squares of `scale`, summed in float64: `(rows,)`."""

    def with_solver(solver: Callable[..., Any]) -> Objective:
        def objective(network: nn.Module, batch: Tensor) -> Tensor:
            states = rollout(network, solver, batch[:, 0], batch.shape[1] - 1)
            return ((states - batch[:, 1:]) / scale).square().flatten(1).mean(dim=1, dtype=torch.float64)

        return objective

    return with_solver


def correction(system: System, methods: tuple[str, ...], steps: int = 300) -> Problem:
    """The problem of a system: the start is trained on single steps, without the box in the loop."""
    states = _trajectories(system)
    scale = states.train.std().item()
    stepped = system.wrong(states.train[:, :-1])
    missed = (states.train[:, 1:] - stepped).std().item()
    shape = system.wrong.shape
    box = Noisy(system.wrong, system.noise * scale, seed=0) if system.noise else system.wrong
    quiet = system.wrong  # errors are those of the solver without the noise

    def start(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Closure(shape[0], len(shape) - 1, system.hidden, scale, missed, system.periodic)
        before, after = stepped.flatten(0, 1), states.train[:, 1:].flatten(0, 1)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for step in range(400):
            chosen = torch.randint(
                len(before), (64,), generator=zo.estimators.Key(seed, step).generator(PAIRS)
            )
            optimizer.zero_grad()
            (((network(before[chosen]) - after[chosen]) / missed) ** 2).mean().backward()
            optimizer.step()
        return network

    @torch.no_grad()
    def error(network: nn.Module, truth: Tensor) -> float:
        found = rollout(network, quiet, truth[:, 0], 2 * system.unroll)
        missed = (found - truth[:, 1 : 1 + 2 * system.unroll]).square()
        return (missed.mean(dim=(0, *range(2, found.ndim))).sqrt().mean() / scale).item()

    return Problem(
        box=box,
        exact=system.wrong.advance,
        start=start,
        objective=window_loss(scale),
        batch=lambda seed, step: states.windows(seed, step, 4, system.unroll),
        error=lambda network: error(network, states.test),
        validate=lambda network: error(network, states.validation),
        unit="RMS error over the standard deviation of the state",
        steps=steps,
        learning_rate=2e-3,
        periodic=system.periodic,
        methods=methods,
    )


def _trajectories(system: System) -> Trajectories:
    state = system.right.start(TRAIN + VALIDATION + TEST, seed=0)
    states = [system.seen(state)]
    for _ in range(LENGTH):
        state = system.right(state)
        states.append(system.seen(state))
    joined = torch.stack(states, dim=1)
    return Trajectories(*joined.split([TRAIN, VALIDATION, TEST]))
