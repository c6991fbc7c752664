"""`SmoothedClassifier`: a black box, a clamp and a denoiser made robust by votes; many images, resumable."""

from __future__ import annotations

import copy
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import BlackBoxFunction
from blackbox.adapters.torch_module import module_identity
from blackbox.errors import ConfigurationError
from blackbox.wrappers.identity import identity
from tasks.denoised_smoothing.certification.algorithm import (
    BaseClassifier,
    Certificate,
    certify_image,
    predict_image,
    refuse_failed,
)
from tasks.denoised_smoothing.certification.bound import Settings, planned_queries
from tasks.denoised_smoothing.certification.checks import (
    CLAMP,
    Plan,
    check_before_paying,
    check_indices,
    clamped_front,
    classifier_box,
    plan,
)
from tasks.denoised_smoothing.certification.table import CertificateFile
from tasks.denoised_smoothing.errors import BoxError, CertificateFileError, DenoiserError

MAX_FAILED = 0.1  # of an image's queries


class SmoothedClassifier:
    """The smoothed classifier g of f = box o clamp o denoiser: g(x) is the likeliest f(x + noise).

        smoothed = SmoothedClassifier(box, denoiser, sigma=0.25)
        smoothed.predict(images, n=1000)                       # (images,), -1 where it abstains
        smoothed.certify(images, labels, n=10_000, file="certificates.tsv")

    Noise hangs on (seed, index of the image, phase, block) alone, so neither order nor batch nor the
    number of workers of a `Parallel` change a certificate, and a run that is started again asks the
    same rows: with a `Cached` around the box none that was answered is paid for twice. A stack that is
    meant for this, from outside to inside:

        Cached(Retrying(Budgeted(box, rows=...)), "queries.db", block=100)

    Under `failures = "keep"` a query that fails votes against the top class (`algorithm`); under "raise"
    it ends the call.

    Args:
        box: images in [0, 1] to logits, probabilities or labels; see `classifier_box`.
        denoiser: `(rows, channels, height, width)` to the same shape; a copy in evaluation mode is kept.
            None for none.
        sigma: standard deviation of the noise.
        seed: of the noise.
        block: noisy copies drawn and denoised together; see `Settings`.
        batch: rows in one call of the box, at most.
        classes: how many the box knows, where it answers with labels.
        method: what the denoiser was trained with, for the record.

    Raises:
        SettingError, BoxError, LabelError, DenoiserError: a setting, the box or the denoiser makes no sense.
    """

    def __init__(
        self,
        box: BlackBoxFunction,
        denoiser: nn.Module | None = None,
        *,
        sigma: float,
        seed: int = 0,
        block: int = 100,
        batch: int = 1000,
        classes: int | None = None,
        method: str = "none",
    ) -> None:
        self.settings = Settings(sigma, seed=seed, block=block, batch=batch)
        self.classifier = classifier_box(box, classes)
        self.box, self.method = box, method
        # A copy: training goes on with the original, and in evaluation mode rows know nothing of each other.
        self.denoiser = None if denoiser is None else _frozen(denoiser)
        self._base = BaseClassifier(
            self.classifier.labels, self.classifier.classes, clamped_front(self._denoised)
        )

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""
        return self.settings.sigma

    def labels(self, images: Tensor) -> Tensor:
        """The base classifier, without noise: `(rows, channels, height, width)` to `(rows,)`, -1 failed."""
        with torch.no_grad():
            return self.classifier.labels(clamped_front(self._denoised)(images.float().cpu()))

    def predict(
        self,
        images: Tensor,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        indices: Sequence[int] | None = None,
        max_failed: float = MAX_FAILED,
    ) -> Tensor:
        """The smoothed classifier's classes, each wrong with probability at most alpha.

        Args:
            images: clean, `(images, channels, height, width)` in [0, 1].
            n: queries for each image.
            alpha: probability of a wrong prediction.
            indices: of the images in their data set, on which their noise hangs; their places if None.
            max_failed: share of an image's queries that may fail.

        Returns:
            `(images,)` of int64, -1 where the votes do not tell.

        Raises:
            BlackBoxError: see `certify`, which raises the same.
        """
        settings = replace(self.settings, n=n, n0=1, alpha=alpha)
        images = _floats(images)
        self._check(images, None, settings)
        places = check_indices(indices, len(images))
        plan(self.box, len(images), len(images) * n)
        with torch.no_grad():
            found = [
                predict_image(self._base, image, index, settings, max_failed)
                for image, index in zip(images, places, strict=True)
            ]
        return torch.tensor(found, dtype=torch.int64)

    def certify(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        *,
        indices: Sequence[int] | None = None,
        file: str | os.PathLike[str] | None = None,
        max_failed: float = MAX_FAILED,
        say: Callable[[str], object] | None = None,
        after: Callable[[Certificate], object] | None = None,
    ) -> list[Certificate]:
        """Certify images after Cohen et al. (2019); each certificate is wrong with probability <= alpha.

        All checks, the budget's among them, are made before the first query.

        Args:
            images: clean, `(images, channels, height, width)` in [0, 1].
            labels: `(images,)`, the true classes; None where they are not known: no image is then right.
            n0: queries that choose the class.
            n: queries that estimate its probability. To be chosen beforehand: certifying with more where
                the result does not please is a second try at the same alpha.
            alpha: probability that a certificate is wrong.
            indices: of the images in their data set, on which their noise hangs; their places if None.
            file: the table to write, or to go on with; what it hangs on is written beside it.
            max_failed: share of an image's queries that may fail.
            say: called with how many queries it will take, before the first.
            after: called with each new certificate.

        Raises:
            SettingError, ImageError, LabelError, DenoiserError, PlanError, CertificateFileError: before
                the first query.
            FailedQueriesError: too many queries of an image failed.
            LabelError: the box answered with no label.
            BlackBoxError: the box's own faults, and its budget's.
        """
        settings = replace(self.settings, n0=n0, n=n, alpha=alpha)
        images = _floats(images)
        self._check(images, labels, settings)
        places = check_indices(indices, len(images))

        def before(left: int) -> None:
            planned = plan(self.box, left, planned_queries(left, n0, n))
            if say is not None:
                say(planned.sentence())

        unknown = torch.full((len(images),), -1)
        return certify_images(
            self._base,
            images,
            unknown if labels is None else labels,
            settings,
            indices=places,
            file=None if file is None else CertificateFile(file),
            record=None if file is None else self._record(images, settings, places),
            max_failed=max_failed,
            before=before,
            after=after,
        )

    def plan(self, images: int, n0: int = 100, n: int = 100_000) -> Plan:
        """How many queries certifying so many images takes, and whether the budget allows them.

        Raises:
            SettingError, PlanError: they make no sense, or do not fit.
        """
        settings = replace(self.settings, n0=n0, n=n)
        return plan(self.box, images, planned_queries(images, settings.n0, settings.n))

    def _record(self, images: Tensor, settings: Settings, places: list[int]) -> dict[str, Any]:
        classes = self.classifier.classes
        return made_record(self.box, self.denoiser, self.method, classes, settings, images, places)

    def _check(self, images: Tensor, labels: Tensor | None, settings: Settings) -> None:
        known = self.classifier
        classes = None if known.scores else known.classes
        check_before_paying(self.box, images, labels, settings, denoiser=self.denoiser, classes=classes)

    def _denoised(self, block: Tensor) -> Tensor:
        if self.denoiser is None:
            return block
        first = next(self.denoiser.parameters(), None)
        return self.denoiser(block if first is None else block.to(first.device, first.dtype)).float().cpu()

    def __repr__(self) -> str:
        """Box, denoiser and noise."""
        name = None if self.denoiser is None else type(self.denoiser).__name__
        return f"SmoothedClassifier({self.box!r}, {name}, sigma={self.sigma:g}, seed={self.settings.seed})"


