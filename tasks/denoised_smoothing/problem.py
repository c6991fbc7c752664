"""`DenoisedSmoothing`: classifier, denoiser, images, loss and certificates, as a problem of `tasks`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

import tasks
from blackbox import BlackBoxFunction
from blackbox.extras import MissingExtraError
from tasks.configuration import refused
from tasks.data import evaluating
from tasks.denoised_smoothing import budget, data, networks
from tasks.denoised_smoothing.certification.accuracy import average_certified_radius, certified_accuracy
from tasks.denoised_smoothing.certification.algorithm import Certificate
from tasks.denoised_smoothing.certification.bound import RADII, Settings
from tasks.denoised_smoothing.certification.export import export_denoiser
from tasks.denoised_smoothing.certification.smoothed import SmoothedClassifier
from tasks.denoised_smoothing.classifiers import stack
from tasks.denoised_smoothing.config import PRESETS, ZERO_ORDER, Config, is_own, read
from tasks.denoised_smoothing.data import ImageSet, Sets
from tasks.denoised_smoothing.deepzero import deepzero
from tasks.denoised_smoothing.methods import Batch, fo_ds, mse, none, student, twin_of, zo_ae_ds, zo_ds
from tasks.denoised_smoothing.networks import UNKNOWN, box_loss, image_loss, predictions
from tasks.errors import ProblemWarning
from tasks.problem import Method, Setup, Trained
from tasks.runs import atomic
from tasks.runs.folder import Run, stage_name
from zo.errors import FailedQueriesError

if TYPE_CHECKING:
    from tasks.report.findings import Findings
    from tasks.report.html_report import Block

METRIC = "certified accuracy at r = 0.25"
ONNX = "denoiser.onnx"
SAMPLES = 8  # held-out images that the report shows

METHODS = {
    "none": Method("No denoiser.", none),
    "mse": Method("A denoiser trained on images alone.", mse),
    "student": Method("Through a network that learns the classifier's answers; recommended.", student),
    "zo-ds": Method("With differences at the classifier's input.", zo_ds),
    "zo-ae-ds": Method("With differences in the latent space of an autoencoder.", zo_ae_ds),
    "deepzero": Method("With differences of the denoiser's own weights.", deepzero),
    "fo-ds": Method("By backpropagation through the classifier, the upper reference.", fo_ds),
}


class DenoisedSmoothing(tasks.Problem):
    """A certified defence of a classifier that only answers queries.

    A denoiser is trained in front of it, and the two are certified by randomized smoothing. A query is an
    image that the classifier is asked for; those of training, measuring mu, layer ratios, clean images and
    validation are counted together, and equal. A name may carry directions and a budget: zo-ds:cge@2500000.
    """

    Config = Config
    presets = PRESETS
    methods = METHODS
    higher_is_better = True
    queries = "images that the classifier was asked for, those of validation included"

    run_folder: Path | None = None

    @classmethod
    def variant(cls, name: str) -> Method | None:
        """A method with directions or a budget of its own."""
        if not is_own(name):
            return None
        return METHODS[read(name).family]

    def begin(self, folder: Path) -> None:
        """Count queries in the run's folder, and keep answers there."""
        if folder == self.run_folder:
            return
        self.run_folder = folder
        for made in ("classifier", "box", "targets"):
            self.__dict__.pop(made, None)

    def check(self) -> None:
        """Refuse what would be found out only after queries have been paid for."""
        config, shape = self.config, self.images.shape
        families = {read(name).family for name in config.methods if is_own(name)}
        if "zo-ae-ds" in families and config.latent_convolutions:
            least = 2 ** len(config.latent_widths)
            if any(side % least for side in shape[1:]):
                expected = f"layers that halve {shape[1]} x {shape[2]} pixels evenly"
                raise refused("latent_widths", expected, config.latent_widths)
        budget.check(self)
        if "fo-ds" in families:
            twin_of(self.classifier)

    def cost(self, seeds: int) -> Sequence[str]:
        """The budgets, and what the certificates take."""
        config = self.config
        settings = Settings(config.sigma, n=config.n, n0=config.n0, alpha=config.alpha)
        caps = settings.cap_warning()
        return [*budget.plan(self, seeds), *([f"Note: {caps}"] if caps else [])]

    @cached_property
    def images(self) -> Sets:
        """To train on, to choose by and to certify."""
        return data.load(self.config)

    @cached_property
    def used(self) -> ImageSet:
        """The training images that are used through the classifier."""
        train = self.images.train
        return ImageSet(train.source, train.index[: self.config.train_images])

    @cached_property
    def _service(self) -> BlackBoxFunction:
        return stack.classifier(self.config)

    @cached_property
    def classifier(self) -> stack.Box:
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
    def data(self) -> tasks.Data:
        """Noisy images, clean ones, and the classes that they are to be taken for."""
        return tasks.Data(lambda seed, step: self.batch(seed, step, self.config.batch))

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
        path = None if self.run_folder is None else self.run_folder / "clean_predictions.npy"
        if path is not None and path.exists():
            return torch.from_numpy(np.load(path, allow_pickle=False))
        parts = []
        for some in torch.arange(len(self.used)).split(256):
            parts.append(predictions(self.box(self.used.images(some))))
            self._check_answered(parts[-1])  # of each part: a server that is down is not asked for all
        found = torch.cat(parts)
        self._check_right(found)
        if path is not None:
            atomic.write(path, lambda stream: np.save(stream, found.numpy()))
        return found

    def _check_answered(self, found: Tensor) -> None:
        """Stop where most clean images have no answer: they would be targets that nothing is learned from."""
        failed = int((found == UNKNOWN).sum())
        if failed > len(found) / 2:
            raise FailedQueriesError(
                f"{self.box!r}: expected answers to clean training images, got none to {failed} of "
                f"{len(found)}. Look at the service, then go on with: blackbox resume."
            )

    def _check_right(self, found: Tensor) -> None:
        """Say so where most answers to clean images are wrong: another scale or order."""
        answered = found != UNKNOWN
        wrong = int((found != self.used.labels)[answered].sum())
        if wrong > int(answered.sum()) / 2:
            warnings.warn(
                f"{self.box!r}: expected a classifier that is right on most clean training images, got one "
                f"that is wrong on {wrong} of {int(answered.sum())}. It is given images in [0, 1], in the "
                "order (channels, height, width), and its classes have the numbers of the labels: scale or "
                "reorder in your box what it was fitted to otherwise.",
                ProblemWarning,
                stacklevel=3,
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
        """The held-out error."""
        return self.held_out_error(network, self.held_out(0))

    def judge(self, setup: Setup, trained: Trained) -> Mapping[str, Any]:
        """Certify test images, each on disk before the next."""
        if set(filter(is_own, self.config.methods)) - {"none", "mse"}:
            _ = self.targets  # a service that is down is found out before certificates are paid for
        certificates = self._certify(setup, trained.network)
        shares = dict(zip(RADII, map(float, certified_accuracy(certificates, RADII)), strict=True))
        outcome, (noisy, _) = trained.outcome, self.held_out(setup.seed)
        error = outcome.best_validation
        asks = setup.name not in ("none", "mse")
        kept = outcome.best_step == 0 and outcome.step > 0
        if asks and kept:
            self.progress.say(
                f"{setup.stage}: on held-out images the classifier itself did no better with any weights "
                "than with the start's, which are kept."
            )
        with torch.no_grad(), evaluating(trained.network):
            denoised = trained.network(noisy[:SAMPLES]).clamp(0, 1)
        return {
            METRIC: shares.pop(0.25),
            **{f"certified accuracy at r = {radius:g}": share for radius, share in shares.items()},
            "ACR": average_certified_radius(certificates),
            "abstained": sum(each.predict < 0 for each in certificates),
            "images": len(certificates),
            "rows of test": sum(each.queries for each in certificates),
            "failed rows of test": sum(each.failed for each in certificates),
            "start kept": int(kept),
            "validation accuracy": None if error is None or not asks else 1 - error,
            "clean": self.images.validation.images(torch.arange(len(denoised)) % len(self.images.validation)),
            "noisy": noisy[:SAMPLES],
            "denoised": denoised,
        }

    def _certify(self, setup: Setup, network: nn.Module) -> list[Certificate]:
        config, test = self.config, self.images.test
        denoiser = None if isinstance(network, nn.Identity) else network
        smoothed = SmoothedClassifier(
            self.box, denoiser, sigma=config.sigma, seed=setup.seed, method=setup.name
        )
        index = torch.arange(min(config.certify_images, len(test)))
        counter = setup.progress.counter(f"{setup.stage} certificates", unit="image")
        done: list[Certificate] = []

        def after(found: Certificate) -> None:
            done.append(found)
            counter(len(done), len(index))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that N caps the radius was said before
            return smoothed.certify(
                test.images(index),
                test.labels[index],
                config.n0,
                config.n,
                config.alpha,
                file=setup.run.path / certificates_name(setup.seed, setup.name),
                after=after,
            )

    def so_far(
        self, run: Run, seed: int, trained: Mapping[str, Trained], fields: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """After the first seed: export the best denoiser."""
        if seed == run.seeds[0] and list(trained) == list(self.config.methods):
            self._export(trained, run.path / ONNX)

    def _export(self, trained: Mapping[str, Trained], path: Path) -> None:
        """The denoiser from queries that validation chose, or the mse one, as an ONNX file."""
        errors = {
            name: found.outcome.best_validation
            for name, found in trained.items()
            if is_own(name) and read(name).family in ZERO_ORDER and found.outcome.best_validation is not None
        }
        best = min(errors, key=lambda name: errors[name], default="mse" if "mse" in trained else None)
        if best is None or path.exists():
            return
        try:
            export_denoiser(trained[best].network, path, self.images.shape)
            self.progress.say(f"Wrote {ONNX}: {best}, the best on held-out images of those from queries.")
        except MissingExtraError as error:
            self.progress.say(f"No {ONNX} is written: {error}")

    def report(self, found: Findings) -> Sequence[Block]:
        """Certificates, queries, images."""
        from tasks.denoised_smoothing import report

        return report.blocks(self.config, found)


def certificates_name(seed: int, method: str) -> Path:
    """File of a method's certificates in the run folder."""
    return Path("certificates") / f"{stage_name(seed, method)}.tsv"
