"""The stiffest cantilever of half the material: adjoint, differences, random directions, tangents.

After Mosaic's `optimization/topopt` (arXiv 2606.27895), in the plane (`beam.py`): the density at the nodes is
looked for whose compliance, force times displacement, is least. Mosaic holds the material by a penalty; here
the field is a logit, and the densities are sigmoids whose mean is one half, whatever the field.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.mosaic import cells, search
from benchmarks.mosaic.beam import LOADS, Beam, Coarser, Elements, modulus
from benchmarks.mosaic.fenics import missing
from zo.objective import Objective
from zo.tangents import CallPairs, Linearised, Tangent

METHODS = (
    "adjoint, L-BFGS",
    "adjoint, Adam",
    "differences, L-BFGS",
    "random directions",
    "fit_field",
    "fit_field, a coarser solver as its model",
    "fit_field, above a coarser solver in short moves",
    "fit_field, stresses held",
)
PART = 0.5  # of the beam that is material
RATE = 0.3  # of Adam, in the logit
SHORT = 8  # iterations between evaluations


@dataclass(frozen=True)
class Task:
    """Sizes.

    Attributes:
        side: squares along the beam's height, of two triangles each; twice as many along its length.
        evaluations: of the adjoint.
        gradients: by differences.
        rows: of random directions.
        few: of `fit_field`.
    """

    side: int = 12
    evaluations: int = 200
    gradients: int = 10
    rows: int = 600
    few: int = 40


SMALL = Task()
CI = Task(side=4, evaluations=4, gradients=2, rows=20, few=3)


class Material(zo.Field):
    """Densities whose mean over the beam is `PART`, whatever the field: sigmoids of it and one shift.

    Args:
        share: of the beam that belongs to each node.
    """

    def __init__(self, share: NDArray[Any]) -> None:
        super().__init__(torch.zeros(len(share), dtype=torch.float64))
        self.share = torch.from_numpy(share)

    def forward(self, rows: Tensor) -> Tensor:
        """`(rows, nodes)`."""
        return self.densities().expand(len(rows), -1)

    def densities(self) -> Tensor:
        """`(nodes,)`: the shift by bisection and a step of Newton, through which its derivative is exact."""
        with torch.no_grad():
            low, high = -self.values.max() - 1, -self.values.min() + 1
            for _ in range(60):
                shift = (low + high) / 2
                if self.share @ torch.sigmoid(self.values + shift) < PART:
                    low = shift
                else:
                    high = shift
            first = torch.sigmoid(self.values + shift)
            slope = self.share @ (first * (1 - first))
        shift = shift - (self.share @ torch.sigmoid(self.values + shift) - PART) / slope
        return torch.sigmoid(self.values + shift)


class HeldStresses(Tangent):
    """Energies where stresses stay as they are: each triangle's is as its modulus was over what it is.

    These stresses bear the load whatever the material, so that the sum of such energies is never below the
    compliance of the same densities, and touches it where the box was run (the principle of the least
    complementary energy): who lowers the one has lowered the other. The law of the material is known.

    Args:
        triangles: three nodes each.
    """

    learns = False

    def __init__(self, triangles: NDArray[Any]) -> None:
        self.triangles = torch.from_numpy(triangles.copy())

    def at(self, rows: CallPairs) -> Linearised:
        """What the box said of these rows, in other material."""
        return _Held(rows, self.triangles)


class _Held(Linearised):
    def __init__(self, rows: CallPairs, triangles: Tensor) -> None:
        super().__init__(rows)
        self._triangles = triangles

    def _of(self, z: Tensor) -> Tensor:
        moduli = (modulus(each)[:, self._triangles].mean(dim=2) for each in (self.rows.z, z))
        before, now = moduli
        return self.rows.y * before / now

    def to(self, z: Tensor, others: tuple[Tensor | None, ...]) -> Tensor:
        return self._of(z) - self.rows.y

    def push(self, d: Tensor) -> Tensor:
        return torch.func.jvp(self._of, (self.rows.z,), (d,))[1]

    def pull(self, v: Tensor) -> Tensor:
        return torch.func.vjp(self._of, self.rows.z)[1](v)[0]


class Case(search.Case):
    """The body to be made stiff; losses are over that of one density everywhere, where the search begins."""

    def cosine(self) -> float:
        """Of the gradient that the field has with the exact one."""
        own, (_, exact) = self.field.values.grad, search.by_adjoint(self)()
        self.field.values.grad = own
        return (
            0.0 if own is None else float((own * exact).sum() / (own.norm() * exact.norm()).clamp_min(1e-30))
        )


def case(box: Beam) -> Case:
    """The task of a box."""
    elements, force = Elements(box.places, box.triangles, box.force), torch.from_numpy(box.force)
    field = Material(elements.share)
    with torch.no_grad():
        unit = (elements.advance(field(search.ONE)) * force).sum()

    def objective_of(advance: Callable[[Tensor], Tensor], weights: Tensor) -> Objective:
        def objective(field: nn.Module, rows: Tensor) -> Tensor:
            field.zero_grad()  # of what a replay left: the cosine is that of an evaluation alone
            return (advance(field(rows)) * weights).flatten(1).sum(dim=1) / unit

        return objective

    weights = torch.ones(len(box.triangles)) if box.energies else force
    exact, through = objective_of(elements.advance, force), objective_of(box, weights)
    return Case(box, exact, through, field, field.densities().detach())


def searched(method: str, task: Task, seed: int) -> dict[str, Any]:
    """One method's least compliance over that at the beginning, those on the way, rows and seconds."""
    box = Beam(task.side, LOADS[seed % len(LOADS)], energies="held" in method)
    try:
        return _searched(method, case(box), task, seed)
    finally:
        box.close()


