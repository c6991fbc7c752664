"""Rules that are compiled as they stand: layer and group norm, softmax, GELU and their like.

In eager PyTorch each arithmetic operation of such a rule reads and writes the whole change; a rule of twenty
takes ten times what the matrix products beside it do. So a call's rule is traced with its options and handed
to `Compiled`: the same formula, fused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zo.batches import map_tensors
from zo.evaluators.difference.changes import Moved
from zo.evaluators.difference.compiling import Compiled
from zo.evaluators.difference.registry import RULES, Argument, Call, named

COMPILED = frozenset(named("layer_norm", "group_norm", "softmax", "gelu", "silu", "sigmoid", "tanh"))

_PROGRAMS: dict[Any, Compiled] = {}


class _Place(int):
    """Place of a tensor in arguments that were emptied of them."""


class _MovedPlace(int):
    """Place of base and change of a `Moved`, one behind the other."""


def compiled_change(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The change by the rule of the call's function, compiled; None where it moves otherwise than as a whole.

    Args:
        call: of a function in `COMPILED`.
        args: its arguments; the first alone may be `Moved`, by a tensor.
        kwargs: likewise.
    """
    held: list[Tensor] = []
    moved: list[Moved] = []

    def emptied(item: Moved | Tensor) -> Argument:
        if isinstance(item, Moved):
            moved.append(item)
            return item
        held.append(item.detach())
        return _Place(len(held) - 1)

    nesting = map_tensors(emptied, map_tensors(emptied, (args, kwargs), kind=Moved))
    if len(moved) != 1 or not isinstance(moved[0].of, Tensor):
        return None
    held += [moved[0].base.detach(), moved[0].of]
    nesting = map_tensors(lambda _: _MovedPlace(len(held) - 2), nesting, kind=Moved)
    key = call.function, _told(nesting)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = Compiled(_rule(call.function, nesting))
    return _PROGRAMS[key](*held)


def _rule(function: Argument, nesting: Argument) -> Argument:
    """A function of tensors alone: the rule with everything else as it was in a call."""
    rule = RULES[function].function

    def changed(*held: Tensor) -> Tensor:
        base, d = held[-2:]
        args, kwargs = map_tensors(lambda place: held[place], nesting, kind=_Place)
        args, kwargs = map_tensors(lambda _: Moved(base, d.to(base.dtype)), (args, kwargs), kind=_MovedPlace)
        # The shape is all that these rules ask the base's result for.
        found = rule(Call(function, torch.empty(()).expand(base.shape)), *args, **kwargs)
        return found.to(d.dtype)

    return changed


def _told(nesting: Argument) -> str:
    """Options and places of tensors in words; a place and a number do not read alike."""
    places = map_tensors(lambda place: f"tensor {int(place)}", nesting, kind=_Place)
    return repr(map_tensors(lambda place: f"moved {int(place)}", places, kind=_MovedPlace))
