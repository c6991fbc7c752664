"""Cuts of the gradient: inputs and outputs without derivative that weights move and the loss depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.calls import intercepted
from blackbox.notices import Notice
from zo.batches import map_tensors
from zo.errors import BlackBoxError, TangentWarning
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.tangents.playback.playback import Answers
from zo.tangents.record.recorded_call import RecordedCall, rows_alive


@torch.no_grad()
def outputs_without_gradient(
    step: Step,
    boxes: Sequence[BlackBoxFunction],
    calls: Sequence[RecordedCall],
    alive: Tensor,
    *,
    masks: bool = False,
) -> list[str]:
    """Outputs without derivative that change the losses when rows exchange theirs; in words.

    Costs two evaluations of the objective and one more for each further such output, in which the boxes are
    not evaluated; none where no box has such an output. The network is left as it was.

    Args:
        step: network, parameters, objective and batch.
        boxes: the boxes that the objective calls.
        calls: the recorded calls of the base; variants beside it do not count.
        alive: `(batch rows,)` bool, the rows that did not fail.
        masks: whether boolean outputs are among them.
    """
    outputs = sorted(
        {
            (call.box, place)
            for call in calls
            for place, spec in enumerate(boxes[call.box].outputs)
            if not spec.differentiable and spec.modelled and (masks or spec.dtype != "bool")
        }
    )
    if not outputs:
        return []
    snapshot = Snapshot(step.network)

    def evaluated(exchanged: tuple[int, int] | None) -> Tensor | None:
        """The losses; None where the objective cannot be evaluated like that."""
        answers = _Exchanged(boxes, calls, alive, exchanged)
        batch = map_tensors(Tensor.clone, step.batch)  # an objective may write to what it is given
        try:
            with intercepted(answers.call):
                return losses(step.objective, step.network, batch, step.rows)[alive]
        except BlackBoxError:  # of another box, or calls that go by these numbers
            return None
        except (ValueError, IndexError, RuntimeError, AssertionError, KeyError):
            return None
        finally:
            snapshot.restore()

    reference = evaluated(None)
    if reference is None:
        return []
    names = []
    for box, place in outputs:
        exchanged_losses = evaluated((box, place))
        if exchanged_losses is None or not torch.equal(reference, exchanged_losses):
            spec = boxes[box].outputs[place]
            names.append(f"{spec.name!r} ({_why(spec)}) of {boxes[box]!r}")
    return names


def inputs_without_gradient(
    boxes: Sequence[BlackBoxFunction], reached: Iterable[tuple[int, int]]
) -> list[str]:
    """Inputs without derivative that weights move, in words.

    Args:
        boxes: the boxes that the objective calls.
        reached: boxes and their inputs, by their places, that depend on weights.
    """
    inputs = [(boxes[box], boxes[box].inputs[place]) for box, place in sorted(reached)]
    return [f"{spec.name!r} ({_why(spec)}) of {box!r}" for box, spec in inputs if not spec.differentiable]


def inputs_notice(step: int, inputs: Sequence[str]) -> Notice | None:
    """The warning of inputs without a gradient that weights move; None for none.

    Args:
        step: the number of the step.
        inputs: which, in words.
    """
    if not inputs:
        return None
    return Notice(
        "inputs without a gradient",
        f"Step {step + 1}: expected inputs without a derivative that do not depend on the weights, got "
        f"{' and '.join(inputs)}, and what weights change through them is missing from the gradient. Leave "
        "differentiable=False out of the spec; or, if it is meant so, give the box the tensor's .detach().",
        TangentWarning,
    )


def outputs_notice(step: int, outputs: Sequence[str]) -> Notice | None:
    """The warning of outputs without a gradient that the losses depend on; None for none.

    Args:
        step: the number of the step.
        outputs: which, in words.
    """
    if not outputs:
        return None
    return Notice(
        "outputs without a gradient",
        f"Step {step + 1}: expected a loss of outputs that have a gradient, got one that depends on "
        f"{' and '.join(outputs)}, which have none: what weights change through them is missing from the "
        "gradient. As an index, a label or a status that is as it should be. Otherwise let the box give a "
        "number that follows its inputs as a float, without differentiable=False, or take zo.LossGradient, "
        "which goes by the loss itself.",
        TangentWarning,
    )


def replayed_notice(outputs: Sequence[str]) -> Notice | None:
    """The warning of outputs that a replay leaves as they were and the losses depend on; None for none.

    Args:
        outputs: which, in words.
    """
    if not outputs:
        return None
    return Notice(
        "outputs replayed as recorded",
        "TangentGradient.replay: expected a loss of outputs that tangents can predict, got one that depends "
        f"on {' and '.join(outputs)}, which stay as recorded: loss and gradient of a replay are off by what "
        "weights have changed of them since. Where weights do not change a label or a mask, that is as it "
        "should be. Otherwise let the box give a number that follows its inputs as a float, without "
        "differentiable=False, or train without replays (Limits(replays=0)).",
        TangentWarning,
    )


def _why(spec: ArraySpec) -> str:
    """Why it has no derivative."""
    return "differentiable=False" if spec.floating else str(spec.dtype)


class _Exchanged(Answers):
    """Answers with the rows of one output moved on by one; with other numbers where all rows have the same.

    Args:
        exchanged: the place of the box and of its output; None for none.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        calls: Sequence[RecordedCall],
        alive: Tensor,
        exchanged: tuple[int, int] | None,
    ) -> None:
        super().__init__(boxes, calls, alive)
        self._exchanged = exchanged

    def answer(self, number: int, box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs, call = super().answer(number, box, arrays), self.calls[number]
        if self._exchanged is None or call.box != self._exchanged[0]:
            return outputs
        place = self._exchanged[1]
        rows = outputs[place].reshape(call.outputs[place].shape)
        alive = rows_alive(self.alive, rows)
        rotation = rows[alive].roll(1, dims=0)
        if torch.equal(rotation, rows[alive]):
            rotation = _others(rotation)
        exchanged_rows = rows.clone()
        exchanged_rows[alive] = rotation
        return (*outputs[:place], exchanged_rows.reshape(outputs[place].shape), *outputs[place + 1 :])


def _others(rows: Tensor) -> Tensor:
    """Other numbers of the same dtype; of a float beyond its digits one more would be the same."""
    if rows.dtype == torch.bool:
        return ~rows
    return rows + rows.abs() + 1 if rows.is_floating_point() else rows + 1
