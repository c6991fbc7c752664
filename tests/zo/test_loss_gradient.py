"""LossGradient: what it leaves untouched, how it resumes, what it counts, and how it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import zo
from blackbox import BlackBoxError
from tests.zo.boxes import Sine

EVALUATORS = ["loop", "stacked"]


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


def network_with_buffers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))


def flat_grad(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_weights_and_global_random_state_are_as_an_ordinary_forward_leaves_them(evaluator):
    batch = torch.randn(8, 4)
    plain, network = network_with_buffers(), network_with_buffers()
    before = [p.detach().clone() for p in network.parameters()]
    torch.manual_seed(1)
    with torch.no_grad():
        expected = mean_square(plain, batch).mean()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    gradient = zo.LossGradient(network, mean_square, zo.CGE(mu=1e-3), evaluator=evaluator)
    loss = gradient.backward(batch)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    for name, buffer in plain.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer), name


def test_dropout_draws_one_mask_for_all_variants():
    """With a mask of its own each query's difference would be of the order of the loss, not of mu."""
    network, batch = network_with_buffers().double(), torch.randn(8, 4).double()
    grads = []
    for evaluator in EVALUATORS:
        network.zero_grad()
        torch.manual_seed(1)
        estimator = zo.CGE(mu=1e-6)
        zo.LossGradient(network, mean_square, estimator, evaluator=evaluator).backward(batch)
        grads.append(flat_grad(network))
    network.zero_grad()
    torch.manual_seed(1)
    mean_square(network, batch).mean().backward()
    assert torch.allclose(grads[0], flat_grad(network), atol=1e-5)
    assert torch.allclose(grads[1], grads[0], atol=1e-8)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_backward_adds_to_grad(evaluator):
    network, batch = nn.Linear(3, 2), torch.randn(5, 3)
    gradient = zo.LossGradient(network, mean_square, zo.CGE(mu=1e-3), evaluator=evaluator)
    gradient.backward(batch)
    once = flat_grad(network).clone()
    gradient.backward(batch)
    assert torch.equal(flat_grad(network), once + once)


@pytest.mark.parametrize("estimator", [zo.RGE(mu=1e-3, q=5), zo.CGE(1e-3, zo.RandomCoordinates(3))])
def test_resumed_equals_undisturbed_to_the_bit(estimator):
    batch = torch.randn(5, 3)

    def train(steps: int, stop: int | None) -> torch.Tensor:
        torch.manual_seed(2)
        network = nn.Linear(3, 2)
        gradient = zo.LossGradient(network, mean_square, estimator, seed=4)
        for step in range(steps):
            if step == stop:
                state = gradient.state_dict()
                torch.rand(17)  # another process has another global state
                gradient = zo.LossGradient(network, mean_square, estimator, seed=4)
                gradient.load_state_dict(state)
            network.zero_grad()
            gradient.backward(batch)
            for p in network.parameters():
                p.data -= 0.1 * p.grad
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(train(6, None), train(6, 3))


def test_state_of_another_seed_is_refused():
    make = lambda seed: zo.LossGradient(nn.Linear(2, 1), mean_square, zo.CGE(1e-3), seed=seed)  # noqa: E731
    with pytest.raises(zo.errors.ConfigurationError, match="seed=1, got one with 0"):
        make(1).load_state_dict(make(0).state_dict())


def test_the_box_gets_all_variants_in_one_call_and_queries_are_counted():
    box, network = Sine(), nn.Linear(4, 4)

    def objective(network, batch):
        state = batch
        for _ in range(3):
            state = box(state) + network(state)
        return state.square().mean(dim=1)

    gradient = zo.LossGradient(network, objective, zo.CGE(1e-3), evaluator=zo.evaluators.Stacked(), chunk=8)
    gradient.backward(torch.randn(5, 4))
    checks = gradient.counts.checks
    assert 9 * 5 in box.calls and max(box.calls) <= 10 * 5  # by eights, with a sentinel, and one drawn query
    assert sum(box.calls) == 3 * 5 * (1 + 20 + checks)
    assert gradient.counts == zo.loss_gradient.QueryCounts(steps=1, queries=20 + checks, checks=checks)
    gradient.backward(torch.randn(5, 4))  # the check is repeated
    calls = len(box.calls)
    gradient.backward(torch.randn(5, 4))
    # three chunks with a sentinel each; the drawn query in one of them, and by itself
    assert sum(box.calls[calls:]) == 3 * 5 * (1 + 20 + 3 + 2)
    assert gradient.next_queries() == 20


