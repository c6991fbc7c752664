"""Reactions on a grid: `EquationTangent` against autograd, and what `AutoTangent` does with it."""

from __future__ import annotations

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from simulators.reaction_diffusion import Brusselator, FitzHughNagumo, GrayScott, ReactionDiffusion
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.record.pairs import CallPairs


def rows_of(box, x, y):
    """A call as a training records it, without probes."""
    n = len(x)
    z, y = x.flatten(1), y.flatten(1)
    return CallPairs(
        tuple(box.inputs),
        tuple(box.outputs),
        z,
        z.new_zeros(0, *z.shape),
        y.new_zeros(0, *y.shape),
        torch.zeros(0, n, dtype=torch.bool),
        y,
        torch.ones(n, dtype=torch.bool),
        (),
        response_scale=y.std(0),
    )


def along(box, calls, seed=0):
    """States of one trajectory and those after a call, as a window of one row shows them."""
    x, found = box.start(1, seed=seed), []
    for _ in range(calls):
        found.append((x, box(x)))
        x = found[-1][1]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def cosine_along_differences(box, tangent):
    """Of five states never seen: the tangent's derivative along differences of states, and autograd's."""
    new = box.start(5, seed=90)
    v = new.roll(1, 0) - new
    asked, modelled = (new.double().clone().requires_grad_() for _ in range(2))
    (box.advance(asked) * v).sum().backward()
    (tangent.values(modelled.flatten(1), modelled.flatten(1)[:, :0]).reshape(v.shape) * v).sum().backward()
    assert asked.grad is not None and modelled.grad is not None
    assert float(modelled.grad.norm() / asked.grad.norm()) == pytest.approx(1, abs=0.2)
    return float((asked.grad * modelled.grad).sum() / asked.grad.norm() / modelled.grad.norm())


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("box", [Brusselator(dt=0.25), FitzHughNagumo(dt=1.0)], ids=["brusselator", "nerve"])
def test_one_window_shows_a_reaction_s_derivative(box: ReactionDiffusion, seed: int):
    tangent, (seen, answers) = zo.EquationTangent(), along(box, 8, seed=seed)
    tangent.fit(seen, answers)
    assert tangent.measured["reaction"] and tangent.measured["terms"] == 20
    assert cosine_along_differences(box, tangent) > 0.98


def test_a_form_that_few_rows_suggest_is_compared_again():
    """A window in which hardly anything moves fits an equation of flows, and three more do not."""
    box, tangent = GrayScott(dt=10.0), zo.EquationTangent()
    for number in range(4):
        seen, answers = along(box, 8, seed=number)
        tangent.see(rows_of(box, seen, answers))
        tangent.learn()
        assert tangent.measured.get("reaction", False) is (number > 1)
    assert cosine_along_differences(box, tangent) > 0.98


class Still(BlackBoxFunction):
    """A box on a grid whose answers are no flow of an equation: each cell's number times one of its own."""

    arrays = "torch"
    inputs = outputs = (ArraySpec("state", (1, 24), layout=Grid(periodic=True)),)

    def evaluate_rows(self, state):
        with torch.no_grad():
            shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(5))
            return 2 * state[..., shuffled].sin()


def taught(box, windows, start, seed=0):
    """The default's tangent after some windows of eight rows, one trajectory each."""
    tangent = AutoTangent(box, seed)
    for number in range(windows):
        x, y = start(number)
        tangent.see(rows_of(box, x.float(), y.float()))
        tangent.learn()
    return tangent


def test_the_default_takes_a_reaction_s_equation_from_the_second_window_on():
    box = Brusselator(dt=0.25)
    tangent = taught(box, 2, lambda number: along(box, 8, seed=number))
    assert tangent.kind == "equation" and list(tangent.models) == ["grid", "stencil", "equation"]
    again = AutoTangent(box)
    again.load_state_dict(tangent.state_dict())
    rows = rows_of(box, *(t.float() for t in along(box, 3, seed=9)))
    found, same = tangent.at(rows).values, again.at(rows).values
    assert found is not None and same is not None and torch.equal(found, same)
    x, y = along(box, 3, seed=9)
    assert float((found - y.flatten(1)).norm() / (y - x).norm()) < 0.1


def test_what_is_no_equation_is_learned_as_if_none_was_tried():
    box = Still()

    def start(number):
        x = torch.randn(8, 1, 24, generator=torch.Generator().manual_seed(number))
        return x, box(x)

    tangent, without = taught(box, 3, start), AutoTangent(box, equation=False)
    for number in range(3):
        without.see(rows_of(box, *start(number)))
        without.learn()
    assert list(tangent.models) == list(without.models) == ["grid", "stencil"]
    rows = rows_of(box, *start(7))
    one, other = tangent.at(rows).values, without.at(rows).values
    assert one is not None and other is not None and torch.equal(one, other)


def test_a_network_learns_beside_an_equation_that_is_not_trusted():
    box = Brusselator(dt=0.25)
    tangent = taught(box, 2, lambda number: along(box, 8, seed=number))
    words = tangent.improve()
    assert words is not None and "GridTangent" in words and "learns beside EquationTangent" in words
    assert list(tangent.models) == ["equation", "grid"]
    tangent.see(rows_of(box, *(t.float() for t in along(box, 8, seed=5))))
    tangent.learn()
    assert tangent.kind == "equation"  # still better


@pytest.mark.parametrize("periodic, tried", [(True, True), (None, True), (False, False)])
def test_an_equation_is_tried_where_ends_may_meet(periodic, tried):
    box = Still()
    box.inputs = box.outputs = (ArraySpec("state", (1, 24), layout=Grid(periodic=periodic)),)
    assert ("EquationTangent" in repr(AutoTangent(box))) is tried
    assert "EquationTangent" not in repr(AutoTangent(box, equation=False))
