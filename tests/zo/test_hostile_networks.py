"""What a network may do to an evaluator: it must come out right, or fall back, and the network untouched."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import zo
from tests.both import Both
from tests.networks.keeping import Remembering, Renorming
from tests.oracles.problems import perturbed_losses
from zo.errors import ObjectiveError
from zo.estimators import Coordinates, Directions
from zo.evaluators import Loop, Stacked, Step


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


def step_of(network: nn.Module, batch: torch.Tensor, objective=mean_square) -> Step:
    return Step(network, zo.estimators.Parameters(network), objective, batch, len(batch))


def every(step: Step) -> Coordinates:
    size = step.parameters.size
    return Coordinates(torch.arange(size), torch.full((size,), 0.1, dtype=step.parameters.dtype))


@torch.no_grad()
def agree(step: Step) -> bool:
    one = Directions(torch.full((1, step.parameters.size), 0.01, dtype=step.parameters.dtype))
    return all(
        torch.allclose(
            perturbed_losses(Stacked(), step, p),
            perturbed_losses(Loop(), step, p),
            rtol=1e-10,
            atol=1e-10,
        )
        for p in (every(step), every(step).part(0, 1), one)
    )


def test_a_forward_that_was_already_replaced_is_used_and_put_back():
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    first = network[0]
    replaced = lambda x: nn.functional.linear(x, first.weight, first.bias).tanh()  # noqa: E731
    first.forward = replaced
    step = step_of(network, torch.randn(4, 3).double())
    with torch.no_grad():
        perturbed_losses(Stacked(), step, every(step))
    assert first.forward is replaced
    assert "forward" not in vars(network[1])


def test_an_error_half_way_leaves_forwards_buffers_weights_and_random_state():
    class Breaks(nn.Module):
        def forward(self, x):
            torch.rand(3)
            if len(x) > 4:
                raise ArithmeticError("too many rows")
            return x

    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), Breaks()).double()
    step = step_of(network, torch.randn(4, 3).double())
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad(), pytest.raises(ArithmeticError):
        perturbed_losses(Stacked(), step, every(step))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert not any("forward" in vars(module) for module in network.modules())
    calls = []

    def breaks_once(network, batch):
        calls.append(torch.rand(1))
        if len(calls) == 2:
            raise ArithmeticError("the second time")
        return mean_square(network, batch)

    with torch.no_grad(), pytest.raises(ArithmeticError):
        perturbed_losses(Loop(), step_of(network, step.batch, breaks_once), every(step))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


def test_weights_that_are_not_contiguous():
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.PReLU(3), nn.Conv2d(3, 2, 2), nn.Flatten(), nn.Linear(8, 2)
    )
    network = network.double().to(memory_format=torch.channels_last)
    network[4].weight = nn.Parameter(torch.randn(8, 2).double().T)
    assert not network[4].weight.is_contiguous()
    x = torch.randn(3, 2, 5, 5).double().to(memory_format=torch.channels_last)
    assert agree(step_of(network, x))


def test_frozen_weights_that_are_chosen_stay_frozen():
    network = nn.Linear(3, 2).requires_grad_(False)
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), parameters=["*"])
    gradient.backward(torch.randn(4, 3))
    assert network.weight.grad is not None
    assert not network.weight.requires_grad


def test_hooks_run_as_in_any_call():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    network[0].register_forward_hook(lambda module, inputs, output: output * 2)
    network[1].register_forward_pre_hook(lambda module, inputs: (inputs[0].tanh(),))
    assert agree(step_of(network, torch.randn(4, 3).double()))


def test_layers_called_by_keyword():
    class Keywords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm, self.drop = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.3)

        def forward(self, x):
            return self.drop(input=self.norm(input=self.inner(input=x)))

    assert agree(step_of(Keywords().double(), torch.randn(4, 3).double()))


@pytest.mark.filterwarnings(
    "ignore::zo.errors.EvaluatorWarning"
)  # what backward reads counts as read elsewhere
def test_an_objective_that_differentiates_by_its_inputs():
    def residual(network, batch):
        """Of u' = -u, as in a physics-informed network."""
        with torch.enable_grad():
            x = batch.clone().requires_grad_()
            u = network(x)
            slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
            return (slope + u).square().mean(dim=1)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    batch = torch.randn(5, 1).double()
    expected = torch.autograd.grad(residual(network, batch).mean(), network.parameters())
    zo.LossGradient(network, residual, zo.CGE(1e-6, central=True), evaluator="stacked").backward(batch)
    for parameter, exact in zip(network.parameters(), expected, strict=True):
        assert (parameter.grad - exact).norm() <= 1e-6 * exact.norm() + 1e-9


