"""The optimisers that a `Population` accepts: each member can have its own copy of their moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from zo.errors import ConfigurationError
from zo.tangents.gradient import TangentGradient


def refuse_optimizer(optimizer: torch.optim.Optimizer, gradient: TangentGradient) -> None:
    """Refuse an optimiser that cannot step for several members.

    Args:
        optimizer: the optimiser that is to step along the gradient.
        gradient: the gradient of the network.

    Raises:
        ConfigurationError: it has weights of another network, or lacks some that the gradient trains; it
            needs a closure; or it holds another optimiser.
    """
    _refuse_other_weights(optimizer, gradient)
    _refuse_closure(optimizer)
    _refuse_another_inside(optimizer)


def refuse_state_in_groups(optimizer: torch.optim.Optimizer, before: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an optimiser whose step changes its groups: counts in them would be of all members together.

    Args:
        optimizer: the optimiser, after a step.
        before: the contents of its groups before the step.

    Raises:
        ConfigurationError: the groups have changed.
    """
    for was, now in zip(before, without_weights(optimizer), strict=True):
        for key, value in now.items():
            if key not in was or not _same(was[key], value):
                raise ConfigurationError(
                    f"Population, optimizer: expected one that remembers by weight, got "
                    f"{type(optimizer).__name__}, whose step changes {key!r} of its groups. Take one of "
                    "torch.optim, or train at one rate."
                )


def without_weights(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return a copy of an optimiser's groups without their weights."""
    return [
        {key: copied(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def copied(value: Any) -> Any:
    """Tensors of any nesting, copied; the parameters that are keys of an optimiser's state are themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, defaultdict):
        return defaultdict(dict, {key: copied(one) for key, one in value.items()})
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list) else value


def _refuse_other_weights(optimizer: torch.optim.Optimizer, gradient: TangentGradient) -> None:
    network_ids = {id(weight) for weight in gradient.network.parameters()}
    optimizer_ids = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    if not optimizer_ids <= network_ids:
        raise ConfigurationError(
            "Population, optimizer: expected weights of the gradient's network, got others too. Give "
            "those an optimiser of their own, or put both into one torch.nn.ModuleDict."
        )
    parameters = gradient.parameters
    for name, weight in zip(parameters.names, parameters.tensors, strict=True):
        if id(weight) not in optimizer_ids:
            raise ConfigurationError(
                f"Population, optimizer: expected all weights that the gradient trains, got one without "
                f"{name!r}: a second optimiser's steps would be lost where another member leads. Give it "
                "all, in groups of their own, or leave it out of the gradient's parameters."
            )


def _refuse_closure(optimizer: torch.optim.Optimizer) -> None:
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise ConfigurationError(
            f"Population, optimizer: expected one that steps along `.grad`, got "
            f"{type(optimizer).__name__}, which needs a closure. Take torch.optim.Adam."
        )


def _refuse_another_inside(optimizer: torch.optim.Optimizer) -> None:
    """Refuse one around another, whose memory is not in the `state` that members have copies of."""
    visited, stack = {id(optimizer)}, list(vars(optimizer).items())
    while stack:
        name, value = stack.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, torch.optim.Optimizer):
            inner = type(value).__name__
            raise ConfigurationError(
                f"Population, optimizer: expected one that remembers in its own `state`, got "
                f"{type(optimizer).__name__}, whose {name!r} holds another, {inner}: all members would share "
                f"what that remembers. Give the {inner} alone, or train at one rate."
            )
        if isinstance(value, Mapping):
            stack += [(name, one) for one in value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            stack += [(name, one) for one in value]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)
