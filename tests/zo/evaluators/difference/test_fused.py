"""Batch norm, sum and ReLU as one call: by the rules of its calls, and by the kernel, interpreted."""

import importlib
import itertools
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zo
from blackbox.errors import ConfigurationError
from zo.estimators import Coordinates
from zo.evaluators import Loop, Step
from zo.evaluators.difference.changes import OneChannel
from zo.evaluators.difference.gpu import fused
from zo.evaluators.state import Snapshot


class Block(nn.Module):
    """Two convolutions and a shortcut, which has its own where the width changes, as in ResNet."""

    def __init__(self, into: int, out: int, stride: int, inplace: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.shortcut = nn.Identity()
        if into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace)

    def forward(self, x):
        hidden = self.relu(self.norms[0](self.first(x)))
        hidden = self.norms[1](self.second(hidden))
        return self.relu(hidden + self.shortcut(x))


class Plain(nn.Module):
    """As the wake's network has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return (x + self.second(self.first(x).relu())).relu()


class Read(nn.Module):
    """What a chain gives on its way is read by others too; so it is no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        normal = self.norm(self.layer(x))
        total = normal + 2.0  # broadcast
        return torch.add(total.relu(), normal, alpha=0.5).relu() + total.relu()


class Nothing(nn.Module):
    """Of what has no places nothing is carried."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.layer(x)
        return torch.cat([x[:, :, :0].relu(), x], dim=2)


NETWORKS = {
    "residual": lambda: nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(Block(4, 4, 1, inplace=True), Block(4, 6, 2, inplace=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    ),
    "linear": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(147, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()),
        *(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 3)),
    ),
    "read again": lambda: nn.Sequential(Read(), nn.Flatten(), nn.Linear(196, 3)),
    "empty": lambda: nn.Sequential(Nothing(), nn.Flatten(), nn.Linear(147, 3)),
    "without norms": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), Plain(), Plain(), nn.Flatten(), nn.Linear(100, 3)
    ),
    "grouped": lambda: nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Flatten(), nn.Linear(150, 3)),
    ),
}
OBJECTIVE = zo.OutputLoss(lambda output, target: F.cross_entropy(output, target, reduction="none"))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, 7, 7, generator=generator, dtype=torch.float64), torch.arange(5) % 3


def changes_of(network, evaluator, dtype=torch.float64, length=0.01, every=3):
    """Of every third coordinate, in the dtype."""
    network, data = network.to(dtype), (batch()[0].to(dtype), batch()[1])
    step = Step(network, zo.estimators.Parameters(network), OBJECTIVE, data, 5)
    indices = torch.arange(0, step.parameters.size, every)
    queries = Coordinates(indices, torch.full((len(indices),), length, dtype=dtype))
    start = Snapshot(network)
    base = OBJECTIVE(network, data)
    start.restore()
    return evaluator.changes(step, queries, base)


def made(name, training):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for buffer in network.buffers():  # running statistics that are not the batch's
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return network.train(training)


@pytest.fixture
def without_kernel(limits):
    limits(kernels_run=lambda tensor: True, kernel_of_chain=lambda *arguments: None)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_rules_of_a_chain_one_after_another_give_what_they_gave(name, training, without_kernel):
    plain = changes_of(made(name, training), zo.evaluators.Difference(8))
    chained = changes_of(made(name, training), zo.evaluators.Difference(8, fused=True))
    assert torch.equal(plain, chained)


@torch.no_grad()
def test_chains_are_found_and_what_others_read_is_left_alone(limits, without_kernel):
    seen = []
    original = fused.fuse

    def noted(nodes, end):
        result = original(nodes, end)
        chains = [node.rule.args[0] for node in result if getattr(node.rule, "func", None) is fused._change]
        seen.append([tuple(kind is not None for kind in vars(chain).values()) for chain in chains])
        return result

    limits(chains_fused=noted)
    for name in NETWORKS:
        changes_of(made(name, True), zo.evaluators.Difference(8, fused=True), every=50)
    norm_relu, norm_sum_relu, sum_relu = (1, 0, 1), (1, 1, 1), (0, 1, 1)
    norm, relu = (1, 0, 0), (0, 0, 1)
    assert seen == [
        [norm_relu, norm_relu, norm_sum_relu, norm_relu, norm, norm_sum_relu],
        [norm_relu, relu, norm],
        [norm, relu, relu, relu],
        [],
        [relu, sum_relu, relu, sum_relu],
        [norm_relu, relu],
    ]


def test_on_a_gpu_without_triton_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not fused.kernels_run_at(torch.zeros(1))
    with pytest.raises(ConfigurationError, match="expected Triton for fused=True"):
        fused.kernels_run_at(type("OnGPU", (), {"is_cuda": True})())
    with pytest.raises(ConfigurationError, match="fused"):
        zo.evaluators.Difference(fused=1)


# The kernel, by Triton's interpreter.


@pytest.fixture
def kernels():
    """Triton has its functions for the interpreter, or not, when it is imported."""
    return importlib.import_module("zo.evaluators.difference.gpu.kernels")


def behind(x, kind, weight, bias, running, y, relu, eps):
    if kind:
        x = F.batch_norm(x, *(statistic.clone() for statistic in running), weight, bias, kind == 2, 0.0, eps)
    x = x if y is None else x + y
    return x.relu() if relu else x


def truth(x, d, kind, weight, bias, running, y, dy, relu, eps):
    """What changes, each variant by torch's own functions in float64."""
    base = behind(x, kind, weight, bias, running, y, relu, eps)
    changes = []
    for variant, step in enumerate(d):
        moved = y if dy is None else y + dy[variant]
        changes.append(behind(x + step, kind, weight, bias, running, moved, relu, eps) - base)
    return torch.stack(changes)


