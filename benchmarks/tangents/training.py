"""One training: its error along the way, the rows it took, and how well its gradient pointed."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import nn

import zo
from benchmarks.tangents.methods import METHODS, Around, Gradient, Method, first_order
from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import BlackBoxError
from zo.tangents import CallPairs, Linearised

POINTS = 8  # of a curve, besides its start
CHOICE = 97  # the seed on which a scale is chosen
WORDS = 200  # characters that are kept of a warning


@dataclass
class Curve:
    """The record of a training.

    Attributes:
        planned: steps there were to be.
        scale: the factor on the learning rate.
        steps: taken when an error was; the start's is 0.
        rows: black-box rows spent then; first order has the rows of its forward passes. What is learned
            before the first step counts.
        errors: held-out errors there; NaN where the rollout blew up.
        cosines: of the gradient to autograd's, at eight of those steps; empty without a twin.
        trust: what the gradient itself says there; empty for methods that say nothing.
        seconds: of processor time in gradients and updates, and before the first step.
        seconds_before: of them, before the first step.
        seconds_fitting, seconds_vjp: of them, from then on, in what a tangent learns and in its products.
        warned: what was warned of, shortened, each once.
        ended: why it stopped early, if it did.
    """

    planned: int = 0
    scale: float = 1.0
    steps: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    trust: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    seconds_before: float = 0.0
    seconds_fitting: float = 0.0
    seconds_vjp: float = 0.0
    warned: list[str] = field(default_factory=list)
    ended: str = ""


def chosen_scale(problem: BenchmarkProblem, name: str) -> float:
    """The scale that does best on validation data, in trainings from another seed.

    The rows of this are counted nowhere, in favour of the methods that need it.
    """
    method = METHODS[name]
    scales = method.scales
    if len(scales) == 1:
        return scales[0]
    shorter, start = replace(problem, steps=max(1, problem.steps // method.shorter)), problem.start(CHOICE)
    errors = {}
    for scale in scales:
        network = copy.deepcopy(start)
        train(shorter, name, network, CHOICE, scale, judged=False)
        error = problem.validate(network)
        errors[scale] = error if math.isfinite(error) else math.inf
    return min(errors, key=errors.__getitem__)


def train(
    problem: BenchmarkProblem,
    name: str,
    network: nn.Module,
    seed: int,
    scale: float = 1.0,
    equal_rows: int | None = None,
    judged: bool = True,
) -> Curve:
    """Train a network, that is changed, by a method of the table.

    Args:
        problem: the problem.
        name: of the method.
        network: the start.
        seed: of batches and draws.
        scale: factor on the learning rate.
        equal_rows: rows of first order: the error is taken too where these are spent.
        judged: whether errors and cosines are taken on the way.
    """
    curve = Curve(METHODS[name].steps(problem), scale)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _Training(problem, name, network, seed, curve, equal_rows, judged).run()
        except BlackBoxError as error:
            curve.ended = str(error)
    messages = (
        str(warning.message)[:WORDS] for warning in caught if issubclass(warning.category, zo.TangentWarning)
    )
    curve.warned = list(dict.fromkeys(messages))
    return curve


class _Training:
    """The loop, and the clocks and counters around it."""

    def __init__(
        self,
        problem: BenchmarkProblem,
        name: str,
        network: nn.Module,
        seed: int,
        curve: Curve,
        equal_rows: int | None,
        judged: bool,
    ) -> None:
        self.problem, self.name, self.network, self.seed = problem, name, network, seed
        self.curve, self.equal_rows, self.judged = curve, equal_rows, judged
        self.uncounted = problem.box.ledger.rows_asked

    def run(self) -> None:
        """Train."""
        method, curve = METHODS[self.name], self.curve
        self._judge(0)
        began = process_time()
        gradient = method.make(self.problem, self.network, self.seed, curve.scale)
        clocks = _clocks(gradient)
        optimizer = _optimizer(method, self.network)
        curve.seconds = curve.seconds_before = process_time() - began
        marks = {math.ceil(curve.planned * point / POINTS) for point in range(1, POINTS + 1)}
        spent = self._spent(gradient)
        for step in range(1, curve.planned + 1):
            batch = self.problem.batch(self.seed, step)
            before, falling = spent, 0.5 * (1 + math.cos(math.pi * (step - 1) / curve.planned))
            rate = self.problem.learning_rate * curve.scale * falling
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            began = process_time()
            gradient.backward(batch)
            curve.seconds += process_time() - began
            spent = self._spent(gradient)
            if step in marks and self.judged:
                self._look(gradient, batch, step)
            began = process_time()
            optimizer.step()
            curve.seconds += process_time() - began
            more = spent + spent - before  # after another step
            equal = self.equal_rows is not None and spent <= 1.1 * self.equal_rows < more
            if step in marks or equal:
                self._judge(step, spent)
        curve.seconds_fitting, curve.seconds_vjp = clocks["fitting"], clocks["vjp"]

    def _spent(self, gradient: Gradient) -> int:
        asked = self.problem.box.ledger.rows_asked - self.uncounted
        if isinstance(gradient, Around) and gradient.solver is self.problem.exact:
            return gradient.rows  # the twin has no ledger
        return asked

    def _judge(self, step: int, rows: int = 0) -> None:
        """Measure the error; the rows of that are not counted as training's."""
        if not self.judged:
            return
        before = self.problem.box.ledger.rows_asked
        self.curve.steps.append(step)
        self.curve.rows.append(rows)
        self.curve.errors.append(self.problem.error(self.network))
        self.uncounted += self.problem.box.ledger.rows_asked - before

    def _look(self, gradient: Gradient, batch: Any, step: int) -> None:
        """Measure how well the gradient points, and change nothing."""
        before, curve = self.problem.box.ledger.rows_asked, self.curve
        if self.problem.exact is not None and self.name != "first-order":
            curve.cosines.append(cosine_to_exact(self.problem, self.network, batch))
        if isinstance(gradient, zo.TangentGradient):
            curve.trust.append({"step": step, **gradient.metrics()})
        self.uncounted += self.problem.box.ledger.rows_asked - before


