"""Models of tens to hundreds of inputs: a loss's gradient by each, beside the one that is selected.

    python -m benchmarks inputs --size ci       one box and 100 rows; written nowhere
    python -m benchmarks inputs --size small    six boxes at 300, 600 and 1,500 rows

Each model learns from rows alone. Then the gradient of a loss by its inputs is compared with the exact one at
100 points that it has not seen: the cosine, its median and the tenth below which the worst tenth lies. The
loss is half the square of the distance to data, in units of each box's noise. Selected is the model of the
smallest error on a fifth of the rows. Five boxes have a twin, as users have one: each model learns above it
too, and one of all eight is selected. Results go into `benchmarks/results/posterior/inputs.json` as they
come; what is there is not measured again. `inputs.md` beside it has the tables.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from time import process_time
from typing import Any

import torch
from torch import Tensor

from benchmarks import protocol
from benchmarks.mosaic.beam import LOADS, Coarser, Elements, forced, rectangle
from benchmarks.posterior import poisson
from tasks.folder import atomic
from zo.tangents.models.prior import Prior
from zo.tangents.models.selected import ABOVE, MODELS, SelectedTangent
from zo.tangents.models.values import ValueTangent

FILE = protocol.RESULTS / "posterior" / "inputs.json"
ROWS, SEEDS, UNSEEN = (300, 600, 1500), (1, 2), 100
SIDE = 12  # cells of the conductivity
CELLS, STEPS, TIME = 40, 30, 0.05  # of Lorenz-96
PROFILE, LONG = 64, 48  # numbers of the inflow, and cells downstream
BEAM = 4  # squares along the height of the beam, twice as many along its length
CLOSE = 0.02  # of cosine, by which the selected model may be below the best one


@dataclass(frozen=True)
class Box:
    """A box with its adjoint.

    Attributes:
        values: `(rows, inputs)` to `(rows, outputs)`, with a graph.
        draw: rows of inputs, from their number and a generator.
        data: outputs from which the loss is the distance, `(outputs,)`.
        noise: the unit of that distance.
        twin: what a user may have of it, as `values`; None where nobody would.
    """

    values: Callable[[Tensor], Tensor]
    draw: Callable[[int, torch.Generator], Tensor]
    data: Tensor
    noise: float
    twin: Callable[[Tensor], Tensor] | None = None

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

    twin = poisson.Membrane(poisson.BLOCKS).torch  # a cell for each block
    return Box(box.torch, draw, poisson.measurements(), poisson.NOISE, twin)


def conductivity() -> Box:
    """Heat through 12 x 12 cells, by the logarithms of conductivities, to temperatures at 36 of them."""
    fine, coarse = heat_through(SIDE), heat_through(SIDE // 2)

    def twin(x: Tensor) -> Tensor:  # half as many cells each way, with the means of logarithms
        means = torch.nn.functional.avg_pool2d(x.view(-1, 1, SIDE, SIDE), 2).flatten(1)
        return coarse(means).flatten(1)

    return of_normal(lambda x: fine(x)[:, 1::2, 1::2].flatten(1), SIDE**2, 0.7, 0.02, twin)


def heat_through(side: int) -> Callable[[Tensor], Tensor]:
    """The temperatures of cells, `(rows, side, side)`, by the logarithms of their conductivities."""
    numbers = torch.arange(side**2).view(side, side)
    pairs = [(numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])]
    p, q = (torch.cat([pair[place].flatten() for pair in pairs]) for place in (0, 1))
    edge = torch.cat([numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1]])

    def values(x: Tensor) -> Tensor:
        k = x.exp()
        between = 2 / (1 / k[:, p] + 1 / k[:, q])
        matrix = x.new_zeros(len(x), side**2, side**2)
        rows = torch.arange(len(x))[:, None]
        for a, b, sign in ((p, p, 1), (q, q, 1), (p, q, -1), (q, p, -1)):
            matrix = matrix.index_put((rows, a, b), sign * between, accumulate=True)
        matrix = matrix.index_put((rows, edge, edge), 2 * k[:, edge], accumulate=True)
        warm = torch.linalg.solve(matrix, x.new_full((len(x), side**2, 1), 10 / side**2))
        return warm.view(-1, side, side)

    return values


def lorenz() -> Box:
    """Means and mean squares of 40 cells of Lorenz-96 over 1.5 units of time, by the forcing of each."""
    start = 8 + torch.randn(CELLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def values(x: Tensor, damping: float = 1.0) -> Tensor:
        state, forcing = start.expand(len(x), -1), 8 + x
        total, squares = torch.zeros_like(x), torch.zeros_like(x)

        def slope(now: Tensor) -> Tensor:
            return (now.roll(-1, 1) - now.roll(2, 1)) * now.roll(1, 1) - damping * now + forcing

        for _ in range(STEPS):
            first = slope(state)
            second = slope(state + TIME / 2 * first)
            third = slope(state + TIME / 2 * second)
            last = slope(state + TIME * third)
            state = state + TIME / 6 * (first + 2 * second + 2 * third + last)
            total, squares = total + state, squares + state.square() / 10
        return torch.cat([total, squares], 1) / STEPS

    return of_normal(
        values, CELLS, 1.0, 0.5, partial(values, damping=0.95)
    )  # Euler's steps grow without bound


def inflow() -> Box:
    """An inflow's profile in time, 64 numbers, to 64 velocities downstream by Burgers' equation."""

    def values(x: Tensor, coarser: int = 1) -> Tensor:
        u, seen, steps = x.new_ones(len(x), LONG // coarser), [], 2 // coarser  # steps of each number
        for number in range(steps * PROFILE):
            wide = torch.cat([1 + x[:, number // steps, None], u, u[:, -1:]], 1)
            change = wide[:, 1:-1] * (wide[:, 1:-1] - wide[:, :-2])
            u = u - 0.4 * change + 0.1 / coarser * (wide[:, 2:] - 2 * u + wide[:, :-2])
            if (number + 1) % steps == 0:
                seen.append(u[:, LONG // coarser // 3])
        return torch.stack(seen, 1)

    return of_normal(values, PROFILE, 0.3, 0.02, partial(values, coarser=2))


def compliance() -> Box:
    """Compliances of a beam under three loads, by the logits of densities at its 45 nodes."""
    places, triangles = rectangle(BEAM)
    forces = [forced(places, load, BEAM) for load in LOADS]
    solvers = [Elements(places, triangles, force) for force in forces]
    coarser = [Coarser(places, force, BEAM) for force in forces]

    def values(x: Tensor, solvers: Sequence[Elements | Coarser] = solvers) -> Tensor:
        density = torch.sigmoid(x)
        moved = (solver.advance(density) for solver in solvers)
        works = [(u * torch.from_numpy(f)).sum((1, 2)) for u, f in zip(moved, forces, strict=True)]
        return torch.stack(works, 1)

    return of_normal(values, len(places), 0.7, 10.0, partial(values, solvers=coarser))


def rotated() -> Box:
    """Waves of ten sums of ten inputs each: no input, and no pair, acts alone."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=generator, dtype=torch.float64))[0]

    def values(x: Tensor) -> Tensor:
        y = x @ turn
        return torch.sin(1.5 * y) + 0.5 * torch.tanh(2 * y) * y.roll(1, 1)

    return of_normal(values, 10, 1.0, 0.1)


