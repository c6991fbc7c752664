"""`differentiable` against float64 autograd: truncation, unbiasedness, and directions without randomness."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, linear, make_box, nonlinear, quadratic, weights

EPS = torch.finfo(torch.float64).eps
FUNCTIONS = [linear, quadratic, nonlinear]


def problem_of(function, rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of inputs and a gradient for each output."""
    x = weights(rows, 2, 3, seed=10).requires_grad_()
    return x, weights(rows, function(x).shape[1], seed=11)


def truth_of(function, x, v) -> torch.Tensor:
    return torch.autograd.grad(function(x), x, v)[0]


def grad_by(function, estimator, x, v, **settings) -> torch.Tensor:
    solver = zo.differentiable(make_box(function, tuple(x.shape[1:])), estimator, **settings)
    return torch.autograd.grad(solver(x), x, v)[0]


def curvature(function, x, v) -> torch.Tensor:
    """d2 <v, F> / dx_i2, of the shape of x."""
    first = torch.autograd.grad(function(x), x, v, create_graph=True)[0].flatten()
    second = [torch.autograd.grad(g, x, retain_graph=True)[0].flatten()[i] for i, g in enumerate(first)]
    return torch.stack(second).view(x.shape)


@pytest.mark.parametrize("function", [quadratic, nonlinear])
def test_forward_cge_is_the_gradient_within_its_truncation_and_rounding(function):
    mu = 1e-6
    x, v = problem_of(function)
    error = (grad_by(function, zo.CGE(mu), x, v) - truth_of(function, x, v)).abs()
    size = (function(x).detach() * v).abs().sum(dim=1)[:, None, None]
    assert (error <= 1.05 * mu / 2 * curvature(function, x, v).abs() + 40 * EPS * size / mu).all()
    assert (error > 0.5 * mu / 2 * curvature(function, x, v).abs() - 40 * EPS * size / mu).all()


@pytest.mark.parametrize(
    ("function", "scheme"), [(linear, "forward"), (linear, "central"), (quadratic, "central")]
)
def test_cge_is_exact_where_there_is_no_truncation(function, scheme):
    x, v = problem_of(function)
    grad = grad_by(function, zo.CGE(0.1, central=scheme != "forward"), x, v)
    assert torch.allclose(grad, truth_of(function, x, v), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("scheme", "low", "high"), [("forward", 1.9, 2.1), ("central", 3.7, 4.3)])
def test_order_of_accuracy(scheme, low, high):
    x, v = problem_of(nonlinear)
    truth = truth_of(nonlinear, x, v)
    errors = [
        (grad_by(nonlinear, zo.CGE(mu, central=scheme != "forward"), x, v) - truth).norm()
        for mu in (2e-3, 1e-3)
    ]
    assert low < errors[0] / errors[1] < high


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_one_row_is_what_loss_gradient_finds_for_a_parameter(scheme):
    """A second implementation of the same sums: the row as the network, <v, F> as its objective."""
    x, v = problem_of(nonlinear, rows=1)
    estimator = zo.CGE(1e-3, central=scheme != "forward")
    network = nn.ParameterList([x.detach()[0].clone()])
    objective = lambda network, batch: (nonlinear(network[0][None]) * v).sum(dim=1)  # noqa: E731
    zo.LossGradient(network, objective, estimator, evaluator="loop").backward(torch.zeros(1, 1))
    assert torch.allclose(grad_by(nonlinear, estimator, x, v)[0], network[0].grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("q", [6, 12])
@pytest.mark.parametrize(("function", "scheme"), [(linear, "forward"), (quadratic, "antithetic")])
def test_whole_orthogonal_sets_leave_no_randomness(function, scheme, q):
    x, v = problem_of(function)
    grad = grad_by(function, zo.box_gradient.RowRGE(0.1, q, central=scheme != "forward"), x, v)
    assert torch.allclose(grad, truth_of(function, x, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("estimator", "q"),
    [(zo.RGE, 3)] * 3 + [(zo.box_gradient.RowRGE, 3), (zo.box_gradient.RowRGE, 8)],
    ids=["gaussian", "sphere", "rademacher", "orthogonal", "two sets"],
)
def test_unbiased_and_each_row_by_its_own_directions(estimator, q, request):
    """4,000 equal rows are 4,000 draws; antithetic slopes of a quadratic are exact, so the mean is the truth.

    z-test of each of 6 numbers: a false alarm in one of 5 x 6 at |z| > 4.5 has probability 2e-4, and the
    seed is fixed. With directions shared between rows all rows would be equal and z infinite.
    """
    rows = 4000
    x, v = problem_of(quadratic, rows=1)
    kind = request.node.callspec.id
    distribution = {"distribution": kind} if estimator is zo.RGE else {}
    x, v = x.detach().repeat(rows, 1, 1).requires_grad_(), v.repeat(rows, 1)
    grad = grad_by(quadratic, estimator(0.3, q, central=True, **distribution), x, v, seed=1)
    error = (grad - truth_of(quadratic, x, v)).flatten(1)
    assert (error.std(dim=0) > 0).all()
    assert (error.mean(dim=0) / (error.std(dim=0) / math.sqrt(rows))).abs().max() < 4.5


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "rademacher", "orthogonal"])
def test_a_basis_gives_the_part_of_the_gradient_in_its_space(distribution):
    """E[g] = P g; |z| > 5 in one of 24 numbers has probability 1e-5."""
    rows, q = 2000, 3
    x, v = problem_of(linear, rows=1)
    x, v = x.detach().repeat(rows, 1, 1).requires_grad_(), v.repeat(rows, 1)
    basis = zo.box_gradient.DCTBasis(2)
    vectors = basis.vectors((tuple(x.shape[1:]),))
    projection = vectors.T @ vectors
    assert 0 < len(vectors) < len(projection)
    estimator = zo.box_gradient.RowRGE(0.1, q, distribution, basis=basis)
    grad = grad_by(linear, estimator, x, v, seed=0).flatten(1)
    assert torch.allclose(grad @ projection, grad, atol=1e-10)
    error = grad - truth_of(linear, x, v).flatten(1) @ projection
    assert (error.mean(dim=0).abs() < 5 * error.std(dim=0) / math.sqrt(rows) + 1e-12).all()


