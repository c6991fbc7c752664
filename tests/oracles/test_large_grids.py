"""Large grids against small ones: patches and whole rows, maps of waves and projectors, blocks of rows."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.oracles.test_value_tangents import box_of, cosine, learn, pairs_at, shifted, true_vjp
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents.models.grid.grid import cells_of
from zo.tangents.models.grid.reach import measure
from zo.tangents.models.lessons import listening
from zo.tangents.models.maps.lattice import Lattice
from zo.tangents.models.maps.spectral_map import SpectralMap
from zo.tangents.models.maps.waves import Waves
from zo.tangents.models.passes import FlatAdam
from zo.tangents.models.row_window import RowWindow

CASE = ArraySpec("case", (), differentiable=False)
QUICK = {"first_steps": 2, "steps_per_step": 1, "output_map": False}
GRIDS = {
    "ring": ([("u", (2, 40))], True),
    "line": ([("u", (2, 40))], False),
    "torus": ([("u", (1, 19, 23))], True),
    "walls": ([("u", (2, 19, 23))], False),
    "channel": ([("u", (1, 19, 23))], (True, False)),
    "faces": ([("u", (1, 20, 22)), ("v", (1, 19, 23))], False),
    "cube": ([("u", (1, 13, 14, 15))], (False, True, True)),
}


def made(name: str, function) -> tuple[FromTorch, list[torch.Tensor]]:
    shapes, _ = GRIDS[name]
    specs = tuple(ArraySpec(key, shape) for key, shape in shapes)
    box = FromTorch(function, (*specs, CASE), specs)
    arrays = [weights(5, *spec.shape, seed=place) for place, spec in enumerate(specs)]
    return box, [*arrays, torch.linspace(0.5, 1.5, 5, dtype=torch.float64)]


def bent(*arrays: torch.Tensor):
    """Something without a meaning that depends on place, case and neighbours."""
    *fields, case = arrays
    shape = (-1, *[1] * (fields[0].ndim - 1))
    outputs = [u + case.reshape(shape) * torch.tanh(u * shifted(u, 1, 2)) + 0.5 for u in fields]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def random_network(tangent: zo.tangents.GridTangent) -> Any:
    """The network with all weights drawn, so that no path through it is zero, in float64."""
    network: Any = tangent._network
    generator = torch.Generator().manual_seed(4)
    for weight in network.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator).to(weight)
    return network.double()


# Patches


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("radius", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_what_a_patch_misses_is_what_the_whole_row_misses_there(name, radius, limits):
    """Patches that lie anywhere, across ends that meet and beside walls."""
    limits(patch_cells=30)
    box, arrays = made(name, bent)
    tangent = learner(zo.tangents.GridTangent, 4, periodic=GRIDS[name][1], reach=radius, **QUICK)
    pairs = pairs_at(box, *arrays)
    learn(tangent, pairs)
    assert tangent._form is not None and cells_of(tangent._form) > 30
    random_network(tangent)
    z, others, y = tangent._window.columns
    with torch.no_grad():
        whole = ((tangent.values(z, others) - y) / tangent._moments[3].scale()).abs()
        for step in range(6):
            missed = tangent.missed(torch.Generator().manual_seed(step)).abs()
            distances = (whole.flatten()[:, None] - missed).abs().min(dim=0).values
            assert distances.max() < 1e-9 * whole.max()


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", GRIDS)
def test_a_patch_as_large_as_the_grid_has_the_loss_of_a_row(name, limits):
    limits(patch_cells=30, patch_edges=dict.fromkeys((1, 2, 3), 1000))
    box, arrays = made(name, bent)
    tangent = learner(zo.tangents.GridTangent, 4, periodic=GRIDS[name][1], reach=2, **QUICK)
    learn(tangent, pairs_at(box, *arrays))
    network = random_network(tangent).requires_grad_(True)
    z, others, y = tangent._window.columns
    weight, drawn, adam = network.last.weight, set(), FlatAdam(network, 0.1)
    adam.begin()
    for step in range(8):
        loss = tangent.missed(torch.Generator().manual_seed(step)).square().mean()
        row = int(tangent._window.places(1, torch.Generator().manual_seed(step)))
        drawn.add(row)
        missed = (tangent.values(z, others) - y)[row] / tangent._moments[3].scale()
        direct = missed.square().mean()
        assert torch.allclose(loss, direct, rtol=1e-9)
        (grad,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            _, kept = network.passed(
                network.arranged(*tangent._standard(z[row : row + 1], others[row : row + 1]))
            )
            network.back(
                kept, network.arranged_cotangent(2 / missed.numel() * missed.detach()[None]), adam.slopes
            )
        assert torch.allclose(grad, adam.slopes["last.weight"], rtol=1e-7, atol=1e-12)
    assert len(drawn) > 2


def burgers(u: torch.Tensor) -> torch.Tensor:
    """Two explicit steps of a field that carries itself along both axes of a torus."""
    for _ in range(2):
        around = sum(u.roll(shift, axis) for shift in (1, -1) for axis in (2, 3)) - 4 * u
        u = u + 0.1 * around - 0.1 * u * (u - u.roll(1, 2)) - 0.1 * u * (u - u.roll(1, 3))
    return u


def smooth(count: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    x = weights(count, *shape, seed=seed)
    for _ in range(6):
        x = torch.stack([x.roll(shift, axis) for shift in (0, 1, -1) for axis in range(2, x.ndim)]).sum(0)
    return (x / x.std()).float()


@pytest.mark.slow
def test_a_grid_of_more_cells_than_a_lesson_has_learns_the_derivative_from_one_step_of_training():
    spec = ArraySpec("u", (1, 48, 48))
    box = box_of(burgers, spec)
    tangent = zo.tangents.AutoTangent(box)
    assert list(tangent.models) == ["grid", "stencil", "equation"]
    small = zo.tangents.GridTangent()
    learn(small, pairs_at(box, smooth(8, spec.shape, 0)))
    pairs, v = pairs_at(box, smooth(3, spec.shape, 9)), smooth(3, spec.shape, 5).flatten(1)
    assert cosine(small.at(pairs).pull(v), true_vjp(box, (smooth(3, spec.shape, 9),), v)) > 0.99
    assert small.measured["periodic"] == (True, True)


# Maps of waves


def torus(channels: int, *space: int) -> Lattice:
    return Lattice(((channels, *space),), space)


def meeting(lattice: Lattice) -> Waves:
    return Waves(lattice, (True,) * len(lattice.space))


def without_divergence(x: torch.Tensor) -> torch.Tensor:
    space = x.shape[2:]
    axes = [torch.fft.fftfreq(n, dtype=torch.float64) for n in space]
    waves = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    waves = waves / waves.square().sum(0).sqrt().clamp(min=1e-12)
    transformed = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)))
    transformed = transformed - waves * (waves * transformed).sum(1, keepdim=True)
    return torch.fft.ifftn(transformed, dim=tuple(range(2, x.ndim))).real


@pytest.mark.parametrize("space", [(9, 15), (5, 7, 9)])
def test_the_map_of_outputs_without_divergence_is_the_projector(space):
    """Values alone never show it: the model is right on all that was seen. Odd lengths: no Nyquist wave."""
    channels = len(space)
    lattice = torus(channels, *space)
    y = without_divergence(weights(12, channels, *space)).flatten(1)
    scale = torch.ones(y.shape[1], dtype=torch.float64)
    projector = SpectralMap(meeting(lattice))
    projector.fit(y, y, scale)
    x = weights(3, channels, *space, seed=7)
    moved = projector(x.flatten(1)) - projector(torch.zeros_like(x).flatten(1))
    assert torch.allclose(moved.reshape(x.shape), without_divergence(x), atol=1e-8)


def test_the_map_corrects_what_a_model_is_wrong_by_in_each_wave():
    """The model's values are too small and turned between the channels, the same in all cells."""
    lattice = torus(2, 8, 12)
    y = weights(40, 2, 8, 12)
    turn = torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=torch.float64)
    x = torch.einsum("rcij,cd->rdij", y, turn).flatten(1)
    fitted = SpectralMap(meeting(lattice))
    fitted.fit(x, y.flatten(1) + 3.0, torch.ones(192, dtype=torch.float64))
    assert (fitted(x) - y.flatten(1) - 3.0).square().mean() < 1e-6
    again = SpectralMap(meeting(lattice))
    again.load_state_dict(fitted.state_dict(), torch.device("cpu"))
    assert torch.equal(again(x), fitted(x))


