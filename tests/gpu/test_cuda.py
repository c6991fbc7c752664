"""Estimators, evaluators, tangents and boxes on a GPU: right, and the same bits each time.

`pytest -m gpu` runs them on one; without it the same tests run on the CPU.
"""

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zo
from blackbox import ArraySpec
from blackbox.adapters import TorchModule
from blackbox.wrappers import Parallel
from simulators.wake_flow import WakeFlow
from tests.gpu.conftest import needs_gpu
from zo.estimators import Coordinates
from zo.evaluators import Step

STATE = ArraySpec("state", (4,))
BATCH = torch.linspace(-2, 2, 12 * 192).sin().view(12, 3, 8, 8), torch.arange(12) % 5
ESTIMATORS = {
    "cge": zo.CGE(5e-3, sparsity=zo.RandomCoordinates(48)),
    "central cge": zo.CGE(5e-3, sparsity=zo.RandomCoordinates(32), central=True),
    "rge": zo.RGE(5e-3, q=8, distribution="rademacher"),
}
OBJECTIVE = zo.OutputLoss(lambda output, target: F.cross_entropy(output, target, reduction="none"))


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.Tanh()),
        *(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.SiLU()),
        *(nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(6, 5)),
    )


def grads(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().cpu() for p in network.parameters() if p.grad is not None])


def estimated(estimator, evaluator, device, dtype=torch.float32, steps=1) -> Tensor:
    """What some steps leave in `.grad`."""
    network = make_network().to(device, dtype)
    batch = BATCH[0].to(device, dtype), BATCH[1].to(device)
    gradient = zo.LossGradient(network, OBJECTIVE, estimator, evaluator=evaluator, seed=3, chunk=16)
    for _ in range(steps):
        network.zero_grad()
        gradient.backward(batch)
    if isinstance(estimator, zo.CGE):
        assert evaluator in repr(gradient).lower()
    return grads(network)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_those_of_float64_on_a_cpu(name, evaluator, device):
    truth = estimated(ESTIMATORS[name], "loop", torch.device("cpu"), torch.float64)
    found = estimated(ESTIMATORS[name], evaluator, device)
    # losses of order one, rounded to 1e-7, over a mu of 5e-3; of directions each carries it to all weights
    assert (found.double() - truth).norm() < 2e-3 * truth.norm()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "evaluator", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("loop", "stacked")), "difference"]
)
@pytest.mark.parametrize("name", ["cge", "rge"])
def test_two_runs_have_the_same_bits(name, evaluator, device):
    found = [estimated(ESTIMATORS[name], evaluator, device, steps=3) for _ in range(2)]
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_a_graph_gives_the_bits_of_what_it_is_of(training, device):
    def changes(evaluator, device, dtype=torch.float32):
        network = make_network().train(training).to(device, dtype)
        batch = BATCH[0].to(device, dtype), BATCH[1].to(device)
        parameters = zo.estimators.Parameters(network)
        indices = torch.arange(0, parameters.size, 3)
        queries = Coordinates(indices, torch.full((len(indices),), 5e-3, dtype=dtype))
        base = OBJECTIVE(network, batch)
        step = Step(network, parameters, OBJECTIVE, batch, len(base))
        return evaluator.begin(step, base)(queries).cpu()

    with torch.no_grad():
        truth = changes(zo.evaluators.Difference(), torch.device("cpu"), torch.float64)
        found = [
            changes(zo.evaluators.Difference(4, graphs=graphs), device) for graphs in (False, False, True)
        ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - truth).norm() < 2e-3 * truth.norm()


