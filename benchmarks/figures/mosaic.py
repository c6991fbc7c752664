"""The figures of Mosaic's solvers, by column and seed, and of a field that is fitted."""

from __future__ import annotations

from statistics import fmean

from benchmarks.figures.measured import read
from benchmarks.mosaic.comparison import gain

SOLVERS = ("jax-cfd", "phiflow", "phiflow-paper", "jax-cfd-paper")
FITS = ("adjoint, L-BFGS: velocity in 3-D, Exponax", "fit_field: velocity in 3-D, Exponax")


def figures() -> dict[str, float]:
    """Final errors, and by how many percent a column's errors are below those of others."""
    values = {}
    for solver in SOLVERS:
        found = read(f"mosaic/{solver}.json")
        for column, cell in found["cells"].items():
            for seed, run in enumerate(cell["runs"]):
                values[f"mosaic, {solver}, {column}, seed {seed}"] = run["final"]
            for over in ("NOG", "uncorrected"):
                if column != over and (ahead := gain(found, column, over)) is not None:
                    values[f"mosaic, {solver}, {column}, over {over}"] = ahead
    cells = read("mosaic/field.json")["cells"]
    return values | {
        f"mosaic, field, {name}": fmean(r["error"] for r in cells[name]["runs"]) for name in FITS
    }
