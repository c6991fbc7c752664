"""Environments of Gymnasium as black boxes, beside Gymnasium itself."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from blackbox import ArraySpec
from blackbox.adapters import Gymnasium, Session
from blackbox.conformance import check_black_box
from blackbox.errors import BoundsWarning, ConfigurationError, OutputError
from blackbox.extras import MissingExtraError

pytestmark = pytest.mark.needs("gymnasium")


@pytest.mark.parametrize("live", [2, 64])
def test_a_rollout_is_gymnasium_s_own(live):
    import gymnasium

    box, actions = Gymnasium("Pendulum-v1", live=live), torch.randn(3, 12, 1)
    assert box.steps == 200 and repr(box) == "Gymnasium('Pendulum-v1', steps=200)"
    observation, history = box.reset([1, 2, 3])
    own: list[Any] = [gymnasium.make("Pendulum-v1") for _ in range(3)]
    seen = [environment.reset(seed=seed + 1)[0] for seed, environment in enumerate(own)]
    for step in range(12):
        assert torch.equal(observation, torch.tensor(np.stack(seen)))
        observation, reward, terminated, truncated, history = box(observation, actions[:, step], history)
        for row, environment in enumerate(own):
            seen[row], paid, *_ = environment.step(actions[row, step].numpy())
            assert reward[row] == np.float32(paid)
        assert not terminated.any() and not truncated.any()
    assert (box.counts.replays == 0) == (live == 64)


def test_after_the_end_of_an_episode_nothing_changes():
    box = Gymnasium("CartPole-v1", steps=40, live=1)
    assert box.inputs[1].dtype == "int64" and box.inputs[1].shape == ()
    observation, history = box.reset([0, 1])
    ended, right = 0, torch.ones(2, dtype=torch.int64)
    for _ in range(40):
        before = observation
        observation, reward, terminated, _, history = box(observation, right, history)
        if ended == 2:
            assert terminated.all() and torch.equal(before, observation) and not reward.any()
        ended = int(terminated.sum())
    assert ended == 2


def test_snapshots_pickle_and_settings():
    box = Gymnasium(
        "Pendulum-v1",
        live=1,
        g=5.0,
        save=lambda environment: copy.deepcopy(environment.unwrapped.state),
        load=lambda environment, state: setattr(environment.unwrapped, "state", state.copy()),
    )
    plain = Gymnasium("Pendulum-v1", g=5.0)
    action = torch.full((2, 1), 0.3)
    rows, others = box.reset([0, 1]), plain.reset([0, 1])
    for _ in range(4):
        observation, *_, history = box(rows[0], action, rows[1])
        other, *_, past = plain(others[0], action, others[1])
        assert torch.equal(observation, other) and torch.equal(history, past)
        rows, others = (observation, history), (other, past)
    assert box.counts.replays == 0 and box.counts.restored > 0
    again = pickle.loads(pickle.dumps(plain))
    assert torch.equal(again(rows[0], action, rows[1])[0], plain(rows[0], action, rows[1])[0])
    assert not torch.equal(Gymnasium("Pendulum-v1").reset([0])[1], rows[1][:1])


def test_the_check_finds_no_fault():
    box = Gymnasium("Pendulum-v1", live=8)
    samples = box.samples(range(4), np.random.default_rng(0).uniform(-2, 2, (4, 8, 1)))
    report = check_black_box(box, samples, processes=False)
    assert not report.faults, report


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"environment": "Pendulum-v0"}, "expected one that gymnasium can make, got 'Pendulum-v0'"),
        ({"environment": "Blackjack-v1", "steps": 3}, "observation: expected a Box.*FlattenObservation"),
        ({"environment": "Blackjack-v1"}, "steps: expected a number"),
        ({"environment": "Pendulum-v1", "steps": 0}, "steps: expected .* 1.*, got 0"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(settings, words):
    with pytest.raises(ConfigurationError, match=words):
        Gymnasium(**settings)


@pytest.mark.needs()
def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"blackbox-coupling\[gymnasium\]"):
        Gymnasium("Pendulum-v1")


class Measured:
    """An environment whose second number is not measured, and whose action is a byte."""

    spec = None

    def __init__(self) -> None:
        from gymnasium import spaces

        self.observation_space, self.action_space = spaces.Box(-9, 9, (2,)), spaces.Box(-9, 9, (), np.int8)

    def reset(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(2), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ma.MaskedArray([float(action), 1e20], [False, True]), 1.0, bool(action > 3), False, {}

    def close(self) -> None:
        pass


def test_masks_and_actions_beyond_the_space_are_not_converted_in_silence():
    box = Gymnasium(Measured, steps=3, failures="keep")
    observation, history = box.reset(np.array([0]))
    after = box(observation, np.array([5]), history)
    assert np.isnan(after[0]).any()
    assert np.isnan(box(observation, np.array([300]), history)[0]).all()  # 44 in a byte
    assert "int8" in str(box.ledger.first_failure) or box.ledger.failures() == {"not_finite": 1, "raised": 1}


class Place:
    """A place that is pushed; its space says how far it goes."""

    spec, far, pushes = None, 1.0, True

    def __init__(self) -> None:
        from gymnasium import spaces

        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))

    def reset(self, seed: int | None = None) -> Any:
        self.place = np.random.default_rng(seed).uniform(-1, 1, 2)
        return self.place, {}

    def step(self, action: np.ndarray) -> Any:
        self.place = np.clip(self.place + 0.1 * np.clip(action, -1, 1), -1, 1)
        return self.far * self.place, 1.0, False, False, {}

    def close(self) -> None:
        pass


class Far(Place):
    far = 500.0


class Half(Place):
    """Above zero, with no highest number."""

    far = -9.0

    def __init__(self) -> None:
        super().__init__()
        from gymnasium import spaces

        self.observation_space = spaces.Box(0, np.inf, (2,))


class Counted(Place):
    """One of four whole numbers, which is a fifth one."""

    def __init__(self) -> None:
        super().__init__()
        from gymnasium import spaces

        self.observation_space = spaces.Discrete(4)

    def reset(self, seed: int | None = None) -> Any:
        return 3, {}

    def step(self, action: np.ndarray) -> Any:
        return 4, 1.0, False, False, {}


@pytest.mark.parametrize(
    ("kind", "push", "words"),
    [
        (Place, 1.0, []),
        (Place, 2.5, []),
        (Place, 40.0, ["action: expected numbers of its space", "up to 40", "tanh"]),
        (Far, 0.0, ["observation: expected numbers of its space", "observation_space"]),
        (Half, 0.0, ["observation: expected numbers of its space"]),
        (Counted, 0.0, ["observation: expected numbers of its space, Discrete(4)", "up to 4"]),
    ],
)
def test_numbers_far_beyond_their_space_are_said_once(kind, push, words):
    box = Gymnasium(kind, steps=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        observation, history = box.reset(np.arange(3))
        for _ in range(3):
            observation, *_, history = box(observation, np.full((3, 2), push), history)
    said = [str(warning.message) for warning in caught if issubclass(warning.category, BoundsWarning)]
    assert len(said) == bool(words) and all(word in said[0] for word in words), said


class OldStart(Place):
    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.zeros(2)


class OldReset(Place):
    def reset(self, seed: int | None = None) -> Any:
        return super().reset(seed)[0]


class OldStep(Place):
    def step(self, action: np.ndarray) -> Any:
        return np.zeros(2), 1.0, False, {}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OldStart, "expected reset to take a seed"),
        (OldReset, "expected reset to give observation, info, got ndarray"),
        (OldStep, "expected step to give observation, reward, terminated, truncated, info, got 4 values"),
    ],
)
def test_an_environment_of_gym_is_refused_in_a_sentence(kind, words):
    box = Gymnasium(kind, steps=4)
    with pytest.raises(OutputError, match=f"{words}.*In Gym, before Gymnasium"):
        observation, history = box.reset(np.arange(3))
        box(observation, np.zeros((3, 2)), history)


@pytest.mark.needs()
def test_a_session_that_is_given_an_environment_of_gym_names_the_adapter():
    specs = {"observation": ArraySpec("o", (2,)), "action": ArraySpec("a", (2,)), "steps": 3}
    reset = Session(lambda: Given((np.zeros(2), {})), **specs)
    step = Session(lambda: Given(np.zeros(2)), outputs=[ArraySpec("c", ())], **specs)
    with pytest.raises(OutputError, match=r"expected reset to give o, got 2 values.*adapters\.Gymnasium"):
        reset.reset(np.arange(2))
    observation, history = step.reset(np.arange(2))
    with pytest.raises(OutputError, match=r"expected step to give o, c, got 4 values.*adapters\.Gymnasium"):
        step(observation, np.zeros((2, 2)), history)


class Given:
    """Gives this at a reset, and what the Gym before Gymnasium gave at a step."""

    def __init__(self, first: Any) -> None:
        self.first = first

    def reset(self, seed: int) -> Any:
        return self.first

    def step(self, action: Any) -> Any:
        return np.zeros(2), 1.0, False, {}
