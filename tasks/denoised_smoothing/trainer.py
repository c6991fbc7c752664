"""`Trainer`: what the methods of one seed share: data, first weights, batches, and the loop that trains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from tasks.denoised_smoothing.classifiers.stack import Box
from tasks.denoised_smoothing.config import Config
from tasks.denoised_smoothing.data import Data, ImageSet
from tasks.denoised_smoothing.losses import predictions
from tasks.denoised_smoothing.networks import DnCNN
from tasks.progress import Progress
from tasks.runs.folder import Run
from tasks.training import Stateful, TrainingOutcome, train
from tasks.workers import group

KINDS = ("clean images", "mu", "layer ratios", "validation", "training")  # what queries are asked for


class Queries:
    """Images that the classifier was asked for by a stage, by what for; kept in its checkpoint."""

    def __init__(self, box: Box | None = None, **before: int) -> None:
        self.box = box
        self.counts = Counter({name.replace("_", " "): count for name, count in before.items()})

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    @contextmanager
    def asking(self, kind: str) -> Iterator[None]:
        """Count what the block asks for, in all processes of the run, which all come here."""
        assert self.box is not None
        before = self.box.asked
        yield
        (asked,) = group.total(self.box.asked - before)
        self.counts[kind] += asked

    def state_dict(self) -> dict[str, int]:
        """The counts."""
        return dict(self.counts)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from counts."""
        self.counts = Counter(state_dict)


@dataclass(frozen=True)
class Trained:
    """A method's denoiser with the weights that validation chose, and what its training took.

    Attributes:
        network: images to images, not clamped; None for no denoiser.
        outcome: of its stage.
        queries: what it asked for.
    """

    network: nn.Module | None
    outcome: TrainingOutcome
    queries: Queries


@dataclass(frozen=True)
class Batch:
    """Noisy images, the clean ones, and the classes that they are to be taken for."""

    noisy: Tensor
    clean: Tensor
    target: Tensor


@dataclass(frozen=True)
class Trainer:
    """What the methods of one seed share.

    Attributes:
        run, config, data, box, progress: of the run.
        seed: of the run's seeds; it gives first weights and all draws.
        targets: `(training images,)`, the class that each is to be taken for.
        clean_queries: asked for them.
    """

    run: Run
    config: Config
    data: Data
    box: Box
    seed: int
    progress: Progress
    targets: Tensor
    clean_queries: int

    @cached_property
    def images(self) -> ImageSet:
        """Those of the training images that are used through the classifier."""
        return used(self.config, self.data)

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Noisy validation images and their labels: the same for all methods and steps of the seed."""
        return self.data.validation.noisy(self.config.validation_images, self.seed, self.config.sigma)

    def network(self) -> DnCNN:
        """A denoiser with this seed's first weights."""
        config = self.config
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.seed)
            return DnCNN(self.data.shape[0], config.depth, config.width, config.batch_norm)

    def batch(self, i: int, rows: int) -> Batch:
        """Images for step i: the same for every method that takes as many."""
        noisy, clean, index = self.images.batch(self.seed, i, rows, self.config.sigma)
        return Batch(noisy, clean, self.targets[index])

    @torch.no_grad()
    def held_out_error(self, denoise: Callable[[Tensor], Tensor]) -> float:
        """Share of noisy validation images that the classifier itself, asked, takes for another class."""
        noisy, labels = self.held_out
        wrong = 0
        for some, label in zip(noisy.split(256), labels.split(256), strict=True):
            wrong += int((predictions(self.box.scores(denoise(some).clamp(0, 1))) != label).sum())
        return wrong / len(labels)

    def train(
        self,
        stage: str,
        steps: int,
        step: Callable[[int], Mapping[str, float]],
        state: Mapping[str, Stateful],
        validate: Callable[[], float],
        validations: int,
    ) -> TrainingOutcome:
        """Take the steps that are left of a stage, which validates and checkpoints on its way.

        Weights count only if they are better on held-out data than all before, those of the start included.
        """
        network = state["network"]
        assert isinstance(network, nn.Module)

        def evaluated() -> float:
            network.eval()
            try:
                return validate()
            finally:
                network.train()

        network.train()
        outcome = train(
            self.run,
            f"seed-{self.seed}/{stage}",
            steps=steps,
            step=step,
            state=state,
            model="network",
            validate=evaluated,
            validate_every=math.ceil(steps / validations),
            checkpoint_every=self.config.checkpoint_every,
            progress=self.progress,
            boxes=[self.box.own],
        )
        network.eval()
        return outcome


def used(config: Config, data: Data) -> ImageSet:
    """The training images that are used through the classifier."""
    return ImageSet(data.train.source, data.train.index[: config.train_images])


def cosine(optimizer: torch.optim.Optimizer, start: float, step: int, steps: int) -> None:
    """Set the learning rate of a step: from `start` down to zero; it hangs on the step alone."""
    for weights in optimizer.param_groups:
        weights["lr"] = start * 0.5 * (1 + math.cos(math.pi * step / steps))
