"""`Thresholds`: the figures by which trust in tangents is lost and regained; decision 193."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """The figures at which trust in tangents is lost and regained.

    Trust is lost when the mean relative error of the predictions is above `lost` and stops falling, or when a
    check measures a change of the loss along the gradient of less than `agreement` times the predicted one.
    It is also lost when the changes of the rows' own losses are unlike the predicted ones
    (`agreement_of_rows`); with fewer than four rows instead when the change is far larger, or when the error
    of the tangents' prediction of the boxes' responses in the check exceeds `missed`. When the mean is below
    `regained` and the last check was good, trust is regained.

    The error is judged every `average` steps. It counts as falling while it is a tenth lower than the last
    time, which gives a tangent time to learn. The first step does not count, as nothing had been learned.

    Attributes:
        lost: the relative error of predicted values above which trust is lost.
        regained: the relative error of predicted values below which it is regained.
        agreement: the least measured change of the loss, as a share of the predicted one: 1 is right, 0 or
            less means that a step against the gradient would not lower the loss. Where `agreement_of_rows` is
            not known, the share must not exceed 2 - agreement either.
        agreement_of_rows: with at least four rows in the batch, the least cosine of the measured changes of
            the rows' own losses along the gradient and the predicted ones.
        missed: with fewer rows, the relative error of J d in a check above which trust is lost.
        average: steps over which the mean forgets, exponentially, and between two verdicts.
    """

    lost: float = 1.0
    regained: float = 0.8
    agreement: float = 0.5
    agreement_of_rows: float = 0.95
    missed: float = 0.5
    average: int = 10
