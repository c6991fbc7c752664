"""Heat on a mesh: elements against a closed form, their adjoint, and FEniCS where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.mosaic import fenics, heat


def square(side):
    """Nodes and triangles of the unit square."""
    x, y = (axis.ravel() for axis in np.meshgrid(*[np.linspace(0, 1, side + 1)] * 2, indexing="ij"))
    corner = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).ravel()
    right, above = corner + side + 1, corner + 1
    lower, upper = (corner, right, right + 1), (corner, right + 1, above)
    return np.stack([x, y], axis=1), np.concatenate([np.stack(each, axis=1) for each in (lower, upper)])


def test_elements_solve_what_is_known_in_closed_form():
    """- div(2 grad u) = 4 pi^2 sin sin has u = sin sin, to second order in the side."""
    off = []
    for side in (8, 16):
        places, triangles = square(side)
        wanted = np.sin(math.pi * places).prod(axis=1)
        found, _ = heat.Elements(places, triangles).solved(np.full(len(places), 2.0), 4 * math.pi**2 * wanted)
        off.append(abs(found - wanted).max())
    assert off[0] / off[1] == pytest.approx(4, rel=0.15) and off[1] < 0.02


def test_their_adjoint_is_that_of_their_values():
    places, triangles = square(4)
    elements, draws = heat.Elements(places, triangles), torch.Generator().manual_seed(0)
    conductivity = torch.rand(2, len(places), generator=draws, dtype=torch.float64).add(0.5).requires_grad_()
    source = torch.rand(2, len(places), generator=draws, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda each: elements.advance(each, source), (conductivity,))


def test_a_coarser_solver_with_as_many_nodes_is_the_same_and_with_fewer_is_near():
    places, triangles = square(8)
    elements, draws = heat.Elements(places, triangles), torch.Generator().manual_seed(0)
    rough = torch.rand(2, len(places), generator=draws, dtype=torch.float64).add(0.5).requires_grad_()
    source = torch.rand(2, len(places), generator=draws, dtype=torch.float64)
    exact, same = elements.advance(rough, source), heat.Coarser(places, 8).advance(rough, source)
    assert torch.allclose(exact, same, atol=1e-12)
    (slopes,), (wanted,) = (torch.autograd.grad(found.square().sum(), rough) for found in (same, exact))
    assert torch.allclose(slopes, wanted, atol=1e-12)
    smooth = heat.wanted(places, 0).exp().expand(4, -1)
    fine, coarse = (it.advance(smooth, heat.sources(places)) for it in (elements, heat.Coarser(places, 4)))
    assert 0.05 < float((fine - coarse).norm() / fine.norm()) < 0.5


def test_without_fenics_cells_are_excluded_with_a_reason(monkeypatch):
    monkeypatch.setattr(fenics, "PYTHONS", ())
    fenics.python.cache_clear()
    found = heat.result(heat.CI, (0,), {"cells": {}})
    fenics.python.cache_clear()
    assert all(cell["state"] == "excluded" for cell in found["cells"].values())
    assert "excluded, dolfinx not installed: apt-get install python3-dolfinx" in heat.table(found)


@pytest.mark.needs("dolfinx")
@pytest.mark.slow
def test_fenics_has_the_same_values_and_searches_lower_their_loss():
    box = heat.Heat(5)
    draws = torch.Generator().manual_seed(0)
    conductivity, source = (
        torch.rand(2, len(box.places), generator=draws, dtype=torch.float64) + 0.5 for _ in range(2)
    )
    exact = heat.Elements(box.places, box.triangles).advance(conductivity, source)
    assert torch.allclose(box(conductivity, source), exact, atol=1e-12)
    box.close()
    adjoint, differences = (heat.searched(method, heat.CI, 0) for method in heat.METHODS[:2])
    assert adjoint["rows"] == 4 * heat.CI.evaluations
    assert differences["rows"] == 4 * heat.CI.gradients * (1 + 49)
    assert differences["errors"][1] == pytest.approx(adjoint["errors"][1], rel=1e-3)
