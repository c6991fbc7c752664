"""Gradients through a simulator that cannot be set: beside autograd, and where they are refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, Budgeted
from blackbox.adapters import Session
from tests.blackbox.adapters.session.environments import (
    DRAG,
    GRAVITY,
    STEP,
    TORQUE,
    Pendulum,
    exact,
    pendulum,
)
from zo.errors import ConfigurationError, TangentWarning
from zo.tangents import ModelTangent

STEPS = 12


class Blind(Pendulum):
    """The speed is not seen."""

    def reset(self, seed: int) -> Any:
        return super().reset(seed)[:2]

    def step(self, action: Any) -> Any:
        seen, cost = super().step(action)
        return seen[:2], cost


class TwoInARow(Blind):
    """Nor here, but what was seen one step before is."""

    def reset(self, seed: int) -> Any:
        self.last = super().reset(seed).copy()
        return np.concatenate([self.last, self.last])

    def step(self, action: Any) -> Any:
        now, cost = super().step(action)
        seen, self.last = np.concatenate([now, self.last]), now.copy()
        return seen, cost


def policy(seen: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(seen, 16), nn.Tanh(), nn.Linear(16, 1))


def explored(seeds: torch.Tensor, step: int, size: float = 0.3) -> torch.Tensor:
    """What is added to the actions of one step, `(rows, 1)`, by seed."""
    draws = [torch.Generator().manual_seed(1000 * int(seed) + step) for seed in seeds]
    return size * torch.stack([torch.randn(1, generator=generator) for generator in draws])


def objective_of(box: Any, session: Session | None = None, explore: bool = False) -> Any:
    def objective(network: nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
        observation, history = (session or box).reset(batch[0], dtype=next(network.parameters()).dtype)
        total: Any = 0.0
        for step in range(STEPS):
            action = network(observation)
            if explore:
                action = action + explored(batch[0], step)
            observation, cost, history = box(observation, action, history)
            total = total + cost
        return total / STEPS

    return objective


class Explored(nn.Module):
    """A policy with what is added, for `exact`, whose steps call it one after the other."""

    def __init__(self, network: nn.Module, seeds: torch.Tensor) -> None:
        super().__init__()
        self.network, self.seeds, self.step = network, seeds, 0

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return self.network(observation) + explored(self.seeds, self.step - 1)


def cosine(network: nn.Module, rows: torch.Tensor) -> float:
    """Of the gradient that the network has with that of the rows' mean."""
    weights = list(network.parameters())
    estimated = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    true = torch.cat([g.flatten() for g in torch.autograd.grad(rows.mean(), weights)])
    return float(torch.cosine_similarity(estimated, true, dim=0))


def cosines(box: Session, network: nn.Module, steps: int, **settings: Any) -> list[float]:
    """Of the gradient of each step of a training with the exact one."""
    gradient = zo.TangentGradient(network, objective_of(box, explore=True), boxes=[box], seed=0, **settings)
    optimizer, values = torch.optim.Adam(network.parameters(), 3e-3), []
    for step in range(steps):
        seeds = 16 * step + torch.arange(16)
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TangentWarning)  # it says that it does not know the box yet
            loss = gradient.backward((seeds,))
        seen = 2 if box.observation.shape == (2,) else 3
        rows = exact(nn.Sequential(First(seen), Explored(network, seeds)), seeds, STEPS)
        assert float(loss) == pytest.approx(float(rows.mean().detach()), rel=1e-5)
        values.append(cosine(network, rows))
        optimizer.step()
    return values


class First(nn.Module):
    """The first numbers of an observation."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return observation[:, : self.count]


def derivative(observation: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the pendulum as a function with a derivative."""
    cosine, sine, speed = observation.unbind(-1)
    angle, torque = torch.atan2(sine, cosine), TORQUE * torch.tanh(action[..., 0])
    speed = speed + STEP * (-GRAVITY * torch.sin(angle) - DRAG * speed + torque)
    angle = angle + STEP * speed
    return torch.stack([angle.cos(), angle.sin(), speed], -1), angle**2 + 0.1 * speed**2


def test_with_the_exact_derivative_the_gradient_is_autograd_s():
    network, box, seeds = policy().double(), pendulum(steps=STEPS), torch.arange(4)
    tangent = ModelTangent(derivative)
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], tangent=tangent, seed=0)
    gradient.backward((seeds,))
    true = torch.autograd.grad(exact(network, seeds, STEPS).mean(), list(network.parameters()))
    for weight, expected in zip(network.parameters(), true, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-9, atol=1e-12)
    assert box.ledger.rows_run == 4 * STEPS and box.counts.replays == 0


def test_a_replay_of_recorded_answers_asks_for_no_row():
    """With the exact derivative it is autograd at weights where the box was never asked."""
    network, box, seeds = policy().double(), pendulum(steps=STEPS), torch.arange(4)
    tangent = ModelTangent(derivative)
    gradient = zo.TangentGradient(
        network, objective_of(box), boxes=[box], tangent=tangent, seed=0, limits=zo.tangents.Limits(replays=1)
    )
    gradient.backward((seeds,))
    assert gradient.replays() == 1
    torch.optim.SGD(network.parameters(), 0.1).step()
    network.zero_grad()
    resets = box.counts.resets
    gradient.replay()
    assert box.counts.resets == resets
    true = torch.autograd.grad(exact(network, seeds, STEPS).mean(), list(network.parameters()))
    for weight, expected in zip(network.parameters(), true, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-9, atol=1e-12)
    assert box.ledger.rows_run == 4 * STEPS