def _searched(method: str, this: Case, task: Task, seed: int) -> dict[str, Any]:
    began, box, field = process_time(), this.box, this.field
    losses, cosines = list[float](), list[float]()
    more: dict[str, Any] = {}

    def note(loss: float) -> None:
        losses.append(loss)
        if not method.startswith(("adjoint", "differences")):
            cosines.append(this.cosine())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if method == "adjoint, L-BFGS":
            search.bfgs(field, search.by_adjoint(this), task.evaluations, note)
        elif method == "adjoint, Adam":
            gradient = search.by_adjoint(this)
            search.adam(field, gradient, RATE, lambda: len(losses) < task.evaluations, note)
        elif method.startswith("differences"):
            search.bfgs(field, search.by_differences(this), task.gradients, note)
        elif method.startswith("fit_field"):
            tangent: Tangent | None = None
            if "coarser" in method:
                model = Coarser(box.places, box.force, task.side)
                tangent = (
                    zo.tangents.KernelTangent(prior=model.advance)
                    if "above" in method
                    else zo.tangents.ModelTangent(model.advance)
                )
            elif "held" in method:
                tangent = HeldStresses(box.triangles)
            fit = zo.fit_field(
                field,
                this.objective,
                boxes=[box],
                rows=task.few,
                tangent=tangent,
                inner=SHORT if method.endswith("short moves") else 30,
                seed=seed,
                evaluated=note,
            )
            more = {"why": fit.why}
        else:
            gradient = search.by_directions(this, seed)
            search.adam(field, gradient, RATE, lambda: box.ledger.rows_run < task.rows, note)
    if cosines:
        more |= {"cosines": [round(each, 3) for each in cosines]}
    return {
        "seed": seed,
        "load": box.load,
        "loss": min(losses),
        "rows": box.ledger.rows_run or len(losses),  # the adjoint's are those of its forward runs
        "evaluations": len(losses),
        "losses": [float(f"{each:.4g}") for each in losses],
        "seconds": round(process_time() - began, 1),
        **more,
    }


result = partial(cells.of_study, "compliance", METHODS, searched, lambda *_: missing())
"""All cells, by method: (task, seeds, an earlier result, what is called after each cell)."""


def table(found: Mapping[str, Any]) -> str:
    """In Markdown: a line for each method."""
    lines, size = list[tuple[str, ...]](), found["task"]["side"]
    by_adjoint = (cell.get("runs", ()) for name, cell in found["cells"].items() if name.startswith("adjoint"))
    least = {seed: math.inf for seed in found["seeds"]}
    for run in itertools.chain(*by_adjoint):
        least[run["seed"]] = min(least[run["seed"]], run["loss"])
    for method, cell in found["cells"].items():
        runs = cell.get("runs", ())
        if not runs:
            lines.append((method, f"{cell['state']}, {cell['why']}", "", "", "", "", "", ""))
            continue
        counts, evaluations = ([run[name] for run in runs] for name in ("rows", "evaluations"))
        cosines = [float(np.median(run["cosines"])) for run in runs if "cosines" in run]
        row = (
            method,
            cells.ended(runs),
            cells.spread([run["loss"] for run in runs], ".3f"),
            cells.spread([run["loss"] / least[run["seed"]] for run in runs], ".3f"),
            cells.between(counts),
            cells.between([round(count / each) for count, each in zip(counts, evaluations, strict=True)]),
            ", ".join(f"{each:.2f}" for each in cosines),
            str(len(runs)),
        )
        lines.append(row)
    nodes = (2 * size + 1) * (size + 1)
    heads = (
        "method",
        "state",
        "compliance",
        "over the adjoint's",
        "rows",
        "rows an evaluation",
        "cosine",
        "loads",
    )
    return (
        "Compliance over that of one density everywhere, and over the lower one of the two by the adjoint: "
        f"mean of the loads, least and greatest; {nodes} nodes, so that a gradient by differences takes "
        f"{nodes + 1} rows. Cosine: of the gradient with the adjoint's, the median over a search's "
        f"evaluations, for each load.\n\n{protocol.markdown((*heads, 'cosine', 'loads'), lines)}"
    )
