"""Running the queries of a black box's rows: which rows are alive, and what each query changes."""

from __future__ import annotations

import math

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


def row_differences(
    box: BlackBoxFunction,
    plan: RowSteps,
    inputs: list[Tensor],
    perturbed: list[int],
    outputs: dict[int, Tensor],
    cotangents: dict[int, Tensor],
    max_rows: int | None,
) -> tuple[Tensor, Tensor]:
    """Change of <cotangent, output> of every query and row.

    Args:
        box: is called with up to `max_rows` (query, row) pairs at a time, queries outermost.
        plan: the queries.
        inputs: all the box's, `(rows, *shape)` each.
        perturbed: which of them the plan's numbers make up, end to end.
        outputs: those of the base that have a cotangent, by their place among the box's outputs.
        cotangents: of the outputs' shapes, under the same places.
        max_rows: None for all in one call.

    Returns:
        `(queries, rows)` float64, zero where the query failed, and `(queries, rows)` bool, False there.
    """
    rows = len(inputs[0])
    sizes = [inputs[place][0].numel() for place in perturbed]
    total = plan.queries * rows
    parts = []
    for start in range(0, total, max_rows or total):
        pair = torch.arange(start, min(start + (max_rows or total), total), device=inputs[0].device)
        query, row = pair // rows, pair % rows
        moved = dict(zip(perturbed, plan.displaced(query, row).split(sizes, dim=1), strict=True))
        given = box(
            *(
                moved[place].to(own.dtype).reshape(len(row), *own.shape[1:]) if place in moved else own[row]
                for place, own in enumerate(inputs)
            )
        )
        parts.append(_changes(given if isinstance(given, tuple) else (given,), row, outputs, cotangents))
    scalars, valid = (torch.cat(column).view(plan.queries, rows) for column in zip(*parts, strict=True))
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
