"""The first-use check: it finds a fast evaluator that is wrong, names where, and is silent otherwise."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import zo
from zo.evaluators.loop import Loop
from zo.evaluators.stacked import Stacked


def mean_square(network, batch):
    return network(batch).square().flatten(1).mean(dim=1)


class Transposing(nn.Module):
    """Takes its rows second, as a recurrent layer without batch_first does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.inner(x.transpose(0, 1)).transpose(0, 1))


class ReadsWeight(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return x @ self.inner.weight.tanh()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(3, 2, batch_first=True)

    def forward(self, x):
        return self.cell(x)[0]


def fixed_rows(network, batch):
    return (network(batch) - torch.arange(4.0)[:, None, None]).square().flatten(1).mean(dim=1)


CASES = [
    (Transposing(), mean_square, "NotStackable"),
    (ReadsWeight(), mean_square, "inner.weight"),
    (Recurrent(), mean_square, ""),
    (nn.Linear(3, 1), fixed_rows, "RuntimeError"),
]


@pytest.mark.parametrize(("network", "objective", "word"), CASES, ids=lambda c: type(c).__name__)
def test_falls_back_to_loop_with_one_warning(network, objective, word):
    network, batch = network.double(), torch.randn(4, 5, 3).double()
    gradient = zo.LossGradient(network, objective, zo.CGE(1e-6), evaluator="stacked")
    with pytest.warns(zo.EvaluatorWarning, match=f"Stacked.*{word}") as caught:
        gradient.backward(batch)
        gradient.backward(batch)
    assert len([w for w in caught if w.category is zo.EvaluatorWarning]) == 1
    found = [p.grad / 2 for p in network.parameters()]
    network.zero_grad()
    objective(network, batch).mean().backward()
    for ours, p in zip(found, network.parameters(), strict=True):
        assert torch.allclose(ours, p.grad if p.grad is not None else torch.zeros_like(p), atol=1e-5)


def test_is_silent_and_keeps_the_fast_one_where_they_agree():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2))
    evaluator = zo.Checked(Stacked())
    gradient = zo.LossGradient(network, mean_square, zo.CGE(1e-3), evaluator=evaluator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(4, 2, 5, 5))
    assert [type(active) for active in evaluator.active.values()] == [Stacked]
    assert gradient.counts.queries > gradient.queries()  # the check is paid for, and said


def test_noise_of_the_objective_is_not_taken_for_a_fault():
    generator = torch.Generator().manual_seed(0)

    def noisy(network, batch):
        noise = torch.randn(len(batch), generator=generator)
        return mean_square(network, batch) + 1e-3 * noise

    evaluator = zo.Checked(Stacked())
    zo.LossGradient(nn.Linear(3, 2), noisy, zo.CGE(0.1), evaluator=evaluator).backward(torch.randn(40, 3))
    assert [type(active) for active in evaluator.active.values()] == [Stacked]


def test_an_error_in_the_objective_itself_is_not_hidden():
    def broken(network, batch):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        zo.LossGradient(nn.Linear(3, 2), broken, zo.CGE(1e-3)).backward(torch.randn(4, 3))


def test_loop_stays_in_use_after_a_fall_back():
    evaluator = zo.Checked(Stacked())
    gradient = zo.LossGradient(Transposing(), mean_square, zo.CGE(1e-3), evaluator=evaluator)
    with pytest.warns(zo.EvaluatorWarning):
        gradient.backward(torch.randn(4, 5, 3))
    assert [type(active) for active in evaluator.active.values()] == [Loop]


