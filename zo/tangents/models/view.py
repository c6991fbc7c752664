"""Bases of tangents that answer by a model: one of several, or one that is shown the rows in another form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from zo.tangents.models.values import Arrays
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised, Tangent


class ByModelTangent(Tangent):
    """The derivative of the one of several models that is in use."""

    @property
    @abstractmethod
    def model(self) -> Tangent:
        """The model in use."""

    def at(self, rows: CallPairs) -> Linearised:
        """The model in use at a call."""
        return self.model.at(rows)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model in use at all calls at once."""
        return self.model.at_each(calls)

    def expect(self, rows: CallPairs) -> Tensor | None:
        """The outputs by the model in use."""
        return self.model.expect(rows)


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
    def gathered(self, rows: CallPairs, z: Tensor) -> Tensor:
        """Inputs of the box's rows as the model is shown them; linear in z."""

    @abstractmethod
    def scattered(self, rows: CallPairs, v: Tensor) -> Tensor:
        """The transpose of `gathered`."""

    @abstractmethod
    def others(self, others: tuple[Tensor | None, ...], count: int) -> tuple[Tensor | None, ...]:
        """The inputs without gradient as the model is shown them.

        Args:
            others: as `CallPairs.others` has them.
            count: how many rows there are.
        """

    def parts(self, rows: CallPairs, y: Tensor) -> Tensor:
        """Outputs of the box's rows as the model has them."""
        return y

    def answers(self, rows: CallPairs, values: Tensor) -> Tensor:
        """The inverse of `parts`: the outputs of the box's rows, `(rows, size_out)`."""
        return values

    @abstractmethod
    def fit(self, inputs: Arrays, outputs: Arrays, steps: int = 400) -> None:
        """Let the model learn from answers of the box that are there already, see `ValueTangent.fit`."""

    def at(self, rows: CallPairs) -> Linearised:
        """The model at the rows of a call."""
        return _ViewAt(rows, self.model.at(self.shown(rows)), self)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model at the rows of several calls."""
        linearised = self.model.at_each([self.shown(rows) for rows in calls])
        return [_ViewAt(rows, at, self) for rows, at in zip(calls, linearised, strict=True)]

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


class _ViewAt(Linearised):
    """A model at the rows that it is shown, as the tangent at the box's rows."""

    def __init__(self, rows: CallPairs, at: Linearised, view: ViewTangent) -> None:
        super().__init__(rows)
        self._at, self._view = at, view

    @property
    def values(self) -> Tensor | None:
        """The model's."""
        values = self._at.values
        return None if values is None else self._view.answers(self.rows, values)

    def push(self, d: Tensor) -> Tensor:
        """The model's J d."""
        return self._view.answers(self.rows, self._at.push(self._view.gathered(self.rows, d)))

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`."""
        return self._view.scattered(self.rows, self._at.pull(self._view.parts(self.rows, v)))

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The model's change."""
        view, shown = self._view, self._view.gathered(self.rows, z)
        return view.answers(self.rows, self._at.to(shown, view.others(others, len(z))))
