"""`Parameters`: a flat view, tensor by tensor, of the parameters of a network that are perturbed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from zo.errors import ParameterError


@dataclass(frozen=True)
class Owner:
    """A module that holds a parameter, under its own name for it; a tied one has several owners."""

    module_name: str
    module: nn.Module
    local_name: str


class Parameters:
    """The chosen parameters of a network, end to end as one vector of `size` numbers.

    Args:
        network: its parameters are read, in the order of `named_parameters`; tied ones count once.
        names: names or patterns such as `"*.weight"`; None for all that require a gradient.

    Attributes:
        names, tensors, starts: name, tensor and first flat index of each.
        size: how many numbers in all.

    Raises:
        ParameterError: nothing chosen, an unknown name, or a dtype that is no float32 or float64.
    """

    def __init__(self, network: nn.Module, names: Iterable[str] | None = None) -> None:
        chosen = _choose(network, names)
        if not chosen:
            raise ParameterError(
                f"{type(network).__name__}: expected at least one parameter to perturb, found none. "
                "Parameters with requires_grad=False are left out; give their names to choose them."
            )
        for name, tensor in chosen.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ParameterError(
                    f"Parameter {name!r}: expected float32 or float64, got {str(tensor.dtype)[6:]}. "
                    "A step of mu is lost in coarser numbers: keep the weights in float32."
                )
        self.names = tuple(chosen)
        self.tensors = tuple(chosen.values())
        self.starts: list[int] = []
        self.size = 0
        for tensor in self.tensors:
            self.starts.append(self.size)
            self.size += tensor.numel()
        self.owners = tuple(_owners(network, tensor) for tensor in self.tensors)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the tensors."""
        wide = any(tensor.dtype == torch.float64 for tensor in self.tensors)
        return torch.float64 if wide else torch.float32

    def flat(self) -> Tensor:
        """A copy of the values, `(size,)`, on the CPU."""
        return torch.cat([tensor.detach().reshape(-1).to("cpu", self.dtype) for tensor in self.tensors])

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """For flat indices `(n,)`: the number of each one's tensor, and the index inside it."""
        starts = torch.tensor(self.starts)
        which = torch.searchsorted(starts, indices, right=True) - 1
        return which, indices - starts[which]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of `(..., size)` in the tensors' shapes: `(..., *shape)` each."""
        pieces = flat.split([tensor.numel() for tensor in self.tensors], dim=-1)
        leading = flat.shape[:-1]
        return [piece.reshape(*leading, *t.shape) for piece, t in zip(pieces, self.tensors, strict=True)]

    def add_to_grad(self, gradient: Tensor) -> None:
        """Add a flat gradient `(size,)` to the tensors' `.grad`, as autograd would."""
        for tensor, piece in zip(self.tensors, self.split(gradient), strict=True):
            piece = piece.to(tensor.device, tensor.dtype)
            tensor.grad = piece.clone() if tensor.grad is None else tensor.grad + piece


def _choose(network: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    every = dict(network.named_parameters())
    if names is None:
        return {name: tensor for name, tensor in every.items() if tensor.requires_grad}
    patterns = [names] if isinstance(names, str) else list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in every):
            near = difflib.get_close_matches(pattern, every, n=3, cutoff=0.3)
            raise ParameterError(
                f"parameters: expected names or patterns of {type(network).__name__}'s parameters, "
                f"got {pattern!r}, which matches none. Near: {', '.join(near) or ', '.join(every)}."
            )
    return {n: tensor for n, tensor in every.items() if any(fnmatchcase(n, p) for p in patterns)}


def _owners(network: nn.Module, tensor: Tensor) -> tuple[Owner, ...]:
    return tuple(
        Owner(module_name, module, local_name)
        for module_name, module in network.named_modules()
        for local_name, own in module.named_parameters(recurse=False)
        if own is tensor
    )
