"""What all small systems have in common: call and step, starts, failures, pickles, settings."""

import pickle
from functools import cache

import numpy as np
import pytest
import torch

from blackbox.errors import ConfigurationError, DtypeError, NotDifferentiableError, RowFailedError, ShapeError
from blackbox.registry_arguments import call
from simulators.advection_diffusion_reaction import AdvectionDiffusionReaction
from simulators.coupled_map_lattice import CoupledMapLattice
from simulators.heat import Heat
from simulators.implicit_diffusion import ImplicitDiffusion
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from simulators.lorenz96 import Lorenz96
from simulators.oscillators import DoublePendulum, VanDerPol
from simulators.reaction_diffusion import Brusselator, FitzHughNagumo, GrayScott
from simulators.shallow_water import ShallowWater
from simulators.spectral import Vorticity
from simulators.state_system import StateSystem
from tests.simulators.systems import assert_derivative_is_the_differences

SMALL = {
    "kuramoto-sivashinsky": (KuramotoSivashinsky, {"points": 32, "dt": 0.5}),
    "advection-diffusion-reaction": (AdvectionDiffusionReaction, {"height": 6, "width": 9}),
    "lorenz96": (Lorenz96, {"sites": 7}),
    "coupled-map-lattice": (CoupledMapLattice, {"sites": 9}),
    "implicit-diffusion": (ImplicitDiffusion, {"points": 12}),
    "heat": (Heat, {"points": 9}),
    "brusselator": (Brusselator, {"height": 5, "width": 6}),
    "gray-scott": (GrayScott, {"height": 16, "width": 16}),
    "fitzhugh-nagumo": (FitzHughNagumo, {"height": 5, "width": 6}),
    "shallow-water": (ShallowWater, {"height": 6, "width": 5}),
    "vorticity": (Vorticity, {"points": 12, "stirring": 1.0}),
    "van-der-pol": (VanDerPol, {}),
    "double-pendulum": (DoublePendulum, {}),
    "double-pendulum-wall": (DoublePendulum, {"wall": 0.3}),
}


STABLE = ("heat", "van-der-pol")  # implicit steps damp what would blow up


@pytest.fixture(params=list(SMALL))
def name(request):
    return request.param


@pytest.fixture
def make(name):
    kind, settings = SMALL[name]
    return lambda **more: kind(**(settings | more))


@cache
def started(name, rows):
    """Hundreds of steps from random states, which most tests have no other use for: made once."""
    kind, settings = SMALL[name]
    return kind(**settings).start(rows, seed=0)


@pytest.fixture
def start(name):
    return lambda rows: started(name, rows).clone()


@pytest.mark.quick_cases(3)
def test_a_call_is_the_steps_that_it_says(make, start):
    box, single = make(steps=3), make()
    state = start(4)
    expected = state
    for _ in range(3):
        expected = single(expected)
    assert torch.equal(box(state), expected)
    assert torch.equal(box.advance(state), expected)
    assert torch.equal(box.step(state), single(state))
    assert not torch.equal(expected, state)


@pytest.mark.quick_cases(3)
def test_numpy_and_any_leading_axes(make, start):
    box = make()
    state = start(6)
    expected = box(state).reshape(2, 3, *box.shape)
    found = box(state.numpy().reshape(2, 3, *box.shape))
    assert isinstance(found, np.ndarray) and found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_allclose(box.step(state.reshape(2, 3, *box.shape)), expected, atol=1e-5)
    np.testing.assert_allclose(box.step(state[0]), expected[0, 0], atol=1e-5)


@pytest.mark.quick_cases(5)
def test_float64_is_computed_in_float64(make, start):
    box = make()
    state = start(2)
    fine, coarse = box(state.double()), box(state)
    assert fine.dtype == torch.float64
    assert 1e-10 < (fine - coarse).abs().max() < 1e-4


@pytest.mark.quick_cases(6)
def test_rows_do_not_depend_on_their_mates(make, start):
    box = make(max_rows=3)
    state = start(7).double()
    whole = box(state)
    alone = torch.cat([box(row[None]) for row in state])
    assert (whole - alone).abs().max() < 1e-12


@pytest.mark.quick_cases(3)
def test_only_the_step_has_a_derivative(make, start):
    box = make(steps=2)
    state = start(2).requires_grad_()
    with pytest.raises(NotDifferentiableError):
        box(state)
    assert box.step(state).requires_grad and box.advance(state).requires_grad


@pytest.mark.quick_cases(5)
def test_the_steps_derivative_is_that_of_its_values(make, start):
    box = make()
    assert_derivative_is_the_differences(box.step, start(3).double())


@pytest.mark.quick_cases(10)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64]
)  # tables are converted, or as they were made
def test_tables_made_in_inference_mode_serve_autograd_later(make, start, dtype):
    state = start(1).to(dtype)
    with torch.inference_mode():
        fresh = make()
        fresh(state)
    tracked = state.clone().requires_grad_()
    fresh.step(tracked).square().sum().backward()
    assert tracked.grad is not None and tracked.grad.isfinite().all()


