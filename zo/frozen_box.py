"""`frozen`: a box with a derivative that is learned once from recorded rows and is one fixed function."""

from __future__ import annotations

import copy
import os
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction, calls
from blackbox.arrays import RowArrays, finite_rows, in_order, to_rows
from blackbox.checks import check_count, check_fraction
from blackbox.errors import NotDifferentiableError
from blackbox.failures import Outcome
from blackbox.wrappers.identity import name_of, parts
from blackbox.wrappers.wrapper import Wrapper
from zo.box_gradient.differentiable import check_copies, check_differentiable
from zo.box_gradient.row_queries import as_rows
from zo.errors import ConfigurationError
from zo.frozen_model import FrozenModel, Parts, usual_tangent
from zo.recorded_rows import RecordedRows, buy_rows, inputs_around, read_rows, recorded
from zo.same_run import arrays_of, refuse_other_run
from zo.tangents.tangent import Tangent

FEWEST = 10  # rows, of which some are held out
JUDGES, SHARE = 20, 5  # rows that are held out at least, unless that is more than one in so many

Rows = int | str | os.PathLike[str] | Sequence[Any] | RecordedRows


@dataclass(frozen=True)
class FrozenInfo:
    """A frozen derivative's model, and how well it foretells rows that it has not learned from.

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
    tangent: Tangent | None = None,
    rows: Rows | None = None,
    *,
    around: Any = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> FrozenBox:
    """A box with a derivative that is learned once and is then one fixed function, as samplers need.

        solver = zo.frozen(box, rows=(inputs, answers))         # recorded: arrays
        solver = zo.frozen(box, rows="samples.h5")              # recorded: a file
        solver = zo.frozen(box, rows=1500, around=prior_draws)  # bought: 1,500 rows of the box
        solver(x).square().sum().backward()

    Values are the box's own, one row each. The derivative costs no row: `vjp`, `jvp`, and `hessian_action`
    where the model has a second derivative. It depends on the point alone, so the same call gives the same
    bits, and a leapfrog goes back to where it began. How wrong it is says `info`: a tenth of the rows is held
    out, and never learned from. A dozen rows judge badly, and rows of one chain resemble each other, so that
    held-out ones look better than new ones will: take draws that are far apart.

    Autograd goes through it in reverse and in forward mode, and through its gradient once more. It is a black
    box too, which a UM-Bridge server takes as it is: `serve(solver)`.

    Args:
        box: the box, whose values pass unchanged.
        tangent: the model; a copy of it learns. None for a `SelectedTangent`, which chooses by held-out rows
            between a line, a kernel, an additive kernel, a perceptron and other registered models; on grids
            and meshes None is for an `AutoTangent`.
        rows: the rows to learn from: inputs and answers as `(inputs, outputs)`; an HDF5 file, see
            `zo.recorded_rows`; or a number of rows, to be bought around `around`. None to learn later, by
            `learn` or `load_state_dict`: until then a derivative is refused.
        around: inputs `(rows, *shape)` near which rows are bought, see `zo.recorded_rows.inputs_around`.
        held_out: the fraction of the rows that is held out; at least 20 rows, or a fifth where that is fewer.
        seed: the seed of all draws: rows to buy, rows to hold out, a network's weights.

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
        info: the description of the derivative; None until it is frozen.
    """

    transparent = True
    has_derivative = True

    def __init__(
        self,
        box: BlackBoxFunction,
        tangent: Tangent | None = None,
        held_out: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        check_differentiable("frozen", box)
        check_copies("frozen", box)
        check_fraction("frozen", "held_out", held_out)
        self.held_out, self.seed = held_out, check_count("frozen", "seed", seed, least=0)
        tangent = usual_tangent(box, seed) if tangent is None else tangent
        if not isinstance(tangent, Tangent) or not tangent.learns:
            raise ConfigurationError(
                f"frozen, tangent: expected a tangent that learns from values, got {reprlib.repr(tangent)}. "
                "Give one such as zo.tangents.KernelTangent(), and rows by name, rows=(inputs, outputs)."
            )
        tangent.check_box(box)
        self._tangent = copy.deepcopy(tangent)  # never learns
        self.info: FrozenInfo | None = None
        self._model: FrozenModel | None = None
        self._learned_of: dict[str, str] = {}  # the parts of the box's identity
        self._turn: AbstractContextManager[object] = nullcontext()  # while rows are bought

    # Learning

    def learn(
        self,
        rows: Rows,
        *,
        around: Any = None,
        path: str | os.PathLike[str] | None = None,
        same_box: bool = False,
    ) -> FrozenBox:
        """Learn anew from these rows alone; from then on the derivative is another fixed function.

        While rows are bought, calls from other threads wait until a block of 64 is answered.

        Args:
            rows: the rows, as for `frozen`.
            around: the centres of bought rows, as for `frozen`.
            path: an HDF5 file that bought rows are written to, block by block; None for none. What it has
                of the same box already is not bought again.
            same_box: whether rows in the file count though the box has other code, values or files now.

        Returns:
            This box.

        Raises:
            ConfigurationError, TangentError: for the reasons that `frozen` gives; the derivative stays as it
                was.
        """
        learned_of = _parts(self.box)  # before rows are run, which may change counts that it holds
        if isinstance(rows, int) and not isinstance(rows, bool):
            check_count("frozen", "rows", rows, least=FEWEST)
            inputs = inputs_around(self.box, around, rows, self.seed)
            self._turn = Lock()
            try:
                record = buy_rows(self, inputs, path=path, same_box=same_box)
            finally:
                self._turn = nullcontext()
        elif around is not None:
            raise ConfigurationError(
                "frozen, around: expected inputs only where a number of rows is bought, got them beside rows "
                "that are there. Leave around out."
            )
        else:
            record = self._recorded(rows)
        self._freeze(record.finite())
        self._learned_of = learned_of
        return self

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

    def _freeze(self, rows: RecordedRows) -> None:
        count = len(rows)
        if count < FEWEST:
            raise ConfigurationError(
                f"frozen, rows: expected at least {FEWEST} with finite numbers, got {count}. Give more; see "
                "the box's ledger for rows that failed."
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(count, generator=generator).to(rows.inputs[0].device)
        judges = max(round(self.held_out * count), min(JUDGES, count // SHARE))
        if judges == count:
            raise ConfigurationError(
                f"frozen, held_out: expected rows that are left to learn from, got {self.held_out:g} of "
                f"{count}. Take less, such as the usual 0.1."
            )
        unseen, training_rows = rows.of(order[:judges].sort().values), rows.of(order[judges:].sort().values)
        model = FrozenModel.learned(self.box, self._tangent, training_rows)
        errors = model.errors(unseen)
        info = FrozenInfo(model.words, len(training_rows), len(unseen), errors, model.hessian)
        self._model, self.info = model, info

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
        """The box's outputs, one row each; autograd goes through them by the frozen derivative.

        A row that failed, or without finite numbers of the model, has a gradient of zero.
        """
        self._known()
        answer = self.call(*arrays)
        if not all(isinstance(array, Tensor) for array in arrays):
            return answer  # NumPy arrays carry no gradient
        followed = self.followed(arrays, answer if isinstance(answer, tuple) else (answer,))
        return followed[0] if len(followed) == 1 else tuple(followed)

    def followed(self, arrays: Sequence[Tensor], outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The box's outputs at these arrays, with a graph by the frozen derivative, as `reference` has it."""
        _, values = self._modelled(arrays)
        finite = [v.detach() for v in values if v is not None]
        alive = finite_rows((*as_rows(self.outputs, outputs), *finite)).to(outputs[0].device)
        if not alive.all():  # else autograd would multiply zero by a derivative that is NaN
            _, values = self._modelled(arrays, alive)
        followed = []
        for output, value in zip(outputs, values, strict=True):
            if value is not None:  # zero, with the model's derivative
                step = torch.where(alive.reshape(-1, *[1] * (value.ndim - 1)), value - value.detach(), 0.0)
                output = output + step.reshape(output.shape).to(output)
            followed.append(output)
        return followed

    def predicted(self, *arrays: Any) -> Any:
        """The model's own outputs, which cost no row, with the same derivative; zeros for what it has not."""
        rows, values = self._modelled(arrays)
        outputs = (
            torch.zeros(rows.count, *spec.shape, device=rows.device) if value is None else value
            for spec, value in zip(self.outputs, values, strict=True)
        )
        dtypes = (spec.torch_dtype or rows.dtype for spec in self.outputs)
        return rows.give_back(tuple(map(Tensor.to, outputs, dtypes)))

    def _modelled(
        self, arrays: Sequence[Any], alive: Tensor | None = None
    ) -> tuple[RowArrays, list[Tensor | None]]:
        """The model's outputs as rows, with a graph of inputs that have one; of rows that are alive alone."""
        model, rows = self._known(), to_rows(repr(self), self.inputs, tuple(arrays))
        traced = [
            array.reshape(row.shape) if spec.differentiable and isinstance(array, Tensor) else row
            for spec, array, row in zip(self.inputs, arrays, rows.inputs, strict=True)
        ]
        if alive is not None:
            traced = [
                torch.where(alive.reshape(-1, *[1] * len(spec.shape)), row, 0) if spec.differentiable else row
                for spec, row in zip(self.inputs, traced, strict=True)
            ]
        return rows, model.values(traced)

    def _wants_graph(self, arrays: Sequence[Any]) -> bool:
        """Say whether a derivative is asked for, in either mode."""
        return any(
            (torch.is_grad_enabled() and array.requires_grad)
            or torch.autograd.forward_ad.unpack_dual(array).tangent is not None
            for spec, array in zip(self.inputs, arrays, strict=False)
            if spec.differentiable and isinstance(array, Tensor)
        )

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
            The change of each output, in its shape; None for an output without derivative. A single change
            where there is one output.

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
            The same form as for `vjp`.

        Raises:
            NotDifferentiableError: the model has no second derivative, or nothing is frozen yet.
            InputError, ConfigurationError: see `vjp`.
        """
        rows, model = self._rows(inputs), self._known()
        if not model.hessian:
            raise NotDifferentiableError(
                f"{self!r}: expected a model with a second derivative, got {model.words}, which has none. "
                "Take KernelTangent."
            )
        arriving = self._checked("cotangents", self.outputs, cotangents, rows)
        moved = self._checked("changes", self.inputs, changes, rows)
        return _given_back(rows, model.bend(rows.inputs, arriving, moved))

    @property
    def derivative_info(self) -> dict[str, Any]:
        """The derivative in plain values: for a server's clients and for `blackbox check`."""
        if self.info is None:
            return {"frozen": False}
        return {"frozen": True, **asdict(self.info)}

    def _known(self) -> FrozenModel:
        if self._model is None:
            raise NotDifferentiableError(
                f"{self!r}: expected a derivative that is frozen, got none yet. Values are there; wait until "
                "enough rows are learned from, or call learn(rows)."
            )
        return self._model

    def _rows(self, inputs: Any) -> RowArrays:
        return to_rows(repr(self), self.inputs, _several(inputs))

    def _checked(self, name: str, specs: Sequence[ArraySpec], arrays: Any, rows: RowArrays) -> Parts:
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
            else torch.as_tensor(array).detach().reshape(rows.count, *spec.shape)
            for spec, array in zip(specs, several, strict=True)
        ]

    # State

    def state_dict(self) -> dict[str, Any]:
        """The frozen derivative; a box that loads it answers with the same bits."""
        model = self._known()
        assert self.info is not None
        kind = {**self._kind(), "identity": self._learned_of}
        return {**kind, "state": model.tangent.state_dict(), "info": asdict(self.info)}

    def load_state_dict(self, state: dict[str, Any], *, same_box: bool = False) -> FrozenBox:
        """Take over a frozen derivative; nothing is learned.

        The box that it was learned of is known by class, specs, source files and values, as `Cached` knows
        its own, and a UM-Bridge model by its address.

        Args:
            state: what `state_dict` gave.
            same_box: whether to take the state of a box that is known by something else, because you know
                that it gives the same answers: its server has moved, or a comment in its file has changed.

        Raises:
            ConfigurationError: the state is of another box, or of another tangent or prior.
        """
        refuse_other_run("frozen", self._kind(), state)
        if not same_box:
            self._refuse_other_box(state.get("identity") or {})
        self._learned_of = _parts(self.box)
        info, tangent = FrozenInfo(**state["info"]), copy.deepcopy(self._tangent)
        tangent.load_state_dict(state["state"])
        self._model, self.info = FrozenModel(self.box, tangent, info.hessian), info
        return self

    def _refuse_other_box(self, saved: Mapping[str, str]) -> None:
        now = _parts(self.box) if saved else {}
        names = [name.strip(".") for name in sorted({*saved, *now}) if saved.get(name) != now.get(name)]
        if names:
            raise ConfigurationError(
                f"frozen: expected the derivative of {self.box!r} as it is, got one of a box with another "
                f"{', '.join(names)}. Learn this box's own; or, if both give the same answers, load it with "
                "same_box=True (blackbox serve: --same-box)."
            )

    def _kind(self) -> dict[str, str]:
        """Return the arrays and the unlearned tangent that a saved state must match."""
        return {"box": arrays_of(self.box), "tangent": repr(self._tangent)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the frozen derivative to a file, which `load` reads; it is the old one or the new one."""
        temporary = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
        torch.save(self.state_dict(), temporary)
        os.replace(temporary, path)

    def load(self, path: str | os.PathLike[str], *, same_box: bool = False) -> FrozenBox:
        """Read what `save` wrote.

        Args:
            path: the file.
            same_box: see `load_state_dict`.

        Raises:
            ConfigurationError: it holds something else, or see `load_state_dict`.
            OSError: it cannot be read.
        """
        try:
            state = torch.load(path, weights_only=True)
            assert isinstance(state, dict) and "info" in state
        except OSError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"{os.fspath(path)}: expected a frozen derivative, got something else "
                f"({type(error).__name__}). FrozenBox.save writes one."
            ) from None
        return self.load_state_dict(state, same_box=same_box)

    def __repr__(self) -> str:
        """The box, and whether there is a derivative."""
        return f"FrozenBox({self.box!r}{'' if self.info else ', not frozen yet'})"


def _parts(box: BlackBoxFunction) -> dict[str, str]:
    """The description of a box: words and digests by name; of what cannot be described, the class."""
    return parts(box, lambda value: name_of(type(value)))


def _given_back(rows: RowArrays, parts: Parts) -> Any:
    """Products in the caller's kind, device, axes and precision."""
    shaped = [
        None if p is None else p.to(rows.device, rows.dtype).reshape(*rows.leading, *p.shape[1:])
        for p in parts
    ]
    arrays = [array.numpy() if rows.numpy and array is not None else array for array in shaped]
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _several(arrays: Any) -> tuple[Any, ...]:
    return tuple(arrays) if isinstance(arrays, list | tuple) else (arrays,)
