"""State that a network keeps for each row of a batch: hidden states and queues, but not statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from zo.batches import map_tensors, tensors

_OF_TORCH = set(vars(nn.Module()))  # what every module has: parameters, buffers, children, hooks


class Entry(NamedTuple):
    """A buffer, or another attribute, of a module.

    Attributes:
        module: the module's name in the network.
        name: its own name.
        buffer: whether it is a buffer.
    """

    module: str
    name: str
    buffer: bool


State: TypeAlias = dict[Entry, Any]


def state_of(network: nn.Module) -> State:
    """Copies of all that a network holds in tensors beside its parameters: buffers, and attributes."""
    state: State = {}
    for path, module in network.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                state[Entry(path, name, True)] = buffer
        for name, value in vars(module).items():
            if name not in _OF_TORCH and not isinstance(module, torch.jit.ScriptModule):
                state[Entry(path, name, False)] = value
    return {
        entry: map_tensors(_copy, value)
        for entry, value in state.items()
        if next(tensors(value), None) is not None
    }


def entries_with_rows(
    after: State, turned: State, again: State, same: Callable[[Tensor, Tensor], bool]
) -> list[Entry]:
    """Find the entries that hold rows in order: they differ after a batch whose rows have changed places.

    A mean over rows is the same behind both, to rounding.

    Args:
        after: the state behind a batch.
        turned: the state behind the same rows in other places, from the same beginning.
        again: the state behind the first batch once more: what differs there is drawn.
        same: whether two tensors of one shape are the same to rounding.
    """

    def alike(one: Any, other: Any) -> bool:
        pairs = list(tensors(one)), list(tensors(other))
        if [part.shape for part in pairs[0]] != [part.shape for part in pairs[1]]:
            return False
        return all(same(a, b) for a, b in zip(*pairs, strict=True))

    return [
        entry
        for entry, value in after.items()
        if not alike(value, turned.get(entry)) and alike(value, again.get(entry))
    ]


def put(network: nn.Module, state: State) -> None:
    """Put copies of entries into a network."""
    modules = dict(network.named_modules())
    for entry, value in state.items():
        module = modules[entry.module]
        if isinstance(module, torch.jit.ScriptModule):  # in which no tensor takes another's place
            buffer = module._buffers[entry.name]
            assert buffer is not None  # it had a value
            buffer.copy_(value)
        else:
            attributes = module._buffers if entry.buffer else vars(module)
            attributes[entry.name] = map_tensors(_copy, value)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()
