"""Recovery of an initial condition: 1,024 numbers, seen through ten calls of a flow solver, and no network.

After Mosaic's `recovery` in three dimensions (arXiv 2606.27895): the state at the end is known, L-BFGS looks
for the one that leads to it, and the error is that of the initial state. Here the flow has two dimensions,
vorticity on 32 x 32 points, viscosity .01, two units of time in ten calls, and the search begins at the last
state. All have as many rows as 108 evaluations of the loss; one gradient by differences takes 10,250.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.mosaic import cells
from benchmarks.mosaic.search import DIRECTIONS, ENDLESS, ends_of
from simulators.spectral import Vorticity
from zo.tangents import AutoTangent

NETWORK = "tangents, network and stencil alone"  # what the default was before it tried an equation
METHODS = (
    "adjoint",
    "identity",
    "random directions",
    "tangents",
    NETWORK,
    "tangents, dither .01",
    "tangents, L-BFGS begun anew every 10",
)
RATES = (0.01, 0.03)  # of Adam on random directions, of which the better is shown
EVERY = 10  # evaluations between comparisons with the adjoint


@dataclass(frozen=True)
class Task:
    """Sizes of the recovery.

    Attributes:
        points: along a side.
        calls: of the solver.
        steps: of time in a call.
        amplitudes: root mean squares of the vorticity that is looked for.
        evaluations: of the loss, which say how many rows all have.
    """

    points: int = 32
    calls: int = 10
    steps: int = 10
    amplitudes: tuple[float, ...] = (0.7, 1.4)
    evaluations: int = 108


SMALL = Task()
CI = Task(points=12, calls=2, steps=2, amplitudes=(0.7,), evaluations=6)


class Field(nn.Module):
    """What is looked for, as the weights of a network that reads nothing.

    Args:
        values: to begin with, `(1, points, points)`.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, rows: Tensor) -> Tensor:
        """`(rows, 1, points, points)`, whatever the rows hold."""
        return self.values.expand(len(rows), -1, -1, -1)


def wanted(task: Task, amplitude: float, seed: int) -> Tensor:
    """A vorticity with its energy around wavenumber 3, `(1, points, points)`."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.fft.fft2(torch.randn(task.points, task.points, generator=generator, dtype=torch.float64))
    along = torch.fft.fftfreq(task.points, dtype=torch.float64) * task.points
    size = torch.exp(-0.5 * (torch.hypot(along[:, None], along[None, :]) - 3).square())
    field = torch.fft.ifft2(modes * size).real
    return (amplitude * field / field.square().mean().sqrt())[None].float()


class Search:
    """One search: the loss and its gradient as a method has it, and what was seen on the way.

    Args:
        method: one of `METHODS`.
        task: the sizes.
        amplitude: of what is looked for.
        seed: of what is looked for.
    """

    def __init__(self, method: str, task: Task, amplitude: float, seed: int) -> None:
        self.task, self.truth = task, wanted(task, amplitude, seed)
        self.box = Vorticity(task.points, viscosity=0.01, steps=task.steps)
        with torch.no_grad():
            end = self.truth[None]
            for _ in range(task.calls):
                end = self.box.advance(end)
        self.field = Field(end[0])
        self.exact = ends_of(self.box.advance, end, task.calls)
        through = ends_of(self.box, end, task.calls)
        boxes: dict[str, Any] = {"boxes": [self.box], "seed": seed}
        limits = zo.tangents.Limits(clip=None, excite=0.01 if "dither" in method else None)
        self.gradient: zo.TangentGradient | zo.LossGradient | None = None
        if method == "identity":
            identity = zo.tangents.IdentityTangent()
            self.gradient = zo.TangentGradient(self.field, through, tangent=identity, limits=limits, **boxes)
        elif method == "random directions":
            estimator = zo.RGE(mu=1e-3, q=DIRECTIONS)
            self.gradient = zo.LossGradient(self.field, through, estimator, evaluator="loop", seed=seed)
        elif method != "adjoint":
            if method == NETWORK:
                boxes["tangent"] = AutoTangent(self.box, seed, without=["equation"])
            self.gradient = zo.TangentGradient(self.field, through, limits=limits, **boxes)
        self.losses: list[float] = []
        self.errors: list[float] = []
        self.cosines: list[float | None] = []

    @property
    def rows(self) -> int:
        """Of the box, so far; the adjoint's are those of its forward runs."""
        forward = len(self.losses) * self.task.calls
        return forward if self.gradient is None else self.box.ledger.rows_run

    @property
    def ended(self) -> bool:
        """Whether all rows are spent."""
        return self.rows >= self.task.evaluations * self.task.calls

    def error(self) -> float:
        """Of the field, relative to the truth."""
        return float((self.field.values.detach() - self.truth).norm() / self.truth.norm())

    def backward(self) -> float:
        """The loss of the field as it is; its gradient goes to `.grad`."""
        self.field.zero_grad()
        one = torch.zeros(1, 1)
        if self.gradient is None:
            loss = self.exact(self.field, one).mean()
            loss.backward()
        else:
            loss = self.gradient.backward(one)
        if len(self.losses) % EVERY == 0:
            self.cosines.append(self._cosine())
        self.losses.append(float(loss))
        self.errors.append(self.error())
        return float(loss)

    def _cosine(self) -> float | None:
        """Of the gradient with the adjoint's."""
        (exact,) = torch.autograd.grad(self.exact(self.field, torch.zeros(1, 1)).mean(), [self.field.values])
        own = self.field.values.grad
        return (
            None if own is None else float((own * exact).sum() / (own.norm() * exact.norm()).clamp_min(1e-30))
        )

    def by_bfgs(self, iterations: int) -> None:
        """L-BFGS until rows are spent, begun anew where it stops, or after so many iterations."""

        def at(values: NDArray[Any]) -> tuple[float, NDArray[Any]]:
            if self.ended:
                raise _Spent
            with torch.no_grad():
                self.field.values.copy_(torch.from_numpy(values).reshape(self.field.values.shape))
            loss = self.backward()
            assert self.field.values.grad is not None
            return loss, self.field.values.grad.flatten().double().numpy()

        values = self.field.values.detach().flatten().double().numpy()
        limits = ENDLESS | {"maxiter": iterations}
        try:
            while True:
                before = len(self.losses)
                found = minimize(at, values, jac=True, method="L-BFGS-B", options=limits)
                if len(self.losses) - before < 2:  # nothing is lower along any gradient of the model
                    return
                values = found.x
        except _Spent:
            return

    def by_adam(self, rate: float) -> None:
        """Adam until rows are spent."""
        optimizer = torch.optim.Adam(self.field.parameters(), rate * float(self.truth.square().mean().sqrt()))
        while not self.ended:
            self.backward()
            optimizer.step()


