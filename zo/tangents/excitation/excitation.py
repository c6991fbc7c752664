"""Excitation: a small dither on inputs of boxes whose derivative values would never show, for no rows.

In closed loop an action is a function of the observation, and a model of the box's values knows nothing of
the derivative by it (`identified`). So the box is asked beside the action: at a + e, with e drawn for each
row and call. The tangent learns from what was asked. The objective gets the answer less the tangent's own
response to the dither, y - k [M(x, a + e) - M(x, a)], so that it is what the user wrote, up to what the
tangent does not know; k is the share of that response that the last answers have shown. In system
identification this is persistent excitation (Ljung, System Identification, 1999, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.notices import Notice
from zo.draws import Key
from zo.errors import TangentWarning
from zo.tangents.excitation.asked import AskedInputs, Spread, handed_on
from zo.tangents.excitation.dither import Drawn
from zo.tangents.excitation.dither_notices import unknown, waits_long, without_unknown
from zo.tangents.excitation.dither_state import FIRST, LAGGED, DitherState
from zo.tangents.excitation.gain import Excited
from zo.tangents.excitation.size import ENOUGH, KNOWN, MOST, OF_FIELDS, DitheredRows
from zo.tangents.record.before import Lags
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.record.recording import Dither
from zo.tangents.record.units import Units

NARROW = 0.25  # of the range that bounds leave: the same; decision 164
HELD = 25  # steps at most whose gradient waits for the response to a first dither; decision 138
PART = 4  # where the steps of a training are known, one in so many may wait; decision 144
TOLD, LATE = 4, 15  # waiting steps after which that is said, of usual rows or of few; decision 214
FEW = 0.1  # of the rows of boxes that are dithered: boxes with fewer hold up nothing; decisions 214, 224
SAID = "response", "out_of_loss"  # of an `Excitation`: what the last dithers did

Where = tuple[int, int]  # a box and an input, by their places


@dataclass
class _Box:
    """The state of one box.

    Attributes:
        state: the state of its dither.
        inputs: the record of its inputs.
        dithered_rows: the dithered rows since the dither was last chosen.
    """

    state: DitherState = field(default_factory=DitherState)
    inputs: AskedInputs = field(default_factory=AskedInputs)
    dithered_rows: DitheredRows | None = None

    def judge(
        self, specs: Sequence[ArraySpec], candidates: Sequence[int], spread: Spread, *, waits: bool
    ) -> set[int]:
        """Judge the inputs again, see `AskedInputs.judge`; those that are dithered now and were not."""
        earlier_units = self.state.units
        waits = waits and self.state.phase == "waiting"
        units, begins = self.inputs.judge(specs, candidates, spread, earlier_units, waits=waits)
        self.state = self.state.judged(units, begins=begins)
        return set(units) - set(earlier_units)

    def refuse(self) -> None:
        """Take a smaller dither; what rows have shown of this one counts no more."""
        self.state, self.dithered_rows = self.state.refused(), None


class Excitation:
    """The dither of all boxes: which inputs have one, and how large it is, from step to step.

    Args:
        boxes: the boxes.
        size: the size of a dither in multiples of the input's spread; None to find it, 0 for no dither.
        steps: how many steps the training takes; None where that is not known.

    Attributes:
        size: the argument of that name.
        held: the most steps whose gradient waits for the response to a first dither.
        response: the response to the last dithers, as a share of the outputs' change; None before there was
            one.
        out_of_loss: the share of the response to the last dither that tangents have taken out of the loss of
            its step; None where that step had no dither.
    """

    def __init__(
        self, boxes: Sequence[BlackBoxFunction], size: float | None = None, steps: int | None = None
    ) -> None:
        self.size, self._boxes = size, boxes
        self.held = HELD if steps is None else min(HELD, max(1, steps // PART))
        # where answers go by earlier calls too, a step shows a part of the response; decision 227
        most = (LAGGED if box.remembers else 1.0 for box in boxes)
        self._records = [_Box(DitherState(most=factor)) for factor in most]
        self.response: float | None = None
        self.out_of_loss: float | None = None
        self._candidates: dict[int, list[int]] = {}  # of the last step, by box

    def __bool__(self) -> bool:
        """True if anything is dithered."""
        return self.size != 0 and any(record.state.units for record in self._records)

    def of_step(self, key: Key, tangents: Sequence[Excited], units: Sequence[Units]) -> Dither:
        """The dither of a step's calls; tangents and units are one for each box."""
        if not self:
            return Dither()
        boxes = range(len(tangents))
        sizes = [self.sizes(box) for box in boxes]
        return Drawn(key, tangents, units, sizes, [record.state.known for record in self._records])

    def sizes(self, box: int) -> dict[int, Tensor]:
        """Return the size of a box's dither, number by number, by the place of the input."""
        state, specs = self._records[box].state, self._boxes[box].inputs
        factor = state.factor if self.size is None else self.size
        ranges = {place: specs[place].ends[1] - specs[place].ends[0] for place in state.units}
        return {
            place: (factor * unit).clamp(max=NARROW * ranges[place]) for place, unit in state.units.items()
        }

    @property
    def waits(self) -> bool:
        """True if a step's gradient is not to be used: most of it would be a guess.

        Boxes that were asked for few rows hold up nothing, see `unknown`, and with a size of the user's
        nothing is waited for.
        """
        dithered = [record for record in self._records if record.state.units]
        unknown = sum(record.inputs.seen for record in dithered if record.state.waits)
        return self.size is None and unknown > FEW * sum(record.inputs.seen for record in dithered)

    def unknown(self, place: int) -> tuple[int, ...]:
        """The numbers of a box's learned inputs whose response is waited for while gradients are used.

        Their derivative is a guess. So it counts as zero until it is known.
        """
        state = self._records[place].state
        if self.size is not None or not state.waits or self.waits:
            return ()
        parts = [
            state.units.get(which, torch.zeros(spec.shape)).flatten() != 0
            for which, spec in enumerate(self._boxes[place].inputs)
            if spec.learned
        ]
        return tuple(torch.cat([part.cpu() for part in parts]).nonzero().flatten().tolist())

    def look(self, number: int, tangents: Sequence[Excited]) -> list[Notice]:
        """Take in, once a step, whether the responses to dithers are known by now.

        Args:
            number: the number of the step.
            tangents: one for each box, which have seen the step.

        Returns:
            A warning where that takes long, and one where the wait ends in vain.
        """
        if self.size is not None:
            return []
        notices: list[Notice] = []
        for box, record, tangent in zip(self._boxes, self._records, tangents, strict=True):
            if not record.state.waits:
                continue
            is_known = tangent.in_use is not None or record.state.known > KNOWN
            if record.dithered_rows is not None:  # of a row a step the next size is far away
                is_known = is_known or record.dithered_rows.known_by_now()
            record.state = state = record.state.looked(self.held, known=is_known)
            if state.phase == "known" and not box.settable:  # what follows has the dither in it
                record.state, record.dithered_rows = state.found(), None
            names = " and ".join(repr(box.inputs[which].name) for which in state.units)
            late = state.waited >= (TOLD if record.inputs.seen >= MOST else LATE)
            if state.waits and not self.waits and state.waited == TOLD:
                notices.append(without_unknown(number, names, box, self.held))
            elif (
                self.waits and state.waits and late and state.waited < self.held - 1
            ):  # else the other is near
                notices.append(waits_long(number, names, box, self.held, state.waited))
            # what hardly varies is shown by values too, if badly: nothing is said where none was dithered yet
            faint = state.waited == 1 and set(state.units) <= set(record.inputs.faint or ())
            if state.phase == "guessed" and not faint:
                notices.append(unknown(number, names, box, self.held))
        return notices

    def begin_again(self, box: int, lags: Lags) -> None:
        """Dither a box a little again: its model knows by now what the dither had grown for.

        Args:
            box: its place.
            lags: how far back its model is shown earlier calls. After a delay a step shows nothing of its own
                dither, so that one does not grow.
        """
        record = self._records[box]
        record.state, record.dithered_rows = record.state.begun_again(LAGGED if 1 in lags else FIRST), None

    def excites(self, box: int) -> bool:
        """Say whether an input of a box is dithered."""
        return self.size != 0 and bool(self._records[box].state.units)

    def refused(self, number: int, why: str) -> Notice:
        """Choose smaller dithers, since one has left no row of a step, or a box has ended it.

        Args:
            number: the number of the step.
            why: the reason, in words.

        Returns:
            A warning.
        """
        names: list[str] = []
        for box, record in zip(self._boxes, self._records, strict=True):
            if record.state.units:
                record.refuse()
                names += [f"{box.inputs[which].name!r} of {box!r}" for which in record.state.units]
        return Notice(
            "refused dither",
            f"Step {number + 1}: expected rows to survive a dither on {' and '.join(names)}, which shows the "
            f"derivative by it, but: {why} So the step was evaluated once more without, and the dither is "
            "smaller from now on. Give the input the bounds that it has, ArraySpec(..., bounds=(low, high)), "
            "or take Limits(excite=0). Further such steps are not told.",
            TangentWarning,
        )

    @torch.no_grad()
    def judge_again(self, spread: Callable[[Where, Tensor], float | None]) -> list[str]:
        """Judge all inputs at once, since trust is lost, and not when rows have doubled.

        Args:
            spread: as for `saw`, which has seen the step.

        Returns:
            The inputs that are newly dithered, in words; none where `excite` is 0.
        """
        words: list[str] = []
        waits = self.size is None
        for place, candidates in self._candidates.items() if self.size != 0 else ():
            box = self._boxes[place]
            new = self._records[place].judge(box.inputs, candidates, _of_box(spread, place), waits=waits)
            words += [
                f"a small dither shows the derivative by {box.inputs[which].name!r} of {box!r}"
                for which in sorted(new)
            ]
        return words

    @torch.no_grad()
    def saw(
        self,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        dither: Dither,
        reached: Iterable[Where],
        survived: Tensor,
        spread: Callable[[Where, Tensor], float | None],
    ) -> list[str]:
        """Take in a step: how large the responses were, and which inputs values do not identify.

        Args:
            calls: the calls of the step.
            pairs: the rows that each call shows a tangent.
            dither: the dither of these calls.
            reached: boxes and inputs that weights move.
            survived: `(batch rows,)` bool, the rows that did not fail.
            spread: gives the spread of some numbers of an input over weights, see `spread_of_weights`.

        Returns:
            Inputs that are not identified and may not be dithered, in words, when that is found.
        """
        self.out_of_loss = dither.known(self._boxes) if isinstance(dither, Drawn) else None
        if self._survives(survived, dithered=bool(dither)) and isinstance(dither, Drawn):
            self._follow(calls, pairs, dither)
        handed = handed_on(calls)
        reached = set(reached) - handed
        words: list[str] = []
        self._candidates = {}
        for place, (box, record) in enumerate(zip(self._boxes, self._records, strict=True)):
            call_numbers = [number for number, call in enumerate(calls) if call.box == place]
            candidates = [
                which
                for which, spec in enumerate(box.inputs)
                if spec.differentiable and spec.modelled and (place, which) in reached
            ]
            if call_numbers and candidates:
                rows = [calls[n] for n in call_numbers], [pairs[n] for n in call_numbers]
                of_box = _of_box(spread, place)
                on = {which for number, which in handed if number == place}
                record.inputs.keep(box, *rows, candidates, len(survived), on)
                self._candidates[place] = candidates
                record.inputs.see_spread(candidates, of_box)
                if record.inputs.due:
                    new = record.judge(box.inputs, candidates, of_box, waits=self.size is None)
                    if self.size == 0:
                        words += [f"{box.inputs[which].name!r} of {box!r}" for which in sorted(new)]
        return words

    def state_dict(self) -> dict[str, Any]:
        """Save the state of each box, and the effects of the last dithers."""
        return {
            "boxes": [
                {
                    "state": dict(vars(record.state)),
                    "asked": dict(vars(record.inputs)),
                    "shown": None if record.dithered_rows is None else list(record.dithered_rows),
                }
                for record in self._records
            ],
            **{name: getattr(self, name) for name in SAID},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._records = [
            _Box(
                DitherState(**entry["state"]),
                AskedInputs(**entry["asked"]),
                DitheredRows(*entry["shown"]) if entry["shown"] else None,
            )
            for entry in state["boxes"]
        ]
        for name in SAID:
            setattr(self, name, state[name])

    def _survives(self, survived: Tensor, *, dithered: bool) -> bool:
        """Say whether about as many rows fail as before; a dither with many more failures is made smaller."""
        failures, rows = int((~survived).sum()), len(survived)
        refused = False
        for record in self._records:
            if dithered and record.state.loses_many(failures, rows):
                record.refuse()
                refused = True
            else:
                record.state = record.state.survived(failures, rows)
        return not refused

    def _follow(
        self,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        dither: Drawn,
    ) -> None:
        """Choose the size of the next dither, and how much of its response is known, once enough is shown."""
        response = change = 0.0
        for place, record in enumerate(self._records):
            call_numbers = [number for number in dither.predicted if calls[number].box == place]
            if not call_numbers:
                continue
            dithered_calls = [(calls[n], pairs[n], dither.predicted[n]) for n in call_numbers]
            new = DitheredRows.of(dithered_calls, dither.gains[place])
            record.dithered_rows = new if record.dithered_rows is None else record.dithered_rows.joined(new)
            rows, numbers = record.dithered_rows.added.shape
            if rows >= (OF_FIELDS if record.dithered_rows.on_grid else min(ENOUGH * numbers, MOST)):
                verdict = record.dithered_rows.verdict()
                record.dithered_rows, record.state = None, record.state.followed(verdict)
                response, change = response + verdict.response, change + verdict.change
        if change:
            self.response = math.sqrt(response / change)


def _of_box(spread: Callable[[Where, Tensor], float | None], place: int) -> Spread:
    """Return a function that gives the spread of a box's inputs."""
    return lambda which, numbers: spread((place, which), numbers)
