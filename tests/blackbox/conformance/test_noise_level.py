"""The noise level and mu of boxes whose noise and derivatives are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.conformance import Report, Verdict, check_black_box
from tests.blackbox.conformance.broken_boxes import Steps

A, B, C = 2.0, 3.0, 4.0


class Cubic(BlackBoxFunction):
    """y_i = A x_i + B x_i^2 / 2 + C x_i^3 / 6 around x = 0, with noise; the scale is the input's unit."""

    inputs = (ArraySpec("x", (4,)),)
    outputs = (ArraySpec("y", (4,)),)
    deterministic = False

    def __init__(self, noise: float = 0.0, decimals: int | None = None, scale: float = 1.0) -> None:
        self.noise, self.decimals, self.scale = noise, decimals, scale
        self.generator = np.random.default_rng(5)
        super().__init__()

    def evaluate_rows(self, x: Any) -> Any:
        x = x.astype(np.float64) / self.scale
        y = 1 + A * x + B * x**2 / 2 + C * x**3 / 6 + self.noise * self.generator.standard_normal(x.shape)
        return y if self.decimals is None else np.round(y, self.decimals)


def near_zero(scale: float = 1.0, dtype: str = "float64") -> np.ndarray:
    """Rows within a few hundredths of 0, where the derivatives are A, B and C to 10 %, and one far out."""
    x = 0.02 * np.random.default_rng(0).standard_normal((32, 4))
    return (scale * x).astype(dtype)


def report_of(box: BlackBoxFunction, samples: np.ndarray) -> Report:
    return check_black_box(box, samples, processes=False)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("level", [1e-5, 1e-7, 1e-9])
def test_the_level_is_found_and_forward_mu_is_that_of_the_formula(level):
    report = report_of(Cubic(level), near_zero())
    (found,) = report.recommendations
    spread = float((1 + A * near_zero()).std())
    assert level / 1.5 < report.finding("noise level").number * spread < 1.5 * level
    # One output in four moves along a coordinate; the noise of all four counts there.
    expected = min(8**0.25 * math.sqrt(2 * level / B), 0.02)
    assert expected / 1.6 < found.coordinates.forward < 1.6 * expected
    central = min((3 * 2 * level / C) ** (1 / 3), 0.02)
    assert central / 1.6 < found.coordinates.central < 1.6 * central


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_mu_is_in_the_input_s_units(scale):
    one = report_of(Cubic(1e-7), near_zero()).recommendations[0]
    other = report_of(Cubic(1e-7, scale=scale), near_zero(scale)).recommendations[0]
    for kind in ("coordinates", "directions"):
        for scheme in ("forward", "central"):
            ratio = getattr(getattr(other, kind), scheme) / getattr(getattr(one, kind), scheme)
            assert scale / 1.3 < ratio < 1.3 * scale


def test_the_expected_error_is_the_error():
    """Of central slopes with the recommended mu, measured on 4,000 rows against A + B x + C x^2 / 2."""
    box = Cubic(1e-6)
    found = report_of(box, near_zero()).recommendations[0].coordinates
    x = np.tile(near_zero(), (125, 1))
    step = np.zeros_like(x)
    step[:, 0] = found.central
    slope = (box(x + step) - box(x - step)) / (2 * found.central)
    truth = np.zeros_like(x)
    truth[:, 0] = A + B * x[:, 0] + C * x[:, 0] ** 2 / 2
    error = math.sqrt(np.square(slope - truth).sum() / np.square(truth).sum())
    assert error / 2 < found.central_error < 2 * error


def test_quantised_outputs_have_the_noise_of_their_rounding():
    report = report_of(Cubic(decimals=4), near_zero())
    spread = float((1 + A * near_zero()).std())
    quantum = 1e-4 / math.sqrt(12)
    assert 0.9 * quantum < report.finding("noise level").number * spread < 3 * quantum
    assert "quantisation" in report.finding("noise level").sentence
    # Below a step of 1e-4 / A the outputs do not move at all.
    assert report.recommendations[0].coordinates.forward > 5 * 1e-4 / A


class Printed(Cubic):
    """As a program that prints `%.6g`, with values between 1 and 900."""

    def evaluate_rows(self, x: Any) -> Any:
        y = 450.5 + 449.5 * np.sin(50 * x.astype(np.float64))
        return np.array([float(f"{value:.6g}") for value in y.ravel()]).reshape(y.shape).astype(x.dtype)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outputs_that_are_printed_with_six_digits_have_the_noise_of_the_last(dtype):
    samples = np.random.default_rng(0).uniform(-0.06, 0.06, (32, 4)).astype(dtype)
    report = report_of(Printed(), samples)
    finding = report.finding("quantisation")
    assert finding.verdict is Verdict.WARNING and "has 6 significant digits" in finding.sentence
    assert finding.number == pytest.approx(1e-3)  # of values between 100 and 1,000
    spread = float((449.5 * np.sin(50 * samples.astype("float64"))).std())
    assert 0.9e-3 / math.sqrt(12) < report.finding("noise level").number * spread < 3e-3 / math.sqrt(12)
    assert "quantisation" in report.finding("noise level").sentence
    # Where the slope is steepest, 50 * 449.5, outputs do not move at all below a step of 1e-3 / 22475.
    assert report.recommendations[0].coordinates.forward > 5 * 1e-3 / 22475


