"""Relative error of loss differences against float64 at the same mu: loop in two precisions, and difference.

    python -m benchmarks accuracy_vs_mu --size ci       a small ResNet, seconds
    python -m benchmarks accuracy_vs_mu --size small    ResNet-20, 32 rows

A loop subtracts two losses, and what rounding left in both is divided by mu; so does `difference` where
activations are large and mu is not small. With `variants=1` it carries the change itself to the loss, and its
error does not depend on mu. The truth is the finite difference at the same mu, not the derivative: loop in
float64, of the same float32 weights, moved by the same steps ((w + mu) - w in float32). In bfloat16 loop runs
under autocast, with float32 weights. Writes `results/accuracy_vs_mu.json` and `.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zo
from benchmarks import protocol
from benchmarks.query_speed.problems import Block, Timed, make
from tasks.report.pictures import figure, save
from zo.evaluators.evaluator import Evaluator, Problem
from zo.evaluators.state import Snapshot
from zo.objective import losses
from zo.perturbation import Coordinates

MUS = tuple(5.0 * 10.0**-power for power in range(1, 8))  # 5e-1 to 5e-7
LOOK = {
    "loop, float32": ("#606060", "o"),
    "loop, bfloat16": ("#56b4e9", "s"),
    "difference": ("#d55e00", "v"),
    "difference, variants=1": ("#e69f00", "D"),
}


@dataclass(frozen=True)
class Size:
    """What is measured: network, rows, blocks and coordinates of each."""

    network: str
    rows: int
    blocks: int
    coordinates: int
    width: int | None = None


SIZES = {
    "ci": Size("resnet8", 8, 2, 2, 4),
    "small": Size("resnet20", 32, 3, 2),
}


@torch.no_grad()
def errors(size: Size) -> dict[str, dict[str, list[float]]]:
    """Contender -> block -> |found - true| / |true| over the block's coordinates, for each of `MUS`."""
    timed = make(size.network, size.rows, width=size.width)
    coarse = replace(timed.problem, objective=_autocast(timed.problem))
    contenders: dict[str, tuple[Problem, Evaluator]] = {
        "loop, float32": (timed.problem, zo.evaluators.Loop()),
        "loop, bfloat16": (coarse, zo.evaluators.Loop()),
        "difference": (timed.problem, zo.evaluators.Difference()),
        "difference, variants=1": (timed.problem, zo.evaluators.Difference(variants=1)),
    }
    bases = {name: _base(problem) for name, (problem, _) in contenders.items()}
    wide = timed.in_float64()
    true_base = _base(wide)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
    for block in _spread(timed, size.blocks):
        for mu in MUS:
            queries = timed.queries(block, size.coordinates, mu)
            doubled = Coordinates(queries.indices, queries.steps.double())
            truth = _means(wide, zo.evaluators.Loop(), doubled, true_base)
            for name, (problem, evaluator) in contenders.items():
                off = _means(problem, evaluator, queries, bases[name]) - truth
                found[name].setdefault(block.name, []).append(float(off.norm() / truth.norm()))
        print(f"{size.network}, {block.name}", flush=True)
        for name, blocks in found.items():
            print(f"  {name:22}", *(f"{error:.1e}" for error in blocks[block.name]), flush=True)
    return found


def _means(problem: Problem, evaluator: Evaluator, queries: Coordinates, base: Tensor) -> Tensor:
    """Mean change of the loss for each query, in float64."""
    before = Snapshot(problem.network)
    changes = evaluator.changes(problem, queries, base)
    before.restore()
    return changes.double().mean(dim=1)


def _base(problem: Problem) -> Tensor:
    before = Snapshot(problem.network)
    found = losses(problem.objective, problem.network, problem.batch, problem.rows)
    before.restore()
    return found


def _autocast(problem: Problem) -> Any:  # noqa: ANN401
    """The same objective in mixed precision; its losses come out in float32."""

    def objective(network: nn.Module, batch: Any) -> Tensor:  # noqa: ANN401
        with torch.autocast(problem.parameters.tensors[0].device.type, torch.bfloat16):
            return problem.objective(network, batch).float()

    return objective


def _spread(timed: Timed, count: int) -> list[Block]:
    """Blocks of convolutions and the last layer: the first, some between them, the last."""
    blocks = [block for block in timed.blocks() if not block.name.endswith("BatchNorm2d")]
    count = min(count, len(blocks))
    return [blocks[round(place * (len(blocks) - 1) / max(1, count - 1))] for place in range(count)]


def picture(found: dict[str, dict[str, list[float]]], path: Path) -> Path:
    """Error against mu, a panel for each block."""
    blocks = list(next(iter(found.values())))
    made, axes = figure(3.6 * len(blocks), 3.8, columns=len(blocks), sharey=True)
    for panel, block in zip(axes.flat, blocks, strict=True):
        for name, (colour, mark) in LOOK.items():
            panel.plot(MUS, found[name][block], color=colour, marker=mark, linewidth=1.8, label=name)
        panel.set(xscale="log", yscale="log", title=f"block {block}", xlabel="smoothing parameter mu")
    axes[0, 0].set_ylabel("relative error against float64")
    handles, names = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(made, path)


def main(words: Sequence[str]) -> None:
    """Measure a size, print and write it."""
    parser = protocol.options("accuracy_vs_mu", __doc__, SIZES)
    name = parser.parse_args(words).size
    print("mu:", *(f"{mu:.0e}" for mu in MUS))
    found = errors(SIZES[name])
    path = protocol.path("accuracy_vs_mu", name)
    results = {"preset": name, "size": vars(SIZES[name]), "mu": MUS, "errors": found}
    protocol.write("accuracy_vs_mu", words, results, path)
    print(f"written to {picture(found, path.with_suffix('.png'))}")
