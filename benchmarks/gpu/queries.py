"""Time, error, memory and bytes moved of a query on the device, by evaluator and precision."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import zo
from benchmarks.gpu.parts import Place
from benchmarks.query_speed import measuring
from benchmarks.query_speed.comparison import chosen
from benchmarks.query_speed.measuring import (
    BASELINE,
    DIFFERENCE,
    GRAPHS,
    IN_PLACE,
    Contender,
    uniform_mean,
)
from benchmarks.query_speed.problems import MU, Block, Timed, make
from zo.evaluators.operations import Operations

CONTENDERS = (BASELINE, IN_PLACE, "loop", "stacked", DIFFERENCE, GRAPHS)
TOGETHER = {"ci": 4, "small": 128}
ROUNDS = {"ci": 1, "small": 3}
PROCESSES = {"ci": 2, "small": 4}  # of the publication on one card
SECONDS = {"ci": 0.2, "small": 8.0}  # that they run
WITHOUT_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view"}
TF32 = {"float32": False, "TF32 in convolutions": True}  # bfloat16 is refused by `LossGradient`


class Traffic(Operations):
    """Counts the bytes that operations read and write, each by itself, as if nothing stayed in a cache.

    It does not see what a CUDA graph replays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.launches = 0, 0

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Count an operation."""
        if not operation.is_view and operation.overloadpacket.__name__ not in WITHOUT_KERNEL:
            self.launches += 1
            every = tree_leaves((arguments, result))
            self.bytes += sum(value.nbytes for value in every if isinstance(value, Tensor))
        return result


def query_speed(place: Place, network: str, rows: int, blocks: int) -> dict[str, Any]:
    """A row for each mode, precision and contender, in the mean over uniformly drawn coordinates."""
    table, measured = place.table(), place.table("measured")
    modes = (True,) if place.tiny else (True, False)
    rows = min(rows, 4) if place.tiny else rows
    width = 4 if place.tiny else None
    for training in modes:
        for precision, allowed in TF32.items():
            with tensor_floats(allowed):
                timed = make(network, rows, place.device, width=width, training=training)
                every = timed.blocks()
                taken = chosen(every, 2 if place.tiny else blocks)
                contenders = measuring.contenders(timed, CONTENDERS, TOGETHER[place.size])
                contenders, why = runnable(timed, taken[0], contenders, exact=not allowed)
                table += [{"mode": mode_of(training), "precision": precision, **entry} for entry in why]
                blocks_measured = [
                    measured_block(timed, block, contenders, ROUNDS[place.size], exact=not allowed)
                    for block in taken
                ]
                more = {
                    name: cost_of_query(timed, contender, taken[len(taken) // 2])
                    for name, contender in contenders.items()
                }
            mode = mode_of(training)
            measured += [{"mode": mode, "precision": precision, **times.plain()} for times in blocks_measured]
            whole = "all" if len(taken) == len(every) else f"{len(taken)} of {len(every)}"
            for name in contenders:
                means = uniform_mean(blocks_measured, name)
                table.append(
                    {
                        "mode": mode,
                        "precision": precision,
                        "evaluator": name,
                        "blocks": whole,
                        "microseconds": means,
                        "times published": uniform_mean(blocks_measured, BASELINE) / means,
                        "error": max(times.errors[name] for times in blocks_measured),
                        "MiB": max(times.peak[name] for times in blocks_measured) / 2**20,
                        **more[name],
                    }
                )
    seconds = SECONDS[place.size]
    count = PROCESSES[place.size]
    several = processes(place, network, rows, count, seconds)
    table.append({"processes of the publication": count, "microseconds a query": several})
    notes = [
        f"Bandwidth of a copy on this device: {bandwidth(place.device) / 1e9:,.0f} GB/s. Bytes moved are "
        "those that operations read and write, each by itself, of a query in the block in the middle; of "
        "CUDA graphs those that it takes without them. The share is what they take at that bandwidth, of the "
        "time. Host: until all is put into the stream."
    ]
    return {"notes": notes, "rows": table, "measured": measured}


def mode_of(training: bool) -> str:
    """The mode of a network in words."""
    return "training" if training else "evaluation"


def runnable(
    timed: Timed, block: Block, contenders: dict[str, Contender], *, exact: bool
) -> tuple[dict[str, Contender], list[dict[str, str]]]:
    """The contenders that answer rightly, and a row of the table for each that does not."""
    contenders_that_run, why = {}, []
    for name, contender in contenders.items():
        try:
            measured_block(timed, block, {name: contender}, 1, exact=exact)
            contenders_that_run[name] = contender
        except Exception as error:
            why.append({"does not run": name, "because": f"{type(error).__name__}: {error}"[:500]})
    return contenders_that_run, why


@contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    """A block in which convolutions and products may round to ten bits (TF32), or may not."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def measured_block(
    timed: Timed, block: Block, contenders: dict[str, Contender], rounds: int, *, exact: bool
) -> measuring.BlockTimes:
    """Measure one block; with TF32 a wrong answer is a finding, not an error."""
    same = measuring.SAME
    try:
        measuring.SAME = same if exact else float("inf")
        return measuring.measure(timed, block, contenders, rounds, 2)
    finally:
        measuring.SAME = same


