"""State that a query must not change: buffers, generators, attributes, and weights; kept, and put back."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zo.batches import bits, memory_of, sent
from zo.evaluators.generators import put_back, states
from zo.evaluators.versions import put_version, renew, version_of

_DATA = (
    *(int, float, complex, str, bytes, tuple, list, deque, dict, set, Tensor, np.ndarray, np.generic),
    type(None),
)
_ATOMS = {int, float, complex, bool, str, bytes, type(None)}
_SEQUENCES, _MAPPINGS = (list, deque), (dict, OrderedDict, defaultdict, Counter, set)
_LITTLE = 20_000  # numbers and items: so few are put back after each query, written to or not
_OF_TORCH = set(vars(nn.Module()))  # what every module has: parameters, buffers, children, hooks


class Copied(NamedTuple):
    """Something that may be written to in place, and a copy of it.

    Attributes:
        value: The thing itself.
        copy: A copy of its contents.
    """

    value: Any
    copy: Any


Copies: TypeAlias = dict[int, Copied]  # by the identity of the value


@dataclass(frozen=True)
class Inside:
    """The parts of a network's attributes that may be written to in place.

    Attributes:
        written: The objects that a forward wrote to.
        left_alone: Lists and dicts that it did not write to; additions to them are taken out again.
    """

    written: Copies
    left_alone: Copies = field(default_factory=dict)


class Snapshot:
    """Buffers, parameters and attributes of a network and the state of torch's generators, to go back to.

    Attributes are for instance a counter, kept features or a list of them. Writes inside of lists, dicts,
    sets, tensors and arrays, and to generators of torch, are undone. Writes inside of other objects stay.

    Args:
        network: The network whose state is kept.
        parameters: The parameters by name whose values are kept; None for all of them.
        inside: The contents of attributes to keep, as `inside` of a snapshot of the same state gives them;
            None for all, which takes long for large contents, such as a vocabulary or a replay buffer.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, Tensor] | None = None,
        inside: Inside | None = None,
    ) -> None:
        # The tensors themselves too: a forward may put another one, of another shape, in a buffer's place.
        self._buffers = [
            (
                module,
                dict(module._buffers.items()),
                {
                    name: _stored(buffer).clone()
                    for name, buffer in module._buffers.items()
                    if buffer is not None
                },
            )
            for module in network.modules()
        ]
        self._attributes = [
            (module, {name: value for name, value in vars(module).items() if name not in _OF_TORCH})
            for module in network.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        if inside is None:
            inside = Inside(
                _inside(value for _, attributes in self._attributes for value in attributes.values())
            )
        self._inside, self._left_alone = inside.written, inside.left_alone
        tensors = {key: value for key, (value, _) in self._inside.items() if isinstance(value, Tensor)}
        self._marks = {key: _mark(value) for key, value in tensors.items()}
        weights = dict(network.named_parameters()) if parameters is None else parameters
        self._parameters = {
            n: (tensor, _stored(tensor.detach()).clone(), _mark(tensor)) for n, tensor in weights.items()
        }
        self.generators = states()

    def restore(self, *, generators: bool = True) -> None:
        """Put buffers, parameters, attributes and generators back.

        Args:
            generators: False to leave torch's own as they are.
        """
        for module, buffers, values in self._buffers:
            for name, value in values.items():
                kept = buffers[name]
                assert kept is not None  # it has a value
                _stored(kept).copy_(value)
            if isinstance(module._buffers, dict):  # in a ScriptModule no forward can replace one
                module._buffers.clear()
                module._buffers.update(buffers)
        for module, attributes in self._attributes:
            current = vars(module)
            for name in [name for name in current if name not in _OF_TORCH and name not in attributes]:
                if isinstance(current[name], _DATA):
                    del current[name]
            # What is no data stays, such as a solver that the first forward makes.
            current.update(
                {name: old for name, old in attributes.items() if isinstance(current.get(name), _DATA)}
            )
        for value, kept in self._inside.values():
            _put_back(value, kept)
        for value, kept in self._left_alone.values():
            if len(value) != len(kept):
                _put_back(value, kept)
        for tensor, value, (version, _) in self._parameters.values():
            _stored(tensor.data).copy_(value)
            if version_of(tensor) != version:  # it was written to: no other version is of these values
                torch.autograd.graph.increment_version(tensor)
        if generators:
            put_back(self.generators)

    def written(self, memories: Collection[int] = ()) -> dict[str, Tensor]:
        """The parameters, by name, that were written to since, those included whose values it left.

        An average of weights that starts as a copy of them is left as it is by the base, and not by queries.

        Args:
            memories: The memories that were written to, by `MemoryPeak.written`: `.data` leaves no mark.
        """
        return {
            name: tensor
            for name, (tensor, value, mark) in self._parameters.items()
            if _mark(tensor) != mark or mark[1] in memories or _differs(tensor, value)
        }

    def different(self) -> list[str]:
        """The names of the parameters whose values are others now than when the snapshot was taken."""
        return [name for name, (tensor, value, _) in self._parameters.items() if _differs(tensor, value)]

    def inside(self, memories: Collection[int] = ()) -> Inside:
        """Return the contents of attributes, with copies: the written ones, and lists and dicts left alone.

        A query that adds to one of the second kind, as to masks by their size, is put back too. If it is
        little, all of it is of the first kind: a running maximum is not written to by each forward.

        Args:
            memories: Memories that were written to, see `written`.
        """
        if sum(100 + _size(value) for value, _ in self._inside.values()) <= _LITTLE:
            return Inside(self._inside)
        written = {
            key: pair
            for key, pair in self._inside.items()
            if (
                key in self._marks
                and (_mark(pair.value) != self._marks[key] or self._marks[key][1] in memories)
            )
            or not _same(*pair)
        }
        containers = (*_SEQUENCES, *_MAPPINGS)
        left_alone = {
            key: pair
            for key, pair in self._inside.items()
            if key not in written and type(pair.value) in containers
        }
        return Inside(written, left_alone)

    def changed(self, known: Iterable[int] = ()) -> list[str]:
        """Name the attributes, as Class.name, that were written to inside, but for the known ones."""
        changed = self._changed().keys() - set(known)
        return [
            f"{type(module).__name__}.{name}"
            for module, attributes in self._attributes
            for name, value in attributes.items()
            if changed and changed & _inside([value]).keys()
        ]

    def _changed(self) -> Copies:
        return {key: pair for key, pair in self._inside.items() if not _same(*pair)}


def as_it_is_now(inside: Inside) -> Inside:
    """Copy the written objects anew; for a snapshot of the same network."""
    return Inside({key: Copied(value, _copied(value)) for key, (value, _) in inside.written.items()})


def _inside(values: Iterable[Any]) -> Copies:
    """Copy the parts of nestings that can be written to in place, by identity; no parameters."""
    copies: Copies = {}
    ids, stack = set[int](), list(values)
    while stack:  # not by recursion: a list of lists may be deep
        value = stack.pop()
        if type(value) in _ATOMS or id(value) in ids or isinstance(value, nn.Parameter):
            continue
        ids.add(id(value))
        copy = _copied(value)
        if copy is not None:
            copies[id(value)] = Copied(value, copy)
        if isinstance(value, tuple) or type(value) in (*_SEQUENCES, *_MAPPINGS):
            stack.extend(value.values() if isinstance(value, dict) else value)
    return copies


def _copied(value: Any) -> Any:
    """Copy an object that can be written to in place; None for others, and where it cannot be copied."""
    if isinstance(value, Tensor):
        strided = not is_lazy(value) and value.layout is torch.strided and not value.is_nested
        return _stored(value.detach()).clone() if strided and not value.is_inference() else None
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.ndarray):  # a mapped one may be larger than the memory
        return value.copy() if value.flags.writeable and not isinstance(value, np.memmap) else None
    return value.copy() if type(value) in (*_SEQUENCES, *_MAPPINGS) else None


