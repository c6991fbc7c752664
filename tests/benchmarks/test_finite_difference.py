"""The benchmark of finite differences: its exact derivatives, what it counts, and the page that shows it."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import finite_difference as benchmark
from benchmarks import protocol

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "choose_mu.md"


def test_the_page_shows_the_committed_figures():
    committed = json.loads(protocol.path("finite_difference", "small").read_text(encoding="utf-8"))
    assert benchmark.table(committed["functions"]) in PAGE.read_text(encoding="utf-8")


def test_what_is_counted():
    truth = [np.array([1.0, -2.0, 4.0, 8.0])]
    found = [np.array([1.0, -2.2, 4.0, np.nan])]  # right, wrong, right with a wide error, unknown
    allowed = [np.array([0.0, 0.0, 1.0, 0.0])]
    judged = benchmark.judged(found, truth, allowed)
    assert judged["false alarms"] == 0.5 and judged["misses"] == 0.25
    assert judged["median"] == pytest.approx(np.hypot(0.2, 8) / np.sqrt(85))


def test_a_failed_side_is_unknown():
    random = np.random.default_rng(0)
    function = benchmark.FUNCTIONS["the edge of a domain: log(x)"]
    x = function.points(random)
    slopes = benchmark.central(function.called(random), x, np.array([2, 1e-3, 2, 1e-3, 2, 2]) * x)
    np.testing.assert_allclose(slopes[[1, 3]], function.exact(x)[[1, 3]], rtol=1e-5)
    assert np.isnan(slopes[[0, 2, 4, 5]]).all()


@pytest.mark.slow
def test_what_an_optimiser_reaches_by_each_gradient():
    """Four digits hide a step of 1e-4, whose gradient is zero; the exact gradient's decrease is all of it."""
    printed = benchmark.served(benchmark.FUNCTIONS["printed with 4 digits"], 1, 1e-1)
    assert printed["fixed"] == printed["by size"] == 0.0
    assert printed["chosen"] > 0.9
    smooth = benchmark.served(benchmark.FUNCTIONS["smooth"], 1, 1e-5)
    assert smooth == pytest.approx(dict.fromkeys(benchmark.METHODS, 1.0), abs=1e-3)
