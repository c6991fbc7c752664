"""Queries shared out over processes: the bits of one, what is exchanged, and failures told to all.

Four processes are started once, on 127.0.0.1 with gloo; they do all that is in `CASES` and leave what came
of it in files. Four others do what slow tests alone ask for, `SLOW_CASES`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn

import zo
from tests.both import Both
from tests.zo.ranks import RANKS, SIZES, Chancy, results_by_rank

# A row of the third batch is not finite.
pytestmark = pytest.mark.filterwarnings("ignore::zo.errors.LostRowsWarning")

ROWS, STEPS, MU = 5, 4, 1e-3


class Waking(nn.Module):
    """Draws noise of its own from the third step on, which no stack of variants gets right."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        return x + 0.1 * torch.randn_like(x) if self.steps > 2 else x


def make_network(waking=False):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5).eval()  # so that a row that fails does not reach others
    last = Waking() if waking else nn.Identity()
    return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 4), last)


def batch_of(step):
    draws = torch.Generator().manual_seed(step)
    batch = torch.randn(ROWS, 4, generator=draws), torch.randn(ROWS, 4, generator=draws)
    batch[0][step % ROWS] = torch.nan if step == 2 else batch[0][step % ROWS]
    return batch


def through(box):
    def objective(network, batch):
        return (box(batch[0] + network(batch[0].nan_to_num())) - batch[1]).square().mean(dim=1)

    return objective


def known_loss(output, target):
    return (output - target).square().mean(dim=1)


CGE = zo.CGE(MU)
SPARSE = zo.CGE(MU, zo.RandomCoordinates(20, every=2), True)
RUNS = {  # (estimator, evaluator, chunk, through a box or a known loss)
    "loop": (CGE, "loop", 5, "box"),
    "stacked": (CGE, "stacked", 7, "box"),
    "difference": (CGE, "difference", 7, "known"),
    "auto": (CGE, "auto", 7, "known"),
    "sparse": (SPARSE, "stacked", 3, "box"),
    "directions": (zo.RGE(MU, 9), "stacked", 2, "box"),
    "both": (Both(zo.CGE(MU, zo.RandomCoordinates(15)), zo.RGE(MU, 7)), "loop", 4, "box"),
    "waking": (CGE, "stacked", 4, "box"),
    "chosen chunk": (CGE, "stacked", None, "box"),
}


QUICK = ("loop", "waking")  # the others in a slow test


def make_gradient(group, name="stacked", network=None, box=None, **settings):
    rule, evaluator, chunk, kind = RUNS[name]
    network, box = network or make_network(name == "waking"), box or Chancy()
    objective = through(box) if kind == "box" else zo.OutputLoss(known_loss)
    settings = {"chunk": chunk, "max_dropped": 0.5, "process_group": group, **settings}
    return zo.LossGradient(network, objective, rule, **{"evaluator": evaluator, **settings})


def train(group, name, begin=None, until=STEPS):
    """Some steps down the gradient; `begin` is what another run left, on which a new gradient goes on."""
    torch.set_num_threads(1)
    network, box = make_network(name == "waking"), Chancy()
    gradient = make_gradient(group, name, network, box)
    torch.manual_seed(7)
    if begin is not None:
        gradient.load_state_dict(begin["gradient"])
        network.load_state_dict(begin["network"])
        torch.set_rng_state(begin["generator"])
    losses, costs = [], []
    for step in range(gradient.counts.steps, until):
        network.zero_grad()
        with warnings.catch_warnings():
            # elsewhere it is an error: loop against loop would say nothing of the others
            warnings.simplefilter("ignore" if name == "waking" else "error", zo.errors.EvaluatorWarning)
            losses.append(float(gradient.backward(batch_of(step))))
        costs.append(gradient.exchanged)
        with torch.no_grad():
            for tensor in network.parameters():
                tensor -= 0.1 * tensor.grad
    flat = torch.cat([value.flatten().double() for value in network.state_dict().values()])
    left = {"gradient": gradient.state_dict(), "network": network.state_dict()}
    return {
        "weights": flat,
        "losses": losses,
        "counts": gradient.state_dict()["counts"],
        "evaluator": gradient.state_dict()["evaluators"],
        "exchanged": costs,
        "rows": box.ledger.rows_asked,
        "left": {**left, "generator": torch.get_rng_state()},
    }


def sizes_of(name):
    """Of the groups that do a run: which evaluator it has does not depend on how many there are."""
    return SIZES[1:-1] if name == "loop" else SIZES[-1:] if name in QUICK else ()


