"""`TangentCounts`: what a `TangentGradient` has spent and seen."""

from __future__ import annotations

from dataclasses import dataclass

from zo.tangents.step.evaluation import Evaluation


@dataclass
class TangentCounts:
    """What a `TangentGradient` has spent and seen.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: perturbed objectives: probes, and the checks along the gradient.
        rows: rows asked of the boxes, those of base and checks included.
        dropped: rows of probes, in a call, whose pairs were left out because they failed.
        checks: queries along the gradient (see `TrustPolicy.check_every`).
        failed_checks: of those, how many showed nothing, since too many rows failed, or
            the boxes are noisy or constant in pieces.
        lost: rows of the batch that were left out because their loss was not finite.
        replays: calls of `replay`, which run no box.
        imagined: calls of `imagine` that added a gradient; they run no box either.
        clipped: gradients, of both, that were shortened.
    """

    steps: int = 0
    queries: int = 0
    rows: int = 0
    dropped: int = 0
    checks: int = 0
    failed_checks: int = 0
    lost: int = 0
    replays: int = 0
    clipped: int = 0
    imagined: int = 0

    def add(self, evaluation: Evaluation) -> int:
        """Count a step that has been evaluated and checked; the rows that boxes were asked for."""
        check, rows = evaluation.check, evaluation.rows + evaluation.check.rows
        self.steps += 1
        self.queries += evaluation.probes + check.queries
        self.rows += rows
        self.dropped += evaluation.dropped
        self.checks += check.queries > 0
        self.failed_checks += check.queries > 0 and check.agreement is None
        self.lost += evaluation.lost
        return rows
