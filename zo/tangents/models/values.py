"""`ValueTangent`: what models share that learn a box's values, from the rows that training runs anyway."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.checks import check_count
from zo.errors import ConfigurationError
from zo.tangents.models.model import pulled_back, pushed_forward
from zo.tangents.pairs import CallPairs, sizes
from zo.tangents.tangent import Tangent, sources


@dataclass(frozen=True)
class Form:
    """What the rows of a box look like.

    Attributes:
        inputs: the specs of its differentiable inputs.
        outputs: the specs of its differentiable outputs.
        others: the shapes of the inputs that carry no gradient.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    others: tuple[tuple[int, ...], ...]

    def shapes(self) -> tuple[Any, ...]:
        """All that a model depends on."""
        return [s.shape for s in self.inputs], [s.shape for s in self.outputs], list(self.others)

    def followed(self, z: Tensor) -> Tensor:
        """What each output is if it stays as the input of its name and shape, or zero: `(rows, size_out)`."""
        pieces = z.split(sizes(self.inputs), dim=1)
        found = [
            z.new_zeros(len(z), size) if source is None else pieces[source]
            for source, size in zip(sources(self.inputs, self.outputs), sizes(self.outputs), strict=True)
        ]
        return torch.cat(found, dim=1)

    def plain(self) -> tuple[Any, ...]:
        """In plain values, for a state."""
        return *([(s.name, s.shape) for s in specs] for specs in (self.inputs, self.outputs)), self.others

    @classmethod
    def of(cls, plain: tuple[Any, ...]) -> Form:
        """From `plain`."""
        *arrays, others = plain
        inputs, outputs = (tuple(ArraySpec(name, tuple(shape)) for name, shape in specs) for specs in arrays)
        return cls(inputs, outputs, tuple(tuple(shape) for shape in others))


