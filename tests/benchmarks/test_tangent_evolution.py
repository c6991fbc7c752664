"""The evolution strategy with a small population, against what it must be on a linear loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.tangents.evolution import Evolution, weights_of
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import ArraySpec, BlackBoxFunction
from zo.parameters import Parameters


class Same(BlackBoxFunction):
    """y = x."""

    arrays = "torch"
    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (3,)),)

    def evaluate_rows(self, x: Tensor) -> Tensor:
        return x.clone()


def problem_of() -> BenchmarkProblem:
    """A loss that is linear in the weights: <target, W x> for each row."""

    def objective(solver):
        return lambda network, batch: (solver(network(batch[0])) * batch[1]).sum(dim=1)

    return BenchmarkProblem(
        box=Same(), exact=None, start=lambda seed: nn.Linear(4, 3, bias=False), objective=objective,
        batch=lambda seed, step: None, error=lambda network: 0.0, validate=lambda network: 0.0, unit="",
        steps=1, learning_rate=1.0,
    )  # fmt: skip


def gradient_of(network: nn.Module) -> Tensor:
    (weight,) = network.parameters()
    assert weight.grad is not None
    return weight.grad.flatten().clone()


def test_on_a_linear_loss_a_large_population_moves_along_the_gradient_whatever_its_length():
    """z is (g . e) / |g|, so the mean of z e is g / |g| and its error in each number 1 / sqrt(population)."""
    problem, generator = problem_of(), torch.Generator().manual_seed(0)
    batch = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
    network = problem.start(0)
    problem.objective(lambda z: z)(network, batch).mean().backward()
    slope = gradient_of(network)
    found = []
    for length, population in ((1e3, 1000), (1.0, 20), (1e3, 20)):
        network.zero_grad()
        Evolution(problem, network, 0, population=population).backward((batch[0], length * batch[1]))
        found.append(gradient_of(network))
    atol = 5 / math.sqrt(1000)
    torch.testing.assert_close(found[0], slope / slope.norm(), rtol=0, atol=atol)
    torch.testing.assert_close(found[1], found[2], rtol=1e-3, atol=1e-4)


def test_a_part_of_the_batch_is_asked_for_and_weights_and_steps_are_as_they_were():
    problem, network = problem_of(), nn.Linear(4, 3, bias=False)
    before = Parameters(network).flat()
    strategy = Evolution(problem, network, 0, part=0.25, population=6)
    batch = torch.ones(8, 4), torch.ones(8, 3)
    strategy.backward(batch)
    assert problem.box.ledger.rows_asked == 6 * 2
    assert torch.equal(Parameters(network).flat(), before)
    first = gradient_of(network)
    network.zero_grad()
    strategy.backward(batch)
    assert not torch.equal(gradient_of(network), first)  # another step has noise of its own


def test_fitness_is_in_standard_deviations_and_a_member_that_fails_has_no_say():
    found = weights_of(torch.tensor([1.0, math.nan, 3.0, 5.0]))
    spread = math.sqrt(8 / 3)
    torch.testing.assert_close(found, torch.tensor([-2 / spread, 0.0, 0.0, 2 / spread], dtype=torch.float64))
    assert not weights_of(torch.ones(4)).any()  # and where all are the same nothing moves
