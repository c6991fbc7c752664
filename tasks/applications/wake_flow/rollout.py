"""Solver and network in turn: the loss over a few steps, and the error over many."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tasks.applications.wake_flow.data import Flows

Solver = Callable[[Tensor, Tensor], Tensor]  # (velocity, reynolds) -> velocity one step later
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]  # (network, batch) -> (rows,)


def corrected_steps(
    network: nn.Module, solver: Solver, velocity: Tensor, reynolds: Tensor, steps: int
) -> Iterator[Tensor]:
    """The velocity `(rows, 2, height, width)` after each step of solver, then network."""
    for _ in range(steps):
        velocity = network(solver(velocity, reynolds), reynolds)
        yield velocity


def window_loss(solver: Solver, scale: float) -> Loss:
    """The objective of FO-SOL and ZO-SOL.

    It takes a batch of frames `(rows, steps + 1, 2, height, width)` and Re `(rows,)`, starts from the
    first frame, and gives for each row the squared error over `scale` squared, mean over all steps,
    components and cells: `(rows,)`, no unit. It is summed in float64, since ZO-SOL uses differences of 1e-4
    of a loss.

    Args:
        solver: a black box, or its differentiable step.
        scale: the scale of the velocity.
    """

    def objective(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        frames, reynolds = batch
        steps = frames.shape[1] - 1
        loss = torch.zeros(len(frames), dtype=torch.float64, device=frames.device)
        rollout = corrected_steps(network, solver, frames[:, 0], reynolds, steps)
        for step, velocity in enumerate(rollout, start=1):
            error = ((velocity - frames[:, step]) / scale).square().flatten(1)
            loss = loss + error.mean(dim=1, dtype=torch.float64)
        return loss / steps

    return objective


@torch.no_grad()
def rollout_errors(network: nn.Module, solver: Solver, flows: Flows, starts: int, horizon: int) -> Tensor:
    """Mean absolute error of the velocity against the reference, by rollout and step.

    Args:
        network: the corrector.
        solver: the coarse solver; a row that it lost stays NaN from there on.
        flows: the reference.
        starts: rollouts for each flow.
        horizon: steps.

    Returns:
        `(flows * starts, horizon)`, in units of the inflow's speed; mean over components and cells.
    """
    frames, reynolds = flows.rollouts(starts, horizon)
    rollout = corrected_steps(network, solver, frames[:, 0], reynolds, horizon)
    errors = [
        (velocity - frames[:, step]).abs().flatten(1).mean(dim=1)
        for step, velocity in enumerate(rollout, start=1)
    ]
    return torch.stack(errors, dim=1)