def test_a_wave_that_was_not_seen_stays_as_it_is():
    lattice = torus(1, 16)
    phase = 2 * math.pi * torch.arange(16, dtype=torch.float64) / 16
    y = torch.cat([a * torch.cos(phase + b)[None] for a, b in weights(20, 2).tolist()])
    fitted = SpectralMap(meeting(lattice))
    fitted.fit(y, y, torch.ones(16, dtype=torch.float64))
    x = torch.cos(5 * phase)[None]
    assert torch.allclose(fitted(x) - fitted(torch.zeros_like(x)), x, atol=1e-8)


@pytest.mark.parametrize("space", [(9, 15), (5, 7, 9)])
def test_a_map_that_takes_part_of_what_it_is_given_says_so(space):
    channels = len(space)
    y = weights(12, channels, *space)
    for takes, seen in ((False, y), (True, without_divergence(y))):
        fitted, again = (SpectralMap(meeting(torus(channels, *space))) for _ in range(2))
        fitted.fit(seen.flatten(1), seen.flatten(1), torch.ones(seen[0].numel(), dtype=torch.float64))
        again.load_state_dict(fitted.state_dict(), torch.device("cpu"))
        assert fitted.takes is again.takes is takes


def advected(u: torch.Tensor) -> torch.Tensor:
    """A velocity carried by itself, and what has a divergence taken out of all cells."""
    change = sum(u[:, axis - 2, None] * (u.roll(1, axis) - u.roll(-1, axis)) for axis in (2, 3))
    return without_divergence(u + 0.2 * change)


