"""`differentiable`: what it perturbs and counts, failed rows, resuming, and what it refuses."""

from __future__ import annotations

import copy
import math
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxError, Budgeted
from blackbox.errors import BudgetError, RowFailedError
from tests.zo.boxes import Sine
from tests.zo.row_boxes import FromTorch, weights

CGE = zo.CGE(1e-5, central=True)
RGE = zo.RGE(1e-4, q=5)
ESTIMATORS = [CGE, zo.CGE(1e-5), RGE, zo.box_gradient.RowRGE(1e-4, 3, central=True)]


def gradient_of(solver, x: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = solver(x)
    return torch.autograd.grad(y, x, torch.ones_like(y) if v is None else v)[0]


def many(a, b, label, fixed):
    """Two outputs that mix all inputs, and one of integers."""
    scale = (1 + label.to(b.dtype))[:, None] * fixed[:, None]
    return torch.sin(a.flatten(1)) * b[:, :1] * scale, (a.sum(dim=(1, 2)) + b.square().sum(dim=1)), label + 1


def many_box(**dtypes: str) -> FromTorch:
    specs = (
        ArraySpec("a", shape=(2, 2), dtype=dtypes.get("a")),
        ArraySpec("b", shape=(3,), dtype=dtypes.get("b")),
        ArraySpec("label", shape=(), dtype="int64"),
        ArraySpec("fixed", shape=(), dtype=dtypes.get("b"), differentiable=False),
    )
    outputs = (ArraySpec("y", shape=(4,)), ArraySpec("s", shape=()), ArraySpec("n", shape=(), dtype="int64"))
    return FromTorch(many, specs, outputs)


def many_inputs(rows: int = 3) -> list[torch.Tensor]:
    a, b = weights(rows, 2, 2).requires_grad_(), weights(rows, 3, seed=1).requires_grad_()
    return [a, b, torch.arange(rows), weights(rows, seed=2).requires_grad_()]


# What is perturbed, and what it costs


def test_several_inputs_and_outputs():
    inputs = many_inputs()
    y, s, n = zo.differentiable(many_box(), CGE)(*inputs)
    assert n.tolist() == [1, 2, 3]
    assert not n.requires_grad
    (y.square().sum() + s.sum()).backward()
    grads = [t.grad for t in inputs]
    truth = torch.autograd.grad(
        sum(t.sum() for t in (many(*inputs)[0].square(), many(*inputs)[1])), inputs[:2]
    )
    assert all(torch.allclose(f, t, atol=1e-8) for f, t in zip(grads, truth, strict=False))
    assert grads[2] is grads[3] is None  # an integer, and one whose spec wants no derivative


def test_inputs_by_name_have_the_same_gradients():
    inputs, named = many_inputs(), many_inputs()
    zo.differentiable(many_box(), CGE, seed=0)(*inputs)[0].square().sum().backward()
    a, b, label, fixed = named
    zo.differentiable(many_box(), CGE, seed=0)(a, fixed=fixed, label=label, b=b)[0].square().sum().backward()
    assert torch.equal(a.grad, inputs[0].grad) and torch.equal(b.grad, inputs[1].grad)


def test_an_output_that_the_loss_does_not_use():
    inputs = many_inputs()
    zo.differentiable(many_box(), CGE)(*inputs)[1].sum().backward()
    assert torch.allclose(inputs[0].grad, torch.ones(3, 2, 2).double(), atol=1e-8)
    assert torch.allclose(inputs[1].grad, 2 * inputs[1].detach(), atol=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_only_inputs_that_need_a_gradient_are_perturbed(estimator):
    box, inputs = many_box(), many_inputs()
    inputs[0].requires_grad_(False)
    zo.differentiable(box, estimator)(*inputs)[0].sum().backward()
    base, queries, *_ = box.asked  # the last are a check's
    repeats = len(queries[0]) // 3
    for place in (0, 2, 3):
        assert torch.equal(queries[place], torch.cat([base[place]] * repeats))
    assert not torch.equal(queries[1], torch.cat([base[1]] * repeats))
    assert inputs[0].grad is None


@pytest.mark.parametrize(
    ("estimator", "queries"),
    [(CGE, 8), (zo.CGE(1e-4), 4), (RGE, 5), (zo.box_gradient.RowRGE(1e-4, 3, central=True), 6)],
)
def test_one_call_forward_one_call_backward(estimator, queries):
    box = Sine()
    solver = zo.differentiable(box, estimator)
    x = torch.randn(2, 3, 4, requires_grad=True)
    solver(x).sum().backward()
    # Of a check: two queries of both signs at half of the step, or that and back.
    asked = [4] if getattr(estimator, "central", False) else [2, 2]
    assert box.calls == [6, 6 * queries, *asked]
    checks = 4
    assert box.ledger.rows_run == (1 + queries) * 6 + checks
    assert vars(solver.counts) == {"calls": 1, "rows": 6 * queries, "dropped": 0, "checks": checks}


def test_without_a_graph_there_are_no_queries():
    box = Sine()
    solver = zo.differentiable(box, RGE)
    x = torch.randn(3, 4)
    expected = box(x)
    assert torch.equal(solver(x), expected)
    with torch.no_grad():
        assert torch.equal(solver(x.requires_grad_()), expected)
    answer = solver(x.detach().numpy())
    assert isinstance(answer, np.ndarray)
    assert np.array_equal(answer, expected.numpy())
    assert box.calls == [3, 3, 3, 3]
    assert solver.counts.calls == 0


def test_numbers_in_and_out():
    """Rows without axes of their own."""
    box = FromTorch(lambda a, b: a.sin() * b, (ArraySpec("a", ()), ArraySpec("b", ())), (ArraySpec("y", ()),))
    a, b = (weights(5, seed=seed).requires_grad_() for seed in (0, 1))
    zo.differentiable(box, zo.box_gradient.RowRGE(1e-5, 2, central=True))(a, b).square().sum().backward()
    truth = torch.autograd.grad((a.sin() * b).square().sum(), (a, b))
    assert torch.allclose(a.grad, truth[0], atol=1e-8)
    assert torch.allclose(b.grad, truth[1], atol=1e-8)


def test_an_input_without_derivative_makes_no_graph():
    inputs = many_inputs()
    for place in (0, 1):
        inputs[place].requires_grad_(False)
    assert not any(out.requires_grad for out in zo.differentiable(many_box(), CGE)(*inputs))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_max_rows_bounds_the_calls_and_changes_nothing_else(estimator):
    x, grads, asked = weights(3, 4), [], []
    for max_rows in (None, 1, 5):
        box = Sine()
        grads.append(gradient_of(zo.differentiable(box, estimator, seed=0, max_rows=max_rows), x))
        queries = box.calls[1:]
        checks = 1 if getattr(estimator, "central", False) else 2  # calls
        assert len(queries) == 1 + checks if max_rows is None else max(queries) == max_rows
        asked.append(sum(queries))
    assert len(set(asked)) == 1
    assert torch.allclose(grads[1], grads[0], rtol=1e-9, atol=1e-11)
    assert torch.allclose(grads[2], grads[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (0, 4), (2, 0, 4), (2, 2, 2, 4)])
def test_any_leading_axes(shape):
    x = weights(*shape)
    assert torch.allclose(gradient_of(zo.differentiable(Sine(), CGE), x), 1.3 * torch.cos(1.3 * x), atol=1e-8)


def test_a_budget_that_the_queries_exceed_is_refused_in_backward():
    box = Sine()
    y = zo.differentiable(Budgeted(box, rows=20), RGE)(torch.randn(4, 4, requires_grad=True))
    with pytest.raises(BudgetError):
        y.sum().backward()
    assert box.calls == [4]


# Dtypes


@pytest.mark.parametrize("mu", [1e-2])
def test_float32_inputs_of_a_float64_box(mu):
    class Wide(Sine):
        def evaluate_rows(self, x):
            return super().evaluate_rows(x.astype(np.float64))

    x = torch.randn(3, 4)
    grad = gradient_of(zo.differentiable(Wide(), zo.CGE(mu, central=True)), x)
    assert grad.dtype == torch.float32
    # Truncation 1.3^3 mu^2 / 6, and outputs rounded to float32 over mu.
    assert (grad - 1.3 * torch.cos(1.3 * x)).abs().max() < 1.3**3 * mu**2 / 6 + 1.2e-7 / mu


def test_mixed_dtypes_each_get_their_own():
    inputs = many_inputs()
    a = inputs[0].detach().float().requires_grad_()
    box = many_box(a="float32", b="float64")
    y, s, _ = zo.differentiable(box, zo.CGE(1e-2, central=True))(a, *inputs[1:])
    (y.sum() + s.sum()).backward()
    assert (a.grad.dtype, inputs[1].grad.dtype) == (torch.float32, torch.float64)
    assert box.asked[1][0].dtype == torch.float32
    truth = torch.autograd.grad(sum(out.sum() for out in many(*inputs)[:2]), inputs[:2])
    # Truncation mu^2 / 6 of four sines, each times at most 6; the sums of `a`, rounded to float32, over mu.
    assert torch.allclose(a.grad.double(), truth[0], rtol=0, atol=2e-4)
    assert torch.allclose(inputs[1].grad, truth[1], rtol=0, atol=2e-4)


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_draws_are_the_same_on_every_device_and_for_every_shape_of_leading_axes(estimator, device):
    x = weights(6, 4)
    expected = gradient_of(zo.differentiable(Sine(), estimator, seed=0), x)
    grad = gradient_of(zo.differentiable(Sine(), estimator, seed=0), x.view(2, 3, 4).to(device))
    assert grad.device.type == device
    assert torch.allclose(grad.cpu().view(6, 4), expected, rtol=1e-8, atol=1e-10)


# Failed rows and queries


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_dead_row_gets_zero_and_leaves_the_others_as_they_are(estimator):
    x, v = weights(5, 4), weights(5, 4, seed=1)
    expected = gradient_of(zo.differentiable(Sine(), estimator, seed=0), x, v)
    x[2, 1], v[2] = 9.0, float("nan")
    box = Sine(limit=5.0)
    solver = zo.differentiable(box, estimator, seed=0)
    grad = gradient_of(solver, x, v)
    assert (grad[2] == 0).all()
    alive = torch.tensor([0, 1, 3, 4])
    assert torch.allclose(grad[alive], expected[alive], rtol=1e-12, atol=1e-13)
    assert box.calls[1] % 4 == 0  # the dead row is not queried
    assert solver.counts.dropped == 0


def test_nothing_alive_gives_zeros_and_no_queries():
    box = Sine(limit=-9.0)
    x = torch.zeros(3, 4)
    assert torch.equal(gradient_of(zo.differentiable(box, RGE), x), torch.zeros(3, 4))
    assert box.calls == [3]


def test_a_loop_goes_on_around_a_row_that_dies():
    """Row 1 dies in the second call: its gradient is that of the loss on the first; the others have both."""
    x = torch.tensor([0.1, 0.9, 0.3]).double()[:, None].repeat(1, 4).requires_grad_()

    def loss_of(solver, alive):
        middle = solver(x)
        after = solver(1.5 * middle)
        lost = torch.isnan(after).any(dim=1)
        return middle.square().sum() + after[alive].square().sum(), lost

    alive = torch.tensor([True, False, True])
    loss, lost = loss_of(zo.differentiable(Sine(limit=1.0), CGE), alive)
    assert torch.equal(lost, ~alive)
    truth = torch.autograd.grad(loss_of(lambda x: torch.sin(1.3 * x), alive)[0], x)[0]
    assert torch.allclose(torch.autograd.grad(loss, x)[0], truth, atol=1e-8)


def sine_within(limit: float, side: int, size: int = 4) -> FromTorch:
    """sin(1.3 x), lost where a number of the row passes the limit: above (side 1) or below (side -1)."""

    def function(x):
        lost = (side * x > limit).any(dim=1, keepdim=True)
        return torch.where(lost, torch.nan, torch.sin(1.3 * x))

    return FromTorch(function, (ArraySpec("x", shape=(size,)),), (ArraySpec("y", shape=(size,)),))


SIDES = [("forward", 1), ("both", 1), ("both", -1)]  # of the differences, and of the failure


@pytest.mark.parametrize(("scheme", "side"), SIDES)
def test_a_failed_query_leaves_the_difference_of_the_other_side(scheme, side):
    x = weights(5, 4).clamp(-1.0, 1.0)
    x[3, 2] = side * 1.9999  # a step of 1e-3 to that side takes it over
    estimator = zo.CGE(1e-3, central=scheme != "forward")
    solver = zo.differentiable(sine_within(2.0, side), estimator)
    expected = gradient_of(zo.differentiable(sine_within(9.0, side), estimator), x)
    expected[3, 2] = 1.3 * torch.cos(1.3 * x[3, 2])
    grad = gradient_of(solver, x)
    assert grad[3, 2] == pytest.approx(float(expected[3, 2]), abs=1.3**2 * 1e-3)  # one-sided
    grad[3, 2] = expected[3, 2]
    assert torch.equal(grad, expected)
    assert solver.counts.dropped == 1


def exponential_within(limit: float, side: int) -> FromTorch:
    """exp(2 x), of one number, lost beyond the limit."""

    def function(x):
        return torch.where(side * x > limit, torch.nan, torch.exp(2 * x))

    return FromTorch(function, (ArraySpec("x", shape=(1,)),), (ArraySpec("y", shape=(1,)),))


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("mu", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("estimator", ["cge", "rge"])
def test_at_the_edge_of_a_domain_a_central_slope_is_no_worse_than_inside(estimator, mu, side):
    rule = zo.CGE(mu, central=True) if estimator == "cge" else zo.box_gradient.RowRGE(mu, 2, central=True)
    x = torch.tensor([[0.3], [side * 1.0], [0.5]], dtype=torch.float64)
    solver = zo.differentiable(exponential_within(1.0, side), rule, seed=0, max_dropped=0.2)
    grad = gradient_of(solver, x)
    # one step on each side is off by mu^2 / 6 of the third derivative 8 exp(2 x), two on one by half of it
    bound = 8 * math.exp(2 * (side + mu * (side < 0))) * mu**2 / 6
    assert abs(grad[1, 0] - 2 * math.exp(2 * side)) < 1.2 * bound + 1e-9 / mu
    assert solver.counts.dropped > 0


def test_where_half_of_the_step_fails_too_the_slope_of_one_side_stays():
    def function(x):
        lost = (x > 1.0) | ((x > 0.94) & (x < 0.96))
        return torch.where(lost, torch.nan, torch.exp(2 * x))

    box = FromTorch(function, (ArraySpec("x", shape=(1,)),), (ArraySpec("y", shape=(1,)),))
    x = torch.tensor([[0.999999]], dtype=torch.float64)
    grad = gradient_of(zo.differentiable(box, zo.CGE(0.1, central=True), check=False), x)
    expected = (math.exp(2 * 0.999999) - math.exp(2 * 0.899999)) / 0.1
    assert grad.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher"])
def test_a_row_none_of_whose_forward_queries_succeeded_is_asked_the_other_way(distribution):
    x = weights(12, 1).clamp(-1.0, 1.0)
    x[3] = 1.9999999
    found = []
    for seed in range(8):
        solver = zo.differentiable(
            sine_within(2.0, 1, 1), zo.box_gradient.RowRGE(1e-5, 1, distribution), seed=seed
        )
        found.append((gradient_of(solver, x)[3, 0], solver.counts.dropped))
    assert {dropped for _, dropped in found} == {0, 1}
    if distribution != "gaussian":  # of one number these are its derivative, to curvature
        for slope, _ in found:
            assert slope == pytest.approx(1.3 * float(torch.cos(1.3 * x[3, 0])), abs=1e-4)
    assert all(slope != 0 for slope, _ in found)


def test_a_row_that_fails_on_both_sides_has_a_gradient_of_zero():
    x = torch.linspace(-0.25, 1.0, 12, dtype=torch.float64)[:, None]
    below = x[:, 0] < 0

    def islands(z):  # below zero there are answers at the rows themselves alone
        return torch.where((z < 0) & ~torch.isin(z, x), torch.nan, 2 * z)

    box = FromTorch(islands, (ArraySpec("x", shape=(1,)),), (ArraySpec("y", shape=(1,)),))
    solver = zo.differentiable(box, zo.CGE(1e-3), max_dropped=0.5)
    grad = gradient_of(solver, x)
    assert below.any() and (grad[below] == 0).all()
    torch.testing.assert_close(grad[~below], torch.full_like(grad[~below], 2.0))
    assert solver.counts.dropped == int(below.sum())


@pytest.mark.parametrize(("scheme", "side"), SIDES)
def test_a_failed_direction_is_left_out_of_its_rows_mean(scheme, side):
    x, q, mu = weights(5, 4).clamp(-1.0, 1.0), 6, 1e-3
    x[3, 2] = side * 1.9989  # lost where |u| > 1.1
    central = scheme != "forward"
    box = sine_within(2.0, side)
    solver = zo.differentiable(
        box, zo.box_gradient.RowRGE(mu, q, "gaussian", central), seed=4, max_dropped=0.2
    )
    grad = gradient_of(solver, x)
    asked = box.asked[1][0].view(-1, 5, 4)  # queries, rows, numbers
    y = torch.sin(1.3 * asked).sum(dim=-1)
    lost = (side * asked > 2.0).any(dim=-1)
    u = (asked[:q] - x) / mu
    slopes = (y[:q] - torch.sin(1.3 * x).sum(dim=-1)) / mu
    if central:
        assert torch.allclose(asked[q:], x - mu * u)
        back = (torch.sin(1.3 * x).sum(dim=-1) - y[q:]) / mu
        there, behind = lost[:q], lost[q:]
        half_way = [torch.sin(1.3 * (x + part * mu * u)).sum(dim=-1) for part in (-0.5, 0.0, 0.5)]
        back, slopes = (  # over two steps of one side, where the other is lost
            torch.where(there, 4 * (half_way[1] - half_way[0]) / mu - back, back),
            torch.where(behind, 4 * (half_way[2] - half_way[1]) / mu - slopes, slopes),
        )
        slopes = torch.where(there, back, torch.where(behind, slopes, (slopes + back) / 2))
        assert (there[:, 3] ^ behind[:, 3]).any()
        lost = there & behind
    assert central or 0 < int(lost[:, 3].sum()) < q
    assert solver.counts.dropped == int((side * asked > 2.0).any(dim=-1).sum())
    for row in range(5):
        kept = ~lost[:, row]
        expected = (slopes[kept, row, None] * u[kept, row]).mean(dim=0)
        assert torch.allclose(grad[row], expected, rtol=1e-9, atol=1e-10)  # eps |y| / mu, summed


def test_too_many_failed_queries_are_an_error():
    x = torch.full((5, 4), 1.99999).requires_grad_()
    solver = zo.differentiable(Sine(limit=2.0), zo.CGE(1e-3, central=True))
    with pytest.raises(
        zo.errors.FailedQueriesError, match=r"at most 10% of 40 perturbed rows to fail, 20 did"
    ):
        solver(x).sum().backward()
    assert x.grad is None
    assert solver.counts.dropped == 20


def test_a_box_that_raises_on_a_query_raises_in_backward():
    box = Sine(limit=2.0)
    box.failures = "raise"
    y = zo.differentiable(box, zo.CGE(1e-3))(torch.full((2, 4), 1.9999).requires_grad_())
    with pytest.raises(RowFailedError):
        y.sum().backward()


def test_a_nan_that_arrives_at_a_living_row_is_no_failed_query():
    v = torch.ones(3, 4)
    v[1, 2] = float("nan")
    solver = zo.differentiable(Sine(), RGE)
    grad = gradient_of(solver, torch.zeros(3, 4), v)
    assert torch.isnan(grad).all(dim=1).tolist() == [False, True, False]
    assert solver.counts.dropped == 0


# Determinism


def train(steps: int, solver, network, optimizer) -> list[torch.Tensor]:
    for _ in range(steps):
        state = torch.linspace(-1, 1, 12).view(3, 4)
        for _ in range(3):
            state = solver(state + network(state))
        optimizer.zero_grad()
        state.square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in network.parameters()]


def make_training(seed: int = 0):
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    solver = zo.differentiable(
        Sine(), zo.box_gradient.RowRGE(1e-2, 3, basis=zo.box_gradient.DCTBasis(2)), seed=seed
    )
    return solver, network, torch.optim.Adam(network.parameters(), 0.01)


def test_resumed_equals_undisturbed_to_the_bit():
    whole = make_training()
    expected = train(6, *whole)
    torch.rand(7)  # global draws change nothing
    first = make_training()
    train(3, *first)
    second = make_training()
    for new, old in zip(second, first, strict=True):
        new.load_state_dict(old.state_dict())
    grads = train(3, *second)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))
    assert second[0].state_dict() == whole[0].state_dict()
    others = train(6, *make_training(seed=1))
    assert not any(torch.equal(a, b) for a, b in zip(others, expected, strict=True))


