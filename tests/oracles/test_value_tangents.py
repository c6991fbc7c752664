"""Tangents fitted to values against autograd: exact polynomials, output maps, networks' own derivatives."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from simulators.kuramoto_sivashinsky import KuramotoSivashinsky
from tests.zo.learners import learner
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import CallPairs
from zo.tangents.models import gaussian_process, kernel
from zo.tangents.models.gaussian_process import (
    FLAT,
    Choice,
    Process,
    best_factor,
    least_unexplained,
    likely_lengths,
    one_length,
    principal_axes,
    unlikeliness,
)
from zo.tangents.models.grid.reach import measure
from zo.tangents.models.kernel import CURVATURE
from zo.tangents.models.maps.output_map import RIDGES, SPAN, OutputMap
from zo.tangents.models.row_window import spread_places

QUICK = {"first_steps": 3, "steps_per_step": 1}


def box_of(function, *inputs: ArraySpec, outputs=None) -> FromTorch:
    """A box of a function of rows; its outputs are its first input's, if nothing else is said."""
    return FromTorch(function, inputs, outputs or (inputs[0],))


def pairs_at(box: FromTorch, *arrays: torch.Tensor, alive=None) -> CallPairs:
    """A call."""
    answer = box.function(*arrays)
    answers = answer if isinstance(answer, tuple) else (answer,)
    moving = [
        a.flatten(1) if a.ndim > 1 else a[:, None]
        for a, s in zip(arrays, box.inputs, strict=True)
        if s.differentiable
    ]
    z, y = torch.cat(moving, dim=1), torch.cat([a.reshape(len(a), -1) for a in answers], dim=1)
    return CallPairs(
        tuple(spec for spec in box.inputs if spec.differentiable),
        box.outputs,
        z,
        y,
        torch.ones(len(z), dtype=torch.bool) if alive is None else alive,
        tuple(None if s.differentiable else a for a, s in zip(arrays, box.inputs, strict=True)),
    )


def learn(tangent, *calls: CallPairs) -> None:
    """A step of training, as `TangentGradient` has it."""
    for pairs in calls:
        tangent.see(pairs)
    tangent.learn()


def true_vjp(box: FromTorch, arrays, v: torch.Tensor) -> torch.Tensor:
    leaves = [a.clone().requires_grad_(s.differentiable) for a, s in zip(arrays, box.inputs, strict=True)]
    answer = box.function(*leaves)
    y = torch.cat([a.flatten(1) for a in (answer if isinstance(answer, tuple) else (answer,))], dim=1)
    wanted = [a for a, s in zip(leaves, box.inputs, strict=True) if s.differentiable]
    return torch.cat([g.reshape(len(y), -1) for g in torch.autograd.grad(y, wanted, v)], dim=1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


LINE, PLANE = ArraySpec("u", (1, 16)), ArraySpec("w", (2, 7, 6))
CASE = ArraySpec("case", (), differentiable=False)


def quadratic(u, case):
    """Advection and diffusion on a ring."""
    return u - 0.2 * (1 + case[:, None, None]) * u * (u.roll(-1, 2) - u.roll(1, 2)) + 0.1 * u.roll(2, 2)


def cubic(u, case):
    """Three neighbours multiply."""
    return 0.7 * u + 0.3 * case.square()[:, None, None] * u.roll(1, 2) * u * u.roll(-1, 2) - 0.1 * u**3


def reaction(w, case):
    """Gray-Scott on a torus: two fields that diffuse, and a feed rate."""
    u, v = w[:, :1], w[:, 1:]
    around = sum(w.roll(shift, axis) for shift in (1, -1) for axis in (2, 3)) - 4 * w
    made = u * v * v
    change = torch.cat([0.3 * case[:, None, None, None] * (1 - u) - made, made - 0.1 * v], dim=1)
    return w + 0.2 * around + 0.4 * change


def shifted(u: torch.Tensor, cells: int, axis: int = 2) -> torch.Tensor:
    """As `roll`, but zero comes in from beyond the walls."""
    moved = u.roll(cells, axis)
    edge = slice(0, cells) if cells > 0 else slice(cells, None)
    index = [slice(None)] * u.ndim
    index[axis] = edge
    moved = moved.clone()
    moved[tuple(index)] = 0.0
    return moved


def walled(u, case):
    """A quadratic box between walls where the field is zero."""
    return (
        u
        + 0.2 * (shifted(u, 1) + shifted(u, -1) - 2 * u)
        - 0.1 * (1 + case[:, None, None]) * u * shifted(u, 1)
    )


# Polynomial stencils


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(
    ("function", "spec", "degree", "periodic"),
    [
        (quadratic, LINE, 2, True),
        (quadratic, LINE, 3, True),
        (cubic, LINE, 3, True),
        (reaction, PLANE, 3, True),
        (walled, LINE, 2, False),
    ],
)
def test_a_stencil_is_exact_for_a_polynomial_box(function, spec, degree, periodic):
    """The case is not linear in all of them; the first rows have a mean of zero, as the walls have."""
    box = box_of(function, spec, CASE)
    tangent = zo.tangents.StencilTangent(degree, periodic=periodic, reach=2, ridge=1e-13)
    for seed in range(3):
        half, case = weights(40, *spec.shape, seed=seed), 0.5 + weights(40, seed=50 + seed).abs()
        learn(tangent, pairs_at(box, torch.cat([half, -half]), torch.cat([case, case])))
    arrays = weights(3, *spec.shape, seed=9), torch.tensor([0.3, 0.9, 1.4], dtype=torch.float64)
    pairs, v = pairs_at(box, *arrays), weights(3, *spec.shape, seed=8).flatten(1)
    truth = true_vjp(box, arrays, v)
    assert (tangent.at(pairs).pull(v) - truth).abs().max() < 1e-7 * truth.abs().max()
    assert (tangent.at(pairs).values - pairs.y).abs().max() < 1e-7 * pairs.y.abs().max()
    d = weights(*pairs.z.shape, seed=7)
    assert torch.allclose((tangent.at(pairs).push(d) * v).sum(-1), (d * tangent.at(pairs).pull(v)).sum(-1))


def test_a_stencil_of_too_low_a_degree_is_not():
    box = box_of(cubic, LINE, CASE)
    tangent = zo.tangents.StencilTangent(2, periodic=True, reach=2, ridge=1e-13)
    learn(tangent, pairs_at(box, weights(80, 1, 16), weights(80).abs()))
    arrays = weights(3, 1, 16, seed=9), torch.ones(3).double()
    v = weights(3, 16, seed=8)
    assert cosine(tangent.at(pairs_at(box, *arrays)).pull(v), true_vjp(box, arrays, v)) < 0.99


# Kernels

POINT, TURN = ArraySpec("x", (3,)), ArraySpec("turn", (2,), differentiable=False)


def bent(x, turn):
    """Smooth, of numbers in three units; the turn carries no gradient."""
    a, b, c = (x / torch.tensor([1.0, 1e3, 1e-3])).unbind(1)
    return torch.stack([a * b + c, torch.sin(a + turn[:, 0]), 1e3 * (b - turn[:, 1] * c**2)], dim=1)


def points(rows, seed):
    units = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)
    return [weights(rows, 3, seed=seed) * units, weights(rows, 2, seed=seed + 50)]