# What the processes do


def runs(groups):
    results = {}
    for size in SIZES:
        if groups[size] is not None:
            results |= {(name, size): train(groups[size], name) for name in RUNS if size in sizes_of(name)}
    return results


def others(groups):
    """The runs in groups of those sizes that `runs` leaves out."""
    results = {}
    for size in SIZES[1:]:
        if groups[size] is not None:
            results |= {
                (name, size): train(groups[size], name) for name in RUNS if size not in sizes_of(name)
            }
    return results


def resumes(groups, name="stacked", sizes=(1,)):
    """Two steps on four processes, the others on fewer."""
    half, results = train(groups[4], name, until=2), {}
    for size in sizes:
        if groups[size] is not None:
            results["resumed", name, size] = train(groups[size], name, begin=half["left"])
    return results


def other_resumes(groups):
    """Those that `resumes` leaves out."""
    return resumes(groups, sizes=(3,)) | resumes(groups, "auto", (1, 3))


class Notebook(dict):
    """A journal that remembers, and whose process is killed after some entries."""

    most = 1000

    def put(self, key, value):
        if len(self) == self.most:
            raise OSError("killed")
        self[key] = dict(value)


def journals(groups):
    """A step whose second process is killed; then three processes take it, the first with all journals."""
    gradient = make_gradient(groups[4], "loop")
    gradient.journal = Notebook()
    gradient.journal.most = 2 if groups["rank"] == 1 else 1000
    torch.manual_seed(7)
    error = error_of(gradient, batch_of(0))
    kept = [None] * RANKS
    dist.all_gather_object(kept, dict(gradient.journal))
    if groups[3] is None:
        return {"journal": (error, 0, None, kept)}
    box, network = Chancy(), make_network()
    again = make_gradient(groups[3], "loop", network, box)
    every = {key: value for journal in kept for key, value in journal.items()}
    again.journal = Notebook(every if groups["rank"] == 0 else {})
    torch.manual_seed(7)
    again.backward(batch_of(0))
    grads = torch.cat([tensor.grad.flatten() for tensor in network.parameters()])
    return {"journal": (error, box.ledger.rows_asked, grads, kept)}


@dataclass(frozen=True)
class Late(zo.evaluators.Stacked):
    """Cannot serve the last weight at the steps of mu, as the check does not find."""

    def begin(self, problem, base):
        inner = super().begin(problem, base)

        def changes(queries):
            result = inner(queries)
            if (queries.indices == problem.parameters.size - 1).any() and queries.steps.abs().min() < 2 * MU:
                raise zo.evaluators.Unservable("on purpose")
            return result

        return changes


def late(groups):
    """A step with a fault in its last piece; and once more, with all that was found before."""
    if groups[2] is None:
        return {}
    entries, counts, rows = {}, [], []
    for _ in range(2):
        box = Chancy()
        gradient = make_gradient(groups[2], "stacked", box=box, chunk=6, evaluator=Late())
        gradient.journal = Notebook(entries if groups["rank"] == 0 else {})
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)
            gradient.backward(batch_of(0))
        counts.append(gradient.counts)
        rows.append(box.ledger.rows_asked)
        kept = [None] * 2
        dist.all_gather_object(kept, dict(gradient.journal), groups[2])
        entries = {key: value for journal in kept for key, value in journal.items() if "by loop" not in key}
    return {"late": (counts, rows)}


def bytes_exchanged(groups):
    """Bytes that this rank receives in a step without a check."""
    results = {}
    for size, name in ((4, "stacked"), (3, "loop"), (4, "directions")):
        if groups[size] is not None:
            gradient = make_gradient(groups[size], name)
            for step in (0, 1, 3):
                gradient.backward(batch_of(step))
            results[size, name] = gradient.exchanged, gradient.next_queries()
    return {"bytes": results}


def error_of(gradient, batch):
    """What a step raised, its words and its cause; and that it left nothing behind."""
    try:
        gradient.backward(batch)
    except Exception as error:
        assert all(p.grad is None for p in gradient.network.parameters()) and gradient.counts.steps == 0
        return type(error).__name__, str(error), type(error.__cause__).__name__
    raise AssertionError("no error")


DIFFERING = ("weights", "buffers", "batch", "random state", "settings", "chunk")


