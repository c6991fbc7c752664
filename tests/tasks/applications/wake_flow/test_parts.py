"""The wake-flow task's settings, data, network and losses, each against a computation of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import tasks
import zo
from simulators.wake_flow import WakeFlow
from tasks.applications.wake_flow import (
    Corrector,
    NoCorrector,
    Scales,
    data,
    problem,
    rollout_errors,
    turned,
    vorticity,
    window_loss,
)
from tasks.applications.wake_flow.networks import plain
from tasks.errors import ConfigurationError, SolverError
from tests.tasks.applications.wake_flow.small import SMALL

PRESETS = problem.WakeFlow.presets
Config = problem.WakeFlow.Config

LARGE, SMALL_ENOUGH, ONE = "greater than 0", "less than or equal to 100000", "greater than or equal to 1"
BAD = [
    ("unroll", 0, ONE),
    ("learning_rate", float("inf"), "finite"),
    ("unroll", float("nan"), "integer"),
    ("train_reynolds", (), "at least 1 item"),
    ("train_reynolds", (120.0, float("nan")), SMALL_ENOUGH),
    ("train_reynolds", (float("inf"),), SMALL_ENOUGH),
    ("validation_reynolds", (0.0,), LARGE),
    ("test_reynolds", (-170.0,), LARGE),
    ("test_reynolds", (100001.0,), SMALL_ENOUGH),
    ("train_reynolds", (120.0, 240.0, 120.0), "in no other set, each once"),
    ("validation_reynolds", (200.0, 200.0), "in no other set, each once"),
    ("validation_reynolds", (200.0, 480.0), "in no other set, each once"),
    ("test_reynolds", (120.0,), "in no other set, each once"),
    ("test_reynolds", (200.0,), "in no other set, each once"),
    ("width", 7, "greater than or equal to 8"),
    ("width", float("nan"), "integer"),
    ("reference_width", 40, "a multiple of width 16, got 40"),
    ("reference_width", 0, ONE),
    ("dt", 0.0, LARGE),
    ("dt", float("inf"), "finite"),
    ("dt", float("nan"), "finite"),
    ("reference_dt", -0.5, LARGE),
    ("reference_dt", float("nan"), "finite"),
    ("reference_dt", 0.3, "a whole fraction of dt 1, got 0.3"),
    ("reference_dt", 2.0, "a whole fraction of dt 1"),
    ("reference_dt", 1e-310, "a whole fraction of dt 1"),
    ("warm_up", -1, "greater than or equal to 0"),
    ("warm_up", float("nan"), "integer"),
    ("frames", 200, "more than horizon 200"),
    ("frames", float("nan"), "integer"),
    ("threads", 100_000, "less than or equal to 1024"),
    ("dt", 26.0, "at most 25 on 16 cells, where the inflow crosses 4 cells in a step .here 4.16"),
    ("test_reynolds", (170.0, 16.0), "at least 16.4, below which explicit diffusion is unstable"),
    ("pre_steps", 0, ONE),
    ("estimator", "spsa", "'cge', 'sparse-cge' or 'rge'"),
    ("device", "mps", "'cpu' or 'cuda'"),
    ("extrapolated_reynolds", (80.0, float("nan")), SMALL_ENOUGH),
    ("extrapolated_reynolds", (80.0, 500.0), "outside the range trained on, 120 to 960"),
    ("extrapolated_reynolds", (80.0, 80.0), "in no other set, each once"),
    ("extrapolated_reynolds", (16.0,), "at least 16.4, below which explicit diffusion"),
    ("start", "PRE", "'NON' or 'random'"),
    ("methods", ("FO-SOL", "NON"), "NON before FO-SOL"),
    ("methods", ("NON", "TAN-SOL"), "NON large before TAN-SOL"),
    ("methods", ("NON large", "TAN-SOL small"), "NON before TAN-SOL small"),
    ("methods", ("NON@960",), "NON without a budget"),
    ("methods", ("NON", "FO-SOL@96e1"), "a number of solver rows behind FO-SOL@"),
    ("methods", ("NON", "FO-SOL@63"), "at least 64 rows behind the @, for two steps"),
    ("tuned", (("NON", 1, 0.1),), r"methods in the loop \(FO-SOL, "),
    ("tuned", (("FO-SOL", 0, 0.1),), ONE),
    ("unroll", 1, "at least 2 for TAN-SOL"),
    ("large_blocks", -1, "greater than or equal to 0"),
    ("large_blocks", 2, "one number of large_channels"),
]
METHODS = [
    ((), "at least one method"),
    (("SRC", "NON", "NON"), "every method once"),
    (("SRC", "NON", "FO SOL"), "Did you mean 'FO-SOL'"),
]
TOGETHER = [
    ({"test_reynolds": (80.0,), "extrapolated_reynolds": (80.0,)}, "in no other set, each once"),
    ({"reference_width": 1600}, "reference_dt: expected at most 0.25 on 1600 cells"),
    ({"width": 128, "reference_width": 128, "dt": 4.0, "reference_dt": 4.0}, "at most 3.12 on 128 cells"),
    ({"width": 64, "dt": 6.0, "reference_dt": 0.5}, "at least 197, below which explicit diffusion"),
]


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> data.WakeData:
    return data.load(SMALL, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def solver() -> WakeFlow:
    return WakeFlow(SMALL.width, dt=SMALL.dt, failures="keep")


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_settings_that_make_no_sense_are_refused_by_name(name, value, words):
    with pytest.raises(ConfigurationError, match=words) as raised:
        replace(Config(), **{name: value})
    assert name in str(raised.value)
    assert f"--{name.replace('_', '-')}" in str(raised.value)


@pytest.mark.parametrize(("methods", "words"), METHODS)
def test_methods_that_there_are_not_are_refused_before_a_folder_is_made(methods, words, tmp_path):
    with pytest.raises(ConfigurationError, match=words):
        tasks.run(problem.WakeFlow(methods=methods), runs=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "words"), TOGETHER)
def test_settings_that_do_not_fit_each_other_are_refused(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        replace(Config(), **settings)


def test_settings_that_the_solver_can_have_are_taken():
    assert replace(Config(), dt=0.3, reference_dt=0.1, warm_up=0).reference_dt == 0.1  # 0.3 / 0.1 < 3
    assert replace(Config(), reference_width=16, reference_dt=1.0).reference_width == 16
    assert replace(Config(), train_reynolds=(1e5,)).train_reynolds == (1e5,)


def test_the_demo_has_the_published_split_and_a_network_of_a_thousand_weights():
    demo = PRESETS["demo"]
    network = Corrector(plain(demo.channels), Scales(1.0, 1.0, 1.0))
    assert sum(p.numel() for p in network.parameters()) == 1010
    chosen = (demo.train_reynolds, demo.validation_reynolds, demo.test_reynolds)
    assert len({re for group in chosen for re in group}) == sum(map(len, chosen))


def test_the_corrector_scales_inputs_and_output_and_leaves_the_wall():
    torch.manual_seed(0)
    network = Corrector(plain((3,)), Scales(velocity=0.5, reynolds=200.0, correction=0.1))
    velocity, reynolds = torch.randn(4, 2, 16, 8), torch.tensor([100.0, 200.0, 300.0, 400.0])
    with torch.no_grad():
        found = network(velocity, reynolds)
        constant = (reynolds / 200)[:, None, None, None].expand(4, 1, 16, 8)
        expected = velocity + 0.1 * network.layers(torch.cat([velocity / 0.5, constant], dim=1))
    assert torch.equal(found[:, 0, :, 0], velocity[:, 0, :, 0])
    assert torch.allclose(found[:, 0, :, 1:], expected[:, 0, :, 1:])
    assert torch.allclose(found[:, 1], expected[:, 1])


@pytest.mark.slow
def test_windows_are_pieces_of_one_flow_and_hang_on_the_key_alone(flows):
    frames, reynolds = flows.train.windows(zo.estimators.Key(3, 7), 20, SMALL.unroll)
    torch.rand(5)
    again, _ = flows.train.windows(zo.estimators.Key(3, 7), 20, SMALL.unroll)
    other, _ = flows.train.windows(zo.estimators.Key(3, 8), 20, SMALL.unroll)
    assert torch.equal(frames, again)
    assert not torch.equal(frames, other)
    for window, re in zip(frames, reynolds, strict=True):
        flow = flows.train.frames[flows.train.reynolds.tolist().index(re)]
        starts = [t for t in range(len(flow) - SMALL.unroll) if torch.equal(flow[t], window[0])]
        assert any(torch.equal(flow[t : t + SMALL.unroll + 1], window) for t in starts)


def test_rollouts_start_evenly_spread_and_reach_the_last_frame(flows):
    frames, reynolds = flows.test.rollouts(2, SMALL.horizon)
    assert frames.shape == (4, SMALL.horizon + 1, 2, 16, 8)
    assert reynolds.tolist() == [170.0, 170.0, 340.0, 340.0]
    for flow in range(2):
        assert torch.equal(frames[2 * flow], flows.test.frames[flow, : SMALL.horizon + 1])
        assert torch.equal(frames[2 * flow + 1], flows.test.frames[flow, -SMALL.horizon - 1 :])


def test_pairs_are_the_solver_s_answer_beside_the_next_frame(flows, solver):
    pairs = data.pairs(flows.train, solver(*data.before(flows.train)))
    count = SMALL.frames - 1
    assert pairs.rows == len(pairs.frames) == 2 * count
    flow, frame = 1, 5
    expected = solver(flows.train.frames[flow, frame], flows.train.reynolds[flow])
    assert torch.allclose(pairs.frames[flow * count + frame, 0], expected, atol=1e-6)
    assert torch.equal(pairs.frames[flow * count + frame, 1], flows.train.frames[flow, frame + 1])
    scales = data.scales(flows.train, pairs)
    missed = (flows.train.frames[:, 1:].flatten(0, 1) - pairs.frames[:, 0]).numpy()
    assert scales.correction == pytest.approx(np.std(missed, ddof=1), rel=1e-5)


class Losing(WakeFlow):
    """Loses every third row."""

    def evaluate_rows(self, velocity, reynolds):
        out = super().evaluate_rows(velocity, reynolds)
        out[::3] = float("nan")
        return out


def test_pairs_that_the_solver_lost_are_left_out_and_counted(flows):
    whole = data.pairs(flows.train, WakeFlow(SMALL.width, failures="keep")(*data.before(flows.train)))
    pairs = data.pairs(flows.train, Losing(SMALL.width, failures="keep")(*data.before(flows.train)))
    kept = [pair for pair in range(len(whole.frames)) if pair % 3]
    assert (pairs.rows, pairs.failed) == (whole.rows, whole.rows - len(kept))
    assert torch.equal(pairs.frames, whole.frames[kept])
    assert torch.equal(pairs.reynolds, whole.reynolds[kept])


def test_a_solver_that_loses_everything_is_an_error_in_words(flows):
    class Dead(WakeFlow):
        def evaluate_rows(self, velocity, reynolds):
            return super().evaluate_rows(velocity, reynolds) * float("nan")

    with pytest.raises(SolverError, match="all 26 rows failed"):
        data.pairs(flows.train, Dead(SMALL.width, failures="keep")(*data.before(flows.train)))


def test_first_order_leaves_rows_out_that_its_solver_lost(flows):
    """As if they had not been in the batch: the gradient is that of the others."""
    torch.manual_seed(0)
    network = Corrector(plain((2,)), Scales(0.3, 100.0, 0.05))
    frames, reynolds = flows.train.windows(zo.estimators.Key(0, 0), 4, SMALL.unroll)
    step = WakeFlow(SMALL.width).step
    broken = frames.clone()
    broken[1, 0] = float("nan")
    gradient = tasks.methods.AutogradGradient(network, window_loss(step, 0.3), {})
    with pytest.warns(zo.errors.LostRowsWarning, match="in 1 of 4"):
        gradient.backward((broken, reynolds))
    found = torch.cat([p.grad.flatten() for p in network.parameters()])
    network.zero_grad()
    others = [0, 2, 3]
    window_loss(step, 0.3)(network, (frames[others], reynolds[others])).mean().backward()
    assert gradient.counts.lost == 1
    assert torch.allclose(found, torch.cat([p.grad.flatten() for p in network.parameters()]), rtol=1e-5)


def test_the_three_sets_share_no_flow(flows):
    sets = [flows.train.reynolds, flows.validation.reynolds, flows.test.reynolds]
    assert [s.tolist() for s in sets] == [[120.0, 240.0], [200.0], [170.0, 340.0]]


def test_extrapolated_flows_have_a_file_of_their_own_and_leave_the_others_theirs(flows):
    config = replace(SMALL, extrapolated_reynolds=(90.0, 400.0))
    found = data.load(config, flows.path.parent)
    assert found.path == flows.path and found.reused
    assert len(list(flows.path.parent.glob("*.h5"))) == 2
    assert torch.equal(found.test.frames, flows.test.frames)
    assert found.extrapolated is not None and flows.extrapolated is None
    assert found.evaluated.reynolds.tolist() == [170.0, 340.0, 90.0, 400.0]
    assert torch.equal(found.evaluated.frames[:2], flows.test.frames)
    assert torch.equal(found.evaluated.frames[2:], found.extrapolated.frames)
    assert flows.evaluated is flows.test


def test_window_loss_is_the_mean_square_over_steps(flows, solver):
    torch.manual_seed(1)
    network = Corrector(plain((2,)), Scales(0.3, 100.0, 0.05))
    batch = flows.train.windows(zo.estimators.Key(0, 0), 3, SMALL.unroll)
    frames, reynolds = batch
    with torch.no_grad():
        found = window_loss(solver, 0.3)(network, batch)
        for row in range(3):
            v, total = frames[row, :1], 0.0
            for step in range(SMALL.unroll):
                v = network(solver(v, reynolds[row : row + 1]), reynolds[row : row + 1])
                total += ((v - frames[row, step + 1]) / 0.3).square().mean().item() / SMALL.unroll
            assert found[row].item() == pytest.approx(total, rel=1e-5)


def test_zero_error_of_a_solver_that_is_the_reference(flows):
    """A solver that knows the answer leaves nothing to correct, at every step of every rollout."""
    answers = iter(flows.test.rollouts(2, SMALL.horizon)[0][:, 1:].unbind(dim=1))
    errors = rollout_errors(NoCorrector(), lambda v, re: next(answers), flows.test, 2, SMALL.horizon)
    assert errors.shape == (4, SMALL.horizon)
    assert (errors == 0).all()


def test_a_rollout_that_is_lost_stays_lost_and_leaves_the_others(flows, solver):
    def losing(velocity, reynolds):
        out = solver(velocity, reynolds)
        out[1] = float("nan")
        return out

    lost = rollout_errors(NoCorrector(), losing, flows.test, 2, SMALL.horizon)
    whole = rollout_errors(NoCorrector(), solver, flows.test, 2, SMALL.horizon)
    assert lost[1].isnan().all()
    others = [0, 2, 3]
    assert torch.allclose(lost[others], whole[others], atol=1e-6)


def test_vorticity_of_a_turning_body_is_twice_its_rate():
    rate, cell, height, width = 0.3, 2.5, 7, 5
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    across = -rate * (y + 0.5) * cell  # u = -rate y on left faces, at half heights
    along = rate * (x + 0.5) * cell  # v = rate x on upper faces, at half widths
    found = vorticity(np.stack([across, along]), cell)
    assert found.shape == (height - 1, width - 1)
    assert np.allclose(found, 2 * rate)


def test_a_stream_that_is_faster_on_top_of_the_picture_turns_clockwise():
    """Vorticity -dU/dY of what a viewer sees, X to the right and Y up, is negative there."""
    velocity = np.zeros((2, 8, 4))
    velocity[1] = turned(np.repeat([[3.0], [2.0], [1.0], [0.0]], 8, axis=1))  # rows of the picture, top first
    picture = turned(velocity[1])
    assert (np.diff(picture, axis=0) < 0).all()
    assert (turned(vorticity(velocity, 1.0)) == -1.0).all()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "evaluator",
    [pytest.param(zo.evaluators.Loop(), marks=pytest.mark.slow), zo.evaluators.Stacked()],
    ids=["loop", "stacked"],
)
@pytest.mark.parametrize(
    ("scheme", "dtype", "mu", "truncation"),
    [
        # Relative truncation error of the whole gradient, three times what was measured on 32 x 64 with
        # eight steps (forward 7.5e-3 at 1e-4 and proportional to mu; central 2.7e-4 at 1e-3 and to mu^2).
        pytest.param("forward", torch.float64, 1e-6, 3e-4, marks=pytest.mark.slow),
        ("central", torch.float64, 1e-5, 1e-7),
        ("forward", torch.float32, 1e-4, 2.5e-2),
        pytest.param("central", torch.float32, 1e-3, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_zo_through_the_box_is_autograd_through_the_step(flows, evaluator, scheme, dtype, mu, truncation):
    torch.manual_seed(0)
    solver = WakeFlow(SMALL.width)
    network = Corrector(plain((1,)), Scales(0.3, 100.0, 0.1)).to(dtype)
    frames, reynolds = flows.train.windows(zo.estimators.Key(0, 0), 2, 3)
    batch = frames.to(dtype), reynolds.to(dtype)
    estimator = zo.CGE(mu, central=scheme == "central")
    gradient = zo.LossGradient(network, window_loss(solver, 0.3), estimator, evaluator=evaluator)
    loss = gradient.backward(batch).item()
    found = torch.cat([p.grad.flatten() for p in network.parameters()]).double()
    network.zero_grad()
    window_loss(solver.step, 0.3)(network.double(), tuple(t.double() for t in batch)).mean().backward()
    truth = torch.cat([p.grad.flatten() for p in network.parameters()]).double()
    # Each of two losses is rounded to a few units in the last place, and their difference divided by mu.
    rounding = 2 * torch.finfo(dtype).eps * loss / mu * len(truth) ** 0.5
    assert (found - truth).norm() < truncation * truth.norm() + rounding
    assert rounding < 0.1 * truth.norm()  # or the bound would say nothing
    assert solver.ledger.rows_run >= (1 + gradient.next_queries()) * 2 * 3  # and those of the checks
