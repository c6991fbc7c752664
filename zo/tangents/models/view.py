"""`ViewTangent`: a base of tangents whose model is shown the rows of a box in another form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised, Tangent


class ViewTangent(Tangent):
    """The derivative of a model that is shown the rows of a box in another form.

    Args:
        model: the model, for rows in that form.

    Attributes:
        model: the argument of that name.
    """

    def __init__(self, model: Tangent) -> None:
        self.model = model

    @abstractmethod
    def shown(self, rows: CallPairs) -> CallPairs:
        """Rows of the box in the form of the model."""

    @abstractmethod
    def answers(self, rows: CallPairs, values: Tensor) -> Tensor:
        """The outputs of the box's rows, by those of the model's: `(rows, size_out)`."""

    @abstractmethod
    def seen_from(self, rows: CallPairs, at: Linearised) -> Linearised:
        """The model at the rows that it is shown, as the tangent at the box's rows."""

    @abstractmethod
    def fit(
        self, inputs: Tensor | Sequence[Tensor], outputs: Tensor | Sequence[Tensor], steps: int = 400
    ) -> None:
        """Let the model learn from answers of the box that are there already, see `ValueTangent.fit`."""

    def at(self, rows: CallPairs) -> Linearised:
        """The model at the rows of a call."""
        return self.seen_from(rows, self.model.at(self.shown(rows)))

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model at the rows of several calls."""
        linearised = self.model.at_each([self.shown(rows) for rows in calls])
        return [self.seen_from(rows, at) for rows, at in zip(calls, linearised, strict=True)]

    def expect(self, rows: CallPairs) -> Tensor | None:
        """The outputs by the model."""
        values = self.model.expect(self.shown(rows))
        return None if values is None else self.answers(rows, values)

    def see(self, rows: CallPairs) -> None:
        """Show the model the rows."""
        self.model.see(self.shown(rows))

    def learn(self, steps: int | None = None) -> None:
        """Have the model learn."""
        self.model.learn(steps)

    def improve(self) -> str | None:
        """Learn more, as the model does."""
        return self.model.improve()

    def keep_within(self, most_bytes: int) -> None:
        """Have the model take at most so many bytes."""
        self.model.keep_within(most_bytes)

    def state_dict(self) -> dict[str, Any]:
        """Save what the model has learned."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state)
