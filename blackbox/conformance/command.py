"""What `blackbox check` does: check, print the table, write JSON, and say by a number how it went."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from blackbox.conformance.check import check_black_box
from blackbox.conformance.samples import Samples, read_samples
from blackbox.function import BlackBoxFunction


def command(
    box: BlackBoxFunction,
    samples: Samples | str | Path | None = None,
    out: str | Path | None = None,
    *,
    rows: int | None = None,
    processes: bool = True,
    seed: int = 0,
    console: Console | None = None,
) -> int:
    """Check a black box for a person or for CI.

    Args:
        box: the black box.
        samples: as `check_black_box` takes them, or the path of an `.npz` or `.npy` file with them.
        out: a file for the report as JSON; "-" writes it to standard output in place of the table.
        rows: the most rows to run.
        processes: whether other processes may be started.
        seed: of all draws.
        console: where the table goes; None for standard output.

    Returns:
        The exit status: 0 without faults, warnings or not; 1 with one.
    """
    given = read_samples(box, samples) if isinstance(samples, str | Path) else samples
    report = check_black_box(box, given, rows=rows, processes=processes, seed=seed)
    if out == "-":
        print(report.to_json(), end="")
    else:
        (console or Console()).print(report)
        if out is not None:
            Path(out).write_text(report.to_json(), encoding="utf-8")
    return 1 if report.faults else 0
