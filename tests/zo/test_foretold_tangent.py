"""`ForetoldTangent`: the equation is used where the box is one, and not where it is none."""

from __future__ import annotations

import math
from functools import partial
from threading import Lock

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from simulators.spectral import Vorticity
from tests.zo.learners import learner
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.equation.equation_tangent import CANDIDATE
from zo.tangents.models.foretold import ForetoldTangent
from zo.tangents.models.structure import Specs
from zo.tangents.record.pairs import CallPairs

POINTS = 12


@pytest.fixture(autouse=True)
def short_lessons(limits):
    """The usual model learns for 20 steps on first rows, not 400: how well it learns is no matter here."""
    limits(grid_class=partial(learner, zo.tangents.GridTangent, channels=8, first_steps=20))


class Mixed(BlackBoxFunction):
    """An orthogonal map of all cells to all cells: in no way an equation in space."""

    arrays = "torch"

    def __init__(self, cells: int = 16) -> None:
        self.inputs = self.outputs = (ArraySpec("state", (1, cells)),)
        draws = torch.randn(cells, cells, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.matrix = torch.linalg.qr(draws)[0]
        self.lock = Lock()  # as boxes of programs have one: not to be copied

    def evaluate_rows(self, state):
        return (state.double() @ self.matrix.T).to(state)


def searched(box, truth, calls, rows, **settings):
    """What `fit_field` finds from the state at the end, its error, and the tangent."""
    with torch.no_grad():
        end = truth[None]
        for _ in range(calls):
            end = box(end)

    def objective(field, batch):
        state = field(batch)
        for _ in range(calls):
            state = box(state)
        return (state - end).square().flatten(1).sum(dim=1) / end.square().sum()

    field = zo.Field(end[0])
    fit = zo.fit_field(field, objective, boxes=[box], rows=rows, **settings)
    return fit, float((field.values.detach() - truth).norm() / truth.norm()), fit.gradient.tangents[0]


@pytest.mark.slow
def test_a_flow_s_equation_is_used_unasked():
    """A spectral solver is one; in float64, and a field is found as with the equation that is named."""
    box = Vorticity(POINTS, viscosity=0.02, steps=5)
    truth = box.start(1, seed=0)[0]
    _, named, _ = searched(box, truth, 4, 12, tangent=zo.tangents.EquationTangent(), inner=6)
    _, found, tangent = searched(box, truth, 4, 12, inner=6)
    assert isinstance(tangent, ForetoldTangent) and tangent.model is tangent.equation
    assert tangent.errors[1] < 0.04 < tangent.errors[0]  # after 400 steps the usual model has .045
    assert found == pytest.approx(named, rel=0.05)


@pytest.mark.filterwarnings("ignore::zo.TangentWarning")
def test_where_no_equation_fits_the_usual_model_is_used():
    """Of a linear map that mixes all cells: the search is that of the usual model, to the last number."""
    box = Mixed()
    truth = torch.randn(1, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    usual, named, _ = searched(box, truth, 4, 16, tangent=AutoTangent(box, 0), inner=4)
    fit, found, tangent = searched(box, truth, 4, 16, inner=4)
    assert isinstance(tangent, ForetoldTangent) and tangent.model is tangent.usual
    assert fit.losses == usual.losses and found == named


def pairs(box, z, y=None):
    """What a call shows."""
    y = box(z) if y is None else y
    flat, answers = z.flatten(1), y.flatten(1)
    return CallPairs(tuple(box.inputs), tuple(box.outputs), flat, answers)


def answered(tangent, rows):
    """The outputs as it has them."""
    values = tangent.at(rows).values
    assert values is not None
    return values


def test_moves_decide_and_a_model_that_led_nowhere_gives_way():
    """It begins with the equation; then the box answers as the usual model would."""
    flow = Vorticity(POINTS, viscosity=0.02, steps=5)
    tangent = ForetoldTangent(flow)
    z = flow.start(6, seed=0)
    tangent.see(pairs(flow, z))
    tangent.learn()
    assert tangent.model is tangent.equation
    moved = z + 0.1 * flow.start(6, seed=1)
    foretold = tangent.usual.at(pairs(flow, z)).to(moved.flatten(1), ()).view_as(z) + flow(z)
    tangent.see(pairs(flow, moved, foretold))  # just what the usual model expects
    tangent.learn()
    assert tangent.errors[0] < 1e-6 < tangent.errors[1] and tangent.model is tangent.usual
    assert tangent.give_way() and tangent.model is tangent.equation
    assert tangent.give_way() and tangent.model is tangent.usual


def test_a_state_goes_on_to_the_same_bits():
    flow = Vorticity(POINTS, viscosity=0.02, steps=5)
    one, other = ForetoldTangent(flow), ForetoldTangent(flow)
    z = flow.start(6, seed=0)
    one.see(pairs(flow, z))
    one.learn()
    other.load_state_dict(one.state_dict())
    asked = pairs(flow, flow.start(2, seed=1))
    assert torch.equal(answered(one, asked), answered(other, asked))
    assert other.model is other.equation and other.errors == one.errors


@pytest.mark.parametrize(
    ("inputs", "outputs", "may"),
    [
        ((1, 12, 12), (1, 12, 12), True),
        ((1, 12, 12), (2, 12, 12), False),  # it moves no state on
        ((1, 96, 96), (1, 96, 96), False),  # too many cells
        ((5,), (5,), False),
    ],
)
def test_specs_say_where_an_equation_is_tried(inputs, outputs, may):
    box = Mixed()
    box.inputs, box.outputs = (ArraySpec("state", inputs),), (ArraySpec("state", outputs),)
    assert (CANDIDATE.fits(Specs.of(box)) is None) is may
    assert (ForetoldTangent(box).equation is not None) is may
    if may:
        walls = ArraySpec("state", inputs, layout=Grid(periodic=(True, False)))
        box.inputs = box.outputs = (walls,)
        assert CANDIDATE.fits(Specs.of(box)) is not None


def test_an_equation_without_a_finite_flow_is_out():
    box, tangent = Mixed(), ForetoldTangent(Mixed())
    z = torch.randn(6, 1, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def fail(steps=None):
        raise zo.errors.TangentError("expected a finite flow, got none. Take another.")

    assert tangent.equation is not None
    tangent.equation.learn = fail  # type: ignore[method-assign]
    tangent.see(pairs(box, z))
    tangent.learn()
    assert tangent.equation is None and tangent.model is tangent.usual and not tangent.give_way()
    assert math.isfinite(float(answered(tangent, pairs(box, z)).sum()))
