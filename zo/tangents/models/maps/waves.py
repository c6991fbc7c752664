"""`Waves`: arrays on a grid as sums of waves, which are sines or cosines between walls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from zo.tangents.models.maps.lattice import Lattice

Odd = tuple[tuple[bool, ...], ...]  # of each channel along each axis, whether it is a sum of sines

NEVER = 1e-4  # of a wave's largest amplitude: a mixture of channels below it never occurs; decision 82
SEEN = 1e-6  # of the largest amplitude of all waves: one below it says nothing of what outputs can be
SAMPLE = 256  # waves by which sines and cosines are chosen; decision 82
MOST_CHOICES = 2**9  # of them that are compared: three channels along three axes; decision 82
MOST_ROWS = 32  # that they are compared on; decision 82
CONSTANT = 1e-6  # of a channel's spread: faces in a wall that vary by less are those of sines


@dataclass(frozen=True)
class Waves:
    """Amplitudes of waves that are the same in all cells, of arrays on one grid.

    Along an axis whose ends meet a wave is exp(2 pi i k n / cells). Between walls it is, for each channel,
    the sine or the cosine of pi k n / cells, with n from the wall: in the middle of cells, or at their faces.
    Waves of the same k are next to each other. So a relation between sines of one channel and cosines of
    another, such as zero divergence, holds for each wave by itself.

    Attributes:
        lattice: the lattice of the arrays, all on the grid.
        periodic: for each axis whether its ends meet.
        odd: for each channel along each axis, whether it is a sum of sines; unused where ends meet.
    """

    lattice: Lattice
    periodic: tuple[bool, ...]
    odd: Odd = ()

    def of(self, grid: Tensor) -> Tensor:
        """`(rows, channels, *space)` to `(rows, channels, *waves)`, complex if any ends meet."""
        for axis, (to_waves, _) in self._bases.items():
            grid = _along(grid, to_waves.to(grid), axis)
        return torch.fft.rfftn(grid, dim=self._meeting) if self._meeting else grid

    def back(self, waves: Tensor) -> Tensor:
        """The way back, to `(rows, channels, *space)`."""
        if self._meeting:
            lengths = [self.lattice.space[axis - 2] for axis in self._meeting]
            waves = torch.fft.irfftn(waves, s=lengths, dim=self._meeting)
        for axis, (_, again) in self._bases.items():
            waves = _along(waves, again.to(waves), axis)
        return waves

    @property
    def shape(self) -> tuple[int, ...]:
        """Waves along each axis."""
        shape = list(self.lattice.space)
        for axis in self._bases:
            shape[axis - 2] = self._bases[axis][0].shape[1]
        if self._meeting:
            shape[self._meeting[-1] - 2] = shape[self._meeting[-1] - 2] // 2 + 1
        return tuple(shape)

    def inner(self, sizes: Tensor) -> Tensor:
        """Return sizes to compare waves with: a wave that some channels lack is compared with the next.

        At the ends, k of 0 or of all cells, there is no sine. A velocity without divergence has no waves
        there at all, though it has the next ones: these are not unseen, they never occur.

        Args:
            sizes: the sizes of each wave, `(*waves, 1)`.

        Returns:
            The same, of these waves that of the next inside; but of none where k is zero along all axes: what
            all cells share may have been the same in all rows.
        """
        if not self._bases:
            return sizes
        places, zero, lacks = [], [], torch.zeros(self.shape, dtype=torch.bool)
        for axis, length in enumerate(self.shape):
            along = torch.arange(length)
            spread = [-1 if number == axis else 1 for number in range(len(self.shape))]
            zero.append((along == 0).reshape(spread))
            if not self.periodic[axis]:
                present = self._bases[axis + 2][0].abs().amax(dim=2) > 0
                lacks = lacks | (~present.all(dim=0)).reshape(spread)
                along = along.clamp(1, length - 2)
            places.append(along.reshape(spread))
        lacks = lacks & ~torch.stack(torch.broadcast_tensors(*zero)).all(dim=0)
        return torch.where(lacks[..., None].to(sizes.device), sizes[tuple(places)], sizes)

    @cached_property
    def _meeting(self) -> tuple[int, ...]:
        """The axes of an array whose ends meet."""
        return tuple(axis for axis, wraps in enumerate(self.periodic, start=2) if wraps)

    @cached_property
    def _bases(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Bases of axes with walls: waves of cells, `(channels, waves, cells)`, and cells of waves."""
        bases = {}
        for axis, (wraps, most) in enumerate(zip(self.periodic, self.lattice.space, strict=True)):
            if not wraps:
                lengths = lengths_of(self.lattice, axis)
                both = [
                    _basis(min(lengths), length > min(lengths), odd[axis], most)
                    for length, odd in zip(lengths, self.odd, strict=True)
                ]
                to_waves, to_cells = zip(*both, strict=True)
                bases[axis + 2] = torch.stack(to_waves), torch.stack(to_cells)
        return bases


def lengths_of(lattice: Lattice, axis: int) -> list[int]:
    """Return the count of numbers that each channel has along an axis of space."""
    first = -len(lattice.space)
    return [shape[first:][axis] for shape in lattice.shapes for _ in range(lattice.channels_of(shape))]