@pytest.mark.slow
def test_behind_a_map_that_takes_part_a_large_grid_learns_through_it(limits):
    """Else the network learns the mean of what the map takes of each answer: then this is .88, not .97."""
    limits(patch_cells=200, row_cells=100)
    spec = ArraySpec("u", (2, 24, 24))
    box = box_of(advected, spec)
    tangent = learner(zo.tangents.GridTangent, 8, periodic=True, reach=1, first_steps=50)
    states = without_divergence(smooth(128, spec.shape, 0).double()).float()
    for part in states.split(8):
        learn(tangent, pairs_at(box, part))
    assert tangent.whole_rows
    z, v = states[:4].roll(5, 2), without_divergence(smooth(4, spec.shape, 2).double()).float().flatten(1)
    learned, exact = (
        without_divergence((pulled - v).double().reshape(4, *spec.shape))
        for pulled in (tangent.at(pairs_at(box, z)).pull(v), true_vjp(box, (z,), v))
    )
    assert cosine(learned, exact) > 0.95


def test_where_a_map_takes_nothing_a_large_grid_learns_on_patches(limits):
    limits(patch_cells=200, row_cells=100)
    spec = ArraySpec("u", (2, 24, 24))
    box = box_of(burgers, spec)
    tangent = learner(zo.tangents.GridTangent, 4, periodic=True, reach=1, first_steps=2, steps_per_step=1)
    for part in smooth(32, spec.shape, 0).split(8):
        learn(tangent, pairs_at(box, part))
    assert isinstance(vars(tangent)["_map"].fitted, SpectralMap)
    assert not tangent.whole_rows


# Memory


def test_a_window_grows_as_rows_come_and_has_a_limit_in_bytes(limits):
    limits(window_bytes=10 * 8 * 5)
    window, whole = RowWindow(1000), []
    for step in range(7):
        new = weights(3, 4, seed=step), weights(3, 1, seed=100 + step)
        whole.append(torch.cat(new, dim=1))
        window.add(*new)
        kept = torch.cat(window.columns, dim=1)
        last = torch.cat(whole)[-10:]
        assert sorted(map(tuple, kept.tolist())) == sorted(map(tuple, last.tolist()))
        assert window._ring[0].shape[0] <= min(10, 2 * 3 * (step + 1))
        other = RowWindow(1000)
        other.load_state_dict(window.state_dict(), torch.device("cpu"))
        more = weights(2, 4, seed=50), weights(2, 1, seed=51)
        other.add(*more)
        check = RowWindow(1000)
        check.load_state_dict(window.state_dict(), torch.device("cpu"))
        check.add(*more)
        assert all(map(torch.equal, other.columns, check.columns))
    large = RowWindow(1000)
    large.add(weights(3, 100))
    assert len(large.columns[0]) == 1  # one row at least


