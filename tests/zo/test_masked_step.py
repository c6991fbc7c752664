"""Momentum and weight decay under a changing set, both ways, against the update rules written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zo

DECAY, RATE = 0.1, 0.05


@pytest.fixture
def vector() -> tuple[nn.ParameterList, zo.estimators.Parameters]:
    network = nn.ParameterList(
        [torch.tensor([1.0, -2.0, 3.0]).double(), torch.tensor([[0.5], [4.0]]).double()]
    )
    return network, zo.estimators.Parameters(network)


def set_grad(parameters: zo.estimators.Parameters, indices: list[int], slope: float) -> None:
    for tensor in parameters.tensors:
        tensor.grad = None
    flat = torch.zeros(parameters.size, dtype=torch.float64)
    flat[indices] = slope
    parameters.add_to_grad(flat)


def test_standard_optimizer_coasts_and_decays_outside_the_set(vector):
    """SGD: v <- .9 v + g + decay w, w <- w - rate v, with g zero outside."""
    network, parameters = vector
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    w, v = parameters.flat(), torch.zeros(5, dtype=torch.float64)
    for chosen in ([0, 4], [1, 2], [1]):
        set_grad(parameters, chosen, 2.0)
        optimizer.step()
        g = torch.zeros(5, dtype=torch.float64)
        g[chosen] = 2.0
        v = 0.9 * v + g + DECAY * w
        w = w - RATE * v
    assert torch.allclose(parameters.flat(), w, rtol=1e-14)


def test_on_the_set_alone_weights_and_momentum_wait(vector):
    network, parameters = vector
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    w, v = parameters.flat(), torch.zeros(5, dtype=torch.float64)
    for chosen in ([0, 4], [1, 2], [1], [0, 1]):
        set_grad(parameters, chosen, 2.0)
        before = parameters.flat()
        zo.masked_step(optimizer, parameters, torch.tensor(chosen))
        v[chosen] = 0.9 * v[chosen] + 2.0 + DECAY * w[chosen]
        w[chosen] = w[chosen] - RATE * v[chosen]
        outside = [i for i in range(5) if i not in chosen]
        assert torch.equal(parameters.flat()[outside], before[outside])  # to the bit
    assert torch.allclose(parameters.flat(), w, rtol=1e-14)
    momentum = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in network])
    assert torch.allclose(momentum, v, rtol=1e-14)
    assert momentum[3] == 0  # never drawn


@pytest.mark.parametrize(
    "kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_on_the_set_alone_state_outside_it_is_kept_to_the_bit(vector, kind):
    network, parameters = vector
    optimizer = kind(network.parameters(), lr=RATE, weight_decay=DECAY)

    def everything() -> torch.Tensor:
        rows = [[p, *(s for k, s in optimizer.state[p].items() if k != "step")] for p in network]
        return torch.cat([torch.stack([t.detach().flatten() for t in row]) for row in rows], dim=1)

    zo.masked_step(optimizer, parameters, torch.tensor([0, 1, 3]))  # no gradient yet: nothing may break
    for chosen in ([0, 4], [1, 2]):
        set_grad(parameters, chosen, 2.0)
        before = everything() if optimizer.state[network[0]] else None
        zo.masked_step(optimizer, parameters, torch.tensor(chosen))
        outside = [i for i in range(5) if i not in chosen]
        if before is not None and len(before) == len(everything()):
            assert torch.equal(everything()[:, outside], before[:, outside])
            assert (everything()[0, chosen] != before[0, chosen]).all()
        elif len(everything()) > 1:
            assert (everything()[1:, outside] == 0).all()  # state that this step made


def test_late_coordinates_get_adam_without_bias_correction(vector):
    """(1 - .9) / sqrt(1 - .999) = 3.16 learning rates, as stated; the first step is one."""
    network, parameters = vector
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=0)
    for step in range(20000):
        if step not in (0, 19999):
            for p in network:
                optimizer.state[p]["step"] += 1
            continue
        chosen = [0, 3] if step == 0 else [1]
        set_grad(parameters, chosen, 2.0)
        before = parameters.flat()
        zo.masked_step(optimizer, parameters, torch.tensor(chosen))
        moved = (before - parameters.flat())[chosen]
        expected = 1e-3 * (1 if step == 0 else 0.1 / math.sqrt(0.001))
        assert torch.allclose(moved, torch.full_like(moved, expected), rtol=1e-6)


def test_weights_of_others_and_scalars_are_stepped_as_ever():
    network = nn.ParameterDict({"ours": torch.tensor(1.0), "dense": torch.tensor([1.0, 2.0])})
    parameters = zo.estimators.Parameters(network, ["ours"])
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    for p in network.values():
        p.grad = torch.ones_like(p)
    zo.masked_step(optimizer, parameters, torch.tensor([0]))
    assert torch.allclose(network["ours"], torch.tensor(1 - RATE))
    assert torch.allclose(network["dense"], torch.tensor([1 - RATE, 2 - RATE]))
    assert optimizer.state[network["ours"]]["step"] == 1  # as 0-dimensional as the weight, but no state of it


@pytest.mark.parametrize("indices", [[], [5], [-1, 2]])
def test_indices_that_leave_the_parameters_are_refused(vector, indices):
    network, parameters = vector
    with pytest.raises(zo.ConfigurationError, match=r"\[0, 5\)"):
        zo.masked_step(torch.optim.SGD(network, lr=1), parameters, torch.tensor(indices, dtype=torch.int64))


def test_an_optimizer_whose_state_is_not_entrywise_is_refused(vector):
    network, parameters = vector
    with pytest.raises(zo.ConfigurationError, match=r"SGD, Adam.*LBFGS"):
        zo.masked_step(torch.optim.LBFGS(network), parameters, torch.tensor([0]))
