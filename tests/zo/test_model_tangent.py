"""`ModelTangent` against autograd."""

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


def pairs_of(rows: int = 6) -> tuple[CallPairs, tuple[Tensor, ...]]:
    z = weights(rows, 2)
    length, kind = weights(rows, seed=1).abs() + 0.5, torch.arange(rows) % 3
    fixed = (length, None, kind, None)
    pairs = CallPairs((ANGLE, SPEED), (ANGLE, SPEED), z, torch.zeros_like(z), others=fixed)
    return pairs, (length, kind)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def flat_grad(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def test_products_are_autograds_of_the_model_with_all_inputs_in_the_boxs_order():
    pairs, (length, kind) = pairs_of()
    tangent, v, d = ModelTangent(pendulum(2)), weights(6, 2, seed=3), weights(6, 2, seed=2)
    pulled, forward = tangent.at(pairs).pull(v), tangent.at(pairs).push(d)
    for row in range(6):

        def of_row(z: Tensor, row: int = row) -> Tensor:
            return torch.stack(pendulum(2)(length[row], z[0], kind[row], z[1]))

        jacobian = torch.autograd.functional.jacobian(of_row, pairs.z[row])
        assert torch.allclose(pulled[row], v[row] @ jacobian, rtol=1e-12)
        assert torch.allclose(forward[row], d[row] @ jacobian.T, rtol=1e-12)


def test_products_go_through_a_solver_that_has_no_forward_mode():
    """The wake's advection interpolates; against differences of the float64 step."""
    step = WakeFlow(8).step
    velocity = start(step.channel, dtype=torch.float64).expand(2, -1, -1, -1) + 0.05 * weights(
        2, *step.channel.shape
    )
    reynolds = torch.tensor([150.0, 400.0]).double()
    spec, size = (ArraySpec("velocity", step.channel.shape),), velocity[0].numel()
    d, v = weights(2, size, seed=1), weights(2, size, seed=2)
    z = velocity.flatten(1)
    pairs = CallPairs(spec, spec, z, z, others=(None, reynolds))
    tangent = ModelTangent(step)
    forward, change = tangent.at(pairs).push(d), d.view(velocity.shape)
    slope = (step(velocity + 1e-6 * change, reynolds) - step(velocity - 1e-6 * change, reynolds)) / 2e-6
    assert torch.allclose(forward, slope.flatten(1), atol=1e-6)
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
    tangent = ModelTangent(pendulum(substeps))
    gradient = zo.TangentGradient(network, objective_with(box), boxes=[box], tangent=tangent)
    torch.testing.assert_close(gradient.backward(batch), truth.detach(), rtol=1e-14, atol=0)
    error = float((flat_grad(network) - expected).norm() / expected.norm())
    assert error < 1e-12 if substeps == 64 else 1e-3 < error < 0.25


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

    gradient = zo.TangentGradient(network, loss_with(box), boxes=[box], tangent=ModelTangent(model))
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
    tangent.at(pairs).push(pairs.z)
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
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        ModelTangent(model).at(pairs).pull(torch.ones(6, 2).double())
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        ModelTangent(model).at(pairs).push(pairs.z)


def test_a_model_must_be_a_function():
    with (
        suppress_type_checks(),
        pytest.raises(zo.errors.ConfigurationError, match="expected a function of tensors, got 3"),
    ):
        ModelTangent(3)
