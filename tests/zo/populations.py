"""A small `Population` around a box whose derivative is known, for tests."""

import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tests.judged import gathered
from zo.tangents import ModelTangent

TARGET = torch.linspace(-1, 1, 4, dtype=torch.float64)


class Square(BlackBoxFunction):
    """x + x^2 / 4, of each number."""

    arrays = "torch"
    inputs = outputs = (ArraySpec("x", (4,), "float64"),)

    def evaluate_rows(self, x):
        return advance(x)


def advance(x):
    return x + x.square() / 4


def made(
    tangent=None, factors=(1, 4, 16), rate=1e-3, adam=torch.optim.Adam, box=None, network=None, **settings
):
    """A population of a small network, by default with the box's own derivative."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 4).double() if network is None else network
    box = Square() if box is None else box
    tangent = ModelTangent(advance) if tangent is None else tangent
    gradient = zo.TangentGradient(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        boxes=[box],
        tangent=tangent,
        **gathered(**{"clip": None, "replays": 2, "check_every": None, **settings}),
    )
    optimizer = adam(gradient.parameters.tensors, lr=rate)
    return zo.Population(gradient, optimizer, factors=factors, surrogate=False), gradient, optimizer


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, 3, generator=generator, dtype=torch.float64)


def loss_of(network, x):
    return (advance(network(x)) - TARGET).square().sum(dim=1).mean()


def weights(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def of_member(population, number):
    """The weights of one that does not lead."""
    network = population.state_dict()["members"][number]["network"]
    return torch.cat([network[name].flatten() for name in ("weight", "bias")])