def differing(groups):
    results = {}
    for place, name in enumerate(DIFFERING):
        network, box, batch = make_network(), Chancy(), batch_of(0)
        odd = groups["rank"] == 1 + place % 3
        other = {"seed": 1} if name == "settings" else {"chunk": 4} if name == "chunk" else {}
        gradient = make_gradient(groups[4], "stacked", network, box, **(other if odd else {}))
        if odd and name == "weights":
            network[0].weight.data[3, 2] += 1e-7
        if odd and name == "buffers":
            network[1].running_var += 1.0
        if odd and name == "batch":
            batch[0][0, 0] = -batch[0][0, 0]
        torch.manual_seed(3 if odd and name == "random state" else 4)
        results[name] = *error_of(gradient, batch), box.ledger.rows_asked
    return {"differing": results}


class BreaksLate(Chancy):
    """Raises on one rank, some calls after the first."""

    def __init__(self, rank, at=4):
        super().__init__()
        self.rank, self.at, self.asked = rank, at, 0

    def evaluate_rows(self, x):
        self.asked += 1
        if self.asked == self.at and self.rank is not None and dist.get_rank() == self.rank:
            raise MemoryError("no room left")
        return torch.sin(1.3 * x)


class OneRowLess(Chancy):
    def evaluate_rows(self, x):
        y = super().evaluate_rows(x)
        y[0] = torch.nan
        return y


def failing(groups):
    batch, results, group = batch_of(0), {}, groups[4]
    torch.manual_seed(4)
    raising = BreaksLate(2)
    raising.failures = "raise"
    broken = zo.LossGradient(
        make_network(), through(raising), CGE, evaluator="loop", chunk=5, process_group=group, max_dropped=0.5
    )
    results["chunk"] = error_of(broken, batch)
    raising.failures = "keep"
    everything = tuple(torch.full_like(part, torch.nan) for part in batch)
    results["all"] = error_of(make_gradient(group), everything)
    box = OneRowLess() if groups["rank"] == 3 else Chancy()
    results["base"] = error_of(make_gradient(group, box=box), batch)
    results["rows"] = error_of(make_gradient(group), (torch.ones(()), torch.ones(())))
    results["noise"] = error_of(*breaks_in_the_last_query(group))
    results["writes"] = error_of(writing_on_rank(1, group), batch)
    results["after"] = float(broken.backward(batch))  # the group and the gradient serve again
    results["grads"] = torch.cat([tensor.grad.flatten() for tensor in broken.network.parameters()])
    return {"failing": results}


def breaks_in_the_last_query(group):
    """The first rank alone evaluates a query again, when all pieces are there."""
    calls = None
    for _ in range(2):
        box, network = BreaksLate(0, calls), make_network()
        box.failures = "raise"
        gradient = make_gradient(group, "loop", network, box)
        torch.manual_seed(4)
        if calls is None:
            gradient.backward(batch_of(0))
            calls = box.asked
    return gradient, batch_of(0)


def writing_on_rank(rank, group):
    """A forward that writes, on one rank alone, to weights that it had left alone in the base."""
    network, calls = make_network(), []

    def objective(network, batch):
        calls.append(1)
        if dist.get_rank() == rank and len(calls) == 3:
            network[4].bias.data += 1.0
        return known_loss(network(batch[0].nan_to_num()), batch[1])

    return zo.LossGradient(network, objective, CGE, evaluator="loop", chunk=5, process_group=group)


def lonely(groups):
    """One rank alone has a journal, in a step before which nothing else is decided."""
    half = train(groups[4], "loop", until=2)["left"]
    gradient = make_gradient(groups[4], "loop")
    gradient.load_state_dict(half["gradient"])
    gradient.journal = Notebook() if groups["rank"] == 1 else None
    torch.manual_seed(7)
    try:
        gradient.backward(batch_of(2))
    except zo.errors.RanksError as error:
        return {"lonely": str(error)}
    return {"lonely": "no error"}


def other_boxes(groups):
    """Rank 2 has another version of the box."""

    class Other(Chancy):
        def evaluate_rows(self, x):
            return super().evaluate_rows(x) * (1.01 if groups["rank"] == 2 else 1.0)

    said = {}
    for name, box in {"the same": Chancy(), "other": Other()}.items():
        gradient = make_gradient(groups[4], "loop", box=box)
        torch.manual_seed(4)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gradient.backward(batch_of(0))
            gradient.backward(batch_of(0))
        said[name] = [str(warning.message) for warning in caught if "all processes" in str(warning.message)]
    return {"boxes": said}


