"""`ValueTangent`: the common part of models that learn a box's values, from rows that training runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import as_tensor
from blackbox.checks import check_count
from blackbox.failures import last_cause
from zo.errors import ConfigurationError
from zo.tangents.models.at_rows import ModelAt, at_calls, others_of
from zo.tangents.models.form import Form
from zo.tangents.models.maps.behind import MapBehind
from zo.tangents.models.prior import Below, Prior
from zo.tangents.models.row_window import Moments, RowWindow
from zo.tangents.models.structure import Specs
from zo.tangents.record.pairs import CallPairs, without_copies
from zo.tangents.tangent import Linearised, Tangent, Unknown

Arrays: TypeAlias = Any
"""An array, or a list or tuple of arrays: those of NumPy or torch, rows first."""


class ValueTangent(Tangent):
    """The derivative of a model that learns the box's outputs from its inputs.

    All inputs of the box go into the model, also the ones without a gradient. The rows that training runs
    anyway are its data. A row that failed is left out.

    The model is y = W o N. N is the model of a subclass, which learns from rows (`take`, `learn`) and gives
    values (`within`). W is a linear `OutputMap`, fitted to the last rows now and then.

    The map takes its units from `_moments`, which `take` fills with each row: mean and spread of inputs,
    other inputs, outputs, and y - `carried(z)`. A tangent without a map may leave them empty; then its
    `moments` has to give none. A model that keeps sums instead of rows, as `StencilTangent` does, leaves the
    window to the map; without a map `window=1` is enough.

    Args:
        window: rows kept, the oldest going.
        output_map: whether there is a W.
        prior: a differentiable model of the box, under this one, which learns y - prior(x) and answers with
            the sum. It is a function of torch tensors that takes all inputs of the box, a module, a box that
            answers with a derivative, or a tangent that knows values.

    Attributes:
        prior: as `zo.tangents.models.prior.Prior`, which counts its rows; None without.
    """

    prior: Prior | None = None
    _most_bytes: int | None = None  # of the window; None for the usual

    def __init__(self, window: int, output_map: bool, prior: Below | None = None) -> None:
        check_count(type(self).__name__, "window", window)
        self.output_map = output_map
        self.over(prior)
        self._forget(window)

    def over(self, prior: Below | Prior | None) -> Self:
        """Have a prior under it from now on, before it has seen anything; the tangent itself."""
        self.prior = Prior.of(type(self).__name__, prior)
        return self

    def _forget(self, window: int) -> None:
        """Know nothing."""
        self._form = Form((), (), ())  # until there are rows
        self._stays = torch.empty(0)  # 1 for outputs that are modelled as their input and a change, else 0
        self._window = RowWindow(window, self._most_bytes)
        self._moments: tuple[Moments, ...] = ()  # of inputs, others, outputs, and what outputs add to inputs
        self._map = MapBehind()
        self._lessons = 0  # calls of `learn`

    @property
    @abstractmethod
    def knows(self) -> bool:
        """True if it has learned anything."""

    @abstractmethod
    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """N: the outputs as the model has them, with a graph: `(rows, size_in)` to `(rows, size_out)`.

        Args:
            z: the differentiable inputs of a row, end to end.
            others: the other inputs, end to end, `(rows, size)`.
        """

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Look at rows, at least one and all finite, that are in the window now; these go into `_moments`.

        Args:
            form: the specs of the box's rows, the same in all calls.
            z: the differentiable inputs of each row, end to end, `(rows, size_in)`.
            others: the other inputs, end to end, `(rows, size)`.
            y: the differentiable outputs, `(rows, size_out)`.
        """
        self._moments = self._moments or self.moments(form)
        for moments, values in zip(self._moments, (z, others, y, y - self.carried(z)), strict=True):
            moments.add(values)

    def values(self, z: Tensor, others: Tensor) -> Tensor:
        """W o N, as `within`: what was learned, without a prior below it, which `at(rows).values` has."""
        return self._map(self.within(z, others))

    @abstractmethod
    def learn_from_window(self, steps: int | None) -> None:
        """Learn from what was taken: so many steps, or those of a step of training."""

    def carried(self, z: Tensor) -> Tensor:
        """Return the outputs before the modelled change: `(rows, size_in)` to `(rows, size_out)`.

        The input of an output's name and shape; zero without one, or where the first rows showed that the
        box does not move it on: its distance from the output is larger than the output, as in other units.
        They are float64 where the box's answers are: an offset takes the digits of float32.
        """
        return self._form.followed(z) * self._stays.to(z.device)

    def keep_within(self, most_bytes: int) -> None:
        """Have a smaller window, or a larger one, unless rows are in it."""
        if not self._window.seen:
            self._most_bytes = self._window.most_bytes = most_bytes

    def rows(self) -> tuple[Form, tuple[Tensor, Tensor, Tensor]] | None:
        """The window, if anything is in it, for another model's `start`."""
        if not self._form:
            return None
        z, others, y = self._window.spread(self._window.rows)
        if self.prior is not None:
            y = y + self.prior.flat(self._form, z, others)
        return self._form, (z, others, y)

    def kept(self) -> dict[str, Any]:
        """Save the part of the state that all models have."""
        return {
            "form": self._form.plain(),
            "stays": self._stays.clone(),
            "window": self._window.state_dict(),
            "moments": [moments.state_dict() for moments in self._moments],
            "map": self._map.state_dict(),
            "lessons": self._lessons,
            **({} if self.prior is None else {"prior": self.prior.state_dict()}),
        }

    def load_kept(self, state: dict[str, Any]) -> None:
        """Go on where `kept` was taken."""
        self._form, self._stays = Form.of(state["form"]), state["stays"].clone()
        device = state["window"]["kept"][0].device
        self._moments = self.moments(self._form)
        for moments, entry in zip(self._moments, state["moments"], strict=True):
            moments.load_state_dict(entry, device)
        self._window.load_state_dict(state["window"], device)
        self._map.load_state_dict(state["map"], self._form, device)
        self._lessons = state["lessons"]
        if self.prior is not None and "prior" in state:
            self.prior.load_state_dict(state["prior"])

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """Say which numbers of arrays of these shapes, end to end, share a unit; None: each has its own."""
        return None

    def moments(self, form: Form) -> tuple[Moments, ...]:
        """New ones: of inputs, others, outputs, and what outputs add to inputs."""
        inputs, outputs = ([spec.shape for spec in specs] for specs in (form.inputs, form.outputs))
        return tuple(Moments(self.groups(form, shapes)) for shapes in (inputs, form.others, outputs, outputs))

    def map_if_due(self) -> None:
        """Fit W to N as it is, unless that was done lately."""
        if self.output_map:
            unit = self._moments[2].scale().to(self._window.columns[2])
            self._map.fit_if_due(self._lessons, self._form, self.ends, self._window, unit, self.within)

    @property
    def ends(self) -> tuple[bool, ...] | None:
        """The axes of the outputs' grid whose ends meet; None where outputs do not lie on one."""
        return None

    # The protocol of a tangent

    def at(self, rows: CallPairs) -> Linearised:
        """The model at these rows; nothing is known before it has learned."""
        return self.at_each([rows])[0]

    def at_each(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """The model at each call; it is asked once for the values of all."""
        linearised: list[Linearised] = [Unknown(rows) for rows in calls]
        if self.knows:
            linearised = self.known_at(calls)
        return linearised if self.prior is None else self.prior.over(calls, linearised)

    def known_at(self, calls: Sequence[CallPairs]) -> list[Linearised]:
        """Return the model at calls, once it has learned."""
        together = at_calls(calls, self.values)
        return [ModelAt(rows, self.values, together, number) for number, rows in enumerate(calls)]

    def see(self, rows: CallPairs) -> None:
        """Keep what was asked, and the answers, less the prior's."""
        rows = rows if self.prior is None else self.prior.rest(rows)
        alive = rows.alive.nonzero(as_tuple=True)  # a mask would be waited for at each use
        context = tuple(tuple(array.shape[1:]) for array in rows.others if array is not None)
        self._take(
            Form(rows.inputs, rows.outputs, context),
            rows.z[alive],
            others_of(rows)[alive],
            rows.y[alive],
        )

    def learn(self, steps: int | None = None) -> None:
        """Learn from the window, if anything is in it."""
        if self._form:
            self.learn_from_window(steps)

    def fit(
        self,
        inputs: Arrays,
        outputs: Arrays,
        steps: int = 400,
        box: BlackBoxFunction | Specs | None = None,
    ) -> None:
        """Learn from answers that are there already.

        Args:
            inputs: all inputs of the box in its order, `(rows, *shape)`, of torch or NumPy; an array if it is
                one.
            outputs: the box's differentiable answers, `(rows, *shape)`; an array if it is one.
            steps: the number of learning steps, for models that learn in steps.
            box: the box whose answers they are; may be left out where there is one input and one output.
                Rows that are not finite are left out.

        Raises:
            ConfigurationError: the arrays do not fit each other or the box, there are several and no box, or
                no row is finite.
            TangentError: the loss became infinite or NaN.
        """
        name = f"{type(self).__name__}.fit"
        check_count(name, "steps", steps)
        asked, answers = map(as_tensors, (inputs, outputs))
        refuse_row_counts(name, asked, answers)
        if box is None and len(asked) + len(answers) > 2:  # names say which output follows which input
            raise ConfigurationError(
                f"{name}: expected the box where there are several inputs or outputs, got {len(asked)} and "
                f"{len(answers)} without it. Add box=, for its names and for what carries no gradient."
            )
        input_specs = box.inputs if box else (ArraySpec("x", tuple(asked[0].shape[1:])),)
        answers = answers if box is None else without_copies(box.outputs, answers)
        output_specs = box.outputs if box else (ArraySpec("y", tuple(answers[0].shape[1:])),)
        output_specs = tuple(spec for spec in output_specs if spec.learned)
        refuse_shapes(name, Specs(input_specs, output_specs), asked, answers)
        variables = [_flat(t) for spec, t in zip(input_specs, asked, strict=True) if spec.differentiable]
        context = [_flat(t) for spec, t in zip(input_specs, asked, strict=True) if spec.context]
        z, y = torch.cat(variables, dim=1), torch.cat([_flat(t) for t in answers], dim=1)
        form = Form(
            tuple(spec for spec in input_specs if spec.differentiable),
            output_specs,
            tuple(spec.shape for spec in input_specs if spec.context),
        )
        others = torch.cat([z[:, :0], *context], dim=1)
        if self.prior is not None:
            self.prior.know(input_specs)
        self._take(form, z, others, self._left(form, z, others, y))
        if not self._form:
            raise none_finite(name, len(z))
        self.learn(steps)

    def start(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Learn from rows that another model has seen, see `rows`."""
        self._take(form, z, others, self._left(form, z, others, y))
        self.learn()

    def _left(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> Tensor:
        """Return the part of answers that is left to learn, `(rows, size_out)`."""
        return y if self.prior is None else y - self.prior.flat(form, z, others)

    def _take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Take the rows that are finite; refuse another box's."""
        if self._form and form.shapes() != self._form.shapes():
            raise ConfigurationError(
                f"{self!r}: expected rows of shapes {self._form.shapes()}, as it has learned from, got "
                f"{form.shapes()}. A tangent stands for one box: give each its own."
            )
        dtype = torch.promote_types(torch.promote_types(z.dtype, y.dtype), torch.float32)
        z, others, y = (t.detach().to(dtype) for t in (z, others, y))
        finite = z.isfinite().all(dim=1) & others.isfinite().all(dim=1) & y.isfinite().all(dim=1)
        rows = finite.nonzero().flatten()  # a mask would be waited for at each use
        if len(rows):
            z, others, y = z[rows], others[rows], y[rows]
            if not self._form:
                self._stays = self._which_stay(form, z, y)
            self._form = form
            self._window.add(z, others, y)
            self.take(form, z, others, y)

    def _which_stay(self, form: Form, z: Tensor, y: Tensor) -> Tensor:
        groups = self.groups(form, [spec.shape for spec in form.outputs])
        groups = torch.arange(y.shape[1]) if groups is None else groups
        step, size = (
            torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add(0, groups, squares.cpu())
            for squares in ((values.double().square().sum(dim=0)) for values in (y - form.followed(z), y))
        )
        return (step <= size).to(y)[groups.to(y.device)]


def as_tensors(arrays: Arrays) -> list[Tensor]:
    """An array of NumPy or torch, or several, as tensors."""
    several = [arrays] if isinstance(arrays, Tensor | np.ndarray) else list(arrays)
    return [as_tensor(array) for array in several]


def refuse_row_counts(name: str, asked: Sequence[Tensor], answers: Sequence[Tensor]) -> None:
    """Refuse earlier answers that are not rows of equally many.

    Raises:
        ConfigurationError: there are no inputs or no outputs, or the counts of their rows differ.
    """
    if not asked or not answers or len({t.shape[:1] for t in (*asked, *answers)}) != 1 or not asked[0].ndim:
        raise ConfigurationError(
            f"{name}: expected inputs and outputs with equally many rows first, got shapes "
            f"{[tuple(t.shape) for t in asked]} and {[tuple(t.shape) for t in answers]}. Give what went "
            "into the box and what came out."
        )


def refuse_shapes(name: str, specs: Specs, asked: Sequence[Tensor], answers: Sequence[Tensor]) -> None:
    """Refuse earlier answers of other shapes than the box's inputs and learned outputs.

    Raises:
        ConfigurationError: shapes differ.
    """
    learned = [spec for spec in specs.outputs if spec.learned]
    for kind, expected, arrays in (("inputs", specs.inputs, asked), ("outputs", learned, answers)):
        if [spec.shape for spec in expected] != [tuple(array.shape[1:]) for array in arrays]:
            raise ConfigurationError(
                f"{name}, {kind}: expected rows of shapes {[spec.shape for spec in expected]}, got "
                f"{[tuple(array.shape[1:]) for array in arrays]}. Give all of the box's, in its order."
            )


def none_finite(name: str, count: int) -> ConfigurationError:
    """Return the error for earlier answers without a row that is finite."""
    return ConfigurationError(
        f"{name}: expected rows with finite numbers, got none among {count}. See why the box fails."
        f"{last_cause()}"
    )


def _flat(array: Tensor) -> Tensor:
    return array.reshape(len(array), array.shape[1:].numel())
