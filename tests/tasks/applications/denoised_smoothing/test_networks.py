"""The networks: the published numbers of parameters, the residual, and gradients that reach every layer."""

import pytest
import torch

from tasks.applications.denoised_smoothing.networks import DnCNN, decoder, encoder, latent_size, student


@pytest.mark.parametrize(("channels", "count"), [(3, 558_400), (1, 556_096)])
def test_the_published_dncnn_has_the_published_number_of_parameters(channels, count):
    assert sum(weight.numel() for weight in DnCNN(channels).parameters()) == count


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("depth", "width"), [(2, 1), (4, 8)])
def test_any_depth_and_width_by_the_formula_of_its_layers(depth, width, batch_norm):
    between = 9 * width**2 + (2 * width if batch_norm else width)
    expected = 9 * 3 * width + width + (depth - 2) * between + 9 * width * 3
    network = DnCNN(3, depth, width, batch_norm)
    assert sum(weight.numel() for weight in network.parameters()) == expected
    images = torch.rand(2, 3, 5, 7)
    assert torch.equal(network(images), images - network.net(images))


def test_the_start_is_near_the_identity_and_gradients_reach_every_layer():
    torch.manual_seed(0)
    network, images = DnCNN(1, 6, 8, False), torch.rand(16, 1, 8, 8)
    assert 0 < (network(images) - images).abs().max() < 0.2
    (network(images) - 0.5 * images).square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


@pytest.mark.parametrize(
    ("shape", "widths", "convolutions"), [((1, 8, 8), (16,), False), ((3, 16, 24), (4, 6), True)]
)
def test_an_autoencoder_keeps_the_shape_and_its_latent_size(shape, widths, convolutions):
    images = torch.rand(2, *shape)
    latent = encoder(shape, widths, 5, convolutions)(images)
    assert latent.shape == (2, latent_size(shape, widths, 5, convolutions))
    made = decoder(shape, widths, 5, convolutions)(latent)
    assert made.shape == images.shape and 0 <= made.min() and made.max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 64, 48)])
def test_a_student_gives_scores_of_each_class(shape):
    assert student(shape, 7, 32)(torch.rand(3, *shape)).shape == (3, 7)
