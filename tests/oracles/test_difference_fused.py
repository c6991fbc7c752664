"""The fused kernels of `difference` against float64, compiled and as written, and without a compiler."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

import zo
from benchmarks.query_speed.problems import make
from zo.evaluators.difference import fused
from zo.evaluators.difference.changes import Moved, OneChannel
from zo.evaluators.difference.compiling import Compiled
from zo.evaluators.difference.evaluator import Difference
from zo.evaluators.difference.fast_rules import fast_change
from zo.evaluators.difference.fused import PendingNorm
from zo.evaluators.difference.registry import Call
from zo.evaluators.evaluator import Problem
from zo.perturbation import Coordinates

VARIANTS, ROWS, CHANNELS, SIZE = 3, 4, 5, 6
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def as_written(monkeypatch):
    """Kernels run as they are written: what is compiled of them is the same, and takes seconds."""
    monkeypatch.setattr(Compiled, "unfused", True)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base() -> torch.Tensor:
    """Channels of several means and deviations, in numbers that float32 has."""
    x = drawn(0, ROWS, CHANNELS, SIZE, SIZE) * torch.tensor([1.0, 3.0, 0.1, 1.0, 1.0]).view(-1, 1, 1)
    return (x + torch.tensor([0.0, 5.0, 0.0, -2.0, 0.3]).view(-1, 1, 1)).float().double()


SHAPE = (VARIANTS, ROWS, CHANNELS, SIZE, SIZE)
CHANGES = {
    "tiny": 1e-7 * drawn(1, *SHAPE),
    "small": 1e-2 * drawn(2, *SHAPE),
    "as large as the base": drawn(3, *SHAPE),
    "all but uniform": 0.5 + 1e-3 * drawn(4, *SHAPE),
    "far from zero": 300.0 + drawn(5, *SHAPE),
    "none": torch.zeros(SHAPE, dtype=torch.float64),
    "a channel becomes constant": -(base() - 0.7)[None] * (torch.arange(CHANNELS) == 1).view(-1, 1, 1)
    + 1e-3 * drawn(6, *SHAPE),
}
GAMMA, BETA = 1 + 0.3 * drawn(7, CHANNELS), 0.2 * drawn(8, CHANNELS)


def whole(x: torch.Tensor, r: torch.Tensor, rectified: bool) -> torch.Tensor:
    y = F.batch_norm(x, None, None, GAMMA, BETA, training=True) + r
    return y.relu() if rectified else y


@pytest.mark.parametrize("rectified", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_norm_sum_and_relu_are_the_finite_difference(name, added, rectified, as_written):
    x, d = base(), CHANGES[name].float().double()
    r, dr = drawn(9, ROWS, CHANNELS, SIZE, SIZE), 0.1 * d * added
    dr = dr.float().double()
    true = torch.stack(
        [whole(x + d[v], r + dr[v], rectified) - whole(x, r, rectified) for v in range(VARIANTS)]
    )

    narrow = x.float()
    norm = Call(F.batch_norm, F.batch_norm(narrow, None, None, GAMMA.float(), BETA.float(), training=True))
    arguments = {"weight": GAMMA.float(), "bias": BETA.float(), "training": True, "eps": 1e-5}
    found = fast_change(norm, (Moved(narrow, d.float()),), arguments)
    if name in ("far from zero", "a channel becomes constant"):
        assert found is None  # the rule of the norm takes it: here sums would cancel
        return
    assert isinstance(found, PendingNorm) and len(found) == VARIANTS
    total = Call(torch.add, norm.output + r.float())
    shortcut = Moved(r.float(), dr.float()) if added else r.float()
    found = fast_change(total, (Moved(norm.output, found), shortcut), {})
    if rectified:
        found = fast_change(Call(F.relu, total.output.relu()), (Moved(total.output, found),), {})
    found = found.dense() if isinstance(found, PendingNorm) else found
    # of the numbers that are added: d itself, and what it does to the whole channel
    scale = max(float(true.abs().max()), float((d / 0.1).abs().max()) if name == "all but uniform" else 0.0)
    assert (found - true).abs().max() <= 1e-5 * scale
    if name == "none":
        assert not found.any()


@pytest.mark.parametrize("d", [1e-9, -1e-9, 1e-3, -1e-3, 0.5, -0.5, 3.0, -3.0])
def test_relu_is_exact_across_its_kink(d, as_written):
    x = torch.tensor([-2.0, -0.5, -1e-4, 0.0, 1e-4, 0.5, 2.0]).view(1, 1, 1, -1)
    change = torch.full((1, *x.shape), d)
    found = fast_change(Call(F.relu, x.relu()), (Moved(x, change),), {})
    true = (x.double() + change.double()).relu() - x.double().relu()
    rounding = 2**-24 * abs(d) + 2**-24 * 2.0 * (abs(d) > 1) + 2**-51  # the last is the truth's own
    assert (found - true).abs().max() <= rounding


RULED = {  # function, arguments behind the first by name
    "layer_norm": (F.layer_norm, {"normalized_shape": (CHANNELS,), "weight": GAMMA, "bias": BETA}),
    "layer_norm, two axes": (F.layer_norm, {"normalized_shape": (SIZE, CHANNELS)}),
    "group_norm": (F.group_norm, {"num_groups": 2, "weight": drawn(10, SIZE), "bias": drawn(11, SIZE)}),
    "softmax": (F.softmax, {"dim": -1}),
    "softmax, inner axis": (torch.softmax, {"dim": 1}),
    "gelu": (F.gelu, {}),
    "gelu, tanh": (F.gelu, {"approximate": "tanh"}),
    "silu": (F.silu, {}),
    "sigmoid": (torch.sigmoid, {}),
    "tanh": (torch.tanh, {}),
}


def narrowed(value):
    return value.float() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1e-7, 1e-2, 1.0, 20.0])
@pytest.mark.parametrize("name", RULED)
def test_compiled_rules_are_the_finite_difference(name, size, dtype, as_written):
    function, named = RULED[name]
    named = {key: narrowed(value) for key, value in named.items()}
    wide = {key: v.double() if isinstance(v, torch.Tensor) else v for key, v in named.items()}
    x = drawn(12, ROWS, SIZE, CHANNELS).float()
    d = (size * drawn(13, VARIANTS, ROWS, SIZE, CHANNELS)).to(dtype)
    found = fast_change(Call(function, function(x, **named)), (Moved(x, d),), named)
    assert isinstance(found, torch.Tensor) and found.dtype == dtype
    true = torch.stack([function(x.double() + d[v].double(), **wide) for v in range(VARIANTS)])
    true = true - function(x.double(), **wide)
    # a hundred roundings of numbers no larger than the largest change, and the one when it is kept
    bound = 100 * EPS * true.abs().max() + torch.finfo(dtype).eps * true.abs() * (dtype != torch.float32)
    assert ((found.double() - true).abs() <= bound + 2**-50).all()


@pytest.mark.parametrize("case", ["a weight that moves", "one channel", "another device type"])
def test_other_changes_are_left_to_their_rules(case, as_written):
    x, d = drawn(1, ROWS, SIZE, CHANNELS).float(), drawn(2, VARIANTS, ROWS, SIZE, CHANNELS).float()
    weight = torch.ones(CHANNELS)
    moved, named = Moved(x, d), {"normalized_shape": (CHANNELS,), "weight": weight}
    if case == "a weight that moves":
        named["weight"] = Moved(weight, torch.ones(VARIANTS, CHANNELS))
    elif case == "one channel":
        moved = Moved(x, OneChannel(d[..., :1], torch.zeros(VARIANTS, dtype=torch.int64), 2, CHANNELS))
    else:
        x, weight = x.double(), weight.double()
    call = Call(F.layer_norm, F.layer_norm(x, (CHANNELS,), weight))
    assert fast_change(call, (moved,), named) is None


@torch.no_grad()
def test_compiled_rules_give_what_they_give_as_written(monkeypatch):
    x, d = drawn(12, ROWS, SIZE, 32).float(), 0.1 * drawn(13, VARIANTS, ROWS, SIZE, 32).float()
    for function, named in (
        (F.layer_norm, {"normalized_shape": (32,)}),
        (F.gelu, {}),
        (F.softmax, {"dim": -1}),
    ):
        call, before = Call(function, function(x, **named)), Compiled.programs
        compiled = fast_change(call, (Moved(x, d),), named)
        assert Compiled.programs == before + 1
        fast_change(call, (Moved(x, d + 1),), named)
        assert Compiled.programs == before + 1
        with monkeypatch.context() as patch:
            patch.setattr(Compiled, "unfused", True)
            written = fast_change(call, (Moved(x, d),), named)
        assert (compiled - written).abs().max() <= 30 * EPS * written.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_of_one_channel_and_of_all(stride, padding):
    x, weight = drawn(1, ROWS, CHANNELS, SIZE, SIZE).float(), drawn(2, 7, CHANNELS, 3, 3).float()
    call = Call(F.conv2d, F.conv2d(x, weight, None, stride, padding))
    options = {"stride": stride, "padding": padding}
    channels = torch.tensor([0, 4, 0])
    one = OneChannel(drawn(3, VARIANTS, ROWS, 1, SIZE, SIZE).float(), channels, 1, CHANNELS)
    for change in (one, drawn(4, *SHAPE).float()):
        dense = (change if isinstance(change, torch.Tensor) else change.dense()).double()
        true = F.conv2d(dense.flatten(0, 1), weight.double(), None, stride, padding)
        found = fast_change(call, (Moved(x, change), weight), options)
        assert found.shape == (VARIANTS, *call.output.shape)
        assert torch.allclose(found.flatten(0, 1).double(), true, atol=1e-5)


def rounded(problem: Problem, seed: int) -> Problem:
    """The same with every weight and input moved by four units of float32 in its last place, signs drawn.

    A sum of n products in float32 is the exact sum of products with weights moved by some sqrt(n) / 2 units
    (Higham, "Accuracy and Stability of Numerical Algorithms", section 2.8): 3 for 9 taps of 4 channels.
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + 4 * EPS * (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1))

    network = copy.deepcopy(problem.network)
    for weight in network.parameters():
        weight.data = moved(weight.data)
    batch = tuple(moved(tensor) for tensor in problem.batch)
    return Problem(network, zo.Parameters(network), problem.objective, batch, problem.rows)


