"""The training loss after the same number of queries, each method at the learning rate that suits it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.estimators.methods import Method
from benchmarks.estimators.problems import Setting, size
from benchmarks.estimators.quality import spread

TUNING_SEED = 100  # apart from the seeds that are reported
EACH = 64  # queries a step, where nothing else is said
POINTS = 10  # of a curve


class Run(NamedTuple):
    """A method, and how many queries it takes a step; None for as many as there are weights."""

    method: Method
    queries: int | None = EACH


def training(
    setting: Setting, runs: Sequence[Run], budget: int, rates: Sequence[float], seeds: int
) -> list[dict[str, Any]]:
    """Adam on estimates until the budget is spent: losses over all data, by queries.

    The learning rate is the one with the lowest last loss on a seed of its own; what that costs is not
    in the budget. First order takes as many steps as a run with `EACH` queries a step.

    Args:
        setting: the problem.
        runs: what is compared.
        budget: perturbed objectives; the base evaluation of each step is not among them.
        rates: learning rates to choose from.
        seeds: how many are reported.
    """
    table = []
    for method, queries in runs:
        each = size(setting.network()) if queries is None else queries
        steps = budget // each
        tuned = {rate: _curve(setting, method, each, steps, rate, TUNING_SEED)[-1] for rate in rates}
        rate = min(rates, key=lambda tried: _orderable(tuned[tried]))
        before = setting.box_rows()
        curves = [_curve(setting, method, each, steps, rate, seed) for seed in range(seeds)]
        box_rows = None if setting.box is None else (setting.box_rows() - before) // seeds
        last = [curve[-1] for curve in curves]
        table.append(
            {
                "problem": setting.name,
                "method": method.name,
                "queries a step": 0 if method.kind == "autograd" else each,
                "steps": steps,
                "rows of the box": box_rows,
                "learning rate": rate,
                "loss": statistics.mean(last),
                "loss, deviation": spread(last),
                "losses": last,
                "curve, steps": _points(steps),
                "curve, mean loss": [statistics.mean(values) for values in zip(*curves, strict=True)],
            }
        )
    return table


def _curve(setting: Setting, method: Method, queries: int, steps: int, rate: float, seed: int) -> list[float]:
    network = setting.make(seed)
    fill = method.start(setting, network, queries, seed)
    assert fill is not None, f"{method.name} with {queries} queries on {setting.name}"
    optimizer = torch.optim.Adam(network.parameters(), rate)
    points = set(_points(steps))
    losses = [setting.training_loss(network)]
    for step in range(steps):
        optimizer.zero_grad()
        fill(setting.batch(seed, step))
        optimizer.step()
        if step + 1 in points:
            losses.append(setting.training_loss(network))
    return losses


def _points(steps: int) -> list[int]:
    return sorted({round(i * steps / POINTS) for i in range(POINTS + 1)})


def _orderable(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
