"""The first steps take what their checks measured of the gradient."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch

import zo
from tests.zo.chains import Student, X, bent, make_network
from tests.zo.row_boxes import FromTorch, weights


class Wrong(Student):
    """A tangent of values whose VJP is the true one's times a factor, and turned by what is added."""

    def __init__(self, factor, turned=0.0):
        super().__init__()
        self.factor, self.turned = factor, turned

    def at(self, rows):
        return zo.tangents.LinearMap(rows, partial(self.pushed, rows), partial(self.pulled, rows), self.known)

    def pulled(self, pairs, cotangent):
        z = pairs.z.detach().requires_grad_(True)
        with torch.enable_grad():
            (true,) = torch.autograd.grad(bent(z), z, cotangent)
        return self.factor * (true + self.turned * cotangent.roll(1, dims=-1))

    def pushed(self, pairs, d):
        with torch.enable_grad():  # a product with J is the derivative of one with its transpose
            z = pairs.z.detach().requires_grad_(True)
            v = torch.zeros_like(z, requires_grad=True)
            (pulled,) = torch.autograd.grad(bent(z), z, v, create_graph=True)
            (response,) = torch.autograd.grad(pulled, v, d)
        return self.factor * response


def flat_gradient(network):
    return torch.cat([tensor.grad.flatten() for tensor in network.parameters()])


def one_call(box):
    return lambda network, batch: box(network(batch)).square().mean(dim=1)


@pytest.mark.parametrize(("factor", "turned"), [(50.0, 0.0), (-3.0, 0.0), (20.0, 0.5), (1e-3, 0.0)])
def test_the_first_step_takes_what_its_check_has_measured_of_the_gradient(factor, turned):
    """The true gradient's projection on the tangents' one; one that is too short stays as it is."""
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    gradient = zo.TangentGradient(network, one_call(box), boxes=[box], tangent=Wrong(factor, turned))
    batch = weights(5, 4)
    gradient.backward(batch)
    grad = flat_gradient(network)
    true = torch.cat(
        [
            g.flatten()
            for g in torch.autograd.grad(
                bent(network(batch)).square().mean(dim=1).mean(), list(network.parameters())
            )
        ]
    )
    if abs(factor) < 1:
        assert torch.allclose(grad, factor * true, rtol=1e-6)
        return
    projected = (true @ grad) / (grad @ grad) * grad
    assert torch.allclose(grad, projected, rtol=2e-2)
    assert 0 < true @ grad and grad.norm() < 1.02 * true.norm()


@pytest.mark.parametrize(
    ("factor", "early", "checked"),
    [(1.0, 5, [0, 9]), (50.0, 5, [0, 1, 2, 3, 4, 9]), (50.0, 1, [0, 9])],
)
def test_the_first_steps_are_checked_until_one_is_right(factor, early, checked):
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    policy = zo.tangents.TrustPolicy(early=early)
    gradient = zo.TangentGradient(
        network, one_call(box), boxes=[box], tangent=Wrong(factor), trust_policy=policy
    )
    with_check = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zo.TangentWarning)
        for step in range(12):
            gradient.backward(weights(5, 4, seed=step))
            with_check += [step] * (gradient.agreement is not None)
    assert with_check == checked


def test_a_derivative_that_is_given_is_taken_as_it_is():
    network, box = make_network(), FromTorch(bent, (X,), (X,))
    model = zo.tangents.ModelTangent(lambda x: 50 * bent(x))
    gradient = zo.TangentGradient(network, one_call(box), boxes=[box], tangent=model)
    gradient.backward(weights(5, 4))
    assert gradient.counts.checks == 0 and gradient.agreement is None
