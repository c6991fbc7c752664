"""`AutoTangent`: the contest of the candidates that fit a box, and another one where the winner fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import warn
from zo.errors import ConfigurationError, TangentError, TangentWarning
from zo.tangents.models.candidates import BETTER, SHIPPED, Candidate, candidates
from zo.tangents.models.prior import Below, Prior
from zo.tangents.models.row_window import MOST_BYTES
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import Arrays, ValueTangent, as_tensors
from zo.tangents.models.view import ByModelTangent
from zo.tangents.record.pairs import CallPairs, reciprocal, without_copies

CONTEST = 25  # steps in which candidates learn side by side; decision 32
FEWEST_JUDGED = 50  # rows that are there already, a fifth of which decides which kind is better; decision 32
FADING = 0.5  # of an error with each of these
WORST = 1e12  # an error that is not finite counts as this
PRIOR = "prior"  # the name of the first kind above a prior
AWAY = 5  # steps in succession without the prior after which that is said; decision 196
OF_LIGHT = 16  # a light candidate has this part of the bytes


class AutoTangent(ByModelTangent):
    """The derivative of a model fitted to the box's values, of a kind that suits the box.

    All `Candidate`s that fit the box's specs learn side by side for 25 steps; the first is used, unless
    another predicted new rows better, by as much as that one must; the last one stays. Other packages may
    register more (`zo.tangents.Candidate`). Of those that ship, a box gets these:

    Outputs `(channels, *space)` with at least 16 cells and at most 16 channels, and an input on the same
    grid, or `(*space)` beside such arrays or others of the same shape, or vectors of n cells and of n + 1
    faces: a `GridTangent` and a `StencilTangent`, and where the box moves a state on, on a grid of at most
    4,096 cells whose ends may meet, an `EquationTangent`, which is out when it leaves more than .3 of the
    calls' change. The network is used, unless the stencil predicted new rows with less than half of its
    error, or the equation with less than what is used then: where both predict about as well the network's
    derivative is better than the stencil's, and the equation's is better than both. All else:
    `KernelTangent` where a row has at most 32 numbers of inputs and 5,000 of outputs, or else `MLPTangent`.
    A spec's layout goes before its shape: a grid, whose ends meet where it says so; a mesh, for which it is
    `MeshTangent` where there are cells and coordinates and `GraphTangent` where there are edges alone; or
    neither. The repr says which of these the box was taken for, and why.

    With a prior there is one more candidate, the first one: the first kind, above the prior. It is used from
    the first step on, unless another predicts new rows better. If another still does at the end, it stays
    out: a prior of a wrong sign or scale is dropped, and a notice says so.

    Where trust is lost the model learns longer, if it learns in steps. If trust is lost again, a further
    candidate learns beside it for 25 steps, beginning with the rows that are there: one in reserve, which is
    a perceptron where the box is not on a grid, or one that lost the contest. It takes over if it predicts
    new rows better.

    Args:
        box: the box, or its specs, which decide.
        seed: the seed of all draws.
        without: names of candidates that are not tried, such as "equation".
        prior: a differentiable model of the box, see `ValueTangent`.

    Attributes:
        models: those that learn, by kind; more than one for 25 steps.
        kind: the one in use.
        taken_for: the structure that the box was taken for, and why, in words.
        prior: as `zo.tangents.models.prior.Prior`, which counts its rows; None without.
        unfit: why each of the other candidates is not tried, by its name.
    """

    def __init__(
        self,
        box: BlackBoxFunction | Specs,
        seed: int = 0,
        *,
        without: Collection[str] = (),
        prior: Below | Prior | None = None,
    ) -> None:
        self._specs = box if isinstance(box, Specs) else Specs.of(box)
        self._settings = seed, tuple(without)
        self.taken_for = self._specs.structure.why
        verdicts = [(candidate, candidate.fits(self._specs)) for candidate in candidates(without)]
        fits = {candidate.name: candidate for candidate, reason in verdicts if reason is None}
        self.unfit = {candidate.name: reason for candidate, reason in verdicts if reason is not None}
        if not fits:
            raise ConfigurationError(
                f"AutoTangent: expected a candidate that fits the box, got none: {self.unfit}. Leave out "
                "fewer (without), or name a tangent."
            )
        self._candidates = fits
        self._make: Callable[[str], ValueTangent] = lambda name: fits[name].make(box, seed)
        first = [name for name, candidate in fits.items() if not candidate.reserve]
        if not any(name in SHIPPED for name in first):  # one that ships learns beside those of other packages
            first += [name for name in fits if name not in first][:1]
        self.prior = Prior.of("AutoTangent", prior, self._specs.inputs)
        if self.prior is not None:
            fits[PRIOR] = _above(self.prior, fits[first[0]])
            first = [PRIOR, *first]
        self._away = 0  # steps without the prior in succession
        self._warned = False  # whether that was said
        self._challengers = [name for name in fits if name not in first]
        self._steps = 0
        self._contest = CONTEST, True  # its last step, and whether it is the first one
        self._most_bytes = MOST_BYTES  # of all models together
        self._errors = dict.fromkeys(first, 0.0)  # of what was predicted, the last steps counting most
        self.models = self._made(first)
        self.kind = first[0]

    def beside(self, specs: Specs) -> AutoTangent:
        """One of the same settings, that has learned nothing, for other specs."""
        seed, without = self._settings
        return AutoTangent(specs, seed, without=without)

    @property
    def model(self) -> ValueTangent:
        """The model in use."""
        return self.models[self.kind]

    def see(self, rows: CallPairs) -> None:
        """Let the models keep the rows, and see how well each predicts them."""
        for kind, model in self.models.items():
            judged = len(self.models) > 1 and model.knows  # a prior has values before anything is known
            prediction = model.at(rows).values if judged else None
            if prediction is not None and bool(rows.alive.any()):
                missed = ((prediction - rows.y) * reciprocal(rows.response_scale))[rows.alive]
                error = float(missed.double().square().mean())
                self._errors[kind] += error if math.isfinite(error) else WORST
            model.see(rows)

    def learn(self, steps: int | None = None) -> None:
        """Let the models learn; in a step of training take the first, or another that is clearly better."""
        self._all_learn(lambda model: model.learn(steps))
        self._refuse_hopeless()
        if steps is not None:
            return
        self._steps += 1
        if len(self.models) > 1:
            self.kind = self._better()
            self._tell_of_prior()
            self._errors = {kind: FADING * self._errors[kind] for kind in self.models}
            if self._steps >= self._contest[0]:
                self._settle()

    def fit(self, inputs: Arrays, outputs: Arrays, steps: int = 400) -> None:
        """Let the models learn from answers of their box that are there already, see `ValueTangent.fit`.

        Of two kinds the one stays that predicts a fifth of the rows better, which it then has seen as well.
        """
        arrays, answers = map(as_tensors, (inputs, outputs))
        answers = without_copies(self._specs.outputs, answers)
        count = min((len(t) for t in (*arrays, *answers)), default=0)
        contest = len(self.models) > 1 and count >= FEWEST_JUDGED
        held_out = torch.arange(count) % 5 == (4 if contest else 5)
        training_inputs, training_answers = (
            [t[~held_out] if len(t) == count else t for t in both] for both in (arrays, answers)
        )
        self._all_learn(lambda model: model.fit(training_inputs, training_answers, steps, self._specs))
        self._refuse_hopeless()
        if contest and len(self.models) > 1:
            self.see(as_call(self._specs, *([t[held_out] for t in both] for both in (arrays, answers))))
            self.kind = self._better()
            self._settle()

    def keep_within(self, most_bytes: int) -> None:
        """Have the models that learn side by side share so many bytes, those too that take over."""
        self._most_bytes = most_bytes
        self._share(self.models)

    def improve(self) -> str | None:
        """Learn longer; or another kind learns beside it, as long as there is one."""
        self._settle()  # what is improved is in use from now on
        remedy = self.model.improve()
        if remedy is not None or not self._challengers:
            return remedy
        return self._challenge()

    def _challenge(self) -> str | None:
        """Another kind learns from the rows that are there, and takes over if it is better; in words.

        One whose learning fails is out, as one that fails later is, and the next one begins.
        """
        current, rows = self.model, self.model.rows()
        kind = self._challengers.pop(0)
        self.models = {self.kind: current, **self._made([kind])}
        self.keep_within(self._most_bytes)
        self._errors = dict.fromkeys(self.models, 0.0)
        self._contest = self._steps + CONTEST, False
        challenger = self.models[kind]
        if rows is not None:
            form, columns = rows
            try:
                challenger.start(form, *columns)
            except TangentError:
                self.models, self._errors = {self.kind: current}, {self.kind: 0.0}
                return self._challenge() if self._challengers else None
        return (
            f"{challenger!r} learns beside {current!r} for {CONTEST} steps, and takes over if it predicts "
            "new rows better"
        )

    def _next_kind(self) -> str:
        """Another kind takes over, with the rows that are there; in words."""
        rows, predecessor = self.model.rows(), self.model
        self.kind = self._challengers.pop(0)
        self.models = self._made([self.kind])
        if rows is not None:
            form, columns = rows
            self.model.start(form, *columns)
        return f"{self.model!r} takes over from {predecessor!r}"

    def state_dict(self) -> dict[str, Any]:
        """Save the kinds that are left, and what they learned."""
        return {
            "kind": self.kind,
            "left": list(self._challengers),
            "steps": self._steps,
            "errors": dict(self._errors),
            "contest": list(self._contest),
            "models": {kind: model.state_dict() for kind, model in self.models.items()},
            **({} if self.prior is None else {"away": (self._away, self._warned)}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.kind, self._challengers, self._steps = state["kind"], list(state["left"]), state["steps"]
        self._errors = dict(state["errors"])
        ends, is_first = state["contest"]
        self._contest = ends, is_first
        self._away, self._warned = state.get("away", (0, False))
        self.models = self._made(list(state["models"]))
        for kind, model in self.models.items():
            model.load_state_dict(state["models"][kind])

    def _made(self, kinds: Sequence[str]) -> dict[str, ValueTangent]:
        """New models, which share what may be taken for rows."""
        models = {kind: self._make(kind) for kind in kinds}
        self._share(models)
        return models

    def _share(self, models: Mapping[str, ValueTangent]) -> None:
        """Have models share what may be taken for rows; a light one beside others takes a sixteenth."""
        light = [kind for kind in models if self._candidates[kind].light and len(models) > 1]
        for kind, model in models.items():
            parts = OF_LIGHT if kind in light else max(1, len(models) - len(light))
            model.keep_within(self._most_bytes // parts)

    def _all_learn(self, learn: Callable[[ValueTangent], None]) -> None:
        """All kinds learn; one whose learning fails is out, and where none is left the next kind begins."""
        for kind, model in list(self.models.items()):
            self._candidates[kind].borrow(model, self.models)
            try:
                learn(model)
            except TangentError as error:
                if len(self.models) > 1:
                    del self.models[kind]
                    self.kind = next(iter(self.models))
                    continue
                if not self._challengers:
                    raise
                warn(f"{error} {self._next_kind()}, for no more rows.", TangentWarning)

    def _refuse_hopeless(self) -> None:
        """Whatever the others are like, a candidate that says that it is hopeless is out."""
        for kind, model in list(self.models.items()):
            if len(self.models) > 1 and self._candidates[kind].hopeless(model):
                del self.models[kind]
                self.kind = self._better()

    def _better(self) -> str:
        """The first kind, or a later one where it is better by as much as it must be."""
        best, *rivals = self.models
        for kind in rivals:
            least = self._candidates[kind].better if self._contest[1] else BETTER
            if least * self._errors[kind] < self._errors[best]:
                best = kind
        return best

    def _tell_of_prior(self, last: bool = False) -> None:
        """Say once that the prior is left, after some steps without it, or at the contest's end."""
        prior_left = PRIOR in self.models and self.kind != PRIOR
        self._away = self._away + 1 if prior_left else 0
        if prior_left and not self._warned and (last or self._away >= AWAY):
            self._warned = True
            errors = self._errors[PRIOR], self._errors[self.kind]
            ratio = math.sqrt(errors[0] / errors[1]) if errors[1] else math.inf
            warn(
                "AutoTangent: expected a prior that helps to predict what the box answers, but "
                f"{self.models[PRIOR]!r} missed new rows by {ratio:.2g} times as much as {self.model!r}, "
                "which is used instead. Look for a wrong sign, unit or order of arrays in the prior, or "
                "leave it out.",
                TangentWarning,
            )

    def _settle(self) -> None:
        """End a contest; who lost the first one may have another, beside one that is not trusted."""
        if len(self.models) == 1:
            return
        self._tell_of_prior(last=True)
        if self._contest[1]:
            losers = [kind for kind in self.models if kind != self.kind and not self._candidates[kind].light]
            self._challengers = losers + self._challengers
        self.models = {self.kind: self.model}
        self.keep_within(self._most_bytes)

    def __repr__(self) -> str:
        """All kinds, in the order in which they are tried, and what the box was taken for."""
        kinds = ", ".join(repr(self._make(kind)) for kind in self._candidates)
        return f"AutoTangent({kinds}; {self.taken_for})"


