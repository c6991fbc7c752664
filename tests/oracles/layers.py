"""A small problem for each common layer type, and whole networks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.zo.boxes import Sine


def squared_output(network: nn.Module, batch: Any) -> Tensor:
    """Asymmetric in the output, so that no two entries of it can be mistaken for each other."""
    y = network(batch).flatten(1)
    return (y - torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)).square().mean(dim=1)


def classified(network: nn.Module, batch: Any) -> Tensor:
    x, label = batch
    return cross_entropy(network(x), label, reduction="none")


@dataclass(frozen=True)
class Case:
    """A network and a batch, made anew (and the same) at every call of `make`."""

    name: str
    network: Callable[[], nn.Module]
    batch: Callable[[], Any]
    objective: Callable[[nn.Module, Any], Tensor] = squared_output

    def make(self, dtype: torch.dtype, *, training: bool) -> tuple[nn.Module, Any]:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            network = self.network().to(dtype).train(training)
            for tensor in [*network.parameters(), *network.buffers()]:
                if tensor.is_floating_point():  # norms start with ones and zeros, which hide mistakes
                    tensor.data += 0.3 * torch.rand_like(tensor)
            batch = self.batch()
        cast = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        return network, tuple(map(cast, batch)) if isinstance(batch, tuple) else cast(batch)

    def __str__(self) -> str:
        return self.name


def layer(name: str, make: Callable[[], nn.Module], *shape: int) -> Case:
    """The layer between two that make it see all kinds of numbers; `shape` is a row's."""
    return Case(name, lambda: nn.Sequential(make(), nn.Tanh()), lambda: torch.randn(3, *shape))


LAYERS = [
    layer("linear", lambda: nn.Linear(3, 4), 3),
    layer("linear over tokens", lambda: nn.Linear(3, 2), 4, 3),
    Case("embedding", lambda: nn.Embedding(6, 3, padding_idx=2), lambda: torch.randint(0, 6, (3, 5))),
    Case("one word", lambda: nn.Embedding(4, 3), lambda: torch.tensor([3, 0, 3])),
    layer("conv1d", lambda: nn.Conv1d(2, 3, 3, stride=2, padding=2), 2, 7),
    layer("conv2d", lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 0), stride=(1, 2)), 2, 5, 6),
    layer("conv3d", lambda: nn.Conv3d(2, 2, (2, 1, 3), padding=1, dilation=(1, 2, 1)), 2, 3, 4, 3),
    layer("grouped", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, dilation=2), 4, 5, 5),
    layer("depthwise", lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False), 3, 5, 4),
    layer("same, even kernel", lambda: nn.Conv2d(2, 2, (2, 4), padding="same", dilation=(1, 2)), 2, 6, 7),
    layer("valid", lambda: nn.Conv1d(2, 2, 3, padding="valid"), 2, 6),
    *(
        layer(mode, lambda mode=mode: nn.Conv2d(2, 2, 3, padding=(2, 1), padding_mode=mode), 2, 5, 4)
        for mode in ("circular", "reflect", "replicate")
    ),
    layer("circular, same", lambda: nn.Conv1d(2, 2, 4, padding="same", padding_mode="circular"), 2, 6),
    layer("transposed 1d", lambda: nn.ConvTranspose1d(2, 3, 3, stride=3, padding=1, output_padding=2), 2, 4),
    layer("transposed 2d", lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, dilation=2), 4, 3, 4),
    layer(
        "transposed 3d", lambda: nn.ConvTranspose3d(2, 2, (1, 3, 2), stride=(2, 1, 2), padding=0), 2, 2, 3, 2
    ),
    layer("batch norm of features", lambda: nn.BatchNorm1d(4), 4),
    layer("batch norm 1d", lambda: nn.BatchNorm1d(3), 3, 4),
    layer("batch norm 2d", lambda: nn.BatchNorm2d(3), 3, 4, 2),
    layer("batch norm 3d", lambda: nn.BatchNorm3d(2), 2, 2, 3, 2),
    layer("batch norm without running", lambda: nn.BatchNorm2d(3, track_running_stats=False), 3, 4, 2),
    layer("group norm", lambda: nn.GroupNorm(2, 4), 4, 3, 3),
    layer("instance norm", lambda: nn.InstanceNorm2d(3, affine=True), 3, 4, 3),
    layer(
        "instance norm, running",
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        3,
        4,
    ),
    layer("layer norm", lambda: nn.LayerNorm(4), 3, 4),
    layer("layer norm of two axes", lambda: nn.LayerNorm((3, 4), bias=False), 2, 3, 4),
    layer("rms norm", lambda: nn.RMSNorm(5), 2, 5),
]


