"""A small network trained through an adapter, and the adapter's gradient held against the function's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction


def function(x: Tensor) -> Tensor:
    """What the adapters wrap: `(rows, 2) -> (rows, 2)`, smooth, not linear, not symmetric."""
    a, b = x[..., 0], x[..., 1]
    return torch.stack([torch.sin(a) + 0.5 * b, a * b + b], dim=-1)


def gradient_error(
    box: BlackBoxFunction, mu: float = 1e-6, truth: Callable[[Tensor], Tensor] = function
) -> float:
    """Largest relative error, over rows, of the gradient of a loss through the box, against autograd."""
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found, wanted = x.clone().requires_grad_(), x.clone().requires_grad_()
    solver = zo.differentiable(box, zo.CGE(mu=mu), seed=0)
    (solver(found) - 0.3).square().sum().backward()
    (truth(wanted) - 0.3).square().sum().backward()
    assert found.grad is not None and wanted.grad is not None
    return float(((found.grad - wanted.grad).norm(dim=1) / wanted.grad.norm(dim=1)).max())


def loss_drop(box: BlackBoxFunction, steps: int, rows: int, mu: float = 1e-4) -> float:
    """By what factor training through the box brings down the loss of a network that steers it.

    The network sees what `function` gave for hidden inputs, and learns inputs that give it again.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(rows, 2, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    wanted = function(hidden)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    solver = zo.differentiable(box, zo.CGE(mu=mu), seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (solver(network(wanted)) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0] / losses[-1]
