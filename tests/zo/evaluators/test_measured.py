"""`Measured`: what it takes for what measured times, what it records, and what it does without a compiler."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import zo
from benchmarks.query_speed.problems import make
from blackbox import ArraySpec, BlackBoxFunction
from zo.evaluators.difference import fused
from zo.evaluators.difference.compiling import Compiled
from zo.evaluators.evaluator import Problem
from zo.evaluators.memory import MemoryPeak
from zo.evaluators.reuse import FeatureReuse
from zo.evaluators.timing import Timing, Took
from zo.perturbation import Coordinates, Directions

ROWS = 3


@pytest.fixture
def as_written(monkeypatch):
    """Kernels run as they are written: what is compiled of them is the same, and takes seconds."""
    monkeypatch.setattr(Compiled, "unfused", True)


@pytest.fixture
def times(monkeypatch):
    """Seconds of a query as the test sets them, by the name of the candidate; and which were asked for."""
    seconds = {"difference": 4e-3, "reuse": 5e-3, "loop": 9e-3, "stacked": 9e-3, "fused": 1e-3}
    asked = []
    real = Timing.each

    def each(self, evaluator, number, width, most, calls=2):
        took = real(self, evaluator, number, width, most, calls)
        name = type(evaluator).__name__.lower()
        if name == "verified":
            name = "fused" if evaluator.fast.kernels else "difference"
        name = {"featurereuse": "reuse"}.get(name, name)
        if took is not None:
            asked.append(name)
        return None if took is None else Took(seconds[name], took.changes)

    monkeypatch.setattr(Timing, "each", each)
    return seconds, asked


def problem_of(queries: int, rows: int = ROWS):
    timed = make("simple-3700", rows, width=4)
    return dataclasses.replace(timed.problem, queries=queries), timed.base()


def some(problem, count: int = 96) -> Coordinates:
    indices = torch.linspace(0, problem.parameters.size - 1, count).long()
    return Coordinates(indices, problem.parameters.steps(indices, 1e-3))


def used(auto: zo.Measured) -> set[str]:
    """By whom parameters are served; a bias in front of batch norm changes nothing, and is left out."""
    unfelt = ("0.bias", "4.bias")
    return {own for name, (own, _) in auto.chosen.items() if name not in unfelt}


@pytest.mark.parametrize("fastest", ["difference", "reuse", "loop", "stacked"])
@torch.no_grad()
def test_the_fastest_serves_and_gives_what_loop_gives(fastest, times):
    seconds, _ = times
    seconds[fastest] = 1e-6
    auto, (problem, base) = zo.Measured(), problem_of(0)
    queries = some(problem)
    found = auto.changes(problem, queries, base)
    assert used(auto) == {fastest}
    assert auto.take_queries() > 0 and auto.take_queries() == 0
    true = zo.Loop().changes(problem, queries, base)
    # of float32 losses near two that are subtracted, behind some ten layers
    assert (found - true).abs().max() < 1e-4


@pytest.mark.parametrize("fastest", ["loop", "stacked"])
@torch.no_grad()
def test_the_faster_one_serves_directions_and_is_recorded(fastest, monkeypatch):
    real = Timing.took

    def took(self, evaluator, queries, most, calls=2):
        found = real(self, evaluator, queries, most, calls)
        assert found is not None
        return Took(1.0 if type(evaluator).__name__.lower() == fastest else 2.0, found.changes)

    monkeypatch.setattr(Timing, "took", took)
    auto, (problem, base) = zo.Measured(), problem_of(24)
    generator = torch.Generator().manual_seed(0)
    directions = Directions(1e-2 * torch.randn(24, problem.parameters.size, generator=generator))
    auto.candidates.stacked.serving(problem, directions)  # the check is apart
    auto.take_queries()
    found = auto.changes(problem, directions, base)
    assert auto.along == fastest and 0 < auto.take_queries() <= 2 * 24
    evaluator = zo.Loop() if fastest == "loop" else zo.Stacked()
    assert torch.equal(found, evaluator.changes(problem, directions, base))
    other = zo.Measured()
    other.load_state_dict(json.loads(json.dumps(auto.state_dict())))
    assert torch.equal(other.changes(problem, directions, base), found) and other.take_queries() == 0


@torch.no_grad()
def test_a_parameter_whose_kind_was_not_timed_follows_from_its_activations(times):
    seconds, asked = times
    seconds.update(reuse=1e-6)
    auto, (problem, base) = zo.Measured(), problem_of(0)
    auto.changes(problem, some(problem, 13), base)  # enough queries for one kind of layer out of several
    assert asked.count("reuse") == 1
    assert set(auto.chosen) == set(problem.parameters.names) and used(auto) == {"reuse"}


class Sorted:
    """A loss without a rule, far above what it changes by: float32 rounds most of that away."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, output, target):
        apart = torch.sort((output - target).abs(), dim=1).values
        return self.offset + (apart * torch.linspace(0, 1, 4, dtype=output.dtype)).sum(1)


