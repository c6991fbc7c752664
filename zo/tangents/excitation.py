"""Excitation: a small dither on inputs of boxes whose derivative values would never show, for no rows.

In closed loop an action is a function of the observation, and a model of the box's values knows nothing of
the derivative by it (`identified`). So the box is asked beside the action: at a + e, with e drawn for each
row and call. The tangent learns from what was asked. The objective gets the answer less the tangent's own
response to the dither, y - [M(x, a + e) - M(x, a)], so that it is what the user wrote, up to what the tangent
does not know. In system identification this is persistent excitation (Ljung, 1999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.draws import DITHER, Key
from zo.tangents.identified import DETERMINED, determined
from zo.tangents.models.values import Form
from zo.tangents.pairs import CallPairs, reciprocal
from zo.tangents.recording import Dither, RecordedCall
from zo.tangents.tangent import Tangent, sources

ROWS = 256  # of a box that are kept to judge by
BEGUN = 0.2  # of how much the outputs change: the response to the first dither
FIRST = 1.0  # times the input's own spread
WANTED = 2.0  # times the error of the predictions: what the response to a dither should be
LARGEST = 0.3  # of how much the outputs change: the largest response to a dither
KNOWN = 0.5  # of the response: less is no knowledge of it
GROWN, SHRUNK = 8.0, 0.5  # the most and the least times of a step to the next
SEEN = 0.02  # of the square error: less of a response is not distinguished from none


@dataclass
class _Box:
    """What is known of the inputs of one box.

    Attributes:
        rows: The last rows, by modelled input, `(rows, size)`, as the objective asked for them.
        seen: Rows ever.
        judged: Rows ever when they were last judged.
        units: By place among the inputs: `(*shape)`, the spread of an input that is dithered.
        factor: How many units a dither is.
        known: The share of the tangent's response to a dither that answers have shown, from 0 to 1.
    """

    rows: list[Tensor] = field(default_factory=list)
    seen: int = 0
    judged: int = 0
    units: dict[int, Tensor] = field(default_factory=dict)
    factor: float = FIRST
    known: float = 0.0


class Excitation:
    """Which inputs of which boxes are dithered, and by how much; from step to step.

    Args:
        boxes: the boxes.
        fixed: the size of a dither in multiples of the input's spread; None for what is found, 0 for none.
    """

    def __init__(self, boxes: Sequence[BlackBoxFunction], fixed: float | None = None) -> None:
        self.fixed = fixed
        self._boxes = boxes
        self._state = [_Box() for _ in boxes]
        self.response: float | None = None  # of the last step, as a share of what the outputs change by

    def __bool__(self) -> bool:
        """Whether anything is dithered."""
        return any(state.units for state in self._state)

    def of_step(self, key: Key, tangents: Sequence[Tangent]) -> Dither:
        """The dither of a step's calls."""
        return _Drawn(self, key, tangents) if self else Dither()

    def sizes(self, box: int) -> dict[int, Tensor]:
        """By input, how large the dither of a box's is, number by number."""
        state = self._state[box]
        factor = state.factor if self.fixed is None else self.fixed
        return {place: factor * unit for place, unit in state.units.items()}

    def known(self, box: int) -> float:
        """The share of the tangent's response to a box's dither that the objective is not given."""
        return self._state[box].known

    @torch.no_grad()
    def saw(
        self,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        dither: Dither,
        reached: Iterable[tuple[int, int]],
    ) -> None:
        """Take in a step: how large the responses were, and which inputs values do not identify.

        Args:
            calls: the calls of the step.
            pairs: what each shows a tangent.
            dither: the dither of these calls.
            reached: boxes and inputs that weights move, by their places.
        """
        if self.fixed == 0:
            return
        if isinstance(dither, _Drawn):
            self._follow(calls, pairs, dither.predicted)
        handed = handed_on(calls)
        for place, state in enumerate(self._state):
            own = [number for number, call in enumerate(calls) if call.box == place]
            candidates = [
                number
                for number, spec in enumerate(self._boxes[place].inputs)
                if (place, number) in reached and (place, number) not in handed and _may_move(spec)
            ]
            if own and candidates:
                self._keep(state, place, [calls[number] for number in own], [pairs[n] for n in own])
                if state.seen >= 2 * state.judged:
                    state.judged = state.seen
                    self._judge(state, place, candidates)

    def _keep(
        self, state: _Box, place: int, calls: Sequence[RecordedCall], pairs: Sequence[CallPairs]
    ) -> None:
        alive = torch.cat([known.alive for known in pairs]).nonzero().flatten()
        columns = []
        for number, spec in enumerate(self._boxes[place].inputs):
            rows = torch.cat([call.asked(number).flatten(1) for call in calls])[alive]
            columns.append(rows if spec.modelled else rows[:, :0])
        state.seen += len(alive)
        state.rows = [
            torch.cat([before, new])[-ROWS:]
            for before, new in zip(state.rows or [c[:0] for c in columns], columns, strict=True)
        ]

    def _judge(self, state: _Box, place: int, candidates: Sequence[int]) -> None:
        """Find the inputs that the others determine; the one that is so most first, which then explains none."""
        excited: list[int] = []
        while True:
            left = [number for number in candidates if number not in excited]
            shares = {number: determined(state.rows, number, excited) for number in left}
            least = min(shares, key=shares.__getitem__, default=None)
            if least is None or shares[least] > DETERMINED:
                break
            excited.append(least)
        specs = self._boxes[place].inputs
        known = {number: state.units.get(number) for number in excited}
        state.units = {
            number: _unit(specs[number], state.rows[number]) if unit is None else unit
            for number, unit in known.items()
        }

    def _follow(
        self, calls: Sequence[RecordedCall], pairs: Sequence[CallPairs], predicted: dict[int, tuple[Tensor, Tensor]]
    ) -> None:
        """Have the next dither so large that its response stands out of the error of what is predicted."""
        total = [0.0, 0.0]
        for place, state in enumerate(self._state):
            shown = [_Shown.of(calls[n], pairs[n], *both) for n, both in predicted.items() if calls[n].box == place]
            if not shown:
                continue
            all_shown = _Shown(*(torch.cat(column) for column in zip(*shown, strict=True)))
            state.known, times, response, size = all_shown.verdict()
            state.factor *= min(max(times, SHRUNK), GROWN)
            total = [total[0] + response, total[1] + size]
        self.response = math.sqrt(total[0] / total[1]) if total[1] else None


