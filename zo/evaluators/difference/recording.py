"""The recording of one base evaluation: calls between weights and losses, with the values that they gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.batches import map_tensors, tensors
from zo.evaluators.difference import rules as rules  # importing them registers them
from zo.evaluators.difference.channels_last import lay_out
from zo.evaluators.difference.recorder import Node, NotReadable, Recorder, Ref
from zo.evaluators.difference.registry import RULES, Argument, Rule
from zo.evaluators.difference.tail import Tail, hidden
from zo.evaluators.evaluator import Problem
from zo.evaluators.forwards import Forward, replaced
from zo.objective import OutputLoss, comparable, uncompiled


@dataclass
class Recording:
    """Recorded calls between the perturbed parameters and the losses, with the base's values.

    Values are kept within a bound. The last layers' are read by every query, the first layers' only by
    queries of the first layers; so those are computed anew, call by call, in each pass that needs them, and
    dropped behind it. What draws at random is always kept.

    Attributes:
        nodes: see `Recorder`.
        end: what changes are sent to: the losses, or the network's output if the loss is a tail.
        tail: a loss that no rules describe, evaluated on output and change together.
        losses: `(rows,)` of the base as the recorder found them; None where a black box gives them.
        sizes: bytes of the largest result of each node.
        reached: for each parameter, by number, the calls that depend on it, in order.
        last: for each node the last call that reads it.
        dropped: nodes whose values are not kept.
    """

    nodes: list[Node]
    end: Argument
    tail: Tail | None
    losses: Tensor | None
    sizes: list[int]
    reached: list[list[int]]
    last: list[int]
    dropped: set[int]

    def __post_init__(self) -> None:
        """Find the nodes of `end`."""
        self._ends = {ref.node for ref in refs_of(self.end)}

    def value(self, ref: Ref) -> Tensor:
        """The base value of a recorded tensor."""
        output = self.nodes[ref.node].call.output
        return output if ref.item is None else output[ref.item]

    def widest(self, number: int) -> int:
        """Bytes of the largest tensor that depends on a parameter, at least 1."""
        return max([1, *(self.sizes[place] for place in self.reached[number])])

    def along(self, number: int, found: dict[Ref, Any]) -> Iterator[int]:
        """The calls that depend on a parameter, in order; base values that they need are there.

        Args:
            number: of the parameter.
            found: what was found of recorded tensors so far; what no later call reads is deleted.
        """
        ends = self._ends
        reached = set(self.reached[number])
        again = self._needed(reached, ends)
        for place in sorted(reached | again):
            if place in again:
                self._restore(place)
            if place not in reached:
                continue
            yield place
            for ref in [ref for ref in found if self.last[ref.node] <= place and ref.node not in ends]:
                del found[ref]
            for other in again:
                if self.last[other] <= place and other not in ends:
                    self.nodes[other].call.forget()

    def is_read_again(self, ref: Ref, place: int) -> bool:
        """Whether what a call reads is read once more: by the same call, by a later one or at the end."""
        times = [own.node for own in self.nodes[place].refs].count(ref.node)
        return times > 1 or self.last[ref.node] > place or ref.node in self._ends

    def at_end(self, of: Callable[[Ref | Tensor], Tensor]) -> Argument:
        """The nesting of `end` with what a function makes of each tensor in it."""
        result = map_tensors(of, self.end, kind=(Ref, Tensor))
        for place in self.dropped:
            self.nodes[place].call.forget()
        return result

    def _needed(self, reached: set[int], ends: set[int]) -> set[int]:
        """The dropped nodes that a pass through some calls must compute anew."""
        if not self.dropped:
            return set()
        wanted = ends | reached
        for place in reached:
            wanted |= self.nodes[place].reads
        for place in reversed(range(len(self.nodes))):
            if place in wanted and place in self.dropped:
                wanted |= self.nodes[place].reads
        return wanted & self.dropped

    def _restore(self, place: int) -> None:
        node = self.nodes[place]
        args, kwargs = map_tensors(self.value, (node.args, node.kwargs), kind=Ref)
        output = node.call.function(*args, **kwargs)
        node.call.output = tuple(output) if isinstance(output, list) else output


def record(problem: Problem, base: Tensor, memory: int) -> Recording:
    """Evaluate the objective once and record it.

    Args:
        problem: its objective is an `OutputLoss`.
        base: losses of the base, `(rows,)`, NaN where a row failed.
        memory: bytes of activations that are kept; others are computed again where they are needed.

    Raises:
        NotReadable: there is something between weights and output that has no rule.
    """
    if not isinstance(problem.objective, OutputLoss):
        raise NotReadable(
            f"objective: expected a zo.OutputLoss, a known loss of the network's output, got "
            f"{type(problem.objective).__name__}, in which it may do anything. Use evaluator='stacked'."
        )
    weights = problem.parameters.tensors
    values = [tensor.detach().clone() for tensor in weights]
    recorder = Recorder(weights, values, problem.network.buffers())
    targets = problem.objective.targets(problem.batch)
    tail, end = None, None
    with hidden(weights):
        with comparable(problem.network), uncompiled(), _no_boxes(recorder):
            with replaced(_forwards(problem.network, recorder)), recorder:
                output = problem.objective.output(problem.network, problem.batch)
            split = len(recorder.nodes)
            try:
                with recorder:
                    end = _referred(problem.objective.loss(output, targets), recorder)
            except Exception as error:
                tail = Tail(problem.objective, targets, weights, error)
        if (where := recorder.constants_changed()) is not None:
            raise NotReadable(
                f"{where}: expected tensors that stay as they are once they were used, got one that was "
                "changed in place later. Use evaluator='stacked'."
            )
        if tail is not None:
            del recorder.nodes[split:]
            end = _referred(output, recorder)
            whole = map_tensors(recorder.value, end, kind=Ref)
            _check_seen(whole, base, "the output")
            losses = tail.prepare(whole)
        else:
            losses = recorder.value(end) if isinstance(end, Ref) else end
            if not isinstance(losses, Tensor) or losses.shape != base.shape:
                found = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise NotReadable(f"objective: expected losses {tuple(base.shape)}, got {found}.")
        if losses is not None:
            _check_seen(losses, base, "the losses")
    return _recording(recorder.nodes, len(weights), end, tail, losses, memory)


def refs_of(tree: Argument) -> list[Ref]:
    """The recorded tensors in a nesting."""
    found: list[Ref] = []
    map_tensors(lambda ref: (found.append(ref), ref)[1], tree, kind=Ref)
    return found


def _referred(tree: Argument, recorder: Recorder) -> Argument:
    return map_tensors(lambda tensor: recorder.ref(tensor) or tensor, tree)


def _check_seen(tree: Argument, base: Tensor, what: str) -> None:
    """Refuse a result that is NaN, where the base is not, because something read a hidden weight."""
    for tensor in tensors(tree):
        if not tensor.is_floating_point() or tensor.shape[:1] != base.shape:
            continue
        lost = ~torch.isfinite(tensor.flatten(1).sum(1) if tensor.ndim > 1 else tensor)
        if (lost & torch.isfinite(base)).any():
            raise NotReadable(
                f"{what}: expected weights, and what depends on them, to be read by torch functions, got a "
                "read that is none, as by NumPy, by compiled code or by a loss that no rule describes. "
                "Use evaluator='stacked'."
            )


def _recording(
    nodes: list[Node], parameters: int, end: Argument, tail: Tail | None, losses: Tensor | None, memory: int
) -> Recording:
    needed, last = [False] * len(nodes), [-1] * len(nodes)
    for ref in refs_of(end):
        needed[ref.node] = True
    for place in reversed(range(len(nodes))):
        for read in nodes[place].reads if needed[place] else ():
            needed[read] = True
            last[read] = max(last[read], place)
    reached: list[list[int]] = []
    for number in range(parameters):
        depends = {number}
        for place, node in enumerate(nodes):
            if needed[place] and not depends.isdisjoint(node.reads):
                depends.add(place)
        reached.append(sorted(depends - {number}))
    lay_out(nodes, refs_of(end))
    sizes, dropped, left = [], set(), memory
    for node in nodes:
        results = [tensor.numel() * tensor.element_size() for tensor in tensors(node.call.output)]
        sizes.append(max(results, default=0))
    for place in reversed(range(len(nodes))):
        node = nodes[place]
        if node.rule is None:  # a parameter
            continue
        left -= sum(tensor.numel() * tensor.element_size() for tensor in tensors(node.call.output))
        if left < 0 and node.rule.prepare is None:
            dropped.add(place)
            node.call.forget()
    return Recording(nodes, end, tail, losses, sizes, reached, last, dropped)


def _forwards(network: nn.Module, recorder: Recorder) -> dict[nn.Module, Forward]:
    """Forwards that say where the recorder is, and those of modules that have a rule of their own."""
    forwards: dict[nn.Module, Forward] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotReadable(
                f"{name or type(module).__name__}: expected a module in Python, got a compiled ScriptModule. "
                "Use evaluator='loop'."
            )
        forwards[module] = _named(name, module, RULES.get(type(module)), recorder)
    return forwards


def _named(name: str, module: nn.Module, rule: Rule | None, recorder: Recorder) -> Forward:
    forward = module.forward if rule is None else recorder.opaque(module, module.forward, rule)

    def replacement(*args: Argument, **kwargs: Argument) -> Argument:
        recorder.where.append(f"{name} ({type(module).__name__})" if name else "")
        result = forward(*args, **kwargs)
        recorder.where.pop()  # not after an error: its message is to say where
        return result

    return replacement


@contextmanager
def _no_boxes(recorder: Recorder) -> Iterator[None]:
    """Black boxes are not called with what depends on the weights: they would get NaN, and count it."""
    own: Callable[..., Any] = BlackBoxFunction.__call__

    def refuse(self: BlackBoxFunction, *arrays: Argument) -> Argument:
        if any(isinstance(array, Tensor) and recorder.ref(array) is not None for array in arrays):
            raise NotReadable(
                f"{self!r}: expected no black box between weights and losses, got one. Use 'stacked'.",
                box=True,
            )
        return own(self, *arrays)

    BlackBoxFunction.__call__ = refuse
    try:
        yield
    finally:
        BlackBoxFunction.__call__ = own
