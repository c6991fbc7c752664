"""Three-dimensional periodic flow: random starts, projections, and two solvers of others as black boxes.

Velocities are `(rows, 3, points, points, points)` in a cube of side 2 pi. After Mosaic's `recovery` (arXiv
2606.27895), an initial condition of 16 x 16 x 16 cells, 12,288 numbers: there XLB's adjoint ends at 5.42 %
after 100 evaluations of L-BFGS. Viscosity .02, a root mean square speed of 1, .2 units of time in a call.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.mosaic.flow import SIDE
from benchmarks.mosaic.solvers import Advance, JaxSolver, _jax, _package
from blackbox import ArraySpec

VISCOSITY, STEPS, STEP = 0.02, 4, 0.05  # steps of time in a call
AROUND, WIDTH = 2.0, 1.0  # the wavenumber that has most energy, and the width of the shell


def wavenumbers(points: int) -> Tensor:
    """Along the three axes, `(3, points, points, points)` in float64."""
    along = torch.fft.fftfreq(points, 1 / points, dtype=torch.float64)
    return torch.stack(torch.meshgrid(along, along, along, indexing="ij"))


def projected(velocity: Tensor) -> Tensor:
    """The part of `(..., 3, points, points, points)` without divergence, mean and Nyquist modes."""
    waves = wavenumbers(velocity.shape[-1]).to(velocity.dtype)
    square = waves.square().sum(0)
    kept = (waves.abs().amax(0) < velocity.shape[-1] / 2) & (square > 0)
    modes = torch.fft.fftn(velocity, dim=(-3, -2, -1))
    along = (waves * modes).sum(-4, keepdim=True) / square.clamp_min(1)
    return torch.fft.ifftn((modes - waves * along) * kept, dim=(-3, -2, -1)).real


def wanted(points: int, seed: int) -> Tensor:
    """A random velocity without divergence, `(3, points, points, points)`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, points, points, points, generator=generator, dtype=torch.float64)
    size = torch.exp(-0.5 * ((wavenumbers(points).square().sum(0).sqrt() - AROUND) / WIDTH).square())
    found = projected(torch.fft.ifftn(torch.fft.fftn(noise, dim=(1, 2, 3)) * size, dim=(1, 2, 3)).real)
    return (found / found.square().sum(0).mean().sqrt()).float()


def box(solver: str, points: int) -> JaxSolver:
    """Exponax or JAX-CFD in three dimensions."""
    made = JaxSolver(solver, points, VISCOSITY, {"Exponax": _exponax, "JAX-CFD": _jax_cfd}[solver](points))
    made.inputs = made.outputs = (ArraySpec("velocity", (3, points, points, points)),)
    return made


def _exponax(points: int) -> Advance:
    """Pseudo-spectral, second order in time, freed of aliasing."""
    jax, ex = _jax(), _package("exponax")
    step = ex.stepper.NavierStokesVelocity(3, SIDE, points, STEP, diffusivity=VISCOSITY, order=2)

    def row(velocity: Any) -> Any:
        for _ in range(STEPS):
            velocity = step(velocity)
        return velocity.astype("float32")

    return jax.vmap(row)  # type: ignore[no-any-return]


def _jax_cfd(points: int) -> Advance:
    """Finite volumes on a staggered grid, semi-implicit, van Leer's advection."""
    jax, cfd = _jax(), _package("jax_cfd.base")
    grid = cfd.grids.Grid((points,) * 3, domain=((0, SIDE),) * 3)
    sides = cfd.boundaries.periodic_boundary_conditions(3)
    step = cfd.equations.semi_implicit_navier_stokes(density=1.0, viscosity=VISCOSITY, dt=STEP, grid=grid)
    several = cfd.funcutils.repeated(step, steps=STEPS)
    waves = wavenumbers(points).numpy()
    kept = np.abs(waves) < points / 2
    half = {sign: kept * np.exp(sign * 1j * waves * kept * math.pi / points) for sign in (1, -1)}

    def moved(velocity: Any, sign: int) -> Any:
        """Middles of cells to the faces above them for sign 1, and back for -1."""
        modes = jax.numpy.fft.fftn(velocity, axes=(1, 2, 3)) * half[sign]
        return jax.numpy.fft.ifftn(modes, axes=(1, 2, 3)).real.astype("float32")

    def row(velocity: Any) -> Any:
        faces = moved(velocity, 1)
        parts = tuple(
            cfd.grids.GridVariable(cfd.grids.GridArray(faces[axis], grid.cell_faces[axis], grid), sides)
            for axis in range(3)
        )
        return moved(jax.numpy.stack([part.data for part in several(parts)]), -1)

    return jax.vmap(row)  # type: ignore[no-any-return]
