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

from blackbox.conformance.ladder import Ladder, climb_down
from blackbox.conformance.lines import Lines, Responses
from blackbox.conformance.probe import Probe
from blackbox.conformance.recommendation import Steps


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


def recommend(probe: Probe, responses: Responses, lines: Lines, noise: np.ndarray) -> Steps | None:
    """The best steps along lines.

    Args:
        probe: the box.
        responses: what is looked at of it.
        lines: where.
        noise: `(columns,)`, of the responses.

    Returns:
        None where the outputs do not change along any line.
    """
    ladder = climb_down(probe, responses, lines, noise)
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
