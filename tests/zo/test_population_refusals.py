"""`Population`: which factors, optimisers and saved states it refuses, in words."""

import copy
import re

import numpy as np
import pytest
import torch
from typeguard import suppress_type_checks

import zo
from tests.zo.populations import batch, made, of_member, weights


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (4, "expected a sequence of numbers above 0, each once, got 4"),
        (np.array(4.0), "expected a sequence of numbers above 0, each once, got array(4.)"),
        ({1, 4}, "expected a sequence of numbers above 0, each once, got {1, 4}"),
        (None, "expected a sequence of numbers above 0, each once, got None"),
        (np.array([]), "expected a sequence of numbers above 0, each once, got array([]"),
        (np.array([1, 1]), "expected a sequence of numbers above 0, each once, got array([1, 1])"),
        (np.array([[1.0, 4.0]]), "expected a finite number > 0, got [1.0, 4.0]"),
        (np.array([1.0, -4.0]), "expected a finite number > 0, got -4.0"),
        (np.array([True]), "expected a finite number > 0, got True"),
        ("14", "expected a finite number > 0, got '1'"),
    ],
)
def test_what_is_no_sequence_of_factors_is_refused(factors, words):
    with (
        suppress_type_checks(),
        pytest.raises(zo.errors.ConfigurationError, match=f"^Population, factors: {re.escape(words)}"),
    ):
        made(factors=factors)


@pytest.mark.parametrize(
    "factors",
    [
        [1, 4.0],
        range(1, 5, 3),
        np.array([1, 4]),
        np.array([1, 4], dtype=np.float32),
        list(np.array([1, 4])),
        torch.tensor([1.0, 4.0]),
    ],
)
def test_sequences_and_arrays_of_factors_are_the_same(factors):
    with suppress_type_checks():  # numbers of NumPy are no floats
        population, *_ = made(factors=factors)
    found = [part["factor"] for part in population.state_dict()["members"]]
    assert found == [1.0, 4.0] and all(type(factor) is float for factor in found)


class Around(torch.optim.Optimizer):
    """Steps by an optimiser inside, which remembers, as Lookahead and SAM do."""

    def __init__(self, parameters, lr, wrap=lambda inner: inner):
        inner = torch.optim.Adam(parameters, lr=lr)
        super().__init__(inner.param_groups[0]["params"], {"lr": lr})
        self.param_groups, self.anything = inner.param_groups, wrap(inner)

    def step(self, closure=None):
        raise AssertionError("it is refused before")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: inner,
        lambda inner: [inner],
        lambda inner: {"fast": inner},
        lambda inner: (1, {"fast": [inner]}),
    ],
)
def test_an_optimiser_around_another_is_refused(wrap):
    """All members would share the moments of the one inside."""
    words = "expected one that remembers in its own `state`, got Around, whose 'anything' holds another, Adam"
    with pytest.raises(zo.errors.ConfigurationError, match=f"^Population, optimizer: {words}"):
        made(adam=lambda parameters, lr: Around(parameters, lr, wrap))


def test_an_optimiser_with_a_scheduler_is_taken():
    """The scheduler puts a step of its own in the place of the optimiser's; that refers to the optimiser."""
    _, gradient, optimizer = made()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_post_hook(lambda *_: None)
    optimizer.itself = [optimizer]
    before = copy.deepcopy(gradient.network.state_dict())
    zo.Population(gradient, optimizer).step(batch(0))
    assert any(not torch.equal(before[name], now) for name, now in gradient.network.state_dict().items())


