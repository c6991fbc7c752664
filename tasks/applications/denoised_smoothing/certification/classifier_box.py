"""A box as a classifier of images, and its faults that can be found before the first query is paid for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blackbox import BlackBoxFunction, Budgeted, Cached, Wrapper
from blackbox.errors import BudgetError, ConfigurationError
from blackbox.function import check_complete
from blackbox.words import counted
from blackbox.wrappers.identity import identity
from tasks.applications.denoised_smoothing.classifiers.wrappers import Scored
from tasks.applications.denoised_smoothing.networks import predictions
from tasks.errors import DataError, ProblemError


@dataclass(frozen=True)
class ClassifierBox:
    """A black box whose rows are images and whose answers are scores or labels.

    Attributes:
        box: takes `(channels, height, width)` or the same numbers as a vector in C order, in [0, 1].
        classes: how many it knows.
        scores: whether it answers with logits or probabilities; else with the label itself.
    """

    box: BlackBoxFunction
    classes: int
    scores: bool

    def check_image_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images that do not fit the box, before it is asked.

        Args:
            shape: `(channels, height, width)`.

        Raises:
            DataError: it is another shape.
        """
        box_shape = self.box.inputs[0].shape
        if shape == box_shape or (len(box_shape) == 1 and math.prod(shape) == box_shape[0]):
            return
        mend = "The number of channels is the first size."
        if len(box_shape) == 3 and shape == (*box_shape[1:], box_shape[0]):
            mend = "The channels look to be last: try images.permute(0, 3, 1, 2)."
        raise DataError(f"{self.box!r}, images: expected {box_shape} each, got {shape}. {mend}")

    def labels(self, rows: Tensor) -> Tensor:
        """Ask the box: `(rows, ...)` to `(rows,)` of int64, the class or `FAILED`.

        Of equal scores the first class wins, as rounded probabilities ask for.

        Raises:
            DataError: the box answered with something that is no label.
        """
        spec = self.box.inputs[0]
        shaped = rows.to(spec.torch_dtype or torch.float32).reshape(len(rows), *spec.shape)
        label_box = self.box if self.scores else Scored(self.box, "labels", "labels", self.classes)
        return predictions(label_box(shaped).cpu())


def classifier_box(box: BlackBoxFunction, classes: int | None = None) -> ClassifierBox:
    """Read from the specs how a box classifies images; nothing is asked.

    Args:
        box: one floating input; one output of two or more scores, or of one label (shape `()` or `(1,)`).
        classes: how many there are; needed where the box answers with labels.

    Raises:
        ProblemError: it has other inputs or outputs.
        DataError: `classes` is missing, or differs from the number of scores.
    """
    if not isinstance(box, BlackBoxFunction):
        raise ProblemError(
            f"box: expected a BlackBoxFunction, got {type(box).__name__}. Make it one with "
            "blackbox.adapters, such as from_callable."
        )
    check_complete(box)
    if len(box.inputs) != 1 or not box.inputs[0].floating or len(box.inputs[0].shape) not in (1, 3):
        raise ProblemError(
            f"{box!r}, inputs: expected one image of floats, (channels, height, width) or a vector of its "
            f"numbers, got {box.inputs}. Wrap it in a box that takes images alone."
        )
    if len(box.outputs) != 1 or len(box.outputs[0].shape) > 1:
        raise ProblemError(
            f"{box!r}, outputs: expected one vector of scores or one label, got {box.outputs}. "
            "Wrap it in a box that gives the scores or the label alone."
        )
    size = math.prod(box.outputs[0].shape)
    if size == 1:
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 2:
            raise DataError(
                f"{box!r}, classes: expected how many labels the box knows, at least 2, got {classes!r}. "
                "Its answers are labels alone, which do not tell: give classes, in a run --box-gives labels."
            )
        return ClassifierBox(box, classes, scores=False)
    if classes not in (None, size):
        raise DataError(
            f"{box!r}, classes: expected {size}, as many as the box gives scores, got {classes}. "
            "Leave it out."
        )
    return ClassifierBox(box, size, scores=True)