def test_low_frequencies_give_the_part_of_the_gradient_that_scipy_leaves():
    """All 2 x 3 x 3 vectors of the space, on a linear box: the gradient with all other cosines removed."""
    shape, size = (2, 6, 5), 60
    mix = weights(size, 7, seed=5)
    x, v = weights(3, *shape).requires_grad_(), weights(3, 7, seed=6)
    estimator = zo.box_gradient.RowRGE(0.1, q=18, basis=zo.box_gradient.DCTBasis(3))
    grad = grad_by(lambda x: x.flatten(1) @ mix, estimator, x, v)
    cosines = dctn((v @ mix.T).view(3, *shape).numpy(), axes=(-2, -1), norm="ortho")
    cosines[..., 3:, :] = 0
    cosines[..., :, 3:] = 0
    expected = np.asarray(idctn(cosines, axes=(-2, -1), norm="ortho"))
    assert np.allclose(grad.numpy(), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shapes", [((2, 6, 5),), ((4,), (), (3, 3))])
def test_low_frequencies_are_orthonormal(shapes):
    vectors = zo.box_gradient.DCTBasis(3).vectors(shapes)
    assert vectors.shape[1] == sum(math.prod(shape) for shape in shapes)
    assert torch.allclose(vectors @ vectors.T, torch.eye(len(vectors)).double(), atol=1e-14)


def test_orthogonal_sets_are_orthonormal_and_uniform():
    """The mean of 20,000 first vectors is zero, their mean square 1/5: |z| < 4.5 for 10 numbers (1e-4)."""
    directions, factor = zo.box_gradient.RowRGE(1.0, q=5).draw(
        20000, ((5,),), torch.float64, zo.estimators.Key(3).generator()
    )
    products = torch.einsum("qrs,prs->rqp", directions, directions)
    assert torch.allclose(products, torch.eye(5).double().expand_as(products), atol=1e-12)
    assert factor == 5
    for moment, expected in ((directions[0], 0.0), (directions[0].square(), 0.2)):
        assert ((moment.mean(dim=0) - expected) / (moment.std(dim=0) / math.sqrt(20000))).abs().max() < 4.5


def test_an_unrolled_loop_of_network_and_box_is_what_autograd_finds():
    def step(x):
        return torch.sin(1.3 * x) + 0.2 * x.roll(1, dims=-1) * x

    def loss_of(solver):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        state, loss = weights(3, 4), 0.0
        for _ in range(4):
            state = solver(state + network(state))
            loss = loss + (state - 0.5).square().mean()
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])

    loss, truth = loss_of(step)
    solver = zo.differentiable(make_box(step, (4,)), zo.CGE(1e-4, central=True))
    again, grad = loss_of(solver)
    assert torch.equal(again, loss)
    # Truncation mu^2 / 6 |F'''| = 4e-9 a step, amplified by less than 10 over four steps.
    assert torch.allclose(grad, truth, rtol=0, atol=1e-7)
    assert truth.abs().max() > 0.1


def test_parameters_inside_the_box_are_an_input_that_rows_share():
    """`f(theta_rows, batch)`: autograd sums what each row finds for its copy of theta."""

    def device(theta, x):
        return torch.sin(theta[:, :3] * x) + theta[:, 3:].square().sum(dim=1, keepdim=True)

    specs = (ArraySpec("theta", shape=(5,)), ArraySpec("x", shape=(3,), differentiable=False))
    box = FromTorch(device, specs, (ArraySpec("y", shape=(3,)),))
    x, theta = weights(7, 3), weights(5, seed=2).requires_grad_()
    for solver in (zo.differentiable(box, zo.CGE(1e-5, central=True)), device):
        solver(theta.expand(len(x), -1), x).square().mean().backward()
        grad, theta.grad = theta.grad, None
        if solver is not device:
            estimate = grad
    assert torch.allclose(estimate, grad, rtol=1e-8, atol=1e-9)


# With a tangent