def test_boxes_that_learn_side_by_side_share_what_windows_may_take(limits):
    """Two boxes have half each; of the first, the network and the stencil have a quarter each."""
    limits(windows_bytes=4000)
    first, second = (
        box_of(lambda u: 0.9 * u.roll(1, 2), ArraySpec(name, shape))
        for name, shape in (("u", (1, 20)), ("v", (1, 5)))
    )
    network = nn.Linear(20, 20).double()

    def objective(network, batch):
        u = first(network(batch)[:, None])
        return second(u[..., :5]).square().sum(dim=(1, 2)) + u.square().sum(dim=(1, 2))

    made = zo.TangentGradient(network, objective, boxes=[first, second])
    for step in range(3):
        made.backward(weights(6, 20, seed=step))
    held = [
        [sum(column.nbytes for column in model._window.columns) for model in vars(tangent)["models"].values()]
        for tangent in made.tangents
    ]
    assert [len(sizes) for sizes in held] == [2, 1]
    row, short = 8 * (20 + 20), 8 * (5 + 5)
    assert held == [[1000 // row * row] * 2, [min(18, 2000 // short) * short]]


def test_a_state_keeps_the_limit_under_which_its_rows_lie():
    first = RowWindow(1000, 10 * 8 * 5)
    for step in range(7):
        first.add(weights(3, 5, seed=step))
    other = RowWindow(1000)
    other.load_state_dict(first.state_dict(), torch.device("cpu"))
    for window in (first, other):
        window.add(weights(3, 5, seed=8))
    assert len(other.columns[0]) == 10
    assert torch.equal(first.columns[0], other.columns[0])


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("kind", ["grid", "mlp"])
def test_a_first_lesson_says_how_far_it_is_and_a_second_nothing(kind):
    box = box_of(lambda u: u.roll(3, 2) * u, ArraySpec("u", (1, 24)))
    tangent = {
        "grid": lambda: learner(zo.tangents.GridTangent, 4, first_steps=120, output_map=False),
        "mlp": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=120, output_map=False),
    }[kind]()
    heard = []
    with listening(lambda *far: heard.append(far)):
        for seed in (0, 1):
            learn(tangent, pairs_at(box, weights(60, 1, 24, seed=seed)))
            assert heard == [(0, 120), (50, 120), (100, 120), (120, 120)]
    learn(tangent, pairs_at(box, weights(60, 1, 24)))


@pytest.mark.parametrize("kind", ["grid", "stencil", "mlp"])
def test_few_rows_at_a_time_give_what_all_together_give(kind, limits):
    box, arrays = made("ring", bent)
    tangent = {
        "grid": lambda: learner(zo.tangents.GridTangent, 4, **QUICK),
        "stencil": lambda: zo.tangents.StencilTangent(2),
        "mlp": lambda: learner(zo.tangents.MLPTangent, 8, first_steps=2),
    }[kind]()
    pairs = pairs_at(box, *arrays)
    learn(tangent, pairs)
    v, d = weights(*pairs.y.shape, seed=3), weights(*pairs.z.shape, seed=4)

    def asked():
        x = (pairs.z + 0.1).requires_grad_()
        response = tangent.at(pairs).to(x, pairs.others)
        (gradient,) = torch.autograd.grad(response, x, v)
        return (
            tangent.at(pairs).pull(v),
            tangent.at(pairs).push(d),
            tangent.at(pairs).values,
            response,
            gradient,
        )

    together = asked()
    limits(rows_at_once=2 * pairs.z.shape[1])
    for few, all_rows in zip(asked(), together, strict=True):
        assert torch.allclose(few, all_rows, rtol=1e-4, atol=1e-5)  # networks are in float32


# Which ends meet, and how far a change is carried


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("function", "radius", "ends"),
    [
        (lambda u: u + 0.3 * u.roll(2, 2) + 0.2 * u * u.roll(-1, 3), 2, (True, True)),
        (lambda u: u + 0.3 * shifted(u, 2, 2) + 0.2 * u * u.roll(-1, 3), 2, (False, True)),
        (lambda u: u + 0.5 * shifted(u, 1, 2) + 0.4 * shifted(u, -1, 3), 1, (False, False)),
    ],
)
def test_some_cells_of_large_rows_show_reach_and_ends(function, radius, ends, limits):
    x = weights(12, 1, 30, 34)
    change = function(x)
    assert measure(x, change) == (radius, ends)
    limits(reach_samples=900)
    assert measure(x, change) == (radius, ends)


# The whole


