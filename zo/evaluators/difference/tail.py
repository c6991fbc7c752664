"""The tail: a loss that no rules describe, evaluated on the network's output and its change together."""

from __future__ import annotations

import torch
from torch import Tensor

from zo.batches import map_tensors, repeat
from zo.evaluators.difference.recording import NotReadable
from zo.evaluators.difference.registry import Argument
from zo.objective import OutputLoss


class Tail:
    """What comes behind the output of the network.

    If it calls a black box, all variants' rows reach it together, as with `stacked`, in the network's
    dtype. Else it is evaluated in float64, one variant after another, and subtracted: what the output
    changes by is exact, so float64 leaves enough of it. A loss that does not take float64 gets its own.

    Args:
        objective: whose loss it is.
        why: what kept it from being recorded.
    """

    def __init__(self, objective: OutputLoss, why: Exception) -> None:
        self.objective = objective
        self.box = isinstance(why, NotReadable) and why.box
        self.why = why
        self._double: Tensor | None = None
        self.losses: Tensor | None = None  # of the base, unless a box gives them

    def prepare(self, output: Argument, target: Argument) -> None:
        """See whether the loss takes float64; output and target as in the base."""
        self.output, self.target = output, target
        if self.box:
            return
        if not isinstance(self.why, NotReadable):
            raise self.why
        try:
            self._double = self.objective.loss(_double(output), _double(target))
            self.losses = self._double
        except RuntimeError:  # weights of its own in float32, say
            self._double = None
            self.losses = self.objective.loss(output, target)

    def changes(self, moved: Argument, base: Tensor) -> Tensor:
        """Changes of the losses, `(variants, rows)`.

        Args:
            moved: changes of the output, `(variants, *shape)` in its nesting.
            base: losses of the base, `(rows,)`.
        """
        changes: list[Tensor] = []
        map_tensors(lambda tensor: (changes.append(tensor), tensor)[1], moved)
        variants = len(changes[0])
        if self.box:
            left = list(changes)
            whole = map_tensors(lambda tensor: (tensor + left.pop(0)).flatten(0, 1), self.output)
            losses = self.objective.loss(whole, repeat(self.target, variants))
            return losses.view(variants, -1) - base
        found = []
        for variant in range(variants):
            left = list(changes)
            if self._double is None:
                whole = map_tensors(lambda tensor: tensor + left.pop(0)[variant], self.output)  # noqa: B023
                found.append(self.objective.loss(whole, self.target) - base)
            else:
                whole = map_tensors(
                    lambda tensor: _double(tensor) + _double(left.pop(0)[variant]),  # noqa: B023
                    self.output,
                )
                found.append(self.objective.loss(whole, _double(self.target)) - self._double)
        return torch.stack(found).to(base.dtype)


def _double(tree: Argument) -> Argument:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tree)