def test_autocast_around_a_step_changes_nothing(make, start):
    box = make()
    state = start(2)
    expected = box.step(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(box.step(state), expected)


@pytest.mark.quick_cases(2)
def test_starts_are_distinct_repeatable_and_leave_the_global_generator_alone(make):
    box = make()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    states = box.start(5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert states.shape == (5, *box.shape) and states.dtype == torch.float32 and states.isfinite().all()
    assert torch.equal(states, box.start(5, seed=1))
    others = torch.cat([states, box.start(5, seed=2)]).flatten(1)
    distances = torch.cdist(others, others) + torch.eye(10) * 1e9
    assert distances.min() > 1e-3  # of 1: two numbers on one cycle can come close


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", [name for name in SMALL if name not in STABLE])
def test_a_row_that_blows_up_fails_alone(name):
    kind, settings = SMALL[name]
    box = kind(**settings, steps=40, failures="keep")
    state = started(name, 3).clone()
    expected = box(state)
    state[1] *= 1e12
    found = box(state)
    assert found[1].isnan().all()
    assert (found[[0, 2]] - expected[[0, 2]]).abs().max() < 1e-4
    assert box.ledger.rows_failed == 1
    with pytest.raises(RowFailedError, match="row 1"):
        kind(**settings, steps=40)(state)


@pytest.mark.quick_cases(4)
def test_pickles_hold_the_settings_alone(make, start):
    box = make(steps=2, max_rows=5, failures="keep")
    state = start(6)
    expected = box(state)
    frozen = pickle.dumps(box)
    thawed = pickle.loads(frozen)
    assert len(frozen) < 500
    assert torch.equal(thawed(state), expected)
    assert repr(thawed) == repr(box) and thawed.failures == "keep" and thawed.max_rows == 5


def test_the_repr_makes_an_equal_system(make, start):
    box: StateSystem = make(steps=2)
    again = eval(repr(box), {type(box).__name__: type(box)})
    state = start(2)
    assert torch.equal(again(state), box(state))


def test_states_of_another_shape_or_dtype_are_refused_by_the_step(make, start):
    box = make()
    state = start(2)
    with pytest.raises(ShapeError, match=r"state: expected \(\.\.\., "):
        box.step(state[..., :-1])
    with pytest.raises(DtypeError, match="expected float32 or float64, got float16"):
        box.step(state.half())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "steps: expected a whole number >= 1, got 0"),
        ({"steps": True}, "steps"),
        ({"max_rows": -1}, "max_rows"),
    ],
)
def test_bad_common_settings_are_named(make, settings, words):
    with pytest.raises(ConfigurationError, match=words):
        make(**settings)


def test_a_word_of_the_command_line_that_is_no_number_is_refused():
    with pytest.raises(ConfigurationError, match=r'a box, dt: expected .*number.*, got "long"'):
        call("a box", DoublePendulum, {"dt": "long"})
    assert call("a box", DoublePendulum, {"dt": 1}).dt == 1.0


@pytest.mark.parametrize(("rows", "seed", "words"), [(0, 0, "rows"), (1, -1, "seed")])
def test_bad_starts_are_named(make, rows, seed, words):
    with pytest.raises(ConfigurationError, match=words):
        make().start(rows, seed)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (KuramotoSivashinsky, {"points": 7}, "points: expected a whole number >= 8, got 7"),
        (KuramotoSivashinsky, {"length": 0.0}, "length: expected a finite number > 0, got 0.0"),
        (KuramotoSivashinsky, {"dt": float("nan")}, "dt"),
        (KuramotoSivashinsky, {"dt": 10**400}, "dt: expected a finite number > 0, got 1000"),
        (KuramotoSivashinsky, {"points": 10**30}, "settings: expected such as can be computed with, got"),
        (AdvectionDiffusionReaction, {"height": 3}, "height: expected a whole number >= 4"),
        (AdvectionDiffusionReaction, {"width": 3}, "width"),
        (AdvectionDiffusionReaction, {"diffusion": -0.1}, "diffusion: expected a finite number >= 0"),
        (AdvectionDiffusionReaction, {"reaction": -1.0}, "reaction: expected a finite number >= 0"),
        (AdvectionDiffusionReaction, {"turn": float("inf")}, "turn"),
        (AdvectionDiffusionReaction, {"dt": -1}, "dt"),
        (Lorenz96, {"sites": 3}, "sites: expected a whole number >= 4, got 3"),
        (Lorenz96, {"forcing": float("nan")}, "forcing: expected a finite number, got nan"),
        (Lorenz96, {"dt": 0}, "dt"),
        (CoupledMapLattice, {"sites": 2}, "sites"),
        (CoupledMapLattice, {"nonlinearity": 2.1}, r"nonlinearity: expected a finite number in \[0, 2\]"),
        (CoupledMapLattice, {"nonlinearity": -1}, "nonlinearity"),
        (CoupledMapLattice, {"coupling": 1.5}, r"coupling: expected a finite number in \[0, 1\], got 1.5"),
    ],
)
def test_bad_settings_are_named(kind, settings, words):
    with pytest.raises(ConfigurationError, match=rf"{kind.__name__}, .*{words}"):
        kind(**settings)


def test_a_setting_stays_once_what_follows_from_it_is_made():
    box = Lorenz96(sites=8)
    with pytest.raises(ConfigurationError, match="expected settings that stay, got another dt"):
        box.dt = 0.1
    box.steps, box.failures = 3, "keep"
    assert pickle.loads(pickle.dumps(box)).steps == 3
