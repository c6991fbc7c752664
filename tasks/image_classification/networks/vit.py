"""A vision transformer for small images, written out in linear layers, norms and products.

Source: Dosovitskiy et al. 2021 (blocks with the norm first), Touvron et al. 2021 (the size "tiny": 192
features, 12 blocks, 3 heads). The mean over tokens is classified, so there is no class token.
"""

from __future__ import annotations

from typing import no_type_check  # for checkers at run time: torch.fx calls a forward with proxies

import torch
from torch import Tensor, nn

from tasks.errors import ConfigurationError
from tasks.image_classification.networks.convolutional import he

WIDTH, DEPTH, HEADS, PATCH = 192, 12, 3, 4
DEVIATION = 0.02  # of first weights: Dosovitskiy et al. 2021, after BERT
EXPANSION = 4  # hidden features of the two-layer network over those of a token


class Tokens(nn.Module):
    """Feature maps as a sequence: `(rows, features, height, width)` to `(rows, tokens, features)`."""

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """Pixels in reading order."""
        return x.flatten(2).transpose(1, 2)


class Positions(nn.Module):
    """Adds to each token a learned vector of its place."""

    def __init__(self, tokens: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, features))
        nn.init.trunc_normal_(self.weight, std=DEVIATION)

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """`(rows, tokens, features)` to the same."""
        return x + self.weight


class Attention(nn.Module):
    """Self-attention with several heads."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (features // heads) ** -0.5
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features)
        self.value = nn.Linear(features, features)
        self.softmax = nn.Softmax(dim=-1)
        self.out = nn.Linear(features, features)

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """`(rows, tokens, features)` to the same."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        weights = self.softmax(torch.matmul(query, key.transpose(-2, -1)) * self.scale)
        return self.out(torch.matmul(weights, value).transpose(1, 2).flatten(2))

    @no_type_check
    def _split(self, x: Tensor) -> Tensor:
        """`(rows, tokens, features)` to `(rows, heads, tokens, features / heads)`."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer network, each on a layer norm and added to what came in."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attention = Attention(features, heads)
        self.norm2 = nn.LayerNorm(features)
        hidden = EXPANSION * features
        self.layers = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, features))

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """`(rows, tokens, features)` to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.layers(self.norm2(x))


class TokenMean(nn.Module):
    """`(rows, tokens, features)` to `(rows, features)`."""

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """The mean over tokens."""
        return x.mean(1)


def vit(
    classes: int = 10,
    channels: int = 3,
    *,
    width: int = WIDTH,
    depth: int = DEPTH,
    heads: int = HEADS,
    patch: int = PATCH,
    size: tuple[int, int] = (32, 32),
) -> nn.Sequential:
    """A vision transformer; the defaults are ViT-Tiny on patches of 4 x 4 pixels.

    It has 5.36 million parameters with three colours and ten classes on 32 x 32 pixels (64 tokens).

    Args:
        classes: number of logits.
        channels: of the images.
        width: features of a token.
        depth: number of blocks.
        heads: of the attention; they divide `width`.
        patch: side of the square that makes a token, in pixels; it divides both sides of the images.
        size: height and width of the images, in pixels.

    Raises:
        ConfigurationError: `width` is not a multiple of `heads`, or `size` not one of `patch`.
    """
    if width % heads:
        raise ConfigurationError(
            f"vit, width: expected a multiple of {heads} heads, got {width}. "
            f"Take {width // heads * heads or heads}."
        )
    if any(side % patch for side in size):
        raise ConfigurationError(
            f"vit, size: expected sides that are multiples of the patch, {patch}, got {size[0]} x {size[1]}. "
            "Give images of another size, or another patch."
        )
    tokens = (size[0] // patch) * (size[1] // patch)
    network = nn.Sequential(
        nn.Conv2d(channels, width, patch, stride=patch),
        Tokens(),
        Positions(tokens, width),
        *(Block(width, heads) for _ in range(depth)),
        nn.LayerNorm(width),
        TokenMean(),
        nn.Linear(width, classes),
    )
    he(network)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=DEVIATION)
    return network