def _floats(images: Tensor) -> Tensor:
    """Float32 on the CPU, where noise is drawn; what is no float is left for the check to refuse."""
    return images.float().cpu() if isinstance(images, Tensor) and images.is_floating_point() else images


def _frozen(denoiser: nn.Module) -> nn.Module:
    if not isinstance(denoiser, nn.Module):
        raise DenoiserError(
            f"denoiser: expected a torch.nn.Module, or None, got {type(denoiser).__name__}. "
            "Put a function into a module's forward."
        )
    return copy.deepcopy(denoiser).eval()


def certify_images(
    base: BaseClassifier,
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    *,
    indices: Sequence[int] | None = None,
    file: CertificateFile | None = None,
    record: Mapping[str, Any] | None = None,
    max_failed: float = MAX_FAILED,
    before: Callable[[int], object] | None = None,
    after: Callable[[Certificate], object] | None = None,
) -> list[Certificate]:
    """Certify images one after another; rows of one image reach the classifier in batches.

    The order of the images, the batch and whatever runs the rows at the same time (`Parallel` around the
    box) change no certificate, as long as the box's answer to a row does not hang on its batch-mates.

    Args:
        base: the classifier that is smoothed.
        images: `(images, channels, height, width)` in [0, 1].
        labels: `(images,)`, the true classes.
        settings: what the certificates hang on.
        indices: of the images in their data set; their places if None.
        file: the table to go on with; each image is on disk before the next begins. None for none.
        record: what is written beside the table: see `CertificateFile.open`.
        max_failed: share of an image's queries that may fail.
        before: called with the number of images left before the first query, to refuse what does not fit.
        after: called with each new certificate, for progress.

    Returns:
        One certificate for each image, in the order of the images.

    Raises:
        FailedQueriesError: more failed; the image gets no line, and answers that a cache keeps stay.
        CertificateFileError: the table belongs to another certification.
        SettingError: two images share an index, or there are not as many indices as images.
    """
    places = check_indices(indices, len(images))
    done = {} if file is None else {one.idx: one for one in file.open(record or {})}
    truth = [int(label) for label in labels]
    _check_labels(file, done, dict(zip(places, truth, strict=True)))
    left = sum(index not in done for index in places)
    if before is not None:
        before(left)
    if left and (warning := settings.cap_warning()):
        warnings.warn(warning, stacklevel=2)
    for image, label, index in zip(images, truth, places, strict=True):
        if index in done:
            continue
        with torch.no_grad():
            found = certify_image(base, image, index, label, settings)
        refuse_failed(index, found.failed, found.queries, max_failed)
        if file is not None:
            file.append(found)
        done[index] = found
        if after is not None:
            after(found)
    return [done[index] for index in places]


