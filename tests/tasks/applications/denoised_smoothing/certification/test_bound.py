"""The bound against the binomial distribution itself, summed in 50 digits and inverted by bisection."""

import math
from itertools import product

import mpmath
import numpy as np
import pytest
from scipy import stats

from tasks.applications.denoised_smoothing.certification import (
    Settings,
    lower_bound,
    radius,
    radius_cap,
    vote_is_clear,
)

mpmath.mp.dps = 50


def upper_tail(successes, trials, p):
    """P(Binomial(trials, p) >= successes), term by term."""
    return mpmath.fsum(
        mpmath.binomial(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(successes, trials + 1)
    )


def exact_lower_bound(successes, trials, alpha):
    low, high = mpmath.mpf(0), mpmath.mpf(1)
    for _ in range(80):
        middle = (low + high) / 2
        if upper_tail(successes, trials, middle) > alpha:
            high = middle
        else:
            low = middle
    return float(low)


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize(
    "successes, trials",
    [(1, 1), (1, 10), (7, 10), (10, 10), (55, 100), (99, 100), (993, 1000), (99_998, 100_000)],
)
def test_the_lower_bound_is_clopper_and_pearson_s(successes, trials, alpha):
    assert lower_bound(successes, trials, alpha) == pytest.approx(
        exact_lower_bound(successes, trials, alpha), rel=1e-10
    )


def test_no_success_bounds_nothing():
    assert lower_bound(0, 100, 0.001) == 0.0


@pytest.mark.parametrize("trials, alpha", list(product([1, 5, 60, 400], [0.05, 0.001])))
def test_the_bound_is_above_the_truth_with_probability_alpha_at_most(trials, alpha):
    bounds = np.array([lower_bound(k, trials, alpha) for k in range(trials + 1)])
    truths = np.concatenate([np.linspace(0.01, 0.99, 99), bounds[1:-1] - 1e-9])  # just where it is worst
    for p in truths:
        assert stats.binom.pmf(np.arange(trials + 1), trials, p)[bounds > p].sum() <= alpha * (1 + 1e-9)


def test_and_not_much_less_often():
    """Else a bound of zero would pass: just below a bound the probability is alpha itself."""
    bound = lower_bound(90, 100, 0.05)
    assert stats.binom.sf(89, 100, bound) == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("p", [0.5000001, 0.6, 0.9, 0.999999])
def test_the_radius_is_that_of_the_theorem(p):
    exact = mpmath.mpf("0.5") * mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1)
    assert radius(0.5, p) == pytest.approx(float(exact), rel=1e-7)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5])
def test_half_certifies_nothing(p):
    assert radius(0.5, p) == 0.0


@pytest.mark.parametrize("n, quoted", [(100, 0.375), (1000, 0.616), (10_000, 0.80), (100_000, 0.95)])
def test_n_caps_the_radius(n, quoted):
    # all N for one class: P(Binomial(N, p) >= N) = p^N = alpha
    p = mpmath.mpf("0.001") ** (mpmath.mpf(1) / n)
    exact = float(mpmath.mpf("0.25") * mpmath.sqrt(2) * mpmath.erfinv(2 * p - 1))
    assert radius_cap(0.25, n, 0.001) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(quoted, abs=0.005)


def test_the_cap_is_warned_of_where_a_radius_lies_beyond():
    words = Settings(0.25, n=1000).cap_warning()
    assert words is not None and "0.616" in words and "accuracy at 0.75 is 0" in words
    assert Settings(0.25, n=10_000).cap_warning() is None
    words = Settings(0.25, n=100).cap_warning()
    assert words is not None and "0.375" in words and "at 0.5, 0.75 is 0" in words


def test_the_vote_is_the_two_sided_binomial_test():
    for first, second in [(1, 0), (9, 1), (10, 0), (60, 40), (40, 40), (70, 30), (0, 0), (670, 330)]:
        total = first + second
        tail = sum(math.comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= first - second)
        expected = first > 0 and tail / 2**total <= 0.001
        assert vote_is_clear(first, second, 0.001) is expected