def test_a_buffer_that_a_forward_replaces_by_one_of_another_shape():
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(1))
            self.register_buffer("none", None)
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            self.last, self.none = x.detach().clone(), x[:1].clone()
            return self.inner(x)

    network = nn.Sequential(Remembers()).double()
    last = network[0].last
    assert agree(step_of(network, torch.randn(4, 3).double()))
    assert network[0].last is last and last.shape == (1,) and network[0].none is None


def test_a_forward_that_writes_the_weights():
    network = Renorming().double()
    step = step_of(network, torch.randn(6, 3).double())
    with torch.no_grad():
        mean_square(network, step.batch)  # as the base: from here on the norms are in bounds
        before = network.words.weight.clone()
        assert agree(step)
    assert torch.equal(network.words.weight, before)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-4), zo.RGE(1e-4, q=4)])
def test_compiled_modules_run_uncompiled(estimator):
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        used = torch.compile(network, backend="eager") if compiled else network
        gradient = zo.LossGradient(used, mean_square, estimator, evaluator="stacked")
        batch = torch.randn(4, 3).double()
        gradient.backward(batch)
        gradient.backward(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_compiled_network_is_compiled_all_the_same_and_once(evaluator):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    network = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Dropout(0.2)), backend=backend)
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator=evaluator)
    for _ in range(3):
        gradient.backward(torch.randn(4, 3))
    compiled = len(graphs)
    for _ in range(5):
        gradient.backward(torch.randn(4, 3))
    assert len(graphs) == compiled > 0


def test_data_parallel_on_one_device():
    network = nn.DataParallel(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    assert agree(step_of(network, torch.randn(4, 3).double()))


def test_coordinates_and_directions_are_checked_apart():
    class Directed(Stacked):
        """Wrong for directions alone."""

        def begin(self, step, base):
            right = super().begin(step, base)
            return lambda queries: right(queries) + (0 if isinstance(queries, Coordinates) else 1)

    both = Both(zo.CGE(1e-3, zo.RandomCoordinates(5)), zo.RGE(1e-3, q=3))
    network = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    gradient = zo.LossGradient(network, mean_square, both, evaluator=Directed(), chunk=5)
    with pytest.warns(zo.errors.EvaluatorWarning, match="Directed disagreed with loop for a direction"):
        gradient.backward(torch.randn(4, 3))
    chosen = {"Coordinates, training": "Directed", "Directions, training": "Loop"}
    assert gradient.state_dict()["evaluators"] == chosen
    network.eval()
    with pytest.warns(zo.errors.EvaluatorWarning):
        gradient.backward(torch.randn(4, 3))
    assert len(gradient.state_dict()["evaluators"]) == 4


@pytest.mark.filterwarnings("ignore::zo.errors.NoiseWarning")  # the mean loss is constant
def test_one_query_at_first_is_checked_beside_another():
    """With one variant alone a loss that mixes variants would look right."""

    def mixing(network, batch):
        return mean_square(network, batch) / network(batch).square().mean()

    gradient = zo.LossGradient(nn.Linear(3, 2), mixing, zo.RGE(1e-3, q=1), evaluator="stacked")
    with pytest.warns(zo.errors.EvaluatorWarning, match="Stacked"):
        gradient.backward(torch.randn(4, 3))


def test_a_later_batch_that_cannot_be_stacked_falls_back_too():
    network = nn.Sequential(nn.Linear(3, 3)).double()

    def objective(network, batch):
        loss = mean_square(network, batch)
        return loss + mean_square(network, torch.ones(1, 3).double()) if len(batch) % 5 == 0 else loss

    gradient = zo.LossGradient(network, objective, zo.CGE(1e-4), evaluator="stacked")
    gradient.backward(torch.randn(4, 3).double())
    with pytest.warns(zo.errors.EvaluatorWarning, match="Stacked cannot serve"):
        gradient.backward(torch.randn(5, 3).double())


@pytest.mark.filterwarnings("error")
def assert_a_step_is_autograd_s(gradient, network, twin):
    batch = torch.randn(4, 3).double()
    network.zero_grad()
    twin.zero_grad()
    gradient.backward(batch)
    mean_square(twin, batch).mean().backward()
    for parameter, exact in zip(network.parameters(), twin.parameters(), strict=True):
        assert (parameter.grad - exact.grad).norm() <= 1e-7 * exact.grad.norm()


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", ["tensor", "array", "list", "deque", "dict", "cache"])
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_what_a_forward_writes_inside_of_an_attribute_is_left_as_one_forward_leaves_it(kind, evaluator):
    torch.manual_seed(0)
    network = Remembering(kind).double()
    twin = copy.deepcopy(network)
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-5, central=True), evaluator=evaluator)
    for _ in range(3):
        assert_a_step_is_autograd_s(gradient, network, twin)
        assert torch.equal(network.states(), twin.states())


