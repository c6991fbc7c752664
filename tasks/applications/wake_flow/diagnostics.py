"""Measures of velocities: divergence, energy, forces, how long a rollout holds.

All figures have no unit: velocities are divided by the inflow's speed U, lengths by the cylinder's
diameter D, so divergence is in U / D and energy in U squared; forces are over U^2 D / 2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from simulators.wake_flow.forces import Forces
from simulators.wake_flow.geometry import CENTRE, RADIUS, SPEED, Channel
from simulators.wake_flow.staggered import divergence

DIAMETER = 2 * RADIUS
WAKE = ((-1.5, 1.5), (0.5, 6.0))  # window across and along, in diameters from the cylinder's centre
LIMIT = 10.0  # a mean error of ten times the inflow's speed: no flow any more, though its numbers are finite


class Gauges:
    """The instruments on one grid.

    Args:
        channel: Its grid.
        dt: Time between two velocities.

    Attributes:
        wake: `(2, height, width)`, True on faces within `WAKE`.
        fluid: `(height, width)`, True in cells outside the cylinder.
        forces: Drag and lift coefficients from two velocities, a step apart.
    """

    def __init__(self, channel: Channel, dt: float = 1.0) -> None:
        across, along = face_places(channel)
        (left, right), (near, far) = WAKE
        self.cell = channel.cell
        self.wake = (left <= across) & (across <= right) & (near <= along) & (along <= far)
        self.fluid = torch.from_numpy(channel.masks.active > 0)
        self.forces = Forces(channel, dt)

    def wake_error(self, difference: Tensor) -> Tensor:
        """Mean absolute value of `(rows, 2, height, width)` over the faces in the wake: `(rows,)`."""
        return difference[:, self.wake].abs().mean(dim=1)

    def divergences(self, velocity: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and largest absolute net outflow of the cells outside the cylinder.

        Args:
            velocity: `(rows, 2, height, width)`.

        Returns:
            Two `(rows,)`, in U / D.
        """
        outflow = divergence(velocity, self.cell)[:, self.fluid].abs() * (DIAMETER / SPEED)
        return outflow.mean(dim=1), outflow.amax(dim=1)


def face_places(channel: Channel) -> tuple[Tensor, Tensor]:
    """Return the places of the faces of `(2, height, width)`, across and along from the cylinder, in D."""
    columns, rows = torch.arange(channel.width), torch.arange(channel.height)[:, None]
    # x on left faces, y on upper ones
    across = torch.stack([(columns + offset).expand(channel.height, -1) for offset in (0.0, 0.5)])
    along = torch.stack([(rows + offset).expand(-1, channel.width) for offset in (0.5, 1.0)])
    cell = channel.cell
    return (across * cell - CENTRE[0]) / DIAMETER, (along * cell - CENTRE[1]) / DIAMETER


def kinetic_energy(velocity: Tensor) -> Tensor:
    """Half the mean square of each component over its faces, summed: `(rows,)`, in U^2."""
    return velocity.square().mean(dim=(-2, -1)).sum(dim=-1) / (2 * SPEED**2)


def lost(errors: np.ndarray) -> np.ndarray:
    """Steps that a rollout no longer has: from the first error on that is no number or above `LIMIT`.

    `(rollouts, steps)`, errors to truth.
    """
    return np.logical_or.accumulate(~(errors <= LIMIT), axis=1)


def stability(errors: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Steps until the error passes the baseline's error at the same step, or all of them.

    Args:
        errors: the errors, `(rollouts, steps)`; a lost step has passed the baseline.
        baseline: the errors of the solver alone, `(rollouts, steps)`; no finite error passes a lost step.

    Returns:
        `(rollouts,)`, whole numbers from 0 to `steps`.
    """
    limit = np.where(np.isfinite(baseline), baseline, np.inf)
    passed = ~(np.isfinite(errors) & (errors <= limit))
    return np.where(passed.any(axis=1), passed.argmax(axis=1), errors.shape[1])
