"""How near to the true gradient estimates come, for the same number of queries."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.estimators.methods import Fill, Method, autograd
from benchmarks.estimators.problems import Setting, size

WARM_STEPS, WARM_RATE = 100, 1e-2  # of Adam, for the network that is compared half trained


def quality(
    setting: Setting, methods: Sequence[Method], budgets: Iterable[int], seeds: int, steps: int = 0
) -> list[dict[str, Any]]:
    """Cosine, norm and scale of every method at every budget; over seeds, with network, batch and draws anew.

    The scale is <estimate, truth> / <truth, truth>: 1 for an unbiased estimate of the gradient itself,
    the part of the squared gradient inside the set for a CGE that takes a set.

    Args:
        setting: the problem.
        methods: those that cannot have a budget are left out there.
        budgets: queries for one estimate.
        seeds: how many.
        steps: first-order steps that the network has trained for.
    """
    rows = []
    for queries in budgets:
        found: dict[str, list[tuple[float, float, float]]] = {}
        box_rows = {}
        for seed in range(seeds):
            network = setting.make(seed)
            _train(setting, network, seed, steps)
            batch = setting.batch(seed, steps)
            truth = setting.truth(network, batch)
            for method in methods:
                fill = method.start(setting, network, queries, seed)
                if fill is None:
                    continue
                before = setting.box_rows()
                estimate = estimated(network, fill, batch)
                box_rows[method.name] = setting.box_rows() - before
                found.setdefault(method.name, []).append(_figures(estimate, truth))
        for name, figures in found.items():
            cosines, norms, scales = zip(*figures, strict=True)
            rows.append(
                {
                    "problem": setting.name,
                    "weights": size(setting.network()),
                    "trained steps": steps,
                    "method": name,
                    "queries": queries,
                    "rows of the box": box_rows[name] if setting.box is not None else None,
                    "cosine": statistics.mean(cosines),
                    "cosine, deviation": spread(cosines),
                    "norm over the truth's": statistics.mean(norms),
                    "scale": statistics.mean(scales),
                    "scale, standard error": spread(scales) / math.sqrt(len(scales)),
                    "seeds": seeds,
                }
            )
    return rows


def expected_cosine(directions: int, weights: int) -> float:
    """Of a Gaussian RGE with its expected squared error, (d + 1) / q of the squared gradient's."""
    return math.sqrt(directions / (directions + weights + 1))


def estimated(network: nn.Module, fill: Fill, batch: Any) -> Tensor:  # noqa: ANN401
    """One estimate, flat, in float64."""
    network.zero_grad()
    fill(batch)
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).double()


def spread(values: Sequence[float]) -> float:
    """Standard deviation; NaN of a single value."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _figures(estimate: Tensor, truth: Tensor) -> tuple[float, float, float]:
    product, square = float(estimate @ truth), float(truth @ truth)
    norm = float(estimate.norm()) / math.sqrt(square)
    return product / (norm * square) if norm else 0.0, norm, product / square


def _train(setting: Setting, network: nn.Module, seed: int, steps: int) -> None:
    fill = autograd().start(setting, network, 0, seed)
    assert fill is not None
    optimizer = torch.optim.Adam(network.parameters(), WARM_RATE)
    for step in range(steps):
        optimizer.zero_grad()
        fill(setting.batch(seed, step))
        optimizer.step()
