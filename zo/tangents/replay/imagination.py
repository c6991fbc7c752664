"""`Imagination`: steps on batches that no box has answered, and how many of them boxes' answers allow.

Call k of the objective on such a batch is answered by M(x), the tangent's own value: Dyna (Sutton 1991),
model rollouts (Janner et al., MBPO, NeurIPS 2019). A replay is exact where it was recorded; this is nowhere,
and ends where the model's loss is least. So before boxes answer a new window, and the model learns from it,
the gradient through the model's values is taken, to be compared with the gradient that the step takes. The
sum of their differences over the last windows is the bias that imagined steps have. Where it is shorter than
the sum of the gradients, steps along the model's gradient descend, whatever its direction; where it is not,
none are taken. Both are shortened first, as steps shorten what they take: one window on which a model ran
away would outweigh all that follow, or make all others' differences look small. Near the end of a training
gradients cancel and the bias does not: sooner or later it stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.errors import TangentError
from zo.evaluators.evaluator import Step
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.tangents.models.rows import Moments
from zo.tangents.playback.playback import answered_by
from zo.tangents.playback.step_gradient import StepGradient
from zo.tangents.playback.way_back import gradients_of
from zo.tangents.record.call import RecordedCall, flat_rows, has_rows, refuse_arrays
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.step.clipping import Clipping
from zo.tangents.tangent import Linearised, Tangent

# decision 127:
FEWEST = 3  # windows that have shown the bias, before anything is imagined
FADING = 0.8  # of what a window has shown, with each that follows
LONGEST = 2.0  # times the median length of the last windows' gradients
MOST_BIAS = 1.0  # of imagined gradients, over the mean gradient: beyond it they may lead uphill
FIRST, MOST, GROWS = 9.0, 59, 1.5  # imagined batches that may follow a window; they grow with each
BEYOND = 2.0  # times as far from the mean as any recorded row: there a model is not asked
LOST = 0.1  # of the rows that may fail: a model of values knows of none


@dataclass(frozen=True)
class Imagined:
    """What came of a batch that no box has answered; false where nothing was added to `.grad`.

    Attributes:
        loss: the mean loss by the tangents' values, over the rows that count, detached; None where none does.
        rows: how many rows count: those that stay near what was recorded. 0 where nothing was added.
        why: why nothing was added, in words; empty where something was.
    """

    loss: Tensor | None = None
    rows: int = 0
    why: str = ""

    def __bool__(self) -> bool:
        """Whether a gradient was added."""
        return self.rows > 0


@dataclass
class _Shown:
    """What new windows have shown of the gradient through the model's values.

    Attributes:
        windows: how many have.
        taken: sum of the gradients that steps took, fading; by parameter.
        apart: the same of by how much those through the model's values differed.
        count: imagined batches that may follow the next window.
        rows: rows of batches, and how many of them were lost.
    """

    windows: int = 0
    taken: list[Tensor] = field(default_factory=list)
    apart: list[Tensor] = field(default_factory=list)
    count: float = 0.0
    rows: tuple[int, int] = (0, 0)

    def bias(self) -> float:
        """Of imagined gradients, over the mean gradient; infinite while too few windows have shown it."""
        size = _length(self.taken)
        return _length(self.apart) / size if self.windows >= FEWEST and size else float("inf")


class Imagination:
    """Judges the tangents' values on each new window, and evaluates batches with them.

    Args:
        boxes: the boxes that the objective calls.
        fixed: how many imagined batches may follow each window, whatever windows show; None for as many as
            that allows.

    Attributes:
        wanted: whether anybody asks for imagined batches; without that nothing is judged.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], fixed: int | None = None) -> None:
        self.wanted = bool(fixed)
        self._boxes, self._number = boxes, fixed
        self._evidence = _Shown()
        self._inputs: dict[int, Moments] = {}  # of what boxes were asked, by their places
        self._farthest: dict[int, float] = {}  # recorded row, in standard deviations from the mean
        self._units: dict[int, tuple[Tensor, Tensor]] = {}  # of each box, at the last window
        self._forecast: tuple[Tensor, ...] | None = None
        self._lengths = Clipping(LONGEST)

    @property
    def bias(self) -> float | None:
        """By how much imagined gradients are off, over the mean gradient; None where that is not known."""
        bias = self._evidence.bias()
        return bias if bias < float("inf") else None

    def foresee(self, step: Step, tangents: Sequence[Tangent]) -> None:
        """Take the gradient of a step through the tangents' values, before boxes answer and tangents learn.

        Args:
            step: the step. Its network is left as it was.
            tangents: the tangents, one for each box.
        """
        self._forecast = None
        if not self.wanted or self._number is not None or unanswerable(self._boxes) is not None:
            return
        before = Snapshot(step.network)
        try:
            everywhere = torch.ones(step.rows, dtype=torch.bool)
            evaluation = _evaluated(step, self._boxes, tangents, self._units, everywhere)
        finally:
            before.restore()
        if evaluation is not None and _finite(evaluation.gradients):
            self._forecast = evaluation.gradients

    def saw(self, gradient: StepGradient, *, used: bool) -> None:
        """Take in a window: what boxes were asked, and the gradient that the step takes.

        Args:
            gradient: of the step.
            used: whether it was added; one that was not, as a guess, says nothing of a forecast.
        """
        if not self.wanted:
            return
        evidence = self._evidence
        rows, failures = evidence.rows
        alive = gradient.window.survived
        evidence.rows = rows + len(alive), failures + int((~alive).sum())
        for call, pairs in zip(gradient.window.calls, gradient.pairs, strict=True):
            self._units[call.box] = pairs.d_scale, pairs.response_scale
            z = pairs.z[pairs.alive.nonzero(as_tuple=True)]
            if len(z):
                moments = self._inputs.setdefault(call.box, Moments())
                moments.add(z)
                distance = float(self._distances(call.box, z).max())
                self._farthest[call.box] = max(self._farthest.get(call.box, 0.0), distance)
        failed = failures < evidence.rows[1]  # then it is of rows that failed, too
        if failed or not used or self._forecast is None:
            self._forecast = None
            return
        self._lengths.remember(gradient.gradients)
        forecast, _ = self._lengths.shortened(self._forecast)
        taken, _ = self._lengths.shortened(gradient.gradients)
        apart = [f - g for f, g in zip(forecast, taken, strict=True)]
        evidence.taken, evidence.apart = _faded(evidence.taken, taken), _faded(evidence.apart, apart)
        evidence.windows, self._forecast = evidence.windows + 1, None
        if evidence.bias() > MOST_BIAS:
            evidence.count /= 2
        else:
            evidence.count = min(float(MOST), max(FIRST, GROWS * evidence.count))

    def trusted(self) -> int:
        """How many imagined batches may follow the last window."""
        if self.doubted() is not None:
            return 0
        if self._number is not None:
            return self._number
        return int(self._evidence.count * (1 - self._evidence.bias()))  # what of each step leads downhill

    def doubted(self) -> str | None:
        """Why nothing is imagined now, in words; None where something may be."""
        refusal = unanswerable(self._boxes)
        if refusal is not None or self._number is not None:
            return refusal
        evidence = self._evidence
        rows, failures = evidence.rows
        if evidence.windows < FEWEST:
            return f"{evidence.windows} of {FEWEST} windows have shown what tangents' values are worth"
        if failures > LOST * rows:
            return f"{failures} of {rows} rows failed, of which a model of values knows nothing"
        bias = evidence.bias()
        if bias > MOST_BIAS:
            return (
                f"the gradient through tangents' values is off by {bias:.2g} of the mean gradient of the "
                f"last windows, more than {MOST_BIAS:g}"
            )
        return None

    def evaluate(self, step: Step, tangents: Sequence[Tangent]) -> tuple[Imagined, tuple[Tensor, ...]]:
        """The loss and gradient of a batch by the tangents' values, where these are believed.

        Args:
            step: with the batch that no box has answered.
            tangents: the tangents, one for each box.

        Returns:
            What came of it, and the gradient of the mean over the rows that count; empty where none does.

        Raises:
            TangentError: the objective calls a box that is not named.
        """
        doubt = self.doubted()
        if doubt is not None:
            return Imagined(why=doubt), ()
        everywhere = torch.ones(step.rows, dtype=torch.bool)
        near = self._near if self._number is None else None
        evaluation = _evaluated(step, self._boxes, tangents, self._units, everywhere, near)
        if evaluation is None:
            return Imagined(why="a tangent gives no values: it knows of changes alone, or nothing yet"), ()
        rows = int(evaluation.counted.sum())
        if not rows:
            return Imagined(why="all rows go where boxes were not asked anything like it"), ()
        loss = evaluation.losses[evaluation.counted].mean()
        if not bool(loss.isfinite()) or not _finite(evaluation.gradients):
            return Imagined(loss, why="loss or gradient is not finite"), ()
        return Imagined(loss, rows), evaluation.gradients

    def state_dict(self) -> dict[str, Any]:
        """What windows have shown, in plain values."""
        evidence = self._evidence
        return {
            "shown": {
                "windows": evidence.windows,
                "taken": [tensor.clone() for tensor in evidence.taken],
                "apart": [tensor.clone() for tensor in evidence.apart],
                "count": evidence.count,
                "rows": list(evidence.rows),
            },
            "inputs": {place: moments.state_dict() for place, moments in self._inputs.items()},
            "farthest": dict(self._farthest),
            "units": dict(self._units),
            "clipping": self._lengths.state_dict(),
        }

    def metrics(self) -> dict[str, float | None]:
        """How many may follow, and the bias, for a log; nothing where nobody asks for imagined batches."""
        if not self.wanted:
            return {}
        return {"tangent_imaginations": self.trusted(), "tangent_imagined_bias": self.bias}

    def load_state_dict(self, state: dict[str, Any] | None, device: torch.device) -> None:
        """Go on where `state_dict` was taken; None of a run in which nobody asked for imagined batches."""
        self.wanted = state is not None
        if state is None:
            return
        evidence = state["shown"]
        sums, apart = ([t.to(device, copy=True) for t in evidence[name]] for name in ("taken", "apart"))
        rows, failures = evidence["rows"]
        self._evidence = _Shown(evidence["windows"], sums, apart, evidence["count"], (rows, failures))
        self._inputs = {}
        for place, entry in state["inputs"].items():
            self._inputs[place] = Moments()
            self._inputs[place].load_state_dict(entry, device)
        self._farthest = dict(state["farthest"])
        self._units = {place: (d, response) for place, (d, response) in state["units"].items()}
        self._lengths.load_state_dict(state.get("clipping", {"lengths": []}))
        self._forecast = None

    def _distances(self, box: int, z: Tensor) -> Tensor:
        """How far rows are from the mean of what a box was asked, in standard deviations, `(rows,)`."""
        moments = self._inputs[box]
        off = (z.double() - moments.mean().to(z.device)) / moments.scale().to(z.device)
        return off.square().mean(dim=1).sqrt()

    def _near(self, box: int, z: Tensor) -> Tensor:
        """Whether rows are near what a box was asked, `(rows,)` bool."""
        if box not in self._inputs:
            return torch.zeros(len(z), dtype=torch.bool, device=z.device)
        return self._distances(box, z) <= BEYOND * self._farthest[box]


