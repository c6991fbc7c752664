"""How the query phase scales, from one process to all cores.

python -m benchmarks scaling --size {ci,small}

A dense CGE step of a convolutional network with the evaluator "difference", base and exchange included.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import zo
from benchmarks import protocol


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


def main(words: Sequence[str]) -> None:
    """Measure and write."""
    parser = protocol.options("scaling", __doc__, SIZES)
    chosen = parser.parse_args(words)
    size = SIZES[chosen.size]
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0]
    seen = measured(size, cores)
    for workers, each in seen.items():
        print(f"{workers:5d} processes: {seen[1]['seconds'] / each['seconds']:.2f}, load {load:.1f}")
    found = {str(workers): each for workers, each in seen.items()}
    results = {"size": vars(size), "load before": load, "measured": found}
    protocol.write("scaling", words, results, protocol.path("scaling", chosen.size))