def _check_labels(file: CertificateFile | None, done: dict[int, Certificate], labels: dict[int, int]) -> None:
    for index, certificate in done.items():
        if file is not None and labels.get(index, certificate.label) != certificate.label:
            raise CertificateFileError(
                f"{file.path}, idx {index}: expected label {labels[index]}, got {certificate.label}. "
                "The table is of other data: give another file."
            )


def made_record(
    box: BlackBoxFunction,
    denoiser: nn.Module | None,
    method: str,
    classes: int,
    settings: Settings,
    images: Tensor,
    indices: Sequence[int] | None,
) -> dict[str, Any]:
    """All that changes a certificate, as JSON values; the batch does not, and is not among it.

    Raises:
        BoxError: the box cannot be told from others.
    """
    try:
        known_as = identity(box)
    except ConfigurationError as error:
        raise BoxError(
            f"{box!r}: expected a box that a certificate can name, got one without an identity ({error})"
        ) from error
    return {
        "algorithm": "CERTIFY of Cohen, Rosenfeld and Kolter (2019)",
        "method": method,
        "base classifier": "box o clamp" if denoiser is None else "box o clamp o denoiser",
        "clamp": list(CLAMP),
        "box": _sha256(known_as.encode()),
        "denoiser": None if denoiser is None else denoiser_hash(denoiser),
        "classes": classes,
        "sigma": settings.sigma,
        "n0": settings.n0,
        "n": settings.n,
        "alpha": settings.alpha,
        "seed": settings.seed,
        "noise": f"PCG64, blocks of {settings.block}",
        "images": images_hash(images, indices),
    }


def denoiser_hash(denoiser: nn.Module) -> str:
    """SHA-256 of what a denoiser computes with: its classes, settings, weights and running statistics."""
    return _sha256(module_identity(denoiser).encode())


def images_hash(images: Tensor, indices: Sequence[int] | None = None) -> str:
    """SHA-256 of images and their indices, in the order of the indices."""
    places = list(range(len(images))) if indices is None else [int(index) for index in indices]
    total = hashlib.sha256()
    for index, image in sorted(zip(places, images, strict=True), key=lambda pair: pair[0]):
        numbers = image.detach().cpu().float().contiguous().numpy()
        total.update(f"{index} {numbers.shape} ".encode() + numbers.tobytes())
    return total.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