def _size(value: Any) -> int:
    """Return how many numbers or items a value holds itself."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, torch.Generator):
        return 0
    return value.size if isinstance(value, np.ndarray) else len(value)


def _same(value: Any, kept: Any) -> bool:
    """Say whether a value equals its copy; unknown, so False, for tensors whose bytes are not numbers."""
    if isinstance(value, Tensor):
        now = _stored(value.detach())
        plain = type(now) is Tensor and not (now.is_quantized or now.is_conj() or now.is_neg() or now.is_meta)
        if not plain or now.shape != kept.shape:
            return False
        return torch.equal(now, kept) or torch.equal(bits(now), bits(kept))  # a NaN is itself there
    if isinstance(value, torch.Generator):
        return torch.equal(value.get_state(), kept)
    if isinstance(value, np.ndarray):
        if value.shape != kept.shape or value.dtype.hasobject:
            return False
        new, old = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (value, kept))
        return np.array_equal(new, old)
    if len(value) != len(kept):
        return False
    if isinstance(value, set):
        return value == kept
    mapping = isinstance(value, dict)
    return all(map(is_, value, kept)) and (not mapping or all(map(is_, value.values(), kept.values())))


def _put_back(value: Any, kept: Any) -> None:
    """Write a copy back into its original."""
    if isinstance(value, Tensor):
        _stored(value.data).copy_(kept)
    elif isinstance(value, torch.Generator):
        value.set_state(kept)
    elif isinstance(value, np.ndarray):
        value[...] = kept
    else:
        value.clear()  # a Counter's update would add
        (value.extend if type(value) in _SEQUENCES else value.update)(kept)


def _mark(tensor: Tensor) -> tuple[int | None, int]:
    """Return the version, which in-place writes change, and the memory, which a new `.data` changes."""
    return version_of(tensor), memory_of(tensor)


def _differs(tensor: Tensor, value: Tensor) -> bool:
    """Say whether a tensor has other values than a copy, to the bit."""
    now = _stored(tensor)
    return now.shape != value.shape or not torch.equal(bits(now), bits(value))


def _stored(tensor: Tensor) -> Tensor:
    """A tensor without the axes along which it was expanded: those numbers are one in memory."""
    if tensor.layout is torch.strided and 0 in tensor.stride():
        for axis, stride in enumerate(tensor.stride()):
            if stride == 0 and tensor.shape[axis] > 1:
                tensor = tensor.narrow(axis, 0, 1)
    return tensor


@contextmanager
def moved(tensors: Iterable[Tensor], steps: Iterable[Tensor]) -> Iterator[None]:
    """Add steps to tensors for the duration of the block.

    The old values are copied back, not the steps subtracted: w + mu - mu is not w in float32.
    """
    pairs = [
        (tensor, tensor.detach().clone(), version_of(tensor), step)
        for tensor, step in zip(tensors, steps, strict=True)
    ]
    try:
        for tensor, _, _, step in pairs:
            tensor.data.add_(sent(step, tensor.device, tensor.dtype))
            renew(tensor)
        yield
    finally:
        for tensor, old, version, _ in pairs:
            tensor.data.copy_(old)
            put_version(tensor, version)


@contextmanager
def moved_entry(tensor: Tensor, old: Tensor, entry: int, step: Tensor) -> Iterator[None]:
    """Add a step to the entry at a flat index for the duration of the block; `old` is a copy."""
    # Not by a flat view: it needs contiguous memory.
    place = tuple(int(index) for index in np.unravel_index(entry, tensor.shape))
    version = now = version_of(tensor)
    try:
        tensor.data[place] += step.to(tensor.dtype)  # a single number: a GPU takes it from the CPU
        renew(tensor)
        now = version_of(tensor)
        yield
    finally:
        if version_of(tensor) == now:
            tensor.data[place] = old[place]
        else:  # a forward wrote more of it, as an embedding with max_norm does
            tensor.data.copy_(old)
        put_version(tensor, version)