def covariance(a, b, lengths, curvature=0.0):
    near = torch.exp(-torch.cdist(a / lengths, b / lengths).square() / 2)
    product = a @ b.T / a.shape[1]
    return near + 10 * (1 + product) + curvature * product**2


def left_out(x, wanted, lengths, noise, curvature=0.0):
    """Squared errors `(rows, outputs)` of fits without each of the rows in turn."""
    whole, missed = covariance(x, x, lengths, curvature), []
    for row in range(len(x)):
        kept = [other for other in range(len(x)) if other != row]
        small = whole[kept][:, kept] + noise * torch.eye(len(kept)).double()
        missed.append(whole[row, kept] @ torch.linalg.solve(small, wanted[kept]) - wanted[row])
    return torch.stack(missed).square()


def learned_kernel():
    """A tangent that has learned from 60 points, these, and how its outputs lie in units of the rows."""
    tangent, box = zo.tangents.KernelTangent(), box_of(bent, POINT, TURN)
    first = pairs_at(box, *points(60, 0))
    learn(tangent, first)
    x = torch.cat([first.z, first.others[1]], 1)
    change = first.y - first.z if tangent._stays.all() else first.y
    mean, scale, middle, unit = x.mean(0), x.std(0, correction=0), change.mean(0), change.std(0, correction=0)
    return tangent, box, ((x - mean) / scale, mean, scale), ((change - middle) / unit, middle, unit)


def test_a_kernels_values_are_those_of_gaussian_processes():
    """By scikit-learn, with the lengths and noises that were chosen, in the units of the rows."""
    from sklearn.gaussian_process import GaussianProcessRegressor, kernels

    tangent, box, (x, mean, scale), (change, middle, unit) = learned_kernel()
    asked = pairs_at(box, *points(5, 9))
    unseen = (torch.cat([asked.z, asked.others[1]], 1) - mean) / scale
    predicted = torch.empty(5, 3).double()
    for process in tangent._fit:
        linear = kernels.ConstantKernel(10 / 5) * kernels.DotProduct(5**0.5)
        quadratic = kernels.ConstantKernel(process.curvature / 25) * kernels.DotProduct(0.0) ** 2
        kernel = kernels.RBF(process.lengths.numpy()) + linear
        kernel = kernel + quadratic if process.curvature else kernel
        reference = GaussianProcessRegressor(kernel, alpha=process.noise, optimizer=None)
        reference.fit(x.numpy(), change[:, process.outputs].numpy())
        told = torch.from_numpy(reference.predict(unseen.numpy())).reshape(5, -1)
        predicted[:, process.outputs] = told
    assert sorted(torch.cat([process.outputs for process in tangent._fit]).tolist()) == [0, 1, 2]
    expected = middle + unit * predicted + (asked.z if tangent._stays.all() else 0)
    assert torch.allclose(tangent.at(asked).values, expected, rtol=1e-5, atol=1e-5 * float(unit.min()))


def test_many_rows_are_taken_in_parts(monkeypatch):
    """Values, and their adjoint by autograd, are those of all rows at once."""
    tangent, box, *_ = learned_kernel()
    asked, v = pairs_at(box, *points(50, 9)), weights(50, 3, seed=4)
    z = asked.z.clone().requires_grad_(True)
    values = tangent.within(z, asked.others[1])
    (whole,) = torch.autograd.grad(values, z, v)
    monkeypatch.setattr(
        "zo.tangents.models.gaussian_process.AT_ONCE", 7 * 60
    )  # seven rows beside sixty centres
    at = tangent.at(asked)
    assert torch.allclose(at.values, values.detach(), rtol=1e-6)
    assert torch.allclose(at.pull(v), whole, rtol=1e-5, atol=1e-8 * float(whole.abs().max()))


@pytest.mark.parametrize("curvature", [0.0, 10.0])
def test_rows_left_out_are_those_of_fits_without_each_in_turn(curvature):
    x, wanted = weights(20, 3), weights(20, 2, seed=1)
    lengths = torch.tensor([0.5, 2.0, 1.0]).double()
    chosen = best_factor(x, wanted, lengths, (0.5, 1.0, 2.0), curvature)
    tried = {
        (several, level): left_out(x, wanted, several * lengths, level, curvature).mean(dim=0)
        for several in (0.5, 1.0, 2.0)
        for level in (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)
    }
    best = min(tried, key=lambda pair: float(tried[pair].mean()))
    assert torch.equal(best[0] * lengths, chosen.lengths)
    assert best[1] == chosen.noise
    assert torch.allclose(tried[best], chosen.errors, rtol=1e-5)
    again = gaussian_process.left_out(x, wanted, chosen.lengths, chosen.noise, curvature).mean(0)
    assert torch.allclose(again, chosen.errors, rtol=1e-5)


