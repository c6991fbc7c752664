"""The gain of dithered inputs: least squares on the dither, in use where the model knows less of them."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec, BlackBoxFunction, Grid
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch
from zo.tangents.excitation.gain import DitherResponse, Excited, _errors
from zo.tangents.excitation.gain_form import GainForm, given
from zo.tangents.record.pairs import CallPairs, sizes
from zo.tangents.tangent import IdentityTangent

WRAPS = Grid(periodic=True)
STATE, ACTION = ArraySpec("state", (3,)), ArraySpec("action", (2,))
MATRIX = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.5, 3.0]], dtype=torch.float64)


def through_matrix(action):
    return action @ MATRIX


def through_stencil(field, wraps=True):
    """Of a field `(rows, 8, 6)`: what a cell and two beside it have, of the upper one -2 times."""
    above = field.roll(1, 1)
    if not wraps:
        above = torch.cat([torch.zeros_like(above[:, :1]), above[:, 1:]], dim=1)
    return 0.5 * field - 2.0 * above


def on_line(field):
    return field.roll(3, 1) - field.roll(-1, 1)


CASES = {
    "numbers": (STATE, ACTION, through_matrix),
    "a grid that wraps": (
        ArraySpec("q", (8, 6), layout=WRAPS),
        ArraySpec("term", (8, 6), layout=WRAPS),
        through_stencil,
    ),
    "a grid with walls": (
        ArraySpec("q", (8, 6), layout=Grid(periodic=False)),
        ArraySpec("term", (8, 6), layout=Grid(periodic=False)),
        lambda field: through_stencil(field, wraps=False),
    ),
    "a line": (ArraySpec("q", (40,), layout=WRAPS), ArraySpec("term", (40,), layout=WRAPS), on_line),
}


def inputs(state, action, rows, seed):
    """State and action, drawn."""
    size_in = sum(sizes((state, action)))
    return torch.randn(rows, size_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(state, action, rows, seed):
    """The rows of a call, whose state is drawn."""
    z = inputs(state, action, rows, seed)
    y = z.new_zeros(rows, sum(sizes((state,))))
    return CallPairs(
        (state, action), (state,), z, y,
    )  # fmt: skip


def shown(state, action, response, rows, seed, noise=0.1):
    """What a model has missed beside a dither whose response it does not know."""
    generator = torch.Generator().manual_seed(seed + 1000)
    dither = torch.zeros(rows, sum(sizes((state, action))), dtype=torch.float64)
    drawn = torch.randn(rows, *action.shape, generator=generator, dtype=torch.float64)
    dither[:, sum(sizes((state,))) :] = drawn.flatten(1)
    true = response(drawn).flatten(1)
    other = torch.randn(true.shape, generator=generator, dtype=torch.float64)
    beside = inputs(state, action, rows, seed)
    return DitherResponse(beside, dither, true + noise * other, 0.0 * true)


def excited(case, steps=30):
    state, action, response = CASES[case]
    tangent = Excited(IdentityTangent())
    for step in range(steps):
        part = shown(state, action, response, 32, step)
        tangent.saw(call(state, action, 32, step), [part])
    return tangent


@pytest.mark.parametrize("case", CASES)
def test_the_gain_is_the_derivative_by_what_is_dithered(case):
    state, action, response = CASES[case]
    tangent, rows = excited(case), call(state, action, 4, 99)
    assert tangent.in_use
    at = tangent.at(rows)
    moved = torch.randn(action.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    d = torch.zeros_like(rows.z)
    d[:, sum(sizes((state,))) :] = moved.flatten()
    true = response(moved.expand(4, *action.shape)).flatten(1)
    torch.testing.assert_close(at.push(d), true, rtol=0, atol=0.02 * float(true.abs().max()))

    v = torch.randn(true.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    whole = torch.randn(rows.z.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    torch.testing.assert_close((at.pull(v) * whole).sum(), (v * at.push(whole)).sum())

    z = rows.z.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(at.to(z, ()), z, v)
    torch.testing.assert_close(by_autograd, at.pull(v))
    torch.testing.assert_close(at.to(rows.z + d, ()), at.push(d))


def valves(state, action):
    """What a valve does goes by a difference, whose mean is zero."""
    return torch.stack([
        action[:, 0] * (state[:, 1] - state[:, 0]),
        2.0 * action[:, 1] * state[:, 2],
        action[:, 0] - action[:, 1] * state[:, 0],
    ], dim=1)  # fmt: skip


def diffused(state, viscosity):
    """By fluxes through the sides of cells, each with the mean of two cells' viscosities."""
    total = torch.zeros_like(state)
    for axis in range(1, state.ndim):
        flux = 0.5 * (viscosity + viscosity.roll(-1, axis)) * (state.roll(-1, axis) - state)
        total = total + flux - flux.roll(1, axis)
    return total


