"""Not measured on a GPU: batch norm, the sum behind it and ReLU as one call of a tape, by one kernel."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blackbox.errors import ConfigurationError
from zo.evaluators.difference.changes import Change, Moved, OneChannel
from zo.evaluators.difference.registry import Argument, TapedCall
from zo.evaluators.difference.rules.arithmetic import add, relu
from zo.evaluators.difference.rules.batch_norm import base_statistics, batch_norm
from zo.evaluators.difference.tape_mode import Node, NotReadable, Ref

MOST = 2**31  # numbers of an activation: places in it are 32 bits
ORDER = batch_norm, add, relu  # rules of a chain; any may be missing


@dataclass(frozen=True)
class Chain:
    """Calls of which each reads the one before, and no one else does; any may be missing.

    Attributes:
        norm: The batch norm.
        sum: Of what comes before and another tensor of that shape.
        relu: The ReLU of that sum.
    """

    norm: Node | None
    sum: Node | None
    relu: Node | None


def kernels_run_at(tensor: Tensor) -> bool:
    """Whether kernels run where a tensor is.

    Raises:
        ConfigurationError: There is no Triton.
    """
    if not tensor.is_cuda:
        return False
    if importlib.util.find_spec("triton") is None:
        raise ConfigurationError(
            "Difference: expected Triton for fused=True, as it comes with PyTorch for CUDA on Linux, got "
            "none. Install it, or leave fused out."
        )
    return True


def fuse(nodes: Sequence[Node], end: Ref | None) -> list[Node]:
    """The nodes of a tape with a single node for each chain, in the place of its last.

    Its other nodes stay where they are, for others' places, and no one reads them.

    Args:
        nodes: The nodes of a tape.
        end: What is read of them in the end.
    """
    readers: list[list[int]] = [[] for _ in nodes]
    for place, node in enumerate(nodes):
        for ref in node.refs:
            readers[ref.node].append(place)
    if end is not None:
        readers[end.node].append(len(nodes))
    fused, taken = list(nodes), set[int]()
    for place in range(len(nodes)):
        chain = [place] if place not in taken and _stage(nodes, place) is not None else []
        while chain and len(following := readers[chain[-1]]) == 1 and following[0] not in taken:
            stage, before = _stage(nodes, following[0]), _stage(nodes, chain[-1])
            if stage is None or before is None or stage <= before:
                break
            chain.append(following[0])
        rules = [nodes[place].rule for place in chain]
        if rules and rules != [add]:  # which is one kernel as it is
            taken.update(chain)
            fused[chain[-1]] = _node([nodes[place] for place in chain], place)
    return fused


def _stage(nodes: Sequence[Node], place: int) -> int | None:
    """Where in a chain a call may be; None if in none."""
    node = nodes[place] if place < len(nodes) else None
    if node is None or node.rule not in ORDER:
        return None
    output = node.call.output
    if output.ndim < 2 or not 0 < output.numel() < MOST:
        return None
    if output.dtype not in (torch.float32, torch.float64):
        return None
    if node.rule is add:
        read = [nodes[item.node].call.output if isinstance(item, Ref) else item for item in node.args]
        if node.kwargs or [getattr(item, "shape", None) for item in read] != 2 * [output.shape]:
            return None  # broadcast, or with a factor
    return ORDER.index(node.rule)


def _node(chain: Sequence[Node], first: int) -> Node:
    """The node that stands for a chain, whose first call has this place."""
    head, last = chain[0], chain[-1]
    norm, sum_, relu_ = (next((node for node in chain if node.rule is rule), None) for rule in ORDER)
    args, kwargs, other, refs = head.args, head.kwargs, None, head.refs
    if sum_ is not None and sum_ is not head:
        (other,) = [item for item in sum_.args if item != Ref(first)]
        refs = (*refs, *[ref for ref in sum_.refs if ref != Ref(first)])
    elif sum_ is not None:
        args, other = args[:1], args[1]
    rule = partial(_change, Chain(norm, sum_, relu_))
    call = TapedCall(last.call.function, last.call.output)
    return Node(call, rule, (args, kwargs, other), {}, refs, head.where)


def _change(
    chain: Chain, call: TapedCall, args: tuple[Any, ...], kwargs: dict[str, Any], other: Argument
) -> Change:
    """The change of a chain's result, by the kernel or where that does not serve by its calls' rules."""
    result = _by_kernel(chain, args, kwargs, other)
    return _by_rules(chain, args, kwargs, other) if result is None else result


def _by_rules(chain: Chain, args: tuple[Any, ...], kwargs: dict[str, Any], other: Argument) -> Change:
    arguments, moved = (args, kwargs), None
    for node, more in ((chain.norm, ()), (chain.sum, (other,)), (chain.relu, ())):
        if node is None:
            continue
        args, kwargs = arguments
        if any(isinstance(item, Moved) for item in (*args, *kwargs.values(), *more)):
            assert node.rule is not None
            moved = node.rule(node.call, *args, *more, **kwargs)
        output = node.call.output
        arguments = (output if moved is None else Moved(output, moved),), {}
    assert moved is not None
    return moved


def _by_kernel(chain: Chain, args: tuple[Any, ...], kwargs: dict[str, Any], other: Argument) -> Change | None:
    """The change by the kernel; None for a moved weight of the norm, another axis, or mixed dtypes."""
    from zo.evaluators.difference.gpu import kernels  # Triton is not everywhere

    input, statistics, kind, training = args[0] if args else kwargs["input"], None, kernels.NONE, False
    if chain.norm is not None:
        input, mean, variance, weight, bias, training, eps = _norm(*args, **kwargs)
        if isinstance(weight, Moved) or isinstance(bias, Moved):
            return None
        if isinstance(input, Moved):
            kind = kernels.OF_BATCH if training else kernels.FIXED
            of_base = base_statistics(chain.norm.call, input.base, mean, variance, weight, training, eps)
            statistics = chain.norm.call.once(
                "with eps",
                lambda: torch.cat([of_base.flatten(1), of_base.new_full((1, of_base.shape[1]), eps)]),
            )
    first, *rest = [item for item in (input, other) if isinstance(item, Moved)]
    if kind == kernels.NONE and not rest and isinstance(first.of, OneChannel) and first.of.axis != 1:
        return None  # as behind a linear layer of tokens; it stays in one
    if rest and chain.norm is None and isinstance(first.of, OneChannel):
        first, rest = rest[0], [first]  # of two summands either may be first
    d, channels = (first.change, None) if rest else _values(first)
    added, added_channels = _values(rest[0]) if rest else (None, None)
    base = input.base if isinstance(input, Moved) else input
    before = None
    if chain.relu is not None:
        node = chain.sum or chain.norm
        before = base if node is None else node.call.output
    x = base if kind == kernels.OF_BATCH else None
    if any(item is not None and item.dtype != d.dtype for item in (x, statistics, added, before)):
        return None
    try:
        result = kernels.change(
            d,
            x=x,
            statistics=statistics,
            kind=kind,
            other=added,
            before=before,
            channels=channels,
            other_channels=added_channels,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton's, whatever they derive from
        raise NotReadable(
            "Difference: expected Triton to compile the kernel of fused=True for this GPU, got "
            f"{type(error).__name__}: {error}. Leave fused out."
        ) from error
    return first.of.like(result) if isinstance(first.of, OneChannel) and channels is not None else result


def _values(moved: Moved) -> tuple[Tensor, Tensor | None]:
    """A change, and in which channel it is where it is in one."""
    if isinstance(moved.of, OneChannel) and moved.of.axis == 1:
        return moved.of.values, moved.of.channels
    return moved.change, None


def _norm(
    input: Argument,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Argument = None,
    bias: Argument = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Argument, ...]:
    """What is read of the arguments of `functional.batch_norm`."""
    return input, running_mean, running_var, weight, bias, training, eps
