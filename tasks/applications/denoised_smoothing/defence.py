"""`Defence`: classifier and denoiser, the images, the loss of both together, and the held-out error."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.notices import warn
from tasks.applications.denoised_smoothing import data, networks
from tasks.applications.denoised_smoothing.classifiers import stack
from tasks.applications.denoised_smoothing.config import Config
from tasks.applications.denoised_smoothing.data import ImageSet, Sets
from tasks.applications.denoised_smoothing.networks import UNKNOWN, box_loss, image_loss, predictions
from tasks.errors import ProblemWarning
from tasks.folder import checkpoint, stamp
from tasks.folder.run import Run, stage_name
from tasks.problem.data import Data, evaluating
from tasks.problem.problem import Problem
from tasks.training.setup import Setup
from zo.errors import FailedQueriesError

Batch = tuple[Tensor, Tensor, Tensor]  # noisy, clean, target


class Defence(Problem):
    """The loss and data of a denoiser; its training and certification stand above it."""

    Config = Config
    run_folder: Path | None = None

    def begin(self, folder: Path) -> None:
        """Count queries in the run's folder, and keep answers there."""
        if folder == self.run_folder:
            return
        self.run_folder = folder
        for part in ("classifier", "box", "targets"):
            self.__dict__.pop(part, None)

    @cached_property
    def images(self) -> Sets:
        """The images to train on, to choose by and to certify."""
        return data.load(self.config, self.folder)

    @cached_property
    def used(self) -> ImageSet:
        """The training images that are used through the classifier."""
        train = self.images.train
        return ImageSet(train.source, train.index[: self.config.train_images])

    @cached_property
    def _service(self) -> BlackBoxFunction:
        return stack.classifier(self.config, self.folder)

    @cached_property
    def classifier(self) -> stack.DefendedClassifier:
        """The classifier, with all that stands around it."""
        return stack.make_box(self.config, self.images, self.run_folder, self._service)

    @cached_property
    def box(self) -> BlackBoxFunction:
        """Images to scores."""
        return self.classifier.scores

    def network(self) -> nn.Module:
        """The denoiser."""
        config = self.config
        return networks.DnCNN(self.images.shape[0], config.depth, config.width, config.batch_norm)

    @property
    def latent_size(self) -> int:
        """Numbers of a latent vector."""
        config = self.config
        sizes = config.latent_widths, config.latent, config.latent_convolutions
        return networks.latent_size(self.images.shape, *sizes)

    @cached_property
    def data(self) -> Data:
        """Noisy images, clean ones, and the classes that they are to be taken for."""
        return Data(lambda seed, step: self.batch(seed, step, self.config.batch))

    def batch(self, seed: int, step: int, rows: int) -> Batch:
        """The images of a step: the same for every method that takes as many."""
        noisy, clean, index = self.used.batch(seed, step, rows, self.config.sigma)
        return noisy, clean, self.targets[index]

    @cached_property
    def targets(self) -> Tensor:
        """The class that each training image is to be taken for, `(used,)`; asked once a run.

        Raises:
            FailedQueriesError: It answered to fewer than half of them.
        """
        if self.config.loss == "labels":
            return self.used.labels
        run = None if self.run_folder is None else Run.open(self.run_folder)
        path = None if run is None else run.path / "clean_predictions.pt"
        if run is not None and path is not None and path.exists():
            content = checkpoint.load(path)
            if stamp.fits(run, content, stamp.settings(run)):
                return content["predictions"]
        parts = []
        with self.making_data():
            for some in torch.arange(len(self.used)).split(256):
                parts.append(predictions(self.box(self.used.images(some))))
                self._check_answered(parts[-1])  # of each part: a server that is down is not asked for all
        answers = torch.cat(parts)
        self._check_right(answers)
        if run is not None and path is not None:
            checkpoint.save(path, {"predictions": answers, stamp.OF: stamp.settings(run)})
        return answers

    def _check_answered(self, answers: Tensor) -> None:
        """Stop where most clean images have no answer: they would be targets that nothing is learned from."""
        failed = int((answers == UNKNOWN).sum())
        if failed > len(answers) / 2:
            raise FailedQueriesError(
                f"{self.box!r}: expected answers to clean training images, got none to {failed} of "
                f"{len(answers)}. Look at the service, then go on with: blackbox resume."
            )

    def _check_right(self, answers: Tensor) -> None:
        """Say so where most answers to clean images are wrong: another scale or order."""
        answered = answers != UNKNOWN
        wrong = int((answers != self.used.labels)[answered].sum())
        if wrong > int(answered.sum()) / 2:
            warn(
                f"{self.box!r}: expected a classifier that is right on most clean training images, got one "
                f"that is wrong on {wrong} of {int(answered.sum())}. It is given images in [0, 1], in the "
                "order (channels, height, width), and its classes have the numbers of the labels: scale or "
                "reorder in your box what it was fitted to otherwise.",
                ProblemWarning,
            )

    def objective(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of the whole chain, denoiser, clamp and classifier, one for each row."""
        noisy, clean, target = batch
        denoised = network(noisy).clamp(0, 1)
        # summed in float64: a weight moves the loss by little
        losses = box_loss(self.box(denoised).double(), target, self.classifier.kind)
        if self.config.mse_weight:
            losses = losses + self.config.mse_weight * image_loss(denoised, clean)
        return losses

    def held_out(self, seed: int) -> tuple[Tensor, Tensor]:
        """Noisy validation images and their labels: the same for all methods and steps of a seed."""
        return self.images.validation.noisy(self.config.validation_images, seed, self.config.sigma)

    @torch.no_grad()
    def held_out_error(self, denoiser: nn.Module, held_out: tuple[Tensor, Tensor]) -> float:
        """Share of noisy images that the classifier itself, asked, takes for another class."""
        wrong = 0
        with evaluating(denoiser):
            for some, label in zip(*(part.split(256) for part in held_out), strict=True):
                wrong += int((predictions(self.box(denoiser(some).clamp(0, 1))) != label).sum())
        return wrong / len(held_out[1])

    def validate(self, network: nn.Module) -> float:
        """The held-out error on the noise of seed 0; see `of_seed`."""
        return self.held_out_error(network, self.held_out(0))


def problem_of(setup: Setup) -> Defence:
    """The setup's problem, by its own kind."""
    return cast(Defence, setup.problem)


def of_seed(setup: Setup) -> Setup:
    """The setup with the held-out error on the noise of its seed, which all its methods are chosen by."""
    problem = problem_of(setup)
    held_out = problem.held_out(setup.seed)
    return replace(setup, validate=lambda denoiser: problem.held_out_error(denoiser, held_out))


def certificates_name(seed: int, method: str) -> Path:
    """File of a method's certificates in the run folder."""
    return Path("certificates") / f"{stage_name(seed, method)}.tsv"