def known_as(box: BlackBoxFunction) -> str:
    """The identity of a box, as a certificate records it, with the version that a `Cached` around it has.

    Raises:
        ProblemError: the box has none.
    """
    versions, inner = [], box
    while isinstance(inner, Wrapper):
        versions += [inner.version] if isinstance(inner, Cached) and inner.version is not None else []
        inner = inner.box
    try:
        if versions:  # one stands for what cannot be described, and for what no code shows
            return f"{identity(box, lambda _: 'to a version')}, versions={versions}"
        return identity(box)
    except ConfigurationError as error:
        raise ProblemError(
            f"{box!r}: expected a box that a certificate can name, got one without an identity ({error})"
        ) from error


def plan(box: BlackBoxFunction, images: int, queries: int) -> str:
    """Describe the queries that so many images will take of this box; nothing is asked yet.

    Args:
        box: the classifier with its wrappers.
        images: how many images.
        queries: the queries of all images; rows that fail and are asked again come on top.

    Raises:
        BudgetError: they do not fit into the rest of a `Budgeted` in the stack, even if every answer that a
            `Cached` keeps served.
    """
    rows_left, cached_answers = [], 0
    inner = box
    while isinstance(inner, Wrapper):
        if isinstance(inner, Budgeted):
            rows_left.append(inner.rows_left)
        if isinstance(inner, Cached):
            cached_answers += inner.rows_kept()
        inner = inner.box
    words = f"Certifying {counted(images, 'image')} takes {counted(queries, 'query')}"
    if cached_answers:
        words += f"; the cache keeps {cached_answers:,} answers of this box, those among them cost nothing"
    if rows_left:
        budget = min(rows_left)
        if queries - cached_answers > budget:
            raise BudgetError(
                f"{box!r}: expected a plan of at most {budget + cached_answers:,} queries, got {queries:,} "
                f"for {counted(images, 'image')}. None was asked. "
                "Raise the budget, certify fewer images, or lower N."
            )
        words += f"; the budget has {budget:,} left"
    return words + "."


def check_images(classifier: ClassifierBox, images: Tensor) -> None:
    """Refuse clean images that the box could not take, or that are no images in [0, 1].

    The range check is of clean data alone: noisy copies leave [0, 1], and the clamp brings them back.

    Raises:
        DataError: naming the first image that is wrong.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"images: expected a float tensor (images, channels, height, width), got {_kind(images)}. "
            "Scale bytes to [0, 1] with images.float() / 255; arrays go through torch.from_numpy."
        )
    classifier.check_image_shape(tuple(images.shape[1:]))
    wrong = ~((images >= 0) & (images <= 1)).flatten(1).all(dim=1)  # so NaN is wrong too
    if wrong.any():
        place = int(torch.nonzero(wrong)[0])
        low, high = images[place].min().item(), images[place].max().item()
        raise DataError(
            f"images: expected clean images in [0, 1], got {low:g} to {high:g} in image {place} "
            f"({int(wrong.sum())} of {len(images)} are outside). Scale them to [0, 1], such as images / 255."
        )


def check_labels(classifier: ClassifierBox, labels: Tensor, images: int) -> None:
    """Refuse true labels that the box never gives: no prediction could be right.

    Raises:
        DataError: naming the first of them.
    """
    whole = isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.shape != (images,):
        raise DataError(
            f"labels: expected {images} whole numbers, got {_kind(labels)}. Give a tensor, one for each."
        )
    wrong = (labels < 0) | (labels >= classifier.classes)
    if wrong.any():
        place = int(torch.nonzero(wrong)[0])
        raise DataError(
            f"labels: expected classes from 0 to {classifier.classes - 1}, which the box gives, got "
            f"{int(labels[place])} for image {place}. Leave such images out, or number the classes as the "
            "box does."
        )


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
