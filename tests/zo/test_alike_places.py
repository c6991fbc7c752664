"""Boxes of alike places: each is a row of what is learned, and the derivative is that of all of them."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from blackbox.adapters import Call, Hosted
from blackbox.errors import ConfigurationError
from tests.zo.row_boxes import FromTorch
from zo.tangents.models.alike import AlikeTangent, places_found
from zo.tangents.models.structure import Specs
from zo.tangents.record.recorded_call import RecordedCall

PLACES, LEVELS, CALLS = 6, 4, 5
MIXES = torch.randn(40, 40, generator=torch.Generator().manual_seed(2)) / 40**0.5


def columns(heights, mixing):
    """Columns that mix, exchange a little with their neighbours, and are heated each in its way."""
    places = heights.shape[-2]
    heat = torch.sin(torch.arange(places) * 2 * torch.pi / places)[:, None] * torch.tensor([1.0, 0, 0, 0])
    flux = torch.sigmoid(mixing) * (heights[..., 1:] - heights[..., :-1])
    none = torch.zeros_like(heights[..., :1])
    flux = torch.cat([none, flux, none], -1)
    near = heights.roll(1, -2) + heights.roll(-1, -2) - 2 * heights
    return heights + 0.3 * (flux[..., 1:] - flux[..., :-1]) + 0.02 * near + 0.05 * heat.to(heights)


class Columns(FromTorch):
    """All columns in a row."""

    alike = 0

    def __init__(self):
        specs = ArraySpec("heights", (PLACES, LEVELS)), ArraySpec("mixing", (PLACES, LEVELS - 1))
        super().__init__(columns, specs, specs[:1])


class Undeclared(Columns):
    """Twice as many, of which nobody says that they are alike; rows go on from one another."""

    alike, settable = None, False

    def __init__(self):
        specs = ArraySpec("heights", (2 * PLACES, LEVELS)), ArraySpec("mixing", (2 * PLACES, LEVELS - 1))
        FromTorch.__init__(self, columns, specs, specs[:1])


class Turned(FromTorch):
    """Places that nobody may call alike: an action at one of them has its effect at all others."""

    settable = False

    def __init__(self):
        specs = ArraySpec("x", (8, 5)), ArraySpec("action", (8, 5))
        super().__init__(turned, specs, specs[:1])


def turned(x, action):
    return 0.5 * x + (action.flatten(-2) @ MIXES).unflatten(-1, (8, 5))


def network_of():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(LEVELS, 8), nn.Tanh(), nn.Linear(8, LEVELS - 1))


def objective_of(box):
    def objective(network, heights):
        total = 0.0
        for _ in range(CALLS):
            heights = box(heights, network(heights))
            total = total + heights.square().mean(dim=(1, 2))
        return total / CALLS

    return objective


def batch(step, rows=4, places=PLACES):
    return torch.randn(rows, places, LEVELS, generator=torch.Generator().manual_seed(step)).cumsum(-1)


@pytest.mark.parametrize("kind", [Columns, Undeclared])
def test_the_gradient_of_alike_places_is_the_true_one_after_a_few_rows(kind):
    network, box, found = network_of(), kind(), []
    places = box.inputs[0].shape[0]
    gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0)
    assert f"{places} places on axis 0" in repr(gradient.tangents[0])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(7):
            optimizer.zero_grad()
            gradient.backward(batch(step, places=places))
            if network[0].weight.grad is not None:
                loss = objective_of(columns)(network, batch(step, places=places)).mean()
                parts = torch.autograd.grad(loss, list(network.parameters()))
                true = torch.cat([part.flatten() for part in parts])
                mine = torch.cat([weight.grad.flatten() for weight in network.parameters()])
                found.append(float(torch.cosine_similarity(mine, true, dim=0)))
            optimizer.step()
    assert len(found) >= 5 and min(found) > 0.97


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("axis", [1, 0])
def test_products_are_adjoint_and_replays_begin_where_rows_were(axis):
    """Whatever axis counts the places, with a context of a number for each and one for all."""
    shape = (PLACES, LEVELS) if axis == 0 else (LEVELS, PLACES)
    load = ArraySpec("load", (PLACES,) if axis == 0 else (2, PLACES), differentiable=False)
    case, state = ArraySpec("case", (3,), differentiable=False), ArraySpec("state", shape)

    def step(x, load, case):
        near = x.roll(1, axis + 1) + x.roll(-1, axis + 1) - 2 * x
        return torch.sin(x) + 0.1 * near + (load[:, :, None] if axis == 0 else load.mean(1)[:, None])

    box = FromTorch(step, (state, load, case), (state,))
    tangent = AlikeTangent(Specs.of(box), axis)
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.randn(40, *spec.shape, generator=generator) for spec in box.inputs]
    rows = RecordedCall(0, tuple(arrays), (step(*arrays),)).pairs(box, torch.ones(40, dtype=torch.bool))
    assert torch.equal(tangent.answers(rows, tangent.parts(rows, rows.y)), rows.y)
    tangent.see(rows)
    tangent.learn()
    at = tangent.at(rows)
    d, v = torch.randn(rows.z.shape, generator=generator), torch.randn(rows.y.shape, generator=generator)
    assert torch.allclose((at.push(d) * v).sum(), (d * at.pull(v)).sum(), rtol=1e-3)
    assert at.values is not None and (at.values - rows.y).norm() < 0.1 * rows.y.norm()
    there = rows.z.clone().requires_grad_()
    change = at.to(there, rows.others)
    assert change.abs().max() < 1e-5
    (moved,) = torch.autograd.grad(change, there, v)
    assert torch.allclose(moved, at.pull(v), atol=1e-3)


def test_answers_that_are_there_are_learned_from():
    box, generator = Columns(), torch.Generator().manual_seed(0)
    tangent = AlikeTangent(Specs.of(box))
    heights, mixing = batch(50, 80), torch.randn(80, PLACES, LEVELS - 1, generator=generator)
    answers = columns(heights, mixing)
    with pytest.raises(ConfigurationError, match="rows of shapes"):
        tangent.fit([heights, mixing[:, 1:]], answers)
    with pytest.raises(ConfigurationError, match="equally many rows"):
        tangent.fit([heights, mixing[1:]], answers)
    with pytest.raises(ConfigurationError, match="none among 80"):
        tangent.fit([heights, mixing], answers * float("nan"))
    tangent.fit([heights, mixing], answers)
    asked = [array[:5].requires_grad_() for array in (batch(1, 5), mixing)]
    given = columns(*asked)
    v = torch.randn(given.shape, generator=generator)
    true = torch.cat([part.flatten(1) for part in torch.autograd.grad(given, asked, v)], 1)
    plain = tuple(array.detach() for array in asked)
    rows = RecordedCall(0, plain, (given.detach(),)).pairs(box, torch.ones(5, dtype=torch.bool))
    assert torch.cosine_similarity(tangent.at(rows).pull(v.flatten(1)), true).min() > 0.97


@pytest.mark.slow
def test_places_that_are_not_alike_are_learned_as_a_whole():
    box, generator = Turned(), torch.Generator().manual_seed(0)
    gradient = zo.TangentGradient(nn.Linear(1, 1), lambda network, rows: rows, boxes=[box], seed=0)
    (tangent,) = copy.deepcopy(gradient.tangents)
    assert copy.deepcopy(tangent._rivals["whole"].args[0]) == Specs.of(box)  # and no box, which may be unique
    for whole in (False, False, False, True):
        assert repr(tangent).startswith("ContestTangent(AlikeTangent")
        x, action = torch.randn(2, 30, 8, 5, generator=generator)
        rows = RecordedCall(0, (x, action), (turned(x, action),)).pairs(box, torch.ones(30, dtype=torch.bool))
        tangent.see(rows)
        tangent.learn()
        assert repr(tangent).startswith("ContestTangent(AutoTangent") == whole


def test_a_model_that_foretells_no_number_gives_way(monkeypatch):
    box, generator = Turned(), torch.Generator().manual_seed(0)
    gradient = zo.TangentGradient(nn.Linear(1, 1), lambda network, rows: rows, boxes=[box], seed=0)
    (tangent,) = gradient.tangents
    monkeypatch.setattr(AlikeTangent, "expect", lambda self, rows: rows.y * math.nan)
    for _ in range(4):
        x, action = torch.randn(2, 6, 8, 5, generator=generator)
        rows = RecordedCall(0, (x, action), (turned(x, action),)).pairs(box, torch.ones(6, dtype=torch.bool))
        tangent.see(rows)
        tangent.learn()
    assert repr(tangent).startswith("ContestTangent(AutoTangent")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", [Columns, Undeclared])
def test_a_state_is_all_there_is(kind):
    gradients = []
    for stops in (False, True):
        network, box = network_of(), kind()
        gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0)
        for step in range(4):
            if stops and step == 2:
                state = copy.deepcopy(gradient.state_dict())
                gradient = zo.TangentGradient(network, objective_of(box), boxes=[box], seed=0)
                gradient.load_state_dict(state)
            network.zero_grad()
            gradient.backward(batch(step, places=box.inputs[0].shape[0]))
        gradients.append(torch.cat([weight.grad.flatten() for weight in network.parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        (((20, 12), (20, 11)), 0),
        (((12, 20), (11, 20)), 1),
        (((6, 4), (6, 3)), None),  # few numbers
        (((3, 40), (3, 41)), None),  # components
        (((64, 80), (64, 81)), None),  # too many of a place
        (((20,), (20,)), None),
    ],
)
def test_places_are_found_by_shapes(shapes, axis):
    state, action = map(ArraySpec, ("T", "K"), shapes)
    assert places_found(Specs((state, action), (state,))) == axis
    declared = ArraySpec("T", shapes[0], layout="grid")
    assert places_found(Specs((declared, action), (declared,))) is None


def test_a_call_says_so_and_refuses_arrays_of_other_places():
    seen, given = ArraySpec("T", (20, 12)), ArraySpec("K", (20, 11))
    host = Hosted(lambda case, host: None, calls=[Call("mixing", sees=seen, gives=given, same=0)])
    assert host.boxes[0].alike == 0
    for same, other in ((0, ArraySpec("K", (11, 20))), (1, given), (2, given)):
        with pytest.raises(ConfigurationError, match="Call 'mixing', same: expected an axis"):
            Call("mixing", sees=seen, gives=other, same=same)
    staged = Call("mixing", sees=seen, gives=given, same=0, stages=2)
    with pytest.raises(ConfigurationError, match="expected same= of a program that makes one call"):
        Hosted(lambda case, host: None, calls=[staged])
