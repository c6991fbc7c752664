"""Programs that ask in stages: what a stage goes by is found, be it its own step alone or the one before."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError
from zo.tangents.models.staged import StagedTangent

STEPS, CASES = 6, 300
STATES = torch.randn(CASES, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
DRIVE = torch.tensor([[1.0, 0.2, -0.5], [0.1, -0.8, 0.6]], dtype=torch.float64)


def rate(state, action):
    turned = torch.stack([state[:, 1], state[:, 2], -state[:, 0]], dim=1)
    return turned - 0.2 * state**3 + 2 * action @ DRIVE.to(state)


def step(state, ask, before, scheme):
    """A step of a program: of Heun, or of one whose first stage mixes in the action before it."""
    first = ask(state)
    acting = first if scheme == "heun" or before is None else 0.4 * first + 0.6 * before
    half = state + 0.1 * rate(state, acting)
    second = ask(half)
    return state + 0.05 * (rate(state, acting) + rate(half, second)), second


def host_of(scheme, **declared):
    def program(case, host):
        state, before = STATES[case][None], None

        def ask(state):
            return torch.from_numpy(np.array(host.exchange("control", state[0].numpy())))[None]

        for _ in range(200):
            state, before = step(state, ask, before, scheme)

    call = Call("control", ArraySpec("state", (3,)), ArraySpec("action", (2,)), stages=2, **declared)
    return Hosted(program, calls=[call])


def through(host):
    def objective(network, batch):
        seen = host.run(batch[0], calls=2 * STEPS, control=network).control.state
        return seen[:, 2::2].square().mean(dim=(1, 2))

    return objective


def exact(network, batch, scheme):
    state, before, total = STATES[batch[0]].float(), None, 0.0
    for _ in range(STEPS):
        state, before = step(state, network, before, scheme)
        total = total + state.square().mean(dim=1)
    return (total / STEPS).mean()


def policy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))


def batch(number):
    return (torch.randint(0, CASES, (12,), generator=torch.Generator().manual_seed(number)),)


def trained(gradient, scheme, steps):
    """Cosines with the exact gradients, of the last third of the steps."""
    network, cosines = gradient.network, []
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for number in steps:
        optimizer.zero_grad()
        gradient.backward(batch(number))
        if network[0].weight.grad is not None:
            true = torch.autograd.grad(exact(network, batch(number), scheme), list(network.parameters()))
            pair = [torch.cat([part.flatten() for part in parts]) for parts in (true, grads(network))]
            cosines.append(float(torch.cosine_similarity(*pair, dim=0)))
        optimizer.step()
    return cosines[-len(steps) // 3 :]


def grads(network):
    return [weight.grad for weight in network.parameters()]


def gradient_of(host):
    unchecked = zo.tangents.Limits(check_every=None)
    return zo.TangentGradient(policy(), through(host), boxes=[host], seed=0, limits=unchecked)


@pytest.mark.parametrize("scheme", ["heun", "mixes"])
def test_what_a_stage_goes_by_is_found(scheme):
    host = host_of(scheme)
    gradient = gradient_of(host)
    cosines = trained(gradient, scheme, range(14))
    host.close()
    assert min(cosines) > 0.95
    kinds = ["the step before" in repr(tangent) for tangent in gradient.tangents]
    assert kinds == [scheme == "mixes", False]


def test_the_lengths_are_right_where_the_step_before_counts():
    host = host_of("mixes")
    gradient = gradient_of(host)
    trained(gradient, "mixes", range(12))
    true = torch.autograd.grad(
        exact(gradient.network, batch(12), "mixes"), list(gradient.network.parameters())
    )
    gradient.network.zero_grad()
    gradient.backward(batch(12))
    host.close()
    length = sum(part.square().sum() for part in grads(gradient.network)).sqrt()
    assert abs(float(length / sum(part.square().sum() for part in true).sqrt()) - 1) < 0.15


@pytest.mark.parametrize("steps", [3, 10])
def test_a_contest_goes_on_to_the_same_bits(steps):
    host = host_of("mixes")
    gradient = gradient_of(host)
    trained(gradient, "mixes", range(steps))
    weights, state = copy.deepcopy(gradient.network.state_dict()), copy.deepcopy(gradient.state_dict())
    undisturbed = [g.clone() for g in step_of(gradient, steps)]
    host.close()
    host = host_of("mixes")
    resumed = gradient_of(host)
    resumed.network.load_state_dict(weights)
    resumed.load_state_dict(state)
    again = step_of(resumed, steps)
    host.close()
    assert all(torch.equal(one, other) for one, other in zip(undisturbed, again, strict=True))


def step_of(gradient, number):
    gradient.network.zero_grad()
    gradient.backward(batch(number))
    return grads(gradient.network)


def test_both_models_learn_from_answers_that_are_there():
    host = host_of("heun")
    gradient = gradient_of(host)
    tangent, box = gradient.tangents[0], gradient.boxes[0]
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(60, *spec.shape, generator=generator) for spec in box.inputs]
    learned = [spec for spec in box.outputs if spec.differentiable]
    outputs = [torch.randn(60, *spec.shape, generator=generator) for spec in learned]
    with pytest.raises(ConfigurationError, match="rows of shapes"):
        tangent.fit(inputs[1:], outputs)
    tangent.fit(inputs, outputs)
    assert "its own step" in repr(tangent) and "the step before" in repr(tangent)
    assert all(model.model.knows for model in tangent._models.values())
    trained(gradient, "heun", range(2))
    host.close()


def test_who_says_how_far_back_a_stage_goes_is_believed():
    boxes = {memory: host_of("heun", memory=memory) for memory in (None, 0, 1)}
    tangents = {
        memory: zo.TangentGradient(policy(), through(host), boxes=[host]).tangents
        for memory, host in boxes.items()
    }
    staged = {memory: isinstance(each[0], StagedTangent) for memory, each in tangents.items()}
    assert staged == {None: True, 0: False, 1: False}


def test_a_state_before_the_contest_s_end_is_loaded_after_it():
    host = host_of("mixes")
    gradient = gradient_of(host)
    trained(gradient, "mixes", range(3))
    tangent = gradient.tangents[0]
    state = copy.deepcopy(tangent.state_dict())
    trained(gradient, "mixes", range(3, 11))
    host.close()
    assert "its own step" not in repr(tangent)
    tangent.load_state_dict(state)
    assert "its own step" in repr(tangent) and "the step before" in repr(tangent)


def test_a_model_that_cannot_learn_leaves_the_other(monkeypatch):
    host = host_of("heun")
    tangent = gradient_of(host).tangents[0]
    host.close()
    failing = tangent._models["all"]

    def learn(steps=None):
        raise zo.errors.TangentError("it has no Cholesky factor")

    monkeypatch.setattr(failing, "learn", learn)
    tangent.learn()
    assert "the step before" not in repr(tangent)
