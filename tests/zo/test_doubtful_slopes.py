"""`differentiable` says when its differences are no slopes: noise, rounding, jumps, curvature, kinks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction, Budgeted, Cached
from tests.zo.row_boxes import weights


class Box(BlackBoxFunction):
    """Four numbers to four; float32 or float64 as they come."""

    inputs = (ArraySpec("u", shape=(4,)),)
    outputs = (ArraySpec("y", shape=(4,)),)
    arrays = "torch"

    def __init__(
        self, function: Callable[[Tensor], Tensor], failures: Literal["keep", "raise"] = "keep"
    ) -> None:
        super().__init__(failures=failures)
        self.function = function
        self.calls: list[int] = []

    def evaluate_rows(self, u: Tensor) -> Tensor:
        self.calls.append(len(u))
        return self.function(u)


def noisy(u: Tensor) -> Tensor:
    return torch.sin(u) + 0.01 * torch.randn(u.shape, generator=NOISE).to(u)


NOISE = torch.Generator().manual_seed(5)


def offset(u: Tensor) -> Tensor:
    return 101325 + torch.sin(u)


def four_digits(u: Tensor) -> Tensor:
    printed = [[float(f"{number:.4g}") for number in row] for row in (3 + torch.sin(u)).tolist()]
    return torch.tensor(printed, dtype=u.dtype)


def single_inside(u: Tensor) -> Tensor:
    return (3 + torch.sin(u.float())).to(u.dtype)


def saturated(u: Tensor) -> Tensor:
    return torch.sin(u) + torch.tanh(1e6 * u)


def root(u: Tensor) -> Tensor:
    return u.abs().sqrt()


def curved(u: Tensor) -> Tensor:
    return u + 0.5 * u.square()


def jump(u: Tensor) -> Tensor:
    return torch.sin(u) + (u > 0.3) * 1.0


class Case(nn.Module):
    """A box, what it stands for, dtype, mu, the size of its inputs, and what is said."""

    def __init__(self, box, truth, dtype, mu, words, size=1.0):
        super().__init__()
        self.box, self.truth, self.dtype, self.mu, self.words, self.size = box, truth, dtype, mu, words, size


SINGLE, DOUBLE = torch.float32, torch.float64
WRONG = {
    "noise": Case(noisy, torch.sin, SINGLE, 1e-3, "other values for equal inputs: it is noisy"),
    "offset": Case(offset, torch.sin, SINGLE, 1e-3, "a large offset .101325 . f in float32"),
    "four digits": Case(four_digits, torch.sin, SINGLE, 1e-3, "few digits on the way"),
    "float32 inside": Case(single_inside, torch.sin, DOUBLE, 1e-7, "wider dtype"),
    "saturated": Case(saturated, saturated, DOUBLE, 1e-3, "is saturated, closer than that", 1e-6),
    "root": Case(root, root, DOUBLE, 1e-3, "a smaller mu", 1e-6),
    "long step": Case(curved, curved, SINGLE, 1.5, "curves within mu.*smaller mu"),
}
RIGHT = {
    "sine": Case(torch.sin, torch.sin, SINGLE, 1e-3, ""),
    "longer step": Case(torch.sin, torch.sin, SINGLE, 0.1, ""),
    "kinks": Case(torch.relu, torch.relu, SINGLE, 1e-2, ""),
    "300 K": Case(lambda u: 300 + torch.sin(u), torch.sin, SINGLE, 3e-3, ""),
    "offset in float64": Case(offset, torch.sin, DOUBLE, 1e-4, ""),
    "four digits, mu that fits": Case(four_digits, torch.sin, SINGLE, 3e-2, ""),
    "single inside, mu that fits": Case(single_inside, torch.sin, DOUBLE, 1e-4, ""),
    "noise, mu that fits": Case(
        lambda u: 100 * torch.sin(u) + noisy(u), lambda u: 101 * torch.sin(u), DOUBLE, 1e-2, ""
    ),
}
ESTIMATORS = {
    "cge": lambda mu: zo.CGE(mu),
    "central": lambda mu: zo.CGE(mu, central=True),
    "orthogonal": lambda mu: zo.box_gradient.RowRGE(mu, 4),
}
RIGHT_ALL_THE_SAME = {("long step", "central")}
BENT = {"saturated", "root", "long step"}


def error_of(case: Case, solver, calls: int = 1) -> float:
    """The largest relative error of gradients of so many calls, against autograd in float64."""
    errors = []
    for call in range(calls):
        u = (case.size * weights(32, 4, seed=call)).to(case.dtype).requires_grad_()
        v = weights(32, 4, seed=100 + call)
        gradient = torch.autograd.grad(solver(u), u, v.to(case.dtype))[0].double()
        exact = u.detach().double().requires_grad_()
        truth = torch.autograd.grad(case.truth(exact), exact, v)[0]
        errors.append(float((gradient - truth).norm() / truth.norm()))
    return max(errors)


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize(
    ("name", "estimator"),
    [(name, way) for name in WRONG for way in ESTIMATORS if (name, way) not in RIGHT_ALL_THE_SAME],
)
def test_wrong_slopes_are_said_once(name, estimator):
    case = WRONG[name]
    solver = zo.differentiable(Box(case.box), ESTIMATORS[estimator](case.mu), seed=0)
    kind = zo.errors.SlopeWarning if name in BENT else zo.errors.NoiseWarning
    with pytest.warns(kind, match=case.words) as said:
        error = error_of(case, solver, calls=2)
    assert error > 0.2 and len(said) == 1


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", RIGHT)
def test_nothing_is_said_of_slopes_that_are_right(name, estimator):
    case = RIGHT[name]
    solver = zo.differentiable(Box(case.box), ESTIMATORS[estimator](case.mu), seed=0)
    assert error_of(case, solver, calls=11) < 0.3  # warnings are errors here


def test_a_jump_that_few_rows_cross_makes_the_whole_gradient_wrong_and_is_said():
    """One of 400 rows crosses it, and its slope of 1 / mu is most of the gradient."""
    u = torch.zeros(400, 4, dtype=DOUBLE)
    u[7, 2] = 0.3 - 4e-6
    solver = zo.differentiable(Box(jump), zo.CGE(1e-5))
    with pytest.warns(zo.errors.SlopeWarning, match="it jumps"):
        grad = torch.autograd.grad(solver(u.requires_grad_()).sum(), u)[0]
    assert grad.norm() > 100 * torch.cos(u).norm()


def doubled(u: Tensor) -> Tensor:
    return torch.sin(u) + u.abs()


def zeros_among(seed: int, dtype: torch.dtype) -> Tensor:
    """As a ReLU gives them: half of the numbers are zero."""
    return torch.relu(weights(32, 4, seed=seed)).to(dtype).requires_grad_()


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("function", [torch.abs, doubled], ids=["abs", "sine and abs"])
def test_a_kink_right_at_the_inputs_is_told_of_forward_differences(function, estimator, dtype):
    """autograd has the mean of both sides of |u|, as central differences have it."""
    solver = zo.differentiable(Box(function), ESTIMATORS[estimator](1e-3), seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        errors = []
        for seed in range(2):  # calls 0 and 1, two rows of each
            u = zeros_among(seed, dtype)
            truth = torch.autograd.grad(function(u).sum(), u)[0]
            errors.append(float((torch.autograd.grad(solver(u).sum(), u)[0] - truth).norm() / truth.norm()))
    if estimator == "central":
        assert max(errors) < 0.02 and not said
    else:
        assert min(errors) > 0.5
        assert [warning.category for warning in said] == [zo.errors.SlopeWarning]
        words = str(said[0].message)
        assert "kink at the base" in words and "central=True" in words and "scale" not in words


def test_behind_a_relu_the_kink_that_is_told_spoils_no_weight_with_cge():
    """As the warning says: the box's inputs are all that is seen there."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).double()
    y = zo.differentiable(Box(torch.abs), zo.CGE(1e-6))(network(weights(32, 3)))
    with pytest.warns(zo.errors.SlopeWarning, match="with CGE that spoils no weight"):
        grads = torch.autograd.grad(y.sum(), list(network.parameters()))
    truth = torch.autograd.grad(network(weights(32, 3)).abs().sum(), list(network.parameters()))
    assert all(torch.allclose(one, other) for one, other in zip(grads, truth, strict=True))


