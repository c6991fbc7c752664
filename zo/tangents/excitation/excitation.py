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
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import Notice
from zo.draws import Key
from zo.errors import TangentWarning
from zo.tangents.excitation.asked import AskedInputs, Spread, handed_on
from zo.tangents.excitation.dither import Drawn
from zo.tangents.excitation.gain import Excited
from zo.tangents.excitation.size import ENOUGH, KNOWN, MOST, OF_FIELDS, DitheredRows, NextSize
from zo.tangents.excitation.words import not_foretold, unknown, waits_long
from zo.tangents.record.call import RecordedCall
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.recording import Dither

# spreads, the first dither of what varies, since one that is too large is never forgotten; decision 121
FIRST = 0.1
LINEAR = 0.5  # of what a larger dither should respond more by, for it to be worth it; decision 121
GROWN, SHRUNK = 8.0, 0.5  # the most and the least times from one size to the next
WIDEST = 1.0  # unit: the largest dither; decision 153
NARROW = 0.25  # of the range that bounds leave: the same; decision 164
MANY_LOST = 0.25  # of a step's rows, above twice what failed before: its dither is too large; decision 137
HELD = 25  # steps at most whose gradient waits for the response to a first dither; decision 138
LONG = 10  # steps, after which fewer rows may show a response than choose the next dither; decision 147
PART = 4  # where the steps of a training are known, one in so many may wait; decision 144
TOLD = 0.6  # of those that may, after which it is said; decision 139
# of an input that hardly varies: steps at most whose gradient waits for one that is foretold, and the error
EARLY, FORETOLD = 8, 0.02  # of that one; decision 151
VAIN = 0.5  # an error that is told where the wait ends: little is known; decision 151

Where = tuple[int, int]  # a box and an input, by their places


@dataclass
class _Box:
    """What is known of one box.

    Attributes:
        inputs: What it was asked for, and which of its inputs are dithered, in which units.
        factor: How many units a dither is.
        known: The share of the tangent's response to a dither that answers have shown, from 0 to 1.
        shown: What rows have shown since factor and share were last chosen.
        before: The factor before, and its response, as a share of how much the outputs change.
        known_before: Whether that response was known, and not found by regression.
        most: The largest factor.
        failed: How many rows of the batch have failed, and of how many, without those of refused dithers.
        waited: Steps with a dither whose response was not known yet; `HELD` once it was, or is waited for
            no longer.
    """

    inputs: AskedInputs = field(default_factory=AskedInputs)
    factor: float = 1.0
    known: float = 0.0
    shown: DitheredRows | None = None
    before: tuple[float, float] = (0.0, 0.0)
    known_before: bool = False
    most: float = math.inf
    failed: tuple[float, float] = (0.0, 0.0)
    waited: int = 0

    @property
    def units(self) -> dict[int, Tensor]:
        """The spread of what is dithered, see `AskedInputs`."""
        return self.inputs.units

    def judge(
        self,
        box: BlackBoxFunction,
        candidates: Sequence[int],
        spread: Spread,
        *,
        waits: bool,
    ) -> set[int]:
        """Judge the inputs again, see `AskedInputs.judge`.

        Returns:
            Those that are dithered from now on and were not.
        """
        before = set(self.units)
        begins = self.inputs.judge(box.inputs, candidates, spread, waits=waits and self.waited < HELD)
        if begins and self.before == (0.0, 0.0):  # no response is known yet
            self.factor = FIRST
        return set(self.units) - before

    def refuse(self) -> None:
        """Choose a smaller factor: at this one rows failed, as of a simulator that an action ends."""
        self.most, self.factor, self.shown = self.factor / 2, self.factor / GROWN, None

    def take(self, seen: NextSize) -> None:
        """Choose the next factor.

        Where a larger dither has hardly a larger response, as of an actuator at its limits, the one before is
        the largest. That is seen of responses that were found in the same way, by regression or by what is
        known; and where a larger one has none that stands out of chance, that of a smaller one was chance.
        """
        share = math.sqrt(seen.response / seen.change) if seen.change else 0.0
        factor, response = self.before
        known = seen.known > KNOWN
        if share and response and factor < self.factor and known == self.known_before:
            if share / response < LINEAR * self.factor / factor:
                self.most = factor
        if share:
            self.before, self.known_before = (self.factor, share), known
        elif factor < self.factor:
            self.before = 0.0, 0.0
        self.factor = min(self.factor * min(max(seen.times, SHRUNK), GROWN), self.most, WIDEST)


