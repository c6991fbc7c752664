"""What can be asked of a tangent in the middle of a training, to be held against the true gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import zo
from benchmarks.tangents.problem import Problem
from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from simulators.noisy import Noisy
from zo.draws import Key
from zo.evaluators.state import moved
from zo.tangents import CallPairs
from zo.tangents.recording import RecordedCall, flat_rows

PROBE = 131  # first word of the key's path for these draws
FORETOLD = 1e-3  # of the loss: the change along the gradient that a check is made for
UNSEEN = 10**6  # of a batch that no training sees
SAME = ", same noise"


@torch.no_grad()
def checked(
    problem: Problem,
    gradient: zo.TangentGradient,
    batch: Any,  # noqa: ANN401
    seed: int,
    step: int,
) -> dict[str, float]:
    """What checks say, the gradient of a batch being in `.grad`; nothing is changed or learned.

    Returns:
        Of those that can be told, by name: `agreement`, the change of the loss along the gradient over what
        that says; `along`, the relative error of predicted responses to that move of the weights, and `probe`
        to a random one; all again with the noise of both sides drawn alike, where the box has noise. And of
        rows that nothing was learned from the error of predicted values, over the step that the box makes
        (`values`) and over their spread (`values, spread`). Each output counts in units of its usual
        response.
    """
    found: dict[str, float | None] = {}
    for same in (False, True) if isinstance(problem.box, Noisy) else (False,):
        words = SAME if same else ""
        base = _Run(problem, gradient.network, batch)
        up, foretold = _uphill(problem, gradient.network, batch, base, same)
        if up is not None:
            found[f"agreement{words}"] = _agreement(base, up, foretold)
            found[f"along{words}"] = _response_error(problem, gradient, [base, up])
        generator = Key(seed, step).generator(PROBE)
        move = [
            problem.mu * torch.randn(each.shape, generator=generator)
            for each in gradient.network.parameters()
        ]
        again = _Run(problem, gradient.network, batch, move, base if same else None)
        found[f"probe{words}"] = _response_error(problem, gradient, [base, again])
    unseen = _Run(problem, gradient.network, problem.batch(seed, UNSEEN + step))
    found |= _value_errors(problem, gradient, unseen)
    return {name: value for name, value in found.items() if value is not None}


class _Run:
    """The objective once: losses `(rows,)`, and what the box was asked and answered.

    Args:
        problem: the problem.
        network: with its weights, or moved.
        batch: of the objective.
        move: of each parameter; None for none.
        like: a run whose noise is drawn again; None for noise of its own.
    """

    def __init__(
        self,
        problem: Problem,
        network: nn.Module,
        batch: Any,  # noqa: ANN401
        move: Sequence[Tensor] | None = None,
        like: _Run | None = None,
    ) -> None:
        self.calls: list[tuple[list[Tensor], list[Tensor]]] = []
        tensors, box = list(network.parameters()), problem.box
        now = box.state_dict() if isinstance(box, Noisy) else {}
        self.noise = now if like is None else like.noise

        def call(asked: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            given = asked.call(*arrays)
            outputs = given if isinstance(given, tuple) else (given,)
            pairs = (zip(box.inputs, arrays, strict=True), zip(box.outputs, outputs, strict=True))
            inputs, answers = ([flat_rows(spec, each).clone() for spec, each in pair] for pair in pairs)
            self.calls.append((inputs, answers))
            return given

        if isinstance(box, Noisy) and like is not None:
            box.load_state_dict(like.noise)
        try:
            with intercepted(call), moved(tensors, [0 * each for each in tensors] if move is None else move):
                self.losses = problem.objective(box)(network, batch)
        finally:
            if isinstance(box, Noisy):
                box.load_state_dict(now)


def _uphill(
    problem: Problem,
    network: nn.Module,
    batch: Any,  # noqa: ANN401
    base: _Run,
    same: bool,
) -> tuple[_Run | None, float]:
    """A run with the weights moved along the gradient, and the change of the loss that is foretold."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    slope = float(parameters_to_vector(grads).double().norm())
    size = float(base.losses[base.losses.isfinite()].double().abs().mean())
    if not slope or not size > 0:
        return None, 0.0
    length = FORETOLD * size / slope
    move = [length / slope * each for each in grads]
    return _Run(problem, network, batch, move, base if same else None), FORETOLD * size


def _agreement(base: _Run, up: _Run, foretold: float) -> float | None:
    """What the loss changed by, over the rows that both have, over what is foretold."""
    change = (up.losses - base.losses).double()
    change = change[change.isfinite()]
    return float(change.mean()) / foretold if len(change) else None


def _pairs(problem: Problem, gradient: zo.TangentGradient, runs: Sequence[_Run]) -> list[CallPairs]:
    """The calls of runs, the first being the base, in the tangent's units."""
    alive = runs[0].losses.isfinite()
    calls = []
    for same in zip(*(run.calls for run in runs), strict=True):
        groups = (zip(*(seen[part] for seen in same), strict=True) for part in (0, 1))
        inputs, outputs = (tuple(torch.stack(each) for each in group) for group in groups)
        calls.append(RecordedCall(0, inputs, outputs).pairs(problem.box, alive))
    return copy.deepcopy(gradient.units[0]).measure(calls)


def _response_error(problem: Problem, gradient: zo.TangentGradient, runs: Sequence[_Run]) -> float | None:
    """Relative, over all calls in which something moved."""
    error = size = 0.0
    for pairs in _pairs(problem, gradient, runs):
        unit = _unit(pairs)
        found = gradient.tangents[0].predict(pairs)
        error += float(((found - pairs.response) / unit)[pairs.valid].double().square().sum())
        size += float((pairs.response / unit)[pairs.valid].double().square().sum())
    return (error / size) ** 0.5 if size else None


def _value_errors(problem: Problem, gradient: zo.TangentGradient, run: _Run) -> dict[str, float | None]:
    """Of predicted values: over the box's steps, where it makes any, and over their spread."""
    error = spread = steps = 0.0
    for pairs in _pairs(problem, gradient, [run]):
        found, unit = gradient.tangents[0].predict_values(pairs), _unit(pairs)
        if found is None:
            return {}
        y, z = (each[pairs.alive].double() for each in (pairs.y, pairs.z))
        error += float(((found[pairs.alive] - y) / unit).square().sum())
        spread += float(((y - y.mean(dim=0)) / unit).square().sum())
        steps += float(((y - z) / unit).square().sum()) if y.shape == z.shape else 0.0
    return {
        "values": (error / steps) ** 0.5 if steps else None,
        "values, spread": (error / spread) ** 0.5 if spread else None,
    }


def _unit(pairs: CallPairs) -> Tensor:
    """Of each output; 1 where it never changed."""
    return torch.where(pairs.response_scale > 0, pairs.response_scale, 1.0)
