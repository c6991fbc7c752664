"""`Clipping`: a gradient that is far longer than those of the steps before is shortened."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blackbox.notices import Notice
from zo.errors import TangentWarning

REMEMBERED = 25  # steps; decision 61
# decision 152, all of these:
FADING = 0.99  # of what was kept and cut off, with each further step
ONE_WAY = 4.0  # of what was cut off: the square of the sum over the sum of squares, 1 of what goes anywhere
BENT = 0.9  # cosine of what is kept and the whole, below which the whole is another gradient
SKETCHED = 1024  # numbers that a gradient is brought down to, for directions


class Clipping:
    """Bounds a gradient's length by a multiple of the median length of the last steps' gradients.

    A tangent that knows little of where the network has just gone may be wrong by orders of magnitude, and
    Adam's momentum carries one such gradient for ten steps and more. Seetharaman et al., AutoClip (MLSP
    2020), bound by a percentile of all lengths so far.

    Long gradients may be right too, as of a rare kind of rows. If they are always shortened, the other rows
    alone decide where the training ends. So the parts that are cut off are added up, see `weigh`.

    Args:
        most: the multiple; None for no bound.

    Attributes:
        most: the argument of that name.
    """

    def __init__(self, most: float | None) -> None:
        self.most = most
        self._raised, self._cut_off = 0.0, _CutOff()  # the multiple that stands in for a smaller one
        self._lengths: list[float] = []  # of the last steps, the oldest first
        self._sum: tuple[weakref.ref[Tensor], int] | None = None  # a `.grad` as it was left, and its version
        self._short = False  # whether a gradient in that sum was

    @property
    def multiple(self) -> float | None:
        """The multiple now; None for no bound."""
        return None if self.most is None else max(self.most, self._raised)

    def remember(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradient of a step, as it is before it is shortened; a zero is left out."""
        length = length_of(gradients)
        if length > 0:
            self._lengths = [*self._lengths, length][-REMEMBERED:]

    def shortened(self, gradients: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
        """The gradient, no longer than the bound, and whether it was longer; before the first none is."""
        multiple = self.multiple
        if multiple is None or not self._lengths:
            return tuple(gradients), False
        length, bound = length_of(gradients), multiple * median(self._lengths)
        if length <= bound:
            return tuple(gradients), False
        return tuple(gradient * (bound / length) for gradient in gradients), True

    def weigh(self, gradients: Sequence[Tensor], step: int) -> Notice | None:
        """Weigh a step's gradient against the bound; raise it where the parts cut off keep one direction.

        Args:
            gradients: the gradients before they were shortened, which were remembered.
            step: the number of the step.

        Returns:
            A warning where the bound is raised.
        """
        bound = self.multiple
        if bound is None or not self._lengths:
            return None
        length, usual = length_of(gradients), median(self._lengths)
        share = min(1.0, bound * usual / length) if length else 1.0
        self._cut_off = self._cut_off.with_step(_sketch(gradients), share)
        if share == 1.0 or not self._cut_off.goes_one_way:
            return None
        self._raised, self._cut_off = max(self._lengths) / usual, _CutOff()
        return Notice(
            f"raised to {self._raised:g}",
            f"Step {step + 1}: expected what is cut off of long gradients to go anywhere, but shortened to "
            f"{bound:.3g} times the median length (clip) they lose more than is kept, all in one direction: "
            "rows of a rare kind, or of large weights, hardly counted. From now on they may be "
            f"{self._raised:.3g} times as long. To let all rows count from the first step on take "
            "Limits(clip=None).",
            TangentWarning,
        )

    def shorten(self, parameters: Iterable[Tensor], *, remembered: bool = True) -> bool:
        """Take in the `.grad` of parameters as a step's gradient, and shorten it.

        Args:
            parameters: the parameters of the network.
            remembered: whether its length counts in later bounds: a replay's does not.

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
        """Say whether a `.grad` is as the last gradient left it: not set to zero or bounded since."""
        if grad is None or self._sum is None:
            return False
        return grad is self._sum[0]() and grad._version == self._sum[1]

    def of_sums(self, step: int, adds_up: bool, grad: Tensor | None, shortened: bool) -> Notice | None:
        """The warning of a sum with a shortened gradient, which weighs batches differently; None if not so.

        Args:
            step: the number of the step.
            adds_up: whether the gradient was added to the one before, see `adds_up_to`.
            grad: the `.grad` of the first weight with it.
            shortened: whether this gradient was shortened.
        """
        self._short = shortened or (adds_up and self._short)
        self._sum = None if grad is None else (weakref.ref(grad), grad._version)
        if not (adds_up and self._short):
            return None
        return Notice(
            "sums",
            f"Step {step + 1}: expected gradients that are added up to be whole, got one that was shortened "
            f"to {self.multiple:.3g} times the median length of the last {REMEMBERED} (clip): it weighs less "
            "than the others, and the sum is not the gradient of all their rows. Where several batches "
            "make one step of the optimiser take Limits(clip=None), and torch.nn.utils.clip_grad_norm_ "
            "on the sum.",
            TangentWarning,
        )

    def of_sizes(self, step: int) -> Notice | None:
        """The warning where a third of the last gradients are shortened to less than half; None elsewhere.

        No heavy tail is so.

        Args:
            step: the number of the step.
        """
        multiple = self.multiple
        if multiple is None or len(self._lengths) < REMEMBERED:
            return None
        usual = median(self._lengths)
        far = [length / usual for length in self._lengths if length > 2 * multiple * usual]
        if len(far) < REMEMBERED // 3:
            return None
        return Notice(
            "sizes",
            f"Step {step + 1}: expected gradients of about one length, got {len(far)} of the last "
            f"{REMEMBERED} that are {min(far):.3g} to {max(far):.3g} times as long as the median. They are "
            f"shortened to {multiple:.3g} times (clip), and weigh less where several are added up. If losses "
            "of different sizes take turns, give each a TangentGradient of its own; if the loss was scaled "
            "anew, make a new one; or take Limits(clip=None), with Adam or torch.nn.utils.clip_grad_norm_.",
            TangentWarning,
        )

    def state_dict(self) -> dict[str, Any]:
        """The lengths of the last steps' gradients, the raised multiple, and what was cut off."""
        return {"lengths": list(self._lengths), "raised": self._raised, "cut off": self._cut_off._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._lengths = list(state["lengths"])
        self._raised = state["raised"]
        self._cut_off = _CutOff(**state["cut off"])


class _CutOff(NamedTuple):
    """Sums over steps, of a few numbers that stand for each gradient; the last steps count most.

    Attributes:
        kept: the sum of the parts that were kept, `(numbers,)`.
        cut: the sum of the parts that were cut off, `(numbers,)`.
        squares: the sum of the squared lengths of the parts that were cut off.
    """

    kept: Tensor = torch.zeros(0, dtype=torch.float64)
    cut: Tensor = torch.zeros(0, dtype=torch.float64)
    squares: float = 0.0

    def with_step(self, gradient: Tensor, share: float) -> _CutOff:
        """Return the sums with a further gradient and the share of it that is kept."""
        cut_part = (1 - share) * gradient
        if len(self.cut) != len(cut_part):  # none yet, or that of a network with other layers unfrozen
            return _CutOff(gradient - cut_part, cut_part, float(cut_part.square().sum()))
        squares = FADING**2 * self.squares + float(cut_part.square().sum())
        return _CutOff(FADING * self.kept + gradient - cut_part, FADING * self.cut + cut_part, squares)

    @property
    def goes_one_way(self) -> bool:
        """True if more was cut off than kept, in one direction that is not the kept part's."""
        square = float(self.cut.square().sum())
        if square <= ONE_WAY * self.squares or square <= float(self.kept.square().sum()):
            return False
        return float(torch.cosine_similarity(self.kept, self.kept + self.cut, dim=0)) < BENT


def _sketch(gradients: Sequence[Tensor]) -> Tensor:
    """Few numbers in the place of a gradient: sums of its parts with random signs, in float64 on the CPU."""
    flat = torch.cat([gradient.detach().flatten().double() for gradient in gradients])
    parts = -(-len(flat) // SKETCHED)
    if parts <= 1:
        return flat.cpu()
    signs = 2 * torch.randint(2, (parts,), generator=torch.Generator().manual_seed(parts)) - 1
    padded = torch.nn.functional.pad(flat, (0, parts * SKETCHED - len(flat)))
    return (signs.to(flat) @ padded.view(parts, SKETCHED)).cpu()


def length_of(gradients: Sequence[Tensor]) -> float:
    """Return the length of all of them end to end."""
    return float(torch.stack([gradient.double().norm() for gradient in gradients]).norm())
