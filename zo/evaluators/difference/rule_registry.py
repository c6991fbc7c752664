"""The registry of rules: how changes pass through each torch function.

A rule has the arguments of its function behind one of its own, the `TapedCall`. Where an argument depends on
the perturbed weights it gets a `Moved`, base and change, and gives what the result changes by:
f(base + change) - f(base), computed without subtracting the two.

    @zo.evaluators.difference_rule(my_package.my_function)
    def square(call, input):
        return input.change * (2 * input.base + input.change)

Rules are for functions that are linear, or that most networks are made of. All others are evaluated in
float64, with the change and without it, and subtracted (`rules.subtracted`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from zo.batches import tensors
from zo.evaluators.difference.changes import Change, Moved, OneChannel

Rule: TypeAlias = Callable[..., Any]
# An argument as a rule gets it: a tensor, a `Moved` in its place, or an option.
Argument: TypeAlias = Any


@dataclass
class TapedCall:
    """A function call of the base evaluation, as a rule sees it.

    Attributes:
        function: the function that was called.
        output: its result in the base.
    """

    function: Callable[..., Any]
    output: Any
    _once: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Argument]) -> Argument:
        """A value of the base alone, made at the first query of a step and kept until its last."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]


RULES: dict[Any, Rule] = {}


def difference_rule(*functions: Callable[..., Any], elementwise: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for functions; a later one takes the place of an earlier one.

    Args:
        functions: torch functions and methods, or others that ask `__torch_function__`.
        elementwise: the rule uses nothing but broadcasting, and so may be given one channel of its first
            argument for each variant.
    """

    def register_it(rule: Rule) -> Rule:
        register(functions, by_channel(rule) if elementwise else rule)
        return rule

    return register_it


def named(*names: str) -> list[Callable[..., Any]]:
    """All functions and tensor methods of torch that have these names."""
    places = (torch, Tensor, functional, torch.special)
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]


def register(functions: Iterable[Callable[..., Any]], rule: Rule) -> None:
    """Put the rule for each of the functions."""
    for function in functions:
        RULES[function] = rule


def by_channel(rule: Rule) -> Rule:
    """A rule of one tensor that is given its channel alone where a single one moves, and gives that one."""

    @wraps(rule)
    def of_channel(call: TapedCall, input: Argument, *args: Argument, **kwargs: Argument) -> Change:
        if isinstance(input, Moved) and isinstance(input.of, OneChannel) and not any_tensor((args, kwargs)):
            channel = Moved(input.of.gathered(input.base), input.of.values)
            return input.of.like(rule(call, channel, *args, **kwargs))
        return rule(call, input, *args, **kwargs)

    return of_channel


def has_apart(call: TapedCall, input: Moved) -> bool:
    """Say whether one channel of `(rows, channels, ...)` moves, for functions that treat channels apart.

    Pooling in one, two or three dimensions takes input without rows too: the axis is one of space then.
    """
    return isinstance(input.of, OneChannel) and input.of.axis == 1 and has_rows(call, input)


def has_rows(call: TapedCall, input: Moved) -> bool:
    """Say whether the input of a pooling or the like is `(rows, channels, ...)`, not without rows."""
    name, spatial = call.function.__name__, input.base.ndim - 2
    return spatial > 0 and (name.endswith(f"{spatial}d") or not name.endswith("d"))


def any_tensor(tree: Argument) -> bool:
    """Say whether there is a tensor in a nesting, moved or not."""
    return next(tensors(tree), None) is not None
