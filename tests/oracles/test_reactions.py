"""Reactions on a grid: `EquationTangent` against autograd, and what `AutoTangent` does with it."""

from __future__ import annotations

from typing import cast

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from simulators.reaction_diffusion import Brusselator, FitzHughNagumo, GrayScott, ReactionDiffusion
from tests.gpu.pretended import PretendedGPU
from tests.zo.learners import learner
from zo.tangents.models.automatic import AutoTangent
from zo.tangents.models.equation.equation import EquationTerms, forms
from zo.tangents.record.pairs import CallPairs


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    """The contest is in question, not how well the network does."""

    kind = zo.tangents.GridTangent  # looked up here: a first look-up behind the patch would find `small`

    def small(**settings):
        return learner(kind, 4, first_steps=5, steps_per_step=2, reach=1, **settings)

    monkeypatch.setattr("zo.tangents.models.grid.grid.GridTangent", small)


def rows_of(box, x, y):
    """A call as a training records it."""
    n = len(x)
    z, y = x.flatten(1), y.flatten(1)
    return CallPairs(
        tuple(box.inputs),
        tuple(box.outputs),
        z,
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


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("box", [Brusselator(dt=0.25), FitzHughNagumo(dt=1.0)], ids=["brusselator", "nerve"])
def test_one_window_shows_a_reaction_s_derivative(box: ReactionDiffusion, seed: int):
    tangent, (seen, answers) = zo.tangents.EquationTangent(), along(box, 8, seed=seed)
    tangent.fit(seen, answers)
    assert tangent.measured["reaction"] and tangent.measured["terms"] == 20
    assert cosine_along_differences(box, tangent) > 0.98


@pytest.mark.slow
def test_a_form_that_few_rows_suggest_is_compared_again():
    """A window in which hardly anything moves fits an equation of flows, and three more do not."""
    box, tangent = GrayScott(dt=10.0), zo.tangents.EquationTangent()
    for number in range(4):
        seen, answers = along(box, 8, seed=number)
        tangent.see(rows_of(box, seen, answers))
        tangent.learn()
        assert tangent.measured.get("reaction", False) is (number > 0)
    assert cosine_along_differences(box, tangent) > 0.98


class Still(BlackBoxFunction):
    """A box on a grid whose answers are no flow of an equation: its cells, shuffled."""

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
    box = Brusselator(height=8, width=8, dt=0.25)
    tangent = taught(box, 2, lambda number: along(box, 8, seed=number))
    assert tangent.kind == "equation" and list(tangent.models) == ["grid", "stencil", "equation"]
    again = AutoTangent(box)
    again.load_state_dict(tangent.state_dict())
    rows = rows_of(box, *(t.float() for t in along(box, 3, seed=9)))
    found, same = tangent.at(rows).values, again.at(rows).values
    assert found is not None and same is not None and torch.equal(found, same)
    x, y = along(box, 3, seed=9)
    assert float((found - y.flatten(1)).norm() / (y - x).norm()) < 0.1


@pytest.mark.slow
def test_a_reaction_that_looked_like_a_flow_stays_in_the_contest():
    box, tangent = GrayScott(dt=10.0), AutoTangent(GrayScott(dt=10.0))
    for number in range(4):
        x, y = along(box, 8, seed=number)
        tangent.see(rows_of(box, x.float(), y.float()))
        tangent.learn(1)  # of network and stencil little, which is not in question
        assert "equation" in tangent.models
    assert cast(zo.tangents.EquationTangent, tangent.models["equation"]).measured["reaction"]


@pytest.mark.slow
def test_a_contest_goes_on_from_its_state_to_the_bit():
    box = Brusselator(height=8, width=8, dt=0.25)
    one, other = AutoTangent(box), AutoTangent(box)
    windows = [tuple(t.float() for t in along(box, 4, seed=number)) for number in range(3)]
    for tangent in (one, other):
        for number, window in enumerate(windows):
            if tangent is other and number == 2:
                state, tangent = other.state_dict(), AutoTangent(box)
                tangent.load_state_dict(state)
                other = tangent
            tangent.see(rows_of(box, *window))
            tangent.learn()
    rows = rows_of(box, *(t.float() for t in along(box, 3, seed=9)))
    found, same = one.at(rows).values, other.at(rows).values
    assert one.kind == other.kind and found is not None and same is not None and torch.equal(found, same)
    equation, again = (cast(zo.tangents.EquationTangent, t.models["equation"]) for t in (one, other))
    assert equation.measured == again.measured


@pytest.mark.slow
def test_rows_on_another_device_are_fitted_on_the_cpu():
    box = Still()
    box.inputs = box.outputs = (ArraySpec("state", (1, 16), layout=Grid(periodic=True)),)
    x = torch.randn(8, 1, 16, generator=torch.Generator().manual_seed(0))
    y = 0.5 * x.roll(1, -1) + 0.5 * x
    with PretendedGPU():
        tangent, here = zo.tangents.EquationTangent(), zo.tangents.EquationTangent()
        for each, device in ((tangent, "cuda"), (here, "cpu")):
            each.see(rows_of(box, x.to(device), y.to(device)))
            each.learn()
        found = tangent.values(x.to("cuda").flatten(1), x.to("cuda").flatten(1)[:, :0])
        assert found.device.type == "cuda" and tangent.measured == here.measured
        expected = here.values(x.flatten(1), x.flatten(1)[:, :0])
        torch.testing.assert_close(found.cpu(), expected)


def test_what_a_case_has_beside_the_grid_takes_no_time():
    """Each of its numbers would be a field, and all pairs of these are products."""
    terms = EquationTerms((16,), 1, 50_000, False, False)
    assert terms.count > 1e9 and forms((16,), 1, 50_000, 600) == []
    for form in forms((8, 8), 2, 3, 10_000) + forms((8, 8), 2, 3, 10_000, early=True):
        drawn = torch.randn(1, 2, 8, 8, dtype=torch.float64)
        assert form.all(drawn, drawn[:, :1].expand(1, 3, 8, 8)).shape[1] == form.count


def test_half_precision_and_inference_spoil_nothing():
    box, tangent = FitzHughNagumo(dt=1.0), zo.tangents.EquationTangent()
    tangent.fit(*along(box, 8))
    x = along(box, 2, seed=3)[0].float().flatten(1)
    with torch.inference_mode():
        found = tangent.values(x, x[:, :0])
    halved = tangent.values(x.half(), x[:, :0].half())
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), found, rtol=1e-2, atol=1e-2)
    leaf = x.clone().requires_grad_()
    tangent.values(leaf, leaf[:, :0]).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())


