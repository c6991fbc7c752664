"""The settings that reproductions start from, by size: the simple CNN, and the residual network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from tasks.applications.image_classification.config import DEMO, PAPER, Config
from tasks.applications.image_classification.data.loading import TRAIN

Size = Literal["ci", "small", "paper"]
SIZES: tuple[Size, ...] = ("ci", "small", "paper")


def epoch(config: Config) -> int:
    """Optimiser steps of a pass over the training images."""
    return (config.train_images or TRAIN[config.dataset]) // config.batch


def in_epochs(
    config: Config, epochs: int, *, warm_up: float = 1.0, validate_every: int | None = None
) -> Config:
    """The settings with steps for so many passes.

    Args:
        config: With the images and the batch.
        epochs: Passes over the training images.
        warm_up: Passes in which the learning rate rises.
        validate_every: Passes between validations; `epochs` if None.
    """
    every = (validate_every or epochs) * epoch(config)
    return replace(config, steps=epochs * epoch(config), warm_up=warm_up / epochs, validate_every=every)


def passes(config: Config) -> int:
    """How many times the settings go through the training images."""
    return round(config.steps / epoch(config))


_CI = replace(
    DEMO,
    train_images=64,
    validation_images=50,
    test_images=100,
    width=3,
    batch=32,
    pruning_directions=4,
    pruning_images=32,
    noisy_learning_rate=0.01,
)
_CI = in_epochs(_CI, 2, warm_up=0.5)

# Ten minutes pay for some 100,000 random or a million coordinate-wise queries of a small network. On `shapes`
# these are too few to leave the first plateau; on digits they are not.
_DIGITS = replace(
    DEMO,
    train_images=1200,
    validation_images=297,
    test_images=300,
    pruning_directions=64,
    evaluator="difference",
)


def simple(size: Size) -> Config:
    """Settings of the simple CNN, dense; `small` has 5 channels in the place of 18."""
    if size == "ci":
        return replace(_CI, network="simple-730", sparsity=0.0, ratios="uniform")
    if size == "small":
        dense = replace(_DIGITS, network="simple-3700", width=5, sparsity=0.0, ratios="uniform")
        dense = replace(dense, batch=50, learning_rate=0.3, noisy_learning_rate=0.05)
        return in_epochs(dense, 6, validate_every=4)
    return replace(PAPER, network="simple-6670", augment=False, sparsity=0.0, ratios="uniform")


def residual(size: Size) -> Config:
    """Settings of the residual network, sparse sets; `small` is ResNet-8 with 8 channels at sparsity 0.99."""
    if size == "ci":
        return replace(_CI, network="resnet8", width=2, sparsity=0.9)
    if size == "small":
        sparse = replace(_DIGITS, network="resnet8", width=8, sparsity=0.99)
        return in_epochs(sparse, 12, validate_every=4)
    return PAPER


def differs(size: Size, configs: Sequence[Config]) -> str:
    """What keeps a size from being the published experiment, in a sentence about all its groups."""
    if size == "paper":
        return (
            "Settings are the published ones; weights are chosen on 5,000 held-out training images, not on "
            "test images; estimators and scores follow the formulas where the published code does not."
        )

    def listed(values: Iterable[object]) -> str:
        return " or ".join(dict.fromkeys(map(str, values)))

    of_it = "to show that the script runs, no more" if size == "ci" else "in place of CIFAR-10"
    images = listed(f"{config.train_images:,}" for config in configs)
    widths = listed("its own" if config.width is None else config.width for config in configs)
    return (
        f"Ours is on {listed(config.dataset for config in configs)} {of_it}: {images} images, "
        f"{listed(map(passes, configs))} epochs of batches of {listed(config.batch for config in configs)}, "
        f"networks with {widths} channels in the first stage (published: 50,000 images, 50 epochs of 256). "
        "So columns do not compare; what does is how each column moves from line to line."
    )
