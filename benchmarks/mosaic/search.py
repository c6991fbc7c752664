"""Searches for an array by its loss: L-BFGS and Adam, by the adjoint, differences or random directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

import zo
from zo.objective import Objective

DIRECTIONS = 9  # of random directions a step
STEP = 1e-4  # of a difference
ENDLESS = {"maxiter": 10_000, "maxfun": 10_000, "ftol": 0.0, "gtol": 0.0}  # of scipy's L-BFGS
ONE = torch.zeros(1, 1)  # the batch of objectives that read nothing

Gradient = Callable[[], tuple[float, Tensor]]
"""The loss and its gradient where the field is."""
Note = Callable[[float], None]
"""What is called with the loss of each evaluation."""


@dataclass(frozen=True)
class Case:
    """What is looked for.

    Attributes:
        box: the solver.
        exact: the objective by the solver's own derivative.
        objective: that by the box.
        field: as it begins.
        truth: what leads to what was seen.
        origin: from where the truth is measured.
        batch: of the objectives.
    """

    box: Any
    exact: Objective
    objective: Objective
    field: zo.Field
    truth: Tensor
    origin: float = 0.0
    batch: Any = ONE

    def error(self) -> float:
        """Of the field, relative to the truth."""
        found = self.field(ONE).detach()[0]
        return float((found - self.truth).norm() / (self.truth - self.origin).norm())


class Course:
    """The losses of a search and the errors beside them; it is called with each loss.

    Args:
        error: of the field as it is.
    """

    def __init__(self, error: Callable[[], float]) -> None:
        self.began, self._error = process_time(), error
        self.start, self.losses, self.errors = error(), list[float](), list[float]()

    def __call__(self, loss: float) -> None:
        """Note an evaluation."""
        self.losses.append(loss)
        self.errors.append(self._error())

    def figures(self, seed: int, rows: int, **more: Any) -> dict[str, Any]:
        """The least loss and the error there, those on the way, rows and seconds.

        Args:
            seed: of what is looked for.
            rows: that were spent.
            **more: what else there is to say.
        """
        place = int(np.argmin(self.losses))
        return {
            "seed": seed,
            "start": self.start,
            "error": self.errors[place],
            "loss": self.losses[place],
            "rows": rows,
            "losses": [float(f"{each:.3g}") for each in self.losses],
            "errors": [round(each, 5) for each in self.errors],
            "seconds": round(process_time() - self.began, 1),
            **more,
        }


def ends_of(advance: Callable[[Tensor], Tensor], end: Tensor, calls: int) -> Objective:
    """The squared error of the state after some calls over the square of what it should be, of each row."""

    def objective(field: nn.Module, rows: Tensor) -> Tensor:
        state = field(rows)
        for _ in range(calls):
            state = advance(state)
        return (state - end).square().flatten(1).sum(dim=1) / end.square().sum()

    return objective


def by_adjoint(case: Case) -> Gradient:
    """The exact gradient."""

    def gradient() -> tuple[float, Tensor]:
        loss = case.exact(case.field, case.batch).mean()
        (found,) = torch.autograd.grad(loss, [case.field.values])
        return float(loss.detach()), found

    return gradient


def by_differences(case: Case) -> Gradient:
    """Forward differences, a number after another."""
    values = case.field.values

    @torch.no_grad()
    def gradient() -> tuple[float, Tensor]:
        loss, found = case.objective(case.field, case.batch).mean(), torch.zeros_like(values)
        for number in range(len(values)):
            values[number] += STEP
            found[number] = (case.objective(case.field, case.batch).mean() - loss) / STEP
            values[number] -= STEP
        return float(loss), found

    return gradient


def by_directions(case: Case, seed: int) -> Gradient:
    """Slopes along random directions."""
    rule, values = zo.RGE(mu=1e-3, q=DIRECTIONS), case.field.values
    estimator = zo.LossGradient(case.field, case.objective, rule, evaluator="loop", seed=seed)

    def gradient() -> tuple[float, Tensor]:
        case.field.zero_grad()
        loss = float(estimator.backward(case.batch))
        assert values.grad is not None
        return loss, values.grad

    return gradient


def bfgs(field: zo.Field, gradient: Gradient, most: int, note: Note) -> None:
    """L-BFGS, that of scipy, for so many gradients."""
    count, values = 0, field.values

    def at(numbers: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        nonlocal count
        if count >= most:
            raise StopIteration
        count += 1
        with torch.no_grad():
            values.copy_(torch.from_numpy(numbers).reshape(values.shape))
        loss, found = gradient()
        note(loss)
        return loss, found.flatten().double().numpy()

    begin = values.detach().flatten().double().numpy().copy()
    try:
        minimize(at, begin, jac=True, method="L-BFGS-B", options=ENDLESS)
    except StopIteration:
        return


def adam(field: zo.Field, gradient: Gradient, rate: float, goes_on: Callable[[], bool], note: Note) -> None:
    """Adam, as long as it goes on."""
    optimizer = torch.optim.Adam(field.parameters(), rate)
    while goes_on():
        loss, field.values.grad = gradient()
        note(loss)
        optimizer.step()
