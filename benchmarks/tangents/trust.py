"""How often the check along a gradient tells one that misleads: hits and false alarms over all runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from benchmarks.tangents.problem import Problem
from simulators.noisy import Noisy
from zo.evaluators.state import moved

FORETOLD = 1e-3  # of the loss: the change along the gradient that a check is made for
WRONG = 0.8  # of the cosine to the true gradient: below it a gradient misleads
WORSE = 1.1  # of the error over first order's: above it a training was misled
RULES = {
    "agreement outside .7 to 1.3": (0.7, 1.3),
    "agreement below .5": (0.5, math.inf),
    "agreement below 0": (0.0, math.inf),
}


@torch.no_grad()
def agreement(problem: Problem, network: nn.Module, batch: Any) -> float | None:  # noqa: ANN401
    """The change of the loss along `.grad`, over what that foretells; nothing is changed.

    None where it cannot be told: the gradient is zero, no row came back, or the box has noise of its own.
    """
    if isinstance(problem.box, Noisy):
        return None
    objective, weights = problem.objective(problem.box), list(network.parameters())
    grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    base = objective(network, batch)
    slope = float(parameters_to_vector(grads).double().norm())
    foretold = FORETOLD * float(base[base.isfinite()].double().abs().mean())
    if not slope or not foretold > 0:
        return None
    with moved(weights, [foretold / slope**2 * grad for grad in grads]):
        change = (objective(network, batch) - base).double()
    change = change[change.isfinite()]
    return float(change.mean()) / foretold if len(change) else None


def counted(measured: Mapping[str, Any], low: float, high: float) -> tuple[str, str]:
    """What a rule finds at all checks of all runs with a tangent, of boxes without noise.

    A training is called wrong where at least half of its checks are outside the bounds.

    Args:
        measured: problem -> what its JSON file holds.
        low: bound of the agreement.
        high: the other.

    Returns:
        Hits and false alarms in words, of gradients by the cosine, and of trainings by their end.
    """
    gradients, trainings = [], []
    for curves, seed, curve in _runs(measured):
        told = [
            (check["cosine"], not low <= check["agreement"] <= high)
            for check in curve["checks"]
            if check.get("agreement") is not None and "agreement, same noise" not in check  # of older files
        ]
        gradients += [(c < WRONG, alarm) for c, alarm in told if c is not None and math.isfinite(c)]
        first = curves.get("first-order", {}).get(seed)
        if told and first is not None:
            end, best = curve["errors"][-1], first["errors"][-1]
            worse = end is None or bool(curve["ended"]) or end > WORSE * best
            trainings.append((worse, 2 * sum(alarm for _, alarm in told) >= len(told)))
    return _words(gradients), _words(trainings)


def _words(verdicts: Sequence[tuple[bool, bool]]) -> str:
    """Of those that are wrong how many are found, and of those that are right how many are, too."""
    wrong, right = ([alarm for fault, alarm in verdicts if fault is kind] for kind in (True, False))
    return f"{sum(wrong)} of {len(wrong)}, {sum(right)} of {len(right)}"


def table(measured: Mapping[str, Any]) -> str:
    """Markdown: each rule's hits and false alarms."""
    lines = [
        "Checks at eight points of each training with a tangent, where the box has no noise. Agreement: the "
        "change of the loss along the gradient, over what the gradient says. A gradient is wrong where its "
        f"cosine to the true one is below {WRONG:g}, a training where its error is more than {WORSE:g} times "
        "first order's; a training is called wrong where half of its checks find fault. First the wrong ones "
        "that are found, then false alarms among those that are right.",
        "",
        "| fault is found where | gradients | trainings |",
        "| --- | --- | --- |",
    ]
    rows = (f"| {name} | {' | '.join(counted(measured, *bounds))} |" for name, bounds in RULES.items())
    return "\n".join([*lines, *rows]) + "\n"


def _runs(measured: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """The problem's curves, the seed and the curve of each training with a tangent."""
    for found in measured.values():
        for seeds in found["curves"].values():
            for seed, curve in seeds.items():
                if curve["checks"]:
                    yield found["curves"], seed, curve
