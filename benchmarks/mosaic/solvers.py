"""Solvers of others as black boxes: a velocity to what it is four time steps later; their VJPs as rivals.

Each box is `(rows, 2, points, points)` to the same, float32, through NumPy. Staggered solvers get faces by a
Fourier shift of half a cell and give middles back by the other, so that a call has no state beside the
velocity (Mosaic averages, and carries the solver's own state). Those whose package or program is not
installed are skipped by name.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.mosaic.flow import SIDE, half_cell, wavenumbers
from blackbox import ArraySpec, BlackBoxFunction, Parallel
from blackbox.adapters import CommandLine, openfoam

STEPS, STEP = 4, 0.02  # of time in a call
Advance = Callable[[Any], Any]
"""Of JAX arrays `(rows, 2, points, points)`."""


class JaxSolver(BlackBoxFunction):
    """A solver in JAX, called through NumPy.

    Args:
        name: of the solver.
        points: along a side.
        viscosity: of the fluid.
        advance: what a call does, in JAX.
    """

    def __init__(self, name: str, points: int, viscosity: float, advance: Advance) -> None:
        self.name, self.points, self.viscosity = name, points, viscosity
        self.inputs = self.outputs = (ArraySpec("velocity", (2, points, points)),)
        self._advance = advance

    @cached_property
    def _forward(self) -> Advance:
        return _jax().jit(self._advance)

    @cached_property
    def _backward(self) -> Callable[[Any, Any], Any]:
        jax = _jax()
        return jax.jit(lambda velocity, back: jax.vjp(self._advance, velocity)[1](back)[0])

    def evaluate_rows(self, velocity: NDArray[Any]) -> NDArray[Any]:
        """All rows."""
        return np.array(self._forward(velocity))

    def vjp(self, velocity: NDArray[Any], back: NDArray[Any]) -> NDArray[Any]:
        """The solver's own vector-Jacobian product, of all rows."""
        return np.array(self._backward(velocity, back))


