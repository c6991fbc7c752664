"""Alike columns that are heated and mix, and ask one network how much."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.closed_loop.program import Batch, Program
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted

COLUMNS, LEVELS, LONG = 20, 12, 0.2
HEAT = torch.zeros(COLUMNS, LEVELS, dtype=torch.float64)
HEAT[:, 0], HEAT[:, -1] = torch.sin(torch.arange(COLUMNS) * 2 * torch.pi / COLUMNS), -0.3


def mixed(heights: Tensor, mixing: Tensor) -> Tensor:
    """Columns after a step, `(..., 20, 12)`, by `(..., 20, 11)` between levels."""
    for _ in range(4):
        flux = mixing * (heights[..., 1:] - heights[..., :-1])
        none = 0 * heights[..., :1]
        flux = torch.cat([none, flux, none], -1)
        near = heights.roll(1, -2) + heights.roll(-1, -2) - 2 * heights
        heights = heights + LONG / 4 * (flux[..., 1:] - flux[..., :-1] + 0.05 * near + HEAT.to(heights))
    return heights


class Mixing(nn.Module):
    """How much each pair of levels mixes, of a column."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Linear(LEVELS, 32), nn.SiLU(), nn.Linear(32, LEVELS - 1), nn.Softplus()
        self.layers = nn.Sequential(*layers)

    def forward(self, heights: Tensor) -> Tensor:
        """The network answers `(..., levels)`, each column by itself."""
        return self.layers(heights - heights.mean(-1, keepdim=True))


def columns_program(calls: int = 6, **declared: Any) -> Program:
    """Columns that are heated and mix."""
    generator = np.random.default_rng(0)
    walks = np.cumsum(generator.standard_normal((30, COLUMNS, LEVELS)) * 0.3, -1)
    heights = torch.tensor(generator.standard_normal((30, COLUMNS, 1)) * 0.3 + walks)
    kept = []
    for _ in range(40):
        kept.append(heights)
        steepness = heights[..., 1:] - heights[..., :-1]
        heights = mixed(heights, 0.1 + 1.2 / (1 + torch.exp(4 * steepness)))  # unstable layers mix
    states = torch.stack(kept, 1)
    spread = states.std()

    def program(case: int, host: Any) -> None:
        heights = states[divmod(case, 40)]
        for _ in range(100):
            heights = mixed(heights, torch.from_numpy(np.array(host.exchange("mixing", heights.numpy()))))

    sees, gives = ArraySpec("T", (COLUMNS, LEVELS)), ArraySpec("K", (COLUMNS, LEVELS - 1))
    host = Hosted(program, calls=[Call("mixing", sees=sees, gives=gives, **declared)])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        seen = host.run(batch[0], calls=calls, mixing=network).mixing.T
        return ((seen[:, 1:] - batch[1]) / spread).square().mean((1, 2, 3))

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        heights, total = states[batch[0] // 40, batch[0] % 40].float(), torch.zeros(len(batch[0]))
        for call in range(calls):
            heights = mixed(heights, network(heights))
            total = total + ((heights - batch[1][:, call]) / spread).square().mean((1, 2))
        return total / calls

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        runs = torch.from_numpy(generator.integers(24 * held_out, 30 if held_out else 24, rows))
        times = torch.from_numpy(generator.integers(0, 40 - calls - 1, rows))
        after = states[runs[:, None], times[:, None] + torch.arange(1, calls + 1)]
        return runs * 40 + times, after.float()

    return Program(host, Mixing, objective, twin, batch)
