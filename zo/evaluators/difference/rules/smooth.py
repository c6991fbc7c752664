"""Smooth functions of one number: closed forms where there is one, else a quadrature of the derivative."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.registry import Call, Rule, named, register
from zo.evaluators.difference.rules.piecewise import relu_change

# Gauss-Legendre on [0, 1]: the mean of the derivative between x and x + d, for |d| < SHORT. With two
# nodes its relative error there is below d^4 / 4320, with four d^8 / 1.8e9, times a high derivative:
# below the rounding of float32 and float64. From SHORT on the plain difference loses one digit at most.
SHORT = 0.1
NODES = {
    torch.float32: ((0.21132486540518713, 0.7886751345948129), (0.5, 0.5)),
    torch.float64: (
        (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262),
        (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692),
    ),
}


def by_quadrature(
    x: Tensor, d: Tensor, function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]
) -> Tensor:
    """f(x + d) - f(x) of a function whose derivatives are of order one."""
    nodes, weights = NODES.get(torch.promote_types(x.dtype, d.dtype), NODES[torch.float32])
    slope = sum(w * derivative(x + node * d) for node, w in zip(nodes, weights, strict=True))
    return torch.where(d.abs() < SHORT, d * slope, function(x + d) - function(x))


def sigmoid_change(x: Tensor, d: Tensor) -> Tensor:
    """sig(x) sig(-x - d) expm1(d), written for the sign of d that cannot overflow."""
    low, high = torch.minimum(x, x + d), torch.maximum(x, x + d)
    return d.sign() * -torch.expm1(-d.abs()) * torch.sigmoid(high) * torch.sigmoid(-low)


def tanh_change(x: Tensor, d: Tensor) -> Tensor:
    """Sinh d / (cosh x cosh(x + d)), by the sigmoid of the double."""
    return 2 * sigmoid_change(2 * x, 2 * d)


def softplus_change(x: Tensor, d: Tensor) -> Tensor:
    """log(1 + e^(x + d)) - log(1 + e^x) = log1p(sig(x) expm1(d)); for long steps subtracted."""
    short = torch.log1p(torch.sigmoid(x) * torch.expm1(d.clamp(-1, 1)))
    zero = torch.zeros_like(x)
    return torch.where(d.abs() < 1, short, torch.logaddexp(x + d, zero) - torch.logaddexp(x, zero))


def normal_change(x: Tensor, d: Tensor) -> Tensor:
    """Change of the normal distribution's integral."""
    return by_quadrature(
        x,
        d,
        torch.special.ndtr,
        lambda y: torch.exp(-0.5 * y * y) / math.sqrt(2 * math.pi),
    )


def _sigmoid(call: Call, input: Moved) -> Tensor:
    return sigmoid_change(input.base, input.change)


def _tanh(call: Call, input: Moved) -> Tensor:
    return tanh_change(input.base, input.change)


