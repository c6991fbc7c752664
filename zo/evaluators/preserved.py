"""What queries must leave as they found it: buffers and random state, and weights while they are moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshot:
    """Buffers of a network and the state of torch's generators, to go back to."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Put buffers and generators back."""
        for name, buffer in self._network.named_buffers():
            buffer.copy_(self._buffers[name])
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


@contextmanager
def moved(tensors: tuple[Tensor, ...], steps: list[Tensor]) -> Iterator[None]:
    """Add steps to tensors for the duration of the block.

    The old values are copied back, not the steps subtracted: w + mu - mu is not w in float32.
    """
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        for tensor, step in zip(tensors, steps, strict=True):
            tensor.data.add_(step.to(tensor.device, tensor.dtype))
        yield
    finally:
        for tensor, old in zip(tensors, kept, strict=True):
            tensor.data.copy_(old)
