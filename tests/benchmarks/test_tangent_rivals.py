"""The rivals of learned tangents, each against a closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import zo
from benchmarks.tangents.methods import first_order, no_gradient
from benchmarks.tangents.problem import BenchmarkProblem
from benchmarks.tangents.rivals import Eggroll, ZOMuon, orthogonalised
from benchmarks.tangents.surrogates import Astralora, Emulator, projector_splitting
from blackbox import ArraySpec, BlackBoxFunction
from zo.estimators import Key, Parameters

SIZE = 6


class Linear(BlackBoxFunction):
    """y = A x, rows of six numbers; fails where the first is above a limit."""

    arrays = "torch"
    inputs = (ArraySpec("x", (SIZE,)),)
    outputs = (ArraySpec("y", (SIZE,)),)

    def __init__(self, matrix: torch.Tensor, limit: float = math.inf) -> None:
        super().__init__(failures="keep")
        self.matrix, self.limit = matrix, limit

    def evaluate_rows(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.matrix.to(x).T
        y[x[:, 0] > self.limit] = math.nan
        return y


def matrix_of(rank: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, rank, generator=generator) @ torch.randn(rank, SIZE, generator=generator) / rank


def problem_of(box: Linear, rows: int = 40, known: bool = False) -> BenchmarkProblem:
    """Least squares: a linear layer, the box, and targets that no weights reach."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(2, rows, SIZE, generator=generator).unbind(0)

    def start(seed: int) -> nn.Linear:
        torch.manual_seed(seed)
        return nn.Linear(SIZE, SIZE, bias=False)

    def objective(solver):
        return lambda network, batch: (solver(network(batch[0])) - batch[1]).square().mean(dim=1)

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(x) @ box.matrix.T - target).square().mean())

    return BenchmarkProblem(
        box=box,
        exact=lambda z: z @ box.matrix.to(z).T,
        start=start,
        objective=objective,
        batch=lambda seed, step: (x, target),
        error=error,
        validate=error,
        unit="mean square",
        steps=8,
        learning_rate=1e-2,
        hard="",
        known=((x,), box(x)) if known else None,
    )


def true_gradient(problem: BenchmarkProblem, network: nn.Module) -> torch.Tensor:
    first_order(problem, network).backward(problem.batch(0, 1))
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    return found


# Models in the box's place


def test_projector_splitting_is_exact_at_the_rank_of_the_matrix():
    old, new = (matrix_of(2, seed).double() for seed in (0, 1))
    left, values, right = torch.linalg.svd(old)
    change = new - old
    factors = left[:, :2], values[:2].diag(), right[:2].T
    u, s, v = projector_splitting(factors, lambda x: change @ x, lambda x: change.T @ x)
    torch.testing.assert_close(u @ s @ v.T, new)
    torch.testing.assert_close(u.T @ u, torch.eye(2, dtype=torch.float64))


def test_astralora_finds_the_matrix_of_a_linear_box():
    problem = problem_of(Linear(matrix_of(3)))
    network = problem.start(0)
    wanted = true_gradient(problem, network)
    gradient = zo.TangentGradient(
        network,
        problem.objective(problem.box),
        boxes=[problem.box],
        tangent=Astralora(problem.box, seed=0, rank=3, samples=50),
        limits=zo.tangents.Limits(check_every=None),
    )
    before = problem.box.ledger.rows_asked
    gradient.backward(problem.batch(0, 1))
    torch.testing.assert_close(network.weight.grad.flatten(), wanted, rtol=1e-3, atol=1e-5)
    assert problem.box.ledger.rows_asked - before == 40 + 1 + SIZE  # base, and a difference along each input


def test_astralora_below_the_rank_has_the_best_matrix_of_its_rank():
    matrix = matrix_of(SIZE)
    problem = problem_of(Linear(matrix))
    tangent = Astralora(problem.box, seed=0, rank=2)
    network = problem.start(0)
    gradient = zo.TangentGradient(
        network,
        problem.objective(problem.box),
        boxes=[problem.box],
        tangent=tangent,
        limits=zo.tangents.Limits(check_every=None),
    )
    gradient.backward(problem.batch(0, 1))
    own = gradient.tangents[0]
    u, s, v = own.factors
    scaled = matrix * own.scale
    left, values, right = torch.linalg.svd(scaled)
    torch.testing.assert_close(u @ s @ v.T, left[:, :2] @ values[:2].diag() @ right[:2], rtol=1e-3, atol=1e-4)