class Excitation:
    """Which inputs of which boxes are dithered, and by how much; from step to step.

    Args:
        boxes: the boxes.
        size: of a dither in multiples of the input's spread; None for what is found, 0 for no dither.
        steps: how many the training takes; None where that is not known.

    Attributes:
        size: as given.
        held: steps at most whose gradient waits for the response to a first dither.
        response: the response to the last dithers, as a share of how much the outputs change; None before
            there was one.
        in_loss: what the dither did to the loss of the last step that was checked, as a share of the loss;
            None before there was one.
        out_of_loss: the share of the response to the last dither that the loss of its step is without, as far
            as tangents know that response; None where that step had no dither.
    """

    def __init__(
        self, boxes: Sequence[BlackBoxFunction], size: float | None = None, steps: int | None = None
    ) -> None:
        self.size, self._boxes = size, boxes
        self.held = HELD if steps is None else min(HELD, max(1, steps // PART))
        self._state = [_Box() for _ in boxes]
        self.response: float | None = None
        self.in_loss: float | None = None
        self.out_of_loss: float | None = None
        self._candidates: dict[int, list[int]] = {}  # of the last step, by box

    def __bool__(self) -> bool:
        """Whether anything is dithered."""
        return self.size != 0 and any(state.units for state in self._state)

    def of_step(self, key: Key, tangents: Sequence[Excited]) -> Dither:
        """The dither of a step's calls."""
        if not self:
            return Dither()
        boxes = range(len(tangents))
        return Drawn(key, tangents, [self.sizes(box) for box in boxes], [s.known for s in self._state])

    def sizes(self, box: int) -> dict[int, Tensor]:
        """By input, how large the dither of a box's is, number by number."""
        state, specs = self._state[box], self._boxes[box].inputs
        factor = state.factor if self.size is None else self.size
        ranges = {place: specs[place].ends[1] - specs[place].ends[0] for place in state.units}
        return {
            place: (factor * unit).clamp(max=NARROW * ranges[place]) for place, unit in state.units.items()
        }

    @property
    def waits(self) -> bool:
        """Whether a step's gradient is not to be used: nothing has shown yet what a dithered input does.

        Until then the derivative by it is a guess, of either sign. It is not waited for longer than `held`
        steps, and once it was known no more. With a size of the user's nothing is waited for.
        """
        return self.size is None and any(state.units and state.waited < HELD for state in self._state)

    def is_early(self, number: int, error: float | None) -> bool:
        """Whether a step's gradient would be a guess: of an input that hardly varies, which few rows show.

        Args:
            number: of the step.
            error: the relative error of what tangents foretold of it; None where there was nothing.
        """
        faint = any(state.inputs.faint for state in self._state)
        return faint and number < min(EARLY, self.held) and (error is None or error > FORETOLD)

    def foretold_in_vain(self, number: int, error: float | None) -> list[Notice]:
        """A warning where an early gradient was waited for (`is_early`), and steps are still not foretold.

        Args:
            number: of the step, the first whose gradient is used.
            error: the relative error of what tangents foretold of it; None where there was nothing.
        """
        if number != min(EARLY, self.held) or error is None or error <= VAIN:
            return []
        faint = (box for box, state in zip(self._boxes, self._state, strict=True) if state.inputs.faint)
        return [not_foretold(number, box, error) for box in faint]

    def look(self, number: int, tangents: Sequence[Excited]) -> list[Notice]:
        """Take in, once a step, whether the responses to dithers are known by now.

        Args:
            number: of the step.
            tangents: one for each box, which have seen the step.

        Returns:
            A warning where that takes long, and one where it is waited for no more.
        """
        if self.size is not None:
            return []
        notices: list[Notice] = []
        for box, state, tangent in zip(self._boxes, self._state, tangents, strict=True):
            if not state.units or state.waited == HELD:
                continue
            waited = state.waited + 1
            known = tangent.in_use or state.known > KNOWN
            if waited > LONG and state.shown is not None:  # a row a step: the next size is far away
                known = known or state.shown.known_by_now()
            state.waited = HELD if known or waited >= self.held else waited
            names = " and ".join(repr(box.inputs[which].name) for which in state.units)
            told = math.ceil(TOLD * self.held)
            if not known and waited == told < self.held - 1:  # else the other word is near
                notices.append(waits_long(number, names, box, self.held, told))
            if not known and state.waited == HELD:
                notices.append(unknown(number, names, box, self.held))
        return notices

    def excites(self, box: int) -> bool:
        """Whether an input of a box is dithered."""
        return self.size != 0 and bool(self._state[box].units)

    def refused(self, number: int, why: str) -> Notice:
        """Choose smaller dithers, since one has left no row of a step, or a box has ended it.

        Args:
            number: of the step.
            why: what was said of it.

        Returns:
            A warning.
        """
        names: list[str] = []
        for box, state in zip(self._boxes, self._state, strict=True):
            if state.units:
                state.refuse()
                names += [f"{box.inputs[which].name!r} of {box!r}" for which in state.units]
        return Notice(
            "refused dither",
            f"Step {number + 1}: expected rows to survive a dither on {' and '.join(names)}, which shows the "
            f"derivative by it, but: {why} So the step was evaluated once more without, and the dither is "
            "smaller from now on. Give the input the bounds that it has, ArraySpec(..., bounds=(low, high)), "
            "or take Limits(excite=0). Further such steps are not told.",
            TangentWarning,
        )

    def saw_losses(self, loss: Tensor, without: Tensor | None) -> None:
        """Take in the loss of a step, and that without its dither, as far as the tangents know it."""
        if without is not None and bool(without):
            self.in_loss = float((loss - without) / without.abs())

    @torch.no_grad()
    def judge_again(self, spread: Callable[[Where, Tensor], float | None]) -> list[str]:
        """Judge all inputs at once, since trust is lost, and not when rows have doubled.

        Args:
            spread: as for `saw`, which has seen the step.

        Returns:
            What is dithered from now on and was not, in words; none where `excite` is 0.
        """
        words: list[str] = []
        waits = self.size is None
        for place, candidates in self._candidates.items() if self.size != 0 else ():
            state, box = self._state[place], self._boxes[place]
            words += [
                f"a small dither shows the derivative by {box.inputs[which].name!r} of {box!r}"
                for which in sorted(state.judge(box, candidates, _of_box(spread, place), waits=waits))
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
            pairs: what each shows a tangent.
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
        reached = set(reached) - handed_on(calls)
        words: list[str] = []
        self._candidates = {}
        for place, (box, state) in enumerate(zip(self._boxes, self._state, strict=True)):
            own = [number for number, call in enumerate(calls) if call.box == place]
            candidates = [
                which
                for which, spec in enumerate(box.inputs)
                if spec.differentiable and spec.modelled and (place, which) in reached
            ]
            if own and candidates:
                rows = [calls[n] for n in own], [pairs[n] for n in own]
                state.inputs.keep(box, *rows, candidates, len(survived))
                self._candidates[place] = candidates
                state.inputs.see_spread(candidates, _of_box(spread, place))
                if state.inputs.due:
                    new = state.judge(box, candidates, _of_box(spread, place), waits=self.size is None)
                    if self.size == 0:
                        words += [f"{box.inputs[which].name!r} of {box!r}" for which in sorted(new)]
        return words

    def state_dict(self) -> list[dict[str, Any]]:
        """What is known of each box."""
        return [
            {
                **vars(state.inputs),
                **{name: value for name, value in vars(state).items() if name != "inputs"},
                "shown": None if state.shown is None else list(state.shown),
            }
            for state in self._state
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on where `state_dict` was taken."""
        self._state = [_box(entry) for entry in state]

    def _survives(self, survived: Tensor, *, dithered: bool) -> bool:
        """Whether about as many rows fail as before; a dither beside which many more do is made smaller."""
        lost, rows = int((~survived).sum()), len(survived)
        refused = False
        for state in self._state:
            before, of = state.failed
            many = lost > rows * (MANY_LOST + 2 * (before + 0.5) / (of + 4))
            if dithered and state.units and many:
                state.refuse()
                refused = True
                continue
            state.failed = before + lost, of + rows
        return not refused

    def _follow(
        self,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        dither: Drawn,
    ) -> None:
        """Choose the size of the next dither, and how much of its response is known, once enough is shown."""
        response = change = 0.0
        for place, state in enumerate(self._state):
            own = [number for number in dither.predicted if calls[number].box == place]
            if not own:
                continue
            shown = [(calls[n], pairs[n], dither.predicted[n]) for n in own]
            new = DitheredRows.of(shown, dither.gains[place], stands_in=dither.stand_in[place])
            state.shown = new if state.shown is None else state.shown.joined(new)
            rows, numbers = state.shown.added.shape
            if rows >= (OF_FIELDS if state.shown.on_grid else min(ENOUGH * numbers, MOST)):
                verdict = state.shown.verdict()
                state.shown, state.known = None, verdict.known
                state.take(verdict)
                response, change = response + verdict.response, change + verdict.change
        if change:
            self.response = math.sqrt(response / change)


def _box(entry: Mapping[str, Any]) -> _Box:
    """A box as `Excitation.state_dict` has it."""
    of_inputs = {each.name for each in fields(AskedInputs)}
    shown = entry["shown"]
    state = {name: value for name, value in entry.items() if name not in of_inputs}
    state["shown"] = DitheredRows(*shown) if shown else None
    inputs = AskedInputs(**{name: value for name, value in entry.items() if name in of_inputs})
    return _Box(inputs, **state)


def _of_box(spread: Callable[[Where, Tensor], float | None], place: int) -> Spread:
    """What gives the spread of a box's inputs."""
    return lambda which, numbers: spread((place, which), numbers)
