"""`Equation`: a partial differential equation of few terms on a periodic grid, and its flow over a call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

RIDGE = 1e-8  # of least squares, over the number of equations; terms have a mean square of one


@dataclass(frozen=True)
class EquationTerms:
    """The terms that a rate may have: linear ones, and products of two fields.

    A state x `(rows, channels, *space)` has a rate of change that is a sum of derivatives of it up to the
    fourth, of the inverse of the Laplacian and that times derivatives up to the second, and of products. The
    factors of a product are the state, derivatives of it up to the second where `outer` is False and up to
    the first where it is True, other inputs, and one. What is nonlocal stands inside where `outer` is False:
    factors may be such inverses, as a velocity is of a vorticity. Where it is True it stands outside: a
    product may be projected by second derivatives of the Laplacian's inverse, as a pressure does.

    Attributes:
        space: cells along each axis; they are as long along all.
        channels: of the state.
        others: channels of other inputs, which stay as they are during a call.
        outer: where what is nonlocal stands.
        dealiased: whether the state's upper third of the waves enters no product and leaves none.
        early: whether, where so, waves of more than a third less one do neither, as in Exponax and JAX-CFD's
            spectral solvers: on 16 cells those above the fourth, in place of those above the fifth.
    """

    space: tuple[int, ...]
    channels: int
    others: int
    outer: bool
    dealiased: bool
    early: bool = False

    @cached_property
    def _operators(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the linear terms, of factors and of products, `(n, *modes)` each, and the waves of products."""
        longest = max(self.space)
        along = [torch.fft.fftfreq(n, dtype=torch.float64) for n in self.space[:-1]]
        along.append(torch.fft.rfftfreq(self.space[-1], dtype=torch.float64))
        waves = torch.meshgrid(*(longest * each for each in along), indexing="ij")
        share = torch.meshgrid(*along, indexing="ij")  # of the waves of a cell
        square = torch.stack([wave.square() for wave in waves]).sum(0)
        inverse = torch.where(square > 0, -1 / square.clamp_min(1e-30), 0.0)
        one = torch.ones_like(square)
        # the highest mode's sine is not on the grid, so it has no derivative
        slopes = [1j * wave * (part.abs() < 0.5) for wave, part in zip(waves, share, strict=True)]
        second = [a * b for a, b in itertools.combinations_with_replacement(slopes, 2)]
        apart = [each * inverse for each in second[:-1]]  # with the last one they add up to one
        nonlocal_ones = [inverse, *(slope * inverse for slope in slopes), *apart]
        third = [-square * slope for slope in slopes]
        linear = [one, *slopes, *second, *third, square.square(), *nonlocal_ones]
        factors = [one, *slopes] if self.outer else [one, *slopes, *second, *nonlocal_ones]
        products = [one, *apart] if self.outer else [one]
        kept = one
        if self.dealiased:
            within = [part.abs() < 1 / 3 for part in share]
            if self.early:
                within = [3 * n * part.abs() < n - 2.5 for n, part in zip(self.space, share, strict=True)]
            kept = torch.stack([each.double() for each in within]).prod(0)
        several = [torch.stack([each + 0j for each in kind]) for kind in (linear, factors, products)]
        return several[0], several[1], several[2], kept

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The places of both factors of each product, among the fields; one times the state is linear."""
        moving = self.channels * len(self._operators[1])
        fields = moving + self.others + 1
        both = itertools.combinations_with_replacement(range(fields), 2)
        kept = [pair for pair in both if pair[0] >= moving or pair[1] < fields - 1]
        first, second = zip(*kept, strict=True)
        return torch.tensor(first), torch.tensor(second)

    @property
    def count(self) -> int:
        """How many terms there are."""
        linear, _, products, _ = self._operators
        return self.channels * len(linear) + len(products) * len(self.pairs[0])

    def modes(self, x: Tensor) -> Tensor:
        """Of fields `(..., *space)`."""
        return torch.fft.rfftn(x, s=self.space)

    def back(self, modes: Tensor) -> Tensor:
        """The fields of modes."""
        return torch.fft.irfftn(modes, s=self.space)

    def fields(self, x: Tensor, others: Tensor) -> Tensor:
        """What products are made of, `(rows, fields, *space)`."""
        _, factors, _, kept = self._operators
        modes = self.modes(x)[:, :, None] * (factors * kept).to(x.dtype.to_complex())
        moving = self.back(modes).flatten(1, 2)
        return torch.cat([moving, others.to(x), torch.ones_like(x[:, :1])], dim=1)

    def projected(self, products: Tensor) -> Tensor:
        """Products `(rows, operators, n, *space)`, each under its own operator; one for all where it is 1."""
        _, _, operators, kept = self._operators
        if not self.outer and not self.dealiased:
            return products
        return self.back(self.modes(products) * (operators * kept)[:, None].to(products.dtype.to_complex()))

    def linear(self, x: Tensor) -> Tensor:
        """The linear terms, `(rows, channels x operators, *space)`."""
        return self.back(self.modes(x)[:, :, None] * self._operators[0].to(x.dtype.to_complex())).flatten(
            1, 2
        )

    def all(self, x: Tensor, others: Tensor) -> Tensor:
        """All terms at a state, `(rows, terms, *space)`."""
        first, second = self.pairs
        fields = self.fields(x, others)
        products = fields[:, first] * fields[:, second]
        return torch.cat([self.linear(x), self.projected(products[:, None]).flatten(1, 2)], dim=1)

    def symbol(self, coefficients: Tensor) -> Tensor:
        """The linear part by waves, `(*modes, channels out, channels in)`."""
        linear = self._operators[0]
        parts = coefficients[: self.channels * len(linear)].reshape(self.channels, len(linear), -1)
        return torch.einsum("ioc,o...->...ci", parts + 0j, linear)

    def quadratic(self, coefficients: Tensor) -> Tensor:
        """The products' part, `(operators, channels, fields, fields)`."""
        linear, _, operators, _ = self._operators
        first, second = self.pairs
        rest = coefficients[self.channels * len(linear) :].reshape(len(operators), len(first), -1)
        fields = int(second.max()) + 1
        found = coefficients.new_zeros(len(operators), self.channels, fields, fields)
        found[:, :, first, second] = rest.movedim(-1, 1)
        return found


