"""`SmoothedClassifier`: a black box, a clamp and a denoiser made robust by votes; many images, resumable."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction, Ledger
from blackbox.notices import warn
from blackbox.wrappers.identity import described
from tasks.applications.denoised_smoothing.certification.algorithm import (
    BaseClassifier,
    Certificate,
    certify_image,
    predict_image,
    refuse_failed,
)
from tasks.applications.denoised_smoothing.certification.bound import Settings
from tasks.applications.denoised_smoothing.certification.certificate_file import CertificateFile
from tasks.applications.denoised_smoothing.certification.classifier_box import (
    check_images,
    check_labels,
    classifier_box,
    known_as,
    plan,
)
from tasks.errors import DataError, ProblemError
from tasks.rows.kept_answers import KeptAnswers
from tasks.rows.tally import RowTally, everywhere
from tasks.workers import group

CLAMP = (0.0, 1.0)
MAX_FAILED = 0.1  # of an image's queries


class SmoothedClassifier:
    """The smoothed classifier g of f = box o clamp o denoiser: g(x) is the likeliest f(x + noise).

        smoothed = SmoothedClassifier(box, denoiser, sigma=0.25)
        smoothed.predict(images, n=1000)                       # (images,), -1 where it abstains
        smoothed.certify(images, labels, n=10_000, file="certificates.tsv")

    Noise depends on (seed, place of the image, phase, block) alone, so the number of workers of a `Parallel`
    changes no certificate, and a run that is started again asks the same rows: with a `Cached` around the
    box no answered row is paid for twice. A stack for this purpose, from outside to inside:

        Cached(Retrying(Budgeted(box, rows=...)), "queries.db", block=100)

    Under `failures = "keep"` a query that fails votes against the top class (`algorithm`); under "raise"
    it ends the call.

    Args:
        box: images in [0, 1] to logits, probabilities or labels; see `classifier_box`.
        denoiser: `(rows, channels, height, width)` to the same shape; a copy in evaluation mode is kept.
            None for none.
        sigma: the standard deviation of the noise.
        seed: the seed of the noise.
        block: how many noisy copies are drawn, denoised and sent together; see `Settings`.
        classes: how many classes the box knows, where it answers with labels.
        method: the method that trained the denoiser, for the record.

    Raises:
        ConfigurationError, ProblemError: a setting, the box or the denoiser makes no sense.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        denoiser: nn.Module | None = None,
        *,
        sigma: float,
        seed: int = 0,
        block: int = 100,
        classes: int | None = None,
        method: str = "none",
    ) -> None:
        self.settings = Settings(sigma, seed=seed, block=block)
        self.classifier = classifier_box(box, classes)
        self.box, self.method = box, method
        if denoiser is not None and not isinstance(denoiser, nn.Module):
            raise ProblemError(
                f"denoiser: expected a torch.nn.Module, or None, got {type(denoiser).__name__}. "
                "Put a function into a module's forward."
            )
        # A copy: training goes on with the original, and in evaluation mode rows know nothing of each other.
        self.denoiser = None if denoiser is None else copy.deepcopy(denoiser).eval()
        self._base = BaseClassifier(self.classifier.labels, self.classifier.classes, self._front)

    def predict(
        self, images: Tensor, n: int = 1000, alpha: float = 0.001, *, max_failed: float = MAX_FAILED
    ) -> Tensor:
        """The smoothed classifier's classes, each wrong with probability at most alpha.

        Args:
            images: clean, `(images, channels, height, width)` in [0, 1].
            n: queries for each image.
            alpha: probability of a wrong prediction.
            max_failed: share of an image's queries that may fail.

        Returns:
            `(images,)` of int64, -1 where the votes do not tell.

        Raises:
            BlackBoxError: see `certify`, which raises the same.
        """
        settings = replace(self.settings, n=n, n0=1, alpha=alpha)
        images = self._checked(images, None)
        plan(self.box, len(images), len(images) * n)
        with torch.no_grad():
            predictions = [
                predict_image(self._base, image, index, settings, max_failed)
                for index, image in enumerate(images)
            ]
        return torch.tensor(predictions, dtype=torch.int64)

    def certify(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        *,
        file: str | os.PathLike[str] | None = None,
        max_failed: float = MAX_FAILED,
        after: Callable[[Certificate], object] | None = None,
        of: str = "",
        answers: KeptAnswers | None = None,
    ) -> list[Certificate]:
        """Certify images after Cohen et al. (2019); each certificate is wrong with probability <= alpha.

        All checks, the budget's among them, are made before the first query.

        Args:
            images: clean, `(images, channels, height, width)` in [0, 1].
            labels: `(images,)`, the true classes; None where they are not known: no image is then right.
            n0: queries that choose the class.
            n: queries that estimate its probability. Choose it beforehand: certifying again with more where
                the result does not please is a second try at the same alpha.
            alpha: probability that a certificate is wrong.
            file: the table to write, or to go on with, an image at a time; its record is written beside it.
            max_failed: share of an image's queries that may fail; an image with more gets no line.
            after: a function that is called with each new certificate.
            of: further data that the table depends on, such as a checksum of the box's code; kept in its
                record.
            answers: the boxes' answers in this work. The answers to an image go when the table has its line;
                earlier images are counted in its `recalled`.

        Returns:
            One certificate for each image, in their order.

        Raises:
            ConfigurationError, ProblemError, DataError, BudgetError: a check failed, before the first query.
            FailedQueriesError: too many queries of an image failed.
            DataError: the box answered with no label.
            BlackBoxError: the box has a fault, or its budget is spent.
        """
        settings = replace(self.settings, n0=n0, n=n, alpha=alpha)
        images = self._checked(images, labels)
        truth = [-1] * len(images) if labels is None else labels.tolist()
        table = None if file is None else CertificateFile(file)
        record = self._record(images, settings) | ({"of": of} if of else {})
        certificates = {} if table is None else {one.idx: one for one in table.open(record)}
        for index, one in certificates.items():
            if one.label != truth[index]:
                raise DataError(
                    f"{file}, idx {index}: expected label {truth[index]}, got {one.label}. The table is of "
                    "other data: give another file."
                )
        if answers is not None and table is not None and group.rank() == 0:  # its table has all counts
            answers.recalled.add(table.counted(certificates.values()))
        tally, left = RowTally([self.box]), len(images) - len(certificates)
        plan(self.box, left, left * (n0 + n) - (0 if answers is None else answers.rows_known))
        if len(certificates) < len(images) and (warning := settings.cap_warning()):
            warn(warning, UserWarning)
        for index, (image, label) in enumerate(zip(images, truth, strict=True)):
            if index in certificates:
                continue
            ledger_before, recalled = tally.copy(), Ledger() if answers is None else answers.recalled.copy()
            with torch.no_grad():
                certificates[index] = certify_image(self._base, image, index, label, settings)
            refuse_failed(index, certificates[index].failed, certificates[index].queries, max_failed)
            if table is not None:
                ledger = tally.since(ledger_before)
                ledger.add(Ledger() if answers is None else answers.recalled.since(recalled))
                table.append(certificates[index], everywhere(ledger))
            if answers is not None:
                answers.end()
            if after is not None:
                after(certificates[index])
        return [certificates[index] for index in range(len(images))]

    def plan(self, images: int, n0: int = 100, n: int = 100_000) -> str:
        """Describe the queries that certifying so many images takes, if the budget allows them.

        The algorithm asks n0 + N times for every image, those included that end in an abstention.

        Raises:
            ConfigurationError, BudgetError: they make no sense, or do not fit.
        """
        replace(self.settings, n0=n0, n=n)  # which are checked
        return plan(self.box, images, images * (n0 + n))

    def _record(self, images: Tensor, settings: Settings) -> dict[str, Any]:
        """All that changes a certificate, as JSON values."""
        denoiser = self.denoiser
        return {
            "algorithm": "CERTIFY of Cohen, Rosenfeld and Kolter (2019)",
            "method": self.method,
            "base classifier": "box o clamp" if denoiser is None else "box o clamp o denoiser",
            "clamp": list(CLAMP),
            "box": _sha256(known_as(self.box).encode()),
            "denoiser": None if denoiser is None else _sha256(described("denoiser", denoiser).encode()),
            "classes": self.classifier.classes,
            "sigma": settings.sigma,
            "n0": settings.n0,
            "n": settings.n,
            "alpha": settings.alpha,
            "seed": settings.seed,
            "noise": f"PCG64, blocks of {settings.block}",
            "images": _sha256(f"{tuple(images.shape)} ".encode() + images.contiguous().numpy().tobytes()),
        }

    def _checked(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Images in float32 on the CPU, where noise is drawn; what would fail on the way is refused."""
        check_images(self.classifier, images)
        if labels is not None:
            check_labels(self.classifier, labels, len(images))
        images = images.float().cpu()
        rows = images[:1].repeat(2, 1, 1, 1)  # two: of one alone it is not seen that rows are merged
        off = 0.0
        try:
            with torch.no_grad():
                alike = self._front(rows)
                beside = self._front(torch.cat([rows[:1], (rows[1:] < 0.5).float()]))
            came = f"{tuple(alike.shape)}"
            off = float((alike[:1] - beside[:1]).square().mean().sqrt())
        except (AttributeError, RuntimeError) as error:
            came = f"an error ({error})"
        if came != (shape := f"{tuple(rows.shape)}"):
            raise ProblemError(
                f"denoiser: expected {shape} back for images of that shape, got {came}. Make it with the "
                "images' number of channels, pad its convolutions, and give an image back for each."
            )
        if off > 1e-4:  # rounding is far below
            raise ProblemError(
                "denoiser: expected an image back that depends on no other image and on no chance, got one "
                f"whose pixels are {off:.2g} off beside another. If votes depend on each other the bound is "
                "wrong, and with chance certificates are others in each run: BatchNorm needs "
                "track_running_stats=True, and dropout is to be a module."
            )
        return images

    def _front(self, block: Tensor) -> Tensor:
        """Clamp o denoiser. Noise leaves [0, 1], where the box was never asked, so the clamp is certified."""
        if self.denoiser is not None:
            first = next(self.denoiser.parameters(), None)
            block = self.denoiser(block if first is None else block.to(first.device, first.dtype))
        return block.float().cpu().clamp(*CLAMP)

    def __repr__(self) -> str:
        """Box, denoiser and noise."""
        name = None if self.denoiser is None else type(self.denoiser).__name__
        settings = self.settings
        return f"SmoothedClassifier({self.box!r}, {name}, sigma={settings.sigma:g}, seed={settings.seed})"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
