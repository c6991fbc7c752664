"""Running the queries of a black box's rows: which rows are alive, and what each query changes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import finite_rows
from zo.box_gradient.row_steps import RowSteps


def as_rows(specs: tuple[ArraySpec, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """`(*leading, *spec.shape)` to `(rows, *spec.shape)`, detached."""
    pairs = zip(specs, tensors, strict=True)
    return [t.detach().reshape(t.numel() // math.prod(s.shape), *s.shape) for s, t in pairs]


def alive_rows(outputs: list[Tensor]) -> Tensor:
    """Which rows did not fail in the base, `(n,)`: those whose outputs are all finite."""
    return torch.nonzero(finite_rows(tuple(outputs))).flatten().to(outputs[0].device)


@dataclass(frozen=True)
class Queries:
    """The queries of one call, to be run.

    Attributes:
        box: is called with up to `max_rows` (query, row) pairs at a time, queries outermost.
        plan: what they are; None for no queries.
        inputs: all the box's, of the rows that are alive, `(rows, *shape)` each.
        perturbed: which of them the plan's numbers make up, end to end.
        max_rows: None for all in one call.
    """

    box: BlackBoxFunction
    plan: RowSteps | None
    inputs: list[Tensor]
    perturbed: list[int]
    max_rows: int | None

    def run(self) -> Iterator[tuple[Tensor, list[Tensor], tuple[Tensor, ...]]]:
        """Call after call of the box: the row of each of its pairs `(n,)`, all inputs, and the outputs."""
        if self.plan is None:
            return
        rows = len(self.inputs[0])
        sizes = [self.inputs[place][0].numel() for place in self.perturbed]
        total = self.plan.queries * rows
        for start in range(0, total, self.max_rows or total):
            stop = min(start + (self.max_rows or total), total)
            pair = torch.arange(start, stop, device=self.inputs[0].device)
            query, row = pair // rows, pair % rows
            pieces = self.plan.displaced(query, row).split(sizes, dim=1)
            moved = dict(zip(self.perturbed, pieces, strict=True))
            given = [
                moved[place].to(own.dtype).reshape(len(row), *own.shape[1:]) if place in moved else own[row]
                for place, own in enumerate(self.inputs)
            ]
            results = self.box(*given)
            yield row, given, results if isinstance(results, tuple) else (results,)


def row_differences(
    queries: Queries, outputs: dict[int, Tensor], cotangents: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Change of <cotangent, output> of every query and row.

    Args:
        queries: to run.
        outputs: those of the base that have a cotangent, by their place among the box's outputs.
        cotangents: of the outputs' shapes, under the same places.

    Returns:
        `(queries, rows)` float64, zero where the query failed, and `(queries, rows)` bool, False there.
    """
    parts = [_changes(results, row, outputs, cotangents) for row, _, results in queries.run()]
    rows = len(queries.inputs[0])
    scalars, valid = (torch.cat(column).view(-1, rows) for column in zip(*parts, strict=True))
    return scalars, valid


def _changes(
    given: tuple[Tensor, ...], row: Tensor, outputs: dict[int, Tensor], cotangents: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    scalar = torch.zeros(len(row), dtype=torch.float64, device=row.device)
    valid = torch.ones(len(row), dtype=torch.bool, device=row.device)
    for place, base in outputs.items():
        change = (given[place] - base[row]).reshape(len(row), -1)
        # From the outputs alone: a NaN that arrives from behind is no failed query, and stays NaN.
        valid &= torch.isfinite(change).all(dim=1)
        cotangent = cotangents[place][row].reshape(len(row), -1)
        scalar += (change.double() * cotangent.double()).sum(dim=1)
    return torch.where(valid, scalar, 0.0), valid