class _Spent(Exception):
    """All rows are."""


def search(method: str, task: Task, amplitude: float, seed: int) -> dict[str, Any]:
    """One method's error at its least loss, rows, seconds, and the cosines with the adjoint on the way."""
    began, found = process_time(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for rate in RATES if method == "random directions" else (None,):
            tried = Search(method, task, amplitude, seed)
            if rate is None:
                tried.by_bfgs(10 if "anew" in method else 10_000)
            else:
                tried.by_adam(rate)
            found.append(tried)
    best = min(found, key=lambda each: min(each.losses))
    place = int(np.argmin(best.losses))
    return {
        "seed": seed,
        "start": best.errors[0],
        "error": best.errors[place],
        "loss": best.losses[place],
        "rows": best.rows,
        "cosines": [None if each is None else round(each, 3) for each in best.cosines],
        "errors": [round(each, 5) for each in best.errors[::EVERY]],
        "seconds": round(process_time() - began, 1),
    }


def of_name(name: str, task: Task, seed: int) -> dict[str, Any]:
    """A run of the cell "method at amplitude"."""
    method, amplitude = name.split(" at ")
    return search(method, task, float(amplitude), seed)


def result(
    task: Task,
    seeds: Sequence[int],
    before: Mapping[str, Any],
    keep: Callable[[dict[str, Any]], None] | None = None,
    only: str = "",
) -> dict[str, Any]:
    """All cells, by "method at amplitude"; see `cells.of_study`."""
    names = [f"{method} at {amplitude:g}" for method in METHODS for amplitude in task.amplitudes]
    return cells.of_study("recovery", names, of_name, lambda *_: None, task, seeds, before, keep, only)


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each method, a column for each amplitude."""
    amplitudes, lines = found["task"]["amplitudes"], []
    for method in METHODS:
        line = [method]
        for amplitude in amplitudes:
            cell = found["cells"].get(f"{method} at {amplitude:g}")
            if cell is None or "runs" not in cell:
                line += ["" if cell is None else f"{cell['state']}, {cell['why']}", "", ""]
                continue
            rows = fmean(run["rows"] for run in cell["runs"])
            compared = (run["cosines"][1:] for run in cell["runs"])
            cosines = [each for several in compared for each in several if each is not None]
            line += [cells.spread([run["error"] for run in cell["runs"]], ".3f"), f"{rows:,.0f}"]
            line.append(f"{fmean(cosines):.2f}" if cosines and not math.isnan(fmean(cosines)) else "")
        lines.append(line)
    heads = ["gradient"]
    for amplitude in amplitudes:
        start = fmean(run["start"] for run in found["cells"][f"adjoint at {amplitude:g}"]["runs"])
        heads += [f"error, rms {amplitude:g} (begins at {start:.2f})", "rows", "cosine"]
    return (
        "Relative error of the initial vorticity at the least loss, seeds "
        f"{', '.join(map(str, found['seeds']))}; cosine: of the gradient with the adjoint's, the mean of "
        f"every tenth evaluation after the first.\n\n{protocol.markdown(heads, lines)}\n\nFinite "
        "differences: not run, a gradient takes 10,250 rows, and a search 100 of them."
    )
