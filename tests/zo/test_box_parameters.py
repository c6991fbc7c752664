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
@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
@pytest.mark.parametrize("corrector", [False, True], ids=["design alone", "and a network"])
def test_full_rank_probes_give_autograds_gradient_of_the_parameters(evaluator, corrector):
    network, box = make_network(corrector), make_box()
    gradient = zo.ProbedGradient(
        network,
        misfit(box),
        boxes=[box],
        tangent=zo.SecantTangent(cut=1e-6),
        probes=6,
        mu=1e-6,
        evaluator=evaluator,
    )
    gradient.backward(observed())
    truth = true_gradient(network)
    assert torch.allclose(flat_grad(network), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


def test_differentiable_gives_it_too():
    network = make_network(corrector=True)
    solver = zo.differentiable(make_box(), zo.RowRGE(1e-6, q=4), tangent=zo.SecantTangent(cut=1e-6), seed=0)
    misfit(solver)(network, observed()).mean().backward()
    truth = true_gradient(network)
    assert torch.allclose(flat_grad(network), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


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


@pytest.mark.parametrize(
    ("system", "tangent", "probes"),
    [
        (rod, zo.LowRankTangent(), 2),
        pytest.param(pendulum, zo.SecantTangent(zo.LowRankTangent()), 4, marks=pytest.mark.slow),
    ],
    ids=["memory", "local secant"],
)
def test_parameters_of_a_known_system_are_found_from_its_paths(system, tangent, probes):
    """The loss falls a hundred times: a memory where they act the same way in all states, else a secant."""

    def start(network, box):
        return zo.ProbedGradient(network, misfit(box), boxes=[box], tangent=tangent, probes=probes).backward

    ratio, theta = fit(system, start)
    assert ratio < 1e-2
    assert torch.allclose(theta, torch.tensor(TRUE).double(), rtol=0.1)


@pytest.mark.slow
def test_differentiable_finds_them_with_two_directions_a_row():
    """Of the 14 dimensions that theta and the state have."""

    def start(network, box):
        solver = zo.differentiable(box, zo.RowRGE(1e-3, q=2), tangent=zo.LowRankTangent(), seed=0)

        def backward(batch):
            loss = misfit(solver)(network, batch).mean()
            loss.backward()
            return loss

        return backward

    ratio, theta = fit(rod, start)
    assert ratio < 1e-2
    assert torch.allclose(theta, torch.tensor(TRUE).double(), rtol=0.1)


# A parameter that is read where stacked probes do not move it


class Bare(nn.Module):
    """Gives no parameter: the objective reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(START).double())
        self.corrector = nn.Linear(2, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.corrector(x)


def bare_misfit(box, penalty: float = 0.0, read: bool = True):
    def objective(network, batch):
        start, path = batch
        theta = (network.theta if read else torch.tensor(START).double()).expand(len(start), -1)
        state = box(theta, network(start))
        return (state - path[:, 0]).square().mean(dim=1) + penalty * network.theta.square().sum()

    return objective


def bare(evaluator: str, **settings):
    torch.manual_seed(0)
    network, box = Bare(), make_box()
    gradient = zo.ProbedGradient(
        network,
        bare_misfit(box, **settings),
        boxes=[box],
        tangent=zo.SecantTangent(cut=1e-6),
        probes=5,
        mu=1e-6,
        evaluator=evaluator,
    )
    loss = bare_misfit(pendulum, **settings)(network, observed()).mean()
    truth = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, materialize_grads=True)
    return network, box, gradient, torch.cat([g.flatten() for g in truth])


def test_a_parameter_read_outside_a_forward_is_refused_when_stacked():
    network, box, gradient, _ = bare("stacked")
    with pytest.raises(zo.errors.TangentError) as caught:
        gradient.backward(observed())
    assert all(word in str(caught.value) for word in ("forward", "expand(len(x), -1)", "evaluator='loop'"))
    assert network.theta.grad is None
    assert torch.equal(network.theta.detach(), torch.tensor(START).double())
    assert box.ledger.rows_asked == 6 * ROWS  # the check asked for none


def test_a_parameter_read_outside_a_forward_is_right_in_the_loop():
    network, _, gradient, truth = bare("loop")
    gradient.backward(observed())
    assert truth[:2].abs().min() > 1e-3
    assert torch.allclose(flat_grad(network), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


def test_a_penalty_on_the_parameters_is_no_reason_to_refuse():
    """It does not go through a box: autograd has it."""
    network, _, gradient, truth = bare("stacked", penalty=0.3, read=False)
    gradient.backward(observed())
    assert torch.allclose(truth[:2], 0.6 * torch.tensor(START).double())
    assert torch.allclose(flat_grad(network), truth, rtol=0, atol=1e-5 * float(truth.abs().max()))


@pytest.mark.parametrize("first", [0, 1])
def test_the_check_is_made_once_and_leaves_no_trace(first):
    """Buffers and random state after the first step are those without it."""
    network, box = make_network(corrector=True), make_box()
    network["corrector"].append(nn.BatchNorm1d(2).double())
    network["corrector"].append(nn.Dropout(0.5))
    gradient = zo.ProbedGradient(network, misfit(box), boxes=[box], tangent=zo.LowRankTangent(), probes=1)
    gradient.counts.steps = first  # at the first step alone the objective is evaluated once more
    calls = []
    network["design"].register_forward_hook(lambda module, args, result: calls.append(len(result)))
    torch.manual_seed(3)
    gradient.backward(observed())
    assert len(calls) == STEPS * (3 if first == 0 else 2)
    assert int(network["corrector"][3].num_batches_tracked) == STEPS
    after = torch.rand(1)
    torch.manual_seed(3)
    misfit(pendulum)(network, observed())
    assert torch.equal(after, torch.rand(1))
