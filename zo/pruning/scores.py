"""`scores`: the one entry to pruning at initialization; a number for each weight, and which end goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from blackbox.checks import check_choice, check_positive
from zo.batches import Batch
from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator
from zo.estimators.rge import RGE
from zo.execution.step_journal import Store
from zo.loss_gradient import LossGradient
from zo.objective import Closed, Closure, Objective, as_objective
from zo.parameters import Choice, Parameters
from zo.pruning import score_methods

Needed = TypeVar("Needed")

METHODS = ("zo-grasp", "grasp", "magnitude")


@dataclass(frozen=True, eq=False)
class Scores:
    """A number for each weight, and the rule that goes with it.

    Attributes:
        method: one of `METHODS`.
        values: `(size,)`, flat over `parameters`.
        removes: the end of the ranking that is pruned. GraSP removes the largest *signed* scores: to
            drop the smallest absolute ones, as one does with magnitudes, would keep the wrong weights.
        parameters: the parameters that were scored.
        dense: the parameters that stay whole, unscored; None for none.
        queries: the number of queries that the scores took.
        seed: the seed that breaks ties in the ranking at random.
    """

    method: str
    values: Tensor
    removes: Literal["largest", "smallest"]
    parameters: Parameters
    dense: Parameters | None = None
    queries: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be ranked."""
        for name, values in zip(self.parameters.names, self.parameters.split(self.values), strict=True):
            if not torch.isfinite(values).all():
                raise ConfigurationError(
                    f"Scores, {self.method}: expected finite scores, got some that are not in {name!r}. "
                    "Look for overflow in the objective; a smaller mu or step takes the network less far."
                )


def scores(
    method: str,
    network: nn.Module,
    objective: Objective | Closure | None = None,
    batch: Batch = None,
    *,
    parameters: Choice | Iterable[Choice] | None = None,
    dense: Choice | Iterable[Choice] | None = None,
    mu: float = 5e-3,
    q: int = 192,
    estimator: Estimator[Any] | None = None,
    step: float | None = None,
    seed: int = 0,
    max_dropped: float = 0.0,
    journal: Store | None = None,
    **settings: Any,
) -> Scores:
    """Score the weights of a network before training; nothing of the network changes.

        scores = pruning.scores("zo-grasp", network, objective, batch, dense=["*.bias", nn.BatchNorm2d])
        ratios = pruning.layer_ratios(scores, sparsity=0.9)
        print(ratios)
        estimator = zo.CGE(1e-3, zo.estimators.LayerwiseCoordinates(ratios, every=100))

    Args:
        method: "zo-grasp" (values alone; DeepZero), "grasp" (autograd through the objective) or "magnitude".
        network: the network at its initialization.
        objective: as for `LossGradient`; "magnitude" needs none.
        batch: the batch of the objective; nothing for a closure.
        parameters: the parameters that will be trained, as for `LossGradient`.
        dense: the parameters among them that stay whole (biases, norms, the last layer): not scored, ratio 1.
        mu: smoothing parameter of the random directions.
        q: number of random directions; "zo-grasp" costs 2 q queries.
        estimator: makes the gradients in the place of a Gaussian `RGE(mu, q)`.
        step: the step of the difference of gradients in "zo-grasp"; None for mu, as in the paper.
        seed: the seed on which all draws depend.
        max_dropped: the fraction of the queries that may fail; a score from other queries in its two
            gradients would be noise, so none by default.
        journal: keeps the finished queries of "zo-grasp", so that scoring that is killed and begun again
            evaluates only what was left of it; None for none.
        settings: what else the `LossGradient` of "zo-grasp" is made with: its evaluator, chunk, process
            group. Other methods take them too, and need none.

    Raises:
        ConfigurationError: an unknown method or setting, a value out of its range, or what the method needs
            is missing.
        FailedQueriesError: queries failed.
    """
    check_choice("pruning.scores", "method", method, METHODS)
    setting_names = sorted(
        {*signature(scores).parameters, *signature(LossGradient).parameters} - {"settings"}
    )
    for name in settings:  # also where the method needs none of them
        check_choice("pruning.scores", "a setting", name, setting_names)
    scored, whole = _divide(network, parameters, dense)

    def as_scores(values: Tensor, queries: int = 0) -> Scores:
        removes = "largest" if method in ("grasp", "zo-grasp") else "smallest"
        return Scores(method, values, removes, scored, whole, queries, seed)

    if method == "magnitude":
        return as_scores(score_methods.magnitude(scored))
    objective = as_objective(_needed(method, "objective", objective))
    batch = batch if isinstance(objective, Closed) else _needed(method, "batch", batch)
    if method == "grasp":
        return as_scores(score_methods.grasp(network, objective, scored, batch))
    estimator = RGE(mu, q) if estimator is None else estimator
    step = check_positive("pruning.scores", "step", mu if step is None else step)
    gradient = LossGradient(
        network,
        objective,
        estimator,
        parameters=scored.names,
        seed=seed,
        max_dropped=max_dropped,
        **settings,
    )
    gradient.journal = journal
    values = score_methods.zo_grasp(gradient, batch, step)
    return as_scores(values, gradient.counts.queries)


def _divide(
    network: nn.Module,
    parameters: Choice | Iterable[Choice] | None,
    dense: Choice | Iterable[Choice] | None,
) -> tuple[Parameters, Parameters | None]:
    """The parameters to score, and those to leave whole."""
    every = Parameters(network, parameters)
    if dense is None:
        return every, None
    kept_whole = set(Parameters(network, dense).names)
    whole = [name for name in every.names if name in kept_whole]
    scored = [name for name in every.names if name not in kept_whole]
    if not scored:
        raise ConfigurationError(
            f"pruning.scores, dense: expected to leave something to score, got all of {', '.join(whole)}. "
            "Narrow dense down."
        )
    return Parameters(network, scored), Parameters(network, whole) if whole else None


def _needed(method: str, name: str, value: Needed | None) -> Needed:
    if value is None:
        raise ConfigurationError(
            f"pruning.scores, {name}: expected one for {method!r}, got None. "
            "Only 'magnitude' needs neither data nor objective."
        )
    return value