class Asleep(nn.Module):
    """Reads a layer's weight outside the layer, on a path that small inputs do not take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x) + nn.functional.linear(x.clamp_min(50) - 50, self.gate.weight)


def penalised(network, batch):
    return mean_square(network, batch) + 1e-6 * sum(p.square().sum() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "objective"),
    [(nn.Linear(3, 2), penalised), (Asleep(), mean_square)],
    ids=["penalty", "asleep"],
)
@pytest.mark.parametrize("estimator", [zo.CGE(1e-3), zo.RGE(1e-3, q=4)], ids=["cge", "rge"])
def test_a_weight_read_outside_its_layer_is_found_however_little_it_does(network, objective, estimator):
    evaluator = zo.Checked(Stacked())
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.warns(zo.EvaluatorWarning, match="read outside its layer"):
        zo.LossGradient(network, objective, estimator, evaluator=evaluator).backward(torch.randn(4, 3))
    assert all(type(active) is Loop for active in evaluator.active.values())
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))
    assert "forward" not in vars(network)


def test_rows_that_fail_by_chance_do_not_cost_the_fast_evaluator():
    generator = torch.Generator().manual_seed(0)

    def losing(network, batch):
        lost = torch.rand(len(batch), generator=generator) < 0.02
        return torch.where(lost, float("nan"), mean_square(network, batch))

    evaluator = zo.Checked(Stacked())
    gradient = zo.LossGradient(nn.Linear(3, 2), losing, zo.CGE(1e-3), evaluator=evaluator, max_dropped=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(10, 3))
    assert all(type(active) is Stacked for active in evaluator.active.values())


@pytest.mark.parametrize("call", range(1, 10))  # the base is call 0, the check takes the next nine
def test_one_row_lost_anywhere_in_the_check_does_not_cost_the_fast_evaluator(call):
    calls = 0

    def losing(network, batch):
        nonlocal calls
        loss = mean_square(network, batch)
        if calls == call:
            loss[1] = float("nan")
        calls += 1
        return loss

    evaluator = zo.Checked(Stacked())
    gradient = zo.LossGradient(nn.Linear(3, 2), losing, zo.CGE(1e-3), evaluator=evaluator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient.backward(torch.randn(10, 3))
    assert all(type(active) is Stacked for active in evaluator.active.values())


def confident(seed):
    """A trained network, as good as: float32 logits of order ten, and labels that it is sure of."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(2) for layer in (nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU())]
    layers[3] = nn.Linear(24, 24)
    network, x = nn.Sequential(*layers, nn.Linear(24, 5)), torch.randn(32, 8)
    with torch.no_grad():
        network[-1].weight.mul_(15)
        return network, (x, network(x).argmax(1))


CLASSIFIED = zo.OutputLoss(lambda y, label: nn.functional.cross_entropy(y, label, reduction="none"))


@pytest.mark.parametrize("fast", [Stacked, zo.Difference])
@pytest.mark.parametrize("seed", range(3))
def test_the_rounding_of_confident_rows_is_not_taken_for_a_fault(fast, seed):
    network, batch = confident(seed)
    evaluator = zo.Checked(fast())
    estimator = zo.CGE(1e-3, zo.RandomCoordinates(5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zo.LossGradient(network, CLASSIFIED, estimator, evaluator=evaluator).backward(batch)
    assert [type(active) for active in evaluator.active.values()] == [fast]


@pytest.mark.parametrize("number", range(8))
def test_a_tenth_too_much_for_one_tensor_is_found_on_confident_rows(number):
    class Off(zo.Difference):
        def changes(self, problem, perturbation, base):
            found = super().changes(problem, perturbation, base)
            own = problem.parameters.locate(perturbation.indices)[0] == chosen
            return found * torch.where(own, 1.1, 1.0)[:, None]

    network, batch = confident(0)
    names = [
        name for name, _ in network.named_parameters() if name not in ("0.bias", "3.bias")
    ]  # BN's follow
    chosen = [name for name, _ in network.named_parameters()].index(names[number])
    estimator = zo.CGE(1e-3, zo.RandomCoordinates(5))
    gradient = zo.LossGradient(network, CLASSIFIED, estimator, evaluator=zo.Checked(Off()))
    with pytest.warns(zo.EvaluatorWarning, match=f"Off disagreed with loop for {names[number]}:"):
        gradient.backward(batch)
