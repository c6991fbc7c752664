"""The paper's figure 5: what a CGE step costs without and with feature reuse, and with `difference`.

    python -m benchmarks figure5_feature_reuse --size ci       a small ResNet, seconds
    python -m benchmarks figure5_feature_reuse --size small    ResNet-20, 64 rows
    python -m benchmarks figure5_feature_reuse --size paper    ResNet-20, 256 rows, ratios from ZO-GraSP

A query is timed in each block; a step at a sparsity costs the sum over blocks of what is kept there times
the time of a query there, so the layer ratios decide what reuse saves. Writes
`results/figure5_feature_reuse.json`, `.md` and `.png` (with `-SIZE` where it is not "small").
Source: Chen et al. 2024, "DeepZero", figure 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import zo
from benchmarks import protocol
from benchmarks.query_speed import measuring as named
from benchmarks.query_speed.measuring import BASELINE, BlockTimes, measure
from benchmarks.query_speed.problems import Timed, make
from tasks.report.pictures import figure, save
from tasks.runs import atomic

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
MINIMUM = 1e-3  # of each layer stays; the default of a hundredth would make all layers alike at 99 %
WITHOUT = "loop"
LABELS = {WITHOUT: "without reuse", BASELINE: "with reuse, as published", named.DIFFERENCE: "difference"}
COLOURS = {WITHOUT: ("#606060", "o"), BASELINE: ("#000000", "^"), named.DIFFERENCE: ("#e69f00", "D")}


@dataclass(frozen=True)
class Size:
    """What is measured, and where the layer ratios come from."""

    network: str
    rows: int
    contenders: tuple[str, ...]
    ratios: str  # a method of `zo.pruning`
    rounds: int
    together: int
    width: int | None = None
    queries: int = 192  # of ZO-GraSP


SIZES = {
    "ci": Size("resnet8", 4, (WITHOUT, BASELINE, named.DIFFERENCE), "zo-grasp", 2, 4, 4, 8),
    "small": Size("resnet20", 64, (WITHOUT, BASELINE, named.DIFFERENCE), "grasp", 3, 8),
    "paper": Size("resnet20", 256, (WITHOUT, BASELINE, named.DIFFERENCE), "zo-grasp", 9, 16),
}


def kept(timed: Timed, size: Size) -> dict[float, dict[str, int]]:
    """Sparsity -> how many weights of each block are in the sparse set; biases are all kept."""
    problem, blocks = timed.problem, timed.blocks()
    needs: dict[str, Any] = {"q": size.queries} if size.ratios == "zo-grasp" else {}
    scores = zo.pruning.scores(
        size.ratios, problem.network, problem.objective, problem.batch, dense="*.bias", **needs
    )
    found = {}
    for sparsity in SPARSITIES:
        ratios = zo.pruning.layer_ratios(scores, sparsity, minimum=MINIMUM)
        chosen = torch.zeros(problem.parameters.size)
        for name, start, tensor in zip(
            problem.parameters.names, problem.parameters.starts, problem.parameters.tensors, strict=True
        ):
            chosen[start : start + tensor.numel()] = ratios[name]
        found[sparsity] = {block.name: round(float(chosen[block.indices].sum())) for block in blocks}
    return found


def costs(blocks: Sequence[BlockTimes], counts: dict[str, int]) -> dict[str, float]:
    """Seconds of a step's queries by contender."""
    return {
        name: sum(counts[block.block] * block.microseconds[name].median for block in blocks) / 1e6
        for name in blocks[0].microseconds
    }


