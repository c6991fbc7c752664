"""fo, fo-sparse-weight, fo-sparse-gradient: autograd, with what DeepZero compares itself with.

fo-sparse-weight is a network pruned at its initialization by GraSP (Wang et al. 2020) and trained with that
mask; fo-sparse-gradient has deepzero's sets, and exact gradients on them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import zo
from tasks.image_classification.methods.gradient import ExactGradient
from tasks.image_classification.sparse_set import SHARE, scores, sparse_set
from tasks.image_classification.trainer import Trained, Trainer
from tasks.runs import checkpoint


def fo(trainer: Trainer) -> Trained:
    """fo: all weights, exact gradients."""
    network = trainer.network()
    return trainer.descend("fo", network, ExactGradient(network, trainer.objective))


def fo_sparse_gradient(trainer: Trainer) -> Trained:
    """fo-sparse-gradient: exact gradients on the sets that deepzero has at the same steps."""
    network = trainer.network()
    chosen = sparse_set(trainer, network)
    gradient = ExactGradient(network, trainer.objective, chosen.sparsity, trainer.seed)
    return trainer.descend(
        "fo-sparse-gradient", network, gradient, sparsity=chosen.sparsity, spent=chosen.queries
    )


def fo_sparse_weight(trainer: Trainer) -> Trained:
    """fo-sparse-weight: weights outside GraSP's mask are zero from the start and stay so."""
    network = trainer.network()
    kept = kept_mask(trainer, network)
    with torch.no_grad():
        parameters = zo.estimators.Parameters(network)
        for tensor, mask in zip(parameters.tensors, parameters.split(kept), strict=True):
            tensor.mul_(mask.to(tensor.device))
    fixed = zo.FixedCoordinates(torch.nonzero(kept).flatten())
    gradient = ExactGradient(network, trainer.objective, fixed, trainer.seed)
    return trainer.descend("fo-sparse-weight", network, gradient, sparsity=fixed)


def kept_mask(trainer: Trainer, network: nn.Module) -> Tensor:
    """The mask of a run `(parameters,)`: found once a seed, and kept with the run.

    A GPU may round the scores otherwise the next time, and another mask would not fit the weights of a
    checkpoint.
    """
    path = trainer.run.path / f"grasp_mask-seed-{trainer.seed}.safetensors"
    if not path.exists():
        checkpoint.save(path, {"kept": grasp_mask(trainer, network)})
    return checkpoint.load(path)["kept"]


def grasp_mask(trainer: Trainer, network: nn.Module) -> Tensor:
    """Where GraSP keeps a weight, and all dense ones: `(parameters,)` bool, flat."""
    sparsity = trainer.config.sparsity
    scored = scores(trainer, network, "grasp")
    mask = zo.pruning.kept_weights(scored, sparsity, minimum=SHARE * (1 - sparsity))
    inside = dict(zip(scored.parameters.names, scored.parameters.split(mask), strict=True))
    everyone = zo.estimators.Parameters(network)
    everything = [
        inside.get(name, torch.ones(tensor.shape, dtype=torch.bool)).flatten()
        for name, tensor in zip(everyone.names, everyone.tensors, strict=True)
    ]
    return torch.cat(everything)
