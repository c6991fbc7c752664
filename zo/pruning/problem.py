"""What a score is made from: network, objective and batch, and the gradients that they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator
from zo.evaluators.evaluator import Evaluator
from zo.evaluators.state import Snapshot, moved
from zo.loss_gradient import LossGradient
from zo.objective import Closure, Objective, as_objective
from zo.parameters import Parameters


@dataclass
class PruningProblem:
    """The gradients that scores ask for; the network is left as it was, buffers, `.grad` and all.

    Attributes:
        network, objective, batch: as for `LossGradient`.
        parameters: those that are scored.
        evaluator, seed, chunk, max_dropped, process_group, first_alone: as for `LossGradient`.
        queries: spent so far, base evaluations not counted.
    """

    network: nn.Module
    objective: Objective | Closure
    batch: Any
    parameters: Parameters
    evaluator: str | Evaluator = "auto"
    seed: int = 0
    chunk: int | None = None
    max_dropped: float = 0.0
    process_group: dist.ProcessGroup | None = None
    first_alone: bool = False
    queries: int = 0

    def estimated(self, estimator: Estimator[Any], displacement: Tensor | None = None) -> Tensor:
        """The estimate of the gradient at theta + displacement, `(size,)`; all calls draw alike.

        Raises:
            FailedQueriesError: more than `max_dropped` of the queries failed.
        """
        steps = torch.zeros(self.parameters.size) if displacement is None else displacement
        with self._untouched(), moved(self.parameters.tensors, self.parameters.split(steps)):
            gradient = LossGradient(
                self.network,
                self.objective,
                estimator,
                parameters=self.parameters.names,
                evaluator=self.evaluator,
                seed=self.seed,  # and step 0, each time: the same directions, the same sets
                chunk=self.chunk,
                max_dropped=self.max_dropped,
                process_group=self.process_group,
                first_alone=self.first_alone,
            )
            gradient.backward(self.batch)
            # The next call goes the same way: no second check, and sums over the same chunks.
            self.evaluator, self.chunk = gradient.evaluator, gradient.chunk
            self.queries += gradient.counts.queries
            return torch.cat([_flat(tensor.grad) for tensor in self.parameters.tensors]).to(steps.device)

    def exact(self, *, hessian_product: bool = False) -> Tensor:
        """The gradient g by autograd, or H g, `(size,)`.

        Raises:
            ConfigurationError: autograd does not reach the weights.
        """
        tensors = self.parameters.tensors
        needed = [tensor.requires_grad for tensor in tensors]
        with self._untouched(), torch.enable_grad():
            try:
                for tensor in tensors:
                    tensor.requires_grad_(True)
                losses = as_objective(self.objective)(self.network, self.batch)
                if not losses.requires_grad:
                    raise ConfigurationError(
                        "pruning: expected an objective that autograd can differentiate, got losses without "
                        "a graph. Through a black box use 'zo-grasp' or 'zo-snip'."
                    )
                loss = losses[torch.isfinite(losses)].mean()
                first = torch.autograd.grad(
                    loss, tensors, create_graph=hessian_product, materialize_grads=True
                )
                if hessian_product:
                    # d/dtheta of g . stop(g) is H g.
                    product = torch.stack([(g * g.detach()).sum() for g in first]).sum()
                    if product.requires_grad:
                        first = torch.autograd.grad(product, tensors, materialize_grads=True)
                    else:  # a loss that is linear in the weights has no second derivatives, nor a graph
                        first = [torch.zeros_like(g) for g in first]
            finally:
                for tensor, value in zip(tensors, needed, strict=True):
                    tensor.requires_grad_(value)
        return torch.cat([_flat(g) for g in first])

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Put buffers, random state and `.grad` back when the block ends."""
        snapshot = Snapshot(self.network)
        grads = [tensor.grad for tensor in self.parameters.tensors]
        for tensor in self.parameters.tensors:
            tensor.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                snapshot.restore()
            for tensor, grad in zip(self.parameters.tensors, grads, strict=True):
                tensor.grad = grad


def _flat(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.detach().reshape(-1).cpu()
