"""Layouts of specs: meshes and grids, compared, hashed, pickled, and refused where they do not fit."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from blackbox import ArraySpec, Grid, Mesh
from blackbox.errors import DefinitionError

SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
TWO = [[0, 1, 2], [0, 2, 3]]


def square(**more: Any) -> Mesh:
    return Mesh(triangles=TWO, coordinates=SQUARE, **more)


def test_meshes_of_equal_numbers_are_equal_and_hash_the_same():
    assert square() == square() and hash(square()) == hash(square())
    moved = Mesh(triangles=TWO, coordinates=SQUARE + 0.1 * SQUARE**2)
    assert square() != moved and square() != square(fixed=[0])
    assert ArraySpec("u", (4,), layout=square()) == ArraySpec("u", (4,), layout=square())
    assert ArraySpec("u", (4,), layout=square()) != ArraySpec("u", (4,))
    assert len({ArraySpec("u", (4,), layout=each) for each in (square(), square(), moved)}) == 2


def test_a_mesh_is_pickled_and_stays_read_only():
    spec = ArraySpec("u", (4, 2), layout=square(fixed=[1, 3]))
    again = pickle.loads(pickle.dumps(spec))
    assert again == spec and hash(again) == hash(spec)
    mesh = again.layout
    with pytest.raises(ValueError, match="read-only"):
        mesh.coordinates[0, 0] = 5.0
    given = SQUARE.copy()
    own = Mesh(triangles=TWO, coordinates=given)
    given[0, 0] = 7.0  # the mesh has its own
    assert own == square()


def test_links_are_all_sides_and_edges_once():
    assert square().links().tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]
    assert Mesh(edges=[[2, 1], [1, 2], [0, 1]]).links().tolist() == [[0, 1], [1, 2]]
    assert Mesh(tetrahedra=[[0, 1, 2, 3]]).links().shape == (6, 2)


def test_edges_as_unknowns_are_nodes_of_another_mesh():
    star = Mesh(edges=[[0, 1], [0, 2], [0, 3], [3, 4]]).between_edges()
    assert star.size == 4 and star.links().tolist() == [[0, 1], [0, 2], [1, 2], [2, 3]]


def test_nodes_are_counted_or_given():
    assert Mesh(edges=[[0, 4]]).size == 5 and Mesh(edges=[[0, 4]], nodes=9).size == 9
    assert (
        square().node_axis((4,)) == 0 and square().node_axis((2, 4)) == 1 and square().node_axis((5,)) is None
    )
    assert repr(square(fixed=[2])) == "Mesh(4 nodes, 2 triangles, 2-D coordinates, 1 fixed)"


def test_a_grid_with_holes_is_a_mesh_of_the_cells_that_there_are():
    """Triangles cover the squares of whole cells and half of those with a corner missing."""
    kept = np.ones((5, 7), dtype=bool)
    kept[2, 3] = False
    mesh = Mesh.of_grid(kept, spacing=(2.0, 1.0))
    assert mesh.nodes == 34 and mesh.triangles is not None and mesh.coordinates is not None
    assert (mesh.coordinates == np.argwhere(kept) * (2, 1)).all()
    corners = mesh.coordinates[mesh.triangles]
    sides = corners[:, 1:] - corners[:, :1]
    assert np.abs(np.linalg.det(sides)).sum() / 2 == 2 * (4 * 6 - 4 / 2)
    found = {tuple(pair) for pair in mesh.links().tolist()}
    spots = np.argwhere(kept)
    for a, b in np.ndindex(34, 34):
        near = np.abs(spots[a] - spots[b])
        if a < b and near.sum() == 1:
            assert (a, b) in found
        if near.max() > 1:
            assert (a, b) not in found


@pytest.mark.parametrize(
    ("kept", "triangles", "links"),
    [
        (np.array([True, True, False, True, True]), 0, 2),
        (np.array([[True, True, True], [False, True, False]]), 2, 5),
        (np.array([[True, True, True, True], [True, True, False, False]]), 0, 6),  # the last lies in none
        (np.ones((2, 3, 4), dtype=bool), 0, 12 + 16 + 18),
    ],
    ids=["line", "corners", "corridor", "space"],
)
def test_a_grid_has_triangles_where_all_cells_lie_in_one(kept, triangles, links):
    mesh = Mesh.of_grid(kept)
    assert (0 if mesh.triangles is None else len(mesh.triangles)) == triangles
    assert len(mesh.links()) == links


def test_a_grid_keeps_its_ends():
    assert ArraySpec("u", (8,), layout="grid").layout == Grid()
    assert ArraySpec("u", (2, 8, 8), layout=Grid(periodic=[True, False])).layout == Grid((True, False))
    assert ArraySpec("u", (8,)).layout == "auto" and ArraySpec("u", (8,), layout=None).layout is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mesh(), ["expected edges, triangles or tetrahedra", "Mesh(edges=...)"]),
        (lambda: Mesh(edges=[0, 1]), ["(edges, 2)", "(2,)"]),
        (lambda: Mesh(edges=[[0.5, 1.0]]), ["whole numbers", "float64"]),
        (lambda: Mesh(edges=[[-1, 0]]), ["from 0 on", "-1"]),
        (lambda: Mesh(edges=[[0, 5]], nodes=3), ["from 0 to 2", "node 5"]),
        (lambda: Mesh(edges=[[0, 1]], nodes=0), ["nodes: expected a positive"]),
        (lambda: Mesh(triangles=TWO, coordinates=SQUARE[:3]), ["from 0 to 2", "node 3"]),
        (lambda: Mesh(triangles=TWO, coordinates=[[0.0, np.nan]] * 4), ["finite"]),
        (lambda: Mesh(triangles=TWO, coordinates=SQUARE, nodes=5), ["coordinates of 5 nodes", "got 4"]),
        (lambda: Mesh(triangles=TWO, tetrahedra=[[0, 1, 2, 3]]), ["got both"]),
        (lambda: square(fixed=[4]), ["node 4"]),
        (lambda: ArraySpec("u", (5,), layout=square()), ["'u', layout", "(4,)", "got (5,)"]),
        (lambda: ArraySpec("u", (4,), layout="mesh"), ["'u', layout", "got 'mesh'", "Grid"]),
        (lambda: ArraySpec("u", (), layout="grid"), ["'u', layout", "one to three axes"]),
        (lambda: ArraySpec("u", (2, 8), layout=Grid((True, True, False))), ["here 3", "(2, 8)"]),
        (lambda: Grid(periodic="yes"), ["periodic: expected True", "'yes'"]),
        (lambda: Grid(periodic=[1, 0]), ["periodic: expected True"]),
        (lambda: Mesh.of_grid(np.ones((3, 3))), ["kept: expected an array of bools", "float64"]),
        (lambda: Mesh.of_grid(np.eye(3, dtype=bool)), ["side by side", "3 cells"]),
        (lambda: Mesh.of_grid(np.ones((3, 3), dtype=bool), spacing=(1, 2, 3)), ["each of 2 axes"]),
        (lambda: Mesh.of_grid(np.ones((3, 3), dtype=bool), spacing=0), ["a positive number", "got 0"]),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(DefinitionError) as found:
        make()
    assert all(word in str(found.value) for word in words), found.value


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"edges": [[0, 1], [2, 2]]},
            r"edges: expected 2 nodes that differ in each row, got \[2, 2\] in row 1",
        ),
        ({"triangles": [[0, 1, 2], [0, 1, 1]], "coordinates": SQUARE}, "triangles: expected 3 nodes that"),
        ({"triangles": [[0, 1, 2], [0, 1, 4]], "coordinates": [*SQUARE, [0.5, 0]]}, "1 of 2 have none"),
    ],
)
def test_cells_without_an_area_are_refused(wrong, words):
    with pytest.raises(DefinitionError, match=words):
        Mesh(**wrong)
