"""Boxes on meshes against finite differences and against each other, and a small comparison of tangents."""

from __future__ import annotations

import pytest
import torch

import zo
from benchmarks.meshes.boxes import BOXES, MeshBox, Reaction
from benchmarks.meshes.comparison import Case, vectors
from zo.tangents.models.mesh.mesh_fit import Fit


@pytest.mark.parametrize("name", BOXES)
def test_a_box_s_adjoint_is_that_of_its_values(name):
    box: MeshBox = BOXES[name](64 if name == "long-steps" else 90)
    state, change = box.start(2, seed=0), box.smooth(2, seed=1)
    v = box.smooth(2, seed=2)
    ahead, behind = (box(state + sign * 1e-5 * change) for sign in (1, -1))
    slope = float(((ahead - behind) * v).sum()) / 2e-5
    assert float((box.vjp(state, v) * change).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_two_ways_to_step_substances_that_react_agree():
    """Explicit steps, and implicit diffusion between halves of reactions."""
    explicit, implicit = Reaction(90, implicit=False), Reaction(90, implicit=True)
    state, v = explicit.start(2, seed=0), torch.randn(2, 90, 2, dtype=torch.float64)
    wanted, found = explicit(state), implicit(state)
    assert float((wanted - found).norm() / (wanted - state).norm()) < 0.01
    wanted, found = explicit.vjp(state, v), implicit.vjp(state, v)
    assert float((wanted - found).norm() / wanted.norm()) < 0.01


@pytest.mark.slow
def test_the_comparison_says_that_the_mesh_is_worth_it():
    box = BOXES["transport"](90)
    case = Case.of(box)
    own, identity = (vectors(box, kind, case) for kind in ("layout", "identity"))
    assert own["chosen"] == "MeshTangent" and own["rows"] == 32
    assert own["white"] > 0.85 > identity["white"]


def test_a_static_box_s_first_guess_explains_it_already(monkeypatch):
    """An elliptic solve takes what is rough in its equations; without, a quarter of the square is left."""
    case, costs = Case.of(BOXES["elastic"](90)), []
    first = Fit.first

    def watched(fit, known=None):
        costs.append(fit.cost(first(fit, known))[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "first", watched)
    tangent = zo.tangents.MeshTangent()
    tangent.see(case.seen)
    with pytest.raises(KeyboardInterrupt):
        tangent.learn()
    assert costs[0] < 0.01
