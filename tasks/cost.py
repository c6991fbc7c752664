"""What a run will cost, before it starts: rows, queries and time by method, from one evaluation of the objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from tasks.errors import ConfigurationError
from tasks.methods import Method
from tasks.pace import Tally
from tasks.problem import Problem
from tasks.progress import duration
from zo.batches import count_rows, map_tensors


@dataclass(frozen=True)
class Estimate:
    """What a method will ask for, in one seed.

    Attributes:
        method: Its name.
        rows: Of the boxes in training; None where that is not known beforehand.
        queries: Perturbed objectives.
        seconds: Of the boxes' rows; None where no row was timed.
    """

    method: str
    rows: int | None
    queries: int
    seconds: float | None


def lines(problem: Problem, methods: Mapping[str, Method], seeds: int, *, timed: bool) -> list[str]:
    """What the run will cost, in words; refuses one that cannot end within its budget.

    Args:
        problem: With its settings; its boxes are asked for one batch's rows where `timed` says so.
        methods: That will be trained.
        seeds: How many trainings of each.
        timed: Whether to run a batch's rows to see how long they take.

    Raises:
        ConfigurationError: More rows will be run than the budget has; none was run.
    """
    told = problem.cost(seeds)
    if told is not None:
        return ["Cost:", *(f"  {line}" for line in told)]
    each = rows_of_objective(problem)
    if each is None:
        return ["Cost: not known before the first step (the objective could not be tried without its boxes)."]
    judging = _rows_of_judging(problem, each, len(methods))
    trying = [_estimate(problem, name, method, each, None) for name, method in methods.items()]
    known = sum(found.rows or 0 for found in trying) * seeds + judging * seeds
    budget = problem.config.rows
    if budget is not None and known > budget:
        told = ", ".join(f"{found.method} {found.rows:,}" for found in trying if found.rows)
        raise ConfigurationError(
            f"rows: expected a run within its budget of {budget:,} rows, got a plan of {known:,} "
            f"({seeds} seed(s) of: {told}; validation and test {judging:,}). No row was run. Raise --rows, or lower "
            "--steps, --batch, or the methods' settings."
        )
    second = _seconds_per_row(problem) if timed and problem.boxes else None
    found = [_estimate(problem, name, method, each, second) for name, method in methods.items()]
    speed = "" if second is None else f", {1e3 * second:.3g} ms a row"
    rows = count_rows(_first_batch(problem))
    head = f"Cost: one evaluation of the objective on {rows} rows of data runs {each:,} box rows{speed}."
    if not problem.boxes:
        head = f"Cost: without a black box rows are those of the data, {each:,} for each query."
    limit = "" if budget is None else f" of {budget:,} allowed"
    total = f"  in all {seeds} seed(s), validation and test included: {known:,} rows{limit}"
    return [head, *map(_line, found), total]


def rows_of_objective(problem: Problem) -> int | None:
    """Box rows of one evaluation of the objective on a training batch, found without running any.

    The boxes answer with zeros; None where the objective, or what the box says of its shapes, cannot do that.
    Without boxes they are the batch's own.
    """
    if not problem.boxes:
        return count_rows(_first_batch(problem))
    rows = 0

    def answer(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
        nonlocal rows
        first = arrays[0]
        leading = tuple(first.shape[: first.ndim - len(box.inputs[0].shape)])
        rows += int(torch.Size(leading).numel())
        found = [
            torch.zeros(*leading, *spec.shape, dtype=first.dtype, device=first.device) for spec in box.outputs
        ]
        return found[0] if len(found) == 1 else tuple(found)

    try:
        with torch.random.fork_rng(devices=()), torch.no_grad(), intercepted(answer):
            network = problem.network().to(problem.config.device)
            problem.objective(network, _first_batch(problem))
    except Exception:  # whatever the objective does with zeros; a true fault shows in the first step
        return None
    return rows


def _first_batch(problem: Problem) -> Any:  # noqa: ANN401
    device = problem.config.device
    return map_tensors(lambda tensor: tensor.to(device), problem.data.train(0, 0))


def _seconds_per_row(problem: Problem) -> float:
    """How long a box row takes, from one evaluation of the objective on a batch."""
    tally = Tally(list(problem.boxes.values()))
    with torch.random.fork_rng(devices=()), torch.no_grad():
        network = problem.network().to(problem.config.device)
        batch, before, started = _first_batch(problem), tally.copy(), perf_counter()
        problem.objective(network, batch)
        passed = perf_counter() - started
    return passed / max(1, tally.since(before).rows_asked)


def _estimate(problem: Problem, name: str, method: Method, each: int, second: float | None) -> Estimate:
    if method.cost is None:
        return Estimate(name, None, 0, None)
    cost, steps = method.cost(problem), problem.config.steps
    rows = int(each * (cost.first + cost.rows * steps))
    return Estimate(name, rows, int(cost.queries * steps), None if second is None else rows * second)


def _rows_of_judging(problem: Problem, each: int, methods: int) -> int:
    """Rows of the default validation and test; a problem's own are not known."""
    config, kind = problem.config, type(problem)
    per_row = each / count_rows(_first_batch(problem))
    validations = 1 + -(-config.steps // config.validate_every)
    rows = 0.0
    if kind.validate is Problem.validate and problem.data.validation is not None:
        rows += per_row * count_rows(problem.data.validation) * validations
    if kind.evaluate is Problem.evaluate and problem.data.test is not None:
        rows += per_row * count_rows(problem.data.test)
    return int(rows * methods)


def _line(found: Estimate) -> str:
    if found.rows is None:
        return f"  {found.method}: not known before the first step"
    queries = f", {found.queries:,} queries" if found.queries else ""
    took = "" if found.seconds is None or not found.rows else f", about {duration(found.seconds)} in the box"
    return f"  {found.method}: {found.rows:,} rows{queries}{took}"