class ValueTangent(Tangent):
    """J(z) is the derivative of a model that learns what goes into the box and comes out.

    All inputs of the box go into the model, those too that carry no gradient. It needs no probes: the rows that
    training runs anyway are its data; where there are probes it learns from their values too. A row that failed
    is left out.

    A subclass learns (`take`, `learn`), says what it has learned (`values`), and keeps it (`state_dict`).
    """

    learns_from_values = True

    def __init__(self) -> None:
        self._form: Form | None = None

    @property
    @abstractmethod
    def knows(self) -> bool:
        """Whether it has learned anything."""

    @abstractmethod
    def values(self, z: Tensor, others: Tensor) -> Tensor:
        """The outputs as the model has them, with a graph: `(rows, size_in)` to `(rows, size_out)`.

        Args:
            z: the differentiable inputs of a row, end to end.
            others: the other inputs, end to end, `(rows, size)`.
        """

    @abstractmethod
    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Keep rows, which are finite and at least one: inputs, other inputs and outputs, `(rows, size)` each."""

    @abstractmethod
    def learn(self, steps: int | None = None) -> None:
        """Learn from what was taken: so many steps, or those of a step of training."""

    def rows(self) -> tuple[Form, tuple[Tensor, Tensor, Tensor]] | None:
        """What it still has of the rows that it learned from, for another model to begin with; None if nothing."""
        return None

    # What `TangentGradient` asks

    def apply(self, pairs: CallPairs, d: Tensor) -> Tensor:
        """The model's J d; zero before it has learned."""
        if not self.knows:
            return d.new_zeros(*d.shape[:2], sum(sizes(pairs.outputs)))
        return pushed_forward(partial(self.values, others=others_of(pairs)), pairs.z, d)

    def vjp(self, pairs: CallPairs, cotangent: Tensor) -> Tensor:
        """The model's J^T v; zero before it has learned."""
        if not self.knows:
            return torch.zeros_like(pairs.z)
        return pulled_back(partial(self.values, others=others_of(pairs)), pairs.z, cotangent)

    @torch.no_grad()
    def predict_values(self, pairs: CallPairs) -> Tensor | None:
        """The outputs as the model has them; None before it has learned."""
        return None if not self.knows else self.values(pairs.z, others_of(pairs))

    def see(self, pairs: CallPairs) -> None:
        """Keep what the base and the probes asked, and the answers."""
        others, base, probes = others_of(pairs), pairs.alive, pairs.valid
        self._take(
            Form(
                pairs.inputs, pairs.outputs, tuple(tuple(o.shape[1:]) for o in pairs.others if o is not None)
            ),
            torch.cat([pairs.z[base], (pairs.z + pairs.d)[probes]]),
            torch.cat([others[base], others.expand(len(pairs.d), *others.shape)[probes]]),
            torch.cat([pairs.y[base], (pairs.y + pairs.response)[probes]]),
        )

    def observe(self, pairs: CallPairs) -> None:
        """Learn; what the pairs show, `see` has seen."""
        if self._form is not None:
            self.learn()

    def fit(
        self,
        inputs: Tensor | Sequence[Tensor],
        outputs: Tensor | Sequence[Tensor],
        steps: int = 400,
        box: BlackBoxFunction | None = None,
    ) -> None:
        """Learn from answers that are there already.

        Args:
            inputs: all inputs of the box in its order, `(rows, *shape)`; a tensor if it is one.
            outputs: the box's differentiable answers, `(rows, *shape)`; a tensor if it is one.
            steps: of learning.
            box: whose answers they are; None for one whose inputs are all differentiable. Rows that are not
                finite are left out.

        Raises:
            ConfigurationError: the arrays do not fit each other or the box, or no row is finite.
            TangentError: the loss became infinite or NaN.
        """
        name = f"{type(self).__name__}.fit"
        check_count(name, "steps", steps)
        given, answers = ([t] if isinstance(t, Tensor) else list(t) for t in (inputs, outputs))
        if (
            not given
            or not answers
            or len({t.shape[:1] for t in (*given, *answers)}) != 1
            or not given[0].ndim
        ):
            raise ConfigurationError(
                f"{name}: expected inputs and outputs with equally many rows first, got shapes "
                f"{[tuple(t.shape) for t in given]} and {[tuple(t.shape) for t in answers]}. Give what went into "
                "the box and what came out."
            )
        asked = (
            box.inputs if box else tuple(ArraySpec(f"x{n}", tuple(t.shape[1:])) for n, t in enumerate(given))
        )
        told = (
            box.outputs
            if box
            else tuple(ArraySpec(f"y{n}", tuple(t.shape[1:])) for n, t in enumerate(answers))
        )
        told = tuple(spec for spec in told if spec.differentiable)
        for kind, specs, arrays in (("inputs", asked, given), ("outputs", told, answers)):
            if [spec.shape for spec in specs] != [tuple(array.shape[1:]) for array in arrays]:
                raise ConfigurationError(
                    f"{name}, {kind}: expected rows of shapes {[spec.shape for spec in specs]}, got "
                    f"{[tuple(array.shape[1:]) for array in arrays]}. Give all of the box's, in its order."
                )
        moving = [_flat(t) for spec, t in zip(asked, given, strict=True) if spec.differentiable]
        fixed = [_flat(t) for spec, t in zip(asked, given, strict=True) if not spec.differentiable]
        z = torch.cat(moving, dim=1).detach()
        form = Form(
            tuple(spec for spec in asked if spec.differentiable),
            told,
            tuple(spec.shape for spec in asked if not spec.differentiable),
        )
        self._take(
            form, z, torch.cat([z[:, :0], *fixed], dim=1), torch.cat([_flat(t) for t in answers], dim=1)
        )
        if not self.knows and self._form is None:
            raise ConfigurationError(
                f"{name}: expected rows with finite numbers, got none among {len(z)}. See why the box fails."
            )
        self.learn(steps)

    def start(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Learn from rows that another model has seen, see `rows`."""
        self._take(form, z, others, y)
        self.learn()

    def _take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Take the rows that are finite; refuse another box's."""
        if self._form is not None and form.shapes() != self._form.shapes():
            raise ConfigurationError(
                f"{self!r}: expected rows of shapes {self._form.shapes()}, as it has learned from, got "
                f"{form.shapes()}. A tangent stands for one box: give each its own."
            )
        z, others, y = (t.detach().to(torch.promote_types(z.dtype, torch.float32)) for t in (z, others, y))
        finite = z.isfinite().all(dim=1) & others.isfinite().all(dim=1) & y.isfinite().all(dim=1)
        if bool(finite.any()):
            self._form = form
            self.take(form, z[finite], others[finite], y[finite])


def others_of(pairs: CallPairs) -> Tensor:
    """Inputs that carry no gradient, end to end: `(rows, size)`."""
    return torch.cat([pairs.z[:, :0], *(_flat(o).to(pairs.z) for o in pairs.others if o is not None)], dim=1)


def _flat(array: Tensor) -> Tensor:
    return array.reshape(len(array), -1)
