"""Why a row failed, in words that ledger, report and error share; and the policy for failed rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from torch import Tensor

Policy = Literal["raise", "keep"]
POLICIES: tuple[Policy, ...] = ("raise", "keep")


class Failure(Enum):
    """The ways in which a row fails; the value is the sentence that people read."""

    RAISED = "the black box raised an error"
    NON_FINITE = "the black box returned a value that is not finite"
    TIMED_OUT = "the row took longer than it may, and was given up"
    LOST = "the worker that ran the row died, and another one after it"
    SKIPPED = "the row was not run because its input was not finite already"


@dataclass(frozen=True)
class FailedRow:
    """One failed row: its failure, and the exception where there was one."""

    failure: Failure
    error: Exception | None = None

    def sentence(self) -> str:
        """The failure in words, with the exception's own."""
        if self.error is None:
            return self.failure.value
        return f"{self.failure.value} ({type(self.error).__name__}: {self.error})"


@dataclass
class Outcome:
    """What a block of rows came to: outputs, each `(rows, *spec.shape)`, and the rows that failed.

    The tensors own their memory. Values of failed rows mean nothing until the policy has been applied.
    """

    outputs: tuple[Tensor, ...]
    failed: dict[int, FailedRow] = field(default_factory=dict)
