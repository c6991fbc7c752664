"""`GridTangent`: for boxes on grids, a convolutional network fitted to values, and a linear map behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count
from zo.errors import ConfigurationError
from zo.tangents.models.candidates import Candidate
from zo.tangents.models.form import Form
from zo.tangents.models.grid.grid_network import GridNetwork
from zo.tangents.models.grid.reach import measure
from zo.tangents.models.maps.lattice import Lattice, checked_ends, ends_of
from zo.tangents.models.maps.spectral_map import SpectralMap
from zo.tangents.models.network import Learning, NetworkTangent
from zo.tangents.models.prior import Below, said
from zo.tangents.models.structure import Specs
from zo.tangents.tangent import sources

# decision 58:
CELLS = 2**11  # of a step of learning, at most: large grids take fewer rows, and of larger ones patches
LONGEST = 8.0  # times as many steps of learning on large grids, at most
EDGES = {1: 256, 2: 16, 3: 12}  # cells of a patch along each axis; decision 66
# decision 76:
LEAST = 2  # cells of reach on large grids: on smooth states no stencil shows whether one cell is enough


class GridTangent(NetworkTangent):
    """The derivative of y = W o N: a residual convolutional network N, and a linear map W behind it.

    For a box whose differentiable outputs are arrays `(channels, *space)` on one grid of one to three axes,
    in cells or, staggered, with one more along an axis for the faces. Inputs on the grid are channels; all
    others, such as a length or a Reynolds number, are channels that are the same in all cells. It learns from
    the rows that training asks for anyway. Numbers are standardised by channel. W (see `OutputMap`) knows
    constraints that outputs obey, such as zero divergence, which values never show.

    N adds to the state a linear stencil, products of two convolutions, so that advection is within its reach,
    and a convolution of these products. On a grid with walls some learned channels say where a cell lies.

    Memory: window x (size_in + size_out) numbers, at most 512 MiB, and W: size_out^2, or for large states at
    most 3,000 x size_out, on large grids less; where more than 4,096 outputs lie on a periodic grid, or obey
    a constraint between walls, a number for each wave and pair of channels. A step: steps_per_step x batch
    rows (on large grids patches of 2,048 cells together, or one row where W removes part of N's output)
    forward and backward through N; now and then a fit of W, size_out^3 or 1,500^3. The box runs no rows
    beyond the step's own.

    Args:
        channels: the channels of the hidden layers.
        periodic: whether the ends of the grid meet, for all axes or each; None: as the first rows show it.
        reach: cells that a change is carried in a call; None: as the first rows show it, and at least two on
            a grid of more than 2,048 cells.
        learning: how it learns; None for `LEARNING`, see `Learning`. On a grid of more than 2,048 cells a
            step of learning sees fewer rows, or patches, and there are three to eight times as many steps.
        output_map: whether there is a W.
        seed: all draws depend on (seed, step of learning) alone.
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        measured: `reach` and `periodic`, set or measured on the first rows; empty before.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box without such outputs.
    """

    LEARNING = Learning(batch=32, steps_per_step=4)

    def __init__(
        self,
        channels: int = 24,
        *,
        periodic: bool | Sequence[bool] | None = None,
        reach: int | None = None,
        learning: Learning | None = None,
        output_map: bool = True,
        seed: int = 0,
        prior: Below | None = None,
    ) -> None:
        check_count("GridTangent", "channels", channels)
        if channels % 4:
            more = channels + 4 - channels % 4
            raise ConfigurationError(
                f"GridTangent, channels: expected a multiple of 4, got {channels}. Take {more}."
            )
        if reach is not None:
            check_count("GridTangent", "reach", reach)
        self.channels = channels
        self.periodic = checked_ends("GridTangent", periodic)
        self.reach = reach
        super().__init__(learning=learning, output_map=output_map, seed=seed, prior=prior)

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The channel of each number: the cells of a channel share a unit."""
        return Lattice(tuple(shapes), form.lattices("GridTangent")[1].space).groups()

    def drawn(self) -> int:
        """Rows of a step of learning: as many as `batch` and its cells allow."""
        return max(1, min(self.learning.batch, CELLS // cells_of(self._form)))

    @property
    def whole_rows(self) -> bool:
        """True if learning sees whole rows: on more than 2,048 cells only behind a map that takes part of N.

        To patches, what such a map takes is an error that no network could avoid, and N learns its mean.
        """
        small, put = cells_of(self._form) <= CELLS, self._map.in_use
        return small or (isinstance(put, SpectralMap) and put.takes)

    def missed(self, generator: torch.Generator) -> Tensor:
        """Return N's error on patches: no cell needs the whole row."""
        assert isinstance(self._network, GridNetwork)
        lattice_out, periodic, halo = self._network.answered, self._network.periodic, self._network.halo
        space = lattice_out.space
        z, others, y = self._window.columns
        inputs, context, _, change = (moments.by_group() for moments in self._moments)
        units = tuple(
            torch.cat(both) if others.shape[1] else both[0] for both in zip(inputs, context, strict=True)
        )
        fields, context_fields = (
            Lattice(shapes, space)
            for shapes in (tuple(spec.shape for spec in self._form.inputs), self._form.others)
        )
        edges = [min(EDGES[len(space)], length) for length in space]
        count = max(1, CELLS // math.prod(edges))
        patches, targets, weights, places, insides = [], [], [], [], []
        for row in self._window.places(count, generator).tolist():
            around, within, inside = [], [], []
            for length, edge, wraps in zip(space, edges, periodic, strict=True):
                corner = int(torch.randint(length if wraps else length - edge + 1, (), generator=generator))
                cells = torch.arange(corner - halo, corner + edge + halo)
                cells = (cells % length if wraps else cells).to(z.device)
                around.append(cells)
                within.append(cells[halo : halo + edge])
                inside.append((cells >= 0) & (cells < length))
            x, valid = fields.cropped(z[row], around)
            if others.shape[1]:
                more, also = context_fields.cropped(others[row], around)
                x, valid = torch.cat([x, more]), torch.cat([valid, also])
            on_grid = _every(inside)
            patches.append(torch.where(valid & on_grid, _standard(x, *units), 0.0))
            target, valid = lattice_out.cropped(y[row], within)
            start = self._carried_on(fields.cropped(z[row], within)[0])
            targets.append(_standard(target - start, *change))
            weights.append(valid)
            places.append(around)
            insides.append(on_grid)
        dtype = self._dtype()
        prediction = self._network.on_patches(
            torch.stack(patches).to(dtype), places, torch.stack(insides)[:, None].to(dtype), edges
        )
        return (prediction - torch.stack(targets).to(dtype))[torch.stack(weights)]

    def for_size(self) -> float:
        """The factor on the usual steps: the root of the cells, over a quarter of those that a step sees."""
        assert isinstance(self._network, GridNetwork)
        cells = math.prod(self._network.answered.space)
        return 1.0 if self.whole_rows else min(LONGEST, math.sqrt(4 * cells / CELLS))

    def _carried_on(self, x: Tensor) -> Tensor:
        """Apply `carried` to channels `(channels, *cells)`."""
        assert isinstance(self._network, GridNetwork)
        lattice_out = self._network.answered
        inputs = Lattice(tuple(spec.shape for spec in self._form.inputs), lattice_out.space)
        pieces = x.split([inputs.channels_of(shape) for shape in inputs.shapes])
        stays, first = [], 0
        for shape in lattice_out.shapes:  # a number that all cells of a channel share
            channels, size = lattice_out.channels_of(shape), math.prod(shape)
            stays.append(self._stays[first : first + size : size // channels])
            first += size
        places = sources(self._form.inputs, self._form.outputs)
        bases = [
            x.new_zeros(lattice_out.channels_of(shape), *x.shape[1:]) if source is None else pieces[source]
            for source, shape in zip(places, lattice_out.shapes, strict=True)
        ]
        factors = torch.cat(stays).to(x)
        return torch.cat(bases) * factors.reshape(-1, *[1] * (x.ndim - 1))

    @property
    def ends(self) -> tuple[bool, ...]:
        """The axes whose ends meet, as measured or as set."""
        return tuple(self._plan["periodic"])

    def plan(self, form: Form, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """Measure how far a change is carried, and which ends meet."""
        z, others, change = rows
        inputs, lattice_out = form.lattices("GridTangent")
        ends = ends_of("GridTangent", self.periodic, len(inputs.space))
        grid = inputs.joined(torch.cat([z, others], dim=1))
        reach, periodic = measure(grid, lattice_out.joined(change), self.reach, ends)
        if self.reach is None and cells_of(form) > CELLS:
            reach = max(LEAST, reach)
        return {"reach": reach, "periodic": periodic}

    def build(self, form: Form, plan: dict[str, Any]) -> GridNetwork:
        """The network for that reach."""
        return GridNetwork(*form.lattices("GridTangent"), self.channels, plan["reach"], plan["periodic"])

    def __repr__(self) -> str:
        """The settings; a resumed run is held to them, so what was measured is not among them."""
        return (
            f"GridTangent(channels={self.channels}, periodic={self.periodic}, reach={self.reach}"
            f"{said(self.prior)})"
        )


def cells_of(form: Form) -> int:
    """The number of cells of a box's grid."""
    return math.prod(form.lattices("GridTangent")[1].space)


def _standard(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Channels `(channels, *cells)` in units of mean zero and spread one."""
    mean, scale = (numbers.to(x.device).reshape(-1, *[1] * (x.ndim - 1)) for numbers in (mean, scale))
    return (x.double() - mean) / scale


def _every(inside: Sequence[Tensor]) -> Tensor:
    """Say which cells are inside along all axes."""
    within = torch.ones((), dtype=torch.bool, device=inside[0].device)
    for along in inside:
        within = within[..., None] & along
    return within


def _does_not_fit(specs: Specs) -> str | None:
    """Why a box gets no model of a grid by default."""
    return None if specs.structure.kind == "grid" else f"it is a {specs.structure.kind}, not a grid"


def _of_box(box: BlackBoxFunction, seed: int) -> GridTangent:
    """The default's model of a box on a grid."""
    return GridTangent(periodic=Specs.of(box).structure.periodic, seed=seed)


CANDIDATE = Candidate("grid", _does_not_fit, _of_box)
