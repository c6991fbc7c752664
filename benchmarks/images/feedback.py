"""fa, dfa, align-ada: errors that go back otherwise than through the transposed weights.

fa: Lillicrap, Cownden, Tweed and Akerman 2016, "Random synaptic feedback weights support error
backpropagation for deep learning"; for convolutions a fixed random kernel does what their matrix B does.
dfa: Nøkland 2016, "Direct feedback alignment provides learning in deep neural networks".
align-ada: Boopathy and Fiete 2022, "How to train your wide neural network without backprop: an input-weight
alignment perspective"; the rule as in the authors' code, where a second network keeps the first weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import zo
from benchmarks.images.counted import Counted
from tasks.applications.image_classification.problem import cross_entropy
from tasks.errors import ConfigurationError
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

    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
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
        # norms have one number a feature: errors go through them without a weight matrix
        if name not in layers and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            raise ConfigurationError(
                f"{method}: expected all weights in Conv2d and Linear layers, got {type(module).__name__} at "
                f"{name or 'the top'}. Choose another network, or build it of these layers."
            )
    return layers


@contextmanager
def replaced(layers: Mapping[str, nn.Module], forwards: Mapping[str, Forward], method: str) -> Iterator[None]:
    """Let layers run other forwards in this block.

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

    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
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
            logits = self.network(batch[0])
            loss = cross_entropy(logits, batch[1]).mean()
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

    def backward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Two forward passes, and one backward pass through the first network; the mean loss of the batch."""
        images = batch[0]
        with torch.enable_grad():
            logits, outputs = _recorded(self.network, images, isolated=True)
            logits = logits.detach().requires_grad_()
            loss = cross_entropy(logits, batch[1]).mean()
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


def _noted(outputs: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs.append(output)


def _detached(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach() for tensor in inputs)
