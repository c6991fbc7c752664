"""`Evidence`: the measurements of a step about the tangents, in numbers and without a decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# decision 43:
FLAT = 0.5  # of the rows whose input changed, that gave the same answer: then the box is constant in pieces
TOO_SHORT = 2  # checks that find a gradient far too short: then it is said; decision 166
MISSING = 1.0  # of the gradient's length, along it, that is missing: it is said from there on; decision 109


@dataclass(frozen=True)
class FailedRows:
    """Why a check shows nothing: too many of its rows failed, or the rows with most of the gradient.

    Attributes:
        share: the share of failed rows among the rows that had not failed in the base.
    """

    share: float


@dataclass(frozen=True)
class FewDigits:
    """Why a check shows nothing: the boxes' answers are rounded by as much as it changes them.

    Attributes:
        digits: the fewest significant digits of a box's answers.
    """

    digits: int


@dataclass(frozen=True)
class SixteenBits:
    """Why a check shows nothing: rounding between weights and loss is as large as the check's changes.

    Attributes:
        dtype: the dtype of the rounded numbers.
    """

    dtype: str


@dataclass(frozen=True)
class Check:
    """The result of queries along the gradient; of a step without a check all is empty.

    Attributes:
        figures: the measured figures, by name: those of `zo.tangents.trust.figures.FIGURES`, and "balance".
            The balance is the agreement with the boxes' own responses in the place of the tangents'. It is 1,
            but for curvature, where autograd saw all that the loss depends on. Unknown figures are left out;
            all are where the queries show nothing.
        reason: why the queries show nothing, if failed rows or rounding are the reason.
        rows: how many rows the boxes were asked for.
        queries: how many queries were made.
        noise: the standard deviation of the change of the mean loss when nothing is changed; None where that
            is not known yet.
        unlike: the noise as a share of the loss, in the check that has measured it.
        flat: the share of rows with a changed input that gave the base's very answer; None where nothing was
            changed, or that is not known.
        cut: how many times its length the gradient lacks, along itself; None where it lacks nothing.
        short: how many times its length the gradient lacks since tangents leave a part out, where the loss
            changes by far more than the gradient predicts; 0 where that is the way's curvature, None where
            it was not looked for.
        unmoved: for each box numbers of its outputs, by their places, that stayed to the bit in all rows
            while others moved, see `zo.tangents.evidence.unmoved`.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
    reason: FailedRows | FewDigits | SixteenBits | None = None
    rows: int = 0
    queries: int = 0
    noise: float | None = None
    unlike: float | None = None
    flat: float | None = None
    cut: float | None = None
    short: float | None = None
    unmoved: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shows(self) -> bool:
        """True if the queries have shown anything of the gradient."""
        return bool(self.figures)


UNCHECKED = Check()


@dataclass(frozen=True)
class Evidence:
    """The measurements of a step.

    Attributes:
        step: the number of the step.
        error: the relative error of the tangents' predictions; None if there was nothing to predict.
        check: the check of the step.
    """

    step: int
    error: float | None = None
    check: Check = UNCHECKED


def is_flat(share: float | None) -> bool:
    """Say whether so many moved rows gave the same answer that the box is constant in pieces."""
    return share is not None and share > FLAT


def is_uneven(balance: float | None) -> bool:
    """Say whether a balance is so far from 1 that something may be missing."""
    return balance is not None and not abs(balance - 1.0) <= MISSING