def cost_of_query(timed: Timed, contender: Contender, block: Block) -> dict[str, float]:
    """Bytes and launches of a query, and what the host needs for it."""
    queries = timed.queries(block, contender.queries, together=min(8, contender.queries))
    base = timed.base()
    with torch.no_grad():
        run = partial(contender.evaluator.begin(timed.problem, base), queries)
        run()
        host, whole = clocked(run, base.device)
        plain = contender.evaluator
        if isinstance(plain, zo.evaluators.Difference):  # which runs the same kernels without graphs
            plain = replace(plain, graphs=False)
        run = partial(plain.begin(timed.problem, base), queries)
        run()
        with Traffic() as traffic:
            run()
    queries_run = contender.queries
    moved = traffic.bytes / queries_run
    return {
        "launches": traffic.launches / queries_run,
        "host, microseconds": 1e6 * host / queries_run,
        "MB moved": moved / 1e6,
        "share of the bandwidth": moved / bandwidth(base.device.type) / (whole / queries_run),
    }


def clocked(run: Callable[[], object], device: torch.device, rounds: int = 5) -> tuple[float, float]:
    """Seconds until everything was put into the stream, and until it was done; the least of the rounds."""
    times = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        run()
        sent = time.perf_counter()
        wait(device)
        times.append((sent - began, time.perf_counter() - began))
    return min(sent for sent, _ in times), min(done for _, done in times)


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_bandwidths: dict[str, float] = {}


def bandwidth(device: str) -> float:
    """Bytes a second of a large copy on the device, read and written."""
    if device not in _bandwidths:
        from_, to = (torch.zeros(2**28 if device == "cuda" else 2**22, device=device) for _ in range(2))
        to.copy_(from_)
        _, seconds = clocked(partial(to.copy_, from_), from_.device)
        _bandwidths[device] = 2 * from_.nbytes / seconds
    return _bandwidths[device]


def processes(place: Place, network: str, rows: int, count: int, seconds: float) -> float:
    """Microseconds of a query where several processes of the publication share the device."""
    command = [sys.executable, "-m", "benchmarks.gpu.queries", place.device, network, str(rows), str(seconds)]
    command.append("4" if place.tiny else "0")  # width
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(count)
    ]
    try:
        for worker in started:
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != "ready":
                raise RuntimeError("a worker of the publication ended before it began")
        for worker in started:  # all are warm: go
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        rates = [float(worker.communicate(timeout=30 * seconds + 60)[0]) for worker in started]
    finally:
        for worker in started:
            worker.kill()
    return 1e6 / sum(rates)


def worker(device: str, network: str, rows: str, seconds: str, width: str, rank: str) -> None:
    """One of these processes: queries at coordinates of its own; prints how many it did in a second."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    timed = make(network, int(rows), device, width=int(width) or None)
    contender = measuring.contenders(timed, (BASELINE,))[BASELINE]
    size = timed.problem.parameters.size
    generator = torch.Generator().manual_seed(int(rank))  # uniformly drawn, and the same in each run
    some = torch.randperm(size, generator=generator)[:16].sort().values
    part = timed.queries(timed.blocks()[0], 1)
    queries = replace(part, indices=some, steps=timed.problem.parameters.steps(some, MU))
    base = timed.base()
    with torch.no_grad():
        changes = contender.evaluator.begin(timed.problem, base)
        changes(queries)
        wait(base.device)
        print("ready", flush=True)
        sys.stdin.readline()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(seconds):
            changes(queries)
            wait(base.device)
            done += len(queries)
        print(done / (time.perf_counter() - began))


if __name__ == "__main__":
    worker(*sys.argv[1:])
