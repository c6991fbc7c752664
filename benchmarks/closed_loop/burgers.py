"""Burgers' equation by a Runge-Kutta scheme that asks its closure in both stages."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.closed_loop.program import Batch, Program
from blackbox import ArraySpec, Grid
from blackbox.adapters import Call, Hosted

CELLS, VISCOSITY, STEP, FINER, STEPS, KEPT = 48, 0.02, 0.02, 4, 6, 100


def rate(u: Tensor, closure: Tensor) -> Tensor:
    """The change of periodic cells, `(..., cells)`, under a steady force."""
    cells = u.shape[-1]
    width = 2 * torch.pi / cells
    force = 0.3 * torch.sin(torch.arange(cells, dtype=u.dtype) * width)
    flux = (u.roll(-1, -1) ** 2 - u.roll(1, -1) ** 2) / (4 * width)
    return VISCOSITY * (u.roll(-1, -1) - 2 * u + u.roll(1, -1)) / width**2 - flux + force + closure


@cache
def fine() -> Tensor:
    """Cell means of 40 runs on a finer grid with a smaller step, `(40, KEPT, cells)`."""
    generator, cells, many = np.random.default_rng(0), FINER * CELLS, FINER**2
    x, waves = np.arange(cells) * 2 * np.pi / cells, np.zeros((40, cells))
    for wave in (1, 2, 3):
        size, phase = 0.6 * generator.standard_normal((40, 1)), generator.uniform(0, 2 * np.pi, (40, 1))
        waves += size * np.sin(wave * x + phase)
    u, none, means = torch.from_numpy(waves), torch.zeros(1), []
    for number in range(many * (KEPT + 10)):
        if number % many == 0 and number >= 10 * many:
            means.append(u.view(40, CELLS, FINER).mean(-1))
        half = u + STEP / many / 2 * rate(u, none)
        u = u + STEP / many * rate(half, none)
    return torch.stack(means, 1)


class Closure(nn.Module):
    """A small periodic convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((1, 16, 16), (16, 16, 1), strict=True)
        one, two, last = (nn.Conv1d(a, b, 5, padding=2, padding_mode="circular") for a, b in sizes)
        self.layers = nn.Sequential(one, nn.SiLU(), two, nn.SiLU(), last)

    def forward(self, u: Tensor) -> Tensor:
        """The network answers `(rows, cells)`."""
        return 2 * self.layers(u[:, None])[:, 0]


def burgers_program(**declared: Any) -> Program:
    """The coarse grid, whose scheme has two stages."""
    states = fine()
    spread = states.std()

    def program(case: int, host: Any) -> None:
        u = states[divmod(case, KEPT)]

        def ask(u: Tensor) -> Tensor:
            return torch.from_numpy(np.array(host.exchange("subgrid", u.numpy())))

        for _ in range(100):
            half = u + STEP / 2 * rate(u, ask(u))
            u = u + STEP * rate(half, ask(half))

    field = Grid(periodic=True)
    sees, gives = ArraySpec("u", (CELLS,), layout=field), ArraySpec("c", (CELLS,), layout=field)
    host = Hosted(program, calls=[Call("subgrid", sees=sees, gives=gives, stages=2, **declared)])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen = host.run(batch[0], calls=2 * STEPS, subgrid=network).subgrid.u[:, 2::2]
        return ((seen - batch[1]) / spread).square().mean((1, 2))

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        u, total = states[batch[0] // KEPT, batch[0] % KEPT].float(), torch.zeros(len(batch[0]))
        for step in range(STEPS):
            half = u + STEP / 2 * rate(u, network(u))
            u = u + STEP * rate(half, network(half))
            total = total + ((u - batch[1][:, step]) / spread).square().mean(1)
        return total / STEPS

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        runs = torch.from_numpy(generator.integers(32 * held_out, 40 if held_out else 32, rows))
        times = torch.from_numpy(generator.integers(0, KEPT - STEPS - 1, rows))
        after = states[runs[:, None], times[:, None] + torch.arange(1, STEPS + 1)]
        return runs * KEPT + times, after.float()

    return Program(host, Closure, objective, twin, batch)
