"""Gradients through a simulator that cannot be set: beside autograd, and where they are refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, Budgeted
from blackbox.adapters import Session
from tests.blackbox.adapters.session.environments import Pendulum, exact, pendulum
from zo.errors import ConfigurationError, TangentWarning

STEPS = 12


class Blind(Pendulum):
    """The speed is not seen."""

    def reset(self, seed: int) -> Any:
        return super().reset(seed)[:2]

    def step(self, action: Any) -> Any:
        seen, cost = super().step(action)
        return seen[:2], cost


def policy(seen: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(seen, 16), nn.Tanh(), nn.Linear(16, 1))


def objective_of(box: Any, session: Session | None = None) -> Any:
    def objective(network: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        observation, history = (session or box).reset(batch[0])
        total: Any = 0.0
        for _ in range(STEPS):
            observation, cost, history = box(observation, network(observation), history)
            total = total + cost
        return total / STEPS

    return objective


def cosines(box: Session, network: nn.Module, truth: Any, steps: int, **settings: Any) -> list[float]:
    """Of the gradient of each step of a training, with the exact one."""
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0, **settings)
    optimizer, found = torch.optim.Adam(network.parameters(), 3e-3), []
    for step in range(steps):
        batch = (16 * step + torch.arange(16),)
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TangentWarning)  # it says that it does not know the box yet
            loss = gradient.backward(batch)
        rows = truth(network, *batch, STEPS)
        assert float(loss) == pytest.approx(float(rows.mean().detach()), rel=1e-5)
        own = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        true = torch.cat([g.flatten() for g in torch.autograd.grad(rows.mean(), list(network.parameters()))])
        found.append(float(torch.cosine_similarity(own, true, dim=0)))
        optimizer.step()
    return found


def test_tangents_learn_the_pendulum_s_derivative_from_its_steps():
    box = pendulum(steps=STEPS)
    found = cosines(box, policy(), exact, 20)
    print(found)
    assert sorted(found[10:])[5] > 0.97, found
    assert box.counts.replays == 0  # each step of training begins anew, and nothing branches


@pytest.mark.slow
def test_tangents_with_the_speed_hidden():
    spec = {"observation": ArraySpec("observation", (2,)), "action": ArraySpec("action", (1,))}
    box = Session(Blind, **spec, outputs=[ArraySpec("cost", ())], steps=STEPS)

    def truth(network: nn.Module, seeds: torch.Tensor, steps: int) -> torch.Tensor:
        class Sees(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, seen: torch.Tensor) -> torch.Tensor:
                return self.network(seen[:, :2])

        return exact(Sees(), seeds, steps)

    found = cosines(box, policy(2), truth, 30)
    print(found)
    assert sorted(found[20:])[5] > 0.9, found


@pytest.mark.slow
def test_probes_learn_too():
    """The history, which probes change, is no input that has to stay."""
    found = cosines(pendulum(steps=STEPS), policy(), exact, 12, tangent=zo.SecantTangent(), probes=2)
    assert sorted(found[6:])[3] > 0.9, found


@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_differences_over_weights_are_exact(evaluator):
    network, box, batch = policy().double(), pendulum(steps=STEPS), (torch.arange(4),)

    def objective(network: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        observation, history = box.reset(batch[0], dtype=torch.float64)
        total: Any = 0.0
        for _ in range(STEPS):
            observation, cost, history = box(observation, network(observation), history)
            total = total + cost
        return total / STEPS

    estimator = zo.CGE(mu=1e-5, central=True)
    gradient = zo.LossGradient(network, objective, estimator, parameters="2.*", evaluator=evaluator, seed=0)
    gradient.backward(batch)
    weights = list(network[2].parameters())
    true = torch.autograd.grad(exact(network, batch[0], STEPS).mean(), weights)
    for weight, expected in zip(weights, true, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-9)
    assert box.counts.replays == 0


@pytest.mark.parametrize("estimator", [zo.RGE(1e-3, 4), zo.RowRGE(1e-3, 4), zo.CGE(1e-3)], ids=repr)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_perturbs_inputs_is_refused_by_name(estimator, wrapped):
    box = pendulum()
    given = Budgeted(box, rows=10) if wrapped else box
    with pytest.raises(ConfigurationError) as caught:
        zo.differentiable(given, estimator, seed=0)
    words = str(caught.value)
    assert repr(box) in words and type(estimator).__name__ in words and "zo.TangentGradient" in words


def test_autograd_around_it_by_what_learns_from_values():
    box = pendulum(steps=STEPS)
    tangent = zo.StudentTangent(nn.Linear(4, 4), loss="squared")
    solver, network = zo.differentiable(box, tangent=tangent, seed=0), policy()
    loss = objective_of(solver, box)(network, (torch.arange(8),)).mean()
    loss.backward()
    assert box.ledger.rows_run == 8 * STEPS
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
