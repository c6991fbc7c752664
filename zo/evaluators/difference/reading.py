"""`Reading`: what lies between perturbed weights and losses, and changes or values sent through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zo.batches import map_tensors
from zo.evaluators.difference.calls import changed
from zo.evaluators.difference.changes import Change, Moved, OneChannel, variants_of
from zo.evaluators.difference.kept import Activations
from zo.evaluators.difference.recording import Node, Ref
from zo.evaluators.difference.registry import Argument
from zo.evaluators.difference.tail import Tail


@dataclass
class Reading:
    """Recorded calls between the perturbed parameters and the losses, with the base's values.

    Attributes:
        nodes: see `Recorder`.
        end: what changes are sent to: the losses, or the network's output if the loss is a tail.
        tail: a loss that no rules describe, evaluated on output and change together.
        reached: for each parameter, by number, the calls that depend on it, in order.
        last: for each node the last call that reads it.
        activations: the base's values, within a bound.
        losses: `(rows,)` of the base as the recording came to them; None where a black box gives them.
    """

    nodes: list[Node]
    end: Argument
    tail: Tail | None
    reached: list[list[int]]
    last: list[int]
    activations: Activations
    losses: Tensor | None

    def value(self, ref: Ref) -> Tensor:
        """The base value of a recorded tensor."""
        output = self.nodes[ref.node].call.output
        return output if ref.item is None else output[ref.item]

    def widest(self, number: int) -> int:
        """Bytes of the largest tensor that depends on a parameter, at least 1."""
        return max([1, *(self.activations.sizes[place] for place in self.reached[number])])

    def changes(
        self, number: int, change: Change, dtype: torch.dtype | None = None, fast: bool = False
    ) -> Argument:
        """What the losses (or before a tail the output) change by.

        Args:
            number: of the parameter that is changed, in the order of `Parameters`.
            change: of it.
            dtype: that changes are kept in between calls; None for that of the base.
            fast: whether fused kernels stand in for rules where there are some (`fast_rules`).

        Returns:
            `(variants, rows)`; before a tail the output's nesting with `(variants, *shape)`.
        """
        found: dict[Ref, Change] = {Ref(number): change}
        for place in self._visited(number, found):
            result = changed(self.nodes[place], self.value, found, fast)
            if isinstance(result, tuple | list):
                found.update(
                    {Ref(place, i): _kept(item, dtype) for i, item in enumerate(result) if item is not None}
                )
            else:
                found[Ref(place)] = _kept(result, dtype)
        variants = variants_of(change)

        def ended(end: Ref | Tensor) -> Tensor:
            base = self.value(end) if isinstance(end, Ref) else end
            if isinstance(end, Tensor) or end not in found:  # what hangs on no weight, or not on this one
                return base.new_zeros(variants, *base.shape)
            return Moved(base, found[end]).change.to(base.dtype)

        return self._at_end(ended)

    def values(self, number: int, value: Tensor) -> Argument:
        """Losses (or before a tail the output) when a parameter has another value.

        The recorded functions themselves run on new values, from the first that reads the parameter on:
        a forward evaluation that takes from the base what does not depend on the parameter.

        Args:
            number: of the parameter, in the order of `Parameters`.
            value: of it.

        Returns:
            `(rows,)`; before a tail the output's nesting.
        """
        found: dict[Ref, Tensor] = {Ref(number): value}
        for place in self._visited(number, found):
            result = self._valued(self.nodes[place], found)
            if isinstance(result, tuple | list):
                found.update({Ref(place, i): item for i, item in enumerate(result)})
            else:
                found[Ref(place)] = result

        def ended(end: Ref | Tensor) -> Tensor:
            if isinstance(end, Tensor):
                return end
            return found[end] if end in found else self.value(end)

        return self._at_end(ended)

    def _visited(self, number: int, found: dict[Ref, Any]) -> Iterator[int]:
        """The calls that depend on a parameter, in order, with all that they read there.

        What no later call reads is taken out of `found`; dropped activations are made anew on the way.
        """
        ends = {ref.node for ref in refs_of(self.end)}
        reached = set(self.reached[number])
        again = set(self.activations.needed(reached, ends))
        for place in sorted(reached | again):
            if place in again:
                self.activations.restore(place, self.value)
            if place not in reached:
                continue
            yield place
            for ref in [ref for ref in found if self.last[ref.node] <= place and ref.node not in ends]:
                del found[ref]
            if again:
                self.activations.release(place, self.last, ends)

    def _at_end(self, of: Callable[[Ref | Tensor], Tensor]) -> Argument:
        result = map_tensors(of, self.end, kind=(Ref, Tensor))
        if self.activations.dropped:
            self.activations.release(len(self.nodes), self.last, ())
        return result

    def _valued(self, node: Node, found: dict[Ref, Tensor]) -> Argument:
        assert node.rule is not None  # parameters depend on nothing
        if node.rule.prepare is None:

            def argument(ref: Ref) -> Tensor:
                return found[ref] if ref in found else self.value(ref)

            args, kwargs = map_tensors(argument, (node.args, node.kwargs), kind=Ref)
            return node.call.function(*args, **kwargs)
        # It draws at random, and its rule knows what was drawn.
        moved = {ref: (found[ref] - self.value(ref))[None] for ref in node_refs(node) if ref in found}
        return node.call.output + Moved(node.call.output, changed(node, self.value, moved)).change[0]


def _kept(change: Change, dtype: torch.dtype | None) -> Change:
    if dtype is None:
        return change
    if isinstance(change, OneChannel):
        return change.like(change.values.to(dtype))
    return change.to(dtype) if isinstance(change, Tensor) else change


def node_refs(node: Node) -> list[Ref]:
    """The recorded tensors that a call reads."""
    return refs_of((node.args, node.kwargs))


def refs_of(tree: Argument) -> list[Ref]:
    """The recorded tensors in a nesting."""
    found: list[Ref] = []
    map_tensors(lambda ref: (found.append(ref), ref)[1], tree, kind=Ref)
    return found
