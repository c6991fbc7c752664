"""What a student learns from: the last values of a box, and mean and spread of all that were seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Window:
    """A ring of the last rows (input, output); of them a batch is drawn.

    Args:
        rows: kept; of more at once the last.

    Attributes:
        seen: rows ever; the next goes to place seen % rows.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.seen = 0
        self._kept: tuple[Tensor, ...] = ()  # places first; min(seen, rows) of them are filled

    def add(self, x: Tensor, y: Tensor) -> None:
        """Keep rows `(rows, size_in)` and `(rows, size_out)`, the oldest going."""
        x, y = x[-self.rows :], y[-self.rows :]
        if not self._kept:
            self._kept = x.new_zeros(self.rows, x.shape[1]), y.new_zeros(self.rows, y.shape[1])
        places = (self.seen + torch.arange(len(x), device=x.device)) % self.rows
        for kept, new in zip(self._kept, (x, y), strict=True):
            kept[places] = new
        self.seen += len(x)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Rows `(count, size_in)` and `(count, size_out)`, drawn with replacement on the CPU."""
        places = torch.randint(min(self.seen, self.rows), (count,), generator=generator)
        return tuple(kept[places.to(kept.device)] for kept in self._kept)

    def state_dict(self) -> dict[str, Any]:
        """The rows that are filled."""
        return {"seen": self.seen, "kept": [kept[: self.seen].clone() for kept in self._kept]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self.seen = state["seen"]
        kept = [filled.new_zeros(self.rows, filled.shape[1], device=device) for filled in state["kept"]]
        for whole, filled in zip(kept, state["kept"], strict=True):
            whole[: len(filled)] = filled
        self._kept = tuple(kept)


class Moments:
    """Mean and standard deviation, number by number, of all rows so far, in float64."""

    def __init__(self) -> None:
        self._rows = 0
        self._sums: tuple[Tensor, ...] = ()  # the mean, and the sum of squared distances from it

    def add(self, values: Tensor) -> None:
        """Take in `(rows, size)`, by the formula of Chan et al. (1979)."""
        values = values.double()
        rows, mean = len(values), values.mean(dim=0)
        squares = (values - mean).square().sum(dim=0)
        if self._sums:
            before, total = self._sums
            change, share = mean - before, rows / (self._rows + rows)
            mean, squares = before + share * change, total + squares + change.square() * (self._rows * share)
        self._rows += rows
        self._sums = mean, squares

    def mean(self) -> Tensor:
        """`(size,)`."""
        return self._sums[0]

    def scale(self) -> Tensor:
        """Standard deviations `(size,)`; 1 for a number that never changed, but for its rounding."""
        mean, squares = self._sums
        scale = (squares / self._rows).sqrt()
        return torch.where(scale > 10 * torch.finfo(torch.float32).eps * mean.abs(), scale, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Count and sums."""
        return {"rows": self._rows, "sums": [total.clone() for total in self._sums]}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self._rows = state["rows"]
        self._sums = tuple(total.to(device, copy=True) for total in state["sums"])