@pytest.mark.slow
def test_what_is_resumed_has_the_bits_of_what_is_not(device):
    network, batch = make_network().to(device), tuple(each.to(device) for each in BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    gradient = zo.LossGradient(network, OBJECTIVE, ESTIMATORS["cge"], seed=3)
    kept = None
    for step in range(4):
        if step == 2:
            kept = copy.deepcopy((network.state_dict(), optimizer.state_dict(), gradient.state_dict()))
        optimizer.zero_grad()
        gradient.backward(batch)
        optimizer.step()
    assert kept is not None
    again = make_network().to(device)
    other = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    resumed = zo.LossGradient(again, OBJECTIVE, ESTIMATORS["cge"], seed=3)
    again.load_state_dict(kept[0])
    other.load_state_dict(kept[1])
    resumed.load_state_dict(kept[2])
    for _ in range(2):
        other.zero_grad()
        resumed.backward(batch)
        other.step()
    for found, expected in zip(again.parameters(), network.parameters(), strict=True):
        assert torch.equal(found, expected)


class Frozen(nn.Module):
    """What a box computes."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(state * torch.arange(1, 5, device=state.device) + state.roll(1, -1))


def through(box):
    def objective(network, batch):
        state, loss = batch, 0.0
        for _ in range(3):
            state = box(state + network(state))
            loss = loss + (state - 0.25).square().mean(dim=1)
        return loss

    return objective


def small_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))


def test_a_box_on_the_cpu_stands_behind_a_network_on_a_gpu(device):
    box = TorchModule(Frozen(), [STATE], [STATE], device="cpu")
    batch = torch.linspace(-1, 1, 20).view(5, 4)
    truth = small_network().double()
    through(Frozen())(truth, batch.double()).mean().backward()
    for evaluator in ("loop", "stacked"):
        network = small_network().to(device)
        gradient = zo.LossGradient(network, through(box), zo.CGE(1e-3, central=True), evaluator=evaluator)
        gradient.backward(batch.to(device))
        assert all(parameter.grad.device == device for parameter in network.parameters())
        assert (grads(network).double() - grads(truth)).norm() < 1e-3 * grads(truth).norm()


def test_threads_of_parallel_answer_in_order_on_whatever_stream(device):
    box = TorchModule(Frozen(), [STATE], [STATE], device=str(device))
    rows = torch.linspace(-3, 3, 4 * 37).view(37, 4).to(device)
    expected = torch.cat([box(block) for block in rows.split(2)])
    with ThreadPoolExecutor(4) as executor:
        shared = Parallel(box, executor, block=2)
        for _ in range(5):
            if device.type == "cuda":
                own = torch.cuda.Stream(device)
                own.wait_stream(torch.cuda.current_stream(device))
                with torch.cuda.stream(own):  # what threads compute must be done before it is read
                    moved = rows * 1.0
                    found = shared(moved).clone()
                own.synchronize()
            else:
                found = shared(rows)
            assert torch.equal(found, expected)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "tangent",
    [
        pytest.param(None, marks=pytest.mark.slow),
        zo.tangents.KernelTangent,
    ],
)
def test_tangents_have_the_same_bits_twice_and_the_cpu_s_gradient(tangent, device):
    def trained(device) -> Tensor:
        box = TorchModule(Frozen(), [STATE], [STATE], device=str(device))
        network = small_network().to(device)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
        learned = None if tangent is None else tangent()
        gradient = zo.TangentGradient(network, through(box), boxes=[box], tangent=learned, seed=2)
        batch = torch.linspace(-1, 1, 32).view(8, 4).to(device)
        for _ in range(6):
            optimizer.zero_grad()
            gradient.backward(batch)
            optimizer.step()
        return grads(network)

    first, second, truth = trained(device), trained(device), trained(torch.device("cpu"))
    assert torch.equal(first, second)
    assert F.cosine_similarity(first, truth, dim=0) > 0.98


def test_the_wake_s_derivative_has_the_same_bits_twice(device):
    box = WakeFlow(8)
    found = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        velocity = torch.randn(3, *box.step.channel.shape, generator=generator).to(device).requires_grad_()
        out = box.step(velocity, torch.full((3,), 300.0, device=device))
        out.square().sum().backward()
        found.append(velocity.grad.cpu())
    assert torch.equal(*found)


@pytest.mark.gpu
def test_devices_other_than_the_first_are_served():
    needs_gpu(2)
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    for evaluator in ("loop", "stacked", "difference"):
        truth = estimated(ESTIMATORS["cge"], "loop", torch.device("cpu"), torch.float64)
        found = estimated(ESTIMATORS["cge"], evaluator, last)
        assert (found.double() - truth).norm() < 2e-3 * truth.norm()


@pytest.mark.gpu
def test_difference_bears_tf32_and_bits_stay():
    """Changes lose as many digits as a convolution does; subtracted losses would lose all."""
    needs_gpu()
    truth = estimated(ESTIMATORS["cge"], "loop", torch.device("cpu"), torch.float64)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        found = [estimated(ESTIMATORS["cge"], "difference", torch.device("cuda", 0)) for _ in range(2)]
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert (found[0].double() - truth).norm() < 2e-2 * truth.norm()
    assert torch.equal(*found)


@pytest.mark.gpu
@torch.no_grad()
def test_graphs_have_the_bits_of_what_they_captured():
    needs_gpu()
    from tests.gpu.test_waits import begun
    from tests.gpu.test_waits import make_network as other
    from zo.estimators import Coordinates

    found = []
    for evaluator in (zo.evaluators.Difference(), zo.evaluators.Difference(graphs=True)):
        batch = tuple(each.cuda() for each in BATCH_OF_WAITS)
        parameters, changes = begun(evaluator, other("convolutions").cuda(), batch)
        for part in torch.randperm(parameters.size, generator=torch.Generator().manual_seed(0)).split(128):
            indices = part.sort().values
            found.append(changes(Coordinates(indices, parameters.steps(indices, 1e-2))).cpu())
    half = len(found) // 2
    assert torch.equal(torch.cat(found[:half]), torch.cat(found[half:]))


@pytest.mark.gpu
@pytest.mark.parametrize("evaluator", ["loop", "stacked", "difference"])
def test_no_chunk_waits_for_the_gpu(evaluator):
    """What the pretended GPU says, by torch's own check."""
    needs_gpu()
    from tests.gpu.test_waits import CASES, begun, queries_of
    from tests.gpu.test_waits import make_network as other

    for own, kind, allowed in CASES:
        if type(own).__name__.lower() != evaluator or allowed:
            continue
        network = other("convolutions").cuda()
        with torch.no_grad():
            parameters, changes = begun(own, network, tuple(each.cuda() for each in BATCH_OF_WAITS))
            queries = queries_of(kind, parameters)
            changes(queries)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # that this check is a prototype
                    torch.cuda.set_sync_debug_mode("error")
                changes(queries)
            finally:
                torch.cuda.set_sync_debug_mode("default")


BATCH_OF_WAITS = torch.linspace(-1, 1, 6 * 192).sin().view(6, 3, 8, 8), torch.arange(6) % 5
