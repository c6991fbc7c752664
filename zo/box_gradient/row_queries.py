"""The queries of a black box's call: the moved rows, the answers, and the gradient that they give."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import finite_rows
from blackbox.errors import BudgetError, RowFailedError
from zo.box_gradient.row_rge import RowRGE
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE, slopes_along

Outputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class RowQueries:
    """The queries of one call, for the rows that did not fail in the base.

    Query k moves row r by `steps[k, r]` along direction k; there are as many directions as queries, or half
    as many with central differences, whose second half of the queries goes back along the same ones.

    Attributes:
        box: the box, called with up to `max_rows` (query, row) pairs at a time, queries outermost.
        inputs: all inputs of the box, `(rows, *shape)` each.
        perturbed: the places of the moved inputs; end to end they have `size` numbers a row.
        values: the moved inputs, `(rows, size)`, in the widest of their dtypes.
        steps: `(queries, rows)` float64, signed.
        directions: `(directions, rows, size)`; None for the coordinates, one after another.
        factor: c of the directions, by which their mean is multiplied.
        central: whether the second half of the queries goes back.
        units: the units of the numbers of a row, `(size,)` float64: directions are multiplied by these.
    """

    box: BlackBoxFunction
    inputs: list[Tensor]
    perturbed: list[int]
    max_rows: int | None
    values: Tensor
    steps: Tensor
    directions: Tensor | None = None
    factor: int = 1
    central: bool = False
    units: Tensor | None = None

    def run(self) -> Iterator[tuple[Tensor, list[Tensor], Outputs]]:
        """Call after call of the box: the row of each of its pairs `(n,)`, all inputs, and the outputs."""
        rows, total = len(self.values), self.steps.numel()
        at_once = self.max_rows or max(1, total)
        for start in range(0, total, at_once):
            pair = torch.arange(start, min(start + at_once, total), device=self.values.device)
            query, row = pair // rows, pair % rows
            yield row, *self._ask(query, row, self.steps[query, row])

    def again(self, query: Tensor, row: Tensor, times: float) -> Iterator[tuple[Tensor, Tensor, Outputs]]:
        """Ask some queries once more, with steps of another length; a length of 0 is the base.

        Args:
            query: the numbers of the queries, `(n,)`.
            row: the row of each query, `(n,)`.
            times: the factor of their steps.

        Returns:
            Call after call of the box: the row of each pair, the step that it took, and the outputs.
        """
        at_once = self.max_rows or max(1, len(row))
        for queries, rows in zip(query.split(at_once), row.split(at_once), strict=True):
            step = times * self.steps[queries, rows]
            inputs, results = self._ask(queries, rows, step)
            if self.directions is None and times:  # as rounding in the input's own floats leaves it
                parts = [inputs[place].reshape(len(rows), -1).double() for place in self.perturbed]
                moved = torch.cat(parts, dim=1)
                moved -= self.values[rows].double()
                step = moved.gather(1, self._coordinate(queries)[:, None])[:, 0]
            yield rows, step, results

    def _ask(self, query: Tensor, row: Tensor, step: Tensor) -> tuple[list[Tensor], Outputs]:
        sizes = [self.inputs[place][0].numel() for place in self.perturbed]
        moved = dict(zip(self.perturbed, self._moved(query, row, step).split(sizes, dim=1), strict=True))
        inputs = [
            moved[place].to(array.dtype).reshape(len(row), *array.shape[1:]) if place in moved else array[row]
            for place, array in enumerate(self.inputs)
        ]
        results = self.box(*inputs)
        return inputs, results if isinstance(results, tuple) else (results,)

    def reduce(self, differences: Tensor, valid: Tensor) -> Tensor:
        """The gradient of every row.

        Args:
            differences: `(queries, rows)` float64, the scalar of each query minus the base's.
            valid: `(queries, rows)` bool, False where a query failed: where nothing else is known its
                coordinate gets zero, and the mean is over the other directions.

        Returns:
            `(rows, size)` float64.
        """
        slopes, valid = slopes_along(self.steps, differences, valid, central=self.central)
        if self.directions is None:
            return slopes.T
        counts = valid.double().sum(dim=0).clamp(min=1)
        gradient = torch.einsum("qr,qrs->rs", slopes * (self.factor / counts), self.directions.double())
        # Slopes along u times the units, times u over the units: of the directions here twice that.
        return gradient if self.units is None else gradient / self.units**2

    def unanswered(self, valid: Tensor) -> int:
        """The count of the gradient's numbers whose queries, `(queries, rows)`, all failed: they are zero."""
        size = self.values.shape[1]
        if self.directions is None:
            return int((~valid.reshape(-1, size, valid.shape[1]).any(dim=0)).sum())
        return size * int((~valid.any(dim=0)).sum())

    def _coordinate(self, query: Tensor) -> Tensor:
        return query % self.values.shape[1]

    def _moved(self, query: Tensor, row: Tensor, step: Tensor) -> Tensor:
        """Rows `(n,)` as queries `(n,)` move them by steps `(n,)`, `(n, size)`."""
        moved, step = self.values[row], step.to(self.values.dtype)
        if self.directions is None:
            moved[torch.arange(len(row), device=row.device), self._coordinate(query)] += step
            return moved
        return moved + step[:, None] * self.directions[query % len(self.directions), row]


