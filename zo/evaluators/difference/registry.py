"""The registry of rules: for a torch function (or a module type) how changes pass through it.

A rule has the arguments of its function behind one of its own, the `Call`. Where an argument depends on
the perturbed weights and differs in the variants, it gets a `Moved` (base and change) instead of the
tensor, else the tensor. It gives the change of the result, `(variants, *shape of the result)`: the exact
finite difference f(base + change) - f(base), computed without subtracting the two.

    @zo.evaluators.difference_rule(torch.square)
    def square(call, input):
        return input.change * (2 * input.base + input.change)

With `elementwise=True` the first argument alone moves, and what the rule gets may be one channel of it
for each variant: it may use nothing but broadcasting. A module type as the key makes modules of exactly
this type opaque; their rule's second argument is the dict of the module's own parameters by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

RuleFunction: TypeAlias = Callable[..., Any]
# An argument as a rule gets it: a tensor, a `Moved` in its place, or an option.
Argument: TypeAlias = Any


@dataclass
class Call:
    """A function call of the base evaluation, as a rule sees it.

    Attributes:
        function: what was called.
        output: what it gave in the base.
        extra: what the recording kept for the rule, such as a dropout's mask.
    """

    function: Callable[..., Any]
    output: Any
    extra: Any = None
    _once: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Argument]) -> Argument:
        """A value of the base alone, made at the first query of a step and kept until its last."""
        if name not in self._once:
            self._once[name] = make()
        return self._once[name]

    def forget(self) -> None:
        """Give up what can be computed again."""
        self.output = None
        self._once.clear()


@dataclass(frozen=True)
class Rule:
    """A rule and what it can be given.

    Attributes:
        function: as described in the module.
        elementwise: whether the first argument alone moves and the rule may be given one channel of it.
        prepare: runs the function in the base in place of the function itself, and gives its result and
            what `Call.extra` is to hold; for functions that draw at random.
    """

    function: RuleFunction
    elementwise: bool = False
    prepare: Callable[..., tuple[Any, Any]] | None = None


RULES: dict[Any, Rule] = {}
# Functions in Python that are recorded as what they are made of: a second way to write them, in functions
# that have rules.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


def difference_rule(
    *keys: Callable[..., Any] | type[nn.Module], elementwise: bool = False
) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule for functions or module types; a later one takes the place of an earlier one."""

    def register(function: RuleFunction) -> RuleFunction:
        for key in keys:
            RULES[key] = Rule(function, elementwise)
        return function

    return register


def named(*names: str) -> list[Callable[..., Any]]:
    """All functions and tensor methods of torch that go by these names."""
    places = (torch, Tensor, functional, torch.special)
    return [getattr(place, name) for name in names for place in places if hasattr(place, name)]


def register(functions: Iterable[Callable[..., Any]], rule: Rule) -> None:
    """Put the rule for each of the functions."""
    for function in functions:
        RULES[function] = rule
