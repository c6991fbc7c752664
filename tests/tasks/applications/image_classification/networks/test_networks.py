"""The networks: sizes in closed form, shapes, first weights; torch.fx and the evaluators read them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import zo
from tasks.applications.image_classification import networks
from tasks.applications.image_classification.networks.convolutional import ShortcutA

SEVERAL = ("resnet8", "simple-12610", "vgg")


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def resnet_size(depth, classes, channels, width):
    """Convolutions 3 x 3 without bias, two numbers of a norm for each output channel, a linear layer."""
    blocks = (depth - 2) // 6
    pairs = [(channels, width)]
    for stage, after in enumerate((width, 2 * width, 4 * width)):
        before = width if stage == 0 else after // 2
        pairs += [(before, after), (after, after)] + [(after, after)] * (2 * (blocks - 1))
    return sum(9 * i * o + 2 * o for i, o in pairs) + (4 * width + 1) * classes


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_resnets_have_the_published_sizes(depth, millions):
    network = networks.resnet(depth)
    assert size(network) == resnet_size(depth, 10, 3, 16)
    assert round(size(network) / 1e6, 2) == millions
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize(
    ("depth", "classes", "channels", "width"), [(8, 10, 1, 8), (14, 7, 2, 5), (26, 3, 4, 3)]
)
def test_other_resnets_have_the_size_of_the_closed_form(depth, classes, channels, width):
    network = networks.resnet(depth, classes, (channels, 32, 32), width=width)
    assert size(network) == resnet_size(depth, classes, channels, width)


@pytest.mark.parametrize("layers", range(1, 6))
def test_the_simple_cnn_has_its_five_sizes(layers):
    published = 730 + 2970 * (layers - 1)
    assert size(networks.simple_cnn(layers)) == published
    assert size(networks.make(f"simple-{published}")) == published


def test_the_vgg_has_the_size_of_the_closed_form():
    pairs = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)]
    assert size(networks.make("vgg")) == sum(9 * i * o + 2 * o for i, o in pairs) + 129 * 10


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, (1, 8, 8)) for name in networks.NAMES]
    + [(name, shape) for name in SEVERAL for shape in ((3, 32, 32), (3, 12, 20))],
)
def test_every_network_gives_a_logit_a_class_and_is_read_by_fx(name, shape):
    network = networks.make(name, 7, shape, width=4).eval()
    images = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    logits = network(images)
    assert logits.shape == (3, 7)
    traced = torch.fx.symbolic_trace(network)
    torch.testing.assert_close(traced(images), logits, rtol=0, atol=0)
    # one graph serves any number of rows
    torch.testing.assert_close(traced(images[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def test_the_shortcut_is_option_a():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = ShortcutA(2, 4)(x)
    assert y.shape == (1, 4, 2, 2)
    assert y[0, 0].eq(0).all() and y[0, 3].eq(0).all()
    assert y[0, 1].tolist() == [[0, 2], [8, 10]] and y[0, 2].tolist() == [[16, 18], [24, 26]]
    assert not list(ShortcutA(2, 4).parameters())


def test_a_resnet_without_its_residuals_is_the_downsampled_first_layer():
    network = networks.make("resnet8", 10, (3, 8, 8), width=4).eval()
    for name, parameter in network.named_parameters():
        if "norm2" in name:
            nn.init.zeros_(parameter)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first = network[2](network[1](network[0](x)))
    pooled = first[:, :, ::4, ::4].mean((2, 3))
    linear = network[-1]
    expected = functional.linear(pooled, linear.weight[:, 6:10], linear.bias)  # zeros before: 2 + 4, after: 6
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", ["resnet20", "simple-12610", "vgg"])
def test_first_weights_have_the_deviation_of_he(name):
    seen = 0
    for module in networks.make(name, seed=3).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            deviation = math.sqrt(2 / weight[0].numel())
            # the standard error of a deviation is deviation / sqrt(2 n); 5 of them: 6e-7 false alarms a layer
            assert abs(weight.std() - deviation) < 5 * deviation / math.sqrt(2 * weight.numel())
            assert abs(weight.mean()) < 5 * deviation / math.sqrt(weight.numel())
            assert module.bias is None or module.bias.eq(0).all()
            seen += 1
    assert seen >= 6


def test_first_weights_hang_on_the_seed_alone():
    state = torch.get_rng_state()
    one, same, other = (networks.make("resnet8", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "make",
    [
        lambda: networks.resnet(8, 4, (1, 8, 8), width=2),
        lambda: networks.simple_cnn(2, 4, (1, 8, 8), width=2),
        lambda: networks.vgg(4, (1, 8, 8), width=2),
    ],
    ids=["resnet", "simple", "vgg"],
)
def test_coordinates_give_the_same_gradient_stacked_and_in_a_loop(make):
    """A sparse set of every layer, in float64: the fast evaluator knows all modules of these networks."""
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator),
        torch.randint(4, (2,), generator=generator),
    )

    def objective(network, batch):
        return functional.cross_entropy(network(batch[0]), batch[1], reduction="none")

    gradients = []
    for evaluator in ("loop", "stacked"):
        torch.manual_seed(0)
        network = make().double().eval()
        estimator = zo.CGE(mu=1e-5, sparsity=zo.RandomCoordinates(30))
        zo.LossGradient(network, objective, estimator, evaluator=evaluator, seed=0).backward(batch)
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    loop, stacked = gradients
    assert loop.ne(0).sum() > 10
    torch.testing.assert_close(stacked, loop, rtol=1e-4, atol=1e-8)
