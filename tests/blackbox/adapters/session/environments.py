"""Tiny simulators that can be reset and stepped alone, and the same pendulum with a derivative."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from blackbox import ArraySpec
from blackbox.adapters import Session

STEP, GRAVITY, DRAG, TORQUE = 0.05, 9.81, 0.1, 3.0


class Pendulum:
    """Shows cosine, sine and speed; gives the cost of the step too. The torque is tanh of the action."""

    def __init__(self) -> None:
        self.seen = np.empty(3)

    def reset(self, seed: int) -> np.ndarray:
        self.angle, self.speed = np.random.default_rng(seed).uniform(-1, 1, 2)
        return self.look()

    def look(self) -> np.ndarray:
        self.seen[:] = np.cos(self.angle), np.sin(self.angle), self.speed  # one buffer for all steps
        return self.seen

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        torque = TORQUE * np.tanh(action[0])
        self.speed += STEP * (-GRAVITY * np.sin(self.angle) - DRAG * self.speed + torque)
        self.angle += STEP * self.speed
        return self.look(), self.angle**2 + 0.1 * self.speed**2


class Hidden:
    """A mass whose speed is not seen: where it is after a step does not yet depend on that step's push."""

    def reset(self, seed: int) -> float:
        self.place, self.speed = float(seed), 0.0
        return self.place

    def step(self, push: float) -> float:
        self.place += self.speed
        self.speed += push
        return self.place


def pendulum(kind: Any = Pendulum, steps: int = 10, **settings: Any) -> Session:
    return Session(
        kind,
        observation=ArraySpec("observation", (3,)),
        action=ArraySpec("action", (1,)),
        outputs=[ArraySpec("cost", ())],
        steps=steps,
        **settings,
    )


def hidden(kind: Any = Hidden, steps: int = 10, **settings: Any) -> Session:
    place, push = ArraySpec("place", ()), ArraySpec("push", ())
    return Session(kind, observation=place, action=push, steps=steps, **settings)


def exact(policy: Any, seeds: torch.Tensor, steps: int) -> torch.Tensor:
    """The mean cost of each row, with a graph, in the precision of the policy."""
    dtype = next(policy.parameters()).dtype
    begin = np.stack([np.random.default_rng(int(seed)).uniform(-1, 1, 2) for seed in seeds])
    angle, speed = torch.tensor(begin, dtype=dtype).unbind(1)
    total = torch.zeros_like(angle)
    for _ in range(steps):
        action = policy(torch.stack([angle.cos(), angle.sin(), speed], 1))[:, 0]
        torque = TORQUE * torch.tanh(action)
        speed = speed + STEP * (-GRAVITY * torch.sin(angle) - DRAG * speed + torque)
        angle = angle + STEP * speed
        total = total + angle**2 + 0.1 * speed**2
    return total / steps
