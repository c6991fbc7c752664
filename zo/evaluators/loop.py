"""`Loop`: move the weights, call the objective, move them back. The truth that the others answer to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from zo.batches import sent
from zo.evaluators.evaluator import Changes, Evaluator, Step
from zo.evaluators.generators import put_back
from zo.evaluators.padding import kept_padding
from zo.evaluators.state import Snapshot, moved, moved_entry
from zo.objective import losses
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation

Displaced: TypeAlias = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Loop(Evaluator):
    """Evaluates one query at a time; it works for any network and objective."""

    def begin(self, step: Step, base: Tensor) -> Changes:
        """Keep what each query must leave as it was; see `Evaluator.begin`."""
        start = step.snapshot()
        return lambda perturbation: loop_losses(step, perturbation, start) - base


def loop_losses(step: Step, perturbation: Perturbation, start: Snapshot) -> Tensor:
    """Losses `(queries, rows)`, one variant after another; `start` is restored after each."""
    return torch.stack(
        [_losses(step, start, displaced) for displaced in _displacements(step.parameters, perturbation)]
    )


def base_losses(step: Step, start: Snapshot) -> Tensor:
    """Losses `(rows,)` of the network as it is; `start` is restored behind it, but for the generators."""
    return _losses(step, start, nullcontext, drawn=True)


def unmoved_losses(step: Step, start: Snapshot) -> Tensor:
    """Losses `(rows,)` of the network as it is; `start` and the generators are restored behind it."""
    return _losses(step, start, nullcontext)


def _losses(step: Step, start: Snapshot, displaced: Displaced, drawn: bool = False) -> Tensor:
    """Losses `(rows,)` of a query with the draws of the base; `start` is restored after it.

    With `drawn` the generators are left as the evaluation leaves them.
    """
    if step.draws is not None and not drawn:
        return step.draws.alone(lambda: _losses(step, start, displaced, drawn=True))
    try:
        with kept_padding(step.parameters), displaced():
            return losses(step.objective, step.network, step.batch, step.rows)
    finally:
        start.restore(generators=False)
        if not drawn:
            put_back(start.generators)


def _displacements(parameters: Parameters, perturbation: Perturbation) -> Iterator[Displaced]:
    """Yield for each query a function that makes a block in which the network has the query's weights."""
    if not isinstance(perturbation, Coordinates):
        for steps in perturbation.steps:
            steps = sent(steps, parameters.tensors[0].device)
            yield partial(moved, parameters.tensors, parameters.split(steps))
        return
    which, local = parameters.locate(perturbation.indices)
    old: dict[int, Tensor] = {}  # one copy of a tensor for all the queries that move an entry of it
    for number, entry, length in zip(which.tolist(), local.tolist(), perturbation.steps, strict=True):
        tensor = parameters.tensors[number]
        if number not in old:
            old[number] = tensor.detach().clone()
        yield partial(moved_entry, tensor, old[number], entry, length)
