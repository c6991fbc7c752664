"""The wake flow's correction, with networks of 1,010, 29,666 and 260,354 weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import zo
from benchmarks.tangents.problem import BenchmarkProblem, Unchanged
from simulators.noisy import Noisy
from simulators.wake_flow.box import WakeFlow
from tasks.applications.wake_flow import data
from tasks.applications.wake_flow.config import PRESETS
from tasks.applications.wake_flow.networks import Corrector, plain, residual
from tasks.applications.wake_flow.rollout import rollout_errors, window_loss

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "1,010": lambda: plain((8,)),
    "29,666": lambda: plain((32, 32)),
    "260,354": lambda: residual(32, 5),
}
# more weights, smaller steps, as the demo has it; the start takes most of the largest one's time
LEARNING_RATES = {"1,010": 2e-3, "29,666": 1e-3, "260,354": 5e-4}
START_STEPS = {"1,010": 800, "29,666": 800, "260,354": 200}


def wake(
    weights: str,
    width: int = 16,
    unroll: int = 8,
    noise: float = 0.0,
    steps: int = 150,
    hard: str = "",
) -> BenchmarkProblem:
    """The demo's flows at one resolution; errors are those of the task's table."""
    demo = PRESETS["demo"]
    config = replace(demo, width=width, reference_width=4 * width, unroll=unroll)
    flows = data.load(config, Path("data"))
    solver = WakeFlow(width, dt=config.dt, failures="keep")
    pairs = data.pairs(flows.train, solver(*data.before(flows.train)))
    scales = data.scales(flows.train, pairs)
    before = data.before(flows.train)[0]
    box = Noisy(solver, noise * scales.velocity, seed=0) if noise else solver

    def start(seed: int) -> nn.Module:
        """A network trained as NON is: without the solver in the loop."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            network = Corrector(NETWORKS[weights](), scales)
        objective = window_loss(lambda velocity, reynolds: velocity, scales.velocity)
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, START_STEPS[weights])
        for step in range(START_STEPS[weights]):
            optimizer.zero_grad()
            objective(network, pairs.draw(zo.estimators.Key(seed, step), config.non_batch)).mean().backward()
            optimizer.step()
            schedule.step()
        return network

    def error(network: nn.Module, flows: data.Flows, starts: int) -> float:
        return rollout_errors(network, solver, flows, starts, config.horizon).mean().item()

    def batch(seed: int, step: int) -> Any:
        return flows.train.windows(zo.estimators.Key(seed, step), config.batch, unroll)

    return BenchmarkProblem(
        box=box,
        exact=solver.step,
        start=start,
        objective=lambda solver: window_loss(solver, scales.velocity),
        batch=batch,
        error=lambda network: error(network, flows.test, config.test_starts),
        validate=lambda network: error(network, flows.validation, config.validation_starts),
        unit="MAE of the velocity over 200 steps, in units of the inflow's speed",
        steps=steps,
        learning_rate=LEARNING_RATES[weights],
        hard=hard,
        known=((before, pairs.reynolds), pairs.frames[:, 0]) if len(before) == len(pairs.frames) else None,
        periodic=False,
        alone=Unchanged(),
    )
