"""`TangentCounts`: what a `TangentGradient` has spent and seen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TangentCounts:
    """What a `TangentGradient` has spent and seen.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: probes, each one perturbed objective.
        rows: rows asked of the boxes, those of the base included.
        dropped: rows of probes, in a call, whose pairs were left out because they failed.
    """

    steps: int = 0
    queries: int = 0
    rows: int = 0
    dropped: int = 0
