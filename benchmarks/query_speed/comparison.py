"""Microseconds of a query by evaluator and block, beside two plain loops with feature reuse.

    python -m benchmarks query_speed --size ci       small networks, seconds; it shows that it runs
    python -m benchmarks query_speed --size small    four networks in both modes, some of their blocks
    python -m benchmarks query_speed --size figure5  ResNet-20 in training mode, all blocks; steps by sparsity

On the CPU with one thread; `python -m benchmarks gpu` has the same on a GPU. Contenders take turns in one
process; each is held against float64 first. Processor seconds are taken, so that a shared core does not
count; ratios hold, single times do not. Writes `results/query_speed.json` and `.md`
(with `-SIZE` where it is not "small"). Where all blocks are measured and `loop` is there, what reuse and
`difference` save of a step is summed up by sparsity, as in the paper's figure 5, there of a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks import protocol
from benchmarks.query_speed import measuring as named
from benchmarks.query_speed import steps
from benchmarks.query_speed.measuring import BASELINE, measure
from benchmarks.query_speed.problems import Block, make
from benchmarks.query_speed.report import Measured, table
from tasks.folder import atomic


@dataclass(frozen=True)
class Case:
    """A network to measure: how many rows, how many of its blocks (None: all), by whom, how often."""

    network: str
    rows: int
    blocks: int | None
    contenders: tuple[str, ...]
    rounds: int = 5
    training: bool = True
    checked: int = 2
    width: int | None = None
    together: int = named.TOGETHER


PLAIN = (BASELINE, named.IN_PLACE, named.LAST)
CASES: dict[str, tuple[Case, ...]] = {
    "ci": (
        Case("resnet8", 4, None, (*PLAIN, "loop", "stacked", named.DIFFERENCE), 2, True, 2, 4, 4),
        Case("wake", 2, 2, (BASELINE, named.DIFFERENCE), 2, False, 2, 4, 4),
    ),
    "small": tuple(
        Case(network, rows, blocks, (*PLAIN, named.DIFFERENCE), 3, training)
        for network, rows, blocks in (
            ("resnet20", 64, 5),
            ("resnet56", 64, 3),
            ("dncnn", 16, 3),
            ("wake", 16, 3),
        )
        for training in (True, False)
    ),
    "figure5": (Case("resnet20", 64, None, (BASELINE, "loop", named.DIFFERENCE), 3),),
}


def measured(case: Case) -> Measured:
    """Measure a case, and print a line for each block."""
    timed = make(case.network, case.rows, width=case.width, training=case.training)
    every = timed.blocks()
    contenders = named.contenders(timed, case.contenders, case.together)
    blocks = []
    for block in chosen(every, case.blocks):
        blocks.append(measure(timed, block, contenders, case.rounds, case.checked))
        medians = {name: spread.median for name, spread in blocks[-1].microseconds.items()}
        print(f"{case.network}, {block.name}: ", end="")
        print(", ".join(f"{name} {value:,.0f}" for name, value in medians.items()), flush=True)
    weights = timed.problem.parameters.size
    mode = "training" if case.training else "evaluation"
    whole = len(blocks) == len(every)
    by_sparsity = steps.seconds(blocks, steps.kept(timed)) if whole and "loop" in contenders else None
    return Measured(case.network, "cpu", case.rows, mode, weights, blocks, whole, by_sparsity)


def chosen(blocks: Sequence[Block], count: int | None) -> list[Block]:
    """Evenly many of the blocks that hold a hundredth of the weights, from the first such to the last."""
    if count is None or count >= len(blocks):
        return list(blocks)
    whole = sum(block.weights for block in blocks)
    large = [block for block in blocks if block.weights >= whole / 100]
    if count >= len(large):
        return large
    return [large[round(place * (len(large) - 1) / max(1, count - 1))] for place in range(count)]


def main(words: Sequence[str]) -> None:
    """Measure the cases of a size, print and write them."""
    parser = protocol.options("query_speed", __doc__, CASES)
    size = parser.parse_args(words).size
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    text = ""
    cases: list[Measured] = []
    try:
        for case in CASES[size]:
            cases.append(measured(case))
            text = write(cases, size, words, busy)  # each time: what was measured is kept
    finally:
        torch.set_num_threads(before)
    print("\n" + text)


def write(cases: Sequence[Measured], size: str, words: Sequence[str], busy: float) -> str:
    """Write table and JSON of what was measured so far, and return the table."""
    notes = [f"One thread; load of the machine when it began: {busy:.1f} processes."]
    text = table(cases, notes)
    path = protocol.path("query_speed", size)
    results = {"preset": size, "load": busy, "measured": [case.plain() for case in cases]}
    protocol.write("query_speed", words, results, path)
    atomic.write_bytes(path.with_suffix(".md"), text.encode())
    return text
