"""Warnings about the calls of a black box, each given once: units, doubtful slopes, answers that stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import Notices
from zo.errors import SeedWarning, TangentWarning, UnitsWarning, ZeroGradientWarning
from zo.slopes import Doubt, warn_of_slopes

NUMBERS, ROWS = 1024, 8  # of an output that is watched: at most, and of a call at least
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
        box: the box whose calls they are.
    """

    def __init__(self, box: BlackBoxFunction) -> None:
        self._box = repr(box)
        self._specs, self._outputs = box.inputs, box.outputs
        self._calls = self._rows = self._still = 0
        self._notices = Notices()
        self._watched = 0  # calls so far of which numbers of outputs are known
        self._stairs: dict[int, Tensor] = {}  # by place, those that come in steps and stand still

    def units(self, call: int, differ: Mapping[int, tuple[float, bool]]) -> None:
        """Warn of inputs whose sizes differ too much for one mu.

        Args:
            call: the number of the call.
            differ: the usual sizes of inputs that want other steps than mu, by their places, and whether they
                take them.
        """
        if not differ:
            return
        words = ", ".join(f"{self._specs[place].name!r} ({size:.1g})" for place, (size, _) in differ.items())
        steps = []
        for follow, what in (
            (True, "follow these spreads from here on."),
            (False, "stay at mu, since no others were seen to give slopes."),
        ):
            names = [self._specs[place].name for place, (_, borne) in differ.items() if borne == follow]
            steps += [f"Steps of {', '.join(names)} {what}"] if names else []
        self._notices.once(
            "units",
            f"{self._box}, call {call}: expected inputs whose numbers vary by similar amounts, got spreads "
            f"over the rows that are far from the others': {words}. No one mu is right for all. "
            f"{' '.join(steps)} To set them, give the ArraySpec scale=samples.std(axis=0), with samples such "
            "as training meets (any positive number where that is 0). This is said once.",
            UnitsWarning,
        )

    def seeds(self, call: int, seed: str) -> None:
        """Warn that another box of the backward pass draws the same directions.

        Args:
            call: the number of the call.
            seed: the seed that both boxes have.
        """
        self._notices.once(
            "seeds",
            f"{self._box}, call {call}: expected boxes of one backward pass to draw directions of their "
            f"own, got another one with seed {seed} too. With equal directions the gradient through both "
            "is wrong in the mean: give each box another seed, or none. This is said once.",
            SeedWarning,
        )

    def doubt(self, call: int, doubt: Doubt) -> None:
        """Warn of slopes that are wrong by a good part of their size.

        Args:
            call: the number of the call.
            doubt: the doubt about the slopes.
        """
        if self._notices.first("doubt"):
            mend = KINK if doubt.cause == "kink" else MEND
            warn_of_slopes(f"{self._box}, call {call}", doubt, differs="box", mend=mend)

    def answers(self, call: int, perturbed: Sequence[int], answered: Tensor) -> None:
        """Warn of rows whose outputs are the same at every query: at once of all, and of most in three calls.

        Args:
            call: the number of the call.
            perturbed: the places of the inputs that queries move.
            answered: `(rows,)` bool, whether any query changed an output.
        """
        if "zero" in self._notices.said or self._calls == CALLS or not len(answered):
            return
        self._calls += 1
        self._rows += len(answered)
        self._still += int((~answered).sum())
        none = not answered.any()
        if not none and (self._calls < CALLS or self._still <= STILL * self._rows):
            return
        names = ", ".join(self._specs[place].name for place in perturbed)
        which = f"all {len(answered)} rows" if none else f"{self._still} of the first {self._rows} rows"
        self._notices.once(
            "zero",
            f"{self._box}, call {call}: expected outputs that follow {names}, got the same ones from all "
            f"queries of {which}: a derivative of exactly zero there. Either the box does not depend on its "
            "input, or mu is below what it resolves: check_black_box recommends one. Where outputs are "
            "steps, as a decision forest's, take a much larger mu, or learn from values: "
            "zo.tangents.StudentTangent, the method student. This is said once.",
            ZeroGradientWarning,
        )

    def watched(self, outputs: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Marks for the numbers of outputs that queries change, of the first calls and small outputs."""
        if "zero" in self._notices.said or self._watched == CALLS:
            return {}
        return {
            place: torch.zeros(output[0].numel(), dtype=torch.bool, device=output.device)
            for place, output in outputs.items()
            if len(output) >= ROWS and output[0].numel() <= NUMBERS
        }

    def still(
        self,
        call: int,
        outputs: Mapping[int, Tensor],
        cotangents: Mapping[int, Tensor],
        moved: Mapping[int, Tensor],
    ) -> None:
        """Warn of numbers of an output that no query of the first calls has changed, and that come in steps.

        Other numbers follow the input, so the gradient is not zero and looks right. Numbers come in steps
        where they differ between the rows of a call, and have at most three values for four rows.

        Args:
            call: the number of the call.
            outputs: the outputs of the base, `(rows, *shape)`, by their places.
            cotangents: the gradients of these outputs.
            moved: the marks of `watched`.
        """
        if "zero" in self._notices.said or not moved:
            return
        self._watched += 1
        for place, marks in moved.items():
            rows = outputs[place].reshape(len(outputs[place]), -1)
            values = rows.sort(dim=0).values
            different = 1 + (values[1:] != values[:-1]).sum(dim=0)
            arrived = (cotangents[place].reshape(rows.shape) != 0).any(dim=0)
            still = ~marks & arrived & (different > 1) & (4 * different <= 3 * len(rows))
            self._stairs[place] = still & self._stairs.get(place, still)
        if self._watched < CALLS:
            return
        stuck = {place: int(still.sum()) for place, still in self._stairs.items() if bool(still.any())}
        if stuck:
            names = ", ".join(
                f"{count} of {math.prod(self._outputs[place].shape)} of {self._outputs[place].name!r}"
                for place, count in stuck.items()
            )
            self._notices.once(
                "zero",
                f"{self._box}, call {call}: expected outputs that follow the inputs, got numbers that no "
                f"query of {CALLS} calls has changed ({names}), though others answer. They have few "
                "different values, as what comes in steps: the gradient takes their derivative for zero. "
                "Take a larger mu, print more digits, or learn from values: a tangent, such as "
                "zo.tangents.MLPTangent. This is said once.",
                ZeroGradientWarning,
            )

    def hidden(self, call: int, names: Sequence[str]) -> None:
        """Warn of inputs whose derivative values do not show.

        Args:
            call: the number of the call.
            names: the inputs.
        """
        several = " and ".join(map(repr, names))
        self._notices.once(
            "hidden",
            f"{self._box}, call {call}: expected inputs that vary by themselves, got {several}, which the "
            "other inputs determine, or which is the same in all rows. Values alone do not show the "
            "derivative by it, and the tangent may have any. Add a little noise, some hundredths of its "
            "spread; take zo.TangentGradient, which does so; or an estimator, such as RowRGE. "
            f"{SAID}",
            TangentWarning,
        )

    def wrong(self, call: int, tangent: str, found: float) -> None:
        """Warn of a tangent whose gradient the box does not follow.

        Args:
            call: the number of the call.
            tangent: the tangent, in words.
            found: the box's change along the gradient, over the predicted one.
        """
        self._notices.once(
            "wrong",
            f"{self._box}, call {call}: expected a box that changes along the gradient as {tangent} says, "
            f"got {found:.2g} times that, in rows that were moved both ways. Values may be predicted well, "
            "and the derivative by these inputs is not, as where others have most of the effect. Vary them "
            "more; take zo.TangentGradient, which dithers them; or an estimator, such as RowRGE. "
            f"{SAID}",
            TangentWarning,
        )
