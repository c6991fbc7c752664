"""`StagedTangent`: for calls in stages, whose answers may go by the step before: a contest shows whether."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from zo.errors import TangentError
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.structure import Specs
from zo.tangents.record.pairs import CallPairs, reciprocal, sizes
from zo.tangents.tangent import Linearised, Tangent

# decision 223, both:
CONTEST = 8  # steps in which both learn: later the two differ by how they bend, not by what they are shown
BETTER = 2.0  # times the mean square error that the model of the own step must have, step by step


class StagedTangent(Tangent):
    """J(z) is that of a model of a stage's own step, or of the step before too where that foretells more.

    A Runge-Kutta scheme goes by the stages of its own step alone; an Adams scheme goes by earlier steps. A
    model that is shown more than an answer goes by has a derivative by all of it, and more to learn. So an
    `AutoTangent` that is not shown the step before is used from the first step on. Another one, which is
    shown all, learns beside it for eight steps, and is used if it foretells new rows clearly better.

    Args:
        specs: The specs of the box.
        earlier: The names of the inputs that come from the step before.
        seed: The seed of all that is drawn.

    Attributes:
        model: The model in use.
    """

    def __init__(self, specs: Specs, earlier: Collection[str], seed: int = 0) -> None:
        own = Specs(tuple(s for s in specs.inputs if s.name not in earlier), specs.outputs)
        self._own, self._specs, self._seed = _OwnStep(specs, earlier), {"own": own, "all": specs}, seed
        self._most_bytes: int | None = None  # of both models together; None for the usual
        self._models = self._made(self._specs)
        self._errors = dict.fromkeys(self._models, 0.0)  # of what was foretold in this step
        self._logarithms: list[float] = []  # of the ratio of errors, one over the other, by step
        self._kind = "own"

    @property
    def model(self) -> AutoTangent:
        """The model in use."""
        return self._models[self._kind]

    def at(self, rows: CallPairs) -> Linearised:
        """The model in use at a call."""
        return self.at_each([rows])[0]

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model in use at several calls."""
        if self._kind == "all":
            return self.model.at_each(calls)
        each = self.model.at_each([self._own.rows(rows) for rows in calls])
        return [_OwnStepAt(rows, at, self._own) for rows, at in zip(calls, each, strict=True)]

    def expect(self, rows: CallPairs) -> Tensor | None:
        """The outputs by the model in use."""
        return self.model.expect(self._shown(self._kind, rows))

    def see(self, rows: CallPairs) -> None:
        """Let the models keep the rows, and see how well each foretells them."""
        for kind, model in self._models.items():
            shown = self._shown(kind, rows)
            values = model.expect(shown) if len(self._models) > 1 else None
            if values is not None and bool(rows.alive.any()):
                missed = ((values - rows.y) * reciprocal(rows.response_scale))[rows.alive]
                self._errors[kind] += float(missed.double().square().sum())
            model.see(shown)

    def learn(self, steps: int | None = None) -> None:
        """Let the models learn, and choose, as long as there are two."""
        self._all_learn(lambda kind, model: model.learn(steps))
        if steps is not None or len(self._models) == 1:
            return
        own, whole = self._errors["own"], self._errors["all"]
        if 0 < own < math.inf and 0 < whole < math.inf:
            self._logarithms.append(math.log(own / whole))
        clear = len(self._logarithms) > 1 and fmean(self._logarithms) > math.log(BETTER)
        self._kind, self._errors = "all" if clear else "own", dict.fromkeys(self._models, 0.0)
        if len(self._logarithms) >= CONTEST:
            self._settle(self._kind)

    def fit(
        self,
        inputs: Tensor | Sequence[Tensor],
        outputs: Tensor | Sequence[Tensor],
        steps: int = 400,
    ) -> None:
        """Let both models learn from answers of the box that are there already, see `AutoTangent.fit`."""
        arrays = [inputs] if isinstance(inputs, Tensor) else list(inputs)

        def learn(kind: str, model: AutoTangent) -> None:
            shown = self._specs[kind].inputs
            each = zip(self._specs["all"].inputs, arrays, strict=False)  # models refuse another number
            model.fit([array for spec, array in each if spec in shown], outputs, steps)

        self._all_learn(learn)

    def improve(self) -> str | None:
        """Have the model in use do more, in words."""
        return self.model.improve()

    def keep_within(self, most_bytes: int) -> None:
        """Have the models share so many bytes."""
        self._most_bytes = most_bytes
        for model in self._models.values():
            model.keep_within(most_bytes // len(self._models))

    def state_dict(self) -> dict[str, Any]:
        """Which models there are, and what they have learned."""
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

    def _made(self, kinds: Iterable[str]) -> dict[str, AutoTangent]:
        """Make models that have learned nothing."""
        models = {kind: AutoTangent(self._specs[kind], self._seed) for kind in kinds}
        if self._most_bytes is not None:
            for model in models.values():
                model.keep_within(self._most_bytes // len(models))
        return models

    def _all_learn(self, learn: Callable[[str, AutoTangent], None]) -> None:
        """All models learn; of two, the one whose learning fails is out."""
        for kind, model in list(self._models.items()):
            try:
                learn(kind, model)
            except TangentError:
                if len(self._models) == 1:
                    raise
                self._settle(next(other for other in self._models if other != kind))

    def _settle(self, kind: str) -> None:
        """Go on with one model, which has the room of both."""
        self._kind, self._models = kind, {kind: self._models[kind]}
        if self._most_bytes is not None:
            self.model.keep_within(self._most_bytes)

    def _shown(self, kind: str, rows: CallPairs) -> CallPairs:
        return rows if kind == "all" else self._own.rows(rows)

    def __repr__(self) -> str:
        """The models, the one in use first."""
        kinds = sorted(self._models, key=lambda kind: kind != self._kind)
        words = {"own": "shown its own step", "all": "shown the step before too"}
        return f"{type(self).__name__}({', '.join(f'{self._models[k]!r} {words[k]}' for k in kinds)})"


class _OwnStep:
    """Which numbers of a row come from a stage's own step.

    Args:
        specs: The specs of the box.
        earlier: The names of the inputs that come from the step before.
    """

    def __init__(self, specs: Specs, earlier: Collection[str]) -> None:
        learned = tuple(spec for spec in specs.inputs if spec.learned)
        self._inputs = tuple(spec for spec in learned if spec.name not in earlier)
        kept = [torch.full((n,), s.name not in earlier) for s, n in zip(learned, sizes(learned), strict=True)]
        self.numbers = torch.cat(kept).nonzero().flatten()  # of z
        seen = [spec for spec in specs.inputs if spec.modelled]
        self._others = [place for place, spec in enumerate(seen) if spec.name not in earlier]

    def rows(self, rows: CallPairs) -> CallPairs:
        """The rows without what comes from the step before."""
        z = rows.z[:, self.numbers.to(rows.z.device)]
        return replace(rows, inputs=self._inputs, z=z, others=self.others(rows.others))

    def others(self, others: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        """The other inputs of the own step."""
        return tuple(others[place] for place in self._others) if others else ()


class _OwnStepAt(Linearised):
    """What a model of the own step says at rows that show the step before too: nothing by that."""

    def __init__(self, rows: CallPairs, at: Linearised, own: _OwnStep) -> None:
        super().__init__(rows)
        self._at, self._own, self._numbers = at, own, own.numbers.to(rows.z.device)

    @property
    def values(self) -> Tensor | None:
        """The outputs by the model."""
        return self._at.values

    def push(self, d: Tensor) -> Tensor:
        """J d of the own step's numbers."""
        return self._at.push(d[..., self._numbers])

    def pull(self, v: Tensor) -> Tensor:
        """The adjoint of `push`, zero for numbers of the step before."""
        by_own = self._at.pull(v)
        whole = by_own.new_zeros(*by_own.shape[:-1], self.rows.z.shape[1])
        whole[..., self._numbers] = by_own
        return whole

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        """The change by the own step's numbers."""
        return self._at.to(z[:, self._numbers], self._own.others(others))
