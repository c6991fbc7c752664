"""XLB in the loop: a box whose state is its populations on a lattice, and a corrector of the velocity in it.

The study is that of `corrector`. A call is eight lattice steps of BGK's collision on D2Q9; populations go in
and come out, `(9, points, points)`. The network sees and corrects the velocity, and the populations get the
difference of the two equilibria, so that all that is not velocity stays. Starts and the frames of windows get
the pressure of their velocity, and the populations that its strain has to first order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.mosaic.flow import SIDE, wavenumbers
from benchmarks.mosaic.solvers import STEP, STEPS, JaxSolver, Maker, _package
from blackbox import ArraySpec, BlackBoxFunction

SUBSTEPS = 8  # of the lattice in a call
WAYS = torch.tensor([[0, 0, 0, 1, -1, 1, -1, 1, -1], [0, 1, -1, 0, 1, -1, 0, 1, -1]])  # as XLB has them
WEIGHTS = torch.tensor([4 / 9, 1 / 9, 1 / 9, 1 / 9, 1 / 36, 1 / 36, 1 / 9, 1 / 36, 1 / 36])


class Lattice(JaxSolver):
    """XLB's BGK: populations to what they are four time steps later.

    Args:
        points: along a side.
        viscosity: of the fluid.
    """

    def __init__(self, points: int, viscosity: float) -> None:
        self.speed = SIDE / points * SUBSTEPS / (STEPS * STEP)  # of a cell in a lattice step
        self.relaxation = 0.5 + 3 * viscosity / (SIDE / points * self.speed)
        super().__init__("XLB", points, viscosity, self._advanced(points))
        self.inputs = self.outputs = (ArraySpec("populations", (9, points, points)),)

    def _advanced(self, points: int) -> Callable[[Any], Any]:
        warp_utils, warp = _package("warp.utils"), _package("warp")
        if not hasattr(warp_utils, "ScopedTimer"):  # XLB 0.3.1 looks for it where warp had it before 1.10
            warp_utils.ScopedTimer = warp.ScopedTimer
        xlb, jax = _package("xlb"), _package("jax")
        backend, policy = xlb.ComputeBackend.JAX, xlb.PrecisionPolicy.FP32FP32
        ways = xlb.velocity_set.D2Q9(precision_policy=policy, compute_backend=backend)
        xlb.init(velocity_set=ways, default_backend=backend, default_precision_policy=policy)
        assert np.array_equal(np.asarray(ways.c), WAYS.numpy())
        grid = _package("xlb.grid").grid_factory((points, points), compute_backend=backend)
        stepper = _package("xlb.operator.stepper").IncompressibleNavierStokesStepper(grid, [], "BGK")

        def row(populations: Any) -> Any:
            for step in range(SUBSTEPS):
                after = stepper.jax_implementation(
                    populations, populations, None, None, 1 / self.relaxation, step
                )
                populations = after[1]
            return populations

        return jax.vmap(row)

    def velocity(self, populations: Tensor) -> Tensor:
        """Of `(rows, 9, points, points)` the velocity `(rows, 2, points, points)`."""
        momentum = torch.einsum("dw,rwij->rdij", WAYS.to(populations), populations)
        return self.speed * momentum / populations.sum(dim=1, keepdim=True)

    def with_velocity(self, populations: Tensor, velocity: Tensor) -> Tensor:
        """The same populations but for their equilibrium, which has another velocity."""
        density = populations.sum(dim=1, keepdim=True)
        before = self.equilibrium(density, self.velocity(populations))
        return populations + self.equilibrium(density, velocity) - before

    def equilibrium(self, density: Tensor, velocity: Tensor) -> Tensor:
        """Maxwell's distribution to second order in the velocity."""
        along = 3 * torch.einsum("dw,rdij->rwij", WAYS.to(velocity), velocity) / self.speed
        square = 1.5 * (velocity / self.speed).square().sum(dim=1, keepdim=True)
        return density * WEIGHTS.to(velocity)[:, None, None] * (1 + along + along.square() / 2 - square)

    def populations(self, velocity: Tensor) -> Tensor:
        """Of a velocity without divergence, behind a collision, with its pressure and strain."""
        first, second = (torch.tensor(each, dtype=torch.float64) for each in wavenumbers(self.points))
        slopes = [1j * each * (each.abs() < self.points / 2) for each in (first, second)]
        modes = torch.fft.fft2(velocity.double())
        strain = torch.stack(
            [torch.fft.ifft2(slope * modes).real for slope in slopes], dim=1
        )  # (rows, along, component, ...)
        twist = torch.einsum("rabij,rbaij->rij", strain, strain)
        square = first.square() + second.square()
        pressure = torch.fft.ifft2(torch.fft.fft2(twist) / square.clamp_min(1)).real
        density = (1 + 3 * pressure / self.speed**2)[:, None]
        along = torch.einsum("aw,bw,rabij->rwij", WAYS.double(), WAYS.double(), strain)
        cell = SIDE / self.points / self.speed  # of time in a lattice step
        apart = 3 * (1 - self.relaxation) * cell * density * WEIGHTS.double()[:, None, None] * along
        return (self.equilibrium(density, velocity.double()) + apart).to(velocity)


def lattice(points: int, viscosity: float) -> BlackBoxFunction:
    """XLB, see `Lattice`."""
    return Lattice(points, viscosity)


SOLVERS = {
    "XLB": Maker(
        lattice, ("jax", "xlb", "warp"), ("jax", "xlb", "warp-lang"), install="pip install jax xlb warp-lang"
    )
}
