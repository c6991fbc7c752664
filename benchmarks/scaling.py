"""How the query phase scales: measured from one process to all cores, simulated to 4,096 workers.

python -m benchmarks scaling --size {ci,small}

A dense CGE step of a convolutional network with the evaluator "difference". Measured is a whole step, with
base and exchange. The simulation gives every worker the chunks that `LossGradient` gives it, at their
measured cost, and adds what each does for itself (base, plan, reduction: measured) and the exchange: a
message to each other one, and 8 bytes a query to receive, at an assumed latency and bandwidth.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import zo
from benchmarks import protocol
from tasks.report import pictures
from zo.execution.pieces import dealt

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
LATENCY, BANDWIDTH = 20e-6, 1.25e9  # of a message, s, and of a link, byte/s: assumed, 10 Gbit/s Ethernet


@dataclass(frozen=True)
class Size:
    """What is measured: channels of the network, rows of the batch, queries of a chunk, rounds."""

    channels: int
    rows: int
    chunk: int
    rounds: int


SIZES = {"ci": Size(4, 8, 8, 1), "small": Size(16, 32, 16, 3)}


def error(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of each row."""
    return (output - target).square().mean(dim=1)


def gradient_of(size: Size, group: dist.ProcessGroup | None) -> tuple[zo.LossGradient, tuple[Tensor, Tensor]]:
    """The gradient and the batch, the same in every process."""
    torch.manual_seed(0)
    wide = size.channels
    network = nn.Sequential(
        *(nn.Conv2d(3, wide, 3, padding=1), nn.Tanh(), nn.Conv2d(wide, wide, 3, padding=1), nn.Tanh()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * wide, 10)),
    )
    batch = torch.randn(size.rows, 3, 16, 16), torch.randn(size.rows, 10)
    objective, rule = zo.OutputLoss(error), zo.CGE(1e-3)
    made = zo.LossGradient(
        network, objective, rule, evaluator="difference", chunk=size.chunk, process_group=group
    )
    return made, batch


def work(rank: int, workers: int, size: Size, folder: str) -> None:
    """One of the processes: seconds of a step, after three that check, measure and warm up."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/{workers}", rank=rank, world_size=workers)
    gradient, batch = gradient_of(size, dist.group.WORLD if workers > 1 else None)
    seconds = []
    for step in range(3 + size.rounds):
        dist.barrier()
        began = perf_counter()
        gradient.backward(batch)
        if step > 2:
            seconds.append(perf_counter() - began)
    if rank == 0:
        found = {"seconds": statistics.median(seconds), "exchanged": gradient.exchanged}
        torch.save(found, f"{folder}/{workers}.pt")
    dist.destroy_process_group()


def measured(size: Size, most: int) -> dict[int, dict[str, float]]:
    """Seconds and bytes of a step by the number of processes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for workers in sorted({1, *(2**n for n in range(1, 10) if 2**n <= most), most}):
            spawn(work, (workers, size, folder), nprocs=workers)
            found[workers] = torch.load(Path(folder) / f"{workers}.pt")
    return found


@dataclass(frozen=True)
class Costly:
    """Seconds of each chunk of a step, and of what each worker repeats."""

    chunks: list[float]
    repeated: float
    queries: int


class Stopwatch:
    """A journal that keeps nothing but the seconds from one finished chunk to the next."""

    def __init__(self) -> None:
        self.began = perf_counter()
        self.chunks: list[float] = []

    def get(self, key: str) -> None:
        """Nothing is known; the chunk is evaluated next."""
        self.began = perf_counter()

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Note the seconds of a chunk; checks are not asked for."""
        if " piece " in key:
            self.chunks.append(perf_counter() - self.began)


def costs_of(size: Size) -> Costly:
    """Measured in this process."""
    gradient, batch = gradient_of(size, None)
    for _ in range(3):  # the first two are checked, and warm up
        gradient.journal = watch = Stopwatch()
        began = perf_counter()
        gradient.backward(batch)
        whole = perf_counter() - began
    return Costly(watch.chunks, whole - sum(watch.chunks), gradient.queries())


def simulated(costly: Costly, workers: int) -> dict[str, float]:
    """Seconds of a step's parts on a number of workers.

    Returns:
        `queries`, of the longest share; `repeated`, by every worker; `exchange`.
    """
    longest = max(sum(dealt(costly.chunks, rank, workers)) for rank in range(workers))
    exchange = (workers - 1) * LATENCY + (8 * costly.queries + 1500 * workers) / BANDWIDTH
    return {"queries": longest, "repeated": costly.repeated, "exchange": exchange if workers > 1 else 0.0}


def draw(costly: Costly, seen: dict[int, dict[str, float]], path: Path) -> None:
    """Speed over one worker's, and where the time goes."""
    one = sum(simulated(costly, 1).values())
    parts = {workers: simulated(costly, workers) for workers in WORKERS}
    picture, axes = pictures.figure(8.6, 3.8, columns=2)
    left, right = axes.flat
    left.plot(WORKERS, WORKERS, ":", color="#999999", label="ideal")
    left.plot(WORKERS, [one / sum(parts[w].values()) for w in WORKERS], "-o", ms=3, label="simulated")
    base = seen[1]["seconds"]
    left.plot(list(seen), [base / each["seconds"] for each in seen.values()], "s", label="measured here")
    chunks = len(costly.chunks)
    left.axvline(chunks, color="#999999", lw=0.8)
    left.annotate(f" {chunks} chunks", (chunks, 1.2), fontsize=8)
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="speed over one worker's")
    left.legend(frameon=False, fontsize=8)
    names = {
        "queries": "longest share of the queries",
        "repeated": "done by every worker",
        "exchange": "exchange",
    }
    for name, label in names.items():
        right.plot(WORKERS, [max(parts[w][name], 1e-7) for w in WORKERS], label=label)
    right.set(xscale="log", yscale="log", xlabel="workers", ylabel="seconds of a step")
    right.set_ylim(bottom=1e-5)
    right.legend(frameon=False, fontsize=8)
    pictures.save(picture, path)


def main(words: Sequence[str]) -> None:
    """Measure, simulate, draw and write."""
    parser = protocol.options("scaling", __doc__, SIZES)
    chosen = parser.parse_args(words)
    size = SIZES[chosen.size]
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    costly = costs_of(size)
    seen = measured(size, cores)
    one = sum(simulated(costly, 1).values())
    table = {}
    for workers in WORKERS:
        parts = simulated(costly, workers)
        table[str(workers)] = {**parts, "speed": one / sum(parts.values())}
        limit = max(parts, key=lambda part: parts[part])
        print(f"{workers:5d} workers: {one / sum(parts.values()):7.1f} times one's, most of it {limit}")
    for workers, each in seen.items():
        print(f"{workers:5d} measured: {seen[1]['seconds'] / each['seconds']:.2f}, load {load:.1f}")
    results = {
        "size": vars(size),
        "load before": load,
        "queries": costly.queries,
        "chunks": len(costly.chunks),
        "dearest over cheapest chunk": max(costly.chunks) / min(costly.chunks),
        "assumed": {"latency (s)": LATENCY, "bandwidth (byte/s)": BANDWIDTH},
        "measured": {str(workers): each for workers, each in seen.items()},
        "simulated": table,
    }
    path = protocol.path("scaling", chosen.size)
    protocol.write("scaling", words, results, path)
    draw(costly, seen, path.with_suffix(".png"))
