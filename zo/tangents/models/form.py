"""`Form`: the specs of a box's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from blackbox import ArraySpec, Grid
from zo.errors import ConfigurationError
from zo.tangents.models.maps.lattice import Lattice, space_of
from zo.tangents.record.pairs import sizes
from zo.tangents.tangent import followed, followed_back

ROW_NUMBERS = 2**24  # of outputs that are looked at where rows are gathered: of large states fewer rows


@dataclass(frozen=True)
class Form:
    """The specs of a box's rows, as a model sees them.

    Attributes:
        inputs: the specs of its differentiable inputs.
        outputs: the specs of its differentiable outputs.
        others: the shapes of the inputs that carry no gradient.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    others: tuple[tuple[int, ...], ...]

    def __bool__(self) -> bool:
        """True if there are arrays: before the first rows there are none."""
        return bool(self.outputs)

    def shapes(self) -> tuple[Any, ...]:
        """All that a model depends on."""
        return [s.shape for s in self.inputs], [s.shape for s in self.outputs], list(self.others)

    def followed(self, z: Tensor) -> Tensor:
        """Return each output as if it stayed the input of its name and shape, or zero: `(rows, size_out)`."""
        return followed(self.inputs, self.outputs, z)

    def followed_back(self, cotangent: Tensor) -> Tensor:
        """The transpose of `followed`: `(rows, size_out)` to `(rows, size_in)`."""
        return followed_back(self.inputs, self.outputs, cotangent)

    def lattices(self, who: str) -> tuple[Lattice, Lattice]:
        """The lattices of all inputs, those without a gradient last, and of the outputs, on the same cells.

        Args:
            who: the model, for the error.

        Raises:
            ConfigurationError: the outputs do not lie on one grid.
        """
        if self._lattices is None:
            raise ConfigurationError(
                f"{who}: expected differentiable outputs (channels, *space), or *space alone, on one grid of "
                "one to three axes, or one cell more along an axis for its faces; got shapes "
                f"{[spec.shape for spec in self.outputs]}. Take zo.tangents.MLPTangent."
            )
        return self._lattices

    @cached_property
    def _lattices(self) -> tuple[Lattice, Lattice] | None:
        space = space_of(self.outputs, self.inputs)
        if space is None:
            return None
        inputs = tuple(spec.shape for spec in self.inputs) + self.others
        return Lattice(inputs, space), Lattice(tuple(spec.shape for spec in self.outputs), space)

    def plain(self) -> tuple[Any, ...]:
        """The form in plain values, for a state."""
        return *([_plain(s) for s in specs] for specs in (self.inputs, self.outputs)), self.others

    @classmethod
    def of(cls, plain: tuple[Any, ...]) -> Form:
        """The form that `plain` gave."""
        *arrays, others = plain
        inputs, outputs = (tuple(_spec(*spec) for spec in specs) for specs in arrays)
        return cls(inputs, outputs, tuple(tuple(shape) for shape in others))


def _plain(spec: ArraySpec) -> tuple[Any, ...]:
    """Name and shape, and the layout: which ends of a grid meet, or that the array is on none."""
    if spec.layout is None:
        return spec.name, spec.shape, None
    return (spec.name, spec.shape, *([(spec.layout.periodic,)] if isinstance(spec.layout, Grid) else []))


def _spec(name: str, shape: Sequence[int], *said: Any) -> ArraySpec:
    """Rebuild a spec from the output of `_plain`."""
    layout = "auto" if not said else None if said[0] is None else Grid(*said[0])
    return ArraySpec(name, tuple(shape), layout=layout)


def rows_of(count: int, form: Form) -> int:
    """So many rows, or fewer where they are large."""
    return min(count, max(16, ROW_NUMBERS // sum(sizes(form.outputs))))
