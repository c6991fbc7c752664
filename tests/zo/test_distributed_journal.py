"""A step of two processes, killed between entries of its journal, has the bits and counts of a whole one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from zo.distributed import sharing

import zo
from blackbox import ArraySpec, BlackBoxFunction
from tasks.runs.journal import Journal
from zo.perturbation import Coordinates

CHANGING, KILLED = 36, (None, 5, 9, 12)  # the first coordinate after which it changes; entries before a kill


class Tanh(BlackBoxFunction):
    inputs = (ArraySpec("x", (4,)),)
    outputs = (ArraySpec("y", (4,)),)

    def evaluate_rows(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x)


class Changing(zo.Loop):
    """Gives a little more once it has seen a coordinate: its state decides results, as a choice does."""

    def __init__(self) -> None:
        super().__init__()
        self.more = 0.0

    def changes(self, problem, perturbation, base):
        assert isinstance(perturbation, Coordinates)
        if not self.more and CHANGING in perturbation.indices.tolist():
            self.more = 1e-3
        return super().changes(problem, perturbation, base) + self.more

    def state_dict(self):
        return {"more": self.more}

    def load_state_dict(self, state):
        self.more = state["more"]


def step(rank: int, folder: str, kill: int | None) -> None:
    """A step, in which the first process dies after some entries; what both come to if it does not."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    sharing.ROUND = 1e-9  # two pieces in a round
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{kill}", rank=rank, world_size=2)
    torch.manual_seed(0)
    box, network = Tanh(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    gradient = zo.LossGradient(
        network,
        lambda network, batch: (box(network(batch[0])) - batch[1]).square().mean(1),
        zo.CGE(1e-2),
        evaluator=Changing(),
        chunk=4,
        process_group=dist.group.WORLD,
    )
    run = Path(folder) / f"run{rank}"
    run.mkdir(exist_ok=True)
    journal = Journal(run, "s", box.ledger, every=0.0)
    journal.begin(0)
    gradient.journal = journal
    left, put = kill, journal.put

    def putting(key, value, others=()):
        nonlocal left
        put(key, value, others)
        left = None if left is None else left - 1
        if left == 0:
            raise OSError("killed")

    if rank == 0 and kill is not None:
        journal.put = putting
    generator = torch.Generator().manual_seed(1)
    try:
        gradient.backward((torch.randn(5, 4, generator=generator), torch.zeros(5, 4)))
        rows = torch.tensor([box.ledger.rows_asked])
        dist.all_reduce(rows)
        grads = torch.cat([tensor.grad.flatten() for tensor in network.parameters()])
        if rank == 0:
            found = {"grads": grads.tolist(), "rows": int(rows), "queries": gradient.counts.queries}
            (Path(folder) / "found.json").write_text(json.dumps(found))
    except zo.RanksError:
        pass
    dist.barrier()  # one that is gone would end the other's threads
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By the entry after which the step was killed: what the resumed one came to."""
    results = {}
    for kill in KILLED:
        folder = tmp_path_factory.mktemp("step")
        if kill is not None:
            spawn(step, (str(folder), kill), nprocs=2)
            assert not (folder / "found.json").exists()
        spawn(step, (str(folder), None), nprocs=2)
        results[kill] = json.loads((folder / "found.json").read_text())
    return results


@pytest.mark.parametrize("kill", KILLED[1:])
def test_a_killed_step_is_resumed_to_the_bits_though_the_evaluator_changed_in_it(kill, found):
    assert found[kill]["grads"] == found[None]["grads"]


@pytest.mark.parametrize("kill", KILLED)
def test_what_other_processes_ran_before_the_kill_is_counted_too(kill, found):
    """76 queries of five rows, two bases; a piece in the round of the change, or of the kill, twice."""
    assert found[kill]["queries"] in (76, 80)
    assert found[kill]["rows"] - 5 * 76 - 2 * 5 in (0, 20, 40)
