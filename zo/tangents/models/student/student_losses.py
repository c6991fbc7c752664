"""Losses of a student: how its scores stand for a box's outputs, and their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from zo.errors import ConfigurationError

Shape = tuple[int, ...]


class StudentLoss(ABC):
    """The relation of the network's scores to the box's outputs, `(rows, *shape)` both, and its loss.

    `mean` and `scale` describe the outputs, of their shape or as numbers.
    """

    def check(self, shapes: Sequence[Shape]) -> None:
        """Refuse a box without the outputs that this is for.

        Args:
            shapes: the shapes of the outputs of a row.

        Raises:
            ConfigurationError: the box has others.
        """
        if len(shapes) != 1 or not shapes[0] or shapes[0][-1] < 2:
            raise ConfigurationError(
                "StudentTangent, loss: expected a box with one differentiable output, two or more classes "
                f"along its last axis, got shapes {list(shapes)}. Give all classes of a row (of two, both), "
                "labels as one-hot vectors; or take loss='squared'."
            )

    @abstractmethod
    def targets(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the targets that `loss` compares with, made of the box's outputs.

        Raises:
            ConfigurationError: the outputs are not what this is for.
        """

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy from the targets; it differs from KL(targets || student) by a constant."""
        return -(targets * scores.log_softmax(dim=-1)).sum(dim=-1).mean()

    def values(self, scores: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The box's outputs as the student has them: here probabilities."""
        return scores.softmax(dim=-1)

    def around(self, y: Tensor, scores: Tensor) -> Tensor | None:
        """Return a function of scores with the box's derivative at y; None for `values` itself."""
        return None


class Squared(StudentLoss):
    """The scores are the outputs, standardised."""

    def check(self, shapes: Sequence[Shape]) -> None:
        """Accept any outputs."""

    def targets(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The outputs, of mean zero and spread one."""
        return (y - mean) / scale

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The mean square over rows and numbers."""
        return (scores - targets).square().mean()

    def values(self, scores: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The scores in the box's units."""
        return mean + scale * scores


class Probabilities(StudentLoss):
    """The outputs are probabilities along the last axis, to any number of decimals."""

    def targets(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The probabilities, of sum one: rounded ones may miss it."""
        total = y.sum(dim=-1, keepdim=True)
        if bool((y < -1e-3).any() | (y > 1.001).any() | (total <= 0).any()):
            raise ConfigurationError(
                "StudentTangent, loss='kl': expected probabilities along the last axis of the box's output, "
                f"got values from {float(y.min()):.3g} to {float(y.max()):.3g}. Of logits take "
                "loss='kl-logits'."
            )
        return y.clamp(min=0) / total

    def around(self, y: Tensor, scores: Tensor) -> Tensor:
        """Dp = (diag(p) - p p^T) dscores with the box's p, not the student's."""
        # A logarithm's slope 1/p must meet the same p: where the box says 1e-4 and the student one half,
        # it would be thousands of times too large.
        return y * (scores - (y * scores).sum(dim=-1, keepdim=True))


class Logits(StudentLoss):
    """The outputs are logits; what is the same for all classes of a row neither counts nor is learned."""

    def targets(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The probabilities of the logits."""
        return y.softmax(dim=-1)

    def values(self, scores: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Logits with the mean over the classes that all rows seen have."""
        return scores - scores.mean(dim=-1, keepdim=True) + mean.mean(dim=-1, keepdim=True)


class Labels(StudentLoss):
    """The outputs are one-hot vectors, or scores whose largest alone counts."""

    def targets(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """One-hot vectors of the largest entries."""
        return functional.one_hot(y.argmax(dim=-1), y.shape[-1]).to(y.dtype)


LOSSES: dict[str, type[StudentLoss]] = {
    "squared": Squared,
    "kl": Probabilities,
    "kl-logits": Logits,
    "labels": Labels,
}
