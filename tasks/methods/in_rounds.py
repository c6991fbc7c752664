"""`surrogate`: a model stands for the box, in values too, and the network is trained through it alone.

The usual rival of learned tangents (Dyna, Sutton 1991): its further steps take no rows, and what the model
has wrong, the network learns to exploit. The algorithm is `zo.tangents.Surrogate`.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import zo
from tasks.errors import NotApplicableError
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from zo.batches import Batch, joined_batches
from zo.tangents.playback.by_models import AskedError, unanswerable, unasked

FURTHER = 10**9  # number of the first batch that no box is asked for: no run has so many steps
ROWS = 8  # of such a batch at least; decision 175


class SurrogateSteps(zo.tangents.Surrogate):
    """A surrogate with the name that the loop of all methods has for a step."""

    def backward(self, batch: Batch) -> Tensor:
        """Take a step, see `step`; it leaves no gradient behind."""
        return self.step(batch)


def surrogate(setup: Setup) -> Trained:
    """Through models of the boxes alone, fitted in rounds to their answers on the batches of all steps.

    Raises:
        NotApplicableError: Batches cost rows, or a box has answers that no model of its values gives.
    """
    refusal = unanswerable(setup.boxes)
    if refusal is not None:
        raise NotApplicableError(
            f"surrogate: expected boxes that a model of values can stand for, but {refusal}. Leave it out."
        )
    if not costs_nothing(setup):
        raise NotApplicableError(
            "surrogate: expected training batches that cost no row of a box, got data whose train asks one: "
            "1,200 further batches would too. Ask it once, in data(), and split the rows (tasks.Data.split); "
            "or leave surrogate out."
        )
    adam = torch.optim.Adam(setup.network.parameters(), lr=setup.learning_rate)
    gradient = SurrogateSteps(
        setup.network,
        setup.objective,
        adam,
        partial(further, setup),
        boxes=setup.boxes,
        steps=setup.steps,
        seed=setup.seed,
        falls=setup.config.schedule != "constant",
    )
    return setup.descend(
        gradient, optimizer=adam, rate=lambda step: setup.learning_rate, update=lambda step: None
    )


def further(setup: Setup, number: int) -> Batch:
    """Batch `number` of training's data for steps without a box, of eight rows or more."""
    several = -(-ROWS // setup.config.batch)
    begin = FURTHER + number * several
    return joined_batches([setup.batch(place) for place in range(begin, begin + several)])


def costs_nothing(setup: Setup) -> bool:
    """Say whether training's batches cost no row of a box; where they would, none is run."""
    try:
        with unasked(setup.name):
            further(setup, 0)
    except AskedError:
        return False
    return True
