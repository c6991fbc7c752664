"""Checks as queries along the gradient give them, for tests of what follows from them."""

from __future__ import annotations

from typing import Any

from zo.tangents.trust.evidence import Check


def check_of(
    agreement: float | None = None,
    missed: float | None = None,
    agreement_of_rows: float | None = None,
    **others: Any,
) -> Check:
    """A check that has measured some figures; without any it shows nothing."""
    figures = {"agreement": agreement, "missed": missed, "agreement_of_rows": agreement_of_rows}
    return Check({name: value for name, value in figures.items() if value is not None}, **others)
