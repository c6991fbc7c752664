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
from zo.batches import Batch, joined, map_tensors, tensors
from zo.tangents.playback.by_models import AskedError, unanswerable, unasked
from zo.tangents.surrogate import MANY

FURTHER = 10**9  # number of the first batch that no box is asked for: no run has so many steps
ROWS, OF_MANY = 8, 64  # of such a batch at least; decisions 175 and 243: the same in a training of many rows


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
            "its further batches would too. Ask it once, in data(), and split the rows (tasks.Data.split); "
            "or leave surrogate out."
        )
    adam = torch.optim.Adam(setup.network.parameters(), lr=setup.learning_rate)
    many = setup.steps * setup.config.batch >= MANY
    gradient = SurrogateSteps(
        setup.network,
        setup.objective,
        adam,
        partial(further, setup, rows=OF_MANY if many else ROWS),
        boxes=setup.boxes,
        steps=setup.steps,
        seed=setup.seed,
        falls=setup.config.schedule != "constant",
    )
    return setup.descend(
        gradient, optimizer=adam, rate=lambda step: setup.learning_rate, update=lambda step: None
    )


def further(setup: Setup, number: int, rows: int = ROWS) -> Batch:
    """Batch `number` of training's data for steps without a box, of so many rows or more."""
    several = -(-rows // setup.config.batch)
    begin = FURTHER + number * several
    batches = [setup.batch(place) for place in range(begin, begin + several)]
    parts = iter([joined(column) for column in zip(*map(tensors, batches), strict=True)])
    return map_tensors(lambda _: next(parts), batches[0])


def costs_nothing(setup: Setup) -> bool:
    """Say whether training's batches cost no row of a box; where they would, none is run."""
    try:
        with unasked(setup.name):
            further(setup, 0)
    except AskedError:
        return False
    return True
