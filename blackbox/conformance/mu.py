"""The choice of mu: derivatives on a ladder of steps, weighed against the noise.

Forward differences, More and Wild, *Estimating derivatives of noisy simulations*, ACM Trans. Math. Softw. 38
(2012) 19: the mean square error 2 s^2 / mu^2 + mu^2 |f''|^2 / 4 is least at mu = 8^(1/4) sqrt(s / |f''|). For
central ones it is s^2 / 2 mu^2 + mu^4 |f'''|^2 / 36, least at mu = (3 s / |f'''|)^(1/3). s, f'' and f''' are
root mean squares over lines and output numbers, which makes the sum of all errors least.

The noise of the differences at mu itself counts. It need not be ECnoise's, on much shorter lines: a rounded
probability that stays at 0 has none. So s is read off the second differences. Their mean square is
6 s^2 + h^4 |f''|^2; over h^2 it is least close to the best forward step, where it is 14 s^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from blackbox.conformance.check_report import Finding, Recommendation, Steps, Verdict
from blackbox.conformance.lines import Lines, Responses, draw_lines
from blackbox.conformance.noise import POINTS, measure_noise
from blackbox.conformance.probe import OutOfRowsError, Probe, not_measured

LINES, FEWEST = 32, 2  # lines for each input: the most, and with a small budget the fewest
USELESS = 0.3  # expected error of slopes, over their size, that deserves a warning
MOVED = 8  # numbers that must move at a step for its differences to be looked at
CLEAR = 3.0  # a difference counts when its root mean square is so many times what noise alone makes
BLOCK = 6  # steps of the ladder in one call


def noise_and_mu(probe: Probe) -> list[Finding]:
    """The noise level of the outputs, and one finding "mu of 'input'" for each differentiable input."""
    inputs = [place for place, spec in enumerate(probe.box.inputs) if spec.differentiable]
    if not inputs or not any(spec.differentiable for spec in probe.box.outputs):
        return [Finding("noise level", Verdict.SKIPPED, "Not measured: no derivative is wanted of this box.")]
    responses = Responses(probe)
    # Half of the budget; a line costs at most three tries of ECnoise and two ladders of 30 steps both ways.
    affordable = probe.left / 2 / len(inputs) / (3 * POINTS + 2 * 60)
    count = LINES if math.isinf(affordable) else int(min(LINES, max(FEWEST, affordable)))
    findings, noise = [], np.zeros(len(responses.output))
    for place in inputs:
        along = draw_lines(probe, place, count, "directions")
        try:
            noise_along = measure_noise(responses, along)
            noise = np.maximum(noise, noise_along)
            steps = recommend(responses, along, noise_along)
            single = steps  # of one number, a coordinate is the only direction
            if math.prod(probe.box.inputs[place].shape) > 1:
                single = recommend(responses, draw_lines(probe, place, count, "coordinates"), noise_along)
            findings.append(_mu(probe, place, single, steps))
        except OutOfRowsError as out:
            if not noise.any():
                raise
            findings.append(not_measured(probe, f"mu of {probe.box.inputs[place].name!r}", out))
    return [_noise(probe, responses, noise, count), *findings]


def _noise(probe: Probe, responses: Responses, noise: np.ndarray, lines: int) -> Finding:
    relative = float(np.sqrt(np.square(noise).mean()))
    rounding = float(np.sqrt(np.square(responses.rounding).mean()))
    levels = []
    for place in responses.places:
        level = float(np.sqrt(np.square(noise[responses.output == place]).mean())) * responses.spread[place]
        levels.append(f"{level:.2g} in {probe.box.outputs[place].name!r}")
    if any(probe.quanta[place] for place in responses.places):
        source = "which is that of their steps (quantisation)"
    elif relative <= 1.01 * rounding:
        source = "no more than their rounding"
    else:
        source = f"{relative / rounding:.2g} times their rounding" if rounding else "as measured"
    if _random(probe):
        sentence = f"Standard deviation of the noise in the outputs: {', '.join(levels)}; {source}."
    else:
        sentence = (
            "No random noise: equal calls agree. Along a line the outputs scatter about a smooth curve by a "
            f"standard deviation of {', '.join(levels)}; {source}."
        )
    sentence += f" On {lines} lines for each input."
    return Finding("noise level", Verdict.OK, sentence, relative, "of the outputs' spread")


def _mu(probe: Probe, place: int, single: Steps | None, along: Steps | None) -> Finding:
    spec = probe.box.inputs[place]
    name = f"mu of {spec.name!r}"
    if single is None or along is None:
        sentence = (
            "The outputs do not change along this input, up to its own spread, so no mu gives a gradient. If "
            "it has no effect, say differentiable=False; if outputs are steps, give samples that lie farther "
            "apart, or learn the box from its values (zo.tangents.StudentTangent, the method student)."
        )
        return Finding(name, Verdict.WARNING, sentence)
    units, unit = probe.unit(place)
    recommendation = Recommendation(spec.name, math.prod(spec.shape), single, along, unit)
    probe.recommendations.append(recommendation)
    long_forward, long_central = recommendation.long_directions
    words = (
        f"CGE: forward {single.forward:.1e}, central {single.central:.1e}. Directions of unit "
        f"length: forward {along.forward:.1e}, central {along.central:.1e}; Gaussian and Rademacher: "
        f"forward {long_forward:.1e}, central {long_central:.1e}. Expected error of a CGE slope: "
        f"{_percent(single.forward_error)} forward, {_percent(single.central_error)} central."
    )
    if single.linear:
        words += (
            " No curvature is distinguishable from noise: forward steps are as long as the input's spread."
        )
    if unit == "scale":
        words += " These are in the scale of the input's spec, as zo takes them."
    elif unit == "spread":
        words += (
            f" Numbers of {spec.name!r} vary by {units.min():.1g} to {units.max():.1g} over the samples: no "
            "one mu is right for all, and these are in the spread of each. Give the spec "
            "scale=samples.std(axis=0), and zo takes its mu so."
        )
    best = min(single.forward_error, single.central_error, along.forward_error, along.central_error)
    if best > USELESS:
        words += _useless(probe)
        return Finding(name, Verdict.WARNING, words, single.forward, "forward, a coordinate")
    verdict = Verdict.WARNING if unit == "spread" else Verdict.OK
    return Finding(name, verdict, words, single.forward, "forward, a coordinate")


def _useless(probe: Probe) -> str:
    """Advise where no mu gives a slope: equal calls that agree to the bit are not noisy."""
    if _random(probe):
        return " Noise drowns the slopes at any mu: make the box less noisy, or average over many queries."
    return (
        " No mu gives slopes, and not for noise, since equal calls agree: the outputs bend, jump or come in "
        "steps within every step that is above their rounding. Learn the box from its values "
        "(zo.tangents.StudentTangent, the method student), or smooth it."
    )


def _random(probe: Probe) -> bool:
    """Say whether equal calls differed, or the box says that they may."""
    return any(probe.jitter) or not probe.box.deterministic


def _percent(error: float) -> str:
    return "more than 100 %" if error > 1 else f"{100 * error:.2g} %"


@dataclass(frozen=True)
class Rung:
    """One step of a ladder: squares of differences there and of the noise, summed over lines and columns.

    Attributes:
        h: the step.
        first: the sum for [f(h) - f(-h)] / 2.
        second: the sum for f(h) - 2 f(0) + f(-h), and no less than rounding gives.
        third: the sum for [f(2h) - 2 f(h) + 2 f(-h) - f(-2h)] / 2; 0 at the first step.
        expected: the noise's variance, by ECnoise.
        quantised: the noise's variance, by the quantisation of the numbers that move.
        moving: whether enough numbers move for meaningful sums.
    """

    h: float
    first: float
    second: float
    third: float
    expected: float
    quantised: float
    moving: bool


@dataclass(frozen=True)
class _Rule:
    """The square error of a slope: s^2 / `noisy` mu^2 + |derivative|^2 mu^(2 order - 2) / `bent`."""

    order: int  # of the derivative that bends the slope
    factor: float  # variance of its difference over s^2
    noisy: float
    bent: float

    def difference(self, rung: Rung) -> float:
        return rung.second if self.order == 2 else rung.third

    def clear(self, rung: Rung, noise: float) -> bool:
        """Say whether the difference is distinguishable from noise of this variance."""
        return self.difference(rung) > CLEAR**2 * self.factor * noise

    def derivative(self, ladder: list[Rung], noise: float) -> float:
        """The sum of its squares, at the smallest step where it is clear; 0 if it is nowhere."""
        # Of few numbers that jump from step to step, the noise is that of more and more as h grows.
        clear = [self.clear(rung, max(noise, rung.quantised)) for rung in ladder]
        if not any(clear):
            return 0.0
        last = clear.index(True)
        while any(clear[last + 1 : last + 3]):  # one step that is not clear may lie between
            last += 1 if clear[last + 1] else 2
        rung = ladder[last]
        noise_part = self.factor * max(noise, rung.quantised)
        return (self.difference(rung) - noise_part) / rung.h ** (2 * self.order)

    def best(self, noise: float, derivative: float, lines: Lines) -> float:
        """The mu of least error, between the ends of the ladder."""
        if derivative == 0.0:
            return lines.longest
        mu = (self.bent / self.noisy / (self.order - 1) * noise / derivative) ** (1 / (2 * self.order))
        return min(max(mu, lines.shortest), lines.longest)

    def error(self, noise: float, derivative: float, mu: float) -> float:
        """The root of the square error, summed as in the ladder."""
        return math.sqrt(noise / self.noisy / mu**2 + derivative * mu ** (2 * self.order - 2) / self.bent)


FORWARD = _Rule(2, 6.0, 1 / 2, 4.0)
CENTRAL = _Rule(3, 2.5, 2.0, 36.0)


def recommend(responses: Responses, lines: Lines, noise: np.ndarray) -> Steps | None:
    """The best steps along lines; None where the outputs do not change along any.

    Args:
        responses: the numbers that are looked at.
        lines: the lines through the samples.
        noise: the noise level of the responses, `(columns,)`.
    """
    ladder = climb_down(responses, lines, noise)
    if ladder is None:
        return None
    square = _noise_at_best(ladder)
    bend, twist = FORWARD.derivative(ladder, square), CENTRAL.derivative(ladder, square)
    if bend == 0.0:  # all of the second difference is noise
        square = _nearest(ladder, lines.longest).second / 6
    forward, central = FORWARD.best(square, bend, lines), CENTRAL.best(square, twist, lines)
    near = _nearest(ladder, central)
    slope = math.sqrt(max(near.first - 0.5 * square, 1e-6 * square, 1e-300)) / near.h
    return Steps(
        forward,
        central,
        FORWARD.error(square, bend, forward) / slope,
        CENTRAL.error(square, twist, central) / slope,
        bend == 0.0,
    )


def _noise_at_best(ladder: list[Rung]) -> float:
    """The noise's variance at the step where forward differences are about best."""
    best = min(ladder, key=lambda rung: rung.second / rung.h**2 if rung.moving else math.inf)
    return max(best.second / 14, best.quantised)