@pytest.mark.parametrize("fastest", ["reuse", "loop", "stacked"])
def test_losses_that_are_too_rounded_are_not_subtracted_however_fast_that_is(fastest, times):
    seconds, _ = times
    seconds[fastest] = 1e-6
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    batch = torch.randn(5, 6), torch.randn(5, 4)
    for offset in (1e3, 1e4):
        found = []
        for evaluator in (zo.Measured(), zo.Difference()):
            own = copy.deepcopy(network)
            objective = zo.OutputLoss(Sorted(offset))
            zo.LossGradient(own, objective, zo.CGE(1e-3), evaluator=evaluator).backward(batch)
            found.append(torch.cat([tensor.grad.flatten() for tensor in own.parameters()]))
        assert (found[0] - found[1]).norm() <= 0.02 * found[1].norm()


def test_what_changes_nothing_says_nothing_for_subtracting(times):
    """Behind a last layer that begins with zero no weight does anything at the step that is measured."""
    seconds, _ = times
    seconds.update(reuse=1e-6, loop=2e-6, stacked=2e-6)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    nn.init.zeros_(network[2].weight)
    auto = zo.Measured()
    objective = zo.OutputLoss(lambda output, target: (output - target).square().sum(1))
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=auto)
    gradient.backward((torch.randn(5, 6), torch.randn(5, 4)))
    assert {auto.chosen[name][0] for name in ("0.weight", "0.bias")} == {"difference"}


def test_neither_measuring_nor_what_is_chosen_takes_much_more_than_the_memory(times):
    """Less than a base takes cannot be had: the bound is its two largest tensors, and half as much again."""
    seconds, asked = times
    seconds.update(stacked=1e-6)
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 4),
    )
    network = nn.Sequential(*layers)
    batch = torch.randn(32, 1, 64, 64), torch.randint(0, 4, (32,))
    objective = zo.OutputLoss(lambda y, t: functional.cross_entropy(y, t, reduction="none"))
    rule = zo.CGE(1e-3)
    gradient = zo.LossGradient(network, objective, rule, evaluator=zo.Measured(), memory=4 * 2**20)
    largest = 4 * 8 * 32 * 64 * 64
    for _ in range(2):
        with MemoryPeak() as peak:
            gradient.backward(batch)
        assert peak.peak <= 3 * largest
    assert "difference" in asked


@torch.no_grad()
def test_kernels_are_compiled_only_for_steps_that_take_longer_than_that(times, as_written):
    for queries, tried in ((0, False), (100, False), (1_000_000, True)):
        _, asked = times
        asked.clear()
        auto, (problem, base) = zo.Measured(), problem_of(queries)
        auto.changes(problem, some(problem), base)
        assert ("fused" in asked) == tried
        assert ("fused" in used(auto)) == tried


@torch.no_grad()
def test_kernels_that_are_no_faster_are_tried_once_and_left(times, as_written):
    seconds, asked = times
    seconds["fused"] = seconds["difference"]
    auto, (problem, base) = zo.Measured(), problem_of(1_000_000)
    auto.changes(problem, some(problem), base)
    assert asked.count("fused") == 1 and "fused" not in used(auto)


@torch.no_grad()
def test_kernels_are_left_where_passes_would_be_filled_up_with_repetitions(times, as_written):
    seconds, _ = times
    seconds.update(difference=4.0, reuse=5.0, loop=9.0, stacked=9.0, fused=1.0)  # compiling is nothing to it
    auto, (problem, base) = zo.Measured(), problem_of(200)
    auto.changes(problem, some(problem), base)
    names, tensors = problem.parameters.names, problem.parameters.tensors
    kept = 200 / problem.parameters.size
    for name, tensor in zip(names, tensors, strict=True):
        if auto.chosen[name][0] == "fused":  # eight at once for less than four, one by one, would take
            assert kept * tensor.numel() > auto.chosen[name][1] / 4
        elif name.split(".")[0] in ("0", "1", "4"):  # kernels are behind it
            assert kept * tensor.numel() < auto.chosen[names[4]][1]


@torch.no_grad()
def test_measuring_stays_within_its_queries(times, as_written):
    for count in (4, 16, 96):
        auto, (problem, base) = zo.Measured(), problem_of(1_000_000)
        queries = some(problem, count)
        auto.candidates.checked.serving(problem, queries)  # the check is apart
        auto.take_queries()
        auto.changes(problem, queries, base)
        assert auto.take_queries() <= 2 * count + 4 * len(auto.chosen)  # what each may cost to compare


