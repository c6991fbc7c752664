"""deepzero's gradient against exact ones, and exact ones on a set against autograd."""

from __future__ import annotations

import itertools

import pytest
import torch

import zo
from tasks.applications.image_classification import ImageClassification, networks
from tasks.applications.image_classification.methods import ExactGradient
from tasks.applications.image_classification.sparse_set import sparse_set
from tests.tasks.applications.image_classification.small import backprop, flat_grad, made_setup, striped

OBJECTIVE = ImageClassification.objective


def problem(dtype=torch.float64, trained: int = 0, name: str = "resnet8", width: int = 4, rows: int = 64):
    """A small network of four classes with a batch, before or after some steps of SGD; and layer ratios."""
    network = networks.make(name, 4, (1, 8, 8), width=width, seed=1).to(dtype)
    part = striped(rows, 3)
    batch = ((part.pixels / 127.5 - 1).to(dtype), part.labels)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    for _ in range(trained):
        optimizer.zero_grad()
        OBJECTIVE(network, batch).mean().backward()
        optimizer.step()
    network.zero_grad()
    ratios = {name: 1.0 if tensor.ndim < 2 else 0.05 for name, tensor in network.named_parameters()}
    return network, batch, zo.estimators.LayerwiseCoordinates(ratios, every=2)


def deepzero(network, batch, sparsity, mu, evaluator="loop", step=0):
    gradient = zo.LossGradient(network, OBJECTIVE, zo.CGE(mu, sparsity), evaluator=evaluator, seed=5)
    gradient.counts.steps = step
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradient.backward(batch)
    for name, buffer in network.named_buffers():
        buffer.copy_(kept[name])
    return flat_grad(network)


def exact(network, batch, sparsity, step=0):
    gradient = ExactGradient(network, OBJECTIVE, sparsity, seed=5)
    gradient.counts.steps = step
    gradient.backward(batch)
    return flat_grad(network)


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def test_the_gradient_on_a_set_is_autograds_to_the_bit_and_zero_outside():
    network, batch, sparsity = problem(torch.float32, name="simple-3700", rows=16)
    for step in (0, 1, 2):
        truth = backprop(network, OBJECTIVE, batch)
        inside = torch.zeros(len(truth), dtype=torch.bool)
        inside[sparsity.draw(zo.estimators.Parameters(network), zo.estimators.Key(5, step))] = True
        found = exact(network, batch, sparsity, step)
        assert torch.equal(found[inside], truth[inside])
        assert not found[~inside].any()


def test_exact_and_estimated_gradients_have_the_same_sets_at_every_step():
    network, batch, sparsity = problem(name="simple-3700", rows=16)
    for step in (0, 1, 2, 7):
        outside = deepzero(network, batch, sparsity, 5e-4, step=step) == 0
        assert torch.equal(outside, exact(network, batch, sparsity, step=step) == 0)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_deepzeros_gradient_points_along_the_exact_one_on_the_whole_and_by_layer(trained):
    network, batch, sparsity = problem(trained=trained)
    found, truth = deepzero(network, batch, sparsity, 5e-4), exact(network, batch, sparsity)
    assert cosine(found, truth) >= 0.999
    # A convolution or a block at a time: one norm alone has no more than four numbers here.
    parameters, start = zo.estimators.Parameters(network), 0
    for child, tensors in itertools.groupby(
        zip(parameters.names, parameters.tensors, strict=True), lambda pair: pair[0].split(".")[0]
    ):
        part = slice(start, start := start + sum(tensor.numel() for _, tensor in tensors))
        assert cosine(found[part], truth[part]) >= 0.999, child


@pytest.mark.parametrize("evaluator", [pytest.param("stacked", marks=pytest.mark.slow), "difference"])
@pytest.mark.parametrize("trained", [pytest.param(0, marks=pytest.mark.slow), 6])
@pytest.mark.slow
def test_at_the_published_mu_single_precision_gives_the_difference_quotient_of_double(trained, evaluator):
    network, batch, sparsity = problem(trained=trained)
    truth = deepzero(network, batch, sparsity, 5e-3)
    images, labels = batch
    found = deepzero(network.float(), (images.float(), labels), sparsity, 5e-3, evaluator)
    # A mean of 64 losses near 1, each some twenty roundings from the truth, over mu.
    rounding = 20 * torch.finfo(torch.float32).eps / 5e-3
    assert (found - truth).abs().max() <= rounding
    assert cosine(found, truth) >= 0.9999


def test_the_same_holds_with_the_layer_ratios_of_a_run(tmp_path):
    its = made_setup(tmp_path, train_images=64, batch=64, pruning_directions=8)
    network, sparsity = its.network, sparse_set(its)[0]
    batch = its.batch(0)
    network, batch = network.double(), (batch[0].double(), batch[1])
    assert cosine(deepzero(network, batch, sparsity, 5e-4), exact(network, batch, sparsity)) >= 0.999


def test_exact_gradients_add_up_in_grad():
    network, batch, sparsity = problem(name="simple-3700", rows=16)
    once = exact(network, batch, sparsity)
    for step in (0, 0):
        gradient = ExactGradient(network, OBJECTIVE, sparsity, seed=5)
        gradient.counts.steps = step
        gradient.backward(batch)
    torch.testing.assert_close(flat_grad(network), 2 * once, rtol=1e-9, atol=1e-15)
