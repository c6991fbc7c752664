"""Architectures as they are published, small."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.networks.case import INPUTS, ROWS, WIDTH, Case, around, images


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022: depthwise convolution, layer norm over channels, two 1 x 1 layers, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(0.3 * torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.scale * self.narrow(F.gelu(self.wide(h)))
        return x + h.permute(0, 3, 1, 2)


class UNet(nn.Module):
    """Ronneberger et al. 2015, of one level: down, up, and the skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 2, 3, padding=1)
        self.down = nn.Conv2d(2, 3, 2, stride=2)
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.leave = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.silu(self.enter(x))
        deep = F.silu(self.down(F.avg_pool2d(skip, 1)))
        return self.leave(torch.cat([skip, torch.tanh(self.up(deep))], dim=1))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018: channels are scaled by what a small network makes of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3)
        self.squeeze, self.excite = nn.Linear(channels, 2), nn.Linear(2, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.conv(x))
        scale = torch.sigmoid(self.excite(F.silu(self.squeeze(h.mean(dim=(2, 3))))))
        return h * scale[:, :, None, None]


class MaskedAttention(nn.Module):
    """`nn.MultiheadAttention` with a bias, a causal mask, and a position of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(0.3 * torch.randn(3, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)
        self.register_buffer("mask", torch.ones(3, 3).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.position
        return self.head(h + self.attention(h, h, h, attn_mask=self.mask, need_weights=False)[0])


class HandWrittenAttention(nn.Module):
    """Scaled dot products with a learned bias of relative positions added to a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2)
        self.relative = nn.Parameter(0.3 * torch.randn(2, 3, 3))
        self.register_buffer("mask", torch.full((3, 3), -1e9).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative + self.mask)
        return self.out(h.transpose(1, 2).flatten(2))


class FourierLayer(nn.Module):
    """Li et al. 2021, an FNO layer: low frequencies times weights that are held as pairs of real numbers."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.pairs = nn.Parameter(0.3 * torch.randn(channels, channels, modes, 2))
        self.local = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        weights = torch.view_as_complex(self.pairs)
        low = torch.einsum("bim,iom->bom", spectrum[..., : self.modes], weights)
        out = torch.zeros_like(spectrum)
        out[..., : self.modes] = low
        return F.gelu(torch.fft.irfft(out, n=x.shape[-1]) + self.local(x))


class MessagePassing(nn.Module):
    """A graph network on a fixed graph: messages along edges are added up at their ends by `index_add`."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(4, 3), nn.Linear(5, 2)
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 3, 1]))
        self.register_buffer("end", torch.tensor([1, 2, 0, 0, 2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        along = torch.cat([x[:, self.source], x[:, self.end]], dim=2)
        messages = self.gain * torch.tanh(self.message(along))
        summed = messages.new_zeros(len(x), 4, 3).index_add(1, self.end, messages)
        return self.update(torch.cat([x, summed], dim=2))


class ScatterMessages(MessagePassing):
    """The same with `scatter_add_` in place."""

    def forward(self, x: Tensor) -> Tensor:
        along = torch.cat([x[:, self.source], x[:, self.end]], dim=2)
        messages = self.gain * torch.tanh(self.message(along))
        index = self.end[None, :, None].expand_as(messages)
        summed = messages.new_zeros(len(x), 4, 3).scatter_add_(1, index, messages)
        return self.update(torch.cat([x, summed], dim=2))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = kind(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0])


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(self.words(x)))).mean(dim=1)


class Shared(nn.Module):
    """Two networks in a `ModuleDict` that have a layer in common."""

    def __init__(self) -> None:
        super().__init__()
        common = nn.Linear(INPUTS, WIDTH)
        first = nn.Sequential(common, nn.Tanh(), nn.Linear(WIDTH, 2))
        second = nn.Sequential(common, nn.SiLU(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))
        self.networks = nn.ModuleDict({"first": first, "second": second})

    def forward(self, x: Tensor) -> Tensor:
        return self.networks["first"](x) * self.networks["second"](x + 1)


def normed_convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 2)),
        *(nn.InstanceNorm2d(2, affine=True), nn.Flatten(), nn.Linear(8, 1)),
    )


def batch_normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Dropout(0.3), nn.Flatten()),
        *(nn.Linear(12, 3), nn.BatchNorm1d(3), nn.SiLU(), nn.Linear(3, 1)),
    )


def weight_normed() -> nn.Module:
    normed = parametrizations.weight_norm(nn.Linear(INPUTS, 3))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def spectral_normed() -> nn.Module:
    normed = parametrizations.spectral_norm(nn.Linear(INPUTS, 3))
    return nn.Sequential(normed, nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def words() -> Tensor:
    return torch.randint(0, 5, (ROWS, 3))


class NarrowInside(nn.Module):
    """A part in float32 between layers in float64."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 16).double(), nn.Linear(16, 2).double()
        self.inner = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, x):
        return self.last(self.inner(self.first(x).float()).double())


ORDINARY = [
    Case("mlp", lambda: around(nn.LayerNorm(WIDTH), nn.PReLU())),
    Case("convnext", lambda: nn.Sequential(ConvNeXtBlock(3), nn.Conv2d(3, 1, 2)), images(3, 4)),
    Case("unet", UNet, images(1, 4)),
    Case("squeeze excitation", lambda: SqueezeExcitation(3), images(1, 5)),
    Case("attention, mask and bias", MaskedAttention, lambda: torch.randn(ROWS, 3, WIDTH)),
    Case("attention, dropout", lambda: MaskedAttention(dropout=0.3), lambda: torch.randn(ROWS, 3, WIDTH)),
    Case("attention by hand", HandWrittenAttention, lambda: torch.randn(ROWS, 3, WIDTH)),
    Case("group norm", normed_convolutions, images(1, 5)),
    Case("batch norm", batch_normed, images(1, 4)),
    Case("weight norm", weight_normed),
    Case("spectral norm", spectral_normed),
    Case(
        "fno", lambda: nn.Sequential(FourierLayer(2, 3), nn.Conv1d(2, 1, 1)), lambda: torch.randn(ROWS, 2, 8)
    ),
    Case("index_add", MessagePassing, lambda: torch.randn(ROWS, 4, 2)),
    Case("scatter_add", ScatterMessages, lambda: torch.randn(ROWS, 4, 2)),
    Case("gru", lambda: Recurrent(nn.GRU), lambda: torch.randn(ROWS, 4, 2)),
    Case("embedding", lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 2)), words),
    Case("tied weights", Tied, words),
    Case("two networks, one layer shared", Shared),
]
