"""Estimators in words: the same in every process and later version, and what a state of another one meets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import zo
from zo.same_run import described


class Nameless:
    """Its repr has an address."""


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Outer:
    mu: float
    inner: Inner = Inner()
    other: Any = None


SAID = [
    (Outer(0.1), "Outer(mu=0.1)"),
    (Outer(0.1, Inner(3)), "Outer(mu=0.1)"),
    (Outer(1e-3, Inner(4), "x"), "Outer(mu=0.001, inner=Inner(size=4), other='x')"),
    (Outer(0.1, other=torch.tensor([1.0, 2.0])), "Outer(mu=0.1, other=tensor([1., 2.]))"),
    (zo.CGE(mu=1e-3), "CGE(mu=0.001)"),
    (
        zo.CGE(1e-3, zo.RandomCoordinates(5), True),
        "CGE(mu=0.001, sparsity=RandomCoordinates(size=5), central=True)",
    ),
    (Inner, repr(Inner)),
]


@pytest.mark.parametrize(("value", "words"), SAID, ids=[words for _, words in SAID])
def test_what_is_not_the_default_is_said(value, words):
    assert described(value) == words


def test_addresses_are_left_out():
    assert described(Nameless()) == described(Nameless()) != repr(Nameless())
    assert described(Outer(0.1, other=Nameless())) == described(Outer(0.1, other=Nameless()))


def gradient(estimator):
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    return zo.LossGradient(network, lambda network, batch: network(batch).square().sum(dim=1), estimator)


OTHERS = [
    zo.CGE(mu=2e-3),
    zo.CGE(mu=1e-3, central=True),
    zo.CGE(mu=1e-3, sparsity=zo.RandomCoordinates(2)),
    zo.RGE(1e-3, 4),
]


@pytest.mark.parametrize("other", OTHERS, ids=described)
def test_the_state_of_another_estimator_is_refused_by_name(other):
    state = gradient(zo.CGE(mu=1e-3)).state_dict()
    with pytest.raises(zo.ConfigurationError) as caught:
        gradient(other).load_state_dict(state)
    assert described(other) in str(caught.value) and "got one with CGE(mu=0.001)" in str(caught.value)


def test_the_state_of_the_same_one_and_of_an_earlier_version_is_taken():
    own = gradient(zo.CGE(mu=1e-3))
    own.backward(torch.ones(4, 2))
    state = own.state_dict()
    for taken in (state, {name: value for name, value in state.items() if name != "estimator"}):
        again = gradient(zo.CGE(mu=1e-3))
        again.load_state_dict(taken)
        assert again.counts == own.counts
