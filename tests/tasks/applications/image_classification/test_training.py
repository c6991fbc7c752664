"""The optimiser steps of a run against SGD written out by hand: warm-up, cosine, momentum, decay, sets."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import pytest
import torch
from torch.nn import functional

import zo
from tasks.applications.image_classification import ImageClassification, sparse_set
from tasks.methods import Setup
from tests.tasks.applications.image_classification.small import Striped, made_setup, train


class Rising(Striped):
    """Validation finds the last weights best, so that a training ends with them."""

    @functools.cached_property
    def validated(self):
        return itertools.count()

    def validate(self, network):
        return 1 - next(self.validated) / 1000


def by_hand(its: Setup, on_sets: bool) -> torch.Tensor:
    """Last weights of `fo`, or of fo-sparse-gradient; w <- w - rate v, v <- momentum v + (g + decay w)."""
    config, network = its.config, copy.deepcopy(its.network).train()
    tensors = list(network.parameters())
    speeds = [torch.zeros_like(tensor) for tensor in tensors]
    parameters = zo.estimators.Parameters(network)
    rule = sparse_set.sparse_set(its)[0] if on_sets else None
    warm = round(config.warm_up * config.steps)
    for step in range(config.steps):
        if step < warm:
            rate = config.learning_rate * (step + 1) / warm
        else:
            rate = config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (config.steps - warm))) / 2
        pixels, labels = its.batch(step)
        slopes = torch.autograd.grad(functional.cross_entropy(network(pixels), labels), tensors)
        inside = torch.ones(parameters.size, dtype=torch.bool)
        if rule is not None:
            inside[:] = False
            inside[rule.draw(parameters, zo.estimators.Key(its.seed, step))] = True
        with torch.no_grad():
            for w, v, g, mask in zip(tensors, speeds, slopes, parameters.split(inside), strict=True):
                v.copy_(config.momentum * v + torch.where(mask, g, 0.0) + config.weight_decay * w)
                w -= rate * v
    return torch.nn.utils.parameters_to_vector(tensors).detach()


def flat(network) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fo", {"weight_decay": 0.05}),
        ("fo", {"momentum": 0.0, "warm_up": 0.0}),
        ("fo-sparse-gradient", {"redraw": "steps", "weight_decay": 0.05}),
    ],
)
def test_weights_move_as_by_hand(tmp_path, method, settings):
    its = made_setup(tmp_path, method, Rising, **({"ratios": "uniform", "warm_up": 0.25} | settings))
    first, truth = flat(its.network), by_hand(its, on_sets=method != "fo")
    trained = train(its)
    assert trained.outcome.best_step == 12
    found = flat(trained.network)
    # Other orders of summing: some roundings in each of twelve steps.
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=2e-5)
    assert (found - first).norm() > 1e-2 * first.norm()


def test_every_seed_scores_on_images_of_its_own(tmp_path):
    problem = made_setup(tmp_path).problem
    assert isinstance(problem, ImageClassification)
    one, other = problem.scoring_batch(0), problem.scoring_batch(1)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[0], problem.scoring_batch(0)[0])
    assert len(one[1]) == problem.config.pruning_images


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("method", "wanted"),
    [("rge", 0.02), ("sparse-rge", 0.02), ("cge", 0.1), ("fo", 0.1)],
)
def test_noisy_methods_have_a_learning_rate_of_their_own(tmp_path, method, wanted):
    its = made_setup(tmp_path, method, learning_rate=0.1, noisy_learning_rate=0.02, warm_up=0.0)
    train(its)
    assert next(line["learning_rate"] for line in its.run.metrics() if "loss" in line) == wanted