class _WithVJP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, velocity: Tensor, box: JaxSolver) -> Tensor:
        ctx.save_for_backward(velocity)
        ctx.box = box
        return box(velocity.detach())

    @staticmethod
    def backward(ctx: Any, back: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (velocity,) = ctx.saved_tensors
        answer = ctx.box.vjp(velocity.detach().numpy(), back.detach().contiguous().numpy())
        return torch.from_numpy(answer), None


def with_vjp(box: BlackBoxFunction) -> Callable[[Tensor], Tensor] | None:
    """The box with its solver's own derivative, for autograd; None where it has none."""
    if not isinstance(box, JaxSolver):
        return getattr(box, "advance", None)  # of the simulators of this project
    return lambda velocity: _WithVJP.apply(velocity, box)  # type: ignore[no-any-return]


def _package(name: str) -> Any:
    """A module of an optional package: `Maker.missing` has said whether it is there."""
    return import_module(name)


def _jax() -> Any:
    return _package("jax")


def _moved(points: int, sign: int) -> Advance:
    numpy, factors = _jax().numpy, half_cell(points, sign)
    return lambda velocity: numpy.fft.ifft2(numpy.fft.fft2(velocity) * factors).real.astype("float32")


def jax_cfd(points: int, viscosity: float) -> BlackBoxFunction:
    """JAX-CFD: finite volumes on a staggered grid, semi-implicit, van Leer's advection."""
    jax, cfd = _jax(), _package("jax_cfd.base")
    grid = cfd.grids.Grid((points, points), domain=((0, SIDE), (0, SIDE)))
    sides = cfd.boundaries.periodic_boundary_conditions(2)
    step = cfd.equations.semi_implicit_navier_stokes(density=1.0, viscosity=viscosity, dt=STEP, grid=grid)
    several = cfd.funcutils.repeated(step, steps=STEPS)
    to_faces, to_middles = _moved(points, 1), _moved(points, -1)

    def row(faces: Any) -> Any:
        parts = tuple(
            cfd.grids.GridVariable(cfd.grids.GridArray(faces[axis], grid.cell_faces[axis], grid), sides)
            for axis in (0, 1)
        )
        return jax.numpy.stack([part.data for part in several(parts)])

    return JaxSolver(
        "JAX-CFD", points, viscosity, lambda velocity: to_middles(jax.vmap(row)(to_faces(velocity)))
    )


def phiflow(points: int, viscosity: float) -> BlackBoxFunction:
    """PhiFlow on JAX: semi-Lagrangian advection, explicit diffusion, a pressure by conjugate gradients."""
    jax, flow = _jax(), _package("phi.jax.flow")
    bounds, solve = flow.Box(x=SIDE, y=SIDE), flow.Solve("CG", 1e-5, 1e-5)
    to_faces, to_middles = _moved(points, -1), _moved(points, 1)  # its faces are those below

    def advance(velocity: Any) -> Any:
        faces = to_faces(velocity)
        parts = {
            name: flow.math.tensor(faces[:, axis], flow.batch("rows"), flow.spatial("x,y"))
            for axis, name in enumerate("xy")
        }
        values = flow.math.stack(parts, flow.math.dual("vector"))
        grid = flow.StaggeredGrid(values, flow.extrapolation.PERIODIC, bounds=bounds, x=points, y=points)
        for _ in range(STEPS):
            grid = flow.advect.semi_lagrangian(grid, grid, STEP)
            grid = flow.diffuse.explicit(grid, viscosity, STEP)
            grid, _ = flow.fluid.make_incompressible(grid, (), solve)
        natives = [grid.vector[name].values.native("rows,x,y") for name in "xy"]
        return to_middles(jax.numpy.stack(natives, 1))

    return JaxSolver("PhiFlow", points, viscosity, advance)


def exponax(points: int, viscosity: float) -> BlackBoxFunction:
    """Exponax: pseudo-spectral vorticity, second order in time, aliasing left as in Mosaic."""
    jax, ex = _jax(), _package("exponax")
    numpy = jax.numpy
    step = ex.stepper.NavierStokesVorticity(
        2, SIDE, points, STEP, diffusivity=viscosity, order=2, dealiasing_fraction=1.0
    )
    first, second = wavenumbers(points)
    square = np.where(first**2 + second**2 == 0, 1, first**2 + second**2)

    def row(velocity: Any) -> Any:
        mean = velocity.mean((1, 2), keepdims=True)
        along, across = numpy.fft.fft2(velocity - mean)
        # its sign of the vorticity is the other: the stream function is the inverse Laplacian of it
        vorticity = numpy.fft.ifft2(1j * second * along - 1j * first * across).real[None]
        for _ in range(STEPS):
            vorticity = step(vorticity)
        stream = -numpy.fft.fft2(vorticity[0]) / square
        parts = numpy.stack([1j * second * stream, -1j * first * stream])
        return (numpy.fft.ifft2(parts).real + mean).astype("float32")

    return JaxSolver("Exponax", points, viscosity, jax.vmap(row))


CASE = {
    "system/blockMeshDict": """
vertices ((0 0 0) ({side} 0 0) ({side} {side} 0) (0 {side} 0)
(0 0 1) ({side} 0 1) ({side} {side} 1) (0 {side} 1));
blocks (hex (0 1 2 3 4 5 6 7) ({points} {points} 1) simpleGrading (1 1 1));
boundary
(
    left {{ type cyclic; neighbourPatch right; faces ((0 4 7 3)); }}
    right {{ type cyclic; neighbourPatch left; faces ((1 2 6 5)); }}
    below {{ type cyclic; neighbourPatch above; faces ((0 1 5 4)); }}
    above {{ type cyclic; neighbourPatch below; faces ((3 7 6 2)); }}
    sides {{ type empty; faces ((0 3 2 1) (4 5 6 7)); }}
);""",
    "system/controlDict": """
startFrom startTime; startTime 0; stopAt endTime; endTime {span}; deltaT {step};
writeControl runTime; writeInterval {span}; writeFormat binary; writePrecision 9;""",
    "system/fvSchemes": """
ddtSchemes {{ default Euler; }} gradSchemes {{ default Gauss linear; }}
divSchemes {{ default none; div(phi,U) Gauss linear; }}
laplacianSchemes {{ default Gauss linear orthogonal; }} interpolationSchemes {{ default linear; }}
snGradSchemes {{ default orthogonal; }}""",
    "system/fvSolution": """
solvers
{{
    p {{ solver PCG; preconditioner DIC; tolerance 1e-7; relTol 0; }}
    pFinal {{ $p; }}
    U {{ solver smoothSolver; smoother symGaussSeidel; tolerance 1e-9; relTol 0; }}
}}
PISO {{ nCorrectors 2; nNonOrthogonalCorrectors 0; pRefCell 0; pRefValue 0; }}""",
    "constant/transportProperties": "nu {viscosity};",
    "0/U": """
dimensions [0 1 -1 0 0 0 0]; internalField uniform (0 0 0);
boundaryField {{ "(left|right|below|above)" {{ type cyclic; }} sides {{ type empty; }} }}""",
    "0/p": """
dimensions [0 2 -2 0 0 0 0]; internalField uniform 0;
boundaryField {{ "(left|right|below|above)" {{ type cyclic; }} sides {{ type empty; }} }}""",
}
KINDS = {"0/U": "volVectorField", "0/p": "volScalarField"}
ROOT = {"WM_PROJECT_DIR": os.environ.get("WM_PROJECT_DIR", "/usr/share/openfoam")}


def write_velocity(path: Path, velocity: NDArray[Any]) -> None:
    """`(2, points, points)` into the field's file: cells go along the first axis fastest."""
    both = np.stack([part.T.ravel() for part in velocity], axis=1)
    openfoam.write_field(path, np.pad(both, ((0, 0), (0, 1))))


def read_velocity(path: Path) -> NDArray[Any]:
    """The velocity `(2, points, points)`, without the third component, which is zero."""
    values = np.asarray(openfoam.read_field(path))[:, :2]
    points = math.isqrt(len(values))
    return values.T.reshape(2, points, points).swapaxes(1, 2).astype(np.float32)


def icofoam(points: int, viscosity: float) -> BlackBoxFunction:
    """OpenFOAM's icoFoam: finite volumes, Euler, central differences, PISO; a process for each row."""
    kept = tempfile.TemporaryDirectory(prefix="icofoam-")
    case = Path(kept.name) / "case"
    values = {"side": SIDE, "points": points, "span": STEPS * STEP, "step": STEP, "viscosity": viscosity}
    for name, body in CASE.items():
        path = case / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"version 2.0; format ascii; class {KINDS.get(name, 'dictionary')}; object {path.name};"
        path.write_text(f"FoamFile {{ {head} }}\n{body.format(**values)}\n", encoding="utf-8")
    subprocess.run(["blockMesh", "-case", case], check=True, env=os.environ | ROOT, capture_output=True)

    field = ArraySpec("velocity", (2, points, points))
    box = CommandLine(
        ["icoFoam"],
        inputs=[field],
        outputs=[field],
        copies={part: case / part for part in ("0", "constant", "system")},
        input_files={"velocity": ("0/U", write_velocity)},
        output_files={"velocity": (f"{STEPS * STEP:g}/U", read_velocity)},
        environment=ROOT,
        timeout=60,
        failures="keep",
    )
    several = Parallel(box, lambda: ThreadPoolExecutor(2))
    several.kept = kept  # type: ignore[attr-defined]  # the case goes with the box
    return several


@dataclass(frozen=True)
class Maker:
    """How a solver becomes a box.

    Attributes:
        make: (points, viscosity) -> the box.
        modules: that have to be importable.
        packages: distributions whose versions are noted.
        programs: that have to be on the `PATH`.
        install: how one gets it.
        excluded: why columns are not measured, by their names.
    """

    make: Callable[[int, float], BlackBoxFunction]
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    install: str = ""
    excluded: Mapping[str, str] | None = None

    def missing(self) -> str | None:
        """What is not installed, and how one gets it; None where all is."""
        absent = [name for name in self.modules if importlib.util.find_spec(name) is None]
        absent += [name for name in self.programs if shutil.which(name) is None]
        return f"{', '.join(absent)} not installed: {self.install}" if absent else None

    def versions(self) -> dict[str, str]:
        """Of its packages and programs."""
        found = {name: version(name) for name in self.packages}
        if "icoFoam" in self.programs:
            said = subprocess.run(["icoFoam", "-help"], capture_output=True, text=True, env=os.environ | ROOT)
            words = [line for line in said.stdout.splitlines() if "OpenFOAM-" in line]
            found["openfoam"] = (
                words[-1].split("OpenFOAM-")[-1].split()[0].strip("(),") if words else "unknown"
            )
        return found


NO_VJP: dict[str, str] = dict.fromkeys(("WIG", "WIG, four windows"), "icoFoam has no derivative")
SOLVERS: dict[str, Maker] = {
    "JAX-CFD": Maker(jax_cfd, ("jax", "jax_cfd"), ("jax", "jax-cfd"), install="pip install jax jax-cfd"),
    "PhiFlow": Maker(phiflow, ("jax", "phi"), ("jax", "phiflow"), install="pip install jax phiflow"),
    "Exponax": Maker(exponax, ("jax", "exponax"), ("jax", "exponax"), install="pip install exponax"),
    "OpenFOAM": Maker(
        icofoam, programs=("blockMesh", "icoFoam"), install="apt-get install openfoam", excluded=NO_VJP
    ),
}
