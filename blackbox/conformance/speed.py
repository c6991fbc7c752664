"""Check of speed: seconds a row by rows in a call, and so the best block."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, Probe

LARGEST = 256
REPEATS = 3
LONG = 5.0  # seconds of one call, after which no larger one is tried
SLOW_CALL = 0.05  # seconds that a call may cost beside its rows before it is worth a warning


def speed(probe: Probe, clock: Callable[[], float] = perf_counter) -> Finding:
    """Calls of 1, 2, 4, ... 256 rows, the best of three each; small ones within 10 % of the best are best."""
    seconds: dict[int, float] = {}
    size = 1
    probe(probe.rows(0, 1))  # a first call may compile or connect
    room = probe.left / 2  # the rest is for the check that comes after
    while size <= LARGEST and seconds.get(size // 2, 0.0) < LONG and 2 * size * REPEATS <= room:
        arrays = probe.rows(0, size)
        seconds[size] = min(_time(probe, arrays, clock) for _ in range(REPEATS))
        size *= 2
    if len(seconds) < 2:
        return Finding("speed", Verdict.SKIPPED, "The budget of rows leaves no room for it.")
    a_row = {size: time / size for size, time in seconds.items()}
    best = min(size for size, time in a_row.items() if time <= 1.1 * min(a_row.values()))
    table = ", ".join(f"{size}: {_duration(time)}" for size, time in a_row.items())
    last = max(seconds)
    sentence = f"Blocks of {best} rows are best, {_duration(a_row[best])} a row ({table})."
    # A call costs c + r rows: c and r from the two ends.
    row = max(0.0, (seconds[last] - seconds[1]) / (last - 1))
    fixed = max(0.0, seconds[1] - row)
    if fixed > SLOW_CALL and fixed > row * 64:
        sentence += (
            f" A call costs {_duration(fixed)} beside its rows: give it many, or start the program once."
        )
        return Finding("speed", Verdict.WARNING, sentence, best, "rows a call")
    if best < last:
        sentence += f" Larger ones cost more: cut them, with max_rows={best} or Parallel."
    return Finding("speed", Verdict.OK, sentence, best, "rows a call")


def _time(probe: Probe, arrays: Arrays, clock: Callable[[], float]) -> float:
    started = clock()
    probe(arrays)
    return clock() - started


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
