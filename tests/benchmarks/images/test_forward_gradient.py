"""Forward gradients: each is a directional derivative times its direction; their mean is the gradient."""

from __future__ import annotations

import copy

import torch

import zo
from benchmarks.images.forward_gradient import FORWARD, ForwardGradient
from tasks.applications.image_classification import ImageClassification, networks
from tests.tasks.applications.image_classification.small import backprop, flat_grad, striped

OBJECTIVE = ImageClassification.objective


def problem():
    network = networks.make("simple-730", 4, (1, 8, 8), width=3).double()
    part = striped(32)
    return network, ((part.pixels / 127.5 - 1).double(), part.labels)


def test_one_direction_gives_its_derivative_times_itself():
    network, batch = problem()
    truth = backprop(network, OBJECTIVE, batch)
    ForwardGradient(network, OBJECTIVE, 1, seed=3).backward(batch)
    direction = torch.randn(
        len(truth), generator=zo.estimators.Key(3).generator(FORWARD, 0), dtype=torch.float64
    )
    torch.testing.assert_close(flat_grad(network), (truth @ direction) * direction, rtol=1e-10, atol=1e-12)


def test_the_mean_over_many_directions_is_the_gradient():
    network, batch = problem()
    truth, directions = backprop(network, OBJECTIVE, batch), 300
    ForwardGradient(network, OBJECTIVE, directions, seed=1).backward(batch)
    error = (flat_grad(network) - truth).square().sum() / truth.square().sum()
    # Its mean is (d + 1) / directions; it is near a mean of d squares of normal numbers, so that its relative
    # deviation is about sqrt(2 / d) = 0.2 for d = 54. Twice the mean: about one false alarm in a million.
    assert error <= 2 * (len(truth) + 1) / directions
    assert error >= 0.3 * (len(truth) + 1) / directions


def test_directions_are_new_in_every_step_and_the_same_for_the_same_seed():
    network, batch = problem()

    def steps(seed):
        gradient, found = ForwardGradient(network, OBJECTIVE, 1, seed=seed), []
        for _ in range(2):
            gradient.backward(batch)
            found.append(flat_grad(network))
        return found

    (a, b), (c, d), (e, _) = steps(0), steps(0), steps(1)
    assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(a, b) and not torch.equal(a, e)


def test_running_statistics_move_once_a_step_however_many_directions():
    network, batch = problem()
    other = copy.deepcopy(network)
    other(batch[0])
    ForwardGradient(network, OBJECTIVE, 4).backward(batch)
    for found, wanted in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
