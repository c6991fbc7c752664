"""Machines under a controller: one with a preview, one with a dead band, and a cart with a pole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.closed_loop.program import Batch, Program
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted

CALLS, SUBSTEPS, SHORT, CASES = 16, 10, 0.02, 3000


def pid(y: Tensor, v: Tensor, total: Tensor, before: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
    """A mass on a spring behind a PID that is given a set point, for ten short steps."""
    for _ in range(SUBSTEPS):
        error = wanted - y
        total = total + SHORT * error
        force = 6.0 * error + 2.0 * total + 0.3 * (error - before) / SHORT
        v = v + SHORT * (force - 2.0 * y - 0.8 * v - 0.5 * y**3)
        y, before = y + SHORT * v, error
    return y, v, total, before


class SetPoint(nn.Module):
    """The set point, from the state and the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))

    def forward(self, state: Tensor) -> Tensor:
        """The network answers `(rows, 6)`, beside the reference of the next step."""
        return state[:, 4:5] + self.layers(state)


def preview_program() -> Program:
    """A mass behind a PID: state and two steps of the reference are sent."""
    generator = np.random.default_rng(0)
    cases = torch.tensor(
        np.stack(
            [
                generator.uniform(0.5, 1.5, CASES),
                generator.uniform(0, 6.3, CASES),
                generator.uniform(0.5, 3.0, CASES),
                generator.normal(0, 0.5, CASES),
            ],
            1,
        )
    )

    def reference(case: Tensor, step: int) -> Tensor:
        return case[..., 0] * torch.sin(case[..., 2] * step * SUBSTEPS * SHORT + case[..., 1])

    def start(case: Tensor) -> tuple[Tensor, ...]:
        y = case[..., 3]
        return y, 0 * y, 0 * y, reference(case, 0) - y

    def shown(case: Tensor, state: tuple[Tensor, ...], step: int) -> Tensor:
        return torch.stack([*state, reference(case, step + 1), reference(case, step + 2)], -1)

    def program(number: int, host: Any) -> None:
        case = cases[number]
        state = start(case)
        for step in range(400):
            wanted = host.exchange("control", shown(case, state, step).numpy())
            state = pid(*state, torch.tensor(float(np.asarray(wanted).reshape(-1)[0]), dtype=torch.float64))

    sees, gives = ArraySpec("state", (6,)), ArraySpec("wanted", (1,))
    host = Hosted(program, calls=[Call("control", sees=sees, gives=gives)])

    def losses(seen: Tensor, wanted: Tensor) -> Tensor:  # y after each call, and what was wanted of it
        error = seen[:, 1:, 0] - seen[:, :-1, 4]
        return error.square().mean(1) + 0.01 * wanted.diff(dim=1).square().mean((1, 2))

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        run = host.run(batch[0], calls=CALLS, control=network).control
        return losses(run.state, run.wanted)

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        case = cases[batch[0]].float()
        state, seen, given = start(case), [], []
        for step in range(CALLS + 1):
            seen.append(shown(case, state, step))
            if step < CALLS:
                given.append(network(seen[-1]))
                state = pid(*state, given[-1][:, 0])
        return losses(torch.stack(seen, 1), torch.stack(given, 1))

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        low, high = (2500, CASES) if held_out else (0, 2500)
        return (torch.from_numpy(generator.integers(low, high, rows)),)

    return Program(host, SetPoint, objective, twin, batch)


def looped(
    step: Callable[[Tensor, Tensor], Tensor],
    starts: Tensor,
    network: Callable[[], nn.Module],
    cost: Callable[[Tensor], Tensor],
    calls: int,
) -> Program:
    """A program that sends all of its state, steps and asks again.

    Args:
        step: The step of the program, from `(rows, size)` and `(rows, 1)` to `(rows, size)`.
        starts: The states at which cases begin, `(cases, size)`; the last tenth is held out.
        network: The controller.
        cost: The cost of states, `(rows, calls, size)` to `(rows,)`.
        calls: The calls of a run.
    """
    size, held = starts.shape[1], len(starts) // 10

    def program(case: int, host: Any) -> None:
        state = starts[case][None]
        for _ in range(400):
            action = torch.from_numpy(np.array(host.exchange("control", state[0].numpy())))
            state = step(state, action[None])

    host = Hosted(program, calls=[Call("control", ArraySpec("state", (size,)), ArraySpec("action", (1,)))])

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        return cost(host.run(batch[0], calls=calls, control=network).control.state[:, 1:])

    def twin(network: nn.Module, batch: Batch) -> Tensor:
        state, seen = starts[batch[0]].float(), []
        for _ in range(calls):
            state = step(state, network(state))
            seen.append(state)
        return cost(torch.stack(seen, 1))

    def batch(generator: np.random.Generator, rows: int, held_out: bool) -> Batch:
        low, high = (len(starts) - held, len(starts)) if held_out else (0, len(starts) - held)
        return (torch.from_numpy(generator.integers(low, high, rows)),)

    return Program(host, network, objective, twin, batch)


def controller(size: int) -> Callable[[], nn.Module]:
    """A small perceptron from a state to one number."""
    return lambda: nn.Sequential(nn.Linear(size, 24), nn.Tanh(), nn.Linear(24, 1))


def dead_band_program() -> Program:
    """A mass on a spring, whose actuator does nothing below .3 (as a valve that sticks)."""

    def step(state: Tensor, action: Tensor) -> Tensor:
        y, v = state.unbind(-1)
        force = (action - action.clamp(-0.3, 0.3))[..., 0]
        for _ in range(5):
            v = v + 0.02 * (4 * force - 2 * y - 0.3 * v - y**3)
            y = y + 0.02 * v
        return torch.stack([y, v], -1)

    starts = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (CASES, 2)))
    return looped(step, starts, controller(2), lambda seen: seen.square().mean((1, 2)), CALLS)


def cart_pole_program() -> Program:
    """A cart that balances a pole (Barto, Sutton and Anderson 1983): m 1 and .1 kg, length 1 m."""

    def step(state: Tensor, action: Tensor) -> Tensor:
        x, v, angle, speed = state.unbind(-1)
        force, sine, cosine = 10 * action[..., 0], torch.sin(angle), torch.cos(angle)
        push = (force + 0.05 * speed**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        v, speed = v + 0.04 * (push - 0.05 * turn * cosine / 1.1), speed + 0.04 * turn
        return torch.stack([x + 0.04 * v, v, angle + 0.04 * speed, speed], -1)

    starts = torch.from_numpy(np.random.default_rng(1).normal(0, 0.2, (CASES, 4)))

    def cost(seen: Tensor) -> Tensor:
        return (seen[..., 2].square() + 0.1 * seen[..., 0].square()).mean(1)

    return looped(step, starts, controller(4), cost, 20)
