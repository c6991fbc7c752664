"""`ModelTangent` against autograd, and what tangents behind it learn of what the model leaves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typeguard import suppress_type_checks

import zo
from blackbox import ArraySpec
from simulators.wake_flow import WakeFlow
from simulators.wake_flow.staggered import start
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import CallPairs, ModelTangent

ANGLE, SPEED = ArraySpec("angle", ()), ArraySpec("speed", ())
LENGTH, KIND = ArraySpec("length", (), differentiable=False), ArraySpec("kind", (), "int64")


def pendulum(substeps: int):
    """Half a unit of time of a driven pendulum by semi-implicit Euler; inputs in an order of its own."""

    def advance(length: Tensor, angle: Tensor, kind: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        dt = 0.5 / substeps
        for _ in range(substeps):
            speed = speed - dt * (torch.sin(angle) / length + 0.1 * kind * speed)
            angle = angle + dt * speed
        return angle, speed

    return advance


def pendulum_box(substeps: int = 64) -> FromTorch:
    return FromTorch(pendulum(substeps), (LENGTH, ANGLE, KIND, SPEED), (ANGLE, SPEED))


def pairs_of(others: bool = True, rows: int = 6, probes: int = 3) -> tuple[CallPairs, tuple[Tensor, ...]]:
    z = weights(rows, 2)
    length, kind = weights(rows, seed=1).abs() + 0.5, torch.arange(rows) % 3
    d = weights(probes, rows, 2, seed=2)
    response, valid = torch.zeros_like(d), torch.ones(probes, rows, dtype=torch.bool)
    fixed = (length, None, kind, None) if others else ()
    pairs = CallPairs(
        (ANGLE, SPEED), (ANGLE, SPEED), z, d, response, valid, torch.zeros_like(z), others=fixed
    )
    return pairs, (length, kind)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def flat_grad(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def test_products_are_autograds_of_the_model_with_all_inputs_in_the_boxs_order():
    pairs, (length, kind) = pairs_of()
    tangent, v = ModelTangent(pendulum(2)), weights(6, 2, seed=3)
    pulled, forward = tangent.at(pairs).pull(v), tangent.at(pairs).push(pairs.d)
    for row in range(6):

        def of_row(z: Tensor, row: int = row) -> Tensor:
            return torch.stack(pendulum(2)(length[row], z[0], kind[row], z[1]))

        jacobian = torch.autograd.functional.jacobian(of_row, pairs.z[row])
        assert torch.allclose(pulled[row], v[row] @ jacobian, rtol=1e-12)
        assert torch.allclose(forward[:, row], pairs.d[:, row] @ jacobian.T, rtol=1e-12)
    assert tangent.at(pairs).push(pairs.d[:0]).shape == (0, 6, 2)


def test_products_go_through_a_solver_that_has_no_forward_mode():
    """The wake's advection interpolates; against differences of the float64 step."""
    step = WakeFlow(8).step
    velocity = start(step.channel, dtype=torch.float64).expand(2, -1, -1, -1) + 0.05 * weights(
        2, *step.channel.shape
    )
    reynolds = torch.tensor([150.0, 400.0]).double()
    spec, size = (ArraySpec("velocity", step.channel.shape),), velocity[0].numel()
    d, v = weights(2, 2, size, seed=1), weights(2, size, seed=2)
    valid = torch.ones(2, 2, dtype=torch.bool)
    z = velocity.flatten(1)
    pairs = CallPairs(spec, spec, z, d, d, valid, z, others=(None, reynolds))
    tangent = ModelTangent(step)
    forward = tangent.at(pairs).push(d)
    for pushed, change in zip(forward, d.view(2, *velocity.shape), strict=True):
        slope = (step(velocity + 1e-6 * change, reynolds) - step(velocity - 1e-6 * change, reynolds)) / 2e-6
        assert torch.allclose(pushed, slope.flatten(1), atol=1e-6)
    assert torch.allclose((forward * v).sum(-1), (d * tangent.at(pairs).pull(v)).sum(-1), rtol=1e-9)


@pytest.mark.parametrize("substeps", [64, 2])
def test_a_step_with_the_boxs_own_function_is_autograds_and_with_a_crude_one_near_it(substeps):
    """An integrator with steps 32 times as long is off by the order of that step, a quarter."""
    torch.manual_seed(0)
    box, network = pendulum_box(), nn.Linear(2, 2).double()
    batch = (weights(5, 2), weights(5, seed=1).abs() + 0.5, torch.arange(5) % 3)

    def objective_with(advance):
        def objective(network, batch):
            state, length, kind = batch
            for _ in range(3):
                force = network(state)
                state = torch.stack(
                    advance(length, state[:, 0] + force[:, 0], kind, state[:, 1] + force[:, 1]), dim=1
                )
            return state.square().sum(dim=1)

        return objective

    truth = objective_with(pendulum(64))(network, batch).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, list(network.parameters()))])
    errors = []
    for tangent in (ModelTangent(pendulum(substeps)), zo.SecantTangent(ModelTangent(pendulum(substeps)))):
        network.zero_grad()
        gradient = zo.ProbedGradient(
            network, objective_with(box), boxes=[box], tangent=tangent, probes=1, mu=1e-5
        )
        # beside its probe the base is in another matrix product, which some processors round otherwise
        torch.testing.assert_close(gradient.backward(batch), truth.detach(), rtol=1e-14, atol=0)
        errors.append(float((flat_grad(network) - expected).norm() / expected.norm()))
    if substeps == 64:
        assert errors[0] < 1e-12 and errors[1] < 1e-4  # of the order of mu
    else:
        assert 1e-3 < errors[0] < 0.25
        # One probe of two numbers leaves one direction to the model, which knows most of it.
        assert errors[1] < errors[0]


