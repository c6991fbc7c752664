"""What a query of `Difference` will take of a GPU, counted without one: `python -m tests.gpu.counts`.

Bytes and launches in the mean over the weights, on a pretended GPU and scaled to batches of 256; and what
the host needs for a pass of ResNet-20, on tensors so small that kernels take nothing. Decision 36 cites it.
"""

import sys
import time
from types import SimpleNamespace
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import zo
from benchmarks.gpu.queries import bytes_of_kernel
from benchmarks.query_speed.problems import make
from tasks.applications.image_classification import networks
from tests.gpu.pretended import PretendedGPU
from zo.evaluators import Step
from zo.evaluators.difference import evaluator as deciding
from zo.evaluators.difference.changes import Entries
from zo.evaluators.difference.passes import send
from zo.evaluators.difference.rules import convolution
from zo.evaluators.difference.tape import tape_of

ROWS, TOGETHER, BATCH, BANDWIDTH = 2, 16, 256, 4e12
CARD, PASS = 141e9 / 8, 6  # an eighth of an H200's memory; tensors of the widest change's size


def in_place_of_the_kernel(d, *, x, kind, other, before, **_):
    """Something as large, which counts what the kernel moves, and is one launch."""
    if not PretendedGPU.entered:
        return torch.mul(d, 0.5)
    seen = PretendedGPU.entered[-1].seen
    others = seen.bytes  # without those of filling it here
    found = torch.full_like(d, 1e-3)
    seen.bytes = others + bytes_of_kernel(d, found, kind=kind, x=x, other=other, before=before)
    return found


def counted(name: str, training: bool, fused: bool) -> None:
    timed, queries, weights, moved, launches = make(name, ROWS, "cpu", training=training), 0, 0, 0.0, 0.0
    blocks = [(block, timed.queries(block, TOGETHER, together=TOGETHER)) for block in timed.blocks()]
    with PretendedGPU() as gpu:
        network = gpu.network(timed.problem.network)
        batch = tree_map(lambda t: gpu.tensor(t) if isinstance(t, torch.Tensor) else t, timed.problem.batch)
        objective = timed.problem.objective
        problem = Step(network, zo.estimators.Parameters(network), objective, batch, timed.problem.rows)
        changes = zo.evaluators.Difference(TOGETHER, fused=fused).begin(problem, objective(network, batch))
        for block, queries in blocks:
            changes(queries)
            with gpu.watched() as seen:
                changes(queries)
            weights += block.weights
            moved += block.weights * seen.bytes / len(queries) * BATCH / ROWS
            launches += block.weights * len(seen.launches)
    mode = "training" if training else "evaluation"
    print(
        f"{name}, {mode}, {'kernel' if fused else 'rules'}: {moved / weights / 1e6:,.0f} MB a query "
        f"({1e6 * moved / weights / BANDWIDTH:,.0f} us at 4 TB/s), {launches / weights:.0f} launches a pass",
        flush=True,
    )


def hosted(fused: bool) -> None:
    torch.set_num_threads(1)
    objective = zo.OutputLoss(lambda output, target: F.cross_entropy(output, target, reduction="none"))
    found = []
    for width, size in ((2, 8), (None, 32)):  # small; and as it is, for its widths alone
        network = networks.make("resnet20", 10, (3, 32, 32), width=width).train()
        batch = torch.randn(2, 3, size, size), torch.arange(2)
        problem = Step(network, zo.estimators.Parameters(network), objective, batch, 2)
        found.append((problem.parameters, tape_of(problem, objective(network, batch), 2**34, fused)))
    (small, recording), (own, whole) = found
    of_pass = of_query = 0.0
    for number, (tensor, true) in enumerate(zip(small.tensors, own.tensors, strict=True)):
        best = float("inf")
        for _ in range(9):
            began = time.perf_counter()
            entries = Entries.of(torch.arange(2) % tensor.numel(), torch.full((2,), 1e-3), tensor)
            send(recording, number, entries, None)
            best = min(best, time.perf_counter() - began)
        room = int(CARD / PASS / (whole.widest(number) * BATCH / 2))
        of_pass += best * true.numel()
        of_query += best * true.numel() / max(1, min(deciding.MOST_ON_GPU, room, true.numel()))
    x = torch.randn(64)
    began = time.perf_counter()
    for _ in range(10_000):
        torch.add(x, x)
    one = (time.perf_counter() - began) / 10_000
    print(
        f"host, {'kernel' if fused else 'rules'}: {1e6 * of_pass / own.size:,.0f} us a pass, "
        f"{1e6 * of_query / own.size:.1f} us a query as an H200 has room; a torch.add: {1e6 * one:.2f} us"
    )


def by_product(call, one, weight, options, each_in, each_out):
    """As on a GPU."""
    return convolution._by_product(one, weight.unflatten(0, (1, -1)), call.output.shape[2:], options)


def main(names: list[str]) -> None:
    kernels = SimpleNamespace(NONE=0, FIXED=1, OF_BATCH=2, change=in_place_of_the_kernel)
    module = "zo.evaluators.difference.gpu.kernels"
    with (
        mock.patch.dict(sys.modules, {module: kernels}),
        mock.patch.object(sys.modules["zo.evaluators.difference"], "kernels", kernels, create=True),
        mock.patch.object(deciding, "kernels_run_at", lambda tensor: True),
        torch.no_grad(),
    ):
        for name in names or ("resnet20", "resnet56", "dncnn", "wake"):
            for training in (True, False) if name == "resnet20" else (True,):
                for fused in (False, True):
                    counted(name, training, fused)
        with mock.patch.object(convolution, "_by_shared_channels", by_product):
            for fused in (False, True):
                hosted(fused)


if __name__ == "__main__":
    main(sys.argv[1:])
