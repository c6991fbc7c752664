"""The meaning of an array's axes: the nodes of a `Mesh`, the cells of a `Grid`, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from blackbox.errors import DefinitionError

CORNERS = {"edges": 2, "triangles": 3, "tetrahedra": 4}
FLAT = 1e-9  # of the usual area or volume: a cell with less has none


@dataclass(frozen=True)
class Grid:
    """The axes of an array are those of a regular grid of cells; a first axis beyond them holds channels.

    Args:
        periodic: whether the two ends of the grid meet, one answer for all axes or one for each of the one to
            three axes of space. None, the default, leaves that to be measured.

    Raises:
        DefinitionError: `periodic` is something else.
    """

    periodic: bool | Sequence[bool] | None = None

    def __post_init__(self) -> None:
        """Check, and keep a tuple."""
        if self.periodic is None or isinstance(self.periodic, bool):
            return
        periodic = self.periodic
        if (
            not isinstance(periodic, Sequence)
            or not 1 <= len(periodic) <= 3
            or not all(isinstance(one, bool) for one in periodic)
        ):
            raise DefinitionError(
                f"Grid, periodic: expected True, False, one of these for each of one to three axes, or None, "
                f"got {periodic!r}. True is for a grid whose ends meet."
            )
        object.__setattr__(self, "periodic", tuple(periodic))


@dataclass(frozen=True, eq=False, repr=False)
class Mesh:
    """One axis of an array counts the nodes of a mesh or a graph; another one, if there is one, its fields.

    A spec with a mesh of n nodes has the shape `(n,)`, `(n, fields)` or `(fields, n)`. Meshes are equal if
    their numbers are; they can be hashed, pickled and shared by several specs. `Mesh.of_grid` makes one of a
    grid with holes.

    Args:
        edges: pairs of nodes that touch, `(edges, 2)`, each counted from 0, once, in either order. They may
            be left out where there are triangles or tetrahedra.
        triangles: the triangles of a mesh in the plane or of a surface, `(triangles, 3)` nodes.
        coordinates: the coordinates of the nodes, `(nodes, dimensions)`, in any unit of length; one to three
            dimensions.
        tetrahedra: the tetrahedra of a mesh in space, `(tetrahedra, 4)` nodes; in place of triangles.
        fixed: nodes at which the box prescribes its outputs, as on a clamped or heated edge. None, the
            default, leaves that to be measured: nodes at which the outputs never change.
        nodes: the number of nodes, where there are no coordinates and the last nodes have no edge.

    Raises:
        DefinitionError: nothing connects the nodes, or the arrays have other shapes or name nodes that are
            not there.
    """

    edges: Any = None
    triangles: Any = None
    coordinates: Any = None
    tetrahedra: Any = None
    fixed: Any = None
    nodes: int | None = None

    def __post_init__(self) -> None:
        """Check, and keep arrays that nobody can write to."""
        for name, corners in CORNERS.items():
            nodes = getattr(self, name)
            object.__setattr__(self, name, None if nodes is None else _cells(name, nodes, corners))
        if self.fixed is not None:
            object.__setattr__(self, "fixed", _whole("fixed", np.ravel(np.asarray(self.fixed))))
        if self.coordinates is not None:
            object.__setattr__(self, "coordinates", _places(self.coordinates))
        connected = [getattr(self, name) for name in CORNERS if getattr(self, name) is not None]
        if not connected:
            raise DefinitionError(
                "Mesh: expected edges, triangles or tetrahedra, got none of these. Say which nodes touch, "
                "such as Mesh(triangles=..., coordinates=...) or Mesh(edges=...)."
            )
        if self.triangles is not None and self.tetrahedra is not None:
            raise DefinitionError(
                "Mesh: expected triangles or tetrahedra, got both. Leave the triangles of a mesh in space "
                "out."
            )
        self._count([*connected, *([] if self.fixed is None else [self.fixed])])

    @classmethod
    def of_grid(cls, kept: Any, spacing: float | Sequence[float] = 1.0) -> Mesh:
        """The mesh of a grid with holes: a node for each cell that there is, in the order of `array[kept]`.

        In two dimensions squares of four such cells become two triangles and corners of three become one. A
        grid of three dimensions, or one where a cell lies in no triangle, as in a corridor, has the edges
        between neighbours alone.

        Args:
            kept: a bool array of the grid's shape, one to three axes: True where there is a cell.
            spacing: the spacing of the cells, one number or one for each axis.

        Raises:
            DefinitionError: `kept` has other axes, is not bool, or has no two cells side by side; or the
                spacing does not fit it.
        """
        kept = np.asarray(kept)
        if kept.dtype != bool or not 1 <= kept.ndim <= 3:
            raise DefinitionError(
                f"Mesh.of_grid, kept: expected an array of bools with one to three axes, got {kept.dtype} of "
                f"shape {kept.shape}. Say which cells there are, such as ~holes."
            )
        try:
            steps = np.broadcast_to(np.asarray(spacing, dtype=float), (kept.ndim,))
        except (TypeError, ValueError):
            steps = np.zeros(kept.ndim)
        if not (np.isfinite(steps) & (steps > 0)).all():
            raise DefinitionError(
                f"Mesh.of_grid, spacing: expected a positive number, or one for each of {kept.ndim} axes, "
                f"got {spacing!r}. It is the distance between the middles of two cells."
            )
        number = np.where(kept, np.cumsum(kept).reshape(kept.shape) - 1, -1)
        places = np.argwhere(kept) * steps
        pairs = []
        for axis in range(kept.ndim):
            along = np.moveaxis(number, axis, 0)
            pairs.append(np.stack([along[:-1].ravel(), along[1:].ravel()], axis=1))
        edges = _all_there(np.concatenate(pairs))
        if not len(edges):
            raise DefinitionError(
                f"Mesh.of_grid, kept: expected cells side by side, got none among {int(kept.sum())} cells. "
                "Nothing joins these: leave the layout out."
            )
        if kept.ndim == 2:
            a, b, c, d = (
                number[rows, columns].ravel()
                for rows in (slice(None, -1), slice(1, None))
                for columns in (slice(None, -1), slice(1, None))
            )
            whole = np.stack([a, b, c, d]).min(axis=0) >= 0
            corners = np.concatenate(
                [
                    np.stack([a, b, d], axis=1)[whole],
                    np.stack([a, d, c], axis=1)[whole],
                    *(
                        np.stack(three, axis=1)[~whole]
                        for three in ((a, b, c), (a, b, d), (a, c, d), (b, c, d))
                    ),
                ]
            )
            triangles = _all_there(corners)
            if len(np.unique(triangles)) == len(places):
                return cls(triangles=triangles, coordinates=places)
        return cls(edges=edges, coordinates=places)

    def _count(self, named: list[np.ndarray]) -> None:
        highest = max(int(nodes.max(initial=-1)) for nodes in named)
        declared, placed = self.nodes, None if self.coordinates is None else len(self.coordinates)
        if declared is not None and (
            isinstance(declared, bool) or not isinstance(declared, int) or declared < 1
        ):
            raise DefinitionError(
                f"Mesh, nodes: expected a positive whole number, got {declared!r}. Leave it out."
            )
        if declared is not None and placed is not None and declared != placed:
            raise DefinitionError(
                f"Mesh: expected coordinates of {declared} nodes, got {placed}. Leave `nodes` out."
            )
        count = declared or placed or highest + 1
        if highest >= count:
            raise DefinitionError(
                f"Mesh: expected nodes from 0 to {count - 1}, got node {highest}. Count the nodes from 0, "
                "and give coordinates for all."
            )
        object.__setattr__(self, "nodes", count)
        for name in ("triangles", "tetrahedra"):
            cells = getattr(self, name)
            if cells is not None and self.coordinates is not None:
                _refuse_flat(name, cells, self.coordinates)

    @property
    def size(self) -> int:
        """The number of nodes."""
        assert self.nodes is not None  # counted when it was made
        return self.nodes

    @property
    def cells(self) -> np.ndarray | None:
        """Tetrahedra, or triangles, `(cells, corners)`; None of a mesh of edges alone."""
        return self.triangles if self.tetrahedra is None else self.tetrahedra

    def links(self) -> np.ndarray:
        """All pairs of nodes that touch, each once, the lower node first: `(links, 2)`, sorted."""
        pairs = [] if self.edges is None else [self.edges]
        if self.cells is not None:
            corners = self.cells.shape[1]
            pairs += [self.cells[:, [a, b]] for a in range(corners) for b in range(a)]
        both = np.sort(np.concatenate(pairs), axis=1)
        return np.unique(both[both[:, 0] != both[:, 1]], axis=0)

    def between_edges(self) -> Mesh:
        """The mesh whose nodes are the edges of this one, joined where they share a node.

        For arrays that have a number for each edge, such as the flow in each pipe. Its nodes are in the order
        of `edges`, or of `links()` for a mesh made without edges.
        """
        edges = self.links() if self.edges is None else self.edges
        at: dict[int, list[int]] = {}
        for place, ends in enumerate(edges.tolist()):
            for node in set(ends):
                at.setdefault(node, []).append(place)
        pairs = {(a, b) for edges_here in at.values() for b in edges_here for a in edges_here if a < b}
        middle = None if self.coordinates is None else self.coordinates[edges].mean(axis=1)
        joined = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
        return Mesh(edges=joined, coordinates=middle, nodes=len(edges))

    def node_axis(self, shape: Sequence[int]) -> int | None:
        """Return the axis of an array of this shape that counts the nodes: the first that can, or None."""
        if len(shape) not in (1, 2):
            return None
        return next((axis for axis, size in enumerate(shape) if size == self.nodes), None)

    def plain(self) -> dict[str, Any]:
        """Its arguments, arrays as they are."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def _key(self) -> tuple[Any, ...]:
        return tuple(
            (name, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else (name, value)
            for name, value in self.plain().items()
        )

    def __eq__(self, other: object) -> bool:
        """Say whether all numbers are equal."""
        if not isinstance(other, Mesh):
            return NotImplemented
        return self is other or self._key() == other._key()

    def __hash__(self) -> int:
        """Hash the numbers; the hash is kept, since specs are hashed often."""
        if "_hash" not in self.__dict__:
            object.__setattr__(self, "_hash", hash(self._key()))
        return self.__dict__["_hash"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Made anew from its arguments, so that arrays stay read-only."""
        return Mesh, tuple(self.plain().values())

    def __repr__(self) -> str:
        """Show the number of nodes and cells, not the numbers themselves."""
        parts = [f"{self.nodes} nodes"]
        parts += [f"{len(getattr(self, name))} {name}" for name in CORNERS if getattr(self, name) is not None]
        if self.coordinates is not None:
            parts.append(f"{self.coordinates.shape[1]}-D coordinates")
        if self.fixed is not None:
            parts.append(f"{len(self.fixed)} fixed")
        return f"Mesh({', '.join(parts)})"


Layout: TypeAlias = Mesh | Grid | Literal["auto"] | None


def checked_layout(name: str, shape: tuple[int, ...], layout: object) -> Layout:
    """The layout of a spec, checked against its shape: "grid" becomes a `Grid`.

    Args:
        name: the name of the spec, for the message.
        shape: the shape of the spec.
        layout: the user's layout.

    Raises:
        DefinitionError: it is no layout, or does not fit the shape.
    """
    if layout is None or (isinstance(layout, str) and layout == "auto"):
        return layout  # type: ignore[return-value]
    if isinstance(layout, str) and layout == "grid":
        layout = Grid()
    if isinstance(layout, Grid):
        axes = len(layout.periodic) if isinstance(layout.periodic, tuple) else None
        if not 1 <= len(shape) <= 4 or (axes is not None and not axes <= len(shape) <= axes + 1):
            raise DefinitionError(
                f"ArraySpec {name!r}, layout: expected the shape of a grid, space or (channels, *space) with "
                f"one to three axes of space{'' if axes is None else f', here {axes}'}, got {shape}. Take "
                "layout=None for what is no grid."
            )
        return layout
    if isinstance(layout, Mesh):
        if layout.node_axis(shape) is None:
            raise DefinitionError(
                f"ArraySpec {name!r}, layout: expected a shape ({layout.nodes},), ({layout.nodes}, fields) "
                f"or (fields, {layout.nodes}) for {layout!r}, got {shape}. Give the array a number for each "
                "node, or leave its layout out."
            )
        return layout
    raise DefinitionError(
        f"ArraySpec {name!r}, layout: expected a Mesh, a Grid, 'grid', 'auto' or None, got {layout!r}. "
        "'auto' lets the shape decide, None says that neighbours in the array are no neighbours elsewhere."
    )


def _all_there(cells: np.ndarray) -> np.ndarray:
    return cells[(cells >= 0).all(axis=1)]


def _whole(name: str, array: np.ndarray) -> np.ndarray:
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise DefinitionError(
            f"Mesh, {name}: expected whole numbers of nodes, got {array.dtype}. Count nodes from 0."
        )
    whole = np.array(array, dtype=np.int64)
    if whole.size and whole.min() < 0:
        raise DefinitionError(
            f"Mesh, {name}: expected nodes from 0 on, got {whole.min()}. Count nodes from 0."
        )
    whole.setflags(write=False)
    return whole


def _cells(name: str, nodes: object, corners: int) -> np.ndarray:
    try:
        array = np.asarray(nodes)
    except ValueError:
        array = np.empty((0, 0), dtype=object)
    shape: tuple[int, ...] = array.shape
    if len(shape) != 2 or shape[1] != corners:
        raise DefinitionError(
            f"Mesh, {name}: expected an array ({name}, {corners}) of nodes, got shape {shape}. Give a "
            "row for each, with its nodes counted from 0."
        )
    cells = _whole(name, array)
    ordered = np.sort(cells, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if twice.any():
        first = int(twice.argmax())
        raise DefinitionError(
            f"Mesh, {name}: expected {corners} nodes that differ in each row, got {cells[first].tolist()} in "
            f"row {first}. Leave it out."
        )
    return cells


def _refuse_flat(name: str, cells: np.ndarray, coordinates: np.ndarray) -> None:
    """Refuse cells without an area or a volume: no step can be solved on them."""
    sides = coordinates[cells[:, 1:]] - coordinates[cells[:, :1]]
    squares = np.linalg.det(sides @ sides.swapaxes(1, 2))
    flat = squares <= FLAT**2 * squares.mean()
    if flat.any():
        first = int(flat.argmax())
        raise DefinitionError(
            f"Mesh: expected {name} with an area or a volume, {int(flat.sum())} of {len(cells)} have none, "
            f"the first {cells[first].tolist()}, row {first}. Leave them out, or mend the coordinates."
        )


def _places(coordinates: object) -> np.ndarray:
    try:
        places = np.array(coordinates, dtype=np.float64)
    except (TypeError, ValueError):
        places = np.empty((0, 0))
    shape: tuple[int, ...] = places.shape
    if len(shape) != 2 or not 1 <= shape[1] <= 3 or not np.isfinite(places).all():
        raise DefinitionError(
            f"Mesh, coordinates: expected finite numbers (nodes, 1 to 3 dimensions), got shape "
            f"{places.shape}. Give a row for each node."
        )
    places.setflags(write=False)
    return places