# ReLU, a moved summand (2: in one channel), one channel moves, channels last
PARTS = [(1, 1, 0, 0), (0, 0, 0, 1), (1, 0, 1, 0), (1, 1, 0, 1), (0, 0, 1, 0), (1, 2, 0, 0)]
SHAPES = [(3, 5, 4, 6), (40, 2, 7, 7), (2, 40, 3, 3), (9, 4), (6, 3, 11), (1, 2, 33, 40)]


@pytest.mark.needs("triton interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [0, 1, 2])
@torch.no_grad()
def test_the_kernel_gives_what_torch_gives_in_float64(kind, shape, dtype, kernels):
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).double()

    variants, width, eps = 2, shape[1], 1e-5
    weight, bias, running = drawn(width), drawn(width), (drawn(width), drawn(width).abs() + 0.5)
    x, y, d, dy = 2 * drawn(*shape) + 1, drawn(*shape), drawn(variants, *shape), drawn(variants, *shape)
    channels = torch.tensor([0, width - 1])
    for size, (relu, added, one, last) in itertools.product((1e-2, 1.0), PARTS):
        if last and len(shape) != 4:
            continue
        added_y, moved, more = y if added else None, size * d + size, size * dy
        if one:
            moved = moved[:, :, :1]
        if added == 2:
            more = more[:, :, :1]
        change = OneChannel(moved, channels, 1, width).dense() if one else moved
        change_of_y = OneChannel(more, channels, 1, width).dense() if added == 2 else more
        expected = truth(
            x, change, kind, weight, bias, running, added_y, change_of_y if added else None, relu, eps
        )
        if one:
            expected = torch.stack(
                [of[:, channel, None] for of, channel in zip(expected, channels, strict=True)]
            )
        before = behind(x, kind, weight, bias, running, added_y, False, eps)
        mean, variance = running
        if kind == 2:
            variance, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
        s = (variance + eps).sqrt()
        statistics = torch.stack([mean, s, s * s, weight, weight / s, torch.full_like(s, eps)])
        if last:
            moved = moved.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, -1))
        result = kernels.change(
            moved.to(dtype),
            x=x.to(dtype) if kind == 2 else None,
            statistics=statistics.to(dtype) if kind else None,
            kind=kind,
            other=more.to(dtype) if added else None,
            before=before.to(dtype) if relu else None,
            channels=channels if one else None,
            other_channels=channels if added == 2 else None,
        )
        assert result.shape == moved.shape
        # what the base is rounded by is as large as a small change is
        allowed = (2e-5 if dtype == torch.float32 else 1e-12) / size
        off = (result.double() - expected).norm()
        assert off <= allowed * expected.norm(), (size, relu, added, one, last)


@pytest.mark.needs("triton interpreter")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["residual", "linear", "empty", "without norms", "grouped"])
@torch.no_grad()
def test_a_network_s_changes_by_the_kernel_are_those_of_the_loop(
    name, training, kernels, monkeypatch, limits
):
    limits(kernels_run=lambda tensor: True)
    calls = []
    original = kernels.change
    monkeypatch.setattr(kernels, "change", lambda *a, **k: calls.append(1) or original(*a, **k))
    changes = changes_of(made(name, training), zo.evaluators.Difference(16, fused=True), every=23)
    expected = changes_of(made(name, training), Loop(), every=23)
    assert calls or name == "empty"
    assert (changes - expected).abs().max() < 1e-11


