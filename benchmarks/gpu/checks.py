"""Parts that check: the tests for a GPU, and two processes on one card."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

import zo
from benchmarks.gpu.parts import Place

ROOT = Path(__file__).parents[2]
STEPS = 3


def tests(place: Place) -> dict[str, Any]:
    """`pytest -m gpu`, its last line and the names of what failed.

    Raises:
        RuntimeError: No test ran.
    """
    asked = ["-m", "gpu", "tests"]
    if place.device == "cpu":
        asked = ["tests/gpu/test_cuda.py", "-k", "cpu and resumed"]
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *asked]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    counts = {
        what: int(many) for many, what in re.findall(r"(\d+) (passed|failed|skipped|error)", ran.stdout)
    }
    if ran.returncode not in (0, 1) or not counts.get("passed", 0) + counts.get("failed", 0):
        raise RuntimeError(f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-1500:]}")
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    rows = [{"tests": what, "number": many} for what, many in counts.items()]
    return {"rows": [*rows, *({"failed": line} for line in failed)], "output": ran.stdout[-6000:]}


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """One loss per row."""
    return (output - target).square().mean(dim=1)


def gradients(device: torch.device, group: dist.ProcessGroup | None, evaluator: str) -> Tensor:
    """What some steps leave in `.grad`, on the CPU."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 10)),
    )
    batch = torch.randn(16, 3, 8, 8).to(device), torch.randn(16, 10).to(device)
    gradient = zo.LossGradient(
        network.to(device),
        zo.OutputLoss(squared_error),
        zo.CGE(1e-3),
        evaluator=evaluator,
        chunk=64,
        process_group=group,
    )
    for _ in range(STEPS):
        gradient.backward(batch)
    grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    return torch.cat([grad.flatten().cpu() for grad in grads])


def work(rank: int, backend: str, kind: str, evaluator: str, folder: str) -> None:
    """One of two processes, both on the first card."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/{backend}-{evaluator}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=90),
    )
    try:
        torch.save(gradients(device, dist.group.WORLD, evaluator), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def ranks(place: Place) -> dict[str, Any]:
    """Whether two processes give the bits of one, by each backend that takes two on one card."""
    device, rows = torch.device(place.device), []
    for evaluator in ("difference",) if place.tiny else ("difference", "stacked", "loop"):
        alone = gradients(device, None, evaluator)
        for backend in ("nccl", "gloo") if place.device == "cuda" else ("gloo",):
            row = {"backend": backend, "evaluator": evaluator}
            with tempfile.TemporaryDirectory() as folder:
                try:
                    spawn(work, (backend, place.device, evaluator, folder), nprocs=2)
                except Exception as error:  # NCCL refuses two on one card, which is to be known
                    said = str(error).strip().splitlines()[-1]
                    rows.append({**row, "same bits": "refused", "largest difference": said[:300]})
                    continue
                found = [torch.load(Path(folder) / f"{rank}.pt") for rank in (0, 1)]
            same = all(torch.equal(own, alone) for own in found)
            off = max(float((own - alone).abs().max()) for own in found)
            rows.append({**row, "same bits": "yes" if same else "no", "largest difference": off})
    return {"rows": rows}
