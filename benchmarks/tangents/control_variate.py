"""NI-GBMS at a box's inputs: random directions, a model that learns meanwhile as control variate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from blackbox import BlackBoxFunction
from zo.draws import Key
from zo.tangents import CallPairs, Linearised, Tangent
from zo.tangents.record.pairs import sizes

SIGNS = 151  # first word of the path of a key for draws
MOVED = 0.01  # standard deviations of an input array: the step of a difference, as Astralora's here


@dataclass
class Call:
    """A call of the box in this step.

    Attributes:
        base: its inputs and answers.
        moved: those one step along the direction; None where no gradient is asked for.
        direction: `(rows, size_in)`, of entries plus or minus one times the size of the input's array.
        slopes: `(rows, size_out)`, by how much the answers change along it.
        valid: `(rows,)`, whether both answers are there.
    """

    base: CallPairs
    moved: CallPairs | None
    direction: Tensor
    slopes: Tensor
    valid: Tensor


class ForwardGradients:
    """The box with an estimate of its vector-Jacobian product that has no bias but the difference's.

    Arisaka and Li 2024, arXiv 2405.02952. With a direction r of random signs in each row and call, J r from a
    second evaluation, and a model of Jacobian M, the gradient of the outputs v goes back as

        M^T v + r <v, J r - M r>,

    whose mean over r is J^T v, whatever M is, since r is drawn after M has learned. Published is a network
    for M that learns with each difference. Here it is the tangent that is given, by which the default of
    this library can stand there: it learns from the values of all earlier evaluations and, before the
    direction of a step has had any part in it, from the base's of the step. A call whose input depends on no
    weight is evaluated once.

    Args:
        box: that is called; its rows are counted by its own ledger. A row that fails is not finite.
        model: the control variate.
        seed: of the directions.
    """

    def __init__(self, box: BlackBoxFunction, model: Tangent, seed: int) -> None:
        self.box, self.model, self.key, self.step = box, model, Key(seed), 0
        self.calls: list[Call] = []
        self.known: list[Linearised] = []  # what the model says at the calls, from the first way back on

    def __call__(self, *arrays: Tensor) -> Any:
        """The box's own answers, with that product for autograd."""
        if self.known:
            self._next_step()
        wanted = [x for x, spec in zip(arrays, self.box.inputs, strict=True) if spec.differentiable]
        plain = [array.detach() for array in arrays]
        asked = torch.is_grad_enabled() and any(x.requires_grad for x in wanted)
        direction = self._direction(plain)
        moved = self._along(plain, direction) if asked else None
        rows = len(plain[0])
        given = plain if moved is None else [torch.cat(pair) for pair in zip(plain, moved, strict=True)]
        answer = self.box(*given)
        answers = list(answer) if isinstance(answer, tuple) else [answer]
        base = self._pairs(plain, [y[:rows] for y in answers])
        call = Call(base, None, direction, torch.zeros_like(base.y), torch.zeros(rows, dtype=torch.bool))
        if moved is not None:
            call.moved = self._pairs(moved, [y[rows:] for y in answers])
            call.valid = base.alive & call.moved.alive
            call.slopes = torch.where(call.valid[:, None], (call.moved.y - base.y) / MOVED, 0.0)
        self.calls.append(call)
        z = torch.cat([x.flatten(1) for x in wanted], 1)
        flat: Any = _Estimated.apply(z, self, len(self.calls) - 1)
        dead = torch.where(base.alive, 0.0, torch.nan).to(flat)[:, None]  # rows that failed are seen to
        pieces = iter((flat + dead).split(sizes(base.outputs), 1))
        shaped = [
            next(pieces).reshape(y[:rows].shape) if spec.differentiable else y[:rows]
            for y, spec in zip(answers, self.box.outputs, strict=True)
        ]
        return tuple(shaped) if isinstance(answer, tuple) else shaped[0]

    def pulled(self, number: int, v: Tensor) -> Tensor:
        """The estimate of J^T v at a call of this step, `(rows, size_in)`."""
        if not self.known:
            for call in self.calls:
                self.model.see(call.base)
            self.model.learn()
            self.known = self.model.at_each([call.base for call in self.calls])
        call, at = self.calls[number], self.known[number]
        missed = call.slopes - at.push(call.direction)
        share = torch.where(call.valid, (v * missed).sum(1), 0.0)[:, None]
        inverse = torch.where(call.direction == 0, 0.0, 1 / call.direction)  # signs over sizes
        return at.pull(v) + inverse * share

    def signs(self, shape: Sequence[int]) -> Tensor:
        """Plus and minus one, of even chance."""
        generator = self.key.at(self.step).generator(SIGNS, len(self.calls))
        return 2.0 * torch.randint(2, tuple(shape), generator=generator) - 1.0

    def _next_step(self) -> None:
        """The model sees what the directions of the last step have shown, and a new one begins."""
        for call in self.calls:
            if call.moved is not None:
                self.model.see(call.moved)
        self.calls, self.known, self.step = [], [], self.step + 1

    def _direction(self, arrays: Sequence[Tensor]) -> Tensor:
        """Signs times the standard deviation of each input array, `(rows, size_in)`."""
        wanted = [x.flatten(1) for x, s in zip(arrays, self.box.inputs, strict=True) if s.differentiable]
        spread = torch.cat([(x - x.mean()).square().mean().sqrt().expand_as(x) for x in wanted], 1)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        return spread * self.signs(spread.shape).to(spread)

    def _along(self, arrays: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
        """The inputs one step along the direction."""
        specs = self.box.inputs
        pieces = iter(direction.split(sizes(tuple(s for s in specs if s.differentiable)), 1))
        return [
            x + MOVED * next(pieces).reshape(x.shape) if s.differentiable else x
            for x, s in zip(arrays, specs, strict=True)
        ]

    def _pairs(self, arrays: Sequence[Tensor], answers: Sequence[Tensor]) -> CallPairs:
        """Inputs and answers as tangents see them."""
        both = self.box.inputs, self.box.outputs
        inputs, outputs = (tuple(spec for spec in specs if spec.differentiable) for specs in both)
        z, y = (
            torch.cat([x.flatten(1) for x, s in zip(values, specs, strict=True) if s.differentiable], 1)
            for values, specs in zip((arrays, answers), both, strict=True)
        )
        alive = y.isfinite().all(1)
        others = tuple(None if s.differentiable else x for x, s in zip(arrays, both[0], strict=True))
        finite = torch.where(alive[:, None], y, 0.0)
        return CallPairs(inputs, outputs, z, finite, alive, others)


class _Estimated(Function):
    """`apply(z, gradients, number)`: the answers of a call, with the estimate for the way back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gradients: ForwardGradients, number: int) -> Tensor:
        ctx.gradients, ctx.number = gradients, number
        return gradients.calls[number].base.y.clone()

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        (v,) = cotangents
        return ctx.gradients.pulled(ctx.number, v), None, None
