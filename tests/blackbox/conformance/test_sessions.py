"""`check_black_box` of simulators that are reset and stepped: what a reset or a snapshot forgets."""

from __future__ import annotations

import numpy as np
import pytest

from blackbox import ArraySpec
from blackbox.adapters import Session
from blackbox.conformance import check_black_box
from blackbox.wrappers import Retrying


class Plant:
    """A mass with an actuator whose force follows slowly."""

    def reset(self, seed):
        self.place, self.speed = np.random.default_rng(seed).normal(size=2)
        self.force = 0.0
        return np.array([self.place, self.speed])

    def step(self, action):
        self.force += 0.2 * (action[0] - self.force)
        self.speed += 0.1 * (self.force - self.place)
        self.place += 0.1 * self.speed
        return np.array([self.place, self.speed])


class Forgetting(Plant):
    """Whose reset leaves the actuator where it was."""

    def reset(self, seed):
        force = getattr(self, "force", 0.0)
        super().reset(seed)
        self.force = force
        return np.array([self.place, self.speed])


class Random(Plant):
    """Whose reset does not seed all that is drawn."""

    def step(self, action):
        return super().step(action + 1e-6 * np.random.default_rng().normal())


def save(plant):
    return plant.place, plant.speed, plant.force


def load(plant, state):
    plant.place, plant.speed, plant.force = state


def save_places(plant):
    return plant.place, plant.speed


def load_places(plant, state):
    plant.place, plant.speed = state


def box_of(kind, **settings):
    return Session(
        kind,
        observation=ArraySpec("seen", (2,)),
        action=ArraySpec("action", (1,)),
        steps=12,
        **settings,
    )


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("live", [1, 32])
@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (Forgetting, {}, "reset forgets"),
        (Plant, {"save": save_places, "load": load_places}, "snapshot|load:"),
        (Random, {}, "made and reset in the same way|gives the same observations"),
    ],
    ids=["reset", "snapshot", "random"],
)
@pytest.mark.parametrize("failures", ["raise", "keep"])
def test_what_is_forgotten_is_a_fault(kind, settings, words, live, failures):
    box = box_of(kind, live=live, **settings)
    box.failures = failures
    report = check_black_box(Retrying(box, attempts=1) if live == 1 else box, processes=False, rows=400)
    said = [finding.sentence for finding in report.findings if finding.verdict.name == "FAULT"]
    assert any(word in sentence for word in words.split("|") for sentence in said)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("settings", [{}, {"save": save, "load": load}], ids=["replays", "snapshots"])
@pytest.mark.parametrize("live", [1, 32])
def test_a_simulator_that_forgets_nothing_has_no_fault(settings, live):
    report = check_black_box(box_of(Plant, live=live, **settings), processes=False, rows=400)
    (found,) = [finding for finding in report.findings if finding.check == "sessions"]
    assert found.verdict.name == "OK" and not report.faults


def test_the_ways_are_those_of_the_samples():
    box = box_of(Plant, live=8, save=save_places, load=load_places)
    actions = np.random.default_rng(0).normal(size=(3, 12, 1))
    box.failures = "keep"
    report = check_black_box(box, box.samples([1, 2, 3], 0 * actions), processes=False, rows=300)
    # without any force nothing is forgotten
    assert "sessions" not in [finding.check for finding in report.faults]
