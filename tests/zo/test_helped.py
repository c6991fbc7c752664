"""Rows of a `TangentGradient`'s calls are shared out among the processes of its group, without asking.

Four processes are started once, see `tests.zo.ranks`; they do what is in `CASES`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction, Budgeted
from blackbox.wrappers.wrapper import Wrapper
from tests.zo.learners import learner
from tests.zo.ranks import SIZES, results_by_rank
from zo.execution.helped import rows_together

STEPS, ROWS = 3, 7
X = ArraySpec("x", (2,), dtype="float64")


class RowByRow(BlackBoxFunction):
    """(sin x0 + x1, x0 x1); a row fails where x0 is above 2, with words that say so."""

    inputs = outputs = (X,)

    def __init__(self) -> None:
        super().__init__(failures="keep")

    def evaluate(self, x):
        if x[0] > 2:
            raise ValueError("x0 is above 2")
        return np.array([math.sin(x[0]) + x[1], x[0] * x[1]])


class FailsOn(Wrapper):
    """Cannot run rows on one rank."""

    def __init__(self, box: BlackBoxFunction, rank: int) -> None:
        super().__init__(box)
        self.rank = rank

    def run_rows(self, inputs):
        if torch.distributed.get_rank() == self.rank:
            raise OSError("the disk is full")
        return super().run_rows(inputs)


class Follows(RowByRow):
    """Its rows go on from one another, or so it says."""

    settable = False


class Noisy(RowByRow):
    """The same in all processes, if each begins with the same seed."""

    deterministic = False

    def __init__(self) -> None:
        super().__init__()
        self.draws = np.random.default_rng(0)

    def evaluate(self, x):
        return super().evaluate(x) + 0.01 * self.draws.normal(size=2)


def batch_of(step: int, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(group, box=None, rows: int = ROWS, prefit=False, network=None, **settings) -> dict:
    """What some steps come to, with a check in every second one."""
    box = RowByRow() if box is None else box
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2)).double()
    policy = zo.tangents.TrustPolicy(check_every=2)
    gradient = zo.TangentGradient(
        network,
        lambda network, x: (box(network(x)) - x).square().mean(1),
        boxes=[box],
        process_group=group,
        trust_policy=policy,
        **settings,
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    if prefit:
        gradient.prefit([batch_of(100, rows)], steps=1)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(float(gradient.backward(batch_of(step, rows))))
        optimizer.step()
    inner = box
    while isinstance(inner, Wrapper):
        inner = inner.box
    weights = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    counts = gradient.counts
    return {"weights": weights, "losses": losses, "rows": inner.ledger.rows_run, "counts": vars(counts)}


RUNS = {  # by name, what makes the box and further settings
    "plain": lambda group: {},
    "one row": lambda group: {"rows": 1, "clip": None},
    "prefit": lambda group: {"prefit": True},
    "blocks": lambda group: {"box": zo.execution.SharedRows(RowByRow(), group, block=2)},
    "mlp": lambda group: {"tangent": learner(zo.tangents.MLPTangent, 8, first_steps=3, steps_per_step=1)},
}
FIRST_ALONE = {
    "shared": lambda group: {"box": zo.execution.SharedRows(RowByRow(), group)},
    "budget": lambda group: {"box": Budgeted(RowByRow(), rows=1000)},
    "follows": lambda group: {"box": Follows()},
}


def shared_out(groups):
    return {
        (name, size): train(groups[size], **settings(groups[size]))
        for size in SIZES
        if groups[size] is not None
        for name, settings in (RUNS | FIRST_ALONE).items()
    }


def failing(groups):
    """Of the group of all, one cannot evaluate its share; then the group serves again."""
    try:
        train(groups[4], box=FailsOn(RowByRow(), 2))
    except zo.errors.TangentError as error:
        return {"failing": (str(error), type(error.__cause__).__name__), "after": train(groups[4])}
    return {}


def failing_before_a_check(groups):
    """In a second step one process fails on its way back, before a check whose rows would be shared out."""
    box = RowByRow()

    def objective(network, x):
        if groups["rank"] == 3 and gradient.counts.steps == 1:
            raise MemoryError("no memory left on this device")
        return (box(network(x)) - x).square().mean(1)

    torch.manual_seed(0)
    network = nn.Linear(2, 2).double()
    policy = zo.tangents.TrustPolicy(check_every=1)
    settings = {"process_group": groups[4], "trust_policy": policy}
    gradient = zo.TangentGradient(network, objective, boxes=[box], **settings)
    gradient.backward(batch_of(0))
    try:
        gradient.backward(batch_of(1))
    except zo.errors.TangentError as error:
        return {"before a check": str(error)}
    return {}


def failing_rows(groups):
    """All rows fail, of which each process has a share: what says why was raised in another one."""
    box = RowByRow()
    gradient = zo.TangentGradient(
        nn.Linear(2, 2).double(),
        lambda network, x: box(x + 0 * network(x)).square().mean(1),
        boxes=[box],
        process_group=groups[4],
    )
    try:
        gradient.backward(torch.full((4, 2), 3.0, dtype=torch.float64))
    except zo.FailedBatchError as error:
        return {"failing rows": str(error)}
    return {}


CASES = (shared_out, failing, failing_before_a_check, failing_rows)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """By rank, what the cases gave."""
    return results_by_rank(CASES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS | FIRST_ALONE)
def test_any_number_of_processes_comes_to_the_bits_of_one(name, by_rank):
    alone = train(None, **(RUNS | FIRST_ALONE)[name](None))
    assert alone["counts"]["checks"] > 0 or name == "one row"  # whose gradient waits in all of these steps
    for size in SIZES:
        runs = [by_rank[rank][name, size] for rank in range(size)]
        for run in runs:
            assert torch.equal(run["weights"], alone["weights"])
            assert (run["losses"], run["counts"]) == (alone["losses"], alone["counts"])
        assert sum(run["rows"] for run in runs) == alone["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "prefit", "blocks", "mlp"])
def test_each_process_runs_its_share_of_the_rows(name, by_rank):
    for size in SIZES:
        rows = [by_rank[rank][name, size]["rows"] for rank in range(size)]
        largest = -(-ROWS // size) if name != "blocks" else 2 * -(-4 // size)  # of a call
        assert max(rows) <= largest / ROWS * sum(rows) and min(rows) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST_ALONE)
def test_the_first_process_alone_runs_what_only_it_may(name, by_rank):
    for size in SIZES:
        rows = [by_rank[rank][name, size]["rows"] for rank in range(size)]
        assert rows[0] > 0 and not any(rows[1:])


@pytest.mark.slow
def test_a_process_that_fails_at_its_share_is_named_in_all_and_the_group_serves_again(by_rank):
    for rank, results in enumerate(by_rank):
        words, cause = results["failing"]
        assert "rank 2 failed: OSError: the disk is full" in words
        assert cause == {0: "RanksError", 2: "OSError"}.get(rank, "NoneType")
        assert torch.equal(results["after"]["weights"], by_rank[0]["plain", 1]["weights"])


@pytest.mark.slow
def test_a_process_that_fails_before_a_check_is_named_in_all(by_rank):
    for results in by_rank:
        assert "rank 3 failed: MemoryError: no memory left" in results["before a check"]


@pytest.mark.slow
def test_why_rows_failed_in_another_process_is_said_in_all(by_rank):
    for results in by_rank:
        assert "ValueError: x0 is above 2" in results["failing rows"]


@pytest.mark.parametrize(
    ("box", "rows"),
    [
        (RowByRow(), 3),
        (zo.execution.SharedRows(RowByRow(), None), 7),
        (zo.execution.SharedRows(RowByRow(), None, block=2), 2),
        (Budgeted(RowByRow(), rows=9), 7),
        (Follows(), 7),
        (Noisy(), 7),
        (zo.execution.SharedRows(Noisy(), None, block=3), 3),
    ],
)
def test_how_many_of_seven_rows_one_of_three_processes_runs_together(box, rows):
    assert rows_together(box, 7, 3) == rows
