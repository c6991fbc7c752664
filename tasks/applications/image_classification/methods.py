"""The ways to train an image classifier, by name: from values of the loss alone (by `zo`), and by autograd.

deepzero is algorithm 1 of Chen et al. 2024, "DeepZero": layer ratios by ZO-GraSP before the first step; in
each layer random coordinates in that ratio, drawn anew every epoch; CGE on them; SGD. fo-sparse-gradient has
its sets, and exact gradients on them. fo-sparse-weight is a network pruned at its initialization by GraSP
(Wang et al. 2020) and trained with that mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import zo
from tasks.applications.image_classification.config import Config
from tasks.applications.image_classification.sparse_set import (
    coordinates,
    kept_mask,
    rule,
    sparse_set,
    uniform_ratios,
)
from tasks.methods import whole_loss
from tasks.methods.autograd import AutogradGradient
from tasks.methods.through_boxes import cost_of_base
from tasks.methods.whole_loss import loss_gradient
from tasks.problem.method import Cost, Method
from tasks.problem.trained import Trained
from tasks.training.setup import Setup
from tasks.training.training_loop import Gradient
from zo.batches import Batch
from zo.objective import Objective

ON_SETS = {"deepzero", "sparse-rge", "fo-sparse-gradient"}
"""Methods on sets by layer ratios; at the same steps they are the same sets."""


class ExactGradient(AutogradGradient):
    """Autograd's gradient; with a sparsity, zero outside the step's set.

    The set is the one that `LossGradient` with the same sparsity and seed has at the same step.

    Args:
        network: The network that is trained.
        objective: `objective(network, batch) -> Tensor (rows,)`.
        sparsity: The rule that chooses the coordinates of a step; None for all.
        seed: The seed of the draws of sets.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        sparsity: zo.estimators.Sparsity | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(network, objective, {})
        self.sparsity, self._key = sparsity, zo.estimators.Key(seed)
        self.parameters = zo.estimators.Parameters(network)

    def backward(self, batch: Batch) -> Tensor:
        """One backward pass; the mean loss of the batch."""
        parameters, step = self.parameters, self.counts.steps
        if self.sparsity is None:
            return super().backward(batch)
        slopes = [tensor.grad for tensor in parameters.tensors]
        self.network.zero_grad(set_to_none=True)
        loss = super().backward(batch)
        inside = torch.zeros(parameters.size, dtype=torch.bool)
        inside[self.sparsity.draw(parameters, self._key.at(step))] = True
        for tensor, mask, earlier in zip(parameters.tensors, parameters.split(inside), slopes, strict=True):
            slope = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            slope = torch.where(mask.to(slope.device), slope, 0.0)
            tensor.grad = slope if earlier is None else earlier + slope
        return loss


def descend(
    setup: Setup,
    gradient: Gradient,
    *,
    learning_rate: float | None = None,
    spent: int = 0,
    update: Callable[[int], None] | None = None,
) -> Trained:
    """SGD along a method's gradient, with a warm-up.

    Args:
        setup: The setup of the training.
        gradient: The gradient of the network's weights.
        learning_rate: The learning rate after the warm-up; the setup's if None.
        spent: Queries before the first step, each on the images that score weights.
        update: A function that takes step i along `.grad`; SGD if None.
    """
    config, network = setup.config, setup.network
    problem: Any = setup.problem  # an ImageClassification, whose module imports this one
    setup = replace(setup, learning_rate=learning_rate or setup.learning_rate)
    sgd = torch.optim.SGD(
        network.parameters(), setup.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )

    def figures() -> dict[str, float]:
        counts = gradient.metrics()
        queries, steps = int(counts["queries"]), int(counts["steps"])
        return {
            "queries": spent + queries,
            "rows": (steps + queries) * config.batch + spent * problem.scoring_images,
            "learning_rate": sgd.param_groups[0]["lr"],
        }

    trained = setup.descend(
        gradient, optimizer=sgd, rate=partial(rate, setup), update=update, figures=figures
    )
    return replace(trained, queries=spent + trained.queries)


def rate(setup: Setup, step: int) -> float:
    """The learning rate of step `step` (from 0): up along a line, then down along a cosine, or level."""
    config, highest = setup.config, setup.learning_rate
    warm_up = min(round(config.warm_up * setup.steps), setup.steps - 1)
    if step < warm_up:
        return highest * (step + 1) / warm_up
    if config.schedule == "constant":
        return highest
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (setup.steps - warm_up)))


