"""Other obstacles than the published cylinder: against plain PhiFlow, closed forms, and bad ones refused."""

import pickle

import numpy as np
import pytest
import torch
from phi.math import Solve

from benchmarks.gpu.plain_phiflow import plain_step
from blackbox.errors import ConfigurationError
from simulators.wake_flow import Box, Channel, Cylinder, WakeFlow, WakeStep
from simulators.wake_flow.geometry import CYLINDER, LENGTHS
from simulators.wake_flow.staggered import divergence, start

TWO = (Cylinder((32.0, 50.0), 11.0), Cylinder((70.0, 62.0), 9.0))
BOX = (Box((38.0, 41.0), (61.0, 77.0)),)
MIXED = (Cylinder((30.0, 60.0), 10.0), Box((60.0, 50.0), (80.0, 75.0)), Box((55.0, 120.0), (75.0, 140.0)))
OVERLAPPING = (CYLINDER, Box((45.0, 44.0), (75.0, 57.0)))
CASES = {"two cylinders": TWO, "box": BOX, "mixed": MIXED, "overlapping": OVERLAPPING}

each_case = pytest.mark.parametrize("obstacles", CASES.values(), ids=CASES.keys())
# Plain PhiFlow with torch: its autograd functions, and the sparse matrices of its conjugate gradients.
plain_phiflow = pytest.mark.filterwarnings(
    "ignore:.*TorchCustomFunction.* should not be instantiated:DeprecationWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
    "ignore:Sparse CSR tensor support is in beta state:UserWarning",
)


