"""How much failure a step can bear: some row of the base, and most of the queries, must survive."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.errors import FailedQueriesError


def survivors(base: Tensor, step: int) -> Tensor:
    """Which rows of the base, `(rows,)` losses, did not fail: `(rows,)` bool.

    Raises:
        FailedQueriesError: none.
    """
    survived = torch.isfinite(base)
    if not survived.any():
        raise FailedQueriesError(
            f"Step {step}: expected a finite loss in some row of the base evaluation, got none in "
            f"{len(base)} rows. Evaluate the objective by hand on this batch to see why."
        )
    return survived


def refuse_too_many(valid: Tensor, most: float, step: int) -> None:
    """Refuse a step in which more than a fraction of the queries, `(queries,)` bool, are not valid.

    Raises:
        FailedQueriesError: more, or all.
    """
    dropped = int((~valid).sum())
    if dropped > most * len(valid) or dropped == len(valid):
        raise FailedQueriesError(
            f"Step {step}: expected at most {most:.0%} of {len(valid)} queries to fail, {dropped} did. See "
            "the black box's ledger; a smaller mu or learning rate keeps variants nearer to the base, "
            "max_dropped lets more of them go."
        )
