"""`Drawn`: the dither of one step: added to the boxes' inputs, and its response, kept from the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.draws import DITHER, Key
from zo.tangents.excitation.gain import DitherResponse, Excited, Gain
from zo.tangents.excitation.gain_form import given
from zo.tangents.models.values import Form
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import Parts, RecordedCall
from zo.tangents.record.recording import Dither
from zo.tangents.record.units import Units
from zo.tangents.tangent import sources


class Drawn(Dither):
    """The dither of one step, drawn by (seed, step, call, input), so that it is the same in any process.

    Args:
        key: the key of the step's draws.
        tangents: the tangents, one for each box.
        units: the units of the outputs, one for each box.
        sizes: for each box, by input the standard deviation of each number.
        shares: for each box, the share of the tangent's response that the objective is not given.

    Attributes:
        sizes: the argument of that name.
        predicted: the tangent's prediction for each call.
        gains: the gain of each box, after this step; None before `look`, and where there is none.
    """

    def __init__(
        self,
        key: Key,
        tangents: Sequence[Excited],
        units: Sequence[Units],
        sizes: Sequence[Mapping[int, Tensor]],
        shares: Sequence[float],
    ) -> None:
        self._key, self._tangents, self._units = key, tangents, units
        self.sizes, self._shares = sizes, shares
        self.predicted: dict[int, Prediction] = {}
        self.gains: list[Gain | None] = [None] * len(tangents)

    def __bool__(self) -> bool:
        """True: something is added."""
        return True

    def added(self, number: int, place: int, specs: Sequence[ArraySpec], inputs: Sequence[Tensor]) -> Parts:
        """White noise of the box's sizes, drawn for each row and call."""
        sizes = self.sizes[place]
        if not sizes:
            return ()
        return tuple(
            self._draw(number, which, spec, rows, sizes[which]) if which in sizes else None
            for which, (spec, rows) in enumerate(zip(specs, inputs, strict=True))
        )

    def _draw(self, number: int, which: int, spec: ArraySpec, rows: Tensor, size: Tensor) -> Tensor:
        draw = torch.randn(
            rows.shape, generator=self._key.generator(DITHER, number, which), dtype=torch.float64
        )
        dither = (draw * size.double().cpu()).to(rows)
        low, high = spec.ends  # what is beyond by itself goes no further out
        low, high = rows.clamp(max=low), rows.clamp(min=high)
        beyond = (rows + dither < low) | (rows + dither > high)
        dither = torch.where(beyond, -dither, dither)  # to the other side, where there is room
        return torch.where((rows + dither < low) | (rows + dither > high), 0.0, dither)

    def known(self, boxes: Sequence[BlackBoxFunction]) -> float:
        """The share of the tangents' response that the objective is not given, of the box with the least."""
        parts = zip(boxes, self.sizes, self._shares, strict=True)
        return min(share * box.settable for box, sizes, share in parts if sizes)

    @torch.no_grad()
    def look(self, calls: Sequence[RecordedCall], boxes: Sequence[BlackBoxFunction]) -> None:
        """Have the tangents predict what was recorded, in every process, before they learn from it."""
        for place, tangent in enumerate(self._tangents):
            new: dict[int, Prediction] = {}
            for number, call in enumerate(calls):
                prediction = self._predicted(boxes[place], call) if call.box == place and call.added else None
                if prediction is not None:
                    new[number] = prediction
            if new:
                rows = next(iter(new.values())).rows
                tangent.saw(rows, [prediction.shown(tangent) for prediction in new.values()])
            self.predicted |= new
            self.gains[place] = tangent.gain

    def _predicted(self, box: BlackBoxFunction, call: RecordedCall) -> Prediction | None:
        """The answers as the box's tangent has them, without the dither, and the response to it."""
        alive = torch.ones(len(call.inputs[0]), dtype=torch.bool, device=call.inputs[0].device)
        inputs = tuple(call.asked(n) for n in range(len(box.inputs)))
        both = [replace(call, inputs=x).pairs(box, alive) for x in (call.inputs, inputs)]
        dithered_rows, plain_rows = self._units[call.box].as_before(both)
        at = self._tangents[call.box].guess(plain_rows)
        values = at.values
        if values is None:
            return None
        return Prediction(dithered_rows, plain_rows, values, at.to(dithered_rows.z, dithered_rows.others))

    @torch.no_grad()
    def response(self, number: int, box: BlackBoxFunction, call: RecordedCall) -> Parts:
        """The share of the tangent's response that answers have shown."""
        if not box.settable or not self._shares[call.box]:  # the first takes back what it gave, to the bit
            return ()
        prediction = self._predicted(box, call)
        if prediction is None:
            return ()
        change = self._shares[call.box] * prediction.response
        change = torch.where(change.isfinite(), change, 0.0)
        parts = iter(change.split([math.prod(s.shape) for s in box.outputs if s.learned], dim=1))
        added = dict(zip((spec.name for spec in box.inputs), call.added, strict=True))
        return tuple(
            next(parts).reshape(-1, *spec.shape).to(output) if spec.learned else added.get(spec.copy_of or "")
            for spec, output in zip(box.outputs, call.outputs, strict=True)
        )


class Prediction(NamedTuple):
    """A tangent's prediction for a call with dither.

    Attributes:
        rows: the call as it was asked.
        here: the same with the inputs that the objective asks for.
        values: the outputs there, `(rows, size_out)`.
        response: to the dither, `(rows, size_out)`.
    """

    rows: CallPairs
    here: CallPairs
    values: Tensor
    response: Tensor

    def shown(self, tangent: Excited) -> DitherResponse:
        """Return rows' response to the dither, without failed rows, and the tangent's own prediction."""
        rows = self.rows.alive.nonzero().flatten()
        response = self.response
        if tangent.in_use is not None:
            response = tangent.prior.at(self.here).to(self.rows.z, self.rows.others)
        return DitherResponse(given(self.here)[rows], self.dither[rows], self._missed()[rows], response[rows])

    def _missed(self) -> Tensor:
        """The answers less those without the dither, by the tangent; of a state that stays where nearer."""
        missed, here = self.rows.y - self.values, self.here
        if all(place is None for place in sources(here.inputs, here.outputs)):
            return missed
        advance = self.rows.y - Form(here.inputs, here.outputs, ()).followed(here.z)
        alive = here.alive[:, None]
        squares = ((part * alive).double().square().mean(dim=0) for part in (missed, advance))
        by_tangent, by_state = squares
        return torch.where(by_state < by_tangent, advance, missed)

    @property
    def dither(self) -> Tensor:
        """The dither of the inputs, `(rows, size_in)`."""
        return self.rows.z - self.here.z