def test_training_on_a_large_grid_goes_on_to_the_bit(limits):
    limits(patch_cells=100, row_cells=100, rows_at_once=500, window_bytes=12 * 8 * 400)
    spec = ArraySpec("u", (1, 14, 15))

    def made_gradient():
        torch.manual_seed(0)
        network = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")
        box = FromTorch(burgers, (spec,), (spec,))

        def objective(network, batch):
            return box(box(network(batch))).square().flatten(1).mean(1)

        tangent = learner(zo.tangents.GridTangent, 4, first_steps=4, steps_per_step=1)
        gradient = zo.TangentGradient(network, objective, boxes=[box], tangent=tangent)
        return network, gradient, torch.optim.SGD(network.parameters(), 0.01)

    def run(network, gradient, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            gradient.backward(smooth(4, spec.shape, step))
            optimizer.step()

    network, gradient, optimizer = made_gradient()
    run(network, gradient, optimizer, range(4))
    assert isinstance(vars(gradient.tangents[0])["_map"].fitted, SpectralMap)
    state = copy.deepcopy(gradient.state_dict()), {k: v.clone() for k, v in network.state_dict().items()}
    run(network, gradient, optimizer, range(4, 7))
    again, resumed, other = made_gradient()
    resumed.load_state_dict(state[0])
    again.load_state_dict(state[1])
    run(again, resumed, other, range(4, 7))
    assert all(map(torch.equal, network.parameters(), again.parameters()))


def bounded(u: torch.Tensor, axis: int, ends: str) -> torch.Tensor:
    """A cell more at each end of an axis: the other end's, the same, or the same with another sign."""
    first, last = u.narrow(axis, 0, 1), u.narrow(axis, u.shape[axis] - 1, 1)
    below, above = {"meet": (last, first), "even": (first, last), "odd": (-first, -last)}[ends]
    return torch.cat([below, u, above], axis)


def neighbour(u: torch.Tensor, axis: int, ends: str, side: int) -> torch.Tensor:
    return bounded(u, axis, ends).narrow(axis, 1 + side, u.shape[axis])


def solenoidal(u: torch.Tensor, ends: tuple[str, ...]) -> torch.Tensor:
    """The least squares solution of div u = 0, of all cells at once, by a dense projector.

    The divergence is of what lies between neighbours, across ends that meet; through walls nothing flows.
    """
    projector = gradients_alone(tuple(u.shape[2:]), ends)
    flat = u.double().flatten(1)
    return (flat - flat @ projector).reshape(u.shape).to(u)


@cache
def gradients_alone(space: tuple[int, ...], ends: tuple[str, ...]) -> torch.Tensor:
    """The projector on gradients of potentials, of all cells, in float64."""
    unit = torch.eye(math.prod(space), dtype=torch.float64).reshape(-1, *space)
    differences = []
    for axis, kind in enumerate(ends):
        away = neighbour(unit, 1 + axis, "meet" if kind == "meet" else "even", 1) - unit
        differences.append(away.flatten(1).T)
    gradient = torch.cat(differences)  # of a potential, at the faces
    return gradient @ torch.linalg.pinv(gradient.T @ gradient, hermitian=True) @ gradient.T


def flow(u: torch.Tensor, ends: tuple[str, ...], projected: bool) -> torch.Tensor:
    """Two explicit steps of a velocity that carries itself, with its divergence taken out of all cells."""
    for _ in range(2):
        change = torch.zeros_like(u)
        for axis, kind in enumerate(ends):
            before, behind = (neighbour(u, 2 + axis, kind, side) for side in (-1, 1))
            change += 0.1 * (before - 2 * u + behind) - 0.2 * u[:, axis, None] * (behind - before) / 2
        u = u + change
        u = solenoidal(u, ends) if projected else u
    return u


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(
    ("space", "ends"),
    [
        ((20, 20), ("meet", "meet")),
        ((20, 20), ("meet", "even")),
        ((20, 20), ("odd", "meet")),
        ((20, 20), ("even", "even")),
        ((20, 20), ("odd", "odd")),
        pytest.param((9, 10, 11), ("meet", "meet", "meet"), marks=pytest.mark.slow),
        pytest.param((9, 10, 11), ("odd", "meet", "even"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_ends_show_in_few_rows_though_each_answer_depends_on_all_cells(space, ends, projected, seed):
    """Four rows of four calls, each from the answer to the one before, as a first step has them."""
    longer = [n if end == "meet" else 2 * n for n, end in zip(space, ends, strict=True)]
    u = smooth(4, (len(space), *longer), seed)[(..., *(slice(n) for n in space))]
    before, change = [], []
    for _ in range(4):
        answered = flow(u, ends, projected)
        before.append(u)
        change.append(answered - u)
        u = answered
    grid, added = (torch.cat(parts) for parts in (before, change))
    _, periodic = measure(grid / grid.std(), added / added.std())
    assert periodic == tuple(end == "meet" for end in ends)
