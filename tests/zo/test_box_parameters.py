"""A box's own parameters: a design vector that rows share, trained through it, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights

ROWS, STEPS = 8, 8
TRUE = (0.4, 1.2)
START = (0.1, 0.9)
CELLS = 12


def pendulum(theta: Tensor, state: Tensor) -> Tensor:
    """Drag (1/s) and length (m); angle and speed .2 s later, by five semi-implicit steps."""
    (drag, length), (angle, speed) = theta.unbind(dim=1), state.unbind(dim=1)
    for _ in range(5):
        speed = speed - 0.04 * (drag * speed + 9.81 / length * torch.sin(angle))
        angle = angle + 0.04 * speed
    return torch.stack([angle, speed], dim=1)


def rod(theta: Tensor, state: Tensor) -> Tensor:
    """Strengths of two sources in a ring that conducts heat, and cools the more the hotter it is."""
    sources = torch.zeros(len(state), CELLS, dtype=state.dtype)
    sources[:, [2, 7]] = theta
    conducted = state.roll(1, dims=1) - 2 * state + state.roll(-1, dims=1)
    return state + 0.2 * conducted + 0.1 * sources - 0.02 * state**3


SYSTEMS = {pendulum: (2,), rod: (CELLS,)}  # and the shape of a state


def make_box(system=pendulum) -> FromTorch:
    state = ArraySpec("state", SYSTEMS[system])
    return FromTorch(system, (ArraySpec("theta", (2,)), state), (state,))


def observed(system=pendulum) -> tuple[Tensor, Tensor]:
    """Where systems start, `(rows, *shape)`, and their true paths, `(rows, steps, *shape)`."""
    start = weights(ROWS, CELLS, seed=1)
    if system is pendulum:
        start = torch.stack([torch.linspace(0.3, 1.5, ROWS).double(), 0.5 * start[:, 0]], dim=1)
    states, theta = [start], torch.tensor(TRUE).double().expand(ROWS, -1)
    for _ in range(STEPS):
        states.append(system(theta, states[-1]))
    return start, torch.stack(states[1:], dim=1)


class Design(nn.Module):
    """The parameters, a copy for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(START).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def misfit(box):
    """How far the paths with the network's parameters are from those that were observed."""

    def objective(network, batch):
        start, path = batch
        state, loss = start, torch.zeros(len(start)).double()
        for step in range(path.shape[1]):
            state = box(network["design"](start), state)
            if "corrector" in network:
                state = state + 0.1 * network["corrector"](state)
            loss = loss + (state - path[:, step]).square().mean(dim=1)
        return loss

    return objective


def make_network(corrector: bool = False) -> nn.ModuleDict:
    torch.manual_seed(0)
    parts = {"design": Design()}
    if corrector:
        parts["corrector"] = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    return nn.ModuleDict(parts)


def true_gradient(network) -> Tensor:
    loss = misfit(pendulum)(network, observed()).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def flat_grad(network) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("evaluator", ["auto", "loop"])
def test_loss_gradient_stacks_a_module_that_gives_its_parameter(evaluator):
    """Without a warning, that is without falling back to the loop."""
    network, box = make_network(), make_box()
    zo.LossGradient(network, misfit(box), zo.CGE(1e-6), evaluator=evaluator).backward(observed())
    assert torch.allclose(flat_grad(network), true_gradient(network), rtol=1e-3)


def fit(system, start) -> tuple[float, Tensor]:
    """The last loss over the first, and the parameters found; `start` makes what gives loss and gradient."""
    network, box, batch, losses = make_network(), make_box(system), observed(system), []
    optimizer = torch.optim.Adam(network.parameters(), 0.08)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    backward = start(network, box)
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(float(backward(batch).detach()))
        optimizer.step()
        schedule.step()
    return losses[-1] / losses[0], network["design"].theta.detach()
