"""How many bytes recorded rows may take: the machine's and its container's memory, and a run's state."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents.replay.available_memory import available, room_for

PAGES = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}  # 4 GiB


@pytest.fixture
def machine(monkeypatch, tmp_path, limits):
    """One with 4 GiB, whose control groups are files that a test writes."""
    monkeypatch.setattr(os, "sysconf", PAGES.__getitem__)
    limits(control_groups=tmp_path, own_control_groups=tmp_path / "own")

    def of(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            *folders, last = name.split("__")
            folder = tmp_path.joinpath(*folders)
            folder.mkdir(parents=True, exist_ok=True)
            folder.joinpath(last.replace("memory_", "memory.")).write_text(text)

    return of


def test_without_groups_it_is_the_machine_s_memory(machine):
    assert available() == 4 * 2**30
    assert room_for(2**29, 16) == 2**28 and room_for(2**20, 16) == 2**20


@pytest.mark.parametrize(
    ("own", "files", "least"),
    [
        ("0::/jobs/one\n", {"jobs__one__memory_max": "max\n", "jobs__memory_max": "1073741824\n"}, 2**30),
        ("0::/jobs/one\n", {"jobs__one__memory_max": "536870912\n", "jobs__memory_max": "max"}, 2**29),
        ("0::/not/seen/here\n", {"memory_max": "2147483648"}, 2**31),
        ("4:memory:/box\n0::/\n", {"memory__box__memory_limit_in_bytes": "268435456\n"}, 2**28),
        ("4:memory:/box\n", {"memory__box__memory_limit_in_bytes": str(2**63 - 4096)}, 2**32),
        ("3:cpuset:/box\n", {"memory__box__memory_limit_in_bytes": "268435456\n"}, 2**32),
    ],
    ids=["parent", "own", "container", "version-1", "version-1-without", "others"],
)
def test_the_least_limit_of_the_groups_around_a_process_counts(machine, own, files, least):
    machine(own, **files)
    assert available() == least


def test_a_run_goes_on_to_the_same_bits_where_there_is_more_memory(monkeypatch):
    """Room for a few rows, in which the window has gone round by the end."""
    spec = (ArraySpec("x", (3,)),)

    def made(pages):
        sizes = PAGES | {"SC_PHYS_PAGES": pages}
        monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
        torch.manual_seed(0)
        network, box = nn.Linear(3, 3).double(), FromTorch(torch.sin, spec, spec)
        gradient = zo.TangentGradient(
            network, lambda network, batch: box(network(batch)).square().sum(dim=1), boxes=[box]
        )
        return network, gradient

    def steps(network, gradient, first, last):
        grads = []
        for step in range(first, last):
            network.zero_grad()
            gradient.backward(weights(4, 3, seed=step))
            grads.append(network.weight.grad.clone())
        return torch.stack(grads)

    little, gradient = made(pages=8)  # 32 KiB, of which rows have 2: 42 rows of six float64
    steps(little, gradient, 0, 6)
    state = copy.deepcopy(gradient.state_dict())
    wanted = steps(little, gradient, 6, 16)
    elsewhere, other = made(pages=2**20)
    other.load_state_dict(state)
    assert torch.equal(steps(elsewhere, other, 6, 16), wanted)
    plenty, free = made(pages=2**20)
    assert not torch.equal(steps(plenty, free, 0, 16)[6:], wanted)
