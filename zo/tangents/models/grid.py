"""`GridTangent`: for boxes on grids, a convolutional network fitted to values, and a linear map behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from blackbox.checks import check_count
from zo.errors import ConfigurationError
from zo.tangents.models.convolution import along
from zo.tangents.models.lattice import Lattice, checked_ends, ends_of, padded, refuse_no_grid
from zo.tangents.models.network import NetworkTangent
from zo.tangents.models.reach import measure
from zo.tangents.models.values import Form

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONVOLVED = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
CELLS = 2**11  # of a step of learning, at most, unless a row has more: large grids take fewer rows
SHORT = 2**12  # cells of a line along which a convolution is a product of matrices
PLACES = 4  # channels that say where a cell lies, learned, on a grid with walls


class GridTangent(NetworkTangent):
    """J(z) is that of y = W o N: a residual convolutional network N, and a linear map W behind it.

    For a box whose differentiable outputs are arrays `(channels, *space)` on one grid of one to three axes,
    in cells or, staggered, with one more along an axis for the faces. Inputs on the grid are channels; all
    others, such as a length or a Reynolds number, are channels that are the same in all cells. It needs no
    probes: it learns from what training asks of the box anyway. Numbers are standardised by channel. W (see
    `OutputMap`) knows what values never show: constraints that outputs obey, such as zero divergence.

    N adds to the state a linear stencil, products of two convolutions, so that advection is within its reach,
    and a convolution of those. On a grid with walls some learned channels say where a cell lies.

    Memory: window x (size_in + size_out) numbers, and W: size_out^2, or for large states at most 3,000 x
    size_out, on large grids less. A step: steps_per_step x batch rows forward and backward through N; now and
    then a fit of W, size_out^3 or 1,500^3. Of the box no rows beyond the step's own.

    Args:
        channels: of the hidden layers.
        periodic: whether the ends of the grid meet, for all axes or each; None: as the first rows show it.
        reach: cells that a change is carried in a call; None: as the first rows show it.
        window: rows kept to learn from, the oldest going.
        batch: rows of a step of learning, drawn from the window with replacement; fewer where they would have
            more than 2,048 cells.
        steps_per_step: steps of learning in a step of training where the error on the window is a tenth of
            the typical change that the box makes; fewer or more in proportion to another error, at most
            five times as many in the first 30 steps of training, and later twice.
        first_steps: of learning on the first rows, at most: it ends at an error of .03 of that change.
        learning_rate: of Adam.
        output_map: whether there is a W.
        seed: all draws depend on (seed, step of learning) alone.

    Attributes:
        measured: `reach` and `periodic` as the first rows showed them, or as they were given; empty before.

    Raises:
        ConfigurationError: a value out of its range; when it is first used, a box without such outputs.
    """

    def __init__(
        self,
        channels: int = 24,
        *,
        periodic: bool | Sequence[bool] | None = None,
        reach: int | None = None,
        window: int = 4000,
        batch: int = 32,
        steps_per_step: int = 4,
        first_steps: int = 400,
        learning_rate: float = 2e-3,
        output_map: bool = True,
        seed: int = 0,
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
        super().__init__(
            window=window,
            batch=batch,
            steps_per_step=steps_per_step,
            first_steps=first_steps,
            learning_rate=learning_rate,
            output_map=output_map,
            seed=seed,
        )

    def groups(self, form: Form, shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The cells of a channel."""
        return Lattice(tuple(shapes), refuse_no_grid("GridTangent", form.outputs)).groups()

    def drawn(self) -> int:
        """As many as `batch` and the cells of a step of learning allow."""
        assert self._form is not None
        cells = torch.Size(refuse_no_grid("GridTangent", self._form.outputs)).numel()
        return max(1, min(self.batch, CELLS // cells))

    def plan(self, form: Form, rows: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
        """How far a change is carried, and which ends meet."""
        z, others, change = rows
        given, answered = lattices("GridTangent", form)
        known = ends_of("GridTangent", self.periodic, len(given.space))
        grid = given.joined(torch.cat([z, others], dim=1))
        reach, periodic = measure(grid, answered.joined(change), self.reach, known)
        return {"reach": reach, "periodic": periodic}

    def build(self, form: Form, plan: dict[str, Any]) -> nn.Module:
        """The network for that reach."""
        return _GridNetwork(*lattices("GridTangent", form), self.channels, plan["reach"], plan["periodic"])

    def __repr__(self) -> str:
        """With what was set; a resumed run is held to it, so what was measured is not in it."""
        return f"GridTangent(channels={self.channels}, periodic={self.periodic}, reach={self.reach})"


def lattices(who: str, form: Form) -> tuple[Lattice, Lattice]:
    """Of all inputs, those without a gradient last, and of the outputs, on the same cells.

    Raises:
        ConfigurationError: the outputs do not lie on one grid.
    """
    space = refuse_no_grid(who, form.outputs)
    inputs = tuple(spec.shape for spec in form.inputs) + form.others
    return Lattice(inputs, space), Lattice(tuple(spec.shape for spec in form.outputs), space)


class _GridNetwork(nn.Module):
    """Standardised flat inputs and others to what the outputs add, standardised."""

    def __init__(
        self, given: Lattice, answered: Lattice, width: int, reach: int, periodic: Sequence[bool]
    ) -> None:
        super().__init__()
        self.given, self.answered, self.periodic = given, answered, tuple(periodic)
        convolution = CONVOLUTIONS[len(given.space)]
        walls = not all(periodic)
        self.places = nn.Parameter(0.1 * torch.randn(PLACES, *given.space)) if walls else None
        channels = given.channels + (PLACES + 1 if walls else 0)
        first, last = max(1, round(0.375 * reach)), round(0.375 * reach)
        between = max(0, reach - first - last)
        self.line = len(given.space) == 1 and given.space[0] <= SHORT
        self.linear = convolution(channels, answered.channels, 2 * reach + 1)
        self.products = convolution(channels, 2 * width, 2 * first + 1)
        self.bend = convolution(width, width, 2 * between + 1)
        self.last = convolution(width, answered.channels, 2 * last + 1, bias=False)
        for layer in (self.linear, self.last):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type] # it has one

    def forward(self, z: Tensor, others: Tensor) -> Tensor:
        x = self.given.joined(torch.cat([z, others], dim=1))
        x = x.movedim(0, -1).contiguous() if self.line else x  # see `along`
        channels = 0 if self.line else 1
        a, b = self._of_all(self.products, x).chunk(2, dim=channels)
        straight, bent = a.chunk(2, dim=channels)
        hidden = torch.cat([straight, functional.silu(bent)], dim=channels) * b
        hidden = hidden + functional.silu(self._convolved(hidden, self.bend.weight, self.bend.bias))
        found = self._of_all(self.linear, x) + self._convolved(hidden, self.last.weight)
        return self.answered.split(found.movedim(-1, 0) if self.line else found)

    def _of_all(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
        """A layer of the channels of the rows, and of those that are the same in all rows, which it is once.

        On a grid with walls these are most of the channels; and x needs no gradient where weights learn.
        """
        if self.places is None:
            return self._convolved(x, layer.weight, layer.bias)
        same = torch.cat([self.places, torch.ones_like(self.places[:1])])
        same = same[..., None] if self.line else same[None]
        own, shared = layer.weight.split([self.given.channels, PLACES + 1], dim=1)
        return self._convolved(x, own) + self._convolved(same, shared, layer.bias)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.line:
            found = along(x, weight, self.periodic[0])
            return found if bias is None else found + bias[:, None, None]
        around = padded(x, weight.shape[2] // 2, self.periodic)
        return CONVOLVED[x.ndim - 2](around, weight, bias)
