"""`Equation`: a partial differential equation of few terms on a periodic grid, and its flow over a call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SHORTEST = 1 / 8  # of a correction
RIDGE = 1e-8  # of least squares, over the number of equations; terms have a mean square of one


@dataclass(frozen=True)
class EquationTerms:
    """The terms that a rate may have: linear ones, and products of two fields or of three channels.

    The rate of change of a state x `(rows, channels, *space)` is a sum of linear terms and products. Linear
    terms are derivatives up to the fourth, the inverse of the Laplacian, and that inverse times derivatives
    up to the second. The factors of a product are the state, its derivatives (up to the second where `outer`
    is False, else up to the first), other inputs, and one. Nonlocal terms stand inside of products where
    `outer` is False: factors may be such inverses, as a velocity is of a vorticity. Where it is True they
    stand outside: second derivatives of the Laplacian's inverse may project a product, as a pressure does.

    Attributes:
        space: cells along each axis; they are as long along all.
        channels: the channels of the state.
        others: channels of other inputs, which stay as they are during a call.
        outer: whether nonlocal terms stand outside of products.
        dealiased: whether the state's upper third of the waves enters no product and leaves none.
        early: whether waves of more than a third less one are cut, too, as in Exponax and JAX-CFD's spectral
            solvers: on 16 cells the waves above the fourth, in place of those above the fifth.
        reaction: whether these are the terms of reactions beside drift and diffusion: no derivative beyond
            the second, no inverse, no derivative in products, and also products of three of the state's
            channels.
    """

    space: tuple[int, ...]
    channels: int
    others: int
    outer: bool
    dealiased: bool
    early: bool = False
    reaction: bool = False

    @cached_property
    def _operators(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operators of linear terms, factors and products, `(n, *modes)` each, and the waves of products."""
        longest = max(self.space)
        along = [torch.fft.fftfreq(n, dtype=torch.float64) for n in self.space[:-1]]
        along.append(torch.fft.rfftfreq(self.space[-1], dtype=torch.float64))
        waves = torch.meshgrid(*(longest * frequencies for frequencies in along), indexing="ij")
        share = torch.meshgrid(*along, indexing="ij")  # of the waves of a cell
        square = torch.stack([wave.square() for wave in waves]).sum(0)
        inverse = torch.where(square > 0, -1 / square.clamp_min(1e-30), 0.0)
        one = torch.ones_like(square)
        # the highest mode's sine is not on the grid, so it has no derivative
        slopes = [1j * wave * (part.abs() < 0.5) for wave, part in zip(waves, share, strict=True)]
        second = [a * b for a, b in itertools.combinations_with_replacement(slopes, 2)]
        projections = [operator * inverse for operator in second[:-1]]  # with the last one they add up to one
        nonlocal_ones = [inverse, *(slope * inverse for slope in slopes), *projections]
        third = [-square * slope for slope in slopes]
        linear = [one, *slopes, *second, *third, square.square(), *nonlocal_ones]
        factors = [one, *slopes] if self.outer else [one, *slopes, *second, *nonlocal_ones]
        products = [one, *projections] if self.outer else [one]
        if self.reaction:
            linear, factors, products = [one, *slopes, *second], [one], [one]
        mask = one
        if self.dealiased:
            within = [part.abs() < 1 / 3 for part in share]
            if self.early:
                within = [3 * n * part.abs() < n - 2.5 for n, part in zip(self.space, share, strict=True)]
            mask = torch.stack([part.double() for part in within]).prod(0)
        several = [torch.stack([operator + 0j for operator in kind]) for kind in (linear, factors, products)]
        return several[0], several[1], several[2], mask

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """The places of both factors of each product, among the fields; one times the state is linear."""
        moving = self.channels * len(self._operators[1])
        fields = moving + self.others + 1
        both = itertools.combinations_with_replacement(range(fields), 2)
        places = [pair for pair in both if pair[0] >= moving or pair[1] < fields - 1]
        first, second = zip(*places, strict=True)
        return torch.tensor(first), torch.tensor(second)

    @cached_property
    def triples(self) -> Tensor:
        """The channels of each product of three, `(3, n)`; none where there are no such products."""
        several = itertools.combinations_with_replacement(range(self.channels), 3)
        return torch.tensor(list(several) if self.reaction else [], dtype=torch.long).reshape(-1, 3).T

    @property
    def count(self) -> int:
        """The number of terms."""
        linear, factors, products, _ = self._operators
        moving = self.channels * len(factors)
        fields = moving + self.others + 1  # of which there may be too many for a list of pairs
        pairs = fields * (fields + 1) // 2 - moving
        return self.channels * len(linear) + len(products) * pairs + self.triples.shape[1]

    def modes(self, x: Tensor) -> Tensor:
        """Return the modes of fields `(..., *space)`."""
        return torch.fft.rfftn(x, s=self.space)

    def back(self, modes: Tensor) -> Tensor:
        """The fields of modes."""
        return torch.fft.irfftn(modes, s=self.space)

    def fields(self, x: Tensor, others: Tensor) -> Tensor:
        """Return the fields that are multiplied with each other, `(rows, fields, *space)`."""
        _, factors, _, mask = self._operators
        modes = self.modes(x)[:, :, None] * (factors * mask).to(x.dtype.to_complex())
        moving = self.back(modes).flatten(1, 2)
        return torch.cat([moving, others.to(x), torch.ones_like(x[:, :1])], dim=1)

    def projected(self, products: Tensor) -> Tensor:
        """Products `(rows, operators, n, *space)`, each under its own operator; one for all where it is 1."""
        _, _, operators, mask = self._operators
        if not self.outer and not self.dealiased:
            return products
        return self.back(self.modes(products) * (operators * mask)[:, None].to(products.dtype.to_complex()))

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
        parts = [self.linear(x), self.projected(products[:, None]).flatten(1, 2), self.cubes(x)]
        return torch.cat(parts, dim=1)

    def cubes(self, x: Tensor) -> Tensor:
        """Products of three channels, `(rows, n, *space)`."""
        a, b, c = self.triples
        return x[:, a] * x[:, b] * x[:, c]

    def symbol(self, coefficients: Tensor) -> Tensor:
        """The linear part by waves, `(*modes, channels out, channels in)`."""
        linear = self._operators[0]
        parts = coefficients[: self.channels * len(linear)].reshape(self.channels, len(linear), -1)
        return torch.einsum("ioc,o...->...ci", parts + 0j, linear)

    def products(self, coefficients: Tensor) -> Tensor:
        """The products' part, `(operators, channels, fields, ..., fields)`, one of `fields` for each factor.

        A product of two fields is one of three with a field that is one, where there are products of three.
        """
        linear, _, operators, _ = self._operators
        first, second = self.pairs
        fields = int(second.max()) + 1
        nonlinear = coefficients[self.channels * len(linear) :]
        twos, threes = nonlinear.split([len(operators) * len(first), self.triples.shape[1]])
        twos = twos.reshape(len(operators), len(first), -1).movedim(-1, 1)
        tensor = coefficients.new_zeros(len(operators), self.channels, *[fields] * self.degree)
        if self.degree == 2:
            tensor[:, :, first, second] = twos
        else:
            tensor[:, :, first, second, fields - 1] = twos
            tensor[(slice(None), slice(None), *self.triples)] = threes.T
        return tensor

    @property
    def degree(self) -> int:
        """The degree of the products."""
        return 3 if self.reaction else 2


