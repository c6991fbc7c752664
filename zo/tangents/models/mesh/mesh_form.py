"""`MeshForm` of a step on a mesh's finite elements: its coefficients, and the matrices that they multiply."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from zo.tangents.models.mesh.implicit_step import ImplicitStep, Term
from zo.tangents.models.mesh.mesh_operators import Elements

STEPS = 2, 12  # of a convection, at least and at most; decision 72


class MeshMatrices:
    """A mesh's matrices, made when first asked for.

    Attributes:
        elements: the elements of the mesh.
    """

    def __init__(self, elements: Elements) -> None:
        self.elements = elements
        self._cache: dict[tuple[Any, ...], Any] = {}

    @cached_property
    def mass(self) -> Any:
        """The consistent mass matrix."""
        return self.elements.mass()

    @cached_property
    def lumped(self) -> Any:
        """The mass on the diagonal."""
        return self.elements.lumped()

    @cached_property
    def maps(self) -> dict[str, Any]:
        """The maps by name that the terms of q are made of."""
        elements = self.elements
        volume = sparse.diags_array(elements.volume)
        maps: dict[str, Any] = {
            "node": None,
            "mass": self.mass,
            "mean": elements.average(),
            "integral": (elements.average().T @ volume).tocsr(),
        }
        for axis in range(elements.dimensions):
            slope = elements.slope(axis)
            maps |= {f"slope {axis}": slope, f"flux {axis}": (-slope.T @ volume).tocsr()}
        return maps

    def of(self, kind: tuple[Any, ...], degree: int, place: int) -> Any:
        """Return a matrix of K, by its kind, and by its coefficient's polynomial among those of a degree."""
        key = (*kind, degree, place)
        if key not in self._cache:
            weight = self.weights(degree)[place]
            self._cache[key] = self._matrix(kind, weight)
        return self._cache[key]

    def weights(self, degree: int) -> np.ndarray:
        """The polynomials of a degree by cell, `(polynomials, cells)`."""
        key = ("polynomials", degree)
        if key not in self._cache:
            self._cache[key] = np.stack(self.elements.polynomials(degree))
        return self._cache[key]

    def products(
        self, left: np.ndarray, right: Sequence[np.ndarray]
    ) -> Callable[[tuple[Any, ...], int, int], Any]:
        """Return a function of A's kind, out and into: each cell's part of left^T A right, summed over rows.

        Of the mesh's border it is one number.

        Args:
            left: `(rows, fields, nodes)`.
            right: the same for each field of `left`.
        """
        elements = self.elements
        axes = range(elements.dimensions)
        names = ["mean", *(f"slope {a}" for a in axes)]
        lefts = {name: _mapped(self.maps[name], left) for name in names}
        rights = [{name: _mapped(self.maps[name], values) for name in names} for values in right]
        corners = elements.cells.shape[1]

        def product(first: str, second: str, out: int, into: int) -> np.ndarray:
            both = np.einsum("re,re->e", lefts[first][:, out], rights[out][second][:, into])
            return both * elements.volume

        def nodes(out: int, into: int) -> np.ndarray:
            return np.einsum("rn,rn->n", left[:, out], right[out][:, into])

        def by_cell(kind: tuple[Any, ...], out: int, into: int) -> Any:
            if kind[0] == "convection":
                return product("mean", f"slope {kind[1]}", out, into)
            if kind[0] == "boundary":
                return self.boundary.diagonal() @ nodes(out, into)
            if kind[0] != "mass":
                directions = _directions(kind, elements.dimensions)
                pairs = np.argwhere(directions).tolist()
                return sum(
                    directions[a, b] * product(f"slope {a}", f"slope {b}", out, into) for a, b in pairs
                )
            means = product("mean", "mean", out, into)
            return (corners * means + elements.volume * (self.maps["mean"] @ nodes(out, into))) / (
                corners + 1
            )

        return by_cell

    @cached_property
    def boundary(self) -> Any:
        """The lumped mass of the mesh's border."""
        return self.elements.boundary()

    def _matrix(self, kind: tuple[Any, ...], weight: np.ndarray) -> Any:
        if kind[0] == "convection":
            return self.elements.convection(kind[1], weight)
        if kind[0] in ("boundary", "mass"):
            return self.boundary if kind[0] == "boundary" else self.elements.mass(weight)
        directions = _directions(kind, self.elements.dimensions)
        pairs = np.argwhere(directions).tolist()
        return sum(directions[a, b] * self.elements.stiffness(a, b, weight) for a, b in pairs)


