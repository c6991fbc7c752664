"""Recording PhiFlow's operators once as a graph of torch operations, good for any number of rows.

PhiFlow looks up dimensions by name at every call, which costs some 0.1 s a step however small the
grid. `record` runs an operator once, keeps the torch operations that it made (`make_fx`: no
compiler is needed, autograd goes through), and takes out what does nothing: constants are computed
once, permutations and views to the same layout dropped. No size in what is left depends on the
number of rows, so one recording serves every call; that is checked, not hoped for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from simulators.errors import RecordingError

ROWS = 3  # while recording: the size of no other axis (components 2, cells 7 and more)
FIXED_SIZES = ("view", "_unsafe_view", "expand", "repeat", "new_zeros", "new_ones", "new_full", "new_empty")


def record(function: Callable[..., Tensor], *examples: Tensor) -> GraphModule:
    """The torch operations of `function`, as a module that takes any number of rows.

    Args:
        function: of tensors that have rows first, free of branches on their values.
        *examples: one per argument, `(ROWS, ...)`; the recording is for their dtype and device.

    Returns:
        A module with the same arguments and result.

    Raises:
        RecordingError: an operation with the number of rows in it is left.
    """
    # A plain function: make_fx counts the arguments of bound methods wrongly.
    recorded = make_fx(lambda *arrays: function(*arrays))(*(e.detach() for e in examples))
    _drop_idle(recorded)
    _unstack_sums(recorded)
    _fold_constants(recorded)
    _share_repeats(recorded)
    recorded.graph.eliminate_dead_code()
    recorded.delete_all_unused_submodules()
    recorded.recompile()
    for node in recorded.graph.nodes:
        if _depends_on_rows(recorded, node):
            raise RecordingError(
                f"record: expected operations for any number of rows, got {node.format_node()}. "
                "Use the pinned version of PhiFlow (3.4)."
            )
        node.meta.clear()  # example values; they would keep memory
    return recorded


def _depends_on_rows(recorded: GraphModule, node: Node) -> bool:
    if node.op == "get_attr":
        return ROWS in getattr(recorded, str(node.target)).shape
    return node.op == "call_function" and _name(node) in FIXED_SIZES


def _name(node: Node) -> str:
    """Of the torch operation, without its overload."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _drop_idle(recorded: GraphModule) -> None:
    """Replace permutations, views and factors of one by their input."""
    for node in list(recorded.graph.nodes):
        if node.op != "call_function":
            continue
        name = _name(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, Node):
            continue
        before, after = source.meta.get("val"), node.meta.get("val")
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            continue
        if (
            (name == "permute" and list(node.args[1]) == list(range(before.ndim)))
            or (name in ("view", "_unsafe_view", "expand") and before.shape == after.shape)
            or (name in ("mul", "div") and node.args[1] == 1 and before.dtype == after.dtype)
        ):
            node.replace_all_uses_with(source)
            recorded.graph.erase_node(node)


def _unstack_sums(recorded: GraphModule) -> None:
    """Replace the sum of a stack of two by an addition; the stack is a slow, interleaved copy."""
    for node in list(recorded.graph.nodes):
        if node.op != "call_function" or node.target.__name__ != "sum.dim_IntList":
            continue
        stack = node.args[0]
        if stack.target is not torch.ops.aten.stack.default or len(stack.args[0]) != 2 or len(node.args) != 2:
            continue
        if list(node.args[1]) == [stack.args[1]]:
            with recorded.graph.inserting_before(node):
                added = recorded.graph.call_function(torch.ops.aten.add.Tensor, tuple(stack.args[0]))
            added.meta["val"] = node.meta.get("val")
            node.replace_all_uses_with(added)
            recorded.graph.erase_node(node)


def _fold_constants(recorded: GraphModule) -> None:
    """Compute once what depends on no input."""
    values: dict[Node, Any] = {}
    for node in list(recorded.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(recorded, node.target)
        elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
            arguments = map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*arguments[0], **arguments[1])
            if not isinstance(value, Tensor):
                continue
            values[node] = value
            name = f"constant_{len(values)}"
            recorded.register_buffer(name, value.contiguous(), persistent=False)
            with recorded.graph.inserting_before(node):
                constant = recorded.graph.get_attr(name)
            values[constant] = value
            node.replace_all_uses_with(constant)
            recorded.graph.erase_node(node)


def _share_repeats(recorded: GraphModule) -> None:
    """Do equal operations on equal inputs once."""
    seen: dict[str, Node] = {}
    for node in list(recorded.graph.nodes):
        if node.op == "get_attr":
            value = getattr(recorded, node.target)
            key = f"{value.dtype} {tuple(value.shape)} {value.tolist()}"
        elif node.op == "call_function":
            key = f"{node.target} {node.args} {node.kwargs}"
        else:
            continue
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            recorded.graph.erase_node(node)
