"""`Gradient`: what a method has to offer to be trained with SGD; and the exact one, on sets or on all."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import zo
from tasks.image_classification.objective import Batch
from zo.objective import Objective


class Gradient(Protocol):
    """Fills `.grad`, as the gradients of `zo` do."""

    counts: zo.QueryCounts

    def backward(self, batch: Batch, /) -> Tensor:
        """Add this step's gradient to `.grad`; the mean loss of the batch."""
        ...

    def state_dict(self) -> Any:  # noqa: ANN401
        """For the checkpoint."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:  # noqa: ANN401
        """From the checkpoint."""
        ...


class Counted:
    """Steps done, and their way to the checkpoint and back: all that most gradients keep."""

    def __init__(self) -> None:
        self.counts = zo.QueryCounts()

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return asdict(self.counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from counts."""
        self.counts = zo.QueryCounts(**state)


class ExactGradient(Counted):
    """Autograd's gradient; with a sparsity, zero outside the step's set.

    The set is the one that `LossGradient` with the same sparsity and seed has at the same step.

    Args:
        network: as for `LossGradient`.
        objective: likewise.
        sparsity: which coordinates, by step; None for all.
        seed: of the draws of sets.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        sparsity: zo.estimators.Sparsity | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.sparsity = sparsity
        self.parameters = zo.estimators.Parameters(network)
        self._key = zo.estimators.Key(seed)

    def backward(self, batch: Batch) -> Tensor:
        """One backward pass; the mean loss of the batch."""
        with torch.enable_grad():
            loss = self.objective(self.network, batch).mean()
            slopes = torch.autograd.grad(loss, self.parameters.tensors, materialize_grads=True)
        for tensor, slope, inside in zip(self.parameters.tensors, slopes, self._masks(), strict=True):
            if inside is not None:
                slope = torch.where(inside.to(slope.device), slope, 0.0)
            tensor.grad = slope if tensor.grad is None else tensor.grad + slope
        self.counts.steps += 1
        return loss.detach()

    def _masks(self) -> list[Tensor | None]:
        """For each tensor where its gradient counts; None for everywhere."""
        parameters = self.parameters
        if self.sparsity is None:
            return [None] * len(parameters.tensors)
        inside = torch.zeros(parameters.size, dtype=torch.bool)
        inside[self.sparsity.draw(parameters, self._key.at(self.counts.steps))] = True
        return list(parameters.split(inside))
