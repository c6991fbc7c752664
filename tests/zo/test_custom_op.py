"""`zo.box_gradient.custom_op`: one node of a compiled graph, with the bits of `zo.differentiable`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec, BlackBoxFunction
from blackbox.errors import InputError, RowFailedError
from zo.errors import ConfigurationError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script`")


class Pump(BlackBoxFunction):
    """Two outputs with a derivative and one without, from two inputs with and one without."""

    inputs = (ArraySpec("x", (3,)), ArraySpec("gain", ()), ArraySpec("k", (), "int64"))
    outputs = (ArraySpec("y", (2,)), ArraySpec("n", (), "int64"), ArraySpec("z", (), "float32"))

    def evaluate_rows(self, x: Any, gain: Any, k: Any) -> Any:
        if (x > 50).any():
            raise ValueError("nine")
        y = np.stack([np.sin(x).sum(1) * gain, (x**2).sum(1) + k], 1)
        return y, k + 1, np.cos(x[:, 0]).astype("f4")


class Wave(BlackBoxFunction):
    """One input, one output."""

    inputs = (ArraySpec("x", (3,)),)
    outputs = (ArraySpec("y", (3,)),)

    def evaluate_rows(self, x: Any) -> Any:
        return np.sin(x) * x[:, ::-1]


def pump_inputs(*leading: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn((*leading, 3), generator=random, dtype=dtype).requires_grad_()
    gain = torch.rand(leading, generator=random, dtype=dtype).requires_grad_()
    return x, gain, torch.ones(leading, dtype=torch.int64)


ESTIMATORS = {
    "cge": lambda: dict(estimator=zo.CGE(mu=1e-4, central=True)),
    "directions": lambda: dict(estimator=zo.box_gradient.RowRGE(mu=1e-4, q=3)),
    "tangent": lambda: dict(tangent=zo.tangents.KernelTangent()),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,)])
@pytest.mark.parametrize("recorded", [False, True])
def test_torch_s_own_check_of_operators(leading, recorded):
    solver = zo.differentiable(Pump(), zo.CGE(mu=1e-4), seed=0)
    zo.box_gradient.custom_op(solver, "tests::checked")
    # Recorded calls have numbers, so that no two of them are equal, as the check of compiled ones wants.
    some = ("test_schema", "test_autograd_registration", "test_faketensor")
    checks = some if recorded else (*some, "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        torch.ops.tests.checked.default, (*pump_inputs(*leading), recorded), test_utils=checks
    )


def loss_of(solve: Callable[..., Any], network: nn.Module) -> Callable[..., Tensor]:
    def loss(x: Tensor, gain: Tensor, k: Tensor) -> Tensor:
        y, n, z = solve(network(x), gain, k)
        again, _, _ = solve(torch.tanh(network(x)), gain, k)
        return (y * again).square().mean() + (z * n).mean()

    return loss


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("how", ["plain", "eager", "aot_eager"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_steps_have_the_bits_of_the_box_made_differentiable(how, estimator):
    torch.manual_seed(0)
    start = nn.Linear(3, 3).double()

    def train(made: Callable[[zo.box_gradient.DifferentiableBox], Callable[..., Any]], compiled: bool) -> Any:
        torch._dynamo.reset()
        solver = zo.differentiable(Pump(), **ESTIMATORS[estimator](), seed=3)
        network = copy.deepcopy(start)
        loss = loss_of(made(solver), network)
        run = torch.compile(loss, backend=how, fullgraph=True) if compiled else loss
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        losses = []
        for step in range(3):
            x, gain, k = pump_inputs(4)
            optimizer.zero_grad()
            x = (x.detach() + step).requires_grad_()
            value = run(x, gain, k)
            value.backward()
            optimizer.step()
            losses.append([value.detach(), x.grad, gain.grad])
        with torch.no_grad():
            run(*pump_inputs(4))
        return [losses, list(network.parameters())], solver.counts

    expected, spent = train(lambda solver: solver, False)
    results, counted = train(zo.box_gradient.custom_op, how != "plain")
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    assert counted == spent and spent.calls == 6


def test_functional_transforms():
    solver = zo.differentiable(Wave(), zo.CGE(mu=1e-4, central=True), seed=0)
    solve = zo.box_gradient.custom_op(solver)
    x = torch.randn(5, 3, dtype=torch.float64)
    cotangent = torch.randn(5, 3, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    expected = solver(leaf)
    result = torch.func.vjp(solve, x)
    assert torch.equal(result[0], expected)
    assert torch.equal(result[1](cotangent)[0], torch.autograd.grad(expected, leaf, cotangent)[0])
    (wanted,) = torch.autograd.grad(solver(leaf).square().sum(), leaf)
    assert torch.equal(torch.func.grad(lambda x: solve(x).square().sum())(x), wanted)


def test_batches_of_other_sizes_do_not_compile_anew_for_ever():
    solve = zo.box_gradient.custom_op(zo.differentiable(Wave(), zo.CGE(mu=1e-4), seed=0))
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: solve(2 * x), backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (2, 3, 5, 8):
        x = torch.randn(rows, 3)
        assert torch.equal(compiled(x), solve(2 * x)) and compiled(x).dtype == torch.float32


def test_numpy_arrays_and_tensors_without_gradient_are_values():
    solver = zo.differentiable(Wave(), zo.CGE(mu=1e-4), seed=0)
    solve = zo.box_gradient.custom_op(solver)
    x = np.ones((2, 3))
    assert isinstance(solve(x), np.ndarray) and np.array_equal(solve(x), Wave()(x))
    assert not solve(torch.ones(2, 3)).requires_grad and solver.counts.calls == 0


def test_a_name_that_is_taken_here_is_replaced():
    x = torch.ones(1, 3)
    for box in (Wave(), Wave()):
        solve = zo.box_gradient.custom_op(zo.differentiable(box, zo.CGE(mu=1e-4)), "tests::again")
        assert torch.equal(solve(x), torch.as_tensor(Wave()(x.numpy()))) and box.ledger.rows_run == 1


def test_failed_rows_and_wrong_shapes_are_the_box_s_own_errors():
    solve = zo.box_gradient.custom_op(zo.differentiable(Pump(), zo.CGE(mu=1e-4)))
    x, gain, k = pump_inputs(4)
    with pytest.raises(RowFailedError, match="nine"):
        solve(x + 90, gain, k)
    with pytest.raises(InputError, match=r"expected \(\.\.\., 3\)"):
        solve(x[:, :2], gain, k)


@suppress_type_checks
def wrongly(solver: Any, name: Any = None) -> None:
    zo.box_gradient.custom_op(solver, name)


def test_what_it_refuses():
    solver = zo.differentiable(Wave(), zo.CGE(mu=1e-4))
    with pytest.raises(
        ConfigurationError, match=r"custom_op, solver: expected what zo\.differentiable gives"
    ):
        wrongly(Wave())
    for name in ("pump", "a::b::c", "a b::c", 3):
        with pytest.raises(ConfigurationError, match="custom_op, name"):
            wrongly(solver, name)
    x = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(zo.box_gradient.custom_op(solver)(x).square().sum(), x, create_graph=True)[
        0
    ]
    with pytest.raises(zo.errors.DerivativeError, match="double backward"):
        gradient.square().sum().backward()
