"""The checks that measure, on boxes whose answer is known: grids, and speed by a given clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackbox.conformance import Verdict
from blackbox.conformance.calls import speed
from blackbox.conformance.noise import grid_step
from tests.blackbox.conformance.broken_boxes import Good
from tests.blackbox.conformance.probes import draws, probing


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("step", [1e-3, 0.01, 1 / 256, 0.7, 25.0])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_a_grid_is_found_with_its_step(step, offset, dtype):
    values = np.random.default_rng(0).standard_normal(2000) * 40 * step
    on_grid = (np.rint(values / step) * step + offset).astype(dtype)
    assert grid_step(on_grid) == pytest.approx(step, rel=1e-3)
    sparse = (np.rint(values / step)[:30] * 3 + 7 * (np.arange(30) % 2)) * step + offset
    assert grid_step(sparse.astype(dtype)) == pytest.approx(step, rel=1e-3)  # few gaps are one step wide


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(5))
def test_no_grid_is_found_where_there_is_none(seed, dtype):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(2000)
    assert grid_step(values.astype(dtype)) == 0.0
    assert grid_step((1000 + values[:30]).astype(dtype)) == 0.0
    assert grid_step(np.exp(5 * values).astype(dtype)) == 0.0
    assert grid_step(np.array([1.0, 2.0, np.nan], dtype)) == 0.0  # too few to say
    assert grid_step(np.full(100, 3.0, dtype)) == 0.0


class Shaped(Good):
    def __init__(self, function: Any) -> None:
        self.function = function
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("call", "row", "crowded", "best", "verdict"),
    [
        (0.0, 1e-3, 0.0, 1, Verdict.OK),  # nothing gained by blocks
        (1e-3, 1e-3, 0.0, 16, Verdict.OK),  # 1 + 1/16 of the least: within 10 % of 1 + 1/256
        (2.0, 1e-3, 0.0, 256, Verdict.WARNING),  # a program that starts anew for each call
        (0.0, 1e-3, 1e-4, 1, Verdict.OK),
        (0.01, 1e-4, 1e-5, 32, Verdict.OK),  # 0.01 / n + 1e-5 n is least at sqrt(1000)
    ],
)
def test_the_best_block_by_a_clock_of_our_own(call, row, crowded, best, verdict):
    time = [0.0]

    def work(x: Any) -> Any:
        time[0] += call + len(x) * row + len(x) ** 2 * crowded
        return x

    with probing(Shaped(work), draws(8, 3)) as probe:
        found = speed(probe, lambda: time[0])
    assert (found.number, found.verdict) == (best, verdict)


def test_no_larger_calls_are_tried_when_one_takes_long():
    sizes: list[int] = []
    time = [0.0]

    def work(x: Any) -> Any:
        sizes.append(len(x))
        time[0] += 3.0 * len(x)
        return x

    with probing(Shaped(work), draws(2, 3)) as probe:
        sizes.clear()
        speed(probe, lambda: time[0])
    assert max(sizes) == 2
