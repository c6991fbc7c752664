"""Tangents against autograd and closed forms: exact where theory says so, adjoint everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zo
from blackbox import ArraySpec
from tests.zo.row_boxes import FromTorch, weights
from zo.tangents import CallPairs

GRIDS = {1: (2, 7), 2: (2, 6, 5), 3: (1, 4, 3, 5)}
TANGENTS = {
    "identity": zo.IdentityTangent,
    "local": zo.SecantTangent,
    "dense": zo.LowRankTangent,
    "stack": lambda: zo.SecantTangent(zo.LowRankTangent()),
}


def specs(*shapes: tuple[int, ...]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(f"a{place}", shape) for place, shape in enumerate(shapes))


def pairs_of(function, shape, probes=3, rows=2, mu=0.1, seed=0, rank=None) -> CallPairs:
    """Pairs of a function of rows; the changes lie in a random space of `rank` dimensions."""
    z = weights(rows, *shape, seed=seed)
    size = z[0].numel()
    basis = weights(rank, size, seed=99) if rank else torch.eye(size).double()
    d = (mu * weights(probes, rows, len(basis), seed=seed + 1) @ basis).view(probes, rows, *shape)
    base = function(z)
    response = torch.stack([function(z + change) for change in d]) - base
    return CallPairs(
        specs(shape),
        specs(tuple(base.shape[1:])),
        z.flatten(1),
        d.flatten(2),
        response.flatten(2),
        torch.ones(probes, rows, dtype=torch.bool),
    )


def true_vjp(function, pairs: CallPairs, v: torch.Tensor) -> torch.Tensor:
    z = pairs.z.view(-1, *pairs.inputs[0].shape).requires_grad_()
    y = function(z)
    return torch.autograd.grad(y, z, v.view_as(y))[0].flatten(1)


def bent(z):
    """Not local, not linear."""
    flat = z.flatten(1)
    size = flat.shape[1]
    return (flat + torch.sin(flat @ weights(size, size, seed=5) / size**0.5)).view_as(z)


@pytest.mark.parametrize("kind", TANGENTS)
@pytest.mark.parametrize("space", GRIDS)
def test_the_vjp_is_the_adjoint(kind, space):
    tangent, pairs = TANGENTS[kind](), pairs_of(bent, GRIDS[space])
    for seed in (4, 8):
        tangent.see(pairs_of(bent, GRIDS[space], seed=seed))
        tangent.learn()
    d, v = weights(5, *pairs.z.shape, seed=6), weights(2, pairs.response.shape[-1], seed=7)
    forward = (tangent.at(pairs).push(d) * v).sum(dim=-1)
    assert torch.allclose(forward, (d * tangent.at(pairs).pull(v)).sum(dim=-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", TANGENTS)
def test_a_state_is_all_there_is_to_a_tangent(kind):
    """Equal to the bit, before and after both have learned more; and no state is shared."""
    one, other = TANGENTS[kind](), TANGENTS[kind]()
    one.see(pairs_of(bent, (2, 6), seed=3))
    one.learn()
    other.load_state_dict(one.state_dict())
    pairs, v = pairs_of(bent, (2, 6)), weights(2, 12, seed=7)
    for seed in (4, 5):
        assert torch.equal(one.at(pairs).pull(v), other.at(pairs).pull(v))
        assert torch.equal(one.expect(pairs), other.expect(pairs))
        for tangent in (one, other):
            tangent.see(pairs_of(bent, (2, 6), seed=seed))
            tangent.learn()


@pytest.mark.parametrize(
    ("tangent", "bound"),
    [(zo.LowRankTangent(ridge=1e-9), 1e-6), (zo.SecantTangent(), 1e-11)],
    ids=repr,
)
def test_on_a_linear_box_exact_after_as_many_pairs_as_the_reachable_space_has_dimensions(tangent, bound):
    """12 numbers in, 4 dimensions of them reachable: 4 pairs do and 3 do not, for gradients in that space.

    Wrong by the ridge over the smallest squared singular value of changes of length one, some 1e-2.
    """

    def function(z):
        return z.flatten(1) @ weights(12, 5, seed=3)

    for probes, exact in ((3, False), (4, True)):
        pairs = pairs_of(function, (2, 6), probes, rows=1, rank=4)
        tangent.see(pairs)
        tangent.learn()
        v = weights(1, 5, seed=7)
        reachable = torch.linalg.qr(weights(4, 12, seed=99).T).Q
        error = (tangent.at(pairs).pull(v) - true_vjp(function, pairs, v)) @ reachable
        assert (error.abs().max() < bound) == exact


def test_the_local_secant_has_an_error_of_the_order_of_the_step():
    v, errors = weights(2, 12, seed=7), []
    for mu in (2e-4, 1e-4):
        pairs = pairs_of(bent, (2, 6), probes=16, mu=mu)
        errors.append((zo.SecantTangent().at(pairs).pull(v) - true_vjp(bent, pairs, v)).norm())
    assert 1.9 < errors[0] / errors[1] < 2.1
    assert errors[1] < 1e-2


def test_the_local_secant_ignores_changes_that_are_rounding():
    """A probe that repeats another to 1e-6 says nothing: its own direction is cut, not amplified."""
    pairs = pairs_of(bent, (2, 6), probes=2)
    noise = 1e-6 * weights(2, 2, *pairs.d.shape[1:], seed=9)
    d = torch.cat([pairs.d, pairs.d[:1] + noise[:1, 0]])
    response = torch.cat([pairs.response, pairs.response[:1] + 1e3 * noise[:1, 1]])
    valid = torch.ones(3, 2, dtype=torch.bool)
    doubled = CallPairs(pairs.inputs, pairs.outputs, pairs.z, d, response, valid)
    v = weights(2, 12, seed=7)
    secant = zo.SecantTangent()
    assert torch.allclose(secant.at(doubled).pull(v), secant.at(pairs).pull(v), atol=2e-2)


def step(x):
    return torch.sin(1.3 * x) + 0.2 * x.roll(1, dims=-1) * x


def rollout(network, batch, solver):
    state = batch
    loss = torch.zeros(len(batch), dtype=batch.dtype)
    for _ in range(4):
        state = solver(state + network(state))
        loss = loss + (state - 0.5).square().mean(dim=1)
    return loss


@pytest.mark.parametrize("evaluator", ["stacked", "loop"])
def test_a_step_with_probes_that_span_the_state_is_autograds(evaluator):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    batch = weights(3, 4)
    box = FromTorch(step, specs((4,)), specs((4,)))
    truth = rollout(network, batch, step).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(truth, list(network.parameters()))])
    gradient = zo.ProbedGradient(
        network,
        lambda network, batch: rollout(network, batch, box),
        boxes=[box],
        tangent=zo.SecantTangent(cut=1e-6),
        probes=12,
        mu=1e-6,
        evaluator=evaluator,
    )
    loss = gradient.backward(batch)
    grad = torch.cat([p.grad.flatten() for p in network.parameters()])
    # beside its probes the base is in another matrix product, which some processors round otherwise
    torch.testing.assert_close(loss, truth.detach(), rtol=1e-14, atol=0)
    # Changes of 1e-5 by a curvature of order one, over singular values down to some 1e-2.
    assert (grad - expected).norm() < 1e-3 * expected.norm()
    assert gradient.trust[0] is not None and max(gradient.trust) < 1e-3