def estimator(
    method: str, config: Config, network: nn.Module, sparsity: zo.estimators.Sparsity
) -> zo.estimators.Estimator[Any]:
    """The estimator of a method, on the sparse set where it takes one."""
    kind, settings = "sparse-cge" if method == "deepzero" else method, config.zeroth_order
    q = 1 if kind in ("cge", "sparse-cge") else directions(config, network)
    return whole_loss.estimator(kind, settings.mu, sparsity=sparsity, directions=q, central=settings.central)


def directions(config: Config, network: nn.Module) -> int:
    """Random directions in a step: as configured, or as many as deepzero has coordinates."""
    count = config.zeroth_order.directions
    return coordinates(network, config) if count is None else count


def _some(config: Config, network: nn.Module) -> zo.RandomCoordinates:
    """The sets of sparse-cge."""
    return zo.RandomCoordinates(min(config.zeroth_order.coordinates, zo.estimators.Parameters(network).size))


def zeroth_order(setup: Setup) -> Trained:
    """deepzero, cge, sparse-cge, rge, sparse-rge: gradients from values of the loss alone."""
    config, network, name = setup.config, setup.network, setup.name
    sparsity, queries = sparse_set(setup) if name in ON_SETS else (_some(config, network), 0)
    return descend(
        setup,
        loss_gradient(setup, estimator(name, config, network, sparsity), config.evaluator),
        learning_rate=config.noisy_learning_rate if name in ("rge", "sparse-rge") else None,
        spent=queries,
    )


def fo(setup: Setup) -> Trained:
    """fo: all weights, exact gradients."""
    return descend(setup, ExactGradient(setup.network, setup.objective))


def fo_sparse_gradient(setup: Setup) -> Trained:
    """fo-sparse-gradient: exact gradients on the sets that deepzero has at the same steps."""
    sparsity, queries = sparse_set(setup)
    gradient = ExactGradient(setup.network, setup.objective, sparsity, setup.seed)
    return descend(setup, gradient, spent=queries)


def fo_sparse_weight(setup: Setup) -> Trained:
    """fo-sparse-weight: weights outside GraSP's mask are zero from the start and stay so."""
    network, whole_mask = setup.network, kept_mask(setup)
    with torch.no_grad():
        parameters = zo.estimators.Parameters(network)
        for tensor, mask in zip(parameters.tensors, parameters.split(whole_mask), strict=True):
            tensor.mul_(mask.to(tensor.device))
    fixed = zo.estimators.FixedCoordinates(torch.nonzero(whole_mask).flatten())
    gradient = ExactGradient(network, setup.objective, fixed, setup.seed)
    return descend(setup, gradient)


def _cost(problem: Any, steps: int, name: str) -> Cost:
    """Return the cost of a method from function values, with sets of the size that a run's have."""
    config, network = problem.config, problem.network()
    sparsity: zo.estimators.Sparsity = _some(config, network)
    if name in ON_SETS:
        sparsity = rule(config, uniform_ratios(network, config.sparsity), steps)
    planned = estimator(name, config, network, sparsity)
    gradient = zo.LossGradient(
        network, problem.objective, planned, evaluator=config.evaluator, chunk=config.zeroth_order.chunk
    )
    of_steps = whole_loss.cost_of_queries(gradient, steps)
    return _with_ratios(problem, of_steps) if name in ON_SETS else of_steps


def _with_ratios(problem: Any, of_steps: Cost) -> Cost:
    """And of finding layer ratios, whose queries are on other images than a step's."""
    config: Config = problem.config
    gradients = 2 if config.ratios == "zo-grasp" else 0
    plan = zo.RGE(config.zeroth_order.mu, config.pruning_directions)
    gradient = zo.LossGradient(problem.network(), problem.objective, plan, evaluator=config.evaluator)
    queries, checks = gradients * gradient.next_queries(), gradients * gradient.most_checks(1)
    share = problem.scoring_images / config.batch
    most = (of_steps.most or of_steps.evaluations) + (queries + checks) * share
    return Cost(of_steps.evaluations + queries * share, of_steps.queries + queries, most)


METHODS = {
    **{
        name: Method(about, zeroth_order, partial(_cost, name=name))
        for name, about in {
            "deepzero": "DeepZero: finite differences in a sparse set by layer ratios.",
            "cge": "Finite differences in every weight.",
            "sparse-cge": "Finite differences in some weights, drawn anew every step.",
            "rge": "Finite differences along random directions.",
            "sparse-rge": "Random directions within deepzero's sets.",
        }.items()
    },
    "fo": Method("First order: autograd, all weights.", fo, cost_of_base),
    "fo-sparse-weight": Method("First order, pruned by GraSP at the start.", fo_sparse_weight, cost_of_base),
    "fo-sparse-gradient": Method(
        "First order on deepzero's sets.",
        fo_sparse_gradient,
        lambda problem, steps: _with_ratios(problem, cost_of_base(problem, steps)),
    ),
}
