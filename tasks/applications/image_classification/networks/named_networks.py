"""A network by its name: shipped ones, and any `module:function` of the user's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blackbox import registry
from blackbox.checks import nearest
from tasks.applications.image_classification.networks.convolutional import ImageShape, resnet, simple_cnn, vgg
from tasks.errors import ConfigurationError
from tasks.problem.data import evaluating

SIMPLE_SIZES = (730, 3700, 6670, 9640, 12610)
RESNET_DEPTHS = (8, 14, 20, 32, 44, 56)


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in RESNET_DEPTHS},
    **{f"simple-{size}": partial(simple_cnn, layers) for layers, size in enumerate(SIMPLE_SIZES, start=1)},
    "vgg": vgg,
}

NAMES = tuple(_MAKERS)
"""The networks that ship. `simple-N` has N parameters on three colours and ten classes."""


def make(
    name: str,
    classes: int = 10,
    image_shape: ImageShape = (3, 32, 32),
    *,
    width: int | None = None,
    seed: int = 0,
    find: Callable[[str], Any] = partial(registry.find, names={}),  # noqa: B008
) -> nn.Module:
    """A network with the first weights of a seed, on the CPU.

    Args:
        name: one of `NAMES`, any depth 6n + 2 as `resnetDEPTH`, or `module:function` or `file.py:function`.
            The function is called with `classes` and `image_shape` by name and returns a module that takes
            images `(rows, channels, height, width)` to logits `(rows, classes)`.
        classes: the number of logits.
        image_shape: channels, height and width of an image.
        width: the channels of the first stage (resnet, vgg) or of all layers (simple); None for the network's
            default. It is not for functions of the user's.
        seed: the seed of the first weights; the global generators are left as they were.
        find: finds a function of the user's by its name, and executes its code, as
            `tasks.configuration.find` does for a setting's name.

    Raises:
        ConfigurationError: there is no such network, or it cannot be made or used with these shapes.
    """
    if ":" in name or name.endswith(".py"):
        maker = _users_own(name, width, find)
    elif depth := re.fullmatch(r"resnet(\d+)", name):
        maker = partial(resnet, int(depth[1]))
    elif name in _MAKERS:
        maker = _MAKERS[name]
    else:
        raise ConfigurationError(
            f"{name!r}: expected the name of a network, module:function or file.py:function. "
            f"{nearest(name, NAMES)}"
        )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return maker(classes, image_shape, **({} if width is None else {"width": width}))


def _users_own(
    target: str, width: int | None, find: Callable[[str], Any]
) -> Callable[[int, ImageShape], nn.Module]:
    """Return the maker of the user's network; imported here, since an import may draw random numbers."""
    if width is not None:
        raise ConfigurationError(
            f"{target}: expected no width for a function of your own, got {width}. Set it in the function."
        )
    if ":" not in target:
        raise ConfigurationError(
            f"{target}: expected file.py:function, got no function. Name the one that you mean."
        )
    maker: Any = find(target)
    calling = "Let it take classes and image_shape, and return the network."
    if not callable(maker) or isinstance(maker, nn.Module):
        raise ConfigurationError(
            f"{target}: expected a function that makes a network, got {type(maker).__name__}. {calling}"
        )

    def made(classes: int, image_shape: ImageShape) -> nn.Module:
        network = maker(classes=classes, image_shape=image_shape)
        if not isinstance(network, nn.Module):
            raise ConfigurationError(
                f"{target}: expected it to return a torch.nn.Module, got {type(network).__name__}. {calling}"
            )
        with torch.no_grad(), evaluating(network):  # running statistics stay as they are
            logits = network(torch.zeros(2, *image_shape))
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape != (2, classes):
            raise ConfigurationError(
                f"{target}: expected logits of shape (2, {classes}) for two rows, got {shape}. "
                "Let the network end in one logit for each class."
            )
        return network

    return made