@pytest.mark.filterwarnings("ignore::zo.errors.EvaluatorWarning")  # what a stack draws differs by variant
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_generator_that_a_module_keeps_draws_the_same_for_all_queries_and_goes_on_behind_them(evaluator):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.draws = nn.Linear(3, 2), torch.Generator().manual_seed(1)

        def forward(self, x):
            return self.layer(x + torch.randn(x.shape, generator=self.draws, dtype=x.dtype))

    torch.manual_seed(0)
    network, twin = Noisy().double(), Noisy().double()
    twin.load_state_dict(network.state_dict())
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-5, central=True), evaluator=evaluator)
    for _ in range(3):
        assert_a_step_is_autograd_s(gradient, network, twin)


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["deep", "nested", "lazy", "tuples"])
def test_what_a_module_keeps_and_cannot_be_copied_or_is_deep_is_no_error(kind):
    kept = ()
    for _ in range(2000 if kind == "deep" else 60):
        kept = [kept] if kind == "deep" else (kept, kept)
    if kind == "nested":
        kept = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    if kind == "lazy":
        kept = [nn.UninitializedBuffer()]
    network = nn.Linear(3, 1)
    network.kept = kept
    zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator="loop").backward(torch.ones(4, 3))
    assert network.weight.grad.abs().min() > 0


def test_what_a_forward_counts_in_a_counter_is_put_back():
    class Counting(nn.Linear):
        def forward(self, x):
            self.counts["calls"] += 1
            return super().forward(x) * self.counts["calls"]

    network = Counting(3, 1).double()
    network.counts = Counter()
    batch = torch.ones(4, 3).double()
    zo.LossGradient(network, mean_square, zo.CGE(1e-5, central=True), evaluator="loop").backward(batch)
    assert network.counts == {"calls": 1}
    grad = network.weight.grad.clone()
    network.zero_grad()
    network.counts.clear()
    mean_square(network, batch).mean().backward()
    assert (grad - network.weight.grad).norm() <= 1e-7 * grad.norm()


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "dict", "set"])
def test_queries_that_write_inside_of_what_the_base_evaluation_left_alone_are_an_error(kind):
    class Choosing(nn.Linear):
        def forward(self, x):
            result = super().forward(x) + float(self.kept["tensor"][0] + self.kept["array"][0])
            if self.weight.data[0, 0] != 0:
                match kind:
                    case "tensor" | "array" | "list" | "dict":
                        self.kept[kind][0] += 1
                    case "set":
                        self.kept["set"] ^= {0, 1}
            return result

    network = Choosing(3, 1).double()
    network.weight.data.zero_()
    network.much = torch.zeros(20_000)  # of little all is put back after each query
    network.kept = {"tensor": torch.zeros(1), "array": np.zeros(1), "list": [0], "dict": {0: 0}, "set": {0}}
    before = copy.deepcopy(network.kept)
    with pytest.raises(ObjectiveError, match=r"wrote inside of Choosing\.kept in a query and not in the"):
        zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator="loop").backward(
            torch.ones(4, 3).double()
        )
    assert network.kept == before
    assert network.weight.grad is None


@pytest.mark.quick_cases(1)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["list", "dict", "set"])
def test_what_is_cached_by_the_number_of_rows_is_no_error(kind):
    class Caching(nn.Module):
        def forward(self, x):
            if kind == "list" and len(self.kept) < len(x):
                self.kept.extend(torch.ones(1) for _ in range(len(self.kept), len(x)))
            elif kind == "dict" and len(x) not in self.kept:
                self.kept[len(x)] = torch.ones(len(x), 1)
            elif kind == "set":
                self.kept.add(len(x))
            return x

    network = nn.Sequential(nn.Linear(3, 2), Caching(), nn.Linear(2, 1)).double()
    network[1].much = torch.zeros(20_000)  # of little all is put back after each query
    kept = network[1].kept = {"list": [], "dict": {}, "set": set()}[kind]
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-5, central=True), evaluator="stacked", chunk=4)
    batch = torch.ones(4, 3).double()
    for _ in range(2):
        gradient.backward(batch)
        assert len(kept) == (4 if kind == "list" else 1)
    network.zero_grad()
    gradient.backward(batch)
    exact = torch.autograd.grad(mean_square(network, batch).mean(), network[0].weight)[0]
    assert (network[0].weight.grad - exact).norm() <= 1e-7 * exact.norm()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("evaluator", ["loop", "stacked"])
def test_a_running_maximum_in_a_dict_is_put_back(evaluator):
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    network[2].bias.data.fill_(3.0)

    class Top(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.kept = network, {"most": 0.0}

        def forward(self, x):
            result = self.inner(x)
            self.kept["most"] = max(self.kept["most"], float(result[:4].detach().max()))
            return result

    top, batch = Top(), torch.ones(4, 3).double()
    gradient = zo.LossGradient(top, mean_square, zo.CGE(1e-3), evaluator=evaluator, chunk=4)
    for _ in range(2):
        gradient.backward(batch)
        assert top.kept == {"most": float(network(batch).detach().max())}
