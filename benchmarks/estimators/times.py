"""What a query of CGE and of RGE costs to compute, by evaluator: steps in turn, so that ratios hold."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

import zo
from benchmarks.estimators.methods import MU, Fill, loss_gradient, row_methods
from benchmarks.estimators.others import other_methods
from benchmarks.estimators.problems import Setting, size
from benchmarks.estimators.quality import estimated
from benchmarks.protocol import interleaved

QUERIES = 128
BASELINE = "CGE, stacked"
SAME_ANSWER = 1e-2  # largest difference between evaluators, relative to the largest entry


def times(setting: Setting, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a whole step (draws, base, queries, reduction) over its queries, and the ratio to CGE's.

    Raises:
        AssertionError: the evaluators disagree: a fast wrong answer has no time.
    """
    network, batch = setting.make(0), setting.batch(0)
    fills = _contenders(setting, network)
    disagreement = {
        kind: _disagreement(network, fills[f"{kind}, loop"], fills[f"{kind}, stacked"], batch)
        for kind in ("CGE", "RGE, gaussian")
    }
    assert max(disagreement.values()) < SAME_ANSWER, disagreement
    seconds = interleaved({name: partial(fill, batch) for name, fill in fills.items()}, rounds)
    return [
        {
            "problem": setting.name,
            "weights": size(network),
            "step": name,
            "milliseconds per query": 1e3 * taken / QUERIES,
            "ratio to CGE, stacked": taken / seconds[BASELINE],
            "loop and stacked differ by": disagreement.get(name.rsplit(", ", 1)[0]),
        }
        for name, taken in seconds.items()
    ]


def _contenders(setting: Setting, network: nn.Module) -> dict[str, Fill]:
    coordinates = zo.CGE(MU, zo.RandomCoordinates(QUERIES))
    directions = zo.RGE(MU, QUERIES)
    signs = zo.RGE(MU, QUERIES, "rademacher")
    pairs = zo.RGE(MU, QUERIES // 2, central=True)
    fills: dict[str, Fill] = {
        "CGE, loop": loss_gradient(setting, network, coordinates, fast=False).backward,
        "RGE, gaussian, loop": loss_gradient(setting, network, directions, fast=False).backward,
        BASELINE: loss_gradient(setting, network, coordinates).backward,
        "RGE, gaussian, stacked": loss_gradient(setting, network, directions).backward,
        "RGE, rademacher, stacked": loss_gradient(setting, network, signs).backward,
        "RGE, gaussian, antithetic, stacked": loss_gradient(setting, network, pairs).backward,
    }
    for method in row_methods()[:1] + other_methods():
        fill = method.start(setting, network, QUERIES, 0)
        if fill is not None:
            fills[method.name] = fill
    return fills


def _disagreement(network: nn.Module, one: Fill, other: Fill, batch: Any) -> float:  # noqa: ANN401
    first, second = estimated(network, one, batch), estimated(network, other, batch)
    return float((first - second).abs().max() / first.abs().max())