def test_the_noise_is_the_largest_within_a_standard_error_of_the_least_error():
    """Fits without each row in turn give the errors."""
    x, lengths = weights(60, 2), torch.ones(2).double()
    wanted = x.abs() + 0.1 * weights(60, 2, seed=2)
    noises = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)
    errors = {noise: left_out(x, wanted, lengths, noise).mean(dim=1) for noise in noises}
    least = min(errors, key=lambda noise: float(errors[noise].mean()))
    most = errors[least].mean() + errors[least].std() / 60**0.5
    within = [noise for noise in noises if errors[noise].mean() <= most]
    assert gaussian_process.noise_of(x, wanted, lengths, 0.0) == max(within) > least
    smooth = torch.sin(x).cumsum(dim=1)  # which less noise predicts clearly better
    assert gaussian_process.noise_of(x, smooth, lengths, 0.0) <= 1e-6


def test_with_many_rows_all_of_them_choose_the_noise():
    """400 of them had: with 1,000 centres and kinks slopes were .40 off in one sample, .16 now."""

    def kinked(x):
        return (x @ weights(4, 3, seed=5) - 0.1).abs()

    specs = ArraySpec("x", (4,), "float64"), ArraySpec("y", (3,), "float64")
    box, x = box_of(kinked, specs[0], outputs=specs[1:]), weights(900, 4, seed=1)
    tangent = zo.tangents.KernelTangent()
    learn(tangent, pairs_at(box, x))
    (process,) = tangent._fit
    y = kinked(x)
    target = (y - y.mean(0)) / y.std(0, correction=0)
    chosen = gaussian_process.noise_of(tangent._centres, target, process.lengths, process.curvature)
    few = spread_places(900, 400)
    (by_few,) = kernel._of_curvature(tangent._centres[few], target[few], process.curvature)
    assert process.noise == chosen != by_few.noise
    assert torch.equal(process.lengths, by_few.lengths)


def test_outputs_that_depend_on_inputs_alike_share_lengths():
    """And one whose rows left out are told twice as well with its own has these."""

    noise = 0.2 * weights(60, 3, seed=3)

    def two_kinds(x):
        return torch.cat([torch.sin(x[:, :1] + torch.arange(3)) + noise, torch.sin(2 * x[:, 1:2])], 1)

    tangent, rows = (
        zo.tangents.KernelTangent(),
        pairs_at(box_of(two_kinds, ArraySpec("x", (4,))), weights(60, 4)),
    )
    learn(tangent, rows)
    shared, own = tangent._fit
    assert (shared.outputs.tolist(), own.outputs.tolist()) == ([0, 1, 2], [3])
    units = [values.std(0, correction=0) for values in (rows.z, rows.y)]
    x, wanted = ((v - v.mean(0)) / unit for v, unit in zip((rows.z, rows.y), units, strict=True))
    of_both = [left_out(x, wanted, process.lengths, process.noise).mean(dim=0)[3] for process in tangent._fit]
    assert of_both[1] < 0.5 * of_both[0]


@pytest.mark.parametrize("curvature", [0.0, 10.0])
def test_the_likelihood_of_lengths_is_that_of_its_density(curvature):
    """By `torch.distributions`, with each output's variance at its likeliest; the gradient by autograd."""
    x, y = weights(12, 3), weights(12, 2, seed=1)
    logarithms = torch.tensor([0.3, -0.5, 1.0, -4.0], dtype=torch.float64, requires_grad=True)
    value, slope = unlikeliness(x, y, logarithms.detach(), gaussian_process.trend_of(x, x, curvature))
    kernel = covariance(x, x, logarithms[:3].exp(), curvature)
    kernel = kernel + logarithms[3].exp() * torch.eye(12).double()
    total = torch.zeros(()).double()
    for column in y.T:
        variance = (column @ torch.linalg.solve(kernel, column) / 12).detach()  # its derivative is zero there
        density = torch.distributions.MultivariateNormal(torch.zeros(12).double(), variance * kernel)
        total = total - density.log_prob(column)
    (gradient,) = torch.autograd.grad(total, logarithms)
    constant = 12 / 2 * 2 * (1 + math.log(2 * math.pi))
    assert value + constant == pytest.approx(total.item())
    assert torch.allclose(slope, gradient, rtol=1e-8)


def test_the_length_of_an_input_that_says_nothing_is_long():
    x = weights(80, 4)
    y = torch.stack([torch.sin(3 * x[:, 0]) + 2 * x[:, 2], torch.cos(3 * x[:, 0])], 1)
    lengths = likely_lengths(x, y, Choice(torch.full((4,), 2.0).double(), 1e-4, torch.ones(2), 0.0))
    assert lengths[0] < 1.0
    assert lengths[[1, 3]].min() > 10 * lengths[0]
    assert lengths[2] > 10 * lengths[0]  # the trend has all that this one says


def test_lengths_of_their_own_learn_more_from_as_many_rows():
    """Each output bends in one of eight numbers: the derivative's error over that of one length for all."""

    def waves(x):
        return torch.sin(2 * x) + x.roll(1, 1)

    box = box_of(waves, ArraySpec("x", (8,)))
    tangent, rows = zo.tangents.KernelTangent(), pairs_at(box, weights(120, 8))
    learn(tangent, rows)
    asked, v = (weights(30, 8, seed=9),), weights(30, 8, seed=8)
    truth = true_vjp(box, asked, v)
    x, wanted = rows.z, rows.y - rows.z if tangent._stays.all() else rows.y
    choice = one_length(x, wanted)
    (of_all,) = Process.means([Process.fitted(x, wanted, torch.arange(8), *choice[:2], 0.0)], x)
    one = of_all.pulled(*asked, v) + (v if tangent._stays.all() else 0)
    pulled = tangent.at(pairs_at(box, *asked)).pull(v)
    assert (pulled - truth).norm() < 0.1 * (one - truth).norm()


def looped(x, action):
    """A step of two numbers, one of which an action bends."""
    bend = torch.sin(1.5 * x[:, 0]) * action[:, 0]
    return torch.stack([x[:, 0] + 0.3 * x[:, 1], x[:, 1] - 0.5 * torch.sin(2 * x[:, 0]) + bend], dim=1)


