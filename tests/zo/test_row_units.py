"""Inputs of different units without a scale: steps follow what their rows show, where that gives slopes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.box_gradient.differentiable_box import most_checks

SIZE = 1e-3


def load(angle: Tensor, thickness: Tensor) -> Tensor:
    """Bends over 1 rad, and over a millimetre."""
    return torch.sin(angle) * (1 + torch.sin(thickness / SIZE))


def plate(thickness_scale: float | None = None) -> FromTorch:
    specs = ArraySpec("angle", ()), ArraySpec("thickness", (), scale=thickness_scale)
    return FromTorch(load, specs, (ArraySpec("load", ()),))


def inputs_of(call: int, dtype: torch.dtype, size: float = SIZE) -> list[Tensor]:
    angle, thickness = weights(64, seed=call), size * weights(64, seed=100 + call)
    return [part.to(dtype).requires_grad_() for part in (angle, thickness)]


def errors(solver, calls: int = 1, function=load, size: float = SIZE, dtype=torch.float32) -> list[float]:
    """Of the gradients of angle and thickness in the last of some calls, against autograd in float64."""
    for call in range(calls):
        inputs = inputs_of(call, dtype, size)
        grads = torch.autograd.grad(solver(*inputs).square().sum(), inputs)
    exact = [part.detach().double().requires_grad_() for part in inputs]
    truth = torch.autograd.grad(function(*exact).square().sum(), exact)
    return [float((f - t).norm() / t.norm()) for f, t in zip(grads, truth, strict=True)]


ESTIMATORS = {
    "cge": zo.CGE(mu=1e-3),
    "central": zo.CGE(mu=1e-2, central=True),
    "orthogonal": zo.box_gradient.RowRGE(mu=1e-3, q=2),
    "orthogonal, both signs": zo.box_gradient.RowRGE(mu=1e-2, q=2, central=True),
}


@pytest.mark.parametrize("calls", [1, 5])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_two_inputs_of_different_units_have_the_gradients_of_a_declared_scale(name, calls):
    """To powers of two: errors are of the same order as with equal units, not 150 times that."""
    solver = zo.differentiable(plate(), ESTIMATORS[name], seed=0)
    with pytest.warns(zo.errors.UnitsWarning, match=r"'thickness' \(0.001\).*Steps of thickness follow"):
        measured = errors(solver, calls)
    declared = errors(zo.differentiable(plate(SIZE), ESTIMATORS[name], seed=0), calls)
    assert max(measured) < 5e-3
    assert all(one < 3 * other + 1e-3 for one, other in zip(measured, declared, strict=True))


def test_random_directions_are_unbiased_in_both_units():
    """16,000 equal rows, and 8 that show the units: |z| < 5 in two numbers, a false alarm in 1e-6."""
    rows = 16000
    noted = torch.cat([torch.full((rows,), 0.5), torch.tensor([1.5, -0.5, 0.0, 1.0] * 2)]).double()
    thick = SIZE * torch.cat([torch.full((rows,), 0.3), torch.tensor([1.0, -1.0, 0.4, 0.0] * 2)]).double()
    noted, thick = (part.requires_grad_() for part in (noted, thick))
    solver = zo.differentiable(plate(), zo.box_gradient.RowRGE(mu=1e-4, q=1, central=True), seed=0)
    with pytest.warns(zo.errors.UnitsWarning):
        grads = torch.autograd.grad(solver(noted, thick).sum(), [noted, thick])
    truth = torch.autograd.grad(load(noted, thick).sum(), [noted, thick])
    for one, other in zip(grads, truth, strict=True):
        error = (one - other)[:rows]
        assert abs(float(error.mean() / error.std())) * rows**0.5 < 5


def test_a_number_of_another_unit_within_one_input():
    spec = ArraySpec("both", (2,))
    box = FromTorch(lambda both: load(both[:, 0], both[:, 1]), (spec,), (ArraySpec("load", ()),))
    both = (weights(64, 2) * torch.tensor([1.0, SIZE])).requires_grad_()
    with pytest.warns(zo.errors.UnitsWarning, match="Steps of both follow"):
        grad = torch.autograd.grad(zo.differentiable(box, zo.CGE(1e-3))(both).sum(), both)[0]
    truth = torch.autograd.grad(load(both[:, 0], both[:, 1]).sum(), both)[0]
    error = (grad - truth).norm(dim=0) / truth.norm(dim=0)
    assert error.max() < 5e-3


def test_large_inputs_take_steps_that_float32_resolves():
    """A thousandth of a pascal beside 1e5 Pa is an error without this."""

    def density(temperature: Tensor, pressure: Tensor) -> Tensor:
        return temperature * (2 + torch.sin(pressure / 1e5))

    specs = ArraySpec("temperature", ()), ArraySpec("pressure", ())
    box = FromTorch(density, specs, (ArraySpec("density", ()),))
    with pytest.warns(zo.errors.UnitsWarning, match="Steps of pressure follow"):
        measured = errors(zo.differentiable(box, zo.box_gradient.RowRGE(1e-3, 2), seed=0), 1, density, 1e5)
    assert max(measured) < 0.05


def test_small_inputs_whose_box_is_not_finer_keep_mu():
    """The outputs of a new network's last layer: steps of a thousandth of them are lost in float32."""

    def corrected(state: Tensor, correction: Tensor) -> Tensor:
        return 3 + torch.sin(state + correction)

    specs = ArraySpec("state", ()), ArraySpec("correction", ())
    box = FromTorch(corrected, specs, (ArraySpec("y", ()),))
    with pytest.warns(zo.errors.UnitsWarning, match="Steps of correction stay at mu"):
        measured = errors(zo.differentiable(box, zo.CGE(1e-3), seed=0), 1, corrected, 1e-4)
    assert max(measured) < 0.05


