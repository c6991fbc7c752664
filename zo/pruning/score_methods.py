"""The scores themselves: GraSP and SNIP by autograd and from values alone, SynFlow, magnitude, random."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zo.batches import Batch
from zo.draws import PRUNING, Key
from zo.errors import ConfigurationError
from zo.evaluators.state import Snapshot, moved
from zo.loss_gradient import LossGradient
from zo.objective import Objective, losses
from zo.parameters import Parameters

STEP = 2  # of which the draws of both gradients are; not one at which evaluators are checked anew


def grasp(network: nn.Module, objective: Objective, parameters: Parameters, batch: Batch) -> Tensor:
    """`-theta * H g` by autograd, `(size,)`; the largest are removed (Wang et al., ICLR 2020, eq. 8)."""
    slopes = _autograd(network, objective, parameters, batch, hessian_product=True)
    return -parameters.flat() * slopes


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


def snip(network: nn.Module, objective: Objective, parameters: Parameters, batch: Batch) -> Tensor:
    """`|theta * g|` by autograd, `(size,)`; the smallest are removed (Lee et al., ICLR 2019)."""
    return (parameters.flat() * _autograd(network, objective, parameters, batch)).abs()


def zo_snip(gradient: LossGradient, batch: Batch) -> Tensor:
    """`|theta * g_hat|`, g_hat from queries, `(size,)`; the smallest are removed."""
    return (gradient.parameters.flat() * _estimate(gradient, batch)).abs()


def magnitude(parameters: Parameters) -> Tensor:
    """`|theta|`, `(size,)`; the smallest are removed."""
    return parameters.flat().abs()


def random(parameters: Parameters, seed: int) -> Tensor:
    """Uniform in [0, 1), `(size,)`."""
    return torch.rand(parameters.size, generator=Key(seed).generator(PRUNING), dtype=parameters.dtype)


def synflow(
    network: nn.Module, parameters: Parameters, inputs: Tensor, rounds: int, sparsity: float
) -> Tensor:
    """The order in which SynFlow removes weights, `(size,)`; the smallest are removed.

    The score of a round is `theta * dR/dtheta`, R the sum of the outputs for an input of ones with all
    weights replaced by their absolute values (Tanaka et al., NeurIPS 2020). Round k leaves
    (1 - sparsity)^(k / rounds) of the weights: in one round whole layers would go. A weight removed in
    round k gets k - 1 plus its rank there in (0, 1], so a cut at the sparsity gives SynFlow's mask. A weight
    without any flow, as before a last layer that starts at zero, gets zero: those go first, as ties.

    Args:
        network: the network, called as `network(ones)`, on a copy, in float64 and in eval mode; the method is
            made for ReLU.
        parameters: the parameters that are scored.
        inputs: `(rows, ...)`, for the shape of one row.
        rounds: the paper's is 100.
        sparsity: the sparsity of the last round.
    """
    parallel = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for tensor in (*parallel.parameters(), *parallel.buffers()):
            if tensor.is_floating_point():  # others are places, or a mask
                tensor.abs_()
    tensors = Parameters(parallel, parameters.names).tensors
    ones = torch.ones_like(inputs[:1], dtype=torch.float64)
    order = torch.zeros(parameters.size, dtype=torch.float64)
    alive = torch.ones(parameters.size, dtype=torch.bool)
    still = ~alive  # without any flow, from the first round on
    for k in range(1, rounds + 1):
        with torch.enable_grad():
            for tensor in tensors:
                tensor.requires_grad_(True)
            flow = parallel(ones)
            if not isinstance(flow, Tensor) or not flow.requires_grad:
                raise ConfigurationError(
                    "synflow: expected a network that maps one tensor to one tensor, with a graph, got "
                    f"{type(flow).__name__}. Take 'magnitude' or 'zo-grasp' for other networks."
                )
            slopes = torch.autograd.grad(flow.sum(), tensors, materialize_grads=True)
        score = _flat([w.detach() * slope for w, slope in zip(tensors, slopes, strict=True)])
        still = score == 0 if k == 1 else still
        weights_left = round(parameters.size * (1 - sparsity) ** (k / rounds))
        candidates = torch.nonzero(alive).flatten()
        ranked = candidates[score[candidates].argsort(stable=True)]
        order[ranked] = k - 1 + torch.arange(1, len(ranked) + 1, dtype=torch.float64) / len(ranked)
        alive[ranked[: len(ranked) - weights_left]] = False
        with torch.no_grad():
            for tensor, mask in zip(tensors, parameters.split(alive), strict=True):
                tensor.mul_(mask.to(tensor.device))
    order[still] = 0
    return order


def _estimate(gradient: LossGradient, batch: Batch) -> Tensor:
    """The gradient at the weights as they are, `(size,)`, with the same draws at every call."""
    with _untouched(gradient.network, gradient.parameters):
        gradient.counts.steps = STEP
        gradient.backward(batch)
        return _flat([tensor.grad for tensor in gradient.parameters.tensors if tensor.grad is not None])


def _autograd(
    network: nn.Module,
    objective: Objective,
    parameters: Parameters,
    batch: Batch,
    *,
    hessian_product: bool = False,
) -> Tensor:
    """The gradient g by autograd, or H g, `(size,)`.

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
                    "a graph. Through a black box use 'zo-grasp' or 'zo-snip'."
                )
            loss = rows[torch.isfinite(rows)].mean()
            slopes = torch.autograd.grad(loss, tensors, create_graph=hessian_product, materialize_grads=True)
            if hessian_product:
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