def kept(population, gradient, optimizer):
    """All that loading a state must leave alone where it is refused."""
    return copy.deepcopy(
        [gradient.network.state_dict(), optimizer.state_dict(), population.state_dict(), population.metrics()]
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def stepped(network=None, **settings):
    parts = made(network=network, **settings)
    for number in range(2):
        parts[0].step(batch(number))
    return parts


def layered(width, norm=False):
    torch.manual_seed(2)
    middle = torch.nn.BatchNorm1d(width) if norm else torch.nn.Tanh()
    return torch.nn.Sequential(torch.nn.Linear(3, width), middle, torch.nn.Linear(width, 4)).double()


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("of", "into", "words"),
    [
        (
            lambda: stepped(layered(8)),
            lambda: stepped(layered(9)),
            "expected a state whose members have '0.weight' of shape (9, 3), got one of shape (8, 3)",
        ),
        (
            lambda: stepped(layered(8)),
            lambda: stepped(),
            "expected a state whose members have 'weight' of shape (4, 3), got none",
        ),
        (
            lambda: stepped(layered(8, norm=True)),
            lambda: stepped(layered(8)),
            "expected a state whose members have no '1.weight', got one of shape (8,)",
        ),
        (
            lambda: stepped(layered(8)),
            lambda: stepped(layered(8), parameters="2.*"),
            "expected a state whose members have no '0.weight', got one of shape (8, 3)",
        ),
        (
            lambda: made(network=layered(8)),  # before the first step
            lambda: made(network=layered(9)),
            "expected a state whose members have '0.weight' of shape (9, 3), got one of shape (8, 3)",
        ),
        (
            lambda: stepped(),
            lambda: stepped(adam=torch.optim.SGD),
            "expected the state of a run with optimizer=SGD, got one with Adam",
        ),
        (
            lambda: stepped(),
            lambda: stepped(factors=(1, 4)),
            "expected the state of a run with factors=[1.0, 4.0], got one with [1.0, 4.0, 16.0]",
        ),
    ],
)
def test_a_state_of_something_else_is_refused_and_changes_nothing(of, into, words):
    state, (population, gradient, optimizer) = of()[0].state_dict(), into()
    before, groups = kept(population, gradient, optimizer), optimizer.param_groups
    with pytest.raises(zo.errors.ConfigurationError, match=f"^Population: {re.escape(words)}"):
        population.load_state_dict(state)
    assert same(kept(population, gradient, optimizer), before)
    assert optimizer.param_groups is groups


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("broken", ["network", "moments", "rate", "counts", "owed"])
def test_a_state_that_is_broken_midway_changes_nothing(broken):
    """The members before it had their weights and moments in network and optimiser."""
    state, (population, gradient, optimizer) = stepped(rate=1e-2)[0].state_dict(), stepped()
    if broken in state:
        del state[broken]
    else:
        state["members"][2][broken] = None
    before, groups = kept(population, gradient, optimizer), optimizer.param_groups
    with suppress_type_checks(), pytest.raises((AttributeError, TypeError, KeyError)):
        population.load_state_dict(state)
    assert same(kept(population, gradient, optimizer), before)
    assert optimizer.param_groups is groups
    population.step(batch(2))
    alone, other, _ = stepped()
    alone.step(batch(2))
    assert torch.equal(weights(gradient.network), weights(other.network))
    assert torch.equal(of_member(population, 1), of_member(alone, 1))


def test_the_network_is_the_leader_s_where_saving_fails(monkeypatch):
    population, gradient, optimizer = stepped()
    before, moments = weights(gradient.network), optimizer.state

    def fail():
        raise MemoryError

    monkeypatch.setattr(optimizer, "state_dict", fail)
    with pytest.raises(MemoryError):
        population.state_dict()
    assert torch.equal(weights(gradient.network), before) and optimizer.state is moments


def test_a_buffer_that_a_forward_puts_in_another_s_place_is_a_member_s_own_in_a_state():
    """Also where it has another shape in the network beside which the state is loaded."""

    class Cached(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 4, dtype=torch.float64)
            self.register_buffer("seen", torch.zeros(1, 3, dtype=torch.float64), persistent=False)

        def forward(self, x):
            self.seen = x.detach().clone()
            return super().forward(x)

    state, (population, _, _) = stepped(Cached())[0].state_dict(), made(network=Cached())
    assert len(state["members"][1]["network"]["seen"]) > 1
    population.load_state_dict(state)
    assert same(population.state_dict(), state)
    assert population._gradient.network.seen.shape == (1, 3)
