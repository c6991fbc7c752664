"""A check that finite differences are slopes: compared with half of mu and, in doubt, with twice of it.

Over a step that suits the function, half of it gives the same slope. Curvature is off by half as much there,
rounding and noise by twice as much, and a jump gives twice the slope or none, with the same slope before it
and behind it. A kink right at the base gives the same over any step one way, and another one back. Each user
of this module asks the steps again in its own way: `zo.execution.repeats` those of weights,
`zo.box_gradient.doubt` those of a box's inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blackbox.notices import warn
from zo.errors import NoiseWarning, SlopeWarning

# decision 37:
ALONG = 0.85  # correlation of what half and twice of mu are off by; rounding, at random, has -0.3 or so
MOST = 0.9  # of the mean square of what slopes are off by, by jumps
SAME = 0.15  # of a change or a jump: by so little what it should be is missed
# decision 37:
KINKED = 4  # times what half of mu is off by, where steps back show more than curvature, of which it is 2
STEPS = 1e-6  # of a jump: with less than that beside it, what jumps are the steps of a rounded number
STAYS = 0.75  # of what steps both ways differ by is left over half of mu at a kink; half of it by curvature
NOISY = 0.1  # of what slopes are off by: noise of that size explains it, since deterministic code has none
Cause = Literal["noise", "rounding", "curvature", "jump", "kink"]


@dataclass(frozen=True)
class Doubt:
    """The dependence of slopes on mu.

    Attributes:
        half: By how much those over half of mu are off those over mu, as a part of their size.
        twice: The same of those over twice of mu; NaN where that is not known.
        cause: What it looks like: "noise" where equal steps give other values, "rounding" where they are off
            at random, "curvature" where half and twice of mu are off in the same direction, "jump" where the
            change itself is the same over half of mu, "kink" where only steps back give other slopes.
        back: Half of what slopes over mu back differ by, as a part of their size; NaN where not known.
        jumps: What jumps make of the slopes, as a part of the size that these have without.
    """

    half: float
    twice: float
    cause: Cause
    back: float = math.nan
    jumps: float = 0.0

    @property
    def off(self) -> float:
        """The relative change of slopes over steps of another length, or the other way."""
        return self.back if self.cause == "kink" else self.half

    @property
    def error(self) -> float:
        """The approximate error of the slopes, as a part of their size."""
        if self.cause in ("noise", "rounding"):  # four times the variance at mu / 2, on top of that at mu
            return self.half / math.sqrt(3)
        if self.cause == "kink":
            return self.back
        if self.cause == "jump":
            return max(self.half, self.jumps)
        ratio = self.twice / self.half if self.half > 0 else 0.0
        # Off by h, 2 h, ... at mu / 2, mu, 2 mu: for forward differences twice, for central 4/3 of it.
        return self.half * ratio / (ratio - 1) if self.cause == "curvature" and ratio >= 1.5 else self.half


def doubt_of(
    full: Tensor,
    half: Tensor,
    twice: Tensor | None = None,
    size: float | None = None,
    noise: float = 0.0,
    back: Tensor | None = None,
    nearer: Tensor | None = None,
) -> Doubt:
    """Compare changes over steps of mu with those over half and twice of mu, along the same directions.

    The parts add up as in the squared length of a gradient. Where these are a sample of more directions,
    half of it drawn with equal chances and half by the square of their change, the sum estimates that over
    all.

    Args:
        full: `(directions,)`, the changes over mu; for central differences half of what both signs differ by.
        half: `(directions,)`, over half of mu, times two; NaN where unknown.
        twice: `(directions,)`, over twice of mu, by two; None where not asked.
        size: Root of the mean square of the changes of all directions, of which these are a sample; None
            where they are all there are.
        noise: How far values are apart for equal steps, as a part of the changes.
        back: `(directions,)`, the changes over mu back, times minus one; None where not asked.
        nearer: `(directions,)`, over half of mu back, times minus two; None where not asked.
    """
    mask = torch.isfinite(full) & torch.isfinite(half)
    full, half = full[mask].double(), half[mask].double()
    if not len(full) or not (full.any() or half.any()):
        return Doubt(0.0, math.nan, "rounding")
    square = float(full.square().mean()) if size is None else size**2
    # Of a draw's probability, 1/2 + full^2 / (2 size^2) times that of a uniform draw.
    weights = torch.full_like(full, 1 / max(square, 1e-300))
    if size is not None:
        weights = 2 / (square + full.square()).clamp(min=1e-300)

    def mean(squares: Tensor) -> float:
        """Average over all directions that are known."""
        finite = torch.isfinite(squares)
        return float((weights * squares)[finite].mean()) if finite.any() else math.nan

    off, jumps = half - full, 0.0
    first, second, behind = math.sqrt(mean(off.square())), math.nan, math.nan
    cause: Cause = "rounding"
    if back is not None:
        behind = math.sqrt(mean((full - back[mask].double()).square())) / 2
    stays = math.inf if nearer is None else math.sqrt(mean((half - nearer[mask].double()).square())) / 2
    if behind > KINKED * first and stays > STAYS * behind:
        cause = "kink"
    elif twice is not None:
        further = full - twice[mask].double()
        second = math.sqrt(mean(further.square()))
        jumping, smooth = _jumps(full, half, twice[mask].double())  # few of many may make up what is off
        if noise > NOISY * first:
            cause = "noise"
        elif mean(jumping * off.square()) >= MOST * mean(off.square()):
            cause = "jump"
            smooth_square = mean(torch.where(jumping, smooth, full).square())
            jumps = math.sqrt(mean(jumping * off.square()) / smooth_square) if smooth_square > 0 else math.inf
        elif mean(off * further) > ALONG * math.sqrt(mean(off.square() * further.isfinite())) * second:
            cause = "curvature"
    return Doubt(first, second, cause, behind, jumps)


def _jumps(full: Tensor, half: Tensor, twice: Tensor) -> tuple[Tensor, Tensor]:
    """Find the changes that jump within mu, `(directions,)` bool, and return the changes without the jumps.

    A jump within the first half of mu is in the changes over all three steps, one within the second half in
    the longer two, and the rest of each is smooth: as long as its step. A jump is larger than the rest, which
    else may be a kink, and there is a rest: of what is rounded to steps there is none.

    Args:
        full: the changes over mu.
        half: over half of mu, times two.
        twice: over twice of mu, by two; NaN where unknown.
    """
    off, nearest, further = half - full, half / 2, 2 * twice - full
    first, second = 2 * (full - nearest), 2 * nearest  # the smooth change over mu, where it is in that half

    def beside(smooth: Tensor) -> Tensor:
        goes_on = (further - smooth).abs() <= SAME * off.abs()
        return goes_on & (off.abs() > smooth.abs()) & (smooth.abs() > STEPS * off.abs())

    in_first, in_second = beside(first), beside(second)
    same = (nearest - full).abs() <= SAME * full.abs()  # or saturated
    return in_first | in_second | same, torch.where(in_second & ~in_first, second, first)


def warn_of_slopes(where: str, doubt: Doubt, *, differs: str = "objective", mend: str = "") -> None:
    """Warn that differences are no slopes, by how much, and what to do.

    Args:
        where: The step, or the box and the call, with which the message begins.
        doubt: How doubtful the slopes are, and why.
        differs: What the steps were taken in.
        mend: A sentence more on what to do.

    Warns:
        NoiseWarning: Where they look noisy or rounded.
        SlopeWarning: Where mu is too long, or the function jumps.
    """
    weights = differs == "objective"  # of a box no loss is known
    subtract = ", or subtract the offset; a zo.OutputLoss is evaluated in float64" if weights else ""
    unused = " Weights that change nothing, as of a merged adapter, leave rounding alone." if weights else ""
    at_twice = f", at twice of mu by {doubt.twice:.0%}" if doubt.twice == doubt.twice else ""
    off = f"the gradient is off by about {doubt.error:.0%} of its size"
    observed = (
        f"{where}: expected finite differences that give the same slopes over half of mu, got some that "
        f"are off by {doubt.half:.0%} of their size{at_twice}. "
    )
    if doubt.cause == "kink":
        observed = (
            f"{where}: expected the same slopes over mu both ways, got some that differ by "
            f"{2 * doubt.back:.0%} of their size. "
        )
        what = (
            f"The {differs} has a kink at the base, as |w| and ReLU(w) have at w = 0 (weights that begin at "
            "zero, inputs that are zero): a forward difference gives the slope of one side, and "
            f"{off} from the mean of both. Take central=True, or begin beside the kink."
        )
    elif doubt.cause == "jump":
        share = f"about {doubt.error:.0%} of" if doubt.error < 10 else "more than ten times"
        what = (
            f"The {differs} changes at once, within mu: it jumps, or is saturated, closer than that. The "
            f"gradient is off by {share} the size that it has without that, and means nothing. Look for "
            "whole numbers (a truncation, a sign, a sort, torch's orthogonal parametrization of a matrix "
            "that is not square) and what is divided by its own small spread. Where it only saturates, a far "
            "smaller mu is right."
        )
    elif doubt.cause == "curvature":
        what = f"The {differs} curves within mu: {off}. Take a smaller mu, or central=True."
    elif doubt.cause == "noise":
        what = (
            f"The {differs} gives other values for equal inputs: it is noisy, and {off}. Make it "
            "deterministic, take a larger mu, or average over more directions."
        )
    else:
        what = (
            f"They are off at random, as rounding makes them: {off}. Look for few digits on the way: printed "
            "numbers, steps as of trees, a narrower dtype, a large offset (101325 + f in float32). Take a mu "
            f"longer than the steps or a wider dtype{subtract}. Where the {differs} oscillates within mu, a "
            f"smaller one shows it.{unused}"
        )
    kind = NoiseWarning if doubt.cause in ("noise", "rounding") else SlopeWarning
    warn(f"{observed}{what}{mend and ' '}{mend}", kind)