def _above(prior: Prior, candidate: Candidate) -> Candidate:
    """The candidate, above a prior."""
    return replace(
        candidate, name=PRIOR, make=lambda box, seed: candidate.make(box, seed).over(prior), better=BETTER
    )


def as_call(specs: Specs, arrays: Sequence[Tensor], answers: Sequence[Tensor]) -> CallPairs:
    """Answers as a call of the box shows them, each output in units of its spread.

    Args:
        specs: the specs of the box.
        arrays: all inputs of the box in its order, `(rows, *shape)`.
        answers: the box's answers that models learn, `(rows, *shape)`.
    """
    inputs = tuple(spec for spec in specs.inputs if spec.differentiable)
    outputs = tuple(spec for spec in specs.outputs if spec.learned)
    flat = [t.reshape(len(t), -1) for t in arrays]
    z = torch.cat([t for t, spec in zip(flat, specs.inputs, strict=True) if spec.differentiable], 1)
    y = torch.cat([t.reshape(len(t), -1) for t in answers], 1)
    alive = torch.cat([y, *flat], 1).isfinite().all(1)
    return CallPairs(
        inputs,
        outputs,
        z,
        y.nan_to_num(0, 0, 0),
        alive,
        tuple(
            None if spec.differentiable else t
            for t, spec in zip(arrays, specs.inputs, strict=True)
            if spec.modelled
        ),
        response_scale=y[alive].std(0) if int(alive.sum()) > 1 else torch.zeros_like(y[0]),
    )
