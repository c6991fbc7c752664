"""The other scores: SNIP by autograd and by queries, SynFlow, magnitude, random."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zo.draws import Key
from zo.errors import ConfigurationError
from zo.estimators.estimator import Estimator
from zo.parameters import Parameters
from zo.pruning.problem import PruningProblem

PRUNING = 3  # first word of the key's path for these draws


def snip(problem: PruningProblem) -> Tensor:
    """`|theta * g|` by autograd, `(size,)`; the smallest are removed (Lee et al., ICLR 2019)."""
    return (problem.parameters.flat() * problem.exact()).abs()


def zo_snip(problem: PruningProblem, estimator: Estimator[Any]) -> Tensor:
    """`|theta * g_hat|`, g_hat from queries, `(size,)`; the smallest are removed."""
    return (problem.parameters.flat() * problem.estimated(estimator)).abs()


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
    round k gets k - 1 plus its rank there in [0, 1), so a cut at the sparsity gives SynFlow's mask.

    Args:
        network: called as `network(ones)`, on a copy, in float64 and in eval mode; made for ReLU.
        parameters: those that are scored.
        inputs: `(rows, ...)`, for the shape of one row.
        rounds: the paper's is 100.
        sparsity: of the last round.
    """
    parallel = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for tensor in (*parallel.parameters(), *parallel.buffers()):
            tensor.abs_()
    tensors = Parameters(parallel, parameters.names).tensors
    ones = torch.ones_like(inputs[:1], dtype=torch.float64)
    order = torch.zeros(parameters.size, dtype=torch.float64)
    alive = torch.ones(parameters.size, dtype=torch.bool)
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
        pairs = zip(tensors, slopes, strict=True)
        score = torch.cat([(w.detach() * slope).reshape(-1).cpu() for w, slope in pairs])
        left = round(parameters.size * (1 - sparsity) ** (k / rounds))
        candidates = torch.nonzero(alive).flatten()
        ranked = candidates[score[candidates].argsort(stable=True)]
        order[ranked] = k - 1 + torch.arange(len(ranked), dtype=torch.float64) / len(ranked)
        alive[ranked[: len(ranked) - left]] = False
        with torch.no_grad():
            for tensor, mask in zip(tensors, parameters.split(alive), strict=True):
                tensor.mul_(mask.to(tensor.device))
    return order
