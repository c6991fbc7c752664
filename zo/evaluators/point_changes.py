"""`PointChanges`: single changed entries of a parameter, one to a variant; and rows seen by variant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointChanges:
    """Changes of single entries of one tensor, at most one to a variant.

    Attributes:
        variants: `(changes,)`, which variant each belongs to; no number twice.
        entries: `(changes,)`, flat index into the tensor.
        steps: `(changes,)`, what is added to the entry.
    """

    variants: Tensor
    entries: Tensor
    steps: Tensor

    def to(self, tensor: Tensor) -> PointChanges:
        """The same changes on the device and in the dtype of the parameter."""
        device = tensor.device
        return PointChanges(
            self.variants.to(device), self.entries.to(device), self.steps.to(device, tensor.dtype)
        )

    def copies(self, tensor: Tensor, variants: int) -> Tensor:
        """A copy of the parameter for each variant, its own entry changed: `(variants, *shape)`."""
        copies = tensor.detach().expand(variants, *tensor.shape)
        copies = copies.clone(
            memory_format=torch.contiguous_format
        )  # a channels-last weight has no flat view
        copies.view(variants, -1)[self.variants, self.entries] += self.steps
        return copies


def places(entries: Tensor, shape: torch.Size) -> tuple[Tensor, ...]:
    """Flat indices `(changes,)` as indices of each axis; `torch.unravel_index` takes five times as long."""
    found = []
    for size in reversed(shape):
        found.append(entries % size)
        entries = entries // size
    return tuple(reversed(found))


def by_variant(tensor: Tensor, variants: int, axes: tuple[int, ...]) -> Tensor:
    """A view `(variants, *axes, rows, ...)` of `(variants * rows, ...)`; axes count after the split."""
    return tensor.unflatten(0, (variants, -1)).movedim(axes, tuple(range(1, 1 + len(axes))))