@torch.no_grad()
def test_a_recorded_choice_is_repeated_to_the_bit(times, as_written):
    auto, (problem, base) = zo.Measured(), problem_of(1_000_000)
    queries = some(problem)
    first = auto.changes(problem, queries, base)
    assert used(auto) == {"fused", "difference"}  # a linear layer has no kernels behind it
    state = json.loads(json.dumps(auto.state_dict()))
    for _ in range(2):
        other = zo.Measured()
        other.load_state_dict(state)
        assert torch.equal(other.changes(problem, queries, base), first)
        assert other.take_queries() == 0
        assert other.state_dict() == auto.state_dict()


@torch.no_grad()
def test_another_number_of_rows_or_no_compiler_takes_the_best_of_the_others(times, monkeypatch, as_written):
    auto, (problem, base) = zo.Measured(), problem_of(1_000_000)
    auto.changes(problem, some(problem), base)
    plain = zo.Measured()
    plain.load_state_dict({**auto.state_dict(), "chosen": auto.state_dict()["uncompiled"]})
    monkeypatch.setattr(fused, "coefficients", None)  # a kernel that runs is an error from here on

    fewer, its_base = problem_of(1_000_000, ROWS - 1)
    queries = some(fewer)
    assert torch.equal(auto.changes(fewer, queries, its_base), plain.changes(fewer, queries, its_base))
    monkeypatch.setattr(Compiled, "works", False)
    assert torch.equal(auto.changes(problem, queries, base), plain.changes(problem, queries, base))


@torch.no_grad()
def test_a_compiler_that_fails_is_said_once_and_not_tried_again(times, monkeypatch):
    import torch._inductor

    calls = []

    def broken(*_):
        calls.append(1)
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    monkeypatch.setattr(Compiled, "works", True)
    problem, base = problem_of(1_000_000)
    with pytest.warns(zo.EvaluatorWarning, match="No working C.. compiler") as caught:
        auto = zo.Measured()
        auto.changes(problem, some(problem), base)
    assert len(caught) == 1 and len(calls) == 1
    assert used(auto) == {"difference"}
    zo.Measured().changes(problem, some(problem), base)  # warnings are errors: none came
    assert len(calls) == 1


@torch.no_grad()
def test_kernels_that_are_wrong_are_named_and_not_used(times, monkeypatch, as_written):
    right = fused.normed_relu

    monkeypatch.setattr(fused, "normed_relu", lambda *tensors: 1.1 * right(*tensors))
    problem, base = problem_of(1_000_000)
    auto = zo.Measured()
    with pytest.warns(zo.EvaluatorWarning, match="fused kernels") as caught:
        auto.changes(problem, some(problem), base)
    named = str(caught[0].message).split("else for ")[1].split(":")[0].split(", ")
    assert problem.parameters.names[0] in named  # the first of all layers: every kernel is behind it
    assert all(auto.chosen[name] == auto.uncompiled[name] for name in named)


@torch.no_grad()
def test_a_state_of_an_earlier_version_is_taken():
    problem, base = problem_of(1_000_000)
    names = problem.parameters.names
    chosen = {name: [("difference", 4), ("stacked", 16)][place % 2] for place, name in enumerate(names)}
    active = {"Coordinates, training": "Difference"}
    state = {
        "chosen": {name: list(pair) for name, pair in chosen.items()},
        "active": active,
        "slow": {"active": {"Coordinates, training": "Stacked"}, "slow": {}},
    }
    auto = zo.Measured()
    auto.load_state_dict(state)
    queries = some(problem)
    found = auto.changes(problem, queries, base)
    assert auto.chosen == chosen and auto.take_queries() == 0
    stacked = torch.tensor([place % 2 == 1 for place in range(len(names))])
    stacked = stacked[problem.parameters.locate(queries.indices)[0]]
    part = Coordinates(queries.indices[stacked], queries.steps[stacked])
    assert torch.equal(found[stacked], zo.Stacked().changes(problem, part, base))
    part = Coordinates(queries.indices[~stacked], queries.steps[~stacked])
    assert torch.equal(found[~stacked], zo.Difference(variants=4).changes(problem, part, base))


class Sine(BlackBoxFunction):
    inputs = (ArraySpec("x", shape=(10,)),)
    outputs = (ArraySpec("y", shape=(10,)),)

    def evaluate_rows(self, x):
        return np.sin(x)


class Odd(torch.autograd.Function):
    """No torch function that has a rule."""

    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError


