"""`Unknowns`: bounded and positive numbers as numbers without bounds, with the logarithm of the Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from zo.errors import ConfigurationError


class Unknowns:
    """The unknowns x as functions of q, which has no bounds.

    With a lower bound x = lower + exp(q), with an upper one x = upper - exp(q), and between two
    x = lower + (upper - lower) / (1 + exp(-q)); without a bound x = q.

    Args:
        lower: `(size,)`, minus infinity for none.
        upper: `(size,)`, infinity for none.

    Raises:
        ConfigurationError: a lower bound is not below the upper one.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        if not bool((lower < upper).all()):
            raise ConfigurationError(
                "sample, bounds: expected each lower bound below the upper one, got another. "
                "Give (lower, upper), with infinity for none."
            )
        self.lower, self.upper = lower, upper
        self._below, self._above = lower.isfinite(), upper.isfinite()

    def bounded(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The unknowns and log |dx / dq|: `(rows, size)` to `(rows, size)` and `(rows,)`."""
        both, free = self._below & self._above, ~(self._below | self._above)
        zero = torch.zeros_like(self.lower)
        low, high = torch.where(self._below, self.lower, zero), torch.where(self._above, self.upper, zero)
        width = torch.where(both, high - low, zero + 1)
        one_sided = torch.where(both | free, 0, q).exp()
        x = torch.where(self._below, low + one_sided, high - one_sided)
        x = torch.where(both, low + width * q.sigmoid(), x)
        slope = torch.where(both, width.log() + logsigmoid(q) + logsigmoid(-q), q)
        return torch.where(free, q, x), torch.where(free, 0, slope).sum(1)

    def free(self, x: Tensor) -> Tensor:
        """The inverse of `bounded`: `(rows, size)` to `(rows, size)`.

        Raises:
            ConfigurationError: a number is not within its bounds.
        """
        if not bool(((x > self.lower) & (x < self.upper)).all()):
            raise ConfigurationError(
                "sample, start: expected numbers within their bounds, got one on a bound or beyond. "
                "Give other rows, or wider bounds."
            )
        below, above = x - self.lower, self.upper - x
        q = torch.where(self._below, below.log(), torch.where(self._above, above.log(), x))
        return torch.where(self._below & self._above, below.log() - above.log(), q)
