"""The tape of one base evaluation: calls between weights and losses, with the values that they gave."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.batches import leaves, map_tensors, repeat, tensors
from zo.evaluators.difference import rules as rules  # importing them registers them
from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.channels_last import lay_out
from zo.evaluators.difference.rule_registry import Argument, TapedCall
from zo.evaluators.difference.rules.subtracted import subtracted
from zo.evaluators.difference.tape_mode import Node, NotReadable, Ref, TapeMode
from zo.evaluators.evaluator import Step
from zo.evaluators.forwards import Forward, replaced
from zo.evaluators.hidden_weights import hidden
from zo.objective import OutputLoss, comparable, uncompiled


@dataclass
class Tape:
    """Recorded calls between the perturbed parameters and the losses, with the base's values.

    Attributes:
        nodes: parameters and recorded calls, see `TapeMode`.
        base: the base's losses, `(rows,)`, as recorded, or as a black box gave them.
        losses: the reference of the losses; None if they depend on no weight.
        sizes: bytes of the largest result of each node.
        reached: for each parameter, by number, the calls that depend on it, in order.
        last: for each node the last call that reads it.
        asks: whether a black box gives the losses.
        unbounded: the nodes that give something infinite or NaN in the base, as a mask of minus infinity.
    """

    nodes: list[Node]
    base: Tensor
    losses: Ref | None
    sizes: list[int]
    reached: list[list[int]]
    last: list[int]
    asks: bool
    unbounded: frozenset[int] = frozenset()

    def value(self, ref: Ref) -> Tensor:
        """The base value of a recorded tensor."""
        output = self.nodes[ref.node].call.output
        return output if ref.item is None else output[ref.item]

    def widest(self, number: int) -> int:
        """Bytes of the largest tensor that depends on a parameter, at least 1."""
        return max([1, *(self.sizes[place] for place in self.reached[number])])


def tape_of(step: Step, base: Tensor, most: int) -> Tape:
    """Evaluate the objective once and record it.

    Args:
        step: its objective is an `OutputLoss`.
        base: losses of the base, `(rows,)`, NaN where a row failed.
        most: bytes of activations that it may keep.

    Raises:
        NotReadable: there is something between weights and losses that changes cannot be carried through.
    """
    if not isinstance(step.objective, OutputLoss):
        raise NotReadable(
            f"objective: expected a zo.OutputLoss, a known loss of the network's output, got "
            f"{type(step.objective).__name__}, in which it may do anything. Use evaluator='stacked'."
        )
    weights = step.parameters.tensors
    values = [tensor.detach().clone() for tensor in weights]
    mode = TapeMode(weights, values, step.network.buffers(), most)
    with (
        torch.inference_mode(False),  # whose tensors do not say that they were written to
        torch.no_grad(),
        hidden(weights),
        comparable(step.network),
        uncompiled(),
        intercepted(partial(_refuse_box, mode)),
    ):
        with replaced(_forwards(step.network, mode)), mode:
            output = step.objective.output(step.network, step.batch)
        losses, asks = _losses(step, output, mode, base)
        if (where := mode.constants_changed()) is not None:
            raise NotReadable(
                f"{where}: expected tensors that stay as they are once they were used, got one that was "
                "changed in place later. Use evaluator='stacked'."
            )
        if not isinstance(losses, Tensor) or losses.shape != base.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise NotReadable(f"objective: expected losses {tuple(base.shape)}, got {got}.")
        end = mode.ref(losses)
        recorded_losses = losses if end is None else mode.value(end)
        _refuse_unseen(recorded_losses, base)
    return _tape(mode.nodes, len(weights), recorded_losses, end, asks)


def _losses(step: Step, output: Argument, mode: TapeMode, base: Tensor) -> tuple[Argument, bool]:
    """Return the tape's losses, and whether a black box gives them.

    A loss that cannot be recorded is kept as a single call: a black box gets all variants' rows together, as
    with `stacked`; other losses are computed in float64, see `subtracted`.
    """
    assert isinstance(step.objective, OutputLoss)
    loss, targets = step.objective.judged, step.objective.targets(step.batch)
    refs: list[Ref] = []

    def referred(tensor: Tensor) -> Tensor | Ref:
        if (ref := mode.ref(tensor)) is None:
            return tensor
        refs.append(ref)
        return ref

    args = map_tensors(referred, (output, targets))
    recorded = len(mode.nodes)
    try:
        with mode:
            return loss(output, targets), False
    except Exception as error:
        asks = isinstance(error, NotReadable) and error.box
        if not refs:
            raise
    del mode.nodes[recorded:]
    if not asks:
        return mode.add(loss, subtracted, args, {}, refs), False
    _refuse_unseen(map_tensors(mode.value, args[0], kind=Ref), base)
    weights = step.parameters.tensors

    def asked(output: Argument, targets: Argument) -> Tensor:
        with hidden(weights):  # past the network it would see the base's
            by_row = loss(output, targets)
        if not torch.isfinite(by_row.view(-1, len(base))[:, torch.isfinite(base)]).any():
            raise NotReadable(
                "objective: expected a loss that depends on weights through the output alone, got no "
                "finite loss while they were hidden. Use evaluator='stacked'."
            )
        return by_row

    return mode.add(asked, _of_all_rows, args, {}, refs, base), True


def _of_all_rows(call: TapedCall, output: Argument, targets: Argument) -> Tensor:
    """The rule of a black box behind the network: output and change together, variants outermost."""
    variants = next(leaves(output, Moved)).variants

    def rows(item: Tensor | Moved) -> Tensor:
        return item.value.flatten(0, 1) if isinstance(item, Moved) else repeat(item, variants)

    losses = call.function(map_tensors(rows, output, kind=(Tensor, Moved)), repeat(targets, variants))
    return losses.view(variants, -1) - call.output


def _refuse_unseen(tree: Argument, base: Tensor) -> None:
    """Refuse what is NaN, where the base's losses are not, because something read a hidden weight."""
    for tensor in tensors(tree):
        if not tensor.is_floating_point() or tensor.shape[:1] != base.shape:
            continue
        nan_rows = ~torch.isfinite(tensor.flatten(1).sum(1) if tensor.ndim > 1 else tensor)
        if (nan_rows & torch.isfinite(base)).any():
            raise NotReadable(
                "objective: expected weights, and what depends on them, to be read by torch functions, got a "
                "read that is none, as by NumPy, by compiled code or by a loss that no rule describes. "
                "Use evaluator='stacked'."
            )


