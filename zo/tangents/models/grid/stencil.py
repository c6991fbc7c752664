"""`StencilTangent`: for boxes on grids, a polynomial of each cell's surroundings, fitted in closed form."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.checks import check_count, check_number
from zo.errors import ConfigurationError, TangentError
from zo.tangents.models.candidates import CLEARLY, Candidate
from zo.tangents.models.form import Form
from zo.tangents.models.grid.reach import measure
from zo.tangents.models.maps.lattice import Lattice, checked_ends, ends_of, neighbours, weighed
from zo.tangents.models.prior import Below, said
from zo.tangents.models.row_window import standard, standard_without_rounding
from zo.tangents.models.structure import MOST_CELLS, Specs
from zo.tangents.models.values import ValueTangent

MOST_FEATURES = 450
FORGETTING = 0.997  # the factor by which what was seen counts less with each step
WINDOW = 4_000  # rows kept, to which W is fitted
MOST_OF_THE_NARROWEST = 2_000  # features, where no shape has so few: beyond, the degree goes down
# decision 32:
SAMPLES = 8_000, 3_000  # cells that are learned from, of the first step and of each later one,
ROWS = 64, 16  # of this many rows, or of more where rows have few cells
FAR = 1e4  # in units of the first rows: a row with a number beyond is not learned from, unless most have one
# Per degree above the first how far the factors of a product lie apart, and how far products lie from a cell;
# from rich to poor, of which the first is taken whose features are not too many.
SHAPES = (
    ((3, 4), (2, 1)),
    ((2, 3), (1, 1)),
    ((1, 2), (1, 0)),
    ((1, 1), (0, 0)),
    ((0, 1), (0, 0)),
    ((0, 0), (0, 0)),
)
Factor = tuple[int, tuple[int, ...]]  # a channel, and its place relative to the cell


class StencilTangent(ValueTangent):
    """The derivative of a polynomial: y = z + sum over f of c_f(case) times products of cells near by.

    The polynomial is the same in all cells, in the box's state up to the given degree. Its coefficients are
    linear in (1, p, p^2) for each number p of the case (inputs that are the same in all cells, such as a
    length). It is fitted to values by recursive ridge least squares in closed form: without learning steps or
    draws. It is exact for a box that is such a polynomial, and the nearest such model of another. Beyond a
    wall it takes the mean of each channel. It sees obstacles where an input says where they are.

    For a box whose differentiable outputs are arrays `(channels, *space)` on one grid of one to three axes.

    Memory: 8 x features^2 bytes, and 4 x rows x cells x features in a fit, less in a call. Features are at
    most 450 where products can be narrowed as far, and never more than 2,000. A step: 3,000 x features^2
    operations, and features^3 to solve.

    Args:
        degree: the degree of the polynomial, 1 to 3, or less where channels are so many that there would be
            more than 2,000 features.
        periodic: whether the ends of the grid meet, for all axes or each; None: as the first rows show it.
        reach: cells that a change is carried in a call; None: as the first rows show it.
        ridge: the ridge, relative to each feature's mean square, so channels may have units of their own. In
            smooth states neighbours hardly differ, and a small ridge leaves undetermined coefficients wild:
            1e-6 predicts values better than 1e-3 and gives gradients up to a thousand times too long.
        output_map: whether there is a W (see `OutputMap`).
        prior: a differentiable model under it, see `ValueTangent`.

    Attributes:
        measured: `reach` and `periodic`, set or measured on the first rows; empty before.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box without such outputs.
        TangentError: when it first learns, channels so many that even degree 1 has more than 2,000 features.
    """

    def __init__(
        self,
        degree: int = 3,
        *,
        periodic: bool | Sequence[bool] | None = None,
        reach: int | None = None,
        ridge: float = 1e-3,
        output_map: bool = True,
        prior: Below | None = None,
    ) -> None:
        check_count("StencilTangent", "degree", degree)
        if degree > 3:
            raise ConfigurationError(
                f"StencilTangent, degree: expected 1, 2 or 3, got {degree}. Take GridTangent for "
                "what is bent more."
            )
        if reach is not None:
            check_count("StencilTangent", "reach", reach)
        check_number("StencilTangent", "ridge", ridge, least=1e-14)
        self.degree, self.ridge = degree, ridge
        self.periodic = checked_ends("StencilTangent", periodic)
        self.reach = reach
        super().__init__(WINDOW, output_map, prior)

    def _forget(self, window: int) -> None:
        """Know nothing."""
        super()._forget(window)
        self._plan: dict[str, Any] = {}  # reach and periodic
        self._features: _Features | None = None
        self._sums: tuple[Tensor, Tensor] | None = None  # features x features, features x channels out
        self._coefficients: Tensor | None = None
        self._fresh: list[tuple[Tensor, Tensor, Tensor]] = []  # rows that were taken and not yet learned from

    @property
    def measured(self) -> dict[str, Any]:
        """Reach and periodic sides, once there were rows."""
        return dict(self._plan)

    @property
    def knows(self) -> bool:
        """True if it has learned anything."""
        return self._sums is not None

    def within(self, z: Tensor, others: Tensor) -> Tensor:
        """The polynomial: `(rows, size_in)` to `(rows, size_out)`."""
        _, lattice_out = self._form.lattices("StencilTangent")
        assert self._features is not None
        x = self._joined_inputs(z, others)
        grid = self._features.weighed(x, self._solved().to(x.dtype)).movedim(-1, 1)
        scale, mean = (statistic().to(z) for statistic in (self._moments[3].scale, self._moments[3].mean))
        return self.carried(z) + mean + scale * lattice_out.split(grid).to(z.dtype)

    def take(self, form: Form, z: Tensor, others: Tensor, y: Tensor) -> None:
        """Keep the rows until they are learned from."""
        self._fresh.append((z, others, y))

    def learn_from_window(self, steps: int | None) -> None:
        """Forget a little and add the new rows; begin again where these have other units."""
        if not self._fresh:
            return
        z, others, y = (torch.cat(column) for column in zip(*self._fresh, strict=True))
        self._fresh = []
        features = self._begin(z, others, y) if self._features is None else self._features
        near = (self._standard_inputs(z, others).abs() < FAR).all(dim=1)
        if 2 * int(near.sum()) < len(z):
            features = self._begin(z, others, y)
            near = (self._standard_inputs(z, others).abs() < FAR).all(dim=1)
        z, others, y = z[near], others[near], y[near]
        _, lattice_out = self._form.lattices("StencilTangent")
        cells = math.prod(lattice_out.space)
        later = self._sums is not None
        stride = -(-len(z) // max(ROWS[later], SAMPLES[later] // cells))
        z, others, y = (column[self._lessons % stride :: stride] for column in (z, others, y))
        every = -(-len(z) * cells // SAMPLES[later])  # of all cells of these rows, one in so many
        error = standard(y - self.carried(z), self._moments[3])
        target = lattice_out.joined(error).movedim(1, -1)
        size = features.count
        if self._sums is None:
            zeros = z.new_zeros(size, size + target.shape[-1], dtype=torch.float64)
            self._sums = zeros[:, :size].clone(), zeros[:, size:].clone()
        gram, cross = (FORGETTING * total for total in self._sums)
        for first in range(0, len(z), 16):  # all at once would take gigabytes
            part = slice(first, first + 16)
            rows, targets = (
                grid[:, *lattice_out.shared].flatten(0, -2)[self._lessons % every :: every].double()
                for grid in (features(self._joined_inputs(z[part], others[part], True)), target[part])
            )
            gram += rows.T @ rows
            cross += rows.T @ targets
        self._sums, self._coefficients = (gram, cross), None
        self.map_if_due()
        self._lessons += 1

    def state_dict(self) -> dict[str, Any]:
        """The two sums, and what features they are of."""
        if self._features is None:
            return {"form": None}
        sums = None if self._sums is None else list(self._sums)
        return copy.deepcopy(self.kept() | {"plan": self._plan, "sums": sums, "fresh": self._fresh})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        if state["form"] is None:
            self._forget(self._window.rows)
            return
        state = copy.deepcopy(state)
        self.load_kept(state)
        self._plan, self._fresh = state["plan"], state["fresh"]
        self._features = self._chosen(self._form)
        self._sums, self._coefficients = None if state["sums"] is None else tuple(state["sums"]), None

    def _begin(self, z: Tensor, others: Tensor, y: Tensor) -> _Features:
        """Units, reach and features by these rows; the sums are of these features alone."""
        form = self._form
        self._sums, self._coefficients, self._map.due = None, None, self._lessons
        self._moments = self.moments(form)
        super().take(form, z, others, y)
        inputs, lattice_out = form.lattices("StencilTangent")
        x = self._standard_inputs(z, others)
        change = standard(y - self.carried(z), self._moments[3])
        ends = ends_of("StencilTangent", self.periodic, len(inputs.space))
        reach, periodic = measure(inputs.joined(x), lattice_out.joined(change), self.reach, ends)
        self._plan = {"reach": reach, "periodic": periodic}
        self._features = features = self._chosen(form)
        return features

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The channel of each number: the cells of a channel share a unit."""
        return Lattice(tuple(shapes), form.lattices("StencilTangent")[0].space).groups()

    def _chosen(self, form: Form) -> _Features:
        inputs, _ = form.lattices("StencilTangent")
        reach, periodic = self._plan["reach"], self._plan["periodic"]
        count = sum(inputs.varies_by_cell())
        for degree in range(self.degree, 0, -1):
            for shape in SHAPES:
                if _fewest(count, degree, reach, shape, len(periodic)) <= MOST_OF_THE_NARROWEST:
                    features = _Features.of(inputs, degree, reach, periodic, shape)
                    narrowest = shape == SHAPES[-1]
                    if features.count <= (MOST_OF_THE_NARROWEST if narrowest else MOST_FEATURES):
                        return features
        raise TangentError(
            f"StencilTangent: {count} channels and a reach of {reach} cells on {len(periodic)} axes are "
            f"more than {MOST_OF_THE_NARROWEST:,} features of degree 1. Take GridTangent, or if these are "
            "not cells of a grid, layout=None in the box's specs."
        )

    def _standard_inputs(self, z: Tensor, others: Tensor, learned: bool = False) -> Tensor:
        units = standard_without_rounding if learned else standard
        x = units(z, self._moments[0])
        return torch.cat([x, units(others, self._moments[1])], dim=1) if others.shape[1] else x

    def _joined_inputs(self, z: Tensor, others: Tensor, learned: bool = False) -> Tensor:
        """Standardised channels, `(rows, channels, *space)`, in the inputs' own precision.

        Args:
            z: the differentiable inputs.
            others: the others.
            learned: whether they are learned from: of a channel that never changed rounding shows nothing.
        """
        inputs, _ = self._form.lattices("StencilTangent")
        return inputs.joined(self._standard_inputs(z, others, learned)).to(z.dtype)

    def _solved(self) -> Tensor:
        """The coefficients `(features, channels out)`, once a step."""
        if self._coefficients is None:
            assert self._sums is not None  # its callers have asked
            gram, cross = self._sums
            size = gram.diagonal().sqrt()
            short = torch.where(size > 0, 1 / size, 0.0)  # features in units of their own
            matrix = short[:, None] * gram * short
            matrix.diagonal().add_(self.ridge)
            solution = torch.cholesky_solve(short[:, None] * cross, torch.linalg.cholesky(matrix))
            self._coefficients = short[:, None] * solution
        return self._coefficients

    def __repr__(self) -> str:
        """The settings; a resumed run is held to them, so what was measured is not among them."""
        return (
            f"StencilTangent(degree={self.degree}, periodic={self.periodic}, reach={self.reach}"
            f"{said(self.prior)})"
        )


