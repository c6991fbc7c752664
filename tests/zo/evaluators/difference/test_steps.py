"""`Difference` from step to step and on activations that are large: the same bits, as accurate as `loop`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from tests.zo.evaluators.difference.test_difference import batch, made, mlp, squared, step_of
from zo.estimators import Coordinates
from zo.evaluators import Loop, Unservable
from zo.evaluators.difference.difference_evaluator import LARGE


class Branch(nn.Module):
    """A residual block whose branch sleeps while `scale` is zero; its rows interact."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(3, 4), nn.Linear(4, 4), kind
        self.head, self.scale = nn.Linear(4, 2), nn.Parameter(torch.zeros(()))
        self.rate = 0.0

    def forward(self, x):
        h = self.a(x)
        if self.kind == "mean":
            return self.head(h + self.scale * (self.b(h) - self.b(h).mean(0)))
        if self.kind == "drop path":
            kept = torch.rand(len(x), 1, dtype=x.dtype) >= self.rate
            return self.head(h + self.b(h) * kept / (1 - self.rate))
        if self.kind == "spectrum":
            return self.head(
                h + self.scale * torch.fft.fft(self.b(h), dim=0).abs()
            )  # by way of complex numbers
        return self.head(h + self.scale * self.b(h).sort(0).values)


def gradients(evaluator: str, kind: str) -> list[torch.Tensor]:
    """Of two steps on different batches, weights moved between them and the branch woken."""
    network = made(lambda: Branch(kind)).double()
    gradient = zo.LossGradient(network, zo.OutputLoss(squared), zo.CGE(1e-5), evaluator=evaluator)
    grads = []
    torch.manual_seed(1)
    for step in range(2):
        network.zero_grad()
        gradient.backward(tuple(tensor.double() + step for tensor in batch()))
        grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.3)
        network.rate = 0.4
    return grads


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["mean", "drop path", "sort"])
def test_what_wakes_after_the_first_step_gets_what_loop_gives(kind):
    for grad, true in zip(gradients("difference", kind), gradients("loop", kind), strict=True):
        assert torch.allclose(grad, true, rtol=0, atol=1e-8 * true.abs().max())


def test_a_sleeping_branch_that_cannot_be_read_is_refused_at_the_first_step():
    network = made(lambda: Branch("spectrum"))
    step = step_of(network, zo.OutputLoss(squared), batch())
    with torch.no_grad(), pytest.raises(Unservable, match=r"the network.*fft, which gives something else"):
        zo.evaluators.Difference().begin(step, step.objective(network, step.batch))


@pytest.mark.parametrize("drawing", [False, True])
def test_a_loss_that_cannot_be_recorded_is_taken_whole_unless_it_draws(drawing):
    def loss(output, target):
        error = (output - target).abs()
        error = torch.fft.fft(
            torch.where(error < 0.5, error**2, error - 0.25)
        ).abs()  # by way of complex numbers
        return (error * (1 + torch.rand_like(output)) if drawing else error).var(1) + output.var(0).sum()

    objective = zo.OutputLoss(loss)
    step = step_of(made(mlp).double(), objective, tuple(t.double() for t in batch()))
    queries = Coordinates(torch.arange(20), torch.full((20,), 1e-3, dtype=torch.float64))
    with torch.no_grad():
        base = objective(step.network, step.batch)
        if drawing:
            with pytest.raises(Unservable, match="draws at random"):
                zo.evaluators.Difference().begin(step, base)
            return
        result = zo.evaluators.Difference().begin(step, base)(queries)
        assert torch.allclose(result, Loop().changes(step, queries, base), rtol=0, atol=1e-12)


def test_a_loss_taken_whole_that_reads_weights_is_refused():
    network = made(mlp)
    objective = zo.OutputLoss(
        lambda output, target: torch.fft.fft(output).abs().sum(1) + network[0].weight.var()
    )
    step = step_of(network, objective, batch())
    before = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad(), pytest.raises(Unservable, match="a loss that no rule describes"):
        zo.evaluators.Difference().begin(step, objective(network, step.batch))
    assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


