"""`SelectedTangent`: the one of several models that foretells unseen rows best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox.checks import check_count
from zo.errors import ConfigurationError, TangentError
from zo.tangents.models.additive import AdditiveTangent
from zo.tangents.models.kernel import GROWN, KernelTangent
from zo.tangents.models.linear import LinearTangent
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.prior import Below, said
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs
from zo.tangents.tangent import Linearised

ABOVE = " above prior"  # behind the name of a model that learns what a prior leaves

# decision 211:
FEW, TURNS = 300, 10  # rows up to which each is left out once, a tenth at a time
FOLD = 5  # of more one row in so many is left out
STEPS = 400  # of learning of a model that learns in steps
MODELS: dict[str, Callable[[], ValueTangent]] = {
    "linear": LinearTangent,
    "kernel": KernelTangent,
    "additive": AdditiveTangent,
    "mlp": lambda: MLPTangent(seed=0),
}


class SelectedTangent(ValueTangent):
    """The derivative of the model that foretells held-out rows best.

    It is for a fit that is made once or a few times, such as a frozen derivative or a posterior's force. The
    models are a line, a Gaussian process (`KernelTangent`), an additive one with pairs (`AdditiveTangent`)
    and a perceptron (`MLPTangent`). A fifth of the rows is held out; with up to 300 rows, each tenth in turn.
    A row's error is the root mean square over its outputs in units of their spread. A model's error is the
    median over rows, since one row far out would decide about a mean. The best model then learns from all
    rows. It is chosen again when there are half as many rows more, and in between it alone learns again. A
    model that fails is left out.

    With a prior there are twice as many: each model above it, and each one alone, since a prior may be wrong.

    Memory and time: those of its models, twice of the best one; eleven times the time of all up to 300 rows.

    Args:
        models: a function that makes each model, by its name; the four models if left out.
        window: rows kept, the oldest going.
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        kind: the name of the model in use, before " above prior" where it is; "" before there are rows.
        errors: the error of each model; infinite for one that failed.

    Raises:
        ConfigurationError: a value out of its range, or no models.
    """

    def __init__(
        self,
        models: Mapping[str, Callable[[], ValueTangent]] | None = None,
        *,
        window: int = 5000,
        prior: Below | None = None,
    ) -> None:
        check_count("SelectedTangent", "window", window)
        self.makers = dict(MODELS if models is None else models)
        if not self.makers:
            raise ConfigurationError(
                "SelectedTangent, models: expected at least one, got none. Name some, or leave it out."
            )
        super().__init__(window, output_map=False, prior=prior)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self.kind, self.errors = "", dict[str, float]()
        self._model: ValueTangent | None = None
        self._last_choice = self._last_fit = 0  # rows ever seen then

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return self._model is not None

    @property
    def model(self) -> ValueTangent:
        """The model in use.

        Raises:
            TangentError: there are no rows yet.
        """
        if self._model is None:
            raise TangentError("SelectedTangent.model: expected rows first, got none. Call fit() or learn().")
        return self._model

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of all that it chooses from, those above the prior first."""
        above = () if self.prior is None else tuple(f"{name}{ABOVE}" for name in self.makers)
        return (*above, *self.makers)

    @property
    def _alone(self) -> bool:
        """True if the model in use has left a prior."""
        return self.prior is not None and self.kind in self.makers

    def learn_from_window(self, steps: int | None) -> None:
        """Choose, where there is half as much more; else let the one in use learn from all rows again."""
        self._lessons += 1
        count = self._window.seen
        if self._model is not None and count == self._last_fit:
            return
        columns = self._window.spread(self._window.rows)
        if not self.kind or count >= GROWN * self._last_choice:
            self._choose(columns, STEPS if steps is None else steps)
            self._last_choice = count
        self._model = self._learned(self.kind, columns, STEPS if steps is None else steps)
        self._last_fit = count

    def _choose(self, columns: tuple[Tensor, ...], steps: int) -> None:
        """The one of the smallest median error on rows left out; the first of all if there are too few."""
        count, self.errors = len(columns[0]), {}
        if count < TURNS or len(self.kinds) == 1:
            self.kind = self.kinds[0]
            return
        turns = range(TURNS) if count <= FEW else range(1)
        fold = torch.arange(count, device=columns[0].device) % (TURNS if count <= FEW else FOLD)
        unit = self._wanted("", columns).double().std(0, correction=0)
        for kind in self.kinds:
            try:
                missed = [self._missed(kind, columns, fold == turn, steps, unit) for turn in turns]
                error = float(torch.cat(missed).median())
            except TangentError:
                error = math.inf
            self.errors[kind] = error if math.isfinite(error) else math.inf
        self.kind = min(self.errors, key=lambda kind: self.errors[kind])

    @torch.no_grad()
    def _missed(self, kind: str, columns: Sequence[Tensor], out: Tensor, steps: int, unit: Tensor) -> Tensor:
        """Return a model's error at each row that it is not shown, in spreads of the outputs."""
        model = self._learned(kind, [column[~out] for column in columns], steps)
        z, others, _ = left_out = [column[out] for column in columns]
        missed = model.values(z, others).double() - self._wanted(kind, left_out).double()
        return (missed / torch.where(unit > 0, unit, 1.0)).square().mean(1).sqrt()

    def _wanted(self, kind: str, columns: Sequence[Tensor]) -> Tensor:
        """Return what a model learns of rows: what the prior leaves, or all."""
        z, others, y = columns
        if self.prior is None or kind.endswith(ABOVE):
            return y
        return y + self.prior.flat(self._form, z, others)

    def _learned(self, kind: str, columns: Sequence[Tensor], steps: int) -> ValueTangent:
        """A new model of a kind that has learned from rows."""
        model = self._made(kind)
        z, others, _ = columns
        model._take(self._form, z, others, self._wanted(kind, columns))
        with torch.enable_grad():
            model.learn(steps)
        return model

    def _made(self, kind: str) -> ValueTangent:
        return self.makers[kind.removesuffix(ABOVE)]()

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model in use at each call, with the prior if it is above that."""
        return self.known_at(calls) if self._alone else super().at_each(calls)

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """The model in use: `(rows, size_in)` to `(rows, size_out)`."""
        return self.model.values(z, others)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model in use at each call."""
        return self.model.known_at(calls)

    def state_dict(self) -> dict[str, Any]:
        """The choice, the model in use, and the rows."""
        if not self._form:
            return {"form": None}
        return self.kept() | {
            "kind": self.kind,
            "errors": dict(self.errors),
            "counts": (self._last_choice, self._last_fit),
            "model": self._model.state_dict() if self._model else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        self.load_kept(state)
        self.kind, self.errors = state["kind"], dict(state["errors"])
        self._last_choice, self._last_fit = state["counts"]
        self._model = None
        if state["model"] is not None:
            self._model = self._made(self.kind)
            self._model.load_state_dict(state["model"])

    def __repr__(self) -> str:
        """The model in use, or the names of all."""
        models = repr(self._model) if self._model else ", ".join(self.makers)
        return f"SelectedTangent({models}{said(None if self._alone else self.prior)})"
