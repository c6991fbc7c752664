"""No evaluator has the host wait for a GPU within a chunk, and it finds there what it finds on a CPU."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from tests.gpu.pretended import CUDA, PretendedGPU
from zo.estimators import Coordinates, Directions
from zo.evaluators import Perturbation, Step
from zo.evaluators.difference import graphs


def make_network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "convolutions":
        return nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.GELU(), nn.MaxPool2d(2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
        )
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 5), nn.Softplus()
    )


BATCH = torch.linspace(-1, 1, 6 * 192).sin().view(6, 3, 8, 8), torch.arange(6) % 5
OBJECTIVE = zo.OutputLoss(lambda output, target: F.cross_entropy(output, target, reduction="none"))


def queries_of(kind: str, parameters: zo.estimators.Parameters) -> Perturbation:
    if kind == "directions":
        generator = torch.Generator().manual_seed(1)
        return Directions(1e-2 * torch.randn(4, parameters.size, generator=generator))
    indices = torch.arange(0, parameters.size, max(1, parameters.size // 64))
    return Coordinates(indices, parameters.steps(indices, 1e-2))


def begun(evaluator, network, batch):
    parameters = zo.estimators.Parameters(network)
    base = OBJECTIVE(network, batch)
    changes = evaluator.begin(Step(network, parameters, OBJECTIVE, batch, len(base)), base)
    return parameters, changes


CASES = [
    (zo.evaluators.Loop(), "coordinates", 0),
    (zo.evaluators.Loop(), "directions", 0),
    (zo.evaluators.Stacked(), "coordinates", 1),  # the sentinel's verdict
    (zo.evaluators.Stacked(), "directions", 1),
    (zo.evaluators.Difference(), "coordinates", 0),
]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layers", [pytest.param("convolutions", marks=pytest.mark.slow), "linear"])
@pytest.mark.parametrize(("evaluator", "kind", "allowed"), CASES)
@torch.no_grad()
def test_a_chunk_is_sent_without_waiting(evaluator, kind, allowed, layers, training):
    network = make_network(layers).train(training)
    parameters, changes = begun(evaluator, network, BATCH)
    expected = changes(queries_of(kind, parameters))
    with PretendedGPU() as gpu:
        network = gpu.network(make_network(layers).train(training))
        parameters, changes = begun(evaluator, network, tuple(map(gpu.tensor, BATCH)))
        queries = queries_of(kind, parameters)
        changes(queries)  # what is made of the base once, at a step's first queries
        with gpu.watched() as seen:
            found = changes(queries)
        found = found.cpu()
    assert len(seen.waits) == allowed, seen.waits
    assert not seen.unordered
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning")  # the repaired logarithm jumps
def test_queries_that_lose_a_row_on_a_gpu_are_asked_by_loop_behind_all_chunks():
    class Repaired(nn.Linear):
        def forward(self, x):
            return torch.nan_to_num(super().forward(x).log(), nan=0.3)

    def estimated(evaluator, moved=lambda network: network, to=lambda tensor: tensor):
        torch.manual_seed(3)
        network = moved(Repaired(5, 5))
        rule = zo.CGE(0.1, central=True)
        gradient = zo.LossGradient(network, objective, rule, evaluator=evaluator, chunk=8)
        gradient.backward(tuple(map(to, batch)))
        assert gradient.counts.dropped == 0
        return torch.cat([p.grad.flatten().cpu() for p in network.parameters()])

    objective = zo.OutputLoss(lambda output, target: output.square().mean(1))
    batch = torch.randn(6, 5, generator=torch.Generator().manual_seed(3)), torch.zeros(6)
    expected = estimated("loop")
    with PretendedGPU() as gpu:
        assert torch.allclose(estimated("stacked", gpu.network, gpu.tensor), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_graphs_are_given_the_entries_and_steps_of_each_pass(monkeypatch):
    """A graph that is not there: what would be captured runs again, on what stands where it reads."""
    made = []

    def captured(run, pool, device):
        assert device == CUDA  # whichever is current, another would not be captured
        with gpu.watched() as seen:
            run()
        assert not seen.waits  # a capture refuses them
        assert not [name for name in seen.launches if "_to_copy" in name and "cpu" in name]
        made.append(run)
        return run

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "new_pool", object)
    found = []
    for evaluator in (zo.evaluators.Difference(32), zo.evaluators.Difference(32, graphs=True)):
        with PretendedGPU() as gpu:
            network = gpu.network(make_network("convolutions"))
            parameters, changes = begun(evaluator, network, tuple(map(gpu.tensor, BATCH)))
            indices = torch.arange(0, 108)  # of the first convolution, more than three passes
            queries = Coordinates(indices, parameters.steps(indices, 1e-2))
            found.append(changes(queries).cpu())
            with gpu.watched() as seen:
                again = changes(queries).cpu()
            assert torch.equal(again, found[-1])
            assert [wait for wait in seen.waits if "to the CPU" not in wait] == []
    assert torch.equal(*found)
    assert len(made) == 2  # one for passes of 32 queries, in the second chunk one for the 12 that are left


@pytest.mark.slow
@pytest.mark.parametrize("layers", [pytest.param("convolutions", marks=pytest.mark.slow), "linear"])
@pytest.mark.parametrize(
    "evaluator", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("stacked", "difference")), "loop"]
)
def test_a_step_waits_as_often_for_many_chunks_as_for_few(evaluator, layers):
    waits = []
    for chunk in (8, 16):
        with PretendedGPU() as gpu:
            network, batch = gpu.network(make_network(layers)), tuple(map(gpu.tensor, BATCH))
            rule = zo.CGE(1e-3, sparsity=zo.RandomCoordinates(32))
            gradient = zo.LossGradient(network, OBJECTIVE, rule, evaluator=evaluator, chunk=chunk)
            for _ in range(2):  # steps that are checked
                gradient.backward(batch)
            with gpu.watched() as seen:
                gradient.backward(batch)
        waits.append(len(seen.waits) - (32 // chunk if evaluator == "stacked" else 0))
        assert evaluator in repr(gradient).lower()
    assert waits[0] == waits[1] < 40


@pytest.mark.slow
def test_difference_has_long_chunks_on_a_gpu_and_what_takes_over_has_parts_that_fit():
    """`memory` is for what repeats the batch; passes of changes find their room themselves."""
    settings = {"evaluator": "difference", "memory": 2**16}
    launches, found = [], []
    for chunk in (None, 2):
        with PretendedGPU() as gpu:
            network, batch = gpu.network(make_network("convolutions")), tuple(map(gpu.tensor, BATCH))
            rule = zo.CGE(1e-3, sparsity=zo.RandomCoordinates(32))
            gradient = zo.LossGradient(network, OBJECTIVE, rule, chunk=chunk, **settings)
            for _ in range(2):
                gradient.backward(batch)
            with gpu.watched() as seen:
                gradient.backward(batch)
            launches.append(len(seen.launches))
            found.append(torch.cat([p.grad.flatten().cpu() for p in network.parameters()]))
            if chunk is None:
                assert gradient.chunk == 16 and gradient.stack < 16  # sixteenths of the plan
                assert gradient.state_dict()["stack"] == gradient.stack
    assert launches[0] < 0.5 * launches[1]
    assert (found[0] - found[1]).norm() < 1e-3 * found[1].norm()


@torch.no_grad()
def test_a_stack_of_a_long_chunk_is_made_in_parts():
    network = make_network("convolutions")
    parameters, changes = begun(zo.evaluators.Stacked(), network, BATCH)
    queries = queries_of("coordinates", parameters)
    expected = torch.cat([changes(queries.part(start, start + 5)) for start in range(0, len(queries), 5)])
    rows = []
    network.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    base = OBJECTIVE(network, BATCH)
    step = Step(network, parameters, OBJECTIVE, BATCH, len(base), stack=5)
    found = zo.evaluators.Stacked().begin(step, base)(queries)
    assert torch.equal(found, expected)
    assert max(rows) == 6 * len(base)  # five and the one that does not move


def test_the_pretended_gpu_sees_what_waits():
    with PretendedGPU() as gpu:
        x = gpu.tensor(torch.tensor([1.0, 0.0, 2.0]))
        with gpu.watched() as seen:
            assert float(x[0]) == 1 and x[x > 0].shape == (2,) and x.cpu().device.type == "cpu"
            assert len(torch.nonzero(x)) == 2 and x[torch.tensor([0])].shape == (1,)
            torch.ones(3).to(x.device)
            torch.zeros(2, device=x.device).index_add(0, gpu.tensor(torch.tensor([0, 1])), x[:2])
        with pytest.raises(RuntimeError, match="same device"):
            torch.add(x, torch.ones(3))
    assert len(seen.waits) == 6, seen.waits
    assert len(seen.unordered) == 1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("training", "most"), [(True, 96), (False, 64)])
@torch.no_grad()
def test_a_pass_launches_little_however_many_variants_share_it(training, most):
    counts = []
    for several in (16, 64):
        with PretendedGPU() as gpu:
            network = gpu.network(make_network("convolutions").train(training))
            parameters, changes = begun(zo.evaluators.Difference(), network, tuple(map(gpu.tensor, BATCH)))
            indices = torch.arange(several)  # of the first convolution
            queries = Coordinates(indices, parameters.steps(indices, 1e-2))
            changes(queries)
            with gpu.watched() as seen:
                changes(queries)
            counts.append(len(seen.launches))
    assert counts[0] == counts[1] < most
