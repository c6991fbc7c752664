"""ZO queries per second through the wake, stacked against loop: the second half of `wake_speed`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zo
from benchmarks.protocol import interleaved
from simulators.wake_flow.box import WakeFlow
from tasks.wake_flow.config import PRESETS
from tasks.wake_flow.networks import Corrector, Scales, plain
from tasks.wake_flow.rollout import window_loss
from zo.evaluators.evaluator import Problem, mean_changes
from zo.objective import losses
from zo.perturbation import Perturbations

ROUNDS = 7
DEMO = replace(PRESETS["demo"], coordinates=96)  # batch, unroll and network are its
LOOPED = 4  # queries that loop is given; it takes the same time for each


def queries(developed: Callable[[WakeFlow, int], tuple[Tensor, Tensor]]) -> list[dict[str, Any]]:
    """Queries per second of both evaluators on two grids, with their answers compared.

    Args:
        developed: gives `(rows, 2, height, width)` velocities and Re `(rows,)` to start from.
    """
    torch.set_num_threads(1)
    table = []
    for width in (16, 32):
        box = WakeFlow(width)
        problem = _problem(box, *developed(box, DEMO.batch))
        plan = zo.CGE(DEMO.mu, zo.RandomCoordinates(DEMO.coordinates)).plan(
            problem.parameters, zo.estimators.Key(0)
        )
        few, chunk = plan.chunk(0, LOOPED), _chunk(problem)
        with torch.no_grad():
            base = losses(problem.objective, problem.network, problem.batch, problem.rows)
            looped, _ = mean_changes(base, zo.evaluators.Loop().changes(problem, few, base))
            stacked, _ = mean_changes(base, _stacked(problem, plan, chunk, base))
            seconds = interleaved(
                {
                    "loop": partial(zo.evaluators.Loop().changes, problem, few, base),
                    "stacked": partial(_stacked, problem, plan, chunk, base),
                },
                ROUNDS,
            )
            before = box.ledger.seconds
            _stacked(problem, plan, chunk, base)
            share = (box.ledger.seconds - before) / seconds["stacked"]
        rates = {"loop": LOOPED / seconds["loop"], "stacked": plan.queries / seconds["stacked"]}
        row = {
            "width": width,
            "queries in a chunk": chunk,
            "rows per query": DEMO.batch * DEMO.unroll,
            "loop, queries per second": rates["loop"],
            "stacked, queries per second": rates["stacked"],
            "ratio": rates["stacked"] / rates["loop"],
            "share of the solver in stacked": share,
            "largest difference of their slopes": float((looped - stacked[:LOOPED]).abs().max() / DEMO.mu),
            "largest slope": float(stacked.abs().max() / DEMO.mu),
        }
        table.append(row)
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return table


def _problem(box: WakeFlow, start: Tensor, reynolds: Tensor) -> Problem:
    """The demo's problem, its frames made by the solver itself: speed does not depend on their values."""
    frames = [start]
    for _ in range(DEMO.unroll):
        frames.append(box(frames[-1], reynolds))
    torch.manual_seed(0)
    network = Corrector(plain(DEMO.channels), Scales(velocity=0.3, reynolds=370.0, correction=0.04))
    batch = torch.stack(frames, dim=1), reynolds
    return Problem(network, zo.estimators.Parameters(network), window_loss(box, 0.3), batch, DEMO.batch)


def _chunk(problem: Problem) -> int:
    """Queries that run together, as `LossGradient` chooses by itself."""
    estimator = zo.CGE(DEMO.mu, zo.RandomCoordinates(1))
    gradient = zo.LossGradient(
        problem.network, problem.objective, estimator, evaluator=zo.evaluators.Stacked()
    )
    gradient.backward(problem.batch)
    return min(gradient.chunk or 1, DEMO.coordinates)


def _stacked(problem: Problem, plan: Perturbations, chunk: int, base: Tensor) -> Tensor:
    changes = zo.evaluators.Stacked().begin(problem, base)
    starts = range(0, plan.queries, chunk)
    return torch.cat([changes(plan.chunk(start, min(start + chunk, plan.queries))) for start in starts])
