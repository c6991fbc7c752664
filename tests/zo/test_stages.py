"""Programs that ask in stages: what a stage goes by is found, be it its own step alone or the one before."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError
from zo.tangents.models.contest import ContestTangent

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


def trained(gradient, scheme, steps, before=lambda number: None):
    """Gradients beside the exact ones by step, a pair of flat tensors each, once there are any."""
    network, found = gradient.network, {}
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for number in steps:
        before(number)
        optimizer.zero_grad()
        gradient.backward(batch(number))
        if network[0].weight.grad is not None:
            true = torch.autograd.grad(exact(network, batch(number), scheme), list(network.parameters()))
            pair = [torch.cat([part.flatten() for part in parts]) for parts in (grads(network), true)]
            found[number] = pair
        optimizer.step()
    return found


def grads(network):
    return [weight.grad for weight in network.parameters()]


def gradient_of(host):
    unchecked = zo.tangents.Limits(check_every=None)
    return zo.TangentGradient(policy(), through(host), boxes=[host], seed=0, limits=unchecked)


@dataclass
class Training:
    """Fourteen steps in front of a program whose stages go by the step before.

    Attributes:
        gradient: as it is at the end.
        found: what `trained` gives.
        states: of the gradient and the network before some steps.
    """

    gradient: Any
    found: dict[int, list[torch.Tensor]]
    states: dict[int, Any]


@pytest.fixture(scope="module")
def mixing():
    host, states = host_of("mixes"), {}
    gradient = gradient_of(host)

    def keep(number):
        if number in (3, 10):
            states[number] = copy.deepcopy((gradient.state_dict(), gradient.network.state_dict()))

    found = trained(gradient, "mixes", range(14), keep)
    yield Training(gradient, found, states)
    host.close()


def cosines(found):
    """Of the last third of fourteen steps."""
    return [float(torch.cosine_similarity(*found[number], dim=0)) for number in range(10, 14)]


def goes_by_the_step_before(gradient):
    return [_shown_all(tangent) for tangent in gradient.tangents]


def _shown_all(tangent):
    return isinstance(tangent, ContestTangent) and "its own step" not in repr(tangent)


@pytest.mark.slow
def test_that_a_stage_goes_by_its_own_step_alone_is_found():
    host = host_of("heun")
    gradient = gradient_of(host)
    found = trained(gradient, "heun", range(14))
    host.close()
    assert min(cosines(found)) > 0.95
    assert goes_by_the_step_before(gradient) == [False, False]


def test_that_a_stage_goes_by_the_step_before_is_found(mixing):
    assert min(cosines(mixing.found)) > 0.95
    assert goes_by_the_step_before(mixing.gradient) == [True, False]


def test_the_lengths_are_right_where_the_step_before_counts(mixing):
    mine, true = mixing.found[12]
    assert abs(float(mine.norm() / true.norm()) - 1) < 0.15


@pytest.mark.parametrize("steps", [3, 10])
def test_a_contest_goes_on_to_the_same_bits(steps, mixing):
    host = host_of("mixes")
    resumed = gradient_of(host)
    state, weights = copy.deepcopy(mixing.states[steps])
    resumed.network.load_state_dict(weights)
    resumed.load_state_dict(state)
    again = trained(resumed, "mixes", [steps])
    host.close()
    assert torch.equal(again[steps][0], mixing.found[steps][0])


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
    assert list(tangent._models) == ["own", "all"]
    assert tangent._models["own"].model.model.knows and tangent._models["all"].model.knows
    trained(gradient, "heun", range(2))
    host.close()


def test_who_says_how_far_back_a_stage_goes_is_believed():
    boxes = {memory: host_of("heun", memory=memory) for memory in (None, 0, 1)}
    tangents = {
        memory: zo.TangentGradient(policy(), through(host), boxes=[host]).tangents
        for memory, host in boxes.items()
    }
    staged = {memory: isinstance(each[0], ContestTangent) for memory, each in tangents.items()}
    assert staged == {None: True, 0: False, 1: False}


def test_a_state_before_the_contest_s_end_is_loaded_after_it(mixing):
    (ended,) = [tangent for tangent in mixing.gradient.tangents if _shown_all(tangent)]
    earlier, _ = copy.deepcopy(mixing.states[3])
    tangent = copy.deepcopy(ended)
    tangent.load_state_dict(earlier["tangents"][0])
    assert list(tangent._models) == ["own", "all"]


def test_a_model_that_cannot_learn_leaves_the_other(monkeypatch):
    host = host_of("heun")
    tangent = gradient_of(host).tangents[0]
    host.close()
    failing = tangent._models["all"]

    def learn(steps=None):
        raise zo.errors.TangentError("it has no Cholesky factor")

    monkeypatch.setattr(failing, "learn", learn)
    tangent.learn()
    assert list(tangent._models) == ["own"]
