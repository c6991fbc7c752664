"""`DenoisedSmoothing`: a defence with its methods, certificates and report, as a problem of `tasks`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from blackbox.extras import MissingExtraError
from tasks.applications.denoised_smoothing import budget
from tasks.applications.denoised_smoothing.certification.accuracy import (
    average_certified_radius,
    certified_accuracy,
)
from tasks.applications.denoised_smoothing.certification.algorithm import Certificate
from tasks.applications.denoised_smoothing.certification.bound import RADII
from tasks.applications.denoised_smoothing.certification.export import export_denoiser
from tasks.applications.denoised_smoothing.certification.smoothed import SmoothedClassifier
from tasks.applications.denoised_smoothing.config import PRESETS, ZERO_ORDER, is_own, read
from tasks.applications.denoised_smoothing.deepzero import deepzero
from tasks.applications.denoised_smoothing.defence import Defence, certificates_name, of_seed
from tasks.applications.denoised_smoothing.looks import LOOKS
from tasks.applications.denoised_smoothing.methods import fo_ds, mse, none, student, twin_of, zo_ae_ds, zo_ds
from tasks.configuration import refused
from tasks.folder import stamp
from tasks.folder.run import Run
from tasks.methods import by_name
from tasks.problem.data import evaluating
from tasks.problem.method import Method
from tasks.problem.trained import Trained
from tasks.training.setup import Setup

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


class DenoisedSmoothing(Defence):
    """A certified defence of a classifier that only answers queries.

    A denoiser is trained in front of it, and the two are certified by randomized smoothing. A query is an
    image that the classifier is asked for; those of training, measuring mu, layer ratios, clean images and
    validation are counted together, and equal. A name may carry directions and a budget: zo-ds:cge@2500000.
    """

    presets = PRESETS
    methods = METHODS
    looks = LOOKS
    higher_is_better = True
    queries = "images that the classifier was asked for, those of validation included"

    @classmethod
    def variant(cls, name: str) -> Method | None:
        """A method with directions or a budget of its own; or one of all problems, by its seed's noise."""
        if is_own(name):
            return METHODS[read(name).family]
        of_all = by_name.METHODS.get(name)
        return of_all and replace(of_all, train=lambda setup: of_all.train(of_seed(setup)))

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
        caps = self.config.smoothing.cap_warning()
        return [*budget.plan(self, seeds), *([f"Note: {caps}"] if caps else [])]

    def judge(self, setup: Setup, trained: Trained) -> Mapping[str, Any]:
        """Certify test images, each on disk before the next."""
        if set(filter(is_own, self.config.methods)) - {"none", "mse"}:
            _ = self.targets  # a service that is down is found out before certificates are paid for
        certificates = self._certify(setup, trained.network)
        shares = dict(zip(RADII, map(float, certified_accuracy(certificates, RADII)), strict=True))
        outcome, (noisy, _) = trained.outcome, self.held_out(setup.seed)
        error, first = outcome.best_validation, outcome.first_validation
        asks = setup.name not in ("none", "mse")
        is_start = outcome.best_step == 0 and outcome.step > 0
        if asks and is_start:
            self.progress.say(
                f"{setup.stage}: on held-out images the classifier itself did no better with any weights "
                "than with the start's, which are kept."
            )
        elif asks and error is not None and first is not None:
            count = self.config.validation_images
            chance = math.sqrt((error * (1 - error) + first * (1 - first)) / count)
            self.progress.say(
                f"{setup.stage}: of {count} noisy held-out images the classifier itself is right on "
                f"{1 - error:.1%}, with the start's weights on {1 - first:.1%}; a difference of up to "
                f"{chance:.1%} may be chance (one standard error)."
            )
        with torch.no_grad(), evaluating(trained.network):
            denoised = trained.network(noisy[:SAMPLES]).clamp(0, 1)
        return {
            METRIC: shares.pop(0.25),
            **{f"certified accuracy at r = {radius:g}": share for radius, share in shares.items()},
            "ACR": average_certified_radius(certificates),
            "abstained": sum(certificate.predict < 0 for certificate in certificates),
            "images": len(certificates),
            "rows of test": sum(certificate.queries for certificate in certificates),
            "failed rows of test": sum(certificate.failed for certificate in certificates),
            "start kept": int(is_start),
            "validation accuracy": None if error is None or not asks else 1 - error,
            "validation accuracy of the start": None if first is None or not asks else 1 - first,
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
        certificates: list[Certificate] = []

        def after(certificate: Certificate) -> None:
            certificates.append(certificate)
            counter(len(certificates), len(index))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that N caps the radius was said before
            return smoothed.certify(
                test.images(index),
                test.labels[index],
                config.n0,
                config.n,
                config.alpha,
                file=setup.run.path / certificates_name(setup.seed, setup.name),
                of=stamp.code(setup.run),
                after=after,
                answers=setup.answers,
            )

    def so_far(
        self,
        run: Run,
        seed: int,
        trained: Mapping[str, Trained],
        fields: Mapping[str, Mapping[str, Any]],
        last: bool,
    ) -> None:
        """Export the best denoiser after the first seed."""
        if last and seed == run.seeds[0]:
            self._export(trained, run.path / ONNX)

    def _export(self, trained: Mapping[str, Trained], path: Path) -> None:
        """The denoiser from queries that validation chose, or the mse one, as an ONNX file."""
        errors = {
            name: of_method.outcome.best_validation
            for name, of_method in trained.items()
            if is_own(name)
            and read(name).family in ZERO_ORDER
            and of_method.outcome.best_validation is not None
        }
        best = min(errors, key=lambda name: errors[name], default="mse" if "mse" in trained else None)
        if best is None:
            return
        try:
            export_denoiser(trained[best].network, path, self.images.shape)
            self.progress.say(f"Wrote {ONNX}: {best}, the best on held-out images of those from queries.")
        except MissingExtraError as error:
            self.progress.say(f"No {ONNX} is written: {error}")

    def report(self, findings: Findings) -> Sequence[Block]:
        """Certificates, queries, images."""
        from tasks.applications.denoised_smoothing import report

        return report.blocks(self.config, findings)
