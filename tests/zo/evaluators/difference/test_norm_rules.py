"""Norms, pooling, softmax and losses against sixty digits, where variances vanish and classes are sure.

Batch norm has a rule of its own; the others are subtracted in float64: their smallest steps are larger.
"""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.zo.evaluators.difference.exact import change, elementwise, exact, rounded
from zo.evaluators import Moved
from zo.evaluators.difference.rule_registry import RULES, TapedCall
from zo.evaluators.difference.rules.subtracted import subtracted

TINY = 1e-8
EPS = 1e-5
root = elementwise(mp.sqrt)


def applied(function, x, d, *args, **kwargs):
    rule = RULES.get(function, subtracted)
    return rule(TapedCall(function, function(x, *args, **kwargs)), Moved(x, d), *args, **kwargs)


def normalised(axes, shape=None, centre=True):
    def function(x):
        y = x if shape is None else x.reshape(shape)
        mean = y.mean(axes, keepdims=True) if centre else 0
        variance = ((y - mean) ** 2).mean(axes, keepdims=True)
        return ((y - mean) / root(variance + mp.mpf(EPS))).reshape(x.shape)

    return function


def inputs(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    if kind == "constant":
        x[:] = x[:1, :, :1]
    elif kind == "nearly constant":
        x = 1e-4 * x
    elif kind == "far from zero":
        x = x + 10
    elif kind == "rare":
        x[:] = 0
        x[0, :, 0] = 3
    return x.to(dtype)


def steps(x, tiny):
    generator = torch.Generator().manual_seed(1)
    d = torch.randn(7, *x.shape, generator=generator, dtype=x.dtype)
    d[1] *= tiny
    d[2] *= 1e-6
    d[3] = 0.7  # the mean alone
    d[4] = 1e-3 * x  # the scale alone
    d[5] = 0
    d[5, 1, 2, 3] = 1e-3
    d[6] = x.mean() - x  # to a constant
    return d


NORMS = [
    ("batch", F.batch_norm, (None, None), {"training": True, "eps": EPS}, (0, 2), None),
    ("layer", F.layer_norm, ((4, 5),), {"eps": EPS}, (1, 2), None),
    ("group", F.group_norm, (2,), {"eps": EPS}, (2,), (3, 2, 10)),
    ("instance", F.instance_norm, (), {"eps": EPS}, (2,), None),
    ("rms", F.rms_norm, ((5,),), {"eps": EPS}, (2,), None),
]


# what has no rule is subtracted in float64, and so rounded as by `loop` where it is in float64 itself
PRECISIONS = [
    pytest.param(*norm, dtype, id=f"{norm[0]}-{dtype}")
    for norm in NORMS
    for dtype in (torch.float32, torch.float64)
    if norm[1] in RULES or dtype == torch.float32
]


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize("kind", ["plain", "constant", "nearly constant", "far from zero", "rare"])
@pytest.mark.parametrize(("name", "function", "args", "kwargs", "axes", "shape", "dtype"), PRECISIONS)
def test_norm(name, function, args, kwargs, axes, shape, kind, dtype):
    x = inputs(kind, dtype)
    d = steps(x, 1e-12 if function in RULES else TINY)
    truth = change(normalised(axes, shape, centre=name != "rms"), x, d)
    result = applied(function, x, d, *args, **kwargs).double()
    # What the formula adds up is at most the step over the deviation, times normalised values (at most the
    # root of their number); means and the centred x are rounded at the size of x.
    y, e = (t.double().reshape(t.shape[: t.ndim - 3] + (shape or x.shape)) for t in (x, d))
    mean = 0 if name == "rms" else y.mean(axes, keepdim=True)
    s = (((y - mean) ** 2).mean(axes, keepdim=True) + EPS).sqrt()
    behind = tuple(axis + 1 for axis in axes)
    moved = y + e
    shift = 0 if name == "rms" else moved.mean(behind, keepdim=True)
    t = (((moved - shift) ** 2).mean(behind, keepdim=True) + EPS).sqrt()
    largest = e.abs().amax(behind, keepdim=True)
    place = 1 + y.abs().amax(axes, keepdim=True) / s
    bound = (
        40
        * torch.finfo(dtype).eps
        * largest
        / torch.minimum(s, t)
        * place
        * (1 + largest / torch.minimum(s, t))
    )
    assert ((result - truth).abs().reshape(bound.shape[:1] + y.shape) <= bound + 1e-300).all()


def test_max_pooling_with_ties_overlap_padding_and_ceiling(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 6, generator=generator, dtype=dtype).round(decimals=0)  # many ties
    d = torch.randn(5, *x.shape, generator=generator, dtype=dtype)
    d[1] *= TINY
    d[2] *= 1e-5
    d[3] = -2 * x
    for options in (
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2), "dilation": (2, 1), "ceil_mode": True},
    ):
        result = applied(F.max_pool2d, x, d, **options)
        # The pooling of mpmath numbers: windows by index.
        numbers = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
        windows = _windows(numbers, x.shape, options)
        flat, steps_ = exact(x).reshape(-1), [exact(one).reshape(-1) for one in d]
        for variant, step in enumerate(steps_):
            truth = np.array([max(flat[w] + step[w]) - max(flat[w]) for w in windows], dtype=object)
            truth = rounded(truth).reshape(result.shape[1:])
            bound = 4 * torch.finfo(dtype).eps * d[variant].abs().max().double()
            assert ((result[variant].double() - truth).abs() <= bound).all()


