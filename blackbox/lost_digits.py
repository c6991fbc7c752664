"""Answers in float64 whose differences are lost where they become float32: seen, and said once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blackbox.errors import PrecisionWarning
from blackbox.ledger import Ledger
from blackbox.notices import warn
from blackbox.spec import ArraySpec

CALLS, ROWS, NUMBERS, BYTES = 100, 64, 1024, 2**23  # that are looked at: first ones, or evenly spread
NOISE = 3e-9  # of a number's size: what rounding and a solver's tolerance may do to it in float64
FEW = 3  # times as many different rows in float64 as are left


def warn_of_lost_digits(
    box: object,
    specs: tuple[ArraySpec, ...],
    answers: tuple[Tensor, ...],
    rounded_answers: tuple[Tensor, ...],
    to: Ledger,
) -> None:
    """Warn once if a box gives different float64 answers that are equal once they have their spec's dtype.

    Args:
        box: the box, for messages.
        specs: the output specs.
        answers: the outputs as they came, `(rows, *spec.shape)`.
        rounded_answers: the outputs with the dtypes that the caller gets.
        to: the box's ledger, which knows how many calls there were, and whether it was said.

    Warns:
        PrecisionWarning: naming the output and its mend.
    """
    if to.calls > CALLS:
        return
    for spec, answer, rounded in zip(specs, answers, rounded_answers, strict=True):
        if answer.dtype != torch.float64 or rounded.dtype == answer.dtype or not rounded.is_floating_point():
            continue
        words = _lost(answer, rounded)
        if words and to.is_new(f"digits of {spec.name}"):
            dtype = str(rounded.dtype)[6:]
            declared = f"ArraySpec({spec.name!r}, {spec.shape}, dtype='float64')"
            warn(
                f"{box!r}, output {spec.name!r}: expected answers that {dtype}, which the caller gets, "
                f"can tell apart, got {words} Declare {declared}, or {_OTHER[bool(rounded.any())]}; see "
                "docs/howto/units.md.",
                PrecisionWarning,
            )


_OTHER = {
    True: "subtract the offset in the box",
    False: "return them in a smaller unit",
}


def _lost(answers: Tensor, rounded_answers: Tensor) -> str:
    """Describe what is lost of the first rows; "" where hardly any of it is."""
    rows, size = min(len(answers), ROWS), math.prod(answers.shape[1:])
    rows = max(1, min(rows, BYTES // (8 * max(1, size))))
    exact, rounded = answers[:rows].reshape(rows, size), rounded_answers[:rows].reshape(rows, size)
    sample = rounded[:, :: 1 + size // NUMBERS]
    if not sample.any() and not rounded.any() and (largest := float(exact.abs().max())) > 0:
        return f"float64 answers of up to {largest:.2g} that all become 0 there."
    if rows <= FEW - 1 or not (sample[1:] == sample[:-1]).all(dim=1).any():  # of most boxes, at no cost
        return ""
    fine = rounded.isfinite().all(dim=1)
    exact, rounded = exact[fine], rounded[fine]
    if not len(rounded):
        return ""
    scale = exact.abs().amax(dim=0)
    steps = ((exact - exact[0]) / (NOISE * scale).clamp(min=1e-300)).round()
    many, few = len(torch.unique(steps, dim=0)), len(torch.unique(rounded, dim=0))
    if many < FEW * few:
        return ""
    spread = exact.amax(dim=0) - exact.amin(dim=0)
    widest = int((spread / scale.clamp(min=1e-300)).argmax())
    return (
        f"{many} different ones in float64 that become {few}: a number of about {float(scale[widest]):.6g} "
        f"differs by up to {float(spread[widest]):.2g}, which is rounded away."
    )