def _silu(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    x, d = input.base, input.change
    return d * torch.sigmoid(x + d) + x * sigmoid_change(x, d)


def _gelu(call: Call, input: Moved, approximate: str = "none") -> Tensor:
    x, d = input.base, input.change
    if approximate == "none":
        return d * torch.special.ndtr(x + d) + x * normal_change(x, d)
    k, c = math.sqrt(2 / math.pi), 0.044715
    u = k * (x + c * x**3)
    du = k * d * (1 + c * (3 * x * x + 3 * x * d + d * d))
    return 0.5 * (d * (1 + torch.tanh(u + du)) + x * tanh_change(u, du))


def elu_change(x: Tensor, d: Tensor, alpha: float) -> Tensor:
    """X above zero, alpha expm1(x) below."""
    below = -relu_change(-x, -d)  # change of min(x, 0)
    return relu_change(x, d) + alpha * torch.exp(x.clamp_max(0)) * torch.expm1(below)


def _elu(call: Call, input: Moved, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return elu_change(input.base, input.change, alpha)


def _selu(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    return 1.0507009873554805 * elu_change(input.base, input.change, 1.6732632423543772)


def _softplus(call: Call, input: Moved, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta; x itself where beta x is beyond the threshold, after a small jump."""
    u, v = beta * input.base, beta * input.change
    beyond, moved_beyond = u > threshold, u + v > threshold
    zero = torch.zeros((), dtype=u.dtype, device=u.device)
    # Beyond it the logarithm is x and this much more.
    left_out = torch.where(moved_beyond, torch.log1p(torch.exp(-u - v)), zero)
    left_out = left_out - torch.where(beyond, torch.log1p(torch.exp(-u)), zero)
    return torch.where(beyond & moved_beyond, input.change, (softplus_change(u, v) - left_out) / beta)


def _logsigmoid(call: Call, input: Moved) -> Tensor:
    return -softplus_change(-input.base, -input.change)


def _mish(call: Call, input: Moved, inplace: bool = False) -> Tensor:
    x, d = input.base, input.change
    plus, moved = torch.logaddexp(x, torch.zeros_like(x)), softplus_change(x, d)
    return d * torch.tanh(plus + moved) + x * tanh_change(plus, moved)


def _softsign(call: Call, input: Moved) -> Tensor:
    """X / (1 + |x|): of one sign d / ((1 + |x|)(1 + |x + d|)); across zero the two parts add."""
    x, d = input.base, input.change
    crossing = torch.sign(x) * torch.sign(x + d) < 0
    same = d / ((1 + x.abs()) * (1 + (x + d).abs()))
    return torch.where(crossing, (x + d) / (1 + (x + d).abs()) - x / (1 + x.abs()), same)


def _exp(call: Call, input: Moved) -> Tensor:
    return torch.exp(input.base) * torch.expm1(input.change)


def _log(call: Call, input: Moved) -> Tensor:
    return torch.log1p(input.change / input.base)


def _log1p(call: Call, input: Moved) -> Tensor:
    return torch.log1p(input.change / (1 + input.base))


def _sqrt(call: Call, input: Moved) -> Tensor:
    x, d = input.base, input.change
    roots = torch.sqrt(x + d) + torch.sqrt(x)
    return torch.where(d == 0, torch.zeros_like(roots), d / roots)


def _rsqrt(call: Call, input: Moved) -> Tensor:
    s, t = torch.sqrt(input.base), torch.sqrt(input.base + input.change)
    return -input.change / (s * t * (s + t))


def _reciprocal(call: Call, input: Moved) -> Tensor:
    return -input.change / (input.base * (input.base + input.change))


def _sin(call: Call, input: Moved) -> Tensor:
    return 2 * torch.cos(input.base + input.change / 2) * torch.sin(input.change / 2)


def _cos(call: Call, input: Moved) -> Tensor:
    return -2 * torch.sin(input.base + input.change / 2) * torch.sin(input.change / 2)


def _erf(call: Call, input: Moved) -> Tensor:
    return 2 * normal_change(math.sqrt(2) * input.base, math.sqrt(2) * input.change)


def _square(call: Call, input: Moved) -> Tensor:
    return input.change * (2 * input.base + input.change)


def power_change(x: Tensor, d: Tensor, exponent: int) -> Tensor:
    """x^n, by the sum that d factors out of."""
    y = x + d
    return d * sum(y**i * x ** (exponent - 1 - i) for i in range(exponent))


for names, function in (
    (("sigmoid", "expit"), _sigmoid),
    (("tanh",), _tanh),
    (("silu",), _silu),
    (("gelu",), _gelu),
    (("elu",), _elu),
    (("selu",), _selu),
    (("softplus",), _softplus),
    (("logsigmoid",), _logsigmoid),
    (("mish",), _mish),
    (("softsign",), _softsign),
    (("exp",), _exp),
    (("log",), _log),
    (("log1p",), _log1p),
    (("sqrt",), _sqrt),
    (("rsqrt",), _rsqrt),
    (("reciprocal",), _reciprocal),
    (("sin",), _sin),
    (("cos",), _cos),
    (("erf",), _erf),
    (("square",), _square),
):
    register(named(*names), Rule(function, elementwise=True))
