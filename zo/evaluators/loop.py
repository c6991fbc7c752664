"""`Loop`: move the weights, call the objective, move them back. The truth that the others answer to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.preserved import Snapshot, moved, moved_entry
from zo.objective import losses
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation


class Loop(Evaluator):
    """One query at a time; works for any network and objective."""

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        start = Snapshot(problem.network)
        rows = []
        for displaced in _displacements(problem.parameters, perturbation):
            try:
                with displaced:
                    rows.append(losses(problem.objective, problem.network, problem.batch, problem.rows))
            finally:
                start.restore()
        return torch.stack(rows)


def _displacements(
    parameters: Parameters, perturbation: Perturbation
) -> Iterator[AbstractContextManager[None]]:
    """For each query the block in which the network is as the query has it."""
    if not isinstance(perturbation, Coordinates):
        for steps in perturbation.steps:
            yield moved(parameters.tensors, parameters.split(steps))
        return
    which, local = parameters.locate(perturbation.indices)
    old: dict[int, Tensor] = {}  # one copy of a tensor for all the queries that move an entry of it
    for number, entry, step in zip(which.tolist(), local.tolist(), perturbation.steps, strict=True):
        tensor = parameters.tensors[number]
        if number not in old:
            old[number] = tensor.detach().clone()
        yield moved_entry(tensor, old[number], entry, step)
