"""`EquationTangent` and `fit_field`, against autograd through the boxes and what is looked for."""

from __future__ import annotations

import math

import pytest
import torch

import zo
from blackbox import ArraySpec, BlackBoxFunction
from simulators.spectral import Vorticity
from zo.tangents.models.equation.equation import EquationTerms, _squares
from zo.tangents.record.pairs import CallPairs

POINTS = 12


class Carried(BlackBoxFunction):
    """A ring that turns by as many cells as each row says, and decays: known in closed form."""

    arrays = "torch"
    inputs = (ArraySpec("state", (1, 16)), ArraySpec("speed", (), differentiable=False))
    outputs = (ArraySpec("state", (1, 16)),)

    def evaluate_rows(self, state, speed):
        with torch.no_grad():
            return self.advance(state, speed)

    @staticmethod
    def advance(state, speed):
        modes = torch.arange(9, dtype=torch.float64) * (torch.arange(9) < 8)
        turned = torch.exp(-2j * math.pi * modes * speed.double()[:, None, None] / 16 - 0.001 * modes**2)
        return torch.fft.irfft(torch.fft.rfft(state.double()) * turned, 16).to(state)


class Velocity(BlackBoxFunction):
    """A flow by its velocity: `(2, points, points)` without divergence, moved on as a vorticity."""

    arrays = "torch"

    def __init__(self, points=POINTS):
        self.inputs = self.outputs = (ArraySpec("velocity", (2, points, points)),)
        self.flow = Vorticity(points, viscosity=0.02, steps=4)

    def evaluate_rows(self, velocity):
        with torch.no_grad():
            return self.advance(velocity)

    def _slopes(self):
        points = self.inputs[0].shape[-1]
        along = torch.fft.fftfreq(points, 1 / points, dtype=torch.float64)
        along = along * (along.abs() < points / 2)
        return 1j * along[None, :], 1j * along[:, None]

    def of(self, vorticity):
        x, y = self._slopes()
        square = -(x**2 + y**2)
        stream = torch.fft.fft2(vorticity[:, 0].double()) / torch.where(square.real > 0, square, 1)
        return torch.fft.ifft2(torch.stack([y * stream, -x * stream], 1)).real

    def advance(self, velocity):
        x, y = self._slopes()
        u, v = torch.fft.fft2(velocity.double()).unbind(1)
        return self.of(self.flow.advance(torch.fft.ifft2(x * v - y * u).real[:, None])).to(velocity)


def starts(rows, seed=0):
    return Vorticity(POINTS).start(rows, seed=seed)


def cosine(one, other):
    return float((one * other).sum() / (one.norm() * other.norm()))