def jump_behind(u: Tensor) -> Tensor:
    return u - (u < 0) * 1.0


def half_line(u: Tensor) -> Tensor:
    return torch.where(u < 0, torch.nan, 2 * u)


@pytest.mark.parametrize("failures", ["keep", "raise"])
@pytest.mark.parametrize(
    ("function", "at"),
    [(jump_behind, 0.0), (torch.abs, 5e-4), (half_line, 0.0)],
    ids=["jump behind", "kink within mu", "end of the domain"],
)
def test_what_is_behind_the_inputs_and_in_no_forward_difference_is_not_told(function, at, failures):
    """These slopes are right: warnings are errors here."""
    u = torch.where(weights(32, 4) > 0, weights(32, 4), at).requires_grad_()
    solver = zo.differentiable(Box(function, failures), zo.CGE(1e-3))
    grad = torch.autograd.grad(solver(u).sum(), u)[0]
    slope = 2.0 if function is half_line else 1.0
    assert torch.allclose(grad, torch.full_like(grad, slope))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(("rows", "queries"), [(1, 4), (3, 4), (100, 4), (1000, 4)])
def test_a_check_asks_two_queries_or_a_hundredth_twice_at_calls_0_1_10_100(rows, queries, central):
    box = Box(torch.sin)
    solver = zo.differentiable(box, zo.CGE(1e-3, central=central), seed=0)
    signs = 2 if central else 1
    most = 2 * max(2, rows * queries // 100)  # both signs at half of the step, or forward ones also back
    asked = []
    for _ in range(12):
        before = solver.counts.checks
        u = weights(rows, 4).requires_grad_()
        solver(u).sum().backward()
        asked.append(solver.counts.checks - before)
    assert all(0 < asked[call] <= most for call in (0, 1, 10)) and max(asked) <= 16
    assert not any(asked[call] for call in range(12) if call not in (0, 1, 10))
    assert box.ledger.rows_run == 12 * rows * (1 + signs * queries) + solver.counts.checks
    assert solver.counts.rows == 12 * rows * signs * queries


def test_a_gradient_is_the_same_to_the_bit_whether_a_check_can_ask_or_not():
    """A budget that ends behind the queries is no error, and what a check asks changes no gradient."""
    grads, asked = [], []
    for rows in (3 * 5, 1000):
        u = weights(3, 4).requires_grad_()
        solver = zo.differentiable(Budgeted(Box(torch.sin), rows), zo.CGE(1e-3), seed=0)
        solver(u).sum().backward()
        assert u.grad is not None
        grads.append(u.grad)
        asked.append(solver.counts.checks)
    assert torch.equal(*grads) and asked == [0, 2 * 2]  # of 12 queries two, at half of the step and back


@pytest.mark.parametrize("failures", ["keep", "raise"])
def test_rows_that_fail_in_a_check_are_left_out_and_not_counted_as_dropped(failures):
    def half_of_them(u):
        return torch.where((u - 0.5).abs() < 1e-4, torch.nan, torch.sin(u))  # at half of the step

    u = torch.full((3, 4), 0.5 - 0.5e-3, dtype=DOUBLE, requires_grad=True)
    solver = zo.differentiable(Box(half_of_them, failures), zo.CGE(1e-3), max_dropped=0.0)
    solver(u).sum().backward()
    assert u.grad is not None and torch.allclose(u.grad, torch.cos(u.detach()), atol=1e-3)
    assert solver.counts.dropped == 0


def test_noise_behind_a_cache_is_seen_by_the_slopes(tmp_path):
    """The cache answers the base as before, and any other row with its noise."""
    box = Cached(Box(noisy), tmp_path / "answers", version="1")
    solver = zo.differentiable(box, zo.CGE(1e-3))
    with pytest.warns(zo.errors.NoiseWarning, match="same slopes"):
        error_of(WRONG["noise"], solver)


def test_a_resumed_run_asks_what_an_undisturbed_one_asks():
    def counts(calls: int, state=None):
        solver = zo.differentiable(Box(torch.sin), zo.box_gradient.RowRGE(1e-3, 2), seed=0)
        if state is not None:
            solver.load_state_dict(state)
        for _ in range(calls):
            solver(weights(3, 4).requires_grad_()).sum().backward()
        return solver

    first = counts(5)
    assert counts(7, first.state_dict()).state_dict() == counts(12).state_dict()


def test_a_gradient_that_is_not_finite_or_zero_is_no_reason_to_ask():
    for value in (0.0, float("nan")):
        box = Box(torch.sin)
        u = weights(3, 4).requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.autograd.grad(zo.differentiable(box, zo.CGE(1e-3))(u), u, torch.full((3, 4), value).to(u))
        assert box.calls == [3, 12]


def in_part(u: Tensor) -> Tensor:
    """Half of the numbers in steps of a tenth."""
    return torch.where(torch.arange(4) < 2, torch.sin(u), (10 * torch.sin(u)).round() / 10)


def by_the_row(u: Tensor) -> Tensor:
    """The last number stands still, and is another in each row."""
    return torch.cat([torch.sin(u[:, :3]), torch.linspace(0, 1, len(u), dtype=u.dtype)[:, None]], dim=1)


def rectified(u: Tensor) -> Tensor:
    """Most rows have zeros, and some an answer."""
    return torch.relu(u - 0.5)


@pytest.mark.parametrize("estimator", [zo.CGE(1e-5), zo.box_gradient.RowRGE(1e-5, q=4)], ids=["cge", "rge"])
@pytest.mark.parametrize(
    ("function", "used", "said"),
    [
        (in_part, 4, True),
        (in_part, 2, False),  # what the loss does not use may be as it likes
        (torch.sin, 4, False),
        (by_the_row, 4, False),
        (rectified, 4, False),
    ],
)
def test_numbers_of_an_output_that_come_in_steps_beside_others_that_answer_are_said(
    estimator, function, used, said
):
    """A sine in steps of .1 moves at 1 of 10,000 queries: half of the gradient is missing."""
    box, u = zo.differentiable(Box(function), estimator), weights(40, 4).requires_grad_()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(5):
            (found,) = torch.autograd.grad((box(u)[:, :used] - 1).square().sum(), u)
    assert bool(found.any())
    of_zero = [str(w.message) for w in told if w.category is zo.errors.ZeroGradientWarning]
    assert len(of_zero) == said
    assert not said or "no query of 3 calls has changed (2 of 4 of 'y')" in of_zero[0]
