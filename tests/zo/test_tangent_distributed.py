"""Rows shared out over processes: the same bits on one, two and three, rows paid once, failures told.

Three processes are started once, on 127.0.0.1 with gloo; they do all that is in `CASES` and leave what came
of it in files.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxError, BlackBoxFunction
from tests.judged import gathered, judged
from tests.zo.learners import learner
from tests.zo.linearised import Instead

X = ArraySpec("x", (4,))
# The policy asks for more than can be had, so that all remedies are begun on the way.
# A row of a batch is not finite.
pytestmark = pytest.mark.filterwarnings(
    "ignore::zo.errors.TangentWarning", "ignore::zo.errors.LostRowsWarning"
)
RANKS, ROWS, STEPS = 3, 5, 6
POLICY = judged(check_every=1, average=2, agreement=1e9)
NEVER = zo.tangents.Limits(check_every=None)
VALUES = {"tangent": learner(zo.tangents.MLPTangent, 8, first_steps=3, steps_per_step=1)}
RUNS = {"values": VALUES, "chosen": {"tangent": None}}  # settings of a gradient, by name


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


class Lost(Chancy):
    """Fails for all rows."""

    def evaluate_rows(self, x):
        return x * float("nan")


class BreaksBack(zo.tangents.IdentityTangent):
    """Raises on rank 2, when the boxes have answered."""

    def at(self, rows):
        return Instead(super().at(rows), pull=self.pulled)

    def pulled(self, v):
        if dist.get_rank() == 2:
            raise MemoryError("out of memory")
        return v


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
    network, box = network or make_network(), box or Chancy()
    settings = {"tangent": zo.tangents.IdentityTangent(), "limits": NEVER, **settings}
    return zo.TangentGradient(network, chain(box), boxes=[box], process_group=group, **gathered(**settings))


def state_of(gradient, network) -> dict:
    """All that a run comes to; with `torch.equal`, to the bit."""
    flat = torch.cat([value.flatten().double() for value in network.state_dict().values()])
    watch = gradient.watch.state_dict()
    del watch["said"]  # each process says what it sees, as that rows failed
    return {"weights": flat, "counts": gradient.state_dict()["counts"], "watch": watch}


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
    results = {}
    for size in (1, 2, 3):
        if groups[size] is not None:
            results |= {(name, size): train(groups[size], **settings) for name, settings in RUNS.items()}
            results["replays", size] = train(groups[size], replays=2, **VALUES)
    return results


def resumes(groups) -> dict:
    """Three steps on three processes, then the others on two; rank 2 has none to do."""
    half = train(groups[3], until=3, **VALUES)
    if groups[2] is None:
        return {}
    return {"resumed": train(groups[2], begin=half["left"], **VALUES)}


def error_of(gradient, batch) -> tuple[str, str, str]:
    """What a step raised, its words and its cause; and that it left nothing behind."""
    network = gradient.network
    try:
        gradient.backward(batch)
    except Exception as error:
        assert all(p.grad is None for p in network.parameters()) and gradient.counts.steps == 0
        return type(error).__name__, str(error), type(error.__cause__).__name__
    raise AssertionError("no error")


def differing(groups) -> dict:
    rank, results = dist.get_rank(), {}
    for place, name in enumerate(["weights", "buffers", "batch", "random state", "settings", "steps"]):
        network, box, batch = make_network(), Chancy(), batch_of(0)
        odd = rank == 1 + place % 2
        policy = judged(check_every=None, average=11 if odd and name == "settings" else 10)
        gradient = make_gradient(groups[3], network, box, limits=policy)
        if odd and name == "weights":
            network[0].weight.data[3, 2] += 1e-7
        if odd and name == "buffers":
            network[1].running_var += 1.0
        if odd and name == "batch":
            batch[0, 0] = -batch[0, 0]
        torch.manual_seed(3 if odd and name == "random state" else 4)
        if name == "steps":
            gradient.counts.steps = int(odd)
            try:
                gradient.backward(batch)
            except BlackBoxError as error:
                results[name] = type(error).__name__, str(error), "NoneType", box.ledger.rows_asked
        else:
            results[name] = *error_of(gradient, batch), box.ledger.rows_asked
    return {"differing": results}


def failing(groups) -> dict:
    batch, results, group = batch_of(0), {}, groups[3]
    gradient = make_gradient(group, tangent=BreaksBack())
    results["tangent"] = error_of(gradient, batch)
    results["all"] = error_of(make_gradient(group), torch.full_like(batch, torch.nan))
    results["lost"] = error_of(make_gradient(group, box=Lost()), batch)
    results["rows"] = error_of(make_gradient(group), torch.ones(()))
    tangents = gradient.tangents  # the group serves again
    tangents[0].at = zo.tangents.IdentityTangent().at
    results["after"] = float(gradient.backward(batch))
    return {"failing": results}


def outsiders(groups) -> dict:
    if groups[2] is not None:
        return {}
    try:
        make_gradient(groups["outside"])
    except zo.errors.ConfigurationError as error:
        return {"outside": str(error)}
    return {}


CASES = (runs, resumes, differing, failing, outsiders)


def work(rank: int, folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", zo.errors.TangentWarning)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    made = {size: dist.new_group(list(range(size))) for size in (1, 2)}
    groups = {size: group if rank < size else None for size, group in made.items()}
    groups |= {3: dist.group.WORLD, "outside": made[2]}
    results = {}
    for case in CASES:
        results |= case(groups)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict]:
    """By rank, what the cases gave."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The same bits


