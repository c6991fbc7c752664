"""Hamiltonian Monte Carlo's trajectories by a fixed force (Duane et al., 1987; Rasmussen, 2003)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Force: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Potential and gradient of rows, the latter finite: `(rows, size)` to `(rows,)` and `(rows, size)`."""

ACCEPTED, TRAVEL, MOST_STEPS = 0.85, 1.5, 20  # by the model alone; a quarter of a turn of a Gaussian
JITTER = 0.2  # of a step's size, either way


class Move(NamedTuple):
    """The settings of trajectories: a step's size, the mean number of steps, a root of the covariance."""

    size: float
    steps: int
    root: Tensor


class Proposal(NamedTuple):
    """Ends of trajectories.

    Attributes:
        q: the ends, `(rows, size)`; the beginning if the trajectory overflowed.
        kinetic: the loss of kinetic energy, `(rows,)`.
        model: the potential by the model, at the end.
        alive: whether no number of the trajectory overflowed.
        begin: the potential by the model, at the beginning.
    """

    q: Tensor
    kinetic: Tensor
    model: Tensor
    alive: Tensor
    begin: Tensor


def leapfrog(force: Force, q: Tensor, p: Tensor, steps: int, size: float, root: Tensor) -> tuple[Tensor, ...]:
    """Trajectories that go back to where they began if momenta are turned round.

    Returns:
        q, p, the potential there, whether nothing overflowed, and the potential where it began.
    """
    begin, alive = q, torch.ones(len(q), dtype=torch.bool)
    first, gradient = force(q)
    potential = first
    for _ in range(steps):
        p = p - size / 2 * gradient @ root
        q = q + size * p @ root.T
        alive = alive & q.isfinite().all(1)
        q = torch.where(alive[:, None], q, begin)
        potential, gradient = force(q)
        p = torch.where(alive[:, None], p - size / 2 * gradient @ root, 0)
    return q, p, potential, alive, first


def propose(force: Force, q: Tensor, move: Move, generator: torch.Generator) -> Proposal:
    """A trajectory of each row, with new momenta; its number of steps and their size are drawn for all."""
    p = torch.randn(q.shape, dtype=q.dtype, generator=generator)
    steps = int(torch.randint(1, 2 * move.steps, (1,), generator=generator))
    size = move.size * (1 - JITTER + 2 * JITTER * float(torch.rand(1, generator=generator)))
    end, momentum, model, alive, begin = leapfrog(force, q, p, steps, size, move.root)
    return Proposal(end, (p.square().sum(1) - momentum.square().sum(1)) / 2, model, alive, begin)


def accepted(gain: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Say which rows are accepted, and return the probability, by the decrease of the total energy."""
    uniform = torch.rand(len(gain), dtype=gain.dtype, generator=generator)
    gain = torch.nan_to_num(gain, nan=-torch.inf)
    return uniform.log() < gain, gain.clamp(max=0).exp()


def walk(
    force: Force, q: Tensor, move: Move, count: int, generator: torch.Generator
) -> tuple[Tensor, float, list[Tensor]]:
    """Chains of the model alone: where they are, how often they accept, and all their states."""
    potential, rate, states = force(q)[0], 0.0, []
    for _ in range(count):
        end = propose(force, q, move, generator)
        gain = torch.where(end.alive, potential + end.kinetic - end.model, -torch.inf)
        yes, probability = accepted(gain, generator)
        q, potential = torch.where(yes[:, None], end.q, q), torch.where(yes, end.model, potential)
        rate += float(probability.mean()) / count
        states.append(q)
    return q, rate, states


def tuned(force: Force, q: Tensor, move: Move, generator: torch.Generator) -> Move:
    """A step's size that the model accepts at 85 %, and steps for a quarter of a turn of a Gaussian."""
    for _ in range(10):
        _, rate, _ = walk(force, q, move, 4, generator)
        size = min(1.2, move.size * float(torch.tensor(1.5 * (rate - ACCEPTED)).exp()))
        move = move._replace(size=size, steps=max(1, min(MOST_STEPS, round(TRAVEL / size))))
    return move
