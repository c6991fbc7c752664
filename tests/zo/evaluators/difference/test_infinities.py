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
