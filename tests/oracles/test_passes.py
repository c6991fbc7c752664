"""The passes of the small networks, which are written out, against autograd through torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import zo
from blackbox import ArraySpec
from zo.tangents.models.form import Form
from zo.tangents.models.grid.convolutions import CONVOLVED, Convolutions
from zo.tangents.models.grid.grid_network import GridNetwork
from zo.tangents.models.maps.lattice import Lattice
from zo.tangents.models.maps.output_map import OutputMap
from zo.tangents.models.maps.spectral_map import SpectralMap
from zo.tangents.models.maps.waves import Waves
from zo.tangents.models.passes import FlatAdam, Passes


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def around(x: torch.Tensor, radius: int, periodic) -> torch.Tensor:
    """Cells beyond the ends, by rolling or zeros, one cell after another."""
    for axis, wraps in enumerate(periodic, start=2):
        length = x.shape[axis]
        cells = [
            x.select(axis, n % length) if wraps or 0 <= n < length else torch.zeros_like(x.select(axis, 0))
            for n in range(-radius, length + radius)
        ]
        x = torch.stack(cells, dim=axis)
    return x


def convolved(x: torch.Tensor, layer_weight: torch.Tensor, periodic, bias=None) -> torch.Tensor:
    return CONVOLVED[x.ndim - 2](around(x, layer_weight.shape[2] // 2, periodic), layer_weight, bias)


LAYOUTS = {
    "line": (True, (7,), (True,)),
    "line with walls": (True, (7,), (False,)),
    "short line": (True, (4,), (True,)),
    "long line": (False, (7,), (True,)),
    "plane": (False, (5, 4), (True, False)),
    "space": (False, (4, 5, 4), (False, True, True)),
}


@pytest.mark.parametrize(
    "out, channels, taps", [(3, 2, 5), (1, 4, 3), (2, 2, 1), (1, 8, 3), (9, 1, 3), (1, 3, 13)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_convolution_and_the_ways_back_are_autograds(layout, out, channels, taps):
    line, space, periodic = LAYOUTS[layout]
    if taps == 13 and layout != "short line":
        taps = 3
    convolve = Convolutions(line, periodic)
    x = drawn(2, channels, *space).requires_grad_()
    kernel = drawn(out, channels, *[taps] * len(space), seed=1).requires_grad_()
    bias, v = drawn(out, seed=2).requires_grad_(), drawn(2, out, *space, seed=3)
    expected = convolved(x, kernel, periodic, bias)
    of_x, of_kernel, of_bias = torch.autograd.grad(expected, (x, kernel, bias), v)

    def there(array: torch.Tensor) -> torch.Tensor:
        return array.movedim(0, -1).contiguous() if line else array

    with torch.no_grad():
        outputs, seen = convolve(there(x), kernel, bias)
        slopes = torch.zeros_like(kernel), torch.zeros_like(kernel), torch.zeros_like(bias)
        back = convolve.back_to_both(there(x), seen, there(v), kernel, slopes[0])
        convolve.to_kernel(seen, there(v), slopes[1])
        convolve.to_bias(there(v), slopes[2])
        assert torch.allclose(outputs, there(expected), rtol=1e-12, atol=1e-12)
        for pulled in (back, convolve.back(there(v), kernel)):
            assert torch.allclose(pulled, there(of_x), rtol=1e-12, atol=1e-12)
        for slope, true in zip(slopes, (of_kernel, of_kernel, of_bias), strict=True):
            assert torch.allclose(slope, true, rtol=1e-12, atol=1e-12)


def grid_of(network: GridNetwork, rows: torch.Tensor) -> torch.Tensor:
    """The network in torch's own layers, with a graph of everything."""
    x = network.on_grid.joined(rows)
    if network.places is not None:
        same = torch.cat([network.places, torch.ones_like(network.places[:1])])
        x = torch.cat([x, same.expand(len(x), *same.shape)], dim=1)

    def layer(module: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        assert isinstance(module.weight, torch.Tensor)
        return convolved(rows, module.weight, network.periodic, module.bias)

    a, b = layer(network.products, x).chunk(2, dim=1)
    straight, bent = a.chunk(2, dim=1)
    hidden = torch.cat([straight, functional.silu(bent)], dim=1) * b
    hidden = hidden + functional.silu(layer(network.bend, hidden))
    return network.answered.split(layer(network.linear, x) + layer(network.last, hidden))


def perceptron_of(network: Passes, rows: torch.Tensor) -> torch.Tensor:
    """The same of the network of `MLPTangent`."""
    first, second, last, linear = (network.get_submodule(n) for n in ("first", "second", "last", "linear"))
    return linear(rows) + last(functional.silu(second(functional.silu(first(rows)))))


def grid(inputs, answered, space, reach, periodic):
    return lambda: GridNetwork(Lattice(inputs, space), Lattice(answered, space), 4, reach, periodic), grid_of


def perceptron(size: int, out: int):
    form = Form((ArraySpec("x", (size,)),), (ArraySpec("y", (out,)),), ())
    return lambda: zo.tangents.MLPTangent(8).build(form, {}), perceptron_of


NETWORKS = {
    "ring": grid(((1, 8),), ((1, 8),), (8,), 3, (True,)),
    "line": grid(((2, 8), ()), ((2, 8), (1, 7)), (8,), 4, (False,)),
    "plane": grid(((1, 5, 4), (1, 4, 4), (2,)), ((2, 5, 4),), (5, 4), 2, (True, False)),
    "torus": grid(((2, 4, 4),), ((2, 4, 4),), (4, 4), 1, (True, True)),
    "perceptron": perceptron(5, 3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_passes_of_a_network_are_autograds(name):
    """Forward, to inputs, to weights and forward again, where no path through the network is zero."""
    make, oracle = NETWORKS[name]
    network = make().double()
    for place, weight in enumerate(network.parameters()):
        weight.data = 0.3 * drawn(*weight.shape, seed=place)
    adam = FlatAdam(network, 0.1)
    adam.begin()
    size = 5 if name == "perceptron" else sum(torch.Size(shape).numel() for shape in network.on_grid.shapes)
    rows = drawn(3, size, seed=20).requires_grad_()
    expected = oracle(network, rows)
    v, change = drawn(*expected.shape, seed=21), drawn(*rows.shape, seed=22)
    named = dict(network.named_parameters())
    of_rows, *of_weights = torch.autograd.grad(expected, (rows, *named.values()), v, retain_graph=True)
    with torch.no_grad():
        x = network.arranged(rows[:, :-1], rows[:, -1:])
        outputs, kept = network.passed(x)
        assert torch.allclose(network.answers(outputs), expected, rtol=1e-12, atol=1e-12)
        back = network.back(kept, network.arranged_cotangent(v))
        assert back is not None
        assert torch.allclose(network.cotangent_rows(back), of_rows, rtol=1e-11, atol=1e-12)
        assert network.back(kept, network.arranged_cotangent(v), adam.slopes) is None
        for key, true in zip(named, of_weights, strict=True):
            assert torch.allclose(adam.slopes[key], true, rtol=1e-11, atol=1e-12), key
        pushed = network.answers(network.pushed(kept, network.arranged(change[:, :-1], change[:, -1:])))
    ahead = torch.autograd.functional.jvp(lambda x: oracle(network, x), rows.detach(), change)[1]
    assert isinstance(ahead, torch.Tensor) and torch.allclose(pushed, ahead, rtol=1e-11, atol=1e-12)
    z, others = (leaf.detach().requires_grad_() for leaf in (rows[:, :-1], rows[:, -1:]))
    on_graph = torch.autograd.grad(network(z, others), (z, others), v)
    assert torch.allclose(torch.cat(on_graph, dim=1), of_rows, rtol=1e-11, atol=1e-12)


def test_adam_of_one_vector_is_torchs_of_each_weight():
    """Also where the weights were read or copied between two lessons."""
    torch_s, module = nn.Conv1d(2, 3, 5).double(), nn.Conv1d(2, 3, 5).double()
    module.load_state_dict(torch_s.state_dict())
    expected, flat_adam = torch.optim.Adam(torch_s.parameters(), lr=0.01), FlatAdam(module, 0.01)
    for step in range(7):
        if step in (0, 4):
            module.load_state_dict({name: weight.clone() for name, weight in module.state_dict().items()})
            module.weight.data = module.weight.data.clone()
            state, flat_adam = flat_adam.state_dict(), FlatAdam(module, 0.01)
            flat_adam.load_state_dict(state)
            flat_adam.begin()
        for place, (name, weight) in enumerate(torch_s.named_parameters()):
            weight.grad = drawn(*weight.shape, seed=10 * step + place)
            flat_adam.slopes[name].copy_(weight.grad)
        expected.step()
        flat_adam.step()
        for mine, theirs in zip(module.parameters(), torch_s.parameters(), strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [40, 7])
def test_the_way_back_through_an_output_map_is_its_transpose(rows):
    """In both forms: a matrix, and factors where rows are fewer than numbers; and of waves."""
    x = drawn(rows, 2 * 12, seed=1)
    y = x + 0.3 * drawn(rows, 24, seed=2) * x.roll(1, 1)
    for made in (OutputMap(), SpectralMap(Waves(Lattice(((2, 3, 4),), (3, 4)), (True, True)))):
        made.fit(x, y, 0.5 + drawn(24, seed=3).abs())
        v, d = drawn(4, 24, seed=4), drawn(4, 24, seed=5)
        at = drawn(4, 24, seed=6)
        assert torch.allclose(made.pushed(d), made(at + d) - made(at), rtol=1e-9, atol=1e-10)
        assert torch.allclose((made.pushed(d) * v).sum(), (d * made.pulled(v)).sum(), rtol=1e-10)
