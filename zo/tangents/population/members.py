"""`Member`: a network with its own learning rate, and the comparison of its losses with another's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
from torch import Tensor

from blackbox.checks import check_positive
from zo.errors import ConfigurationError
from zo.evaluators.state import Snapshot
from zo.keep_best import FEW

# decision 143:
FEWEST, COMPARED = 3, 5  # windows on which members are compared, at least and at most
SURE = 2.0  # standard errors by which losses differ
AWAY = 2.0  # times the leader's losses: where a faster member has these it takes over the leader's weights
TINY = 1e-300  # a loss that is not above zero counts as this


@dataclass
class Member:
    """A network with a learning rate of its own.

    Attributes:
        factor: its learning rate, as a multiple of the optimiser's.
        state: the state of the network, see `OwnState`; None before the first step.
        moments: the optimiser's memory of its steps, by parameter.
        losses: the losses on the last windows, before it trained on them; infinite where one was not finite.
        lost: of the last windows at its own weights, how many rows failed, and how many there were.
    """

    factor: float
    state: Snapshot | None = None
    moments: defaultdict[Tensor, Any] = field(default_factory=lambda: defaultdict(dict))
    losses: list[float] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)

    def was_asked(self, failed: int, rows: int) -> None:
        """Take in how many of a window's rows failed in boxes at its own weights."""
        self.lost = [*self.lost, (failed, rows)][-COMPARED:]

    @property
    def fails(self) -> bool:
        """True if its own weights fail: in two windows at least, and in more than a tenth of their rows."""
        # decision 236
        failed, rows = (sum(column) for column in zip(*self.lost or [(0, 0)], strict=True))
        return failed > FEW * rows and sum(of_window > 0 for of_window, _ in self.lost) > 1

    def saw(self, loss: float) -> None:
        """Take in the loss on a new window; infinite where it is not finite."""
        self.losses = [*self.losses, loss][-COMPARED:]

    @property
    def loss(self) -> float:
        """The mean on the last windows."""
        return fmean(self.losses)

    def takes_over_from(self, leader: Member) -> bool:
        """Say whether it leads from now on: a faster one where that is sure, a slower one in any doubt.

        Losses are those of rows that came back. So one that fails does not lead in the place of one that does
        not, whatever they are, and a slower one that does not fail leads in the place of one that does.
        """
        if self.fails_unlike(leader):
            return False
        if self.factor > leader.factor:
            return clearly_above(leader.losses, self.losses)
        if len(leader.losses) < FEWEST:
            return False
        return self.loss < (math.inf if leader.fails_unlike(self) else leader.loss)

    def goes_back_to(self, leader: Member) -> bool:
        """Say whether it restarts from the leader's weights: a faster one far above it, or a lost one.

        So does a faster one that fails where the leader does not.
        """
        diverged = len(self.losses) >= FEWEST and all(map(math.isinf, self.losses))
        faster = self.factor > leader.factor
        if faster and self.fails_unlike(leader):
            return True
        return (diverged or faster) and clearly_above(self.losses, leader.losses, AWAY)

    def fails_unlike(self, other: Member) -> bool:
        """Say whether it fails and another one does not, as far as is known."""
        return self.fails and not other.fails

    def takes(self, other: Member, moments: defaultdict[Tensor, Any]) -> None:
        """Go on from another one's weights, with some memory of steps."""
        self.state, self.moments = other.state, moments
        self.losses, self.lost = list(other.losses), list(other.lost)


def clearly_above(losses: Sequence[float], others: Sequence[float], times: float = 1.0) -> bool:
    """Say whether losses are on average above `times` the others, beyond chance, judged by their logarithms.

    Args:
        losses: on the last windows; infinite where one was not finite.
        others: on the same windows.
        times: the factor.
    """
    if math.inf in losses or math.inf in others:
        return math.inf not in others
    if len(losses) < FEWEST:
        return False
    gaps = [log_of(loss) - log_of(other) for loss, other in zip(losses, others, strict=True)]
    clear = fmean(gaps) > SURE * stdev(gaps) / math.sqrt(len(gaps))
    return clear and fmean(losses) > times * fmean(others)


def log_of(loss: float) -> float:
    """The logarithm of a loss, which need not be above zero."""
    return math.log(max(loss, TINY))


def checked_factors(factors: Any) -> list[float]:
    """The factors of a population's rates, as floats.

    Raises:
        ConfigurationError: they are no sequence, one is not above 0 or there twice, or there is none.
    """
    values = factors.tolist() if isinstance(factors, np.ndarray | Tensor) else factors
    listed = isinstance(values, Sequence)
    if listed:
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        for value in values:
            check_positive("Population", "factors", value)
    if not listed or not values or len(set(values)) < len(values):
        raise ConfigurationError(
            f"Population, factors: expected a sequence of numbers above 0, each once, got {factors!r}. "
            "Write (1, 4, 16), or other multiples of the optimiser's learning rate."
        )
    return [float(value) for value in values]
