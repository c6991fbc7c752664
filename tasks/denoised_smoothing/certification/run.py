"""Certifying many images: what is done already is read from the table, what was asked from the log."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.denoised_smoothing.certification.algorithm import Certificate, certify_image, refuse_failed
from tasks.denoised_smoothing.certification.checks import check_indices
from tasks.denoised_smoothing.certification.settings import Settings
from tasks.denoised_smoothing.certification.table import CertificateFile
from tasks.denoised_smoothing.certification.votes import BaseClassifier
from tasks.denoised_smoothing.errors import CertificateFileError

MAX_FAILED = 0.1  # of an image's queries


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
