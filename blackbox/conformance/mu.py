"""Which mu to take: derivatives on a ladder of steps, weighed against the noise.

Forward differences, More and Wild, *Estimating derivatives of noisy simulations*, ACM Trans. Math. Softw. 38
(2012) 19: the mean square error 2 s^2 / mu^2 + mu^2 |f''|^2 / 4 is least at mu = 8^(1/4) sqrt(s / |f''|). For
central ones it is s^2 / 2 mu^2 + mu^4 |f'''|^2 / 36, least at mu = (3 s / |f'''|)^(1/3). s, f'' and f''' are
root mean squares over lines and output numbers, which makes the sum of all errors least.

The noise that counts is that of the differences at mu itself, which need not be ECnoise's on much shorter
lines: a rounded probability that stays at 0 has none. So s is read off the second differences. Their mean
square is 6 s^2 + h^4 |f''|^2; over h^2 it is least close to the best forward step, where it is 14 s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blackbox.conformance.lines import Lines, Responses, draw_lines
from blackbox.conformance.noise import POINTS, measure_noise
from blackbox.conformance.probe import OutOfRowsError, Probe
from blackbox.conformance.report import Finding, Recommendation, Steps, Verdict

LINES, FEWEST = 32, 2
USELESS = 0.3  # expected error of central slopes, over their size, that deserves a warning


def noise_and_mu(probe: Probe) -> list[Finding]:
    """The noise level of the outputs, and one finding "mu of 'input'" for each differentiable input."""
    inputs = [place for place, spec in enumerate(probe.box.inputs) if spec.differentiable]
    if not inputs or not any(spec.differentiable for spec in probe.box.outputs):
        return [Finding("noise level", Verdict.SKIPPED, "No derivative is wanted of this box.")]
    responses = Responses(probe)
    # Half of the budget; a line costs at most three tries of ECnoise and two ladders of 30 steps both ways.
    affordable = probe.left / 2 / len(inputs) / (3 * POINTS + 2 * 60)
    count = LINES if math.isinf(affordable) else int(min(LINES, max(FEWEST, affordable)))
    findings, noise = [], np.zeros(len(responses.output))
    for place in inputs:
        along = draw_lines(probe, place, count, "directions")
        own = measure_noise(responses, along)
        noise = np.maximum(noise, own)
        steps = recommend(responses, along, own)
        single = recommend(responses, draw_lines(probe, place, count, "coordinates"), own)
        findings.append(_mu(probe, place, single, steps))
    for place in responses.places:
        level = noise[responses.output == place]
        probe.measured.noise[place] = float(np.sqrt(np.square(level).mean())) * responses.spread[place]
    return [_noise(probe, responses, noise), *findings]


def _noise(probe: Probe, responses: Responses, noise: np.ndarray) -> Finding:
    relative = float(np.sqrt(np.square(noise).mean()))
    rounding = float(np.sqrt(np.square(responses.rounding).mean()))
    each = ", ".join(
        f"{probe.measured.noise[place]:.2g} in {probe.box.outputs[place].name!r}"
        for place in responses.places
    )
    if any(probe.measured.quanta[place] for place in responses.places):
        source = "as the quantisation makes it"
    elif relative <= 1.01 * rounding:
        source = "no more than rounding: the outputs themselves seem exact"
    else:
        source = f"{relative / rounding:.2g} times the rounding of the outputs" if rounding else "measured"
    return Finding("noise level", Verdict.OK, f"{each}; {source}.", relative, "of the outputs' spread")


def _mu(probe: Probe, place: int, single: Steps | None, along: Steps | None) -> Finding:
    spec = probe.box.inputs[place]
    name = f"mu of {spec.name!r}"
    if single is None or along is None:
        sentence = (
            "The outputs do not change along it, up to its own spread: no mu makes a gradient. If it has no "
            "effect, say differentiable=False; if outputs are steps, give samples that lie farther apart."
        )
        return Finding(name, Verdict.WARNING, sentence)
    found = Recommendation(spec.name, math.prod(spec.shape), single, along)
    probe.measured.recommendations.append(found)
    long_forward, long_central = found.long_directions
    said = (
        f"CGE: forward {single.forward:.1e}, central {single.central:.1e}. Directions of unit "
        f"length: {along.forward:.1e}, antithetic {along.central:.1e}; Gaussian, Rademacher: "
        f"{long_forward:.1e}, {long_central:.1e}. Slopes are off by "
        f"{_percent(single.forward_error)} forward, "
        f"{_percent(single.central_error)} central."
    )
    if single.linear:
        said += " No curvature stands out of the noise: forward steps are as large as the input's spread."
    best = min(single.forward_error, single.central_error, along.forward_error, along.central_error)
    if best > USELESS:
        said += " Noise drowns the slopes at any mu: lower it, or average over many queries."
        return Finding(name, Verdict.WARNING, said, single.forward, "forward, a coordinate")
    return Finding(name, Verdict.OK, said, single.forward, "forward, a coordinate")


def _percent(error: float) -> str:
    return "more than 100 %" if error > 1 else f"{100 * error:.2g} %"


@dataclass(frozen=True)
class _Rule:
    """The square error of a slope: s^2 / `noisy` mu^2 + |derivative|^2 mu^(2 order - 2) / `bent`."""

    order: int  # of the derivative that bends the slope
    factor: float  # variance of its difference over s^2
    noisy: float
    bent: float

    def derivative(self, ladder: Ladder, noise: float) -> float:
        """The sum of its squares, at the smallest step where it stands out; 0 if it does not."""
        squares = ladder.second if self.order == 2 else ladder.third
        level = ladder.smallest_clear(squares, self.factor, noise)
        if level is None:
            return 0.0
        own = self.factor * max(noise, ladder.quantised[level])
        return (squares[level] - own) / ladder.h[level] ** (2 * self.order)

    def best(self, noise: float, derivative: float, lines: Lines) -> float:
        """The mu of least error, between the ends of the ladder."""
        if derivative == 0.0:
            return lines.longest
        mu = (self.bent / self.noisy / (self.order - 1) * noise / derivative) ** (1 / (2 * self.order))
        return min(max(mu, lines.shortest), lines.longest)

    def error(self, noise: float, derivative: float, mu: float) -> float:
        """Its root, summed as the ladder is."""
        return math.sqrt(noise / self.noisy / mu**2 + derivative * mu ** (2 * self.order - 2) / self.bent)


FORWARD = _Rule(2, 6.0, 1 / 2, 4.0)
CENTRAL = _Rule(3, 2.5, 2.0, 36.0)


def recommend(responses: Responses, lines: Lines, noise: np.ndarray) -> Steps | None:
    """The best steps along lines.

    Args:
        responses: what is looked at.
        lines: where.
        noise: `(columns,)`, the noise level of the responses.

    Returns:
        None where the outputs do not change along any line.
    """
    ladder = climb_down(responses, lines, noise)
    if ladder is None:
        return None
    square = ladder.noise_at_best()
    bend, twist = FORWARD.derivative(ladder, square), CENTRAL.derivative(ladder, square)
    if bend == 0.0:  # all of the second difference is noise
        square = ladder.second[ladder.nearest(lines.longest)] / 6
    forward, central = FORWARD.best(square, bend, lines), CENTRAL.best(square, twist, lines)
    near = ladder.nearest(central)
    slopes = max(ladder.first[near] - 0.5 * square, 1e-6 * square, 1e-300)
    slope = math.sqrt(slopes) / ladder.h[near]
    return Steps(
        forward,
        central,
        FORWARD.error(square, bend, forward) / slope,
        CENTRAL.error(square, twist, central) / slope,
        bend == 0.0,
    )


MOVED = 8  # numbers that must move at a step for its differences to be looked at
CLEAR = 3.0  # a difference counts when its root mean square is so many times what noise alone makes
BLOCK = 6  # steps of the ladder in one call


@dataclass
class Ladder:
    """Sums over lines and columns at steps h, largest first: squares of differences, and of the noise."""

    h: list[float]
    second: list[float]  # [f(h) - 2 f(0) + f(-h)]^2, no less than rounding makes it
    third: list[float]  # [f(2h) - 2 f(h) + 2 f(-h) - f(-2h)]^2 / 4; NaN on the first step
    first: list[float]  # [f(h) - f(-h)]^2 / 4
    expected: list[float]  # s^2 by ECnoise
    quantised: list[float]  # s^2 by the quantisation of those numbers that move
    moving: list[bool]  # whether enough numbers move for the sums to say something

    def noise_at_best(self) -> float:
        """s^2 of the noise at the step where forward differences are about best."""
        errors = [
            s / h**2 if m else math.inf for s, h, m in zip(self.second, self.h, self.moving, strict=True)
        ]
        level = int(np.argmin(errors))
        return max(self.second[level] / 14, self.quantised[level])

    def smallest_clear(self, squares: list[float], factor: float, noise: float) -> int | None:
        """The smallest step at which a difference stands out, the end of an unbroken run of such steps."""
        # Of few numbers that jump from step to step, the noise is that of more and more as h grows.
        clear = [s > CLEAR**2 * factor * max(noise, q) for s, q in zip(squares, self.quantised, strict=True)]
        last = None
        for level, good in enumerate(clear):
            if good:
                last = level
            elif last is not None and not any(clear[level : level + 2]):
                break
        return last

    def nearest(self, mu: float) -> int:
        """The step nearest to mu."""
        return int(np.argmin(np.abs(np.log(np.array(self.h) / mu))))


def climb_down(responses: Responses, lines: Lines, noise: np.ndarray) -> Ladder | None:
    """Halve the step, from twice the input's spread on, until noise is all there is.

    Args:
        responses: what is looked at.
        lines: where.
        noise: `(columns,)`, the noise level of the responses.

    Returns:
        None where the outputs do not change along any line.
    """
    levels = max(2, 1 + math.ceil(math.log2(lines.longest / lines.shortest)) if lines.shortest > 0 else 48)
    steps = 2 * lines.longest * 2.0 ** -np.arange(levels)
    measured = responses.probe.measured
    quanta = [measured.quanta[place] / responses.spread[place] for place in responses.output]
    zero = responses.along(lines, np.zeros(1))[:, 0]
    plus: list[np.ndarray] = []
    minus: list[np.ndarray] = []
    ladder = None
    for start in range(0, levels, BLOCK):
        block = steps[start : start + BLOCK]
        try:
            values = responses.along(lines, np.concatenate([block, -block]))
        except OutOfRowsError:
            if start == 0:
                raise
            break
        plus += list(values[:, : len(block)].transpose(1, 0, 2))
        minus += list(values[:, len(block) :].transpose(1, 0, 2))
        # Numbers that never move, a saturated probability, have neither noise nor curvature here.
        active = np.any([(p != zero) & np.isfinite(p - zero) for p in [*plus, *minus]], axis=0)
        if not active.any():
            return None
        ladder = _sums(
            steps, zero, plus, minus, np.where(active, noise, np.nan), responses.rounding, np.array(quanta)
        )
        sums = zip(ladder.second[start:], ladder.third[start:], ladder.expected[start:], strict=True)
        if not any(second > CLEAR**2 * 6 * n or third > CLEAR**2 * 2.5 * n for second, third, n in sums):
            break
    return ladder


def _sums(
    steps: np.ndarray,
    zero: np.ndarray,
    plus: list[np.ndarray],
    minus: list[np.ndarray],
    noise: np.ndarray,
    rounding: np.ndarray,
    quanta: np.ndarray,
) -> Ladder:
    ladder = Ladder([], [], [], [], [], [], [])
    enough = min(MOVED, max(1, int(np.isfinite(noise).sum()) // 2))
    for level, (p, m) in enumerate(zip(plus, minus, strict=True)):
        second, first = p - 2 * zero + m, (p - m) / 2
        third = (plus[level - 1] - minus[level - 1]) / 2 - (p - m) if level else np.full_like(p, np.nan)
        seen = np.isfinite(noise) & np.isfinite(second) & (np.isfinite(third) | (level == 0))
        least = 6 * float(np.square(np.broadcast_to(rounding, seen.shape)[seen]).sum())
        ladder.h.append(float(steps[level]))
        ladder.second.append(max(float(np.square(second[seen]).sum()), least))
        ladder.third.append(float(np.square(third[seen]).sum()))
        ladder.first.append(float(np.square(first[seen]).sum()))
        ladder.expected.append(float(np.square(noise[seen]).sum()))
        moved = seen & ((p != zero) | (m != zero))
        ladder.quantised.append(float(np.square(np.broadcast_to(quanta, seen.shape)[moved]).sum()) / 12)
        ladder.moving.append(int(moved.sum()) >= enough)
    return ladder
