"""CERTIFY and PREDICT of Cohen, Rosenfeld and Kolter (2019), algorithm 1, for one image.

A query that failed votes for no class and still counts: N stays the planned N. The base classifier that is
certified is then one with a further answer, "none", and the theorem holds for it as it is. Leaving failed
queries out instead would certify a classifier that only exists where the box answers, and a box that
fails on just the inputs that it would get wrong would earn a radius which nobody has.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
from torch import Tensor

from tasks.denoised_smoothing.certification.bound import lower_bound, radius, vote_is_clear
from tasks.denoised_smoothing.certification.noise import Phase
from tasks.denoised_smoothing.certification.settings import Settings
from tasks.denoised_smoothing.certification.votes import BaseClassifier, count_votes
from tasks.denoised_smoothing.errors import FailedQueriesError

ABSTAIN = -1  # the prediction where nothing can be said at this alpha


@dataclass(frozen=True)
class Certificate:
    """What is known of one image: within `radius` of it the smoothed classifier predicts `predict`.

    Attributes:
        idx: of the image in its data set.
        label: its true class; -1 where it is not known.
        predict: the class, or `ABSTAIN`.
        radius: l2, in the images' units; 0 where it abstains.
        seconds: that it took.
        votes: of the N queries, those for the class that the n0 queries chose; nA in the paper.
        probability: lower bound of that class's probability; pA_lower in the paper.
        n: queries of the estimate, N in the paper.
        queries: all that were asked, n0 + N.
        failed: of those, how many came back without an answer; they count as votes for no class.
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

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label; an abstention is wrong at every radius, 0 included."""
        return self.predict != ABSTAIN and self.predict == self.label


def certify_image(
    base: BaseClassifier, image: Tensor, index: int, label: int, settings: Settings
) -> Certificate:
    """CERTIFY: with probability at least 1 - alpha the certificate is true, or it is an abstention.

    Args:
        base: the classifier that is smoothed.
        image: `(channels, height, width)` in [0, 1].
        index: of the image in its data set; the noise hangs on it.
        label: its true class, only written down; -1 where it is not known.
        settings: sigma, n0, n, alpha and what the noise hangs on.

    Raises:
        LabelError: the classifier gave a label that is no class.
    """
    started = perf_counter()
    chosen = count_votes(base, image, index, Phase.SELECT, settings.n0, settings)
    # Where every query of the choice failed there is no class to count for, and class 0 is as good as any:
    # the choice may be made in any way that does not look at the N queries.
    top = chosen.top or 0
    found = count_votes(base, image, index, Phase.ESTIMATE, settings.n, settings)
    votes = int(found.counts[top])
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
        failed=chosen.failed + found.failed,
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
    found = count_votes(base, image, index, Phase.PREDICT, settings.n, settings)
    refuse_failed(index, found.failed, settings.n, max_failed)
    top = found.top
    if top is None:
        return ABSTAIN
    others = np.append(np.delete(found.counts, top), found.failed)
    first, second = int(found.counts[top]), int(others.max())
    return top if first > second and vote_is_clear(first, second, settings.alpha) else ABSTAIN


def refuse_failed(index: int, failed: int, queries: int, most: float) -> None:
    """Refuse an image of whose queries too many failed: a box that is down would look like abstentions.

    Raises:
        FailedQueriesError: more than this share failed.
    """
    if failed > most * queries:
        raise FailedQueriesError(
            f"image {index}: expected at most {most:.0%} of its queries to fail, got {failed} of {queries}. "
            "Look at the box; Retrying around it asks again, and what a cache has kept is not asked twice. "
            "max_failed=1.0 takes the answer all the same."
        )
