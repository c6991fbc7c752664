"""The settings of image classification, and its presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, arg, configure

from tasks import configuration
from tasks.configuration import Count, Fraction, NamesCode, NotNegative, Positive


def ships(network: str, arguments: Sequence[str]) -> bool:
    """Say whether the name is of a network that ships, and not of a function of the user's."""
    return not (":" in network or network.endswith(".py"))


@configure(OmitArgPrefixes)
@dataclass(frozen=True)
class ZerothOrder(configuration.ZerothOrder):
    """Settings of methods that train by differences of values."""

    mu: Positive = 5e-3
    """Smoothing parameter of all gradients from function values."""
    directions: Annotated[Count | None, arg(aliases=("--q",))] = None
    """Random directions in a step of rge and sparse-rge; None for as many as deepzero has
    coordinates, so that the queries are equal."""


@dataclass(frozen=True)
class Config(configuration.Config):
    """Settings of a run. Learning rates are for SGD; images are in [0, 1] before they are normalised."""

    methods: tuple[str, ...] = ("deepzero", "rge", "fo-sparse-gradient", "fo")
    """What is compared, in the order of the table."""

    dataset: Literal["cifar10", "cifar100", "digits", "shapes"] = "digits"
    """cifar10 and cifar100 are read from their binary files; digits (scikit-learn's) and shapes (made here)
    need none."""
    train_images: Count | None = None
    """Images trained on; None for the data set's usual number, 45,000 of CIFAR."""
    validation_images: Count | None = None
    """Images held out of the training part, by which weights are chosen; None for the usual number."""
    test_images: Count | None = None
    """Images for the last line; None for the usual number."""
    augment: bool = False
    """Whether training images are shifted and mirrored, anew in every pass over them."""
    network: Annotated[str, NamesCode(ships)] = "resnet8"
    """A network of `networks.NAMES`, or module:function of your own."""
    width: Count | None = 4
    """Channels of the network's first stage; None for its own."""

    steps: Count = 148
    """Optimiser steps of each method. A pass over the images has as many as whole batches are in them."""
    batch: Count = 32
    """Images in an optimiser step; what is left at the end of a pass waits for the next one."""
    learning_rate: Positive = 0.1
    """Of SGD, reached after the warm-up."""
    noisy_learning_rate: Positive | None = 0.02
    """Of rge and sparse-rge, which go along random directions; None for `learning_rate`."""
    warm_up: Fraction = 0.25
    """The part of all steps in which the learning rate rises from zero; the schedule begins after it."""
    momentum: Fraction = 0.9
    """Of SGD."""
    weight_decay: NotNegative = 5e-4
    """Of SGD, on all parameters."""

    sparsity: Fraction = 0.95
    """Part of the scored weights, all but biases and norms, that a step leaves out."""
    ratios: Literal["zo-grasp", "grasp", "magnitude", "uniform"] = "zo-grasp"
    """How the sparse set spreads over the layers: by a score of `zo.pruning`, or "uniform", the same part."""
    pruning_directions: Count = 192
    """Random directions of zo-grasp."""
    pruning_images: Count = 256
    """Training images by which weights are scored."""
    redraw: Literal["epoch", "steps", "never"] = "epoch"
    """When the set is drawn anew: every pass over the images ("epoch"), every `redraw_steps` "steps", or
    "never"."""
    redraw_steps: Count = 1
    """Optimiser steps between two draws, with redraw "steps"."""
    evaluator: Literal["auto", "loop", "stacked", "difference"] = "auto"
    """How queries are evaluated: "loop", one after another; "stacked" or "difference", many at once; "auto",
    "difference", whose way follows from sizes, device and mu alone."""

    validate_every: Count = 37
    """Optimiser steps between validations."""
    zeroth_order: ZerothOrder = ZerothOrder()
    """Settings of methods that train by differences of values."""


DEMO = Config()
"""Digits on a small ResNet, four passes: it shows every part at work in two minutes."""

SMALL = Config(
    methods=("deepzero", "rge", "fo-sparse-gradient", "fo-sparse-weight", "fo"),
    dataset="shapes",
    train_images=10_000,
    validation_images=1_000,
    test_images=2_000,
    width=8,
    steps=390,
    batch=128,
    warm_up=0.2,
    validate_every=78,
    sparsity=0.99,
)
"""Procedural images of 32 x 32 pixels on a ResNet of eight layers, five passes."""

PAPER = Config(
    methods=("deepzero", "fo-sparse-gradient", "fo-sparse-weight", "fo"),
    dataset="cifar10",
    validation_images=5_000,
    augment=True,
    network="resnet20",
    width=None,
    steps=8750,
    batch=256,
    warm_up=0.06,
    validate_every=175,
    sparsity=0.9,
    noisy_learning_rate=None,
)
"""The published settings (Chen et al. 2024): 50 passes, three of them to warm up. But weights are chosen on
5,000 images of the training part: the published code chose them on test data. `--sparsity` takes 0.8, 0.9,
0.95 and 0.99."""

BEST = replace(
    PAPER,
    dataset="shapes",
    steps=62_500,
    batch=16,
    validate_every=1250,
    sparsity=0.95,
    redraw="steps",
    redraw_steps=20,
)
"""What beat the published recipe at equal cost, batch times coordinates times steps, on `shapes` with exact
gradients on the sets: smaller batches most of all."""

PRESETS = {"demo": DEMO, "small": SMALL, "paper": PAPER, "best": BEST}