def test_a_flow_s_equation_is_found_from_six_rows():
    """Its derivative at states never seen, for smooth cotangents and, but for the highest waves, all."""
    box, tangent = Vorticity(POINTS, viscosity=0.02, steps=5), zo.tangents.EquationTangent()
    seen, new = starts(6), starts(3, seed=1)
    with torch.no_grad():
        tangent.fit(seen, box.advance(seen))
    assert tangent.measured["dealiased"] and not tangent.measured["outer"]
    assert tangent.measured["error"] < 0.05  # as coarse as this grid is
    v = torch.randn(new.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    asked, modelled = (new.clone().requires_grad_() for _ in range(2))
    exact = box.advance(asked)
    (exact * v).sum().backward()
    found = tangent.values(modelled.flatten(1), modelled.flatten(1)[:, :0])
    (found.reshape(v.shape) * v).sum().backward()
    assert float((found.reshape(v.shape) - exact).detach().norm()) < 0.1 * float(
        (exact - new).detach().norm()
    )
    assert asked.grad is not None and modelled.grad is not None
    assert cosine(asked.grad, modelled.grad) > 0.98


def test_of_a_velocity_what_is_nonlocal_stands_outside():
    box, tangent = Velocity(), zo.tangents.EquationTangent()
    seen, new = box.of(starts(6)), box.of(starts(2, seed=1))
    tangent.fit(seen, box.advance(seen))
    assert tangent.measured["outer"] and tangent.measured["error"] < 2e-2
    v = box.of(starts(2, seed=3))
    asked, modelled = (new.clone().requires_grad_() for _ in range(2))
    (box.advance(asked) * v).sum().backward()
    (tangent.values(modelled.flatten(1), modelled.flatten(1)[:, :0]).reshape(v.shape) * v).sum().backward()
    assert asked.grad is not None and modelled.grad is not None
    along = box.of(starts(2, seed=4))  # a change without divergence: values show no other
    assert float((modelled.grad * along).sum()) == pytest.approx(float((asked.grad * along).sum()), rel=0.02)


def test_a_number_of_the_case_is_a_field_of_the_equation():
    box, tangent = Carried(), zo.tangents.EquationTangent()
    draws = torch.Generator().manual_seed(0)
    state = torch.randn(8, 1, 16, generator=draws, dtype=torch.float64).cumsum(2)
    state = state - state.mean(2, keepdim=True)
    speed = 0.5 * torch.rand(8, generator=draws, dtype=torch.float64)
    tangent.fit([state[:6], speed[:6]], box.advance(state[:6], speed[:6]), box=box)
    change = box.advance(state[6:], speed[6:]) - state[6:]
    found = tangent.values(state[6:].flatten(1), speed[6:, None]).reshape(change.shape) - state[6:]
    assert float((found - change).norm()) < 0.05 * float(change.norm())


def test_a_state_goes_on_to_the_same_bits():
    box, (one, other) = Vorticity(POINTS, steps=2), (zo.tangents.EquationTangent() for _ in range(2))
    seen = starts(4)
    one.fit(seen, box(seen))
    other.load_state_dict(one.state_dict())
    more = starts(2, seed=5).flatten(1)
    assert torch.equal(one.values(more, more[:, :0]), other.values(more, more[:, :0]))
    assert one.measured == other.measured
    assert (
        zo.tangents.EquationTangent().state_dict() == {"form": None}
        and not zo.tangents.EquationTangent().measured
    )


class Steepening(BlackBoxFunction):
    """Burgers' equation on a ring of 16 cells; waves above the fourth enter no product and leave none."""

    arrays = "torch"
    inputs = outputs = (ArraySpec("state", (1, 16)),)

    def evaluate_rows(self, state):
        with torch.no_grad():
            return self.advance(state)

    @staticmethod
    def advance(state):
        waves = torch.arange(9, dtype=torch.float64)
        kept = waves <= 4

        def rate(modes):
            square = torch.fft.rfft(torch.fft.irfft(kept * modes, 16).square())
            return -0.5j * waves * kept * square - 0.02 * waves**2 * modes

        modes, step = torch.fft.rfft(state.double()), 0.02
        for _ in range(10):
            a = rate(modes)
            b = rate(modes + step / 2 * a)
            c = rate(modes + step / 2 * b)
            modes = modes + step / 6 * (a + 2 * b + 2 * c + rate(modes + step * c))
        return torch.fft.irfft(modes, 16).to(state)


def test_waves_that_a_solver_cuts_one_earlier_are_cut_there():
    box, tangent = Steepening(), zo.tangents.EquationTangent()
    draws = torch.Generator().manual_seed(0)
    modes = torch.randn(8, 1, 9, 2, generator=draws, dtype=torch.float64) * (torch.arange(9) < 6)[:, None]
    state = 4 * torch.fft.irfft(torch.view_as_complex(modes), 16)
    tangent.fit(state[:6], box.advance(state[:6]))
    assert tangent.measured["early"] and tangent.measured["error"] < 1e-2
    again = zo.tangents.EquationTangent()
    again.load_state_dict(tangent.state_dict())
    modes = torch.randn(2, 1, 9, 2, generator=draws, dtype=torch.float64) * (torch.arange(9) < 8)[:, None]
    v = torch.fft.irfft(torch.view_as_complex(modes), 16)  # rows say nothing of the highest wave
    asked, modelled = (state[6:].clone().requires_grad_() for _ in range(2))
    (box.advance(asked) * v).sum().backward()
    (again.values(modelled.flatten(1), modelled.flatten(1)[:, :0]).reshape(v.shape) * v).sum().backward()
    assert asked.grad is not None and modelled.grad is not None
    assert float((modelled.grad - asked.grad).norm()) < 0.02 * float((asked.grad - v).norm())


def test_a_flow_in_space_is_a_sum_of_the_terms():
    """Navier and Stokes by the product of velocity and vorticity, projected; the terms have slopes alone."""
    points, rows = 8, 4
    terms = EquationTerms((points,) * 3, 3, 0, outer=True, dealiased=True)
    along = torch.fft.fftfreq(points, 1 / points, dtype=torch.float64)
    waves = torch.stack(torch.meshgrid(along, along, along, indexing="ij"))
    square, kept = waves.square().sum(0), waves.abs().amax(0) < points / 3

    def fields(modes):
        return torch.fft.ifftn(modes, dim=(-3, -2, -1)).real

    def projected(modes):
        return modes - waves * (waves * modes).sum(1, keepdim=True) / square.clamp_min(1)

    noise = torch.randn(
        rows, 3, *terms.space, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    modes = kept * projected(torch.fft.fftn(noise, dim=(-3, -2, -1)))
    u = fields(modes)
    curl = fields(torch.linalg.cross(1j * waves.expand_as(modes), modes, dim=1))
    carried = kept * projected(torch.fft.fftn(torch.linalg.cross(u, curl, dim=1), dim=(-3, -2, -1)))
    rate = fields(carried - 0.02 * square * modes)
    every = terms.all(u, u[:, :0])
    found = torch.einsum("rt...,tc->rc...", every, _squares(every, rate))
    assert terms.count == every.shape[1] == 543
    assert float((found - rate).norm()) < 1e-5 * float(rate.norm())


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((ArraySpec("a", (3,)),), (ArraySpec("b", (5,)),)),
        ((ArraySpec("a", (1, 8, 8)),) * 1, (ArraySpec("b", (2, 8, 8)),)),
        ((ArraySpec("a", (1, 8, 8), layout="auto"),), (ArraySpec("a", (1, 8, 7)),)),
    ],
)
def test_what_is_no_state_on_a_grid_is_refused(inputs, outputs):
    class Other(BlackBoxFunction):
        arrays = "torch"

        def evaluate_rows(self, *given):
            return torch.ones(len(given[0]), *self.outputs[0].shape)

    box = Other()
    box.inputs, box.outputs = inputs, outputs
    asked = torch.ones(2, *inputs[0].shape)
    with pytest.raises(zo.errors.ConfigurationError, match="EquationTangent: expected outputs"):
        zo.tangents.EquationTangent().fit(asked, box(asked), box=box)


