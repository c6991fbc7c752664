"""`difference` against autograd where a rule has to know what the network's own dtype gave."""

import warnings

import pytest
import torch
from torch import nn

import zo


class Prepended(nn.Module):
    """Differences of features with a column in front that does not move, and one behind that does."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 6), nn.Parameter(torch.ones(1))

    def forward(self, x):
        features = self.layer(x).tanh()
        edge = self.last.expand(len(x), 1)
        return torch.diff(features, prepend=x[:, :1], append=edge, dim=1)


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-4])
def test_a_root_mean_square_norm_has_the_eps_of_its_dtype(size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2))
    with torch.no_grad():
        network[0].weight.mul_(size)
        network[0].bias.mul_(size)
    compare(network, 1e-3 * size, 2, 1e-5)


def test_differences_of_what_is_joined():
    torch.manual_seed(0)
    compare(Prepended(), 1e-3, 7, 1e-5)


def compare(network, mu, size, allowed):
    x, wanted = torch.randn(16, 4), torch.randn(16, size)

    def squared(y, target):
        return (y - target).square().mean(dim=1)

    squared(network(x), wanted).mean().backward()
    exact = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    gradient = zo.LossGradient(
        network, zo.OutputLoss(squared), zo.CGE(mu, central=True), evaluator="difference"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as where another evaluator takes over
        gradient.backward((x, wanted))
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert float((found - exact).norm() / exact.norm()) < allowed