def of_normal(
    values: Callable[[Tensor], Tensor],
    size: int,
    spread: float,
    noise: float,
    twin: Callable[[Tensor], Tensor] | None = None,
) -> Box:
    """A box whose inputs are normal, and whose data are its answer to inputs of their own."""

    def draw(rows: int, generator: torch.Generator) -> Tensor:
        return spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)

    truth = draw(1, torch.Generator().manual_seed(99))
    return Box(values, draw, values(truth)[0].detach(), noise, twin)


BOXES: dict[str, Callable[[], Box]] = {
    "poisson": cache(membrane),
    "conductivity": cache(conductivity),
    "lorenz": cache(lorenz),
    "inflow": cache(inflow),
    "compliance": cache(compliance),
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

    def cosines(values: Callable[[Tensor], Tensor]) -> list[float]:
        found = torch.cosine_similarity(box.gradient(unseen, values), exact)
        return [float(found.median()), float(found.quantile(0.1))]

    found: dict[str, Any] = {}
    for prior in (None,) if box.twin is None else (None, Prior.of("inputs", box.twin)):
        end = "" if prior is None else ABOVE
        selected = SelectedTangent().over(prior)
        took = {f"selected{end}": _seconds(selected, x, y)}
        by_name: dict[str, list[float]] = {} if prior is None else {"twin": cosines(box.twin or box.values)}
        for name, make in MODELS.items():
            model = make().over(prior)
            took[f"{name}{end}"] = _seconds(model, x, y)
            by_name[f"{name}{end}"] = cosines(_whole(model, None if prior is None else box.twin))
        below = box.twin if selected.kind.endswith(ABOVE) else None
        by_name[f"selected{end}"] = cosines(_whole(selected, below))
        parts = {"errors": selected.errors, "seconds": took, "cosines": by_name}
        found[f"kind{end}"] = selected.kind
        found |= {name: found.get(name, {}) | part for name, part in parts.items()}
    return found


def _seconds(model: ValueTangent, x: Tensor, y: Tensor) -> float:
    """Have a model learn, and return the seconds of a core that it took."""
    began = process_time()
    model.fit(x, y)
    return process_time() - began


def _whole(model: ValueTangent, twin: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
    """A model's values, with those of the twin that it is above."""

    def values(x: Tensor) -> Tensor:
        own = model.values(x, x[:, :0])
        return own if twin is None else twin(x) + own

    return values


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
    """The median and, in brackets, the worst tenth of cosines, means over seeds: without twins, and with."""
    alone, above = [*MODELS, "selected"], ["twin", *(f"{name}{ABOVE}" for name in [*MODELS, "selected"])]
    pieces = []
    for names, kind in ((alone, "kind"), (above, f"kind{ABOVE}")):
        lines = []
        for box in BOXES:
            for rows in ROWS:
                runs = [r for key, r in results.items() if key.startswith(f"{box}, {rows} rows")]
                found = [r for r in runs if kind in r]
                if not found:
                    continue
                cells = []
                for name in names:
                    middle, worst = (statistics.fmean(r["cosines"][name][k] for r in found) for k in (0, 1))
                    cells.append(f"{middle:.3f} ({worst:.3f})" if math.isfinite(middle) else "-")
                kinds = ", ".join(r[kind] for r in found)
                lines.append((f"{box}, {rows}", *cells, kinds))
        heads = [
            name.replace(ABOVE, ", twin") if name != f"selected{ABOVE}" else "selected of all"
            for name in names
        ]
        pieces.append(protocol.markdown(("box, rows", *heads, "models selected"), lines))
        pieces.append(missed(results, kind))
    return "\n\n".join(pieces) + "\n"


def missed(results: dict[str, Any], kind: str) -> str:
    """How often the selected model is below the best one of those that it was selected from."""
    end = kind.removeprefix("kind")
    sentences, found = [], [run for run in results.values() if kind in run]
    for what, k in (("medians", 0), ("worst tenths", 1)):
        gaps = []
        for run in found:
            names = [name for name in run["cosines"] if name in run["errors"] and (end or ABOVE not in name)]
            best = max(run["cosines"][name][k] for name in names)
            gaps.append(best - run["cosines"][f"selected{end}"][k])
        many = sum(gap > CLOSE for gap in gaps)
        sentences.append(f"{many} of {len(gaps)} {what}, at most by {max(gaps, default=0):.3f}")
    return f"Selected is more than {CLOSE} below the best model in {' and in '.join(sentences)}."
