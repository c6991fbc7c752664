"""What queries must leave as they found it: buffers and random state, and weights while they are moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """Buffers of a network and the state of torch's generators, to go back to."""

    def __init__(self, network: nn.Module) -> None:
        # The tensors themselves too: a forward may put another one, of another shape, in a buffer's place.
        self._buffers = [
            (
                module,
                dict(module._buffers.items()),
                {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None},
            )
            for module in network.modules()
        ]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Put buffers and generators back."""
        for module, buffers, values in self._buffers:
            for name, value in values.items():
                kept = buffers[name]
                assert kept is not None  # it has a value
                kept.copy_(value)
            if isinstance(module._buffers, dict):  # in a ScriptModule no forward can replace one
                module._buffers.clear()
                module._buffers.update(buffers)
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


@contextmanager
def moved_entry(tensor: Tensor, old: Tensor, entry: int, step: Tensor) -> Iterator[None]:
    """Add a step to the entry at a flat index for the duration of the block; `old` is a copy."""
    # Not by a flat view: it needs contiguous memory.
    place = tuple(int(index) for index in np.unravel_index(entry, tensor.shape))
    version = tensor._version
    try:
        tensor.data[place] += step.to(tensor.device, tensor.dtype)
        yield
    finally:
        if tensor._version == version:
            tensor.data[place] = old[place]
        else:  # a forward wrote more of it, as an embedding with max_norm does
            tensor.data.copy_(old)
