"""`Windows`: the record of a training's steps for no row: losses before a step on them, and the leader."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from zo.keep_best import FEW

CHANCE = 0.01  # of finding losses of the same kind clearly above each other; five windows can show it


@dataclass(frozen=True)
class WindowLosses:
    """The losses of windows, which are other rows each time, and how many of these rows failed.

    Attributes:
        losses: `(windows,)`, the mean over a window's rows that came back; NaN where none did.
        failed: `(windows,)`, how many rows of each failed.
        rows: `(windows,)`, how many rows each has.
    """

    losses: Tensor
    failed: Tensor
    rows: Tensor

    @property
    def ranked(self) -> Tensor:
        """The losses as they are compared by rank: infinite where more than a tenth of the rows failed."""
        # decision 236
        return torch.where(self.failed > FEW * self.rows, math.inf, self.losses)

    @property
    def counts(self) -> tuple[int, int]:
        """The number of rows that failed, and of all."""
        return int(self.failed.sum()), int(self.rows.sum())

    def keep_last(self, lowest: Tensor | None) -> bool:
        """Say whether the last weights are kept: few rows failed, and losses are not clearly above before.

        Args:
            lowest: The lowest losses before, by which others may have been kept; None for none.
        """
        failed, rows = self.counts
        return failed <= FEW * rows and not (lowest is not None and clearly_above(self.ranked, lowest))


class Windows:
    """Losses of batches, judged before anything has trained on them, and the member that leads a population.

    Attributes:
        leader: Who leads, in words; "" where there is no population.
        since: The step from which it does.
    """

    def __init__(self) -> None:
        self.leader, self.since = "", 0
        self._losses = list[tuple[float, int, int]]()

    def saw(self, step: int, loss: float | None, leader: str, failed: int = 0, rows: int = 1) -> None:
        """Take in a step.

        Args:
            step: Its number.
            loss: Before it, of the weights that would be kept, NaN where all rows failed; None where others
                were asked.
            leader: Who led behind it.
            failed: How many rows failed at these weights, which the loss leaves out.
            rows: How many rows the batch has.
        """
        if loss is not None:
            self._losses.append((loss, failed, rows))
        if leader != self.leader:
            self.leader, self.since = leader, step

    def losses(self) -> WindowLosses | None:
        """Return the losses since the last call; None where there were none."""
        entries, self._losses = self._losses, []
        return WindowLosses(*torch.tensor(entries, dtype=torch.float64).unbind(1)) if entries else None

    def state_dict(self) -> dict[str, Any]:
        """Save it for the checkpoint."""
        return {"leader": self.leader, "since": self.since, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.leader, self.since, self._losses = (
            state["leader"],
            state["since"],
            [(one, 0, 1) if isinstance(one, float) else tuple(one) for one in state["losses"]],
        )


def clearly_above(losses: Tensor, others: Tensor) -> bool:
    """Say whether losses are above those of other windows, beyond chance, by their ranks.

    Losses of single windows may differ a thousandfold at the same weights, so means of a few say little.

    Args:
        losses: `(windows,)`, infinite where a window counts as failed.
        others: The same.
    """
    return bool(mannwhitneyu(losses, others, alternative="greater").pvalue < CHANCE)
