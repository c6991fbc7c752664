"""`read`: the objective evaluated once with its weights hidden, and what that recorded, as a `Reading`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from zo.batches import map_tensors, tensors
from zo.evaluators.difference.kept import Activations
from zo.evaluators.difference.reading import Reading, refs_of
from zo.evaluators.difference.recording import Node, NotReadable, Recorder, Ref
from zo.evaluators.difference.registry import RULES, Argument, Rule
from zo.evaluators.difference.rules import every
from zo.evaluators.difference.tail import Tail
from zo.evaluators.evaluator import Problem
from zo.evaluators.forwards import Forward, replaced
from zo.objective import OutputLoss, comparable, uncompiled

assert every.__all__  # importing it has registered the rules


def read(problem: Problem, base: Tensor, memory: int) -> Reading:
    """Evaluate the objective once and record it.

    Args:
        problem: its objective an `OutputLoss`.
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
    with _hidden(weights, values), comparable(problem.network), uncompiled(), _no_boxes(recorder):
        with replaced(_forwards(problem.network, recorder)), recorder:
            output = problem.objective.output(problem.network, problem.batch)
        split = len(recorder.nodes)
        tail, losses = None, None
        try:
            with recorder:
                losses = problem.objective.loss(output, problem.objective.targets(problem.batch))
        except Exception as error:
            tail = Tail(problem.objective, error)
    if (where := recorder.constants_changed()) is not None:
        raise NotReadable(
            f"{where}: expected tensors that stay as they are once they were used, got one that was changed "
            "in place later. Use evaluator='stacked'."
        )
    end = _referred(output, recorder)
    if tail is not None:
        del recorder.nodes[split:]
        whole = map_tensors(recorder.value, end, kind=Ref)
        _check_seen(whole, base, "the output")
        tail.prepare(whole, problem.objective.targets(problem.batch))
    else:
        assert isinstance(losses, Tensor)
        end = _referred(losses, recorder)
        found = map_tensors(recorder.value, end, kind=Ref)
        if found.shape != base.shape:
            raise NotReadable(f"objective: expected losses {tuple(base.shape)}, got {tuple(found.shape)}.")
        _check_seen(found, base, "the losses")
        losses = found
    return _reading(recorder.nodes, len(weights), end, tail, memory, losses if tail is None else tail.losses)


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
                "read that is none, as by NumPy or compiled code. Use evaluator='stacked'."
            )


def _reading(
    nodes: list[Node], parameters: int, end: Argument, tail: Tail | None, memory: int, losses: Tensor | None
) -> Reading:
    last = [-1] * len(nodes)
    needed = [False] * len(nodes)
    for ref in refs_of(end):
        needed[ref.node] = True
    for place in reversed(range(len(nodes))):
        for read in nodes[place].reads:
            needed[read] = needed[read] or needed[place]
    for place, node in enumerate(nodes):
        for read in node.reads:
            if needed[place]:
                last[read] = place
    reached: list[list[int]] = []
    for number in range(parameters):
        depends = {number}
        for place, node in enumerate(nodes):
            if needed[place] and depends.intersection(node.reads):
                depends.add(place)
        reached.append(sorted(depends - {number}))
    return Reading(nodes, end, tail, reached, last, Activations(nodes, memory), losses)


@contextmanager
def _hidden(weights: tuple[Tensor, ...], values: list[Tensor]) -> Iterator[None]:
    try:
        for weight in weights:
            weight.data.fill_(float("nan"))
        yield
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.data.copy_(value)


def _forwards(network: nn.Module, recorder: Recorder) -> dict[nn.Module, Forward]:
    """Forwards that say where the recorder is, and those of modules that have a rule of their own."""
    forwards: dict[nn.Module, Forward] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotReadable(
                f"{name or type(module).__name__}: expected a module in Python, got a compiled ScriptModule. "
                "Use evaluator='loop'."
            )
        rule = RULES.get(type(module))
        forwards[module] = _named(name, module, rule, recorder)
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