def _nearest(ladder: list[Rung], mu: float) -> Rung:
    return min(ladder, key=lambda rung: abs(math.log(rung.h / mu)))


def climb_down(responses: Responses, lines: Lines, noise: np.ndarray) -> list[Rung] | None:
    """Halve the step, from twice the input's spread on, until only noise is left.

    Args:
        responses: the numbers that are looked at.
        lines: the lines through the samples.
        noise: the noise level of the responses, `(columns,)`.

    Returns:
        The ladder, the largest step first; None where the outputs do not change along any line.
    """
    levels = max(2, 1 + math.ceil(math.log2(lines.longest / lines.shortest)) if lines.shortest > 0 else 48)
    steps = 2 * lines.longest * 2.0 ** -np.arange(levels)
    zero = responses.along(lines, np.zeros(1))
    plus = minus = np.zeros((len(lines.rows), 0, zero.shape[2]))  # (lines, steps, columns)
    ladder = None
    for start in range(0, levels, BLOCK):
        block = steps[start : start + BLOCK]
        try:
            values = responses.along(lines, np.concatenate([block, -block]))
        except OutOfRowsError:
            if start == 0:
                raise
            break
        plus = np.concatenate([plus, values[:, : len(block)]], axis=1)
        minus = np.concatenate([minus, values[:, len(block) :]], axis=1)
        ladder = _rungs(responses, steps, zero, plus, minus, noise)
        if ladder is None:
            return None
        last = ladder[start:]
        if not any(FORWARD.clear(rung, rung.expected) or CENTRAL.clear(rung, rung.expected) for rung in last):
            break
    return ladder


