"""`DefendedClassifier`: the classifier that a configuration names, with all that stands around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

import zo
from blackbox import BlackBoxFunction, Budgeted, Cached, RateLimited, Retrying, Wrapper, adapters
from blackbox.adapters import TorchModule
from tasks.applications.denoised_smoothing import data
from tasks.applications.denoised_smoothing.certification.classifier_box import (
    check_labels,
    classifier_box,
    known_as,
)
from tasks.applications.denoised_smoothing.classifiers import shapes_box
from tasks.applications.denoised_smoothing.classifiers.sklearn_box import SklearnClassifier, embedded
from tasks.applications.denoised_smoothing.classifiers.wrappers import (
    Clamped,
    Metered,
    Scored,
    Shaped,
)
from tasks.applications.denoised_smoothing.config import CNN, SHIPPED, Config
from tasks.configuration import code, refused
from tasks.errors import ProblemError
from tasks.workers import group

Twin = Callable[[Tensor], Tensor]
ROWS = 256  # images that a process is asked for at a time


@dataclass(frozen=True)
class DefendedClassifier:
    """A classifier to be defended.

    Attributes:
        scores: images to scores `(classes,)`, through everything: clamp, limits, log, rounding. Where several
            processes ask the same, one process answers each row.
        kind: the source of the scores: "logits", "probabilities" or "labels".
        classes: how many classes it knows.
        twin: the same logits with a derivative, for the upper reference; None where there is none.
        shape: the shape of an image.
        first_alone: whether only the run's first process may ask, which keeps budget, rate and log.
    """

    scores: BlackBoxFunction
    kind: str
    classes: int
    twin: Twin | None
    shape: tuple[int, int, int]
    first_alone: bool = False


def make_box(
    config: Config, sets: data.Sets, folder: Path | None = None, inner: BlackBoxFunction | None = None
) -> DefendedClassifier:
    """Make the box; it is not asked anything.

    Args:
        config: The run's settings.
        sets: The images, whose shape and labels must fit.
        folder: The run's folder, for the log of the queries and their count; None to keep neither.
        inner: The classifier, where it is made already.

    Raises:
        ProblemError: It is no classifier of one image, or cannot give the answers that are asked for.
        DataError: Images or labels that do not fit it.
    """
    inner = classifier(config) if inner is None else inner
    gives, form = config.gives, config.asked
    box = classifier_box(inner, (config.classes or sets.classes) if gives == "labels" else config.classes)
    box.check_image_shape(sets.shape)
    for part in (sets.train, sets.validation, sets.test):
        check_labels(box, part.labels, len(part))
    if (gives == "labels") == box.scores:
        raise ProblemError(
            f"{inner!r}, outputs: expected {gives}, got shape {inner.outputs[0].shape}. Give "
            "--box-gives logits, probabilities or labels, whichever it answers."
        )
    twin = _twin(inner, gives)
    if inner.inputs[0].shape != sets.shape or inner.inputs[0].dtype == "float64":
        inner = Shaped(inner, sets.shape)
    if gives != form and (gives == "labels" or form == "logits"):
        raise refused("answers", f"what can be made of {gives}", form)
    service = inner
    # from the inside: what is sent is counted, retries included; an answer that is kept costs nothing
    if folder is not None:
        service = Metered(service, folder / "queries.count")
    if config.rows is not None:
        service = Budgeted(service, config.rows)
    if config.per_second is not None:
        service = RateLimited(service, config.per_second)
    if config.attempts > 1:
        service = Retrying(service, config.attempts)
    if config.query_log and folder is not None:
        service = Cached(service, folder / "queries.sqlite", block=config.query_log_block)
    service.failures = "keep"
    scores = Scored(Clamped(service), gives, form, box.classes, config.decimals)
    known_as(scores)  # a box that cannot be named is refused now, not after training
    first_alone = config.rows is not None or config.per_second is not None or config.query_log
    shared = zo.execution.SharedRows(scores, group.process_group(), None if first_alone else ROWS)
    return DefendedClassifier(shared, form, box.classes, twin, sets.shape, first_alone)


def classifier(config: Config, folder: Path | None = None) -> BlackBoxFunction:
    """The classifier itself.

    Args:
        config: The run's settings.
        folder: The folder of data, and of a shipped classifier that takes long to train; None to keep none.

    Raises:
        ConfigurationError: There is no classifier of that name, or it does not know the images.
    """
    if not config.box:
        raise refused("box", "a classifier: model.onnx, file.py:Class or a name", config.box)
    if config.box in SHIPPED and config.images is not None:
        raise refused("box", "your own, since those that ship know digits or shapes alone", config.box)
    if config.box == CNN:
        return group.first_then_all(lambda: shapes_box.convolutional(folder=folder))
    if config.box in SHIPPED:
        return embedded(config.box, *data.digits_of_the_box())
    if config.box.endswith(".onnx"):
        return adapters.OnnxModel(config.box, threads=config.threads)
    return code.make(config, "box")


def _twin(inner: BlackBoxFunction, gives: str) -> Twin | None:
    while isinstance(inner, Wrapper) and inner.transparent:  # another one may change inputs or answers
        inner = inner.box
    if isinstance(inner, SklearnClassifier):
        return inner.twin()
    if isinstance(inner, TorchModule) and gives != "labels":
        return partial(_scores, inner, gives)
    return None


def _scores(box: TorchModule, gives: str, images: Tensor) -> Tensor:
    spec = box.inputs[0]
    rows = images.reshape(len(images), *spec.shape).to(spec.torch_dtype or images.dtype)
    answer = box.evaluate_rows(rows)[0].to(images)
    return answer if gives == "logits" else answer.clamp(min=1e-30).log()