def noisy(channel: Channel, rows: int, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    velocity = 0.2 * torch.randn(rows, *channel.shape, generator=generator, dtype=torch.float64)
    velocity[:, 1] += 1
    return velocity.to(dtype)


def centres(channel: Channel) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = (np.arange(n) + 0.5 for n in (channel.height, channel.width))
    return np.meshgrid(columns * channel.cell, rows * channel.cell)


def inside(obstacles, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = np.zeros(x.shape, bool)
    for obstacle in obstacles:
        if isinstance(obstacle, Cylinder):
            found |= (x - obstacle.centre[0]) ** 2 + (y - obstacle.centre[1]) ** 2 <= obstacle.radius**2
        else:
            (left, below), (right, above) = obstacle.lower, obstacle.upper
            found |= (left <= x) & (x <= right) & (below <= y) & (y <= above)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("obstacles", "dtype", "steps"),
    [
        pytest.param(MIXED, torch.float64, 2, id="mixed, float64", marks=pytest.mark.slow),
        pytest.param(OVERLAPPING, torch.float64, 2, id="overlapping, float64"),
        pytest.param(TWO, torch.float32, 5, id="two cylinders, float32", marks=pytest.mark.slow),
        pytest.param(BOX, torch.float32, 5, id="box, float32", marks=pytest.mark.slow),
        pytest.param(TWO, torch.float64, 5, id="two cylinders, float64", marks=pytest.mark.slow),
        pytest.param(MIXED, torch.float64, 5, id="mixed, float64, five", marks=pytest.mark.slow),
        pytest.param(OVERLAPPING, torch.float64, 5, id="overlapping, float64, five", marks=pytest.mark.slow),
    ],
)
@plain_phiflow
def test_some_steps_equal_plain_phiflow(obstacles, dtype, steps):
    # The tolerances of the published cylinder's test, for the same reasons.
    solve, tolerance = (
        (Solve("CG", 1e-5, 0), 2e-5) if dtype == torch.float32 else (Solve("CG", 1e-12, 0), 1e-7)
    )
    channel = Channel(14, obstacles)
    re = torch.tensor([150.0, 600.0], dtype=dtype)
    step = WakeStep(channel)
    before = fast = plain = step(noisy(channel, 2, dtype), re)
    for _ in range(steps):
        fast, plain = step(fast, re), plain_step(plain, re, channel, solve=solve)
    assert (fast - plain).abs().max() < tolerance
    assert (fast - before).abs().max() > 0.1  # it went somewhere


@pytest.mark.quick_cases(1)
@each_case
def test_cells_are_solid_where_their_centre_is_inside(obstacles):
    channel = Channel(33, obstacles)
    assert np.array_equal(channel.masks.active == 0, inside(obstacles, *centres(channel)))


@pytest.mark.quick_cases(2)
@each_case
def test_soft_edges_have_the_obstacles_area(obstacles):
    """Summed over all faces, what is taken from the velocity is the area, to half a cell along the edges."""
    channel = Channel(64, obstacles)
    x, y = np.meshgrid(*(np.linspace(0, length, 2001) for length in LENGTHS))
    area = inside(obstacles, x, y).mean() * LENGTHS[0] * LENGTHS[1]
    perimeter = sum(2 * np.subtract(o.upper, o.lower).sum() for o in obstacles)
    for component in channel.masks.fractions[:, :, 1:]:
        assert abs((1 - component).sum() * channel.cell**2 - area) < perimeter * channel.cell / 2


@pytest.mark.quick_cases(2)
@each_case
def test_mass_is_conserved(obstacles):
    """No divergence in any cell of fluid; what flows out beside what flows in went through the bodies' edges.

    PhiFlow's soft edges let some through, where a face at the edge is covered in part: here less than 3 % of
    the stream, which each body gives off on one side as it takes it in on the other.
    """
    channel = Channel(20, obstacles)
    step, re = WakeStep(channel), torch.tensor([200.0, 700.0], dtype=torch.float64)
    velocity = noisy(channel, 2)
    for _ in range(20):
        velocity = step(velocity, re)
    active = torch.from_numpy(channel.masks.active)
    assert (divergence(velocity, channel.cell) * active).abs().max() < 1e-12
    outflow = velocity[:, 1, -1].sum(-1) * channel.cell
    through = (divergence(velocity, channel.cell) * (1 - active)).sum((1, 2)) * channel.cell**2
    assert (outflow - LENGTHS[0] - through).abs().max() < 1e-10
    assert through.abs().max() < 0.03 * LENGTHS[0]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("advection", ["semi-lagrangian", "mac-cormack"])
def test_uniform_flow_without_obstacle_stays_uniform_to_rounding(advection):
    box = WakeFlow(12, steps=50, advection=advection, obstacles=())
    uniform = start(box.step.channel, poke=0.0)[None]
    assert (box(uniform, torch.tensor([400.0])) - uniform).abs().max() < 5e-6
    exact = uniform.double()
    assert (box(exact, torch.tensor([400.0]).double()) - exact).abs().max() < 1e-13


def test_a_symmetric_pair_keeps_the_symmetry_and_speeds_up_the_gap():
    pair = (Cylinder((25.0, 50.0), 9.0), Cylinder((75.0, 50.0), 9.0))
    step = WakeStep(Channel(32, pair))
    velocity = start(step.channel, poke=0.0, dtype=torch.float64)[None]
    for _ in range(30):
        velocity = step(velocity, torch.tensor([300.0], dtype=torch.float64))
    x, y = velocity[0]
    assert (y - y.flip(1)).abs().max() < 1e-10 and (x[:, 1:] + x[:, 1:].flip(1)).abs().max() < 1e-10
    # Through the gaps beside both cylinders passes what the whole width takes in.
    assert y[16, 16] > 1.2 and y[20, 8] < 0.3


def test_one_cylinder_at_the_published_place_is_the_default():
    velocity, re = noisy(Channel(16), 2, torch.float32), torch.tensor([200.0, 700.0])
    own = WakeFlow(16, steps=3, obstacles=[Cylinder((50, 50), 10)])
    assert torch.equal(own(velocity, re), WakeFlow(16, steps=3)(velocity, re))
    assert repr(own) == repr(WakeFlow(16, steps=3))


def test_pickle_and_repr_keep_the_obstacles():
    box = WakeFlow(16, obstacles=MIXED)
    velocity, re = noisy(box.step.channel, 2, torch.float32), torch.tensor([200.0, 700.0])
    frozen = pickle.dumps(box)
    assert len(frozen) < 1500
    assert torch.equal(pickle.loads(frozen)(velocity, re), box(velocity, re))
    assert eval(repr(box), {"WakeFlow": WakeFlow, "Cylinder": Cylinder, "Box": Box}).step.channel == Channel(
        16, MIXED
    )


GRID = 20  # cells of 5
RING = (
    Box((20.0, 40.0), (80.0, 50.0)),
    Box((20.0, 80.0), (80.0, 90.0)),
    Box((20.0, 40.0), (30.0, 90.0)),
    Box((70.0, 40.0), (80.0, 90.0)),
)


@pytest.mark.parametrize(
    ("obstacles", "words"),
    [
        (
            (Cylinder((95, 50), 10),),
            r"\[0\]: expected an obstacle inside the domain .* reaches from",
        ),
        ((CYLINDER, Box((40, 190), (60, 210))), r"\[1\]: expected an obstacle inside"),
        ((Cylinder((500, 50), 10),), "inside the domain from .0, 0. to .100, 200."),
        ((Box((0, 50), (20, 70)),), r"a cell \(5\) or more .* touches it on this grid"),
        ((Cylinder((50, 186), 10),), "touches"),
        ((Cylinder((50, 13), 10),), "touches"),
        (
            (CYLINDER, Cylinder((50, 100), 3)),
            r"\[1\]: expected 1.5 cells per diameter or more, got 1\.2",
        ),
        (
            (Box((40, 40), (80, 45)),),
            r"1.5 cells across the shorter side .* got 1: .* 30 cells or more",
        ),
        (("cylinder",), r"\[0\]: expected a Cylinder or a Box .* got 'cylinder'"),
        (CYLINDER, "expected a sequence of Cylinder and Box, got Cylinder"),
        ("box", "expected a sequence"),
    ],
)
def test_obstacles_that_the_grid_cannot_hold_are_named(obstacles, words):
    with pytest.raises(ConfigurationError, match=f"Channel, obstacles.*{words}"):
        Channel(GRID, obstacles)


def test_the_width_that_the_message_asks_for_is_enough():
    small = Cylinder((50, 100), 3)
    with pytest.raises(ConfigurationError, match="Take a grid of 25 cells"):
        Channel(24, (small,))
    solid = Channel(25, (small,)).masks.active == 0
    assert solid.sum() >= 1


@pytest.mark.slow
def test_fluid_that_is_shut_in_is_refused_before_any_step():
    with pytest.raises(ConfigurationError, match=r"flow to the outlet from everywhere, got 48 cells shut in"):
        WakeFlow(GRID, obstacles=RING)
    WakeFlow(GRID, obstacles=RING[:3])  # a cup is open


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cylinder((50, 50), 0), "radius: expected a length above 0, got 0"),
        (lambda: Cylinder((50, 50), float("inf")), "radius"),
        (lambda: Cylinder((50, 10**400), 5), "centre: expected two finite numbers"),
        (lambda: Cylinder((50, float("nan")), 5), "centre: expected two finite numbers"),
        (lambda: Box((50,), (60, 60)), "Box, lower: expected two finite numbers"),  # type: ignore[arg-type]
        (lambda: Box((50, 50), (60, 50)), "Box, upper: expected a corner above lower"),
    ],
)
def test_shapes_that_are_none_are_named(make, words):
    with pytest.raises(ConfigurationError, match=words):
        make()