def test_lengths_that_were_chosen_while_inputs_were_apart_are_kept():
    """An action is a function of the state, beside a dither that becomes ever smaller."""
    box = box_of(looped, ArraySpec("x", (2,)), ArraySpec("action", (1,)))
    generator = torch.Generator().manual_seed(0)

    def rows(dither, count=64):
        x = torch.randn(count, 2, generator=generator)
        action = x[:, :1] * 0.9 - 0.4 * x[:, 1:] + dither * torch.randn(count, 1, generator=generator)
        return x, action

    tangent, found = zo.tangents.KernelTangent(300, window=500), []
    for step in range(30):
        learn(tangent, pairs_at(box, *rows(0.4 * 0.7**step)))
        at = rows(0.0)
        v = torch.randn(len(at[0]), 2, generator=generator)
        pulled = tangent.at(pairs_at(box, *at)).pull(v)
        found.append(cosine(pulled[:, 2], true_vjp(box, at, v)[:, 2]))
    assert tangent.knows and min(found[2:]) > 0.98


def test_inputs_that_explain_each_other_have_one_length():
    """As of a network's layer in front of the box: which of them the outputs go by, values do not show."""
    to_many = weights(2, 6, seed=7)
    box = box_of(lambda x: torch.tanh(x), ArraySpec("x", (6,)))
    tangents = [zo.tangents.KernelTangent(), zo.tangents.KernelTangent()]
    learn(tangents[0], pairs_at(box, weights(60, 2) @ to_many))
    learn(tangents[1], pairs_at(box, weights(60, 6)))
    one, several = ([process.lengths for process in tangent._fit] for tangent in tangents)
    assert len(one) == 1
    assert one[0].unique().numel() == 1
    assert max(float(lengths.max() / lengths.min()) for lengths in several) > 10


def test_the_least_unexplained_share_is_that_of_regressions():
    x = weights(50, 3)
    x[:, 2] = x[:, 0] - x[:, 1] + 0.3 * x[:, 2]
    shares = []
    for place in range(3):
        others = torch.cat([x[:, [p for p in range(3) if p != place]], torch.ones(50, 1)], 1)
        left = x[:, place : place + 1] - others @ torch.linalg.lstsq(others, x[:, place : place + 1]).solution
        shares.append(
            float(left.square().sum() / (x[:, place] - x[:, place].mean()).square().sum()) * 50 / 47
        )
    assert least_unexplained(x) == pytest.approx(min(shares))
    assert least_unexplained(x[:4]) == 0.0


def test_rows_without_any_fit_are_refused():
    x = torch.full((4, 1), math.nan).double()
    with pytest.raises(zo.errors.TangentError, match=r"expected 4 rows whose covariances.*got none.*finite"):
        Process.fitted(x, x, torch.arange(1), torch.ones(1).double(), 1.0, 0.0)


def test_rows_shown_again_choose_no_shorter_lengths():
    """A row tells its twin, whatever the lengths are."""
    box, (x, turn) = box_of(bent, POINT, TURN), points(40, 0)
    tangents = [zo.tangents.KernelTangent(), zo.tangents.KernelTangent()]
    learn(tangents[0], pairs_at(box, x, turn))
    learn(tangents[1], pairs_at(box, x.repeat(3, 1), turn.repeat(3, 1)))
    for once, thrice in zip(*(tangent._fit for tangent in tangents), strict=True):
        assert torch.equal(once.outputs, thrice.outputs)
        assert torch.allclose(once.lengths, thrice.lengths, rtol=1e-2)  # a search makes more of rounding
        assert once.noise == thrice.noise


def test_outputs_that_are_rounding_have_no_lengths_of_their_own():
    def rounded(x):
        beside = (1 + 1e-8 * torch.sin(1e3 * x[:, :1] + torch.arange(7))).float().double()
        return torch.cat([torch.sin(2 * x[:, :1]), beside], 1)

    tangent = zo.tangents.KernelTangent()
    learn(
        tangent,
        pairs_at(box_of(rounded, ArraySpec("x", (4,)), outputs=(ArraySpec("y", (8,)),)), weights(60, 4)),
    )
    assert len(tangent._fit) == 1


def test_lengths_that_leave_distances_to_rounding_have_more_noise():
    x = 30 + 1e-4 * weights(60, 1)
    process = Process.fitted(x, weights(60, 1), torch.arange(1), torch.tensor([1e-4]).double(), 1e-8, 0.0)
    assert process.weights.isfinite().all()
    assert process.noise > 1e-8


def products(x):
    """Quadratic in its numbers, and a little more."""
    return torch.stack([x[:, i] * x[:, (i + 1) % 8] + 0.1 * torch.sin(x[:, i]) for i in range(8)], 1)


@pytest.mark.parametrize(("rows", "curvature"), [(420, CURVATURE), (120, 0.0)])
def test_a_quadratic_trend_is_taken_where_many_rows_show_it(rows, curvature):
    """Few rows leave it out; the derivative is right in both."""
    box = box_of(products, ArraySpec("x", (8,)))
    tangent = zo.tangents.KernelTangent()
    learn(tangent, pairs_at(box, weights(rows, 8)))
    assert {process.curvature for process in tangent._fit} == {curvature}
    asked, v = (weights(50, 8, seed=9),), weights(50, 8, seed=8)
    pulled = tangent.at(pairs_at(box, *asked)).pull(v)
    assert cosine(pulled, true_vjp(box, asked, v)) > 0.99