class _Drawn(Dither):
    """The dither of one step, drawn by (seed, step, call, input), so that it is the same in any process.

    Attributes:
        predicted: by call, the answers that the tangent predicted with dither and without, `(rows, size_out)`.
    """

    def __init__(self, excitation: Excitation, key: Key, tangents: Sequence[Tangent]) -> None:
        self._key, self._tangents = key, tangents
        self._sizes = [excitation.sizes(box) for box in range(len(tangents))]
        self._known = [excitation.known(box) for box in range(len(tangents))]
        self.predicted: dict[int, tuple[Tensor, Tensor]] = {}

    def __bool__(self) -> bool:
        """Whether anything is."""
        return True

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Any:
        sizes = self._sizes[place]
        if not sizes:
            return ()
        return tuple(
            self._draw(number, which, spec, rows, sizes[which]) if which in sizes else None
            for which, (spec, rows) in enumerate(zip(specs, inputs, strict=True))
        )

    def _draw(self, number: int, which: int, spec: ArraySpec, rows: Tensor, size: Tensor) -> Tensor:
        drawn = torch.randn(
            rows.shape, generator=self._key.generator(DITHER, number, which), dtype=torch.float64
        )
        added = (drawn * size.double().cpu()).to(rows)
        if spec.bounds is None:
            return added
        low, high = spec.bounds
        beyond = (rows + added < low) | (rows + added > high)
        added = torch.where(beyond, -added, added)  # to the other side, where there is room
        inside = rows.clamp(low, high)  # an input that is beyond by itself stays there
        return torch.where((rows + added < low) | (rows + added > high), inside - rows, added)

    @torch.no_grad()
    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Any:
        alive = torch.ones(call.inputs[0].shape[1], dtype=torch.bool, device=call.inputs[0].device)
        tangent, asked = self._tangents[call.box], tuple(call.asked(n)[None] for n in range(len(box.inputs)))
        pairs = [replace(call, inputs=inputs).pairs(box, alive) for inputs in (call.inputs, asked)]
        with_dither, without = (tangent.predict_values(known) for known in pairs)
        if with_dither is None or without is None:
            return ()
        self.predicted[number] = with_dither, without
        change = self._known[call.box] * (with_dither - without)
        change = torch.where(change.isfinite(), change, 0.0)
        parts = iter(change.split([math.prod(s.shape) for s in box.outputs if s.differentiable], dim=1))
        return tuple(
            next(parts).reshape(1, -1, *spec.shape).to(output) if spec.differentiable else None
            for spec, output in zip(box.outputs, call.outputs, strict=True)
        )


