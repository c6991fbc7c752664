"""`Surrogate`: what it leaves alone while it trains through models."""

import pytest
import torch

import zo
from tests.zo.populations import TARGET, Square, batch


@pytest.mark.filterwarnings("ignore::zo.errors.TangentWarning")
def test_weights_of_another_optimiser_get_no_gradient(limits):
    limits(updates_of_a_surrogate=12)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)).double()
    box, (own, other) = Square(), network
    surrogate = zo.tangents.Surrogate(
        network,
        lambda net, x: (box(net(x)) - TARGET).square().sum(dim=1),
        torch.optim.Adam(own.parameters(), lr=1e-2),
        lambda number: batch(1000 + number),
        boxes=[box],
        steps=6,
    )
    before = own.weight.detach().clone()
    for number in range(6):
        surrogate.step(batch(number))
    assert surrogate.updates == 12 and not torch.equal(own.weight, before)
    assert other.weight.grad is None and other.bias.grad is None
