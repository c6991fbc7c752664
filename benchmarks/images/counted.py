"""What most gradients of baselines keep: steps done and queries spent."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import zo


class Counted:
    """Steps done and queries spent, for the log and for the checkpoint."""

    def __init__(self) -> None:
        self.counts = zo.loss_gradient.QueryCounts()

    def metrics(self) -> dict[str, float]:
        """The counts, by name."""
        return {name: float(count) for name, count in asdict(self.counts).items()}

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return asdict(self.counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the counts of a checkpoint."""
        self.counts = zo.loss_gradient.QueryCounts(**state)
