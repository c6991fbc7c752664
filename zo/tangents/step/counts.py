"""`TangentCounts`: the counts of a `TangentGradient`."""

from __future__ import annotations

from dataclasses import dataclass

from zo.tangents.step.evaluations import Evaluation


@dataclass
class TangentCounts:
    """The counts of a `TangentGradient`.

    Attributes:
        steps: calls of `backward`, each with one base evaluation.
        queries: perturbed objectives, those of the checks along the gradient.
        rows: rows that the boxes were asked for and answered, in base, checks and `prefit`; also in steps
            that were refused then.
        checks: steps that were checked (see `Limits.check_every`).
        failed_checks: checks that showed nothing: too many rows failed, or noise, rounding, or a box that is
            constant in pieces hid what they asked for.
        lost: rows of the batch that were left out because their loss was not finite.
        replays: calls of `replay`, which run no box; of a `Population` those of all its members.
        clipped: gradients, of both, that were shortened.
        outliers: rows of calls that nothing was learned from, see `zo.tangents.evidence.outliers`.
    """

    steps: int = 0
    queries: int = 0
    rows: int = 0
    checks: int = 0
    failed_checks: int = 0
    lost: int = 0
    replays: int = 0
    clipped: int = 0
    outliers: int = 0

    def add(self, evaluation: Evaluation) -> int:
        """Count a step that was taken, but for the rows of its base, which are counted before.

        Returns:
            All rows of the step.
        """
        check = evaluation.check
        self.steps += 1
        self.queries += check.queries
        self.rows += check.rows
        self.checks += check.queries > 0
        self.failed_checks += check.queries > 0 and not check.shows
        self.lost += evaluation.lost
        self.outliers += 0 if evaluation.outlying is None else evaluation.outlying.few
        return evaluation.rows + check.rows
