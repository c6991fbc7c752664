"""ECnoise on functions whose noise is known, and on those where there is none to find.

The estimate is a root mean square of a few differences. The paper takes orders that agree within a factor
of 4; so must the estimate with the truth, in 95 of 100 functions (three orders may agree by accident).
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from blackbox.conformance import ecnoise
from blackbox.conformance.noise import Status

FUNCTIONS, POINTS, SPACING = 500, 8, 1e-4
T = np.arange(POINTS) * SPACING


def smooth(seed: int = 0) -> np.ndarray:
    """`(functions, points)`: sums of waves and a cubic, of order one."""
    generator = np.random.default_rng(seed)
    a, b, c = generator.uniform(0.5, 2, (3, FUNCTIONS, 1))
    return 2 + np.sin(a * T + b) + 0.3 * np.cos(3 * T * c) + 0.1 * (b + T) ** 3


@pytest.mark.parametrize("level", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("kind", ["uniform", "gaussian", "rademacher"])
def test_noise_of_a_known_level(kind, level):
    generator = np.random.default_rng(1)
    shape = (FUNCTIONS, POINTS)
    noise = {
        "uniform": generator.uniform(-math.sqrt(3), math.sqrt(3), shape),
        "gaussian": generator.standard_normal(shape),
        "rademacher": generator.choice([-1.0, 1.0], shape),
    }[kind]
    found = ecnoise(smooth() + level * noise)
    detected = found.status == Status.DETECTED
    assert detected.mean() > 0.8
    ratio = found.level[detected] / level
    assert ((ratio > 1 / 4) & (ratio < 4)).mean() > 0.95
    # Pooled, the square is unbiased but for the choice of the order.
    assert 0.8 < math.sqrt(np.square(ratio).mean()) < 1.2


@pytest.mark.parametrize("digits", [4, 6, 8])
def test_rounding_is_uniform_noise(digits):
    """Steeper by 10^4 spacings, so that values fall anywhere in a step of the grid: s = step / sqrt(12)."""
    generator = np.random.default_rng(2)
    step = 10.0**-digits
    values = (
        5
        + generator.uniform(0, 1, (FUNCTIONS, 1))
        + generator.uniform(3, 50, (FUNCTIONS, 1))
        * step
        * (np.arange(POINTS) + 0.002 * np.arange(POINTS) ** 2)
    )
    found = ecnoise(np.round(values, digits))
    detected = found.status == Status.DETECTED
    ratio = found.level[detected] / (step / math.sqrt(12))
    assert detected.mean() > 0.7
    assert ((ratio > 1 / 4) & (ratio < 4)).mean() > 0.95


def test_the_rounding_of_float32():
    """Against the difference to float64, which is what the noise is."""
    exact = smooth()
    rounded = exact.astype(np.float32)
    found = ecnoise(rounded)
    truth = np.sqrt(np.square(rounded - exact).mean(axis=1))
    detected = found.status == Status.DETECTED
    ratio = found.level[detected] / truth[detected]
    assert detected.mean() > 0.8
    assert ((ratio > 1 / 4) & (ratio < 4)).mean() > 0.95


def test_the_estimates_are_those_of_the_definition():
    """s_k^2 = (k!)^2 / (2k)! times the mean square of k-th differences, here by binomial sums.

    Of the lowest order k whose differences change sign and whose estimate is within a factor of 4 of the
    next two.
    """
    noise = 0.1 * np.random.default_rng(3).standard_normal((50, POINTS))
    table = 100 + noise + np.linspace(0, 1, 50)[:, None] * np.arange(POINTS)  # steeper and steeper
    found = ecnoise(table).level
    orders = set()
    for row, values in enumerate(table):
        levels, changing = [], []
        for k in range(1, POINTS):
            weights = [(-1) ** i * math.comb(k, i) for i in range(k + 1)]
            differences = [np.dot(weights, values[j : j + k + 1]) for j in range(POINTS - k)]
            square = math.factorial(k) ** 2 / math.factorial(2 * k) * np.square(differences).mean()
            levels.append(math.sqrt(square))
            changing.append(min(differences) < 0 < max(differences))
        agree = [max(levels[k : k + 3]) <= 4 * min(levels[k : k + 3]) for k in range(POINTS - 3)]
        fit = [k for k in range(POINTS - 3) if agree[k] and changing[k]]
        assert math.isclose(found[row], levels[fit[0]], rel_tol=1e-9) if fit else math.isnan(found[row])
        orders.add(fit[0] if fit else None)
    assert len(orders) > 1  # else any rule of choice would pass


def test_what_is_no_noise():
    line = np.linspace(0, 1, POINTS)
    constant, far, bent = np.full(POINTS, 2.0), 3 * line, 20 + np.exp(line)
    steps = 1000 + np.floor(2.1 * line)
    failed = np.where(line > 0.5, np.nan, 2.0)
    found = ecnoise(np.stack([constant, steps, far, bent, failed]))
    assert found.status.tolist() == [
        Status.TOO_CLOSE,
        Status.TOO_CLOSE,
        Status.TOO_FAR,  # it varies by more than a tenth of its size
        Status.TOO_FAR,  # no order's differences change sign
        Status.TOO_FAR,
    ]
    assert np.isnan(found.level).all()


def test_too_few_points():
    with pytest.raises(ValueError, match=r"at least 4 points, got 3\. Take 8"):
        ecnoise(np.zeros((1, 3)))
