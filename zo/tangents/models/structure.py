"""The structure of a box, by layouts and shapes of its specs: a grid, a mesh, a graph or a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from blackbox import ArraySpec, BlackBoxFunction, Grid, Mesh
from zo.errors import ConfigurationError
from zo.tangents.models.maps.lattice import MOST_CHANNELS, Lattice, space_of

FEWEST_CELLS = 16  # of a grid: fewer are a table of numbers
# decision 66:
MOST_CELLS = 2**12  # of a grid on which a stencil and an equation are tried too


@dataclass(frozen=True)
class Structure:
    """The structure of a box's arrays.

    Attributes:
        kind: "grid", "mesh", "graph" or "table".
        why: The reason, in words.
        periodic: Whether the ends of a grid meet, for all axes or each; None if that is to be measured.
    """

    kind: str
    why: str
    periodic: bool | tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Specs:
    """The specs of all inputs and outputs of a box, without the box.

    Attributes:
        inputs: The specs of all inputs.
        outputs: The specs of all outputs.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]

    @classmethod
    def of(cls, box: BlackBoxFunction) -> Specs:
        """Return the specs of a box."""
        return cls(tuple(box.inputs), tuple(box.outputs))

    @cached_property
    def structure(self) -> Structure:
        """The structure of the box."""
        inputs = [spec for spec in self.inputs if spec.differentiable]
        return structure_of(inputs, [spec for spec in self.outputs if spec.learned])

    @property
    def cells(self) -> int:
        """The number of cells of the grid that the learned arrays lie on."""
        inputs = [spec for spec in self.inputs if spec.differentiable]
        return math.prod(space_of([spec for spec in self.outputs if spec.learned], inputs) or ())


def structure_of(inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> Structure:
    """Find the structure of a box by the layouts and shapes of its specs.

    Raises:
        ConfigurationError: the specs put outputs on a grid, but these do not fit one, or their last axis
            looks like channels.
    """
    output_layouts, input_layouts = [spec.layout for spec in outputs], [spec.layout for spec in inputs]
    meshes = {layout for layout in output_layouts if isinstance(layout, Mesh)}
    if meshes:
        mesh = next(iter(meshes))
        if len(meshes) > 1 or not all(isinstance(layout, Mesh) for layout in output_layouts):
            return Structure("table", "no mesh, for not all outputs lie on one")
        if not any(
            layout == mesh or mesh.node_axis(s.shape) is not None
            for layout, s in zip(input_layouts, inputs, strict=True)
        ):
            return Structure("table", f"no mesh, for no input lies on the outputs' {mesh!r}")
        flat = mesh.cells is None or mesh.coordinates is None
        return Structure("graph" if flat else "mesh", f"{mesh!r}, as its specs say")
    grids = [layout for layout in output_layouts if isinstance(layout, Grid)]
    if grids:
        if space_of(outputs, inputs) is None or None in output_layouts:
            said = ", ".join(f"{spec.name!r} {spec.shape}" for spec in outputs)
            raise ConfigurationError(
                f"AutoTangent: expected outputs with layout='grid' to lie on one grid of one to three axes, "
                f"(channels, *space) or *space, got {said}. Say differentiable=False for those off the grid, "
                "if no gradient is wanted through them. Or leave layout='grid' out of all, as for a table."
            )
        _refuse_channels_last(outputs)
        ends = {grid.periodic for grid in grids if grid.periodic is not None}
        periodic = next(iter(ends)) if len(ends) == 1 else None
        ends_meet = periodic if isinstance(periodic, bool | tuple) else None
        return Structure("grid", "a grid, as its specs say", ends_meet)
    if None in output_layouts or all(layout is None for layout in input_layouts):
        return Structure("table", "no grid and no mesh, as its specs say")
    shapes = ", ".join(str(spec.shape) for spec in outputs)
    if is_grid([spec for spec in inputs if spec.layout is not None], outputs):
        return Structure(
            "grid", f"a grid by its shape {shapes}; if it is none, say layout=None in its ArraySpec"
        )
    what, one = (
        ("a table of numbers by its shape", "it")
        if len(outputs) == 1
        else ("tables of numbers by their shapes", "one")
    )
    return Structure(
        "table",
        f"{what} {shapes}; if {one} is a grid or a line of cells, say layout='grid' in its ArraySpec",
    )


def _refuse_channels_last(outputs: Sequence[ArraySpec]) -> None:
    """Refuse `(*space, channels)`, which would be taken for many channels on a few cells."""
    for spec in outputs:
        last = len(spec.shape) > 1 and spec.shape[0] > MOST_CHANNELS >= spec.shape[-1]
        if isinstance(spec.layout, Grid) and last and not isinstance(spec.layout.periodic, tuple):
            raise ConfigurationError(
                f"AutoTangent, output {spec.name!r}: expected channels as the first axis of an array on a "
                f"grid, (channels, *space), got {spec.shape}, whose last axis looks like these. Give the "
                "spec a shape with channels first and turn arrays in the box: np.moveaxis(array, 1, -1) of "
                "what comes in, np.moveaxis(result, -1, 1) of what goes out. Or say which axes are space by "
                "an entry for each, such as Grid(periodic=(False, False))."
            )


def is_grid(inputs: Sequence[ArraySpec], outputs: Sequence[ArraySpec]) -> bool:
    """Say whether outputs lie on a grid, see `space_of`, and at least one input does.

    Vectors do where outputs and inputs have n numbers, of cells, and n + 1, of the faces between them.
    """
    space = space_of(outputs, inputs)
    if space is None or torch.Size(space).numel() < FEWEST_CELLS:
        return False
    if all(len(spec.shape) < 2 for spec in outputs):  # a vector may be anything; cells and faces are a line
        spaces = {space, (space[0] - 1,)}
        return spaces == {spec.shape for spec in outputs} and spaces <= {s.shape for s in inputs}
    if any(len(spec.shape) > len(space) and spec.shape[0] > MOST_CHANNELS for spec in outputs):
        return False
    lattice, fewest = Lattice((), space), max(len(space), 2)  # a vector as long as a line may be anything
    return any(len(spec.shape) >= fewest and lattice.on_grid(spec.shape) for spec in inputs)
