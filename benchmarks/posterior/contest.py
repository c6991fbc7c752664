"""Models of tens to hundreds of inputs: a loss's gradient by each, beside the one that is selected.

    python -m benchmarks inputs --size ci       one box and 100 rows; written nowhere
    python -m benchmarks inputs --size small    five boxes at 300, 600 and 1,500 rows

Each model learns from rows alone. Then the gradient of a loss by its inputs is compared with the exact one at
100 points that it has not seen: the cosine, its median and the tenth below which the worst tenth lies. The
loss is half the square of the distance to data, in units of each box's noise. Selected is the model of the
smallest error on a fifth of the rows. Results go into `benchmarks/results/posterior/inputs.json` as they
come; what is there is not measured again. `inputs.md` beside it has the table.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.posterior import poisson
from tasks.folder import atomic
from zo.tangents.models.selected import MODELS, SelectedTangent

FILE = protocol.RESULTS / "posterior" / "inputs.json"
ROWS, SEEDS, UNSEEN = (300, 600, 1500), (1, 2), 100
SIDE = 12  # cells of the conductivity
CELLS, STEPS, TIME = 40, 30, 0.05  # of Lorenz-96
PROFILE, LONG = 64, 48  # numbers of the inflow, and cells downstream


@dataclass(frozen=True)
class Box:
    """A box with its adjoint.

    Attributes:
        values: `(rows, inputs)` to `(rows, outputs)`, with a graph.
        draw: rows of inputs, from their number and a generator.
        data: outputs from which the loss is the distance, `(outputs,)`.
        noise: the unit of that distance.
    """

    values: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    data: Tensor
    noise: float

    def gradient(self, x: Tensor, values: Callable[[Tensor], Tensor]) -> Tensor:
        """The loss's gradient by the inputs, with the outputs by some model: `(rows, inputs)`."""
        at = x.detach().requires_grad_(True)
        loss = ((values(at) - self.data) / self.noise).square().sum() / 2
        return torch.autograd.grad(loss, at)[0]


