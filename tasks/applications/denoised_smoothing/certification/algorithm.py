"""CERTIFY and PREDICT of Cohen, Rosenfeld and Kolter (2019) for one image: noise, votes, certificate.

A query that failed votes for no class and still counts: N stays the planned N. The base classifier that is
certified is then one with a further answer, "none", and the theorem holds for it as it is. Leaving failed
queries out instead would certify a classifier that only exists where the box answers, and a box that
fails on just the inputs that it would get wrong would earn a radius which nobody has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from tasks.applications.denoised_smoothing.certification.bound import (
    Settings,
    lower_bound,
    radius,
    vote_is_clear,
)
from tasks.applications.denoised_smoothing.networks import UNKNOWN
from tasks.errors import ProblemError
from zo.errors import FailedQueriesError


class Phase(IntEnum):
    """The purpose of a noisy copy; each phase has noise of its own, or the bound would not hold."""

    SELECT = 0  # n0: which class is the top class
    ESTIMATE = 1  # N: how probable it is
    PREDICT = 2  # n of `predict`


def noise_block(seed: int, index: int, phase: Phase, block: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise `shape`, float32, that depends on these numbers alone.

    Numbers are drawn in float64 by NumPy's PCG64 from a seed sequence of all of them: 128 bits of state,
    where torch's CPU generator keeps 32 bits of a seed, and two blocks of one image with the same noise
    would not be the independent trials that the bound counts.

    Args:
        seed: the seed of the certification.
        index: the index of the image in its data set.
        phase: the purpose of the copies.
        block: the number of the block in its phase.
        shape: `(block size, channels, height, width)`.
    """
    # As a spawn key: in the entropy itself trailing zeros would count for nothing.
    sequence = np.random.SeedSequence(seed, spawn_key=(index, int(phase), block))
    numbers = np.random.Generator(np.random.PCG64(sequence)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


FAILED = UNKNOWN  # the label of a query that came back without an answer

Labels = Callable[[Tensor], Tensor]  # (rows, ...) float -> (rows,) int64, FAILED where a row failed
Front = Callable[[Tensor], Tensor]  # (block, channels, height, width) -> (block, ...)


@dataclass(frozen=True)
class BaseClassifier:
    """A classifier that is smoothed, in two parts.

    Attributes:
        labels: the part whose queries cost something, `(rows, ...)` to `(rows,)` of int64: a class from 0 to
            `classes` - 1, or `FAILED`. It is called with at most a block of rows.
        classes: how many classes there are.
        front: the part before it, such as a denoiser and a clamp; None for nothing. It gets whole blocks of
            noisy images.
    """

    labels: Labels
    classes: int
    front: Front | None = None


def count_votes(
    base: BaseClassifier, image: Tensor, index: int, phase: Phase, queries: int, settings: Settings
) -> tuple[np.ndarray, int]:
    """Ask for noisy copies of an image and count their labels: votes `(classes,)`, and failed queries.

    The k-th copy is the same whatever `queries` is: a later call with more queries begins with the same ones,
    which a cache then answers.

    Args:
        base: the classifier.
        image: `(channels, height, width)` in [0, 1].
        index: the index of the image; its noise depends on it.
        phase: the purpose of the copies.
        queries: how many queries to make.
        settings: sigma, seed, block.

    Raises:
        ProblemError: the classifier gives another number of rows than it got.
    """
    counts, failed = np.zeros(base.classes, dtype=np.int64), 0
    shape = (settings.block, *image.shape)
    for number, start in enumerate(range(0, queries, settings.block)):
        noisy = image + settings.sigma * noise_block(settings.seed, index, phase, number, shape)
        # The last block is drawn and denoised whole too, and cut after that: a row's bits depend on the
        # size of its block.
        rows = noisy if base.front is None else base.front(noisy)
        if len(rows) != len(noisy):
            raise ProblemError(
                f"front: expected a row back for each of {len(noisy)} noisy images, got {len(rows)}. "
                "Votes are of single images: let the denoiser keep rows apart."
            )
        rows = rows[: queries - start]
        labels = base.labels(rows).numpy()
        if len(labels) != len(rows):
            raise ProblemError(
                f"labels: expected one for each of {len(rows)} rows, got {len(labels)}. "
                "A vote that is missing or one too many makes the bound wrong."
            )
        failed += int((labels == FAILED).sum())
        counts += np.bincount(labels[labels != FAILED], minlength=base.classes)
    return counts, failed


ABSTAIN = -1  # the prediction where nothing can be said at this alpha


@dataclass(frozen=True)
class Certificate:
    """The certificate of one image: within `radius` of it the smoothed classifier predicts `predict`.

    Attributes:
        idx: the index of the image in its data set.
        label: its true class; -1 where it is not known.
        predict: the class, or `ABSTAIN`.
        radius: the l2 radius, in the images' units; 0 where it abstains.
        seconds: the seconds that it took.
        votes: how many of the N queries voted for the class that the n0 queries chose; nA in the paper.
        probability: a lower bound of that class's probability; pA_lower in the paper.
        n: the queries of the estimate, N in the paper.
        queries: all queries, n0 + N.
        failed: how many of them came back without an answer; they count as votes for no class.
        hits: how many of the N queries voted for the true class; 0 where it is not known.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    votes: int
    probability: float
    n: int
    queries: int
    failed: int = 0
    hits: int = 0

    @property
    def correct(self) -> bool:
        """True if the prediction is the label; an abstention is wrong at every radius, 0 included."""
        return self.predict != ABSTAIN and self.predict == self.label


def certify_image(
    base: BaseClassifier, image: Tensor, index: int, label: int, settings: Settings
) -> Certificate:
    """CERTIFY: with probability at least 1 - alpha the certificate is true, or it is an abstention.

    Args:
        base: the classifier that is smoothed.
        image: `(channels, height, width)` in [0, 1].
        index: the index of the image in its data set; the noise depends on it.
        label: its true class, only written down; -1 where it is not known.
        settings: sigma, n0, n, alpha and the settings of the noise.
    """
    started = perf_counter()
    class_votes, failed = count_votes(base, image, index, Phase.SELECT, settings.n0, settings)
    # Where every query of the choice failed there is no class to count for, and class 0 is as good as any:
    # the choice may be made in any way that does not look at the N queries.
    top = int(class_votes.argmax())  # the lowest of equal ones
    counted, more_failed = count_votes(base, image, index, Phase.ESTIMATE, settings.n, settings)
    votes = int(counted[top])
    probability = lower_bound(votes, settings.n, settings.alpha)
    sure = probability > 0.5
    return Certificate(
        idx=index,
        label=label,
        predict=top if sure else ABSTAIN,
        radius=radius(settings.sigma, probability) if sure else 0.0,
        seconds=round(perf_counter() - started, 6),  # what a table keeps
        votes=votes,
        probability=probability,
        n=settings.n,
        queries=settings.n0 + settings.n,
        failed=failed + more_failed,
        hits=int(counted[label]) if 0 <= label < base.classes else 0,
    )


def predict_image(
    base: BaseClassifier, image: Tensor, index: int, settings: Settings, max_failed: float = 1.0
) -> int:
    """PREDICT: the smoothed classifier's class from `settings.n` queries, or `ABSTAIN`.

    Wrong with probability at most alpha. Failed queries are a class of their own here as well: where
    they lead, or come so close that the test cannot tell, it abstains.

    Raises:
        FailedQueriesError: more than this share of the queries failed.
    """
    votes, failed = count_votes(base, image, index, Phase.PREDICT, settings.n, settings)
    refuse_failed(index, failed, settings.n, max_failed)
    top = int(votes.argmax())
    first, second = int(votes[top]), int(np.append(np.delete(votes, top), failed).max())
    return top if first > second and vote_is_clear(first, second, settings.alpha) else ABSTAIN


def refuse_failed(index: int, failed: int, queries: int, most: float) -> None:
    """Refuse an image with too many failed queries: a box that is down would look like abstentions.

    Raises:
        FailedQueriesError: more than this share failed.
    """
    if failed > most * queries:
        raise FailedQueriesError(
            f"image {index}: expected at most {most:.0%} of its queries to fail, got {failed} of {queries}. "
            "Look at the box; Retrying around it asks again, and what a cache has kept is not asked twice. "
            "max_failed=1.0 takes the answer all the same."
        )