@pytest.mark.parametrize("through", [Sine(), Odd.apply], ids=["box", "unknown"])
@torch.no_grad()
def test_reuse_with_a_loss_that_cannot_be_read(through):
    problem, _ = problem_of(0)
    objective = zo.OutputLoss(lambda output, target: through(output).square().mean(1))
    network = copy.deepcopy(problem.network).double()
    batch = (problem.batch[0].double(), problem.batch[1])
    problem = Problem(network, zo.Parameters(network), objective, batch, ROWS)
    queries = some(problem, 20)
    base = zo.Loop().losses(problem, Coordinates(torch.tensor([0]), torch.zeros(1).double()))[0]
    found = FeatureReuse(zo.Difference()).changes(problem, queries, base)
    true = zo.Loop().changes(problem, queries, base)
    assert (found - true).abs().max() < 1e-13 and true.abs().max() > 1e-6


@torch.no_grad()
def test_losses_are_not_subtracted_where_rounding_is_all_that_would_be_left(times):
    seconds, _ = times
    seconds.update(reuse=1e-6, loop=1e-6, stacked=1e-6)
    problem, base = problem_of(0)
    for mu, rounded in ((1e-3, False), (1e-7, True)):
        queries = Coordinates(some(problem).indices, torch.full((96,), mu))
        auto = zo.Measured()
        found = auto.changes(problem, queries, base).double().mean(1)
        assert (used(auto) == {"difference"}) == rounded
        wide = copy.deepcopy(problem.network).double()
        exact = Problem(
            wide, zo.Parameters(wide), problem.objective, (problem.batch[0].double(), problem.batch[1]), ROWS
        )
        doubled = Coordinates(queries.indices, queries.steps.double())
        true = zo.Loop().changes(exact, doubled, exact.objective(wide, exact.batch)).mean(1)
        assert (found - true).norm() < 0.1 * true.norm()


class Switching(torch.nn.Linear):
    """Of full batches a network that can be read; of others one that can't."""

    def forward(self, rows):
        found = super().forward(rows)
        return found if len(rows) == ROWS else torch.special.erfcx(found)


@torch.no_grad()
def test_reuse_falls_back_as_difference_does_where_a_later_step_cannot_be_read():
    torch.manual_seed(0)
    network, x, target = Switching(4, 2), torch.randn(ROWS, 4), torch.randn(ROWS, 2)
    parameters = zo.Parameters(network)
    objective = zo.OutputLoss(lambda output, target: (output - target).square().mean(1))
    queries = Coordinates(torch.arange(parameters.size), torch.full((parameters.size,), 1e-2))
    auto = zo.Measured()
    full = Problem(network, parameters, objective, (x, target), ROWS)
    auto.changes(full, queries, objective(network, (x, target)))
    auto.chosen = {name: ("reuse", 1) for name in parameters.names}
    short = Problem(network, parameters, objective, (x[1:], target[1:]), ROWS - 1)
    base = objective(network, short.batch)
    with pytest.warns(zo.EvaluatorWarning, match=r"could not run .* stacked is used from here on"):
        found = auto.changes(short, queries, base)
    true = zo.Loop().changes(short, queries, base)
    assert torch.allclose(found, true, rtol=1e-3, atol=1e-6) and true.abs().max() > 1e-3
    assert set(auto.state_dict()["active"].values()) == {"Checked"}


@pytest.mark.parametrize("subtracting", ["loop", "reuse", "stacked"])
@pytest.mark.parametrize(("scale", "kept"), [(1.0, True), (1e4, False)])
def test_losses_are_no_longer_subtracted_once_rounding_is_what_is_left(subtracting, scale, kept):
    """Confident logits: losses of many thousands, in whose rounding a small step is lost."""
    problem, _ = problem_of(queries=64)
    with torch.no_grad():
        list(problem.network.parameters())[-2].mul_(scale)
    problem.network.eval()
    with torch.no_grad():
        base = problem.objective(problem.network, problem.batch)
    auto = zo.Measured()
    names = problem.parameters.names
    auto.chosen = {name: (subtracting, 4) for name in names}
    auto.uncompiled, auto.rows = dict(auto.chosen), problem.rows
    indices = torch.arange(problem.parameters.size)
    steps = problem.parameters.steps(indices, 1e-3 if kept else 3e-7)
    last = None
    for start in range(0, len(indices) - 8, 8):
        part = Coordinates(indices[start : start + 8], steps[start : start + 8])
        last = part, auto.changes(problem, part, base)
    assert last is not None
    assert all(own == (subtracting if kept else "difference") for own, _ in auto.chosen.values())
    assert auto.take_queries() > 0
    if not kept:
        torch.testing.assert_close(last[1], zo.Difference().changes(problem, last[0], base))
        again = zo.Measured()
        again.load_state_dict(json.loads(json.dumps(auto.state_dict())))
        assert again.chosen == auto.chosen