class Equation:
    """The flow of an equation over a call: Runge-Kutta of fourth order, the linear part exact.

    Args:
        terms: the terms that it may have.
        coefficients: the coefficients of the terms in a call's change, `(terms, channels)`, float64.
        steps: the number of time steps in a call.
    """

    def __init__(self, terms: EquationTerms, coefficients: Tensor, steps: int) -> None:
        coefficients = coefficients.cpu()  # as the terms are
        self.terms, self.coefficients, self.steps = terms, coefficients, steps
        # (channels out, channels in, *modes)
        self._half = torch.linalg.matrix_exp(terms.symbol(coefficients) / (2 * steps)).movedim(
            (-2, -1), (0, 1)
        )
        self._parts: dict[tuple[torch.dtype, torch.device], _Parts] = {}  # as they were used

    def __call__(self, x: Tensor, others: Tensor) -> Tensor:
        """The state after a call; `others` are `(rows, others, *space)`."""
        *_, modes = self._modes(x, others)
        return self.terms.back(modes)

    def path(self, x: Tensor, others: Tensor) -> list[Tensor]:
        """The states between steps, the first and the last included."""
        return [x, *(self.terms.back(modes) for modes in self._modes(x, others))]

    def _modes(self, x: Tensor, others: Tensor) -> Iterator[Tensor]:
        """The modes of the state after each step."""
        parts, still = self._parts_for(x), torch.cat([others.to(x), torch.ones_like(x[:, :1])], 1)

        def moved(*several: Tensor) -> tuple[Tensor, ...]:
            """Advance modes by the linear part, half a step, all at once."""
            return (parts.half * torch.cat(several)[:, None]).sum(2).split(len(x))

        step, modes = 1 / self.steps, self.terms.modes(x)
        for _ in range(self.steps):
            a = self._rate(modes, still, parts)
            half, a_half = moved(modes, a)
            b = self._rate(half + step / 2 * a_half, still, parts)
            c = self._rate(half + step / 2 * b, still, parts)
            whole, a_whole, bc, c_half = moved(half, a_half, b + c, c)
            d = self._rate(whole + step * c_half, still, parts)
            modes = whole + step / 6 * (a_whole + 2 * bc + d)
            yield modes

    def _rate(self, modes: Tensor, still: Tensor, parts: _Parts) -> Tensor:
        """Return the rate of change by the products, as modes."""
        if parts.factors is not None:
            modes = (modes[:, :, None] * parts.factors).flatten(1, 2)
        fields = torch.cat([self.terms.back(modes), still], 1).flatten(2)
        rate = parts.products @ fields
        for _ in range(1, self.terms.degree):  # times one factor more
            rate = (rate.unflatten(1, (-1, fields.shape[1])) * fields[:, None]).sum(2)
        if parts.operators is None:
            return self.terms.modes(rate.unflatten(2, self.terms.space))
        rate = rate.unflatten(2, self.terms.space).unflatten(1, (len(parts.operators), -1))
        return (self.terms.modes(rate) * parts.operators).sum(1)

    def _parts_for(self, x: Tensor) -> _Parts:
        """All that a step needs, in a state's precision and where it is."""
        key = x.dtype, x.device
        if key in self._parts:
            return self._parts[key]
        with torch.inference_mode(False), torch.no_grad():  # they serve other modes as well
            _, factors, operators, mask = self.terms._operators
            complex_, products = x.dtype.to_complex(), self.terms.products(self.coefficients)
            whole = bool((mask == 1).all())
            self._parts[key] = _Parts(
                self._half.to(x.device, complex_),
                None if whole and len(factors) == 1 else (factors * mask).to(x.device, complex_),
                None if whole and len(operators) == 1 else (operators * mask)[:, None].to(x.device, complex_),
                products.to(x).reshape(-1, products.shape[-1]),
            )
        return self._parts[key]


