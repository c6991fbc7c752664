"""`Windows`: the record of a training's steps for no row: losses before a step on them, and the leader."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

CHANCE = 0.01  # of finding losses of the same kind clearly above each other; five windows can show it


class Windows:
    """Losses of batches, judged before anything has trained on them, and the member that leads a population.

    Attributes:
        leader: Who leads, in words; "" where there is no population.
        since: The step from which it does.
    """

    def __init__(self) -> None:
        self.leader, self.since = "", 0
        self._losses = list[float]()

    def saw(self, step: int, loss: float | None, leader: str) -> None:
        """Take in a step.

        Args:
            step: Its number.
            loss: Before it, of the weights that would be kept; None where others were asked.
            leader: Who led behind it.
        """
        if loss is not None:
            self._losses.append(loss)
        if leader != self.leader:
            self.leader, self.since = leader, step

    def losses(self) -> Tensor | None:
        """Return the losses since the last call, `(windows,)`; None where there were none."""
        losses, self._losses = self._losses, []
        return torch.tensor(losses, dtype=torch.float64) if losses else None

    def state_dict(self) -> dict[str, Any]:
        """Save it for the checkpoint."""
        return {"leader": self.leader, "since": self.since, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.leader, self.since, self._losses = state["leader"], state["since"], list(state["losses"])


def clearly_above(losses: Tensor, others: Tensor) -> bool:
    """Say whether losses are above those of other windows, beyond chance, by their ranks.

    Losses of single windows may differ a thousandfold at the same weights, so means of a few say little.

    Args:
        losses: `(windows,)`, finite.
        others: The same.
    """
    return bool(mannwhitneyu(losses, others, alternative="greater").pvalue < CHANCE)
