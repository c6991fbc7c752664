"""`Loop`: move the weights, call the objective, move them back. The truth that the others answer to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from zo.batches import sent
from zo.evaluators.evaluator import Changes, Evaluator, Step
from zo.evaluators.state import Snapshot, moved, moved_entry
from zo.objective import losses
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation


@dataclass(frozen=True)
class Loop(Evaluator):
    """Evaluates one query at a time; it works for any network and objective."""

    def begin(self, step: Step, base: Tensor) -> Changes:
        """Keep what each query must leave as it was; see `Evaluator.begin`."""
        start = step.snapshot()
        return lambda perturbation: loop_losses(step, perturbation, start) - base


def loop_losses(step: Step, perturbation: Perturbation, start: Snapshot) -> Tensor:
    """Losses `(queries, rows)`, one variant after another; `start` is restored after each."""
    rows = []
    for displaced in _displacements(step.parameters, perturbation):
        try:
            with displaced:
                rows.append(losses(step.objective, step.network, step.batch, step.rows))
        finally:
            start.restore()
    return torch.stack(rows)


def _displacements(
    parameters: Parameters, perturbation: Perturbation
) -> Iterator[AbstractContextManager[None]]:
    """A block for each query in which the network is as the query has it."""
    if not isinstance(perturbation, Coordinates):
        for steps in perturbation.steps:
            steps = sent(steps, parameters.tensors[0].device)
            yield moved(parameters.tensors, parameters.split(steps))
        return
    which, local = parameters.locate(perturbation.indices)
    old: dict[int, Tensor] = {}  # one copy of a tensor for all the queries that move an entry of it
    for number, entry, length in zip(which.tolist(), local.tolist(), perturbation.steps, strict=True):
        tensor = parameters.tensors[number]
        if number not in old:
            old[number] = tensor.detach().clone()
        yield moved_entry(tensor, old[number], entry, length)
