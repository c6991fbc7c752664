"""`Units`: numbers in units of mean zero and spread one, some of them by their logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.tangents.models.gaussian_process import Kept

# decision 228:
SPAN = 1.1  # the largest over the smallest number: of less a logarithm is nearly a line
BEYOND = 100.0  # times as far as rows go a logarithm or an exponential goes on; then a line


@dataclass(frozen=True)
class Units(Kept):
    """The unit of each number, or of its logarithm.

    Attributes:
        mean: the means, `(size,)`.
        scale: the spreads, `(size,)`.
        logs: whether a number goes by its logarithm, `(size,)` bool.
        some: whether any does.
        least: the logarithm below which it goes on as a line, `(size,)`; so no number is refused.
        most: the logarithm above which its exponential goes on as a line, `(size,)`; so none is infinite.
    """

    mean: Tensor
    scale: Tensor
    logs: Tensor
    some: bool
    least: Tensor
    most: Tensor

    @classmethod
    def plain(cls, mean: Tensor, scale: Tensor) -> Units:
        """Those of numbers as they are."""
        zeros = torch.zeros_like(mean)
        return cls(mean, scale, zeros.bool(), False, zeros, zeros)

    def by_logs(self, rows: Tensor, logs: Tensor) -> Units:
        """These, but for some numbers, positive in all rows, that go by logarithms: `(size,)` bool."""
        if not bool(logs.any()):
            return self
        logarithms = torch.where(logs, rows, 1.0).log()
        spread, margin = logarithms.std(0, correction=0), logs.to(rows) * math.log(BEYOND)
        return Units(
            torch.where(logs, logarithms.mean(0), self.mean),
            torch.where(logs, torch.where(spread > 0, spread, 1.0), self.scale),
            logs,
            True,
            logarithms.amin(0) - margin,
            logarithms.amax(0) + margin,
        )

    def standard(self, numbers: Tensor) -> Tensor:
        """Numbers in these units: `(rows, size)`."""
        if self.some:
            end = self.least.exp()
            inside = numbers.clamp_min(end)
            numbers = torch.where(self.logs, inside.log() + (numbers - inside) / end, numbers)
        return (numbers - self.mean) / self.scale

    def pulled(self, numbers: Tensor, v: Tensor) -> Tensor:
        """The transpose of the derivative of `standard` at numbers, times v: `(rows, size)`."""
        v = v / self.scale
        return torch.where(self.logs, v / numbers.clamp_min(self.least.exp()), v) if self.some else v

    def back(self, x: Tensor) -> Tensor:
        """The inverse of `standard`, but for numbers on lines: `(rows, size)`."""
        numbers = self.mean + self.scale * x
        if self.some:
            inside = numbers.clamp_max(self.most)
            numbers = torch.where(self.logs, inside.exp() * (1 + numbers - inside), numbers)
        return numbers

    def pulled_back(self, x: Tensor, v: Tensor) -> Tensor:
        """The transpose of the derivative of `back`, times v: `(rows, size)`."""
        inside = (self.mean + self.scale * x).clamp_max(self.most)
        return v * self.scale * torch.where(self.logs, inside.exp(), 1.0)


def spanning(rows: Tensor) -> Tensor:
    """Say which numbers are positive in all rows, `(rows, size)`, and span enough for logarithms."""
    least = rows.amin(0)
    return (least > 0) & (rows.amax(0) > SPAN * least)
