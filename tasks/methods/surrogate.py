"""`surrogate`: a model stands for the box, in values too, and the network is trained through it alone.

The usual rival of learned tangents (Dyna, Sutton 1991): where batches cost no row it may take as many steps
as anybody wants, and what the model has wrong it learns to exploit.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import zo
from tasks.errors import NotApplicableError
from tasks.methods.learned import tangent_gradient
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from zo.tangents.replay.imagination import unanswerable

STEPS = 9  # on fresh batches behind each on those that boxes answer, where the settings name no number


class Surrogate(zo.ProbedGradient):
    """Fills `.grad` by autograd through the tangents' values; boxes answer, for the tangents to learn."""

    def backward(self, batch: Any) -> Tensor:
        """Add the gradient by the tangents' values, which first learn what boxes answer; returns the loss.

        What was in `.grad` before is lost.
        """
        loss = super().backward(batch)
        for weight in self.parameters.tensors:
            weight.grad = None
        self.imagine(batch)
        return loss


def surrogate(setup: Setup) -> Trained:
    """Through a model of the box alone, fitted to its values in the rows of each step, on fresh batches.

    Raises:
        NotApplicableError: Batches cost rows, or a box has answers that no model of its values gives.
    """
    if not setup.problem.data.fresh:
        raise NotApplicableError(
            "surrogate: expected data whose batches cost no row of a box, got some that are not said to be "
            "so. Draw them with tasks.Data.drawn, or give Data(fresh=True); or leave surrogate out."
        )
    refusal = unanswerable(setup.boxes)
    if refusal is not None:
        raise NotApplicableError(
            f"surrogate: expected boxes that a model of values can stand for, but {refusal}. Leave it out."
        )
    gradient = tangent_gradient(
        setup,
        None,
        kind=Surrogate,
        max_rows=1.0,
        trust_policy=zo.tangents.TrustPolicy(check_every=None),
        replays=None,
        imaginations=setup.config.imaginations or STEPS,
    )
    return setup.descend(gradient, imagined=True)
