"""What is infinite on the way from a weight to the loss: a query that moves it is evaluated all the same."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo


class TopK(nn.Module):
    """Attention to the four nearest alone: a query may move which of the others are minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT / 2
        least = scores.topk(4, -1).values[..., -1:]
        weights = scores.masked_fill(scores < least, float("-inf")).softmax(-1)
        return self.o(weights @ self.v(x)).mean(dim=1)


class By(nn.Module):
    """A continuous function with an infinity on the way, between two layers."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(5, 16), nn.Linear(16, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


FUNCTIONS = {
    "reciprocal": lambda h: (1 / h.relu()).clamp(max=4.0),
    "logaddexp": lambda h: torch.logaddexp(h.relu().log(), torch.zeros_like(h)),
    "maximum": lambda h: (
        h.masked_fill(h < 0, float("-inf")).amax(1, keepdim=True).clamp(min=0.0).expand_as(h)
    ),
    "nan_to_num": lambda h: torch.nan_to_num(h.masked_fill(h < 0, float("-inf")), neginf=0.0),
    "where": lambda h: (lambda m: torch.where(m.isneginf(), 0.0, m))(h.masked_fill(h < 0, float("-inf"))),
    "compared": lambda h: (lambda m: torch.where(m > 0, m, 0.0))(h.masked_fill(h < 0, float("-inf"))),
    "fmax": lambda h: torch.fmax(h.masked_fill(h < 0, float("-inf")), torch.zeros_like(h)),
    "sorted": lambda h: h.masked_fill(h < 0, float("-inf")).sort(-1).values.clamp(min=0.0),
    "exp": lambda h: h.masked_fill(h < 0, float("-inf")).exp().clamp(min=1.0),
    "softmax": lambda h: h.masked_fill(h < h.mean(1, keepdim=True) - 3, float("-inf")).softmax(-1),
    "nansum": lambda h: h.masked_fill(h < 0, float("-inf")).clamp(min=0.0).nansum(1, keepdim=True) + h,
}


# each is NaN in some rows of the base, which a query may turn into numbers, or the other way
NANS = {
    "repaired": lambda h: torch.nan_to_num(h.log(), nan=0.3),
    "replaced": lambda h: torch.where(h.log().isnan(), 0.3, h.log()),
    "masked": lambda h: (lambda r: r.masked_fill(r != r, 0.0))(h.sqrt()),
    "zero by zero": lambda h: torch.nan_to_num(h.relu() / h.relu()) * h,
    "infinity by zero": lambda h: torch.nan_to_num(h.relu() * (1 / h.relu()), nan=0.5) * h,
    "power": lambda h: torch.nan_to_num(h**0.5, nan=-0.2),
    "mean of the rest": lambda h: h.log().nanmean(1, keepdim=True) + h,
    "sum of the rest": lambda h: h.log().clamp(min=-3).nansum(1, keepdim=True) + h,
    "median of the rest": lambda h: h.log().nanmedian(1, keepdim=True).values.nan_to_num() + h,
    "fmin": lambda h: torch.fmin(h.log(), torch.ones_like(h)),
    "counted": lambda h: h * h.log().isnan().to(h.dtype).mean(1, keepdim=True),
    "cumulated": lambda h: h.log().cumsum(1).nan_to_num(nan=0.5),
    "a scaled log": lambda h: torch.nan_to_num(h.log() * 2 + 1, nan=0.3),
    "a gate": lambda h: torch.nan_to_num(h.roll(1, 1).tanh() * h.relu().log(), nan=0.2, neginf=-3, posinf=2),
}


def gradients(network, loss, batch, mu, evaluator):
    gradient = zo.LossGradient(network, loss, zo.CGE(mu=mu, central=True), evaluator=evaluator)
    network.zero_grad()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient.backward(batch)
    flat = torch.cat([parameter.grad.flatten().double() for parameter in network.parameters()])
    return flat, gradient, [str(warning.message) for warning in said]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [1e-4, 1e-2])
def test_queries_that_move_a_mask_of_minus_infinity_are_those_of_loop(dtype, mu):
    torch.manual_seed(0)
    network, loss = TopK().to(dtype), zo.OutputLoss(lambda o, t: (o - t).square().mean(1))
    generator = torch.Generator().manual_seed(1)
    batch = tuple(torch.randn(s, generator=generator).to(dtype) for s in ((16, 12, 4), (16, 4)))
    exact, _, _ = gradients(network, loss, batch, mu, "loop")
    fast, gradient, _ = gradients(network, loss, batch, mu, "auto")
    assert gradient.counts.dropped == 0
    assert (fast - exact).norm() < 0.02 * exact.norm()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("evaluator", ["stacked", "auto"])
def test_functions_with_an_infinity_on_the_way_are_those_of_loop(function, evaluator):
    torch.manual_seed(0)
    network, loss = By(function).double(), zo.OutputLoss(lambda o, t: (o - t).square().mean(1))
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).double()
    exact, _, _ = gradients(network, loss, (x, x[:, :2]), 1e-2, "loop")
    fast, gradient, _ = gradients(network, loss, (x, x[:, :2]), 1e-2, evaluator)
    assert gradient.counts.dropped == 0
    assert (fast - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("function", NANS.values(), ids=NANS)
def test_queries_whose_nan_is_repaired_behind_are_those_of_loop(function):
    torch.manual_seed(3)
    network, loss = By(function).double(), zo.OutputLoss(lambda o, t: o.square().mean(1))
    batch = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)).double(), torch.zeros(6)
    exact, _, _ = gradients(network, loss, batch, 0.1, "loop")
    fast, gradient, _ = gradients(network, loss, batch, 0.1, "difference")
    assert gradient.counts.dropped == 0
    assert (fast - exact).norm() < 1e-6 * exact.norm()


def test_a_product_of_two_infinite_changes_is_that_of_loop():
    """By the changes it is NaN, which is repaired otherwise than what is infinite."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.linspace(1, 2, 40).double())
            with torch.no_grad():
                self.w[21] = 1e-3

        def forward(self, x):
            h = x * self.w
            return torch.nan_to_num(h.relu().log() * (h + 1.5e-3), nan=0.7, posinf=2.0, neginf=-3.0)

    batch = torch.ones(3, 40).double(), torch.zeros(3)
    loss = zo.OutputLoss(lambda o, t: o.square().mean(1))
    exact, _, _ = gradients(Gate(), loss, batch, 2e-3, "loop")
    fast, _, _ = gradients(Gate(), loss, batch, 2e-3, "difference")
    assert torch.allclose(fast, exact, rtol=1e-9)
