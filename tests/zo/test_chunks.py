"""How many queries run together: within the memory, the same everywhere, and kept by a resumed run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from tests.oracles.layers import NETWORKS
from tests.zo.boxes import Sine
from zo.evaluators import Stacked, Step
from zo.execution import evaluator_choice
from zo.execution.evaluator_choice import CACHED, LEAST, MOST, queries_within
from zo.execution.memory import MemoryPeak

VGG = next(case for case in NETWORKS if case.name == "vgg")
MIB = 2**20


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


def wide() -> nn.Module:
    """Activations of 64 KiB a row, weights of 2 KiB."""
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 1))


def images(rows: int) -> torch.Tensor:
    return torch.randn(rows, 1, 32, 32)


def test_the_peak_is_what_is_alive_at_once_without_what_was_there_before():
    weight, x = torch.randn(1000, 10), torch.randn(10)
    with MemoryPeak() as peak:
        y = weight @ x  # 4000 bytes
        z = (y + 1) * 2  # two more for a moment
        y.add_(1)
        del y
        total = weight.T[0].sum() + z[::2].sum()  # a view of what was there, and of what is counted
    assert peak._most == 3 * 4000
    assert total.isfinite()
    assert peak.peak == 3 * 4000 - peak._now
    assert 4000 <= peak._now <= 4016  # z is still there, and sums


def test_bytes_to_queries():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for device in (cpu, gpu):
        assert queries_within(2**30, 2**30 + 1, device) == 1
        assert queries_within(1000, 100, device) == 10
        assert queries_within(2**30, 0, device) == MOST
    per_query = 2**20
    assert queries_within(2**30, per_query, gpu) == MOST
    assert queries_within(2**30, per_query, cpu) == CACHED // per_query < MOST
    assert (
        queries_within(2**30, 16 * per_query, cpu) == LEAST
    )  # a smaller chunk would cost more than it saves


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=40)], ids=["cge", "rge"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory", [4 * MIB, 11 * MIB])
def test_a_chunk_stays_within_its_memory(memory, training, estimator, monkeypatch):
    monkeypatch.setattr(evaluator_choice, "MEMORY", memory)
    for make, batch, objective in (
        (wide, images(3), mean_square),
        (
            lambda: VGG.make(torch.float32, training=True)[0],
            VGG.make(torch.float32, training=True)[1],
            VGG.objective,
        ),
    ):
        network = make().train(training)
        evaluator = Stacked()
        gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator)
        gradient.backward(batch)
        assert gradient.chunk is not None and gradient.chunk > 1
        rows = len(batch[0]) if isinstance(batch, tuple) else len(batch)
        step = Step(network, gradient.parameters, objective, batch, rows)
        plan = estimator.plan(gradient.parameters, zo.estimators.Key(0))
        with torch.no_grad():
            changes = evaluator.begin(step, objective(network, batch))
            with MemoryPeak() as peak:
                changes(plan.chunk(0, min(gradient.chunk, plan.queries)))
        assert peak.peak <= memory


@pytest.mark.slow
def test_the_chunk_is_chosen_once_and_by_the_problem_alone(monkeypatch):
    monkeypatch.setattr(evaluator_choice, "MEMORY", 3 * MIB)
    chosen, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            gradient = zo.LossGradient(wide(), mean_square, zo.RGE(1e-3, q=4))
            assert gradient.chunk is None
            gradient.backward(images(2))
            first = gradient.chunk
            gradient.backward(images(7))
            assert gradient.chunk == first
            chosen.append(first)
        finally:
            torch.set_num_threads(before)
    assert chosen[0] == chosen[1]
    assert 1 < chosen[0] < MOST


def test_small_problems_run_in_one_chunk():
    box, network = Sine(), nn.Linear(4, 4)

    def objective(network, batch):
        return box(batch + network(batch)).square().mean(dim=1)

    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=Stacked())
    gradient.backward(torch.randn(5, 4))
    assert box.calls[0] == 5 and max(box.calls) == (20 + 2) * 5  # with the sentinel and the drawn query


def test_a_resumed_run_keeps_the_chunk_whatever_it_would_choose(monkeypatch):
    make = lambda **settings: zo.LossGradient(wide(), mean_square, zo.CGE(1e-3), **settings)  # noqa: E731
    monkeypatch.setattr(evaluator_choice, "MEMORY", 4 * MIB)
    first = make()
    first.backward(images(2))
    monkeypatch.setattr(evaluator_choice, "MEMORY", 1)
    resumed = make()
    resumed.load_state_dict(first.state_dict())
    assert resumed.chunk == first.chunk != 1
    before_any_step = make()
    before_any_step.load_state_dict(make(chunk=9).state_dict() | {"chunk": None})
    assert before_any_step.chunk is None
    with pytest.raises(
        zo.errors.ConfigurationError, match=f"chunk=3, got one with {first.chunk}. Leave chunk out"
    ):
        make(chunk=3).load_state_dict(first.state_dict())


def test_copies_count():
    """A module without a rule is copied for each variant: its weights count, those of ruled layers do not."""
    big = nn.Sequential(nn.Linear(200, 200), nn.PReLU(200))
    bilinear = nn.ModuleDict({"b": nn.Bilinear(20, 20, 100), "l": nn.Linear(100, 1)})
    per_query = []
    for network, shape in ((big, (2, 200)), (bilinear, (2, 20))):
        step = Step(network, zo.estimators.Parameters(network), mean_square, torch.zeros(shape), 2)
        plan = zo.CGE(1e-3).plan(step.parameters, zo.estimators.Key(0))
        per_query.append(Stacked().bytes_per_query(step, plan.chunk(0, 1), base=0) - 2 * shape[1] * 4)
    assert per_query == [4 * 200, 4 * (20 * 20 * 100 + 100)]


def test_which_evaluator_serves_does_not_depend_on_who_chose_the_chunk():
    """Directions of a large network are evaluated one by one on a CPU."""
    objective = zo.OutputLoss(lambda y, _: y.square().flatten(1).mean(dim=1), targets=lambda batch: batch[0])
    served = []
    for chunk in (None, 4):
        gradient = zo.LossGradient(wide(), objective, zo.RGE(1e-3, q=4), chunk=chunk)
        gradient.backward((images(16),))
        served.append(gradient.state_dict()["evaluators"])
    assert served[0] == served[1] == {"Directions, training": "Loop"}


@pytest.mark.slow
def test_a_chunk_that_fills_the_memory_is_not_broken_in_two_by_the_drawn_query(monkeypatch):
    """A run that is given the chunk that another chose has the other's bits."""
    monkeypatch.setattr(evaluator_choice, "MEMORY", 4 * MIB)
    rows = []
    network = wide()
    network.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3))
    for _ in range(3):
        rows.clear()
        gradient.backward(images(2))
    assert gradient.chunk is not None and gradient.chunk < LEAST  # as much as there is room for
    assert max(rows) == 2 * (gradient.chunk + 2)  # with the sentinel and the drawn query


@pytest.mark.slow
def test_checks_are_at_most_those_that_are_said_where_a_chunk_is_stacked_in_parts():
    rule = zo.CGE(1e-3, sparsity=zo.RandomCoordinates(256))
    gradient = zo.LossGradient(wide(), mean_square, rule, evaluator=Stacked(), chunk=16)
    gradient.stack = 6  # as chosen on a GPU: three stacks of a chunk
    for _ in range(3):
        most, before = gradient.most_checks(1), gradient.counts.checks
        gradient.backward(images(2))
        assert 16 * 3 < gradient.counts.checks - before <= most