def test_no_quadratic_trend_makes_slopes_steeper_across_what_rows_span():
    """Eight numbers go by two. Rows left out are told better with one; slopes are 1.6 times as steep."""
    random = torch.Generator().manual_seed(0)
    hidden, action = (2 * torch.rand(500, size, generator=random, dtype=torch.float64) - 1 for size in (2, 1))
    state = torch.cat([(speed * hidden).exp() for speed in (-2, -1, 1, 2)], dim=1)
    burns = torch.exp(-2 / (1.5 + hidden[:, :1])) * (1 + action) * (1 - 0.3 * hidden[:, 1:])
    answers = torch.cat((burns, burns**2 - hidden[:, :1]), dim=1)
    answers = answers + 1e-4 * torch.randn(500, 2, generator=random, dtype=torch.float64)
    x, target = ((rows - rows.mean(0)) / rows.std(0) for rows in (torch.cat((state, action), dim=1), answers))
    v = torch.randn(500, 2, generator=random, dtype=torch.float64)

    def steepness(choices):
        means, at = (
            Process.means([Process.fitted(x, target, *c) for c in choices], x),
            x.clone().requires_grad_(),
        )
        loss = sum((several.at(at) * v[:, several.outputs]).sum() for several in means)
        return float(torch.autograd.grad(loss, at)[0].norm())

    plain, curved = (kernel._of_curvature(x, target, part) for part in (0.0, CURVATURE))
    assert kernel._missed(x, target, curved) < kernel._missed(x, target, plain)
    assert steepness(curved) > 1.5 * steepness(plain)
    assert steepness(kernel._chosen(x, target)) < 1.2 * steepness(plain)


def test_along_principal_axes_inputs_are_apart_and_the_derivative_is_that_of_the_mean():
    x = weights(600, 3, seed=1) @ weights(3, 5, seed=2) + 0.05 * weights(600, 5, seed=3)
    x = (x - x.mean(0)) / x.std(0)
    axes = principal_axes(x)
    covariance = torch.cov((x @ axes).T)
    variances = torch.linalg.eigvalsh(torch.cov(x.T))
    torch.testing.assert_close(covariance, (variances / (variances + FLAT)).diag(), rtol=1e-9, atol=1e-9)
    assert least_unexplained(x) < kernel.APART < 0.99 < least_unexplained(x @ axes)

    (process, *_) = kernel._chosen(x, torch.sin(x @ weights(5, 2, seed=4)))
    assert process.axes is not None
    process = Process.fitted(x, torch.sin(x @ weights(5, 2, seed=4)), *process)
    (mean,) = Process.means([process], x)
    asked, v = weights(7, 5, seed=5).requires_grad_(), weights(7, len(process.outputs), seed=6)
    (expected,) = torch.autograd.grad(mean.along_axes(asked @ process.axes), asked, v)
    (found,) = torch.autograd.grad(mean.at(asked), asked, v)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    (resumed,) = Process.means([Process.of(process.state(), torch.device("cpu"))], x)
    assert torch.equal(resumed.at(asked), mean.at(asked))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # forward mode
@pytest.mark.parametrize("curvature", [0.0, CURVATURE])
def test_means_of_several_processes_at_once_are_those_of_each(curvature):
    """The oracle is the covariances as they are written, and autograd through these, once and twice."""
    x, wanted, asked = weights(40, 3), weights(40, 5, seed=1), weights(6, 3, seed=2).requires_grad_()
    several = [
        Process.fitted(
            x, wanted, torch.tensor(outputs), weights(3, seed=7 + outputs[0]).exp(), 0.1, curvature
        )
        for outputs in ([4], [1, 3], [0], [2])
    ]
    means = Process.means(several, x)
    assert [mean.outputs.tolist() for mean in means] == [[4, 0, 2], [1, 3]]
    for mean in means:
        expected = torch.empty(6, 5, dtype=torch.float64)
        for process in several:
            apart = ((asked[:, None] - x) / process.lengths).square().sum(2)
            kernel_of = torch.exp(-apart / 2) + gaussian_process.trend_of(asked, x, curvature)
            expected[:, process.outputs] = kernel_of @ process.weights
        expected, v = expected[:, mean.outputs], weights(6, len(mean.outputs), seed=3)
        torch.testing.assert_close(mean.at(asked), expected)
        (slope,) = torch.autograd.grad(expected, asked, v, create_graph=True)
        (found,) = torch.autograd.grad(mean.at(asked), asked, v, create_graph=True)
        torch.testing.assert_close(found, slope)
        torch.testing.assert_close(mean.pulled(asked, v), slope)
        _, pushed = torch.func.jvp(mean.at, (asked.detach(),), (weights(6, 3, seed=4),))
        torch.testing.assert_close((pushed * v).sum(), (slope.detach() * weights(6, 3, seed=4)).sum())
        assert torch.autograd.gradcheck(mean.at, asked, check_forward_ad=True)
        by_row = torch.func.vmap(torch.func.jacrev(mean.at))(asked.detach()[:, None]).flatten(1, 3)
        torch.testing.assert_close(torch.einsum("roi,ro->ri", by_row.flatten(2), v), slope.detach())
        bent, found = (torch.autograd.grad(y.square().sum(), asked)[0] for y in (slope, found))
        torch.testing.assert_close(found, bent)


def test_of_more_inputs_than_rows_that_judge_there_are_no_axes(monkeypatch):
    """They would be as many as the inputs squared, and shown by no row."""
    monkeypatch.setattr(kernel, "principal_axes", lambda x: pytest.fail("asked for"))
    x = weights(420, 450)
    assert {choice.axes for choice in kernel._chosen(x, x[:, :1])} == {None}


@pytest.mark.parametrize("make", [zo.tangents.KernelTangent, zo.tangents.MLPTangent])
def test_answers_of_float64_keep_their_digits_behind_a_network_of_float32(make):
    """A signal of a ten-thousandth beside a pressure of 101,325, whose float32 has steps of .008."""
    mix = weights(3, 3)

    def pressure(x):
        return 101_325 + 1e-4 * torch.tanh(x.double() @ mix)

    spec = ArraySpec("p", (3,), dtype="float64")
    box = box_of(pressure, ArraySpec("x", (3,)), outputs=(spec,))
    tangent = make()
    for step in range(40):
        learn(tangent, pairs_at(box, weights(16, 3, seed=step).float()))
    asked, v = (0.5 * weights(16, 3, seed=99).float(),), weights(16, 3, seed=98)
    at = tangent.at(pairs_at(box, *asked))
    x = asked[0].double().requires_grad_()
    (truth,) = torch.autograd.grad(pressure(x), x, v)
    assert cosine(at.pull(v), truth) > 0.99
    if at.values is not None:
        off = (at.values - pressure(asked[0])).norm() / (1e-4 * torch.tanh(asked[0].double() @ mix)).norm()
        assert at.values.dtype == torch.float64 and off < 0.2


