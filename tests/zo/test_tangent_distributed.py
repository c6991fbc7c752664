"""Processes that train by tangents in step share a box's rows by `SharedRows`: the bits of one process.

Four processes are started once, see `tests.zo.ranks`; they do what is in `CASES`.
"""

from __future__ import annotations

import time
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from tests.judged import gathered, judged
from tests.zo.learners import learner
from tests.zo.ranks import results_by_rank
from zo.execution import SharedRows

X = ArraySpec("x", (4,))
# The policy asks for more than can be had, so that all remedies are begun on the way.
# A row of a batch is not finite.
pytestmark = pytest.mark.filterwarnings(
    "ignore::zo.errors.TangentWarning", "ignore::zo.errors.LostRowsWarning"
)
SIZES, ROWS, STEPS = (1, 2, 3), 5, 6
POLICY = judged(check_every=1, average=2, agreement=1e9)
NEVER = zo.tangents.Limits(check_every=None)
VALUES = {"tangent": learner(zo.tangents.MLPTangent, 8, first_steps=3, steps_per_step=1)}
RUNS = {  # settings of a gradient, by name
    "values": VALUES,
    "chosen": {"tangent": None},
    "replays": {"replays": 2, **VALUES},
}


class Chancy(BlackBoxFunction):
    """sin(1.3 x) for rows of four; some rows fail, which is told by the digits of the input alone."""

    inputs = outputs = (X,)
    arrays = "torch"

    def __init__(self) -> None:
        super().__init__(failures="keep")

    def evaluate_rows(self, x):
        y = torch.sin(1.3 * x)
        y[(1e4 * x.abs().sum(dim=1)).frac() < 0.025] = float("nan")
        return y


class FailsOn(Chancy):
    """Cannot run rows on one rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.failures, self.rank = "raise", rank

    def evaluate_rows(self, x):
        if dist.get_rank() == self.rank:
            raise OSError("the disk is full")
        return super().evaluate_rows(x)


def make_network() -> nn.Module:
    """With masks and buffers, which must not differ between processes."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8).eval()  # so that a row that fails does not reach others
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 4))


def batch_of(step: int) -> torch.Tensor:
    batch = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(step))
    batch[step % ROWS] = torch.nan if step == 2 else batch[step % ROWS]
    return batch


def chain(box, steps=3):
    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(steps):
            state = box(state + 0.1 * network(state.nan_to_num()))
            loss = loss + (state - 0.5).square().mean(dim=1)
        return loss

    return objective


def make_gradient(group, network=None, box=None, **settings) -> zo.TangentGradient:
    """A gradient in a process of a group, whose box is shared out in blocks of two rows."""
    network, box = network or make_network(), SharedRows(box or Chancy(), group, block=2)
    settings = {"tangent": zo.tangents.IdentityTangent(), "limits": NEVER, **settings}
    return zo.TangentGradient(network, chain(box), boxes=[box], process_group=None, **gathered(**settings))


def state_of(gradient, network) -> dict:
    """All that a run comes to; with `torch.equal`, to the bit."""
    flat = torch.cat([value.flatten().double() for value in network.state_dict().values()])
    state = gradient.state_dict()
    return {"weights": flat, "counts": state["counts"], "watch": gradient.watch.state_dict()}


def train(group, begin=None, until=STEPS, replays=None, **settings) -> dict:
    """Some steps down the gradient; `begin` is what another run left, and on which a new gradient goes on."""
    torch.set_num_threads(1)
    network, box = make_network(), Chancy()
    settings |= {"limits": POLICY, "replays": replays}
    gradient = make_gradient(group, network, box, **settings)
    torch.manual_seed(7)
    if begin is not None:
        gradient.load_state_dict(begin["gradient"])
        network.load_state_dict(begin["network"])
        torch.set_rng_state(begin["generator"])
    losses, agreements = [], []

    def descend() -> None:
        with torch.no_grad():
            for tensor in network.parameters():
                tensor -= 0.1 * tensor.grad
        network.zero_grad()

    for step in range(gradient.counts.steps, until):
        losses.append(float(gradient.backward(batch_of(step))))
        agreements.append(gradient.agreement)
        descend()
        for _ in range(gradient.replays() if replays else 0):
            losses.append(float(gradient.replay()))
            descend()
    states = {"gradient": gradient.state_dict(), "network": network.state_dict()}
    left = {**states, "generator": torch.get_rng_state()}
    seen = {"losses": losses, "agreements": agreements, "trust": gradient.trust}
    return {**state_of(gradient, network), **seen, "rows run": box.ledger.rows_asked, "left": left}


# What the processes do


def runs(groups) -> dict:
    warnings.simplefilter("ignore", zo.errors.TangentWarning)
    return {
        (name, size): train(groups[size], **settings)
        for size in SIZES
        if groups[size] is not None
        for name, settings in RUNS.items()
    }


