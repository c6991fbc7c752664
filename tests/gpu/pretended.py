"""A GPU that is not there: tensors that say "cuda", computed on the CPU; launches and waits are counted.

What mixes devices is an error, as on a GPU, and a backward pass runs in a thread of its own, as there. So
code for CUDA runs on any machine to the right numbers, and what would make the host wait is seen.

    with PretendedGPU() as gpu:
        network.to("cuda")
        ...
        with gpu.watched() as seen:
            changes(queries)
    assert seen.waits == []

To torch's own code, which has no autograd for CUDA where it was built without, these tensors are "meta".
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# the second: what is made on "cuda" alone, the first, is on another device
CUDA, CPU, META = torch.device("cuda", 1), torch.device("cpu"), torch.device("meta")
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
        bytes: Read and written by kernels, each by itself, as if nothing stayed in a cache.
    """

    launches: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    unordered: list[str] = field(default_factory=list)
    wide: list[tuple[str, int]] = field(default_factory=list)
    bytes: int = 0


class OnGPU(Tensor):
    """A tensor of the pretended device; its numbers are in the CPU's memory."""

    own: Tensor
    device = CUDA
    is_cuda, is_meta = True, False

    @staticmethod
    def __new__(cls, own: Tensor) -> OnGPU:
        own = own.resolve_conj()  # below this nobody looks at the mark of a conjugate
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            device=META,
        )
        made.own = own
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.own!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        made = OnGPU(self.own.detach().clone()).requires_grad_(self.requires_grad)
        return nn.Parameter(made, self.requires_grad) if isinstance(self, nn.Parameter) else made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file, from which it is read to the CPU: whoever wants it on the device moves it there."""
        return self.own.detach().clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.data_ptr, Tensor.untyped_storage):  # where memory is, which wrappers have none of
            return func(args[0].own)
        if func == Tensor.data.__set__ and isinstance(args[1], OnGPU):  # shares its numbers
            args[0].own = args[1].own
        if func is Tensor.copy_:
            return PretendedGPU.entered[-1].copied(*args, **kwargs)
        if func in READING:
            PretendedGPU.entered[-1].seen.waits.append(f"Tensor.{func.__name__}")
            if func is Tensor.numpy:
                raise TypeError("can't convert cuda:1 device type tensor to numpy.")
            return func(args[0].own)
        if func is Tensor.new_tensor:
            PretendedGPU.entered[-1].seen.waits.append("Tensor.new_tensor")
            return OnGPU(func(args[0].own, *args[1:], **kwargs))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and not _tracked(args):
            return _at(*args)
        with torch._C.DisableTorchFunctionSubclass():  # the default makes an OnGPU of any result
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("expected the block of a PretendedGPU, got a tensor of it outside")


class _Asked(TorchFunctionMode):
    """To torch's own code the device that is asked for is "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.to:
            args = tuple(map(_as_torch_has_it, args))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _as_torch_has_it(kwargs["device"])}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == META:  # of numbers
            PretendedGPU.entered[-1].seen.waits.append(func.__name__)
            found = func(*args, **{**kwargs, "device": None})
            return found if isinstance(found, OnGPU) else OnGPU(found)
        return func(*args, **kwargs)


class PretendedGPU(TorchDispatchMode):
    """The device; see the module."""

    entered: ClassVar[list[PretendedGPU]] = []
    pretended = True

    def __init__(self) -> None:
        super().__init__()
        self.seen = Seen()

    def __enter__(self) -> PretendedGPU:
        self.entered.append(self)
        self._patches = ExitStack()
        for name, value in OF_CUDA.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, value))
        own = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]
        self._patches.enter_context(
            mock.patch.object(torch.autograd, "_engine_run_backward", self._elsewhere(own))
        )
        self._patches.enter_context(_Asked())
        # in a file they are plain tensors
        self._patches.enter_context(torch.serialization.safe_globals([OnGPU]))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()
        self.entered.pop()

    def _elsewhere(self, run: Any) -> Any:
        """A backward pass in a thread of its own, which sees no context variables, as that of a device."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            TorchDispatchMode.__enter__(self)
            try:
                with _Asked():
                    return run(*args, **kwargs)
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)

        def backward(outputs: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(output, OnGPU) for output in outputs):
                return run(outputs, *args, **kwargs)
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(inside, outputs, *args, **kwargs).result()

        return backward

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
        if to is None and all(leaf.device == CPU for leaf in leaves):
            return func(*args, **kwargs)
        if not here and to == CPU:
            return func(*args, **kwargs)
        if any(isinstance(leaf, FakeTensor) for leaf in leaves):
            return func(*args, **kwargs)
        assert all(isinstance(leaf, OnGPU) or leaf.device == CPU for leaf in leaves), "without numbers"
        self._refuse_mixed(func, args, kwargs, leaves)
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
        if packet.__name__ not in WITHOUT_KERNEL and not func.is_view:
            self.seen.bytes += sum(
                leaf.nbytes for leaf in (*here, *tree_leaves(result)) if isinstance(leaf, Tensor)
            )
        if to is not None and packet is aten._to_copy and _shares(result, own_args):
            result = result.clone()
        return tree_map(lambda r: written.get(id(r), OnGPU(r)) if isinstance(r, Tensor) else r, result)

    def _refuse_mixed(self, func: Any, args: Any, kwargs: Any, leaves: list[Tensor]) -> None:
        """As on a GPU: its copies, single numbers for it, and indices into its tensors may be the CPU's."""
        packet, whole = func.overloadpacket, leaves
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"{packet}: expected a generator of the device cuda, got one of the CPU")
        made_anew = kwargs.get("device") is not None and packet.__name__.startswith("new_")
        if made_anew or packet in (aten._to_copy, aten.copy_, aten.copy):
            return
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_) and not (
            isinstance(args[0], OnGPU)
        ):
            raise RuntimeError(f"{packet}: expected indices on the CPU, as the tensor, got some on cuda")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            whole = [leaf for leaf in args[2:3] if isinstance(leaf, Tensor)]  # the values
        single = torch.Tag.pointwise in func.tags or packet in (
            *(aten.index_put, aten.index_put_, aten._index_put_impl_, aten.fill_, aten.masked_fill),
            *(aten.masked_fill_, aten.where),
        )
        if func._schema.is_mutable and not isinstance(args[0], OnGPU):
            single = False  # it is written to
        off = [leaf for leaf in whole if not isinstance(leaf, OnGPU) and not (single and leaf.ndim == 0)]
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
            if source.device.type != "cpu" and target.type == "cpu":
                seen.waits.append(f"{name} to the CPU")
            elif source.device.type == "cpu" and target.type != "cpu":
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


# Of `torch.cuda`: draws are the CPU's, so that a run has those that it has there.
OF_CUDA = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 2,
    "current_device": lambda: 1,
    "get_device_name": lambda *_: "a pretended GPU",
    "get_device_properties": lambda _: SimpleNamespace(name="a pretended GPU", total_memory=2**37),
    "device": lambda _: nullcontext(),
    "manual_seed": lambda _: None,
    "manual_seed_all": lambda _: None,
    "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
    "get_rng_state_all": list,
    "set_rng_state": lambda *_: None,
    "set_rng_state_all": lambda _: None,
}


def _as_torch_has_it(leaf: Any) -> Any:
    """To torch's own code the device is "meta"."""
    if isinstance(leaf, torch.device):
        return META if leaf.type == "cuda" else leaf
    return META if isinstance(leaf, str) and leaf.split(":")[0] == "cuda" else leaf


def _tracked(args: Any) -> bool:
    """Whether autograd has to see it."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in args if isinstance(t, Tensor))


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
