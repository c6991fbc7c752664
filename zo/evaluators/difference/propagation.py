"""A pass: a changed parameter sent through a tape, as changes or, where they are large, as new values.

Changes are exact and several variants of them share a call. But a change of a large activation costs more
than the activation: a rule reads base and change where a function reads values alone. So a pass may go over
from changes to values where a change has spread to a whole activation that is large: the recorded functions
themselves run on what base and change give, from there to the losses, and those are subtracted, as by `loop`.
Before that a changed weight moves one channel, which costs that channel's share of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import resolve_name

from zo.batches import map_tensors, tensors
from zo.evaluators.difference.changes import Change, Entries, Moved, OneChannel
from zo.evaluators.difference.rule_registry import Argument
from zo.evaluators.difference.rules.arithmetic import add
from zo.evaluators.difference.rules.subtracted import subtracted
from zo.evaluators.difference.tape import Tape
from zo.evaluators.difference.tape_mode import Node, NotReadable, Ref


@dataclass(frozen=True)
class Anew:
    """The value of a recorded tensor in a pass of one variant."""

    value: Tensor


ChangesByRef: TypeAlias = dict[Ref, Change | Anew]


def send(tape: Tape, number: int, change: Entries, large: int | None) -> Tensor:
    """Return the changes of the losses, `(variants, rows)`; NaN where a change is unknown, as not finite.

    Args:
        tape: the tape of the base.
        number: the number of the parameter that is changed, in the order of `Parameters`.
        change: the change of that parameter, with one variant if `large` is a number.
        large: bytes of an activation from which on values are computed anew; None for changes to the end.

    Raises:
        NotReadable: the rule of a call does not describe it; the message says where and what.
    """
    changes: ChangesByRef = {Ref(number): change}
    end, on_cpu = tape.losses, change.entries.device.type == "cpu"
    nan_masks: list[Tensor] = []
    for place in tape.reached[number]:
        node = tape.nodes[place]
        if not any(ref in changes for ref in node.refs):  # nothing moves that it reads
            continue
        if any(isinstance(changes.get(ref), Anew) for ref in node.refs):
            result = _anew(tape, place, changes)
        else:
            result = changed(node, tape.value, changes)
        # Of two infinite changes, each right, a product's may be NaN, and the product infinite. On a GPU
        # a look at all products would cost half as much again as the pass.
        several_moved = sum(ref in changes for ref in node.refs) > 1
        products = on_cpu and several_moved and node.rule not in (add, subtracted)
        several = isinstance(result, tuple | list)
        for item, part in enumerate(result if several else (result,)):
            ref = Ref(place, item) if several else Ref(place)
            if (place in tape.unbounded or products) and not isinstance(part, Anew):
                nan_masks += _lost(part, tape.value(ref), len(tape.base))
            if isinstance(part, OneChannel) and len(part.values) == 1 and on_cpu and not part.values.any():
                continue  # as behind a ReLU that lets nothing through; a GPU would be waited for
            if large is not None and isinstance(part, Tensor) and part[0].nbytes > large:
                part = Anew(Moved(tape.value(ref), part).value[0])
            changes[ref] = part
        for ref in [ref for ref in changes if tape.last[ref.node] <= place and ref != end]:
            del changes[ref]
    if end is None or end not in changes:
        result = tape.base.new_zeros(len(change.entries), len(tape.base))
    else:
        result = _change(changes[end], tape.value(end))
    for rows in nan_masks:
        result = result.masked_fill(rows.to(result.device), torch.nan)
    return result


def _lost(change: Change, base: Tensor, rows: int) -> list[Tensor]:
    """Say where a change is not finite, `(variants, rows)` or `(variants, 1)`; empty if all of it is finite.

    Something infinite or NaN in the base may have become a number, and a function behind it may swallow what
    is NaN in both, as a comparison does.
    """
    if isinstance(change, Entries):
        change = change.dense()
    values = change.values if isinstance(change, OneChannel) else change
    if values.device.type == "cpu" and values.sum().isfinite():  # a GPU would be waited for
        return []
    mask = ~values.isfinite()
    by_row = base.ndim > 0 and base.shape[0] == rows and mask.shape[1] == rows
    if by_row:
        return [mask.flatten(2).any(2) if mask.ndim > 2 else mask]
    return [mask.flatten(1).any(1)[:, None]]


def changed(node: Node, value: Callable[[Ref], Tensor], changes: Mapping[Ref, Any]) -> Argument:
    """The change of a recorded call's result, or of several results, by its rule.

    Args:
        node: the recorded call.
        value: a function that gives the base's value of a recorded tensor.
        changes: the changes of the tensors that it reads, where there are some.

    Raises:
        NotReadable: the rule does not describe this call; the message says where and what.
    """

    def argument(ref: Ref) -> Tensor | Moved:
        return Moved(value(ref), changes[ref]) if ref in changes else value(ref)

    assert node.rule is not None  # parameters depend on nothing
    args, kwargs = map_tensors(argument, (node.args, node.kwargs), kind=Ref)
    with _refusing(node):
        result = node.rule(node.call, *args, **kwargs)
        _check_shapes(result, node.call.output)
        return _floating(result, node.call.output)


@contextmanager
def _refusing(node: Node) -> Iterator[None]:
    """Whatever a call stumbles over in a pass is `NotReadable`.

    A rule takes less than its function, such as an argument fewer; and where shapes depend on values, as
    those of `x[x > 0]`, a function is given others than in the base.
    """
    try:
        yield
    except (torch.OutOfMemoryError, NotReadable):
        raise
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError, AssertionError) as error:
        name = resolve_name(node.call.function) or getattr(node.call.function, "__name__", "a function")
        reason = str(error) if isinstance(error, NotImplementedError) else f"{type(error).__name__}: {error}"
        raise NotReadable(
            f"{node.where}: expected a call of {name} that changes can be carried through, got {reason}. "
            "Use evaluator='stacked'."
        ) from error


def _anew(tape: Tape, place: int, changes: ChangesByRef) -> Argument:
    """Evaluate a call in the one variant; each result is an `Anew`."""
    node = tape.nodes[place]

    def argument(ref: Ref) -> Tensor:
        return _value(changes[ref], tape.value(ref)) if ref in changes else tape.value(ref)

    args, kwargs = map_tensors(argument, (node.args, node.kwargs), kind=Ref)
    with _refusing(node):
        result = node.call.function(*args, **kwargs)
        for value, base in zip(tensors(result), tensors(node.call.output), strict=True):
            if value.shape != base.shape:
                raise ValueError(f"a result {tuple(value.shape)} where the base's is {tuple(base.shape)}")
    return tuple(map(Anew, result)) if isinstance(result, tuple | list) else Anew(result)


def _value(change: Change | Anew, base: Tensor) -> Tensor:
    return change.value if isinstance(change, Anew) else Moved(base, change).value[0]


def _change(change: Change | Anew, base: Tensor) -> Tensor:
    return (change.value - base)[None] if isinstance(change, Anew) else Moved(base, change).change


def _floating(result: Argument, output: Argument) -> Argument:
    """A change of floats as floats: that of whole numbers added to them, say, is none yet."""
    change = result.values if isinstance(result, OneChannel) else result
    if not isinstance(change, Tensor) or change.is_floating_point() or not output.is_floating_point():
        return result
    change = change.to(output.dtype)
    return result.like(change) if isinstance(result, OneChannel) else change


def _check_shapes(result: Argument, output: Argument) -> None:
    """A change that was to be broadcast later is summed over too few places by what sums."""
    several = isinstance(output, tuple)
    for change, base in zip(result if several else (result,), output if several else (output,), strict=True):
        if isinstance(change, Entries):
            continue
        shape = list(base.shape)
        if isinstance(change, OneChannel):
            shape[change.axis] = 1
        values = change.values if isinstance(change, OneChannel) else change
        if list(values.shape[1:]) != shape:
            raise ValueError(f"a change {tuple(values.shape)} of a result {tuple(base.shape)}")
