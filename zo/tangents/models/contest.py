"""`ContestTangent`: the first of two models of a box, or the second where that foretells more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any, TypeAlias

import torch

from zo.errors import TangentError
from zo.tangents.models.automatic import WORST, AutoTangent
from zo.tangents.models.values import Arrays
from zo.tangents.models.view import ByModelTangent, ViewTangent
from zo.tangents.record.pairs import CallPairs, reciprocal

# decision 223, both:
CONTEST = 8  # steps in which both learn: later two models of stages differ by how they bend
BETTER = 2.0  # times the mean square error of the second that the first must have
Rival: TypeAlias = AutoTangent | ViewTangent


class ContestTangent(ByModelTangent):
    """The derivative of one of two models: the first, unless the second foretells new rows better.

    Both learn side by side for eight steps. The rows of the training alone show which of them suits the box.

    Args:
        rivals: a function that makes each model, by a name; the first is used from the first step on.
        by_last_step: whether the second is used if it is twice as good in the last step, in the mean square,
            or in the geometric mean of all steps.

    Attributes:
        model: the model in use.
    """

    def __init__(self, rivals: Mapping[str, Callable[[], Rival]], by_last_step: bool = False) -> None:
        self._rivals, self._by_last_step = dict(rivals), by_last_step
        self._first, self._second = self._rivals
        self._most_bytes: int | None = None  # of both models together; None for the usual
        self._models = self._made(self._rivals)
        self._errors = dict.fromkeys(self._models, 0.0)  # of what was foretold in this step
        self._logarithms: list[float] = []  # of the ratio of errors, first over second, by step
        self._kind = self._first

    @property
    def model(self) -> Rival:
        """The model in use."""
        return self._models[self._kind]

    @torch.no_grad()
    def see(self, rows: CallPairs) -> None:
        """Let the models keep the rows, and see how well each foretells them."""
        for kind, model in self._models.items():
            values = model.expect(rows) if len(self._models) > 1 else None
            if values is not None and bool(rows.alive.any()):
                missed = ((values - rows.y) * reciprocal(rows.response_scale))[rows.alive]
                error = float(missed.double().square().sum())
                self._errors[kind] += error if math.isfinite(error) else WORST
            model.see(rows)

    def learn(self, steps: int | None = None) -> None:
        """Let the models learn, and choose, as long as there are two."""
        self._all_learn(lambda model: model.learn(steps))
        if steps is not None or len(self._models) == 1:
            return
        first, second = self._errors[self._first], self._errors[self._second]
        if first > 0 and second > 0:
            self._logarithms.append(math.log(first / second))
        self._kind = self._second if self._is_better() else self._first
        self._errors = dict.fromkeys(self._models, 0.0)
        if len(self._logarithms) >= CONTEST:
            self._settle(self._kind)

    def fit(self, inputs: Arrays, outputs: Arrays, steps: int = 400) -> None:
        """Let both models learn from answers of the box that are there already, see `AutoTangent.fit`."""
        self._all_learn(lambda model: model.fit(inputs, outputs, steps))

    def improve(self) -> str | None:
        """Have the model in use do more, in words."""
        return self.model.improve()

    def keep_within(self, most_bytes: int) -> None:
        """Have the models share so many bytes."""
        self._most_bytes = most_bytes
        for model in self._models.values():
            model.keep_within(most_bytes // len(self._models))

    def state_dict(self) -> dict[str, Any]:
        """Save which models there are, and what they have learned."""
        return {
            "kind": self._kind,
            "logarithms": list(self._logarithms),
            "errors": dict(self._errors),
            "models": {kind: model.state_dict() for kind, model in self._models.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._kind, self._logarithms = state["kind"], list(state["logarithms"])
        self._errors, self._models = dict(state["errors"]), self._made(state["models"])
        for kind, model in self._models.items():
            model.load_state_dict(state["models"][kind])

    def _is_better(self) -> bool:
        """True if the second has foretold better so far."""
        judged = self._logarithms[-1:] if self._by_last_step else self._logarithms
        return len(self._logarithms) > 1 and fmean(judged) > math.log(BETTER)

    def _made(self, kinds: Iterable[str]) -> dict[str, Rival]:
        """Make models that have learned nothing."""
        models = {kind: self._rivals[kind]() for kind in kinds}
        if self._most_bytes is not None:
            for model in models.values():
                model.keep_within(self._most_bytes // len(models))
        return models

    def _all_learn(self, learn: Callable[[Rival], None]) -> None:
        """All models learn; of two, the one whose learning fails is out."""
        for kind, model in list(self._models.items()):
            try:
                learn(model)
            except TangentError:
                if len(self._models) == 1:
                    raise
                self._settle(next(rival for rival in self._models if rival != kind))

    def _settle(self, kind: str) -> None:
        """Go on with one model, which has the room of both."""
        self._kind, self._models = kind, {kind: self._models[kind]}
        if self._most_bytes is not None:
            self.model.keep_within(self._most_bytes)

    def __repr__(self) -> str:
        """The models, the one in use first."""
        kinds = sorted(self._models, key=lambda kind: kind != self._kind)
        return f"{type(self).__name__}({', '.join(repr(self._models[kind]) for kind in kinds)})"
