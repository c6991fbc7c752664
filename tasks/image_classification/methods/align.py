"""align-ada: each layer learns from its present input and the error that its *first* weights would send back.

Source: Boopathy and Fiete 2022, "How to train your wide neural network without backprop: an input-weight
alignment perspective"; the rule as in the authors' code, where a second network keeps the first weights.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ConfigurationError
from tasks.image_classification.methods.gradient import Counted
from tasks.image_classification.objective import Batch, cross_entropy, images_of, labels_of


class AlignAda(Counted):
    """The error at the logits goes back through the network as it was at first, evaluated on the same images.

        dW_l = (derivative of layer l at its present input)^T [dz_l of the first network for the present
        error]

    for every module with parameters, its input taken as given. A norm is such a module, so the signal at a
    convolution has come through the first network's norm; in the authors' code, whose norms have no
    parameters, it comes through the present one's. In infinitely wide networks, whose weights
    hardly move, that is backpropagation; at the first step it is so in any network.

    Args:
        network: at its initialization; a copy is kept.

    Raises:
        ConfigurationError: at a step, if a module is called another number of times than at first.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.first = copy.deepcopy(network)

    def backward(self, batch: Batch) -> Tensor:
        """Two forward passes, and one backward pass through the first network; the mean loss of the batch."""
        images = images_of(batch)
        with torch.enable_grad():
            logits, outputs = _recorded(self.network, images, isolated=True)
            logits = logits.detach().requires_grad_()
            loss = cross_entropy(logits, labels_of(batch)).mean()
            (error,) = torch.autograd.grad(loss, logits)
            first_logits, first_outputs = _recorded(self.first, images, isolated=False)
            if len(outputs) != len(first_outputs):
                raise ConfigurationError(
                    f"align-ada: expected {len(first_outputs)} calls of layers, as at first, got "
                    f"{len(outputs)}. "
                    "It needs a network that calls its layers the same way whatever its weights are."
                )
            signals = torch.autograd.grad(first_logits, first_outputs, error, materialize_grads=True)
            torch.autograd.backward(outputs, signals)
        self.counts.steps += 1
        return loss.detach()


def _recorded(network: nn.Module, images: Tensor, *, isolated: bool) -> tuple[Tensor, list[Tensor]]:
    """The logits, and the output of every call of a module with parameters; isolated, its input is given."""
    outputs: list[Tensor] = []
    hooks = []
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        if isolated:
            hooks.append(module.register_forward_pre_hook(_detached))
        hooks.append(module.register_forward_hook(partial(_noted, outputs)))
    try:
        return network(images), outputs
    finally:
        for hook in hooks:
            hook.remove()


def _noted(outputs: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ANN401
    outputs.append(output)


def _detached(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in inputs)
