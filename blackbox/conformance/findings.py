"""`Finding`: what one check found, its verdict, its number and one sentence with the mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a check went; the value is the word that people read."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "not applicable"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name, such as "batch-mates".
        verdict: a fault spoils training or breaks the contract; a warning limits what the box can do.
        sentence: what was seen, and where something is wrong, how to mend it.
        number: what was measured, None where there is nothing to measure.
        unit: of the number, in words.
    """

    check: str
    verdict: Verdict
    sentence: str
    number: float | None = None
    unit: str = ""