def unanswerable(boxes: Sequence[BlackBoxFunction]) -> str | None:
    """What of some boxes no model of values can answer, in words; None where there is no such thing."""
    for box in boxes:
        if not box.settable:
            return f"a row of {box!r} goes on from another row's answer, which no tangent gives"
        unknown = [spec.name for spec in box.outputs if not spec.differentiable]
        if unknown:
            return f"output {unknown[0]!r} of {box!r} carries no gradient, so no tangent has its values"
    return None


@dataclass(frozen=True)
class _Evaluated:
    """Losses `(rows,)`, the gradient of the mean of those that count, and which do, `(rows,)` bool."""

    losses: Tensor
    gradients: tuple[Tensor, ...]
    counted: Tensor


def _evaluated(
    step: Step,
    boxes: Sequence[BlackBoxFunction],
    tangents: Sequence[Tangent],
    units: dict[int, tuple[Tensor, Tensor]],
    counting: Tensor,
    near: Callable[[int, Tensor], Tensor] | None = None,
) -> _Evaluated | None:
    """Losses and gradient with the tangents' values in the place of the boxes' answers.

    Args:
        step: with the batch.
        boxes: their calls are not evaluated.
        tangents: the tangents, one for each box.
        units: of each box.
        counting: rows that count, `(rows,)` bool.
        near: of a box's place and what it is asked, which rows may be; None for all.

    Returns:
        None where a tangent has no values.
    """
    answers = _Values(boxes, tangents, units)
    try:
        with torch.enable_grad(), intercepted(answers.call):
            rows = losses(step.objective, step.network, step.batch, step.rows, with_graph=True)
    except _NoValuesError:
        return None
    counting = counting.to(rows.device)
    for number, pairs in enumerate(answers.asked):
        if near is None:
            break
        close = near(answers.places[number], pairs.z)
        per_row, rest = divmod(len(close), step.rows)
        counting = counting & (close.view(step.rows, per_row).all(dim=1) if not rest else close.all()).to(
            counting.device
        )
    with torch.enable_grad():
        if not bool(counting.any()):
            return _Evaluated(rows.detach(), (), counting)
        gradients = gradients_of(rows[counting].mean(), step)
    return _Evaluated(rows.detach(), gradients, counting)


