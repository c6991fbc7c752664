"""Recovery of an initial condition by `zo.fit_field`, beside L-BFGS on the adjoint, by rows.

The task is that of `recovery`: a vorticity of 1,024 numbers, ten calls. The other one is a velocity without
divergence, 2,048 numbers, ten calls of JAX-CFD, whose finite volumes with a limiter are no equation of the
tangent's; there the adjoint is JAX-CFD's own. In three dimensions (`space`) it has 12,288 numbers, and goes
through Exponax or JAX-CFD. The adjoint has 1,080 rows, as there, `fit_field` some of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

import zo
from benchmarks.mosaic import cells, recovery, space
from benchmarks.mosaic.flow import projected, trajectory
from benchmarks.mosaic.flow import start as drawn
from benchmarks.mosaic.solvers import SOLVERS, STEP, STEPS, with_vjp
from blackbox import BlackBoxFunction
from simulators.spectral import Vorticity
from zo.objective import Objective

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


@dataclass(frozen=True)
class Case:
    """What is looked for.

    Attributes:
        box: the solver.
        exact: the objective by the solver's own derivative.
        objective: that by the box.
        field: as it begins.
        truth: what leads to the end.
    """

    box: BlackBoxFunction
    exact: Objective
    objective: Objective
    field: zo.Field
    truth: Tensor

    def error(self) -> float:
        """Of the field, relative to the truth."""
        found = self.field(torch.zeros(1, 1)).detach()[0]
        return float((found - self.truth).norm() / self.truth.norm())


def case(flow: str, task: recovery.Task, seed: int) -> Case:
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
    of = space.objective_of if "3-D" in flow else recovery.objective_of
    exact, through = (of(each, end, task.calls) for each in (advance, box))
    return Case(box, exact, through, kind(end[0]), truth)


def searched(method: str, flow: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least loss and its error, the errors on the way, rows and seconds."""
    this, began = case(flow, task.recovery, seed), process_time()
    calls, losses, errors = task.recovery.calls, list[float](), [this.error()]
    before = this.box.ledger.rows_run

    def note(loss: float) -> None:
        losses.append(loss)
        errors.append(this.error())

    more: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method.startswith("adjoint"):
            _by_adjoint(this, task.recovery.evaluations, note)
            rows = len(losses) * calls
        else:
            named = {
                METHODS[2]: zo.tangents.AutoTangent(this.box, seed, without=["equation"]),
                METHODS[3]: zo.tangents.EquationTangent(),
            }
            tangent = named.get(method)
            fit = zo.fit_field(
                this.field,
                this.objective,
                boxes=[this.box],
                rows=task.rows,
                tangent=tangent,
                inner=task.inner,
                seed=seed,
                evaluated=note,
            )
            rows, more = this.box.ledger.rows_run - before, {"why": fit.why}
            used = fit.gradient.tangents[0]
            more["measured"] = getattr(getattr(used, "equation", used), "measured", {})
    place = int(np.argmin(losses))
    return {
        "seed": seed,
        "start": errors[0],
        "error": errors[place + 1],
        "loss": losses[place],
        "rows": rows,
        "errors": [round(each, 5) for each in errors[1:]],
        "seconds": round(process_time() - began, 1),
        **more,
    }


def order(name: str) -> tuple[int, int]:
    """The place of a cell "method: flow" in the table; unknown ones are last."""
    method, flow = name.split(": ")
    return tuple(  # type: ignore[return-value]
        known.index(part) if part in known else len(known)
        for known, part in ((FLOWS, flow), (METHODS, method))
    )


def _by_adjoint(this: Case, evaluations: int, note: Callable[[float], None]) -> None:
    """L-BFGS on the exact gradient, that of scipy."""
    values, seen = this.field.values, list[float]()

    def at(numbers: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        if len(seen) >= evaluations:
            raise StopIteration
        with torch.no_grad():
            values.copy_(torch.from_numpy(numbers).reshape(values.shape))
        this.field.zero_grad()
        loss = this.exact(this.field, torch.zeros(1, 1)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        seen.append(float(loss))
        note(seen[-1])
        assert values.grad is not None
        return seen[-1], values.grad.flatten().double().numpy()

    limits = {"maxiter": 10_000, "maxfun": 10_000, "ftol": 0.0, "gtol": 0.0}
    try:
        minimize(at, values.detach().flatten().double().numpy(), jac=True, method="L-BFGS-B", options=limits)
    except StopIteration:
        return


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
