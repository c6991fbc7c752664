"""Weights that a network sets on its first batch: gradients are those behind that, by autograd."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch
from zo.tangents import ModelTangent

ROWS, SIZE = 8, 4


def function(u: Tensor) -> Tensor:
    return torch.tanh(u) + 0.5 * u * u.roll(1, -1)


class Layer(nn.Module):
    """Activation normalization (Kingma and Dhariwal 2018), in its simplest form."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(SIZE)), nn.Parameter(torch.zeros(SIZE))
        self.done = False

    @torch.no_grad()
    def set_up(self, x: Tensor) -> None:
        self.shift.copy_(-x.mean(0))
        self.scale.copy_(-x.std(0).log())

    def out(self, x: Tensor) -> Tensor:
        return (x + self.shift) * self.scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.done:
            self.set_up(x)
            self.done = True
        return self.out(x)


class ByData(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.shift.data = -x.detach().mean(0)
            self.done = True
        return self.out(x)


class ByBuffer(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.batches += 1
        if self.batches == 1:
            self.set_up(x)
        return self.out(x)


class ByValue(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if not self.scale.any():
            self.set_up(x)
        return self.out(x)


class Frozen(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.shift.requires_grad_(False)


class ByHook(Layer):
    """Without a state that could be put back."""

    def __init__(self) -> None:
        super().__init__()
        self.handle = self.register_forward_pre_hook(self.first)

    def first(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        self.set_up(inputs[0])
        self.handle.remove()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class WithStatistics(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Layer(), nn.Tanh(), nn.BatchNorm1d(SIZE), Layer())


class Codebook(nn.Module):
    """Vectors that begin as some rows of the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(3, SIZE))
        self.register_buffer("begun", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.begun:
            with torch.no_grad():
                self.words.copy_(x[:3])
                self.begun.fill_(1)
        return torch.softmax(-(x[:, None] - self.words).square().sum(-1), 1) @ self.words


def network_with(kind: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, SIZE), kind(), nn.Tanh(), nn.Linear(SIZE, 3)).double()


def batch(step: int) -> tuple[Tensor, Tensor]:
    inputs, targets = torch.randn(
        2, ROWS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
    )
    return inputs, targets


def loss(network: nn.Module, batch: tuple[Tensor, Tensor], box=function) -> Tensor:
    return (box(network(batch[0])) - batch[1]).square().mean(1)


def by_autograd(network: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, nn.Module]:
    """Gradient and loss, and the network that a forward leaves."""
    after = copy.deepcopy(network)
    mean = loss(after, batch).mean()
    trained = [parameter for parameter in after.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(mean, trained)
    return torch.cat([gradient.flatten() for gradient in gradients]), mean.detach(), after


def gradient_of(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("evaluator", ["loop", "auto"])
@pytest.mark.parametrize("kind", [Layer, ByData, ByBuffer, ByValue, Frozen, ByHook, WithStatistics, Codebook])
def test_the_first_gradient_is_that_behind_the_first_batch(kind, evaluator):
    network = network_with(kind)
    gradient = zo.LossGradient(network, loss, zo.CGE(1e-4, central=True), evaluator=evaluator)
    for step in range(2):
        reference, value, after = by_autograd(network, batch(step))
        network.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.errors.EvaluatorWarning)
            torch.testing.assert_close(gradient.backward(batch(step)), value, rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient_of(network), reference, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(network.state_dict(), after.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("chunk", [None, 4])
def test_so_is_that_of_a_network_that_begins_to_train_later(chunk):
    network = network_with(Layer)
    gradient = zo.LossGradient(network, loss, zo.CGE(1e-4, central=True), evaluator="loop", chunk=chunk)
    for step, training in enumerate((False, False, True)):
        network.train(training).zero_grad()
        reference, _, _ = by_autograd(network, batch(step))
        gradient.backward(batch(step))
        torch.testing.assert_close(gradient_of(network), reference, rtol=1e-5, atol=1e-7)


def test_an_error_behind_the_first_batch_leaves_a_network_as_it_was():
    network, calls = network_with(Layer), 0

    def breaks(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArithmeticError("on purpose")
        return loss(network, batch)

    before = copy.deepcopy(network)
    with pytest.raises(ArithmeticError):
        zo.LossGradient(network, breaks, zo.CGE(1e-4)).backward(batch(0))
    torch.testing.assert_close(network.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert not network[1].done


def test_the_check_of_tangents_moves_weights_that_were_just_set():
    """The agreement of a true gradient is 1, in the first step as later."""
    network = network_with(Layer)
    box = FromTorch(function, (ArraySpec("u", (3,)),), (ArraySpec("y", (3,)),))
    gradient = zo.TangentGradient(
        network,
        lambda network, batch: loss(network, batch, box),
        boxes=[box],
        tangent=ModelTangent(function),
        trust_policy=zo.tangents.TrustPolicy(check_every=1),
    )
    for step in range(2):
        reference, _, _ = by_autograd(network, batch(step))
        network.zero_grad()
        gradient.backward(batch(step))
        torch.testing.assert_close(gradient_of(network), reference)
        assert gradient.agreement == pytest.approx(1, abs=0.02)
