"""`ImplicitTangent`: the common part of models that are an implicit step on a mesh, fitted to values."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from blackbox import Mesh
from blackbox.checks import check_number
from zo.errors import ConfigurationError, TangentError
from zo.tangents.models.at_rows import ModelAt, Together, at_calls
from zo.tangents.models.form import Form
from zo.tangents.models.lessons import report
from zo.tangents.models.mesh.implicit_step import ImplicitStep, Trajectory
from zo.tangents.models.mesh.rows_on_mesh import LOOSE, Rows, RowsOnMesh, Units
from zo.tangents.models.prior import Below
from zo.tangents.models.row_window import ROUNDING, Moments
from zo.tangents.models.values import ValueTangent
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Linearised

LEAST_ROWS = 8  # of a fit
WORSE = 1.5  # times the error of the last fit: where a form is chosen again the next time


class ImplicitTangent(ValueTangent):
    """The derivative of an implicit step on a mesh, whose few numbers are fitted to values by least squares.

    A subclass makes the step (`step`) and fits it (`fitted`). Beside the step a ridge regression explains the
    step's residuals by a constant for each node and by inputs that lie on no node. All is computed in float64
    by the CPU.

    Args:
        mesh: the mesh; None: the one that the outputs' specs have as their layout.
        ridge: the penalty on the numbers of the step, each in units of its effect on the outputs.
        window: rows kept, the oldest going.
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        most_rows: the most rows of a fit.
        numbers: the most numbers in the outputs of these rows.
        most_tried: the most forms that a lesson fits, with the last fit to all rows.
    """

    most_rows = 48
    numbers = 60_000
    most_tried = 1
    _trials = 0  # in this lesson

    def __init__(self, mesh: Mesh | None, ridge: float, window: int, prior: Below | None = None) -> None:
        who = type(self).__name__
        if mesh is not None and not isinstance(mesh, Mesh):
            raise ConfigurationError(
                f"{who}, mesh: expected a blackbox.Mesh or None, got {mesh!r}. None takes the layout of the "
                "box's outputs."
            )
        check_number(who, "ridge", ridge, least=1e-12)
        self.mesh, self.ridge = mesh, ridge
        if mesh is not None:
            self.check_mesh(mesh)
        super().__init__(window, output_map=False, prior=prior)

    def _forget(self, window: int) -> None:
        super()._forget(window)
        self._mesh_in_use: Mesh | None = self.mesh
        self._fit: dict[str, Any] | None = None  # plain values and tensors, as a state has them
        self._step: ImplicitStep | None = None
        self._next = 0  # the count of lessons before which it is fitted again
        self._longer = False  # whether it takes more rows and richer forms

    @abstractmethod
    def check_mesh(self, mesh: Mesh) -> None:
        """Refuse a mesh that the model cannot use."""

    @abstractmethod
    def step(self, mesh: Mesh, fit: dict[str, Any]) -> ImplicitStep:
        """Make the step from the output of `fitted`."""

    def _settled(self, units: Units, count: int) -> bool:
        """Say whether the last fit's form may stay: its rows have not doubled, and their units are near."""
        now = self._units_now()
        alike = {name: units[name].shape == now[name].shape for name in ("source", "extra", "number_scale")}
        if not all(alike.values()) or (units["source"] != now["source"]).any():
            return False
        near = np.abs(np.log(units["out_scale"] / now["out_scale"])).max() < np.log(2)
        same = (units["constant"] == now["constant"]).all()
        return bool(near and same and count < 2 * self._fit_now()["rows"])

    @abstractmethod
    def fitted(self, mesh: Mesh, rows: Rows, before: dict[str, Any] | None, longer: bool) -> dict[str, Any]:
        """Fit to rows, and return the fit for `step`, in plain values and tensors.

        Args:
            mesh: the mesh.
            rows: the rows to learn from; the form is taken that predicts the held-out rows best.
            before: the last fit, whose form and numbers the new one begins with; None to choose a form.
            longer: whether richer forms than usual are tried.
        """

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return self._fit is not None

    @property
    def measured(self) -> dict[str, Any]:
        """The form of the last fit, and its error on rows held out, in units of the box's usual change."""
        return {} if self._fit is None else dict(self._fit["measured"])

    def moments(self, form: Form) -> tuple[Moments, ...]:
        """Return no moments: the rows of the last fit give the units."""
        return ()

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Refuse rows that are not on the mesh."""
        if self._mesh_in_use is None:
            self._mesh_in_use = mesh_of(type(self).__name__, form)
            self.check_mesh(self._mesh_in_use)
        self._reading()

    def learn_from_window(self, steps: int | None) -> None:
        """Fit the step again, at the first, second, fourth, eighth lesson and so on."""
        if steps is not None or self._lessons >= self._next:
            columns = self._window.spread(self._rows_of_a_fit())
            reading = self._reading()
            z, others, y = map(_numpy, columns)
            z, others, y = reading.without_rounding(z, others, y, self._rounding)
            units, previous_fit = reading.units(z, others, y, self._rounding), self._fit
            again = previous_fit is not None and self._settled(units, len(z))
            if again:  # the numbers are of these units
                units = self._units_now()
            rows = reading.read(units, z, others, y)
            self._trials = 0
            report(0, self.most_tried)
            fit = self.fitted(self._mesh_now(), rows, previous_fit if again else None, self._longer)
            if again and previous_fit is not None:
                worse = fit["measured"]["error"] > WORSE * previous_fit["measured"]["error"]
                fit["rows"] = 0 if worse else previous_fit["rows"]
            else:
                fit["rows"] = len(z)
            if not math.isfinite(fit["measured"]["error"]):
                raise TangentError(
                    f"{self!r}: expected a step that can be solved, got none after {self._lessons} lessons. "
                    "Take zo.tangents.MLPTangent for this box."
                )
            self._fit = fit | {"units": {name: torch.from_numpy(values) for name, values in units.items()}}
            self._step = None
            self._fit["rest"] = self._rest(rows)
            report(self.most_tried, self.most_tried)
            self._next = max(1, 2 * (self._lessons + 1) - 1)
        self._lessons += 1

    def tried(self) -> None:
        """Report that a form was fitted, where somebody listens."""
        self._trials += 1
        report(min(self._trials, self.most_tried - 1), self.most_tried)

    def improve(self) -> str | None:
        """Take twice the rows and richer forms, once."""
        if self._longer or not self._form:
            return None
        self._longer, self._next = True, 0
        if self._fit is not None:
            self._fit["rows"] = 0  # a form is chosen again
        return f"{self!r} is fitted to twice the rows, in richer forms"

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """The step and what stands beside it; it can be differentiated by z, once."""
        return _Run.apply(z, others, self)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The step at each call."""
        together = at_calls(calls, self.values)
        return [_StepAt(rows, self, together, number) for number, rows in enumerate(calls)]

    def answered(self, z: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The outputs, `(rows, size_out)`."""
        units, reading = self._units_now(), self._reading()
        rows = reading.read(units, z, others)
        last = self._run(rows)[-1]
        return reading.out(units, last + self._beside(rows.numbers).reshape(last.shape), scaled_only=False)

    def pushed(self, z: np.ndarray, others: np.ndarray, d: np.ndarray) -> np.ndarray:
        """J d of each row: `(rows, size_in)` to `(rows, size_out)`."""
        units, reading = self._units_now(), self._reading()
        rows = reading.read(units, z, others)
        change = reading.read(units, d, np.zeros_like(others), changes=True)
        last = self._stepper().tangent(self._run(rows), rows.extras, change.state, change.extras)
        last = last + self._beside(change.numbers, constant=0.0).reshape(last.shape)
        return reading.out(units, last, scaled_only=True)

    def pulled(self, z: np.ndarray, others: np.ndarray, v: np.ndarray) -> np.ndarray:
        """J^T v of each row: `(rows, size_out)` to `(rows, size_in)`."""
        units, rest, reading = self._units_now(), self._fit_now()["rest"], self._reading()
        rows = reading.read(units, z, others)
        v_fields = reading.outputs.split(v)[0] * units["out_scale"][:, None]
        state, extras, _ = self._stepper().adjoint(self._run(rows), rows.extras, v_fields)
        numbers = (v_fields.reshape(len(v), -1) @ rest["dual"].numpy().T) @ rest["numbers"].numpy()
        return reading.pulled(units, state, extras, numbers)[:, : z.shape[1]]

    def state_dict(self) -> dict[str, Any]:
        """The fit, the mesh that it is of, and the rows that it is learned from."""
        if not self._form:
            return {"form": None}
        mesh = {
            name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            for name, value in self._mesh_now().plain().items()
        }
        learning = (self._next, self._longer)
        return copy.deepcopy(self.kept() | {"mesh": mesh, "fit": self._fit, "learning": learning})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        state = copy.deepcopy(state)
        self.load_kept(state)
        mesh: dict[str, Any] = {
            name: value.cpu().numpy() if isinstance(value, Tensor) else value
            for name, value in state["mesh"].items()
        }
        self._mesh_in_use = Mesh(**mesh)
        self._fit, (self._next, self._longer) = _on_cpu(state["fit"]), state["learning"]
        self._step = None

    # How rows are read

    def _reading(self) -> RowsOnMesh:
        return RowsOnMesh.of(type(self).__name__, self._form, self._mesh_now())

    def _rows_of_a_fit(self) -> int:
        size = sum(sizes(self._form.outputs))
        return max(LEAST_ROWS, min(self.most_rows, self.numbers // size)) * (2 if self._longer else 1)

    @property
    def _rounding(self) -> float:
        """The relative variation up to which a number counts as constant, in the rows' own dtype."""
        return ROUNDING * torch.finfo(self._window.columns[0].dtype).eps

    # What was fitted

    def _mesh_now(self) -> Mesh:
        assert self._mesh_in_use is not None
        return self._mesh_in_use

    def _fit_now(self) -> dict[str, Any]:
        assert self._fit is not None
        return self._fit

    def _units_now(self) -> Units:
        return {name: values.numpy() for name, values in self._fit_now()["units"].items()}

    def _stepper(self) -> ImplicitStep:
        if self._step is None:
            self._step = self.step(self._mesh_now(), self._fit_now())
        return self._step

    def _run(self, rows: Rows) -> Trajectory:
        return self._stepper().run(rows.state, rows.extras)

    def _rest(self, rows: Rows) -> dict[str, Tensor]:
        """The ridge regression of the step's residuals, in its dual form."""
        residual = (rows.goal - self._run(rows)[-1]).reshape(len(rows.goal), -1)
        kernel = 1 + rows.numbers @ rows.numbers.T
        dual = np.linalg.solve(kernel + LOOSE * np.eye(len(kernel)), residual)
        if not rows.numbers.shape[1]:  # the constant alone: one row says it
            dual = dual.sum(axis=0, keepdims=True)
            return {"dual": torch.from_numpy(dual), "numbers": torch.zeros(1, 0, dtype=torch.float64)}
        return {"dual": torch.from_numpy(dual), "numbers": torch.from_numpy(rows.numbers.copy())}

    def _beside(self, numbers: np.ndarray, constant: float = 1.0) -> np.ndarray:
        rest = self._fit_now()["rest"]
        return (constant + numbers @ rest["numbers"].numpy().T) @ rest["dual"].numpy()


class _StepAt(ModelAt):
    """The step at the rows of a call, with J d by solves along it."""

    def __init__(self, rows: CallPairs, tangent: ImplicitTangent, together: Together, number: int) -> None:
        super().__init__(rows, tangent.values, together, number)
        self._pushed = tangent.pushed

    def push(self, d: Tensor) -> Tensor:
        """The step's J d."""
        return torch.from_numpy(self._pushed(_numpy(self.rows.z), _numpy(self.others), _numpy(d))).to(d)


class _Run(Function):
    """`apply(z, others, tangent)`: the outputs, with the model's adjoint."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, others: Tensor, tangent: ImplicitTangent) -> Tensor:
        ctx.tangent = tangent
        ctx.save_for_backward(z.detach(), others.detach())
        return torch.from_numpy(tangent.answered(_numpy(z), _numpy(others))).to(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        z, others = ctx.saved_tensors
        return torch.from_numpy(ctx.tangent.pulled(_numpy(z), _numpy(others), _numpy(v))).to(z), None, None


def mesh_of(who: str, form: Form) -> Mesh:
    """The mesh that the outputs have as their layout.

    Raises:
        ConfigurationError: they have none, or several.
    """
    meshes = {spec.layout for spec in form.outputs if isinstance(spec.layout, Mesh)}
    if len(meshes) != 1:
        raise ConfigurationError(
            f"{who}: expected outputs on one mesh, got layouts {[spec.layout for spec in form.outputs]}. "
            "Give the specs of inputs and outputs layout=blackbox.Mesh(...), or the tangent its mesh=."
        )
    return meshes.pop()


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_cpu(part) for name, part in value.items()}
    return value.cpu() if isinstance(value, Tensor) else value
