"""`TapeMode`: keeps every function call between the perturbed weights and the losses of one base evaluation.

The objective runs once under a `TorchFunctionMode`. It never gets to see a weight, or anything that depends
on one. It gets stand-ins of the right shape that hold NaN (one number, expanded). The mode puts in the true
tensor when a torch function is called. So code that reads a weight past the mode (a penalty in compiled code,
a tensor of NumPy) gives NaN and is found, however small its effect. Integers and booleans have no NaN, and
hold zero: a mask that is read past the mode shows in the losses, which are compared with the base's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from zo.batches import map_tensors
from zo.evaluators.difference.decompositions import decomposed
from zo.evaluators.difference.rule_registry import RULES, Argument, Rule, TapedCall, named
from zo.evaluators.difference.rules.subtracted import subtracted
from zo.evaluators.evaluator import Unservable
from zo.evaluators.versions import version_of


class NotReadable(Unservable):
    """The objective does something that no rule describes.

    Attributes:
        box: a black box was called.
    """

    def __init__(self, message: str, *, box: bool = False) -> None:
        super().__init__(message)
        self.box = box


@dataclass(frozen=True)
class Ref:
    """A tensor of the tape: the result of a node, or one of several results."""

    node: int
    item: int | None = None


@dataclass
class Node:
    """A recorded call, or a perturbed parameter, which has no function.

    Attributes:
        call: function and base result.
        rule: the rule for changes.
        args, kwargs: its arguments, with a `Ref` for each tensor that depends on the weights.
        refs: the references among the arguments.
        where: name of the module that made the call, for messages.
    """

    call: TapedCall
    rule: Rule | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    refs: tuple[Ref, ...] = ()
    where: str = ""

    @property
    def reads(self) -> set[int]:
        """The nodes that it depends on."""
        return {ref.node for ref in self.refs}


class TapeMode(TorchFunctionMode):
    """Records calls while its block runs; see the module.

    Args:
        weights: the perturbed parameters, as the network holds them.
        values: the values of these parameters.
        buffers: the buffers of the network, which are put back behind the tape.
        most: bytes of results that it may keep.

    Attributes:
        nodes: parameters first, in their order, then calls in theirs.
        where: names of the modules that are running, innermost last.
    """

    def __init__(
        self, weights: Iterable[Tensor], values: Iterable[Tensor], buffers: Iterable[Tensor], most: int
    ) -> None:
        super().__init__()
        self._bytes, self._most = 0, most
        self.nodes: list[Node] = []
        self.where: list[str] = []
        self._refs: dict[
            int, tuple[Tensor, Ref]
        ] = {}  # by identity; the tensor is held so that it stays its own
        self._stale: dict[int, Tensor] = {}
        self._write_targets: dict[int, Tensor] = {}  # constants that were to be written to, by their memory
        self._versions = {_memory(tensor): (tensor, version_of(tensor)) for tensor in buffers}
        self._constants: list[tuple[Tensor, int | None, str]] = []
        for weight, value in zip(weights, values, strict=True):
            self._refs[id(weight)] = weight, Ref(len(self.nodes))
            self.nodes.append(Node(TapedCall(_parameter, value), None))

    def ref(self, tensor: Argument) -> Ref | None:
        """Return the reference of a tensor; None for one that does not depend on the weights."""
        entry = self._refs.get(id(tensor))
        return None if entry is None else entry[1]

    def value(self, ref: Ref) -> Tensor:
        """The base's value of a recorded tensor."""
        output = self.nodes[ref.node].call.output
        return output if ref.item is None else output[ref.item]

    def __torch_function__(
        self,
        func: Argument,
        types: Argument,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Argument:
        """Record a call of a torch function if it reads what depends on the weights; else run it."""
        kwargs = kwargs or {}
        refs: list[Ref] = []

        def taken(tensor: Tensor) -> Argument:
            if id(tensor) in self._stale:
                raise self._refused(func, "reads a tensor after it was changed in place")
            ref = self.ref(tensor)
            if ref is None:
                if self._write_targets and _memory(tensor) in self._write_targets:
                    raise self._refused(func, "reads memory that weights were written to in place")
                return tensor
            refs.append(ref)
            return ref

        ref_args, ref_kwargs = map_tensors(taken, (_listed(args), kwargs))
        if not refs:
            return func(*args, **kwargs)
        if _asks_for_shape(func) or (func in _LIKE and ref_args and not isinstance(ref_args[0], Ref)):
            return func(*self._real(ref_args), **self._real(ref_kwargs))
        if func in _LIKE:  # of the second tensor dtype, device or shape alone is read
            ref_args, ref_kwargs, refs = (
                (ref_args[0], *self._real(ref_args[1:])),
                self._real(ref_kwargs),
                refs[:1],
            )
        writes, called = _without_writing(func)
        ref_args, ref_kwargs, inplace = _not_in_place(called, ref_args, ref_kwargs)
        if not callable(called) or called in _WRITING or (writes and called is func):
            raise self._refused(func, "writes to a tensor that it is given")
        if isinstance(ref_kwargs.get("out"), Tensor | Ref):
            raise self._refused(func, "writes to a tensor that it is given")
        if (composite := decomposed(called)) is not None:
            with self:
                result = composite(*args, **kwargs)
        else:
            result = self.add(called, RULES.get(called, subtracted), ref_args, ref_kwargs, refs)
        if not (writes or inplace):
            return result
        target = args[0] if args else next(iter(kwargs.values()))
        return self._write(func, target, result)

    def constants_changed(self) -> str | None:
        """The module that used a tensor which was written to later, if one was."""
        for tensor, version, where in self._constants:
            if version_of(tensor) != version:
                return where
        return None

    def add(
        self,
        function: Callable[..., Any],
        rule: Rule,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        refs: list[Ref],
        output: Argument = None,
    ) -> Argument:
        """Keep a call, and run it on the true tensors unless what it gives is known.

        Returns:
            What stands for its results.
        """
        if output is None:
            states = _generators() if rule is subtracted else []
            output = function(*self._real(args), **self._real(kwargs))
            if not all(map(torch.equal, states, _generators() if states else [])):
                raise self._refused(function, "draws at random")
        args, kwargs = _without_running_statistics(function, args, kwargs)
        if isinstance(output, list):
            output = tuple(output)
        items = output if isinstance(output, tuple) else (output,)
        if not all(isinstance(item, Tensor) and not item.is_complex() for item in items):
            raise self._refused(function, "gives something else than real tensors")
        self._bytes += sum(item.nbytes for item in items if not item._is_view())
        if self._bytes > self._most:
            raise NotReadable(
                f"{self._name()}: expected a base whose activations take at most {self._most / 2**30:.3g} "
                "GiB, kept for the queries, got more. Take smaller batches, evaluator='stacked', or "
                "zo.evaluators.Difference(memory=...), of which they may be four times as large."
            )
        if not all(item.is_floating_point() for item in items):
            rule = subtracted  # rules are for floats: a sum of truth values, say, is not linear

        def noted(tensor: Tensor) -> Tensor:
            _, version = self._versions.get(_memory(tensor), (None, version_of(tensor)))
            if version_of(tensor) != version:  # a buffer that this forward moved, and that will be put back
                return tensor.clone()
            self._constants.append((tensor, version_of(tensor), self._name()))
            return tensor

        args, kwargs = map_tensors(noted, (args, kwargs))
        node = Node(TapedCall(function, output), rule, args, kwargs, tuple(refs), self._name())
        number = len(self.nodes)
        self.nodes.append(node)
        if isinstance(output, tuple):
            several = [self._stand_in(item, Ref(number, i)) for i, item in enumerate(output)]
            return type(output)(several)  # with its names, such as values and indices
        return self._stand_in(output, Ref(number))

    def _stand_in(self, tensor: Tensor, ref: Ref) -> Tensor:
        nothing = float("nan") if tensor.is_floating_point() else 0
        facade = torch.full((), nothing, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
        self._refs[id(facade)] = facade, ref
        return facade

    def _real(self, tree: Argument) -> Argument:
        return map_tensors(self.value, tree, kind=Ref)

    def _write(self, func: Argument, target: Tensor, result: Tensor) -> Tensor:
        """A tensor was to be written to: it stands for the result, and what shares its memory is stale."""
        if (target.shape, target.dtype) != (result.shape, result.dtype):
            raise self._refused(func, "writes a result of another shape or dtype in place")
        ref, new = self.ref(target), self.ref(result)
        assert new is not None  # it was recorded just now
        if ref is None:
            self._write_targets[_memory(target)] = target
        else:
            memory = _memory(self.value(ref))
            for tensor, alias in self._refs.values():
                if tensor is not target and _memory(self.value(alias)) == memory:
                    self._stale[id(tensor)] = tensor
        self._refs[id(target)] = target, new
        return target

    def _name(self) -> str:
        return next((name for name in reversed(self.where) if name), "the network")

    def _refused(self, function: Argument, what: str) -> NotReadable:
        name = resolve_name(function) or getattr(function, "__name__", str(function))
        return NotReadable(
            f"{self._name()}: expected functions that changes can be carried through, got {name}, which "
            f"{what}. Use evaluator='stacked'."
        )


def _generators() -> list[Tensor]:
    """The states of torch's own."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _memory(tensor: Tensor) -> int:
    """A number that all views of a tensor share."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse ones have none
        return -id(tensor)


def _parameter() -> None:
    """Stands for the call of a node that is a parameter."""


_SHAPES = frozenset(
    named(
        *("dim", "ndimension", "size", "numel", "nelement", "stride", "is_contiguous", "is_floating_point"),
        *("is_complex", "is_signed", "element_size", "storage_offset", "get_device", "__len__", "__repr__"),
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "is_same_size"),
    )
)
_WRITING = frozenset((Tensor.__setitem__, Tensor.data.__set__))  # pyright: ignore
# The result takes dtype, device or shape from a second tensor, and nothing else.
_LIKE = frozenset(named("to", "type_as", "view_as", "reshape_as", "expand_as"))
_PROPERTIES = frozenset(
    (
        *("shape", "dtype", "device", "ndim", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta", "layout"),
        *("requires_grad", "is_sparse", "is_sparse_csr", "is_quantized", "is_nested", "is_mkldnn", "is_leaf"),
        *("grad_fn", "names", "itemsize", "nbytes"),
    )
)


def _listed(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments with sizes as plain tuples, which can be made anew."""
    return tuple(tuple(item) if isinstance(item, torch.Size) else item for item in args)


def _asks_for_shape(function: Argument) -> bool:
    """Say whether the result depends on shape and dtype alone."""
    if getattr(function, "__name__", "") in ("__get__",):
        return getattr(function.__self__, "__name__", "") in _PROPERTIES
    return function in _SHAPES


def _without_writing(function: Argument) -> tuple[bool, Any]:
    """Say whether a function writes to its first argument, and return one that does not write."""
    name = getattr(function, "__name__", "")
    if name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"):
        return True, getattr(Tensor, f"__{name[3:]}", function)
    if name.endswith("_") and not name.startswith("__"):
        places = (Tensor, functional, torch)
        return True, next((getattr(p, name[:-1]) for p in places if hasattr(p, name[:-1])), function)
    return False, function


def _not_in_place(function: Argument, args: Argument, kwargs: Argument) -> tuple[Any, Any, bool]:
    """The arguments with `inplace` switched off, and whether it was on."""
    if kwargs.get("inplace"):
        return args, {**kwargs, "inplace": False}, True
    if not inspect.isfunction(function) or not any(item is True for item in args):
        return args, kwargs, False
    names = list(inspect.signature(function).parameters)
    place = names.index("inplace") if "inplace" in names else len(args)
    if place >= len(args) or not args[place]:
        return args, kwargs, False
    return (*args[:place], False, *args[place + 1 :]), kwargs, True


def _without_running_statistics(function: Argument, args: Argument, kwargs: Argument) -> tuple[Any, Any]:
    """Arguments of a norm with the batch's own statistics: it writes the running ones, no rule reads them."""
    switches = {functional.batch_norm: "training", functional.instance_norm: "use_input_stats"}
    if function not in switches or not kwargs.get(switches[function], function is functional.instance_norm):
        return args, kwargs
    options = {name: value for name, value in kwargs.items() if not name.startswith("running_")}
    return (args[0],), {**options, "running_mean": None, "running_var": None}
