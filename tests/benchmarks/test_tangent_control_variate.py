"""NI-GBMS has autograd's gradient as its mean, whatever its model says; without a model's error it is it."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from benchmarks.tangents.control_variate import ForwardGradients
from blackbox import ArraySpec, BlackBoxFunction
from zo.tangents import CallPairs, LinearMap, Tangent

SIZE, CALLS = 3, 2


class Quadratic(BlackBoxFunction):
    """y = A x + B (x * x), in float64, with an input beside it that carries no gradient."""

    arrays = "torch"
    inputs = (
        ArraySpec("x", (SIZE,), dtype="float64"),
        ArraySpec("k", (), dtype="float64", differentiable=False),
    )
    outputs = (ArraySpec("y", (SIZE,), dtype="float64"),)

    def __init__(self, bend: float) -> None:
        super().__init__(failures="keep")
        draws = torch.Generator().manual_seed(0)
        self.linear, self.square = torch.randn(2, SIZE, SIZE, generator=draws, dtype=torch.float64)
        self.bend = bend

    def advance(self, x: Tensor, k: Tensor) -> Tensor:
        return k[:, None] * (x @ self.linear.T) + self.bend * x.square() @ self.square.T

    def evaluate_rows(self, x: Tensor, k: Tensor) -> Tensor:
        return torch.where(k[:, None] < 0, torch.nan, self.advance(x, k))


class Fixed(Tangent):
    """A model with one Jacobian, which counts what it is shown."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.seen = matrix, []

    def at(self, rows: CallPairs) -> LinearMap:
        return LinearMap(rows, lambda d: d @ self.matrix.T, lambda v: v @ self.matrix)

    def see(self, rows: CallPairs) -> None:
        self.seen.append(len(rows.z))


class AllSigns(ForwardGradients):
    """Signs that are given, so that all of them can be gone through."""

    given: list[Tensor]

    def signs(self, shape):
        return self.given[len(self.calls)].expand(*shape)


def objective(solver, network, x, k):
    """The loss of each row, `CALLS` calls after the network has been asked first."""
    for _ in range(CALLS):
        x = solver(x + network(x), k)
    return x.square().sum(dim=1)


def gradient_of(solver, network, x, k) -> Tensor:
    loss = objective(solver, network, x, k).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def the_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(SIZE, SIZE).double()


DRAWS = torch.Generator().manual_seed(2)
X = torch.randn(1, SIZE, generator=DRAWS, dtype=torch.float64)
WRONG = torch.randn(SIZE, SIZE, generator=DRAWS, dtype=torch.float64)


def test_the_mean_over_all_directions_is_autograds_gradient_through_a_quadratic():
    """Forward differences are exact in the mean: their bend is even in the direction."""
    box, network, k = Quadratic(bend=0.3), the_network(), torch.ones(1, dtype=torch.float64)
    found = []
    for signs in product((-1.0, 1.0), repeat=CALLS * SIZE):
        solver = AllSigns(box, Fixed(WRONG), seed=0)
        solver.given = list(torch.tensor(signs, dtype=torch.float64).view(CALLS, 1, SIZE))
        found.append(gradient_of(solver, network, X, k))
    wanted = gradient_of(box.advance, network, X, k)
    torch.testing.assert_close(torch.stack(found).mean(dim=0), wanted, rtol=1e-8, atol=1e-9)
    assert float((found[0] - wanted).norm() / wanted.norm()) > 0.1  # one alone is far off


def test_with_the_right_model_a_draw_is_the_gradient_and_nothing_else():
    box, network = Quadratic(bend=0.0), the_network()
    rows, k = torch.cat([X, 2 * X]), torch.ones(2, dtype=torch.float64)
    solver = ForwardGradients(box, Fixed(box.linear), seed=0)
    found, wanted = (gradient_of(each, network, rows, k) for each in (solver, box.advance))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


def test_a_model_sees_a_steps_directions_only_afterwards_and_what_depends_on_no_weight_is_asked_once():
    box, network = Quadratic(bend=0.1), the_network()
    rows, k = torch.cat([X, 2 * X]), torch.tensor([1.0, -1.0], dtype=torch.float64)
    model = Fixed(WRONG)
    solver = ForwardGradients(box, model, seed=0)
    solver(rows, k)  # no weight has a part in it
    assert box.ledger.rows_asked == 2
    answer = solver(network(rows), k)
    assert box.ledger.rows_asked == 6
    assert answer[1].isnan().all()  # and its row has no say
    (gradient,) = torch.autograd.grad(
        torch.where(answer.isfinite(), answer, 0.0).sum(), list(network.parameters())[1:]
    )
    assert bool(gradient.isfinite().all()) and model.seen == [2, 2]
    solver(rows, k)
    assert model.seen == [2, 2, 2]  # the moved rows of the one call that had some
