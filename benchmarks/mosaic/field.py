"""Recovery of an initial condition by `zo.fit_field`, beside L-BFGS on the adjoint, by rows.

The task is that of `recovery`: a vorticity of 1,024 numbers, ten calls. The other one is a velocity without
divergence, 2,048 numbers, ten calls of JAX-CFD, whose finite volumes with a limiter are no equation of the
tangent's; there the adjoint is JAX-CFD's own. In three dimensions (`space`) it has 12,288 numbers, and goes
through Exponax or JAX-CFD. The adjoint has 1,080 rows, as there, `fit_field` some of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import zo
from benchmarks import protocol
from benchmarks.mosaic import cells, recovery, search, space
from benchmarks.mosaic.flow import projected, trajectory
from benchmarks.mosaic.flow import start as drawn
from benchmarks.mosaic.solvers import SOLVERS, STEP, STEPS, with_vjp
from blackbox import BlackBoxFunction
from simulators.spectral import Vorticity

METHODS = ("adjoint, L-BFGS", "fit_field", "fit_field, AutoTangent", "fit_field, EquationTangent")
FLOWS = (
    "vorticity, rms 0.7",
    "vorticity, rms 1.4",
    "velocity, JAX-CFD",
    "velocity in 3-D, Exponax",
    "velocity in 3-D, JAX-CFD",
)


@dataclass(frozen=True)
class Task:
    """Sizes.

    Attributes:
        recovery: those of the vorticity's task.
        rows: of `fit_field`.
        inner: its iterations between evaluations.
    """

    recovery: recovery.Task = recovery.SMALL
    rows: int = 60
    inner: int = 30


SMALL = Task()
CI = Task(recovery.CI, rows=6, inner=4)


class Divergenceless(zo.Field):
    """A velocity of which the part without divergence counts."""

    def forward(self, rows: Tensor) -> Tensor:
        """`(rows, *values.shape)`: two components on a square, or three in a cube."""
        two = self.values.dim() == 3
        return (projected if two else space.projected)(self.values).expand(len(rows), *self.values.shape)


def case(flow: str, task: recovery.Task, seed: int) -> search.Case:
    """One of `FLOWS`."""
    if flow.startswith("vorticity"):
        truth = recovery.wanted(task, float(flow.split()[-1]), seed)
        box: BlackBoxFunction = Vorticity(task.points, viscosity=0.01, steps=task.steps)
        kind: type[zo.Field] = zo.Field
    elif "3-D" in flow:
        points = max(task.points // 2, 8)
        truth, kind = space.wanted(points, seed), Divergenceless
        box = space.box(solver_of(flow) or "", points)
    else:
        points = max(task.points, 18)
        velocity = drawn(2 * points, seed, fastest=1.0)
        start = trajectory(velocity, 0, points, 0.01, STEPS * STEP, 1)[0]
        truth, box, kind = torch.from_numpy(start), SOLVERS["JAX-CFD"].make(points, 0.01), Divergenceless
    with torch.no_grad():
        end = truth[None]
        for _ in range(task.calls):
            end = box(end)
    advance = with_vjp(box)
    assert advance is not None
    exact, through = (search.ends_of(each, end, task.calls) for each in (advance, box))
    return search.Case(box, exact, through, kind(end[0]), truth)


def searched(method: str, flow: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least loss and its error, the errors on the way, rows and seconds."""
    this, calls = case(flow, task.recovery, seed), task.recovery.calls
    note, before = search.Course(this.error), this.box.ledger.rows_run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method.startswith("adjoint"):
            search.bfgs(this.field, search.by_adjoint(this), task.recovery.evaluations, note)
            return note.figures(seed, len(note.losses) * calls)
        named = {
            METHODS[2]: zo.tangents.AutoTangent(this.box, seed, without=["equation"]),
            METHODS[3]: zo.tangents.EquationTangent(),
        }
        fit = zo.fit_field(
            this.field,
            this.objective,
            boxes=[this.box],
            rows=task.rows,
            tangent=named.get(method),
            inner=task.inner,
            seed=seed,
            evaluated=note,
        )
    used = fit.gradient.tangents[0]
    seen = getattr(getattr(used, "equation", used), "measured", {})
    return note.figures(seed, this.box.ledger.rows_run - before, why=fit.why, measured=seen)


def order(name: str) -> tuple[int, int]:
    """The place of a cell "method: flow" in the table; unknown ones are last."""
    method, flow = name.split(": ")
    return tuple(  # type: ignore[return-value]
        known.index(part) if part in known else len(known)
        for known, part in ((FLOWS, flow), (METHODS, method))
    )


def of_name(name: str, task: Task, seed: int) -> dict[str, Any]:
    """A run of the cell "method: flow"."""
    method, flow = name.split(": ")
    return searched(method, flow, task, seed)


def missing(name: str, task: Task) -> str | None:
    """Why a cell "method: flow" cannot be measured; None where it can."""
    solver = solver_of(name)
    return SOLVERS[solver].missing() if solver else None


def solver_of(flow: str) -> str | None:
    """The solver of others that moves a flow on; None where it is this project's."""
    return next((name for name in SOLVERS if name in flow), None)


NAMES = [f"{method}: {flow}" for flow in FLOWS for method in METHODS]
result = partial(
    cells.of_study, "field", NAMES, of_name, missing, most=lambda name: 1 if "3-D" in name else None
)
"""All cells, by "method: flow": (task, seeds, an earlier result, what is called after each cell)."""


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each flow and method."""
    lines, why = [], []
    for name, cell in sorted(found["cells"].items(), key=lambda item: order(item[0])):
        method, flow = name.split(": ")
        if "runs" not in cell:
            why.append(f"- {flow}, {method}: {cell['state']}, {cell['why']}.")
            continue
        errors, starts, rows = ([run[key] for run in cell["runs"]] for key in ("error", "start", "rows"))
        paired = found["cells"].get(f"{METHODS[0]}: {flow}", {}).get("runs", ())
        over = [error / run["error"] for error, run in zip(errors, paired, strict=False)]
        ratio = cells.spread(over, ".2f") if over and method != METHODS[0] else ""
        shown = f"{fmean(starts):.2f}", cells.spread(errors, ".3f"), ratio, f"{fmean(rows):,.0f}"
        lines.append((flow, method, *shown, str(len(errors))))
    missing = (name.split(": ") for name in NAMES if name not in found["cells"])
    why += [
        f"- {flow}, {method}: not run, for want of time; a cell in 3-D takes minutes."
        for method, flow in missing
    ]
    heads = "what is looked for", "method", "begins at", "error", "over the adjoint's", "rows", "seeds"
    return (
        "Relative error of the initial state at the least loss: mean of the seeds, least and greatest. One "
        "gradient by differences takes more than 10,000 rows, in three dimensions (3-D) more than 120,000. "
        "Since then an equation's flow takes fewer transforms and its fits halve a correction that does not "
        "help: `fit_field`'s vorticities of seed 0 end at .0028 (here .0031) and .031 (.030) with that.\n\n"
        + protocol.markdown(heads, lines)
        + ("\n\nNot measured:\n\n" + "\n".join(why) if why else "")
    )
