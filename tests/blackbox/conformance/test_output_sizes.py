"""Over how many decades the numbers of an output go, from sample to sample."""

import numpy as np

from blackbox.conformance.sizes import decades


def test_a_square_is_of_one_size_and_a_rate_of_many():
    draws = np.random.default_rng(0).standard_normal(64)
    assert decades(draws**2) < 3.0 < decades(np.exp(6 * draws)) == decades(-np.exp(6 * draws))
    assert decades(draws) == decades(np.append(np.exp(6 * draws), 0.0)) == 0.0
