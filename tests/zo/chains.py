"""Chains of calls of a box: what tests of trust in tangents train on, and their true gradients."""

from __future__ import annotations

import torch
from torch import nn

import zo
from blackbox import ArraySpec
from zo.tangents import CallPairs, TrustPolicy

X = ArraySpec("x", (4,))
QUICK = TrustPolicy(check_every=None, average=3)
NEVER = TrustPolicy(check_every=None, lost=1e9, regained=1e9)
ALWAYS = TrustPolicy(check_every=1, lost=1e9, regained=1e9, agreement=-1e9)


def bent(x):
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, dims=-1) * x


def make_network(dtype=torch.float64, middle: tuple[nn.Module, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, 4)).to(dtype)


def chain(box, steps=3):
    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(steps):
            state = box(state + network(state))
            loss = loss + (state - 0.5).square().mean(dim=1)
        return loss

    return objective


def flat_grads(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()]).double()


def true_grads(objective, network, batch) -> torch.Tensor:
    loss = objective(network, batch).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]).double()


def along(objective, network, batch, direction) -> torch.Tensor:
    """The derivative of each row's loss along a direction."""
    losses, tensors = objective(network, batch), list(network.parameters())
    rows = [torch.autograd.grad(loss, tensors, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.flatten() for g in row]).double() @ direction for row in rows])


class Student(zo.tangents.Tangent):
    """Predicts that outputs are the last it has seen; keeps what it was called with, in order."""

    def __init__(self):
        self.said: list[tuple[str, CallPairs]] = []
        self.known = None

    def at(self, rows):
        return zo.tangents.LinearMap(rows, lambda d: d, lambda v: self.pulled(rows, v), self.known)

    def pulled(self, rows, v):
        self.said.append(("pull", rows))
        return v

    def expect(self, rows):
        self.said.append(("expect", rows))
        return super().expect(rows)

    def see(self, pairs):
        self.said.append(("see", pairs))
        self.known = pairs.y.clone()

    def learn(self, steps=None):
        self.said.append(("learn", None))

    def __deepcopy__(self, memo):
        return self

    def __repr__(self):
        return "Student()"
