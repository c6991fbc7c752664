"""`QueryCounts`: what the gradients of a run have cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class QueryCounts:
    """What a `LossGradient` has spent: base evaluations and queries, of which some were dropped.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: perturbed objectives, those of the first-use check included.
        dropped: queries left out because rows failed.
    """

    steps: int = 0
    queries: int = 0
    dropped: int = 0