class Residual(nn.Module):
    """ResNet's basic block."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.skip(x)).relu()


class Transformer(nn.Module):
    """Words to a label; the position's own parameter makes the whole network run on copies."""

    def __init__(self, *, position: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.randn(5, 4)) if position else None
        block = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.words(x) if self.position is None else self.words(x) + self.position
        return self.head(self.blocks(tokens).mean(dim=1))


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too; a layer called twice; a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.inner = nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(torch.tanh(self.inner(self.words(x))))
        return self.out(hidden).mean(dim=1)


class Scaled(nn.Module):
    """A parameter of its own around tied children: all of it runs on copies."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(torch.tanh(self.a(x) * self.scale)))


class Borrowed(nn.Module):
    """A layer inside a module that runs on copies, and called beside it as well."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = Scaled()
        self.again = self.scaled.a

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.scaled(self.again(x)))


def parametrized() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(normed, nn.Tanh(), nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))


class Resized(nn.Module):
    """A transposed convolution that is told its output's size."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(2, 3, 3, stride=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, [11]).tanh()


def images(size: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.randn(4, 3, size, size), torch.tensor([2, 0, 1, 1]))


def rollout(network: nn.Module, batch: Tensor) -> Tensor:
    """A network in the loop with a black box."""
    box, state, error = Sine(), batch, torch.zeros(len(batch), dtype=batch.dtype)
    for _ in range(4):
        state = box(state) + 0.2 * network(state)
        error = error + (state - 0.3).square().mean(dim=1)
    return error


NETWORKS = [
    Case(
        "mlp",
        lambda: nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.4), nn.Linear(8, 2)),
        lambda: torch.randn(5, 3),
    ),
    Case(
        "vgg",
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)),
        ),
        images(8),
        classified,
    ),
    Case(
        "resnet",
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            *(Residual(4, 4, 1), Residual(4, 6, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        ),
        images(6),
        classified,
    ),
    Case(
        "depthwise",
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, groups=3, padding=1), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 4, 1)),
            *(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4), nn.GroupNorm(1, 4), nn.SiLU()),
            *(nn.Flatten(), nn.Linear(4 * 8 * 8, 3)),
        ),
        images(4),
        classified,
    ),
    Case(
        "transformer",
        lambda: Transformer(position=False),
        lambda: (torch.randint(0, 7, (4, 5)), torch.tensor([0, 2, 1, 1])),
        classified,
    ),
    Case(
        "transformer on copies",
        lambda: Transformer(position=True),
        lambda: (torch.randint(0, 7, (4, 5)), torch.tensor([0, 2, 1, 1])),
        classified,
    ),
    Case(
        "tied",
        Tied,
        lambda: (torch.randint(0, 5, (4, 3)), torch.tensor([0, 4, 1, 1])),
        classified,
    ),
    Case("tied on copies", Scaled, lambda: torch.randn(4, 3)),
    Case("borrowed", Borrowed, lambda: torch.randn(4, 3)),
    Case("resized", Resized, lambda: torch.randn(4, 2, 3)),
    Case("parametrized", parametrized, lambda: torch.randn(4, 3)),
    Case(
        "rollout",
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)),
        lambda: torch.randn(3, 4),
        rollout,
    ),
]
