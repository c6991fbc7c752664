"""Objectives that differentiate the network themselves: forces of an energy, penalties on a gradient."""

import pytest
import torch
from torch.func import functional_call, grad, vmap

import zo
from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents import ModelTangent


def bent(x):
    return torch.stack((x.sum(-1).tanh(), x.prod(-1)), -1)


class Bent(BlackBoxFunction):
    inputs = (ArraySpec("x", (3,), "float64"),)
    outputs = (ArraySpec("y", (2,), "float64"),)

    def evaluate_rows(self, x):
        return bent(torch.as_tensor(x)).numpy()


def slope(network, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(network(x).sum(), x, create_graph=True)[0]


def by_func(network, x):
    return vmap(grad(lambda row: network(row[None]).sum()))(x)


def by_functional_call(network, x):
    weights = dict(network.named_parameters())
    return vmap(grad(lambda row: functional_call(network, weights, (row[None],)).sum()))(x)


SLOPES = (slope, by_func, by_functional_call)
KINDS = {  # what the box is given, by a network, its derivative and rows
    "penalty": lambda box, network, d, x: box(network(x)).square().mean(1) + d(network, x).square().mean(1),
    "force": lambda box, network, d, x: box(d(network, x)).square().mean(1),
}


def made():
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    return torch.nn.Sequential(*layers).double(), torch.randn(6, 3, dtype=torch.float64)


def slopes_of(network):
    return [torch.zeros_like(w) if w.grad is None else w.grad for w in network.parameters()]


def gradients(kind, derivative, steps=2, **settings):
    """The gradients of the steps, and the weights after them, which no step moves."""
    network, x = made()
    box = Bent()
    objective = KINDS[kind]
    gradient = zo.TangentGradient(
        network, lambda n, b: objective(box, n, derivative, b), boxes=[box], seed=0, **settings
    )
    for _ in range(steps):
        network.zero_grad()
        gradient.backward(x)
    return slopes_of(network), network


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("derivative", SLOPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tangent_gives_the_gradient_of_an_objective_that_differentiates_the_network(kind, derivative):
    twin, x = made()
    KINDS[kind](bent, twin, slope, x).mean().backward()
    truth = slopes_of(twin)
    found, network = gradients(kind, derivative, tangent=ModelTangent(bent))
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)
    found, network = gradients(kind, derivative)
    torch.testing.assert_close(found, gradients(kind, slope)[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(list(network.parameters()), list(twin.parameters()), rtol=0, atol=0)
