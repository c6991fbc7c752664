"""Runs of the ring, the ensemble against a closed form, and the table."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.posterior import flux_force
from benchmarks.posterior.flux_force import SPREAD, STEP, WEIGHTS, march


def test_statistics_are_those_of_the_steps():
    rng = np.random.default_rng(0)
    state, forcing = 8 + rng.normal(size=(3, 20)), 8 + rng.normal(size=(3, 20))
    at, states = state, []
    with np.errstate(invalid="ignore"):  # one step has no deviation
        for _ in range(50):
            at, _ = march(at, forcing, 1)
            states.append(at)
    last, seen = march(state, forcing, 50)
    assert last == pytest.approx(at)
    assert seen == pytest.approx(np.hstack([np.mean(states, 0), np.std(states, 0, ddof=1)]))


def test_a_step_goes_as_lorenz_96_does(monkeypatch):
    monkeypatch.setattr(flux_force, "STEP", STEP / 1000)
    x = 8 + np.random.default_rng(0).normal(size=(2, 20))
    slope = (np.roll(x, -1, 1) - np.roll(x, 2, 1)) * np.roll(x, 1, 1) - x + 5
    after, _ = march(x, np.full_like(x, 5.0), 2)
    assert (after - x) / (2 * STEP / 1000) == pytest.approx(slope, abs=0.1)


def test_the_forcing_is_the_networks():
    weights, place = torch.randn(4, WEIGHTS).double(), torch.linspace(-5, 5, 30).double()
    for row, force in zip(weights, flux_force.forced(weights, place), strict=True):
        slope, shift, out = row[:-1].view(3, 20)
        assert torch.allclose(force, torch.tanh(place[:, None] * slope + shift) @ out + row[-1])


class Linear(flux_force.Problem):
    """Statistics that are sums of the weights, and a race that nobody wins."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.prior, self.matrix = torch.as_tensor(rng.normal(size=WEIGHTS)), rng.normal(size=(30, WEIGHTS))
        self.data = self.matrix @ (self.prior.numpy() + SPREAD * rng.normal(size=WEIGHTS))
        self.covariance = 0.25 * np.eye(30)

    def forcing(self, weights):
        return weights

    def run(self, forcing, rng):
        return forcing @ self.matrix.T

    def missed(self, seen):
        return np.sqrt(1 + np.square((seen - self.data) / 0.5).mean(-1))


@pytest.mark.parametrize("by_misfit", [False, True])
def test_an_ensemble_finds_the_likeliest_weights_of_a_linear_box(monkeypatch, by_misfit):
    monkeypatch.setattr(flux_force, "found", lambda problem, weights, rows, missed, rng: (weights, rows))
    problem = Linear()
    weights, rows = flux_force.ensemble(problem, 0, 1000, by_misfit=by_misfit)
    precision = 4 * problem.matrix.T @ problem.matrix + np.eye(WEIGHTS) / SPREAD**2
    right = 4 * problem.matrix.T @ problem.data + problem.prior.numpy() / SPREAD**2
    assert np.abs(weights - np.linalg.solve(precision, right)).max() < 0.2 * SPREAD
    assert rows == 1000 * flux_force.UPDATES


def test_the_table_is_that_of_the_committed_figures():
    results = json.loads(flux_force.FILE.read_text(encoding="utf-8"))["results"]
    table = flux_force.table(results)
    assert table == flux_force.FILE.with_suffix(".md").read_text(encoding="utf-8")


def test_runs_of_a_race_that_was_not_won_are_not_told():
    rows = [(2, True), (3, True), (200, False)]
    results = {
        f"ring, problem 11, seed {seed}": {"rows": count, "arrived": won, "fresh": 1.0, "off": 0.1}
        for seed, (count, won) in enumerate(rows)
    }
    assert "| 2 of 3 | 3 | - | 1.00 | 0.10 |" in flux_force.table(results)
