"""The number of steps that a population's surrogate takes in a training, and of rows in each."""

from __future__ import annotations

from zo.tangents.gradient import TangentGradient
from zo.tangents.models.structure import Specs
from zo.tangents.record.pairs import sizes

UPDATES, ROWS = 1000, 8  # steps, and rows in each where no fresh ones are given; decision 194
# decision 244, where each row of a batch is one row of each box, and a training's batches have so many:
MANY, EACH_ROW, MOST = 1000, 2.25, 16_000  # steps for each of them, and in all at most
ROWS_OF_MANY, NUMBERS = 64, 32  # in such a step; of inputs and of outputs that each box has at most


def rows_once(gradient: TangentGradient, rows: int, box_rows: int, queries: int) -> int:
    """The rows of a batch, where boxes of few numbers were asked once for each; else 0.

    Args:
        gradient: the gradient.
        rows: the rows of the batch.
        box_rows: how many rows boxes were asked for in a step on it.
        queries: how many further evaluations that step took.
    """
    few = all(_has_few_numbers(Specs.of(box)) for box in gradient.boxes)
    return rows if few and box_rows <= (1 + queries) * rows * len(gradient.boxes) else 0


def _has_few_numbers(specs: Specs) -> bool:
    """Say whether a box takes a table of at most 32 numbers, and answers with as many."""
    several = specs.inputs, tuple(spec for spec in specs.outputs if spec.learned)
    return specs.structure.kind == "table" and all(sum(sizes(part)) <= NUMBERS for part in several)


def updates_of(steps: int, rows: int) -> tuple[float, int]:
    """The number of steps that a surrogate takes in a training of so many windows, and of rows in each.

    Args:
        steps: how many windows there are.
        rows: the rows of each, see `rows_once`.
    """
    if steps * rows < MANY:
        return UPDATES, ROWS
    return min(MOST, EACH_ROW * steps * rows), ROWS_OF_MANY