def table(blocks: Sequence[BlockTimes], steps: dict[float, dict[str, float]], size: Size) -> str:
    """Markdown."""
    names = list(blocks[0].microseconds)
    head = " | ".join(LABELS[name] for name in names)
    lines = [f"Microseconds of a query, {size.network}, {size.rows} rows, one thread of a CPU:", ""]
    lines += [f"| block | weights | {head} |", "| --- |" + " ---: |" * (len(names) + 1)]
    for block in blocks:
        cells = " | ".join(f"{block.microseconds[name].median:,.0f}" for name in names)
        lines.append(f"| {block.block} | {block.weights:,} | {cells} |")
    lines += ["", f"Seconds of a step's queries, layer ratios of {size.ratios}; over that with reuse:", ""]
    lines += [f"| sparsity | {head} |", "| --- |" + " ---: |" * len(names)]
    for sparsity, step in steps.items():
        cells = " | ".join(f"{step[name]:,.3g} ({step[name] / step[BASELINE]:.2f})" for name in names)
        lines.append(f"| {sparsity:.0%} | {cells} |")
    return "\n".join([*lines, "", sentence(steps), ""])


def sentence(steps: dict[float, dict[str, float]]) -> str:
    """What differs."""
    reuse = [step[WITHOUT] / step[BASELINE] for step in steps.values()]
    fast = next(name for name in reversed(next(iter(steps.values()))) if name != BASELINE)
    gained = [step[BASELINE] / step[fast] for step in steps.values()]
    return (
        f"With feature reuse a step is {min(reuse):.1f} to {max(reuse):.1f} times as fast as without; with "
        f"{LABELS[fast]} it is {min(gained):.1f} to {max(gained):.1f} times as fast as with reuse. "
        "The paper's figure is of a GPU and of its own ratios; here one thread of a CPU is timed, and a step "
        "is summed up from its blocks."
    )


def picture(blocks: Sequence[BlockTimes], steps: dict[float, dict[str, float]], path: Path) -> Path:
    """Left a query by block, right a step by sparsity."""
    made, axes = figure(9.6, 3.9, columns=2)
    for name in blocks[0].microseconds:
        colour, mark = COLOURS[name]
        medians = [block.microseconds[name].median / 1000 for block in blocks]
        axes[0, 0].plot(
            range(len(blocks)), medians, color=colour, marker=mark, linewidth=1.8, label=LABELS[name]
        )
        remaining = [100 * (1 - sparsity) for sparsity in steps]
        seconds = [step[name] for step in steps.values()]
        axes[0, 1].plot(remaining, seconds, color=colour, marker=mark, linewidth=1.8)
    axes[0, 0].set_xticks(range(len(blocks)), [block.block.split()[0] for block in blocks])
    axes[0, 0].set(yscale="log", xlabel="block of the weight", ylabel="milliseconds a query")
    axes[0, 1].set(xscale="log", yscale="log", xlabel="weights in the sparse set (%)")
    axes[0, 1].set_xticks(remaining, [f"{value:.0f}" for value in remaining])
    axes[0, 1].minorticks_off()
    axes[0, 1].set_ylabel("seconds of a step's queries")
    handles, names = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(made, path)


def main(words: Sequence[str]) -> None:
    """Measure a size, print and write it."""
    parser = protocol.options("figure5_feature_reuse", __doc__, SIZES)
    name = parser.parse_args(words).size
    size = SIZES[name]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timed = make(size.network, size.rows, width=size.width)
        contenders = named.contenders(timed, size.contenders, size.together)
        blocks = []
        for block in timed.blocks():
            blocks.append(measure(timed, block, contenders, size.rounds, 1))
            print(block.name, flush=True)
        counts = kept(timed, size)
    finally:
        torch.set_num_threads(before)
    steps = {sparsity: costs(blocks, count) for sparsity, count in counts.items()}
    text = table(blocks, steps, size)
    print(text)
    path = protocol.path("figure5_feature_reuse", name)
    result = {
        "preset": name,
        "size": vars(size),
        "blocks": [block.plain() for block in blocks],
        "kept": {str(sparsity): count for sparsity, count in counts.items()},
        "seconds of a step": {str(sparsity): step for sparsity, step in steps.items()},
        "differs": sentence(steps),
    }
    protocol.write("figure5_feature_reuse", words, result, path)
    atomic.write_bytes(path.with_suffix(".md"), text.encode())
    print(f"written to {picture(blocks, steps, path.with_suffix('.png'))}")
