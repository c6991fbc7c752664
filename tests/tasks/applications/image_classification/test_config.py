"""Settings: what is refused, and the learning rate that follows from them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tasks.applications.image_classification import ImageClassification
from tasks.applications.image_classification.methods import rate
from tasks.configuration import from_dict, to_dict
from tasks.errors import ConfigurationError
from tests.tasks.applications.image_classification.small import made_setup

PRESETS = ImageClassification.presets
Config = ImageClassification.Config

WRONG = [
    ({"dataset": "cifar"}, ["cifar10"]),
    ({"ratios": "zo_grasp"}, ["zo-grasp"]),
    ({"redraw": "daily"}, ["'epoch', 'steps' or 'never'"]),
    ({"evaluator": "stack"}, ["stacked"]),
    ({"sparsity": 1.0}, ["less than 1"]),
    ({"sparsity": math.nan}, ["nan"]),
    ({"learning_rate": -1.0}, ["--learning-rate"]),
    ({"momentum": 1.0}, []),
    ({"weight_decay": -1e-4}, []),
    ({"steps": 0}, ["1"]),
    ({"batch": 0}, []),
    ({"warm_up": 1.0}, ["less than 1"]),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[" ".join(changes) for changes, _ in WRONG])
def test_settings_that_make_no_sense_are_refused_by_name(changes, words):
    with pytest.raises(ConfigurationError) as caught:
        Config(**changes)
    assert all(word in str(caught.value) for word in (next(iter(changes)), *words)), str(caught.value)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_the_way_through_a_file(preset):
    assert from_dict(Config, to_dict(PRESETS[preset])) == PRESETS[preset]


def test_the_published_settings():
    # Chen et al. 2024, section 6 and appendix; an epoch of 45,000 images has 175 whole batches of 256
    paper = PRESETS["paper"]
    assert (paper.network, paper.dataset, paper.batch) == ("resnet20", "cifar10", 256)
    assert (paper.steps, paper.warm_up * paper.steps) == (50 * 175, 3 * 175)
    assert (paper.learning_rate, paper.momentum, paper.weight_decay) == (0.1, 0.9, 5e-4)
    assert (paper.zeroth_order.mu, paper.ratios, paper.pruning_directions) == (5e-3, "zo-grasp", 192)
    assert (paper.redraw, paper.augment) == ("epoch", True)


def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine(tmp_path):
    its = made_setup(tmp_path, steps=30, warm_up=1 / 3, learning_rate=0.4)
    rates = [rate(its, step) for step in range(30)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == 0.4
    assert rates[20] == pytest.approx(0.2)  # half way down
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.4 * 0.01
    assert rate(made_setup(tmp_path, warm_up=0.0, learning_rate=0.4), 0) == 0.4
    level = made_setup(tmp_path, steps=30, warm_up=1 / 3, learning_rate=0.4, schedule="constant")
    assert [rate(level, step) for step in (0, 10, 29)] == pytest.approx([0.04, 0.4, 0.4])


def test_a_preset_can_be_changed_by_name():
    assert replace(PRESETS["demo"], steps=10).steps == 10