def test_an_equation_beside_the_others_takes_no_memory_from_them():
    box = Still()
    tangent, without = AutoTangent(box), AutoTangent(box, without=["equation"])
    for each in (tangent, without):
        each.keep_within(24 * 8 * 1000)
        each.see(rows_of(box, *(torch.ones(5000, 1, 24) for _ in range(2))))
    sizes = [
        [len(m.rows()[1][0]) for k, m in each.models.items() if k == "grid"] for each in (tangent, without)
    ]
    assert sizes[0] == sizes[1]


def test_what_is_no_equation_is_learned_as_if_none_was_tried():
    box = Still()

    def start(number):
        x = torch.randn(8, 1, 24, generator=torch.Generator().manual_seed(number))
        return x, box(x)

    tangent, without = taught(box, 3, start), AutoTangent(box, without=["equation"])
    for number in range(3):
        without.see(rows_of(box, *start(number)))
        without.learn()
    assert list(tangent.models) == list(without.models) == ["grid", "stencil"]
    rows = rows_of(box, *start(7))
    one, other = tangent.at(rows).values, without.at(rows).values
    assert one is not None and other is not None and torch.equal(one, other)


def test_a_network_learns_beside_an_equation_that_is_not_trusted():
    box = Brusselator(height=8, width=8, dt=0.25)
    tangent = taught(box, 2, lambda number: along(box, 8, seed=number))
    words = tangent.improve()
    assert words is not None and "GridTangent" in words and "learns beside EquationTangent" in words
    assert list(tangent.models) == ["equation", "grid"]
    tangent.see(rows_of(box, *(t.float() for t in along(box, 8, seed=5))))
    tangent.learn()
    assert tangent.kind == "equation"  # still better


@pytest.mark.parametrize(
    "periodic, tried", [(True, True), (None, True), (False, False), ((True,), True), ((False,), False)]
)
def test_an_equation_is_tried_where_ends_may_meet(periodic, tried):
    box = Still()
    box.inputs = box.outputs = (ArraySpec("state", (1, 24), layout=Grid(periodic=periodic)),)
    assert ("EquationTangent" in repr(AutoTangent(box))) is tried
    assert "EquationTangent" not in repr(AutoTangent(box, without=["equation"]))
