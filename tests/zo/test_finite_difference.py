"""`zo.finite_difference`: exact derivatives, within the error that it states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typeguard import suppress_type_checks

import zo
from zo.errors import ConfigurationError

X = torch.tensor([0.3, -1.2, 2.5, 0.7], dtype=torch.float64)


def mixed(x: Tensor) -> Tensor:
    return (torch.sin(x) * torch.roll(x, 1)).sum()


def exact(f: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    return torch.autograd.functional.jacobian(f, x.double()).numpy()


def in_numpy(f: Callable[[Tensor], Tensor], given: Callable[[float], float] = float) -> Callable[..., float]:
    return lambda x: given(float(f(torch.from_numpy(x))))


def front(x: Tensor) -> Tensor:
    return torch.tanh((x - 0.3) / 1e-4).sum() + x.sum()


SCALES = torch.tensor([1e-6, 1e-2, 1e2, 1e6], dtype=torch.float64)
# function, point, relative error of the largest number
BESIDE = 1 + torch.tensor([1e-5, -1e-2, 2.0, -1.0], dtype=torch.float64)
EDGE = torch.tensor([1e-7, 1e-3, 3.0], dtype=torch.float64)
FRONT = torch.tensor([0.3, 0.30005], dtype=torch.float64)
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, float]] = {
    "smooth": (mixed, X, 1e-8),
    "a front of 1e-4": (front, FRONT, 1e-7),
    "inputs of other sizes": (lambda x: mixed(x / SCALES), X * SCALES, 1e-8),
    "far from zero": (lambda x: torch.sin(x - 1e8).sum(), 1e8 + X, 1e-6),
    "an offset": (lambda x: 1e8 + mixed(x), X, 1e-4),
    "a kink a little beside": (lambda x: (x - 1).abs().sum() + mixed(x), BESIDE, 1e-5),
    "at zero, with a scale of 1e-5": (lambda x: torch.sin(x * 1e5).sum(), torch.zeros(2).double(), 1e-8),
    "near the edge of a domain": (lambda x: torch.log(x).sum(), EDGE, 1e-8),
}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_gradients_are_exact_within_their_error(name, kind):
    f, x, tolerance = SMOOTH[name]
    result = zo.finite_difference(f, x) if kind == "torch" else zo.finite_difference(in_numpy(f), x.numpy())
    truth = exact(f, x)
    assert isinstance(result.gradient, Tensor if kind == "torch" else np.ndarray)
    gradient, error = np.asarray(result.gradient), np.asarray(result.error)
    assert gradient.dtype == error.dtype == np.float64
    off = np.abs(gradient - truth)
    assert (off <= tolerance * np.abs(truth).max()).all() and (off <= 2 * error).all()
    assert (error <= 100 * tolerance * np.abs(truth).max()).all() and not np.asarray(result.kinks).any()
    wrong = truth * np.array([1.01, *np.ones(truth.size - 1)])
    claims = [torch.from_numpy(claim) if kind == "torch" else claim for claim in (truth, wrong)]
    right, first = (result.refutes(claim, tolerance=1e-3).tolist() for claim in claims)
    assert not any(right) and first == [True, *right[1:]]


def four_digits(value: float) -> float:
    return float(f"{value:.3e}")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("coarse", ["four digits", "float32", "noise"])
def test_errors_cover_noise_and_rounding(coarse):
    """About a twentieth exceed their error; of 240, more than 36 would with a chance of 1e-8."""
    random = np.random.default_rng(0)
    off, stated = [], []
    for _ in range(60):
        x = torch.from_numpy(random.uniform(0.5, 2.0, 4))
        given = {"four digits": four_digits, "noise": lambda value: value + 1e-5 * random.normal()}
        if coarse == "float32":
            x = x.float()
        result = zo.finite_difference(in_numpy(mixed, given.get(coarse, float)), x.numpy())
        off.append(np.abs(result.gradient - exact(mixed, x)))
        stated.append(result.error)
    assert (np.array(off) > np.array(stated)).sum() <= 36
    assert np.median(off) < {"four digits": 1e-2, "float32": 1e-4, "noise": 1e-3}[coarse]


def test_a_jacobian_of_several_axes():
    def f(x: Tensor) -> Tensor:
        return torch.stack([torch.sin(x).sum(0), x[0] * x[1], torch.ones(2).double()])

    x = X.reshape(2, 2)
    result = zo.finite_difference(f, x)
    assert result.gradient.shape == result.error.shape == result.steps.shape == (3, 2, 2, 2)
    np.testing.assert_allclose(result.gradient.numpy(), exact(f, x), atol=1e-9)
    assert not result.gradient[2].any() and result.error[2].max() < 1e-14
    assert torch.equal(result.value, f(x))


def test_at_a_kink_there_is_no_derivative():
    result = zo.finite_difference(lambda x: np.abs(x).sum() + 3 * x.sum(), np.array([0.0, 2.0]))
    assert result.kinks.tolist() == [True, False]
    np.testing.assert_allclose(result.gradient, [3, 4], atol=1e-6)
    assert result.error[0] == pytest.approx(1) and result.error[1] < 1e-6
    for side in (2.0, 4.0):  # the slope of either side is not refuted
        assert not result.refutes(np.array([side, 4.0]), tolerance=1e-6).any()


KINKS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "relu": lambda z, d: torch.relu(z),
    "an offset": lambda z, d: 1e3 + torch.relu(z),
    "flat to one side": lambda z, d: z.abs() + z,
    "between two slopes": lambda z, d: torch.maximum(2 * z, z / 2) + z.sin(),
    "one end of a clamp": lambda z, d: z.clamp(-0.1, 0.0),
    "within a dead zone": lambda z, d: torch.nn.functional.softshrink(z, 1.5 * d),
    "a hinge to both sides": lambda z, d: torch.relu(z.abs() - 1.5 * d),
    "a round bottom": lambda z, d: torch.nn.functional.huber_loss(z, 0 * z, delta=0.7 * d),
    "a power": lambda z, d: z.abs() ** 1.5,
    "two kinks": lambda z, d: torch.relu(z) - torch.relu(z - 3 * d),
    "a step": lambda z, d: (z > 0) + z,
}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("distance", [1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_beside_x_refutes_no_right_derivative(name, distance, side):
    """Autograd of the same formula is right; what it may not be off by more than is the error."""

    def f(x: Tensor) -> Tensor:
        return KINKS[name](x - 1, distance).sum()

    x = 1 + torch.tensor([side * distance], dtype=torch.float64)
    result, truth = zo.finite_difference(f, x), torch.from_numpy(exact(f, x))
    assert not result.refutes(truth, tolerance=1e-6).any()
    if not result.kinks.any():  # then what is found is the derivative, and not an error that covers all
        np.testing.assert_allclose(result.gradient, truth, rtol=1e-3, atol=1e-6)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("seed", range(6))
def test_sums_of_kinks_refute_no_right_derivative(seed):
    random = np.random.default_rng(seed)
    hidden, bias, out = (torch.from_numpy(random.normal(size=size)) for size in ((8, 5), 8, 8))
    for f in (
        lambda x: out @ torch.relu(hidden @ x + bias),
        lambda x: out[:2] @ torch.relu(hidden[:2] @ x + bias[:2]),
        lambda x: (hidden @ x - bias).abs().sum(),
        lambda x: (hidden @ x).topk(2).values.sum(),
    ):
        x = torch.from_numpy(random.normal(size=5))
        result, truth = zo.finite_difference(f, x), torch.from_numpy(exact(f, x))
        assert not result.refutes(truth, tolerance=1e-6).any()
        assert result.refutes(1.1 * truth + 0.01, tolerance=0.01)[~result.kinks].all()


def test_what_comes_in_steps_is_told_from_what_is_flat():
    steps = zo.finite_difference(lambda x: np.round(x * 1e3).sum() / 1e3, np.array([1.2345]))
    flat = zo.finite_difference(lambda x: np.maximum(np.abs(x - 1) - 1e-3, 0.0).sum(), np.array([1.0003]))
    assert abs(steps.gradient[0] - 1) <= steps.error[0] < 0.01
    assert flat.gradient[0] == 0.0 and flat.error[0] < 1e-9


def test_an_effect_below_the_digits_of_f_is_not_known_to_be_none():
    result = zo.finite_difference(lambda x: float(f"{3 + x[0] + 1e-6 * x[1]:.3e}"), np.array([1.3, 0.8]))
    assert not result.refutes(np.array([1.0, 1e-6]), tolerance=1e-2).any()


def test_at_an_edge_one_side_is_left():
    asked = []

    def f(x: Any) -> float:
        asked.append(x.copy())
        if (x < 1).any():
            raise ValueError("outside")
        return float(((x - 1) ** 1.5 + np.exp(x)).sum())

    result = zo.finite_difference(f, np.array([1.0, 2.0]))
    np.testing.assert_allclose(result.gradient, [np.e, 1.5 + np.e**2], atol=1e-4)
    assert (np.abs(result.gradient - [np.e, 1.5 + np.e**2]) <= 2 * result.error).all()
    assert result.evaluations == len(asked) and result.failed == sum((x < 1).any() for x in asked) > 0


def test_where_nothing_is_known_the_error_is_infinite():
    x = np.array([1.0])

    def alone(given: Any) -> float:
        if given[0] != 1.0:
            raise ValueError("elsewhere")
        return 2.0

    result = zo.finite_difference(alone, x)
    assert np.isinf(result.error).all() and result.failed == result.evaluations - 1
    assert not zo.finite_difference(lambda x: 7.0, x).gradient.any()


def test_a_function_may_write_to_its_argument_and_calls_are_counted():
    x, calls = X.numpy().copy(), []

    def f(given: Any) -> Any:
        calls.append(1)
        given *= 2
        return np.sin(given).sum()

    result = zo.finite_difference(f, x)
    assert np.array_equal(x, X.numpy()) and len(calls) == result.evaluations < 30 * len(x)
    np.testing.assert_allclose(result.gradient, 2 * np.cos(2 * x), atol=1e-8)


def test_a_scale_is_the_longest_step():
    asked = []

    def f(x: Any) -> float:
        asked.append(x.copy())
        return float(np.sin(x).sum())

    x = np.array([1.0, 1.0])
    result = zo.finite_difference(f, x, scale=np.array([1e-3, 0.5]))
    assert np.abs(np.stack(asked) - x).max(axis=0).tolist() == pytest.approx([1e-3, 0.5])
    np.testing.assert_allclose(result.gradient, np.cos(x), atol=1e-8)


def boom(x: Any) -> float:
    raise KeyError("boom")


BAD: dict[str, tuple[Callable[..., Any], Any, dict[str, Any], list[str]]] = {
    "whole numbers": (np.sum, np.arange(3), {}, ["x:", "int64", "astype(float)"]),
    "empty": (np.sum, np.zeros(0), {}, ["x:", "shape (0,)"]),
    "nan": (np.sum, np.array([np.nan]), {}, ["x:", "NaN"]),
    "whole f": (lambda x: 3, np.ones(2), {}, ["f(x):", "int64", "float(...)"]),
    "infinite f": (lambda x: np.inf, np.ones(2), {}, ["f(x):", "infinity"]),
    "scale of zero": (np.sum, np.ones(2), {"scale": 0.0}, ["scale:", "0.0"]),
    "scale lost": (np.sum, np.ones(2), {"scale": 1e-15}, ["scale:", "rounding"]),
    "scale of another shape": (np.sum, np.ones(2), {"scale": np.ones(3)}, ["scale:", "(2,)"]),
}


@suppress_type_checks
@pytest.mark.parametrize("name", BAD)
def test_what_it_refuses(name):
    f, x, settings, words = BAD[name]
    with pytest.raises(ConfigurationError) as caught:
        zo.finite_difference(f, x, **settings)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(KeyError, match="boom"):
        zo.finite_difference(boom, np.ones(2))


def test_a_derivative_of_another_shape_is_refused():
    result = zo.finite_difference(np.sum, np.ones(2))
    with pytest.raises(
        ConfigurationError, match=r"refutes, derivative: expected the shape \(2,\), got \(3,\)"
    ):
        result.refutes(np.ones(3))
