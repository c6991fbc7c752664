"""What a script of one's own takes of the library: on a GPU, or on one that is not there, as on a CPU."""

import io

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from tests.gpu.test_runs import NEAR, ROUGH, Bent, Mixed
from tests.zo.learners import learner

ROWS = torch.linspace(-1, 1, 60, dtype=torch.float64).sin().view(20, 3)
KINDS = torch.arange(20) % 3
GRID = ArraySpec("u", shape=(1, 16))


class Carried(Bent):
    """A wave on a ring that moves on and steepens."""

    inputs = outputs = (GRID,)

    def evaluate_rows(self, u):
        return super().evaluate_rows(0.5 * (u + u[..., [-1, *range(15)]]))


def small_network(size: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(size, 5), nn.Tanh(), nn.Linear(5, size)).double()


def grads(network: nn.Module) -> Tensor:
    return torch.cat([weight.grad.flatten().cpu() for weight in network.parameters()])


def read_again(state):
    """From a file, to the CPU."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


BOXES = {
    "cge": lambda box: zo.differentiable(box, zo.CGE(1e-4, central=True)),
    "rge": lambda box: zo.differentiable(box, zo.RGE(1e-3, q=3), seed=0),
    "cosines": lambda box: zo.differentiable(
        box, zo.box_gradient.RowRGE(1e-3, q=2, basis=zo.box_gradient.DCTBasis(2, axes=1)), seed=0, max_rows=7
    ),
    "mlp": lambda box: zo.differentiable(
        box, tangent=learner(zo.tangents.MLPTangent, 8, first_steps=20, steps_per_step=2)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "low rank")) for name in BOXES],
)
def test_a_differentiable_box_goes_on_from_a_file(name, gpu):
    def trained(device) -> Tensor:
        network, found = small_network().to(device), []
        box = BOXES[name](Mixed(1e9))
        for step in range(4):
            if step == 2:
                kept = read_again(box.state_dict())
                box = BOXES[name](Mixed(1e9))
                box.load_state_dict(kept)
            network.zero_grad()
            box(network(ROWS.to(device)), KINDS.to(device)).square().mean().backward()
            found.append(grads(network))
        return torch.stack(found)

    expected = trained("cpu")
    with gpu:
        found = trained("cuda")
    tolerance = ROUGH if name == "mlp" and not gpu.pretended else NEAR
    torch.testing.assert_close(found, expected, **tolerance)


SLOW = {"automatic", "grid", "stencil", "equation"}
TANGENTS = {
    "automatic": lambda: zo.tangents.AutoTangent(Carried()),
    "grid": lambda: learner(
        zo.tangents.GridTangent, 4, first_steps=20, steps_per_step=2, reach=2, periodic=True
    ),
    "stencil": lambda: zo.tangents.StencilTangent(2),
    "equation": lambda: zo.tangents.EquationTangent(),
    "kernel": lambda: zo.tangents.KernelTangent(),
    "student": lambda: zo.tangents.StudentTangent(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Unflatten(1, (1, 16)))
    ),
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TANGENTS],
)
def test_tangents_that_learned_from_answers_on_the_cpu_go_on_on_the_gpu_and_from_a_file(name, gpu):
    asked = torch.linspace(-2, 2, 60 * 16, dtype=torch.float64).cos().view(60, 1, 16)
    batch = torch.linspace(-1, 1, 6 * 16, dtype=torch.float64).sin().view(6, 16)

    def made(network, box):
        tangent = TANGENTS[name]()
        if hasattr(tangent, "fit"):
            tangent.fit(asked, box(asked), steps=5)
        policy = zo.tangents.Limits(check_every=3)

        def objective(network, rows):
            state = network(rows)[:, None]
            return (box(box(state)) - 0.2).square().flatten(1).mean(dim=1)

        settings = {"boxes": [box], "seed": 2, "limits": policy}
        return zo.TangentGradient(network, objective, tangent=tangent, **settings)

    def trained(device) -> Tensor:
        network, box, found = small_network(16).to(device), Carried(), []
        gradient = made(network, box)
        for step in range(4):
            if step == 2:
                kept = read_again(gradient.state_dict())
                gradient = made(network, box)
                gradient.load_state_dict(kept)
            network.zero_grad()
            gradient.backward(batch.to(device))
            found.append(grads(network))
        return torch.stack(found)

    expected = trained("cpu")
    with gpu:
        found = trained("cuda")
    torch.testing.assert_close(found, expected, **(NEAR if gpu.pretended else ROUGH))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", zo.pruning.METHODS)
def test_weights_are_scored_as_on_a_cpu(method, gpu):
    def scored(device):
        network = small_network().to(device)
        objective = zo.OutputLoss(lambda output, target: (output - target).square().mean(dim=1))
        batch = ROWS.to(device), ROWS.to(device).roll(1, 0)
        kept = {"q": 6, "evaluator": "stacked"}
        found = zo.pruning.scores(method, network, objective, batch, dense=["*.bias"], **kept)
        return found.values, zo.pruning.kept_weights(found, 0.5)

    expected = scored("cpu")
    with gpu:
        found = scored("cuda")
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-9)
    assert torch.equal(found[1], expected[1])


def test_the_best_weights_are_kept_and_put_back_and_read_from_a_file(gpu):
    def trained(device):
        network = small_network().to(device)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        batch = ROWS.to(device)

        def error():
            return (network(batch) - batch.roll(1, 0)).square().mean(dim=1)

        held_out = zo.KeepBest(network, error, every=1)
        for step in range(6):
            assert held_out.before_step()
            optimizer.zero_grad()
            (error().mean() * (1 if step < 3 else -1)).backward()
            optimizer.step()
        again = zo.KeepBest(network, error, every=1)
        again.load_state_dict(read_again(held_out.state_dict()))
        told = again.restore()
        assert all(weight.device.type == device for weight in network.parameters())
        return again.best_step, told, torch.cat([w.detach().flatten().cpu() for w in network.parameters()])

    step, told, weights = trained("cpu")
    with gpu:
        found = trained("cuda")
    assert found[:2] == (step, told) and 0 < step < 6
    torch.testing.assert_close(found[2], weights, **NEAR)


@pytest.mark.slow
def test_states_that_a_user_reads_to_the_gpu_go_on(gpu):
    """By torch.load(..., map_location="cuda"), which moves what belongs on the CPU too."""
    batch = ROWS

    def moved(state, device):
        return zo.batches.map_tensors(lambda tensor: tensor.to(device), state)

    def trained(device):
        network, box = small_network().to(device), Bent()

        def made():
            return zo.TangentGradient(
                network,
                lambda network, rows: (box(network(rows)) - 0.2).square().mean(dim=1),
                boxes=[box],
                tangent=zo.tangents.KernelTangent(),
                seed=2,
            )

        held_out = zo.KeepBest(network, lambda: network(batch.to(device)).square().mean(dim=1), every=1)
        gradient = made()
        for step in range(3):
            held_out.before_step()
            if step == 2:
                kept, best = gradient.state_dict(), held_out.state_dict()
                gradient = made()
                gradient.load_state_dict(moved(kept, device))
                held_out.load_state_dict(moved(best, device))
            network.zero_grad()
            gradient.backward(batch.to(device))
            with torch.no_grad():
                for weight in network.parameters():
                    weight -= 0.1 * weight.grad
        held_out.restore()
        return grads(network)

    expected = trained("cpu")
    with gpu:
        found = trained("cuda")
    torch.testing.assert_close(found, expected, **NEAR)
