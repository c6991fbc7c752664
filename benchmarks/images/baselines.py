"""The methods that DeepZero is compared with and that need no black box, as methods of the same problem.

    blackbox run benchmarks.images.baselines:WithoutBackpropagation --methods deepzero fa dfa fo

forward-gradient, fa, dfa and align-ada differentiate but do not backpropagate; pattern-search needs values
alone, and moves the weights itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from benchmarks.images.feedback import AlignAda, DirectFeedback, FeedbackAlignment
from benchmarks.images.forward_gradient import ForwardGradient
from benchmarks.images.pattern_search import PatternSearch
from tasks.applications.image_classification.config import Config
from tasks.applications.image_classification.methods import METHODS, cost_of_base, descend, directions
from tasks.applications.image_classification.problem import ImageClassification
from tasks.configuration import Count, Positive
from tasks.problem.method import Cost, Method
from tasks.problem.problem import Problem
from tasks.problem.trained import Trained
from tasks.training.setup import Setup

OTHERS = ("forward-gradient", "fa", "dfa", "align-ada", "pattern-search")


@dataclass(frozen=True)
class BaselineConfig(Config):
    """Settings of the comparison."""

    methods: tuple[str, ...] = ("deepzero", *OTHERS, "fo")
    """What is compared, in the order of the table."""
    forward_learning_rate: Positive | None = 1e-3
    """Of forward-gradient, whose gradient is along one direction; None for `learning_rate`."""
    feedback_learning_rate: Positive | None = None
    """Of fa, dfa and align-ada; None for `learning_rate`."""
    forward_directions: Count = 1
    """Directional derivatives in a step of forward-gradient."""
    pattern_radius: Positive = 1.0
    """First step of pattern-search; it is halved when no weight's change by it lowers the loss."""


def forward_gradient(setup: Setup) -> Trained:
    """forward-gradient: directional derivatives by forward mode."""
    config = setup.config
    gradient = ForwardGradient(setup.network, setup.objective, config.forward_directions, setup.seed)
    return descend(setup, gradient, learning_rate=config.forward_learning_rate)


def feedback(setup: Setup) -> Trained:
    """fa, dfa, align-ada: errors that go back otherwise than through the transposed weights."""
    network = setup.network
    gradient = {
        "fa": lambda: FeedbackAlignment(network, setup.objective, setup.seed),
        "dfa": lambda: DirectFeedback(network, setup.seed),
        "align-ada": lambda: AlignAda(network),
    }[setup.name]()
    return descend(setup, gradient, learning_rate=setup.config.feedback_learning_rate)


def pattern_search(setup: Setup) -> Trained:
    """pattern-search: as many tries in a step as rge has directions; SGD has nothing to do."""
    config, network = setup.config, setup.network
    tries = directions(config, network)
    gradient = PatternSearch(network, setup.objective, tries, config.pattern_radius, setup.seed)
    return descend(setup, gradient, update=lambda step: None)


def _cost_of_tries(problem: Problem, steps: int) -> Cost:
    tries = steps * directions(problem.config, problem.network())
    return Cost(steps + tries, tries)


class WithoutBackpropagation(ImageClassification):
    """DeepZero and other methods that train an image classifier without backpropagation."""

    Config = BaselineConfig
    presets: ClassVar[Mapping[str, Any]] = {"demo": BaselineConfig()}
    looks: ClassVar[Mapping[str, tuple[str, str]]] = {
        **ImageClassification.looks,
        "forward-gradient": ("#f7ab92", "*"),
        "fa": ("#75b86d", "p"),
        "dfa": ("#f0c75e", "8"),
        "pattern-search": ("#bd8a51", "H"),
        "align-ada": ("#849ef7", "P"),
    }
    methods: ClassVar[Mapping[str, Method]] = {
        **METHODS,
        "forward-gradient": Method(
            "Directional derivatives by forward mode.", forward_gradient, cost_of_base
        ),
        "fa": Method("Backpropagation through fixed random weights.", feedback, cost_of_base),
        "dfa": Method("The error at the output to each layer by a random matrix.", feedback, cost_of_base),
        "align-ada": Method("The error goes back through the first weights.", feedback, cost_of_base),
        "pattern-search": Method(
            "One weight after another, kept where the loss falls.",
            pattern_search,
            _cost_of_tries,
        ),
    }