PRODUCTS = {
    "valves": (STATE, ACTION, valves),
    "a viscosity on a line": (
        ArraySpec("u", (40,), layout=WRAPS),
        ArraySpec("viscosity", (40,), layout=WRAPS),
        diffused,
    ),
    "a viscosity on a plane": (
        ArraySpec("u", (8, 6), layout=WRAPS),
        ArraySpec("viscosity", (8, 6), layout=WRAPS),
        diffused,
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_the_gain_goes_by_the_state_where_the_response_does(case):
    state, action, response = PRODUCTS[case]
    tangent, of_state = Excited(IdentityTangent()), sum(sizes((state,)))

    def true(z, dither):
        parts = z[:, :of_state].view(-1, *state.shape), dither[:, of_state:].view(-1, *action.shape)
        return response(*parts).flatten(1)

    for step in range(30):
        part = shown(state, action, lambda a: a.new_zeros(len(a), of_state), 32, step)
        part = part._replace(missed=part.missed + true(part.inputs, part.dither))
        tangent.saw(call(state, action, 32, step), [part])
    assert tangent.in_use
    rows = call(state, action, 8, 99)
    d = torch.zeros_like(rows.z)
    d[:, of_state:] = torch.randn(
        d[:, of_state:].shape, dtype=d.dtype, generator=torch.Generator().manual_seed(5)
    )
    expected, at = true(rows.z, d), tangent.at(rows)
    torch.testing.assert_close(at.push(d), expected, rtol=0, atol=0.03 * float(expected.abs().max()))

    v = torch.randn(expected.shape, dtype=d.dtype, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close((at.pull(v) * d).sum(), (v * at.push(d)).sum())
    z = rows.z.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(at.to(z, ()), z, v)
    torch.testing.assert_close(by_autograd, at.pull(v))


def test_the_gain_goes_by_a_load_that_is_not_differentiable():
    """Of either sign, so that its mean says nothing; as of a bracket's thickness."""
    tangent = Excited(IdentityTangent())
    for step in range(20):
        load = torch.randn(32, generator=torch.Generator().manual_seed(step + 50), dtype=torch.float64)
        rows = dataclasses.replace(call(STATE, ACTION, 32, step), others=(None, None, load))
        part = shown(STATE, ACTION, through_matrix, 32, step, noise=0.0)
        noise = 0.1 * torch.randn(32, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        part = part._replace(inputs=given(rows), missed=load[:, None] * part.missed + noise)
        tangent.saw(rows, [part])
    assert tangent.in_use
    rows = dataclasses.replace(rows, others=(None, None, torch.full((32,), -2.0, dtype=torch.float64)))
    d = part.dither
    expected = -2.0 * through_matrix(d[:, 3:])
    torch.testing.assert_close(
        tangent.at(rows).push(d), expected, rtol=0, atol=0.05 * float(expected.abs().max())
    )


def test_products_are_left_out_where_the_response_goes_by_no_state():
    """Each that is none would cost the others: the numbers are as without."""
    state, action, response = CASES["a line"]
    tangent, part = excited("a line"), shown(state, action, response, 32, 99)
    still = part.inputs.roll(1, 0)
    assert torch.equal(tangent.gain.push(part.dither, part.inputs), tangent.gain.push(part.dither, still))


def test_other_inputs_have_the_derivative_of_the_tangent():
    rows = call(STATE, ACTION, 4, 1)
    at, alone = excited("numbers").at(rows), IdentityTangent().at(rows)
    v = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(at.pull(v)[:, :3], alone.pull(v)[:, :3])


@pytest.mark.parametrize("model", [0.0, 0.05, 1.0])
def test_a_response_that_goes_by_the_state_is_left_to_a_tangent_that_knows_it(model):
    """The gain has its mean alone, which is better than what a poor model says."""
    tangent, generator = Excited(IdentityTangent()), torch.Generator().manual_seed(0)
    for step in range(30):
        part = shown(STATE, ACTION, through_matrix, 32, step, noise=0.0)
        factors = 0.5 + torch.randn(32, 1, generator=generator, dtype=torch.float64)
        response, noise = factors * part.missed, torch.randn(32, 3, generator=generator, dtype=torch.float64)
        tangent.saw(
            call(STATE, ACTION, 32, step),
            [DitherResponse(part.inputs, part.dither, response + 0.3 * noise, model * response)],
        )
    assert tangent.gain.known and (tangent.in_use is not None) == (model < 0.5)


@pytest.mark.parametrize("knows", [True, False], ids=["the tangent is right", "the gain is right"])
@pytest.mark.parametrize("seed", range(4))
def test_which_of_the_two_is_right_shows_by_what_neither_knows(knows, seed):
    """Their responses differ by three tenths and the noise is a tenth, so few rows tell them apart."""
    tangent, generator = Excited(IdentityTangent()), torch.Generator().manual_seed(seed)
    for step in range(20):
        part = shown(STATE, ACTION, through_matrix, 4, 100 * seed + step, noise=0.0)
        factors = 1.0 + 0.3 * torch.randn(4, 1, generator=generator, dtype=torch.float64)
        noise = 0.1 * part.missed.square().mean().sqrt()
        noise = noise * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        by_state = factors * part.missed
        missed = (by_state if knows else part.missed) + noise
        tangent.saw(
            call(STATE, ACTION, 4, step), [DitherResponse(part.inputs, part.dither, missed, by_state)]
        )
    assert tangent.gain.known and (tangent.in_use is None) == knows


@pytest.mark.parametrize(
    "noises", [[100.0], [100.0] * 20 + [10.0] * 20], ids=["one step", "a model that learns"]
)
def test_what_chance_alone_makes_is_no_gain(noises):
    """Noise far above a response that is zero: of each number what chance makes is taken off its square."""
    state, action, _ = CASES["a grid that wraps"]
    tangent = Excited(IdentityTangent())
    for step, noise in enumerate(noises):
        part = shown(state, action, torch.zeros_like, 32, step, noise=noise)
        tangent.saw(call(state, action, 32, step), [part])
    d = torch.zeros(48, 96, dtype=torch.float64)
    d[:, 48:] = torch.eye(48)  # a response to each cell alone: the numbers of the kernel
    found = tangent.gain.push(d, 0.0 * d)  # where all that products are with is about zero
    precision = sum(0.99**age / noise**2 for age, noise in enumerate(reversed(noises)))
    by_chance = (1 / (32 * 48 * precision)) ** 0.5  # the deviation of a number by least squares
    numbers = found[found != 0]
    assert len(numbers) < 0.45 * 48 * 48  # of normal numbers 32 % are above their deviation
    assert float(numbers.abs().max()) < 4 * by_chance


def test_other_inputs_are_dithered_from_here_on():
    """Then nothing is known of them."""
    tangent = excited("numbers")
    part = shown(STATE, ACTION, through_matrix, 32, 7)
    dither = torch.cat([part.dither[:, :4], torch.zeros_like(part.dither[:, :1])], dim=1)
    other = part._replace(dither=dither)
    tangent.saw(call(STATE, ACTION, 32, 7), [other])
    assert not tangent.in_use


def test_rows_without_a_value_and_calls_without_rows_show_nothing():
    """As of a model that is not finite for once, or a call that no row of a step has come to."""
    tangent, again = excited("numbers"), excited("numbers")
    part, rows = shown(STATE, ACTION, through_matrix, 32, 40), call(STATE, ACTION, 32, 40)
    more = shown(STATE, ACTION, through_matrix, 3, 41)
    tangent.saw(rows, [part])
    for missed in (math.nan, math.inf):
        broken = more._replace(missed=torch.full_like(more.missed, missed))
        joined = DitherResponse(*map(torch.cat, zip(part, broken, strict=True)))
        other = excited("numbers")
        other.saw(rows, [joined, DitherResponse(*(column[:0] for column in part))])
        beside = more.dither, more.inputs
        assert torch.equal(other.gain.push(*beside), tangent.gain.push(*beside))
    again.saw(rows, [DitherResponse(*(column[:0] for column in part))])
    assert again.in_use and again.gain.known


def test_too_many_numbers_on_no_grid_have_no_gain():
    action = ArraySpec("action", (65,))
    tangent = Excited(IdentityTangent())
    for step in range(3):
        part = shown(STATE, action, lambda a: a[:, :3], 32, step)
        tangent.saw(call(STATE, action, 32, step), [part])
    assert not tangent.in_use and tangent.gain is None


@pytest.mark.parametrize("side, products", [(32, True), (640, False)])
def test_a_field_too_large_for_products_has_a_gain_without(side, products):
    state, action = (ArraySpec(name, (side, side), layout=WRAPS) for name in ("q", "term"))
    rows = call(state, action, 1, 0)
    form = GainForm.of(rows, torch.cat([torch.zeros_like(rows.y), torch.ones_like(rows.y)], dim=1))
    assert form is not None and form.alone == 49 and bool(form.products) == products


def test_a_state_that_is_read_again_gives_the_same_bits():
    tangent, again = excited("a grid with walls"), Excited(IdentityTangent())
    again.load_state_dict(tangent.state_dict())
    d = torch.ones(2, 96, dtype=torch.float64)
    assert torch.equal(again.gain.push(d, d), tangent.gain.push(d, d)) and again.in_use


def far_reaching(field, term):
    """A step of a fluid whose velocity depends on all cells, and a term beside it."""
    modes = torch.fft.rfft2(field.double())
    k = torch.fft.fftfreq(field.shape[1], 1 / field.shape[1]).to(field.device)[:, None]
    m = torch.arange(field.shape[2] // 2 + 1.0)[None]
    stream = modes / (k**2 + m**2).clamp(min=1.0)
    u, v, x, y = (
        torch.fft.irfft2(part, s=field.shape[1:])
        for part in (1j * m * stream, -1j * k * stream, 1j * k * modes, 1j * m * modes)
    )
    return (field - 0.2 * (u * x + v * y) + 0.02 * term).to(field)


def closure(box):
    def objective(network, start):
        field, total = start, torch.zeros(())
        for _ in range(3):
            field = box(field, network(field[:, None])[:, 0])
            total = total + (field - 0.8 * start).square().mean(dim=(1, 2))
        return total

    return objective


def smooth(step):
    """Few waves: what cells around one have says what the network gives there."""
    modes = torch.randn(4, 12, 7, 2, generator=torch.Generator().manual_seed(step))
    modes = torch.view_as_complex(modes)
    k, m = torch.fft.fftfreq(12, 1 / 12).abs()[:, None], torch.arange(7)[None]
    return torch.fft.irfft2(modes * ((k <= 2) & (m <= 2)), s=(12, 12)) * 12


def test_a_closure_whose_solver_no_model_follows_has_the_right_gradient():
    """Every cell moves every other, so that a network on cells near by predicts a step badly."""
    field = ArraySpec("field", (12, 12), layout=WRAPS)
    box = FromTorch(far_reaching, (field, ArraySpec("term", (12, 12), layout=WRAPS)), (field,))
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(),
        nn.Conv2d(4, 1, 3, padding=1, padding_mode="circular"),
    )  # fmt: skip
    tangent = learner(zo.tangents.GridTangent, channels=8, first_steps=20)
    gradient = zo.TangentGradient(network, closure(box), boxes=[box], tangent=tangent, seed=0)
    optimizer, cosines = torch.optim.Adam(network.parameters(), 3e-3), []
    for step in range(13):
        start = smooth(step)
        true = torch.autograd.grad(closure(far_reaching)(network, start).mean(), list(network.parameters()))
        optimizer.zero_grad()
        gradient.backward(start)
        found = (torch.zeros_like(w) if w.grad is None else w.grad for w in network.parameters())
        flat = torch.cat([part.flatten() for part in found])
        cosines.append(float(torch.cosine_similarity(flat, torch.cat([g.flatten() for g in true]), dim=0)))
        optimizer.step()
    assert (gradient.trust_of_step or 0.0) > 0.5  # the model is of little use for values
    assert min(cosines[8:]) > 0.9  # from -.7 to .8 by the model alone


class Strict(FromTorch):
    """Lets no row fail."""

    def __init__(self, *args):
        super().__init__(*args)
        self.failures = "raise"


class Narrow(BlackBoxFunction):
    """Ends where an action is a little beside half of the first number."""

    arrays = "torch"
    inputs = ArraySpec("state", (2,)), ArraySpec("action", (2,))
    outputs = (ArraySpec("state", (2,)),)

    def evaluate_rows(self, state, action):
        inside = (action - 0.5 * state[:, :1]).abs().amax(dim=1, keepdim=True) < 0.02
        return torch.where(inside, 0.9 * state + 0.1 * action, torch.nan)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("failures", ["raise", "keep"])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_dither_that_a_simulator_does_not_survive_ends_no_training(failures, batch):
    """Its own rows answer: the step is evaluated once more without, is counted twice, and is told once."""

    box = Narrow(failures=failures)
    network = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.5, 0.0], [0.5, 0.0]]))

    def objective(network, start):
        now, total = start, torch.zeros(())
        for _ in range(3):
            now = box(now, network(now))
            total = total + now.square().sum(dim=1)
        return total

    gradient = zo.TangentGradient(network, objective, boxes=[box], seed=0)
    told = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            start = torch.randn(batch, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            gradient.backward(start)
        told = [str(warning.message) for warning in caught if "survive a dither" in str(warning.message)]
    assert gradient.counts.steps == 12 and (failures == "keep" or not gradient.counts.lost)
    assert len(told) == 1 and "'action'" in told[0] and "bounds" in told[0]
    assert gradient.counts.rows == box.ledger.rows_asked  # those of the steps that were taken back too
    assert gradient.counts.rows > 12 * 3 * batch


def burgers(u, viscosity):
    """A step of Burgers' equation on a circle, by fluxes."""
    flux = 0.25 * (u.square() + u.roll(-1, 1).square())
    flux = flux - 0.5 * (viscosity + viscosity.roll(-1, 1)) * (u.roll(-1, 1) - u) / 0.15
    return u - 0.02 * (flux - flux.roll(1, 1)) / 0.15


@pytest.mark.filterwarnings("ignore:Step 7. expected a small dither to show by now")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Step 11")  # of a model that has learned for some twenty steps
def test_a_network_that_gives_a_viscosity_has_the_right_gradient_and_ends_no_solver():
    """The response has no mean, and once had the dither grow until the solver was at 1e11."""
    field = ArraySpec("u", (40,), layout=WRAPS)
    box = Strict(burgers, (field, ArraySpec("viscosity", (40,), layout=WRAPS)), (field,))
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(1, 8, 5, padding=2, padding_mode="circular"), nn.SiLU(), nn.Conv1d(8, 1, 1), nn.Softplus(),
    )  # fmt: skip

    def objective(box):
        def losses(network, start):
            u, total = start, torch.zeros(())
            for _ in range(5):
                u = box(u, 0.1 * network(u[:, None])[:, 0])
                total = total + (u - start.roll(2, 1)).square().mean(dim=1)
            return total

        return losses

    def starts(step):
        modes = (
            torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(step)) / torch.arange(1, 5)[:, None]
        )
        x = torch.arange(40) * 0.15 * torch.arange(1, 5)[:, None] * 2 * torch.pi / 6
        return torch.einsum("rk,kx->rx", modes[..., 0], torch.sin(x)) + modes[..., 1] @ torch.cos(x)

    tangent = learner(zo.tangents.GridTangent, channels=8, first_steps=20)
    gradient = zo.TangentGradient(network, objective(box), boxes=[box], tangent=tangent, seed=0)
    optimizer, cosines = torch.optim.Adam(network.parameters(), 3e-3), []
    for step in range(24):
        true = torch.autograd.grad(
            objective(burgers)(network, starts(step)).mean(), list(network.parameters())
        )
        optimizer.zero_grad()
        gradient.backward(starts(step))
        found = (torch.zeros_like(w) if w.grad is None else w.grad for w in network.parameters())
        flat = torch.cat([part.flatten() for part in found])
        cosines.append(float(torch.cosine_similarity(flat, torch.cat([g.flatten() for g in true]), dim=0)))
        optimizer.step()
    assert min(cosines[19:]) > 0.9
    # while the response is not known the gradient is zero, and not a guess; once it is, hardly ever wrong
    assert sum(cosine < 0 for cosine in cosines) <= 1
    assert cosines.count(0.0) == cosines.index(next(c for c in cosines if c)) > 3  # and then no more
    assert float(gradient.excitation[0]["viscosity"].max()) < 0.1


