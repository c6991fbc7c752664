"""`ImageClassification`: a network trained from scratch from values of its loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from tasks.applications.image_classification import networks
from tasks.applications.image_classification.config import PRESETS, Config
from tasks.applications.image_classification.data import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    Epochs,
    ImageData,
    Images,
    load,
)
from tasks.applications.image_classification.data.loading import CLASSES, IMAGE_SHAPES, TRAIN
from tasks.applications.image_classification.looks import LOOKS
from tasks.applications.image_classification.methods import METHODS, ON_SETS
from tasks.applications.image_classification.sparse_set import check_sparsity
from tasks.configuration import code, refused
from tasks.problem.data import Data, evaluating
from tasks.problem.problem import Problem

if TYPE_CHECKING:
    from tasks.problem.method import Method
    from tasks.report.findings import Findings
    from tasks.report.html_report import Block

EXAMPLES = 24  # test images that are shown in the report
ROWS = 500  # images that go through the network together, in validation and test
SCORING = 201  # first word of the key's path of the draw of images to score by


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits `(rows, classes)` and labels `(rows,)` to losses `(rows,)` in nats."""
    return functional.cross_entropy(logits, labels, reduction="none")


class ImageClassification(Problem):
    """An image classifier trained from scratch from values of its loss alone.

    Compared are DeepZero's sparse coordinate-wise gradients (deepzero), other gradients from function values,
    and first order.
    """

    Config = Config
    higher_is_better = True
    presets: ClassVar[Mapping[str, Any]] = PRESETS
    methods: ClassVar[Mapping[str, Method]] = METHODS
    looks: ClassVar[Mapping[str, tuple[str, str]]] = LOOKS

    # images and labels to a known loss of the output, which the evaluator "difference" needs
    objective = zo.OutputLoss(cross_entropy)  # pyright: ignore[reportAssignmentType]

    box: ClassVar[dict[str, Any]] = {}  # none: the black box is the loss itself

    def network(self) -> nn.Module:
        """The network of the settings, with the first weights of the seed at hand."""
        config = self.config
        return networks.make(
            config.network,
            len(CLASSES[config.dataset]),
            IMAGE_SHAPES[config.dataset],
            width=config.width,
            seed=torch.initial_seed(),  # importing a function of the user's may draw from the generator
            find=lambda _: code.find(config, "network"),
        )

    @cached_property
    def images(self) -> ImageData:
        """The data set, on the device that is trained on."""
        config = self.config
        return load(
            config.dataset,
            self.folder,
            train=config.train_images,
            validation=config.validation_images,
            test=config.test_images,
            device=config.device,
        )

    def data(self) -> Data:
        """Batches of normalised images `(rows, channels, height, width)` and labels `(rows,)`."""
        config, images = self.config, self.images
        augmentation = AUGMENTATIONS[config.dataset] if config.augment else NO_AUGMENTATION
        return Data(Epochs(images.train, images.normalisation, augmentation, config.batch).batch)

    @property
    def training_images(self) -> int:
        """The number of training images, known without them."""
        return self.config.train_images or TRAIN[self.config.dataset]

    @property
    def scoring_images(self) -> int:
        """The number of training images that score weights."""
        return min(self.config.pruning_images, self.training_images)

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of a pass over the training images."""
        return self.training_images // self.config.batch

    def scoring_batch(self, seed: int) -> tuple[Tensor, Tensor]:
        """The training images that score weights, not augmented; drawn with the seed."""
        images = self.images
        order = torch.randperm(len(images.train), generator=zo.estimators.Key(seed).generator(SCORING))
        part = images.train.rows(order[: self.scoring_images].to(images.train.labels.device))
        return images.normalisation(part.pixels), part.labels

    def check(self) -> None:
        """Refuse what does not go with the images or the network.

        Raises:
            ConfigurationError: Naming the setting.
        """
        config, images = self.config, self.images
        if len(images.train) < config.batch:
            raise refused("batch", f"at most the {len(images.train)} training images", config.batch)
        if config.augment and AUGMENTATIONS[config.dataset] == NO_AUGMENTATION:
            raise refused(
                "augment",
                f"none for {config.dataset}, whose images must not be mirrored and leave no room for shifts "
                "(--no-augment)",
                True,
            )
        network = self.network()
        on_sets = bool({*config.methods} & {*ON_SETS, "fo-sparse-weight", "rge"})  # rge: as many directions
        check_sparsity(network, config, on_sets=on_sets)

    def validate(self, network: nn.Module) -> float:
        """The part of the validation images that are classified wrongly; NaN if a logit is not finite."""
        part = self.images.validation
        return 1 - _right(self._logits(network, part), part.labels)

    def evaluate(self, network: nn.Module) -> Mapping[str, Any]:
        """Accuracy (part of the test images), loss (nats), and arrays of classified images.

        Arrays are `confusion` `(classes, classes)` int64, images by class (rows) and predicted class
        (columns); `examples` `(examples, channels, height, width)` uint8, with their `labels` and predicted
        classes `taken`, `(examples,)` int64.
        """
        part, classes = self.images.test, len(CLASSES[self.config.dataset])
        logits = self._logits(network, part)
        predictions, few = logits.argmax(dim=1), min(EXAMPLES, len(part))
        loss = float(cross_entropy(logits, part.labels).double().mean())
        counts = torch.bincount(part.labels * classes + predictions, minlength=classes**2)
        return {
            "accuracy": _right(logits, part.labels),
            "loss": loss if math.isfinite(loss) else None,
            "confusion": counts.view(classes, classes),
            "examples": part.pixels[:few],
            "labels": part.labels[:few],
            "taken": predictions[:few],
        }

    def report(self, findings: Findings) -> Sequence[Block]:
        """Sentences on the accuracies, and pictures: layer ratios, confusions, examples."""
        from tasks.applications.image_classification import report

        return report.blocks(findings, self.config)

    @torch.no_grad()
    def _logits(self, network: nn.Module, part: Images) -> Tensor:
        """`(rows, classes)`, in evaluation mode."""
        with evaluating(network):
            normalised = map(self.images.normalisation, part.pixels.split(ROWS))
            return torch.cat([network(images) for images in normalised])


def _right(logits: Tensor, labels: Tensor) -> float:
    if not torch.isfinite(logits).all():
        return math.nan
    return float((logits.argmax(dim=1) == labels).double().mean())