def dying(groups):
    """Rank 1 is gone in the middle of a step; of two processes of a group of their own."""
    group = groups["short"]
    if group is None:
        return {}

    class Dies(Chancy):
        def evaluate_rows(self, x):
            if groups["rank"] == 1:
                raise KeyboardInterrupt  # not an Exception: it tells no one
            return super().evaluate_rows(x)

    gradient = zo.LossGradient(
        make_network(), through(Dies()), CGE, evaluator="loop", chunk=5, process_group=group
    )
    torch.manual_seed(4)
    try:
        return {"dying": error_of(gradient, batch_of(0))}
    except KeyboardInterrupt:
        return {"dying": None}


CASES = (runs, resumes, journals, bytes_exchanged, differing, failing, lonely, other_boxes, dying)
SLOW_CASES = (others, other_resumes, late)


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory):
    """By rank, what the cases gave."""
    return results_by_rank(CASES, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def slow_by_rank(tmp_path_factory):
    """By rank, what the cases of slow tests gave."""
    return results_by_rank(SLOW_CASES, tmp_path_factory.mktemp("slow"))


# The same bits


def assert_same(run, other):
    assert torch.equal(run["weights"], other["weights"])
    assert run["losses"] == other["losses"]
    assert run["evaluator"] == other["evaluator"]


def refuse_other_bits(name, sizes, by_rank):
    """What every rank of groups of these sizes came to is what one process comes to."""
    alone = train(None, name)
    dropped = alone["counts"]["dropped"]
    assert dropped > 0 if RUNS[name][3] == "box" and name not in ("directions", "both") else True
    for size, rank in [(processes, rank) for processes in sizes for rank in range(processes)]:
        run = by_rank[rank][name, size]
        assert_same(run, alone)
        assert run["counts"]["dropped"] == dropped
        assert run["counts"] == alone["counts"] or name == "waking"  # pieces before the fault run twice


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_one_to_four_processes_come_to_the_same_bits(name, by_rank, one_thread):
    refuse_other_bits(name, sizes_of(name), by_rank)


@pytest.mark.slow
def test_two_to_four_processes_come_to_the_same_bits_in_every_run(slow_by_rank, one_thread):
    for name in RUNS:
        refuse_other_bits(name, set(SIZES[1:]) - set(sizes_of(name)), slow_by_rank)
    refuse_other_rows("sparse", SIZES[1:], slow_by_rank)


def test_one_that_wakes_is_found_by_its_sentinel_and_evaluated_by_loop(by_rank):
    assert all(
        by_rank[rank]["waking", 4]["evaluator"] == {"Coordinates, training": "Loop"} for rank in range(4)
    )


def refuse_other_rows(name, sizes, by_rank):
    """Rows are paid once, beside the base, which all evaluate; checks are the first process's."""
    alone = train(None, name)
    for size in sizes:
        asked = sum(by_rank[rank][name, size]["rows"] for rank in range(size))
        assert asked == alone["rows"] + (size - 1) * ROWS * STEPS
        assert all(by_rank[rank][name, size]["rows"] > ROWS * STEPS for rank in range(size))


def test_rows_are_paid_once(by_rank, one_thread):
    refuse_other_rows("loop", sizes_of("loop"), by_rank)


@pytest.mark.slow
def test_queries_that_a_fault_made_useless_are_counted_also_by_a_run_that_goes_on(slow_by_rank, one_thread):
    alone = train(None, "waking")
    assert alone["rows"] == ROWS * (alone["counts"]["queries"] + STEPS)
    (whole, resumed), _ = slow_by_rank[0]["late"]
    rows = sum(slow_by_rank[rank]["late"][1][0] for rank in range(2))
    assert rows == ROWS * (whole.queries + 2)  # both evaluate the base
    assert resumed == whole


def refuse_another_end(name, size, by_rank):
    """Of a run that was begun on four processes and resumed on so many."""
    whole = train(None, name)
    for rank in range(size):
        resumed = by_rank[rank]["resumed", name, size]
        assert_same({**resumed, "losses": 0}, {**whole, "losses": 0})
        assert resumed["counts"] == whole["counts"]


def test_a_run_resumes_on_one_process_to_the_same_bits(by_rank, one_thread):
    refuse_another_end("stacked", 1, by_rank)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("stacked", 3), ("auto", 1), ("auto", 3)])
def test_a_run_resumes_on_another_number_of_processes_to_the_same_bits(name, size, slow_by_rank, one_thread):
    refuse_another_end(name, size, slow_by_rank)