NAMES = ["resnet8", "dncnn", "wake", "vgg", "vit-tiny"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_in_float32_the_evaluator_is_off_by_what_rounding_the_base_does_to_the_truth(name, as_written):
    timed = make(name, 3, width=6 if name == "vit-tiny" else 4)
    base, exact = timed.base(), timed.in_float64()
    problems = [exact, *(rounded(exact, seed) for seed in range(3))]
    bases = [problem.objective(problem.network, problem.batch) for problem in problems]
    evaluator = Difference(fused=True, variants=4)
    for block in timed.blocks():
        queries = timed.queries(block, 5)  # two passes for a tensor, or less, filled up
        found = evaluator.changes(timed.problem, queries, base).double()
        doubled = Coordinates(queries.indices, queries.steps.double())
        true, *others = [
            zo.Loop().changes(problem, doubled, its_base)
            for problem, its_base in zip(problems, bases, strict=True)
        ]
        spread = max((other - true).norm() for other in others)  # kinks that the base's rounding crosses
        assert (found - true).norm() <= spread + 50 * EPS * true.norm(), block.name


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_in_bfloat16_the_evaluator_is_off_by_a_few_units_of_it(name, as_written):
    timed = make(name, 3, width=6 if name == "vit-tiny" else 4)
    base, exact = timed.base(), timed.in_float64()
    its_base = exact.objective(exact.network, exact.batch)
    evaluator = Difference(fused=True, dtype=torch.bfloat16, variants=4)
    for block in timed.blocks():
        queries = timed.queries(block, 5)
        found = evaluator.changes(timed.problem, queries, base).double()
        doubled = Coordinates(queries.indices, queries.steps.double())
        true = zo.Loop().changes(exact, doubled, its_base)
        # In up to 17 layers two roundings each, of half a unit and of signs that are drawn.
        within = 34**0.5 / 2 * torch.finfo(torch.bfloat16).eps
        assert (found - true).norm() <= within * true.norm(), block.name


@torch.no_grad()
def test_a_pass_that_is_filled_up_gives_the_bits_of_a_full_one(as_written):
    timed = make("resnet8", 3, width=4)
    base, evaluator = timed.base(), Difference(fused=True, variants=4)
    queries = timed.queries(timed.blocks()[2], 4, together=4)
    full = evaluator.changes(timed.problem, queries, base)
    assert torch.equal(evaluator.changes(timed.problem, queries.part(0, 3), base), full[:3])


@torch.no_grad()
def test_a_compiled_kernel_gives_what_it_gives_as_written():
    d, z = drawn(1, 2, 48, 16).float(), drawn(2, 48, 16).float()
    compiled = Compiled(fused._relu)
    before = Compiled.programs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own imports
        assert torch.equal(compiled(d, z), fused._relu(d, z))
    assert Compiled.programs == before + 1
    compiled(d + 1, z)
    assert Compiled.programs == before + 1  # the same shapes: the same program


@torch.no_grad()
def test_without_a_compiler_kernels_run_as_written_and_say_so_once(monkeypatch):
    import torch._inductor

    def broken(*_):
        raise RuntimeError("No working C++ compiler found\nin this test")

    monkeypatch.setattr(torch._inductor, "compile", broken)
    monkeypatch.setattr(Compiled, "works", True)
    d, z = drawn(1, 2, 8, 3).float(), drawn(2, 8, 3).float()
    first, second = Compiled(fused._relu), Compiled(fused._pixel_mean)
    with pytest.warns(zo.EvaluatorWarning, match="No working C.. compiler found"):
        found = first(d, z)
    assert torch.equal(found, fused._relu(d, z))
    assert torch.equal(second(d), fused._pixel_mean(d))  # warnings are errors: none came
    assert not Compiled.works