@torch.no_grad()
def between_walls(lattice: Lattice, y: Tensor, periodic: Sequence[bool]) -> Waves | None:
    """The waves in which rows obey a constraint between channels, if they do in any.

    Values do not say by themselves whether a channel is a sum of sines or of cosines: next to a wall without
    slip a velocity looks odd whichever way it points. But for a velocity without divergence some mixture of
    the channels never occurs in waves of the right kind, and occurs in waves of all other kinds.

    Args:
        lattice: the lattice of the rows.
        y: `(rows, size)`, in units that give channels the same weight.
        periodic: for each axis whether its ends meet.

    Returns:
        The waves with the most cases in which a mixture of channels never occurs. None in four cases: where
        these are fewer than half of the waves; where any choice of waves has half of them, since such similar
        rows show nothing; with one channel; or with too many choices.
    """
    walls = [axis for axis, wraps in enumerate(periodic) if not wraps]
    if lattice.channels < 2 or not walls:
        return None
    grid = lattice.joined((y - y.mean(dim=0))[:MOST_ROWS].double())
    channels = [channel for channel in range(lattice.channels) if bool(grid[:, channel].any())]
    choices = [
        list(itertools.product(*(_possible(grid[:, channel], lattice, channel, axis) for axis in walls)))
        if channel in channels
        else [(False,) * len(walls)]
        for channel in range(lattice.channels)
    ]
    if math.prod(map(len, choices)) > MOST_CHOICES:
        return None
    amplitudes: list[list[Tensor]] = [[] for _ in choices]
    draws: list[Tensor] = []
    for place in range(max(map(len, choices))):  # each channel's choices, side by side
        odd = tuple(
            _everywhere(options[min(place, len(options) - 1)], walls, len(periodic)) for options in choices
        )
        waves = Waves(lattice, tuple(periodic), odd)
        draws = draws or _drawn(waves.shape, walls)
        coefficients = waves.of(grid)[(slice(None), slice(None), *draws)]
        for channel, options in enumerate(choices):
            if place < len(options):
                amplitudes[channel].append(coefficients[:, channel])
    shares = {}
    for choice in itertools.product(*(range(len(options)) for options in choices)):
        vectors = torch.stack([amplitudes[channel][choice[channel]] for channel in channels], dim=-1)
        shares[choice] = _without_a_mixture(vectors)
    best = max(shares, key=lambda choice: shares[choice])
    if not min(shares.values()) < 0.5 < shares[best]:
        return None
    odd = tuple(
        _everywhere(options[place], walls, len(periodic))
        for options, place in zip(choices, best, strict=True)
    )
    return Waves(lattice, tuple(periodic), odd)


def _without_a_mixture(vectors: Tensor) -> float:
    """Return the share of waves `(rows, waves, channels)` in which a mixture of channels never occurs."""
    if vectors.shape[-1] < 2:
        return 0.0
    values = torch.linalg.eigvalsh(torch.einsum("rwc,rwd->wcd", vectors.conj(), vectors))
    largest = values[:, -1]
    present = largest > SEEN**2 * largest.max()
    return (
        float((values[present, 0] < NEVER**2 * largest[present]).double().mean())
        if bool(present.any())
        else 0.0
    )


def _along(grid: Tensor, matrices: Tensor, axis: int) -> Tensor:
    """Each channel's matrix `(channels, new, old)` along an axis of `(rows, channels, *cells)`."""
    last = grid.movedim(axis, -1)
    factors = matrices.mT.reshape(len(matrices), *[1] * (last.ndim - 4), *matrices.mT.shape[1:])
    return (last @ factors).movedim(-1, axis) if last.ndim > 3 else (last[:, :, None] @ factors)[:, :, 0]


def _basis(cells: int, faces: bool, odd: bool, length: int) -> tuple[Tensor, Tensor]:
    """Waves of cells, `(cells + 1, length)`, and cells of waves; zero where there is none."""
    count = cells + 1 if faces else cells
    places = torch.arange(count).double() + (0.0 if faces else 0.5)
    angles = math.pi * torch.arange(cells + 1).double()[:, None] * places / cells
    to_waves = angles.sin() if odd else angles.cos()
    sizes = to_waves.square().sum(dim=1, keepdim=True).sqrt()
    to_waves = torch.where(sizes > 1e-6 * math.sqrt(cells), to_waves / sizes.clamp(min=1e-12), 0.0)
    to_cells = torch.linalg.pinv(to_waves) if faces and not odd else to_waves.T
    gap = length - count
    return functional.pad(to_waves, (0, gap)), functional.pad(to_cells, (0, 0, 0, gap))


def _possible(grid: Tensor, lattice: Lattice, channel: int, axis: int) -> tuple[bool, ...]:
    """List the choices for a channel, `(rows, *space)`: True for a sum of sines, False for cosines."""
    lengths = lengths_of(lattice, axis)
    if lengths[channel] == min(lengths):
        return False, True
    ends = grid.movedim(axis + 1, 0)[[0, lengths[channel] - 1]]
    constant = float(ends.abs().max()) <= CONSTANT * float(grid.square().mean().sqrt())
    return (constant,)


def _everywhere(along_walls: Sequence[bool], walls: Sequence[int], axes: int) -> tuple[bool, ...]:
    by_wall = dict(zip(walls, along_walls, strict=True))
    return tuple(by_wall.get(axis, False) for axis in range(axes))


def _drawn(shape: Sequence[int], walls: Sequence[int]) -> list[Tensor]:
    """Some waves that have both sines and cosines."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(1, length - 1, (SAMPLE,), generator=generator)
        if axis in walls
        else torch.randint(length, (SAMPLE,), generator=generator)
        for axis, length in enumerate(shape)
    ]
