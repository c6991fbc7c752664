"""Rows as a model on a mesh sees them: fields on nodes and numbers beside them, in standard units."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from blackbox import Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.form import Form
from zo.tangents.tangent import sources

MOST_FIELDS = 16
FAR, NEAR = 3.0, 0.5  # of a field's size: a state moves on by less; NEAR where its name is another
HELD_OUT = 4  # one row in so many shows how good a form is
LOOSE = 0.1  # the ridge of what is the same in all rows, and of numbers that lie on no node
LATELY = 0.99  # of what is the same in all rows does not count as change: values do not need a model for it
STILL = 1e-9  # of a field's spread: a node whose output varies less is prescribed
SAME = 1e-12  # of a field's size, or more where its dtype is coarser: what varies less is the same everywhere
Units = dict[str, np.ndarray]  # see `RowsOnMesh.units`


@dataclass(frozen=True)
class NodeArrays:
    """The arrays of a row, and the mesh on whose nodes some of them lie.

    Attributes:
        shapes: the shapes of the arrays, end to end in a row.
        mesh: the mesh on whose nodes they lie.
    """

    shapes: tuple[tuple[int, ...], ...]
    mesh: Mesh

    @property
    def fields(self) -> int:
        """The count of numbers on a node."""
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
        change: `(fields,)`, the spread of the outputs' change of the state.
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
        """Return the matrix by which a ridge of constant and numbers smooths residuals: `(rows, rows)`."""
        kernel = 1 + self.numbers @ self.numbers.T
        return np.linalg.solve(kernel + LOOSE * np.eye(len(kernel)), kernel)

    def explained(self, others: Rows, residual: np.ndarray) -> np.ndarray:
        """Predict these rows' residuals by a ridge of constant and numbers, fitted to others' residuals."""
        kernel = 1 + others.numbers @ others.numbers.T
        weights = np.linalg.solve(kernel + LOOSE * np.eye(len(kernel)), residual)
        return (1 + self.numbers @ others.numbers.T) @ weights

    def weight(self) -> np.ndarray:
        """1 over the change at free nodes: `(fields, nodes)`."""
        return self.free.reshape(self.goal.shape[1:]) / self.change[:, None]


@dataclass(frozen=True)
class RowsOnMesh:
    """The reading of a box's rows as fields on the nodes of a mesh.

    Attributes:
        form: the specs of the box's rows.
        inputs: the arrays of all inputs; inputs without a gradient come last.
        outputs: the arrays of the outputs.
    """

    form: Form
    inputs: NodeArrays
    outputs: NodeArrays

    @classmethod
    def of(cls, who: str, form: Form, mesh: Mesh) -> RowsOnMesh:
        """The reading of a form.

        Args:
            who: the model, for messages.
            form: the specs of the box's rows.
            mesh: the mesh on whose nodes fields lie.

        Raises:
            ConfigurationError: an output does not lie on the mesh, or no input does, or a node has too many
                numbers.
        """
        inputs = NodeArrays(tuple(spec.shape for spec in form.inputs) + form.others, mesh)
        outputs = NodeArrays(tuple(spec.shape for spec in form.outputs), mesh)
        on_nodes = [len(fields) for fields in outputs.of_arrays()]
        if not all(on_nodes) or not inputs.fields or max(outputs.fields, inputs.fields) > MOST_FIELDS:
            raise ConfigurationError(
                f"{who}: expected outputs, and at least one input, with the {mesh.size} nodes of {mesh!r} as "
                f"an axis and at most {MOST_FIELDS} numbers a node, got inputs {list(inputs.shapes)} and "
                f"outputs {list(outputs.shapes)}. Take zo.tangents.MLPTangent, or two boxes."
            )
        return cls(form, inputs, outputs)

    def without_rounding(
        self, z: np.ndarray, others: np.ndarray, y: np.ndarray, rounding: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows in which a field, or a number, that varies by rounding alone is one number.

        A fit has each effect in units of its size: a coefficient of rounding would have the size of its
        inverse, and so would the gradient.

        Args:
            z: `(rows, size_in)`.
            others: `(rows, size)`, inputs without a gradient.
            y: `(rows, size_out)`.
            rounding: how far a number may vary, over its size, and count as constant.
        """
        rows = []
        inputs = np.concatenate([z, others], axis=1)
        for arrays, flat in ((self.inputs, inputs), (self.outputs, y)):
            fields, numbers = arrays.split(flat)
            fields = _steady(fields, max(SAME, rounding), (0, 2))
            rows.append(arrays.joined(fields, _steady(numbers, rounding, (0,))))
        return rows[0][:, : z.shape[1]], rows[0][:, z.shape[1] :], rows[1]

    def units(self, z: np.ndarray, others: np.ndarray, y: np.ndarray, rounding: float) -> Units:
        """Find from these rows the input that each output follows, and the units to divide arrays by.

        Args:
            z: `(rows, size_in)`.
            others: `(rows, size)`, inputs without a gradient.
            y: `(rows, size_out)`.
            rounding: see `without_rounding`.
        """
        inputs, numbers = self.inputs.split(np.concatenate([z, others], axis=1))
        goal, _ = self.outputs.split(y)
        places = self.inputs.of_arrays()
        source = np.full(self.outputs.fields, -1)
        follows = sources(self.form.inputs, self.form.outputs)
        for spec, fields, of in zip(self.form.outputs, self.outputs.of_arrays(), follows, strict=True):
            if of is None:
                continue
            most = FAR if self.form.inputs[of].name == spec.name else NEAR
            for field, place in zip(fields, places[of], strict=True):
                change = _size(goal[:, field] - inputs[:, place])
                if change <= most * min(_size(goal[:, field]), _size(inputs[:, place])):
                    source[field] = place
        spread = np.array([_spread(goal[:, field]) for field in range(self.outputs.fields)])
        still = (np.ptp(goal, axis=0) <= STILL * spread[:, None]).astype(float) * (len(goal) > 1)
        bases = [
            goal[:, field] - (inputs[:, source[field]] if source[field] >= 0 else 0)
            for field in range(self.outputs.fields)
        ]
        extra = np.array([place for place in range(self.inputs.fields) if place not in source], dtype=int)
        boundary = still.copy()
        if self.inputs.mesh.fixed is not None:
            boundary[:] = 0.0
            boundary[:, self.inputs.mesh.fixed] = 1.0
        return {
            "source": source,
            "extra": extra,
            "out_mean": _mean(goal, (0, 2)),
            "out_scale": spread,
            "change": np.array(
                [
                    _spread(change - LATELY * change.mean(axis=0))
                    if change.std() > max(SAME, rounding) * _size(goal[:, field])
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

    def read(
        self,
        units: Units,
        z: np.ndarray,
        others: np.ndarray,
        y: np.ndarray | None = None,
        *,
        changes: bool = False,
    ) -> Rows:
        """Rows in standard units; or changes of rows, which have no mean."""
        inputs, numbers = self.inputs.split(np.concatenate([z, others], axis=1))
        means = 0.0 if changes else 1.0
        mean, scale = means * units["out_mean"][:, None], units["out_scale"][:, None]
        level = means * (units["level"] - units["out_mean"][:, None]) / scale
        state = np.zeros((len(z), self.outputs.fields, inputs.shape[2]))
        for place, source in enumerate(units["source"].tolist()):
            if source >= 0:
                state[:, place] = (inputs[:, source] - mean[place]) / scale[place]
        state = np.where(units["constant"] > 0, level, state)
        extras = inputs[:, units["extra"]] - means * units["extra_mean"][:, None]
        goal = np.zeros_like(state) if y is None else (self.outputs.split(y)[0] - mean) / scale
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

    def pulled(self, units: Units, state: np.ndarray, extras: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The adjoint of `read`: cotangents of rows of inputs from cotangents of its results."""
        fields = np.zeros((len(state), self.inputs.fields, state.shape[2]))
        for place, source in enumerate(units["source"].tolist()):
            if source >= 0:
                share = np.where(units["constant"][place] > 0, 0.0, 1.0)
                fields[:, source] += share * state[:, place] / units["out_scale"][place]
        for place, source in enumerate(units["extra"].tolist()):
            fields[:, source] += extras[:, place] / units["extra_scale"][place]
        return self.inputs.joined(fields, numbers / units["number_scale"])

    def out(self, units: Units, fields: np.ndarray, scaled_only: bool) -> np.ndarray:
        """Outputs `(rows, size_out)` of fields in standard units; changes of fields are scaled only."""
        mean = 0.0 if scaled_only else units["out_mean"][:, None]
        return self.outputs.joined(mean + units["out_scale"][:, None] * fields, np.zeros((len(fields), 0)))


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
    """The mean along axes; a constant is returned itself, without the rounding of a sum."""
    first = _first(values, axes)
    return np.where((values == first).all(axis=axes), first.squeeze(axes), values.mean(axis=axes))


def _first(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return values[tuple(slice(1) if axis in axes else slice(None) for axis in range(values.ndim))]


def _or_one(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 1e-12, scale, 1.0)