class _NoValuesError(Exception):
    """A tangent has no values."""


class _Values:
    """Answers calls by the tangents' values; their derivative is the tangents'.

    Args:
        boxes: the boxes that the objective calls.
        tangents: the tangents, one for each box.
        units: of each box.

    Attributes:
        asked: what each call asked, as tangents see it.
        places: the place of each call's box.
    """

    def __init__(
        self,
        boxes: Sequence[BlackBoxFunction],
        tangents: Sequence[Tangent],
        units: dict[int, tuple[Tensor, Tensor]],
    ) -> None:
        self.asked: list[CallPairs] = []
        self.places: list[int] = []
        self._at_calls: list[Linearised] = []
        self._boxes, self._tangents, self._units = boxes, tangents, units

    def call(self, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
        """What the box's tangent gives; a box that is not named would cost rows, and is refused."""
        place = next((place for place, candidate in enumerate(self._boxes) if candidate is box), None)
        if place is None:
            raise TangentError(
                f"TangentGradient.imagine: expected an objective that calls no box but those in boxes, got a "
                f"call of {box!r}, which has no tangent. Name it in boxes as well."
            )
        if not has_rows(arrays):
            return box.call(*arrays)
        refuse_arrays(box, arrays)
        with torch.no_grad():
            pairs = self._pairs_of(place, box, arrays)
            at = self._tangents[place].at(pairs)
            values = at.values
        if values is None:
            raise _NoValuesError
        self._at_calls.append(at)
        free, names = next(a.dtype for a in arrays if a.is_floating_point()), [s.name for s in box.inputs]
        leading = arrays[0].shape[: arrays[0].ndim - len(box.inputs[0].shape)]
        pieces, by_name = (
            iter(values.split(sizes(pairs.outputs), dim=1)),
            dict(zip(names, arrays, strict=True)),
        )
        outputs = tuple(
            (next(pieces) if spec.copy_of is None else by_name[spec.copy_of].detach())
            .reshape(*leading, *spec.shape)
            .to(spec.torch_dtype or free, copy=True)
            for spec in box.outputs
        )
        self.asked.append(pairs)
        self.places.append(place)
        number = len(self.asked) - 1
        answer = answered_by(box, self._at_calls, number, outputs, arrays)
        return answer[0] if len(answer) == 1 else answer

    def _pairs_of(self, place: int, box: BlackBoxFunction, arrays: tuple[Any, ...]) -> CallPairs:
        """What a call asks, as a tangent sees it."""
        inputs = tuple(flat_rows(spec, array)[None] for spec, array in zip(box.inputs, arrays, strict=True))
        rows, like = inputs[0].shape[1], next(array for array in inputs if array.is_floating_point())
        outputs = tuple(like.new_zeros(1, rows, *spec.shape) for spec in box.outputs)
        alive = torch.ones(rows, dtype=torch.bool, device=like.device)
        pairs = RecordedCall(place, inputs, outputs).pairs(box, alive)
        if place not in self._units:
            return pairs
        d_scale, response_scale = self._units[place]
        return replace(pairs, d_scale=d_scale.to(pairs.z), response_scale=response_scale.to(pairs.z))


def _faded(before: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """A fading sum with a new part."""
    new = [tensor.detach() for tensor in new]
    if not before:
        return [tensor.clone() for tensor in new]
    return [FADING * old + tensor for old, tensor in zip(before, new, strict=True)]


def _length(tensors: Sequence[Tensor]) -> float:
    return float(sum((tensor.double().square().sum() for tensor in tensors), torch.zeros(())).sqrt())


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)
