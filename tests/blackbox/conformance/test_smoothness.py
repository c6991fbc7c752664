"""Jumps: boxes that jump are found at every seed, smooth ones raise no alarm at any."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.conformance import Finding, Verdict, check_black_box
from simulators.heat import Heat
from simulators.implicit_diffusion import ImplicitDiffusion
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from tests.blackbox.conformance.broken_boxes import Good
from tests.blackbox.conformance.probes import draws


class StoppedPendulum(BlackBoxFunction):
    """Angle and rate after three seconds of a pendulum that bounces off a stop.

    The rate turns round at an impact. So where a small change of the start moves an impact across the end
    of the three seconds, or adds one, the answer jumps.
    """

    inputs = (ArraySpec("start", (2,)),)
    outputs = (ArraySpec("end", (2,)),)
    stop, restitution, step = 0.5, 0.7, 0.03

    def evaluate_rows(self, start: Any) -> Any:
        angle, rate = np.minimum(start[:, 0], self.stop), start[:, 1]
        for _ in range(100):
            rate = rate - self.step * np.sin(angle)
            travel = self.step * rate
            beyond = np.maximum(angle + travel - self.stop, 0)  # flown back at the slower rate
            hit = beyond > 0
            angle = np.where(hit, self.stop - self.restitution * beyond, angle + travel)
            rate = np.where(hit, -self.restitution * rate, rate)
        return np.stack([angle, rate], axis=1).astype(start.dtype)


class Of(Good):
    """Any function of three numbers."""

    def __init__(self, function: Any) -> None:
        self.function = function
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        return self.function(x)


def smoothness_of(
    box: BlackBoxFunction, seed: int = 0, rows: int | None = 5000, dtype: str = "float32"
) -> Finding:
    samples = tuple(draws(32, *spec.shape, seed=seed).astype(dtype) for spec in box.inputs)
    report = check_black_box(box, samples, rows=rows, processes=False, seed=seed)
    assert rows is None or report.rows <= rows
    return report.finding("smoothness")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))]
)
def test_a_pendulum_that_hits_a_stop_jumps_at_every_seed(seed):
    found = smoothness_of(StoppedPendulum(), seed)
    assert found.verdict is Verdict.WARNING, found.sentence
    assert "jumps by" in found.sentence and "impact" in found.sentence


def nearest(x: Any, points: int) -> Any:
    """A table of the sine, looked up at the nearest of its points."""
    return np.sin(np.round(x * points) / points)


JUMPING = {
    "threshold": lambda x: Good.smooth(x) + 0.2 * (x[:, :1] > 0.1),
    "small": lambda x: Good.smooth(x) + 0.003 * (x[:, :1] > 0.1),
    "inside a ball": lambda x: Good.smooth(x) + 0.5 * (np.linalg.norm(x, axis=1, keepdims=True) < 1),
    "table": lambda x: nearest(x, 10),
    "fine table": lambda x: nearest(x, 200),
    "rounded inside": lambda x: np.exp(np.round(Good.smooth(x), 2)).astype(x.dtype),
    "number of iterations": lambda x: x * 0.9 ** np.ceil(5 * np.abs(x).max(axis=1, keepdims=True)),
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("function", JUMPING.values(), ids=JUMPING.keys())
def test_other_jumps_are_found_at_every_seed(function, seed):
    found = smoothness_of(Of(function), seed)
    assert found.verdict is Verdict.WARNING, found.sentence


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("height", [0.01, 1.0])
def test_a_jump_is_found_with_its_height_and_place(height):
    found = smoothness_of(Of(lambda x: Good.smooth(x) + height * (x[:, :1] > 0.05)), rows=None)
    assert found.verdict is Verdict.WARNING
    assert f"'y' jumps by {height:.2g} along 'x', " in found.sentence
    assert found.number is not None and found.number >= 1


SMOOTH = {
    "smooth": Good.smooth,
    "linear": lambda x: 2 * x,
    "constant beside 0": lambda x: x * [1, 0, 0],
    "front": lambda x: np.tanh(20 * x),
    "thin front": lambda x: np.tanh(200 * x),
    "steep": lambda x: np.exp(x) + x**3,
    "square": np.square,
    "fast waves": lambda x: np.sin(20 * x),
    "narrow bump": lambda x: np.exp(-100 * x**2),
    "cancellation": lambda x: Good.smooth(x) + 1000 - 1000,
    "random": lambda x: Good.smooth(x) + 1e-4 * np.random.default_rng().standard_normal(x.shape),
}


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("function", SMOOTH.values(), ids=SMOOTH.keys())
def test_smooth_functions_have_neither(function, dtype):
    found = smoothness_of(Of(lambda x: function(x).astype(x.dtype)), dtype=dtype)
    assert found.verdict is Verdict.OK and "Found no jump on" in found.sentence


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "make", [Heat, pytest.param(ImplicitDiffusion, marks=pytest.mark.slow), KuramotoSivashinsky, Lorenz96]
)
def test_smooth_systems_that_ship_have_neither(make, seed):
    found = smoothness_of(make(), seed, rows=2000)
    assert found.verdict is Verdict.OK and "Found no jump on" in found.sentence


def relu_network(x: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    first, last = torch.randn(16, 3, generator=generator), torch.randn(3, 16, generator=generator)
    return ((torch.from_numpy(x).float() @ first.T + 0.3).relu() @ last.T).numpy().astype(x.dtype)


KINKED = {
    "ReLU network": relu_network,
    "absolute": np.abs,
    "maximum": lambda x: np.maximum(x, 0.1),
    "weak": lambda x: np.sin(x) + 0.1 * abs(x - 0.2),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("function", KINKED.values(), ids=KINKED.keys())
def test_kinks_are_no_jumps(function):
    found = smoothness_of(Of(function))
    assert found.verdict is Verdict.OK and "Found no jump on" in found.sentence


def test_the_sentence_says_what_was_looked_at():
    asked = []

    class Watched(Good):
        def evaluate_rows(self, x: Any) -> Any:
            asked.append(len(x))
            return self.smooth(x)

    few, many = (smoothness_of(Watched(), rows=rows).sentence for rows in (1000, 20_000))
    for sentence in (few, many):
        assert "lines of length" in sentence and "in 'x', in" in sentence and "rows" in sentence
    lines = [int(sentence.split(" lines")[0].split()[-1]) for sentence in (few, many)]
    assert lines[1] > 5 * lines[0]  # where rows are cheap more is looked at


def test_points_that_fail_are_said():
    def fails_outside(x: Any) -> Any:
        return np.where(np.abs(x).max(axis=1, keepdims=True) < 2.5, Good.smooth(x), np.nan)

    samples = np.clip(draws(32, 3), -2, 2)
    sentence = check_black_box(Of(fails_outside), samples, processes=False).finding("smoothness").sentence
    assert "no jump" in sentence and "% of the points on them failed" in sentence