@dataclass(frozen=True)
class _Parts:
    """The factors of a step of the flow.

    Attributes:
        half: modes by the linear part, half a step, `(channels out, channels in, *modes)`.
        factors: modes of the state to those of a product's factors, `(factors, *modes)`; None for one factor,
            the state.
        operators: modes of products, `(operators, 1, *modes)`; None where nothing is done to them.
        products: their coefficients, `(operators x channels x fields x ..., fields)`.
    """

    half: Tensor
    factors: Tensor | None
    operators: Tensor | None
    products: Tensor


def fitted(
    terms: EquationTerms, x: Tensor, y: Tensor, others: Tensor, steps: int, start: Tensor | None, rounds: int
) -> tuple[Equation, float]:
    """The equation whose flow leads from states to states, by least squares.

    The first coefficients are those of the implicit midpoint rule, a linear problem. Then corrections follow:
    the flow's misses are regressed on the means of the terms along the flow, which is right but for the
    growth of a change during a call. The correction, or a half, a quarter or an eighth of it, is added for as
    long as that lowers the error.

    Args:
        terms: the terms that it may have.
        x: states, `(rows, channels, *space)`, float64.
        y: the states after a call.
        others: `(rows, others, *space)`.
        steps: the number of time steps in a call.
        start: coefficients to begin with; None where there are none.
        rounds: the most rounds of correction.

    Returns:
        The equation, and its error over the change of a call; infinite where its flow is not finite.
    """
    if start is None:
        start = _squares(terms.all((x + y) / 2, others), y - x)
    size, least = float((y - x).norm()) or 1.0, math.inf
    best, correction, share = Equation(terms, start, steps), torch.zeros_like(start), 1.0
    equation = best
    for turn in range(rounds + 1):
        path = equation.path(x, others)
        missed = y - path[-1]
        error = float(missed.norm()) / size
        if error < least:
            close, best, least, share = error > 0.95 * least, equation, error, 1.0
            if close or turn == rounds:
                break
            weights = [0.5, *[1.0] * (steps - 1), 0.5]
            mean = x.new_zeros(len(x), terms.count, *terms.space)
            for weight, state in zip(weights, path, strict=True):
                mean.add_(terms.all(state, others), alpha=weight / steps)
            correction = _squares(mean, missed)
        else:
            share /= 2
        if share < SHORTEST or not math.isfinite(least):
            break
        equation = Equation(terms, best.coefficients + share * correction, steps)
    return best, least


def _squares(terms: Tensor, wanted: Tensor) -> Tensor:
    """Coefficients `(terms, channels)` by ridge regression over all rows and cells."""
    columns = terms.movedim(1, -1).flatten(0, -2)
    scale = columns.square().mean(0).sqrt().clamp_min(1e-12 * float(columns.abs().max()) + 1e-300)
    columns = columns / scale
    gram = columns.T @ columns
    gram.diagonal().add_(RIDGE * len(columns))
    solution = torch.linalg.solve(gram, columns.T @ wanted.movedim(1, -1).flatten(0, -2))
    return solution / scale[:, None]


def forms(
    space: Sequence[int], channels: int, others: int, most: int, early: bool = False
) -> list[EquationTerms]:
    """The forms of an equation that have at most so many terms, those of few first.

    Args:
        space: cells along each axis.
        channels: the channels of the state.
        others: channels of other inputs.
        most: the most terms of a form.
        early: whether to return the forms that cut the waves early, where that is another cut.
    """
    cuts = [(True, True)] if early else [(True, False), (False, False)]
    if early and all(n % 3 == 0 for n in space):
        return []
    several = [
        EquationTerms(tuple(space), channels, others, outer, *cut) for outer in (False, True) for cut in cuts
    ]
    if not early:
        several.append(EquationTerms(tuple(space), channels, others, False, False, reaction=True))
    return sorted((terms for terms in several if terms.count <= most), key=lambda terms: terms.count)
