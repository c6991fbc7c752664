"""`AutogradGradient`: the gradient of methods that differentiate the objective by autograd.

What stands in the place of a box is a function: its derivative if there is one, its values with no gradient,
or an estimate of its derivative. So an objective that calls `self.box` is written once for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import zo
from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.failures import noted
from blackbox.notices import Notices
from blackbox.words import counted
from tasks.errors import NotApplicableError
from tasks.problem.data import one_each
from zo.batches import Batch, count_rows, map_tensors
from zo.errors import NonFiniteGradientError
from zo.evaluators.state import Snapshot
from zo.failed_rows import lost_notice, survivors, zero_notice
from zo.objective import evaluated, mean_loss

Stand = Callable[..., Any]
"""What stands in a box's place: tensors in and out as the box's, and autograd may pass."""
_ZERO = (
    "Is every way from the weights to the loss flat, such as through a saturated activation, or cut, as "
    "no-gradient cuts it at the box? A box that answers with labels, zeros and a one, has the same zero in a "
    "logarithm that is clamped: take a loss that is straight in its answers, such as one minus that of the "
    "true kind, or the squared error."
)


@dataclass
class AutogradCounts:
    """The counts of an `AutogradGradient`.

    Attributes:
        steps: Calls of `backward`.
        queries: Perturbed rows, where the box's derivative is estimated from some.
        dropped: The perturbed rows that failed.
        lost: Rows of batches that were left out, for their loss was not finite.
    """

    steps: int = 0
    queries: int = 0
    dropped: int = 0
    lost: int = 0


class AutogradGradient:
    """Fills `.grad` by autograd, with something else in the place of each black box.

    Rows whose loss is not finite are taken out of the loss and the gradient, as `zo.LossGradient` does. Then
    the objective is evaluated once more, without them, from buffers as they were; and again where others fail
    then. A warning says once that a gradient is exactly zero.

    Args:
        network: The network that is trained.
        objective: `objective(network, batch) -> Tensor (rows,)`; it calls the boxes.
        stands: The substitute for each box. A `zo.differentiable` box has its own counts and state, which are
            kept.
        most_zeros: How many first steps may have a gradient that is exactly zero in every weight; None for
            any number.

    Attributes:
        counts: The counts so far, see `AutogradCounts`.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Callable[[nn.Module, Any], Tensor],
        stands: Mapping[BlackBoxFunction, Stand],
        most_zeros: int | None = None,
    ) -> None:
        self.network, self.objective = network, objective
        self.counts = AutogradCounts()
        self._zeros, self._most_zeros = 0, most_zeros  # steps, from the first one on
        self._stands = {id(box): stand for box, stand in stands.items()}
        self._boxes = [
            stand for stand in stands.values() if isinstance(stand, zo.box_gradient.DifferentiableBox)
        ]
        self._notices = Notices()

    def backward(self, batch: Batch) -> Tensor:
        """Add the gradient of the mean loss to `.grad`; returns that loss, detached.

        Raises:
            FailedQueriesError: No row has a finite loss; buffers and generators are as they were.
            NonFiniteGradientError: The gradient is not finite though the loss is. The weights' `.grad`,
                buffers and generators are as they were.
            NotDifferentiableError: A gradient arrives at a box that nothing stands in for. In a `Problem`,
                return that box from `box` as well.
            NotApplicableError: No weight receives a gradient, in the first step; or one that is exactly zero
                in all of the first `most_zeros`.

        Warns:
            ZeroGradientWarning: The gradient is exactly zero in every weight.
            LostRowsWarning: Rows were left out though no black box failed.
        """
        step, start = self.counts.steps, Snapshot(self.network)
        try:
            losses = self._losses(batch, step, start)
            if losses.requires_grad:
                self._add_gradient(losses.mean())
        except BaseException:
            start.restore()
            raise
        if self.flat or "zero" not in self._notices.said:
            grads = [weight.grad for weight in self.network.parameters() if weight.grad is not None]
            if not grads:
                raise NotApplicableError(
                    f"Step {step + 1}: expected some weight of {type(self.network).__name__} to receive a "
                    "gradient, got none: every way from the weights to the loss is cut, by detach() or by "
                    "what stands in the box's place, or the objective uses another network. Take a method "
                    "that goes through the box, such as tangents or sparse-cge."
                )
            reached = next((grad for grad in grads if grad.any()), grads[0])
            self._notices.say(zero_notice(step, reached, _ZERO))
            if self.flat and not reached.any():
                self._zeros += 1
                self._refuse_flat()
        self.counts.steps += 1
        self.counts.queries = sum(box.counts.rows for box in self._boxes)
        self.counts.dropped = sum(box.counts.dropped for box in self._boxes)
        return mean_loss(losses)

    @property
    def flat(self) -> bool:
        """True if the gradients of all steps so far were exactly zero in every weight."""
        return self._zeros == self.counts.steps

    def _refuse_flat(self) -> None:
        """Stop the method at the last step that may be without any slope."""
        if self._zeros == self._most_zeros:
            raise NotApplicableError(
                f"Step {self._zeros}: expected a gradient that is not zero in one of the first "
                f"{counted(self._zeros, 'step')}, got exactly zero in every weight of "
                f"{type(self.network).__name__} each time, so that none has moved: what is left of the loss "
                "where the gradient is cut is flat, as a penalty on outputs of a last layer that begins at "
                "zero. Take a method that goes through the box, such as tangents or sparse-cge."
            )

    def _add_gradient(self, loss: Tensor) -> None:
        """Add it to the weights' `.grad`, in place, which is as it was where it is not finite."""
        weights = list(self.network.parameters())
        slopes = [(weight.grad, None if weight.grad is None else weight.grad.clone()) for weight in weights]
        try:
            loss.backward()
            grads = [weight.grad for weight in weights if weight.grad is not None]
            numbers = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
            # of flags on one device, for which the host waits once
            flags = [values.isfinite().all().to(numbers[0].device) for values in numbers]
            if flags and not torch.stack(flags).all():
                raise NonFiniteGradientError(
                    f"Step {self.counts.steps + 1}: expected a finite gradient, got NaN or infinity from a "
                    "finite loss. See roots, logarithms and divisions by zero in network and objective, and "
                    "the derivative of what stands in the box's place. Go on with the next batch."
                )
        except BaseException:
            for weight, (grad, copy) in zip(weights, slopes, strict=True):
                if grad is not None and copy is not None and not grad.is_sparse:
                    weight.grad = grad.copy_(copy)
                else:
                    weight.grad = copy
            raise

    def metrics(self) -> dict[str, float]:
        """The counts, by name."""
        return {name: float(count) for name, count in asdict(self.counts).items()}

    def state_dict(self) -> dict[str, Any]:
        """Counts, and what estimates of the boxes' derivatives carry on."""
        boxes = [box.state_dict() for box in self._boxes]
        return {"counts": asdict(self.counts), "boxes": boxes, "zeros": self._zeros}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.counts = AutogradCounts(**state["counts"])
        self._zeros = state["zeros"]
        for box, counts in zip(self._boxes, state["boxes"], strict=True):
            box.load_state_dict(counts)

    def _losses(self, batch: Batch, step: int, before: Snapshot) -> Tensor:
        """Evaluate the rows that survive, with their graph; failed rows are in no buffer."""
        with intercepted(self._answer), noted() as causes:
            losses = one_each(self._evaluated(batch), batch)
            alive = survivors(losses.detach(), step, causes)
            self._notices.say(lost_notice(step, alive, causes, batch))
            while not alive.all():  # in the backward pass of a mean that leaves rows out, 0 * NaN is NaN
                self.counts.lost += int((~alive).sum())
                batch = map_tensors(lambda tensor, rows=alive: tensor[rows.to(tensor.device)], batch)
                before.restore()  # running statistics that saw a failed row's NaN would keep it
                losses = self._evaluated(batch)
                alive = survivors(losses.detach(), step, causes)
        return losses

    def _evaluated(self, batch: Batch) -> Tensor:
        return evaluated(self.objective, self.network, batch, count_rows(batch))

    def _answer(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        with intercepted(None):  # a box that nothing stands in for refuses inputs that carry a gradient
            return self._stands.get(id(box), box)(*arrays)

    def __repr__(self) -> str:
        """The network, and what stands in the boxes' places."""
        return f"AutogradGradient({type(self.network).__name__}, {list(self._stands.values())!r})"


def values_alone(box: BlackBoxFunction) -> Stand:
    """The box's values, and no gradient through it."""

    def call(*arrays: Tensor) -> Any:
        return box.call(*(array.detach() for array in arrays))

    return call
