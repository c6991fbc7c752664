"""How the wake's solver scales: time per row and step by grid and rows, memory bounded by `max_rows`.

    python -m benchmarks.wake_scaling [--device cuda] [--rows 4096] [--seconds 2]

Rows up to 4,096 on 32 x 64, 64 x 128 and 128 x 256, stepped as many at a time as the box takes by itself, or
`--max-rows`. Writes `benchmarks/results/wake_scaling_DEVICE.json`
and `.png`. Each cell of the table is called until `--seconds` are over, twice at least; drawn is the fastest
call, which the rest of the machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import torch

from benchmarks.protocol import RESULTS, write
from simulators.wake_flow.box import WakeFlow
from simulators.wake_flow.staggered import start
from tasks.report.pictures import figure, save

WIDTHS = (32, 64, 128)
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
DEVICES = ("cpu", "cuda")
# Okabe and Ito (2008), and a second sign beside the colour, as in tasks.report.pictures
LOOK = {32: ("#0072b2", "o"), 64: ("#d55e00", "s"), 128: ("#009e73", "^")}


def main() -> None:
    """Measure, print, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--rows", type=int, default=ROWS[-1], help="the most rows")
    parser.add_argument("--max-rows", type=int, help="stepped at a time; the box's choice if not given")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of measurement for each cell of the table"
    )
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: expected a GPU that torch can use, got none. Leave the option out.")
    load = os.getloadavg()[0]
    if asked.device == "cpu":
        torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for width in WIDTHS:
        table += scaling(width, asked.device, asked.rows, asked.seconds, asked.max_rows)
    name = f"wake_scaling_{asked.device}"
    device = torch.cuda.get_device_name() if asked.device == "cuda" else "cpu, one thread"
    write(
        name,
        {
            "command": shlex.join(["python", "-m", "benchmarks.wake_scaling", *sys.argv[1:]]),
            "device": device,
            "load when it began": load,
            "largest memory of the process (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "table": table,
        },
    )
    print(f"written to {picture(table, f'Solver step, {device}', name)}")


def scaling(
    width: int, device: str, most: int, seconds: float, max_rows: int | None = None
) -> list[dict[str, Any]]:
    """Rows of the table for one grid."""
    box = WakeFlow(width, max_rows=max_rows)
    one = start(box.step.channel)[None].to(device)
    table = []
    for rows in (rows for rows in ROWS if rows <= most):
        velocity, reynolds = one.repeat(rows, 1, 1, 1), torch.full((rows,), 500.0, device=device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        times: list[float] = []
        box(velocity, reynolds)  # recordings and factorisation are made now
        while len(times) < 2 or sum(times) < seconds:
            began = perf_counter()
            box(velocity, reynolds)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(perf_counter() - began)
        row: dict[str, Any] = {
            "width": width,
            "rows": rows,
            "at a time": box.rows_at_once(torch.device(device)),
            "calls": len(times),
            "microseconds per row and step": 1e6 * statistics.median(times) / rows,
            "fastest": 1e6 * min(times) / rows,
        }
        if device == "cuda":
            row["MiB beside the input"] = (torch.cuda.max_memory_allocated() - held) / 2**20
        print(", ".join(f"{name} {value:8.4g}" for name, value in row.items()), flush=True)
        table.append(row)
    return table


def picture(table: Sequence[Mapping[str, Any]], title: str, name: str) -> str:
    """Write `results/NAME.png`: both axes logarithmic, a line for each grid; its path."""
    made, axes = figure(6.4, 4.2)
    axis = axes[0, 0]
    for width in dict.fromkeys(row["width"] for row in table):
        colour, mark = LOOK[width]
        chosen = [row for row in table if row["width"] == width]
        axis.plot(
            [row["rows"] for row in chosen],
            [row["fastest"] for row in chosen],
            color=colour,
            marker=mark,
            markersize=5,
            linewidth=1.8,
            label=f"{width} x {2 * width}",
        )
    rows = sorted({row["rows"] for row in table})
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="rows of a call",
        ylabel="microseconds per row and step, fastest call",
    )
    axis.set_xticks(rows, [f"{count:,}" for count in rows])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axis.grid(which="major", color="#e5e5e5", linewidth=0.6)
    axis.set_title(title)
    made.legend(title="cells", loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return str(save(made, RESULTS / f"{name}.png"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # PhiFlow's tracing warns at every size that it reads
    main()
