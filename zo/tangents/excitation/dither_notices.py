"""Notices of inputs whose response to a dither is not known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import Notice
from blackbox.words import counted
from zo.errors import TangentWarning
from zo.tangents.record.recorded_call import RecordedCall, rows_alive


def waits_long(number: int, names: str, box: BlackBoxFunction, held: int, told: int) -> Notice:
    """The response to a dither is waited for, for `told` of at most `held` steps."""
    return Notice(
        f"waits for {box!r}",
        f"Step {number + 1}: expected a small dither to show by now what {names} of {box!r} does, which "
        "values alone do not show, and its response does not stand out yet: no gradient was added in "
        f"{counted(told, 'step')}, nor is until it is known, for {counted(held, 'step')} at most. "
        "More rows in a batch show it "
        "sooner, and so does layout='grid' in the ArraySpecs of a line or field of cells; Limits(excite=.3), "
        f"the dither in spreads of the input, waits for nothing.",
        TangentWarning,
    )


def without_unknown(number: int, names: str, box: BlackBoxFunction, held: int) -> Notice:
    """The gradient is used without what goes through inputs of a box that is asked for few rows."""
    return Notice(
        f"without {box!r}",
        f"Step {number + 1}: expected a small dither to show by now what {names} of {box!r} does, and its "
        "response does not stand out yet, for the box is asked for few rows. The gradient is used without "
        f"what goes through {names} until that is known, for {counted(held, 'step')} at most. More rows in a "
        "batch show it sooner.",
        TangentWarning,
    )


def unknown(number: int, names: str, box: BlackBoxFunction, held: int) -> Notice:
    """It was waited for in vain, for `held` steps."""
    return Notice(
        f"unknown to {box!r}",
        f"Step {number + 1}: expected the response of {box!r} to a dither on {names} to stand out within "
        f"{counted(held, 'step')}, and it does not. "
        f"The gradient is used from now on, and what goes through {names} is "
        "the tangent's guess until rows show it. Look at tangent_agreement_of_rows in metrics() before you "
        "trust it: take more rows in a batch, a larger dither (Limits(excite=.3), in spreads of the input), "
        f"layout='grid' for a line or field of cells, or less noise in the box.",
        TangentWarning,
    )


def across_zero(
    number: int, boxes: Sequence[BlackBoxFunction], calls: Sequence[RecordedCall], survived: Tensor
) -> Notice | None:
    """A row failed in which a dither had taken a number without bounds across zero.

    A sign that other rows have survived in the same number is not why a row failed.
    """
    failed = (~survived).nonzero().flatten()
    for call in calls if len(failed) else ():
        box, rows = boxes[call.box], call.on(failed, len(survived))
        for place, (spec, dither) in enumerate(zip(box.inputs, rows.added, strict=False)):
            if dither is None or spec.bounds:
                continue
            asked = rows.inputs[place]
            crossed = asked * rows.asked(place) < 0
            if crossed.any():
                alike = [one.inputs[place] for one in calls if one.box == call.box]
                kept = torch.cat([inputs[rows_alive(survived, inputs)] for inputs in alike])
                crossed &= ~torch.where(asked > 0, (kept > 0).any(0), (kept < 0).any(0))
            first = asked[crossed].tolist()[:1]
            if first:
                return Notice(
                    "across zero",
                    f"Step {number + 1}: expected rows to survive a dither on {spec.name!r} of {box!r}, "
                    "which shows the derivative by it, but a row failed that was asked for "
                    f"{first[0]:.3g} where what the network gives has the other sign. If the box takes but "
                    "one sign, give the input its bounds, such as ArraySpec(..., bounds=(0, None)).",
                    TangentWarning,
                )
    return None
