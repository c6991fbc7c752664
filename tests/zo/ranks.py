"""Four processes on 127.0.0.1 with gloo: they go through all cases, and leave what came of them in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn, start_processes

from blackbox import ArraySpec, BlackBoxFunction

RANKS = 4
SIZES = (1, 2, 3, 4)
Case = Callable[[dict[Any, Any]], dict[Any, Any]]
"""From the groups, by size and "short", and the "rank" to what is found, by name."""


class Chancy(BlackBoxFunction):
    """sin(1.3 x) for rows of four; some rows fail, which is told by the digits of the input alone."""

    inputs = outputs = (ArraySpec("x", (4,)),)
    arrays = "torch"

    def __init__(self) -> None:
        super().__init__(failures="keep")

    def evaluate_rows(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(1.3 * x)
        y[(1e4 * x.abs().sum(dim=1)).frac() < 0.01] = float("nan")
        return y


def results_by_rank(cases: Sequence[Case], folder: Path) -> list[dict[Any, Any]]:
    """By rank, what the cases gave."""
    spawn(_fork, (str(folder), list(cases)), nprocs=1)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def _fork(_: int, folder: str, cases: Sequence[Case]) -> None:
    """What takes seconds to import is imported once, with what torch imports at the first step."""
    import torch._dynamo  # noqa: F401

    start_processes(_work, (folder, cases), nprocs=RANKS, start_method="fork")


def _work(rank: int, folder: str, cases: Sequence[Case]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    made = {size: dist.new_group(list(range(size))) for size in SIZES[:-1]}
    groups: dict[Any, Any] = {size: group if rank < size else None for size, group in made.items()}
    short = dist.new_group([0, 1], timeout=timedelta(seconds=3))  # one in which someone does not answer
    groups |= {RANKS: dist.group.WORLD, "rank": rank, "short": short if rank < 2 else None}
    results = {}
    for case in cases:
        results |= case(groups)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
