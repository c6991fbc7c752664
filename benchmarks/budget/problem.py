"""`Benchmarked`: a benchmark's problem as a user would declare it, for the command's own plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import tasks
from benchmarks.rows.training import drawn
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.problems import problems
from blackbox import BlackBoxFunction

HELD_OUT = 64  # rows of test data that there are; a budget takes the first of them


class Benchmarked(tasks.Problem):
    """A benchmark's problem, trained as a problem of a user's own."""

    @dataclass(frozen=True)
    class Config(tasks.Config):
        """Settings of a run, and which problem."""

        problem: str = "double-pendulum"
        "Its name in the benchmarks."

    def box(self) -> BlackBoxFunction:
        """The problem's."""
        return made(self.config.problem).box

    def network(self) -> nn.Module:
        """The start that the other ways have with this seed."""
        return made(self.config.problem).start(torch.initial_seed())

    def data(self) -> tasks.Data:
        """Its batches, and none to choose weights by: windows before a step on them are held out."""
        problem = made(self.config.problem)

        def draw(seed: int, step: int, rows: int) -> Any:
            return drawn(problem, seed, step + 1, rows)

        return tasks.Data.drawn(draw, batch=self.config.batch, test=HELD_OUT)

    def objective(self, network: nn.Module, batch: Any) -> Tensor:
        """Its loss of each row."""
        return made(self.config.problem).objective(self.box)(network, batch)


@lru_cache(maxsize=1)
def made(name: str) -> BenchmarkProblem:
    """The problem of that name, with one box for what trains and what judges."""
    return MAKE[name]()


MAKE: Mapping[str, Any] = problems("small")