def handed_on(calls: Sequence[RecordedCall]) -> set[tuple[int, int]]:
    """Boxes and inputs, by their places, that are an earlier answer: states, of which all is shown."""
    handed: dict[tuple[int, int], bool] = {}
    answers: list[Tensor] = []
    for call in calls:
        for number in range(len(call.inputs)):
            asked = call.asked(number)
            if answers:
                same = any(asked.shape == y.shape and torch.equal(asked, y) for y in answers)
                handed[call.box, number] = same and handed.get((call.box, number), True)
        answers = [call.answered(number) for number in range(len(call.outputs))] + answers[:8]
    return {where for where, always in handed.items() if always}


def _may_move(spec: ArraySpec) -> bool:
    return spec.differentiable and spec.modelled and (spec.bounds is None or spec.bounds[0] < spec.bounds[1])


def _unit(spec: ArraySpec, rows: Tensor) -> Tensor:
    """The spread of each number of an input, or its spec's scale; that of all, where one does not vary."""
    if spec.scale is not None:
        return torch.as_tensor(spec.scale, dtype=torch.float64).expand(spec.shape).clone()
    spread = rows.double().std(dim=0, correction=0).cpu()
    usual = float(spread.square().mean().sqrt())
    if not usual:
        usual = float(rows.double().abs().mean()) or 1.0
    return torch.where(spread > 0.1 * usual, spread, usual).reshape(spec.shape)


class _Shown(NamedTuple):
    """What rows with dither have shown, in units of usual responses.

    Attributes:
        added: `(rows, numbers)`, the dither in its own deviation.
        missed: `(rows, size_out)`, the answers less those predicted without the dither.
        response: `(rows, size_out)`, the response to it that was predicted.
        change: `(rows,)`, the square of how much the outputs change.
    """

    added: Tensor
    missed: Tensor
    response: Tensor
    change: Tensor

    @classmethod
    def of(cls, call: RecordedCall, pairs: CallPairs, with_dither: Tensor, without: Tensor) -> _Shown:
        """What a call has shown; the two are what the tangent predicted of its answers."""
        rows = pairs.alive.nonzero().flatten()
        short, y = reciprocal(pairs.response_scale.double()), pairs.y[rows].double()
        added = torch.cat([part[0].flatten(1) for part in call.added if part is not None], dim=1)[rows].double()
        changes = [y - y.mean(dim=0)]
        if any(place is not None for place in sources(pairs.inputs, pairs.outputs)):
            changes.append(y - Form(pairs.inputs, pairs.outputs, ()).followed(pairs.z)[rows].double())
        change = min(((c * short).square().sum(dim=1) for c in changes), key=lambda squares: float(squares.sum()))
        return cls(
            added / added.square().mean(dim=0).sqrt().clamp_min(torch.finfo(torch.float64).tiny),
            (y - without[rows].double()) * short,
            (with_dither - without)[rows].double() * short,
            change,
        )

    def verdict(self) -> tuple[float, float, float, float]:
        """The share of the predicted response that answers show, how many times as large a dither should be,

        the square of the response, and of how much the outputs change.
        """
        rows, numbers = self.added.shape
        size, square = float(self.change.sum()), float(self.response.square().sum())
        without = float(self.missed.square().sum())
        error = float((self.missed - self.response).square().sum())
        product = float((self.missed * self.response).sum())
        known = min(max(product / square, 0.0), 1.0) if square > 0 else 0.0
        if not (math.isfinite(without) and size > 0):
            return 0.0, 1.0, 0.0, size
        if known > KNOWN and error < without:
            response = known * square
            wanted = min(WANTED**2 * error, LARGEST**2 * size)
            return known, math.sqrt(wanted / response), response, size
        slope = self.added.T @ self.missed / rows  # of answers on the dither, which nothing else goes with
        chance = min(1.0, numbers / rows) * without
        response = max(rows * float(slope.square().sum()) - chance, 0.0)
        wanted = BEGUN**2 * size
        if response > wanted:
            return known, math.sqrt(wanted / response), response, size
        return known, max(1.0, math.sqrt(wanted / (response + chance))) if without else 1.0, response, size
