"""Two processes that share one device end with the bits of one, by each backend that takes two on a card."""

from __future__ import annotations

import datetime
import os

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException, spawn

import zo

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA begins: products of the same bits
CUDA = torch.cuda.is_available()
STEPS = 3


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(dim=1)


def gradients(device: str, group, evaluator: str) -> Tensor:
    """What some steps leave in `.grad`, on the CPU."""
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    ).to(device)
    batch = torch.randn(16, 3, 8, 8).to(device), torch.randn(16, 10).to(device)
    made = zo.OutputLoss(squared_error), zo.CGE(1e-3)
    gradient = zo.LossGradient(network, *made, evaluator=evaluator, chunk=64, process_group=group)
    for _ in range(STEPS):
        gradient.backward(batch)
    grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([grad.flatten().cpu() for grad in grads])


def work(rank: int, backend: str, device: str, evaluator: str, folder: str) -> None:
    """One of the processes, both on the first card."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    limit, store = datetime.timedelta(seconds=90), f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=2, timeout=limit)
    try:
        torch.save(gradients(device, dist.group.WORLD, evaluator), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def same_bits(backend: str, evaluator: str, folder: str) -> None:
    device, before = "cuda:0" if CUDA else "cpu", torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = gradients(device, None, evaluator)
    finally:
        torch.set_num_threads(before)
    assert alone.abs().max() > 0
    spawn(work, (backend, device, evaluator, folder), nprocs=2)
    for rank in (0, 1):
        assert torch.equal(torch.load(f"{folder}/{rank}.pt"), alone)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("evaluator", ["difference", "stacked", "loop"])
def test_by_gloo(evaluator, tmp_path):
    same_bits("gloo", evaluator, str(tmp_path))


@pytest.mark.gpu
@pytest.mark.parametrize("evaluator", ["difference", "stacked", "loop"])
@pytest.mark.needs("gpu")
def test_by_nccl(evaluator, tmp_path):
    """Newer versions of NCCL refuse two processes on one card, which is to be known, and no fault of ours."""
    try:
        same_bits("nccl", evaluator, str(tmp_path))
    except ProcessRaisedException as error:
        if "duplicate gpu" not in str(error).lower():
            raise
        pytest.skip(f"NCCL refuses two on one card: {str(error).strip().splitlines()[-1]}")