def test_calls_rows_and_seeds_draw_apart_and_backward_twice_draws_the_same():
    solver, x = zo.differentiable(Sine(), RGE, seed=0), torch.zeros(2, 4).double().requires_grad_()
    y = solver(x)
    once = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    again = torch.autograd.grad(y.sum(), x)[0]
    assert torch.equal(once, again)
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(gradient_of(solver, x), once)
    assert not torch.equal(gradient_of(zo.differentiable(Sine(), RGE, seed=1), x), once)


def test_the_global_generator_is_not_moved():
    before = torch.get_rng_state()
    for estimator in ESTIMATORS:
        gradient_of(zo.differentiable(Sine(), estimator), torch.zeros(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_evaluates_the_base_twice_and_is_as_reproducible(reentrant):
    def run(estimator):
        box, x = Sine(), weights(3, 4).requires_grad_()
        solver = zo.differentiable(box, estimator, seed=0)
        state = x
        for _ in range(2):
            state = checkpoint(lambda x: solver(x) + x, state, use_reentrant=reentrant)
        state.sum().backward()
        queries = 3 * (8 if estimator is CGE else 5)
        assert [rows for rows in box.calls if rows in (3, queries)] == [3, 3, 3, queries, 3, queries]
        assert sum(box.calls) == 12 + 2 * queries + solver.counts.checks
        return x

    x = run(CGE)
    middle = torch.sin(1.3 * x) + x
    truth = torch.autograd.grad((torch.sin(1.3 * middle) + middle).sum(), x)[0]
    assert torch.allclose(x.grad, truth, atol=1e-8)
    assert torch.equal(run(RGE).grad, run(RGE).grad)


# What it refuses


def second_derivative(solver, x):
    gradient = torch.autograd.grad(solver(x).square().sum(), x, create_graph=True)[0]
    gradient.square().sum().backward()


def jvp(solver, x):
    torch.func.jvp(solver, (x.detach(),), (x.detach(),))


def several_at_once(solver, x):
    torch.autograd.grad(solver(x), x, torch.ones(5, 3, 4).double(), is_grads_batched=True)


def vectorized_jacobian(solver, x):
    torch.autograd.functional.jacobian(solver, x, vectorize=True)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (second_derivative, ["double backward", "Detach"]),
        (lambda solver, x: torch.func.vmap(solver)(x), ["vmap", "leading axes"]),
        (lambda solver, x: torch.func.vmap(torch.func.grad(lambda x: solver(x).sum()))(x), ["vmap"]),
        (lambda solver, x: torch.func.jacrev(solver)(x.detach()), ["vmap"]),
        (jvp, ["forward mode", "backward()"]),
        (several_at_once, ["is_grads_batched=True", "one after another"]),
        (vectorized_jacobian, ["vectorize=True", "vectorize=False"]),
    ],
    ids=["double backward", "vmap", "vmap of grad", "jacrev", "jvp", "is_grads_batched", "vectorize"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")  # forward mode imports torch's decompositions
def test_derivatives_that_it_does_not_give(act, words):
    with pytest.raises(zo.errors.DerivativeError) as raised:
        act(zo.differentiable(Sine(), CGE), weights(3, 4).requires_grad_())
    assert isinstance(raised.value, BlackBoxError)
    for word in words:
        assert word in str(raised.value)


def test_a_jacobian_is_given_row_by_row_of_it():
    x = weights(2, 4)
    jacobian = torch.autograd.functional.jacobian(zo.differentiable(Sine(), CGE), x)
    truth = torch.autograd.functional.jacobian(lambda x: torch.sin(1.3 * x), x)
    assert torch.allclose(jacobian, truth, atol=1e-8)


def test_create_graph_alone_and_func_grad_are_given():
    solver, x = zo.differentiable(Sine(), CGE), weights(3, 4).requires_grad_()
    truth = 1.3 * torch.cos(1.3 * x.detach())
    assert torch.allclose(torch.autograd.grad(solver(x).sum(), x, create_graph=True)[0], truth, atol=1e-8)
    assert torch.allclose(torch.func.grad(lambda x: solver(x).sum())(x.detach()), truth, atol=1e-8)


def ok(**changes):
    settings = {"box": Sine(), "estimator": RGE} | changes
    return lambda: zo.differentiable(settings.pop("box"), settings.pop("estimator"), **settings)


def backward(estimator, x=None):
    return lambda: gradient_of(zo.differentiable(Sine(), estimator), torch.zeros(2, 4) if x is None else x)


class Classes(Sine):
    outputs = (ArraySpec("label", shape=(), dtype="int64"),)


SPARSE = zo.CGE(1e-3, zo.RandomCoordinates(2))
DIRECTIONS = {"mu": 1e-3, "q": 2}
BAD = [
    (ok(box=torch.sin), ["box", "BlackBoxFunction", "builtin"]),
    (ok(box=Classes()), ["differentiable output", "label"]),
    (ok(estimator=0.1), ["RowRGE", "float"]),
    (ok(estimator=SPARSE), ["without a sparsity", "RandomCoordinates(size=2", "RowRGE"]),
    (
        ok(estimator=zo.RGE(1e-3, 2, sparsity=zo.RandomCoordinates(2))),
        ["RGE without a sparsity", "basis"],
    ),
    (ok(seed=-1), ["seed", ">= 0", "-1"]),
    (ok(max_rows=0), ["max_rows", ">= 1", "0"]),
    (ok(max_dropped=1.5), ["max_dropped", "[0, 1]", "1.5"]),
    (lambda: ok(seed=0)().load_state_dict(ok(seed=3)().state_dict()), ["seed=0", "got one with 3"]),
    (lambda: ok()().load_state_dict(ok(seed=3)().state_dict()), ["seed=None", "got one with 3"]),
    (lambda: ok(seed=3)().load_state_dict(ok()().state_dict()), ["seed=3", "got one with None"]),
    (lambda: zo.box_gradient.RowRGE(0.0, 2), ["mu", "> 0"]),
    (lambda: zo.box_gradient.RowRGE(1e-3, 0), ["q", ">= 1"]),
    (lambda: zo.box_gradient.RowRGE(**DIRECTIONS, distribution="cauchy"), ["orthogonal", "cauchy"]),
    (lambda: zo.box_gradient.RowRGE(**DIRECTIONS, central="both"), ["central", "both", "True"]),
    (
        lambda: zo.box_gradient.RowRGE(**DIRECTIONS, basis=torch.eye(4)),
        ["a DCTBasis", "Tensor", "whole space"],
    ),
    (lambda: zo.box_gradient.DCTBasis(0), ["modes", ">= 1"]),
    (lambda: zo.box_gradient.DCTBasis(2, axes=0), ["axes", ">= 1"]),
    (
        backward(zo.box_gradient.RowRGE(1e-4, 2), torch.full((2, 4), 1e5)),
        ["rounding", "float32", "1.0e+05", "scale="],
    ),
    (backward(zo.CGE(1e-4), torch.full((2, 4), 1e5)), ["lost in rounding", "1e+05", "larger mu", "scale="]),
]


@pytest.mark.parametrize(("act", "words"), BAD, ids=range(len(BAD)))
@suppress_type_checks
def test_bad_input_is_a_named_error(act, words):
    with pytest.raises(zo.errors.ConfigurationError) as raised:
        act()
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    "arrays", [(torch.zeros(2, 4).half(),), (torch.zeros(2, 4), torch.zeros(2, 4)), (3,)]
)
def test_what_the_box_refuses_is_refused_in_its_words(arrays):
    box = Sine()
    with pytest.raises(TypeError) as expected:
        box(*arrays)
    with pytest.raises(type(expected.value)) as raised:
        zo.differentiable(box, RGE)(*arrays)
    assert str(raised.value) == str(expected.value)
    assert box.calls == []


# As a module


def chain(seed: int = 0, tangent=None) -> nn.Sequential:
    """A network, the box, and a network behind it."""
    torch.manual_seed(0)
    estimator = zo.box_gradient.RowRGE(1e-4, 4) if tangent is None else None
    solver = zo.differentiable(Sine(), estimator, tangent=tangent, seed=seed)
    return nn.Sequential(nn.Linear(4, 4), solver, nn.Linear(4, 1)).double()


def test_in_a_sequential_the_network_before_the_box_gets_its_gradient():
    network, x = chain(), weights(3, 4)
    network(x).sum().backward()
    grads = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network[2](torch.sin(1.3 * network[0](x))).sum().backward()
    assert len(grads) == 4  # the box has none
    for grad, parameter in zip(grads, network.parameters(), strict=True):
        assert torch.allclose(grad, parameter.grad, atol=1e-3)
    assert network.eval()[1].training is False


def test_a_chain_is_saved_with_the_numbers_of_its_calls_and_resumed_to_the_bit(tmp_path):
    network, x = chain(), weights(3, 4)
    network(x).sum().backward()
    torch.save(network.state_dict(), tmp_path / "state.pt")
    other = chain()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (
        other[1].counts
        == network[1].counts
        == zo.box_gradient.RowCounts(calls=1, rows=12, dropped=0, checks=2 * 2)
    )
    for trained in (network, other):
        trained.zero_grad()
        trained(x).sum().backward()
    assert torch.equal(other[0].weight.grad, network[0].weight.grad)
    with pytest.raises(zo.errors.ConfigurationError, match="seed=1, got one with 0"):
        chain(seed=1).load_state_dict(network.state_dict())


def test_a_deep_copy_has_its_own_weights_counts_and_tangent_around_the_same_box():
    network, x = chain(tangent=zo.tangents.KernelTangent()), weights(3, 4)
    copied = copy.deepcopy(network)
    copied(x).sum().backward()
    assert copied[1].box is network[1].box
    assert (copied[1].counts.calls, network[1].counts.calls) == (1, 0)
    assert copied[1].tangent.state_dict()["form"] is not None
    assert network[1].tangent.state_dict()["form"] is None
    assert network[0].weight.grad is None
    assert network[1].box.ledger.rows_run == 3


def test_a_module_with_a_tangent_that_has_weights_gives_none_of_them_to_an_optimizer():
    solver = zo.differentiable(Sine(), tangent=zo.tangents.StudentTangent(nn.Linear(4, 4)))
    assert list(solver.parameters()) == []


# A box that answers nothing


class Constant(Sine):
    def evaluate_rows(self, x):
        return np.ones_like(x)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_box_is_said_once(estimator):
    solver, x = zo.differentiable(Constant(), estimator), weights(3, 4)
    with pytest.warns(zo.errors.ZeroGradientWarning, match=r"Constant.*call 0.*follow x.*check_black_box"):
        grad = gradient_of(solver, x)
    assert (grad == 0).all()
    gradient_of(solver, x)  # warnings are errors here


class Forest(Sine):
    """Steps of a tenth: hardly a row is so near to the next that a thousandth reaches it."""

    def evaluate_rows(self, x):
        return np.floor(10 * x)


def test_a_box_whose_rows_hardly_ever_answer_is_said_once_after_three_calls():
    solver = zo.differentiable(Forest(), zo.box_gradient.RowRGE(1e-3, 2), seed=0)
    x = weights(400, 4)
    with pytest.warns(zo.errors.NoiseWarning, match="steps as of trees"):  # of those rows that reach it
        gradient_of(solver, x)
    gradient_of(solver, x)  # warnings are errors here, and not every row stands still
    with pytest.warns(
        zo.errors.ZeroGradientWarning, match=r"of the first 1200 rows.*StudentTangent"
    ) as caught:
        gradient_of(solver, x)
    still = int(re.search(r"(\d+) of the first 1200", str(caught[0].message))[1])
    assert 0.9 * 1200 < still < 1200
    gradient_of(solver, x)
    wide = zo.differentiable(Forest(), zo.box_gradient.RowRGE(0.3, 2))  # which crosses steps
    for _ in range(4):
        gradient_of(wide, x)


# Units that are far apart


def with_scale(scale: Any, shape: tuple[int, ...] = (4,)) -> zo.box_gradient.DifferentiableBox:
    class Scaled(Sine):
        inputs = outputs = (ArraySpec("x", shape, scale=scale),)

    return zo.differentiable(Scaled(), zo.box_gradient.RowRGE(1e-3, 2))


UNITS = torch.tensor([1e-3, 1.0, 30.0, 1e3], dtype=torch.float64)


@pytest.mark.filterwarnings(
    "ignore:.*curves within mu:zo.errors.SlopeWarning"
)  # over a step of 1e-3 times 1e3
def test_numbers_in_units_far_apart_are_said_once():
    solver, x = with_scale(None), weights(32, 4) * UNITS
    with pytest.warns(
        zo.errors.UnitsWarning, match=r"vary by similar amounts.*'x'.*stay at mu.*scale=samples\.std"
    ):
        gradient_of(solver, x)
    gradient_of(solver, x)  # warnings are errors here
    gradient_of(with_scale(UNITS.tolist()), x)
    gradient_of(with_scale(None), weights(4, 4) * UNITS)  # too few rows to tell


def test_what_varies_by_nature_is_no_reason_to_warn():
    """A front on a line, an image with a border, numbers that are constant or of one size."""
    place = torch.linspace(0, 1, 64, dtype=torch.float64)
    front = torch.tanh(20 * (place - 0.3 - 0.05 * weights(32, 1))) + 1e-4 * weights(32, 64)
    gradient_of(with_scale(None, (64,)), front)
    image = weights(32, 64).reshape(32, 8, 8) * 1e-4
    image[:, 2:6, 2:6] *= 1e4
    gradient_of(with_scale(None, (8, 8)), image)
    x = weights(32, 64)
    x[:, :8], x[:, 8:10] = 5.0, x[:, 8:10] * 1e-4  # constant; two of 56 that hardly vary
    gradient_of(with_scale(None, (64,)), x)


def test_a_gradient_of_zero_that_arrives_is_no_reason_to_warn():
    assert (gradient_of(zo.differentiable(Sine(), CGE), weights(3, 4), torch.zeros(3, 4).double()) == 0).all()


def test_settings_show():
    assert "DCTBasis(modes=3, axes=2)" in repr(
        zo.box_gradient.RowRGE(1e-3, 2, basis=zo.box_gradient.DCTBasis(3))
    )
    solver = zo.differentiable(Sine(), zo.box_gradient.RowRGE(1e-3, 2), seed=3)
    assert repr(solver) == f"DifferentiableBox({solver.box!r}, RowRGE(mu=0.001, q=2), seed=3)"
    solver = zo.differentiable(Sine(), tangent=zo.tangents.KernelTangent(), seed=3)
    assert repr(solver) == f"DifferentiableBox({solver.box!r}, None, tangent={solver.tangent!r}, seed=3)"


def of_two_units(scale):
    """Metres and pascals: what a step of one size does to them differs by a factor of 1e12."""
    specs = ArraySpec("height", (2,), scale=scale and 1.0), ArraySpec("pressure", (3,), scale=scale)

    def function(height, pressure):
        mixed = torch.sin(height[:, :1] + 2 * height[:, 1:] + pressure.mul(1e-6).sum(dim=1, keepdim=True))
        return torch.cat([mixed, mixed.square()], dim=1)

    return FromTorch(function, specs, (ArraySpec("y", (2,)),)), function


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda central: zo.CGE(1e-5, central=central),
        lambda central: zo.box_gradient.RowRGE(
            1e-5, 5, central=central
        ),  # a set of five is the whole gradient
        lambda central: zo.box_gradient.RowRGE(1e-5, 20000, "gaussian", central),
    ],
    ids=["cge", "orthogonal", "gaussian"],
)
def test_each_number_moves_by_mu_of_its_scale(make, central):
    box, function = of_two_units(1e6)
    inputs = [weights(3, 2).requires_grad_(), (1e6 * weights(3, 3, seed=1)).requires_grad_()]
    zo.differentiable(box, make(central), seed=0)(*inputs).sum().backward()
    truth = torch.autograd.grad(function(*inputs).sum(), inputs)
    for grad, true, unit in zip((t.grad for t in inputs), truth, (1.0, 1e6), strict=True):
        close = 0.1 if isinstance(make(central), zo.box_gradient.RowRGE) and make(central).q > 5 else 2e-4
        assert torch.allclose(grad * unit, true * unit, atol=close, rtol=close)
    moved = box.asked[1][1] - inputs[1].detach().repeat(len(box.asked[1][1]) // 3, 1)
    assert moved.abs().max() > 1  # 1e-5 of a million


def test_an_input_without_a_scale_moves_by_mu():
    """To the bit as before, also beside a tangent, which measures."""
    results = []
    for scale in (None, 1.0):
        box, _ = of_two_units(scale)
        inputs = [weights(3, 2).requires_grad_(), weights(3, 3, seed=1).requires_grad_()]
        zo.differentiable(box, zo.box_gradient.RowRGE(1e-3, 3), seed=0)(*inputs).sum().backward()
        results.append([*box.asked[1], *(t.grad for t in inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_direction_that_hardly_moves_an_input_of_one_number_is_no_step_lost_in_rounding():
    """Of many rows some have it by chance; their gradient lacks what another row's has too much of."""

    def function(state, fuel):
        return state.sum(dim=1) + 3 * fuel

    specs = ArraySpec("state", (9,)), ArraySpec("fuel", (), scale=2**-6)
    box = FromTorch(function, specs, (ArraySpec("y", ()),))
    state, fuel = weights(20_000, 9).float().requires_grad_(), torch.full((20_000,), 0.6).requires_grad_()
    zo.differentiable(box, zo.box_gradient.RowRGE(1e-3, 2), seed=0)(state, fuel).sum().backward()
    assert fuel.grad is not None
    assert (fuel.grad.mean() - 3).abs() < 5 * fuel.grad.std() / len(fuel) ** 0.5  # unbiased all the same


def test_directions_in_a_basis_move_as_the_basis_has_them():
    box, _ = of_two_units(1e6)
    inputs = [weights(3, 2).requires_grad_(), weights(3, 3, seed=1).requires_grad_()]
    basis = zo.box_gradient.DCTBasis(1, axes=1)  # each input's numbers all move alike
    zo.differentiable(box, zo.box_gradient.RowRGE(1e-3, 2, basis=basis))(*inputs).sum().backward()
    moved = [box.asked[1][n] - inputs[n].detach().repeat(2, 1) for n in (0, 1)]
    assert all(torch.allclose(part, part[:, :1].expand_as(part), atol=1e-12) for part in moved)
    assert 0 < torch.cat(moved, dim=1).norm(dim=1).max() < 1.01e-3


def test_what_the_box_gave_may_be_written_to():
    """As what any module gives: rows in other axes are views, which autograd guards."""
    box = FromTorch(torch.sin, (ArraySpec("x", (3,)),), (ArraySpec("y", (3,)),))
    x = weights(4, 2, 3).requires_grad_()
    solver = zo.differentiable(box, zo.CGE(mu=1e-3))
    y = solver(x).clone()
    y += 1.0
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    y = solver(x)
    y += 1.0
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.allclose(grad, expected, atol=1e-6)


def test_threads_share_what_a_tangent_learns_one_after_another():
    """Three threads that learned at once ended in errors of shapes, or were wrong without a word."""

    def function(z):
        return torch.stack([torch.sin(z[:, 0]) * z[:, 1], z[:, 0] + z[:, 1].tanh()], dim=1)

    box = FromTorch(function, (ArraySpec("z", (2,)),), (ArraySpec("y", (2,)),))
    shared, cosines = zo.differentiable(box, tangent=zo.tangents.MLPTangent(), seed=0), dict[int, float]()

    def work(thread: int) -> None:
        for step in range(15):
            draws = torch.Generator().manual_seed(100 * thread + step)
            z = torch.randn(8, 2, generator=draws).double().requires_grad_()
            (found,) = torch.autograd.grad(shared(z).square().sum(), z)
            (truth,) = torch.autograd.grad(function(z).square().sum(), z)
            cosines[thread] = float(torch.cosine_similarity(found.flatten(), truth.flatten(), 0))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))  # an error of a thread is raised here
    assert min(cosines.values()) > 0.9
