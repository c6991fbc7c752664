"""`StandIns`: what stands for the boxes of an objective: a tangent of each, and its usual sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zo.tangents.evidence.predictions import Squares, predict_and_learn, relative_error
from zo.tangents.record.pairs import CallPairs
from zo.tangents.record.units import Units
from zo.tangents.tangent import Linearised, Tangent


class StandIns:
    """A tangent and the units of each box, which learn side by side.

    Args:
        tangents: one for each box.

    Attributes:
        tangents: as given.
        units: one for each box.
        errors: for each call of the last step, the relative error of what its tangent predicted.
        error: the same over all calls together; None where there was nothing to predict.
    """

    def __init__(self, tangents: Sequence[Tangent]) -> None:
        self.tangents = tuple(tangents)
        self.units = tuple(Units() for _ in self.tangents)
        self.errors: list[float | None] = []
        self.error: float | None = None

    @property
    def learn(self) -> bool:
        """Whether more probes can help any."""
        return any(tangent.learns for tangent in self.tangents)

    @property
    def guess(self) -> bool:
        """Whether some tangent learns without probes."""
        return any(tangent.learns_from_values for tangent in self.tangents)

    @property
    def replayed(self) -> bool:
        """Whether steps may be replayed with all of them, unasked."""
        return all(part.replayed for tangent in self.tangents for part in tangent.parts())

    def take_in(self, pairs: Sequence[CallPairs], boxes: Sequence[int]) -> list[Linearised]:
        """Have the tangents predict what a step has shown, and learn from it.

        Args:
            pairs: what each call has shown, in their order.
            boxes: the box of each call, by its place.

        Returns:
            What they say at each call then, in the units of its box.
        """
        squares: list[Squares | None] = [None] * len(pairs)
        at_calls: dict[int, Linearised] = {}
        for box, (tangent, units) in enumerate(zip(self.tangents, self.units, strict=True)):
            numbers = [number for number, of_call in enumerate(boxes) if of_call == box]
            if numbers:
                measured = units.measure([pairs[number] for number in numbers])
                by_call = predict_and_learn(tangent, measured)
                at_calls |= dict(zip(numbers, tangent.at_each(measured), strict=True))
                for number, of_call in zip(numbers, by_call, strict=True):
                    squares[number] = of_call
        self.errors = [relative_error([of_call]) for of_call in squares]
        self.error = relative_error(squares)
        return [at_calls[number] for number in range(len(pairs))]

    def improve(self) -> list[str]:
        """What the tangents do from now on, since trust is lost, in words; none if nothing is left to do."""
        return [remedy for remedy in (tangent.improve() for tangent in self.tangents) if remedy is not None]

    def keep_within(self, most_bytes: int) -> None:
        """Have rows to learn from take at most so many bytes, of all tangents together."""
        for tangent in self.tangents:
            tangent.keep_within(most_bytes // len(self.tangents))

    def state_dict(self) -> dict[str, Any]:
        """What was learned, and the units."""
        return {
            "kinds": [repr(tangent) for tangent in self.tangents],
            "tangents": [tangent.state_dict() for tangent in self.tangents],
            "units": [units.state_dict() for units in self.units],
            "error": self.error,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for parts, states in ((self.tangents, state["tangents"]), (self.units, state["units"])):
            for part, kept in zip(parts, states, strict=True):
                part.load_state_dict(kept)
        for tangent in self.tangents:
            tangent.brought = False
        self.error = state.get("error")
