"""`AutoTangent`: a model chosen by what the box looks like, and another kind where that one fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.notices import warn
from zo.errors import TangentError, TangentWarning
from zo.tangents.models.grid.equation_tangent import HOPELESS, EquationTangent
from zo.tangents.models.grid.grid import GridTangent
from zo.tangents.models.grid.lattice import space_of
from zo.tangents.models.grid.stencil import StencilTangent
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.mesh.graph import GraphTangent
from zo.tangents.models.mesh.mesh import MeshTangent
from zo.tangents.models.mlp import MLPTangent
from zo.tangents.models.rows import MOST_BYTES
from zo.tangents.models.structure import MOST_CELLS, may_be_equation, structure_of
from zo.tangents.models.values import Specs, ValueTangent
from zo.tangents.record.pairs import CallPairs, reciprocal, sizes, without_copies
from zo.tangents.tangent import Linearised, Tangent

MOST_NUMBERS = 32  # of all inputs, without a grid or a mesh, for which there is a kernel; decision 77
LARGEST = 5_000  # numbers of outputs for which there is a kernel; decision 77
CONTEST = 25  # steps in which two kinds learn side by side; decision 32
CLEARLY = 4.0  # times the mean square error: what a stencil must beat to be taken; decision 32
BETTER = 1.0  # the same of an equation, decision 145, and of what learns beside one not trusted, decision 73
FEWEST_JUDGED = 50  # rows that are there already, a fifth of which decides which kind is better; decision 32
FADING = 0.5  # of an error with each of these
WORST = 1e12  # an error that is not finite counts as this


class AutoTangent(Tangent):
    """J(z) is that of a model fitted to the box's values, of a kind that suits the box.

    Outputs `(channels, *space)` with at least 16 cells and at most 16 channels, and an input on the same
    grid, or `(*space)` beside such arrays or others of the same shape, or vectors of n cells and of n + 1
    faces: for 25 steps a `GridTangent` and a `StencilTangent` learn side by side, and where the box moves a
    state on, on a grid of at most 4,096 cells whose ends may meet, an `EquationTangent`, which is out when it
    leaves more than .3 of the calls' change. The network is used, unless the stencil predicted new rows with
    less than half of its error, or the equation with less than what is used then; the last one stays: where
    both predict about as well the network's derivative is better than the stencil's, and the equation's is
    better than both. All else: `KernelTangent` where a row has at most 32 numbers of
    inputs and 5,000 of outputs, or else `MLPTangent`. A spec's layout goes before its shape: a grid, whose
    ends meet where it says so; a mesh, for which it is `MeshTangent` where there are cells and coordinates
    and `GraphTangent` where there are edges alone; or neither. The repr says which of these the box was
    taken for, and why. Where trust is lost it learns longer, if it learns in steps. If trust is lost again,
    and the box is not on a grid, a perceptron learns beside it for 25 steps, beginning with the rows that are
    there, and takes over if it predicts new rows better.

    Args:
        box: the box, whose specs decide.
        seed: the seed of all that is drawn.
        equation: whether an `EquationTangent` may be tried.

    Attributes:
        models: those that learn, by kind; more than one for 25 steps.
        kind: the one in use.
        taken_for: what the box was taken for, and why, in words.
    """

    def __init__(self, box: BlackBoxFunction, seed: int = 0, *, equation: bool = True) -> None:
        self._specs = Specs(tuple(box.inputs), tuple(box.outputs))
        outputs = [spec for spec in box.outputs if spec.learned]
        inputs = [spec for spec in box.inputs if spec.differentiable]
        self._makers: dict[str, Callable[[], ValueTangent]] = {"mlp": lambda: MLPTangent(seed=seed)}
        structure = structure_of(inputs, outputs)
        kind, periodic, self.taken_for = structure.kind, structure.periodic, structure.why
        numbers = sum(sizes(tuple(spec for spec in box.inputs if spec.modelled)))
        if kind == "table" and numbers <= MOST_NUMBERS and sum(sizes(tuple(outputs))) <= LARGEST:
            self._makers = {"kernel": KernelTangent} | self._makers
        if kind == "grid":
            grids: dict[str, Callable[[], ValueTangent]] = {
                "grid": lambda: GridTangent(periodic=periodic, seed=seed)
            }
            if math.prod(space_of(outputs, inputs) or ()) <= MOST_CELLS:
                grids["stencil"] = lambda: StencilTangent(periodic=periodic)
            if equation and may_be_equation(box):
                grids["equation"] = EquationTangent
            self._makers = grids
        if kind == "mesh":
            self._makers = {"mesh": MeshTangent} | self._makers
        if kind == "graph":
            self._makers = {"graph": GraphTangent} | self._makers
        first = [kind for kind in self._makers if kind != "mlp"] or ["mlp"]
        self._others = [kind for kind in self._makers if kind not in first]
        self._steps = 0
        self._contest = (CONTEST, CLEARLY)  # its last step, and by how much the second must be better
        self._most_bytes = MOST_BYTES  # of all models together
        self._errors = {kind: 0.0 for kind in first}  # of what was predicted, the last steps counting most
        self.models = self._made(first)
        self.kind = first[0]

    @property
    def model(self) -> ValueTangent:
        """The model in use."""
        return self.models[self.kind]

    def at(self, rows: CallPairs) -> Linearised:
        """The model in use."""
        return self.model.at(rows)

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model in use at all calls at once."""
        return self.model.at_each(calls)

    def expect(self, rows: CallPairs) -> Tensor | None:
        """The outputs by the model in use."""
        return self.model.expect(rows)

    def see(self, rows: CallPairs) -> None:
        """Let the models keep the rows, and see how well each predicts them."""
        for kind, model in self.models.items():
            prediction = model.at(rows).values if len(self.models) > 1 else None
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
            self._errors = {kind: FADING * self._errors[kind] for kind in self.models}
            if self._steps >= self._contest[0]:
                self._settle()

    def fit(
        self,
        inputs: Tensor | Sequence[Tensor],
        outputs: Tensor | Sequence[Tensor],
        steps: int = 400,
    ) -> None:
        """Let the models learn from answers of their box that are there already, see `ValueTangent.fit`.

        Of two kinds the one stays that predicts a fifth of the rows better, which it then has seen as well.
        """
        arrays, answers = ([t] if isinstance(t, Tensor) else list(t) for t in (inputs, outputs))
        answers = without_copies(self._specs.outputs, answers)
        count = min((len(t) for t in (*arrays, *answers)), default=0)
        contest = len(self.models) > 1 and count >= FEWEST_JUDGED
        held_out = torch.arange(count) % 5 == (4 if contest else 5)
        seen, seen_answers = (
            [t[~held_out] if len(t) == count else t for t in both] for both in (arrays, answers)
        )
        self._all_learn(lambda model: model.fit(seen, seen_answers, steps, self._specs))
        self._refuse_hopeless()
        if contest and len(self.models) > 1:
            self.see(self._as_call([t[held_out] for t in arrays], [t[held_out] for t in answers]))
            self.kind = self._better()
            self._settle()

    def keep_within(self, most_bytes: int) -> None:
        """Have the models that learn side by side share so many bytes, those too that take over."""
        self._most_bytes = most_bytes
        _share(self.models, most_bytes)

    def improve(self) -> str | None:
        """Learn longer; or another kind learns beside it, as long as there is one."""
        self._settle()  # what is improved is in use from now on
        remedy = self.model.improve()
        if remedy is not None or not self._others:
            return remedy
        return self._challenge()

    def _challenge(self) -> str | None:
        """Another kind learns from the rows that are there, and takes over if it is better; in words.

        One whose learning fails is out, as one that fails later is, and the next one begins.
        """
        current, rows = self.model, self.model.rows()
        kind = self._others.pop(0)
        self.models = {self.kind: current, **self._made([kind])}
        self.keep_within(self._most_bytes)
        self._errors = dict.fromkeys(self.models, 0.0)
        self._contest = (self._steps + CONTEST, BETTER)
        other = self.models[kind]
        if rows is not None:
            form, columns = rows
            try:
                other.start(form, *columns)
            except TangentError:
                self.models, self._errors = {self.kind: current}, {self.kind: 0.0}
                return self._challenge() if self._others else None
        return (
            f"{other!r} learns beside {current!r} for {CONTEST} steps, and takes over if it predicts new "
            "rows better"
        )

    def _next_kind(self) -> str:
        """Another kind takes over, with the rows that are there; in words."""
        rows, before = self.model.rows(), self.model
        self.kind = self._others.pop(0)
        self.models = self._made([self.kind])
        if rows is not None:
            form, columns = rows
            self.model.start(form, *columns)
        return f"{self.model!r} takes over from {before!r}"

    def state_dict(self) -> dict[str, Any]:
        """Which kinds there are, and what they learned."""
        return {
            "kind": self.kind,
            "left": list(self._others),
            "steps": self._steps,
            "errors": dict(self._errors),
            "contest": list(self._contest),
            "models": {kind: model.state_dict() for kind, model in self.models.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.kind, self._others, self._steps = state["kind"], list(state["left"]), state["steps"]
        self._errors = dict(state["errors"])
        ends, by = state["contest"]
        self._contest = (ends, by)
        self.models = self._made(list(state["models"]))
        for kind, model in self.models.items():
            model.load_state_dict(state["models"][kind])

    def _made(self, kinds: Sequence[str]) -> dict[str, ValueTangent]:
        """New models, which share what may be taken for rows."""
        models = {kind: self._makers[kind]() for kind in kinds}
        _share(models, self._most_bytes)
        return models

    def _all_learn(self, learn: Callable[[ValueTangent], None]) -> None:
        """All kinds learn; one whose learning fails is out, and where none is left the next kind begins."""
        for kind, model in list(self.models.items()):
            self._lend()
            try:
                learn(model)
            except TangentError as error:
                if len(self.models) > 1:
                    del self.models[kind]
                    self.kind = next(iter(self.models))
                    continue
                if not self._others:
                    raise
                warn(f"{error} {self._next_kind()}, for no more rows.", TangentWarning)

    def _lend(self) -> None:
        """Give the stencil the reach that the network measured: measuring it takes as long as a fit."""
        network: Any = self.models.get("grid")
        stencil: Any = self.models.get("stencil")
        if network is not None and stencil is not None and network.measured:
            stencil.reach, stencil.periodic = network.measured["reach"], network.measured["periodic"]

    def _refuse_hopeless(self) -> None:
        """Whatever the box is, an equation that leaves much of the rows it was fitted to is another one."""
        equation: Any = self.models.get("equation")
        if equation is None or len(self.models) == 1 or equation.measured.get("error", 0.0) <= HOPELESS:
            return
        del self.models["equation"]
        self.kind = self._better()

    def _better(self) -> str:
        """The first kind, or a later one where it is better by as much as it must be."""
        best, *later = self.models
        for kind in later:
            least = BETTER if kind == "equation" else self._contest[1]
            if least * self._errors[kind] < self._errors[best]:
                best = kind
        return best

    def _as_call(self, arrays: Sequence[Tensor], answers: Sequence[Tensor]) -> CallPairs:
        """Answers as a call of the box shows them, each output in units of its spread."""
        inputs = tuple(spec for spec in self._specs.inputs if spec.differentiable)
        outputs = tuple(spec for spec in self._specs.outputs if spec.learned)
        specs = self._specs.inputs
        flat = [t.reshape(len(t), -1) for t in arrays]
        z = torch.cat([t for t, spec in zip(flat, specs, strict=True) if spec.differentiable], 1)
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
                for t, spec in zip(arrays, specs, strict=True)
                if spec.modelled
            ),
            response_scale=y[alive].std(0),
        )

    def _settle(self) -> None:
        """End a contest; who lost the first one may have another, beside one that is not trusted."""
        if len(self.models) == 1:
            return
        if self._contest[1] == CLEARLY:
            lost = [kind for kind in self.models if kind not in (self.kind, "equation")]
            self._others = lost + self._others
        self.models = {self.kind: self.model}
        self.keep_within(self._most_bytes)

    def __repr__(self) -> str:
        """All kinds, in the order in which they are tried, and what the box was taken for."""
        kinds = ", ".join(repr(make()) for make in self._makers.values())
        return f"AutoTangent({kinds}; {self.taken_for})"


def _share(models: Mapping[str, ValueTangent], most_bytes: int) -> None:
    """Have models share so many bytes; an equation, which keeps few rows, takes a sixteenth beside them."""
    others = max(1, sum(kind != "equation" for kind in models))
    for kind, model in models.items():
        alone = kind == "equation" and len(models) > 1
        model.keep_within(most_bytes // 16 if alone else most_bytes // others)