class _Known:
    """A model that knows the matrix: what an emulator would be if it had learned all there is."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.fitted = matrix, []

    def fit(self, inputs, outputs, steps, box):
        self.fitted.append((inputs[0].shape[0], steps))

    def at(self, rows):
        values = rows.z @ self.matrix.T
        return zo.tangents.LinearMap(rows, lambda d: d @ self.matrix.T, lambda v: v @ self.matrix, values)


@pytest.mark.parametrize(("online", "rows"), [(True, [40, 40]), (False, [40, 8 * 40])])
def test_an_emulator_gives_values_and_derivative_and_takes_first_orders_rows(online, rows):
    box, other = Linear(matrix_of(3)), matrix_of(3, seed=5)
    problem = problem_of(box, known=True)
    network = problem.start(0)
    before = box.ledger.rows_asked
    model = _Known(other)
    gradient = Emulator(problem, network, 0, model, online)
    loss = gradient.backward(problem.batch(0, 1))
    assert [count for count, _ in model.fitted] == rows
    assert box.ledger.rows_asked - before == rows[1]  # the known ones are there
    copy = problem_of(Linear(other))  # training through another solver: values are the emulator's
    wanted = true_gradient(copy, network_like(network))
    torch.testing.assert_close(network.weight.grad.flatten(), wanted)
    assert float(loss) == pytest.approx(copy.error(network))


def network_like(network: nn.Linear) -> nn.Linear:
    other = nn.Linear(SIZE, SIZE, bias=False)
    other.load_state_dict(network.state_dict())
    return other


def test_no_gradient_is_the_gradient_with_the_boxs_answer_cut():
    """Beside the box the network keeps its own part."""
    problem = problem_of(Linear(matrix_of(3)))

    def objective(solver):
        def losses(network, batch):
            x, target = batch
            return (solver(network(x)) + network(x) - target).square().mean(dim=1)

        return losses

    problem = replace(problem, objective=objective)
    network = problem.start(0)
    no_gradient(problem, network).backward(problem.batch(0, 1))
    x, target = problem.batch(0, 1)
    z = network_like(network)(x).detach()
    left = 2 / (40 * SIZE) * (z @ problem.box.matrix.T + z - target)
    torch.testing.assert_close(network.weight.grad, left.T @ x)


def test_rows_that_fail_leave_the_others_their_gradient():
    box = Linear(matrix_of(3), limit=0.3)
    problem = problem_of(box)
    network = problem.start(0)
    x, target = problem.batch(0, 1)
    kept = network(x)[:, 0].detach() <= 0.3
    assert 0 < int(kept.sum()) < 40

    def objective(solver):
        def losses(network, batch):
            z = network(batch[0])
            return (solver(z) + z - batch[1]).square().mean(dim=1)

        return losses

    no_gradient(replace(problem, objective=objective), network).backward((x, target))
    found = network.weight.grad.clone()
    network.zero_grad()
    quiet = replace(problem, objective=objective, box=Linear(box.matrix))
    no_gradient(quiet, network).backward((x[kept], target[kept]))
    torch.testing.assert_close(found, network.weight.grad)


# At the weights


def expectation(estimator, network: nn.Module, slope: torch.Tensor, steps: int) -> torch.Tensor:
    """The mean of the estimator's gradients for the loss sum(slope * weights), which is linear."""
    parameters = Parameters(network)
    total = torch.zeros(parameters.size)
    for step in range(steps):
        planned = estimator.plan(parameters, Key(0, step))
        moves = planned.chunk(0, planned.queries).steps
        differences = (moves @ slope).double()
        total += estimator.reduce(planned, differences, torch.ones(len(moves), dtype=torch.bool))
    return total / steps


def test_eggroll_has_the_gradient_as_its_mean():
    network = nn.Linear(4, 3)
    slope = torch.randn(15, generator=torch.Generator().manual_seed(0))
    found = expectation(Eggroll(pairs=50), network, slope, 200)
    # one draw has a variance of about (size + rank terms) |slope|^2; ten thousand of them are averaged
    torch.testing.assert_close(found, slope, rtol=0.0, atol=5 * 5 * float(slope.norm()) / 100)


def test_eggroll_moves_matrices_along_one_rank_and_both_ways():
    network = nn.Linear(4, 3)
    planned = Eggroll(pairs=2, sigma=0.5).plan(Parameters(network), Key(3, 1))
    moves = planned.chunk(0, 4).steps
    torch.testing.assert_close(moves[0::2], -moves[1::2])
    assert [int(torch.linalg.matrix_rank(move[:12].reshape(3, 4))) for move in moves] == [1] * 4


def test_zo_muon_stays_in_its_subspace_and_gives_an_orthogonal_step():
    network = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1))
    parameters, estimator = Parameters(network), ZOMuon(q=6, stays=10)
    first, second, later = (estimator.plan(parameters, Key(0, step)) for step in (10, 19, 20))
    spans = [plan.directions[:, :40].reshape(6, 8, 5) for plan in (first, second, later)]
    together = torch.cat([*spans[0], *spans[1]], dim=1)
    assert int(torch.linalg.matrix_rank(together)) == 4  # half of eight rows, the same for ten steps
    assert int(torch.linalg.matrix_rank(torch.cat([together, *spans[2]], dim=1))) == 8
    slope = torch.randn(parameters.size, generator=torch.Generator().manual_seed(0))
    moves = first.chunk(0, 6).steps
    step = estimator.reduce(first, (moves @ slope).double(), torch.ones(6, dtype=torch.bool))
    matrix = step[:40].reshape(8, 5)
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(values[:4], values[0].expand(4))
    assert float(values[4]) < 1e-5
    sizes = [float(piece.square().mean().sqrt()) for piece in parameters.split(step)]
    assert sizes == pytest.approx([0.2] * 4)
    assert float(step @ slope) > 0  # along the slope of a linear loss


def test_orthogonalised_is_the_polar_factor():
    matrix = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    torch.testing.assert_close(found @ found.T, torch.eye(3, dtype=torch.float64))
    positive = found @ matrix.T  # symmetric and positive, which makes it the polar factor
    torch.testing.assert_close(positive, positive.T)
    assert bool((torch.linalg.eigvalsh(positive) > 0).all())
