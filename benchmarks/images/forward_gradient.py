"""forward-gradient: directional derivatives by forward-mode differentiation, times their directions.

Source: Baydin, Pearlmutter, Syme, Wood and Torr 2022, "Gradients without backpropagation": g = (grad l . v) v
with v standard normal, which is unbiased for grad l; here the mean over one or more v.
"""

from __future__ import annotations

import warnings
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

import zo
from benchmarks.images.counted import Counted
from zo.evaluators.state import Snapshot
from zo.objective import Objective

FORWARD = 211  # first word of the key's path for these draws


class ForwardGradient(Counted):
    """The mean of (grad l . v) v over some directions v, each of one forward pass with tangents.

    Unlike queries these need a network that can be differentiated, so they are not counted as queries. Their
    squared error is (d + 1) / directions times the squared gradient, d the number of parameters.

    Args:
        network: as for `LossGradient`.
        objective: likewise.
        directions: in a step.
        seed: of the directions.
    """

    def __init__(self, network: nn.Module, objective: Objective, directions: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.network, self.objective, self.directions = network, objective, directions
        self.parameters = zo.estimators.Parameters(network)
        self._key = zo.estimators.Key(seed)

    @torch.no_grad()
    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Directional derivatives only, no backward pass; the mean loss of the batch."""
        parameters, key = self.parameters, self._key.at(self.counts.steps)
        total = torch.zeros(parameters.size, dtype=parameters.dtype)
        before = Snapshot(self.network)
        loss = torch.zeros(())
        for i in range(self.directions):
            if i:  # running statistics move once a step
                before.restore()
            direction = torch.randn(
                parameters.size, generator=key.generator(FORWARD, i), dtype=parameters.dtype
            )
            loss, slope = self._derivative(batch, direction)
            total += slope * direction
        parameters.add_to_grad(total / self.directions)
        self.counts.steps += 1
        return loss

    def _derivative(self, batch: tuple[Tensor, Tensor], direction: Tensor) -> tuple[Tensor, float]:
        """The loss and its derivative along a flat direction."""
        moved = {}
        with warnings.catch_warnings():
            # PyTorch's rules for forward mode are scripted when they are first used, and that is deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            import_module("torch._decomp.decompositions_for_jvp")
        # Not torch.func.jvp, which refuses forwards that write to buffers, as running statistics do.
        with forward_ad.dual_level():
            pieces = self.parameters.split(direction)
            for name, tensor, piece in zip(
                self.parameters.names, self.parameters.tensors, pieces, strict=True
            ):
                tangent = piece.to(tensor.device, tensor.dtype)
                moved[f"network.{name}"] = forward_ad.make_dual(tensor.detach(), tangent)
            # A module whose forward is the objective, so that names lead to the parameters inside it.
            wrapped = _Wrapped(self.network, self.objective)
            loss, slope = forward_ad.unpack_dual(functional_call(wrapped, moved, (batch,)).mean())
        return loss.detach(), 0.0 if slope is None else float(slope)


class _Wrapped(nn.Module):
    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return self.objective(self.network, batch)
