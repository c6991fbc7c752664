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
        evaluations: How often the objective is evaluated, base and queries together: the least that it takes.
        queries: Perturbed objectives among them.
        most: Evaluations where a method takes more when it has to, for checks; None for never.
        learns: Whether a model of the box is fitted between them, which takes time of its own: a dry run
            estimates it, and `most` is what they take where trust in the model is lost.
        again: Whether a batch of which rows fail is evaluated a second time without them, as by methods that
            go back with autograd, which has no gradient past a row that failed.
        first: Evaluations for checks at the first step, at most: of the evaluator, the noise and the steps.
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
        about: What it is, in one sentence.
        train: Trains the network of a `tasks.methods.Setup`.
        cost: What so many steps of a problem ask for; None where that is not known beforehand.
        needs_reference: Whether it takes the problem's `reference`.
        needs_box: Whether it puts something in the place of the problem's boxes.
        check: Refuses settings and boxes by which it cannot train; asked before any method trains.
        says: What there is to be said of the problem's boxes before it trains, in sentences.
        learns_answers: Whether it asks for `problem.known_answers()` where the setting `prefit` has steps for
            them: then a run asks for them before it settles its plan, which has their rows.
        replays: Whether it follows a step by replays, as many as are trusted, where the setting `replays` is
            None.
        role: The shared method whose part it has in the first sentences of a report: "none", the untrained
            start; "no-gradient", whose gradient is cut at the box; "first-order", which has the box's
            derivative; "" for that of its name.
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
