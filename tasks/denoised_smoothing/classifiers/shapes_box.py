"""The classifier of `shapes` that ships: a small convolutional network on 32 x 32 images in colour.

It is trained without noise beyond that of the images, so that it is right for about nine clean images in ten
and for about half of them at sigma .25.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from blackbox import ArraySpec
from blackbox.adapters import TorchModule
from tasks.shapes import NAMES, SIDE, shapes

SEED = 20  # of the images that it is trained on, and nothing else is
IMAGES, STEPS, BATCH, LEARNING_RATE = 12_000, 800, 128, 5e-3
WIDTHS = (3, 16, 32, 64)  # channels, halving height and width each time


def convolutional(images: int = IMAGES, steps: int = STEPS) -> TorchModule:
    """The classifier, trained anew: some 20 seconds of one core.

    Args:
        images: to train on.
        steps: of Adam.
    """
    pixels, labels = shapes(images, SEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # sums of another number of threads round otherwise, and the box would be another
    try:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            network = _network()
            _train(network, pixels, labels, steps)
    finally:
        torch.set_num_threads(threads)
    image, logits = ArraySpec("image", (3, SIDE, SIDE)), ArraySpec("logits", (len(NAMES),))
    return TorchModule(network, [image], [logits], max_rows=1000)


def _network() -> nn.Module:
    layers: list[nn.Module] = []
    for given, made in pairwise(WIDTHS):
        layers += [nn.Conv2d(given, made, 3, stride=2, padding=1), nn.BatchNorm2d(made), nn.ReLU()]
    side = SIDE // 2 ** (len(WIDTHS) - 1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * side**2, len(NAMES)))


def _train(network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    with torch.enable_grad():
        for _ in range(steps):
            index = torch.randint(len(labels), (BATCH,))
            loss = functional.cross_entropy(network(pixels[index].float() / 255), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
