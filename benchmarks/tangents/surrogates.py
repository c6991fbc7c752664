"""Rivals that put a model in the box's place: Astralora's low-rank one, and emulators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from benchmarks.tangents.problem import BenchmarkProblem
from blackbox import BlackBoxFunction
from blackbox.calls import intercepted
from zo.draws import Key
from zo.tangents import CallPairs, Linearised, LinearMap, Tangent, Unknown
from zo.tangents.record.pairs import sizes

QUERIES = 121  # first word of the key's path for these draws
RANK, SAMPLES, EVERY = 10, 100, 10
LEARNING, LEARNING_A_STEP = 400, 8  # steps of an emulator
MOVED = 0.01  # standard deviations of the box's inputs: the step of a difference


class Astralora(Tangent):
    """The low-rank surrogate of Astralora (Chertkov et al. 2025, arXiv 2509.15113).

    One matrix U S V^T stands for the box's Jacobian in all rows. It begins as the truncated SVD of the
    Jacobian from differences along each input, at the mean of the first step's inputs, and follows it by an
    implicit projector-splitting step: the change along V's columns and along a hundred Gaussian directions,
    each from two differences. The published layer's box is linear and changes with its own weights; here the
    box stays, and what changes is where it is called, so the old and the new Jacobian are those at the means
    of an earlier and of this step's inputs. Rank 10 and 100 directions are the published code's; updated at
    every tenth step, since one at every step would take several times the rows of training itself. Inputs
    are standardised, number by number, by the first step's.

    Args:
        box: that is asked; its rows are counted by its own ledger.
        seed: of the draws.
    """

    def __init__(self, box: BlackBoxFunction, seed: int, rank: int = RANK, samples: int = SAMPLES) -> None:
        self.ask = lambda arrays: box.call(*arrays)  # a function: a copy of the tangent asks the same box
        self.specs = box.inputs, box.outputs
        self.key, self.rank, self.samples, self.step = Key(seed), rank, samples, 0
        self.seen: list[CallPairs] = []
        self.factors: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, pairs: CallPairs) -> None:
        """Remember where the box was called."""
        self.seen.append(pairs)

    def learn(self, steps: int | None = None) -> None:
        """Begin, or follow the mean of the inputs."""
        z = torch.cat([call.z[call.alive] for call in self.seen])
        columns = list(zip(*(call.others for call in self.seen), strict=True))
        others = [None if column[0] is None else torch.cat(column)[:1] for column in columns]
        if self.factors is None:
            scale = z.std(dim=0, correction=0)
            self.scale = torch.where(scale > 1e-6 * scale.max(), scale, scale.max())
            self.place = z.mean(dim=0), others
            eye = torch.eye(len(self.scale), dtype=z.dtype)
            left, values, right = torch.linalg.svd(self._changes(self.place, eye).T, full_matrices=False)
            rank = min(self.rank, len(values))
            self.factors = left[:, :rank], values[:rank].diag(), right[:rank].T
        elif self.step % EVERY == 0:
            self._follow((z.mean(dim=0), others))
        self.step += 1
        self.seen = []

    def at(self, rows: CallPairs) -> Linearised:
        """U S V^T, the same at all rows; nothing is known before it has learned."""
        return Unknown(rows) if self.factors is None else LinearMap(rows, self._pushed, self._pulled)

    def _pushed(self, d: Tensor) -> Tensor:
        """U S V^T d."""
        left, middle, right = self._known()
        return (d / self.scale) @ right @ middle.T @ left.T

    def _pulled(self, v: Tensor) -> Tensor:
        """V S^T U^T v."""
        left, middle, right = self._known()
        return v @ left @ middle @ right.T / self.scale

    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.factors is not None
        return self.factors

    def _follow(self, place: tuple[Tensor, list[Tensor | None]]) -> None:
        """One step of the integrator, from the last place to this."""
        old = self.place
        z = torch.randn(self.samples, len(self.scale), generator=self.key.at(self.step).generator(QUERIES))

        def change(directions: Tensor) -> Tensor:
            return self._changes(place, directions) - self._changes(old, directions)

        def adjoint(left: Tensor) -> Tensor:  # the mean of z z^T is the identity
            return z.T @ (change(z) @ left) / len(z)

        self.factors = projector_splitting(self._known(), lambda right: change(right.T).T, adjoint)
        self.place = place

    def _changes(self, place: tuple[Tensor, list[Tensor | None]], directions: Tensor) -> Tensor:
        """The Jacobian times directions `(n, size_in)`, `(n, size_out)`, by forward differences."""
        z, others = place
        rows = torch.cat([z[None], z + MOVED * directions * self.scale])
        inputs, outputs = self.specs
        pieces = iter(rows.split(sizes(tuple(spec for spec in inputs if spec.differentiable)), dim=1))
        arrays = [
            next(pieces).reshape(-1, *spec.shape) if other is None else other.expand(len(rows), *spec.shape)
            for spec, other in zip(inputs, others, strict=True)
        ]
        answers = self.ask(arrays)
        several = answers if isinstance(answers, tuple) else (answers,)
        flat = [y.flatten(1) for y, spec in zip(several, outputs, strict=True) if spec.differentiable]
        values = torch.cat(flat, dim=1).to(rows)
        changes = (values[1:] - values[0]) / MOVED
        return torch.where(changes.isfinite(), changes, 0.0)  # a row that failed says nothing


def projector_splitting(
    factors: tuple[Tensor, Tensor, Tensor],
    change: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """U S V^T moved on by a change of the matrix, at the same rank (Lubich and Oseledets 2014).

    Args:
        factors: U `(out, r)`, S `(r, r)`, V `(in, r)`; U and V have orthonormal columns.
        change: the change times columns `(in, r)`.
        adjoint: its transpose times columns `(out, r)`.

    Returns:
        The new factors: exact where the new matrix has the rank r.
    """
    left, middle, right = factors
    moved = change(right)
    left, first = torch.linalg.qr(left @ middle + moved)
    second = first - left.T @ moved
    right, third = torch.linalg.qr(right @ second.T + adjoint(left))
    return left, third.T, right


class Emulator:
    """Autograd through a network that stands for the box, in values too.

    Frezat et al. 2024, arXiv 2310.19385. Their two steps, each with its own loss: the emulator learns what
    the solver answers, and the objective is unrolled through the emulator alone, so its errors are in the
    states as well as in the derivative.
    Frozen: the emulator learns beforehand, from the rows that are known and as many as first order asks for,
    all of them from trajectories of the start; training asks for none. Online: from the known rows, and in
    each step from those that first order takes as well. Both learn for equally many steps. The emulator is
    the network of a `GridTangent` or `MLPTangent`: what differs from these tangents is that values are its
    own.

    Args:
        problem: the problem.
        network: that is trained.
        seed: of the batches that a frozen one learns from.
        model: a tangent that learns values, by `fit`.
        online: whether it goes on learning.
    """

    def __init__(
        self,
        problem: BenchmarkProblem,
        network: nn.Module,
        seed: int,
        model: Any,
        online: bool,
    ) -> None:
        self.problem, self.network, self.model, self.online = problem, network, model, online
        self.asked, self.steps = problem.objective(problem.box), LEARNING
        self.unrolled = problem.objective(self._answer)
        if problem.known is not None:
            self._learn(*problem.known)
        if not online:
            rows = [self._rows(problem.batch(seed, step)) for step in range(1, problem.steps + 1)]
            inputs, outputs = (_joined([row[place] for row in rows]) for place in (0, 1))
            self._learn(inputs, outputs, LEARNING_A_STEP * problem.steps)

    def backward(self, batch: Any) -> Tensor:
        """The gradient of the objective through the emulator."""
        if self.online:
            self._learn(*self._rows(batch))
        return self.through(batch)

    def through(self, batch: Any) -> Tensor:
        """The gradient of the objective through the emulator, which learns nothing."""
        loss = self.unrolled(self.network, batch).mean()
        loss.backward()
        return loss.detach()

    def _learn(self, inputs: Sequence[Tensor], outputs: Any, more: int = 0) -> None:
        """Fit the model, longer the first time, as learned tangents do."""
        self.model.fit(inputs, outputs, steps=self.steps + more, box=self.problem.box)
        self.steps = 0 if more else LEARNING_A_STEP

    def _rows(self, batch: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and answers of the box when the objective is unrolled through it."""
        seen: list[tuple[list[Tensor], list[Tensor]]] = []

        def call(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
            answer = box.call(*arrays)
            seen.append((list(arrays), list(answer) if isinstance(answer, tuple) else [answer]))
            return answer

        with torch.no_grad(), intercepted(call):
            self.asked(self.network, batch)
        return _joined([arrays for arrays, _ in seen]), _joined([arrays for _, arrays in seen])

    def _answer(self, *arrays: Tensor) -> Any:
        """The model's outputs, with its derivative."""
        box = self.problem.box
        z = torch.cat([x.flatten(1) for x, s in zip(arrays, box.inputs, strict=True) if s.differentiable], 1)
        others = tuple(None if s.differentiable else x for x, s in zip(arrays, box.inputs, strict=True))
        answered = _Answered.apply(z, self.model, others, box)
        outputs = tuple(spec for spec in box.outputs if spec.differentiable)
        pieces = zip(answered.split(sizes(outputs), dim=1), outputs, strict=True)
        shaped = [piece.reshape(-1, *spec.shape) for piece, spec in pieces]
        return tuple(shaped) if len(shaped) > 1 else shaped[0]


class _Answered(Function):
    """`apply(z, model, others, box)`: the values of a tangent's model, with its vector-Jacobian product."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, model: Tangent, others: Any, box: BlackBoxFunction) -> Tensor:
        inputs, outputs = (tuple(s for s in specs if s.differentiable) for specs in (box.inputs, box.outputs))
        ctx.model, ctx.pairs = model, CallPairs(inputs, outputs, z, others=others)
        values = model.at(ctx.pairs).values
        assert values is not None
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Tensor | None, ...]:
        (cotangent,) = cotangents
        return ctx.model.at(ctx.pairs).pull(cotangent), None, None, None


def _joined(calls: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The arrays of all calls, joined along the rows."""
    return [torch.cat([call[place] for call in calls]) for place in range(len(calls[0]))]
