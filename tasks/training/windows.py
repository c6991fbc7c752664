"""`Windows`: what the steps of a training show for no row: the losses before a step on them, and who led."""

from __future__ import annotations

from statistics import fmean
from typing import Any


class Windows:
    """Losses of batches, judged before anything has trained on them, and the member that leads a population.

    Attributes:
        leader: Who leads, in words; "" where there is no population.
        since: The step from which it does.
    """

    def __init__(self) -> None:
        self.leader, self.since = "", 0
        self._losses = list[float]()

    def saw(self, step: int, loss: float, leader: str) -> None:
        """Take in a step: its loss before it, and who led behind it."""
        self._losses.append(loss)
        if leader != self.leader:
            self.leader, self.since = leader, step

    def mean(self) -> float | None:
        """The mean loss since this was last asked; None where there was no step."""
        losses, self._losses = self._losses, []
        return fmean(losses) if losses else None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"leader": self.leader, "since": self.since, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.leader, self.since, self._losses = state["leader"], state["since"], list(state["losses"])
