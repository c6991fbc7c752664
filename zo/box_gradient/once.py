"""What is said once of a black box's calls: units far apart, doubtful slopes, answers that do not move."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor

from blackbox import BlackBoxFunction
from zo.errors import UnitsWarning, ZeroGradientWarning
from zo.slopes import Doubt, warn_of_slopes

CALLS = 3  # the first with queries, after which it is said that most of their rows stand still
STILL = 0.9  # of those rows
SAID = "This is said once."
MEND = (
    "check_black_box recommends a mu; where inputs vary by no more than mu, give their ArraySpec a scale. "
    f"{SAID}"
)
KINK = (
    "Of numbers that a ReLU before the box has made zero, autograd drops the slopes: with CGE that spoils no "
    f"weight. {SAID}"
)


class Once:
    """The calls so far, as far as they are needed, and what has been said.

    Args:
        box: whose calls they are.
    """

    def __init__(self, box: BlackBoxFunction) -> None:
        self._box = repr(box)
        self._specs = box.inputs
        self._calls = self._rows = self._still = 0
        self._warned_of_units = self._warned_of_zero = self._warned_of_doubt = False

    def units(self, call: int, differ: Mapping[int, tuple[float, bool]]) -> None:
        """Warn of inputs whose sizes differ too much for one mu.

        Args:
            call: its number.
            differ: the usual sizes of inputs that want other steps than mu, by their places, and whether they
                take them.
        """
        if self._warned_of_units or not differ:
            return
        self._warned_of_units = True
        taken = [place for place, (_, borne) in differ.items() if borne]
        left = [place for place in differ if place not in taken]
        words = ", ".join(f"{self._specs[place].name!r} ({size:.1g})" for place, (size, _) in differ.items())
        steps = []
        if taken:
            names = ", ".join(self._specs[place].name for place in taken)
            steps.append(f"Steps of {names} follow these spreads from here on.")
        if left:
            names = ", ".join(self._specs[place].name for place in left)
            steps.append(f"Steps of {names} stay at mu, since no others were seen to give slopes.")
        warnings.warn(
            f"{self._box}, call {call}: expected inputs whose numbers vary by similar amounts, got spreads "
            f"over the rows that are far from the others': {words}. No one mu is right for all. "
            f"{' '.join(steps)} To set them, give the ArraySpec scale=samples.std(axis=0), with samples such "
            "as training meets (any positive number where that is 0). This is said once.",
            UnitsWarning,
            stacklevel=3,
        )

    def doubt(self, call: int, doubt: Doubt) -> None:
        """Warn of slopes that are wrong by a good part of their size.

        Args:
            call: its number.
            doubt: about it.
        """
        if not self._warned_of_doubt:
            self._warned_of_doubt = True
            mend = KINK if doubt.cause == "kink" else MEND
            warn_of_slopes(f"{self._box}, call {call}", doubt, differs="box", mend=mend)

    def answers(self, call: int, perturbed: Sequence[int], answered: Tensor) -> None:
        """Warn of rows whose outputs are the same at every query: at once of all, and of most in three calls.

        Args:
            call: its number.
            perturbed: the places of the inputs that queries move.
            answered: `(rows,)` bool, whether any query changed an output.
        """
        if self._warned_of_zero or self._calls == CALLS or not len(answered):
            return
        self._calls += 1
        self._rows += len(answered)
        self._still += int((~answered).sum())
        none = not answered.any()
        if not none and (self._calls < CALLS or self._still <= STILL * self._rows):
            return
        self._warned_of_zero = True
        names = ", ".join(self._specs[place].name for place in perturbed)
        which = f"all {len(answered)} rows" if none else f"{self._still} of the first {self._rows} rows"
        warnings.warn(
            f"{self._box}, call {call}: expected outputs that follow {names}, got the same ones from all "
            f"queries of {which}: a derivative of exactly zero there. Either the box does not depend on its "
            "input, or mu is below what it resolves: check_black_box recommends one. Where outputs are "
            "steps, as a decision forest's, take a much larger mu, or learn from values: zo.StudentTangent, "
            "the method student. This is said once.",
            ZeroGradientWarning,
            stacklevel=3,
        )
