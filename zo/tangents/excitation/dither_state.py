"""`DitherState`: the state of one box's dither, and the transitions from one state to the next.

| state | its gradient | goes on to |
| --- | --- | --- |
| free: no input is dithered | is used | waiting, once values do not show an input (`judged`) |
| waiting: no response was known yet | is not used | known, or guessed after so many steps (`looked`) |
| known: answers have shown the response | is used | |
| guessed: it was waited for in vain | is used | |

In any of them the dither changes with what rows with it have shown (`followed`), and where many fail
(`refused`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from zo.tangents.excitation.size import NextSize

FIRST = 0.1  # of a spread or a size: the first dither; one that is too large is never forgotten; decision 121
LAGGED = 0.3  # the same of what goes through a lag, of which a step shows a part; decision 227
GROWN = 8.0  # the most times from one size to the next
MANY_LOST = 0.25  # of a step's rows, above twice what failed before: its dither is too large; decision 137


@dataclass(frozen=True, eq=False)
class DitherState:
    """The state of one box's dither, see the module.

    Attributes:
        units: for each dithered input, by its place: the spread of each number, `(*shape)`; 0 for numbers
            that are not dithered.
        phase: "waiting" until a response was known, "known" or "guessed" from then on.
        waited: steps with a dither while it was waiting.
        factor: how many units a dither is.
        known: the share of the tangent's response to a dither that answers have shown, from 0 to 1.
        most: the largest factor: a unit (decision 153), or less.
        failed: how many rows of the batch have failed, and of how many, without those of refused dithers.
    """

    units: Mapping[int, Tensor] = field(default_factory=dict)
    phase: str = "waiting"
    waited: int = 0
    factor: float = 1.0
    known: float = 0.0
    most: float = 1.0
    failed: tuple[float, float] = (0.0, 0.0)

    @property
    def waits(self) -> bool:
        """True if a response is waited for: until it is known, a derivative by it is a guess."""
        return bool(self.units) and self.phase == "waiting"

    def judged(self, units: Mapping[int, Tensor], *, begins: bool) -> DitherState:
        """Dither inputs whose derivative values do not show; the first input that varies begins small."""
        first = begins and not self.units
        return replace(self, units=units, factor=FIRST if first else self.factor)

    def looked(self, held: int, *, known: bool) -> DitherState:
        """Wait one step longer, for `held` at most, unless the response is known by now."""
        waited = self.waited + 1
        phase = "known" if known else "waiting" if waited < held else "guessed"
        return replace(self, phase=phase, waited=waited)

    def loses_many(self, lost: int, rows: int) -> bool:
        """Say whether far more rows of a step failed beside this dither than before it."""
        failures, of = self.failed
        return bool(self.units) and lost > rows * (MANY_LOST + 2 * (failures + 0.5) / (of + 4))

    def survived(self, lost: int, rows: int) -> DitherState:
        """Count the rows asked for, and the failed ones."""
        return replace(self, failed=(self.failed[0] + lost, self.failed[1] + rows))

    def refused(self) -> DitherState:
        """Take a smaller dither: at this one rows failed, as of a simulator that an action ends."""
        return replace(self, most=self.factor / 2, factor=self.factor / GROWN)

    def found(self) -> DitherState:
        """Take a dither no larger than the first: a larger one is noise in what goes on from it."""
        return replace(self, factor=min(self.factor, FIRST))

    def begun_again(self, most: float) -> DitherState:
        """Take a dither no larger than the first, and `most` at most: another model is in use."""
        return replace(self, phase="known", factor=min(self.factor, FIRST), most=most)

    def followed(self, seen: NextSize) -> DitherState:
        """Take the next dither by what rows have shown."""
        factor = min(self.factor * min(seen.times, GROWN), self.most)
        return replace(self, factor=factor, known=seen.known)