@pytest.mark.slow
def test_what_a_model_leaves_of_the_wake_is_learned_behind_it():
    """The wake by a solver at a tenth of the Reynolds number; probes see the rest.

    The gradient of a correction network over four steps, against autograd through the solver itself.
    """
    solver = WakeFlow(8, dt=0.5)
    step = solver.step

    def thick(velocity: Tensor, reynolds: Tensor) -> Tensor:
        return step(velocity, reynolds / 10)

    def objective_with(solver):
        def objective(network, batch):
            velocity, reynolds, target = batch
            for _ in range(4):
                velocity = solver(velocity + 0.1 * network(velocity), reynolds)
            return (velocity - target).square().flatten(1).mean(dim=1)

        return objective

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1)
        ).double()
    velocity = start(step.channel, dtype=torch.float64).expand(2, -1, -1, -1) + 0.1 * weights(
        2, *step.channel.shape
    )
    batch = (
        velocity,
        torch.tensor([150.0, 400.0]).double(),
        start(step.channel, dtype=torch.float64).expand(2, -1, -1, -1),
    )
    truth = objective_with(step)(network, batch).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, list(network.parameters()))])
    errors = {}
    for name, tangent, probes in (
        ("identity", zo.IdentityTangent(), 1),
        ("model", ModelTangent(thick), 1),
        ("local", zo.SecantTangent(), 8),
        ("both", zo.SecantTangent(ModelTangent(thick)), 8),
    ):
        network.zero_grad()
        gradient = zo.ProbedGradient(
            network, objective_with(solver), boxes=[solver], tangent=tangent, probes=probes, mu=1e-4
        )
        gradient.backward(batch)
        errors[name] = float((flat_grad(network) - expected).norm() / expected.norm())
    assert errors["model"] < errors["identity"]
    assert errors["both"] < 0.8 * min(errors["model"], errors["local"])


# Other shapes, and refusals


def test_boxes_without_other_inputs_and_in_another_precision():
    spec = ArraySpec("x", (2, 2), "float32")
    box = FromTorch(lambda x: torch.sin(2 * x), (spec,), (spec,))
    torch.manual_seed(0)
    network = nn.Linear(4, 4)
    dtypes = []

    def model(x: Tensor) -> Tensor:
        dtypes.append(x.dtype)
        return torch.sin(2 * x)

    batch = weights(5, 4).float()

    def loss_with(box):
        return lambda network, batch: box(network(batch).view(-1, 2, 2)).square().flatten(1).sum(1)

    gradient = zo.ProbedGradient(network, loss_with(box), boxes=[box], tangent=ModelTangent(model), probes=1)
    gradient.backward(batch)
    expected = torch.autograd.grad(loss_with(model)(network, batch).mean(), list(network.parameters()))
    assert torch.allclose(
        flat_grad(network), torch.cat([g.flatten() for g in expected]), rtol=1e-5, atol=1e-6
    )
    assert set(dtypes) == {torch.float32}


def test_a_models_own_weights_get_no_gradient_and_its_name_tells_it():
    layer = nn.Linear(2, 2).double()
    tangent = ModelTangent(lambda length, angle, kind, speed: tuple(layer(torch.stack([angle, speed], 1)).T))
    pairs, _ = pairs_of()
    assert torch.allclose(tangent.at(pairs).pull(torch.ones(6, 2).double()), layer.weight.sum(0).expand(6, 2))
    tangent.at(pairs).push(pairs.d)
    assert layer.weight.grad is None
    assert repr(ModelTangent(layer)) == "ModelTangent(Linear)" and "0x" not in repr(tangent)
    assert repr(copy.deepcopy(tangent)) == repr(tangent)
    assert tangent.state_dict() == {}


def no_graph(length, angle, kind, speed):
    return angle.detach(), speed.detach()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda length, angle, kind, speed: angle, r"expected .*\[\(6,\), \(6,\)\], got \[\(6,\)\]"),
        (lambda length, angle, kind, speed: (angle, None), r"got \[\(6,\), 'NoneType'\]"),
        (lambda length, angle, kind, speed: (angle[:3], speed), r"got \[\(3,\), \(6,\)\]"),
        (no_graph, r"ModelTangent\(no_graph\): expected outputs that follow the inputs"),
    ],
)
def test_models_that_do_not_fit(model, words):
    pairs, _ = pairs_of()
    with pytest.raises(zo.ConfigurationError, match=words):
        ModelTangent(model).at(pairs).pull(torch.ones(6, 2).double())
    with pytest.raises(zo.ConfigurationError, match=words):
        ModelTangent(model).at(pairs).push(pairs.d)


def test_a_model_must_be_a_function():
    with (
        suppress_type_checks(),
        pytest.raises(zo.ConfigurationError, match="expected a function of tensors, got 3"),
    ):
        ModelTangent(3)
