"""Functions of one number against sixty digits, for steps up to 60 and across every kink."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch
from torch.nn import functional as F

from tests.zo.evaluators.difference.exact import change, elementwise
from zo.evaluators import Moved
from zo.evaluators.difference.changes import OneChannel
from zo.evaluators.difference.rule_registry import RULES, TapedCall

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
X = [0.0, 1e-30, 1e-7, -1e-7, 0.3, -0.5, 1.0, -1.0, 2.9, -3.0, 3.0, 5.999, 6.0, 6.5, -20.0, 30.0, -30.0]
D = [0.0, 1e-12, -1e-12, 1e-6, -1e-6, 3e-3, -3e-3, 0.099, 0.1, -0.1, 0.7, -0.9, 4.0, -4.5, 60.0, -60.0]


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


def _softplus(beta, threshold, x):
    return x if beta * x > threshold else mp.log1p(mp.exp(beta * x)) / beta


def _clamped(low, high):
    return lambda x: min(max(x, low), high)


SELU = (mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717"))
CASES = [
    ("leaky relu", F.leaky_relu, (0.25,), lambda x: x if x > 0 else x / 4),
    ("hardtanh", F.hardtanh, (-0.5, 2.5), _clamped(-0.5, 2.5)),
    ("clamp", torch.clamp, (-3.0, 0.25), _clamped(-3.0, 0.25)),
    ("clamp_min", torch.Tensor.clamp_min, (0.5,), lambda x: max(x, 0.5)),
    ("clamp_max", torch.clamp_max, (0.5,), lambda x: min(x, 0.5)),
    ("relu6", F.relu6, (), _clamped(0, 6)),
    ("hardsigmoid", F.hardsigmoid, (), lambda x: _clamped(0, 6)(x + 3) / 6),
    ("hardswish", F.hardswish, (), lambda x: x * _clamped(0, 6)(x + 3) / 6),
    ("abs", torch.abs, (), abs),
    ("sigmoid", torch.sigmoid, (), lambda x: 1 / (1 + mp.exp(-x))),
    ("tanh", torch.tanh, (), mp.tanh),
    ("silu", F.silu, (), lambda x: x / (1 + mp.exp(-x))),
    ("gelu", F.gelu, (), lambda x: x * mp.ncdf(x)),
    (
        "gelu, tanh",
        gelu_tanh,
        (),
        lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
    ),
    ("elu", F.elu, (1.5,), lambda x: x if x > 0 else 1.5 * mp.expm1(x)),
    ("selu", F.selu, (), lambda x: SELU[0] * (x if x > 0 else SELU[1] * mp.expm1(x))),
    ("softplus", F.softplus, (2.0,), lambda x: _softplus(2, 20, x)),
    ("softplus, low threshold", F.softplus, (2.0, 5.0), lambda x: _softplus(2, 5, x)),
    ("logsigmoid", F.logsigmoid, (), lambda x: -mp.log1p(mp.exp(-x))),
    ("mish", F.mish, (), lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
    ("softsign", F.softsign, (), lambda x: x / (1 + abs(x))),
    ("exp", torch.exp, (), mp.exp),
    ("sin", torch.sin, (), mp.sin),
    ("cos", torch.cos, (), mp.cos),
    ("erf", torch.erf, (), mp.erf),
    ("square", torch.square, (), lambda x: x**2),
    ("cube", torch.pow, (3,), lambda x: x**3),
]
EXACT = [("relu", F.relu, (), lambda x: max(x, 0)), ("neg", torch.neg, (), lambda x: -x)]
POSITIVE = [
    ("log", torch.log, (), mp.log),
    ("log1p", torch.log1p, (), mp.log1p),
    ("sqrt", torch.sqrt, (), mp.sqrt),
    ("rsqrt", torch.rsqrt, (), lambda x: 1 / mp.sqrt(x)),
    ("reciprocal", torch.reciprocal, (), lambda x: 1 / x),
    ("power", torch.pow, (-1.5,), lambda x: x ** mp.mpf(-1.5)),
]


def applied(function, args, x, d):
    if function is gelu_tanh:
        return RULES[F.gelu](TapedCall(F.gelu, gelu_tanh(x)), Moved(x, d), approximate="tanh")
    return RULES[function](TapedCall(function, function(x, *args)), Moved(x, d), *args)


def grid(dtype, xs, ds):
    """Each step at each place, and the steps that lead onto zero and to the other side."""
    x = torch.tensor(xs, dtype=dtype)
    d = torch.tensor(ds, dtype=dtype)[:, None].expand(-1, len(x))
    return x, torch.cat([d, -x[None], -2 * x[None], (-x * (1 + 1e-6))[None]])


def check(got, truth, x, d, *, subtracted=False):
    """Some forty roundings of numbers no larger than the step times slope and place, or than the truth.

    And what two numbers in float64 lose, if those are subtracted.
    """
    x, d = x.double(), d.double()
    eps = torch.finfo(got.dtype).eps
    bound = 40 * eps * (d.abs() * (1 + x.abs() + d.abs()) ** 2 + truth.abs())
    bound = bound + torch.finfo(got.dtype).tiny
    if subtracted:
        bound = bound + 4 * torch.finfo(torch.float64).eps * (1 + x.abs() + d.abs()) ** 3
    assert torch.isfinite(got).all()
    assert ((got.double() - truth).abs() <= bound).all()


@DTYPES
@pytest.mark.parametrize(("name", "function", "args", "truth"), EXACT, ids=[case[0] for case in EXACT])
def test_rule_against_sixty_digits(name, function, args, truth, dtype):
    x, d = grid(dtype, X, D)
    check(applied(function, args, x, d), change(elementwise(truth), x, d), x, d)


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize(("name", "function", "args", "truth"), CASES, ids=[case[0] for case in CASES])
def test_subtraction_in_float64_against_sixty_digits(name, function, args, truth):
    x, d = grid(torch.float32, X, [step for step in D if name != "exp" or step < 10])
    if name == "exp":
        x, d = x[x < 10], d[:, x < 10]
    check(applied(function, args, x, d), change(elementwise(truth), x, d), x, d, subtracted=True)


@pytest.mark.parametrize(("name", "function", "args", "truth"), POSITIVE, ids=[case[0] for case in POSITIVE])
def test_subtraction_of_positive_numbers(name, function, args, truth):
    x = torch.tensor([0.01, 0.3, 1.0, 7.0, 200.0])
    d = torch.tensor([1e-7, -1e-7, 1e-5, -1e-3, 0.2, 60.0])[:, None] * x
    truth = change(elementwise(truth), x, d)
    error = (applied(function, args, x, d).double() - truth).abs()
    assert (error <= 40 * torch.finfo(torch.float32).eps * truth.abs()).all()


ALL = [*EXACT, *CASES]


@pytest.mark.parametrize(("name", "function", "args", "_"), ALL, ids=[case[0] for case in ALL])
def test_one_channel_gives_what_that_channel_of_all_gives(name, function, args, _):
    x = torch.linspace(-4, 4, 60).reshape(5, 3, 4)
    one = OneChannel(torch.linspace(-1, 1, 40).reshape(2, 5, 1, 4), torch.tensor([2, 0]), 1, 3)
    key, options = (F.gelu, {"approximate": "tanh"}) if function is gelu_tanh else (function, {})
    of_channel = RULES[key](TapedCall(key, function(x, *args)), Moved(x, one), *args, **options)
    assert isinstance(of_channel, OneChannel)
    assert torch.equal(of_channel.dense(), applied(function, args, x, one.dense()))