def test_what_the_journal_has_of_all_processes_is_not_evaluated_again(by_rank, one_thread):
    network = make_network()
    torch.manual_seed(7)
    gradient = make_gradient(None, "loop", network)
    gradient.backward(batch_of(0))
    whole = torch.cat([tensor.grad.flatten() for tensor in network.parameters()])
    for results in by_rank:
        kind, words, _ = results["journal"][0]
        assert kind == "RanksError" and "killed" in words
    for results in by_rank[:3]:
        assert torch.equal(results["journal"][2], whole)
    kept = [len(journal) for journal in by_rank[0]["journal"][3]]
    assert kept[1] == 2 and min(kept) > 0
    numbers = [value["numbers"] for journal in by_rank[0]["journal"][3] for value in journal.values()]
    known = sum(values.numel() for values in numbers)  # those of checks among them
    queries = sum(results["journal"][1] for results in by_rank[:3]) // ROWS - 3  # without the base
    assert queries == gradient.counts.queries - known


# What is exchanged


@pytest.mark.parametrize(("size", "name"), [(4, "stacked"), (3, "loop"), (4, "directions")])
def test_bytes_of_a_step(size, name, by_rank):
    """Eight a query, and about a kilobyte of words from each process; one exchange pads to the longest."""
    for rank in range(size):
        exchanged, queries = by_rank[rank]["bytes"][size, name]
        most = -(-queries // size) + RUNS[name][2]
        assert 8 * queries < exchanged < size * (8 * most + 4000)


# What is told to all


@pytest.mark.parametrize(
    ("place", "name", "called"),
    [
        (0, "weights", "weights"),
        (1, "buffers", "weights"),
        (2, "batch", "batch"),
        (3, "random state", "random state"),
        (4, "settings", "settings"),
        (5, "chunk", "settings"),
    ],
)
def test_a_rank_that_differs_is_named_on_all(by_rank, place, name, called):
    for results in by_rank:
        kind, words, cause, _ = results["differing"][name]
        assert (kind, cause) == ("RanksError", "NoneType")
        assert f"other {called}" in words and f"on rank {1 + place % 3}" in words


def test_a_box_that_is_another_one_on_some_rank_is_told_once(by_rank):
    for results in by_rank:
        (said,) = results["boxes"]["other"]
        assert "on rank 2" in said and results["boxes"]["the same"] == []


def test_a_failure_of_one_rank_is_raised_on_all(by_rank):
    for rank, results in enumerate(by_rank):
        kind, words, cause = results["failing"]["chunk"]
        assert kind == "RanksError" and "rank 2 failed: RowFailedError" in words and "no room left" in words
        assert cause == ("RowFailedError" if rank == 2 else "NoneType")


@pytest.mark.parametrize(("name", "rank", "words"), [("noise", 0, "no room left"), ("writes", 1, "4.bias")])
def test_what_one_rank_finds_after_its_queries_is_raised_on_all(by_rank, name, rank, words):
    for results in by_rank:
        kind, said, _ = results["failing"][name]
        assert kind == "RanksError" and f"rank {rank} failed" in said and words in said


def test_a_journal_on_one_rank_alone_is_refused_by_name(by_rank):
    for results in by_rank:
        assert "other journal and stage of the step on rank 1" in results["lonely"]
        assert "a journal to all or to none" in results["lonely"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("all", "FailedQueriesError", "finite loss in some row"),
        ("rows", "ObjectiveError", "rows first"),
        ("base", "RanksError", "other surviving rows of the base on rank 3"),
    ],
)
def test_what_all_ranks_fail_at_they_raise_alike(by_rank, name, kind, words):
    for results in by_rank:
        assert results["failing"][name][0] == kind
        assert words in results["failing"][name][1]


def test_group_and_gradient_serve_again_after_failures(by_rank, one_thread):
    torch.manual_seed(4)
    gradient = zo.LossGradient(
        make_network(), through(BreaksLate(None)), CGE, evaluator="loop", chunk=5, max_dropped=0.5
    )
    loss = float(gradient.backward(batch_of(0)))
    grads = torch.cat([tensor.grad.flatten() for tensor in gradient.network.parameters()])
    for results in by_rank:
        assert results["failing"]["after"] == loss
        assert torch.equal(results["failing"]["grads"], grads)


def test_a_rank_that_is_gone_ends_the_step_within_the_timeout(by_rank):
    kind, words, _ = by_rank[0]["dying"]
    assert kind == "RanksError"
    assert "rank 0 expected an answer of all 2 ranks" in words and "last checkpoint" in words
    assert by_rank[1]["dying"] is None
