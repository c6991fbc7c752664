"""`Population`: weights that the gradient does not train belong to all members."""

import copy
import io
from collections import OrderedDict

import pytest
import torch

from tests.zo.populations import TARGET, advance, batch, made


class Headed(torch.nn.Module):
    """A head behind an encoder, both linear."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Linear(3, 3).double()
        self.head = torch.nn.Linear(3, 4).double()

    def forward(self, x):
        return self.head(self.encoder(x))


def headed(network=None, **settings):
    """A population that trains the head alone, a second optimiser of the encoder, and the network."""
    torch.manual_seed(1)
    network = Headed() if network is None else network
    population, gradient, optimizer = made(network=network, parameters="head.*", **settings)
    second = torch.optim.Adam(network.encoder.parameters(), lr=1e-2)
    return population, gradient, optimizer, second, network


def pull(second, network):
    """A step of the second optimiser, towards the identity."""
    second.zero_grad()
    (network.encoder.weight - torch.eye(3)).square().sum().backward()
    second.step()


def drift(second, network):
    """What a user does to a frozen network, such as a target's running mean."""
    with torch.no_grad():
        for weight in network.encoder.parameters():
            weight.lerp_(torch.ones_like(weight), 0.02)


def of_encoder(network):
    return torch.cat([weight.detach().flatten() for weight in network.encoder.parameters()])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("change", [pull, drift])
def test_what_the_user_does_to_weights_that_no_member_trains_stays(change):
    """Where another member leads, and where one goes on from the leader's weights."""
    population, _, _, second, network = headed(factors=(1e-6, 1, 30, 1e6))
    if change is drift:
        network.encoder.requires_grad_(False)
    leaders = {population.factor}
    for number in range(14):
        before = of_encoder(network)
        population.step(batch(number))
        assert torch.equal(of_encoder(network), before)
        leaders.add(population.factor)
        change(second, network)
    assert len(leaders) > 1 and population.copies > 0


def test_a_second_optimiser_trains_as_it_would_alone():
    population, _, _, second, network = headed(factors=(1e-6, 1, 30))
    alone = copy.deepcopy(network)
    other = torch.optim.Adam(alone.encoder.parameters(), lr=1e-2)
    for number in range(14):
        population.step(batch(number))
        pull(second, network)
        pull(other, alone)
    assert population.factor == 30
    assert torch.equal(of_encoder(network), of_encoder(alone))


def test_members_are_judged_with_the_weights_of_all_as_they_are():
    """By the box's own function, at each member's head and the encoder that was set since."""
    population, _, _, _, network = headed()
    population.step(batch(0))
    heads = [part["network"] for part in population.state_dict()["members"] if "network" in part]
    assert all(set(head) == {"head.weight", "head.bias"} for head in heads)
    with torch.no_grad():
        network.encoder.weight.copy_(2 * torch.eye(3))
    x = network.encoder(batch(1)).detach()
    expected = [
        float((advance(out) - TARGET).square().sum(dim=1).mean())
        for out in (x @ head["head.weight"].T + head["head.bias"] for head in heads)
    ]
    population.step(batch(1))
    losses = [part["losses"][-1] for part in population.state_dict()["members"] if "network" in part]
    assert losses == pytest.approx(expected, rel=1e-12) and losses[0] != losses[1]


def test_a_weight_that_is_tied_to_a_trained_one_is_trained():
    """Each member has its own, under either name."""
    torch.manual_seed(1)
    names = {"encoder": torch.nn.Linear(3, 3), "head": torch.nn.Linear(3, 3), "last": torch.nn.Linear(3, 4)}
    network = torch.nn.Sequential(OrderedDict(names)).double()
    network.encoder.weight = network.head.weight
    population, gradient, *_ = headed(network, factors=(1, 30))
    assert gradient.parameters.names == ("encoder.weight", "head.bias")
    for number in range(3):
        population.step(batch(number))
        with torch.no_grad():
            network.last.bias.add_(0.1)
    (other,) = (part["network"] for part in population.state_dict()["members"] if "network" in part)
    assert set(other) == {"encoder.weight", "head.bias"}
    assert not torch.equal(other["encoder.weight"], network.head.weight)
    assert network.encoder.weight is network.head.weight


def test_a_frozen_weight_that_the_forward_writes_to_is_written_to_by_the_leader_alone():
    """As a codebook's running mean: as often as in a training at one rate, by the window and its replays."""

    class Counting(Headed):
        def __init__(self):
            super().__init__()
            self.passes = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

        def forward(self, x):
            with torch.no_grad():
                self.passes.add_(1)
            return super().forward(x)

    among, alone = headed(Counting(), factors=(1, 4, 16)), headed(Counting(), factors=(1,))
    for number in range(2):
        among[0].step(batch(number))
        alone[0].step(batch(number))
        assert among[-1].passes == alone[-1].passes > number


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint_to_the_bit_beside_a_second_optimiser():
    def after(made, numbers):
        population, _, _, second, network = made
        losses = []
        for number in numbers:
            losses.append(float(population.step(batch(number))))
            pull(second, network)
        return losses

    def begun():
        return headed(factors=(1e-6, 1, 30), rate=3e-3)

    whole, half = begun(), begun()
    expected = after(whole, range(12))[6:]
    after(half, range(6))
    buffer = io.BytesIO()
    torch.save([half[place].state_dict() for place in (4, 2, 3, 1, 0)], buffer)
    buffer.seek(0)
    again = begun()
    for place, state in zip((4, 2, 3, 1, 0), torch.load(buffer, weights_only=True), strict=True):
        again[place].load_state_dict(state)
    assert after(again, range(6, 12)) == expected
    assert again[0].metrics() == whole[0].metrics() and whole[0].factor == 30
    for name, value in whole[4].state_dict().items():
        assert torch.equal(again[4].state_dict()[name], value)
