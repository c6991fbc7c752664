"""The optimiser steps of a run against SGD written out by hand: warm-up, cosine, momentum, decay, sets."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

import zo
from tasks.image_classification import sparse_set
from tasks.image_classification import trainer as training
from tasks.image_classification.methods.every import METHODS
from tasks.image_classification.trainer import Trainer
from tests.tasks.image_classification.small import images, trainer


def by_hand(its: Trainer, on_sets: bool) -> torch.Tensor:
    """Last weights of `fo`, or of fo-sparse-gradient; w <- w - rate v, v <- momentum v + (g + decay w)."""
    config, network = its.config, its.network().train()
    tensors = list(network.parameters())
    speeds = [torch.zeros_like(tensor) for tensor in tensors]
    parameters = zo.estimators.Parameters(network)
    rule = sparse_set.sparse_set(its, network).sparsity if on_sets else None
    warm = round(config.warm_up * its.epochs.steps)
    for step in range(its.steps):
        if step < warm:
            rate = config.learning_rate * (step + 1) / warm
        else:
            rate = config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (its.steps - warm))) / 2
        pixels, labels = its.epochs.batch(step)
        slopes = torch.autograd.grad(functional.cross_entropy(network(pixels), labels), tensors)
        inside = torch.ones(parameters.size, dtype=torch.bool)
        if rule is not None:
            inside[:] = False
            inside[rule.draw(parameters, zo.estimators.Key(its.seed, step))] = True
        with torch.no_grad():
            for w, v, g, mask in zip(tensors, speeds, slopes, parameters.split(inside), strict=True):
                moving = mask if config.update == "set" else torch.ones_like(mask)
                faster = config.momentum * v + torch.where(mask, g, 0.0) + config.weight_decay * w
                v.copy_(torch.where(moving, faster, v))
                w -= torch.where(moving, rate * v, 0.0)
    return torch.nn.utils.parameters_to_vector(tensors).detach()


@pytest.fixture
def rising(monkeypatch):
    """Validation finds the last weights best, so that a training ends with them."""
    found = itertools.count()
    monkeypatch.setattr(training, "accuracy", lambda *_: next(found) / 1000)


@pytest.mark.usefixtures("rising")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fo", {"weight_decay": 0.05}),
        ("fo", {"momentum": 0.0, "warm_up": 0.0}),
        ("fo-sparse-gradient", {"redraw": "steps", "update": "all", "weight_decay": 0.05}),
        ("fo-sparse-gradient", {"redraw": "steps", "update": "set", "weight_decay": 0.05}),
    ],
)
def test_weights_move_as_by_hand(tmp_path, method, settings):
    its = trainer(tmp_path, ratios="uniform", warm_up=settings.pop("warm_up", 0.75), **settings)
    trained = METHODS[method](its)
    assert trained.outcome.best_step == its.steps == 12
    found = torch.nn.utils.parameters_to_vector(trained.network.parameters()).detach()
    first = torch.nn.utils.parameters_to_vector(its.network().parameters()).detach()
    truth = by_hand(its, on_sets=method != "fo")
    # Other orders of summing: some roundings in each of twelve steps.
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=2e-5)
    assert (found - first).norm() > 1e-2 * first.norm()


@pytest.mark.usefixtures("rising")
def test_averaged_weights_are_the_exponential_mean_of_every_steps(tmp_path, monkeypatch):
    its, seen = trainer(tmp_path, averaging=0.7), []
    step = torch.optim.SGD.step

    def watched(self, *arguments):
        done = step(self, *arguments)
        seen.append(torch.cat([w.detach().flatten() for w in self.param_groups[0]["params"]]))
        return done

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    trained = METHODS["fo"](its)
    mean = seen[0]
    for weights in seen[1:]:
        mean = 0.7 * mean + 0.3 * weights
    found = torch.nn.utils.parameters_to_vector(trained.network.parameters()).detach()
    torch.testing.assert_close(found, mean, rtol=1e-5, atol=1e-6)


def test_averaged_weights_are_the_ones_that_are_validated(tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr(training, "accuracy", lambda network, *_: judged.append(type(network)) or 0.5)
    METHODS["fo"](trainer(tmp_path, averaging=0.7))
    assert {kind.__name__ for kind in judged} == {"AveragedModel"}


def test_fewer_training_images_than_validation_images_are_fine(tmp_path):
    trained = METHODS["fo"](trainer(tmp_path, data=images(train=16)))  # and 24 to validate on
    assert trained.outcome.step == 3


def test_every_seed_scores_on_images_of_its_own(tmp_path):
    one, other = (
        Trainer(each.run, each.config, each.data, each.augmentation, seed, each.progress)
        for seed, each in ((0, trainer(tmp_path)), (1, trainer(tmp_path)))
    )
    assert not torch.equal(one.scoring_batch()[0], other.scoring_batch()[0])
    assert torch.equal(one.scoring_batch()[0], one.scoring_batch()[0])
    assert len(one.scoring_batch()[1]) == one.config.pruning_images
