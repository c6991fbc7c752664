"""Outputs that are an input, as it was: nothing learns them, and their derivative is exact."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from blackbox.errors import DefinitionError
from tests.zo.row_boxes import FromTorch, weights
from zo.errors import TangentError
from zo.tangents import ModelTangent
from zo.tangents.record.recorded_call import RecordedCall

A, B = weights(3, 3, seed=1) / 3, weights(2, 3, seed=2)
X, U = ArraySpec("x", (3,)), ArraySpec("u", (2,))
BEFORE = ArraySpec("u_before", (2,), copy_of="u")
CALLS = 4


def moved(x, u):
    """The next state."""
    return torch.tanh(x @ A + u @ B)


def box_of(outputs=(X, BEFORE)):
    return FromTorch(lambda x, u: (moved(x, u), u), (X, U), outputs)


def objective_of(box, seen=None):
    """The loss goes by states, and by what was asked of the call before."""

    def objective(network, x):
        total = torch.zeros(len(x), dtype=x.dtype)
        for _ in range(CALLS):
            u = network(x)
            x, before = box(x, u)
            if seen is not None:
                seen.append((before - u).abs().max().item())
            total = total + x.square().sum(1) + (before**3).sum(1)
        return total

    return objective


def network_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def gradients(network, batch):
    loss = objective_of(lambda x, u: (moved(x, u), u))(network, batch).mean()
    return torch.autograd.grad(loss, list(network.parameters()))


def pairs_of(box):
    x, u = weights(4, 3), weights(4, 2)
    return RecordedCall(0, (x, u), (moved(x, u), u)).pairs(box, torch.ones(4, dtype=torch.bool))


def same(network, expected):
    return all(
        torch.allclose(p.grad, e, rtol=1e-9) for p, e in zip(network.parameters(), expected, strict=True)
    )


def test_the_gradient_is_autograds_where_the_rest_is_known():
    network, box, batch = network_of(), box_of(), weights(6, 3, seed=3)
    tangent = ModelTangent(moved)
    gradient = zo.TangentGradient(
        network, objective_of(box), boxes=[box], tangent=tangent, limits=zo.tangents.Limits(excite=0)
    )
    for _ in range(2):  # the first evaluates once more
        network.zero_grad()
        gradient.backward(batch)
        assert same(network, gradients(network, batch))


def test_a_replay_has_the_copies_of_today():
    network, box, batch = network_of(), box_of(), weights(6, 3, seed=3)
    gradient = zo.TangentGradient(
        network,
        objective_of(box),
        boxes=[box],
        tangent=ModelTangent(moved),
        limits=zo.tangents.Limits(excite=0, replays=1),
    )
    gradient.replays()
    gradient.backward(batch)
    network.load_state_dict(network_of(1).state_dict())
    network.zero_grad()
    gradient.replay(6)
    assert same(network, gradients(network, batch))  # whatever their order


def test_a_surrogate_has_its_own_copies_and_a_dither_is_taken_back_from_what_boxes_answer():
    seen = []
    network, box = network_of(), box_of()
    gradient = zo.TangentGradient(
        network, objective_of(box, seen), boxes=[box], limits=zo.tangents.Limits(excite=0.1, clip=None)
    )
    for step in range(8):
        network.zero_grad()
        gradient.backward(weights(6, 3, seed=step))
    # at first the answer is what the box gave; then the response is known
    assert max(seen) > 1e-3 and max(seen[-CALLS:]) < 1e-12
    adam = torch.optim.Adam(network.parameters())
    surrogate = zo.tangents.Surrogate(network, objective_of(box, seen), adam, weights, boxes=[box], steps=1)
    surrogate.ask(weights(6, 3, seed=8))
    surrogate.learn()
    surrogate.through(weights(6, 3, seed=9))
    assert max(seen[-CALLS:]) == 0


def test_models_learn_nothing_of_copies():
    network, box = network_of(), box_of()
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box])
    gradient.backward(weights(6, 3, seed=3))
    assert pairs_of(box).outputs == (X,)
    tangent = zo.tangents.MLPTangent(seed=0)
    x, u = weights(20, 3, seed=4), weights(20, 2, seed=5)
    tangent.fit((x, u), (moved(x, u), u), steps=2, box=box)


def test_what_is_no_copy_is_refused():
    box = FromTorch(lambda x, u: (moved(x, u), 2 * u), (X, U), (X, BEFORE))
    gradient = zo.TangentGradient(network_of(), objective_of(box), boxes=[box])
    with pytest.raises(TangentError, match="'u_before' to be input 'u' as it was"):
        gradient.backward(weights(6, 3, seed=3))


@pytest.mark.parametrize("name", ["x", "w"])
def test_what_cannot_be_a_copy_is_refused(name):
    box = box_of((X, dataclasses.replace(BEFORE, copy_of=name)))
    with pytest.raises(DefinitionError, match="copy_of"):
        box(torch.zeros(1, 3), torch.zeros(1, 2))


def test_an_input_is_no_copy():
    box = FromTorch(lambda x, u: (moved(x, u), u), (X, dataclasses.replace(U, copy_of="x")), (X, BEFORE))
    with pytest.raises(DefinitionError, match="expected it of an output"):
        box(torch.zeros(1, 3), torch.zeros(1, 2))


def test_where_nothing_goes_by_copies_they_are_refused():
    with pytest.raises(zo.errors.ConfigurationError, match="u_before"):
        zo.differentiable(box_of(), tangent=zo.tangents.MLPTangent())
    assert zo.differentiable(box_of(), zo.box_gradient.RowRGE(mu=1e-4, q=2)) is not None


def test_a_state_from_before_an_output_was_a_copy_is_refused():
    def gradient(outputs):
        box, tangent = box_of(outputs), zo.tangents.MLPTangent(seed=0)
        return zo.TangentGradient(network_of(), objective_of(box), boxes=[box], tangent=tangent, seed=0)

    before = gradient((X, dataclasses.replace(BEFORE, copy_of=None)))
    before.backward(weights(6, 3, seed=3))
    with pytest.raises(zo.errors.ConfigurationError, match="copy of u"):
        gradient((X, BEFORE)).load_state_dict(before.state_dict())


def test_a_copy_may_be_one_number():
    """The box is its own model here, so that the gradient is autograd's."""
    one = ArraySpec("u", ())
    world = lambda x, u: (torch.tanh(x @ A + u[..., None]), u.clone())  # noqa: E731
    box = FromTorch(world, (X, one), (X, ArraySpec("u_before", (), copy_of="u")))

    def objective(answer, network, x):
        state, before = answer(x, network(x)[:, 0])
        return state.square().sum(1) + before**3

    network, x = nn.Linear(3, 1).double(), weights(6, 3)
    model = ModelTangent(lambda x, u: world(x, u)[0])
    zo.TangentGradient(network, partial(objective, box), boxes=[box], tangent=model).backward(x)
    loss = objective(world, network, x).mean()
    assert same(network, torch.autograd.grad(loss, list(network.parameters())))
