"""`check_black_box` of simulators that are reset and stepped: what a reset or a snapshot forgets."""

from __future__ import annotations

import random
import warnings

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


class Unseeded(Plant):
    """Whose reset ignores its seed."""

    def reset(self, seed):
        return super().reset(0)


class StartsAlike(Plant):
    """Whose start is the same for all seeds, and whose steps are not."""

    def reset(self, seed):
        self.generator = np.random.default_rng(seed)
        return super().reset(0)

    def step(self, action):
        return super().step(action + self.generator.normal())


class SeedsForAll(Plant):
    """Whose reset seeds the generator that all of them share: right for one alone."""

    def reset(self, seed):
        np.random.seed(seed)  # noqa: NPY002
        return super().reset(seed)

    def step(self, action):
        return super().step(action + np.random.normal())  # noqa: NPY002


class OfTheClass(Plant):
    """Whose actuator is one for all."""

    shared = np.zeros(1)

    def reset(self, seed):
        self.shared[:] = 0.0
        return super().reset(seed)

    def step(self, action):
        self.shared[:] += action
        return super().step(self.shared)


class Restarting(Plant):
    """Whose episode ends after 60 steps, and begins anew from another generator."""

    def reset(self, seed):
        self.number = 0
        return super().reset(seed)

    def step(self, action):
        self.number += 1
        return super().reset(np.random.randint(99)) if self.number == 60 else super().step(action)  # noqa: NPY002


class Ending(Plant):
    """Refuses steps after the end of its episode, the 60th."""

    def reset(self, seed):
        self.number = 0
        return super().reset(seed)

    def step(self, action):
        self.number += 1
        if self.number > 60:
            raise RuntimeError("the episode has ended")
        return super().step(action)


class Drawing(Plant):
    """Draws from a generator of everyone's, for nothing."""

    def step(self, action):
        random.random()
        return super().step(action)


def of_sessions(kind, steps=12):
    box = Session(kind, observation=ArraySpec("seen", (2,)), action=ArraySpec("action", (1,)), steps=steps)
    return check_black_box(box, processes=False, rows=100).finding("sessions")


@pytest.mark.parametrize(
    ("kind", "verdict", "words"),
    [
        (Unseeded, "WARNING", ["the same answers to the same actions after", "copies", "reset(seed)"]),
        (StartsAlike, "OK", []),
        (SeedsForAll, "FAULT", ["in turn with one of another seed", "global generator of numpy.random"]),
        (OfTheClass, "FAULT", ["in turn with one of another seed", "2 actions"]),
        (Restarting, "FAULT", ["60 actions", "global generator of numpy.random"]),
        (Ending, "OK", []),
        (Drawing, "WARNING", ["draws from the global generator of random", "one of your own"]),
    ],
)
def test_what_seeds_do_not_say_is_found(kind, verdict, words):
    found = of_sessions(kind, steps=100)
    assert found.verdict.name == verdict, found.sentence
    assert all(word in found.sentence for word in words), found.sentence


@pytest.mark.parametrize("kind", [Unseeded, StartsAlike, Plant])
def test_the_first_step_says_once_that_seeds_change_nothing(kind):
    box = box_of(kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seeds in ([0, 1, 2, 3, 4, 5], [6, 7]):
            observation, history = box.reset(np.array(seeds))
            for _ in range(2):
                observation, history = box(observation, np.ones((len(seeds), 1)), history)
    said = [str(warning.message) for warning in caught]
    assert len(said) == (kind is Unseeded) and all("4 seeds (0, 1, 2, 3)" in words for words in said)
    assert box.counts.compared_steps == (0 if kind is Plant else 4 * 8)  # the starts of Plant differ already
    assert box.ledger.rows_run == 16
