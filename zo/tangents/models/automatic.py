"""`AutoTangent`: a model chosen by what the box looks like, and another kind where that one fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents.models.grid import GridTangent
from zo.tangents.models.lattice import Lattice, space_of
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.secant import SecantTangent
from zo.tangents.models.stencil import StencilTangent
from zo.tangents.models.values import ValueTangent
from zo.tangents.pairs import CallPairs
from zo.tangents.tangent import Tangent

FEWEST_CELLS = 16  # of a grid, and the most channels: less is a table of numbers
MOST_CHANNELS = 16


class AutoTangent(Tangent):
    """J(z) is that of a model fitted to the box's values, of a kind that suits the box.

    Outputs `(channels, *space)` with at least 16 cells and at most 16 channels, and an input on the same grid:
    `GridTangent`; all else: `MLPTangent`. Where trust is lost it learns longer, and then another kind takes
    over, which begins with the rows that are there: `StencilTangent` on grids, then `MLPTangent`. Only if probes
    run, their responses correct the model in each row, as `SecantTangent` does.

    Args:
        box: whose specs decide.
        seed: of all that is drawn.

    Attributes:
        model: the one in use.
    """

    learns_from_values = True

    def __init__(self, box: BlackBoxFunction, seed: int = 0) -> None:
        outputs = [spec for spec in box.outputs if spec.differentiable]
        inputs = [spec for spec in box.inputs if spec.differentiable]
        grid, mlp = (lambda: GridTangent(seed=seed)), (lambda: MLPTangent(seed=seed))
        kinds = (grid, StencilTangent, mlp) if is_grid(inputs, outputs) else (mlp,)
        self._kinds: tuple[Callable[[], ValueTangent], ...] = kinds
        self._place = 0
        self.model = kinds[0]()

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """The model's J d, corrected by probes if there are any."""
        return self._corrected(pairs).apply(pairs, d)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """The model's J^T v, corrected by probes if there are any."""
        return self._corrected(pairs).vjp(pairs, cotangent)

    def predict(self, pairs: CallPairs) -> Tensor:
        """Of the model, corrected by the other probes."""
        return self._corrected(pairs).predict(pairs)

    def predict_values(self, pairs: CallPairs) -> Tensor | None:
        """The model's."""
        return self.model.predict_values(pairs)

    def see(self, pairs: CallPairs) -> None:
        """Let the model keep the rows."""
        self.model.see(pairs)

    def observe(self, pairs: CallPairs) -> None:
        """Let the model learn."""
        self.model.observe(pairs)

    def fit(
        self,
        inputs: Tensor | Sequence[Tensor],
        outputs: Tensor | Sequence[Tensor],
        **settings: Any,  # noqa: ANN401
    ) -> None:
        """Let the model learn from answers that are there already, see `ValueTangent.fit`."""
        self.model.fit(inputs, outputs, **settings)

    def learn(self, steps: int | None = None) -> None:
        """Let the model learn from what it has seen, see `ValueTangent.learn`."""
        self.model.learn(steps)

    def improve(self) -> str | None:
        """Learn longer; or another kind takes over, as long as there is one."""
        told = self.model.improve()
        if told is not None or self._place + 1 == len(self._kinds):
            return told
        rows, before = self.model.rows(), self.model
        self._place += 1
        self.model = self._kinds[self._place]()
        if rows is not None:
            form, (z, others, y) = rows
            self.model.start(form, z, others, y)
        return f"{self.model!r} takes over from {before!r}"

    def state_dict(self) -> dict[str, Any]:
        """Which kind, and what it learned."""
        return {"place": self._place, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._place = state["place"]
        self.model = self._kinds[self._place]()
        self.model.load_state_dict(state["model"])

    def _corrected(self, pairs: CallPairs) -> Tangent:
        return SecantTangent(self.model) if len(pairs.d) and bool(pairs.valid.any()) else self.model

    def __repr__(self) -> str:
        """With all kinds, in their order."""
        return f"AutoTangent({', '.join(repr(kind()) for kind in self._kinds)})"


def is_grid(inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> bool:
    """Whether outputs lie on a grid, `(channels, *space)`, and at least one input does."""
    space = space_of(outputs)
    if space is None or any(len(spec.shape) < 2 or spec.shape[0] > MOST_CHANNELS for spec in outputs):
        return False
    lattice = Lattice(tuple(spec.shape for spec in inputs), space)
    return torch.Size(space).numel() >= FEWEST_CELLS and any(
        len(spec.shape) == len(space) + 1 and lattice.on_grid(spec.shape) for spec in inputs
    )
