"""`Recommendation`: which mu to take for an input, as the report has it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """The best steps along one kind of line, in the input's units, and what they leave wrong.

    Attributes:
        forward: mu for forward differences.
        central: mu for central differences.
        forward_error: expected error of a slope with it, over the slopes' root mean square.
        central_error: likewise.
        linear: whether no curvature stood out of the noise, up to the input's own spread; `forward` then is
            that spread, and smaller steps only let in more noise.
    """

    forward: float
    central: float
    forward_error: float
    central_error: float
    linear: bool


@dataclass(frozen=True)
class Recommendation:
    """What mu to take for one input.

    Attributes:
        input: its name.
        size: how many numbers it has.
        coordinates: for `CGE`.
        directions: for unit directions, `RowRGE` "orthogonal" and "sphere"; "gaussian" and
            "rademacher" ones are longer by the square root of `size`, so their mu is smaller by it:
            `long_directions`.
    """

    input: str
    size: int
    coordinates: Steps
    directions: Steps

    @property
    def long_directions(self) -> tuple[float, float]:
        """The mu of forward and antithetic differences for Gaussian and Rademacher directions."""
        return self.directions.forward / math.sqrt(self.size), self.directions.central / math.sqrt(self.size)
