"""fa: backpropagation with fixed random matrices in the place of the transposed weights.

Source: Lillicrap, Cownden, Tweed and Akerman 2016, "Random synaptic feedback weights support error
backpropagation for deep learning"; for convolutions a fixed random kernel does what their matrix B does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from tasks.errors import ConfigurationError
from tasks.image_classification.methods.gradient import Counted
from tasks.image_classification.objective import Batch
from zo.objective import Objective

FEEDBACK = 212  # first word of the key's path for these draws
Forward = Callable[[Tensor], Tensor]


class FeedbackAlignment(Counted):
    """Autograd, but errors go back through each `Conv2d` and `Linear` by its fixed random weights.

    Norms, activations, shortcuts and whatever else lies between them are differentiated exactly.

    Args:
        network: at its initialization; the feedback weights have the mean square of each layer's first ones.
        objective: as for `LossGradient`.
        seed: of the feedback weights.
        feedback: by name of the layer, in place of random ones.

    Raises:
        ConfigurationError: the network holds weights that no `Conv2d` or `Linear` does, nor a norm; or, at
            the first step, one of these layers is passed by.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        seed: int = 0,
        feedback: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.objective = network, objective
        self.layers = weight_layers(network, "fa")
        key = zo.estimators.Key(seed)
        self.feedback = {
            name: _random_like(layer.weight, key.generator(FEEDBACK, place))
            if feedback is None
            else feedback[name]
            for place, (name, layer) in enumerate(self.layers.items())
        }

    def backward(self, batch: Batch) -> Tensor:
        """One backward pass through the feedback weights; the mean loss of the batch."""
        forwards = {
            name: _with_feedback(layer, self.feedback[name].to(layer.weight))
            for name, layer in self.layers.items()
        }
        with torch.enable_grad(), replaced(self.layers, forwards, "fa"):
            loss = self.objective(self.network, batch).mean()
            loss.backward()
        self.counts.steps += 1
        return loss.detach()


def weight_layers(network: nn.Module, method: str) -> dict[str, nn.Conv2d | nn.Linear]:
    """The `Conv2d` and `Linear` layers by name, in the network's order.

    Raises:
        ConfigurationError: a matrix of weights, or more than that, is in another module.
    """
    layers = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }
    for name, module in network.named_modules():
        # Norms and positions have one number a feature: errors go through them without a weight matrix.
        added = type(module).__name__ == "Positions"
        if name not in layers and not added and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise ConfigurationError(
                f"{method}: expected all weights in Conv2d and Linear layers, got {type(module).__name__} at "
                f"{name or 'the top'}. Choose another network, or build it of these layers."
            )
    return layers


@contextmanager
def replaced(layers: Mapping[str, nn.Module], forwards: Mapping[str, Forward], method: str) -> Iterator[None]:
    """For the length of a block layers run other forwards.

    Raises:
        ConfigurationError: at the block's end, if a layer was not called: its weights are read another way.
    """
    called: set[str] = set()

    def noting(name: str) -> Forward:
        def forward(x: Tensor) -> Tensor:
            called.add(name)
            return forwards[name](x)

        return forward

    try:
        for name, layer in layers.items():
            layer.forward = noting(name)
        yield
    finally:
        for layer in layers.values():
            del layer.forward  # the class's own is under it
    missing = [name for name in layers if name not in called]
    if missing:
        raise ConfigurationError(
            f"{method}: expected every layer to be called, got a network that passes by "
            f"{', '.join(missing)}. Call layers as modules; weights that are read another way are not seen."
        )


def apply(layer: nn.Conv2d | nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer does, with other weights."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, bias)
    return layer._conv_forward(x, weight, bias)


def _with_feedback(layer: nn.Conv2d | nn.Linear, feedback: Tensor) -> Forward:
    """The layer's forward, whose derivative in x is that of the layer with the feedback weights."""

    def forward(x: Tensor) -> Tensor:
        out = apply(layer, x.detach(), layer.weight, layer.bias)
        if not x.requires_grad:
            return out
        back = apply(layer, x, feedback, None)
        return out + (back - back.detach())  # the bracket is zero to the bit, its derivative is not

    return forward


def _random_like(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return drawn * weight.detach().square().mean().sqrt().cpu()
