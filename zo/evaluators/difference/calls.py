"""One recorded call: the change of its result by its rule, and errors that say which call it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

from zo.batches import map_tensors
from zo.evaluators.difference.changes import Change, Entries, Lazy, Moved, OneChannel
from zo.evaluators.difference.fast_rules import fast_change
from zo.evaluators.difference.recording import Node, NotReadable, Ref
from zo.evaluators.difference.registry import Argument


def changed(
    node: Node, value: Callable[[Ref], Tensor], found: Mapping[Ref, Change], fast: bool = False
) -> Argument:
    """The change of what a recorded call gives, or several, by its rule or a fused kernel.

    Args:
        node: the call.
        value: the base's values.
        found: changes of what it reads, where there are some.
        fast: whether fused kernels stand in for rules where there are some (`fast_rules`).

    Raises:
        NotReadable: the rule does not describe this call; the message says where and what.
    """

    def argument(ref: Ref) -> Tensor | Moved:
        return Moved(value(ref), found[ref]) if ref in found else value(ref)

    assert node.rule is not None  # parameters depend on nothing
    args, kwargs = map_tensors(argument, (node.args, node.kwargs), kind=Ref)
    try:
        if fast and (fused := fast_change(node.call, args, kwargs)) is not None:
            return fused
        if node.rule.elementwise:
            result = _elementwise(node, args, kwargs)
        else:
            result = node.rule.function(node.call, *args, **kwargs)
        _check_shapes(result, node.call.output)
        return result
    except (torch.OutOfMemoryError, NotReadable):
        raise
    # A rule takes less than its function, such as an argument fewer; whatever it stumbles over is that.
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError, AssertionError) as error:
        name = resolve_name(node.call.function) or getattr(node.call.function, "__name__", "a module")
        said = str(error) if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {error}"
        raise NotReadable(
            f"{node.where}: expected a call of {name} that its rule describes, got {said}. "
            "Use evaluator='stacked'."
        ) from error


def _check_shapes(result: Argument, output: Argument) -> None:
    """A change that was to be broadcast later is summed over too few places by what sums."""
    several = isinstance(output, tuple)
    for change, base in zip(result if several else (result,), output if several else (output,), strict=True):
        if change is None or isinstance(change, Lazy | Entries):
            continue
        shape = list(base.shape)
        if isinstance(change, OneChannel):
            shape[change.axis] = 1
        values = change.values if isinstance(change, OneChannel) else change
        if list(values.shape[1:]) != shape:
            raise ValueError(f"a change {tuple(values.shape)} of a result {tuple(base.shape)}")


def _elementwise(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Change:
    assert node.rule is not None
    if not args:  # by keyword
        kwargs = dict(kwargs)
        args = (kwargs.pop("input"),)
    first, *rest = args
    others = [item for item in (*rest, *kwargs.values()) if isinstance(item, Tensor | Moved)]
    if not isinstance(first, Moved) or any(isinstance(item, Moved) for item in others):
        raise NotImplementedError(f"{node.call.function.__name__} of a second tensor that moves")
    if isinstance(first.of, OneChannel) and not others:
        own = Moved(first.of.gathered(first.base), first.of.values)
        return first.of.like(node.rule.function(node.call, own, *rest, **kwargs))
    return node.rule.function(node.call, first, *rest, **kwargs)
