"""`AlikeTangent`: for boxes of alike places, such as columns, cells or agents: each place is a row.

A network that is asked for each of n alike places answers n times as much about the same response. A model of
all places at once knows nothing of that: it has n times as many numbers, of n times fewer rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from blackbox import ArraySpec, Grid, Mesh
from zo.tangents.models.automatic import AutoTangent, as_call
from zo.tangents.models.kernel import KernelTangent
from zo.tangents.models.structure import Specs
from zo.tangents.models.values import Arrays, as_tensors, none_finite, refuse_row_counts, refuse_shapes
from zo.tangents.models.view import ViewTangent
from zo.tangents.record.pairs import CallPairs, sizes, without_copies

FEWEST = 4  # places that are looked for: fewer are components of a field; decision 238
# decision 217:
MOST = 64  # numbers of a row that a kernel learns, such as those of a place and of its neighbours


class AlikeTangent(ViewTangent):
    """The derivative of a model of one place, which is the same at all places.

    The model of a place is shown three things: the box's inputs at the place; the mean of the two places
    beside it, for a state that the box hands on (the last place is beside the first); and the position of the
    place, as a point of a circle, for places that differ by a forcing. It is a `KernelTangent` where these
    are at most 64 numbers, else an `AutoTangent`.

    Args:
        specs: the specs of the box.
        axis: the axis of its arrays that counts the places; an input without derivative that has another
            length there is shown to each place as a whole.
        seed: the seed of all draws.

    Attributes:
        model: the model of a place.
    """

    def __init__(self, specs: Specs, axis: int = 0, seed: int = 0) -> None:
        self.axis, self._specs = axis, specs
        learned = [spec for spec in specs.outputs if spec.learned]
        self._count = learned[0].shape[axis]
        inputs = tuple(spec for spec in specs.inputs if spec.differentiable)
        self._states = _states(inputs, learned)
        of_place = self._inputs(inputs)
        if sum(sizes(of_place)) <= MOST:
            super().__init__(KernelTangent())
        else:
            super().__init__(AutoTangent(Specs(of_place, tuple(map(self._of_place, learned))), seed))

    def fit(
        self,
        inputs: Arrays,
        outputs: Arrays,
        steps: int = 400,
    ) -> None:
        """Let the model learn from answers of the box that are there already, each place of each row.

        Args:
            inputs: all inputs of the box in its order, `(rows, *shape)`; an array if it is one.
            outputs: the box's differentiable answers, `(rows, *shape)`; an array if it is one.
            steps: the number of learning steps, for a model that learns in steps.

        Raises:
            ConfigurationError: the arrays do not fit each other or the box, or no row is finite.
        """
        arrays, answers = map(as_tensors, (inputs, outputs))
        answers, name = without_copies(self._specs.outputs, answers), f"{type(self).__name__}.fit"
        refuse_row_counts(name, arrays, answers)
        refuse_shapes(name, self._specs, arrays, answers)
        rows = as_call(self._specs, arrays, answers)
        if not bool(rows.alive.any()):
            raise none_finite(name, len(rows.z))
        self.see(rows)
        self.learn(steps)

    def shown(self, rows: CallPairs) -> CallPairs:
        """Rows of a box as rows of its places."""
        count, has_answers = len(rows.z), len(rows.y) > 0
        scale = rows.response_scale[None]
        return CallPairs(
            self._inputs(rows.inputs),
            tuple(map(self._of_place, rows.outputs)),
            self.gathered(rows, rows.z),
            self.parts(rows, rows.y) if has_answers else rows.y,
            rows.alive.repeat_interleave(self._count),
            self.others(rows.others, count),
            self.parts(rows, scale).square().mean(dim=0).sqrt(),
        )

    def gathered(self, rows: CallPairs, z: Tensor) -> Tensor:
        """Gather the inputs of each place: `(rows, size_in)` to `(rows * places, numbers)`; linear in z."""
        by_input = self._split(rows.inputs, z)
        near = [(by_input[n].roll(1, 1) + by_input[n].roll(-1, 1)) / 2 for n in self._states]
        return torch.cat([*by_input, *near], dim=2).flatten(0, 1)

    def scattered(self, rows: CallPairs, v: Tensor) -> Tensor:
        """The transpose of `gathered`."""
        specs = rows.inputs
        widths = [math.prod(self._rest(spec)) for spec in specs]
        parts = v.view(-1, self._count, v.shape[1]).split(
            [*widths, *(widths[n] for n in self._states)], dim=2
        )
        by_input = list(parts[: len(specs)])
        for n, near in zip(self._states, parts[len(specs) :], strict=True):
            by_input[n] = by_input[n] + (near.roll(1, 1) + near.roll(-1, 1)) / 2
        return self._joined(specs, by_input)

    def parts(self, rows: CallPairs, y: Tensor) -> Tensor:
        """Outputs by place: `(rows, size)` to `(rows * places, size of a place)`."""
        return torch.cat(self._split(rows.outputs, y), dim=2).flatten(0, 1)

    def answers(self, rows: CallPairs, values: Tensor) -> Tensor:
        """The inverse of `parts`: the outputs of all places."""
        widths = [math.prod(self._rest(spec)) for spec in rows.outputs]
        by_place = values.view(-1, self._count, values.shape[1])
        return self._joined(rows.outputs, by_place.split(widths, dim=2))

    def others(self, others: Sequence[Tensor | None], count: int) -> tuple[Tensor | None, ...]:
        """Gather each place's inputs without gradient: its part of each array, or all, and its position."""
        angle = torch.arange(self._count) * (2 * math.pi / self._count)
        where = torch.stack([angle.cos(), angle.sin()], dim=1)
        parts: list[Tensor | None] = [None] * (sum(array is None for array in others) + len(self._states))
        for array in others:
            if array is None:
                continue
            if array.ndim > self.axis + 1 and array.shape[self.axis + 1] == self._count:
                parts.append(array.movedim(self.axis + 1, 1).flatten(0, 1))
            else:
                parts.append(array.repeat_interleave(self._count, dim=0))
            where = where.to(array.device)
        return *parts, where.repeat(count, 1)

    def _inputs(self, inputs: Sequence[ArraySpec]) -> tuple[ArraySpec, ...]:
        specs = [self._of_place(spec) for spec in inputs]
        return *specs, *(replace(specs[n], name=f"{specs[n].name}_near") for n in self._states)

    def _of_place(self, spec: ArraySpec) -> ArraySpec:
        return ArraySpec(spec.name, self._rest(spec), spec.dtype, layout=None)

    def _rest(self, spec: ArraySpec) -> tuple[int, ...]:
        return *spec.shape[: self.axis], *spec.shape[self.axis + 1 :]

    def _split(self, specs: Sequence[ArraySpec], flat: Tensor) -> list[Tensor]:
        """Arrays by place, `(rows, places, size)` each."""
        pieces = zip(specs, flat.split(sizes(tuple(specs)), dim=1), strict=True)
        return [
            piece.reshape(-1, *spec.shape).movedim(self.axis + 1, 1).flatten(2)
            if len(spec.shape) > 1
            else piece[:, :, None]
            for spec, piece in pieces
        ]

    def _joined(self, specs: Sequence[ArraySpec], parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `_split`."""
        arrays = [
            part.reshape(len(part), self._count, *self._rest(spec)).movedim(1, self.axis + 1).flatten(1)
            for spec, part in zip(specs, parts, strict=True)
        ]
        return torch.cat(arrays, dim=1)

    def __repr__(self) -> str:
        """The model of a place, and how many there are."""
        return f"{type(self).__name__}({self.model!r}; {self._count} places on axis {self.axis})"


def places_found(specs: Specs) -> int | None:
    """Return the first axis on which all arrays with a derivative have as many places; None for none.

    Cells of a grid or mesh that is declared are none, nor are three components of a field. It is for boxes
    whose places together have more than 64 numbers as inputs, and each at most as many.
    """
    inputs = tuple(spec for spec in specs.inputs if spec.learned)
    carry, numbers = [*inputs, *(spec for spec in specs.outputs if spec.learned)], sum(sizes(inputs))
    shapes = [spec.shape for spec in carry]
    laid_out = any(isinstance(spec.layout, Grid | Mesh) for spec in carry)
    if numbers <= MOST or laid_out or min(map(len, shapes)) < 2:
        return None
    for axis, counts in enumerate(zip(*shapes, strict=False)):
        if len(set(counts)) == 1 and counts[0] >= FEWEST and numbers <= MOST * counts[0]:
            return axis
    return None


def _states(inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> list[int]:
    """Places of the inputs that are handed on: an output has their name and shape."""
    answers = {(spec.name, spec.shape) for spec in outputs}
    return [place for place, spec in enumerate(inputs) if (spec.name, spec.shape) in answers]
