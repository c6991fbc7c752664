"""`Evidence`: what a step has shown of the tangents, in numbers and without a decision."""

from __future__ import annotations

from dataclasses import dataclass

# decision 43:
FLAT = 0.5  # of the rows whose input changed, that gave the same answer: then the box is constant in pieces
MISSING = 1.0  # of the gradient's length, along it, that is missing: it is said from there on; decision 109


@dataclass(frozen=True)
class Check:
    """What a query along the gradient has shown; all None where there was no check.

    Attributes:
        agreement: the change of the loss over what the gradient predicts, 1 for the true gradient; None if
            it is not known: the gradient is zero, the boxes are noisy, or too many rows failed.
        agreement_of_rows: the cosine of the changes of the rows' own losses and what the tangents predict of
            each, 1 for the true gradient; None where there are fewer than four rows, `missed` is not known,
            or a call's rows are not rows of the batch.
        missed: the relative error of the tangents' J d as a prediction of the boxes' responses; None where
            nothing changed, or the boxes are noisy.
        rows: how many rows the boxes were asked for.
        queries: how many queries were made.
        noise: the standard deviation of the change of the mean loss when nothing is changed; None where that
            is not known yet.
        failed: the share of rows that failed here and not in the base, where it was too large to judge by, or
            they had most of the gradient.
        flat: of the rows of calls whose input was changed, the share that gave the base's very answer; None
            where nothing was changed, or that is not known.
        digits: significant digits of the boxes' answers, where these are so few that the query shows nothing.
        narrow: the dtype of numbers of 16 bits between weights and loss, for which the query shows nothing.
        unlike: the noise as a share of the loss, in the check that has measured it.
        balance: the agreement with the boxes' own responses in the place of the tangents': 1 where autograd
            saw all that the loss depends on, but for curvature; None where that is not known.
        cut: how many times its length the gradient lacks, along itself; None for nothing that shows.
    """

    agreement: float | None = None
    missed: float | None = None
    agreement_of_rows: float | None = None
    rows: int = 0
    queries: int = 0
    noise: float | None = None
    failed: float | None = None
    flat: float | None = None
    digits: int | None = None
    narrow: str | None = None
    unlike: float | None = None
    balance: float | None = None
    cut: float | None = None


UNCHECKED = Check()


@dataclass(frozen=True)
class Evidence:
    """What a step has shown.

    Attributes:
        step: the number of the step.
        error: the relative error of the tangents' predictions; None if there was nothing to predict.
        check: the check of the step; its `flat` may be that of the probes.
    """

    step: int
    error: float | None = None
    check: Check = UNCHECKED


def is_flat(share: float | None) -> bool:
    """Whether so many of the rows that were moved gave the same answer that the box is constant in pieces."""
    return share is not None and share > FLAT


def is_uneven(balance: float | None) -> bool:
    """Whether a balance is so far from 1 that something may be missing."""
    return balance is not None and not abs(balance - 1.0) <= MISSING