def membrane() -> Box:
    """The published Poisson problem; rows from the normal approximation of its posterior."""
    box = poisson.Membrane()
    begin = torch.zeros(poisson.UNKNOWNS, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([begin], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = poisson.potential(begin, box.torch(begin))
        value.backward()
        return value

    search.step(loss)
    mode = begin.detach()
    slope = torch.autograd.functional.jacobian(box.torch, mode)
    precision = slope.T @ slope / poisson.NOISE**2 + torch.eye(poisson.UNKNOWNS) / poisson.PRIOR**2
    root = torch.linalg.cholesky(torch.linalg.inv(precision))

    def draw(rows: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(rows, poisson.UNKNOWNS, generator=generator, dtype=torch.float64)
        return mode + white @ root.T

    return Box(box.torch, draw, poisson.measurements(), poisson.NOISE)


def conductivity() -> Box:
    """Heat through 12 x 12 cells, by the logarithms of conductivities, to temperatures at 36 of them."""
    numbers = torch.arange(SIDE**2).view(SIDE, SIDE)
    pairs = [(numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])]
    p, q = (torch.cat([pair[place].flatten() for pair in pairs]) for place in (0, 1))
    edge = torch.cat([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])

    def values(x: Tensor) -> Tensor:
        k = x.exp()
        between = 2 / (1 / k[:, p] + 1 / k[:, q])
        matrix = x.new_zeros(len(x), SIDE**2, SIDE**2)
        rows = torch.arange(len(x))[:, None]
        for a, b, sign in ((p, p, 1), (q, q, 1), (p, q, -1), (q, p, -1)):
            matrix = matrix.index_put((rows, a, b), sign * between, accumulate=True)
        matrix = matrix.index_put((rows, edge, edge), 2 * k[:, edge], accumulate=True)
        warm = torch.linalg.solve(matrix, x.new_full((len(x), SIDE**2, 1), 10 / SIDE**2))
        return warm.view(-1, SIDE, SIDE)[:, 1::2, 1::2].flatten(1)

    return of_normal(values, SIDE**2, 0.7, 0.02)


def lorenz() -> Box:
    """Means and mean squares of 40 cells of Lorenz-96 over 1.5 units of time, by the forcing of each."""
    start = 8 + torch.randn(CELLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slope(x: Tensor, forcing: Tensor) -> Tensor:
        return (x.roll(-1, 1) - x.roll(2, 1)) * x.roll(1, 1) - x + forcing

    def values(x: Tensor) -> Tensor:
        state, forcing = start.expand(len(x), -1), 8 + x
        total, squares = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(STEPS):
            first = slope(state, forcing)
            second = slope(state + TIME / 2 * first, forcing)
            third = slope(state + TIME / 2 * second, forcing)
            last = slope(state + TIME * third, forcing)
            state = state + TIME / 6 * (first + 2 * second + 2 * third + last)
            total, squares = total + state, squares + state.square() / 10
        return torch.cat([total, squares], 1) / STEPS

    return of_normal(values, CELLS, 1.0, 0.5)


def inflow() -> Box:
    """An inflow's profile in time, 64 numbers, to 64 velocities downstream by Burgers' equation."""

    def values(x: Tensor) -> Tensor:
        u, seen = x.new_ones(len(x), LONG), []
        for number in range(2 * PROFILE):
            wide = torch.cat([1 + x[:, number // 2, None], u, u[:, -1:]], 1)
            change = wide[:, 1:-1] * (wide[:, 1:-1] - wide[:, :-2])
            u = u - 0.4 * change + 0.1 * (wide[:, 2:] - 2 * u + wide[:, :-2])
            if number % 2:
                seen.append(u[:, LONG // 3])
        return torch.stack(seen, 1)

    return of_normal(values, PROFILE, 0.3, 0.02)


def rotated() -> Box:
    """Waves of ten sums of ten inputs each: no input, and no pair, acts alone."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]

    def values(x: Tensor) -> Tensor:
        y = x @ turn
        return torch.sin(1.5 * y) + 0.5 * torch.tanh(2 * y) * y.roll(1, 1)

    return of_normal(values, 10, 1.0, 0.1)


def of_normal(values: Callable[[Tensor], Tensor], size: int, spread: float, noise: float) -> Box:
    """A box whose inputs are normal, and whose data are its answer to inputs of their own."""

    def draw(rows: int, generator: torch.Generator) -> Tensor:
        return spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)

    truth = draw(1, torch.Generator().manual_seed(99))
    return Box(values, draw, values(truth)[0].detach(), noise)


BOXES: dict[str, Callable[[], Box]] = {
    "poisson": cache(membrane),
    "conductivity": cache(conductivity),
    "lorenz": cache(lorenz),
    "inflow": cache(inflow),
    "rotated": cache(rotated),
}


def measure(box: Box, rows: int, seed: int) -> dict[str, Any]:
    """Cosines `[median, worst tenth]` and seconds of a core of each model, and which one is selected."""
    generator = torch.Generator().manual_seed(seed)
    x = box.draw(rows, generator)
    with torch.no_grad():
        y = box.values(x)
    unseen = box.draw(UNSEEN, generator)
    exact = box.gradient(unseen, box.values)
    selected, began = SelectedTangent(), process_time()
    selected.fit(x, y)
    found: dict[str, Any] = {"kind": selected.kind, "seconds": {"selected": process_time() - began}}
    found |= {"errors": selected.errors, "cosines": {}}
    for name, make in [*MODELS.items(), ("selected", lambda: selected)]:
        model, began = make(), process_time()
        if name != "selected":
            model.fit(x, y)
            found["seconds"][name] = process_time() - began
        by_model = box.gradient(unseen, lambda at, model=model: model.values(at, at[:, :0]))
        cosines = torch.cosine_similarity(by_model, exact)
        found["cosines"][name] = [float(cosines.median()), float(cosines.quantile(0.1))]
    return found


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = protocol.options("inputs", __doc__)
    parser.add_argument("--boxes", nargs="+", choices=tuple(BOXES), default=list(BOXES))
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.size == "ci":
        print(measure(BOXES["rotated"](), 100, 0))
        return
    results: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"results": {}}
    for seed in SEEDS:
        for rows in ROWS:
            for name in asked.boxes:
                key = f"{name}, {rows} rows, seed {seed}"
                if key not in results["results"]:
                    results["results"][key] = found = measure(BOXES[name](), rows, seed)
                    print(key, found["kind"], found["cosines"], flush=True)
                    protocol.write("inputs", words, {"results": results["results"]}, FILE)
    atomic.write_bytes(FILE.with_suffix(".md"), table(results["results"]).encode())


def table(results: dict[str, Any]) -> str:
    """The median and, in brackets, the worst tenth of cosines, means over seeds."""
    names = [*MODELS, "selected"]
    lines = []
    for box in BOXES:
        for rows in ROWS:
            found = [r for key, r in results.items() if key.startswith(f"{box}, {rows} rows")]
            if not found:
                continue
            cells = []
            for name in names:
                middle, worst = (statistics.fmean(r["cosines"][name][k] for r in found) for k in (0, 1))
                cells.append(f"{middle:.3f} ({worst:.3f})" if math.isfinite(middle) else "-")
            kinds = ", ".join(r["kind"] for r in found)
            lines.append((f"{box}, {rows}", *cells, kinds))
    return protocol.markdown(("box, rows", *names, "models selected"), lines) + "\n"