class Equation:
    """The flow of an equation over a call: Runge-Kutta of fourth order, the linear part exact.

    Args:
        terms: what it may have.
        coefficients: of the terms in a call's change, `(terms, channels)`, float64.
        steps: of time in a call.
    """

    def __init__(self, terms: EquationTerms, coefficients: Tensor, steps: int) -> None:
        self.terms, self.coefficients, self.steps = terms, coefficients, steps
        self._quadratic = terms.quadratic(coefficients)
        self._half = torch.linalg.matrix_exp(terms.symbol(coefficients) / (2 * steps))

    def __call__(self, x: Tensor, others: Tensor) -> Tensor:
        """The state after a call; `others` are `(rows, others, *space)`."""
        return self.path(x, others)[-1]

    def path(self, x: Tensor, others: Tensor) -> list[Tensor]:
        """The states between steps, the first and the last included."""
        found, step = [x], 1 / self.steps
        for _ in range(self.steps):
            a, half = self._rate(x, others), self._moved(x)
            b = self._rate(half + step / 2 * self._moved(a), others)
            c = self._rate(half + step / 2 * b, others)
            whole = self._moved(half)
            d = self._rate(whole + step * self._moved(c), others)
            x = whole + step / 6 * (self._moved(self._moved(a)) + 2 * self._moved(b + c) + d)
            found.append(x)
        return found

    def _rate(self, x: Tensor, others: Tensor) -> Tensor:
        """By the products."""
        fields = self.terms.fields(x, others).flatten(2)
        quadratic = self._quadratic.to(x.dtype)
        count = fields.shape[1]
        other = (quadratic.reshape(-1, count) @ fields).unflatten(1, (-1, count))
        products = (other * fields[:, None]).sum(2).unflatten(1, quadratic.shape[:2])
        return self.terms.projected(products.unflatten(-1, self.terms.space)).sum(1)

    def _moved(self, x: Tensor) -> Tensor:
        """By the linear part, half a step."""
        modes, half = self.terms.modes(x), self._half.to(x.dtype.to_complex())
        if self.terms.channels == 1:
            return self.terms.back(modes * half[..., 0, 0])
        return self.terms.back(torch.einsum("...ci,ri...->rc...", half, modes))


def fitted(
    terms: EquationTerms, x: Tensor, y: Tensor, others: Tensor, steps: int, start: Tensor | None, rounds: int
) -> tuple[Equation, float]:
    """The equation whose flow leads from states to states, by least squares.

    The first coefficients are those of the implicit midpoint rule, which are linear in what is known. Then
    what the flow misses is taken to be a sum of the means of the terms along it, which is so up to how a
    change grows during a call, and added, for as long as that lowers the error.

    Args:
        terms: what it may have.
        x: states, `(rows, channels, *space)`, float64.
        y: those after a call.
        others: `(rows, others, *space)`.
        steps: of time in a call.
        start: coefficients to begin with; None where there are none.
        rounds: of correction, at most.

    Returns:
        The equation, and its error over the change of a call; infinite where its flow is not finite.
    """
    if start is None:
        start = _squares(terms.all((x + y) / 2, others), y - x)
    size, best, least = float((y - x).norm()) or 1.0, Equation(terms, start, steps), math.inf
    equation = best
    for turn in range(rounds + 1):
        path = equation.path(x, others)
        missed = y - path[-1]
        error = float(missed.norm()) / size
        if not error < least:
            break
        close, best, least = error > 0.95 * least, equation, error
        if close or turn == rounds:
            break
        weights = [0.5, *[1.0] * (steps - 1), 0.5]
        mean = x.new_zeros(len(x), terms.count, *terms.space)
        for weight, state in zip(weights, path, strict=True):
            mean.add_(terms.all(state, others), alpha=weight / steps)
        equation = Equation(terms, equation.coefficients + _squares(mean, missed), steps)
    return best, least


def _squares(terms: Tensor, wanted: Tensor) -> Tensor:
    """Coefficients `(terms, channels)` by ridge regression over all rows and cells."""
    columns = terms.movedim(1, -1).flatten(0, -2)
    scale = columns.square().mean(0).sqrt().clamp_min(1e-12 * float(columns.abs().max()) + 1e-300)
    columns = columns / scale
    gram = columns.T @ columns
    gram.diagonal().add_(RIDGE * len(columns))
    found = torch.linalg.solve(gram, columns.T @ wanted.movedim(1, -1).flatten(0, -2))
    return found / scale[:, None]


def forms(
    space: Sequence[int], channels: int, others: int, most: int, early: bool = False
) -> list[EquationTerms]:
    """The forms of an equation that have at most so many terms, those of few first.

    Args:
        space: cells along each axis.
        channels: of the state.
        others: channels of other inputs.
        most: terms.
        early: those that cut the waves early, if that is another cut.
    """
    cuts = [(True, True)] if early else [(True, False), (False, False)]
    if early and all(n % 3 == 0 for n in space):
        return []
    several = [
        EquationTerms(tuple(space), channels, others, outer, *cut) for outer in (False, True) for cut in cuts
    ]
    return sorted((terms for terms in several if terms.count <= most), key=lambda terms: terms.count)
