"""pattern-search: move one weight by a radius, keep what lowers the loss, halve the radius when nothing does.

Source: Chiang et al. 2023, "Loss landscapes are all you need", and the authors' code; DeepZero's baseline
that needs no computational graph.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks.images.counted import Counted
from zo.evaluators.evaluator import Step
from zo.evaluators.loop import Loop
from zo.evaluators.state import Snapshot
from zo.objective import Objective, losses
from zo.perturbation import Coordinates

PATTERN = 214  # first word of the key's path for these draws


class PatternSearch(Counted):
    """Tries weights in random order, up and down by the radius, and takes changes that lower the loss.

    The published code compares on one batch of all images; here a step has its own batch, on which it makes
    `tries` tries and keeps every change that lowers the mean loss of that batch. The radius is halved after
    as many failures in a row as there are changes, two for each parameter. It moves the weights itself and
    leaves `.grad` alone: no learning rate, no momentum, no decay.

    Args:
        network: as for `LossGradient`.
        objective: likewise.
        tries: queries in a step.
        radius: of the first tries, in units of the weights; the published one is 1.
        seed: of the order.
    """

    def __init__(
        self, network: nn.Module, objective: Objective, tries: int, radius: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        self.network, self.objective, self.tries, self.radius = network, objective, tries, radius
        self.parameters = zo.estimators.Parameters(network)
        self.accepted = self.failures = 0
        self._key = zo.estimators.Key(seed)

    @torch.no_grad()
    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Make the tries of a step, and return the mean loss of the batch before them."""
        before = Snapshot(self.network)
        base = losses(self.objective, self.network, batch, len(batch[1]))
        after = Snapshot(self.network, {})  # the weights go on from where the tries have moved them
        before.restore()  # tries start from the buffers that the base started from
        problem = Step(self.network, self.parameters, self.objective, batch, len(base))
        lowest = float(base.double().mean())
        try:
            for change in self._order():
                lowest = self._try(problem, change, lowest)
        finally:
            after.restore()
        self.counts.steps += 1
        self.counts.queries += self.tries
        return base.mean()

    def state_dict(self) -> dict[str, Any]:
        """Counts, radius, and how long nothing has helped."""
        search = {"radius": self.radius, "accepted": self.accepted, "failures": self.failures}
        return {"counts": asdict(self.counts), **search}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.counts = zo.loss_gradient.QueryCounts(**state["counts"])
        self.radius, self.accepted, self.failures = state["radius"], state["accepted"], state["failures"]

    def _order(self) -> list[int]:
        """The step's changes: 2 i raises weight i, 2 i + 1 lowers it; every pass has an order of its own."""
        changes, drawn = 2 * self.parameters.size, []
        for number in range(-(-self.tries // changes)):
            generator = self._key.at(self.counts.steps).generator(PATTERN, number)
            drawn += torch.randperm(changes, generator=generator).tolist()
        return drawn[: self.tries]

    def _try(self, problem: Step, change: int, lowest: float) -> float:
        """Make a change if it lowers the loss, and return the loss afterwards."""
        index = torch.tensor([change // 2])
        step = self.parameters.steps(index, self.radius if change % 2 == 0 else -self.radius)
        nothing = torch.zeros(problem.rows)  # so that the change of the losses is the losses
        loss = float(Loop().changes(problem, Coordinates(index, step), nothing).double().mean())
        if loss < lowest:  # never where it is NaN
            which, entry = self.parameters.locate(index)
            tensor = self.parameters.tensors[int(which)]
            tensor[torch.unravel_index(entry, tensor.shape)] += step.to(tensor.device, tensor.dtype)
            self.accepted, self.failures = self.accepted + 1, 0
            return loss
        self.failures += 1
        if self.failures >= 2 * self.parameters.size:
            self.radius, self.failures = self.radius / 2, 0
        return lowest
