"""The fast step against plain PhiFlow, and what physics and calculus demand of it."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from phi import field, math
from phi.math import Solve
from phi.physics import diffuse

from benchmarks.gpu.plain_phiflow import (
    SCHEMES,
    phiflow,
    plain_step,
    velocity_array,
    velocity_field,
    wrapped,
)
from blackbox.errors import ConfigurationError, DtypeError, ShapeError
from simulators.wake_flow import Channel, WakeStep, staggered
from simulators.wake_flow.advection import ADVECTION
from simulators.wake_flow.geometry import Box, Cylinder
from simulators.wake_flow.staggered import divergence, start

SMALL = Channel(16)

# Plain PhiFlow with torch: its autograd functions, and the sparse matrices of its conjugate gradients.
plain_phiflow = pytest.mark.filterwarnings(
    "ignore:.*TorchCustomFunction.* should not be instantiated:DeprecationWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
    "ignore:Sparse CSR tensor support is in beta state:UserWarning",
)


def flows(
    channel: Channel, rows: int, dtype=torch.float64, seed: int = 0, rough: float = 0.2
) -> torch.Tensor:
    """A stream with noise; the step itself takes out the divergence."""
    generator = torch.Generator().manual_seed(seed)
    velocity = rough * torch.randn(rows, *channel.shape, generator=generator, dtype=torch.float64)
    velocity[:, 1] += 1
    velocity[:, 0, :, 0] = 0
    return velocity.to(dtype)


def reynolds(rows: int, dtype=torch.float64) -> torch.Tensor:
    return torch.logspace(2, 3, rows, dtype=torch.float64).to(dtype)


# In float64 what is left is the 1 / cell^2 that PhiFlow rounds to float32 in its matrix.
SOLVES = {torch.float32: (Solve("CG", 1e-5, 0), 2e-5), torch.float64: (Solve("CG", 1e-12, 0), 1e-7)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("advection", "dtype", "steps"),
    [
        pytest.param("semi-lagrangian", torch.float32, 2),
        pytest.param("mac-cormack", torch.float64, 2, marks=pytest.mark.slow),
        *(pytest.param(name, dtype, 10, marks=pytest.mark.slow) for name in ADVECTION for dtype in SOLVES),
    ],
)
@plain_phiflow
def test_some_steps_equal_plain_phiflow(advection, dtype, steps):
    channel, (solve, tolerance) = Channel(12), SOLVES[dtype]
    step = WakeStep(channel, advection=advection)
    re = reynolds(2, dtype)
    before = fast = step(flows(channel, 2, dtype), re)
    # One simulation at a time, as a user would write it; the slow cases take both at once.
    rows = 1 if (advection, dtype) == ("semi-lagrangian", torch.float32) else 2
    plain = list(zip(before.split(rows), re.split(rows), strict=True))
    for _ in range(steps):
        fast = step(fast, re)
        plain = [(plain_step(v, r, channel, 1.0, advection, solve=solve), r) for v, r in plain]
    assert (fast - torch.cat([v for v, _ in plain])).abs().max() < tolerance
    assert (fast - before).abs().max() > 0.1  # it went somewhere


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", list(ADVECTION))
@pytest.mark.parametrize("dt", [0.5, 9.0])  # half a cell; several, out of the domain at its edges
def test_advection_is_phiflows(name, dt):
    channel = Channel(12)
    velocity = flows(channel, 4, rough=0.5)
    with phiflow(torch.float64):
        grid = velocity_field(velocity, channel.velocity_grid())
        expected = velocity_array(SCHEMES[name](grid, grid, dt))
    assert (ADVECTION[name](velocity, dt, channel.cell) - expected).abs().max() < 1e-12


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "channel",
    [
        Channel(8),
        *(pytest.param(Channel(width), marks=pytest.mark.slow) for width in (13, 32, 64)),
        pytest.param(Channel(15, ()), marks=pytest.mark.slow),
        pytest.param(Channel(20, (Box((20, 60), (45, 90)),)), marks=pytest.mark.slow),
        Channel(20, (Cylinder((30, 40), 9), Cylinder((72, 55), 7.5), Box((20, 90), (45, 120)))),
    ],
    ids=lambda channel: f"{channel.width} wide, {len(channel.obstacles)} obstacles",
)
def test_diffusion_divergence_and_gradient_are_phiflows(channel):
    """On every boundary, and with obstacles, where PhiFlow differentiates as without."""
    for rows in (1, 3):
        velocity = flows(channel, rows, rough=1.0)
        pressure = flows(channel, rows, seed=1, rough=1.0)[:, 1]
        with phiflow(torch.float64):
            grid = velocity_field(velocity, channel.velocity_grid())
            lying = channel.pressure_grid().with_values(wrapped(pressure.transpose(1, 2)))
            expected = {
                "diffusion": velocity_array(diffuse.differential(grid, 1.0)),
                "divergence": field.divergence(grid).values.native("rows,y,x"),
                "gradient": velocity_array(
                    field.spatial_gradient(lying, grid.extrapolation, at=grid.sampled_at)
                ),
            }
        for name, values in expected.items():
            found = getattr(staggered, name)(pressure if name == "gradient" else velocity, channel.cell)
            # the first and last rows and columns are where the boundaries come in
            assert values[..., [0, -1], :].abs().max() > 0.01 and values[..., [1, -1]].abs().max() > 0.01
            assert (found - values).abs().max() < 1e-12 * values.abs().max()


def test_phiflow_runs_beside_the_step_in_its_own_precision():
    before, channel = math.get_precision(), Channel(19)  # which is made here for the first time
    WakeStep(channel)(flows(channel, 1), reynolds(1))
    assert math.get_precision() == before


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_no_divergence_is_left_in_the_fluid(dtype, tolerance):
    after = WakeStep(SMALL)(flows(SMALL, 2, dtype), reynolds(2, dtype))
    active, passable = (torch.from_numpy(a).to(dtype) for a in (SMALL.masks.active, SMALL.masks.passable))
    assert (divergence(after, SMALL.cell) * active).abs().max() < tolerance
    assert after[:, 0, :, 0].abs().max() == 0
    inside = (passable == 0) & (torch.from_numpy(SMALL.masks.fractions) == 0)
    assert inside.sum() > SMALL.height and after[:, inside].abs().max() == 0  # more than the wall's column


def test_rows_do_not_interact():
    step = WakeStep(SMALL)
    velocity, re = flows(SMALL, 9, torch.float32), reynolds(9, torch.float32)
    together = step(velocity, re)
    alone = torch.cat([step(velocity[i : i + 1], re[i : i + 1]) for i in range(9)])
    assert (together - alone).abs().max() < 2e-6
    assert (step(velocity.flip(0), re.flip(0)).flip(0) - together).abs().max() < 2e-6
    velocity[4, 1, 7, 7] = float("nan")
    marred = step(velocity, re)
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert marred[4].isnan().any()
    assert torch.equal(marred[others], together[others])


def test_uniform_flow_without_cylinder_stays():
    channel = Channel(9, obstacles=())
    velocity = start(channel, poke=0.0, dtype=torch.float64)[None]
    step = WakeStep(channel)
    after = velocity
    for _ in range(20):
        after = step(after, torch.tensor([300.0], dtype=torch.float64))
    assert (after - velocity).abs().max() < 1e-12


def test_the_cylinder_takes_momentum_out_of_the_stream():
    step = WakeStep(SMALL)
    velocity = start(SMALL, poke=0.0, dtype=torch.float64)[None]
    for _ in range(30):
        velocity = step(velocity, reynolds(1))
    behind = velocity[0, 1, 12, 8]
    beside = velocity[0, 1, 8, 3]
    assert behind < 0.5 and beside > 1.05
    # Nothing broke the symmetry: x is odd and y even across the axis.
    x, y = velocity[0]
    assert (y - y.flip(1)).abs().max() < 1e-10 and (x[:, 1:] + x[:, 1:].flip(1)).abs().max() < 1e-10


@pytest.mark.parametrize("advection", list(ADVECTION))
def test_gradient_is_the_central_difference(advection):
    step = WakeStep(Channel(12), advection=advection)
    velocity, re = step(flows(step.channel, 2, rough=0.1), reynolds(2)), reynolds(2)
    weight, direction = flows(step.channel, 2, seed=1), flows(step.channel, 2, seed=2)
    velocity = velocity.requires_grad_()

    def value(v: torch.Tensor) -> torch.Tensor:
        return (step(step(v, re), re) * weight).sum()

    (gradient,) = torch.autograd.grad(value(velocity), velocity)
    h = 1e-6
    with torch.no_grad():
        central = (value(velocity + h * direction) - value(velocity - h * direction)) / (2 * h)
    scale = gradient.norm() * direction.norm()
    assert central.abs() > 1e-3 * scale
    # Central differences of a smooth function err by h^2; one of the lookups' kinks within h would cost h.
    assert abs((gradient * direction).sum() - central) < 1e-7 * scale


def test_the_wall_column_is_not_read():
    step = WakeStep(SMALL)
    velocity, re = flows(SMALL, 2), reynolds(2)
    spoilt = velocity.clone()
    spoilt[:, 0, :, 0] = 7.0
    assert torch.equal(step(spoilt, re), step(velocity, re))


def test_what_is_made_and_called_in_inference_mode_spoils_no_later_gradient():
    channel = Channel(18)  # which no other test takes
    velocity, re = flows(channel, 2, torch.float32), reynolds(2, torch.float32)
    with torch.inference_mode():
        step = WakeStep(channel)
        expected = step(velocity.clone(), re)
    after = step(velocity.requires_grad_(), re)
    after.sum().backward()
    assert torch.equal(after, expected) and velocity.grad is not None and velocity.grad.isfinite().all()


def test_autocast_around_the_step_does_not_round_the_flow():
    step = WakeStep(SMALL)
    velocity, re = flows(SMALL, 2, torch.float32), reynolds(2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = step(velocity, re)
    assert torch.equal(found, step(velocity, re))


def test_threads_may_make_and_take_steps_at_once():
    channel = Channel(17)  # which no other test takes
    velocity, re = flows(channel, 2, torch.float32), reynolds(2, torch.float32)
    shared = WakeStep(channel)
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(shared, velocity, re) for _ in range(3)]
        jobs += [pool.submit(lambda: WakeStep(Channel(17))(velocity, re)) for _ in range(3)]
        results = [job.result() for job in jobs]
    assert all(torch.equal(result, results[0]) for result in results)


def test_pickle_gives_the_same_bits():
    step = WakeStep(SMALL, dt=0.5, advection="mac-cormack")
    velocity, re = flows(SMALL, 3, torch.float32), reynolds(3, torch.float32)
    expected = step(velocity, re)
    frozen = pickle.dumps(step)
    assert len(frozen) < 1000
    assert torch.equal(pickle.loads(frozen)(velocity, re), expected)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Channel(7), ConfigurationError, "at least 8 cells, got 7"),
        (lambda: Channel(16.0), ConfigurationError, "whole number"),  # type: ignore[arg-type]
        (lambda: WakeStep(16, dt=0.0), ConfigurationError, "> 0, got 0.0"),
        (lambda: WakeStep.check(1.0, "upwind", SMALL), ConfigurationError, "mac-cormack, got 'upwind'"),
        (
            lambda: WakeStep(32, dt=40.0),
            ConfigurationError,
            r"dt: expected a CFL number .* 10 at most, got 12\.8 with dt 40 .* 31\.25 or less",
        ),
        (
            lambda: WakeStep(16)(torch.ones(3, 2, 16, 32), torch.ones(3)),
            ShapeError,
            r"\(rows, 2, 32, 16\), got",
        ),
        (lambda: WakeStep(16)(torch.ones(3, 2, 32, 16), torch.ones(2)), ShapeError, "one per row"),
        (lambda: WakeStep(16)(torch.ones(3, 2, 32, 16).half(), torch.ones(3)), DtypeError, "got float16"),
    ],
)
def test_bad_settings_and_arrays_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.needs("gpu")
@pytest.mark.parametrize("advection", list(ADVECTION))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-12)])
def test_cuda_gives_the_same_flow(advection, dtype, tolerance):
    step = WakeStep(SMALL, advection=advection)
    velocity, re = flows(SMALL, 5, dtype), reynolds(5, dtype)
    moved = step(velocity.cuda(), re.cuda())
    assert moved.is_cuda and (moved.cpu() - step(velocity, re)).abs().max() < tolerance


@pytest.mark.needs("gpu")
def test_cuda_gives_the_same_gradient():
    step = WakeStep(SMALL)
    velocity, re, weight = flows(SMALL, 3), reynolds(3), flows(SMALL, 3, seed=1)
    gradients = []
    for device in ("cpu", "cuda"):
        v = velocity.to(device).requires_grad_()
        (gradient,) = torch.autograd.grad((step(v, re.to(device)) * weight.to(device)).sum(), v)
        gradients.append(gradient.cpu())
    assert (gradients[0] - gradients[1]).abs().max() < 1e-10 * gradients[0].abs().max()
