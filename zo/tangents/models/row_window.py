"""The rows of a box that a model learns from: the last ones, and mean and spread of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# decision 71:
MOST_BYTES = 2**29  # of all windows of boxes that learn side by side: rows of large states are fewer
ROUNDING = 10.0  # units in the last place: what a number may vary by, over its size, and still be the same


class RowWindow:
    """A ring of the last rows, each a tuple of vectors; of them a batch is drawn.

    It takes memory as rows come, and keeps fewer rows than asked for where they would take more than 512 MiB,
    or its share of that.

    Args:
        rows: kept; of more at once the last.
        most_bytes: the most bytes that it may take; None for 512 MiB.

    Attributes:
        seen: rows ever; the next goes to place seen % `most`.
    """

    def __init__(self, rows: int, most_bytes: int | None = None) -> None:
        self.rows = rows
        self.most_bytes = MOST_BYTES if most_bytes is None else most_bytes
        self.seen = 0
        self._ring: tuple[Tensor, ...] = ()  # places first; min(seen, most) of them are filled

    @property
    def most(self) -> int:
        """Rows that are kept: as many as were asked for, if they fit; at least one."""
        size = sum(column.shape[1:].numel() * column.element_size() for column in self._ring)
        return self.rows if not size else max(1, min(self.rows, self.most_bytes // size))

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The rows that are kept, `(rows, size)` each, in no order; not to be written to."""
        count = min(self.seen, self.most)
        return tuple(column[:count] for column in self._ring)

    def add(self, *columns: Tensor) -> None:
        """Keep rows, `(rows, size)` in each column, the oldest going."""
        self._ring = self._ring or tuple(column[:0] for column in columns)
        most = self.most
        columns = tuple(column[-most:] for column in columns)
        count, capacity = len(columns[0]), len(self._ring[0])
        if capacity < min(self.seen + count, most):
            more = min(max(2 * capacity, self.seen + count), most) - capacity
            self._ring = tuple(
                torch.cat([ring, ring.new_zeros(more, *ring.shape[1:])]) for ring in self._ring
            )
        places = (self.seen + torch.arange(count, device=columns[0].device)) % most
        for ring, new in zip(self._ring, columns, strict=True):
            ring[places] = new
        self.seen += count

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows `(count,)` of `columns`, drawn with replacement on the CPU."""
        return torch.randint(min(self.seen, self.most), (count,), generator=generator)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Rows `(count, size)` of each column, drawn with replacement on the CPU."""
        places = self.places(count, generator)
        return tuple(column[places.to(column.device)] for column in self._ring)

    def spread(self, most: int) -> tuple[Tensor, ...]:
        """Return at most so many rows, evenly taken from all that are kept."""
        count = min(self.seen, self.most)
        places = spread_places(count, most)
        return tuple(column[places.to(column.device)] for column in self._ring)

    def state_dict(self) -> dict[str, Any]:
        """The rows that are filled, and the limit under which they lie where they do."""
        columns = [column.clone() for column in self.columns]
        return {"seen": self.seen, "kept": columns, "most_bytes": self.most_bytes}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self.seen, self.most_bytes = state["seen"], state["most_bytes"]
        self._ring = tuple(column.to(device, copy=True) for column in state["kept"])


class Moments:
    """Mean and standard deviation of all rows so far, in float64, number by number or of groups of numbers.

    Args:
        groups: `(size,)` whole numbers from 0 on; numbers of one group, such as the cells of a channel, share
            mean and deviation. None: each has its own.
    """

    def __init__(self, groups: Tensor | None = None) -> None:
        self._groups = groups
        self._rows = 0
        self._rounding = 0.0  # of one, in the precision of what was taken in
        self._sums: tuple[
            Tensor, ...
        ] = ()  # the mean, and the sum of squared distances from it, of each group
        self._figures: tuple[Tensor, Tensor] | None = None  # mean and scale, until more is added
        self._pooled_figures: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))  # of each group
        self._rounding_figures = torch.empty(0), torch.empty(0)  # which are rounding, and its size

    def add(self, values: Tensor) -> None:
        """Take in `(rows, size)`, by the formula of Chan et al. (1979)."""
        self._rounding = max(self._rounding, torch.finfo(values.dtype).eps)
        values = values.double()
        rows, mean = len(values), self._pooled(values.mean(dim=0))
        squares = self._pooled((values - self._apart(mean)).square().sum(dim=0))
        if self._sums:
            old_mean, total = self._sums
            change, share = mean - old_mean, rows / (self._rows + rows)
            mean = old_mean + share * change
            squares = total + squares + change.square() * (self._rows * share)
        self._rows += rows
        self._sums, self._figures = (mean, squares), None

    def by_group(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of each group, or of each number where there are none."""
        self._both()
        return self._pooled_figures

    def mean(self) -> Tensor:
        """`(size,)`."""
        return self._both()[0]

    def scale(self) -> Tensor:
        """Standard deviations `(size,)`; 1 for what never changed, but for its rounding."""
        return self._both()[1]

    def same(self) -> Tensor:
        """Say which numbers never changed, but for their rounding: `(size,)` bool."""
        self._both()
        return self._rounding_figures[0]

    def rounding(self) -> Tensor:
        """Return how far each number may vary and count as constant, in units of its scale: `(size,)`."""
        self._both()
        return self._rounding_figures[1]

    def state_dict(self) -> dict[str, Any]:
        """Count, rounding and sums."""
        sums = [total.clone() for total in self._sums]
        return {"rows": self._rows, "rounding": self._rounding, "sums": sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on where `state_dict` was taken."""
        self._rows, self._rounding = state["rows"], state["rounding"]
        self._sums, self._figures = tuple(total.to(device, copy=True) for total in state["sums"]), None

    def _both(self) -> tuple[Tensor, Tensor]:
        if self._figures is None:
            mean, squares = self._sums
            scale = (squares / self._rows).sqrt()
            size = (mean.square() + scale.square()).sqrt()
            varies = scale > ROUNDING * self._rounding * mean.abs()
            scale = torch.where(varies, scale, 1.0)
            self._pooled_figures = mean, scale
            rounding = ROUNDING * self._rounding * size / scale
            self._rounding_figures = self._apart(~varies), self._apart(rounding)
            self._figures = self._apart(mean), self._apart(scale)
        return self._figures

    def _pooled(self, numbers: Tensor) -> Tensor:
        """The mean over each group; summed by the CPU, since a GPU adds in any order."""
        if self._groups is None:
            return numbers
        groups = self._groups.cpu()
        counts = torch.bincount(groups).double()
        sums = torch.zeros_like(counts).index_add(0, groups, numbers.cpu())
        return (sums / counts).to(numbers.device)

    def _apart(self, pool: Tensor) -> Tensor:
        return pool if self._groups is None else pool[self._groups.to(pool.device)]


def standard(values: Tensor, moments: Moments) -> Tensor:
    """Values in units of mean zero and spread one, float64: what is left of large numbers may be small."""
    return (values.double() - moments.mean().to(values.device)) / moments.scale().to(values.device)


def standard_without_rounding(values: Tensor, moments: Moments) -> Tensor:
    """`standard`, and zero for numbers that never changed, where only their rounding is left.

    For fits that have each effect in units of its size: a coefficient of rounding would have the size of its
    inverse, and so would the gradient.
    """
    x = standard(values, moments)
    same, rounding = (numbers.to(x.device) for numbers in (moments.same(), moments.rounding()))
    return torch.where(same & (x.abs() <= rounding), 0.0, x)


def spread_places(count: int, most: int) -> Tensor:
    """Return at most so many of `count` places, evenly taken."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