@dataclass(frozen=True)
class MeshForm:
    """The layout of the coefficients: psi, w, those of K, and those of q, in this order.

    psi is the part of the mass that is lumped, w how implicit a step is; both are of states that are carried.
    """

    basis: MeshMatrices
    degree: int
    steps: int
    products: str
    varied: tuple[int, ...]
    carried: np.ndarray
    extras: int

    @cached_property
    def kinds(self) -> list[tuple[int, int, tuple[Any, ...]]]:
        """Field, field and what matrix."""
        count, axes = len(self.carried), range(self.basis.elements.dimensions)
        matrices: list[tuple[Any, ...]] = [("mass",), ("laplace",), *(("aniso", a) for a in axes[1:])]
        matrices += [("convection", a) for a in axes]
        if count == 1:
            matrices += [("both", a, b) for a in axes for b in axes if a < b]
        else:
            matrices += [("stiffness", a, b) for a in axes for b in axes if a != b]
        kinds = [(a, b, kind) for a, b in itertools.product(range(count), repeat=2) for kind in matrices]
        return kinds + [(field, field, ("boundary",)) for field in range(count)]

    def places(self, place: int) -> int:
        """Return the number of polynomials that the coefficient of a kind has."""
        varies = place in self.varied and self.kinds[place][2] != ("boundary",)
        return len(self.basis.weights(self.degree)) if varies else 1

    @cached_property
    def names(self) -> list[Any]:
        """The names of the coefficients, the same in all forms."""
        places = [(*kind, n) for place, kind in enumerate(self.kinds) for n in range(self.places(place))]
        return ["psi", "w", *places, *self.terms]

    def passed(self, theta: np.ndarray) -> int:
        """So many steps that convection passes about one element in each."""
        elements = self.basis.elements
        speed = np.zeros((len(self.carried), len(elements.cells), elements.dimensions))
        for value, name in zip(theta, self.names, strict=True):
            if isinstance(name, tuple) and name[2][0] == "convection" and name[0] == name[1]:
                speed[name[0], :, name[2][1]] += value * self.basis.weights(self.degree)[name[3]]
        flow = np.abs(np.einsum("fea,eca->fec", speed, elements.slopes)).max(axis=(0, 2))
        return int(np.clip(math.ceil(np.quantile(flow, 0.95)), *STEPS))

    @cached_property
    def linear(self) -> list[tuple[int, int, Any]]:
        """The matrices of K, each with the field of its equation and the field that it multiplies."""
        places = [name for name in self.names[2:] if isinstance(name, tuple)]
        return [(out, into, self.basis.of(kind, self.degree, place)) for out, into, kind, place in places]

    @cached_property
    def terms(self) -> list[Term]:
        """The terms of q."""
        count = len(self.carried)
        terms = [
            Term(out, (("node", count + extra),), "mass")
            for out in range(count)
            for extra in range(self.extras)
        ]
        if self.products == "none":
            return terms
        fields = range(count)
        degrees = {1: (0, 2, 3), 2: (0, 2, 3)}.get(count, (0, 2))
        powers = [power for n in degrees for power in itertools.combinations_with_replacement(fields, n)]
        powers += [(field, count + extra) for field in fields for extra in range(self.extras)]
        powers += [(count + extra,) * 2 for extra in range(self.extras)]
        terms += [
            Term(out, tuple(("node", field) for field in power), "mass") for out in fields for power in powers
        ]
        if self.products == "cells":
            axes = range(self.basis.elements.dimensions)
            terms += [
                Term(out, (("mean", out), (f"slope {a}", out)), f"flux {a}") for out in fields for a in axes
            ]
            terms += [
                Term(out, (("mean", by), (f"slope {a}", out)), "integral")
                for out in fields
                for by in fields
                for a in axes
            ]
        return terms

    @property
    def count(self) -> int:
        """The number of all coefficients."""
        return 2 + len(self.linear) + len(self.terms)

    def start(self) -> np.ndarray:
        """Coefficients to begin with: nothing changes, and what is not carried answers its own extra."""
        theta = np.zeros(self.count)
        theta[1] = 1.0
        for place, term in self.answering():
            del term
            theta[2 + len(self.linear) + place] = 1.0
        return theta

    def answering(self) -> list[tuple[int, Term]]:
        """The place and term that say in which units K is, for each output that no input moves on to."""
        first = {}
        queue = [field for field in range(len(self.carried)) if not self.carried[field]]
        for number, field in enumerate(queue):
            extra = len(self.carried) + (number % self.extras if self.extras else 0)
            for place, term in enumerate(self.terms):
                if term.out == field and term.factors == (("node", extra),):
                    first[field] = (place, term)
        return list(first.values())

    @cached_property
    def base(self) -> tuple[Any, Any]:
        """The mass of carried fields, and how it changes with psi."""
        nodes = self.basis.elements.nodes
        empty = sparse.csr_array((nodes, nodes))
        mass, lump = self.basis.mass, self.basis.lumped - self.basis.mass
        return tuple(
            sparse.block_diag([matrix if carries else empty for carries in self.carried], format="csr")
            for matrix in (mass, lump)
        )  # type: ignore[return-value]

    def operator(self, theta: np.ndarray) -> Any:
        """The matrix K of all fields."""
        count, elements = len(self.carried), self.basis.elements
        size, axes = len(elements.cells), elements.dimensions
        blocks: list[list[Any]] = [[None] * count for _ in range(count)]
        at, edges = 2, np.zeros(count)
        parts: dict[tuple[int, int], tuple[np.ndarray, ...]] = {}
        for place, (out, into, kind) in enumerate(self.kinds):
            places = self.places(place)
            values, at = theta[at : at + places], at + places
            if not values.any():
                continue
            if kind[0] == "boundary":
                edges[out] = values[0]
                continue
            if (out, into) not in parts:
                parts[out, into] = np.zeros((size, axes, axes)), np.zeros((size, axes)), np.zeros(size)
            tensor, velocity, mass = parts[out, into]
            weight = values @ self.basis.weights(self.degree)[:places]
            if kind[0] == "mass":
                mass += weight
            elif kind[0] == "convection":
                velocity[:, kind[1]] += weight
            else:
                tensor += weight[:, None, None] * _directions(kind, axes)
        for (out, into), coefficients in parts.items():
            blocks[out][into] = elements.operator(*coefficients)
        for field in range(count):
            if blocks[field][field] is None or edges[field]:
                here = edges[field] * self.basis.boundary
                blocks[field][field] = here if blocks[field][field] is None else blocks[field][field] + here
        return sparse.block_array(blocks, format="csr")

    def implicit(self, theta: np.ndarray) -> np.ndarray:
        """The coefficient w of each number: 1 where nothing is carried."""
        return np.repeat(np.where(self.carried, theta[1], 1.0), self.basis.elements.nodes)

    def step(self, theta: np.ndarray, free: np.ndarray) -> ImplicitStep:
        """The implicit step with these coefficients."""
        mass, lump = self.base
        bulk = mass + theta[0] * lump
        part = self.operator(theta) / self.steps
        share = self.implicit(theta)
        return ImplicitStep(
            bulk + sparse.diags_array(share) @ part,
            bulk - sparse.diags_array(1 - share) @ part,
            self.terms,
            theta[len(theta) - len(self.terms) :] / self.steps,
            self.basis.maps,
            len(self.carried),
            self.basis.elements.nodes,
            self.steps,
            free,
        )


def stiff(step: ImplicitStep, values: np.ndarray) -> np.ndarray:
    """K / S of values: what the two sides of the step differ by, however implicit it is."""
    return applied(step.left, values) - applied(step.right, values)


def applied(matrix: Any, values: np.ndarray) -> np.ndarray:
    """A matrix of all fields' nodes times `(rows, fields, nodes)`."""
    return (matrix @ values.reshape(len(values), -1).T).T.reshape(values.shape)


def _directions(kind: tuple[Any, ...], axes: int) -> np.ndarray:
    """Return a kind of stiffness as its coefficients of d/da times d/db, `(axes, axes)`."""
    tensor = np.zeros((axes, axes))
    if kind[0] in ("stiffness", "both"):
        tensor[kind[1], kind[2]] = 1.0
        if kind[0] == "both":
            tensor[kind[2], kind[1]] = 1.0
    elif kind[0] == "laplace":
        tensor = np.eye(axes)
    else:  # the first axis against another
        tensor[0, 0], tensor[kind[1], kind[1]] = 1.0, -1.0
    return tensor


def _mapped(matrix: Any, values: np.ndarray) -> np.ndarray:
    return (matrix @ values.reshape(-1, values.shape[-1]).T).T.reshape(*values.shape[:-1], -1)
