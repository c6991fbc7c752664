"""The settings of the image-classification task and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tasks.image_classification import limits

__all__ = ["DESCRIPTION", "PRESETS", "Config"]

DESCRIPTION = (
    "An image classifier trained from scratch from values of its loss alone. Compared are DeepZero's sparse "
    "coordinate-wise gradients (deepzero), other ways from function values (cge, rge, sparse-rge, hybrid, "
    "pattern-search), first order (fo, fo-sparse-weight, fo-sparse-gradient) and methods that differentiate "
    "but do not backpropagate (forward-gradient, fa, dfa, align-ada), as --config.methods says."
)


@dataclass(frozen=True)
class Config:
    """Settings of a run. Learning rates are those of SGD; images are in [0, 1] before they are normalised."""

    methods: tuple[str, ...] = ("deepzero", "rge", "fo-sparse-gradient", "fo")
    """What is compared, in the order of the table, out of `limits.ALL_METHODS`."""

    dataset: str = "digits"
    """cifar10 and cifar100 are read from their binary files; digits (scikit-learn's) and shapes (made here)
    need none."""
    train_images: int | None = None
    """Images trained on; None for the data set's usual number, 45,000 of CIFAR."""
    validation_images: int | None = None
    """Images held out of the training part, by which weights are chosen; None for the usual number."""
    test_images: int | None = None
    """Images for the last line; None for the usual number."""
    augment: bool = False
    """Whether training images are shifted and mirrored, anew in every epoch."""
    network: str = "resnet8"
    """A network of `networks.NAMES`, or module:function of your own."""
    width: int | None = 4
    """Channels of the network's first stage; None for its own."""

    epochs: int = 4
    """Passes over the training images."""
    batch: int = 32
    """Images in an optimiser step; what is left at the end of an epoch waits for the next one."""
    learning_rate: float = 0.1
    """Of SGD, reached after the warm-up; from there it falls to zero along a cosine."""
    noisy_learning_rate: float | None = 0.02
    """Of rge, sparse-rge and hybrid, which go along random directions; None for `learning_rate`."""
    forward_learning_rate: float | None = 1e-3
    """Of forward-gradient, whose gradient is along one direction; None for `learning_rate`."""
    feedback_learning_rate: float | None = None
    """Of fa, dfa and align-ada; None for `learning_rate`."""
    warm_up: float = 1.0
    """Epochs in which the learning rate rises from zero."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of SGD, on all parameters."""
    update: str = "all"
    """Of methods on sparse sets: "all", SGD moves every weight, by momentum and decay where the gradient is
    zero; "set", what is outside the step's set stays as it is, momentum included."""
    averaging: float = 0.0
    """Decay of an exponential mean of the weights, which then is what is validated and tested; 0 for none."""

    mu: float = 5e-3
    """Smoothing parameter of all gradients from function values."""
    scheme: str = "forward"
    """Differences: "forward", or "central" with twice the queries (and antithetic directions)."""
    sparsity: float = 0.95
    """Part of the scored weights that a step leaves out."""
    ratios: str = "zo-grasp"
    """How the sparse set spreads over the layers: by a score of `zo.pruning`, or "uniform", alike."""
    pruning_directions: int = 192
    """Random directions of zo-grasp and zo-snip."""
    pruning_images: int = 256
    """Training images by which weights are scored."""
    dense: str = "norms"
    """What is in every set: "norms", all biases and norms, as in the published code; "norms and last", the
    last layer as well; "none", nothing."""
    redraw: str = "epoch"
    """When the set is drawn anew: every "epoch", every `redraw_steps` "steps", or "never"."""
    redraw_steps: int = 1
    """Optimiser steps between two draws, with redraw "steps"."""
    gradual: str = "constant"
    """Whether the sparsity rises to its value: "constant", not; "linear" or "cubic", over the first part."""
    gradual_part: float = 0.5
    """The part of all steps in which it rises."""
    directions: int | None = None
    """Random directions in a step of rge, sparse-rge and hybrid, and tries of pattern-search; None for as
    many as deepzero has coordinates, so that the queries are equal."""
    forward_directions: int = 1
    """Directional derivatives in a step of forward-gradient."""
    pattern_radius: float = 1.0
    """First step of pattern-search; it is halved when no weight's change by it lowers the loss."""
    evaluator: str = "auto"
    """How queries are evaluated: "loop", one after another; "stacked" or "difference", many at once; "auto",
    "difference", whose way follows from sizes, device and mu alone."""

    validate_every: int = 1
    """Epochs between validations."""
    checkpoint_every: int = 50
    """Optimiser steps between checkpoints."""
    device: str = "auto"
    """cpu, cuda, or auto for a GPU where there is one. Results are equal to the bit on one kind of device."""
    threads: int = 1
    """Of torch on the CPU. Results are equal to the bit for equal numbers of threads."""

    def __post_init__(self) -> None:
        """Refuse what would fail, or mislead, only after hours."""
        limits.check_methods(self.methods)
        for name in ("dataset", "scheme", "ratios", "dense", "redraw", "gradual", "update", "evaluator"):
            limits.check_choice(name, getattr(self, name), _CHOICES[name])
        counts = (
            "epochs batch pruning_directions pruning_images redraw_steps forward_directions "
            "validate_every checkpoint_every threads"
        )
        for name in counts.split():
            limits.check_count(name, getattr(self, name))
        for name in ("train_images", "validation_images", "test_images", "directions", "width"):
            if getattr(self, name) is not None:
                limits.check_count(name, getattr(self, name))
        for name in ("learning_rate", "mu", "pattern_radius"):
            limits.check_positive(name, getattr(self, name))
        for name in ("noisy_learning_rate", "forward_learning_rate", "feedback_learning_rate"):
            if getattr(self, name) is not None:
                limits.check_positive(name, getattr(self, name))
        for name in ("momentum", "averaging", "sparsity"):
            limits.check_fraction(name, getattr(self, name))
        if not 0 <= self.warm_up < self.epochs:
            raise limits.refuse("warm_up", f"epochs in [0, {self.epochs}), fewer than all", self.warm_up)
        if not 0 <= self.weight_decay < math.inf:
            raise limits.refuse("weight_decay", "a finite number >= 0", self.weight_decay)
        if not 0 < self.gradual_part <= 1:
            raise limits.refuse("gradual_part", "a fraction in (0, 1]", self.gradual_part)
        if self.train_images is not None and self.train_images < self.batch:
            raise limits.refuse("batch", f"at most the {self.train_images} training images", self.batch)
        if "hybrid" in self.methods and self.sparsity == 0:
            raise limits.refuse(
                "sparsity", "more than 0 for hybrid, which needs weights outside the set", 0.0
            )

    def learning_rate_of(self, method: str) -> float:
        """The highest learning rate of a method."""
        own = None
        if method in limits.NOISY:
            own = self.noisy_learning_rate
        elif method in limits.OTHER_BACKWARD:
            own = self.feedback_learning_rate
        elif method == "forward-gradient":
            own = self.forward_learning_rate
        return self.learning_rate if own is None else own


_CHOICES = {
    "dataset": limits.DATASETS,
    "scheme": limits.SCHEMES,
    "ratios": limits.RATIOS,
    "dense": limits.DENSE,
    "redraw": limits.REDRAWS,
    "gradual": limits.GRADUAL,
    "update": limits.UPDATES,
    "evaluator": limits.EVALUATORS,
}

DEMO = Config()
"""Digits on a small ResNet: it shows every part at work in two minutes."""

SMALL = Config(
    methods=("deepzero", "rge", "fo-sparse-gradient", "fo-sparse-weight", "fo"),
    dataset="shapes",
    train_images=10_000,
    validation_images=1_000,
    test_images=2_000,
    network="resnet8",
    width=8,
    epochs=5,
    batch=128,
    sparsity=0.99,
)
"""Procedural images of 32 x 32 pixels on a ResNet of eight layers."""

PAPER = Config(
    methods=("deepzero", "fo-sparse-gradient", "fo-sparse-weight", "fo"),
    dataset="cifar10",
    validation_images=5_000,
    augment=True,
    network="resnet20",
    width=None,
    epochs=50,
    batch=256,
    sparsity=0.9,
    noisy_learning_rate=None,
    warm_up=3.0,
)
"""The published settings (Chen et al. 2024), but that weights are chosen on 5,000 images of the training
part: the published code chose them on test data. `--config.sparsity` takes 0.8, 0.9, 0.95 and 0.99."""

BEST = replace(
    PAPER,
    dataset="shapes",
    batch=16,
    sparsity=0.95,
    redraw="steps",
    redraw_steps=20,
    checkpoint_every=20,
)
"""What beat the published recipe at equal cost, batch times coordinates times steps, on `shapes` with exact
gradients on the sets (`benchmarks.better_recipe`): smaller batches most of all."""

PRESETS = {"demo": DEMO, "small": SMALL, "paper": PAPER, "best": BEST}