def looked_for(calls=2, points=POINTS):
    """A box, the objective of a field that leads to a known state, that field, and the state."""
    box = Vorticity(points, viscosity=0.02, steps=5)
    truth = starts(1)[0].float()
    end = truth[None]
    with torch.no_grad():
        for _ in range(calls):
            end = box.advance(end)

    def objective(field, rows):
        state = field(rows)
        for _ in range(calls):
            state = box(state)
        return (state - end).square().sum(dim=(1, 2, 3)) / end.square().sum()

    return box, objective, truth, end[0]


def test_a_field_is_found_in_few_evaluations():
    box, objective, truth, end = looked_for()
    field, heard = zo.Field(end), []
    before = float((end - truth).norm() / truth.norm())
    fit = zo.fit_field(
        field,
        objective,
        boxes=[box],
        rows=10,
        tangent=zo.tangents.EquationTangent(1),
        evaluated=heard.append,
        inner=6,
    )
    assert fit.rows == box.ledger.rows_run <= 10 and fit.why == "rows"
    assert tuple(heard) == fit.losses and fit.loss == min(heard)
    assert float((field.values.detach() - truth).norm() / truth.norm()) < 0.1 * before
    with torch.no_grad():  # the field has the values of the least loss
        assert float(objective(field, torch.zeros(1, 1))) == pytest.approx(fit.loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore::zo.errors.ZeroGradientWarning")
def test_a_search_ends_at_its_tolerance_and_where_no_move_helps():
    box, objective, _, end = looked_for(calls=1)
    loose = zo.fit_field(
        zo.Field(end),
        objective,
        boxes=[box],
        rows=1000,
        tolerance=1e9,
        tangent=zo.tangents.EquationTangent(1),
    )
    assert loose.why == "tolerance" and len(loose.losses) == 1
    field = zo.Field(end)
    with pytest.warns(zo.TangentWarning, match="show no derivative with respect to the field"):
        stalled = zo.fit_field(
            field, objective, boxes=[box], rows=1000, tangent=zo.tangents.ZeroTangent(), inner=4
        )
    assert stalled.why == "stalled" and torch.equal(field.values.detach(), end)
    assert stalled.loss == stalled.losses[0]


@pytest.mark.slow
def test_where_a_box_fails_the_move_is_taken_back():
    """The box has no answer for states larger than those of the solution and a little."""
    box, objective, truth, end = looked_for(calls=1)
    most, run = 1.05 * float(truth.abs().max()), box.evaluate_rows

    def evaluate(state):
        answers = run(state)
        answers[state.abs().flatten(1).amax(1) > most] = torch.nan
        return answers

    box.evaluate_rows = evaluate  # type: ignore[method-assign]
    box.failures = "keep"
    fit = zo.fit_field(
        zo.Field(end), objective, boxes=[box], rows=8, tangent=zo.tangents.EquationTangent(1), inner=6
    )
    assert fit.loss < 0.1 * fit.losses[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 0}, "rows: expected a whole number"),
        ({"inner": 0}, "inner: expected a whole number"),
        ({"tolerance": -1.0}, "tolerance: expected a finite number"),
    ],
)
def test_settings_of_a_search_are_checked(settings, words):
    box, objective, _, end = looked_for()
    with pytest.raises(zo.errors.ConfigurationError, match=words):
        zo.fit_field(zo.Field(end), objective, **({"boxes": [box], "rows": 10} | settings))


