"""Lorenz's system of 1996, which passes its closure through a lag or a delay of its own."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.closed_loop.program import Batch, Program
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted


class Scaled(nn.Module):
    """A perceptron whose inputs are divided by a number, and its outputs multiplied."""

    def __init__(self, size: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, size))
        self.scale = scale

    def forward(self, x: Tensor, *_: Tensor) -> Tensor:
        """The network answers `(rows, size)`, and does not look at what is sent beside."""
        return self.scale * self.layers(x / self.scale)


CELLS, CALLS, DT, SPACING = 8, 16, 0.01, 300


def lorenz(x: Tensor, forcing: Tensor) -> Tensor:
    """A step of the cells."""

    def rate(x: Tensor) -> Tensor:
        return -x.roll(1, -1) * (x.roll(2, -1) - x.roll(-1, -1)) - x + 20.0 + forcing

    a = rate(x)
    b = rate(x + DT / 2 * a)
    c = rate(x + DT / 2 * b)
    return x + DT / 6 * (a + 2 * b + 2 * c + rate(x + DT * c))


def closure_law(x: Tensor) -> Tensor:
    """The law is what the network is to find."""
    return -0.2 - 1.2 * x + 0.03 * x * x.abs()


def kept_after(kept: Tensor, action: Tensor, lag: int, delay: int, direct: float) -> tuple[Tensor, Tensor]:
    """The action that acts, and what the program keeps: a lag, or its last actions `(..., delay, cells)`."""
    if delay:
        return kept[..., 0, :], torch.cat([kept[..., 1:, :], action[..., None, :]], -2)
    kept = kept + (action - kept) / lag
    return direct * action + (1 - direct) * kept, kept


@cache
def lorenz_truth(lag: int, delay: int, direct: float) -> tuple[Tensor, Tensor]:
    """States and what is kept, of 40 runs by 300 steps under the law."""
    generator = torch.Generator().manual_seed(0)
    x = 4 + 4 * torch.randn(40, CELLS, generator=generator, dtype=torch.float64)
    kept = closure_law(x)
    kept = kept[:, None].expand(-1, delay, -1) if delay else kept
    states, memories = [], []
    for step in range(400 + SPACING):
        if step >= 400:
            states.append(x)
            memories.append(kept)
        acting, kept = kept_after(kept, closure_law(x), lag, delay, direct)
        x = lorenz(x, acting)
    return torch.stack(states, 1), torch.stack(memories, 1)


def lorenz_program(
    lag: int = 10, delay: int = 0, direct: float = 0.0, sent: bool = False, **declared: Any
) -> Program:
    """Lorenz's system, whose closure goes through a lag or a delay; a share of it acts at once."""
    states, memories = lorenz_truth(lag, delay, direct)
    spread = states.std()

    def program(case: int, host: Any) -> None:
        x, kept = states[divmod(case, SPACING)], memories[divmod(case, SPACING)]
        for _ in range(400):
            shown = {"x": x.numpy()} | ({"m": kept.numpy()} if sent else {})
            action = torch.from_numpy(np.array(host.call("closure", **shown)["a"]))
            acting, kept = kept_after(kept, action, lag, delay, direct)
            x = lorenz(x, acting)

    sees = [ArraySpec("x", (CELLS,)), *([ArraySpec("m", (CELLS,))] if sent else [])]
    call = Call("closure", sees=sees, gives=ArraySpec("a", (CELLS,)), **declared)
    host = Hosted(program, calls=[call])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen = host.run(batch[0], calls=CALLS, closure=network).closure.x
        return ((seen[:, 1:] - batch[1]) / spread).square().mean((1, 2))

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        where = batch[0] // SPACING, batch[0] % SPACING
        x, kept, total = states[where].float(), memories[where].float(), torch.zeros(len(batch[0]))
        for call in range(CALLS):
            acting, kept = kept_after(kept, network(x), lag, delay, direct)
            x = lorenz(x, acting)
            total = total + ((x - batch[1][:, call]) / spread).square().mean(1)
        return total / CALLS

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        runs = torch.from_numpy(generator.integers(32 * held_out, 40 if held_out else 32, rows))
        times = torch.from_numpy(generator.integers(0, SPACING - CALLS - 1, rows))
        after = states[runs[:, None], times[:, None] + torch.arange(1, CALLS + 1)]
        return runs * SPACING + times, after.float()

    return Program(host, lambda: Scaled(CELLS, 64, 10.0), objective, twin, batch)
