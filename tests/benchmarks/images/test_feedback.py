"""fa, dfa and align-ada where their answers are known."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.images.feedback import AlignAda, DirectFeedback, FeedbackAlignment, weight_layers
from blackbox.errors import ConfigurationError
from tasks.applications.image_classification import ImageClassification, networks
from tests.tasks.applications.image_classification.small import backprop, flat_grad, striped

OBJECTIVE = ImageClassification.objective


def batch_of(rows=32, seed=0):
    part = striped(rows, seed)
    return (part.pixels / 127.5 - 1).double(), part.labels


def layers(*widths, activation=nn.ReLU):
    """Linear layers of these widths with an activation between them."""
    torch.manual_seed(0)
    made = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        made += [nn.Linear(before, after), activation()]
    return nn.Sequential(*made[:-1]).double()


def angle(a, b):
    return math.degrees(math.acos(float(functional.cosine_similarity(a, b, dim=0))))


@pytest.mark.parametrize("name", ["simple-6670", "resnet8", "vgg"])
def test_fa_with_the_weights_as_feedback_is_backpropagation(name):
    network = networks.make(name, 4, (1, 8, 8), width=3).double()
    weights = {key: layer.weight.detach() for key, layer in weight_layers(network, "fa").items()}
    truth = backprop(network, OBJECTIVE, batch_of())
    FeedbackAlignment(network, OBJECTIVE, feedback=weights).backward(batch_of())
    torch.testing.assert_close(flat_grad(network), truth, rtol=1e-11, atol=1e-14)


def test_fas_last_layer_has_the_exact_gradient_and_its_others_do_not():
    network = layers(64, 20, 4)
    truth = backprop(network, OBJECTIVE, batch_of())
    FeedbackAlignment(network, OBJECTIVE).backward(batch_of())
    found = flat_grad(network)
    last = 20 * 4 + 4
    torch.testing.assert_close(found[-last:], truth[-last:], rtol=1e-12, atol=0)
    assert angle(found[:-last], truth[:-last]) > 45


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fas_angle_to_backpropagation_falls_in_training(seed):
    network, batch = layers(64, 30, 4), batch_of(128)
    gradient = FeedbackAlignment(network, OBJECTIVE, seed)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    hidden = 64 * 30

    def to_backprop():
        truth = backprop(network, OBJECTIVE, batch)
        gradient.backward(batch)
        return angle(flat_grad(network)[:hidden], truth[:hidden])

    start, loss = to_backprop(), OBJECTIVE(network, batch).mean().item()
    for _ in range(60):
        gradient.backward(batch)
        optimizer.step()
        optimizer.zero_grad()
    assert to_backprop() < start - 20
    assert OBJECTIVE(network, batch).mean().item() < loss / 4


def test_dfa_with_the_last_weights_as_feedback_is_backpropagation_in_one_hidden_layer():
    network = layers(64, 20, 4)
    truth = backprop(network, OBJECTIVE, batch_of())
    DirectFeedback(network, feedback={"3": network[3].weight.detach()}).backward(batch_of())
    torch.testing.assert_close(flat_grad(network), truth, rtol=1e-12, atol=1e-15)


def test_dfa_with_the_products_of_later_weights_is_backpropagation_in_a_deep_linear_network():
    network = layers(64, 12, 9, 4, activation=nn.Identity)
    second, third = network[3].weight.detach(), network[5].weight.detach()
    truth = backprop(network, OBJECTIVE, batch_of())
    DirectFeedback(network, feedback={"3": third @ second, "5": third}).backward(batch_of())
    torch.testing.assert_close(flat_grad(network), truth, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["simple-6670", "resnet8"])
def test_dfa_trains_any_network_and_its_last_layer_exactly(name):
    network = networks.make(name, 4, (1, 8, 8), width=6).double()
    truth = backprop(network, OBJECTIVE, batch_of())
    DirectFeedback(network).backward(batch_of())
    found, last = flat_grad(network), network[-1].weight.numel() + 4
    torch.testing.assert_close(found[-last:], truth[-last:], rtol=1e-11, atol=1e-14)
    assert torch.isfinite(found).all() and found[:-last].any()


@pytest.mark.parametrize("name", ["simple-6670", "resnet8"])
def test_align_ada_is_backpropagation_at_the_first_step(name):
    network = networks.make(name, 4, (1, 8, 8), width=3).double()
    truth = backprop(network, OBJECTIVE, batch_of())
    AlignAda(network).backward(batch_of())
    torch.testing.assert_close(flat_grad(network), truth, rtol=1e-9, atol=1e-12)


def test_align_ada_sends_the_present_error_back_through_the_first_weights():
    network = layers(64, 20, 4)
    gradient, first = AlignAda(network), copy.deepcopy(network)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor += 0.1 * torch.randn_like(tensor)
    images, labels = batch_of()
    gradient.backward((images, labels))
    x = images.flatten(1)
    hidden = network[1](x).relu()
    error = (network(images).softmax(1) - functional.one_hot(labels, 4)) / len(labels)
    behind = (error @ first[3].weight) * (first[1](x) > 0)
    wanted = [behind.T @ x, behind.sum(0), error.T @ hidden, error.sum(0)]
    found = flat_grad(network)
    torch.testing.assert_close(found, torch.cat([part.flatten() for part in wanted]), rtol=1e-11, atol=1e-14)


class Direct(nn.Module):
    """Weights outside a layer; or a layer that is not called."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)
        if own:
            self.matrix = nn.Parameter(torch.eye(64))

    def forward(self, x):
        return functional.linear(x.flatten(1), self.layer.weight, self.layer.bias)


def test_networks_whose_weights_are_not_seen_are_refused():
    with pytest.raises(ConfigurationError, match="Direct at the top"):
        FeedbackAlignment(Direct(own=True), OBJECTIVE)
    network = Direct(own=False).double()
    with pytest.raises(ConfigurationError, match="passes by layer"):
        DirectFeedback(network).backward(batch_of())
    assert "forward" not in vars(network.layer)


def test_feedback_is_of_its_own_in_every_layer_and_stays_the_same():
    network = layers(64, 64, 64, 4)
    fa, dfa = FeedbackAlignment(network, OBJECTIVE), DirectFeedback(network)
    one, other = fa.feedback["1"].flatten(), fa.feedback["3"].flatten()
    assert (
        abs(float(functional.cosine_similarity(one, other, dim=0))) < 0.1
    )  # of 4,096 numbers: deviation .016
    for name, layer in weight_layers(network, "fa").items():
        # Mean squares of 256 and more normal numbers: off by a third in four deviations.
        assert 0.65 < float(fa.feedback[name].square().mean() / layer.weight.detach().square().mean()) < 1.35
    kept = []
    for _ in range(2):
        dfa.backward(batch_of())
        kept.append({name: matrix.clone() for name, matrix in dfa._feedback.items()})
    first, second = kept
    assert set(first) == {"3", "5"} and all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["3"], first["5"])
    for matrix in first.values():
        assert 0.65 < float(matrix.square().sum(dim=1).mean()) < 1.35  # B e is about as long as e
