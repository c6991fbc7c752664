"""A GPU that is not there: tensors that say "cuda", computed on the CPU; launches and waits are counted.

What mixes devices is an error, as on a GPU. So code for CUDA runs on any machine to the right numbers, and
what would make the host wait for the device is seen.

    with PretendedGPU() as gpu:
        network = gpu.network(network)
        ...
        with gpu.watched() as seen:
            changes(queries)
    assert seen.waits == []
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# the second: what is made on "cuda" alone, the first, is on another device
CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")
aten = torch.ops.aten
# What gives a shape or a Python number that depends on values, so that the host must wait for them.
ASKING = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "bincount", "histc", "allclose",
}  # fmt: skip
WITHOUT_KERNEL = {
    "detach", "alias", "lift_fresh", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "_unsafe_view", "is_pinned", "_pin_memory", "_reshape_alias",
}  # fmt: skip
# Kernels that add in any order, or have no other; `torch.use_deterministic_algorithms` refuses some of them.
UNORDERED = {
    "index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "bincount",
    "scatter_reduce_", "index_reduce", "histc", "kthvalue", "median", "cumsum",
    "grid_sampler_2d_backward", "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward",
    "max_pool2d_with_indices_backward", "upsample_bilinear2d_backward", "embedding_dense_backward",
}  # fmt: skip


READING = (
    *(Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.item, Tensor.tolist),
    *(Tensor.__contains__, Tensor.is_nonzero, Tensor.numpy),
)


@dataclass
class Seen:
    """What was seen in a block.

    Attributes:
        launches: Kernels and copies that were put into the stream, by name.
        waits: What made the host wait, by name.
        unordered: Kernels that may add in any order.
        wide: Float64 tensors that were made on the device: name and numbers.
    """

    launches: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    unordered: list[str] = field(default_factory=list)
    wide: list[tuple[str, int]] = field(default_factory=list)


class OnGPU(Tensor):
    """A tensor of the pretended device; its numbers are in the CPU's memory."""

    own: Tensor

    @staticmethod
    def __new__(cls, own: Tensor) -> OnGPU:
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=PretendedGPU.entered[-1].device,
        )
        made.own = own
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.own!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.data_ptr, Tensor.untyped_storage):  # where memory is, which wrappers have none of
            return func(args[0].own)
        if func is Tensor.copy_:  # torch asks for the device's library before anyone is asked
            return PretendedGPU.entered[-1].copied(*args, **(kwargs or {}))
        if func in READING:
            PretendedGPU.entered[-1].seen.waits.append(f"Tensor.{func.__name__}")
            return func(args[0].own)
        if func is Tensor.new_tensor:
            PretendedGPU.entered[-1].seen.waits.append("Tensor.new_tensor")
            return OnGPU(func(args[0].own, *args[1:], **(kwargs or {})))
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return _at(*args)
        with torch._C.DisableTorchFunctionSubclass():  # the default makes an OnGPU of any result
            try:
                return func(*args, **(kwargs or {}))
            except RuntimeError as error:  # some functions ask for the device's library first
                if "not linked with support" not in str(error):
                    raise
            name = {"__invert__": "bitwise_not"}.get(func.__name__, func.__name__)
            return getattr(aten, name)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("expected the block of a PretendedGPU, got a tensor of it outside")