@pytest.mark.slow
def test_where_there_is_no_noise_mu_comes_from_rounding():
    finer, coarser = (report_of(Cubic(), near_zero(dtype=dtype)) for dtype in ("float64", "float32"))
    assert finer.finding("noise level").number < 1e-14 < 1e-7 < coarser.finding("noise level").number
    # sqrt(eps): 1.5e-8 and 3.5e-4 for numbers and derivatives of order one.
    assert 3e-9 < finer.recommendations[0].coordinates.forward < 1e-7
    assert 7e-5 < coarser.recommendations[0].coordinates.forward < 2e-3


def test_a_linear_box_gets_steps_as_large_as_the_input_s_spread():
    class Linear(Cubic):
        def evaluate_rows(self, x: Any) -> Any:
            return 2 * x + self.noise * self.generator.standard_normal(x.shape)

    (found,) = report_of(Linear(1e-4), near_zero()).recommendations
    assert found.coordinates.linear
    assert found.coordinates.forward == pytest.approx(near_zero().std(axis=0).mean(), rel=0.2)


def test_steps_ask_for_a_mu_that_spans_them():
    """floor(2 x) has steps half a unit wide: no smaller mu sees a slope."""
    report = check_black_box(Steps(), processes=False)
    (found,) = report.recommendations
    assert found.coordinates.forward > 0.3 and found.coordinates.central > 0.3
    assert report.finding("quantisation").number == 1.0


def test_a_step_that_nothing_reaches_is_said_so():
    samples = 0.1 + 0.01 * np.random.default_rng(0).random((8, 3)).astype(np.float32)
    report = check_black_box(Steps(), samples, processes=False)
    assert report.recommendations == ()
    assert report.finding("mu of 'x'").verdict is Verdict.WARNING
    assert "farther apart" in report.finding("mu of 'x'").sentence


def test_a_mu_is_in_the_scale_of_the_spec_as_zo_takes_it():
    class Scaled(Cubic):
        inputs = (ArraySpec("x", (4,), scale=10.0),)

    own, scaled = (report_of(box, near_zero()) for box in (Cubic(1e-4), Scaled(1e-4)))
    (one,), (other,) = own.recommendations, scaled.recommendations
    assert (one.unit, other.unit) == ("own", "scale")
    assert other.coordinates.forward == pytest.approx(one.coordinates.forward / 10)
    assert other.directions.central == pytest.approx(one.directions.central / 10)
    said = [report.finding("mu of 'x'").sentence for report in (own, scaled)]
    assert "in the scale of the input's spec" in said[1] and "scale" not in said[0]


class Raw(BlackBoxFunction):
    """y = A z + B z^2 / 2 + C z^3 / 6 of numbers z in units of their own, from 1e-3 to 1e3."""

    inputs = (ArraySpec("x", (4,)),)
    outputs = (ArraySpec("y", (4,)),)
    units = np.array([1e-3, 1e3, 1.0, 30.0])

    def evaluate_rows(self, x: Any) -> Any:
        z = x.astype(np.float64) / self.units
        return A * z + B * z**2 / 2 + C * z**3 / 6


@pytest.mark.slow
def test_where_units_are_far_apart_mu_is_in_the_spread_of_each_number():
    class Scaled(Raw):
        inputs = (ArraySpec("x", (4,), scale=Raw.units * 0.02),)

    raw, scaled = (report_of(box, near_zero() * Raw.units) for box in (Raw(), Scaled()))
    said = raw.finding("mu of 'x'")
    assert said.verdict is Verdict.WARNING and "vary by 2e-05 to 2e+01" in said.sentence
    assert "scale=samples.std(axis=0)" in said.sentence and "noise" not in said.sentence.lower()
    (one,), (other,) = raw.recommendations, scaled.recommendations
    assert (one.unit, other.unit) == ("spread", "scale")
    # Of a cubic in float64 and units of 0.02: the steps that sqrt(eps) and the cube root of eps make.
    assert one.coordinates.forward_error < 1e-5 and one.coordinates.central_error < 1e-6
    for scheme in ("forward", "central"):
        ratio = getattr(one.coordinates, scheme) / getattr(other.coordinates, scheme)
        assert 1 / 3 < ratio < 3  # spreads of 32 draws are the scale to a few percent


@pytest.mark.slow
def test_a_box_of_steps_that_answers_equal_calls_alike_is_not_called_noisy():
    class Forest(BlackBoxFunction):
        """A thousand steps a unit of z, each of its own height."""

        inputs = (ArraySpec("z", (2,)),)
        outputs = (ArraySpec("y", ()),)

        def evaluate_rows(self, z: Any) -> Any:
            return np.sin(1e4 * np.floor(1000 * z.astype(np.float64)).sum(axis=1))

    samples = np.random.default_rng(0).standard_normal((32, 2))
    said = report_of(Forest(), samples).finding("mu of 'z'")
    assert said.verdict is Verdict.WARNING
    assert "equal calls agree" in said.sentence and "StudentTangent" in said.sentence
    assert "less noisy" not in said.sentence

    class Noisy(Cubic):
        def evaluate_rows(self, x: Any) -> Any:
            return self.generator.standard_normal(x.shape)

    assert "less noisy" in report_of(Noisy(), near_zero()).finding("mu of 'x'").sentence


class Exact(Cubic):
    deterministic = True


def test_a_box_whose_equal_calls_agree_is_not_said_to_be_noisy():
    reports = {box.noise: report_of(box, near_zero()) for box in (Exact(), Cubic(1e-6))}
    said = {noise: report.finding("noise level").sentence for noise, report in reports.items()}
    assert "equal calls agree" in said[0.0] and "noise in the outputs" not in said[0.0]
    assert "Standard deviation of the noise in the outputs" in said[1e-6] and "agree" not in said[1e-6]
