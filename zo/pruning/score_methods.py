"""The scores themselves: GraSP by autograd and from values alone, and magnitude."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zo.batches import Batch
from zo.errors import ConfigurationError
from zo.evaluators.state import Snapshot, moved
from zo.loss_gradient import LossGradient
from zo.objective import Objective, losses
from zo.parameters import Parameters

STEP = 2  # of which the draws of both gradients are; not one at which evaluators are checked anew


def grasp(network: nn.Module, objective: Objective, parameters: Parameters, batch: Batch) -> Tensor:
    """`-theta * H g` by autograd, `(size,)`; the largest are removed (Wang et al., ICLR 2020, eq. 8)."""
    return -parameters.flat() * _hessian_product(network, objective, parameters, batch)


def zo_grasp(gradient: LossGradient, batch: Batch, step: float) -> Tensor:
    """`-theta * [g(theta + step g_hat) - g(theta)] / step`, `(size,)` (DeepZero, Chen et al., ICLR 2024).

    g_hat = g(theta), and both g have the same directions: with others their difference would be noise
    over step. Cost: twice the queries of the estimator.

    With q Gaussian directions the mean of the score is, on a quadratic, not GraSP's but

        -theta * [(1 + 1/q) H g + (trace(H) / q) g]

    since g_hat is made of the directions that H meets again; other directions for it would take the
    trace away, at q queries more, but not the noise, which is what counts: an RGE gradient from q queries
    has a cosine of about sqrt(q / (q + d)) with the true one (d = 270,000, q = 192: .03), and its noise is
    the same in every coordinate. With q much below d scores are `-theta` times noise: single weights are
    ranked at random, and layers by how large their weights are at initialization. Measured on a small ReLU
    CNN in float32, q = 192, sparsity .9, against GraSP by autograd:

        d         rank correlation   error of the ratios: ZO-GraSP  -theta x noise  magnitude  SynFlow
        698       .28                                      .023     .029            .063       .017
        7,112     .06                                      .050     .050            .039       .015
        215,472   .001                                     .069     .070            .022       .038

    In float32 `step * g_hat` has to be seen in differences over mu: with CGE, whose g_hat is not
    blown up by noise, a step of mu = 5e-3 ranked a small CNN's weights with a correlation of .35 to
    GraSP, a step of .5 with .82.

    Raises:
        FailedQueriesError: queries failed; the difference of two gradients from other queries means
            nothing.
    """
    parameters = gradient.parameters
    here = _estimate(gradient, batch)
    with moved(parameters.tensors, parameters.split(step * here)):
        there = _estimate(gradient, batch)
    return -parameters.flat() * (there - here) / step


def magnitude(parameters: Parameters) -> Tensor:
    """`|theta|`, `(size,)`; the smallest are removed."""
    return parameters.flat().abs()


def _estimate(gradient: LossGradient, batch: Batch) -> Tensor:
    """The gradient at the weights as they are, `(size,)`, with the same draws at every call."""
    with _untouched(gradient.network, gradient.parameters):
        gradient.counts.steps = STEP
        gradient.backward(batch)
        return _flat([tensor.grad for tensor in gradient.parameters.tensors if tensor.grad is not None])


def _hessian_product(
    network: nn.Module, objective: Objective, parameters: Parameters, batch: Batch
) -> Tensor:
    """H g by autograd, g the gradient, `(size,)`.

    Raises:
        ConfigurationError: autograd does not reach the weights.
    """
    tensors = parameters.tensors
    needed = [tensor.requires_grad for tensor in tensors]
    with _untouched(network, parameters), torch.enable_grad():
        try:
            for tensor in tensors:
                tensor.requires_grad_(True)
            rows = losses(objective, network, batch, None, with_graph=True)
            if not rows.requires_grad:
                raise ConfigurationError(
                    "pruning: expected an objective that autograd can differentiate, got losses without "
                    "a graph. Through a black box use 'zo-grasp'."
                )
            loss = rows[torch.isfinite(rows)].mean()
            slopes = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
            # d/dtheta of g . stop(g) is H g.
            product = torch.stack([(g * g.detach()).sum() for g in slopes]).sum()
            if product.requires_grad:
                slopes = torch.autograd.grad(product, tensors, materialize_grads=True)
            else:  # a loss that is linear in the weights has no second derivatives, nor a graph
                slopes = [torch.zeros_like(g) for g in slopes]
        finally:
            for tensor, value in zip(tensors, needed, strict=True):
                tensor.requires_grad_(value)
    return _flat(slopes)


@contextmanager
def _untouched(network: nn.Module, parameters: Parameters) -> Iterator[None]:
    """Put buffers, random state and `.grad` back when the block ends."""
    snapshot = Snapshot(network)
    grads = [tensor.grad for tensor in parameters.tensors]
    for tensor in parameters.tensors:
        tensor.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            snapshot.restore()
        for tensor, grad in zip(parameters.tensors, grads, strict=True):
            tensor.grad = grad


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])
