"""`Rivalry`: the decision whether a surrogate leads, by rows that boxes answered at its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from zo.tangents.population.members import log_of

# decision 194, all of these:
FEWEST, KEPT = 3, 10  # rows that were asked at a surrogate, by which it is judged: at least and at most
FADES = 0.75  # of what a row says, with each that follows
BOUND = 3.0  # of the logarithm of two losses' ratio: one easy row, or one that blows up, decides little
LAST_LOOK, HOPELESS = 0.1, -1.2  # the last part of a training, in which it is asked again; unless so bad
FAR = 20.0  # times the last losses at a rate's weights: what is foretold above that is none; decision 221
COMPARED, CLOSE = 5, math.log(2)  # windows whose losses models foretell, and how far above in the mean
NEARLY = math.log(4)  # how far above in two of these, from where on a surrogate takes steps; decision 244


@dataclass(frozen=True)
class Rivalry:
    """The contest of a surrogate with the rates: whether it leads, and when boxes are asked at its weights.

    Boxes are asked at the surrogate's weights as soon as models foretell the losses of new windows, to a
    factor of two in the geometric mean of the last five: models with an error above the loss itself teach
    nothing. These rows judge the surrogate. Its loss is compared with the best rate's loss on the same rows,
    foretold from their answers: at others' rows a surrogate would only confirm its own models. From three
    rows on it leads, unless they speak against it.

    Attributes:
        holds: whether all boxes' rows are asked at its weights, since nothing speaks against it.
        foretold: for the last windows at a rate's weights, the logarithm of the models' loss over the boxes'
            loss; bounded.
        usual: the boxes' losses on these windows.
        asked: for the last rows at its weights, the boxes' loss and the foretold loss of the best rate.
        wait: windows between two trials after it was found worse; twice as many after each failed trial.
        next: the window of the next trial.
    """

    holds: bool = False
    foretold: tuple[float, ...] = ()
    usual: tuple[float, ...] = ()
    asked: tuple[tuple[float, float], ...] = ()
    wait: int = 1
    next: int = 0

    @property
    def leads(self) -> bool:
        """True if it leads: rows at its own weights have judged it."""
        return self.holds and len(self.asked) >= FEWEST

    @property
    def believed(self) -> bool:
        """True if models foretell the losses of new windows."""
        return len(self.foretold) == COMPARED and fmean(self.foretold) <= CLOSE

    @property
    def is_candidate(self) -> bool:
        """True if the surrogate takes its steps: models nearly foretell losses, or boxes were asked at it."""
        return len(self.asked) > 0 or any(gap <= NEARLY for gap in sorted(self.foretold)[1:])

    def is_asked(self, window: int, windows: int | None) -> bool:
        """Say whether boxes are asked at the surrogate's weights.

        Args:
            window: the number of the window.
            windows: how many there will be; None where that is not known.
        """
        if self.holds or (len(self.asked) >= FEWEST and self.believed and window >= self.next):
            return True
        last = windows is not None and 0 < windows - window <= max(FEWEST, round(LAST_LOOK * windows))
        return last and len(self.asked) >= FEWEST and self.score > HOPELESS  # rates fall: it is at its best

    def saw(self, loss: float, foretold: float) -> Rivalry:
        """Return the rivalry after a window that was asked at a rate's weights.

        Args:
            loss: the loss, by the boxes' answers.
            foretold: the loss that models foretold before they learned from the window.
        """
        gaps = (*self.foretold, _gap(foretold, loss))[-COMPARED:]
        new = replace(self, foretold=gaps, usual=(*self.usual, loss)[-COMPARED:])
        return replace(new, holds=new.believed and len(self.asked) < FEWEST)

    @property
    def most(self) -> float:
        """The loss above which what a rate is foretold on a row at the surrogate's weights is nonsense."""
        return FAR * max(self.usual, default=math.inf)

    @property
    def score(self) -> float:
        """The mean log-ratio of the rate's loss to the surrogate's, bounded; recent rows count most."""
        weights = [FADES**age for age in reversed(range(len(self.asked)))]
        gaps = [w * _gap(rate, loss) for w, (loss, rate) in zip(weights, self.asked, strict=True)]
        return sum(gaps) / sum(weights)

    def after(self, window: int, loss: float, rate: float) -> Rivalry:
        """Return the rivalry after a row that was asked at the surrogate's weights.

        Args:
            window: the number of the window.
            loss: the loss, by the boxes' answers; not finite where they failed.
            rate: the foretold loss of the best rate; it may be not finite, too.
        """
        asked = (*self.asked, (loss, rate))[-KEPT:]
        new = replace(self, asked=asked)
        if not self.holds:
            wait = 1 if loss < rate else 2 * self.wait
            new = replace(new, wait=wait, next=window + 1 + wait)
        if len(asked) < FEWEST:
            return new
        holds = new.score > 0 and not _heavy(asked)
        return new if holds == self.holds else replace(new, holds=holds, wait=1, next=window + 2)


def _heavy(asked: Sequence[tuple[float, float]]) -> bool:
    """Say whether the plain mean of the surrogate's losses is no lower: rare rows may be very bad."""
    answered = [both for both in asked if all(map(math.isfinite, both))]
    means = [fmean(column) for column in zip(*answered, strict=True)]
    return len(answered) >= KEPT and not means[0] < means[1]


def _gap(loss: float, other: float) -> float:
    """The logarithm of two losses' ratio, bounded; one that is not finite is above any other."""
    if not (math.isfinite(loss) and math.isfinite(other)):
        return BOUND * (math.isfinite(other) - math.isfinite(loss))
    return max(-BOUND, min(BOUND, log_of(loss) - log_of(other)))