# Output maps


@pytest.mark.parametrize("rows", [6, 40])  # fewer than there are numbers, and more
def test_an_output_map_is_its_formula_in_both_forms(rows):
    """By dense matrices of size x size, with one of its ridges or none."""
    x, mix = weights(rows, 12), weights(5, 12, seed=2)
    y = 1.0 + (x @ weights(12, 5, seed=1)) @ mix
    scale = 0.5 + weights(12, seed=3).abs()
    output_map = OutputMap()
    output_map.fit(x, y, scale)
    mean_x, mean_y = (values.mean(0) for values in (x, y))
    a, b = (x - mean_x) / scale, (y - mean_y) / scale
    left, size, _ = torch.linalg.svd(b.T @ b)
    span = left[:, size > SPAN**2 * size[0]]
    projector, gram = span @ span.T, a.T @ a
    dense = [projector]
    for ridge in RIDGES:
        ridged = gram + ridge * gram.diagonal().max() * torch.eye(12)
        dense.append(projector + torch.linalg.solve(ridged, a.T @ b - gram @ projector))
    new = weights(7, 12, seed=4)
    mapped = output_map(new)
    assert min((mean_y + scale * (((new - mean_x) / scale) @ w) - mapped).abs().max() for w in dense) < 1e-6
    if rows > 12:  # and it finds the map that there is
        assert torch.allclose(mapped, 1.0 + (new @ weights(12, 5, seed=1)) @ mix, rtol=1e-2, atol=1e-2)