def resumes(groups) -> dict:
    """Three steps on three processes, then the others on two; the others have none to do."""
    if groups[3] is None:
        return {}
    half = train(groups[3], until=3, **VALUES)
    if groups[2] is None:
        return {}
    return {"resumed": train(groups[2], begin=half["left"], **VALUES)}


def error_of(gradient, batch) -> tuple[str, str]:
    """A step raises an error, whose words these are, and leaves nothing behind."""
    steps = gradient.counts.steps
    try:
        gradient.backward(batch)
    except BlackBoxError as error:
        assert all(p.grad is None for p in gradient.network.parameters()) and gradient.counts.steps == steps
        return type(error).__name__, str(error)
    raise AssertionError("no error")


def differing(groups) -> dict:
    odd, results = groups["rank"] == 2, {}
    for name in ("weights", "buffers", "batch", "random state"):
        network, batch = make_network(), batch_of(0)
        gradient = make_gradient(groups[4], network)
        if odd and name == "weights":
            network[0].weight.data[3, 2] += 1e-4
        if odd and name == "buffers":
            network[1].running_var += 1.0
        if odd and name == "batch":
            batch[0, 0] = -batch[0, 0]
        torch.manual_seed(3 if odd and name == "random state" else 4)
        results[name] = error_of(gradient, batch)
    return {"differing": results}


def failing(groups) -> dict:
    batch, group = batch_of(0), groups[4]
    results = {"rows": error_of(make_gradient(group, box=FailsOn(1)), batch)}
    results["after"] = float(make_gradient(group).backward(batch))
    return {"failing": results}


def failing_between_calls(groups) -> dict:
    """Of two processes one fails between two calls of a box, and lives on."""
    group = groups["short"]  # it has three seconds
    if group is None:
        return {}
    box = SharedRows(Chancy(), group)

    def objective(network, batch):
        state = box(network(batch))
        if groups["rank"] == 1:
            raise BlackBoxError("no memory left on this device")
        return box(state + network(batch)).square().mean(dim=1)

    began = time.perf_counter()
    gradient = zo.TangentGradient(make_network(), objective, boxes=[box], process_group=None)
    words = error_of(gradient, batch_of(0))
    return {"between calls": (*words, time.perf_counter() - began)}


CASES = (runs, resumes, differing, failing, failing_between_calls)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict]:
    """By rank, what the cases gave."""
    return results_by_rank(CASES, tmp_path_factory.mktemp("ranks"))


# The same bits


def assert_same(run: dict, other: dict) -> None:
    assert torch.equal(run["weights"], other["weights"])
    for key in ("losses", "agreements", "trust", "counts", "watch"):
        assert run[key] == other[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("one_thread")
def test_one_two_and_three_processes_come_to_the_same_bits_and_pay_each_row_once(name, by_rank):
    alone = train(None, **RUNS[name])
    counts = alone["counts"]  # failures and checks are in it, and trust is lost
    assert counts["lost"] > 0 and counts["checks"] > counts["failed_checks"] and alone["watch"]["lost"]
    assert (counts["replays"] == 2 * STEPS) == (name == "replays")
    for size in SIZES:
        ranks = [by_rank[rank][name, size] for rank in range(size)]
        for run in ranks:
            assert_same(run, alone)
        assert sum(run["rows run"] for run in ranks) == alone["rows run"]
        assert all(run["rows run"] > 0 for run in ranks)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_resumes_on_fewer_processes_to_the_same_bits(by_rank):
    whole = train(None, **VALUES)
    for rank in range(2):
        assert_same(
            {**by_rank[rank]["resumed"], "losses": 0, "agreements": 0},
            {**whole, "losses": 0, "agreements": 0},
        )


# What is told to all


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights", "buffers", "batch", "random state"])
def test_a_rank_that_differs_is_named_on_all(by_rank, name):
    for results in by_rank:
        kind, words = results["differing"][name]
        assert kind == "RanksError"
        assert "all ranks to ask for the same rows, got others on rank 2. Give each the same" in words


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_failure_at_a_share_of_rows_is_raised_on_all_and_the_group_serves_again(by_rank):
    expected = float(make_gradient(None).backward(batch_of(0)))
    for results in by_rank:
        kind, words = results["failing"]["rows"]
        assert kind == "RowFailedError" and "the disk is full" in words
        assert results["failing"]["after"] == expected


@pytest.mark.slow
def test_where_one_fails_between_two_calls_the_other_waits_until_the_timeout(by_rank):
    (kind, words, seconds), (_, reason, at_once) = (by_rank[rank]["between calls"] for rank in (0, 1))
    assert kind == "RanksError" and "rank 0 expected an answer of all 2 ranks" in words
    assert reason == "no memory left on this device" and at_once < 3 < seconds
