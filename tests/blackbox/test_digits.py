"""The significant digits of numbers that were printed with a known number of them."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox.significant_digits import last_digit, significant_digits


def printed(values: np.ndarray, digits: int, dtype: str) -> np.ndarray:
    return np.array([float(f"{value:.{digits - 1}e}") for value in values]).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "digits"),
    [("float32", 2), ("float32", 5), ("float32", 6), ("float64", 3), ("float64", 6), ("float64", 14)],
)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_the_digits_are_those_that_were_printed(dtype, digits, size):
    generator = np.random.default_rng(0)
    values = size * np.exp(generator.uniform(0, 6.8, 400)) * generator.choice([-1, 1], 400)
    answers = printed(values, digits, dtype)
    answers[[0, 7, 20]] = 0.0, np.nan, np.inf
    assert significant_digits(answers) == digits
    assert significant_digits(answers.reshape(4, 100)) == digits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_with_all_digits_and_few_numbers_tell_none(dtype):
    for seed in range(20):
        values = np.random.default_rng(seed).standard_normal(12).astype(dtype)
        assert significant_digits(values) is None
    answers = printed(np.linspace(1, 900, 300), 5, dtype)
    answers[150] = np.pi  # one that has more
    assert significant_digits(answers) is None
    assert significant_digits(np.full(100, 1.5, dtype)) is None
    assert significant_digits(printed(np.linspace(1, 9, 4), 3, dtype)) is None
    assert significant_digits(printed(np.pi * np.arange(1, 8), 6, "float32")) is None  # 7 with a digit less
    assert significant_digits(printed(np.pi * np.arange(1, 9), 6, "float32")) == 6
    assert significant_digits(np.arange(100)) is None


def test_what_the_last_digit_is_worth():
    assert last_digit(123.456, 6) == pytest.approx(1e-3)
    assert last_digit(1.0, 1) == 1.0
    assert last_digit(0.0456, 3) == pytest.approx(1e-4)
