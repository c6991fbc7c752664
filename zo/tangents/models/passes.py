"""`Passes`: a small network whose passes are written out, so that they cost only their multiplications."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

N = TypeVar("N", bound=nn.Module)
Tape = tuple[Any, ...]
"""What a pass keeps for the way back."""
Slopes = Mapping[str, Tensor]
"""By the name of a weight, where the derivative by it is written."""


class Passes(nn.Module, ABC):
    """A network of fixed shape with its forward pass and the ways back to inputs and weights.

    On networks of some thousand weights autograd takes several times as long as the multiplications. A row of
    inputs or outputs is a vector; `arranged` and `arranged_cotangent` bring rows into the layout that the
    passes have, `answers` and `cotangent_rows` bring them back.
    """

    @abstractmethod
    def arranged(self, z: Tensor, others: Tensor) -> Tensor:
        """Rows of inputs `(rows, size_in)` and others `(rows, size)`, in the layout of the passes."""

    @abstractmethod
    def passed(self, x: Tensor) -> tuple[Tensor, Tape]:
        """Return the outputs for arranged inputs, and the record for the backward pass."""

    @abstractmethod
    def back(self, tape: Tape, cotangent: Tensor, slopes: Slopes | None = None) -> Tensor | None:
        """Run the backward pass from outputs to the inputs, or to the weights alone.

        Args:
            tape: the record of `passed`.
            cotangent: the gradient of its outputs.
            slopes: for each weight the tensor that its derivative is written to; None for the derivative by
                the inputs.

        Returns:
            The derivative by the inputs, arranged, if it was asked for.
        """

    @abstractmethod
    def apart(self, tape: Tape, counts: Sequence[int]) -> list[Tape]:
        """Split the record of several calls' pass by their counts of rows, for `pushed` and cotangents."""

    @abstractmethod
    def pushed(self, tape: Tape, change: Tensor) -> Tensor:
        """Return the change of outputs, to first order, for a change of arranged inputs."""

    @abstractmethod
    def answers(self, y: Tensor) -> Tensor:
        """Outputs of `passed` as rows `(rows, size_out)`."""

    @abstractmethod
    def arranged_cotangent(self, cotangent: Tensor) -> Tensor:
        """The transpose of `answers`."""

    @abstractmethod
    def cotangent_rows(self, cotangent: Tensor) -> Tensor:
        """The transpose of `arranged`: `(rows, size_in + size of others)`."""

    def forward(self, z: Tensor, others: Tensor) -> Tensor:
        """Rows to rows, with a graph of the inputs that is one node; it can be gone back through once."""
        return _Passed.apply(z, others, self)


class _Passed(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, others: Tensor, network: Passes) -> Tensor:
        y, tensors = network.passed(network.arranged(z, others))
        ctx.network, ctx.size = network, z.shape[1]
        if z.requires_grad or others.requires_grad:
            ctx.tape = tensors
        return network.answers(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        cotangents = ctx.network.back(ctx.tape, ctx.network.arranged_cotangent(cotangent))
        of_z, of_others = input_cotangents(ctx.network, cotangents, ctx.size)
        return of_z, of_others, None


def input_cotangents(network: Passes, arrived: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Return the cotangents of the inputs as rows: of the first `size` numbers, and of the others."""
    assert arrived is not None
    rows = network.cotangent_rows(arrived)
    return rows[:, :size], rows[:, size:]


class FlatAdam(Generic[N]):
    """Adam (Kingma and Ba 2015) for all weights of a network at once, as one vector.

    Args:
        network: the network whose weights become parts of that vector.
        rate: the learning rate of Adam.

    Attributes:
        network: the argument of that name.
        slopes: the tensors, by name, that derivatives by the weights are written to before `step`.
    """

    def __init__(self, network: N, rate: float) -> None:
        self.network, self._rate = network, rate
        self._steps = 0
        first = next(network.parameters())
        size = sum(weight.numel() for weight in network.parameters())
        self._mean, self._square = torch.zeros(2, size, dtype=first.dtype, device=first.device)
        self.slopes: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Make the weights parts of one vector: they may have been copied, or read, since the last lesson.

        A kernel along one axis, `(out, in, taps)`, lies there with its taps before the inputs, as `along`
        takes it.
        """
        by_name = dict(self.network.named_parameters())
        parts = [
            weight.detach().movedim(-1, 1) if weight.ndim == 3 else weight.detach()
            for weight in by_name.values()
        ]
        self._weights = torch.cat([part.reshape(-1) for part in parts])
        self._slopes = torch.zeros_like(self._weights)
        self._mean, self._square = self._mean.to(self._weights), self._square.to(self._weights)
        counts = [part.numel() for part in parts]
        for vector in (self._weights, self._slopes):
            for (name, weight), part, piece in zip(by_name.items(), parts, vector.split(counts), strict=True):
                view = piece.view(part.shape)
                view = view.movedim(1, -1) if weight.ndim == 3 else view
                if vector is self._weights:
                    weight.data = view
                else:
                    self.slopes[name] = view

    def step(self) -> None:
        """Move the weights by what `slopes` hold."""
        self._steps += 1
        self._mean.lerp_(self._slopes, 1 - BETAS[0])
        self._square.mul_(BETAS[1]).addcmul_(self._slopes, self._slopes, value=1 - BETAS[1])
        corrections = (1 - beta**self._steps for beta in BETAS)
        of_mean, of_square = corrections
        size = self._square.sqrt().mul_(of_square**-0.5).add_(SMALL)
        self._weights.addcdiv_(self._mean, size, value=-self._rate / of_mean)

    def state_dict(self) -> dict[str, Any]:
        """Both running means, and how many steps there were."""
        return {"mean": self._mean.clone(), "square": self._square.clone(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._steps = state["steps"]
        self._mean, self._square = state["mean"].clone(), state["square"].clone()


BETAS, SMALL = (0.9, 0.999), 1e-8  # of Adam, as its authors have them


def bent_back(cotangent: Tensor, before: Tensor) -> Tensor:
    """The way back through `silu`."""
    return torch.ops.aten.silu_backward(cotangent, before)
