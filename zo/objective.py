"""The objective: `objective(network, batch) -> Tensor (rows,)`, one loss per row; calling and checking it."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from blackbox.calls import intercepted
from blackbox.errors import BlackBoxError, NoRowLeftError
from zo.batches import Batch, map_tensors, tensors
from zo.errors import ObjectiveError

Objective: TypeAlias = Callable[[nn.Module, Any], Tensor]
Closure: TypeAlias = Callable[[], Tensor]
# what torch says to a hook, `retain_grad` and `get_gradient_edge` where there is no graph
_LISTENS = ("cannot register a hook", "can't retain_grad", "get the gradient edge")


class Closed:
    """A closure as an objective: it knows network and batch by itself, and how many losses it gives.

    Args:
        closure: `closure() -> Tensor`, one loss or one for each row.
    """

    def __init__(self, closure: Closure) -> None:
        self.closure = closure

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """One loss per row, whatever is given."""
        result = self.closure()
        return result.reshape(1) if isinstance(result, Tensor) and result.ndim == 0 else result


def _first(batch: Batch) -> Batch:
    return batch[0]


def _second(batch: Batch) -> Batch:
    return batch[1]


class OutputLoss:
    """A known loss of the network's output: `loss(network(inputs(batch)), targets(batch))`.

        objective = zo.OutputLoss(lambda output, target: F.cross_entropy(output, target, reduction="none"))

    It declares that only the network stands between weights and output, which the evaluator "difference"
    needs to know. The loss may be anything, including a black box behind the network.

    The loss is evaluated in float64, whatever the network gives: subtracted from each other, losses then lose
    no digits to an offset in outputs and targets, or to their own size. A loss that does not run on float64,
    such as a layer with weights in float32, or one that calls a black box, gets outputs and targets as they
    are; the first call decides.

    Args:
        loss: `loss(output, target) -> Tensor (rows,)`.
        inputs: returns the network's input from a batch: a tensor, or a tuple of its arguments.
        targets: returns the loss's second argument.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor],
        *,
        inputs: Callable[[Any], Any] = _first,
        targets: Callable[[Any], Any] = _second,
    ) -> None:
        self.loss = loss
        self.inputs = inputs
        self.targets = targets
        self._wide: bool | None = None  # whether the loss runs in float64; None before the first call

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """One loss per row, in float64 where the loss runs in it."""
        return self.judged(self.output(network, batch), self.targets(batch))

    def judged(self, output: Any, targets: Any) -> Tensor:
        """The loss of an output that is there already, in float64 where the loss runs in it."""
        if self._wide is None:
            states = torch.get_rng_state(), _cuda_states()
            try:
                with intercepted(_refuse_in_float64):
                    loss = self.loss(*_widened((output, targets)))
            except Exception:  # if it is another fault than that of float64, it is raised by what follows
                self._wide = False
                torch.set_rng_state(states[0])
                if states[1]:
                    torch.cuda.set_rng_state_all(states[1])
            else:
                self._wide = True
                return loss
        return self.loss(*_widened((output, targets))) if self._wide else self.loss(output, targets)

    def output(self, network: nn.Module, batch: Batch) -> Batch:
        """The network's output on a batch."""
        inputs = self.inputs(batch)
        return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)


class _Asked(Exception):
    """A loss calls a black box, which is not given other floats than the network's."""


def _refuse_in_float64(box: Any, arrays: tuple[Any, ...]) -> Any:
    raise _Asked


