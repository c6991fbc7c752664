"""`FeatureReuse`: `loop` from the changed layer on; what lies before it is the base's."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.batches import map_tensors, tensors
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.reading import Reading
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.state import Snapshot, moved_entry
from zo.objective import comparable, losses
from zo.perturbation import Coordinates, Perturbation


class FeatureReuse(Evaluator):
    """One query at a time on the recording of `Difference`: the functions that depend on the weight run anew.

    The feature reuse of Chen et al. 2024, "DeepZero", section 4, for any network that can be read, function
    by function. Losses are subtracted, so small differences are rounded as in `loop`. Where activations
    are far larger than caches, as in early layers on a CPU, it can beat `Difference`, which reads base and
    change wherever a forward evaluation reads values alone.

    It serves coordinates; directions go to `stacked`.

    Args:
        difference: whose recording of a step it uses.
    """

    def __init__(self, difference: Difference) -> None:
        self.difference = difference

    def losses(self, problem: Problem, perturbation: Perturbation) -> Tensor:
        """See `Evaluator.losses`; costs an evaluation of the base."""
        start = Snapshot(problem.network)
        try:
            base = losses(problem.objective, problem.network, problem.batch, problem.rows)
        finally:
            start.restore()
        return base + self.changes(problem, perturbation, base)

    def changes(self, problem: Problem, perturbation: Perturbation, base: Tensor) -> Tensor:
        """See `Evaluator.changes`.

        Raises:
            NotReadable: as `Difference.changes`.
        """
        if not isinstance(perturbation, Coordinates):
            return self.difference.changes(problem, perturbation, base)
        reading = self.difference.reading(problem, base)
        which, local = problem.parameters.locate(perturbation.indices)
        found = base.new_empty(len(perturbation), len(base))
        with comparable(problem.network):
            for number in which.unique().tolist():
                kept = reading.nodes[number].call.output
                value = kept.clone()
                for query in torch.nonzero(which == number).flatten().tolist():
                    with moved_entry(value, kept, int(local[query]), perturbation.steps[query]):
                        found[query] = _changed(reading, number, value, base)
        return found


def _changed(reading: Reading, number: int, value: Tensor, base: Tensor) -> Tensor:
    """Changes of the losses, `(rows,)`, from the recording's: its functions may round unlike the base's."""
    result = reading.values(number, value)
    if reading.tail is None:
        assert reading.losses is not None
        return result - reading.losses
    left = list(tensors(reading.tail.output))
    moved = map_tensors(lambda tensor: _off(tensor, left.pop(0))[None], result)
    return reading.tail.changes(moved, base)[0]


def _off(tensor: Tensor, base: Tensor) -> Tensor:
    """What a tensor is off the base's; whole numbers and masks hang on no weight."""
    return tensor - base if tensor.is_floating_point() else torch.zeros_like(tensor)
