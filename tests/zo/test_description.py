"""Estimators in words: the same in every process and later version, and what a state of another one meets."""

from __future__ import annotations

import pytest
import torch

import zo


class Nameless:
    """A sparse set of a user's own: its repr has an address."""

    def count(self, parameters, step: int = 0) -> int:
        return 1

    def draw(self, parameters, key):
        return torch.zeros(1, dtype=torch.int64)


def gradient(estimator):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    return zo.LossGradient(network, lambda network, batch: network(batch).square().sum(dim=1), estimator)


SAID = [
    (zo.CGE(mu=1e-3), "CGE(mu=0.001)"),
    (
        zo.CGE(1e-3, zo.RandomCoordinates(5), True),
        "CGE(mu=0.001, sparsity=RandomCoordinates(size=5), central=True)",
    ),
    (
        zo.RGE(1e-3, 4, sparsity=zo.estimators.FixedCoordinates(torch.tensor([1, 2]))),
        "RGE(mu=0.001, q=4, sparsity=FixedCoordinates(indices=tensor([1, 2])))",
    ),
]


@pytest.mark.parametrize(("estimator", "words"), SAID, ids=["plain", "sparse", "a tensor"])
def test_what_is_not_the_default_is_said(estimator, words):
    assert gradient(estimator).state_dict()["estimator"] == words
    assert words in repr(gradient(estimator))


def test_addresses_are_left_out():
    first, second = (gradient(zo.CGE(1e-3, Nameless())).state_dict()["estimator"] for _ in range(2))
    assert first == second and "Nameless" in first and "0x" not in first


OTHERS = [
    zo.CGE(mu=2e-3),
    zo.CGE(mu=1e-3, central=True),
    zo.CGE(mu=1e-3, sparsity=zo.RandomCoordinates(2)),
    zo.RGE(1e-3, 4),
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_state_of_another_estimator_is_refused_by_name(other):
    state = gradient(zo.CGE(mu=1e-3)).state_dict()
    with pytest.raises(zo.errors.ConfigurationError) as caught:
        gradient(other).load_state_dict(state)
    assert gradient(other).state_dict()["estimator"] in str(caught.value)
    assert "got one with CGE(mu=0.001)" in str(caught.value)


def test_the_state_of_the_same_one_and_of_an_earlier_version_is_taken():
    first = gradient(zo.CGE(mu=1e-3))
    first.backward(torch.ones(4, 2))
    state = first.state_dict()
    for taken in (state, {name: value for name, value in state.items() if name != "estimator"}):
        again = gradient(zo.CGE(mu=1e-3))
        again.load_state_dict(taken)
        assert again.counts == first.counts