def _rungs(
    responses: Responses,
    steps: np.ndarray,
    zero: np.ndarray,
    plus: np.ndarray,
    minus: np.ndarray,
    noise: np.ndarray,
) -> list[Rung] | None:
    """The ladder of values at the steps, at their negatives and between them, `(lines, steps, columns)`."""
    second, first = plus - 2 * zero + minus, (plus - minus) / 2
    third = np.zeros_like(first)
    third[:, 1:] = first[:, :-1] - 2 * first[:, 1:]
    moved = np.isfinite(second) & ((plus != zero) | (minus != zero))
    # Numbers that never move, a saturated probability, have neither noise nor curvature here.
    active = moved.any(axis=1, keepdims=True)
    if not active.any():
        return None
    columns = active & np.isfinite(second) & np.isfinite(third)
    quanta = responses.probe.quanta
    quantum = np.array([quanta[place] / responses.spread[place] for place in responses.output])
    enough = min(MOVED, max(1, int(active.sum()) // 2))

    def summed(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.where(where, np.square(values), 0.0).sum(axis=(0, 2))

    sums = [
        summed(first, columns),
        np.maximum(summed(second, columns), 6 * summed(responses.rounding, columns)),
        summed(third, columns),
        summed(noise, columns),
        summed(quantum, columns & moved) / 12,
    ]
    moving = (columns & moved).sum(axis=(0, 2)) >= enough
    return [
        Rung(float(steps[level]), *(float(total[level]) for total in sums), moving=bool(moving[level]))
        for level in range(plus.shape[1])
    ]
