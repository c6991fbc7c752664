"""`ImplicitTangent`: what models share that are an implicit step on a mesh, fitted to values."""

from __future__ import annotations

import copy
import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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
from zo.tangents.models.lessons import report
from zo.tangents.models.mesh.implicit_step import ImplicitStep, Trajectory
from zo.tangents.models.rows import ROUNDING, Moments
from zo.tangents.models.values import Form, ValueTangent
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import Linearised, sources

MOST_FIELDS = 16
LEAST_ROWS = 8  # of a fit
HELD_OUT = 4  # one row in so many shows how good a form is
FAR, NEAR = 3.0, 0.5  # of a field's size: a state moves on by less; NEAR where its name is another
WORSE = 1.5  # times the error of the last fit: where a form is chosen again the next time
LOOSE = 0.1  # the ridge of what is the same in all rows, and of numbers that lie on no node
LATELY = 0.99  # of what is the same in all rows does not count as change: values do not need a model for it
STILL = 1e-9  # of a field's spread: a node whose output varies less is prescribed
SAME = 1e-12  # of a field's size, or more where its dtype is coarser: what varies less is the same everywhere


@dataclass(frozen=True)
class NodeArrays:
    """Which numbers of a row lie on the nodes of a mesh.

    Attributes:
        shapes: of the arrays, end to end in a row.
        mesh: whose nodes they lie on.
    """

    shapes: tuple[tuple[int, ...], ...]
    mesh: Mesh

    @property
    def fields(self) -> int:
        """How many numbers a node has."""
        return sum(self._fields(shape) for shape in self.shapes)

    def split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(rows, numbers of a row)` to fields `(rows, fields, nodes)` and the rest `(rows, numbers)`."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        fields, numbers = [], []
        for shape, array in zip(self.shapes, np.split(flat, ends[:-1], axis=1), strict=True):
            if not self._fields(shape):
                numbers.append(array)
                continue
            array = array.reshape(len(flat), *shape, *[1] * (2 - len(shape)))
            fields.append(array.swapaxes(1, 2) if self.mesh.node_axis(shape) == 0 else array)
        nodes = self.mesh.size
        return (
            np.concatenate([np.zeros((len(flat), 0, nodes)), *fields], axis=1),
            np.concatenate([np.zeros((len(flat), 0)), *numbers], axis=1),
        )

    def joined(self, fields: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Rows `(rows, numbers of a row)` of the two that `split` gives."""
        arrays, field, number = [np.zeros((len(fields), 0))], 0, 0
        for shape in self.shapes:
            count, size = self._fields(shape), math.prod(shape)
            if count:
                array = fields[:, field : field + count]
                array = array.swapaxes(1, 2) if self.mesh.node_axis(shape) == 0 else array
                arrays.append(array.reshape(len(fields), size))
            else:
                arrays.append(numbers[:, number : number + size])
                number += size
            field += count
        return np.concatenate(arrays, axis=1)

    def of_arrays(self) -> list[range]:
        """The places of each array's fields; none for one that is not on the mesh."""
        ends = np.cumsum([0, *(self._fields(shape) for shape in self.shapes)]).tolist()
        return [range(a, b) for a, b in itertools.pairwise(ends)]

    def _fields(self, shape: tuple[int, ...]) -> int:
        axis = self.mesh.node_axis(shape)
        return 0 if axis is None else math.prod(shape) // shape[axis]


@dataclass(frozen=True)
class Rows:
    """Rows as a model on a mesh sees them, in standard units.

    Attributes:
        state: `(rows, fields, nodes)`, where steps begin: the input that an output follows; zero without one.
        extras: `(rows, extras, nodes)`, all other inputs on the nodes.
        numbers: `(rows, numbers)`, inputs that lie on no node.
        goal: `(rows, fields, nodes)`, the outputs.
        change: `(fields,)`, the spread of what the outputs add to the state.
        carried: `(fields,)` bool, whether a field has an input that it follows.
        free: `(fields * nodes,)`, 0 at nodes with a prescribed output.
        held: `(rows,)` bool, the rows that are held out.
    """

    state: np.ndarray
    extras: np.ndarray
    numbers: np.ndarray
    goal: np.ndarray
    change: np.ndarray
    carried: np.ndarray
    free: np.ndarray
    held: np.ndarray

    def fitted(self, which: np.ndarray) -> Rows:
        """Some of the rows."""
        by_row = {name: getattr(self, name)[which] for name in ("state", "extras", "numbers", "goal", "held")}
        return Rows(**by_row, change=self.change, carried=self.carried, free=self.free)

    def hat(self) -> np.ndarray:
        """What a ridge of a constant and the numbers takes of residuals: `(rows, rows)`."""
        kernel = 1 + self.numbers @ self.numbers.T
        return np.linalg.solve(kernel + LOOSE * np.eye(len(kernel)), kernel)

    def explained(self, others: Rows, residual: np.ndarray) -> np.ndarray:
        """What a ridge of a constant and the numbers says for these rows, fitted to others' residuals."""
        kernel = 1 + others.numbers @ others.numbers.T
        weights = np.linalg.solve(kernel + LOOSE * np.eye(len(kernel)), residual)
        return (1 + self.numbers @ others.numbers.T) @ weights

    def weight(self) -> np.ndarray:
        """1 over the change at free nodes: `(fields, nodes)`."""
        return self.free.reshape(self.goal.shape[1:]) / self.change[:, None]


class ImplicitTangent(ValueTangent):
    """J(z) is that of an implicit step on a mesh, whose few numbers are fitted to values by least squares.

    A subclass says what the step is (`step`) and fits it (`fitted`). Beside the step stands a ridge
    regression of what it leaves on a constant for each node and on inputs that lie on no node. All is
    computed in float64 by the CPU.

    Args:
        mesh: the mesh; None: the one that the outputs' specs have as their layout.
        ridge: on the numbers of the step, each in units of its effect on the outputs.
        window: rows kept, the oldest going.

    Attributes:
        most_rows: of a fit.
        numbers: of the outputs of these, at most.
        most_tried: forms that a lesson fits, at most, with the last fit to all rows.
    """

    most_rows = 48
    numbers = 60_000
    most_tried = 1
    _tried = 0  # in this lesson

    def __init__(self, mesh: Mesh | None, ridge: float, window: int) -> None:
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
        super().__init__(window, output_map=False)

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
        """The step of what `fitted` gave."""

    def _settled(self, units: dict[str, np.ndarray], count: int) -> bool:
        """Whether the form of the last fit may stay: by the rows that it was chosen with, and their units."""
        now = self._units_now()
        alike = {name: units[name].shape == now[name].shape for name in ("source", "extra", "number_scale")}
        if not all(alike.values()) or (units["source"] != now["source"]).any():
            return False
        near = np.abs(np.log(units["out_scale"] / now["out_scale"])).max() < np.log(2)
        same = (units["constant"] == now["constant"]).all()
        return bool(near and same and count < 2 * self._fit_now()["rows"])

    @abstractmethod
    def fitted(self, mesh: Mesh, rows: Rows, before: dict[str, Any] | None, longer: bool) -> dict[str, Any]:
        """What `step` needs, fitted to rows, in plain values and tensors.

        Args:
            mesh: the mesh.
            rows: to learn from; of forms that is taken which predicts the held-out ones best.
            before: of the last fit, whose form and numbers are begun with; None to choose a form.
            longer: whether richer forms than usual are tried.
        """

    @property
    def knows(self) -> bool:
        """Whether it has learned anything."""
        return self._fit is not None

    @property
    def measured(self) -> dict[str, Any]:
        """What the last fit chose, and its error on rows held out, in units of the box's usual change."""
        return {} if self._fit is None else dict(self._fit["measured"])

    def moments(self, form: Form) -> tuple[Moments, ...]:
        """None: units are those of the rows of the last fit."""
        return ()

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Refuse rows that are not on the mesh."""
        if self._mesh_in_use is None:
            self._mesh_in_use = mesh_of(type(self).__name__, form)
            self.check_mesh(self._mesh_in_use)
        self._arrays()

    def learn_from_window(self, steps: int | None) -> None:
        """Fit the step again, at the first, second, fourth, eighth lesson and so on."""
        if steps is not None or self._lessons >= self._next:
            columns = self._window.spread(self._rows_of_a_fit())
            z, others, y = self._without_rounding(*map(_numpy, columns))
            units, before = self._units(z, others, y), self._fit
            again = before is not None and self._settled(units, len(z))
            if again:  # the numbers are of these units
                units = self._units_now()
            rows = self._read(units, z, others, y)
            self._trials = 0
            report(0, self.most_tried)
            fit = self.fitted(self._mesh_now(), rows, before if again else None, self._longer)
            if again and before is not None:
                worse = fit["measured"]["error"] > WORSE * before["measured"]["error"]
                fit["rows"] = 0 if worse else before["rows"]
            else:
                fit["rows"] = len(z)
            if not math.isfinite(fit["measured"]["error"]):
                raise TangentError(
                    f"{self!r}: expected a step that can be solved, got none after {self._lessons} lessons. "
                    "Take zo.MLPTangent for this box."
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
        rows = self._read(self._units_now(), z, others)
        last = self._run(rows)[-1]
        return self._out(last + self._beside(rows.numbers).reshape(last.shape), scaled_only=False)

    def pushed(self, z: np.ndarray, others: np.ndarray, d: np.ndarray) -> np.ndarray:
        """J d of each row: `(rows, size_in)` to `(rows, size_out)`."""
        rows = self._read(self._units_now(), z, others)
        change = self._read(self._units_now(), d, np.zeros_like(others), changes=True)
        last = self._stepper().tangent(self._run(rows), rows.extras, change.state, change.extras)
        return self._out(last + self._beside(change.numbers, constant=0.0).reshape(last.shape), True)

    def pulled(self, z: np.ndarray, others: np.ndarray, v: np.ndarray) -> np.ndarray:
        """J^T v of each row: `(rows, size_out)` to `(rows, size_in)`."""
        units, rest = self._units_now(), self._fit_now()["rest"]
        rows = self._read(units, z, others)
        v_fields = self._arrays()[1].split(v)[0] * units["out_scale"][:, None]
        state, extras, _ = self._stepper().adjoint(self._run(rows), rows.extras, v_fields)
        numbers = (v_fields.reshape(len(v), -1) @ rest["dual"].numpy().T) @ rest["numbers"].numpy()
        input_arrays = self._arrays()[0]
        fields = np.zeros((len(z), input_arrays.fields, rows.state.shape[2]))
        scale = units["out_scale"][:, None]
        for place, source in enumerate(units["source"].tolist()):
            if source >= 0:
                share = np.where(units["constant"][place] > 0, 0.0, 1.0)
                fields[:, source] += share * state[:, place] / scale[place]
        for place, source in enumerate(units["extra"].tolist()):
            fields[:, source] += extras[:, place] / units["extra_scale"][place]
        numbers = numbers / units["number_scale"]
        return input_arrays.joined(fields, numbers)[:, : z.shape[1]]

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

    def _arrays(self) -> tuple[NodeArrays, NodeArrays]:
        """The arrays of all inputs, those without a gradient last, and of the outputs."""
        inputs = tuple(spec.shape for spec in self._form.inputs) + self._form.others
        input_arrays = NodeArrays(inputs, self._mesh_now())
        output_arrays = NodeArrays(tuple(spec.shape for spec in self._form.outputs), self._mesh_now())
        on_nodes = [len(fields) for fields in output_arrays.of_arrays()]
        if (
            not all(on_nodes)
            or not input_arrays.fields
            or max(output_arrays.fields, input_arrays.fields) > MOST_FIELDS
        ):
            raise ConfigurationError(
                f"{type(self).__name__}: expected outputs, and at least one input, with the "
                f"{self._mesh_now().size} nodes of {self._mesh_now()!r} as an axis and at most "
                f"{MOST_FIELDS} numbers a node, got inputs {list(inputs)} and outputs "
                f"{list(output_arrays.shapes)}. Take zo.MLPTangent, or two boxes."
            )
        return input_arrays, output_arrays

    def _rows_of_a_fit(self) -> int:
        size = sum(sizes(self._form.outputs))
        return max(LEAST_ROWS, min(self.most_rows, self.numbers // size)) * (2 if self._longer else 1)

    @property
    def _rounding(self) -> float:
        """What a number may vary by, over its size, and still be the same, in the rows' own dtype."""
        return ROUNDING * torch.finfo(self._window.columns[0].dtype).eps

    def _without_rounding(
        self, z: np.ndarray, others: np.ndarray, y: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows in which a field, or a number, that varies by rounding alone is one number.

        A fit has each effect in units of its size: a coefficient of rounding would have the size of its
        inverse, and so would the gradient.
        """
        found = []
        for arrays, flat in zip(self._arrays(), (np.concatenate([z, others], axis=1), y), strict=True):
            fields, numbers = arrays.split(flat)
            fields = _steady(fields, max(SAME, self._rounding), (0, 2))
            found.append(arrays.joined(fields, _steady(numbers, self._rounding, (0,))))
        return found[0][:, : z.shape[1]], found[0][:, z.shape[1] :], found[1]

    def _units(self, z: np.ndarray, others: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """What follows what, and by what it is divided, by these rows."""
        input_arrays, output_arrays = self._arrays()
        inputs, numbers = input_arrays.split(np.concatenate([z, others], axis=1))
        goal, _ = output_arrays.split(y)
        places = input_arrays.of_arrays()
        source = np.full(output_arrays.fields, -1)
        follows = sources(self._form.inputs, self._form.outputs)
        for spec, fields, of in zip(self._form.outputs, output_arrays.of_arrays(), follows, strict=True):
            if of is None:
                continue
            most = FAR if self._form.inputs[of].name == spec.name else NEAR
            for field, place in zip(fields, places[of], strict=True):
                change = _size(goal[:, field] - inputs[:, place])
                if change <= most * min(_size(goal[:, field]), _size(inputs[:, place])):
                    source[field] = place
        spread = np.array([_spread(goal[:, field]) for field in range(output_arrays.fields)])
        still = (np.ptp(goal, axis=0) <= STILL * spread[:, None]).astype(float) * (len(goal) > 1)
        bases = [
            goal[:, field] - (inputs[:, source[field]] if source[field] >= 0 else 0)
            for field in range(output_arrays.fields)
        ]
        extra = np.array([place for place in range(input_arrays.fields) if place not in source], dtype=int)
        boundary = still.copy()
        if self._mesh_now().fixed is not None:
            boundary[:] = 0.0
            boundary[:, self._mesh_now().fixed] = 1.0
        return {
            "source": source,
            "extra": extra,
            "out_mean": _mean(goal, (0, 2)),
            "out_scale": spread,
            "change": np.array(
                [
                    _spread(change - LATELY * change.mean(axis=0))
                    if change.std() > max(SAME, self._rounding) * _size(goal[:, field])
                    else 1.0
                    for field, change in enumerate(bases)
                ]
            )
            / spread,
            "constant": still * boundary,
            "prescribed": boundary,
            "level": goal.mean(axis=0),
            "extra_mean": _mean(inputs[:, extra], (0, 2)),
            "extra_scale": np.array([_spread(inputs[:, place]) for place in extra]).reshape(-1),
            "number_mean": _mean(numbers, (0,)),
            "number_scale": _or_one(numbers.std(axis=0) * (np.ptp(numbers, axis=0) > 0)),
        }

    def _read(
        self,
        units: dict[str, np.ndarray],
        z: np.ndarray,
        others: np.ndarray,
        y: np.ndarray | None = None,
        *,
        changes: bool = False,
    ) -> Rows:
        """Rows in standard units; or changes of rows, which have no mean."""
        input_arrays, output_arrays = self._arrays()
        inputs, numbers = input_arrays.split(np.concatenate([z, others], axis=1))
        means = 0.0 if changes else 1.0
        mean, scale = means * units["out_mean"][:, None], units["out_scale"][:, None]
        level = means * (units["level"] - units["out_mean"][:, None]) / scale
        state = np.zeros((len(z), output_arrays.fields, inputs.shape[2]))
        for place, source in enumerate(units["source"].tolist()):
            if source >= 0:
                state[:, place] = (inputs[:, source] - mean[place]) / scale[place]
        state = np.where(units["constant"] > 0, level, state)
        extras = inputs[:, units["extra"]] - means * units["extra_mean"][:, None]
        goal = np.zeros_like(state) if y is None else (output_arrays.split(y)[0] - mean) / scale
        return Rows(
            state,
            extras / units["extra_scale"][:, None],
            (numbers - means * units["number_mean"]) / units["number_scale"],
            goal,
            units["change"],
            units["source"] >= 0,
            (1 - units["prescribed"]).reshape(-1),
            np.arange(len(z)) % HELD_OUT == HELD_OUT - 1,
        )

    def _out(self, fields: np.ndarray, scaled_only: bool) -> np.ndarray:
        units = self._units_now()
        mean = 0.0 if scaled_only else units["out_mean"][:, None]
        return self._arrays()[1].joined(
            mean + units["out_scale"][:, None] * fields, np.zeros((len(fields), 0))
        )

    # What was fitted

    def _mesh_now(self) -> Mesh:
        assert self._mesh_in_use is not None
        return self._mesh_in_use

    def _fit_now(self) -> dict[str, Any]:
        assert self._fit is not None
        return self._fit

    def _units_now(self) -> dict[str, np.ndarray]:
        return {name: values.numpy() for name, values in self._fit_now()["units"].items()}

    def _stepper(self) -> ImplicitStep:
        if self._step is None:
            self._step = self.step(self._mesh_now(), self._fit_now())
        return self._step

    def _run(self, rows: Rows) -> Trajectory:
        return self._stepper().run(rows.state, rows.extras)

    def _rest(self, rows: Rows) -> dict[str, Tensor]:
        """The ridge of what the step leaves, in its dual form."""
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
        rows = self.rows
        z, others = _numpy(rows.z), _numpy(self.others)
        responses = [self._pushed(z, others, _numpy(change)) for change in d]
        return torch.from_numpy(np.stack(responses) if responses else np.zeros((0, *rows.y.shape))).to(d)


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


def _size(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _spread(values: np.ndarray) -> float:
    """The spread of rows and nodes around the mean of all; 1 for what never changes."""
    spread = float(values.std())
    return spread if spread > SAME * max(_size(values), 1e-300) else 1.0


def _steady(values: np.ndarray, rounding: float, axes: tuple[int, ...]) -> np.ndarray:
    """Values, in which what varies along axes by rounding alone is its first number."""
    if not values.size:
        return values
    spread, size = values.std(axis=axes, keepdims=True), np.sqrt(np.square(values).mean(axes, keepdims=True))
    return np.where(spread > rounding * size, values, _first(values, axes))


def _mean(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The mean along axes; of what is one number that number, without the rounding of a sum."""
    first = _first(values, axes)
    return np.where((values == first).all(axis=axes), first.squeeze(axes), values.mean(axis=axes))


def _first(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return values[tuple(slice(1) if axis in axes else slice(None) for axis in range(values.ndim))]


def _or_one(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 1e-12, scale, 1.0)