def free_of_divergence(w):
    """The part of a field on a torus without divergence."""
    n = w.shape[-1]
    k = torch.fft.fftfreq(n, dtype=w.dtype) * n
    k = torch.where(k.abs() == n // 2, 0.0, k)  # the odd one has no derivative
    kx, ky = k[:, None].expand(n, n), k[None].expand(n, n)
    square = torch.where(kx**2 + ky**2 > 0, kx**2 + ky**2, 1.0)
    u, v = torch.fft.fft2(w).unbind(1)
    along = (kx * u + ky * v) / square
    return torch.fft.ifft2(torch.stack([u - kx * along, v - ky * along], dim=1)).real


def test_a_grid_tangent_knows_a_constraint_that_values_do_not_show():
    """All states are free of divergence; the box projects what it is given. Gradient fields must vanish."""
    spec = ArraySpec("w", (2, 6, 6))
    box = box_of(lambda w: free_of_divergence(w - 0.1 * w * w.roll(1, 2)), spec)
    v = weights(4, 2, 6, 6, seed=8)
    free = free_of_divergence(v)
    lost = {}
    for output_map in (True, False):
        tangent = learner(
            zo.tangents.GridTangent, 8, periodic=True, reach=2, output_map=output_map, first_steps=60
        )
        learn(tangent, pairs_at(box, free_of_divergence(weights(160, 2, 6, 6))))
        pairs = pairs_at(box, free_of_divergence(weights(4, 2, 6, 6, seed=9)))
        kept = tangent.at(pairs).pull(free.flatten(1)).norm() / free.norm()
        lost[output_map] = float(
            tangent.at(pairs).pull((v - free).flatten(1)).norm() / (v - free).norm() / kept
        )
    assert lost[True] < 1e-4
    assert lost[False] > 0.5


# Networks


SCALAR, MASK = ArraySpec("push", ()), ArraySpec("mask", (7, 6), differentiable=False)
EAST, NORTH = ArraySpec("east", (1, 8, 6)), ArraySpec("north", (1, 7, 7))


def pushed(u, push, case):
    return torch.tanh(u + push.reshape(-1, *[1] * (u.ndim - 1)) * case.reshape(-1, *[1] * (u.ndim - 1)))


BOXES = {
    "one axis, a case": box_of(quadratic, LINE, CASE),
    "two axes, a mask": box_of(lambda w, mask: torch.sin(w) * mask[:, None], PLANE, MASK),
    "three axes": box_of(torch.tanh, ArraySpec("t", (1, 4, 3, 5))),
    "staggered": box_of(
        lambda e, n: (torch.tanh(e), n * (0.5 + e[:, :, 1:].mean((2, 3), keepdim=True))),
        EAST,
        NORTH,
        outputs=(EAST, NORTH),
    ),
    "a scalar with a gradient": box_of(pushed, LINE, SCALAR, CASE),
}
MODELS = {
    "grid": lambda: learner(zo.tangents.GridTangent, 4, **QUICK),
    "ring": lambda: learner(zo.tangents.GridTangent, 4, periodic=True, reach=2, **QUICK),
    "stencil": lambda: zo.tangents.StencilTangent(2),
    "mlp": lambda: learner(zo.tangents.MLPTangent, 8, output_map=True, **QUICK),
    "kernel": lambda: zo.tangents.KernelTangent(),
}


def drawn(box: FromTorch, rows: int, seed: int) -> list[torch.Tensor]:
    return [weights(rows, *spec.shape, seed=seed + n) for n, spec in enumerate(box.inputs)]


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", BOXES)
def test_vjp_and_apply_are_the_derivative_of_the_models_own_values(model, name):
    box, tangent = BOXES[name], MODELS[model]()
    for seed in (0, 20):
        learn(tangent, pairs_at(box, *drawn(box, 12, seed)))
    pairs = pairs_at(box, *drawn(box, 3, 40))
    others = torch.cat([pairs.z[:, :0], *(o.reshape(3, -1) for o in pairs.others if o is not None)], dim=1)
    z, v = pairs.z.clone().requires_grad_(), weights(*pairs.y.shape, seed=41)
    (expected,) = torch.autograd.grad(tangent.values(z, others), z, v)
    pulled = tangent.at(pairs).pull(v)
    assert pulled.any() and torch.allclose(pulled, expected, rtol=1e-9, atol=1e-12)
    d = weights(*pairs.z.shape, seed=7)
    forward = (tangent.at(pairs).push(d) * v).sum(dim=-1)
    assert torch.allclose(forward, (d * pulled).sum(dim=-1), rtol=1e-4, atol=1e-4)  # in float32 within
    assert torch.equal(tangent.at(pairs).values, tangent.values(pairs.z, others).detach())


def smooth(u, case):
    turned = case.reshape(-1, 1, 1)
    return u + 0.5 * turned * torch.sin(u.roll(1, 2)) * u - 0.2 * u.roll(-2, 2)


@pytest.mark.parametrize("model", [pytest.param("grid", marks=pytest.mark.slow), "mlp"])
def test_after_learning_a_smooth_box_the_derivative_is_autograds_in_every_case(model):
    """The case, which carries no gradient, turns the sign of a response."""
    cells, rows = (16, 150) if model == "grid" else (3, 600)
    tangent = (
        learner(zo.tangents.GridTangent, 12, first_steps=300)
        if model == "grid"
        else zo.tangents.MLPTangent(64)
    )
    box = box_of(smooth, ArraySpec("u", (1, cells)), CASE)
    learn(
        tangent,
        pairs_at(
            box,
            0.7 * weights(rows, 1, cells),
            3 * torch.linspace(0, 1, rows).double()[torch.arange(rows) * 7 % rows] - 1.5,
        ),
    )
    u, v, pulled = 0.7 * weights(6, 1, cells, seed=5), weights(6, cells, seed=6), []
    for case in (-1.0, 1.0):
        arrays = u, torch.full((6,), case).double()
        pulled.append(tangent.at(pairs_at(box, *arrays)).pull(v))
        assert cosine(pulled[-1], true_vjp(box, arrays, v)) > 0.98
    assert cosine(*pulled) < 0.9


# Reach


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("cells", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_reach_and_ends_are_measured(axes, circular, cells):
    """A shift by some cells, round or not, along the last axis; the other stays as it is."""
    u = weights(80, 1, *(12,) * axes)
    change = (u.roll(cells, -1) if circular else shifted(u, cells, u.ndim - 1)) - 0.3 * u
    reach, periodic = measure(u, change)
    assert reach == cells
    assert periodic[-1] == circular
    assert measure(u, change, reach=5, periodic=(True,) * axes) == (5, (True,) * axes)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("rows", "cells"), [(1, 40), (2, 20), (3, 20)])
@pytest.mark.parametrize("circular", [True, False])
def test_ends_show_in_rows_so_few_that_a_wide_stencil_tells_them_all(rows, cells, circular):
    """As a first step with a batch of one to three has them; a cubic term is beyond what a stencil tells."""
    shown, mode = 0, "circular" if circular else "constant"
    for seed in range(5):
        u = torch.randn(rows, 1, cells, cells, generator=torch.Generator().manual_seed(seed))
        wide = nn.functional.pad(u, (1, 1, 1, 1), mode=mode)
        around = wide[:, :, 2:, 1:-1] + wide[:, :, :-2, 1:-1] + wide[:, :, 1:-1, 2:] + wide[:, :, 1:-1, :-2]
        change = 0.1 * (around - 4 * u) - 0.05 * u**3
        shown += sum(measure(u / u.std(), change / change.std())[1])
    assert shown >= 8 if circular else shown <= 1  # of ten axes


def test_what_was_measured_shows_and_what_was_set_stays():
    box = box_of(lambda u: u.roll(3, 2), ArraySpec("u", (1, 24)))
    for tangent in (learner(zo.tangents.GridTangent, 4, **QUICK), zo.tangents.StencilTangent(2)):
        before = repr(tangent)
        assert tangent.measured == {}
        learn(tangent, pairs_at(box, weights(60, 1, 24)))
        assert tangent.measured == {"reach": 3, "periodic": (True,)}
        assert repr(tangent) == before
    tangent = zo.tangents.StencilTangent(2, periodic=False, reach=4)
    learn(tangent, pairs_at(box, weights(60, 1, 24)))
    assert tangent.measured == {"reach": 4, "periodic": (False,)}


# Rows


@pytest.mark.parametrize("model", MODELS)
def test_failed_rows_never_enter(model):
    """What is learned is what is learned without them, to the bit; one is dead, two are not finite."""
    box, (u, case) = BOXES["one axis, a case"], drawn(BOXES["one axis, a case"], 10, 0)
    one, other = MODELS[model](), MODELS[model]()
    bad = u.clone()
    bad[3, 0, 2], bad[7] = float("nan"), float("inf")
    alive = torch.arange(10) != 5
    alive[[3, 7]] = True  # what only values tell
    learn(one, pairs_at(box, bad, case, alive=alive))
    good = [n for n in range(10) if n not in (3, 5, 7)]
    learn(other, pairs_at(box, u[good], case[good]))
    pairs, v = pairs_at(box, *drawn(box, 3, 40)), weights(3, 16, seed=6)
    assert torch.equal(one.at(pairs).pull(v), other.at(pairs).pull(v))


@pytest.mark.parametrize("model", MODELS)
def test_fit_is_learning_from_rows_that_are_there(model):
    box = BOXES["one axis, a case"]
    u, case = drawn(box, 10, 0)
    one, other = MODELS[model](), MODELS[model]()
    bad = u.clone()
    bad[4, 0, 0] = float("nan")
    one.fit([bad, case], quadratic(u, case), steps=5, box=box)
    keep = [n for n in range(10) if n != 4]
    other.fit([u[keep], case[keep]], quadratic(u, case)[keep], steps=5, box=box)
    pairs, v = pairs_at(box, *drawn(box, 3, 40)), weights(3, 16, seed=6)
    assert torch.equal(one.at(pairs).pull(v), other.at(pairs).pull(v)) and one.at(pairs).pull(v).any()


def test_what_fit_refuses():
    box, tangent = BOXES["one axis, a case"], learner(zo.tangents.MLPTangent, 8, **QUICK)
    u, case = drawn(box, 6, 0)
    y = quadratic(u, case)
    for inputs, outputs, settings, words in (
        ([u, case], y[:3], {"box": box}, "equally many rows"),
        ([], y, {}, "equally many rows"),
        ([u, case], y, {}, "expected the box where there are several inputs or outputs, got 2 and 1"),
        (u, y, {"box": box}, "inputs: expected rows of shapes"),
        ([u, case], y[:, :, :3], {"box": box}, "outputs: expected rows of shapes"),
        ([u * float("nan"), case], y, {"box": box}, "finite numbers, got none among 6"),
        ([u, case], y, {"box": box, "steps": 0}, "steps: expected a whole number >= 1"),
    ):
        with pytest.raises(zo.errors.ConfigurationError, match=words):
            tangent.fit(inputs, outputs, **settings)
    tangent.fit([u, case], y, box=box, steps=2)
    with pytest.raises(zo.errors.ConfigurationError, match="A tangent stands for one box"):
        tangent.fit(u, y)


@pytest.mark.parametrize("model", ["grid", "mlp", "stencil", "kernel"])
@pytest.mark.parametrize("rows", [1, 2])
def test_rows_that_say_little_are_no_error(model, rows):
    """One row, or rows that are all the same, which span no outputs."""
    box, tangent = BOXES["one axis, a case"], MODELS[model]()
    u, case = (array[:1].repeat(rows, *[1] * (array.ndim - 1)) for array in drawn(box, 1, 0))
    for _ in range(2):
        learn(tangent, pairs_at(box, u, case))
    assert tangent.at(pairs_at(box, u, case)).pull(weights(rows, 16)).isfinite().all()


# Draws and states


@pytest.mark.parametrize("model", ["grid", "mlp"])
def test_seeds_alone_decide_and_no_other_generator_moves(model):
    kind = zo.tangents.GridTangent if model == "grid" else zo.tangents.MLPTangent
    box, pulled = BOXES["one axis, a case"], []
    for seed, disturb in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturb)
        before = torch.get_rng_state()
        tangent = learner(kind, 8, seed=seed, **QUICK)
        learn(tangent, pairs_at(box, *drawn(box, 10, 0)))
        assert torch.equal(torch.get_rng_state(), before)
        pulled.append(tangent.at(pairs_at(box, *drawn(box, 3, 40))).pull(weights(3, 16, seed=6)))
    assert torch.equal(pulled[0], pulled[1]) and not torch.equal(pulled[0], pulled[2])


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("how", ["state", "copy"])
def test_a_state_and_a_copy_are_all_there_is(model, how):
    """Equal to the bit, before and after both have learned more; and nothing is shared."""
    box, one = BOXES["a scalar with a gradient"], MODELS[model]()
    learn(one, pairs_at(box, *drawn(box, 10, 0)))
    if how == "state":
        other = MODELS[model]()
        other.load_state_dict(one.state_dict())
    else:
        other = copy.deepcopy(one)
    pairs, v = pairs_at(box, *drawn(box, 3, 40)), weights(3, 16, seed=6)
    before = one.at(pairs).pull(v)
    assert torch.equal(other.at(pairs).pull(v), before)
    learn(other, pairs_at(box, *drawn(box, 10, 60)))
    assert torch.equal(one.at(pairs).pull(v), before) and not torch.equal(other.at(pairs).pull(v), before)
    learn(one, pairs_at(box, *drawn(box, 10, 60)))
    assert torch.equal(one.at(pairs).pull(v), other.at(pairs).pull(v))


