"""Waves between walls against mirror images and matrices; and learning through a projection there."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import zo
from blackbox import ArraySpec
from tests.oracles.test_large_grids import smooth
from tests.oracles.test_value_tangents import box_of, cosine, learn, pairs_at, true_vjp
from tests.zo.learners import learner
from tests.zo.row_boxes import weights
from zo.tangents.models.maps.lattice import Lattice
from zo.tangents.models.maps.spectral_map import SpectralMap
from zo.tangents.models.maps.waves import Waves, between_walls

BOXES = {  # cells along each axis, and which ends meet
    "room": ((9, 12), (False, False)),
    "channel": ((15, 10), (True, False)),
    "cube": ((7, 6, 9), (False, False, False)),
    "duct": ((7, 6, 9), (False, True, False)),
}


def velocity(space: tuple[int, ...]) -> Lattice:
    return Lattice(((len(space), *space),), space)


def through_walls(periodic: tuple[bool, ...]) -> tuple[tuple[bool, ...], ...]:
    """What goes through a wall is a sum of sines."""
    axes = range(len(periodic))
    return tuple(tuple(axis == channel and not periodic[axis] for axis in axes) for channel in axes)


def confined(x: torch.Tensor, periodic: tuple[bool, ...]) -> torch.Tensor:
    """Without divergence, and nothing goes through walls: by mirror images and Fourier transforms."""
    space, whole = x.shape[2:], x
    for axis, wraps in enumerate(periodic):
        if not wraps:
            sign = torch.where(torch.arange(len(space)) == axis, -1.0, 1.0).to(x)
            image = whole.flip(axis + 2) * sign.reshape(-1, *[1] * len(space))
            whole = torch.cat([whole, image], axis + 2)
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in whole.shape[2:]]
    waves = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    waves = waves * (waves != -0.5)  # the shortest wave has no slope
    waves = waves / waves.square().sum(0).sqrt().clamp(min=1e-12)
    transformed = torch.fft.fftn(whole, dim=tuple(range(2, x.ndim)))
    transformed = torch.fft.ifftn(
        transformed - waves * (waves * transformed).sum(1, keepdim=True), dim=tuple(range(2, x.ndim))
    )
    return transformed.real[(..., *(slice(n) for n in space))]


@cache
def without_flux(cells: tuple[int, int]) -> tuple[Lattice, torch.Tensor]:
    """Faces of a room, u across the first axis and v across the second; the projector on flows of no
    divergence, by singular values of the matrix that sums what leaves each cell."""
    n, m = cells
    lattice = Lattice(((1, n + 1, m), (1, n, m + 1)), (n + 1, m + 1))
    size = (n + 1) * m + n * (m + 1)
    rows = []
    for i in range(n):
        for j in range(m):
            row = torch.zeros(size, dtype=torch.float64)
            u, v = row[: (n + 1) * m].view(n + 1, m), row[(n + 1) * m :].view(n, m + 1)
            u[i, j], u[i + 1, j], v[i, j], v[i, j + 1] = -1.0, 1.0, -1.0, 1.0
            rows.append(row)
    walls = torch.zeros(size, dtype=torch.bool)
    walls[: (n + 1) * m].view(n + 1, m)[[0, n]] = True
    walls[(n + 1) * m :].view(n, m + 1)[:, [0, m]] = True
    constraint = torch.cat([torch.stack(rows), torch.eye(size, dtype=torch.float64)[walls]])
    return lattice, torch.eye(size, dtype=torch.float64) - torch.linalg.pinv(constraint) @ constraint


# Waves


@pytest.mark.parametrize("name", BOXES)
def test_waves_and_back_are_the_array(name):
    space, periodic = BOXES[name]
    x = weights(3, len(space), *space)
    waves = Waves(velocity(space), periodic, through_walls(periodic))
    amplitudes = waves.of(x)
    assert amplitudes.shape[2:] == waves.shape
    assert torch.allclose(waves.back(amplitudes), x, atol=1e-12)


def test_waves_between_walls_are_sines_and_cosines():
    """Of cells in their middle, of faces where they are; the same k in the same place."""
    lattice = Lattice(((1, 9), (1, 8)), (9,))
    faces, cells = torch.arange(9).double(), torch.arange(8).double() + 0.5
    both = torch.cat([torch.sin(math.pi * 3 * faces / 8), torch.cos(math.pi * 3 * cells / 8)])[None]
    amplitudes = Waves(lattice, (False,), ((True,), (False,))).of(lattice.joined(both))[0]
    assert torch.allclose(
        amplitudes[:, 3], torch.full((2,), 2.0, dtype=torch.float64)
    )  # the root of half of 8
    amplitudes[:, 3] = 0
    assert amplitudes.abs().max() < 1e-12


def test_faces_that_are_sums_of_cosines_come_back():
    lattice = Lattice(((1, 9), (1, 8)), (9,))
    x = weights(4, 17)
    waves = Waves(lattice, (False,), ((False,), (True,)))
    assert torch.allclose(lattice.split(waves.back(waves.of(lattice.joined(x)))), x, atol=1e-12)


# Which waves


@pytest.mark.parametrize("name", BOXES)
def test_the_waves_of_a_flow_between_walls_are_those_in_which_it_has_no_divergence(name):
    space, periodic = BOXES[name]
    y = confined(weights(16, len(space), *space), periodic).flatten(1)
    waves = between_walls(velocity(space), y, periodic)
    assert waves is not None
    assert waves.odd == through_walls(periodic)


def test_the_waves_of_faces_are_told_by_what_goes_through_walls():
    lattice, projector = without_flux((8, 6))
    waves = between_walls(lattice, weights(16, len(projector)) @ projector, (False, False))
    assert waves is not None
    assert waves.odd == ((True, False), (False, True))


@pytest.mark.parametrize("name", BOXES)
def test_without_a_constraint_there_are_no_waves(name):
    space, periodic = BOXES[name]
    assert between_walls(velocity(space), weights(16, math.prod((len(space), *space))), periodic) is None
    assert between_walls(Lattice(((1, *space),), space), weights(16, math.prod(space)), periodic) is None


def test_rows_that_are_alike_show_no_waves():
    """In rows of one shape a mixture never occurs, whatever the waves."""
    y = weights(16, 1) * weights(1, 2 * 9 * 12, seed=1)
    assert between_walls(velocity((9, 12)), y, (False, False)) is None


def test_a_channel_that_never_changes_does_not_hide_the_waves():
    space, periodic = BOXES["room"]
    y = confined(weights(16, 2, *space), periodic)
    y = torch.cat([y, torch.full_like(y[:, :1], 3.0)], dim=1).flatten(1)
    waves = between_walls(Lattice(((3, *space),), space), y, periodic)
    assert waves is not None
    assert waves.odd[:2] == through_walls(periodic)


def test_too_many_choices_are_not_looked_at():
    y = weights(64, 5 * 7 * 6 * 9)
    assert between_walls(Lattice(((5, 7, 6, 9),), (7, 6, 9)), y, (False, False, False)) is None


# The map


@pytest.mark.parametrize("name", BOXES)
def test_the_map_between_walls_is_the_projector(name):
    """Also on waves along one axis alone, which have a divergence and so never occur."""
    space, periodic = BOXES[name]
    y = confined(weights(24, len(space), *space), periodic).flatten(1)
    scale = torch.ones(y.shape[1], dtype=torch.float64)
    spectral = SpectralMap(Waves(velocity(space), periodic, through_walls(periodic)))
    spectral.fit(y, y, scale)
    x = weights(3, len(space), *space, seed=7)
    assert torch.allclose(spectral.pushed(x.flatten(1)).reshape(x.shape), confined(x, periodic), atol=1e-8)
    assert spectral.takes


def test_the_map_of_faces_is_the_projector():
    lattice, projector = without_flux((8, 6))
    y = weights(24, len(projector)) @ projector
    waves = between_walls(lattice, y, (False, False))
    assert waves is not None
    spectral = SpectralMap(waves)
    spectral.fit(y, y, torch.ones(y.shape[1], dtype=torch.float64))
    x = weights(3, len(projector), seed=7)
    assert torch.allclose(spectral.pushed(x), x @ projector, atol=1e-8)


def test_what_all_cells_share_stays():
    """Rows whose mean is the same say nothing of a box that is given another."""
    space = (9, 12)
    y = weights(24, 2, *space)
    y = (y - y.mean(dim=(2, 3), keepdim=True)).flatten(1)
    spectral = SpectralMap(Waves(velocity(space), (False, False), ((False, False), (False, False))))
    spectral.fit(y, y, torch.ones(y.shape[1], dtype=torch.float64))
    assert torch.allclose(spectral.pushed(torch.ones_like(y[:1])), torch.ones_like(y[:1]), atol=1e-8)


# Learning


def between(u: torch.Tensor) -> torch.Tensor:
    """A velocity carried by itself between walls that nothing slips along, and confined."""
    change = torch.zeros_like(u)
    for axis in (2, 3):
        first, last = u.narrow(axis, 0, 1), u.narrow(axis, u.shape[axis] - 1, 1)
        wide = torch.cat([-first, u, -last], axis)
        before, behind = wide.narrow(axis, 0, u.shape[axis]), wide.narrow(axis, 2, u.shape[axis])
        change = change + u[:, axis - 2, None] * (before - behind) + 0.1 * (before - 2 * u + behind)
    return confined(u + 0.2 * change, (False, False))


def trained(
    limits, function, states: torch.Tensor
) -> tuple[zo.tangents.GridTangent, zo.tangents.GridTangent]:
    """A tangent after some steps, and another that goes on from its state."""
    limits(patch_cells=200, row_cells=100)
    spec = ArraySpec("u", tuple(states.shape[1:]))
    box = box_of(function, spec)
    tangents = [
        learner(zo.tangents.GridTangent, 8, reach=1, periodic=False, first_steps=50) for _ in range(2)
    ]
    for part in states.split(8):
        learn(tangents[0], pairs_at(box, part))
    tangents[1].load_state_dict(tangents[0].state_dict())
    return tangents[0], tangents[1]


@pytest.mark.slow
def test_between_walls_a_large_grid_learns_through_the_map(limits):
    """On patches, behind no map, this is .93."""
    spec = ArraySpec("u", (2, 24, 24))
    states = confined(smooth(128, spec.shape, 0).double(), (False, False)).float()
    tangent, again = trained(limits, between, states)
    box, z, v = box_of(between, spec), states[:4].flip(1, 3), smooth(4, spec.shape, 2).flatten(1)
    z = confined(z.double(), (False, False)).float()
    assert tangent.whole_rows
    pulled = tangent.at(pairs_at(box, z)).pull(v)
    assert torch.equal(pulled, again.at(pairs_at(box, z)).pull(v))
    assert cosine(pulled, true_vjp(box, (z,), v)) > 0.98


def test_between_walls_without_a_constraint_it_learns_on_patches(limits):
    def walled(u: torch.Tensor) -> torch.Tensor:
        return u + 0.1 * u.tanh()

    tangent, _ = trained(limits, walled, smooth(16, (2, 24, 24), 0))
    assert not isinstance(vars(tangent)["_map"], SpectralMap)
    assert not tangent.whole_rows
