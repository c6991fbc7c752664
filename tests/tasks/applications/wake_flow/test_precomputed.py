"""PRE's corrections: interpolation, constraint and fit, each against a computation of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from scipy.linalg import null_space

from simulators.errors import ReferenceWarning
from simulators.wake_flow import Channel, WakeFlow, staggered
from tasks.applications.wake_flow import data, fine_flows, precomputed
from tasks.applications.wake_flow.fine_flows import interpolations, restricted
from tasks.applications.wake_flow.precomputed import CorrectionFit, divergence
from tasks.errors import SolverError
from tests.simulators.test_wake_reference import flip_a_bit_of_the_frames, truncate
from tests.tasks.applications.wake_flow.small import SMALL

WIDTH, HEIGHT = SMALL.width, 2 * SMALL.width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def flows(folder) -> data.WakeData:
    return data.load(SMALL, folder)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_interpolation_is_linear_between_faces_constant_beside_and_zero_on_wall_and_inflow(factor):
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, HEIGHT, WIDTH))
    u[:, 0] = 0
    centres = [np.arange(n) + 0.5 for n in (HEIGHT, WIDTH)]
    faces = [np.arange(n + 1.0) for n in (HEIGHT, WIDTH)]
    walled, fed = np.pad(u, ((0, 0), (0, 1))), np.pad(v, ((1, 0), (0, 0)))
    fine = [(np.arange(n * factor) + 0.5) / factor for n in (HEIGHT, WIDTH)]
    inside = [np.clip(place, 0.5, n - 0.5) for place, n in zip(fine, (HEIGHT, WIDTH), strict=True)]
    left = np.arange(WIDTH * factor) / factor
    upper = (np.arange(HEIGHT * factor) + 1) / factor
    expected = (
        RegularGridInterpolator((centres[0], faces[1]), walled)(np.stack(np.meshgrid(inside[0], left), -1)),
        RegularGridInterpolator((faces[0], centres[1]), fed)(np.stack(np.meshgrid(upper, inside[1]), -1)),
    )
    for matrix, field, wanted in zip(interpolations(WIDTH, factor), (u, v), expected, strict=True):
        assert np.allclose(matrix @ field.ravel(), wanted.T.ravel(), atol=1e-12)


def test_the_constraint_is_the_solver_s_divergence():
    torch.manual_seed(0)
    change = torch.randn(2, HEIGHT, WIDTH, dtype=torch.float64)
    change[0, :, 0] = 0
    stream = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    found = divergence(WIDTH) @ change.flatten().numpy()
    assert np.allclose(found, staggered.divergence(change + stream, 1.0).flatten().numpy())


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_fit_is_least_squares_over_all_fields_without_divergence(beta):
    """By brute force: a basis of those fields, and least squares on it."""
    rng = np.random.default_rng(1)
    channel, factor = Channel(WIDTH), 2
    cells = np.flatnonzero(channel.masks.active.ravel())
    free = np.flatnonzero(np.arange(2 * HEIGHT * WIDTH) % WIDTH + np.repeat([0, 1], HEIGHT * WIDTH))
    between = np.zeros((2 * HEIGHT * WIDTH * factor**2, 2 * HEIGHT * WIDTH))
    half = HEIGHT * WIDTH
    for part, matrix in enumerate(interpolations(WIDTH, factor)):
        between[part * half * factor**2 : (part + 1) * half * factor**2, part * half : (part + 1) * half] = (
            matrix.toarray()
        )
    fine = rng.normal(size=(3, len(between)))
    stepped, before = rng.normal(size=(2, 3, *channel.shape))
    basis = null_space(divergence(WIDTH).toarray()[cells][:, free])
    found = CorrectionFit(channel, factor, beta)((fine @ between).reshape(3, *channel.shape), stepped, before)
    for row in range(3):
        matrix = np.concatenate([between[:, free], np.sqrt(2 * beta) * np.eye(len(free))]) @ basis
        residual = fine[row] - between @ stepped[row].ravel()
        wanted = np.concatenate([residual, np.sqrt(2 * beta) * before[row].ravel()[free]])
        expected = np.zeros(2 * half)
        expected[free] = basis @ np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        assert np.allclose(found[row].ravel(), expected, atol=1e-9)


def test_what_the_fit_needs_of_a_fine_field_is_the_interpolation_transposed():
    torch.manual_seed(2)
    fine = torch.randn(2, 2, 2 * HEIGHT, 2 * WIDTH)
    found = restricted(fine, WIDTH)
    less = fine.double() - torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    across, along = interpolations(WIDTH, 2)
    for row in range(2):
        expected = [
            (matrix.toarray().T @ less[row, part].flatten().numpy()).reshape(HEIGHT, WIDTH)
            for part, matrix in enumerate((across, along))
        ]
        assert np.allclose(found[row].numpy(), expected, atol=1e-5)


def test_on_the_reference_s_own_grid_the_corrected_flow_is_the_reference(folder):
    """There W is one, and with beta = 0 the nearest field without divergence is the reference itself."""
    config = replace(SMALL, reference_width=SMALL.width, reference_dt=1.0, warm_up=8)
    flows = data.load(config, folder)
    solver = WakeFlow(config.width, dt=config.dt)
    pairs = precomputed.corrections(config, flows, solver, beta=0.0)
    held = precomputed.corrections(config, flows, solver, beta=1.0)
    flow_count = len(config.train_reynolds)
    wanted = flows.train.frames[:, 1:].transpose(0, 1).flatten(0, 1)
    error = (pairs.frames[:, 1] - wanted).abs().max()
    assert error < 1e-5
    assert (held.frames[:, 1] - wanted).abs().max() > 100 * error  # the regulariser holds it back
    assert pairs.rows == len(pairs.frames) == flow_count * (config.frames - 1)
    assert pairs.reynolds.tolist() == list(config.train_reynolds) * (config.frames - 1)
    stepped = solver(flows.train.frames[:, 0], flows.train.reynolds)
    assert torch.allclose(pairs.frames[:flow_count, 0], stepped, atol=1e-6)


def test_corrections_have_no_divergence_and_bring_the_fine_flow_nearer(flows):
    solver = WakeFlow(SMALL.width, dt=SMALL.dt)
    pairs = precomputed.corrections(SMALL, flows, solver, beta=0.0)
    correction = (pairs.frames[:, 1] - pairs.frames[:, 0]).double()
    stream = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    active = torch.from_numpy(solver.step.channel.masks.active)
    out = staggered.divergence(correction + stream, 1.0) * active
    assert out.abs().max() < 1e-4 * correction.abs().max()
    _, kept = fine_flows.load(SMALL, flows.path.parent)
    targets = kept.transpose(0, 1).flatten(0, 1).flatten(1).double().numpy()
    gram = CorrectionFit(solver.step.channel, SMALL.reference_width // SMALL.width, 0.0).gram

    def distance(side: int) -> np.ndarray:
        """|W x - r|^2 - |r|^2 of each pair."""
        x = (pairs.frames[:, side] - stream).flatten(1).double().numpy()
        return (x * (x @ gram.toarray() - 2 * targets)).sum(axis=1)

    assert (distance(1) < distance(0)).all()


def test_the_fine_flow_is_computed_once_for_a_set_of_flows(flows):
    solver, calls = WakeFlow(SMALL.width, failures="keep"), []

    def seen(done, steps):
        calls.append(steps)

    first = precomputed.corrections(SMALL, flows, solver, 1.0)
    again = precomputed.corrections(SMALL, flows, solver, 1.0, seen)
    assert calls == []
    assert torch.equal(first.frames, again.frames)
    other = replace(SMALL, train_reynolds=(200.0, 240.0), validation_reynolds=(120.0,))
    swapped = data.load(other, flows.path.parent)
    assert swapped.path == flows.path  # the same flows, of which others are trained on
    found = precomputed.corrections(other, swapped, solver, 1.0, seen)
    assert calls
    assert found.reynolds.unique().tolist() == [200.0, 240.0]


def read(config, folder, calls):
    return fine_flows.load(config, folder, lambda done, steps: calls.append(steps))


def test_fine_flows_are_read_as_they_were_written_and_kept_for_each_set_of_flows(tmp_path):
    calls = []
    first, targets = read(SMALL, tmp_path, calls)
    assert (
        calls
        and first.shape == (2, 2, HEIGHT, WIDTH)
        and targets.shape == (2, SMALL.frames - 1, *first.shape[1:])
    )
    calls.clear()
    again = read(SMALL, tmp_path, calls)
    assert not calls and torch.equal(again[0], first) and torch.equal(again[1], targets)
    read(replace(SMALL, train_reynolds=(120.0, 300.0)), tmp_path, calls)
    assert calls and len(list(tmp_path.iterdir())) == 2  # neither takes the other's place


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_the_frames])
def test_damaged_fine_flows_are_computed_again_with_a_warning(tmp_path, damage):
    calls = []
    whole = read(SMALL, tmp_path, calls)
    damage(fine_flows.path(SMALL, tmp_path))
    calls.clear()
    with pytest.warns(ReferenceWarning, match="computed again"):
        again = read(SMALL, tmp_path, calls)
    assert calls and torch.equal(again[1], whole[1])


class Losing(WakeFlow):
    """Loses the second row, from its third call on."""

    calls = 0

    def evaluate_rows(self, velocity, reynolds):
        out = super().evaluate_rows(velocity, reynolds)
        self.calls += 1
        if self.calls > 2:
            out[1:] = float("nan")
        return out


class Dead(WakeFlow):
    """Loses everything."""

    def evaluate_rows(self, velocity, reynolds):
        return super().evaluate_rows(velocity, reynolds) * float("nan")


def test_a_flow_that_the_solver_loses_has_no_pairs_from_there_on(flows):
    whole = precomputed.corrections(SMALL, flows, WakeFlow(SMALL.width, failures="keep"), 1.0)
    pairs = precomputed.corrections(SMALL, flows, Losing(SMALL.width, failures="keep"), 1.0)
    first = whole.reynolds == SMALL.train_reynolds[0]
    kept = first | (torch.arange(len(first)) < 4)  # two flows in two steps
    assert torch.allclose(pairs.frames, whole.frames[kept], atol=1e-5)
    assert pairs.failed == 1  # after that the row is dead, and skipped
    with pytest.raises(SolverError, match="all 2 failed in their first step"):
        precomputed.corrections(SMALL, flows, Dead(SMALL.width, failures="keep"), 1.0)


def test_the_solver_does_to_the_mirror_image_what_it_does_to_the_flow(flows):
    solver = WakeFlow(SMALL.width)
    frames, reynolds = flows.train.frames[:, 5], flows.train.reynolds
    found = solver(data.mirrored(frames), reynolds)
    assert torch.allclose(found, data.mirrored(solver(frames, reynolds)), atol=1e-5)
    assert not torch.allclose(found, solver(frames, reynolds), atol=1e-3)  # the flow has no symmetry itself
    assert torch.equal(data.mirrored(data.mirrored(frames)), frames)