# In training


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_through_a_polynomial_box_is_autograds_from_the_first_step(dtype):
    torch.manual_seed(0)
    network = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular").to(dtype)
    box = FromTorch(lambda u: u - 0.2 * u * u.roll(1, 2) + 0.1 * u.roll(-1, 2), (LINE,), (LINE,))

    def objective(call):
        def losses(network, batch):
            state = batch
            for _ in range(3):
                state = call(state + 0.3 * network(state))
            return state.square().flatten(1).mean(dim=1)

        return losses

    gradient = zo.TangentGradient(
        network,
        objective(box),
        boxes=[box],
        tangent=zo.tangents.StencilTangent(2, periodic=True, reach=2, ridge=1e-12),
    )
    batch = weights(20, 1, 16).to(dtype)
    true = torch.autograd.grad(objective(box.function)(network, batch).mean(), list(network.parameters()))
    gradient.backward(batch)
    for p, g in zip(network.parameters(), true, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-6 if dtype == torch.float64 else 1e-3, atol=1e-6)
    assert gradient.counts.rows == box.ledger.rows_run == 20 * 3 * 2  # the first step is checked


def test_a_stencil_in_smooth_states_has_gradients_of_the_right_size():
    """Neighbours hardly differ there: over four calls a ridge of 1e-6 makes them 4,000 times too long."""
    solver = KuramotoSivashinsky(length=22.5, dt=0.25, steps=4)
    box = box_of(solver.advance, ArraySpec("u", solver.shape))
    tangent, states = zo.tangents.StencilTangent(), [solver.start(8, seed=0)]
    for _ in range(4):
        states.append(solver(states[-1]))
    calls = [pairs_at(box, state) for state in states[:-1]]
    learn(tangent, *calls)
    pulled = true = weights(8, *solver.shape, seed=3).flatten(1).float()
    for state, pairs in zip(states[-2::-1], calls[::-1], strict=True):
        pulled, true = tangent.at(pairs).pull(pulled), true_vjp(box, (state,), true)
    assert pulled.norm() < 3 * true.norm()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1e-16), (torch.float32, 1e-7)])
def test_a_channel_that_varies_by_rounding_alone_has_no_part_in_a_stencil(dtype, size):
    """The features of one that is constant, and of its rounding, are none."""
    generator = torch.Generator().manual_seed(0)
    u, noise = torch.randn(2, 4, 1, 16, generator=generator, dtype=torch.float64)
    lengths = []
    for same in (torch.full_like(u, 0.5), 0.1 * (1 + size * noise)):
        x = torch.cat([u, same], 1).to(dtype)
        tangent = zo.tangents.StencilTangent(2, periodic=True, reach=1)
        tangent.fit(x, torch.cat([u.roll(1, 2) + u**2, same], 1).to(dtype))
        at = x.flatten(1).requires_grad_()
        (tangent.within(at, at[:, :0])[:, :16]).square().sum().backward()
        lengths.append(float(at.grad[:, 16:].norm()))
    assert lengths[1] <= 1.01 * lengths[0] + 1e-6