def _windows(numbers, shape, options):
    """Flat indices in each window, found by pooling one-hot images: independent of how the rule cuts them."""
    reached = F.max_pool2d(numbers, **options).numel()
    members = [[] for _ in range(reached)]
    for index in range(numbers.numel()):
        one = torch.full((numbers.numel(),), -1.0)
        one[index] = 1.0
        hit = F.max_pool2d(one.reshape(shape), **options).flatten() > 0
        for window in torch.nonzero(hit).flatten().tolist():
            members[window].append(index)
    return members


def logits(kind):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    if kind == "confident":
        z = z + 40 * F.one_hot(torch.arange(6) % 5, 5)
    elif kind == "wrong":
        z = z - 40 * F.one_hot(torch.arange(6) % 5, 5)
    elif kind == "equal":
        z = torch.zeros_like(z)
    return z


def logit_steps(z):
    generator = torch.Generator().manual_seed(3)
    d = torch.randn(6, *z.shape, generator=generator, dtype=z.dtype)
    d[1] *= TINY
    d[2] *= 1e-5
    d[3] *= 40
    d[4] = 0.3 + 1e-6 * d[4]  # nearly a common shift
    d[5, :, :4] = 0  # one class alone
    return d


def log_sum(z):
    return elementwise(mp.log)(elementwise(mp.exp)(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", ["plain", "confident", "wrong", "equal"])
def test_cross_entropy(kind, dtype=torch.float32):
    z = logits(kind).to(dtype)
    d = logit_steps(z)
    y = torch.arange(6) % 5

    def loss(array):
        return (log_sum(array) - array)[np.arange(6), y.numpy()]

    truth = change(loss, z, d)
    result = applied(F.cross_entropy, z, d, y, reduction="none").double()
    p = torch.softmax(z.double(), 1).scatter(1, y[:, None], 0.0)
    of_target = d.double().gather(2, y.expand(6, 6)[..., None])
    terms = p * (
        torch.expm1((d.double() - of_target).clamp_max(30)).abs() + d.double().abs() + of_target.abs()
    )
    # A probability's relative error is that of its logit times the logit's size.
    size = 1 + z.double().abs().max() + d.double().abs().amax((1, 2))[:, None]
    bound = 10 * torch.finfo(dtype).eps * size * torch.minimum(terms.sum(2) + truth.abs(), size)
    bound = bound + 4 * torch.finfo(torch.float64).eps * size
    assert ((result - truth).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["plain", "confident", "wrong", "equal"])
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log softmax"])
def test_softmax(kind, log, dtype=torch.float32):
    z = logits(kind).to(dtype)
    d = logit_steps(z)
    truth = change(
        (lambda a: a - log_sum(a)) if log else (lambda a: elementwise(mp.exp)(a - log_sum(a))), z, d
    )
    result = applied(F.log_softmax if log else F.softmax, z, d, dim=-1).double()
    size = 1 + z.double().abs().max() + d.double().abs().amax((1, 2))[:, None, None]
    largest = d.double().abs().amax(2, keepdim=True)
    bound = 10 * torch.finfo(dtype).eps * size * torch.minimum(largest, size)
    assert ((result - truth).abs() <= bound).all()


def test_errors_of_tensors(dtype=torch.float32):
    x = torch.tensor([[0.0, 1.0, -1.0, 1e4]], dtype=dtype)
    t = torch.tensor([[0.0, 1.0 + 1e-3, 2.0, 1e4 + 1]], dtype=dtype)
    d = torch.tensor([TINY, -1e-7, 1e-3, 2.0], dtype=dtype)[:, None, None].expand(4, 1, 4)
    u = exact(x) - exact(t)
    for function, power in ((F.mse_loss, lambda a: a**2), (F.l1_loss, abs)):
        result = applied(function, x, d, t, reduction="none").double()
        truth = torch.stack([rounded(power(u + exact(one)) - power(u)) for one in d])
        # The base's error itself is rounded where it is not exact.
        slope = 2 * rounded(u).abs() + d.double().abs() + x.double().abs() + 1
        assert ((result - truth).abs() <= 4 * torch.finfo(dtype).eps * d.double().abs() * slope).all()
