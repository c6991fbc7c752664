"""`ImplicitStep`: steps of a sparse linear system with a polynomial source, derivative and adjoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

# decision 90:
USUALLY, SELDOM = 0.01, 1e-6  # of the largest number of a column: a diagonal below is swapped for it
LARGE = 4_000  # numbers of a state from which on that is seldom; decision 90
COLUMNS = 12  # right sides that are solved for at once: more go out of a core's cache; decision 83
Trajectory = list[np.ndarray]  # states `(rows, fields, nodes)`: the first, and one after each step


@dataclass(frozen=True)
class Term:
    """A product of fields that are mapped and multiplied, mapped back to the nodes, in one field's equation.

    Attributes:
        out: the field whose equation has it.
        factors: pairs of a map's name, from nodes to where the product is taken, and a field; none for 1.
        back: the name of the map from there to the nodes.
    """

    out: int
    factors: tuple[tuple[str, int], ...]
    back: str


@dataclass(frozen=True)
class ImplicitStep:
    """Steps y+ that solve left y+ = right y + q(y, extras) at free nodes; fixed nodes stay as they are.

    q is the sum of coefficients times terms. All of it is linear in y+, so one factorisation serves all rows
    and steps, and the transposed solve gives the adjoint.

    Attributes:
        left: the matrix on the left, `(fields * nodes, fields * nodes)`, sparse.
        right: the matrix on the right, of the same shape.
        terms: the terms of q.
        coefficients: the coefficients of the terms, `(terms,)`.
        maps: name -> sparse matrix, or None for the identity.
        fields: the number of fields of the state; extras are counted after them.
        nodes: the number of nodes of each field.
        steps: the number of steps in one call.
        free: `(fields * nodes,)`, 1 where the equation holds and 0 where the value is prescribed.
    """

    left: Any
    right: Any
    terms: Sequence[Term]
    coefficients: np.ndarray
    maps: Mapping[str, Any]
    fields: int
    nodes: int
    steps: int
    free: np.ndarray
    _factors: list[Any] = field(default_factory=list, repr=False)

    def run(self, state: np.ndarray, extras: np.ndarray) -> Trajectory:
        """The states from a first one `(rows, fields, nodes)` on, with extras `(rows, extras, nodes)`."""
        states = [state]
        for _ in range(self.steps):
            now = states[-1]
            source = self.source(np.concatenate([now, extras], axis=1))
            states.append(self.solve(_applied(self.right, now) + source, now))
        return states

    def tangent(
        self,
        states: Trajectory,
        extras: np.ndarray,
        change: np.ndarray,
        of_extras: np.ndarray | None = None,
        forcing: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return the last state's change for changes of first state, extras, and the steps' equations.

        Args:
            states: the states of a run.
            extras: the extras of that run.
            change: the change of the first state, `(..., rows, fields, nodes)`.
            of_extras: the change of the extras, `(..., rows, extras, nodes)`; zero if left out.
            forcing: the change of each step's equation, of the shape of `change`.
        """
        for step in range(self.steps):
            slopes = self._slopes(np.concatenate([states[step], extras], axis=1))
            right = _applied(self.right, change)
            for (out, back, name, place), slope in slopes.items():
                if place < self.fields:
                    part = change[..., place, :]
                elif of_extras is not None:
                    part = of_extras[..., place - self.fields, :]
                else:
                    continue
                right[..., out, :] += _mapped(self.maps[back], slope * _mapped(self.maps[name], part))
            change = self.solve(right if forcing is None else right + forcing[step], change)
        return change

    def adjoint(
        self, states: Trajectory, extras: np.ndarray, cotangent: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The gradient by the first state, by the extras, and by each step's equation."""
        of_extras, multipliers = np.zeros_like(extras), []
        for step in reversed(range(self.steps)):
            slopes = self._slopes(np.concatenate([states[step], extras], axis=1))
            pulled = self._transposed(cotangent)
            multiplier, prescribed = pulled * self._mask(), pulled * (1 - self._mask())
            multipliers.append(multiplier)
            cotangent = _applied(self.right.T, multiplier) + prescribed
            for (out, back, name, place), slope in slopes.items():
                pull = _back(self.maps[name], slope * _back(self.maps[back], multiplier[:, out]))
                if place < self.fields:
                    cotangent[:, place] += pull
                else:
                    of_extras[:, place - self.fields] += pull
        return cotangent, of_extras, multipliers[::-1]

    def source(self, at: np.ndarray) -> np.ndarray:
        """Q at `(rows, fields and extras, nodes)`."""
        values, sums = self._values(at), {}
        for term, coefficient in zip(self.terms, self.coefficients, strict=True):
            if coefficient:
                key = term.out, term.back
                sums[key] = sums.get(key, 0.0) + coefficient * self._product(values, term, len(at))
        source = np.zeros((len(at), self.fields, self.nodes))
        for (out, back), total in sums.items():
            source[:, out] += _mapped(self.maps[back], total)
        return source

    def products(self, at: np.ndarray) -> list[np.ndarray]:
        """Each term at the nodes, `(rows, nodes)`, without its coefficient."""
        values = self._values(at)
        return [_mapped(self.maps[term.back], self._product(values, term, len(at))) for term in self.terms]

    def _values(self, at: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
        """The factors of all terms."""
        factors = {factor for term in self.terms for factor in term.factors}
        return {(name, place): _mapped(self.maps[name], at[:, place]) for name, place in factors}

    def _product(self, values: Mapping[tuple[str, int], np.ndarray], term: Term, rows: int) -> np.ndarray:
        if not term.factors:
            back = self.maps[term.back]
            return np.ones((rows, self.nodes if back is None else back.shape[1]))
        return math.prod((values[factor] for factor in term.factors[1:]), start=values[term.factors[0]])

    def _slopes(self, at: np.ndarray) -> dict[tuple[int, str, str, int], np.ndarray | float]:
        """The factor of a mapped factor's change: (out, back, map, field) -> `(rows, places)`."""
        values, slopes = self._values(at), {}
        for term, coefficient in zip(self.terms, self.coefficients, strict=True):
            for index, (name, place) in enumerate(term.factors):
                if coefficient:
                    other_factors = term.factors[:index] + term.factors[index + 1 :]
                    key = term.out, term.back, name, place
                    slope = math.prod((values[factor] for factor in other_factors), start=coefficient)
                    slopes[key] = slopes.get(key, 0.0) + slope
        return slopes

    def solve(self, right: np.ndarray, held: np.ndarray) -> np.ndarray:
        """left^-1, with the values of `held` at fixed nodes."""
        flat = (right * self._mask() + held * (1 - self._mask())).reshape(-1, self.fields * self.nodes)
        factor = self._factor()
        solutions = [
            factor.solve(np.ascontiguousarray(flat[at : at + COLUMNS].T)).T
            for at in range(0, len(flat), COLUMNS)
        ]
        return np.concatenate(solutions or [flat]).reshape(right.shape)

    def _transposed(self, cotangent: np.ndarray) -> np.ndarray:
        flat = np.ascontiguousarray(cotangent.reshape(len(cotangent), -1).T)
        return self._factor().solve(flat, trans="T").T.reshape(cotangent.shape)

    def _mask(self) -> np.ndarray:
        return self.free.reshape(self.fields, self.nodes)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle all but the factorisation, which cannot be copied and is made again."""
        return self.__dict__ | {"_factors": []}

    def _factor(self) -> Any:
        if not self._factors:
            mask = sparse.diags_array(self.free)
            system = mask @ self.left + sparse.diags_array(1 - self.free)
            # The pattern is symmetric: this order fills a third of what the default does. A search also tries
            # numbers whose matrix has small diagonals; of a large one rows that are swapped for these fill so
            # much that a single factorisation took ten seconds and more.
            self._factors.append(
                splu(
                    system.tocsc(),
                    permc_spec="MMD_AT_PLUS_A",
                    diag_pivot_thresh=SELDOM if system.shape[0] > LARGE else USUALLY,
                    options={"SymmetricMode": True},
                )
            )
        return self._factors[0]


def _mapped(matrix: Any, values: np.ndarray) -> np.ndarray:
    if matrix is None:
        return values
    return (matrix @ values.reshape(-1, values.shape[-1]).T).T.reshape(*values.shape[:-1], -1)


def _back(matrix: Any, values: np.ndarray) -> np.ndarray:
    return values if matrix is None else _mapped(matrix.T, values)


def _applied(matrix: Any, values: np.ndarray) -> np.ndarray:
    return (matrix @ values.reshape(-1, matrix.shape[1]).T).T.reshape(values.shape)
