"""`Trained`: the network that a method gives back, and `TrainingOutcome`, the record of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from blackbox import Ledger

if TYPE_CHECKING:
    from torch import nn


@dataclass
class TrainingOutcome:
    """The outcome of a stage."""

    stage: str
    step: int = 0
    """Optimiser steps done."""
    seconds: float = 0.0
    """Time in optimiser steps, over all processes that worked on the stage; validation is apart."""
    best_step: int | None = None
    """Steps done when validation was lowest; None without (finite) validation."""
    best_validation: float | None = None
    best_failed: int = 0
    """Rows that failed in that validation, whose mean is over the others."""
    rejected: int = 0
    """Validations in which so many rows failed that they could choose no weights."""
    first_validation: float | None = None
    """Before the first step: what the start's weights are good for."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the last optimiser step returned."""
    ledger: Ledger = field(default_factory=Ledger)
    """What black boxes counted in optimiser steps, in all processes."""
    judging: Ledger = field(default_factory=Ledger)
    """What they counted in validation, and before the first step, which is apart."""

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain data, for the checkpoint."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> TrainingOutcome:
        """Rebuild it from the output of `state_dict`."""
        ledgers = {name: Ledger(**state[name]) for name in ("ledger", "judging")}
        return cls(**{**state, **ledgers})


@dataclass(frozen=True)
class Trained:
    """A network with the weights that validation chose, and the outcome of its training.

    Attributes:
        network: The trained network.
        outcome: The outcome of the stage: steps, seconds, validation, and the ledger of its optimiser steps.
        queries: Perturbed objectives (for `row-rge`, perturbed rows).
        dropped: The perturbed objectives that failed.
        figures: Further figures for the table.
    """

    network: nn.Module
    outcome: TrainingOutcome
    queries: int = 0
    dropped: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