def test_chunks_change_the_gradient_by_rounding_only():
    network, batch = network_with_buffers().double(), torch.randn(8, 4).double()
    grads = []
    for chunk in (1, 7, 500):
        network.zero_grad()
        torch.manual_seed(1)
        estimator = zo.CGE(mu=1e-4, central=True)
        zo.LossGradient(
            network, mean_square, estimator, evaluator=zo.evaluators.Stacked(), chunk=chunk
        ).backward(batch)
        grads.append(flat_grad(network))
    assert torch.allclose(grads[0], grads[1], rtol=0, atol=1e-10)
    assert torch.allclose(grads[0], grads[2], rtol=0, atol=1e-10)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_tied_weights_are_perturbed_as_one(evaluator):
    first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4, bias=False).double()
    second.weight = first.weight
    network, batch = nn.Sequential(first, nn.Tanh(), second), torch.randn(6, 4).double()
    zo.LossGradient(network, mean_square, zo.CGE(1e-6), evaluator=evaluator).backward(batch)
    grad = flat_grad(network)
    network.zero_grad()
    mean_square(network, batch).mean().backward()
    assert len(grad) == 20
    assert torch.allclose(grad, flat_grad(network), atol=1e-5)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_several_networks_and_a_choice_of_parameters(evaluator):
    networks = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 2)}).double()
    batch = {"x": torch.randn(6, 3).double(), "rest": [torch.randn(6, 2).double()]}

    def objective(networks, batch):
        return (networks["b"](networks["a"](batch["x"]).tanh()) - batch["rest"][0]).square().mean(dim=1)

    gradient = zo.LossGradient(
        networks, objective, zo.CGE(1e-6), parameters=["*.weight"], evaluator=evaluator
    )
    gradient.backward(batch)
    grads = {name: p.grad for name, p in networks.named_parameters()}
    networks.zero_grad()
    objective(networks, batch).mean().backward()
    for name, p in networks.named_parameters():
        if name.endswith("bias"):
            assert grads[name] is None
        else:
            assert torch.allclose(grads[name], p.grad, atol=1e-5)


def ok(**changes):
    settings = {"network": nn.Linear(2, 1), "objective": mean_square, "estimator": zo.CGE(1e-3)}
    settings |= changes
    return lambda: zo.LossGradient(**settings).backward(torch.randn(3, 2))


def frozen() -> nn.Module:
    return nn.Linear(2, 1).requires_grad_(False)


BAD = [
    (lambda: zo.CGE(mu=0.0), zo.errors.ConfigurationError, ["mu", "> 0", "0.0"]),
    (lambda: zo.CGE(mu=math.nan), zo.errors.ConfigurationError, ["mu", "nan"]),
    (
        lambda: zo.CGE(1e-3, central="backward"),
        zo.errors.ConfigurationError,
        ["central", "True or False", "backward"],
    ),
    (lambda: zo.RGE(mu=1e-3, q=0), zo.errors.ConfigurationError, ["q", ">= 1", "0"]),
    (
        lambda: zo.RGE(1e-3, 1, distribution="cauchy"),
        zo.errors.ConfigurationError,
        ["gaussian", "cauchy"],
    ),
    (lambda: zo.RandomCoordinates(0), zo.errors.ConfigurationError, ["size", ">= 1"]),
    (
        ok(estimator=zo.CGE(1e-3, zo.RandomCoordinates(4))),
        zo.errors.ConfigurationError,
        ["3 parameters", "got 4"],
    ),
    (ok(evaluator="fast"), zo.errors.ConfigurationError, ["'stacked'", "'fast'"]),
    (ok(chunk=0), zo.errors.ConfigurationError, ["chunk", ">= 1"]),
    (ok(max_dropped=2.0), zo.errors.ConfigurationError, ["max_dropped", "[0, 1]"]),
    (ok(seed=-1), zo.errors.ConfigurationError, ["seed", ">= 0", "-1"]),
    (ok(network=frozen()), zo.errors.ParameterError, ["found none", "requires_grad=False"]),
    (ok(parameters=["wieght"]), zo.errors.ParameterError, ["'wieght'", "weight"]),
    (ok(network=nn.Linear(2, 1).half()), zo.errors.ParameterError, ["float16", "'weight'", "float32"]),
    (ok(objective=lambda n, b: n(b).sum()), zo.errors.ObjectiveError, ["(3,)", "()", "mean"]),
    (ok(objective=lambda n, b: 1.0), zo.errors.ObjectiveError, ["(3,)", "float"]),
    (
        ok(objective=lambda n, b: torch.zeros(3, dtype=torch.int64)),
        zo.errors.ObjectiveError,
        ["floating", "int64"],
    ),
]


@pytest.mark.parametrize(("act", "error", "words"), BAD, ids=range(len(BAD)))
def test_bad_input_is_a_named_error(act, error, words):
    with pytest.raises(error) as raised:
        act()
    assert isinstance(raised.value, BlackBoxError)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize("batch", [(torch.zeros(3, 2), torch.zeros(4, 2)), torch.tensor(1.0), [], 3])
def test_a_batch_without_common_rows_is_refused(batch):
    gradient = zo.LossGradient(nn.Linear(2, 1), mean_square, zo.CGE(1e-3))
    with pytest.raises(zo.errors.ObjectiveError, match="rows first"):
        gradient.backward(batch)