def test_a_field_is_floating():
    with pytest.raises(zo.errors.ConfigurationError, match="Field, values: expected a floating tensor"):
        zo.Field(torch.zeros(3, dtype=torch.long))
    assert zo.Field(torch.ones(2, 3))(torch.zeros(4, 1)).shape == (4, 2, 3)


def call(z):
    """What a call at some states shows."""
    flat, spec = z.flatten(1), ArraySpec("vorticity", z.shape[1:])
    return CallPairs((spec,), (spec,), flat, flat)


def test_where_no_flow_is_finite_a_row_has_the_identity_s_derivative_and_the_others_their_own():
    """In derivatives; between states, of which one is that row, nothing is known."""
    box, tangent = Vorticity(POINTS, viscosity=0.02, steps=5), zo.tangents.EquationTangent()
    with torch.no_grad():
        tangent.fit(starts(6), box.advance(starts(6)))
    new, calm = starts(3, seed=1), [0, 2]
    wild = torch.cat([new[:1], 1e9 * new[1:2], new[2:]])
    v = torch.randn(new.shape, generator=torch.Generator().manual_seed(2)).to(new).flatten(1)
    at, alone = tangent.at(call(wild)), tangent.at(call(new[calm]))
    for found, known in (
        (at.pull(v), alone.pull(v[calm])),
        (at.push(v), alone.push(v[calm])),
    ):
        assert torch.equal(found[1], v[1]) and not torch.allclose(found[0], v[0])
        assert torch.allclose(found[calm], known)
    moved = new.flatten(1) + 0.01 * v
    for recorded, there in ((wild, moved), (new, torch.cat([moved[:1], 1e9 * moved[1:2], moved[2:]]))):
        found = tangent.at(call(recorded)).to(there, ())  # a replay has no answer for such a row
        assert not found[1].isfinite().any()
        assert torch.allclose(found[calm], alone.to(moved[calm], ()))