def _optimizer(method: Method, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a training; its learning rate is set before each step."""
    kind = torch.optim.Adam if method.optimizer == "adam" else torch.optim.SGD
    return kind(network.parameters(), lr=1.0)


def _clocks(gradient: Gradient) -> dict[str, float]:
    """Seconds of the tangents of a gradient, by what they do; they run on as it works."""
    clocks = {"fitting": 0.0, "vjp": 0.0}
    running: list[str] = []  # one that calls another is not timed twice

    def timed(call: Callable[..., Any], clock: str) -> Callable[..., Any]:
        def measured(*arguments: Any, **named: Any) -> Any:
            began = process_time()
            running.append(clock)
            try:
                return call(*arguments, **named)
            finally:
                running.pop()
                clocks[clock] += 0.0 if running else process_time() - began

        return measured

    for tangent in gradient.tangents if isinstance(gradient, zo.TangentGradient) else ():
        for name in ("see", "learn", "improve"):
            setattr(tangent, name, timed(getattr(tangent, name), "fitting"))
        tangent.at_each = partial(_clocked_at, tangent.at_each, timed)
    return clocks


def _clocked_at(
    at_each: Callable[[Sequence[CallPairs]], list[Linearised]],
    timed: Callable[[Callable[..., Any], str], Callable[..., Any]],
    calls: Sequence[CallPairs],
) -> list[Linearised]:
    """What a tangent says at calls, with a clock at its vector-Jacobian product."""
    at_calls = at_each(calls)
    for at in at_calls:
        at.pull = timed(at.pull, "vjp")
    return at_calls


def cosine_to_exact(problem: BenchmarkProblem, network: nn.Module, batch: Any) -> float:
    """Between the gradient that is in `.grad` and autograd's; the network stays as it was."""
    kept = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    first_order(problem, network).backward(batch)
    exact = [parameter.grad for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), kept, strict=True):
        parameter.grad = gradient
    pairs = [(g, e) for g, e in zip(kept, exact, strict=True) if g is not None and e is not None]
    if not pairs:
        return math.nan
    estimated, wanted = (torch.cat([pair[place].flatten().double() for pair in pairs]) for place in (0, 1))
    return torch.nn.functional.cosine_similarity(estimated, wanted, dim=0).item()
