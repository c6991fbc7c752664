"""The tail: a loss that no rules describe, evaluated on the network's output and its change together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zo.batches import map_tensors, repeat, tensors
from zo.evaluators.difference.recorder import NotReadable
from zo.evaluators.difference.registry import Argument
from zo.objective import OutputLoss


class Tail:
    """What comes behind the output of the network.

    If it calls a black box, all variants' rows reach it together, as with `stacked`, in the network's
    dtype. Else it is evaluated in float64, one variant after another, and subtracted: what the output
    changes by is exact, so float64 leaves enough of it. A loss that does not take float64 gets its own.
    Weights are hidden from it: a loss that reads them past the network would not see the variants'.

    Args:
        objective: whose loss it is.
        target: the loss's second argument.
        weights: of the network, those that are perturbed.
        why: what kept the loss from being recorded; raised again by `prepare` if the loss itself failed.
    """

    def __init__(
        self, objective: OutputLoss, target: Argument, weights: tuple[Tensor, ...], why: Exception
    ) -> None:
        self.loss, self.target, self.weights, self.why = objective.loss, target, weights, why
        self.box = isinstance(why, NotReadable) and why.box
        self._base: Tensor | None = None  # losses of the base, unless a box gives them

    def prepare(self, output: Argument) -> Tensor | None:
        """Take the output of the base; weights are hidden while this runs.

        Returns:
            The losses of the base, `(rows,)`, NaN if the loss reads weights; None if a box gives them.
        """
        if not isinstance(self.why, NotReadable):
            raise self.why
        self.output, self._wide = output, True
        if self.box:
            return None
        try:
            self._base = self._of(output, self.target)
        except RuntimeError:  # weights of its own in float32, say
            self._wide = False
            self._base = self._of(output, self.target)
        return self._base

    def changes(self, moved: Argument, base: Tensor) -> Tensor:
        """Changes of the losses, `(variants, rows)`.

        Args:
            moved: changes of the output, `(variants, *shape)` in its nesting.
            base: losses of the base, `(rows,)`.

        Raises:
            NotReadable: the losses depend on weights past the output.
        """
        variants = len(next(tensors(moved)))
        if self.box:
            with hidden(self.weights):
                losses = self.loss(self._moved(moved, flat=True), repeat(self.target, variants))
            changes = losses.view(variants, -1) - base
            if not torch.isfinite(changes[:, torch.isfinite(base)]).any():
                raise NotReadable(
                    "objective: expected a loss that depends on weights through the output alone, got no "
                    "finite loss while they were hidden. Use evaluator='stacked'."
                )
            return changes
        assert self._base is not None
        found = []
        for variant in range(variants):
            own = map_tensors(lambda change: change[variant : variant + 1], moved)  # noqa: B023
            found.append(self._of(self._moved(own), self.target) - self._base)
        return torch.stack(found).to(base.dtype)

    def _of(self, output: Argument, target: Argument) -> Tensor:
        return self.loss(_double(output), _double(target)) if self._wide else self.loss(output, target)

    def _moved(self, changes: Argument, flat: bool = False) -> Argument:
        """Output and changes together; of one variant, or with all variants' rows one behind the other."""
        left = list(tensors(changes))

        def whole(tensor: Tensor) -> Tensor:
            change = left.pop(0)
            if flat:
                return (tensor + change).flatten(0, 1)
            if not tensor.is_floating_point():  # whole numbers and masks depend on no weight
                return tensor
            return (_double(tensor) + _double(change[0])) if self._wide else tensor + change[0]

        return map_tensors(whole, self.output)


@contextmanager
def hidden(weights: tuple[Tensor, ...]) -> Iterator[None]:
    """Weights are NaN inside the block, so that whatever reads them comes out NaN."""
    values = [weight.detach().clone() for weight in weights]
    try:
        for weight in weights:
            weight.data.fill_(float("nan"))
        yield
    finally:
        for weight, value in zip(weights, values, strict=True):
            weight.data.copy_(value)


def _double(tree: Argument) -> Argument:
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tree)
