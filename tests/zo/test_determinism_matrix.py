"""Workers x evaluator x resume point: every way through a run ends with the bits of one process."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.zo.test_distributed import STEPS, train

# A row of the third batch is not finite.
pytestmark = pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")

EVALUATORS = ("loop", "stacked", "difference", "auto")


def followed(size, ranks):
    """How many processes go on with a run of so many: as many, and another number."""
    return size, size % ranks + 1


def work(rank, ranks, evaluators, points, folder):
    """Runs of every number of processes, left off after each point; as many and others go on."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    groups = {size: dist.new_group(list(range(size))) for size in range(1, ranks + 1)}
    results = {}
    for name in evaluators:
        for size in range(1, ranks + 1):
            for point in points:
                left = [train(groups[size], name, until=point)["left"] if rank < size else None]
                dist.broadcast_object_list(left, src=0)
                for following in followed(size, ranks):
                    if rank < following:
                        run = train(groups[following], name, begin=left[0])
                        results[name, size, point, following] = (
                            run["weights"],
                            run["counts"],
                            run["evaluator"],
                        )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def check(folder, ranks, evaluators, points):
    before = torch.get_num_threads()
    spawn(work, (ranks, evaluators, points, str(folder)), nprocs=ranks)
    runs = 0
    try:
        for name in evaluators:
            alone = train(None, name)
            for rank in range(ranks):
                results = torch.load(folder / f"{rank}.pt", weights_only=False)
                for key, (weights, counts, evaluator) in results.items():
                    if key[0] == name:
                        runs += 1
                        assert torch.equal(weights, alone["weights"]), (rank, *key)
                        assert (counts, evaluator) == (alone["counts"], alone["evaluator"]), (rank, *key)
    finally:
        torch.set_num_threads(before)
    per_point = sum(sum(followed(size, ranks)) for size in range(1, ranks + 1))  # every process has its own
    assert runs == len(evaluators) * len(points) * per_point


@pytest.mark.slow
def test_two_workers_and_two_evaluators(tmp_path):
    check(tmp_path, 2, ("loop", "difference"), (2,))


@pytest.mark.slow
def test_the_whole_matrix(tmp_path):
    check(tmp_path, 4, EVALUATORS, tuple(range(1, STEPS)))
