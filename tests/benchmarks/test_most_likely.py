"""The benchmark that looks for the likeliest unknowns: its oracle, and its table."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.posterior import most_likely
from benchmarks.posterior.contest import BOXES, Box


def test_the_adjoint_ends_where_the_gradient_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear box, whose least potential has a closed form, and all methods that know its derivative."""
    matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    box = Box(
        lambda x: x @ matrix.T,
        lambda rows, generator: torch.randn(rows, 3, generator=generator, dtype=torch.float64),
        torch.ones(5, dtype=torch.float64),
        0.1,
        lambda x: x @ matrix.T,
    )
    monkeypatch.setitem(BOXES, "line", lambda: box)
    monkeypatch.setitem(most_likely.SPREADS, "line", 2.0)
    precision = matrix.T @ matrix / 0.1**2 + torch.eye(3) / 2.0**2
    x = torch.linalg.solve(precision, matrix.T @ box.data / 0.1**2)
    least = float(((matrix @ x - box.data) / 0.1).square().sum() + (x / 2).square().sum()) / 2
    for method in ("adjoint", "twin"):
        course = most_likely.searched("line", method, 0, rows=8)["course"]
        assert course[-1] == pytest.approx(least, rel=1e-5)
        assert course == sorted(course, reverse=True)


def test_the_table_is_that_of_the_results() -> None:
    """The page says what is in the file."""
    results = json.loads(most_likely.FILE.read_text(encoding="utf-8"))["results"]
    table = most_likely.table(results)
    assert table == most_likely.FILE.with_suffix(".md").read_text(encoding="utf-8")
    assert most_likely.ratios({}, "poisson", "twin", 1) == []


def test_a_ratio_is_over_the_adjoints_least() -> None:
    """Made-up results: after three rows of a search that had two the last one counts."""
    results = {
        "poisson, adjoint, seed 0": {"course": [8.0, 2.0]},
        "poisson, twin, seed 0": {"course": [6.0, 3.0]},
    }
    assert most_likely.ratios(results, "poisson", "twin", 1) == [3.0]
    assert most_likely.ratios(results, "poisson", "twin", 3) == [1.5]
