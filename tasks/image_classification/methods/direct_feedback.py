"""dfa: every layer gets the error at the output through a fixed random matrix of its own.

Source: Nøkland 2016, "Direct feedback alignment provides learning in deep neural networks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import zo
from tasks.image_classification.methods.feedback_alignment import Forward, apply, replaced, weight_layers
from tasks.image_classification.methods.gradient import Counted
from tasks.image_classification.objective import Batch, cross_entropy, images_of, labels_of

DIRECT = 213  # first word of the key's path for these draws


class DirectFeedback(Counted):
    """Where backpropagation would cross a `Conv2d` or `Linear`, the error is B e instead.

    e is the derivative of the loss in the logits `(rows, classes)`, B a matrix of the layer's input, fixed.
    So a layer learns from its input and from B e behind it, sent back exactly through the norms, activations
    and shortcuts that lie between; the last layer learns from e itself. Entries of B are normal with variance
    one over the numbers in the layer's input, so that B e is about as long as e.

    Args:
        network: ends in a `Linear` whose output are the logits.
        seed: of the matrices.
        feedback: `(classes, numbers in the layer's input)` by name of the layer, in place of random ones.

    Raises:
        ConfigurationError: see `FeedbackAlignment`.
    """

    def __init__(
        self, network: nn.Module, seed: int = 0, feedback: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = weight_layers(network, "dfa")
        self._key = zo.estimators.Key(seed)
        self._feedback = {} if feedback is None else dict(feedback)

    def backward(self, batch: Batch) -> Tensor:
        """One forward pass, and one backward pass in each layer; the mean loss of the batch."""
        inputs: list[tuple[str, Tensor]] = []

        def local(name: str, layer: nn.Conv2d | nn.Linear) -> Forward:
            def forward(x: Tensor) -> Tensor:
                if x.requires_grad:
                    inputs.append((name, x))
                return apply(layer, x.detach(), layer.weight, layer.bias)

            return forward

        forwards = {name: local(name, layer) for name, layer in self.layers.items()}
        with torch.enable_grad(), replaced(self.layers, forwards, "dfa"):
            logits = self.network(images_of(batch))
            loss = cross_entropy(logits, labels_of(batch)).mean()
            (error,) = torch.autograd.grad(loss, logits, retain_graph=True)
            signals = [self._signal(name, x, error) for name, x in inputs]
            torch.autograd.backward([loss, *(x for _, x in inputs)], [None, *signals])
        self.counts.steps += 1
        return loss.detach()

    def _signal(self, name: str, x: Tensor, error: Tensor) -> Tensor:
        """B e in the shape of the layer's input."""
        if name not in self._feedback:
            place, size = list(self.layers).index(name), math.prod(x.shape[1:])
            generator = self._key.generator(DIRECT, place)
            drawn = torch.randn(error.shape[1], size, generator=generator, dtype=error.dtype)
            self._feedback[name] = drawn / math.sqrt(size)
        self._feedback[name] = self._feedback[name].to(error)
        return (error @ self._feedback[name]).view_as(x)
