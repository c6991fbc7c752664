"""`StepFit`: an implicit step's numbers by least squares on rows: cost, slope by adjoints, held-out error."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from zo.tangents.models.mesh.implicit_step import ImplicitStep, Trajectory
from zo.tangents.models.mesh.rows_on_mesh import Rows

HIGH = 1e12  # a cost that counts as none


class StepFit(ABC):
    """Least squares of a step's outputs against the rows' outputs, in units of the box's usual change.

    A ridge regression beside the step explains the effects of a constant and of numbers that lie on no node,
    and residuals are without these. A subclass makes the step from the fitted numbers (`step`), and gives
    their own cost (`penalty`) and the derivative of a step's equation by them (`slope`).

    Args:
        rows: the rows to fit.
        ridge: the weight of the numbers' own cost.
    """

    def __init__(self, rows: Rows, ridge: float) -> None:
        self.rows, self.ridge = rows, ridge
        self.hat = rows.hat()
        self.norm = np.sqrt(max(1.0, rows.free.sum() * len(rows.goal)))

    @abstractmethod
    def step(self, theta: np.ndarray) -> ImplicitStep:
        """The implicit step with these numbers."""

    @abstractmethod
    def penalty(self, theta: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        """Return the numbers' own cost, part by part, and the slope of its sum."""

    @abstractmethod
    def slope(
        self, theta: np.ndarray, states: Sequence[np.ndarray], step: ImplicitStep, multiplier: np.ndarray
    ) -> np.ndarray:
        """Return the derivative of a step's equation by the numbers, times a multiplier, summed over rows.

        Args:
            theta: the numbers.
            states: the states before and after the step, `(rows, fields, nodes)` each.
            step: the step with these numbers.
            multiplier: `(rows, fields, nodes)`.
        """

    def cost(self, theta: np.ndarray) -> tuple[float, tuple[ImplicitStep, Trajectory] | None]:
        """The cost, with the step and its states; infinite and None where the matrix is singular."""
        step = self.step(theta)
        try:
            with np.errstate(all="ignore"):
                states = step.run(self.rows.state, self.rows.extras)
                residual = self.residual(states)
                cost = float(sum(self.penalty(theta)[0], start=residual @ residual))
        except (RuntimeError, ValueError):  # a singular matrix
            return math.inf, None
        return (cost, (step, states)) if math.isfinite(cost) else (math.inf, None)

    def sloped(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """The cost and its gradient, by the adjoint of the steps."""
        cost, run = self.cost(theta)
        if run is None or cost > HIGH:
            return HIGH, np.zeros_like(theta)
        step, states = run
        rows = self.rows
        residual = self.residual(states).reshape(len(rows.goal), -1)
        back = 2 / self.norm * (residual - self.hat.T @ residual)
        _, _, multipliers = step.adjoint(states, rows.extras, back.reshape(rows.goal.shape) * rows.weight())
        _, slope = self.penalty(theta)
        for at, multiplier in enumerate(multipliers):
            slope += self.slope(theta, states[at : at + 2], step, multiplier)
        return cost, slope

    def error(self, theta: np.ndarray, held: Rows | None) -> float:
        """The error on rows that are held out, in units of the change; on the fitted rows where none are."""
        step = self.step(theta)
        try:
            residual = self._missed(step.run(self.rows.state, self.rows.extras)[-1], self.rows)
            if held is None:
                return float(np.linalg.norm(residual - self.hat @ residual) / self.norm)
            held_residual = self._missed(step.run(held.state, held.extras)[-1], held)
        except RuntimeError:  # a singular matrix
            return math.inf
        held_residual = held_residual - held.explained(self.rows, residual)
        error = float(np.linalg.norm(held_residual) / np.sqrt(max(1.0, held.free.sum() * len(held_residual))))
        return error if math.isfinite(error) else math.inf

    def residual(self, states: Trajectory) -> np.ndarray:
        """Return the misfit of the last state to the rows' outputs, as one vector of length about one."""
        return self.unexplained((states[-1] - self.rows.goal) * self.rows.weight())

    def unexplained(self, values: np.ndarray) -> np.ndarray:
        """Values of the rows less what a constant and the numbers explain, as one vector."""
        flat = values.reshape(len(values), -1)
        return (flat - self.hat @ flat).ravel() / self.norm

    def _missed(self, end: np.ndarray, rows: Rows) -> np.ndarray:
        return ((end - rows.goal) * rows.weight()).reshape(len(end), -1)