def test_no_prediction_counts_as_worse_than_none_and_no_number_as_all_of_them():
    """In a cell that never moves anything is wrong without bound: it once chose for a whole training."""
    missed = torch.tensor([[1.0, 1e-20], [-1.0, -1e-20]])
    right, wrong = missed.clone(), torch.tensor([[0.0, 1e-3], [0.0, 1e-3]])
    first, second, _ = _errors(missed, (right, wrong), torch.ones(2))
    assert first == 0.0
    # units: of the first number 1 + 1/2, of the second 0 + 1/2
    assert second == pytest.approx(2 / 1.5 + 2e-6 / 0.5, rel=1e-4)
    worst = _errors(missed, (1e6 * missed, torch.full_like(missed, torch.nan)), torch.ones(2))
    none = _errors(missed, (0 * missed, right), torch.ones(2))[0]
    assert worst == pytest.approx((none, none, none))


def test_a_number_that_has_not_varied_yet_chooses_nothing():
    """Its misses are rounding, of which a gain that is none is the better prediction."""
    missed = torch.tensor([[1.0, 1e-7], [-1.0, -1e-7]])
    right, rounded = torch.tensor([[0.9, 1e-7], [-0.9, 1e-7]]), torch.zeros(2, 2)
    scale = torch.tensor([1.0, 0.0])
    alone = _errors(missed[:, :1], (right[:, :1], rounded[:, :1]), scale[:1])
    units = 2 / 1.5  # the mean of what is missed is over one number more
    assert _errors(missed, (right, rounded), scale) == pytest.approx([units * error for error in alone])


def test_channels_of_any_unit_weigh_the_same_where_no_scale_is_given():
    """As where products are judged by new responses: of a pressure beside a velocity both count."""
    generator = torch.Generator().manual_seed(0)
    missed, one, other = torch.randn(3, 50, 2, generator=generator, dtype=torch.float64)
    units = torch.tensor([1e5, 1e-3], dtype=torch.float64)
    found = _errors(missed * units, (one * units, 0.5 * other * units))
    assert found == pytest.approx(_errors(missed, (one, 0.5 * other)))
    none = _errors(missed, (0 * missed, 0 * missed))[0]
    first_is_right = torch.stack([missed[:, 0], 0 * missed[:, 1]], dim=1)
    assert _errors(missed, (first_is_right, 0 * missed))[0] == pytest.approx(none / 2)