def assert_same(run: dict, other: dict) -> None:
    assert torch.equal(run["weights"], other["weights"])
    for key in ("losses", "agreements", "trust", "counts", "watch"):
        assert run[key] == other[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_one_two_and_three_processes_come_to_the_same_bits(name, by_rank, one_thread):
    alone = train(None, **RUNS[name])
    counts = alone["counts"]  # failures and checks are in it, and trust is lost
    assert counts["lost"] > 0 and counts["checks"] > counts["failed_checks"] and alone["watch"]["lost"]
    for size in (1, 2, 3):
        for rank in range(size):
            assert_same(by_rank[rank][name, size], alone)


@pytest.mark.slow
def test_replays_come_to_the_same_bits_and_no_process_runs_a_row_for_them(by_rank, one_thread):
    alone = train(None, replays=2, **VALUES)
    assert alone["counts"]["replays"] == 2 * STEPS and len(alone["losses"]) == 3 * STEPS
    for size in (1, 2, 3):
        ranks = [by_rank[rank]["replays", size] for rank in range(size)]
        for run in ranks:
            assert_same(run, alone)
        assert sum(run["rows run"] for run in ranks) == alone["counts"]["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_rows_are_paid_once_and_counted_in_full_by_all(name, by_rank):
    for size in (1, 2, 3):
        ranks = [by_rank[rank][name, size] for rank in range(size)]
        assert sum(run["rows run"] for run in ranks) == ranks[-1]["counts"]["rows"]


@pytest.mark.slow
def test_a_run_resumes_on_fewer_processes_to_the_same_bits(by_rank, one_thread):
    whole = train(None, **VALUES)
    for rank in range(2):
        assert_same(
            {**by_rank[rank]["resumed"], "losses": 0, "agreements": 0},
            {**whole, "losses": 0, "agreements": 0},
        )


# What is told to all


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "called", "rank"),
    [
        ("weights", "weights", 1),
        ("buffers", "weights", 2),
        ("batch", "batch", 1),
        ("random state", "random state", 2),
        ("settings", "settings", 1),
        ("steps", "settings", 2),
    ],
)
def test_a_rank_that_differs_is_named_on_all_before_a_row_is_asked(by_rank, name, called, rank):
    for results in by_rank:
        kind, words, cause, asked = results["differing"][name]
        assert (kind, cause, asked) == ("TangentError", "NoneType", 0)
        assert f"got other {called} on rank {rank}. Give each the same" in words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank", "cause", "words"),
    [("tangent", 2, "MemoryError", "out of memory")],
)
def test_a_failure_of_one_rank_is_raised_on_all(by_rank, name, rank, cause, words):
    for here, result in enumerate(by_rank):
        kind, said, why = result["failing"][name]
        assert kind == "TangentError" and f"{words}. Mend that and take the step again" in said
        assert f"expected 3 ranks to do their part, rank {rank} failed" in said
        assert why == (cause if here == rank else "NoneType")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("all", "FailedQueriesError", "finite loss in some row"),
        ("lost", "FailedBatchError", "got none in 5 rows. The first cause: "),  # which one rank ran
        ("rows", "ObjectiveError", "rows first"),
    ],
)
def test_what_all_ranks_fail_at_they_raise_as_one_process_would(by_rank, name, kind, words):
    for results in by_rank:
        assert results["failing"][name][0] == kind
        assert words in results["failing"][name][1]


@pytest.mark.slow
def test_the_group_serves_again_after_failures(by_rank, one_thread):
    expected = float(make_gradient(None).backward(batch_of(0)))
    for results in by_rank:
        assert results["failing"]["after"] == expected


@pytest.mark.slow
def test_only_groups_with_this_process_in_them(by_rank):
    assert "with this process in it" in by_rank[2]["outside"]
    with suppress_type_checks(), pytest.raises(zo.errors.ConfigurationError, match="init_process_group"):
        make_gradient("gloo")
