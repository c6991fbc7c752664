"""Grids that outputs lie on, of known steps."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox.conformance.noise import grid_step


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
