"""Kernels of positive numbers' logarithms against autograd: power laws, and what falls back from them."""

from __future__ import annotations

import pytest
import torch

import zo
from blackbox import ArraySpec
from tests.oracles.test_value_tangents import box_of, learn, pairs_at
from tests.zo.row_boxes import weights
from zo.tangents.models.units import Units, spanning

WIDTHS, LOAD = ArraySpec("widths", (2,)), ArraySpec("load", (), differentiable=False)
SHIFT, AREA = ArraySpec("shift", ()), ArraySpec("area", ())


def bends(widths, load):
    """A power law, and a sum that is none."""
    return load / (widths[:, 0] * widths[:, 1] ** 3), 1 + widths[:, 0] + 2 * widths[:, 1]


def positive(rows, seed):
    """Widths over a decade, and loads."""
    return 0.05 * 10 ** (weights(rows, 2, seed=seed).erf() / 2), weights(rows, 1, seed=seed + 9)[:, 0].exp()


def learned(rows=30, centres=1000):
    """A tangent that has learned the power law, and its box."""
    box = box_of(bends, WIDTHS, LOAD, outputs=(SHIFT, AREA))
    tangent = zo.tangents.KernelTangent(centres)
    learn(tangent, pairs_at(box, *positive(rows, 0)))
    return tangent, box


def logs(tangent):
    """Which inputs and which outputs go by their logarithms."""
    return tuple(units.logs.tolist() for units in tangent._units)


def pulled(function, z, others, v):
    """J^T v by autograd."""
    z = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(function(z, others), z, v)
    return gradient


def test_the_derivative_of_a_power_law_is_right_from_few_rows():
    tangent, box = learned()
    assert logs(tangent) == ([True] * 3, [True, False]) or logs(tangent) == ([True] * 3, [True, True])
    asked = pairs_at(box, *positive(20, 1))
    v = torch.tensor([1.0, 0.0]).double().expand(20, 2)
    exact = pulled(lambda z, load: torch.stack(bends(z, load[:, 0]), 1), asked.z, asked.others[1][:, None], v)
    assert torch.allclose(tangent.at(asked).pull(v), exact, rtol=1e-3)
    assert torch.allclose(tangent.at(asked).values[:, 0], asked.y[:, 0], rtol=1e-3)


def test_products_are_those_of_autograd_where_logarithms_end_too():
    tangent, box = learned()
    z, load = positive(6, 2)
    z = torch.cat([z, 1e-3 * z, 1e-6 * z, -z])
    load = torch.cat([load, load, 1e5 * load, -load])
    asked, v, others = pairs_at(box, z, load), weights(24, 2, seed=3), load[:, None]
    at = tangent.at(asked)
    assert bool(at.values.isfinite().all())
    gradient = pulled(tangent.values, z, others, v)
    assert bool(gradient.isfinite().all())
    assert torch.allclose(at.pull(v), gradient, rtol=1e-9)
    d = weights(24, 2, seed=4)
    assert torch.allclose((at.push(d) * v).sum(1), (d * gradient).sum(1), rtol=1e-9)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.sin(3 * x.log()),  # of positive numbers, but its sign changes
        lambda x: 1 + x @ torch.tensor([[1.0, 2.0], [3.0, 1.0]]).double(),  # a line
    ],
)
def test_outputs_that_change_sign_or_are_lines_take_no_logarithms(function):
    box = box_of(function, ArraySpec("x", (2,)), outputs=(ArraySpec("y", (2,)),))
    tangent = zo.tangents.KernelTangent()
    learn(tangent, pairs_at(box, positive(40, 0)[0]))
    assert logs(tangent)[1] == [False, False]


def test_numbers_of_either_sign_have_the_units_that_they_had():
    box = box_of(lambda x: torch.sin(x).exp(), ArraySpec("x", (3,)), outputs=(ArraySpec("x", (3,)),))
    tangent = zo.tangents.KernelTangent()
    learn(tangent, pairs_at(box, weights(40, 3)))
    assert logs(tangent) == ([False] * 3, [False] * 3)


@pytest.mark.parametrize("place", ["input", "output"])
def test_a_number_that_is_not_positive_any_more_goes_as_it_is(place):
    """At once, before lengths are due to be chosen again."""
    tangent, box = learned(40)
    asked = pairs_at(box, *positive(3, 5))
    (asked.z if place == "input" else asked.y)[1, 0] = 0.0 if place == "input" else -1.0
    learn(tangent, asked)
    if place == "input":
        assert logs(tangent)[0][0] is False
    else:
        assert logs(tangent)[1][0] is False
    again = pairs_at(box, *positive(8, 6))
    assert bool(tangent.at(again).values.isfinite().all())
    assert bool(tangent.at(again).pull(torch.ones(8, 2).double()).isfinite().all())


def test_the_state_has_the_logarithms(tmp_path):
    tangent, box = learned()
    other = zo.tangents.KernelTangent()
    torch.save(tangent.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    asked = pairs_at(box, *positive(8, 6))
    for rows in (1, 3, 20):
        both = [each.at(asked) for each in (tangent, other)]
        assert torch.equal(both[0].values, both[1].values)
        v = weights(8, 2)
        assert torch.equal(both[0].pull(v), both[1].pull(v))
        more = pairs_at(box, *positive(rows, 10 + rows))
        learn(tangent, more)
        learn(other, more)
    assert logs(tangent) == logs(other)


def test_units_have_an_inverse_and_its_derivatives():
    rows = torch.cat([positive(50, 0)[0], weights(50, 1)], 1)
    assert spanning(rows).tolist() == [True, True, False]
    units = Units.plain(rows.mean(0), rows.std(0)).by_logs(rows, spanning(rows))
    x, v = units.standard(rows), weights(50, 3, seed=1)
    assert torch.allclose(x[:, :2].mean(0), torch.zeros(2).double(), atol=1e-12)
    assert torch.allclose(x[:, :2].std(0, correction=0), torch.ones(2).double())
    assert torch.allclose(units.back(x), rows)
    assert torch.allclose(units.pulled(rows, v), pulled(lambda z, _: units.standard(z), rows, None, v))
    assert torch.allclose(units.pulled_back(x, v), pulled(lambda z, _: units.back(z), x, None, v))


def test_a_box_that_moves_a_state_on_takes_none():
    """Its numbers may be positive in the first rows by chance."""
    box = box_of(lambda x: x * (1 + x.roll(1, 1)), ArraySpec("x", (2,)))
    tangent = zo.tangents.KernelTangent()
    learn(tangent, pairs_at(box, positive(30, 0)[0]))
    assert logs(tangent) == ([False] * 2, [False] * 2)
