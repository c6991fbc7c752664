"""`Clipping`: a gradient that is far longer than those of the steps before is shortened."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from blackbox.notices import Notice
from zo.errors import TangentWarning

REMEMBERED = 25  # steps; decision 61


class Clipping:
    """Bounds a gradient's length by a multiple of the median length of those of the last steps.

    A tangent that knows little of where the network has just gone may be wrong by orders of magnitude, and
    Adam's momentum carries one such gradient for ten steps and more. Seetharaman et al., AutoClip (MLSP
    2020), bound by a percentile of all lengths so far.

    Args:
        most: the multiple; None for no bound.
    """

    def __init__(self, most: float | None) -> None:
        self.most = most
        self._lengths: list[float] = []  # of the last steps, the oldest first
        self._sum: tuple[weakref.ref[Tensor], int] | None = None  # a `.grad` as it was left, and its version
        self._short = False  # whether a gradient in that sum was

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradient of a step, as it is before it is shortened; a zero is left out."""
        length = _length(gradients)
        if length > 0:
            self._lengths = [*self._lengths, length][-REMEMBERED:]

    def shortened(self, gradients: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
        """The gradient, no longer than the bound, and whether it was longer; before the first none is."""
        if self.most is None or not self._lengths:
            return tuple(gradients), False
        length, bound = _length(gradients), self.most * median(self._lengths)
        if length <= bound:
            return tuple(gradients), False
        return tuple(gradient * (bound / length) for gradient in gradients), True

    def shorten(self, parameters: Iterable[Tensor], *, remembered: bool = True) -> bool:
        """Take in the `.grad` of parameters as a step's gradient, and shorten it.

        Args:
            parameters: of the network.
            remembered: whether its length counts for those that follow: that of a replay does not.

        Returns:
            Whether it was longer.
        """
        grads = [tensor.grad for tensor in parameters if tensor.grad is not None]
        if not grads:
            return False
        if remembered:
            self.remember(grads)
        shorter, longer = self.shortened(grads)
        if longer:
            for grad, short in zip(grads, shorter, strict=True):
                grad.copy_(short)
        return longer

    def adds_up_to(self, grad: Tensor | None) -> bool:
        """Whether a `.grad` is what the last gradient left, which nobody has set to zero or bounded since."""
        if grad is None or self._sum is None:
            return False
        return grad is self._sum[0]() and grad._version == self._sum[1]

    def of_sums(self, step: int, adds_up: bool, grad: Tensor | None, shortened: bool) -> Notice | None:
        """The warning of a sum with a shortened gradient: it is that of other batches; None for no such.

        Args:
            step: the number of the step.
            adds_up: whether the gradient was added to that before it, see `adds_up_to`.
            grad: the `.grad` of the first weight with it.
            shortened: whether this gradient was.
        """
        self._short = shortened or (adds_up and self._short)
        self._sum = None if grad is None else (weakref.ref(grad), grad._version)
        if not (adds_up and self._short):
            return None
        return Notice(
            "sums",
            f"Step {step + 1}: expected gradients that are added up to be whole, got one that was shortened "
            f"to {self.most:g} times the median length of the last {REMEMBERED} (clip): it weighs less than "
            "the others, and the sum is not the gradient of all their rows. Where several batches make one "
            "step of the optimiser take clip=None, and torch.nn.utils.clip_grad_norm_ on the sum.",
            TangentWarning,
        )

    def of_sizes(self, step: int) -> Notice | None:
        """The warning where a third of the last gradients are shortened to less than half; None elsewhere.

        No heavy tail is so.

        Args:
            step: the number of the step.
        """
        if self.most is None or len(self._lengths) < REMEMBERED:
            return None
        usual = median(self._lengths)
        far = [length / usual for length in self._lengths if length > 2 * self.most * usual]
        if len(far) < REMEMBERED // 3:
            return None
        return Notice(
            "sizes",
            f"Step {step + 1}: expected gradients of about one length, got {len(far)} of the last "
            f"{REMEMBERED} that are {min(far):.3g} to {max(far):.3g} times as long as the median. They are "
            f"shortened to {self.most:g} times (clip), and weigh less where several are added up. If losses "
            "of different sizes take turns, give each a TangentGradient of its own; if the loss was scaled "
            "anew, make a new one; or take clip=None, with Adam or torch.nn.utils.clip_grad_norm_.",
            TangentWarning,
        )

    def state_dict(self) -> dict[str, Any]:
        """The lengths of the last steps' gradients."""
        return {"lengths": list(self._lengths)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._lengths = list(state["lengths"])


def _length(gradients: Sequence[Tensor]) -> float:
    return float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
