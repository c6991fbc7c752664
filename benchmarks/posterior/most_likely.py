"""`python -m benchmarks most_likely`: the likeliest of tens to hundreds of unknowns, by rows.

    python -m benchmarks most_likely --size ci       one box and 20 rows; written nowhere
    python -m benchmarks most_likely --size small    five boxes, three seeds

The boxes are those of `inputs` that have a twin. Half the square of the distance to the data, in units of
each box's noise, and the square of each unknown in units of its prior's spread add up to the potential. A
search begins near the prior's mean. Its potential is given over the least one that the exact adjoint finds in
400 evaluations by L-BFGS. `fit_field` has a twin as its model, or a `KernelTangent` above the twin, or its
default, which looks around first; all of its rows count. Results go into
`benchmarks/results/posterior/most_likely.json` as they come; what is there is not measured again.
`most_likely.md` beside it has the table.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Sequence
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.posterior.contest import BOXES, Box
from benchmarks.posterior.poisson import PRIOR
from blackbox import ArraySpec, BlackBoxFunction
from tasks.folder import atomic
from zo.tangents import KernelTangent, ModelTangent

FILE = protocol.RESULTS / "posterior" / "most_likely.json"
SPREADS = {"poisson": PRIOR, "conductivity": 0.7, "lorenz": 1.0, "inflow": 0.3, "compliance": 0.7}
METHODS = {
    "adjoint": "adjoint, L-BFGS",
    "twin": "`fit_field`, the twin as its model",
    "above": "`fit_field`, `KernelTangent` above the twin",
    "default": "`fit_field`",
}
SEEDS, ROWS, EVALUATIONS = (0, 1, 2), 200, 400
NEAR = 0.1  # of the prior's spread: where a search begins
SHOWN = (1, 5, 10, 20, 100, 200)  # rows


class Solver(BlackBoxFunction):
    """A box of `inputs`, for its values alone."""

    arrays = "torch"

    def __init__(self, box: Box, unknowns: int) -> None:
        self.box = box
        self.inputs = (ArraySpec("unknowns", (unknowns,), "float64"),)
        self.outputs = (ArraySpec("measured", tuple(box.data.shape), "float64"),)

    def evaluate_rows(self, unknowns: Tensor) -> Tensor:
        """All rows: `(rows, unknowns)` to `(rows, outputs)`."""
        with torch.no_grad():
            return self.box.values(unknowns)


def searched(name: str, method: str, seed: int, rows: int = ROWS) -> dict[str, Any]:
    """The least potential after each row, why the search ended, and seconds of a core."""
    box, spread = BOXES[name](), SPREADS[name]
    generator = torch.Generator().manual_seed(seed)
    unknowns = box.draw(1, generator).shape[1]
    start = NEAR * spread * torch.randn(unknowns, generator=generator, dtype=torch.float64)
    field, solver, found = zo.Field(start), Solver(box, unknowns), list[float]()

    def potential(x: Tensor, y: Tensor) -> Tensor:
        miss, far = (y - box.data) / box.noise, x / spread
        return (miss.square().sum(1) + far.square().sum(1)) / 2

    def objective(network: nn.Module, rows: Tensor) -> Tensor:
        x = network(rows)
        return potential(x, solver(x))

    began, why = process_time(), ""
    if method == "adjoint":
        _by_adjoint(field, lambda x: potential(x, box.values(x)), found)
    else:
        tangent = {
            "twin": lambda: ModelTangent(box.twin or box.values),
            "above": lambda: KernelTangent(prior=box.twin),
            "default": lambda: None,
        }[method]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = zo.fit_field(
                field,
                objective,
                boxes=[solver],
                rows=rows,
                tangent=tangent,
                seed=seed,
                evaluated=found.append,
            )
        why = fit.why
    course = [min(found[: row + 1]) for row in range(len(found))]
    return {"course": course, "why": why, "seconds": process_time() - began}


def _by_adjoint(field: zo.Field, potential: Any, found: list[float]) -> None:
    """L-BFGS by the exact derivative, and the potential of each evaluation."""
    optimizer = torch.optim.LBFGS(
        field.parameters(),
        max_iter=EVALUATIONS,
        max_eval=EVALUATIONS,
        history_size=20,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = potential(field(torch.zeros(1, 1))).mean()
        value.backward()
        found.append(float(value.detach()))
        return value

    optimizer.step(closure)


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("most_likely", __doc__)
    parser.add_argument("--boxes", nargs="+", choices=tuple(SPREADS), default=list(SPREADS))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print(searched("compliance", "twin", 0, rows=20))
        return
    results: dict[str, Any] = json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    for name in asked.boxes:
        for seed in SEEDS:
            for method in METHODS:
                key = f"{name}, {method}, seed {seed}"
                if key not in results:
                    results[key] = run = searched(name, method, seed)
                    print(key, run["course"][-1], run["why"], flush=True)
                    protocol.write("most_likely", words, {"results": results}, FILE)
    atomic.write_bytes(FILE.with_suffix(".md"), table(results).encode())


def ratios(results: dict[str, Any], name: str, method: str, rows: int) -> list[float]:
    """Each seed's potential after some rows over the adjoint's least."""
    found = []
    for seed in SEEDS:
        run, adjoint = (results.get(f"{name}, {m}, seed {seed}") for m in (method, "adjoint"))
        if run is not None and adjoint is not None:
            course = run["course"]
            found.append(course[min(rows, len(course)) - 1] / adjoint["course"][-1])
    return found


def table(results: dict[str, Any]) -> str:
    """A line for each box and method: medians over seeds after some rows, and the worst at last."""
    heads = (
        "box",
        "unknowns",
        "method",
        *(f"{rows} rows" if rows > 1 else "1 row" for rows in SHOWN),
        "worst",
    )
    lines = []
    for name in SPREADS:
        for method, words in METHODS.items():
            last = ratios(results, name, method, SHOWN[-1])
            if last:
                each = (ratios(results, name, method, rows) for rows in SHOWN)
                cells = [f"{statistics.median(found):.3g}" for found in each]
                unknowns = str(len(BOXES[name]().draw(1, torch.Generator())[0]))
                lines.append((name, unknowns, words, *cells, f"{max(last):.3g}"))
    return protocol.markdown(heads, lines) + "\n"