def _fewest(channels: int, degree: int, reach: int, shape: tuple[tuple[int, int], ...], axes: int) -> int:
    """Features that there are at least: all places of one factor, or products that one at a corner begins."""
    count = channels * (2 * reach + 1) ** axes
    for order in range(2, degree + 1):
        span, around = (min(distance, reach) for distance in shape[order - 2])
        factors = channels * (span + 1) ** axes
        count = max(count, math.comb(factors + order - 2, order - 1) * (2 * around + 1) ** axes)
    return count


@dataclass(frozen=True)
class _Features:
    """The features of a cell, which the coefficients multiply.

    Attributes:
        moving: channels of the state.
        case: channels that are the same in all cells.
        products: the products, each with the radius around a cell in which it is a feature.
        periodic: which ends of the grid meet.
    """

    moving: tuple[int, ...]
    case: tuple[int, ...]
    products: tuple[tuple[tuple[Factor, ...], int], ...]
    periodic: tuple[bool, ...]

    @classmethod
    def of(
        cls,
        inputs: Lattice,
        degree: int,
        reach: int,
        periodic: tuple[bool, ...],
        shape: tuple[tuple[int, int], ...],
    ) -> _Features:
        axes, by_cell = len(inputs.space), inputs.varies_by_cell()
        channels = tuple(n for n, cells in enumerate(by_cell) if cells)
        products: list[tuple[tuple[Factor, ...], int]] = [(((n, (0,) * axes),), reach) for n in channels]
        for order in range(2, degree + 1):
            span, around = shape[order - 2]
            span, around = min(span, reach), min(around, reach)
            places = list(itertools.product(range(span + 1), repeat=axes))
            factors = [(n, place) for n in channels for place in places]
            for product in itertools.combinations_with_replacement(factors, order):
                # of products that are one another's shifts that which lies nearest to the corner
                if all(min(place[axis] for _, place in product) == 0 for axis in range(axes)):
                    middle = tuple(max(place[axis] for _, place in product) // 2 for axis in range(axes))
                    centres = tuple(
                        (n, tuple(p - m for p, m in zip(place, middle, strict=True))) for n, place in product
                    )
                    products.append((centres, around))
        case = tuple(n for n, cells in enumerate(by_cell) if not cells)
        return cls(channels, case, tuple(products), tuple(periodic))

    @property
    def count(self) -> int:
        """The number of all features."""
        axes = len(self.periodic)
        stencils = 1 + sum((2 * radius + 1) ** axes for _, radius in self.products)
        return stencils * (1 + 2 * len(self.case))

    @cached_property
    def _radius(self) -> int:
        """The most cells that a factor lies from its cell."""
        return max((max(map(abs, place)) for product, _ in self.products for _, place in product), default=0)

    @cached_property
    def _factors(self) -> list[tuple[int, list[list[Tensor]]]]:
        """The places of factors in what a cell sees, by radius and order of their products, in that order."""
        side = 2 * self._radius + 1

        def place_of(factor: Factor) -> int:
            channel, place = factor
            number = self.moving.index(channel)
            for along in place:
                number = number * side + along + self._radius
            return number

        by_radius = []
        for radius, group in itertools.groupby(self.products, key=lambda entry: entry[1]):
            orders = [list(same) for _, same in itertools.groupby((p for p, _ in group), key=len)]
            by_radius.append(
                (
                    radius,
                    [[torch.tensor([*map(place_of, n)]) for n in zip(*same, strict=True)] for same in orders],
                )
            )
        return by_radius

    def __call__(self, grid: Tensor) -> Tensor:
        """Standardised channels `(rows, channels, *space)` to `(rows, *space, features)`."""
        parts = [torch.ones_like(grid[:, :1]).movedim(1, -1)]
        parts += [neighbours(products, radius, self.periodic) for products, radius in self._multiplied(grid)]
        features = torch.cat(parts, dim=-1)
        powers = [power.unsqueeze(-1) for power in self._powers(grid)]
        return torch.cat([features, *(features * power for power in powers)], dim=-1)

    def weighed(self, grid: Tensor, coefficients: Tensor) -> Tensor:
        """The features times coefficients `(features, n)`, without memory for them: `(rows, *space, n)`."""
        powers = self._powers(grid)
        by_power = coefficients.unflatten(0, (1 + len(powers), -1)).movedim(0, 1).flatten(1)
        total, first = by_power[0], 1
        for products, radius in self._multiplied(grid):
            count = products.shape[1] * (2 * radius + 1) ** len(self.periodic)
            total = total + weighed(products, by_power[first : first + count], radius, self.periodic)
            first += count
        if not powers:
            return total
        whole, *times = total.split(coefficients.shape[1], dim=-1)
        return sum((t * power.unsqueeze(-1) for t, power in zip(times, powers, strict=True)), whole)

    def _multiplied(self, grid: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Products `(rows, products, *space)` of one radius, and that radius."""
        if not self.moving:  # numbers in, cells out
            return
        moving = grid.index_select(1, torch.tensor(self.moving, device=grid.device)) if self.case else grid
        seen = neighbours(moving, self._radius, self.periodic)
        for radius, orders in self._factors:
            products = []
            for factors in orders:
                chosen = (seen.index_select(-1, places.to(seen.device)) for places in factors)
                products.append(functools.reduce(torch.mul, chosen))
            yield torch.cat(products, dim=-1).movedim(-1, 1), radius

    def _powers(self, grid: Tensor) -> list[Tensor]:
        """The numbers of the case and their squares, `(rows, *space)`."""
        return [power for n in self.case for power in (grid[:, n], grid[:, n].square())]


def _does_not_fit(specs: Specs) -> str | None:
    """Why a box gets no stencil by default: fits to many cells take long."""
    if specs.structure.kind == "grid" and specs.cells <= MOST_CELLS:
        return None
    return f"a stencil wants a grid of at most {MOST_CELLS:,} cells, not a {specs.structure.kind}"


def _of_box(box: BlackBoxFunction, seed: int) -> StencilTangent:
    """The default's stencil of a box, which draws nothing."""
    return StencilTangent(periodic=Specs.of(box).structure.periodic)


def _borrow_reach(stencil: StencilTangent, beside: Mapping[str, Any]) -> None:
    """Take the reach that the network beside it has measured: measuring it takes as long as a fit."""
    network = beside.get("grid")
    if network is not None and network.measured:
        stencil.reach, stencil.periodic = network.measured["reach"], network.measured["periodic"]


CANDIDATE = Candidate("stencil", _does_not_fit, _of_box, better=CLEARLY, borrow=_borrow_reach)