def _tape(nodes: list[Node], parameters: int, base: Tensor, end: Ref | None, asks: bool) -> Tape:
    if asks:  # the box stands last, and is not asked for the base
        lay_out(nodes[:-1], nodes[-1].refs)
    elif end is not None:
        lay_out(nodes, [end])
    needed, last = [False] * len(nodes), [-1] * len(nodes)
    if end is not None:
        needed[end.node] = True
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
    sizes = [max(tensor.nbytes for tensor in tensors(node.call.output)) for node in nodes]
    calls = [
        place
        for place in range(parameters, len(nodes))
        if needed[place] and (end is None or place != end.node)
    ]
    return Tape(nodes, base, end, sizes, reached, last, asks, _unbounded(nodes, calls))


def _unbounded(nodes: list[Node], places: list[int]) -> frozenset[int]:
    """Return the nodes whose results are infinite or NaN somewhere; a GPU is waited for once."""
    floats = [
        (place, tensor)
        for place in places
        for tensor in tensors(nodes[place].call.output)
        if tensor.is_floating_point()
    ]
    if not floats:
        return frozenset()
    device = floats[0][1].device
    finite = torch.stack([tensor.isfinite().all().to(device) for _, tensor in floats]).tolist()
    return frozenset(place for (place, _), whole in zip(floats, finite, strict=True) if not whole)


def _forwards(network: nn.Module, mode: TapeMode) -> dict[nn.Module, Forward]:
    """Forwards that say where the tape's mode is."""
    forwards: dict[nn.Module, Forward] = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotReadable(
                f"{name or type(module).__name__}: expected a module in Python, got a compiled ScriptModule. "
                "Use evaluator='loop'."
            )
        forwards[module] = _named(f"{name} ({type(module).__name__})" if name else "", module.forward, mode)
    return forwards


def _named(name: str, forward: Forward, mode: TapeMode) -> Forward:
    def replacement(*args: Argument, **kwargs: Argument) -> Argument:
        mode.where.append(name)
        result = forward(*args, **kwargs)
        mode.where.pop()  # not after an error: its message is to say where
        return result

    return replacement


def _refuse_box(mode: TapeMode, box: BlackBoxFunction, arrays: tuple[Argument, ...]) -> Argument:
    """Black boxes are not called with what depends on the weights: they would get NaN, and count it."""
    if any(isinstance(array, Tensor) and mode.ref(array) is not None for array in arrays):
        raise NotReadable(
            f"{box!r}: expected no black box between weights and losses, got one. Use 'stacked'.", box=True
        )
    return box.call(*arrays)
