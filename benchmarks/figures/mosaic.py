"""The figures of Mosaic's solvers, by column and seed, and of two fields that are looked for."""

from __future__ import annotations

from statistics import fmean

from benchmarks.figures.measured import read
from benchmarks.mosaic.comparison import gain
from benchmarks.mosaic.inflow import SHORT

SOLVERS = ("jax-cfd", "phiflow", "phiflow-paper", "jax-cfd-paper")
FITS = ("adjoint, L-BFGS: velocity in 3-D, Exponax", "fit_field: velocity in 3-D, Exponax")
SEARCHES = (
    "adjoint, L-BFGS, as few rows as fit_field",
    f"fit_field, the same in moves of {SHORT} iterations",
)


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
    for study, names in (("field", FITS), ("inflow", SEARCHES)):
        cells = read(f"mosaic/{study}.json")["cells"]
        values |= {
            f"mosaic, {study}, {name}": fmean(run["error"] for run in cells[name]["runs"]) for name in names
        }
    return values
