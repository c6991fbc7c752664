"""Networks in 16 bits, by autocast: what tangents and boxes compute in it, and what is said."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from blackbox.adapters import TorchModule
from tests.zo.row_boxes import FromTorch
from zo.errors import ObjectiveError

ROWS = 32
SPECS = (ArraySpec("z", (3,)),), (ArraySpec("y", (3,)),)


def function(z: Tensor) -> Tensor:
    return torch.sin(1.3 * z) + 0.3 * z.roll(1, dims=1) * z


def make_network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batch_of() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(2)
    return torch.randn(ROWS, 4, generator=draws), torch.randn(ROWS, 3, generator=draws)


def bfloat16(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def in_16_bits(solver, enabled: bool = True):
    def objective(network, batch):
        with bfloat16(enabled):
            given = network(batch[0])
        return (solver(given.float()) - batch[1]).square().mean(dim=1)

    return objective


def flat_grad(network: nn.Module) -> Tensor:
    return torch.cat([grad.flatten() for w in network.parameters() if (grad := w.grad) is not None])


def off(network: nn.Module, other: nn.Module) -> float:
    """By how much the `.grad` of a network is off another's."""
    known, true = (flat_grad(n) for n in (network, other))
    return float((known - true).norm() / true.norm())


def test_checks_that_16_bits_round_away_buy_nothing_and_are_said_once():
    """The loss changed by 0 times what the gradient says, and trust was lost."""
    network, box = make_network(), FromTorch(function, *SPECS)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    policy = zo.tangents.TrustPolicy(check_every=1, agreement=0.9)  # rounding alone is more than a tenth
    exact, objective = zo.tangents.ModelTangent(function), in_16_bits(box)
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=exact, trust_policy=policy)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(12):
            true = copy.deepcopy(network)
            in_16_bits(function)(true, batch_of()).mean().backward()
            optimizer.zero_grad()
            gradient.backward(batch_of())
            assert off(network, true) < 0.02
            optimizer.step()
    said = [str(warning.message) for warning in said if issubclass(warning.category, zo.TangentWarning)]
    assert len(said) == 1 and "bfloat16" in said[0] and "leave out autocast" in said[0]
    assert not gradient.watch.lost
    again = zo.TangentGradient(make_network(), objective, boxes=[box], tangent=exact, trust_policy=policy)
    again.load_state_dict(gradient.state_dict())
    assert [step for step in range(30) if again.watch.checks(step)] == [9, 19, 29]


def test_frozen_layers_in_16_bits_in_front_of_the_network_hide_no_fault():
    """What they give does not move with the weights, so that a wrong tangent is found as ever."""
    network, box, encoder = make_network(), FromTorch(function, *SPECS), nn.Linear(4, 4).bfloat16()
    encoder.requires_grad_(False)

    def objective(network, batch):
        return in_16_bits(box, enabled=False)(network, (encoder(batch[0].bfloat16()).float(), batch[1]))

    wrong, policy = zo.tangents.ModelTangent(lambda z: -function(z)), zo.tangents.TrustPolicy(check_every=1)
    gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=wrong, trust_policy=policy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gradient.backward(batch_of())
    assert gradient.agreement is not None and gradient.agreement < 0.5


@pytest.mark.parametrize("call", ["backward", "replay", "prefit"])
def test_tangents_are_not_asked_to_learn_inside_of_autocast(call):
    network, box = make_network(), FromTorch(function, *SPECS)
    gradient = zo.TangentGradient(network, in_16_bits(box, enabled=False), boxes=[box])
    arguments = {"backward": [batch_of()], "replay": [], "prefit": [[batch_of()]]}[call]
    with (
        bfloat16(),
        pytest.raises(ObjectiveError, match=f"{call}: expected a call outside of"),
    ):
        getattr(gradient, call)(*arguments)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_a_box_of_torch_inside_of_autocast_computes_in_its_own_precision(central, backward_inside):
    """Its base would be rounded to three digits, and the queries of the way back would not be."""
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).requires_grad_(False)
    box = TorchModule(module, *SPECS)
    solver = zo.differentiable(box, zo.CGE(1e-3, central=central))

    def trained(answer) -> tuple[nn.Module, Tensor]:
        network = make_network()
        with bfloat16():
            given = network(batch_of()[0]).float()
            answers = answer(given)
            loss = (answers - batch_of()[1]).square().mean()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return network, answers

    def exact(given: Tensor) -> Tensor:
        with bfloat16(enabled=False):
            return module(given)

    (network, answers), (true, right) = trained(solver), trained(exact)
    assert torch.equal(answers, right)
    assert off(network, true) < 0.01  # the network's own way back is in 16 bits


def test_rows_of_a_box_are_evaluated_outside_of_autocast_and_the_callers_goes_on():
    seen = []

    def noted(z: Tensor) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), (z @ z.T).dtype))
        return z

    with bfloat16():
        FromTorch(noted, *SPECS)(torch.randn(4, 3))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(False, torch.float32)]
