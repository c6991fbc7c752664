"""`StandIns`: the substitutes for the boxes of an objective: a tangent of each, and its usual sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count
from blackbox.notices import Notice
from zo.errors import ConfigurationError
from zo.same_run import refuse_other_run
from zo.tangents.evidence.outliers import Outliers, Outlying, outlying
from zo.tangents.evidence.predictions import Squares, learn, predict, relative_error
from zo.tangents.excitation.dither import Prediction
from zo.tangents.excitation.gain import Excited
from zo.tangents.excitation.hidden_memory import Memory, may_remember
from zo.tangents.record.before import Lags
from zo.tangents.record.pairs import CallPairs, reciprocal
from zo.tangents.record.recorded_call import RecordedCall
from zo.tangents.record.units import Units
from zo.tangents.step import refusals
from zo.tangents.step.evaluations import Evaluation
from zo.tangents.tangent import Linearised, Tangent, bring

ABSURD, FAR = 1e3, 1e9  # times what outputs usually vary by, from what was predicted, or from zero


class StandIns:
    """A tangent and the units of each box, which learn side by side.

    Args:
        tangents: one for each box.
        boxes: the boxes.
        outliers: whether answers that are far off, alone, are left out.

    Attributes:
        tangents: the argument of that name.
        excited: the tangents with the gains of dithered inputs, which give the derivatives.
        units: one for each box.
        outliers: one for each box; they decide which rows are not learned from.
        outlying: the outliers of the last step; None for none.
        errors: for each call of the last step, the relative error of its tangent's prediction.
        error: the same over all calls together; None where there was nothing to predict.
    """

    def __init__(
        self, tangents: Sequence[Tangent], boxes: Sequence[BlackBoxFunction], outliers: bool = True
    ) -> None:
        self.tangents, self._boxes = tuple(tangents), boxes
        self._kinds = [repr(tangent) for tangent in self.tangents]
        self._memories = [Memory(may_remember(t, b), b) for t, b in zip(tangents, boxes, strict=True)]
        self._most_bytes: int | None = None  # of rows to learn from, of all tangents together
        self.excited = tuple(Excited(tangent) for tangent in self.tangents)
        self.units = tuple(Units() for _ in self.tangents)
        self.outliers = tuple(Outliers(outliers and tangent.learns) for tangent in self.tangents)
        self.outlying: Outlying | None = None
        self.errors: list[float | None] = []
        self.error: float | None = None
        self._backups: dict[int, Any] = {}  # box -> its tangent's state before answers that seem absurd
        for place in self.memory:  # of boxes that say what they go by
            self._take_over(place)

    @property
    def learn(self) -> bool:
        """True if some tangent learns."""
        return any(tangent.learns for tangent in self.tangents)

    @property
    def replayed(self) -> bool:
        """True if steps may be replayed with all of them, unasked."""
        return all(tangent.replayed for tangent in self.tangents)

    def take_in(
        self, pairs: Sequence[CallPairs], calls: Sequence[RecordedCall], rows: int
    ) -> list[Linearised]:
        """Have the tangents predict the rows of a step, and then learn from them.

        Args:
            pairs: the rows of each call, in the order of the calls.
            calls: the calls.
            rows: the number of rows of the batch.

        Returns:
            The tangent at each call after that, in the units of its box.
        """
        self._backups = {}
        squares: list[Squares | None] = [None] * len(pairs)
        at_calls: dict[int, Linearised] = {}
        farthest = 0.0
        for box, (tangent, units, outliers) in enumerate(
            zip(self.tangents, self.units, self.outliers, strict=True)
        ):
            numbers = [number for number, call in enumerate(calls) if call.box == box]
            if numbers:
                box_pairs = [pairs[number] for number in numbers]
                inliers, by_call, off = predict(tangent, box_pairs, units, outliers, rows)
                if any(map(_absurd, by_call, inliers)):
                    parts = tangent, self.excited[box], outliers
                    self._backups[box] = [deepcopy(part.state_dict()) for part in parts]
                learn(tangent, inliers, outliers)
                farthest = max(farthest, off)
                at_calls |= dict(zip(numbers, self.excited[box].at_each(inliers), strict=True))
                for number, of_call in zip(numbers, by_call, strict=True):
                    squares[number] = of_call
        self.errors = [relative_error([of_call]) for of_call in squares]
        self.error = relative_error(squares)
        in_order = [at_calls[number] for number in range(len(pairs))]
        self.outlying = outlying(pairs, [at.rows for at in in_order], farthest, rows)
        return in_order

    @property
    def memory(self) -> dict[int, Lags]:
        """The lags of the boxes whose calls show earlier ones, by the boxes' places."""
        return {place: memory.lags for place, memory in enumerate(self._memories) if memory.in_use}

    def look_back(
        self,
        calls: Sequence[RecordedCall],
        pairs: Sequence[CallPairs],
        predictions: Mapping[int, Prediction],
        survived: Tensor,
        number: int,
    ) -> dict[int, Notice]:
        """Find the hidden memory of programs, and go on with tangents that are shown it; see `Memory`.

        Args:
            calls: the calls of the step.
            pairs: the rows of each call.
            predictions: the tangents' predictions for calls with dither.
            survived: `(batch rows,)` bool.
            number: the number of the step.

        Returns:
            A warning for each box that goes on with such a tangent, by its place.
        """
        notices: dict[int, Notice] = {}
        for place, (box, memory) in enumerate(zip(self._boxes, self._memories, strict=True)):
            scale = next(
                (p.response_scale for c, p in zip(calls, pairs, strict=True) if c.box == place), None
            )
            if scale is not None and memory.saw(
                calls, predictions, box, place, survived, scale, self.excited[place].unmoved or ()
            ):
                self._take_over(place)
                notices[place] = memory.notice(number, box)
        return notices

    def _take_over(self, place: int) -> None:
        """Have a tangent go on that is shown what was before."""
        memory = self._memories[place]
        assert memory.rival is not None
        tangents = list(self.tangents)
        tangents[place] = memory.rival
        self.tangents = tuple(tangents)
        self.excited[place].remember(memory.rival, memory.lags)
        if self._most_bytes is not None:
            self.keep_within(self._most_bytes)

    def unlearn(self) -> None:
        """Have the tangents forget the step that was taken in last, where its answers seemed absurd."""
        for box, states in self._backups.items():
            parts = self.tangents[box], self.excited[box], self.outliers[box]
            for part, state in zip(parts, states, strict=True):
                part.load_state_dict(state)
            self.tangents[box].brought = False
        self._backups = {}

    def refuse_prefit(self, steps: int) -> None:
        """Refuse `prefit` where it cannot be.

        Args:
            steps: the number of learning steps.

        Raises:
            ConfigurationError: the number is out of range, or a tangent does not learn.
        """
        check_count("TangentGradient.prefit", "steps", steps)
        refusals.refuse_unlearned(self.tangents)

    def see(self, evaluation: Evaluation) -> set[int]:
        """Show boxes' answers to the tangents before the first step; return the places of these boxes."""
        for call in evaluation.recorded:
            tangent = self.tangents[call.box]
            bring(tangent, call.inputs[0].device)
            tangent.see(call.pairs(evaluation.boxes[call.box], evaluation.survived))
        return {call.box for call in evaluation.recorded}

    def learn_before(self, boxes: Collection[int], steps: int) -> None:
        """Have the tangents learn the rows that they saw before the first step.

        Args:
            boxes: the places of the boxes that were called: the others have nothing to learn from.
            steps: the number of learning steps.

        Raises:
            ConfigurationError: none was called.
        """
        if not boxes:
            raise ConfigurationError(
                "TangentGradient.prefit: expected at least one batch, got none. Give a list of batches, as "
                "for backward."
            )
        for box in boxes:
            self.tangents[box].learn(steps)

    def improve(self) -> list[str]:
        """Improve the tangents, since trust is lost, and say how; nothing if no tangent has a way left."""
        remedies = [tangent.improve() for tangent in self.tangents]
        return list(dict.fromkeys(remedy for remedy in remedies if remedy is not None))

    def keep_within(self, most_bytes: int) -> None:
        """Have rows to learn from take at most so many bytes, of all tangents together."""
        self._most_bytes = most_bytes
        for tangent in self.tangents:
            tangent.keep_within(most_bytes // len(self.tangents))

    def metrics(self, steps: int) -> dict[str, float | None]:
        """The relative error of predictions, and that of each call; after one step, of no knowledge, 1.

        Args:
            steps: how many there were.
        """
        error = 1.0 if self.error is None and self.learn and steps == 1 and self.errors else self.error
        by_call = {f"tangent_error_call_{call}": error for call, error in enumerate(self.errors, start=1)}
        return {"tangent_error": error, **by_call}

    def refuse_others(self, state: dict[str, Any]) -> None:
        """Refuse a state of other tangents.

        Raises:
            ConfigurationError: it is.
        """
        own_kinds, theirs = (", ".join(kinds) for kinds in (self._kinds, state["kinds"]))
        refuse_other_run("TangentGradient", {"tangents": own_kinds}, {"tangents": theirs})

    def state_dict(self) -> dict[str, Any]:
        """Save what was learned, and the units."""
        return {
            "kinds": list(self._kinds),
            "memories": [memory.state_dict() for memory in self._memories],
            "tangents": [tangent.state_dict() for tangent in self.tangents],
            "gains": [tangent.state_dict() for tangent in self.excited],
            "units": [units.state_dict() for units in self.units],
            "outliers": [outliers.state_dict() for outliers in self.outliers],
            "error": self.error,
            "errors": list(self.errors),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for place, (memory, box) in enumerate(zip(self._memories, self._boxes, strict=True)):
            memory.load_state_dict(state["memories"][place], box)
            if memory.in_use:
                self._take_over(place)
        parts_by_name = {
            "tangents": self.tangents,
            "gains": self.excited,
            "units": self.units,
            "outliers": self.outliers,
        }
        for name, parts in parts_by_name.items():
            for part, entry in zip(parts, state[name], strict=True):
                part.load_state_dict(entry)
        for tangent in self.tangents:
            tangent.brought = False
        self.error, self.errors = state["error"], list(state["errors"])


def _absurd(of_call: Squares | None, rows: CallPairs) -> bool:
    """Say whether answers are far from predictions, in usual units, or from zero where there was none."""
    if of_call is None:  # outputs may be large and vary little
        square, most = (rows.y * reciprocal(rows.response_scale)).double().square().sum().item(), FAR
    else:
        (square, _), most = of_call, ABSURD
    return not square <= most**2 * rows.y.numel()
