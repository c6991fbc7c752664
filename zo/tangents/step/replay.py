"""Replaying recorded calls: the base's own outputs, with a tangent's vector-Jacobian product behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from blackbox import BlackBoxFunction
from zo.errors import TangentError
from zo.tangents.pairs import CallPairs, sizes
from zo.tangents.step.calls import RecordedCall
from zo.tangents.step.recording import Route, flat_rows, refuse_arrays
from zo.tangents.tangent import Tangent


class Replay:
    """Answers the calls of an objective in the order in which they were recorded; no box is evaluated.

    Args:
        boxes: the boxes.
        calls: of the base and the probes; only the base's are used.
        pairs: of each call, for the tangents.
        tangents: of each box.
        alive: `(batch rows,)` bool, the rows whose inputs must be what was recorded.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        tangents: Sequence[Tangent],
        alive: Tensor,
    ) -> None:
        self.boxes = boxes
        self.calls = calls
        self.pairs = pairs
        self.tangents = tangents
        self.alive = alive
        self._next = 0

    def route(self, own: Callable[..., Any]) -> Route:
        """For `routed`."""

        def call(place: int, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            number, box = self._next, self.boxes[place]
            if number == len(self.calls) or self.calls[number].box != place:
                known = "no further one" if number == len(self.calls) else repr(self._box(number))
                raise _differs(f"call {number + 1} of a box to be of {known}", f"one of {box!r}")
            self._next += 1
            refuse_arrays(box, arrays)
            self._check_inputs(number, arrays)
            pairs = zip(box.inputs, arrays, strict=True)
            inputs = [array if spec.differentiable else array.detach() for spec, array in pairs]
            answer = _Answer(box, self.calls[number], self.pairs[number], self.tangents[place])
            outputs = _Answered.apply(answer, *inputs)
            return outputs[0] if len(outputs) == 1 else outputs

        return call

    def finish(self) -> None:
        """Refuse an objective that made fewer calls than were recorded.

        Raises:
            TangentError: it did.
        """
        if self._next < len(self.calls):
            raise _differs(f"{len(self.calls)} calls of the boxes", f"{self._next}")

    def _box(self, number: int) -> BlackBoxFunction:
        return self.boxes[self.calls[number].box]

    def _check_inputs(self, number: int, arrays: tuple[Tensor, ...]) -> None:
        """The base alone must come to the same inputs, to rounding, as it did beside the probes."""
        box, call = self._box(number), self.calls[number]
        for spec, array, kept in zip(box.inputs, arrays, call.inputs, strict=True):
            given, recorded = flat_rows(spec, array), kept[0]
            where = f"input {spec.name!r} of call {number + 1}, of {box!r},"
            if given.shape != recorded.shape or given.dtype != recorded.dtype:
                known, found = ((t.dtype, tuple(t.shape)) for t in (recorded, given))
                raise _differs(f"{where} to be {known[0]} of shape {known[1]}", f"{found[0]} of {found[1]}")
            each, rest = divmod(len(given), len(self.alive))
            if not rest:
                rows = self.alive.repeat_interleave(each).to(given.device)
                given, recorded = given[rows], recorded[rows]
            if not spec.floating:
                same = torch.equal(given, recorded)
            else:  # what differs in the order of sums differs by units in the last place, and adds up
                size = float(recorded.nan_to_num(0.0, 0.0, 0.0).abs().amax())
                allowed = torch.finfo(given.dtype).eps ** 0.5 * size
                same = torch.allclose(given, recorded, rtol=0.0, atol=allowed, equal_nan=True)
            if not same:
                raise _differs(f"{where} to be what it was beside the probes", "another")


@dataclass(frozen=True)
class _Answer:
    """What is known of one call."""

    box: BlackBoxFunction
    call: RecordedCall
    pairs: CallPairs
    tangent: Tangent

    def outputs(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The base's, as they were recorded, with the leading axes that the inputs have."""
        leading = inputs[0].shape[: inputs[0].ndim - len(self.box.inputs[0].shape)]
        pairs = zip(self.box.outputs, self.call.outputs, strict=True)
        return tuple(kept[0].reshape(*leading, *spec.shape).clone() for spec, kept in pairs)

    @torch.no_grad()
    def pull_back(self, cotangents: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The tangent's gradient of each input, `(rows, size)`; None of those without derivative."""
        z = self.pairs.z
        parts = [
            z.new_zeros(len(z), size) if cotangent is None else cotangent.reshape(len(z), size).to(z.dtype)
            for cotangent, size, spec in zip(
                cotangents, sizes(self.box.outputs), self.box.outputs, strict=True
            )
            if spec.differentiable
        ]
        whole = self.tangent.vjp(self.pairs, torch.cat(parts, dim=-1))
        found = iter(whole.split(sizes(self.pairs.inputs), dim=-1))
        return [next(found) if spec.differentiable else None for spec in self.box.inputs]


class _Answered(Function):
    """`apply(answer, *inputs)` gives a tuple with the recorded outputs."""

    @staticmethod
    def forward(ctx: Any, answer: _Answer, *inputs: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        """No box is evaluated."""
        outputs = answer.outputs(inputs)
        ctx.answer, ctx.like = answer, [(x.shape, x.dtype) for x in inputs]
        pairs = zip(answer.box.outputs, outputs, strict=True)
        ctx.mark_non_differentiable(*(out for spec, out in pairs if not spec.differentiable))
        ctx.set_materialize_grads(False)  # None tells an output that the loss does not use
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The tangent's vector-Jacobian product."""
        found = zip(ctx.answer.pull_back(cotangents), ctx.like, strict=True)
        return None, *(g if g is None else g.reshape(shape).to(dtype) for g, (shape, dtype) in found)


def _differs(expected: str, found: str) -> TangentError:
    return TangentError(
        f"objective: expected {expected}, got {found}. In a step it is evaluated twice, with the probes and "
        "alone: it must call the same boxes in the same order on the same values. Keep the batch's rows "
        "first and rows of different variants apart, draw no random numbers outside of the network's "
        "layers, or use evaluator='loop'."
    )
