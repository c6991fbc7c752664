"""How far queries are from what arithmetic allows: their convolutions alone, in the same run.

    python -m benchmarks.query_bound --preset ci       a small ResNet, seconds
    python -m benchmarks.query_bound --preset small    ResNet-20, 64 rows, one thread

No exact algorithm does without the convolutions and linear layers behind a weight: the first of them on the
one channel that its own layer changes, the others whole. They are run on numbers of the same shapes, nothing
between them, in float32 and in bfloat16, and the evaluators beside them. A query's time over theirs is the
distance to the bound. Writes `results/query_bound.json` and `.md` (`query_bound-ci` for "ci").
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import protocol
from benchmarks.query_speed import contenders as named
from benchmarks.query_speed.measuring import BASELINE, BlockTimes, measure
from benchmarks.query_speed.problems import Block, Timed, make
from tasks.runs import atomic
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.reading import Reading
from zo.evaluators.difference.recording import Ref

PRESETS: dict[str, tuple[str, int, int | None, int]] = {
    "ci": ("resnet8", 4, 4, 2),
    "small": ("resnet20", 64, None, 5),
}
FASTEST = {torch.float32: named.FUSED, torch.bfloat16: named.FUSED_16}
PRODUCTS = (torch.conv2d, functional.conv2d, functional.linear)
TOGETHER = 4  # variants in a pass: more fall out of the cache


def products(reading: Reading, number: int, variants: int, dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    """The convolutions and linear layers behind a parameter, on a pass of variants.

    Args:
        reading: of a step.
        number: of the parameter; its own layer is not among them, since one weight takes one shift.
        variants: in the pass.
        dtype: of all numbers.
    """
    found: list[Callable[[], Tensor]] = []
    for place in reading.reached[number]:
        node = reading.nodes[place]
        if node.call.function not in PRODUCTS or number in node.reads:
            continue
        x, weight = (reading.value(arg) if isinstance(arg, Ref) else arg for arg in node.args[:2])
        image = x.ndim == 4
        if image and not found:  # it sees the one channel that was changed
            x, weight = x[:, :1], weight[:, :1]
        x = x.to(dtype).repeat(variants, *[1] * (x.ndim - 1))
        weight = weight.to(dtype)
        if image:
            x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight))
            found.append(partial(functional.conv2d, x, weight, None, *node.args[3:]))
        else:
            found.append(partial(functional.linear, x, weight))
    return found


def seconds(timed: Timed, block: Block, variants: int, rounds: int, dtype: torch.dtype) -> float:
    """Seconds that the products behind a uniformly drawn weight of a block take, for each query."""
    reading = Difference().reading(timed.problem, timed.base())
    which, _ = timed.problem.parameters.locate(block.indices)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    total = 0.0
    for number in which.unique().tolist():
        calls = products(reading, number, variants, dtype)
        runs = {"all": lambda calls=calls: [call() for call in calls]}
        median = protocol.spreads(runs, rounds, clock)["all"].median
        total += float((which == number).float().mean()) * median / variants
    return total


@torch.no_grad()
def measured(timed: Timed, rounds: int) -> list[tuple[BlockTimes, dict[str, float]]]:
    """Of each block the evaluators' times and the microseconds of its products by number format."""
    contenders = named.contenders(timed, (BASELINE, *FASTEST.values()))
    found = []
    for block in timed.blocks():
        times = measure(timed, block, contenders, rounds, checked=4)
        bounds = {
            name: 1e6 * min(seconds(timed, block, variants, rounds, dtype) for variants in (1, TOGETHER))
            for dtype, name in FASTEST.items()
        }
        found.append((times, bounds))
        medians = {name: times.microseconds[name].median for name in bounds}
        said = (f"{name} {medians[name]:,.0f} (products {bounds[name]:,.0f})" for name in bounds)
        print(f"{block.name}: {', '.join(said)}", flush=True)
    return found


def mean(found: Sequence[tuple[BlockTimes, dict[str, float]]], of: Callable[..., float]) -> float:
    """Over uniformly drawn weights."""
    weights = sum(times.weights for times, _ in found)
    return sum(times.weights * of(times, bounds) for times, bounds in found) / weights


def table(name: str, rows: int, found: Sequence[tuple[BlockTimes, dict[str, float]]]) -> str:
    """Markdown: a line for each block, and the mean."""
    columns = list(FASTEST.values())
    text = [
        f"Microseconds of a query of {name}, {rows} rows, one CPU thread, and of the convolutions and linear "
        "layers behind the weight alone, in the same number format and run. In brackets their ratio, the "
        "distance to the bound.",
        "",
        f"| block | weights | {BASELINE} | " + " | ".join(f"{own} | products" for own in columns) + " |",
        "| --- | ---: | ---: |" + " ---: | ---: |" * len(columns),
    ]

    def line(label: str, weights: int, own: Callable[[str], float], bound: Callable[[str], float]) -> str:
        cells = [f"{own(BASELINE):,.0f}"]
        for column in columns:
            said = f" ({own(column) / bound(column):.1f})" if bound(column) > 1 else ""
            cells += [f"{own(column):,.0f}{said}", f"{bound(column):,.0f}"]
        return f"| {label} | {weights:,} | " + " | ".join(cells) + " |"

    for times, bounds in found:
        own = {column: spread.median for column, spread in times.microseconds.items()}
        text.append(line(times.block, times.weights, own.__getitem__, bounds.__getitem__))
    whole = sum(times.weights for times, _ in found)
    text.append(
        line(
            "**mean**",
            whole,
            lambda column: mean(found, lambda times, _: times.microseconds[column].median),
            lambda column: mean(found, lambda _, bounds: bounds[column]),
        )
    )
    return "\n".join(text) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Measure a preset; print and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="small")
    preset = parser.parse_args(words).preset
    network, rows, width, rounds = PRESETS[preset]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = measured(make(network, rows, width=width), rounds)
    finally:
        torch.set_num_threads(before)
    text = table(network, rows, found)
    name = "query_bound" if preset == "small" else f"query_bound-{preset}"
    blocks: list[dict[str, Any]] = [times.plain() | {"products": bounds} for times, bounds in found]
    protocol.write(name, {"network": network, "rows": rows, "blocks": blocks})
    atomic.write_bytes(protocol.RESULTS / f"{name}.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
