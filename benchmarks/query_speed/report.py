"""The table of `query_speed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.query_speed.measuring import BASELINE, BlockTimes, uniform_mean
from benchmarks.query_speed.steps import Steps
from benchmarks.query_speed.steps import lines as lines_of_steps


@dataclass(frozen=True)
class Measured:
    """One network on one device, in one mode, with one number of rows.

    `whole` says whether all blocks were measured, so that the mean over coordinates is one; then
    there may be the seconds of a step's queries by sparsity too.
    """

    network: str
    device: str
    rows: int
    mode: str
    weights: int
    blocks: Sequence[BlockTimes]
    whole: bool
    steps: Steps | None = None

    @property
    def title(self) -> str:
        """The network, device and mode in words."""
        return f"{self.network}, {self.rows} rows, {self.mode}, {self.device}"

    def plain(self) -> dict[str, Any]:
        """All values as plain data, for JSON."""
        values = {name: value for name, value in vars(self).items() if name != "blocks"}
        return values | {"microseconds, mean": self.means(), "blocks": [b.plain() for b in self.blocks]}

    def means(self) -> dict[str, float]:
        """Microseconds of a query by contender: at a uniformly drawn coordinate of the blocks measured."""
        return {name: uniform_mean(self.blocks, name) for name in self.blocks[0].microseconds}


def table(measured: Sequence[Measured], notes: Sequence[str] = ()) -> str:
    """Markdown: for each network its blocks, and the mean over uniformly drawn coordinates."""
    lines = [
        "Microseconds of a query (median of the rounds); in brackets how many times faster than the paper's "
        "worker. The mean is over uniformly drawn coordinates of the blocks in the table. Error: of the loss "
        "differences, relative to float64 at the same coordinates, largest over the blocks. Memory: peak of "
        "tensors alive at once while queries run.",
        "",
        *notes,
    ]
    for case in measured:
        names = list(case.blocks[0].microseconds)
        means = case.means()
        lines += [
            "",
            f"**{case.title}** ({case.weights:,} weights{'' if case.whole else '; some blocks'})",
            "",
        ]
        lines += ["| block | weights | " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) + 1)]
        for block in case.blocks:
            medians = {name: spread.median for name, spread in block.microseconds.items()}
            lines.append(f"| {block.block} | {block.weights:,} | " + _cells(names, medians) + " |")
        weights = sum(block.weights for block in case.blocks)
        lines.append(f"| **mean** | {weights:,} | " + _cells(names, means) + " |")
        errors = (max(block.errors[name] for block in case.blocks) for name in names)
        lines.append("| error | | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
        peaks = (max(block.peak[name] for block in case.blocks) / 2**20 for name in names)
        lines.append("| memory, MiB | | " + " | ".join(f"{peak:,.0f}" for peak in peaks) + " |")
        lines += lines_of_steps(case.steps) if case.steps else []
    return "\n".join(lines) + "\n"


def _cells(names: Sequence[str], medians: dict[str, float]) -> str:
    def cell(name: str) -> str:
        shown = f"{medians[name]:,.0f}"
        if BASELINE not in medians or name == BASELINE:
            return shown
        return f"{shown} ({medians[BASELINE] / medians[name]:.1f})"

    return " | ".join(cell(name) for name in names)