def as_rows(specs: tuple[ArraySpec, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """`(*leading, *spec.shape)` to `(rows, *spec.shape)`, detached."""
    pairs = zip(specs, tensors, strict=True)
    return [t.detach().reshape(t.numel() // math.prod(s.shape), *s.shape) for s, t in pairs]


def alive_rows(outputs: list[Tensor]) -> Tensor:
    """Return the rows that did not fail in the base, `(n,)`: all of their outputs are finite."""
    return torch.nonzero(finite_rows(tuple(outputs))).flatten().to(outputs[0].device)


def plan_queries(
    box: BlackBoxFunction,
    estimator: RowRGE | CGE | None,
    inputs: list[Tensor],
    perturbed: list[int],
    alive: Tensor,
    draws: torch.Generator,
    max_rows: int | None,
    units: dict[int, Tensor],
) -> RowQueries:
    """The queries of one call.

    Args:
        box: the box that was called.
        estimator: the estimator that plans its queries; None for no queries.
        inputs: all inputs of the base, `(rows, *shape)` each, with failed rows: directions are drawn for
            these, too, so that no row's directions depend on the others' failures.
        perturbed: the places of the moved inputs.
        alive: `(n,)`, the rows that did not fail.
        draws: the generator of the call's directions.
        max_rows: the most rows of one call; None for no limit.
        units: the units of each number of the inputs that are moved, `(size,)` float64, by their place.

    Raises:
        ConfigurationError: mu is lost in the rounding of the inputs.
    """
    alive_inputs = [tensor[alive] for tensor in inputs]
    flat = [alive_inputs[place].reshape(len(alive), -1) for place in perturbed]
    # The widest dtype holds them all exactly; a float32 input is cast back without loss.
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in flat) else torch.float32
    values = torch.cat([part.to(dtype) for part in flat], dim=1)
    if estimator is None:
        return RowQueries(
            box, alive_inputs, perturbed, max_rows, values, values.new_zeros(0, len(alive)).double()
        )
    signed = [estimator.mu, -estimator.mu] if estimator.central else [estimator.mu]
    parts = [units[place].to(values.device) for place in perturbed]
    if isinstance(estimator, CGE):
        # (z + mu) - z in the input's own floats is what it really moves by.
        pairs = list(zip(flat, parts, strict=True))
        exact_steps = [
            [((part + (mu * unit).to(part)) - part).double() for part, unit in pairs] for mu in signed
        ]
        steps = torch.cat([torch.cat(parts, dim=1).T for parts in exact_steps])
        _refuse_lost_steps(estimator, steps, values)
        return RowQueries(box, alive_inputs, perturbed, max_rows, values, steps, central=estimator.central)
    shapes = tuple(tuple(inputs[place].shape[1:]) for place in perturbed)
    all_directions, factor = estimator.draw(len(inputs[0]), shapes, dtype, draws)
    directions, row_units = all_directions.to(values.device)[:, alive], None
    if estimator.basis is None and any(bool((unit != 1).any()) for unit in units.values()):
        row_units = torch.cat(parts)
        directions = directions * row_units.to(directions)
    for moved, part in zip(directions.split([part.shape[1] for part in flat], dim=2), flat, strict=True):
        _refuse_lost_directions(estimator.mu, moved, part)
    steps = torch.tensor(signed, dtype=torch.float64, device=values.device).repeat_interleave(estimator.q)
    steps = steps[:, None].expand(-1, len(alive))
    return RowQueries(
        box,
        alive_inputs,
        perturbed,
        max_rows,
        values,
        steps,
        directions,
        factor,
        estimator.central,
        row_units,
    )


def row_differences(
    queries: RowQueries,
    outputs: dict[int, Tensor],
    cotangents: dict[int, Tensor],
    moved: dict[int, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Change of <cotangent, output> of every query and row.

    Args:
        queries: the queries to run.
        outputs: the base's outputs with a cotangent, by their place among the box's outputs.
        cotangents: the gradients of these outputs, of their shapes, under the same places.
        moved: `(size,)` bool for each output, by its place: numbers that any query changed are marked.

    Returns:
        `(queries, rows)` float64, zero where the query failed; `(queries, rows)` bool, False there; and
        `(rows,)` bool, whether any query changed any of these outputs.
    """
    scalars, valid = [], []
    answered = torch.zeros(len(queries.values), dtype=torch.bool, device=queries.values.device)
    for row, _, results in queries.run():
        scalar, finite, changed = change_of(row, results, outputs, cotangents)
        answered[row[changed]] = True
        for place, marks in (moved or {}).items():
            change = (results[place] != outputs[place][row]).reshape(len(row), -1)
            marks |= change[finite].any(dim=0)
        scalars.append(scalar)
        valid.append(finite)
    shape = queries.steps.shape
    return torch.cat(scalars).view(shape), torch.cat(valid).view(shape), answered


def from_other_side(
    queries: RowQueries,
    outputs: dict[int, Tensor],
    cotangents: dict[int, Tensor],
    differences: Tensor,
    valid: Tensor,
) -> tuple[Tensor, Tensor, int]:
    """Ask rows on the side that answers, at the edge of a domain, where queries fail.

    Failed forward queries are asked the other way: each one along coordinates, and along directions only in
    rows where none succeeded. Where one side of a central query failed, the other side is asked over half of
    its step too: two steps on one side are as exact as one on each, with an error of the step's square.

    Args:
        queries: the queries of one call.
        outputs: the base's outputs with a cotangent, by their place among the box's outputs.
        cotangents: the gradients of these outputs, of their shapes, under the same places.
        differences: `(queries, rows)` float64, from `row_differences`.
        valid: `(queries, rows)` bool, False where a query failed.

    Returns:
        Differences and validity with the new answers, and how many rows were asked.
    """
    if queries.central:
        gaps = valid & ~valid.roll(len(valid) // 2, dims=0)
    else:
        gaps = ~valid if queries.directions is None else ~valid & ~valid.any(dim=0)
    query, row = torch.nonzero(gaps, as_tuple=True)
    if not len(row):
        return differences, valid, 0
    scalars, successes, first = [], [], 0
    try:
        for rows, step, results in queries.again(query, row, 0.5 if queries.central else -1.0):
            scalar, finite, _ = change_of(rows, results, outputs, cotangents)
            which = query[first : first + len(rows)]
            lengths, rises = queries.steps[which, rows], differences[which, rows]
            slope, answered = scalar / step, finite & (step != 0)
            if queries.central:  # the straight line through both slopes, at a step of zero
                part = step / lengths
                slope = torch.where(answered, (slope - part * rises / lengths) / (1 - part), rises / lengths)
                answered = torch.ones_like(answered)
            scalars.append(torch.where(answered, slope * lengths, 0.0))
            successes.append(answered)
            first += len(rows)
    except (BudgetError, RowFailedError):  # the other rows are there
        return differences, valid, first
    differences, valid = differences.clone(), valid.clone()
    differences[query, row], valid[query, row] = torch.cat(scalars), torch.cat(successes)
    return differences, valid, first


def change_of(
    row: Tensor, results: Outputs, outputs: dict[int, Tensor], cotangents: dict[int, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Change of <cotangent, output> of rows `(n,)` that were asked, as `row_differences` gives it for all.

    Returns:
        `(n,)` float64, zero where a row failed; `(n,)` bool, False there; `(n,)` bool, whether an output is
        another.
    """
    scalar = torch.zeros(len(row), dtype=torch.float64, device=row.device)
    finite = torch.ones(len(row), dtype=torch.bool, device=row.device)
    changed = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    for place, base in outputs.items():
        change = (results[place] - base[row]).reshape(len(row), -1)
        # From the outputs alone: a NaN that arrives from behind is no failed query, and stays NaN.
        finite &= torch.isfinite(change).all(dim=1)
        cotangent = cotangents[place][row].reshape(len(row), -1)
        scalar += (change.double() * cotangent.double()).sum(dim=1)
        changed |= (change != 0).any(dim=1)
    return torch.where(finite, scalar, 0.0), finite, changed


_MEND = (
    "Take a larger mu, float64, inputs of order one, or, where inputs have other units, give the size of a "
    "usual change in the box's specs: ArraySpec(..., scale=...)."
)


def _refuse_lost_steps(estimator: CGE, steps: Tensor, values: Tensor) -> None:
    """Refuse steps that are lost in rounding: 0 / 0 would be a gradient of NaN."""
    zero_steps = (steps == 0).view(-1, *values.T.shape).any(dim=0).T
    if zero_steps.any():
        raise ConfigurationError(
            f"CGE, mu: expected a step that moves every input number, got {estimator.mu}, which is lost in "
            f"rounding beside a number of {float(values[zero_steps].abs().max()):.3g} in "
            f"{str(values.dtype)[6:]}. {_MEND}"
        )


def _refuse_lost_directions(mu: float, directions: Tensor, values: Tensor) -> None:
    """Refuse directions below a unit in the last place: queries would be the base, and gradients too small.

    The usual entry of all rows counts: in an input of one number a row's own entry may be small by chance.
    """
    entry = mu * float(directions.square().mean().sqrt())
    typical = values.square().mean(dim=1).sqrt()
    faint_rows = torch.nonzero(entry < torch.finfo(values.dtype).eps * typical).flatten()
    if len(faint_rows):
        raise ConfigurationError(
            f"differentiable, mu: expected steps above the rounding of the inputs, got entries of about "
            f"{entry:.1e} for a row of {str(values.dtype)[6:]} whose numbers are about "
            f"{float(typical[faint_rows[0]]):.1e}. {_MEND}"
        )
