"""Additive processes, lines and their selection, against dense solves, autograd and closed forms."""

from __future__ import annotations

import pytest
import torch

import zo
from tests.zo.row_boxes import weights
from zo.tangents.models.additive import PAIRED, features

QUICK = {"kernel": zo.tangents.KernelTangent, "additive": zo.tangents.AdditiveTangent}
MODELS = {
    "additive": zo.tangents.AdditiveTangent,
    "linear": zo.tangents.LinearTangent,
    "selected": lambda: zo.tangents.SelectedTangent(QUICK),
}


@pytest.fixture(autouse=True)
def few_turns(limits):
    """Or a selection fits each kind ten times."""
    limits(selection_turns=3)


def pairwise(x):
    """Two pairs, one input, and seven that say nothing."""
    return torch.stack([x[:, 1] * x[:, 4] + x[:, 0], torch.tanh(x[:, 2] * x[:, 7])], 1)


def fitted(kind, rows=60, size=10, function=pairwise):
    x = weights(rows, size)
    tangent = MODELS[kind]()
    tangent.fit(x, function(x))
    return tangent, x


def at(tangent, x):
    y = tangent.values(x, x[:, :0]).detach()
    specs = tangent._form
    alive = torch.ones(len(x), dtype=torch.bool)
    return tangent.at(zo.tangents.CallPairs(specs.inputs, specs.outputs, x, y, alive, (None,)))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", MODELS)
def test_vjps_and_products_are_the_derivative_of_the_models_own_values(kind):
    tangent, _ = fitted(kind)
    x, v, d = weights(5, 10, seed=1).requires_grad_(), weights(5, 2, seed=2), weights(5, 10, seed=3)
    (expected,) = torch.autograd.grad(tangent.values(x, x[:, :0]), x, v)
    here = at(tangent, x.detach())
    pulled = here.pull(v)
    assert pulled.abs().max() > 0.01 and torch.allclose(pulled, expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose((here.push(d) * v).sum(1), (d * pulled).sum(1), rtol=1e-8, atol=1e-10)
    near = 1e-4 * d
    change = tangent.values(x + near, x[:, :0]) - tangent.values(x - near, x[:, :0])
    assert torch.allclose((change / 2e-4 * v).sum(1), (d * pulled).sum(1), rtol=1e-5, atol=1e-6)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("kind", MODELS)
def test_a_state_is_taken_up_to_the_bit(kind):
    tangent, _ = fitted(kind, rows=30)
    other = MODELS[kind]()
    other.load_state_dict(tangent.state_dict())
    unseen, more = weights(7, 10, seed=1), weights(20, 10, seed=2)
    assert torch.equal(other.values(unseen, unseen[:, :0]), tangent.values(unseen, unseen[:, :0]))
    for model in (tangent, other):
        model.fit(more, pairwise(more))
    assert torch.equal(other.values(unseen, unseen[:, :0]), tangent.values(unseen, unseen[:, :0]))


def test_pairs_that_act_have_the_largest_weights():
    """Of 190 pairs of 20 inputs."""
    tangent, _ = fitted("additive", 400, 20)
    matrix = tangent.pairs()
    order = torch.triu(matrix).flatten().argsort(descending=True)[:2].tolist()
    assert {divmod(place, 20) for place in order} == {(1, 4), (2, 7)}
    assert torch.equal(matrix, matrix.T) and matrix.mean() == pytest.approx(0.95)


def test_means_are_those_of_a_dense_solve():
    """The covariance is summed input by input and pair by pair, with the weights that were chosen."""
    tangent, x = fitted("additive", 30, 4, lambda x: (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3])
    (process,) = tangent._fit
    unseen = weights(6, 4, seed=1)
    mean, scale = x.mean(0), x.std(0, correction=0)
    weight = process.weights

    def covariance(a, b):
        phi, psi = features((a - mean) / scale), features((b - mean) / scale)
        total = torch.ones(len(a), len(b)).double()
        alone = [phi[:, i] @ psi[:, i].T for i in range(4)]
        for i in range(4):
            total += weight.single[i] / 4 * alone[i]
        for (i, j), strong in zip(weight.pairs.tolist(), weight.strong, strict=True):
            short = sum(
                (phi[:, i, f] * phi[:, j, g])[:, None] * psi[:, i, f] * psi[:, j, g] for f, g in PAIRED
            )
            total += weight.ratio * 2 / 12 * (strong * short + weight.shared * alone[i] * alone[j])
        return total

    assert len(weight.pairs) == 6  # all
    y = (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3]
    middle, unit = y.mean(0), y.std(0, correction=0)
    solved = torch.linalg.solve(covariance(x, x) + process.noise * torch.eye(30), (y - middle) / unit)
    expected = middle + unit * (covariance(unseen, x) @ solved)
    assert torch.allclose(tangent.values(unseen, unseen[:, :0]), expected, rtol=1e-6, atol=1e-8)


def test_features_make_the_centred_kernel_and_are_orthogonal():
    """By quadrature under a standard normal input; 3 spreads out, to a thousandth of its size."""
    x = torch.linspace(-8, 8, 4001).double()
    density = torch.exp(-x.square() / 2)
    phi = features(x[:, None])[:, 0]
    gram = (phi * (density / density.sum())[:, None]).T @ phi
    assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-8)
    assert ((density / density.sum()) @ phi).abs().max() < 1e-6
    near = x[1250:2751:250]
    bell = torch.exp(-(near[:, None] - near).square() / 18) * 10
    means = torch.exp(-near.square() / 20)
    kernel = bell - 3 * 11**0.5 * means[:, None] * means
    small = features(near[:, None])[:, 0]
    assert torch.allclose(small @ small.T, kernel, atol=2e-3 * float(kernel.max()))


def test_a_line_is_recovered_and_selected():
    to, x = weights(8, 3, seed=5), weights(40, 8)
    line = zo.tangents.LinearTangent()
    line.fit(x, x @ to)
    assert torch.allclose(at(line, x[:2]).pull(torch.eye(3).double()[:2]), to.T[:2], atol=1e-5)
    noisy = x @ to + 0.5 * weights(40, 3, seed=6)
    selected = zo.tangents.SelectedTangent()
    selected.fit(x, noisy)
    assert selected.kind == min(selected.errors, key=selected.errors.get) == "linear"


def test_waves_of_turned_inputs_are_not_for_pairs():
    turn = torch.linalg.qr(weights(6, 6, seed=5))[0]
    x = weights(120, 6)
    selected = zo.tangents.SelectedTangent(QUICK)
    selected.fit(x, torch.sin(1.5 * x @ turn))
    assert selected.kind != "additive"
    assert selected.errors[selected.kind] < selected.errors["additive"]


def test_what_cannot_be_selected_is_said():
    with pytest.raises(zo.errors.ConfigurationError, match="models: expected at least one"):
        zo.tangents.SelectedTangent({})
    with pytest.raises(zo.errors.TangentError, match="expected rows first, got none"):
        zo.tangents.SelectedTangent().model  # noqa: B018
    with pytest.raises(zo.errors.TangentError, match="expected rows first, got none"):
        zo.tangents.AdditiveTangent().pairs()
