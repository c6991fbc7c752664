"""The evaluation of a seed's methods: what it measures, what it says of rollouts that blew up, its files."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from simulators.wake_flow import Channel, WakeFlow
from tasks.applications.wake_flow import (
    Corrector,
    Gauges,
    NoCorrector,
    Scales,
    data,
    evaluation,
    kinetic_energy,
    rollout_errors,
    stability,
    trajectories,
)
from tasks.applications.wake_flow.evaluation import SERIES, TRACK, Yardstick
from tasks.applications.wake_flow.networks import plain
from tests.tasks.applications.wake_flow.small import SMALL

HELD_OUT, OUTSIDE = [0, 1], [2, 3]  # rollouts at Re 170 and 340, where training is from 120 to 240


@pytest.fixture(scope="module")
def flows(tmp_path_factory) -> data.WakeData:
    return data.load(SMALL, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def solver() -> WakeFlow:
    return WakeFlow(SMALL.width, dt=SMALL.dt, failures="keep")


@pytest.fixture(scope="module")
def network() -> Corrector:
    torch.manual_seed(0)
    return Corrector(plain((2,)), Scales(0.3, 100.0, 0.05))


@pytest.fixture(scope="module")
def found(flows, solver, network) -> dict[str, np.ndarray]:
    return Yardstick(SMALL, flows).measured(network, solver)


@pytest.fixture(scope="module")
def by_hand(flows, solver, network) -> torch.Tensor:
    """Each rollout alone, `(rollouts, steps + 1, 2, height, width)`, to the horizon."""
    rows = []
    with torch.no_grad():
        for flow in range(2):
            for first in (0, SMALL.frames - 1 - SMALL.horizon):
                re = flows.test.reynolds[flow : flow + 1]
                velocity = [flows.test.frames[flow, first]]
                for _ in range(SMALL.horizon):
                    velocity.append(network(solver(velocity[-1][None], re), re)[0])
                rows.append(torch.stack(velocity))
    return torch.stack(rows)


@pytest.mark.slow
def test_methods_are_compared_by_the_rollouts_within_the_range_trained_on(found, flows, solver, network):
    expected = rollout_errors(network, solver, flows.test, SMALL.test_starts, SMALL.horizon).numpy()
    assert found["reynolds"].tolist() == [170, 170, 340, 340]
    assert found["extrapolated"].tolist() == [False, False, True, True]
    assert np.allclose(found["error"], expected, atol=1e-6)
    assert evaluation.figures(found)["MAE"] == pytest.approx(expected[HELD_OUT].mean(), rel=1e-5)
    assert evaluation.shown_reynolds(evaluation.tracks({"NON": found})) == 170


def test_where_all_is_extrapolated_all_counts():
    assert evaluation.held_out(np.array([True, True])).tolist() == [True, True]
    assert evaluation.held_out(np.array([True, False])).tolist() == [False, True]


def test_the_solver_alone_is_always_there_to_compare_with(found, flows, solver):
    expected = rollout_errors(NoCorrector(), solver, flows.test, SMALL.test_starts, SMALL.horizon)
    assert np.allclose(found["SRC error"], expected, atol=1e-6)
    alone = Yardstick(SMALL, flows).measured(NoCorrector(), solver)
    assert evaluation.figures(alone)["stable steps"] == SMALL.horizon


def test_every_series_is_that_of_rollouts_by_hand(found, flows, by_hand):
    gauges = Gauges(Channel(SMALL.width))
    frames, _ = flows.test.rollouts(SMALL.test_starts, SMALL.horizon)
    own = by_hand[:, 1 : SMALL.horizon + 1]
    difference = own - frames[:, 1:]
    for row in range(4):
        mean, largest = gauges.divergences(own[row])
        assert np.allclose(found["divergence_mean"][row], mean, atol=1e-5)
        assert np.allclose(found["divergence_max"][row], largest, atol=1e-5)
        assert np.allclose(found["energy"][row], kinetic_energy(own[row]), atol=1e-5)
        assert np.allclose(found["wake_error"][row], gauges.wake_error(difference[row]), atol=1e-5)
        reynolds = torch.full((SMALL.horizon,), found["reynolds"][row])
        drag, lift = gauges.forces(by_hand[row, : SMALL.horizon], own[row], reynolds)
        assert np.allclose(found["drag"][row], drag, atol=1e-3)  # of 2 and more; differences over dt
        assert np.allclose(found["lift"][row], lift, atol=1e-3)
    shown = HELD_OUT[1]
    assert np.allclose(found["moving"], by_hand[shown, found["times"]], atol=1e-5)
    assert found["error_map"].mean() == pytest.approx(found["error"][HELD_OUT].mean(), rel=1e-5)
    expected = difference[HELD_OUT].abs().mean(dim=(0, 1, 2))
    assert np.allclose(found["error_map"], expected, atol=1e-5)


def test_drag_is_that_of_a_cylinder_and_its_error_is_against_the_reference_of_the_step(found):
    reference, own = found["reference drag"], found["drag"]
    assert (reference[:, 1:] > 0.5).all() and (reference < 10).all()
    figures = evaluation.figures(found)
    assert next(iter(figures)) == "MAE"  # the table's
    error = np.abs(own - reference)[HELD_OUT].mean()
    assert figures["error of the drag coefficient"] == pytest.approx(error) and error > 0
    assert figures["mean drag coefficient"] == pytest.approx(own[HELD_OUT].mean())
    lift = found["lift"][HELD_OUT]
    assert figures["rms lift coefficient"] == pytest.approx(np.sqrt((lift**2).mean()))
    assert figures["MAE extrapolated"] == pytest.approx(found["error"][OUTSIDE].mean())


def test_further_flows_are_evaluated_and_in_no_mean(found, flows, solver, network):
    config = replace(SMALL, extrapolated_reynolds=(90.0,))
    more = Yardstick(config, data.load(config, flows.path.parent)).measured(network, solver)
    assert more["extrapolated"].tolist() == [False] * 2 + [True] * 4
    assert np.allclose(more["error"][HELD_OUT], found["error"][HELD_OUT], atol=1e-6)
    assert np.allclose(more["moving"], found["moving"], atol=1e-6)  # the same flow is shown
    before, now = (evaluation.figures(each) for each in (found, more))
    beyond = before.pop("MAE extrapolated"), now.pop("MAE extrapolated")
    assert now == pytest.approx(before, rel=1e-4) and beyond[0] != beyond[1]


def test_where_all_of_the_test_is_outside_it_counts_and_what_is_further_does_not(flows, solver):
    config = replace(SMALL, train_reynolds=(100.0, 110.0), extrapolated_reynolds=(90.0,))
    some = replace(data.load(replace(SMALL, extrapolated_reynolds=(90.0,)), flows.path.parent))
    outside = Yardstick(config, some).measured(NoCorrector(), solver)
    assert outside["extrapolated"].tolist() == [False] * 4 + [True] * 2


def test_one_start_is_enough(flows, solver, network):
    config = replace(SMALL, test_starts=1)
    assert Yardstick(config, flows).measured(network, solver)["error"].shape == (2, SMALL.horizon)


class Breaking(WakeFlow):
    """Spoils a rollout: answer number `call` (from 1), row `row`, is `factor` times what it should be."""

    def __init__(self, call, row, factor):
        super().__init__(SMALL.width, dt=SMALL.dt, failures="keep")
        self.spoilt, self.row, self.factor, self.calls = call, row, factor, 0

    def __call__(self, velocity, reynolds):
        out = super().__call__(velocity, reynolds)
        self.calls += 1
        if self.calls == self.spoilt:
            out[self.row] *= self.factor
        return out


SPOILED = [  # (call, row of it, factor), what is found, whether a held-out rollout is lost
    ((3, 1, float("nan")), [("SRC", 170.0, 1, 3)], True),
    ((3, 1, 1e3), [("SRC", 170.0, 1, 3)], True),  # finite, and no flow
    ((4, 2, float("inf")), [("SRC", 340.0, 2, 4)], False),
]


@pytest.mark.parametrize(("spoil", "lost", "judged"), SPOILED)
def test_a_rollout_that_blew_up_is_named_and_in_no_mean(flows, spoil, lost, judged):
    found = Yardstick(SMALL, flows).measured(NoCorrector(), Breaking(*spoil))
    assert evaluation.lost(evaluation.tracks({"SRC": found})) == lost
    ((_, _, row, step),) = lost
    gone = np.zeros((4, SMALL.horizon), bool)
    gone[row, step - 1 :] = True
    for name in SERIES:
        assert np.array_equal(np.isnan(found[name]), gone)
    assert np.isnan(found["error_map"]).all() == judged
    figures = evaluation.figures(found)
    assert (figures["MAE in the wake"] is None) == (figures["MAE"] is None) == judged
    assert figures["rollouts that blew up"] == judged
    assert stability(found["error"], found["SRC error"])[row] == step - 1


def test_tracks_are_the_reference_the_solver_alone_and_methods_in_their_order(found):
    assert list(evaluation.tracks({"NON": found, "A": found})) == ["reference", "SRC", "NON", "A"]
    assert list(evaluation.tracks({"NON": found, "SRC": found})) == ["reference", "NON", "SRC"]
    tracks = evaluation.tracks({"NON": found})
    for name in TRACK:
        assert np.array_equal(tracks["SRC"][name], found[f"SRC {name}"])
        assert np.array_equal(tracks["reference"][name], found[f"reference {name}"])


def test_an_evaluation_is_written_as_hdf5_by_method_and_series(found, tmp_path):
    tracks = evaluation.tracks({"NON": found})
    evaluation.write(tracks, 0.5, tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5") as file:
        assert list(file.attrs["methods"]) == ["reference", "SRC", "NON"]  # HDF5 sorts by the alphabet
        for method, track in tracks.items():
            for name in TRACK:
                assert np.array_equal(file[f"tracks/{method}/{name}"], track[name])
        for name in ("times", "reynolds", "extrapolated"):
            assert np.array_equal(file[name], found[name])
        assert (file.attrs["shown_reynolds"], file.attrs["dt"]) == (170, 0.5)


def test_trajectories_hold_every_velocity_of_every_rollout(flows, solver, network, by_hand, tmp_path):
    path = trajectories.write(tmp_path / "t.h5", SMALL, flows, solver, {"NON": network})
    frames, _ = flows.test.rollouts(SMALL.test_starts, SMALL.horizon)
    with h5py.File(path) as file:
        assert sorted(file["velocity"]) == ["NON", "reference"]
        assert np.array_equal(file["velocity/reference"], frames)
        assert np.allclose(file["velocity/NON"], by_hand[:, : SMALL.horizon + 1], atol=1e-5)
        assert np.asarray(file["reynolds"]).tolist() == [170, 170, 340, 340]
        assert np.asarray(file["time"]).tolist() == [SMALL.dt * step for step in range(SMALL.horizon + 1)]
        named = {name: np.asarray(value).tolist() for name, value in file.attrs.items()}
    assert named == {
        "format": 1, "dt": 1.0, "cell": 12.5, "lengths": [100, 200], "centre": [50, 50], "diameter": 20,
    }  # fmt: skip


def test_trajectories_that_are_not_complete_leave_no_file(flows, tmp_path):
    def broken(velocity, reynolds):
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="power"):
        trajectories.write(tmp_path / "t.h5", SMALL, flows, broken, {"NON": NoCorrector()})
    assert list(tmp_path.iterdir()) == []
