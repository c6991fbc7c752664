"""`finite_difference`: the derivative of a plain function by differences that choose their steps.

Steps go down from the size of a number by factors of four, as long as that helps. A slope is off by what it
bends, which the next longer step shows, and by noise or rounding, which the shorter ones show, four times as
large each: of the slopes of one derivative that is taken whose larger part is least. Beside a kink the slopes
of both sides differ, and what a shorter step knows better counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import as_tensor
from zo.box_gradient.row_queries import RowQueries, plan_queries
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE
from zo.slopes import KINKED, STAYS

FACTOR = 4.0  # between steps
BEYOND = 3  # steps shorter than the best that are asked, to see noise grow
MOST = 30  # steps of a number
BENT = 3.0  # of what the next longer step differs by; 15 for two sides, and a margin of 5
NOISY = 2.0  # times what shorter steps show, since they are a few draws
# Of the shortest step that changes f, where f is asked to see how it begins to change.
BETWEEN = tuple(eighths / 8 for eighths in (3, 4, 5, 6, 7, 9, 10))
# decision 167:
ROUNDED = 1e-6  # of changes: less is rounding
GROWS = 1.5  # times as much slopes differ by, over and over: on the way to a kink
COARSE = 0.1  # of slopes: an error from which on all steps are tried, those longer than the number too


@dataclass(frozen=True)
class FiniteDifference:
    """A derivative by finite differences, with an estimate of its error.

    Attributes:
        value: f(x), as f gave it.
        gradient: `(*y.shape, *x.shape)` float64, an array or a tensor as x; for a number y of the shape of x.
        error: estimates of its absolute errors, seldom exceeded; infinite where nothing is known.
        steps: the steps of the differences, in units of x.
        kinks: True where slopes to both sides differ however short the step. There is no derivative there;
            `gradient` is the mean of both slopes, and `error` half of their difference.
        evaluations: how often f was called, the base included.
        failed: how many of these raised an error or gave numbers that are not finite.
    """

    value: Any
    gradient: Any
    error: Any
    steps: Any
    kinks: Any
    evaluations: int
    failed: int

    def refutes(self, derivative: Any, tolerance: float = 0.0) -> Any:
        """Say where another derivative differs from this one, beyond this one's error.

        Args:
            derivative: the derivative to check, of the shape of `gradient`.
            tolerance: a further error that is allowed, as a part of the size of `gradient`.

        Returns:
            An array of that shape, bool.
        """
        if tuple(derivative.shape) != tuple(self.gradient.shape):
            raise ConfigurationError(
                f"FiniteDifference.refutes, derivative: expected the shape {tuple(self.gradient.shape)}, got "
                f"{tuple(derivative.shape)}. Axes of the output come first, then those of x."
            )
        return ~(abs(derivative - self.gradient) <= self.error + tolerance * abs(self.gradient))


def finite_difference(f: Callable[[Any], Any], x: Any, *, scale: Any = None) -> FiniteDifference:
    """The gradient or Jacobian of a plain function, by differences that choose their steps.

        result = zo.finite_difference(lambda x: np.sum(np.sin(x) / x), np.array([1e-3, 2.0, 5e4]))
        result.gradient, result.error
        result.refutes(by_hand, tolerance=0.01)  # where a derivative of yours is wrong

    For each number of x, and each of f, the step is another one: numbers of different sizes, functions with
    an offset, few digits, noise or a narrow feature need no setting. Each step is taken both ways, and one
    way where the other fails (raises, or gives NaN), as at the edge of a domain. That takes some 10 to 40
    calls of f for each number of x, and up to 80 where no step is found; for a network's weights take
    `zo.LossGradient`, for a box in a training `zo.differentiable`.

    The error is an estimate. For noise and rounding a twentieth of the true errors exceed it; for smooth
    functions it is several times the true error. A check with a tolerance below it decides nothing. For a
    function that comes in steps the slope across these is returned. Where it is flat beside a kink, the slope
    is zero. A kink nearer to x than the shortest possible step counts as a kink at x.

    Args:
        f: a function of an array like x that gives a float, an array or a tensor of floats. It may write to
            x.
        x: an array or tensor of float32 or float64, any shape.
        scale: the longest step of each number, of a shape that broadcasts to that of x. None takes the size
            of each number, 1 where it is zero; where that gives no slope, longer steps are tried, up to the
            largest number of x or 1.

    Returns:
        The derivative, its error, its steps, and the number of calls.

    Raises:
        ConfigurationError: x or f(x) is not of finite floats, or a scale is not positive or lost in rounding.
        Exception: f raises it at x itself.
    """
    numpy = not isinstance(x, Tensor)
    base = as_tensor(np.asarray(x) if numpy else x).clone()
    _refuse_other_numbers("x", base, "x.astype(float)" if numpy else "x.double()")
    longest, most = _longest(base, scale)
    value = f(base.numpy().copy() if numpy else base.clone())
    output = as_tensor(np.asarray(value) if not isinstance(value, Tensor) else value).clone()
    _refuse_other_numbers("f(x)", output, "float(...)" if not output.ndim else "the result to float64")
    box = _Plain(f, base, output, numpy)
    units = {0: longest.flatten()}
    everything = torch.zeros(1, dtype=torch.int64, device=base.device)
    queries = plan_queries(
        box, CGE(1.0, central=True), [base[None]], [0], everything, torch.Generator(), None, units
    )
    ladder = _Ladder(queries, output.flatten().double().cpu())
    ladder.climb(most.flatten())
    shape = (*output.shape, *base.shape)
    parts = (part.T.reshape(shape) for part in ladder.best())  # (numbers of x, numbers of f)
    gradient, error, steps, kinks = (part.numpy() if numpy else part.to(base.device) for part in parts)
    return FiniteDifference(
        value, gradient, error, steps, kinks, box.ledger.rows_run + 1, box.ledger.rows_failed
    )


class _Plain(BlackBoxFunction):
    """A plain function as a box of one row a call; what raises or is not finite is a failed row."""

    def __init__(self, f: Callable[[Any], Any], x: Tensor, y: Tensor, numpy: bool) -> None:
        super().__init__(failures="keep")
        self.function = f
        self.arrays = "numpy" if numpy else "torch"
        self.inputs = (ArraySpec("x", tuple(x.shape)),)
        self.outputs = (ArraySpec("y", tuple(y.shape), str(y.dtype).removeprefix("torch.")),)

    def evaluate(self, x: Any) -> Any:
        """One row."""
        return self.function(x)

    def __repr__(self) -> str:
        return f"finite_difference({getattr(self.function, '__name__', self.function)!s})"


class _Level(NamedTuple):
    """The results of steps of one length; NaN where they were not asked or failed.

    Attributes:
        times: Their length, as a multiple of the longest.
        plus: `(numbers, outputs)`, by what f changed forward.
        minus: `(numbers, outputs)`, by what it changed back.
        ahead: `(numbers,)`, the steps forward as floats leave them.
        behind: `(numbers,)`, the steps back, which are negative.
    """

    times: float
    plus: Tensor
    minus: Tensor
    ahead: Tensor
    behind: Tensor

    @property
    def silent(self) -> Tensor:
        """True where f did not change either way, `(numbers, outputs)`; False where both ways failed."""
        sides = [(part == 0) | ~part.isfinite() for part in (self.plus, self.minus)]
        return sides[0] & sides[1] & (self.plus.isfinite() | self.minus.isfinite())


class _Ladder:
    """Slopes over steps of each number, the longest first.

    Args:
        queries: the queries of the numbers of one row, forward and back, over the longest steps.
        value: the value of the base, `(outputs,)` float64.
    """

    def __init__(self, queries: RowQueries, value: Tensor) -> None:
        self.queries, self.value = queries, value
        self.numbers = len(queries.steps) // 2
        self.levels: list[_Level] = []
        # (numbers, outputs), where shorter steps do not change f: that it is flat there, or else by how much
        # it jumps where it begins to change
        self.flat = torch.zeros(self.numbers, len(value), dtype=torch.bool)
        self.jumps = torch.zeros(self.numbers, len(value), dtype=torch.float64)

    def climb(self, most: Tensor) -> None:
        """Go down as long as shorter steps may be better, then up where no slope was found.

        Args:
            most: `(numbers,)`, the longest steps to be tried, over those that the ladder begins with.
        """
        going = torch.arange(self.numbers)
        for level in range(MOST):
            self.levels.append(self._asked(going, FACTOR**-level))
            going = going[self._may_gain(going)]
            if not len(going):
                break
        for level in range(1, MOST):
            coarse = _coarse(*self._judged()[:4]).any(dim=1)
            going = torch.nonzero(coarse & (FACTOR**level <= most)).flatten()
            if not len(going):
                break
            self.levels.insert(0, self._asked(going, FACTOR**level))
        self._look_where_silence_ends()

    def best(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Slopes, their errors, the steps and whether there are kinks, `(numbers, outputs)` each."""
        slopes, steps, errors, _, kinks = self._judged()
        least = errors.min(dim=0)
        places = least.indices[None]
        gradient, error = slopes.gather(0, places)[0], least.values
        step = steps[..., None].expand_as(slopes).gather(0, places)[0]
        return gradient, error, step, kinks.gather(0, places)[0]

    def _judged(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Slopes, steps, errors, half of the sides' difference, and kinks; the longest steps first."""
        plus, minus, ahead, behind = map(torch.stack, zip(*(level[1:] for level in self.levels), strict=True))
        forward, back = plus / ahead[..., None], minus / behind[..., None]
        both = (plus - minus) / (ahead - behind)[..., None]
        slopes = torch.where(both.isfinite(), both, torch.where(forward.isfinite(), forward, back))
        steps = torch.where(ahead.isfinite(), ahead, -behind)
        errors = self._errors(slopes, steps, both.isfinite())
        # Both sides keep slopes of their own over the next shorter step, and not by its noise. A kink is left
        # behind where they no longer do; among the noise of still shorter steps it stays.
        gaps = (forward - back).abs() / 2
        ratios = gaps[1:] / gaps[:-1]
        clear = torch.zeros_like(errors, dtype=torch.bool)
        clear[:-1] = (ratios > STAYS) & (gaps[1:] > 2 * KINKED * errors[:-1])
        kinks = clear.clone()
        for level, stays in enumerate(ratios > STAYS):
            kinks[level] |= stays & kinks[level - 1]
        kinks[-1] = kinks[-2:].any(dim=0)
        like = kinks.clone()  # a kink, or what may be one that shorter steps leave behind
        like[:-1] |= (ratios > STAYS) & (ratios < 1 / STAYS)
        like[1:] |= like[:-1].clone()  # over the step in which it lies
        unsure = torch.where(clear, errors - gaps, torch.where(like, errors + gaps, errors))
        errors = torch.where(like, errors + gaps, errors)
        for level in range(1, len(slopes)):  # what a shorter step knows better, a kink among it
            off = (slopes[:level] - slopes[level]).abs() - unsure[level]
            errors[:level] = torch.maximum(errors[:level], off.nan_to_num(nan=0.0))
        return slopes, steps, errors, gaps, kinks

    def _errors(self, slopes: Tensor, steps: Tensor, central: Tensor) -> Tensor:
        """Errors of slopes by neighbouring ones and by rounding, where there are no kinks."""
        finite, lengths = slopes.isfinite(), steps[..., None]
        differ = torch.full_like(slopes, math.inf)
        differ[1:] = (slopes[1:] - slopes[:-1]).abs().nan_to_num(nan=math.inf)
        bent = torch.where(central, differ / BENT, differ)
        # what shorter steps differ by is noise over their length; of these there have to be two
        noise = torch.where(finite, differ.nan_to_num(posinf=0.0) * lengths, 0.0)
        shorter = torch.zeros_like(slopes)
        if len(slopes) > 1:
            shorter[:-1] = noise.flip(0).cummax(dim=0).values.flip(0)[1:]
        count = finite.flip(0).cumsum(dim=0).flip(0) - finite.int()
        eps = torch.finfo(self.queries.box.outputs[0].torch_dtype or torch.float64).eps
        floor = torch.maximum(eps * self.value.abs(), self.jumps) / lengths
        errors = torch.maximum(torch.maximum(bent, NOISY * shorter / lengths), floor)
        errors = torch.where(finite & (count >= 2), errors, math.inf)
        silent = torch.stack([level.silent for level in self.levels])
        moving = (finite & ~silent).any(dim=0)
        # Where no step changes f, by as much as other numbers show no slope of, the change may be lost. Where
        # some do, shorter ones that do not are lost in the digits of f, or f is flat there.
        noise_floor = (
            torch.where(moving, errors * lengths, math.inf).nan_to_num(math.inf, math.inf).amin(dim=(0, 1))
        )
        unmoved = torch.maximum(floor, noise_floor.nan_to_num(posinf=0.0) / lengths)
        lost = torch.where(self.flat, floor, math.inf)
        return torch.where(silent, torch.where(moving, lost, unmoved), errors)

    def _may_gain(self, going: Tensor) -> Tensor:
        """Say which numbers may get a better slope of some output over shorter steps, `(n,)` bool."""
        slopes, steps, errors, gaps, _ = (part[:, going] for part in self._judged())
        if len(slopes) <= BEYOND:
            return torch.ones(len(going), dtype=torch.bool)
        still = len(slopes) - 1 - errors.argmin(dim=0) < BEYOND
        still |= _coarse(slopes, steps, errors, gaps)
        # Slopes settle behind a kink, or are on their way to one: by noise they do neither.
        differ = slopes[-6:].diff(dim=0)
        still |= (differ[-1].abs() < differ[-2].abs() / FACTOR) | (gaps[-1] < gaps[-2] / (2 * FACTOR))
        ratio = differ[1:] / differ[:-1]
        grows = (ratio > GROWS) & (ratio < FACTOR + 1)
        still |= (grows[1:] & grows[:-1]).any(dim=0)
        stuck = (slopes[-2:] == 0).all(dim=0)  # lost in the digits of f
        resolved = torch.finfo(self.queries.values.dtype).eps * self.queries.values[0, going].abs()
        return (still & ~stuck).any(dim=1) & (steps[-1] > FACTOR * 8 * resolved.double().cpu())

    def _look_where_silence_ends(self) -> None:
        """Decide, where steps are too short to change f, whether f is flat, or comes in digits or steps.

        From the longest of these steps to a little beyond the next longer one f is asked at equal distances.
        Behind a flat part it goes on changing once it has begun to. In digits the next change is farther off
        than the first was from x.
        """
        silent = torch.stack([level.silent for level in self.levels])
        finite = torch.stack([level.ahead.isfinite() | level.behind.isfinite() for level in self.levels])
        # here and over all shorter
        still = (silent | ~finite[..., None]).flip(0).cummin(dim=0).values.flip(0)
        ends = still[1:] & silent[1:] & ~still[:-1]  # the next longer step changes f
        for number, (longer, shorter) in enumerate(pairwise(self.levels)):
            going = torch.nonzero(ends[number].any(dim=1)).flatten()
            if not len(going):
                continue
            between = [self._asked(going, longer.times * part) for part in BETWEEN]
            levels = (shorter, *between[:5], longer, *between[5:])
            flat, jumps = _begins(torch.stack([torch.stack((level.plus, level.minus)) for level in levels]))
            self.flat |= ends[number] & flat
            self.jumps = torch.where(ends[number], jumps, self.jumps)

    def _asked(self, going: Tensor, times: float) -> _Level:
        """Ask some numbers over steps of another length, both ways."""
        device = self.queries.values.device
        query = torch.cat([going, going + self.numbers]).to(device)
        changes, steps = [], []
        for _, step, results in self.queries.again(query, torch.zeros_like(query), times):
            changes.append(results[0].reshape(len(step), -1).double().cpu() - self.value)
            steps.append(step.cpu())
        change, step = torch.cat(changes), torch.cat(steps)
        sides = slice(len(going)), slice(len(going), None)
        wholes, lengths = [], []
        for half in sides:
            wholes.append(torch.full((self.numbers, len(self.value)), math.nan, dtype=torch.float64))
            wholes[-1][going] = change[half]
            lengths.append(torch.full((self.numbers,), math.nan, dtype=torch.float64))
            lengths[-1][going] = torch.where(step[half] != 0, step[half], math.nan)
        return _Level(times, *wholes, *lengths)


def _begins(values: Tensor) -> tuple[Tensor, Tensor]:
    """Say whether changes of f, at equal distances in sequence, begin without a jump; and the jump's size.

    Args:
        values: `(distances, 2, numbers, outputs)` both ways; over the first f has not changed.

    Returns:
        `(numbers, outputs)` bool, and the jump, zero where there is none.
    """
    size = values.nan_to_num(0.0).abs().amax(dim=(0, 1))
    changes, least = values.diff(dim=0), ROUNDED * size
    moved = changes.abs() > least
    still, place = ~moved.any(dim=0), moved.int().argmax(dim=0)
    ends = place == len(changes) - 1
    begin = [changes.gather(0, (place + k).clamp(max=len(changes) - 1)[None])[0] for k in range(3)]
    goes_on = [(part.abs() > least) & (part.sign() == begin[0].sign()) for part in begin[1:]]
    flat = goes_on[0] & goes_on[1] & ~ends
    jump = torch.where(begin[1].abs() <= least, begin[0].abs(), size)
    return (still | flat).all(dim=0), torch.where(still | flat, 0.0, jump).amax(dim=0)


def _coarse(slopes: Tensor, steps: Tensor, errors: Tensor, gaps: Tensor) -> Tensor:
    """Say whether no step gives more than a rough slope, `(numbers, outputs)`; zero is judged by sides."""
    least = errors.min(dim=0)
    sizes = torch.maximum(slopes.abs(), gaps.nan_to_num(0.0)).gather(0, least.indices[None])[0]
    return ~(least.values <= COARSE * sizes)


def _longest(x: Tensor, scale: Any) -> tuple[Tensor, Tensor]:
    """The longest step of each number to begin with, float64, and how many times that may be tried."""
    size = x.double().abs().cpu()
    if scale is None:
        longest = torch.where(size > 0, size, 1.0)
        return longest, max(1.0, float(size.max())) / longest
    try:
        longest = torch.as_tensor(scale).double().cpu().broadcast_to(size.shape).clone()
        positive = bool((longest.isfinite() & (longest > 0)).all())
    except (RuntimeError, TypeError, ValueError):
        positive, longest = False, size
    if not positive or bool((longest < FACTOR**3 * torch.finfo(x.dtype).eps * size).any()):
        raise ConfigurationError(
            "finite_difference, scale: expected positive numbers that broadcast to the shape "
            f"{tuple(x.shape)} of x, above its rounding, got {scale!r}. Give the size of a usual change of "
            "each number."
        )
    return longest, torch.ones_like(longest)


def _refuse_other_numbers(name: str, array: Tensor, mend: str) -> None:
    if array.dtype not in (torch.float32, torch.float64):
        got = str(array.dtype).removeprefix("torch.")
    elif not array.numel():
        got, mend = f"an array of shape {tuple(array.shape)}", "numbers to differentiate by"
    elif not bool(array.isfinite().all()):
        got, mend = "NaN or infinity", "a point at which f has a value"
    else:
        return
    raise ConfigurationError(
        f"finite_difference, {name}: expected finite numbers in float32 or float64, got {got}. Give {mend}."
    )
