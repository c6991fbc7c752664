"""ZO queries per second through the wake, stacked against loop: the second half of `wake_speed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import zo
from benchmarks.protocol import interleaved
from simulators.wake_flow.box import WakeFlow
from tasks.wake_flow.config import PRESETS
from tasks.wake_flow.networks import Corrector, Scales
from tasks.wake_flow.rollout import window_loss
from zo.evaluators.evaluator import Problem, differences
from zo.objective import losses

ROUNDS = 7
DEMO = PRESETS["demo"]  # batch, unroll, coordinates and network are its
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
        plan = zo.CoordinateWise(DEMO.mu, zo.RandomCoordinates(DEMO.coordinates)).plan(
            problem.parameters, zo.Key(0)
        )
        few, all_ = plan.chunk(0, LOOPED), plan.chunk(0, plan.queries)
        with torch.no_grad():
            base = losses(problem.objective, problem.network, problem.batch, problem.rows)
            looped, _ = differences(base, zo.Loop().losses(problem, few))
            stacked, _ = differences(base, zo.Stacked().losses(problem, all_))
            seconds = interleaved(
                {
                    "loop": partial(zo.Loop().losses, problem, few),
                    "stacked": partial(zo.Stacked().losses, problem, all_),
                },
                ROUNDS,
            )
            share = _solver_share(box, problem, all_, seconds["stacked"])
        rates = {"loop": LOOPED / seconds["loop"], "stacked": len(all_) / seconds["stacked"]}
        row = {
            "width": width,
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
    """The demo's problem, its frames made by the solver itself: speed does not hang on their values."""
    frames = [start]
    for _ in range(DEMO.unroll):
        frames.append(box(frames[-1], reynolds))
    torch.manual_seed(0)
    network = Corrector(DEMO.channels, Scales(velocity=0.3, reynolds=370.0, correction=0.04))
    batch = torch.stack(frames, dim=1), reynolds
    return Problem(network, zo.Parameters(network), window_loss(box, 0.3), batch, DEMO.batch)


def _solver_share(box: WakeFlow, problem: Problem, perturbation: Any, seconds: float) -> float:  # noqa: ANN401
    before = box.ledger.seconds
    zo.Stacked().losses(problem, perturbation)
    return (box.ledger.seconds - before) / seconds