def test_inputs_that_grow_take_their_steps_along():
    """A correction that begins at 1e-4 and ends at one, in float64, where its small steps do give slopes."""

    def corrected(state: Tensor, correction: Tensor) -> Tensor:
        return torch.sin(state + correction)

    specs = ArraySpec("state", ()), ArraySpec("correction", ())
    box = FromTorch(corrected, specs, (ArraySpec("y", ()),))
    solver = zo.differentiable(box, zo.box_gradient.RowRGE(1e-5, 2), seed=0)
    with pytest.warns(zo.errors.UnitsWarning):
        errors(solver, 1, corrected, 1e-4, torch.float64)
    for size in (1e-2, 1.0):
        assert max(errors(solver, 2, corrected, size, torch.float64)) < 1e-3
    box.asked.clear()
    errors(solver, 3, corrected, 1.0, torch.float64)
    base, queries = box.asked[-2:]
    moved = (queries[1] - base[1].repeat(2)).abs().max()
    assert moved > 0.5e-5  # mu again


def test_a_resumed_run_takes_the_same_steps_to_the_bit():
    def made(state=None):
        solver = zo.differentiable(plate(), zo.box_gradient.RowRGE(1e-3, 1), seed=0)
        if state is not None:
            solver.load_state_dict(state)
        return solver

    def gradients(solver, calls: range) -> list[Tensor]:
        grads = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", zo.errors.UnitsWarning)
            for call in calls:
                inputs = inputs_of(call, torch.float32)
                grads += torch.autograd.grad(solver(*inputs).square().sum(), inputs)
        return grads

    whole = made()
    expected = gradients(whole, range(6))
    first = made()
    gradients(first, range(3))
    second = made(first.state_dict())
    grads = gradients(second, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(grads, expected[6:], strict=True))
    assert second.state_dict() == whole.state_dict()


def test_few_rows_equal_units_or_a_declared_scale_leave_mu_as_it_is():
    """To the bit what it was: warnings are errors here."""
    for rows, size, scale in ((4, SIZE, None), (64, 0.05, None), (64, SIZE, SIZE)):
        box = plate(scale)
        inputs = [weights(rows).requires_grad_(), (size * weights(rows, seed=1)).requires_grad_()]
        mu = 1e-6 if scale is None else 1e-3
        zo.differentiable(box, zo.CGE(mu))(*inputs).sum().backward()
        steps = box.asked[1][1].detach() - inputs[1].detach().repeat(2)
        assert float(steps.abs().max()) == pytest.approx(mu * (scale or 1.0), rel=1e-6)


def test_without_checks_nothing_is_tried_and_mu_stays():
    box = plate()
    solver = zo.differentiable(box, zo.CGE(1e-6), check=False)
    inputs = inputs_of(0, torch.float64)
    with pytest.warns(zo.errors.UnitsWarning, match="stay at mu"):
        solver(*inputs).sum().backward()
    assert solver.counts.checks == 0 and box.ledger.rows_run == 64 * 3


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("digits", [None, 3])
@pytest.mark.filterwarnings("ignore::zo.errors.UnitsWarning", "ignore::zo.errors.NoiseWarning")
@pytest.mark.filterwarnings("ignore::zo.errors.SlopeWarning")
def test_checks_and_units_that_are_tried_take_no_more_rows_than_is_said(name, digits):
    """By the box's ledger, where slopes are right, and where three printed digits leave them in doubt."""
    specs = ArraySpec("angle", ()), ArraySpec("thickness", ())
    box = FromTorch(
        lambda *inputs: (
            load(*inputs) if digits is None else load(*inputs).mul(10**digits).round() / 10**digits
        ),
        specs,
        (ArraySpec("load", ()),),
    )
    solver = zo.differentiable(box, ESTIMATORS[name], seed=0)
    for call in range(3):
        inputs = inputs_of(call, torch.float64)
        torch.autograd.grad(solver(*inputs).square().sum(), inputs)
    central = ESTIMATORS[name].central
    most = most_checks(box, 4 if central else 2, 64, 3, central=central)
    base = 3 * 64
    assert 0 < box.ledger.rows_run - base - solver.counts.rows == solver.counts.checks <= most
