"""One training: its error along the way, the rows it took, and how well its gradient pointed."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from time import process_time
from typing import Any

import torch
from torch import nn

import zo
from benchmarks.tangents.methods import METHODS, FirstOrder
from benchmarks.tangents.problem import Problem
from blackbox import BlackBoxError

POINTS = 8  # of a curve, besides its start


@dataclass
class Curve:
    """What a training found.

    Attributes:
        rows: black-box rows spent when an error was taken; first order has the rows of its forward passes.
        errors: held-out errors there; NaN where the rollout blew up.
        validation_rows: what choosing among weights took besides, where a method does that.
        final: the error of the weights that the method ends with.
        cosines: of the gradient to autograd's, at those steps, the start left out; empty without a twin.
        trust: relative errors of the tangent's predictions at those steps; empty for other methods.
        seconds: of processor time in gradients and updates.
        warned: how often trust was lost for good.
        kept: what the held-out loss decided.
        ended: why it stopped early, if it did.
    """

    rows: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    validation_rows: int = 0
    final: float = math.nan
    cosines: list[float] = field(default_factory=list)
    trust: list[float] = field(default_factory=list)
    seconds: float = 0.0
    warned: int = 0
    kept: str = ""
    ended: str = ""


def train(problem: Problem, name: str, network: nn.Module, seed: int) -> Curve:
    """Train a network, that is changed, by a method of the table."""
    curve = Curve([0], [problem.error(network)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _train(problem, name, network, seed, curve)
        except BlackBoxError as error:
            curve.ended = str(error)
    curve.warned = sum(issubclass(each.category, zo.TangentWarning) for each in caught)
    curve.final = problem.error(network)
    return curve


def _train(problem: Problem, name: str, network: nn.Module, seed: int, curve: Curve) -> None:
    method, ledger = METHODS[name], problem.box.ledger
    asked = ledger.rows_asked
    gradient = method.make(problem, network, seed)
    shorter = 1.0 if method.variants is None else method.variants / problem.variants
    steps = max(POINTS, round(problem.steps / shorter))
    marks = {math.ceil(steps * point / POINTS) for point in range(1, POINTS + 1)}
    optimizer = torch.optim.Adam(network.parameters())

    def validate() -> float:
        before = ledger.rows_asked
        error = problem.validate(network)
        curve.validation_rows += ledger.rows_asked - before
        return error

    held_out = zo.KeepBest(network, validate, every=math.ceil(steps / POINTS))
    for step in range(1, steps + 1):
        if method.keeps_best:
            held_out.before_step()
        batch = problem.batch(seed, step)
        for group in optimizer.param_groups:
            group["lr"] = problem.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        optimizer.zero_grad()
        began = process_time()
        gradient.backward(batch)
        curve.seconds += process_time() - began
        spent = ledger.rows_asked - asked - curve.validation_rows
        if step in marks and problem.exact is not None and name != "FO":
            curve.cosines.append(_cosine(problem, network, batch))
        if step in marks and isinstance(gradient, zo.TangentGradient) and gradient.trust_of_step is not None:
            curve.trust.append(gradient.trust_of_step)
        optimizer.step()
        if step in marks:
            curve.rows.append(gradient.rows if isinstance(gradient, FirstOrder) else spent)
            before = ledger.rows_asked
            curve.errors.append(problem.error(network))
            asked += ledger.rows_asked - before  # judging is not training
    if method.keeps_best:
        curve.kept = held_out.restore()


def _cosine(problem: Problem, network: nn.Module, batch: Any) -> float:  # noqa: ANN401
    """Between the gradient that is in `.grad` and autograd's; the network stays as it was."""
    kept = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    FirstOrder(problem, network).backward(batch)
    exact = [parameter.grad for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), kept, strict=True):
        parameter.grad = gradient
    found, wanted = (
        torch.cat([g.flatten().double() for g in each if g is not None]) for each in (kept, exact)
    )
    return torch.nn.functional.cosine_similarity(found, wanted, dim=0).item()
