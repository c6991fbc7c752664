"""A beam on a mesh: elements against a closed form, their adjoint, held stresses, and FEniCS where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.mosaic import beam, compliance


def elements_of(side, load="end"):
    places, triangles = beam.rectangle(side)
    return beam.Elements(places, triangles, beam.forced(places, load, side)), places


def test_a_pulled_beam_lengthens_as_in_closed_form():
    """Held along it at its left, and across it in one corner: a stress of one everywhere."""
    elements, places = elements_of(8)
    elements.force = elements.force.reshape(-1, 2)[:, ::-1].ravel() * -1  # along the beam
    elements.free = np.flatnonzero(
        np.stack([places[:, 0] > 1e-9, (places > 1e-9).any(axis=1)], axis=1).ravel()
    )
    moved, _ = elements.solved(np.ones(len(places)))
    x, y = places.T
    wanted = np.stack([x, -beam.POISSON * y], axis=1)  # the modulus is one
    assert np.abs(moved.reshape(-1, 2) - wanted).max() < 1e-12


def test_the_adjoint_is_that_of_the_values_through_the_constraint_too():
    elements, _ = elements_of(2, "corner")
    field, draws = compliance.Material(elements.share), torch.Generator().manual_seed(0)
    values, along = torch.randn(2, len(elements.share), generator=draws, dtype=torch.float64)
    weights = torch.randn(len(elements.share), 2, generator=draws, dtype=torch.float64)  # not the force

    def weighted(numbers):
        field.values.data = numbers
        return (elements.advance(field(torch.zeros(1, 1))) * weights).sum()

    (slope,) = torch.autograd.grad(weighted(values), [field.values])
    with torch.no_grad():
        ends = [weighted(values + step * along) for step in (1e-5, -1e-5)]
    assert float(slope @ along) == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_half_of_the_beam_is_material_whatever_the_field():
    elements, _ = elements_of(4)
    field = compliance.Material(elements.share)
    for size in (0.0, 1.0, 300.0):
        field.values.data = size * torch.randn(
            len(elements.share), generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        assert float(field.share @ field.densities().detach()) == pytest.approx(compliance.PART, abs=1e-9)


def test_held_stresses_bound_the_compliance_and_touch_it():
    elements, places = elements_of(4, "middle")
    draws = np.random.default_rng(0)
    first, second = draws.uniform(0.1, 1, (2, len(places)))

    def energies(density):
        of = elements.solved(density)[0][elements.numbers]
        moduli = beam.modulus(density)[elements.triangles].mean(axis=1)
        return moduli * np.einsum("ti,tij,tj->t", of, elements.stiffness, of), moduli

    (held, before), (other, now) = energies(first), energies(second)
    assert held.sum() == pytest.approx(elements.force @ elements.solved(first)[0])
    assert (held * before / now).sum() > other.sum()


def test_without_fenics_cells_are_excluded_with_a_reason(monkeypatch):
    monkeypatch.setattr(compliance, "missing", lambda: "dolfinx not installed: apt-get install it")
    found = compliance.result(compliance.CI, (0,), {"cells": {}})
    assert len(found["cells"]) == len(compliance.METHODS)
    assert "| fit_field | excluded, dolfinx not installed: apt-get install it |" in compliance.table(found)


@pytest.mark.needs("dolfinx")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fenics_has_the_same_values_and_searches_lower_the_compliance():
    boxes = [beam.Beam(4, "corner", energies) for energies in (False, True)]
    elements = beam.Elements(boxes[0].places, boxes[0].triangles, boxes[0].force)
    draws = torch.Generator().manual_seed(0)
    density = torch.rand(2, len(elements.share), generator=draws, dtype=torch.float64)
    exact = elements.advance(density)
    assert torch.allclose(boxes[0](density), exact, rtol=1e-9)
    by_energy, by_force = boxes[1](density).sum(dim=1), exact.flatten(1) @ torch.from_numpy(elements.force)
    assert torch.allclose(by_energy, by_force, rtol=1e-9)
    for box in boxes:
        box.close()
    found = {method: compliance.searched(method, compliance.CI, 0) for method in compliance.METHODS}
    adjoint, differences = (found[name] for name in ("adjoint, L-BFGS", "differences, L-BFGS"))
    assert differences["losses"][1] == pytest.approx(adjoint["losses"][1], rel=1e-3)
    assert differences["rows"] == compliance.CI.gradients * (1 + len(elements.share))
    for each in found.values():
        assert each["loss"] <= 1 + 1e-9
    assert found["fit_field, stresses held"]["cosines"][0] == pytest.approx(1, abs=1e-3)