@pytest.mark.needs("triton interpreter")
def test_a_variant_that_is_nan_stays_so_and_the_others_are_their_own(kernels):
    d, before = (
        torch.zeros(3, 4, 2, 3, 3),
        torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
    )
    d[1, 2, 1, 0, 0] = torch.nan
    d[2, 0, 0, 0, 0] = 1.0
    s = before.var((0, 2, 3), correction=0).add(1e-5).sqrt()
    statistics = torch.stack([before.mean((0, 2, 3)), s, s * s, s, s / s, torch.full_like(s, 1e-5)])
    result = kernels.change(
        d, x=before, statistics=statistics, kind=2, other=None, before=before, channels=None
    )
    assert not result[0].any() and result[1, :, 1].isnan().all() and not result[1, :, 0].any()
    assert not result[2, :, 1].any() and result[2, :, 0].any() and not result[2].isnan().any()


@pytest.mark.needs("triton interpreter")
def test_places_that_are_far_apart_in_memory_are_brought_together(kernels, monkeypatch):
    """Where variants are innermost, as a rule may give them, they are beyond 32 bits first."""
    drawn = torch.randn(5, 4, 6, 7, generator=torch.Generator().manual_seed(3))
    d = drawn.movedim(-1, 0)
    before, options = d[0].contiguous(), {"x": None, "statistics": None, "kind": 0, "other": None}
    result = kernels.change(d, before=before, channels=None, **options)
    monkeypatch.setattr(kernels, "FAR", 5 * 4 * 6)
    assert kernels._flat(d).stride() == (5 * 4 * 6, 4 * 6, 6, 1)
    assert torch.equal(kernels.change(d, before=before, channels=None, **options), result)


@pytest.mark.needs("triton interpreter")
def test_there_may_be_more_channels_than_a_gpu_has_programs_along_an_axis(kernels, monkeypatch):
    grids, original = [], kernels._behind
    monkeypatch.setattr(
        kernels, "_behind", type("Noted", (), {"__getitem__": lambda _, g: grids.append(g) or original[g]})()
    )
    d = torch.ones(3, 1, 70, 2)
    kernels.change(d, x=None, statistics=None, kind=0, other=None, before=d[0], channels=None)
    assert grids == [(3 * 70,)]  # of the first axis 2 ** 31


@pytest.mark.needs("triton interpreter")
@torch.no_grad()
def test_a_channel_on_the_last_axis_stays_one(kernels, monkeypatch, limits):
    """A whole activation of tokens would go through the next layer in its place."""
    limits(kernels_run=lambda tensor: True)
    monkeypatch.setattr(kernels, "change", None)
    layers = (nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 2), nn.Flatten(), nn.Linear(42, 3))
    changes, expected = (
        changes_of(nn.Sequential(*layers), evaluator, every=10**6)  # a weight of the first
        for evaluator in (zo.evaluators.Difference(fused=True), Loop())
    )
    assert (changes - expected).abs().max() < 1e-11


COMPILED = """
import subprocess
import tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zo.evaluators.difference.gpu import kernels

names = kernels._behind.arg_names
numbers = ("out", "d", "other", "x", "before", "statistics")
for dtype, norm, one, added_one, together in (
    ("fp32", 2, False, False, 1),
    ("fp32", 2, False, True, 32),
    ("fp32", 1, True, False, 1),
    ("fp64", 2, False, False, 32),
):
    fixed = dict(NORM=norm, ADD=not one, RELU=True, ONE=one, ADD_ONE=added_one, TOGETHER=together)
    fixed |= dict(ROWS=1, PLACES=kernels.TILE // together)
    kinds = {name: "*i64" if "channels" in name else "i32" for name in names}
    kinds |= dict.fromkeys(numbers, "*" + dtype) | dict.fromkeys(fixed, "constexpr")
    source = ASTSource(kernels._behind, kinds, constexprs=fixed)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        print(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
"""


@pytest.mark.needs("triton")
def test_the_kernel_compiles_for_an_h200_without_spilling():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILED], env=environment, capture_output=True, text=True)
    used = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", done.stdout)
    assert len(used) == 4, done.stderr[-3000:]
    assert all(stack == local == "0" for _, stack, local in used), used
