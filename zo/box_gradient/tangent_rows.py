"""`TangentRows`: a tangent learns from a box's rows, and gives their gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.notices import Notice, Notices
from zo.box_gradient.doubt import is_checked
from zo.errors import TangentWarning
from zo.same_run import arrays_of
from zo.tangents.evidence.outliers import Outliers, outlying
from zo.tangents.evidence.predictions import predict_and_learn, relative_error
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.record.units import Units
from zo.tangents.tangent import Tangent

JUDGED = 50  # backward passes, after which a tangent has had the time to learn something
FORGETS = 20  # backward passes over which the mean of its error forgets
WORST = 2.0  # errors above count as this: one pass in which nothing is known is not all that counts
UNKNOWN = 1.0  # an error of values above which it knows next to nothing

_learning = RLock()  # threads that share a box learn one after another


class TangentRows:
    """A copy of a tangent, and how well it predicted the calls of the last backward.

    Args:
        box: the one whose calls it is given.
        tangent: is copied: what it learns is its own.
    """

    def __init__(self, box: BlackBoxFunction, tangent: Tangent) -> None:
        self.box = box
        self.tangent = copy.deepcopy(tangent)
        self.tangent.check_box(box)
        self.units = Units()
        self.outliers = Outliers(self.tangent.learns)
        self._notices = Notices()
        self._errors: dict[int, tuple[float | None, float]] = {}  # by call: relative, and size of responses
        self._ended = False  # whether a call came after the last backward
        self._passes, self._mean = 0, 0.0  # backward passes, and the running mean of their errors
        self.due = False  # whether the gradient of this call is to be compared with the box

    def start(self) -> None:
        """A call was made: the next backward is another one."""
        with _learning:
            self._ended = True

    def rows(self, inputs: list[Tensor], outputs: list[Tensor]) -> CallPairs:
        """The rows of a call that did not fail, as a tangent sees them.

        Args:
            inputs: all of the base, `(rows, *shape)` each.
            outputs: the same.
        """
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in inputs) else torch.float32
        z, y = _flat(self.box.inputs, inputs).to(dtype), _flat(self.box.outputs, outputs).to(dtype)
        moving, following = (
            tuple(spec for spec in specs if spec.differentiable)
            for specs in (self.box.inputs, self.box.outputs)
        )
        pairs = zip(self.box.inputs, inputs, strict=True)
        fixed_arrays = tuple(None if spec.differentiable else array for spec, array in pairs if spec.modelled)
        return CallPairs(moving, following, z, y, others=fixed_arrays)

    def pull_back(self, call: int, pairs: CallPairs, cotangents: dict[int, Tensor]) -> dict[int, Tensor]:
        """Predict the outputs, learn from them, and give the gradients.

        Args:
            call: the number of the call.
            pairs: its rows.
            cotangents: `(rows, *shape)` by the place of the output; where there is none it is zero.

        Returns:
            Gradients `(rows, size)` of inputs with a derivative, by their places.
        """
        cotangent = self.cotangent(pairs, cotangents)
        with _learning:
            self.due = False
            pairs = self._learn(call, pairs)
            pieces = self.tangent.at(pairs).pull(cotangent).split(sizes(pairs.inputs), dim=1)
        places = [place for place, spec in enumerate(self.box.inputs) if spec.differentiable]
        return dict(zip(places, pieces, strict=True))

    def cotangent(self, pairs: CallPairs, cotangents: dict[int, Tensor]) -> Tensor:
        """The gradients of all outputs with a derivative, end to end, `(rows, size)`."""
        rows = len(pairs.z)
        places = [place for place, spec in enumerate(self.box.outputs) if spec.differentiable]
        return torch.cat(
            [
                cotangents[place].reshape(rows, size).to(pairs.z.dtype)
                if place in cotangents
                else pairs.z.new_zeros(rows, size)
                for place, size in zip(places, sizes(pairs.outputs), strict=True)
            ],
            dim=1,
        )

    def state_dict(self) -> dict[str, Any]:
        """Save the tangent's kind, and what it has learned."""
        state, units = self.tangent.state_dict(), self.units.state_dict()
        extras = {"units": units, "outliers": self.outliers.state_dict()}
        extras["error"] = {"passes": self._passes, "mean": self._mean}
        return {"kind": repr(self.tangent), "box": arrays_of(self.box), "state": state, **extras}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.tangent.load_state_dict(state["state"])
        self.tangent.brought = False
        self.units.load_state_dict(state["units"])
        self.outliers.load_state_dict(state["outliers"])
        self._passes, self._mean = state["error"]["passes"], state["error"]["mean"]

    @property
    def trust(self) -> list[float | None]:
        """The values of `DifferentiableBox.trust`."""
        return [self._errors[call][0] for call in sorted(self._errors)]

    def metrics(self) -> dict[str, float]:
        """Return the figures of `DifferentiableBox.metrics`."""
        errors = [(error, size) for error, size in self._errors.values() if error is not None]
        total = sum(size for _, size in errors)
        named: dict[str, float | None] = {}
        if total:
            named["tangent_error"] = math.sqrt(sum(e**2 * size for e, size in errors if size) / total)
        named |= {f"tangent_error_call_{number}": error for number, error in enumerate(self.trust, start=1)}
        return {name: error for name, error in named.items() if error is not None}

    def _learn(self, call: int, pairs: CallPairs) -> CallPairs:
        if self._ended:
            self._judge(call)
            self._errors, self._ended = {}, False
        rows = len(pairs.z)
        (inliers,), (squares,), off = predict_and_learn(
            self.tangent, [pairs], self.units, self.outliers, rows
        )
        left_out = outlying([pairs], [inliers], off, rows)
        if left_out is not None:
            self._notices.say(left_out.notice(f"{type(self.box).__name__}, call {call + 1}"))
        self._errors[call] = relative_error([squares]), 0.0 if squares is None else squares[1]
        return inliers

    def _judge(self, call: int) -> None:
        """Take in the last backward pass; say once that the tangent predicts next to nothing."""
        error = self.metrics().get("tangent_error")
        if error is None or not self.tangent.learns:
            return
        self._passes += 1
        part = error if error < WORST else WORST  # or NaN
        self._mean += (part - self._mean) / min(self._passes, FORGETS)
        if self._passes >= JUDGED and self._mean > UNKNOWN:
            self._notices.say(
                Notice(
                    "unknown",
                    f"{type(self.box).__name__}, call {call}: expected a tangent that predicts outputs "
                    f"before it learns from them, got {self.tangent!r}, which was wrong by "
                    f"{self._mean:.2f} times their spread in the last {FORGETS} of {self._passes} backward "
                    "passes. Where that is noise in the answers, it averages out; else the gradient is about "
                    "as wrong. Take another tangent, or queries in its place (RowRGE), and watch a "
                    "held-out loss. This is said once.",
                    TangentWarning,
                )
            )
        has_error = "unknown" not in self._notices.said
        self.due = has_error and self._passes % JUDGED == 0 and is_checked(self._passes // JUDGED)


def _flat(specs: Sequence[ArraySpec], arrays: Sequence[Tensor]) -> Tensor:
    """The differentiable arrays end to end, `(rows, size)`."""
    pairs = zip(specs, arrays, strict=True)
    flat = [
        array.reshape(len(array), array.shape[1:].numel()) for spec, array in pairs if spec.differentiable
    ]
    return torch.cat(flat, dim=1)
