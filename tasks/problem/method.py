"""`Method`: a way to train, with its name, its needs, and the cost of its steps.

def trust_region(setup: tasks.methods.Setup) -> tasks.Trained:
    gradient = zo.LossGradient(setup.network, setup.objective, MyEstimator(), seed=setup.seed)
    return setup.descend(gradient)

class Brusselator(tasks.Problem):
    methods = {"trust-region": tasks.methods.Method("My own estimator.", trust_region)}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tasks.problem.trained import Trained


@dataclass(frozen=True)
class Cost:
    """The cost of a method's steps, before any is taken.

    Attributes:
        evaluations: The least number of evaluations of the objective, base and queries together.
        queries: Perturbed objectives among them.
        most: The most evaluations, where a method takes more for checks if it has to; None if it never does.
        learns: Whether a model of the box is fitted between them, which takes time of its own. A dry run
            estimates it, and `most` is for the case that trust in the model is lost.
        again: Whether a batch with failed rows is evaluated a second time without them, as by methods that
            use autograd, which has no gradient past a failed row.
        first: The most evaluations for checks at the first step: of the evaluator, the noise and the steps.
    """

    evaluations: float = 0.0
    queries: int = 0
    most: float | None = None
    learns: bool = False
    again: bool = False
    first: float = 0.0


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        about: Its description, in one sentence.
        train: Trains the network of a `tasks.methods.Setup`.
        cost: Gives the cost of so many steps of a problem; None where that is not known beforehand.
        needs_reference: Whether it takes the problem's `reference`.
        needs_box: Whether it puts something in the place of the problem's boxes.
        check: Refuses settings and boxes that it cannot train with; asked before any method trains.
        says: Gives sentences on the problem's boxes before it trains.
        learns_answers: Whether it asks for `problem.known_answers()` where the setting `prefit` has steps for
            them: then a run asks for them before it settles its plan, which has their rows.
        replays: Whether replays follow a step, as many as are trusted, where the setting `replays` is None.
        role: The shared method whose part it has in the first sentences of a report: "none", the untrained
            start; "no-gradient", whose gradient is cut at the box; "first-order", which has the box's
            derivative; "" for the method of its own name.
    """

    about: str
    train: Callable[[Any], Trained]
    cost: Callable[[Any, int], Cost] | None = None
    needs_reference: bool = False
    needs_box: bool = False
    check: Callable[[Any], None] | None = None
    says: Callable[[Any], list[str]] | None = None
    learns_answers: bool = False
    replays: bool = False
    role: Literal["", "none", "no-gradient", "first-order"] = ""
