"""Convolutional networks for small images: ResNets, the simple CNN, a VGG-like one; first weights after He.

Shortcuts of the ResNets have no parameters. First weights: He et al. 2015, "Delving deep into rectifiers",
equation 10.
"""

from __future__ import annotations

from typing import TypeAlias, no_type_check  # for checkers at run time: torch.fx has proxies

import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ConfigurationError

ImageShape: TypeAlias = tuple[int, int, int]
"""Channels, height and width in pixels."""

RGB = (3, 32, 32)
STAGES = 3
RESNET_WIDTH, SIMPLE_WIDTH, VGG_WIDTH = 16, 18, 32  # channels of the first stage


class ShortcutA(nn.Module):
    """Option A: every other pixel, and zeros for the channels that are new, half of them on each side.

    Args:
        before: channels that come in.
        after: channels that go out, at least as many.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = (after - before) // 2
        self.last = after - before - self.first

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """`(rows, before, height, width)` to `(rows, after, ceil(height / 2), ceil(width / 2))`."""
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.first, self.last))


class BasicBlock(nn.Module):
    """ReLU of the shortcut plus two 3 x 3 convolutions with batch norm.

    Args:
        before: the channels of its input.
        after: the channels of its output.
        stride: the stride of the first convolution; 2 goes with more channels.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if stride == 1 else ShortcutA(before, after)
        self.relu2 = nn.ReLU()

    @no_type_check
    def forward(self, x: Tensor) -> Tensor:
        """`(rows, before, height, width)` to `(rows, after, height / stride, width / stride)`."""
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(torch.add(y, self.shortcut(x)))


def resnet(
    depth: int, classes: int = 10, image_shape: ImageShape = RGB, *, width: int = RESNET_WIDTH
) -> nn.Sequential:
    """A ResNet of 6n + 2 layers; 20, 32, 44, 56 are the published ones, 8 suits images of 8 x 8.

    With three channels and ten classes 20, 32, 44 and 56 layers have 0.27, 0.46, 0.66 and 0.85 million
    parameters. Convolutions have no bias, for a batch norm follows each.

    Args:
        depth: 8, 14, 20, ...: the convolutions and the linear layer.
        classes: the number of logits.
        image_shape: the shape of the images, of any height and width.
        width: the channels of the first stage; the next two have twice and four times as many.

    Raises:
        ConfigurationError: the depth is not 6n + 2.
    """
    blocks, remainder = divmod(depth - 2, 2 * STAGES)
    if blocks < 1 or remainder:
        below = max(blocks, 1) * 2 * STAGES + 2
        raise ConfigurationError(
            f"resnet, depth: expected 6n + 2 (8, 14, 20, 26, ...), got {depth}. "
            f"The nearest are {below} and {below + 2 * STAGES}."
        )
    layers: list[nn.Module] = [
        nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(STAGES):
        out_channels = width * 2**stage
        for block in range(blocks):
            layers.append(BasicBlock(channels, out_channels, stride=2 if stage and not block else 1))
            channels = out_channels
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    he(network)
    return network


def simple_cnn(
    layers: int, classes: int = 10, image_shape: ImageShape = RGB, *, width: int = SIMPLE_WIDTH
) -> nn.Sequential:
    """Convolutions 3 x 3 with bias, each with batch norm, ReLU and 2 x 2 max pooling; mean; linear layer.

    Convolutions have stride 1 and a border of one zero, so only pooling (stride 2) makes the maps smaller:
    from 32 x 32 five layers lead to 1 x 1. The mean over what pixels are left feeds the linear layer. With
    18 channels, three colours and ten classes one layer makes 504 + 36 + 190 = 730 parameters and each
    further one 2,934 + 36 = 2,970 more.

    Args:
        layers: number of convolutions; 1 to 5 are the published ones.
        classes: number of logits.
        image_shape: the shape of the images; where one pixel is left of the shorter side, pooling is left
            out.
        width: the channels of every convolution.
    """
    channels, size = image_shape[0], min(image_shape[1:])
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        if size >= 2:
            parts.append(nn.MaxPool2d(2))
        channels, size = width, size // 2
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    he(network)
    return network


def vgg(classes: int = 10, image_shape: ImageShape = RGB, *, width: int = VGG_WIDTH) -> nn.Sequential:
    """Three stages of two convolutions with `width`, 2 `width` and 4 `width` channels.

    With 32 channels, three colours and ten classes it has 288,746 parameters. Convolutions have no bias, for
    a batch norm follows each.

    Args:
        classes: number of logits.
        image_shape: the shape of the images; where one pixel is left of the shorter side, pooling is left
            out.
        width: the channels of the first stage.
    """
    channels, size = image_shape[0], min(image_shape[1:])
    parts: list[nn.Module] = []
    for stage in range(STAGES):
        out_channels = width * 2**stage
        for _ in range(2):
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
            parts += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
            channels = out_channels
        if size >= 2:
            parts.append(nn.MaxPool2d(2))
        size //= 2
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
    he(network)
    return network


def he(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in in convolutions and linear layers, biases of zero.

    Source: He et al. 2015, "Delving deep into rectifiers", equation 10. Norms keep scale 1 and shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