def _widened(tree: Any) -> Any:
    """All floats of a nesting in float64."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tree)


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def as_objective(objective: Objective | Closure) -> Objective:
    """A closure, which takes no argument, made an objective; an objective as it is."""
    try:
        arguments = len(inspect.signature(objective).parameters)
    except (TypeError, ValueError):  # some callables in C have no signature
        return cast(Objective, objective)
    return Closed(cast(Closure, objective)) if arguments == 0 else cast(Objective, objective)


def losses(
    objective: Objective,
    network: nn.Module,
    batch: Batch,
    rows: int | None,
    *,
    with_graph: bool = False,
) -> Tensor:
    """One loss per row, `(rows,)`, detached unless its graph is wanted; None for as many as there are.

    Raises:
        ObjectiveError: it returned something else, or asked autograd for a gradient, or for a hook on one,
            and there is no graph.
    """
    try:
        with comparable(network):
            result = objective(network, batch)
    except NoRowLeftError:
        result = _all_lost(network, rows)
    except RuntimeError as error:
        if "dtype" in str(error) or "scalar type" in str(error):
            error.add_note(_dtypes(network, batch))
        if any(words in str(error) for words in _LISTENS):
            raise ObjectiveError(
                "objective: expected one that needs no graph, as it is also evaluated under torch.no_grad(), "
                f"got one that listens to the gradient of a tensor without one ({error}). Write `if "
                "y.requires_grad:` before y.register_hook(...) or y.retain_grad(). What a hook makes of a "
                "gradient is seen by autograd alone: function values do not show it."
            ) from error
        if torch.is_grad_enabled() or "does not require grad" not in str(error):
            raise
        if isinstance(error, BlackBoxError):
            error.add_note(
                "Boxes are called under torch.no_grad() here: one that takes a derivative by torch itself "
                "does so inside of `with torch.enable_grad():`."
            )
            raise
        raise ObjectiveError(
            "objective: expected one that needs no graph, as it is evaluated under torch.no_grad(), got one "
            f"that asks autograd for a gradient ({error}). If it needs one, as for the residual of a "
            "differential equation, compute that inside of `with torch.enable_grad():` in the objective."
        ) from error
    result = per_row(result, rows)
    return result if with_graph else result.detach()


def per_row(result: Any, rows: int | None) -> Tensor:
    """The result of an objective, `(rows,)`, as it is; None for as many rows as there are.

    Raises:
        ObjectiveError: it is something else.
    """
    shaped = isinstance(result, Tensor) and (result.ndim == 1 if rows is None else result.shape == (rows,))
    floating = isinstance(result, Tensor) and result.is_floating_point() and not result.is_meta
    if not isinstance(result, Tensor) or not shaped or not len(result) or not floating:
        raise ObjectiveError(
            f"objective: expected one floating loss per row, a tensor of shape ({rows or 'rows'},), got "
            f"{described_result(result)}"
        )
    return result


def evaluated(objective: Objective, network: nn.Module, batch: Batch, rows: int | None) -> Any:
    """Call an objective; NaN for each row where a box has no row left, see `NoRowLeftError`.

    Args:
        objective: the objective.
        network: its network.
        batch: its batch.
        rows: how many losses there are; None for one.
    """
    try:
        return objective(network, batch)
    except NoRowLeftError:
        return _all_lost(network, rows)


def _all_lost(network: nn.Module, rows: int | None) -> Tensor:
    """NaN for each row, in the dtype of the weights."""
    like = next((weight for weight in network.parameters() if weight.is_floating_point()), None)
    nan_losses = torch.full((rows or 1,), math.nan)
    return nan_losses if like is None else nan_losses.to(like)


def mean_loss(losses: Tensor) -> Tensor:
    """The mean of losses `(rows,)`, detached: finite where they are, though their sum may be too large."""
    mean = losses.detach().mean()
    return torch.where(mean.isfinite(), mean, losses.detach().double().mean().to(mean.dtype))


def _dtypes(network: nn.Module, batch: Batch) -> str:
    """List the dtypes that meet in an objective, and how to make them one; a note to torch's error."""
    weights = {str(weight.dtype)[6:] for weight in network.parameters() if weight.is_floating_point()}
    data = {str(part.dtype)[6:] for part in tensors(batch) if part.is_floating_point()}
    return (
        f"The network's weights are {' and '.join(sorted(weights)) or 'none'}, the batch has "
        f"{' and '.join(sorted(data)) or 'no floats'}; a black box answers in the dtype of its inputs. Make "
        "them one: batch.float() is float32, as weights are by default (NumPy's numbers are float64)."
    )


def described_result(result: Any) -> str:
    """Describe a result of an objective that is no loss for each row, and its mend: the end of a message."""
    if result is None:
        return "None. Does it end with `return`?"
    if not isinstance(result, Tensor):
        kind = f"{type(result).__module__}.{type(result).__name__}".removeprefix("builtins.")
        return (
            f"{kind}. Return the tensor itself, as torch computed it, without .item(), .tolist() or .numpy()."
        )
    got = f"a {str(result.dtype)[6:]} tensor of shape {tuple(result.shape)}"
    if result.is_meta:
        return f"{got} on the device 'meta', which has no numbers. Move network and batch to another one."
    if result.is_complex():
        return f"{got}. Return real numbers, such as error.abs().square()."
    if not result.is_floating_point():
        return (
            f"{got}, which a small step of the weights cannot change. Return the loss before it is rounded."
        )
    return f"{got}. Take the mean over all axes but the first, such as error.flatten(1).mean(dim=1)."


def uncompiled() -> AbstractContextManager[None]:
    """A block in which compiled modules run as they were written.

    Forwards that are replaced for a chunk would be compiled anew for each; and what torch.compile meets
    while a measurement looks on it never compiles again.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        return nullcontext()
    return _eager()


_eager_lock = Lock()
_eager_stances: list[AbstractContextManager[Any]] = []  # one, while some block of some thread wants it
_eager_blocks = [0]


@contextmanager
def _eager() -> Iterator[None]:
    """The stance is one for all threads: the first block sets it, and the last one to end puts it back."""
    with _eager_lock:
        _eager_blocks[0] += 1
        if _eager_blocks[0] == 1:
            _eager_stances.append(torch.compiler.set_stance("force_eager"))
            _eager_stances[0].__enter__()
    try:
        yield
    finally:
        with _eager_lock:
            _eager_blocks[0] -= 1
            if _eager_blocks[0] == 0:
                _eager_stances.pop().__exit__(None, None, None)


@contextmanager
def comparable(network: nn.Module) -> Iterator[None]:
    """The same operations and draws in the base and in all queries, whichever evaluator runs them.

    Differences are divided by mu, so nothing but the weights may differ between two evaluations.
    """
    # The fast path of transformers rounds otherwise, and reads the weights of layers that it never calls.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # A mask is drawn in the order of memory, which stacked variants do not share with a single one.
    hooks = [
        module.register_forward_pre_hook(_contiguous)
        for module in network.modules()
        if isinstance(module, _DropoutNd) and module.training
    ]
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for hook in hooks:
            hook.remove()


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)
