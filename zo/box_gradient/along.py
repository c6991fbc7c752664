"""A check of a tangent's gradient by the box's change along it: for tangents that ask no queries."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blackbox.errors import BudgetError, RowFailedError
from zo.box_gradient.row_queries import RowQueries, row_differences

FEWEST, MOST = 4, 16  # rows of a check
FAR = 0.05  # spreads of the inputs over the rows, that a row is moved by
SMALL = 0.1  # of a number's size: its spread where it is the same in all rows
LEAST, GREATEST = 0.5, 2.0  # of what the gradient says


@dataclass(frozen=True)
class Agreement:
    """The result of a check's rows.

    Attributes:
        found: the change of the scalar along the gradient, over what that says; None where nothing shows.
        error: the standard error of it, from row to row.
        noisy: whether the box's noise is most of that.
        asked: rows.
    """

    found: float | None = None
    error: float = 0.0
    noisy: bool = False
    asked: int = 0

    @property
    def wrong(self) -> bool:
        """True if it is far too little, or too much, by more than chance; or different in each row."""
        if self.found is None:
            return False
        if self.found + self.error < LEAST or self.found - self.error > GREATEST:
            return True
        return self.error > GREATEST and not self.noisy


def along_gradient(
    queries: RowQueries, gradients: list[Tensor], outputs: dict[int, Tensor], cotangents: dict[int, Tensor]
) -> Agreement:
    """Move some rows both ways along their gradients, and see by how much the scalar changes.

    They are also asked a third time without a move, which shows the box's noise.

    Args:
        queries: the plan of the call, without queries.
        gradients: the gradient of each perturbed input, `(rows, size)`.
        outputs: the base's outputs with a cotangent, by their place among the box's outputs.
        cotangents: the gradients of these outputs, of their shapes, under the same places.
    """
    values, gradient = queries.values.double(), torch.cat(gradients, dim=1).double()
    if len(values) < FEWEST:
        return Agreement()
    spread = values.std(dim=0)
    spread = torch.where(spread > 0, spread, SMALL * values.abs().mean(dim=0))
    lengths = (spread * gradient).norm(dim=1)
    rows = torch.linspace(0, len(values) - 1, min(len(values), MOST)).long().to(values.device)
    rows = rows[lengths[rows] > 0]
    if len(rows) < FEWEST:
        return Agreement()
    directions = spread**2 * gradient[rows] / lengths[rows, None]
    steps = torch.tensor([[FAR], [-FAR], [0.0]], dtype=torch.float64, device=values.device)
    moved = replace(
        queries,
        inputs=[array[rows] for array in queries.inputs],
        values=queries.values[rows],
        steps=steps.expand(3, len(rows)),
        directions=directions.expand(3, -1, -1).to(queries.values),
    )
    try:
        changes, valid, _ = row_differences(
            moved,
            {place: output[rows] for place, output in outputs.items()},
            {place: cotangent[rows] for place, cotangent in cotangents.items()},
        )
    except (BudgetError, RowFailedError):  # the gradient is there, and that is what the rows are for
        return Agreement()
    both = valid.all(dim=0)
    if int(both.sum()) < FEWEST:
        return Agreement(asked=valid.numel())
    measured, guess = (changes[0] - changes[1])[both] / 2, FAR * lengths[rows][both]
    slope = float(measured.sum() / guess.sum())
    residuals = measured - slope * guess
    noise = changes[2][both]
    noisy = bool(noise.square().sum() > residuals.square().sum() / 2)
    error = float(residuals.square().sum().sqrt() / guess.sum()) * (len(guess) / (len(guess) - 1)) ** 0.5
    return Agreement(slope, error, noisy, valid.numel())
