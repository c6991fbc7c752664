"""`Loop`: move the weights, call the objective, move them back. The truth that the others answer to."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.preserved import Snapshot, moved
from zo.objective import losses
from zo.parameters import Parameters
from zo.perturbation import Coordinates, Perturbation


class Loop(Evaluator):
    """One query at a time; works for any network and objective."""

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`."""
        start = Snapshot(problem.network)
        rows = []
        for query in range(len(perturbation)):
            tensors, steps = _displacement(problem.parameters, perturbation, query)
            with moved(tensors, steps):
                rows.append(losses(problem.objective, problem.network, problem.batch, problem.rows))
            start.restore()
        return torch.stack(rows)


def _displacement(
    parameters: Parameters, perturbation: Perturbation, query: int
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The tensors that a query moves, and by how much."""
    if not isinstance(perturbation, Coordinates):
        return parameters.tensors, parameters.split(perturbation.steps[query])
    which, local = parameters.locate(perturbation.indices[query : query + 1])
    tensor = parameters.tensors[int(which)]
    step = torch.zeros(tensor.numel(), dtype=perturbation.steps.dtype)
    step[local] = perturbation.steps[query]
    return (tensor,), [step.view(tensor.shape)]
