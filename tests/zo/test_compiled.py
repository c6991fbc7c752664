"""`zo.differentiable` in a loss or a step that is compiled: the bits of the same code as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec, BlackBoxFunction

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),  # the compiler's own
]
SOLVERS: dict[str, Any] = {
    "kernel": lambda: {"tangent": zo.tangents.KernelTangent()},
    "cge": lambda: {"estimator": zo.CGE(mu=1e-4, central=True)},
}


class Pump(BlackBoxFunction):
    """Two outputs with a derivative and one without, from two inputs with and one without."""

    inputs = (ArraySpec("x", (3,)), ArraySpec("gain", ()), ArraySpec("k", (), "int64"))
    outputs = (ArraySpec("y", (2,)), ArraySpec("n", (), "int64"), ArraySpec("z", (), "float32"))

    def evaluate_rows(self, x: Any, gain: Any, k: Any) -> Any:
        """All rows."""
        y = np.stack([np.sin(x).sum(1) * gain, (x**2).sum(1) + k], 1)
        return y, k + 1, np.cos(x[:, 0]).astype("f4")


def trained(compiled: str, solver_of: str) -> tuple[list[Tensor], Any, int]:
    """The losses of a few steps and the weights behind them, the counts, and the rows of the box."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    box = Pump()
    solver = zo.differentiable(box, **SOLVERS[solver_of](), seed=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)

    def loss_of(x: Tensor) -> Tensor:
        state = network(x)
        for _ in range(2):
            y, n, z = solver(state, gain=state[:, 0].exp(), k=torch.ones(len(state), dtype=torch.int64))
            state = state + 0.1 * torch.cat([y, z[:, None] * n[:, None]], 1)
        return state.square().mean()

    loss = torch.compile(loss_of, backend="eager") if compiled == "loss" else loss_of

    def step_of(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        optimizer.step()
        return value.detach()

    step = torch.compile(step_of, backend="eager") if compiled == "step" else step_of
    draws = torch.Generator().manual_seed(1)
    losses = [step(torch.randn(4, 3, generator=draws, dtype=torch.float64)) for _ in range(4)]
    weights = [weight.detach().clone() for weight in network.parameters()]
    return [*losses, *weights], solver.counts, box.ledger.rows_run


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("compiled", ["loss", pytest.param("step", marks=pytest.mark.slow)])
def test_a_compiler_does_not_look_into_a_box(compiled: str, solver: str) -> None:
    """It traced what tangents learn, which took a minute and ended at other numbers."""
    torch.compiler.reset()
    found, expected = trained(compiled, solver), trained("nothing", solver)
    torch.compiler.reset()
    assert all(torch.equal(one, other) for one, other in zip(found[0], expected[0], strict=True))
    assert found[1:] == expected[1:]
