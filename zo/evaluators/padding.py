"""Padding: the row of an embedding that its lookups pass no gradient to, as moved weights must show none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zo.errors import ParameterError
from zo.parameters import Parameters


@contextmanager
def kept_padding(parameters: Parameters) -> Iterator[None]:
    """A block in which lookups of a padding word give its row as it is now, wherever the weight is moved.

    So nothing is measured of the lookups in that row, to which autograd passes no gradient. What another
    layer makes of the weight, as a tied head does, is measured.
    """
    hooks = []
    layers = {owner.module for owners in parameters.owners for owner in owners}
    for layer in layers:
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            row = layer.weight.detach()[layer.padding_idx].clone()
            hooks.append(layer.register_forward_hook(_Padded(layer.padding_idx, row)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Padded:
    """A forward hook of an embedding."""

    def __init__(self, word: int, row: Tensor) -> None:
        self.word, self.row = word, row

    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...], features: Tensor) -> Tensor:
        return torch.where((arguments[0] == self.word).unsqueeze(-1), self.row.to(features), features)


@contextmanager
def read_by_layers(parameters: Parameters) -> Iterator[None]:
    """A block that refuses to have an embedding with a padding word read by hand as well.

    Raises:
        ParameterError: It is. Autograd gives the padding row the gradient of that reading, and here it gets
            none, as all other embeddings' do.
    """
    padded = {
        id(tensor): name
        for name, tensor, owners in zip(parameters.names, parameters.tensors, parameters.owners, strict=True)
        if all(isinstance(owner.module, nn.Embedding) for owner in owners)
        and any(getattr(owner.module, "padding_idx", None) is not None for owner in owners)
    }
    if not padded:
        yield
        return
    reads = _Reads(padded)
    with reads:
        yield
    if reads.name is not None:
        raise ParameterError(
            f"parameter {reads.name!r}: expected an embedding with a padding_idx to be read by its layer "
            "alone, got it read by hand as well. Tie a layer to it, head.weight = embedding.weight, or leave "
            "padding_idx out."
        )


class _Reads(TorchFunctionMode):
    """Notes which of some weights any function but a lookup takes."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names, self.name = names, None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.name is None and isinstance(result, Tensor) and func is not nn.functional.embedding:
            for part in (*args, *(kwargs or {}).values()):
                for tensor in part if isinstance(part, list | tuple) else (part,):
                    if isinstance(tensor, Tensor) and id(tensor) in self._names:
                        self.name = self._names[id(tensor)]
        return result
