"""`frozen`: a box with a derivative that is learned once from recorded rows and is one fixed function."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blackbox import ArraySpec, BlackBoxFunction, calls
from blackbox.arrays import RowArrays, in_order, to_rows
from blackbox.checks import check_count, check_fraction
from blackbox.errors import NotDifferentiableError
from blackbox.failures import Outcome
from blackbox.spec import none_differentiable
from blackbox.wrappers.wrapper import Wrapper
from zo.box_gradient.autograd_function import _Refusing
from zo.errors import ConfigurationError, TangentError
from zo.recorded_rows import RecordedRows, buy_rows, inputs_around, read_rows, recorded
from zo.same_run import arrays_of, refuse_other_run
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.candidates import candidates
from zo.tangents.models.kernel import LARGEST, KernelTangent
from zo.tangents.models.structure import Specs
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Linearised, Tangent

FEWEST = 10  # rows, of which some are held out
CENTRES = 4000  # of a kernel, at most: its fit takes their cube
STEPS = 4000  # of learning, of models that learn in steps
VALIDATED = 5  # one row in so many chooses between tangents
STEP, AGREES = (
    1e-4,
    1e-2,
)  # of a difference that checks a Hessian, in units of spread; how well

Rows = int | str | os.PathLike[str] | Sequence[Any] | RecordedRows
Products = Sequence[Tensor | None]
"""For each input or output of a box its `(rows, *shape)`, or None for zero or for no derivative."""


@dataclass(frozen=True)
class FrozenInfo:
    """What a frozen derivative is, and how well its model foretells rows that it has not learned from.

    Attributes:
        tangent: the model, in words.
        rows: how many it learned from.
        held_out: how many rows were held out.
        errors: for each output with a derivative, by name, the root mean square error of the model's values
            on these rows, over the spread of the answers: 0 is perfect, 1 no better than their mean.
        hessian: whether the model has a second derivative.
    """

    tangent: str
    rows: int
    held_out: int
    errors: dict[str, float]
    hessian: bool

    def __str__(self) -> str:
        """All of it in a sentence."""
        errors = ", ".join(f"{name} {error:.2g}" for name, error in self.errors.items())
        return (
            f"{self.tangent} learned from {self.rows:,} rows; relative error of its values on "
            f"{self.held_out:,} held-out rows: {errors}"
        )


def frozen(
    box: BlackBoxFunction,
    tangent: Tangent | Sequence[Tangent] | None = None,
    rows: Rows | None = None,
    *,
    around: Any = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> FrozenBox:
    """A box with a derivative that is learned once and is one fixed function then: what samplers need.

        solver = zo.frozen(box, rows=(inputs, answers))         # recorded: arrays
        solver = zo.frozen(box, rows="samples.h5")              # recorded: a file
        solver = zo.frozen(box, rows=1500, around=prior_draws)  # bought: 1,500 rows of the box
        solver(x).square().sum().backward()

    Values are the box's own, one row each. The derivative costs no row: `vjp`, `jvp`, and `hessian_action`
    where the model has a second derivative. It depends on the point alone, so the same call gives the same
    bits, and a leapfrog goes back to where it began. How wrong it is says `info`: a tenth of the rows is held
    out, and never learned from. Rows of one chain resemble each other, so held-out ones look better than new
    ones will: take draws that are far apart.

    Autograd goes through it in reverse and in forward mode, and through its gradient once more. It is a black
    box too, which a UM-Bridge server takes as it is: `serve(solver)`.

    Args:
        box: the box, whose values pass unchanged.
        tangent: the model, or several, of which the one is taken that foretells a fifth of the rows best.
            None for a kernel, a perceptron and others that are registered; on grids and meshes `AutoTangent`.
            Each is copied.
        rows: what to learn from: inputs and answers as `(inputs, outputs)`; an HDF5 file, see
            `zo.recorded_rows`; or a number of rows, to be bought around `around`. None to learn later, by
            `learn` or `load_state_dict`: until then a derivative is refused.
        around: inputs `(rows, *shape)` near which rows are bought, see `zo.recorded_rows.inputs_around`.
        held_out: the fraction of the rows that is held out.
        seed: of what is drawn: rows to buy, the held-out ones, a network's weights.

    Raises:
        ConfigurationError: the box has nothing to differentiate, a setting makes no sense, or there are too
            few rows with finite numbers.
        TangentError: no tangent could learn from the rows.
    """
    solver = FrozenBox(box, tangent, held_out, seed)
    if rows is None:
        if around is not None:
            raise ConfigurationError(
                "frozen, rows: expected the number of rows to buy around these inputs, got None. Add rows=."
            )
        return solver
    return solver.learn(rows, around=around)


class FrozenBox(Wrapper):
    """A black box with a frozen derivative; made by `frozen`, which explains it.

    Attributes:
        box: the box whose values it has.
        info: what the derivative is; None until it is frozen.
    """

    transparent = True
    has_derivative = True

    def __init__(
        self,
        box: BlackBoxFunction,
        tangent: Tangent | Sequence[Tangent] | None = None,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        _check_box(box)
        several = tangent if isinstance(tangent, Sequence) else [] if tangent is None else [tangent]
        if not all(isinstance(each, Tangent) and each.learns for each in several):
            raise ConfigurationError(
                f"frozen, tangent: expected tangents that learn from values, got {tangent!r}. Such as "
                "zo.tangents.KernelTangent()."
            )
        for each in several:
            each.check_box(box)
        check_fraction("frozen", "held_out", held_out)
        self._offered = tuple(copy.deepcopy(each) for each in several)
        self.held_out, self.seed = held_out, check_count("frozen", "seed", seed, least=0)
        self.info: FrozenInfo | None = None
        self._model: _Model | None = None
        self._turn: AbstractContextManager[object] = nullcontext()  # while rows are bought

    # Learning

    def learn(
        self,
        rows: Rows,
        *,
        around: Any = None,
        path: str | os.PathLike[str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> FrozenBox:
        """Learn anew from these rows alone; from then on the derivative is another fixed function.

        While rows are bought, calls from other threads wait until a block of 64 is answered.

        Args:
            rows: as `frozen` takes them.
            around: as `frozen` takes it.
            path: an HDF5 file that bought rows are written to, block by block; None for none.
            progress: is told how many rows are bought, and of how many.

        Returns:
            This box.

        Raises:
            ConfigurationError, TangentError: for the reasons that `frozen` gives; the derivative stays as it
                was.
        """
        if isinstance(rows, int) and not isinstance(rows, bool):
            check_count("frozen", "rows", rows, least=FEWEST)
            inputs = inputs_around(self.box, around, rows, self.seed)
            self._turn = Lock()
            try:
                known = buy_rows(self, inputs, path=path, progress=progress)
            finally:
                self._turn = nullcontext()
        elif around is not None:
            raise ConfigurationError(
                "frozen, around: expected inputs only where a number of rows is bought, got them beside rows "
                "that are there. Leave around out."
            )
        else:
            known = self._recorded(rows)
        return self._freeze(known.finite())

    def _recorded(self, rows: Any) -> RecordedRows:
        """Rows that are there."""
        if isinstance(rows, RecordedRows):
            return rows
        if isinstance(rows, str | os.PathLike):
            return read_rows(self.box, Path(rows))
        if isinstance(rows, Sequence) and len(rows) == 2:
            return recorded(self.box, *rows)
        raise ConfigurationError(
            f"frozen, rows: expected (inputs, outputs), an HDF5 file or a number of rows to buy, got "
            f"{type(rows).__name__}. Give the inputs first, then the box's answers."
        )

    def _freeze(self, rows: RecordedRows) -> FrozenBox:
        count = len(rows)
        if count < FEWEST:
            raise ConfigurationError(
                f"frozen, rows: expected at least {FEWEST} with finite numbers, got {count}. Give more; see "
                "the box's ledger for rows that failed."
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator).to(rows.inputs[0].device)
        least = max(2, round(self.held_out * count))
        unseen, seen = rows.of(order[:least].sort().values), rows.of(order[least:].sort().values)
        model = self._fitted(seen)
        errors = model.errors(unseen)
        tangent = repr(model.tangent)
        if isinstance(model.tangent, AutoTangent):
            tangent = repr(model.tangent.model)
        info = FrozenInfo(tangent, len(seen), len(unseen), errors, model.has_hessian(unseen))
        self._model, self.info = model, info
        return self

    def _fitted(self, seen: RecordedRows) -> _Model:
        """The model of the tangent that is best, of all rows that are seen."""
        offered = self._offered or _usual_tangents(self.box, len(seen), self.seed)
        best, least, failures = 0, float("inf"), []
        if len(offered) > 1:
            chooses = torch.arange(len(seen), device=seen.inputs[0].device) % VALIDATED == VALIDATED - 1
            some, others = seen.of(~chooses), seen.of(chooses)
            for place, tangent in enumerate(offered):
                try:
                    errors = _Model.fitted(self.box, tangent, some, place).errors(others)
                except TangentError as error:
                    failures.append(str(error))
                    continue
                error = sum(error**2 for error in errors.values())
                if error < least:
                    best, least = place, error
            if len(failures) == len(offered):
                raise TangentError(f"frozen: expected a tangent that can learn, got none. {failures[0]}")
        return _Model.fitted(self.box, offered[best], seen, best)

    # Values

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """The box's own."""
        with self._turn:
            return self.box.run_rows(inputs)

    def __call__(self, /, *arrays: Any, **named: Any) -> Any:
        """Evaluate every row, as the box itself; with a graph where an input requires a gradient.

        Raises:
            NotDifferentiableError: a gradient is required and nothing is frozen yet.
            What the box raises.
        """
        if named:
            arrays = in_order(repr(self), self.inputs, arrays, named)
        if calls.current() is None and self._wants_graph(arrays):
            return self.reference(*arrays)
        return super().__call__(*arrays)

    def reference(self, *arrays: Any) -> Any:
        """The box's outputs, one row each, through which autograd goes by the frozen derivative."""
        return self._through(arrays, lambda *tensors: self.call(*tensors))

    def predicted(self, *arrays: Any) -> Any:
        """The model's own outputs, which cost no row, with the same derivative; zeros for what it has not."""
        return self._through(arrays, self._predict)

    def _through(self, arrays: Sequence[Any], values: Callable[..., Any]) -> Any:
        if not all(isinstance(array, Tensor) for array in arrays) or len(arrays) != len(self.inputs):
            return values(*arrays)  # NumPy arrays carry no gradient; all else is the box's to refuse
        model = self._known()
        pairs = zip(self.inputs, arrays, strict=True)
        outputs = _Values.apply(model, values, *(a if s.differentiable else a.detach() for s, a in pairs))
        return outputs[0] if len(outputs) == 1 else outputs

    def _predict(self, *arrays: Any) -> Any:
        rows = to_rows(repr(self), self.inputs, arrays)
        answers = self._known().values(rows.inputs)
        pairs = zip(self.outputs, answers, strict=True)
        return rows.give_back(
            tuple(
                torch.zeros(rows.count, *spec.shape, dtype=spec.torch_dtype or rows.dtype, device=rows.device)
                if answer is None
                else answer.to(rows.device, spec.torch_dtype or rows.dtype)
                for spec, answer in pairs
            )
        )

    def _wants_graph(self, arrays: Sequence[Any]) -> bool:
        """Whether a derivative is asked for, in either mode."""
        tensors = [
            array
            for spec, array in zip(self.inputs, arrays, strict=False)
            if spec.differentiable and isinstance(array, Tensor)
        ]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return True
        return any(torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)

    # Derivatives, of which none costs a row

    def vjp(self, inputs: Any, cotangents: Any) -> Any:
        """J^T v at each row.

        Args:
            inputs: an array for each input of the box, with any leading axes; one array where it has one.
            cotangents: the gradient v, an array for each output, or None for zero.

        Returns:
            The gradient of each input, in its shape; None of one without derivative. One alone where there is
            one input.

        Raises:
            NotDifferentiableError: nothing is frozen yet.
            InputError, ConfigurationError: arrays do not fit the box.
        """
        rows, model = self._rows(inputs), self._known()
        arriving = self._checked("cotangents", self.outputs, cotangents, rows)
        return _given_back(rows, model.pull(rows.inputs, arriving))

    def jvp(self, inputs: Any, changes: Any) -> Any:
        """J d at each row.

        Args:
            inputs: as for `vjp`.
            changes: the change d, an array for each input, or None for zero.

        Returns:
            The change of each output, in its shape; None of one without derivative. One alone where there is
            one output.

        Raises:
            NotDifferentiableError, InputError, ConfigurationError: see `vjp`.
        """
        rows, model = self._rows(inputs), self._known()
        moved = self._checked("changes", self.inputs, changes, rows)
        return _given_back(rows, model.push(rows.inputs, moved))

    def hessian_action(self, inputs: Any, cotangents: Any, changes: Any) -> Any:
        """The derivative of J^T v along d: the Hessian of <v, F> times d, at each row.

        Args:
            inputs: as for `vjp`.
            cotangents: v, as for `vjp`.
            changes: d, as for `jvp`.

        Returns:
            As of `vjp`.

        Raises:
            NotDifferentiableError: the model has no second derivative, or nothing is frozen yet.
            InputError, ConfigurationError: see `vjp`.
        """
        rows, model = self._rows(inputs), self._known()
        self.check_hessian()
        arriving = self._checked("cotangents", self.outputs, cotangents, rows)
        moved = self._checked("changes", self.inputs, changes, rows)
        return _given_back(rows, model.bend(rows.inputs, arriving, moved))

    def check_hessian(self) -> None:
        """Refuse a second derivative where the model has none.

        Raises:
            NotDifferentiableError: it has none, or nothing is frozen yet.
        """
        self._known()
        assert self.info is not None
        if not self.info.hessian:
            raise NotDifferentiableError(
                f"{self!r}: expected a model with a second derivative, got {self.info.tangent}, which "
                "has none. Take KernelTangent."
            )

    @property
    def derivative_info(self) -> dict[str, Any]:
        """What the derivative is, in plain values: for a server's clients and for `blackbox check`."""
        if self.info is None:
            return {"frozen": False}
        return {"frozen": True, **asdict(self.info)}

    def _known(self) -> _Model:
        if self._model is None:
            raise NotDifferentiableError(
                f"{self!r}: expected a derivative that is frozen, got none yet. Values are there; wait until "
                "enough rows are learned from, or call learn(rows)."
            )
        return self._model

    def _rows(self, inputs: Any) -> RowArrays:
        return to_rows(repr(self), self.inputs, _several(inputs))

    def _checked(
        self, name: str, specs: Sequence[ArraySpec], arrays: Any, rows: RowArrays
    ) -> list[Tensor | None]:
        """Cotangents or changes as rows; those of arrays without derivative count as zero."""
        several = _several(arrays)
        shapes = [(*rows.leading, *spec.shape) for spec in specs]
        got = [None if array is None else tuple(array.shape) for array in several]
        if len(got) != len(shapes) or any(g not in (None, s) for g, s in zip(got, shapes, strict=True)):
            raise ConfigurationError(
                f"{self!r}, {name}: expected shapes {shapes}, or None for zero, got {got}. Give one for each "
                f"of {', '.join(spec.name for spec in specs)}."
            )
        return [
            None
            if array is None or not spec.differentiable
            else torch.as_tensor(array).detach().to(rows.device).reshape(rows.count, *spec.shape)
            for spec, array in zip(specs, several, strict=True)
        ]

    # State

    def state_dict(self) -> dict[str, Any]:
        """The frozen derivative; a box that loads it answers with the same bits."""
        model = self._known()
        assert self.info is not None
        return {
            "box": arrays_of(self.box),
            "offered": [repr(tangent) for tangent in self._offered],
            "kind": repr(model.tangent),
            "place": model.place,
            "state": model.tangent.state_dict(),
            "info": asdict(self.info),
            "seed": self.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> FrozenBox:
        """Take over a frozen derivative; nothing is learned.

        Raises:
            ConfigurationError: it is that of a box with other arrays, or of other tangents.
        """
        offered = [repr(tangent) for tangent in self._offered]
        refuse_other_run("frozen", {"box": arrays_of(self.box), "tangents": offered}, _saved(state))
        info = FrozenInfo(**state["info"])
        tangents = self._offered or _usual_tangents(self.box, info.rows, state["seed"])
        kinds = {"tangent": repr(tangents[min(state["place"], len(tangents) - 1)])}
        refuse_other_run("frozen", kinds, {"tangent": state["kind"]})
        tangent = copy.deepcopy(tangents[state["place"]])
        tangent.load_state_dict(state["state"])
        self._model, self.info = _Model(self.box, tangent, state["place"]), info
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frozen derivative to a file, which `load` reads; it is the old one or the new one."""
        temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
        torch.save(self.state_dict(), temporary)
        os.replace(temporary, path)

    def load(self, path: str | os.PathLike[str]) -> FrozenBox:
        """Read what `save` wrote.

        Raises:
            ConfigurationError: it holds something else, or see `load_state_dict`.
            OSError: it cannot be read.
        """
        try:
            state = torch.load(path, weights_only=True)
            assert isinstance(state, dict) and "kind" in state
        except OSError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{os.fspath(path)}: expected a frozen derivative, got something else "
                f"({type(error).__name__}). FrozenBox.save writes one."
            ) from None
        return self.load_state_dict(state)

    def __repr__(self) -> str:
        """The box, and whether there is a derivative."""
        return f"FrozenBox({self.box!r}{'' if self.info else ', not frozen yet'})"


class _Model:
    """A tangent that learns no more, at arrays of its box: all that a derivative is made of, without a row.

    Args:
        box: the box, whose specs say what the arrays are.
        tangent: has learned; nobody else has it.
        place: its place among those that were offered.
    """

    def __init__(self, box: BlackBoxFunction, tangent: Tangent, place: int) -> None:
        self.inputs, self.outputs = box.inputs, box.outputs
        self.tangent, self.place = tangent, place

    @classmethod
    def fitted(cls, box: BlackBoxFunction, tangent: Tangent, rows: RecordedRows, place: int) -> _Model:
        """The model of a copy of a tangent, fitted to rows."""
        model = cls(box, copy.deepcopy(tangent), place)
        inputs = [t.double() if t.is_floating_point() else t for t in rows.inputs]
        answers = [t.double() for s, t in zip(box.outputs, rows.outputs, strict=True) if s.differentiable]
        learner: Any = model.tangent
        if isinstance(tangent, AutoTangent):
            learner.fit(inputs, answers, STEPS)
        elif hasattr(tangent, "fit") and hasattr(tangent, "learn_from_window"):
            learner.fit(inputs, answers, STEPS, box)
        else:
            spread = torch.cat([answer.reshape(len(answer), -1) for answer in answers], 1).std(0)
            pairs = replace(model.pairs(inputs, answers), response_scale=spread)
            learner.see(pairs)
            learner.learn(STEPS)
        return model

    def pairs(self, inputs: Sequence[Tensor], answers: Sequence[Tensor] = ()) -> CallPairs:
        """Rows as a tangent sees them, in float64."""
        moving, following = (
            tuple(spec for spec in specs if spec.differentiable) for specs in (self.inputs, self.outputs)
        )
        specified = list(zip(self.inputs, inputs, strict=True))
        z = torch.cat([_flat(t).double() for spec, t in specified if spec.differentiable], 1).detach()
        y = torch.cat([_flat(t) for t in answers], 1) if answers else z.new_empty(0)
        others = tuple(None if spec.differentiable else t for spec, t in specified if spec.modelled)
        return CallPairs(moving, following, z, y, others=others)

    @torch.no_grad()
    def values(self, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The model's outputs, `(rows, *shape)`; None of one without derivative.

        Raises:
            TangentError: it knows no values.
        """
        values = self.at(inputs).values
        if values is None:
            raise TangentError(
                f"frozen: expected a tangent that knows the box's values, by which it is judged, got "
                f"{self.tangent!r}. Take one that is fitted to values, such as KernelTangent."
            )
        return self._apart(self.outputs, values)

    def at(self, inputs: Sequence[Tensor]) -> Linearised:
        """What the tangent says there."""
        return self.tangent.at(self.pairs(inputs))

    @torch.no_grad()
    def pull(self, inputs: Sequence[Tensor], cotangents: Products) -> list[Tensor | None]:
        """J^T v, by input."""
        at = self.at(inputs)
        return self._apart(self.inputs, at.pull(self._together(self.outputs, cotangents, at.rows.z)))

    @torch.no_grad()
    def push(self, inputs: Sequence[Tensor], changes: Products) -> list[Tensor | None]:
        """J d, by output."""
        at = self.at(inputs)
        return self._apart(self.outputs, at.push(self._together(self.inputs, changes, at.rows.z)))

    def bend(self, inputs: Sequence[Tensor], cotangents: Products, changes: Products) -> list[Tensor | None]:
        """The derivative of J^T v along d, by input.

        Raises:
            NotDifferentiableError: the model has none.
        """
        pairs = self.pairs(inputs)
        v, d = (
            self._together(self.outputs, cotangents, pairs.z),
            self._together(self.inputs, changes, pairs.z),
        )
        bent = self._bent(pairs, v, d)
        if bent is None:
            raise NotDifferentiableError(
                f"frozen: expected a model with a second derivative, got {self.tangent!r}. "
                "Take KernelTangent."
            )
        return self._apart(self.inputs, bent)

    def _bent(self, pairs: CallPairs, v: Tensor, d: Tensor) -> Tensor | None:
        with torch.enable_grad():
            moved = replace(pairs, z=pairs.z.detach().requires_grad_())
            pulled = self.tangent.at(moved).pull(v)
            if not pulled.requires_grad:  # by the model's values, where these have a graph to the end
                values = self.tangent.at(pairs).to(moved.z, pairs.others)
                if not values.requires_grad:
                    return None
                try:
                    (pulled,) = torch.autograd.grad(values, moved.z, v, create_graph=True)
                except RuntimeError:
                    return None
            if not pulled.requires_grad:
                return None
            try:
                return torch.autograd.grad(pulled, moved.z, d, materialize_grads=True)[0].detach()
            except RuntimeError:  # autograd goes through it once
                return None

    def errors(self, rows: RecordedRows) -> dict[str, float]:
        """The relative error of the model's values at rows, by output."""
        errors = {}
        for spec, answer, value in zip(self.outputs, rows.outputs, self.values(rows.inputs), strict=True):
            if value is not None:
                answer = answer.double()
                missed, spread = (value - answer).norm(), (answer - answer.mean(0)).norm()
                size = float(spread) or float(answer.norm()) or 1.0  # of what is the same in all rows
                errors[spec.name] = float(missed) / size
        return errors

    def has_hessian(self, rows: RecordedRows) -> bool:
        """Whether there is a second derivative, and it is that of J^T v by a difference at some rows."""
        pairs = self.pairs([tensor[:4] for tensor in rows.inputs])
        generator = torch.Generator().manual_seed(0)
        scale = pairs.z.std(0).clamp_min(1e-12)
        d = (torch.randn(pairs.z.shape, generator=generator, dtype=torch.float64).to(pairs.z)) * scale
        v = torch.randn(len(d), sum(sizes(pairs.outputs)), generator=generator, dtype=torch.float64).to(
            pairs.z
        )
        bent = self._bent(pairs, v, d)
        if bent is None or not bool(bent.isfinite().all()):
            return False
        with torch.no_grad():
            ahead, behind = (
                self.tangent.at(replace(pairs, z=pairs.z + step * d)).pull(v) for step in (STEP, -STEP)
            )
            slope = (ahead - behind) / (2 * STEP)
            rounding = 1e-9 * ahead.norm() / STEP
        return bool((bent - slope).norm() <= AGREES * slope.norm() + rounding)

    def _together(self, specs: Sequence[ArraySpec], arrays: Products, like: Tensor) -> Tensor:
        """Arrays with a derivative end to end, `(rows, size)`; zero for those that are None."""
        pairs = [(spec, array) for spec, array in zip(specs, arrays, strict=True) if spec.differentiable]
        parts = [
            like.new_zeros(len(like), *spec.shape) if array is None else array.to(like)
            for spec, array in pairs
        ]
        return torch.cat([_flat(part) for part in parts], 1)

    def _apart(self, specs: Sequence[ArraySpec], flat: Tensor) -> list[Tensor | None]:
        """What `_together` puts together."""
        moving = tuple(spec for spec in specs if spec.differentiable)
        pieces = iter(flat.split(sizes(moving), dim=1))
        return [next(pieces).reshape(-1, *s.shape) if s.differentiable else None for s in specs]


class _Values(_Refusing):
    """`apply(model, values, *inputs)` gives what the function of values says, with the derivative."""

    @staticmethod
    def forward(model: _Model, values: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The values, the only thing that may cost rows."""
        outputs = values(*(tensor.detach() for tensor in inputs))
        return tuple(out.clone() for out in (outputs if isinstance(outputs, tuple) else (outputs,)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs, and which rows have an answer."""
        ctx.model, *arrays = inputs[0], *inputs[2:]
        fixed = [out for spec, out in zip(ctx.model.outputs, output, strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)
        ctx.leading = output[0].shape[: output[0].ndim - len(ctx.model.outputs[0].shape)]
        alive = torch.ones(ctx.leading.numel(), dtype=torch.bool, device=output[0].device)
        for spec, out in zip(ctx.model.outputs, output, strict=True):
            alive &= out.detach().reshape(len(alive), -1).isfinite().all(1) if spec.floating else True
        ctx.alive, ctx.dtypes = alive, [out.dtype for out in output]
        ctx.save_for_backward(*arrays)
        ctx.save_for_forward(*arrays)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """J^T v, through which autograd goes once more."""
        needed = ctx.needs_input_grad[2:]
        form = _Form(ctx.model, ctx.alive, ctx.leading, needed)
        gradients = iter(_Pull.apply(form, *ctx.saved_tensors, *cotangents))
        return None, None, *(next(gradients) if needs else None for needs in needed)

    @staticmethod
    def jvp(ctx: Any, *changes: Any) -> tuple[Tensor | None, ...]:
        """J d."""
        model, inputs = ctx.model, _rows_of(ctx.model.inputs, ctx.saved_tensors)
        pushed = model.push(inputs, _rows_of(model.inputs, changes[2:]))
        return tuple(
            None if part is None else _masked(part, ctx.alive).reshape(*ctx.leading, *spec.shape).to(dtype)
            for spec, part, dtype in zip(model.outputs, pushed, ctx.dtypes, strict=True)
        )


@dataclass(frozen=True)
class _Form:
    """What a way back needs beside tensors: the model, the rows with an answer, and what is wanted."""

    model: _Model
    alive: Tensor
    leading: torch.Size
    needed: tuple[bool, ...]


class _Pull(_Refusing):
    """`apply(form, *inputs, *cotangents)` gives J^T v of the needed inputs."""

    @staticmethod
    def forward(form: _Form, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """The product."""
        model = form.model
        inputs = _rows_of(model.inputs, tensors[: len(model.inputs)])
        arriving = _rows_of(model.outputs, tensors[len(model.inputs) :])
        return _chosen(form, inputs, tensors, model.pull(inputs, _all_masked(arriving, form.alive)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep all of it."""
        ctx.form = inputs[0]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        """The Hessian's action for the inputs, and J d for the cotangents."""
        form, tensors, model = ctx.form, ctx.saved_tensors, ctx.form.model
        count = len(model.inputs)
        inputs, cotangents = (
            _rows_of(specs, some)
            for specs, some in ((model.inputs, tensors[:count]), (model.outputs, tensors[count:]))
        )
        each = iter(arriving)
        changes = _rows_of(model.inputs, [next(each) if needs else None for needs in form.needed])
        changes = _all_masked(changes, form.alive)
        needs_inputs, needs_cotangents = (
            ctx.needs_input_grad[1 : count + 1],
            ctx.needs_input_grad[count + 1 :],
        )
        bent: Products = [None] * count
        if any(needs_inputs):
            bent = model.bend(inputs, _all_masked(cotangents, form.alive), changes)
        pushed: Products = [None] * len(model.outputs)
        if any(needs_cotangents):
            pushed = _all_masked(model.push(inputs, changes), form.alive)
        return None, *(
            None
            if not needs or product is None or tensor is None
            else product.reshape(tensor.shape).to(tensor)
            for needs, product, tensor in zip(
                (*needs_inputs, *needs_cotangents), (*bent, *pushed), tensors, strict=True
            )
        )


def _chosen(
    form: _Form, rows: Sequence[Tensor | None], tensors: Sequence[Tensor | None], products: Products
) -> tuple[Tensor, ...]:
    """The needed gradients, in the shapes and dtypes of the inputs; zero in rows that failed."""
    chosen = []
    for needs, product, tensor in zip(form.needed, products, tensors, strict=False):
        if needs and tensor is not None:
            part = torch.zeros_like(tensor) if product is None else _masked(product, form.alive)
            chosen.append(part.reshape(tensor.shape).to(tensor))
    return tuple(chosen)


def _rows_of(specs: Sequence[ArraySpec], tensors: Sequence[Tensor | None]) -> list[Any]:
    """Tensors with any leading axes as rows."""
    return [
        None if tensor is None else tensor.detach().reshape(-1, *spec.shape)
        for spec, tensor in zip(specs, tensors, strict=True)
    ]


def _masked(tensor: Tensor, alive: Tensor) -> Tensor:
    """Zero in rows that failed, whatever arrives there."""
    return torch.where(alive.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.device), tensor, 0)


def _all_masked(tensors: Products, alive: Tensor) -> list[Tensor | None]:
    return [None if tensor is None else _masked(tensor, alive) for tensor in tensors]


def _given_back(rows: RowArrays, products: Products) -> Any:
    """Products in the caller's kind, device, axes and precision."""
    shaped = [
        None if p is None else p.detach().to(rows.device, rows.dtype).reshape(*rows.leading, *p.shape[1:])
        for p in products
    ]
    arrays = [array.numpy() if rows.numpy and array is not None else array for array in shaped]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _usual_tangents(box: BlackBoxFunction, rows: int, seed: int) -> Sequence[Tangent]:
    """The tangents of which the best is taken where the user names none."""
    specs = Specs.of(box)
    if specs.structure.kind != "table":
        return [AutoTangent(box, seed)]
    made: list[Tangent] = [each.make(box, seed) for each in candidates() if each.fits(specs) is None]
    made = [tangent for tangent in made if not isinstance(tangent, KernelTangent)]
    if sum(sizes(tuple(spec for spec in specs.outputs if spec.learned))) <= LARGEST:
        made = [KernelTangent(min(rows, CENTRES), window=rows), *made]
    return made


def _check_box(box: BlackBoxFunction) -> None:
    for kind, specs in (("input", box.inputs), ("output", box.outputs)):
        if not any(spec.differentiable for spec in specs):
            raise ConfigurationError(f"frozen, box {box!r}: {none_differentiable(kind, specs)}")
    if copies := [spec.name for spec in box.outputs if spec.copy_of is not None]:
        raise ConfigurationError(
            f"frozen, box {box!r}: expected outputs without copy_of=, got it of {', '.join(copies)}. "
            "Leave it out: the model learns them as any other."
        )


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    return {"box": state["box"], "tangents": state["offered"]}


def _several(arrays: Any) -> tuple[Any, ...]:
    return tuple(arrays) if isinstance(arrays, list | tuple) else (arrays,)


def _flat(array: Tensor) -> Tensor:
    return array.reshape(len(array), -1)
