"""The table and the picture of `query_speed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.query_speed.measuring import BASELINE, BlockTimes, uniform_mean
from tasks.report.pictures import figure, save

# Okabe and Ito (2008), as in tasks.report.pictures, and a second sign
LOOK = {
    "published": ("#000000", "^"),
    "in place": ("#0072b2", "X"),
    "in place, channels last": ("#009e73", "*"),
    "loop": ("#606060", "o"),
    "stacked": ("#56b4e9", "s"),
    "difference": ("#d55e00", "v"),
}


@dataclass(frozen=True)
class Measured:
    """One network on one device, in one mode, with one number of rows.

    `whole` says whether all blocks were measured, so that the mean over coordinates is one.
    """

    network: str
    device: str
    rows: int
    mode: str
    weights: int
    blocks: Sequence[BlockTimes]
    whole: bool

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.network}, {self.rows} rows, {self.mode}, {self.device}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        found = {name: value for name, value in vars(self).items() if name != "blocks"}
        return found | {"microseconds, mean": self.means(), "blocks": [b.plain() for b in self.blocks]}

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
    for each in measured:
        names = list(each.blocks[0].microseconds)
        means = each.means()
        lines += [
            "",
            f"**{each.title}** ({each.weights:,} weights{'' if each.whole else '; some blocks'})",
            "",
        ]
        lines += ["| block | weights | " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) + 1)]
        for block in each.blocks:
            medians = {name: spread.median for name, spread in block.microseconds.items()}
            lines.append(f"| {block.block} | {block.weights:,} | " + _cells(names, medians) + " |")
        weights = sum(block.weights for block in each.blocks)
        lines.append(f"| **mean** | {weights:,} | " + _cells(names, means) + " |")
        errors = (max(block.errors[name] for block in each.blocks) for name in names)
        lines.append("| error | | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
        peaks = (max(block.peak[name] for block in each.blocks) / 2**20 for name in names)
        lines.append("| memory, MiB | | " + " | ".join(f"{peak:,.0f}" for peak in peaks) + " |")
    return "\n".join(lines) + "\n"


def _cells(names: Sequence[str], medians: dict[str, float]) -> str:
    def cell(name: str) -> str:
        own = f"{medians[name]:,.0f}"
        if BASELINE not in medians or name == BASELINE:
            return own
        return f"{own} ({medians[BASELINE] / medians[name]:.1f})"

    return " | ".join(cell(name) for name in names)


def picture(measured: Sequence[Measured], path: Path) -> Path:
    """Microseconds by block, a panel for each network; bars are quartiles."""
    columns = min(3, len(measured))
    rows = -(-len(measured) // columns)
    made, axes = figure(4.4 * columns, 3.1 * rows + 0.7, rows=rows, columns=columns)
    for panel, each in zip(axes.flat, measured, strict=False):
        for name in each.blocks[0].microseconds:
            colour, mark = LOOK[name]
            spreads = [block.microseconds[name] for block in each.blocks]
            places = range(len(spreads))
            middle = [spread.median for spread in spreads]
            below = [spread.median - spread.lower for spread in spreads]
            above = [spread.upper - spread.median for spread in spreads]
            panel.errorbar(
                places, middle, yerr=[below, above], color=colour, marker=mark, markersize=4,
                linewidth=1.5, elinewidth=0.8, label=name,
            )  # fmt: skip
        panel.set_yscale("log")
        panel.set_xticks(list(range(len(each.blocks))), [b.block.split()[0] for b in each.blocks])
        panel.tick_params(axis="x", labelsize=7 if len(each.blocks) > 12 else 9)
        panel.set(title=each.title, xlabel="block of the weight", ylabel="microseconds a query")
    for panel in axes.flat[len(measured) :]:
        panel.set_visible(False)
    handles = {}
    for panel in axes.flat:
        lines, names = panel.get_legend_handles_labels()
        handles |= dict(zip(names, lines, strict=True))
    made.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    return save(made, path)
