"""Units: a tangent's gradient is the same whatever units a box takes its inputs and gives its outputs in."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from blackbox.errors import DefinitionError
from tests.zo.row_boxes import FromTorch, weights

INPUTS = torch.tensor([1e-6, 1.0, 1e6, 1e3], dtype=torch.float64)
OUTPUTS = torch.tensor([1e3, 1e-6, 1.0, 1e6], dtype=torch.float64)
ONES = torch.ones(4, dtype=torch.float64)
TANGENTS = {
    "student": lambda: student(),
    "kernel": lambda: zo.tangents.KernelTangent(),
}


def student() -> zo.tangents.StudentTangent:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    return zo.tangents.StudentTangent(network, batch=64, steps_per_step=30, learning_rate=1e-2)


def linear(x: Tensor) -> Tensor:
    return x @ weights(4, 4, seed=3).to(x)


def bent(x: Tensor) -> Tensor:
    return torch.tanh(0.5 * x @ weights(4, 4, seed=3).to(x)) + 0.3 * x.roll(1, dims=1)


def in_units(function, inputs: Tensor, outputs: Tensor) -> FromTorch:
    """The function as a box that takes `inputs` and gives `outputs` for what the function calls one."""
    return FromTorch(
        lambda x: outputs.to(x) * function(x / inputs.to(x)), (ArraySpec("x", (4,)),), (ArraySpec("y", (4,)),)
    )


def chain(call, inputs: Tensor, outputs: Tensor):
    """Two calls, with what stands around them in units of one."""

    def objective(network, batch):
        state = batch
        for _ in range(2):
            state = call((state + 0.5 * network(state)) * inputs.to(batch)) / outputs.to(batch)
        return (state - 0.5).square().mean(dim=1)

    return objective


def train(function, tangent, inputs: Tensor, outputs: Tensor, dtype, steps=8):
    """The gradients of some steps, with the weights moved in between, the true ones, and the errors."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)
    box = in_units(function, inputs, outputs)
    gradient = zo.TangentGradient(
        network,
        chain(box, inputs, outputs),
        boxes=[box],
        tangent=tangent,
        trust_policy=zo.tangents.TrustPolicy(check_every=None),
    )
    grads, true, errors = [], [], []
    for step in range(steps):
        batch = weights(6, 4, seed=step).to(dtype)
        loss = chain(function, ONES, ONES)(network, batch).mean()
        truth = torch.autograd.grad(loss, list(network.parameters()))
        network.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.TangentWarning)
            gradient.backward(batch)
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters()]).double())
        true.append(torch.cat([g.flatten() for g in truth]).double())
        errors.append(gradient.metrics().get("tangent_error"))
        with torch.no_grad():
            for p, g in zip(network.parameters(), truth, strict=True):  # the same way whatever was found
                p -= 0.05 * g
    return grads, true, errors


def off(grad: Tensor, expected: Tensor) -> float:
    return float((grad - expected).norm() / expected.norm())


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", TANGENTS)
def test_the_result_does_not_depend_on_the_units(kind):
    """Of a box that bends, where each tangent has errors of its own: the same ones, to 1 %."""
    plain, true, errors = train(bent, TANGENTS[kind](), ONES, ONES, torch.float64)
    scaled, _, scaled_errors = train(bent, TANGENTS[kind](), INPUTS, OUTPUTS, torch.float64)
    assert off(scaled[-1], plain[-1]) < 0.01
    assert scaled_errors[-1] == pytest.approx(errors[-1], rel=0.01)
    assert off(plain[-1], true[-1]) < 0.5


@pytest.mark.slow
def test_the_default_learns_a_box_in_any_units():
    """An output that is followed as the input of its name in one unit is not in another: close, not equal."""
    for inputs, outputs in ((ONES, ONES), (INPUTS, OUTPUTS), (INPUTS, ONES), (ONES, OUTPUTS)):
        grads, true, errors = train(bent, None, inputs, outputs, torch.float64)
        assert off(grads[-1], true[-1]) < 0.4
        assert max(errors[1:]) < 0.6


def test_channels_of_a_grid_may_have_units_of_their_own():
    """Polynomial stencils: exact on a local quadratic box whose channels differ by a factor of 1e9."""
    spec = ArraySpec("state", (2, 8))

    def step(z):
        u, v = z[:, :1], z[:, 1:]
        flux = (u * v).roll(1, dims=2) - 0.3 * (u * u).roll(-1, dims=2)
        return torch.cat([u + 0.1 * flux, 0.9 * v - 0.2 * u.roll(1, dims=2)], dim=1)

    def run(units):
        torch.manual_seed(0)
        network = nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular").double()
        box = FromTorch(lambda z: units * step(z / units), (spec,), (spec,))

        def objective(call, units):
            return lambda network, batch: (
                call((batch + 0.1 * network(batch)) * units).div(units).square().mean((1, 2))
            )

        gradient = zo.TangentGradient(
            network,
            objective(box, units),
            boxes=[box],
            tangent=zo.tangents.StencilTangent(degree=2, periodic=True, ridge=1e-12),
        )
        for seed in range(5):
            network.zero_grad()
            batch = weights(4, 2, 8, seed=seed)
            gradient.backward(batch)
        loss = objective(step, 1.0)(network, batch).mean()
        true = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])
        return off(torch.cat([p.grad.flatten() for p in network.parameters()]), true)

    for units in ([1.0, 1.0], [1e-6, 1e3], [1e3, 1e-6]):
        assert run(torch.tensor(units, dtype=torch.float64)[:, None]) < 0.01


def test_a_spec_may_give_the_units():
    """They are what the tangent is told, in the box's own units; what is not given is measured."""
    seen = []

    class Watching(zo.tangents.IdentityTangent):
        def see(self, rows):
            seen.append(rows)

    x, y = ArraySpec("x", (4,)), ArraySpec("y", (4,), scale=[1e-6, 1.0, 1e6, 1e3])
    box = FromTorch(bent, (x,), (y,))
    network = nn.Linear(4, 4).double()
    gradient = zo.TangentGradient(
        network, lambda n, b: box(n(b)).square().mean(dim=1), boxes=[box], tangent=Watching()
    )
    gradient.backward(weights(5, 4))
    assert torch.equal(seen[0].response_scale, INPUTS)
    assert replace(y, name="z").scale == y.scale == tuple(INPUTS.tolist())
    for scale in (0.0, [1.0, 2.0], float("nan")):
        with pytest.raises(DefinitionError, match="'x', scale: expected a positive number"):
            ArraySpec("x", (4,), scale=scale)


def test_units_are_kept_in_the_state(tmp_path):
    """What a resumed run finds is what an undisturbed one does, to the bit."""

    def make(network, box):
        return zo.TangentGradient(network, chain(box, INPUTS, OUTPUTS), boxes=[box])

    def run(resume):
        torch.manual_seed(0)
        network = nn.Linear(4, 4).double()
        box = in_units(bent, INPUTS, OUTPUTS)
        gradient, parts = make(network, box), []
        for step in range(6):
            if resume and step == 3:
                torch.save(gradient.state_dict(), tmp_path / "state.pt")
                gradient = make(network, box)
                gradient.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            network.zero_grad()
            gradient.backward(weights(5, 4, seed=step) * (10.0**step))
            parts.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
            parts.append(torch.tensor(gradient.metrics().get("tangent_error", 0.0)))
        return torch.cat([part.flatten() for part in parts])

    assert torch.equal(run(False), run(True))
