"""The comparison of learned tangents: what is counted, what is read off, and what is not measured twice."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.tangents import comparison, report
from benchmarks.tangents.methods import METHODS, Method, first_order, fitting
from benchmarks.tangents.problems import problems
from benchmarks.tangents.training import chosen_scale, train


@pytest.fixture(scope="module")
def lorenz():
    problem = replace(problems("small")["lorenz-96"](), steps=8)
    start = problem.start(0)
    return replace(problem, start=lambda seed: copy.deepcopy(start))


def rows_of_step(problem) -> int:
    """Of the box, when the objective is evaluated once."""
    before = problem.box.ledger.rows_asked
    with torch.no_grad():
        problem.objective(problem.box)(problem.start(0), problem.batch(0, 1))
    return problem.box.ledger.rows_asked - before


@pytest.mark.slow
def test_rows_are_those_of_training_alone(lorenz):
    each = rows_of_step(lorenz)
    for method, share in (("first-order", 1), ("first-order-perturbed", 1), ("mlp", 1)):
        curve = train(lorenz, method, lorenz.start(0), 0)
        assert curve.rows == [share * each * step for step in curve.steps]
        assert curve.steps == list(range(9))  # the start, and eight points of eight steps
        assert len(curve.errors) == 9 and all(map(math.isfinite, curve.errors))
        assert 0 <= curve.seconds_fitting + curve.seconds_vjp <= curve.seconds


def test_methods_with_many_queries_have_three_times_first_orders_rows(lorenz):
    problem = replace(lorenz, steps=90)
    assert METHODS["eggroll"].steps(problem) == 30  # nine evaluations a step
    assert METHODS["first-order"].steps(problem) == 90


def test_a_perturbed_gradient_is_autograds_off_by_a_hundredth(lorenz):
    gradients = []
    for method in ("first-order", "first-order-perturbed"):
        network = lorenz.start(0)
        METHODS[method].make(lorenz, network, 3, 1.0).backward(lorenz.batch(3, 1))
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]).double())
    exact, off = gradients
    assert ((off - exact).norm() / exact.norm()).item() == pytest.approx(0.01, rel=1e-3)


def test_a_training_by_first_order_is_autograds(lorenz):
    network = lorenz.start(0)
    train(lorenz, "first-order", network, 3)
    other = lorenz.start(0)
    optimizer = torch.optim.Adam(other.parameters())
    for step in range(1, 9):
        optimizer.param_groups[0]["lr"] = lorenz.learning_rate * (1 + math.cos(math.pi * (step - 1) / 8)) / 2
        optimizer.zero_grad()
        lorenz.objective(lorenz.exact)(other, lorenz.batch(3, step)).mean().backward()
        optimizer.step()
    for own, wanted in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(own, wanted)


def test_the_box_alone_is_the_box_called_again_and_again(lorenz, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "UNCORRECTED", tmp_path / "alone.json")
    comparison.uncorrected("lorenz-96", lambda: lorenz)
    comparison.uncorrected("a design", lambda: replace(lorenz, alone=None))
    errors = json.loads(report.UNCORRECTED.read_text())["errors"]
    untrained = lorenz.error(lorenz.start(0))  # a network that begins with no correction
    assert errors == {"lorenz-96": pytest.approx(untrained, rel=1e-6)}


@pytest.mark.slow
def test_the_scale_that_does_best_on_validation_data_is_taken(lorenz, monkeypatch):
    def make(problem, network, seed, scale):
        return first_order(problem, network)

    for scales, best in (((1e-4, 1.0), 1.0), ((0.5,), 0.5), ((1e4, 1.0), 1.0)):
        monkeypatch.setitem(METHODS, "scaled", Method(make, scales=scales))
        assert chosen_scale(replace(lorenz, steps=80), "scaled") == best


@pytest.mark.slow
def test_nothing_is_measured_twice(lorenz, tmp_path, capsys):
    path = tmp_path / "lorenz-96.json"
    for _ in range(2):
        comparison.measure("lorenz-96", lambda: lorenz, path, [0, 1], ["first-order", "no-gradient"])
    assert capsys.readouterr().out.count("seed") == 4
    found = json.loads(path.read_text())
    assert {m: sorted(found["curves"][m]) for m in found["curves"]} == {
        "first-order": ["0", "1"], "no-gradient": ["0", "1"],
    }  # fmt: skip
    report.write({"lorenz-96": found}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    ratio = report.ratios(found["curves"], "no-gradient")
    assert f"| {sum(ratio) / 2:.2f} |" in text


def test_methods_that_cannot_be_used_are_left_out(lorenz):
    assert "first-order" not in fitting(replace(lorenz, exact=None))
    assert {"first-order", "identity"} <= set(fitting(lorenz))


def curve(errors, rows, ended=""):
    return {"errors": errors, "rows": rows, "ended": ended, "seconds": 1.0}


def test_errors_are_read_off_at_equal_rows():
    curves = {
        "first-order": {"0": curve([4.0, 2.0, 1.0], [0, 50, 100])},
        "probes": {"0": curve([4.0, 3.0, 1.2], [0, 105, 300]), "7": curve([4.0, 1.0], [0, 9])},
        "rge": {"0": curve([4.0, None], [0, 300], ended="all rows failed")},
    }
    assert report.ratios(curves, "probes") == [1.2]
    assert report.ratios(curves, "probes", report.EQUAL) == [3.0]
    assert report.ratios(curves, "probes", 1.0) == []  # nothing but the start
    assert report.ratios(curves, "rge") == [report.LOST]
    assert report.spent(curves, "probes") == 3.0
