"""The backward pass from a loss to the weights, by autograd, and checks for what it would lose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from blackbox.errors import NotDifferentiableError
from blackbox.notices import warn
from blackbox.words import counted
from zo.errors import ObjectiveError, TangentError, TangentWarning
from zo.evaluators.evaluator import Step
from zo.evaluators.operations import Operations
from zo.execution.memory import is_narrow

REENTRANT = "CheckpointFunctionBackward"  # of torch.utils.checkpoint with use_reentrant=True
HIDES = (
    "expected weights that the graph of the loss shows, got a block of torch.utils.checkpoint that hides "
    "them, whose gradient would be zero. Give it use_reentrant=False (gradient_checkpointing_kwargs="
    "{'use_reentrant': False} in transformers), and leave boxes outside of it."
)


def gradients_of(loss: Tensor, step: Step) -> tuple[Tensor, ...]:
    """The gradient by each of the chosen parameters; zero where the loss does not depend on it.

    Args:
        loss: the mean loss, with its graph, which is gone afterwards.
        step: the step, with its network and parameters.

    Raises:
        ConfigurationError: a chosen parameter is frozen.
        TangentError: the graph reaches back into one that is gone; or a block of the objective is computed
            again on the way back, and calls a box there, or is one of torch's older kind, whose weights the
            gradient does not reach.
    """
    step.parameters.refuse_frozen()  # as the objective may have done
    weights = step.parameters.tensors
    if not loss.requires_grad:
        return tuple(torch.zeros_like(weight) for weight in weights)
    with explained():
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        _refuse_reentrant(loss)
    return tuple(
        torch.zeros_like(weight) if gradient is None else gradient.to_dense()  # nn.Embedding(sparse=True)
        for weight, gradient in zip(weights, gradients, strict=True)
    )


@contextmanager
def explained() -> Iterator[None]:
    """Explain autograd's errors in the block in terms of the objective.

    Raises:
        TangentError: see `gradients_of`.
    """
    try:
        yield
    except NotDifferentiableError as error:
        raise TangentError(
            "objective: expected calls of boxes in its forward alone, got one on the way back, as inside of "
            "torch.utils.checkpoint, which computes a block again there. Leave boxes outside of such blocks: "
            "what they were asked and answered is kept anyhow."
        ) from error
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise TangentError(f"objective: {HIDES}") from error
        if "through the graph a second time" not in str(error):
            raise
        raise TangentError(
            "objective: expected a loss whose graph begins with this batch, got one that reaches back into a "
            "gradient before, as by a hidden state that the network keeps. Detach what is kept, as in "
            "self.state = state.detach(), and train without replays where the next batch goes on from it."
        ) from error


def reaches(loss: Tensor, weights: Sequence[Tensor], *, around: str) -> bool:
    """Say whether the loss reaches some weight along a path that avoids one autograd function.

    Args:
        loss: the mean loss, with its graph.
        weights: the weights; one that is reached is enough.
        around: the function's class, as `torch.autograd.Function` has it.
    """
    ids = {id(weight) for weight in weights}
    nodes = _nodes(loss, around=f"{around}Backward")
    return any(id(getattr(node, "variable", None)) in ids for node in nodes)


def leaves_beside(loss: Tensor, network: nn.Module, batch: Any) -> list[ReferenceType[Tensor]]:
    """List the tensors behind a loss that require a gradient, except the network's weights and the batch."""
    own_ids = {id(tensor) for tensor in (*network.parameters(), *tree_leaves(batch))}
    leaves = [getattr(node, "variable", None) for node in _nodes(loss)]
    return [ref(leaf) for leaf in leaves if leaf is not None and id(leaf) not in own_ids]


def warn_of_others(leaves: Sequence[ReferenceType[Tensor]], network: nn.Module) -> None:
    """Warn of leaves that are still there when a loss is gone: nothing is added to their `.grad`.

    An objective may make some, to take a derivative of its own; those are gone with it.

    Args:
        leaves: see `leaves_beside`, of a loss whose graph is gone.
        network: the network whose parameters get gradients.
    """
    live_leaves = [leaf for leaf in (leaf() for leaf in leaves) if leaf is not None]
    if live_leaves:
        _warn_of_untrained(
            live_leaves,
            f"behind the loss to be the parameters of {type(network).__name__}",
            "To train them, put them into the network, as an nn.Parameter or in a torch.nn.ModuleDict; else "
            "give them requires_grad_(False).",
        )


def warn_of_batch(batch: Any) -> None:
    """Warn of a batch that requires a gradient, as of inputs that are to be optimised: it gets none."""
    tensors = (tensor for tensor in tree_leaves(batch) if isinstance(tensor, Tensor))
    leaves = [tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf]
    if leaves:
        _warn_of_untrained(
            leaves,
            "to be the network's parameters, not the batch",
            "To train them, make them an nn.Parameter of the network; for their gradient take "
            "zo.differentiable; else give them .detach().",
        )


def _warn_of_untrained(leaves: Sequence[Tensor], expected: str, remedy: str) -> None:
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves[:3])
    warn(
        f"Step 1: expected all that requires a gradient {expected}, got "
        f"{counted(len(leaves), 'tensor')} more (of shape {shapes}{', ...' if leaves[3:] else ''}). They get "
        f"none here, so no optimizer trains them. {remedy}",
        TangentWarning,
    )


def refuse_autocast(weights: Sequence[Tensor], call: str) -> None:
    """Refuse to run inside of autocast, in which tangents would learn and answer in 16 bits.

    Raises:
        ObjectiveError: there is an autocast for the weights' device.
    """
    device = weights[0].device.type
    if torch.is_autocast_enabled(device):
        raise ObjectiveError(
            f"{call}: expected a call outside of torch.autocast, got one inside of a block to "
            f"{str(torch.get_autocast_dtype(device))[6:]}, in which tangents would learn in 16 bits too. "
            "Call it behind that block, and give the network one of its own in the objective, whose output "
            "goes to the box as .float()."
        )


class Narrow(Operations):
    """A block that notes numbers of 16 bits or less that depend on weights.

    Attributes:
        dtype: the first such dtype; None if there was none.
    """

    dtype: str | None = None

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Note the result if it is narrow and made of tensors that require a gradient."""
        if self.dtype is None:
            narrow = [t for t in tree_leaves(result) if isinstance(t, Tensor) and is_narrow(t)]
            sources = (t for t in tree_leaves(arguments) if isinstance(t, Tensor))
            if narrow and any(t.requires_grad for t in sources):
                self.dtype = str(narrow[0].dtype)[6:]
        return result


def _nodes(loss: Tensor, *, around: str | None = None) -> Iterator[Any]:
    """The nodes of a graph, each once; without those of the name `around` and what is behind them alone."""
    nodes, queue = set(), [loss.grad_fn]
    while queue:
        node = queue.pop()
        if node is not None and node not in nodes and node.name() != around:
            nodes.add(node)
            yield node
            queue += [successor for successor, _ in node.next_functions]


def _refuse_reentrant(loss: Tensor) -> None:
    """Refuse blocks that hide their weights from who asks for a gradient by name: those get none."""
    if any(node.name() == REENTRANT for node in _nodes(loss)):
        raise TangentError(f"objective: {HIDES}")