@pytest.mark.slow
def test_tangents_learn_the_pendulum_s_derivative_from_its_steps():
    box = pendulum(steps=STEPS)
    values = cosines(box, policy(), 10)
    assert min(values[2:]) > 0.97, values
    assert box.counts.replays == 0  # each step of training begins anew, and nothing branches


@pytest.mark.slow
def test_a_tangent_learns_from_random_actions_before_training():
    """The actions of one policy alone are a function of the observations, so their effects are mixed up."""
    box, network, seeds = pendulum(steps=STEPS), policy(), torch.arange(16)
    generator, tangent = torch.Generator().manual_seed(0), zo.tangents.MLPTangent()
    inputs, answers = box.rollouts(range(100, 164), torch.randn(64, STEPS, 1, generator=generator))
    tangent.fit(inputs, answers[:2], box=box)
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], tangent=tangent, seed=0)
    gradient.backward((seeds,))  # in closed loop the first dither has to be answered, whatever was learned
    gradient.backward((seeds,))
    assert cosine(network, exact(network, seeds, STEPS)) > 0.97


def trained(kind: Any, seen: int, steps: int = 60) -> tuple[float, list[str]]:
    """The mean cost after a training by tangents, or by autograd where `kind` is None; and warnings."""
    network, said = policy(2), []
    box = Session(
        kind or Blind,
        observation=ArraySpec("observation", (seen,)),
        action=ArraySpec("action", (1,)),
        outputs=[ArraySpec("cost", ())],
        steps=STEPS,
    )
    sees = nn.Sequential(First(2), network)
    gradient = zo.TangentGradient(sees, objective_of(box, explore=True), boxes=[box], seed=0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        seeds = 16 * step + torch.arange(16)
        optimizer.zero_grad()
        if kind is None:
            exact(Explored(sees, seeds), seeds, STEPS).mean().backward()
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                gradient.backward((seeds,))
            said += [str(warning.message) for warning in caught]
        optimizer.step()
    with torch.no_grad():
        return float(exact(sees, torch.arange(100_000, 100_256), STEPS).mean()), said


@pytest.mark.slow
def test_a_speed_that_is_hidden_is_said_and_two_observations_in_a_row_show_it():
    with torch.no_grad():
        start = float(exact(nn.Sequential(First(2), policy(2)), torch.arange(100_000, 100_256), STEPS).mean())
    best, _ = trained(None, 2)
    blind, said = trained(Blind, 2)
    two, _ = trained(TwoInARow, 4)
    assert start - two > 0.85 * (start - best)
    assert start - blind < 0.5 * (start - best)
    assert any("Training may be worse than none" in words for words in said)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_differences_over_weights_are_exact(evaluator):
    network, box, seeds = policy().double(), pendulum(steps=STEPS), torch.arange(4)
    estimator, last = zo.CGE(mu=1e-5, central=True), list(network[2].parameters())
    gradient = zo.LossGradient(
        network, objective_of(box), estimator, parameters="2.*", evaluator=evaluator, seed=0
    )
    gradient.backward((seeds,))
    true = torch.autograd.grad(exact(network, seeds, STEPS).mean(), last)
    for weight, expected in zip(last, true, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-9)
    assert box.counts.replays == 0


@pytest.mark.parametrize("evaluator", [None, "stacked"])
def test_differences_over_weights_of_float32_change_no_observation(evaluator):
    """An evaluator that is checked rounds otherwise: a session knows its observations to the last digit."""
    network, box, seeds = policy(), pendulum(steps=STEPS), torch.arange(4)
    chosen = {} if evaluator is None else {"evaluator": evaluator}
    last = list(network[2].parameters())
    estimator = zo.CGE(mu=1e-2, central=True)
    zo.LossGradient(network, objective_of(box), estimator, parameters="2.*", seed=0, **chosen).backward(
        (seeds,)
    )
    true = torch.autograd.grad(exact(network, seeds, STEPS).mean(), last)
    for weight, expected in zip(last, true, strict=True):
        torch.testing.assert_close(weight.grad, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "estimator", [zo.RGE(1e-3, 4), zo.box_gradient.RowRGE(1e-3, 4), zo.CGE(1e-3)], ids=repr
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_perturbs_inputs_is_refused_by_name(estimator, wrapped):
    box = pendulum()
    outermost = Budgeted(box, rows=10) if wrapped else box
    with pytest.raises(ConfigurationError) as caught:
        zo.differentiable(outermost, estimator, seed=0)
    words = str(caught.value)
    assert repr(box) in words and type(estimator).__name__ in words and "zo.TangentGradient" in words


def test_autograd_around_it_by_what_learns_from_values():
    box = pendulum(steps=STEPS)
    tangent = zo.tangents.StudentTangent(nn.Linear(4, 4), loss="squared")
    solver, network = zo.differentiable(box, tangent=tangent, seed=0), policy()
    with pytest.warns(zo.TangentWarning, match="got 'action', which the other inputs determine"):
        loss = objective_of(solver, box)(network, (torch.arange(8),)).mean()
    loss.backward()
    assert box.ledger.rows_run == 8 * STEPS
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