class PretendedGPU(TorchDispatchMode):
    """The device; see the module."""

    entered: ClassVar[list[PretendedGPU]] = []

    def __init__(self, device: torch.device = CUDA) -> None:
        super().__init__()
        self.device, self.seen = device, Seen()

    def __enter__(self) -> PretendedGPU:
        self.entered.append(self)
        self._lazy_init, torch.cuda._lazy_init = torch.cuda._lazy_init, lambda: None
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.cuda._lazy_init = self._lazy_init
        self.entered.pop()
        super().__exit__(*error)

    @contextmanager
    def watched(self) -> Iterator[Seen]:
        """A block of which it is told what was seen."""
        before, self.seen = self.seen, Seen()
        try:
            yield self.seen
        finally:
            self.seen = before

    def tensor(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        return OnGPU(tensor.detach().clone(memory_format=torch.preserve_format))

    def network(self, network: nn.Module) -> nn.Module:
        """Its parameters and buffers put there, in place."""
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = nn.Parameter(self.tensor(parameter.data), parameter.requires_grad)
                    module._parameters[name] = moved
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = self.tensor(buffer)
        return network

    def copied(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """`Tensor.copy_`."""
        self._note(aten.copy_.default, aten.copy_, (target, source, non_blocking), {}, [target, source], None)
        _own(target).copy_(_own(source))
        return target

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [leaf for leaf in leaves if isinstance(leaf, OnGPU)]
        packet = func.overloadpacket
        asked = kwargs.get("device")
        to = None if asked is None else torch.device(asked)
        if packet is aten._pin_memory and not here:
            return _Pinned.mark(args[0])
        if not here and (to is None or to.type != self.device.type):
            return func(*args, **kwargs)
        if any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return func(*args, **kwargs)
        self._refuse_mixed(packet, leaves)
        self._note(func, packet, args, kwargs, leaves, to)
        own_args, own_kwargs = tree_map(_own, (args, kwargs))
        if to is not None:
            own_kwargs = {**own_kwargs, "device": CPU, "pin_memory": None}
            if "pin_memory" not in kwargs:
                del own_kwargs["pin_memory"]
        result = func(*own_args, **own_kwargs)
        written = {id(leaf.own): leaf for leaf in here}
        stays = packet is aten.copy_ and not isinstance(args[0], OnGPU)
        if stays or (to is not None and to.type == "cpu"):
            return result
        if to is not None and packet is aten._to_copy and _shares(result, own_args):
            result = result.clone()
        return tree_map(lambda r: written.get(id(r), OnGPU(r)) if isinstance(r, Tensor) else r, result)

    def _refuse_mixed(self, packet: Any, leaves: list[Tensor]) -> None:
        """As on a GPU: single numbers may come from the CPU, indices too; and copies."""
        if packet in (aten._to_copy, aten.copy_, aten.index, aten.index_put, aten.index_put_, aten.copy):
            return
        off = [leaf for leaf in leaves if not isinstance(leaf, OnGPU) and leaf.ndim]
        if off:
            raise RuntimeError(f"{packet}: expected all tensors to be on the same device, got cuda:0 and cpu")

    def _note(
        self, func: Any, packet: Any, args: Any, kwargs: Any, leaves: list[Tensor], to: torch.device | None
    ) -> None:
        seen, name, short = self.seen, str(func), packet.__name__
        copied = packet in (aten._to_copy, aten.copy_)
        if short in ASKING:
            seen.waits.append(name)
        if copied:
            source = args[1] if packet is aten.copy_ else args[0]
            target = args[0].device if packet is aten.copy_ else (to or source.device)
            later = kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2])
            if source.device.type == self.device.type and target.type == "cpu":
                seen.waits.append(f"{name} to the CPU")
            elif source.device.type == "cpu" and target.type == self.device.type:
                if not (later and isinstance(source, _Pinned)):
                    seen.waits.append(f"{name} from memory that is not pinned, {tuple(source.shape)}")
        if packet in (aten.index, aten.index_put, aten.index_put_):
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    seen.waits.append(f"{name} by a mask")
                elif isinstance(index, Tensor) and index.device.type == "cpu":
                    seen.waits.append(f"{name} by an index on the CPU")
            for value in args[2:3]:
                if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim:
                    seen.waits.append(f"{name} of values on the CPU")
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            seen.waits.append(name)
        if short in UNORDERED or (packet in (aten.index_put_, aten.index_put) and True in args[3:]):
            seen.unordered.append(name)
        if short not in WITHOUT_KERNEL and not func.is_view:
            seen.launches.append(name)
            if kwargs.get("dtype") == torch.float64:
                numbers = max((leaf.numel() for leaf in leaves), default=1)
                seen.wide.append((name, numbers))


class _Pinned(Tensor):
    """A CPU tensor whose memory is pinned."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # what is made of one is none

    @staticmethod
    def mark(tensor: Tensor) -> Tensor:
        return tensor.as_subclass(_Pinned)


def _own(leaf: Any) -> Any:
    if isinstance(leaf, OnGPU):
        return leaf.own
    return leaf.as_subclass(Tensor) if isinstance(leaf, _Pinned) else leaf


def _at(tensor: Tensor, index: Any, *value: Any) -> Any:
    """`tensor[index]`, or with a value `tensor[index] = value`, by operations that are seen."""
    index = list(index) if isinstance(index, tuple) else [index]
    index = [torch.tensor(item) if isinstance(item, list) else item for item in index]
    masks = [i.ndim - 1 for i in index if isinstance(i, Tensor) and i.dtype == torch.bool]
    taken = sum(masks) + sum(i is not None for i in index)
    if Ellipsis not in [i for i in index if not isinstance(i, Tensor)]:
        index.append(Ellipsis)
        taken += 1
    found, axis, several = tensor, 0, []
    for item in index:
        if item is None:
            found, axis = found.unsqueeze(axis), axis + 1
        elif item is Ellipsis:
            axis += tensor.ndim - (taken - 1)
        elif isinstance(item, slice):
            found = aten.slice(found, axis, item.start, item.stop, item.step or 1)
            axis += 1
        elif isinstance(item, Tensor) and (item.ndim or item.dtype == torch.bool):
            several += [None] * (axis - len(several)) + [item]
            axis += item.ndim if item.dtype == torch.bool else 1
        else:
            found = aten.select(found, axis, int(item))
    if not value:
        return aten.index(found, several) if several else found
    if not several:
        found.copy_(value[0]) if isinstance(value[0], Tensor) else found.fill_(value[0])
        return None
    new = value[0] if isinstance(value[0], Tensor) else torch.tensor(value[0], dtype=tensor.dtype)
    aten.index_put_(found, several, new.to(tensor.dtype))
    return None


def _shares(result: Any, args: Any) -> bool:
    return any(result is each for each in args)
