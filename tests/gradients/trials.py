"""Some steps of a `zo.LossGradient` on a network of the zoo, set against finite differences."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import zo
from tests.gradients import finite_differences
from tests.networks import Case

RATE = 0.1  # of the optimiser step in between
RELATIVE, ABSOLUTE = 1e-3, 1e-5  # of the largest entry of a tensor, and of the gradient; see `off`


@dataclass(frozen=True)
class Step:
    """What a step must find.

    Attributes:
        batch: of the step.
        gradient: true, one tensor for each trained parameter.
        before: state of the network when the step begins.
        after: its state after one forward in training mode at these weights.
    """

    batch: Any
    gradient: list[Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor]


@cache
def true_steps(case: Case) -> tuple[Step, ...]:
    """Steps of gradient descent along the true gradient; the weights of each follow from the one before."""
    network, steps = case.make(), []
    for number in range(case.steps):
        case.before(network, number)
        batch, before = case.batch(number), deepcopy(network.state_dict())
        gradient = finite_differences.gradient(case.plain, network, batch, seed=number)
        _, network = finite_differences.evaluated(case.plain, network, batch, seed=number)
        steps.append(Step(batch, gradient, before, deepcopy(network.state_dict())))
        descend(network, gradient)
    return tuple(steps)


@torch.no_grad()
def descend(network: nn.Module, gradient: Sequence[Tensor]) -> None:
    for parameter, slope in zip(finite_differences.trained(network), gradient, strict=True):
        parameter -= RATE * slope


def expected(case: Case, estimator: zo.estimators.Estimator) -> list[list[Tensor]]:
    """What an estimator makes of the true gradient at each step: of losses that are linear, with its slopes.

    So the directions and coordinates that it draws need not be known here.
    """
    slopes = [step.gradient for step in true_steps(case)]
    if estimator == zo.CGE(estimator.mu, central=estimator.central):
        return slopes
    linear = nn.ParameterList([torch.zeros_like(slope) for slope in slopes[0]])

    def along_slopes(network: nn.Module, batch: list[Tensor]) -> Tensor:
        return torch.stack([(p * slope[0]).sum() for p, slope in zip(network, batch, strict=True)]).sum()[
            None
        ]

    gradient = zo.LossGradient(linear, along_slopes, estimator, evaluator="loop")
    grads = []
    for at_step in slopes:
        linear.zero_grad()
        gradient.backward([slope[None] for slope in at_step])
        grads.append([parameter.grad.clone() for parameter in linear])
    return grads


@dataclass
class Outcome:
    """What a trial came to.

    Attributes:
        errors: for each step, how far its gradient is off, as a multiple of what is allowed.
        changed: names of parameters and buffers that the steps left otherwise than one forward would; after
            an error, otherwise than none would either.
        warnings: of the library.
        error: the library's own that ended it; others are not caught.
    """

    errors: list[float] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    warnings: list[Warning] = field(default_factory=list)
    error: Exception | None = None

    @property
    def right(self) -> bool:
        return self.error is None and not self.changed and all(error <= 1 for error in self.errors)


def trial(
    case: Case, estimator: zo.estimators.Estimator, evaluator: str, chunk: int | None, *, output_loss: bool
) -> Outcome:
    """The steps of a case; `output_loss` says whether the library is given an `OutputLoss` or a function."""
    outcome, network = Outcome(), case.make()
    objective = case.output_loss if output_loss else case.plain
    truths = expected(case, estimator)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gradient = zo.LossGradient(network, objective, estimator, evaluator=evaluator, chunk=chunk)
        for number, step in enumerate(true_steps(case)):
            case.before(network, number)
            network.zero_grad()
            finite_differences.seed_everything(number)
            try:
                gradient.backward(deepcopy(step.batch))
            except Exception as error:
                if not of_the_library(type(error)):
                    raise
                outcome.error = error
                outcome.changed += sorted(
                    {*_changed(network, step.before)} & {*_changed(network, step.after)}
                )
                break
            grads = [parameter.grad for parameter in finite_differences.trained(network)]
            outcome.errors.append(off(grads, truths[number]))
            outcome.changed += _changed(network, step.after)
            descend(network, step.gradient)
    outcome.warnings = [w.message for w in said if of_the_library(w.category)]
    return outcome


def of_the_library(kind: type) -> bool:
    """Whether an error or a warning is one that the library raises on purpose."""
    return kind.__module__.split(".")[0] in ("zo", "blackbox")


def names_a_part(message: object, network: nn.Module) -> bool:
    """Whether a message says which module, parameter or buffer it is about, or that it is the batch."""
    modules = {name for name, _ in network.named_modules() if name}
    types = {type(module).__name__ for module in network.modules()} - {"Sequential"}
    words = {*modules, *types, *network.state_dict(), "batch", "input"}
    return any(re.search(rf"(?<![\w.]){re.escape(word)}(?![\w])", str(message)) for word in words)


def off(estimated: Sequence[Tensor | None], truth: Sequence[Tensor]) -> float:
    """The largest error of an entry, as a multiple of what truncation and rounding are allowed."""
    largest = max(slope.abs().max().item() for slope in truth)
    worst = 0.0
    for grad, slope in zip(estimated, truth, strict=True):
        if grad is None or not torch.isfinite(grad).all():
            return float("inf")
        allowed = RELATIVE * slope.abs().max().item() + ABSOLUTE * largest
        worst = max(worst, (grad - slope).abs().max().item() / allowed)
    return worst


def _changed(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    now = network.state_dict()
    return [
        name
        for name, value in state.items()
        if now[name].shape != value.shape or not torch.allclose(now[name], value, rtol=1e-9, atol=1e-11)
    ]