class Images(nn.Module):
    """Activations of 32 rows are 1 MiB and more; a view behind the convolutions, as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(4 * 256, 3)

    def forward(self, x):
        y = self.norms[0](self.a(x))
        y = y * (y > 0)
        y = y + self.drop(F.relu(self.norms[1](self.b(y)), inplace=True))
        y = F.max_pool2d(self.c(y), 2).contiguous()
        return self.head(y.view(len(x), -1))


def classified(output, target):
    return F.cross_entropy(output, target, reduction="none")


@torch.no_grad()
def large(dtype: torch.dtype, training: bool, faint: float = 1.0):
    """A step, some of its coordinates and the base's losses, which see `faint` times the features."""
    network = made(Images).train(training)
    network.head.weight.mul_(faint)
    network.to(dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 32, 32, generator=generator).to(dtype)
    data = images, torch.arange(32) % 3
    step = step_of(network, zo.OutputLoss(classified), data)
    indices = torch.linspace(0, step.parameters.size - 1, 40).long()
    torch.manual_seed(5)
    start = torch.get_rng_state()
    base = step.objective(copy.deepcopy(network), data)
    torch.set_rng_state(start)
    return step, indices, base


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "training", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["training", "evaluation"]
)
def test_large_activations_are_as_accurate_as_loop_and_leave_what_does_not_move(training):
    wide, indices, wide_base = large(torch.float64, training)
    mu = 1e-3
    steps = torch.full((40,), mu).double()
    true = Loop().changes(wide, Coordinates(indices, steps), wide_base).mean(1)
    step, indices, base = large(torch.float32, training)
    queries = Coordinates(indices, torch.full((40,), mu))
    start = torch.get_rng_state()
    changes = zo.evaluators.Difference().begin(step, base)
    result = changes(queries)
    assert torch.equal(torch.get_rng_state(), start)
    assert torch.equal(result, zo.evaluators.Difference().begin(step, base)(queries))
    # The same weights in float32 and float64: what is left is rounding.
    looped = Loop().changes(step, queries, base).double().mean(1)
    error, carried = (looped - true).norm(), (result.double().mean(1) - true).norm()
    assert carried <= 2 * error
    assert carried <= 1e-2 * true.norm()
    still = Coordinates(indices, torch.zeros(40))
    assert torch.equal(changes(still), torch.zeros(40, 32))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("variants", "mu", "faint"),
    [
        (1, 1e-3, 1.0),
        *(pytest.param(None, *values, marks=pytest.mark.slow) for values in ((1e-6, 1.0), (1e-3, 1e-5))),
    ],
)
def test_changes_of_large_activations_are_exact_where_losses_cannot_be_subtracted(variants, mu, faint):
    wide, indices, wide_base = large(torch.float64, True, faint)
    steps = torch.full((40,), mu)
    true = Loop().changes(wide, Coordinates(indices, steps.double()), wide_base).mean(1)
    step, indices, base = large(torch.float32, True, faint)
    result = (
        zo.evaluators.Difference(variants=variants)
        .begin(step, base)(Coordinates(indices, steps))
        .double()
        .mean(1)
    )
    assert (result - true).norm() <= 1e-4 * true.norm()


class Striding(nn.Module):
    """Reads memory in PyTorch's default format alone."""

    def forward(self, x):
        return torch.as_strided(x, (len(x), 576), (576, 1)).square()


@torch.no_grad()
def test_a_network_that_reads_one_memory_format_gets_it():
    network = made(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), Striding(), nn.Linear(576, 2)
        )
    )
    data = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 2)
    step = step_of(network, zo.OutputLoss(squared), data)
    queries = Coordinates(torch.arange(0, 180, 9), torch.full((20,), 1e-2))
    base = step.objective(network, data)
    true = Loop().changes(step, queries, base)
    result = zo.evaluators.Difference().begin(step, base)(queries)
    assert torch.allclose(result, true, rtol=1e-3, atol=2e-5 * float(base.max()))
    assert true.abs().max() > 1e-3


@torch.no_grad()
def test_evaluators_of_equal_settings_are_equal_and_remember_nothing():
    first, second = zo.evaluators.Difference(memory=2**20), zo.evaluators.Difference(memory=2**20)
    assert first == second and first != zo.evaluators.Difference()
    assert repr(first) == "Difference(variants=None, memory=1048576, graphs=False)"
    other = step_of(made(mlp, seed=1), zo.OutputLoss(squared), batch(7))
    step = step_of(made(mlp), zo.OutputLoss(squared), batch())
    queries = Coordinates(torch.arange(9), torch.full((9,), 1e-3))
    base = step.objective(step.network, step.batch)
    first.changes(other, queries, other.objective(other.network, other.batch))
    assert torch.equal(first.changes(step, queries, base), second.begin(step, base)(queries))


@pytest.mark.parametrize("large", [True, False])
def test_shapes_that_depend_on_values_end_in_a_refusal_or_are_right(large, limits):
    """As rows that a network chooses: where as many are chosen as in the base, `loop` and it agree."""

    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.first(x)
            kept = h[h[:, 0] > 0]
            return self.last(h) + kept.mean() + kept[: len(kept) // 2].sum()

    limits(activations_followed=0 if large else LARGE)
    network = made(Chooses).double()
    step = step_of(network, zo.OutputLoss(squared), tuple(t.double() for t in batch()))
    refused = 0
    with torch.no_grad():
        base = step.objective(network, step.batch)
        changes = zo.evaluators.Difference().begin(step, base)
        for entry in range(step.parameters.size):
            for length in (0.01, 3.0, -3.0):
                query = Coordinates(torch.tensor([entry]), torch.tensor([length], dtype=torch.float64))
                try:
                    result = changes(query)
                except Unservable:
                    refused += 1
                    continue
                assert torch.allclose(result, Loop().changes(step, query, base), rtol=0, atol=1e-10)
    assert 0 < refused < step.parameters.size
