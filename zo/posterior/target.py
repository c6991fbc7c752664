"""The potential by the box, and by a model in its place with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from blackbox.arrays import finite_rows
from zo.errors import ConfigurationError
from zo.posterior.unknowns import Unknowns
from zo.tangents.models.values import ValueTangent

Potential: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Minus the logarithm of a density: `(rows, size)` and the box's answers to `(rows,)`."""


class Target:
    """The density to sample, of unknowns q without bounds.

    Args:
        potential: the potential of unknowns within their bounds and the box's answers to them.
        box: a box with one input `(size,)` and one output.
        unknowns: the map from q to these unknowns.
    """

    def __init__(self, potential: Potential, box: BlackBoxFunction, unknowns: Unknowns) -> None:
        self._potential, self.box, self.unknowns = potential, box, unknowns

    def asked(self, q: Tensor) -> Tensor:
        """The unknowns within their bounds, in the box's own dtype where it has one: `(rows, size)`."""
        return self.unknowns.bounded(q)[0].to(self.box.inputs[0].torch_dtype or q.dtype)

    def answers(self, q: Tensor) -> Tensor:
        """The box's, one row each: `(rows, size)` to `(rows, *shape)` in float64, NaN where it failed."""
        return self.box(self.asked(q)).double()

    def below(self, twin: Callable[[Tensor], Tensor] | None, q: Tensor) -> Tensor:
        """A twin's answers, `(rows, *shape)` in float64, with a graph; zeros without a twin.

        Raises:
            ConfigurationError: they have another shape than the box's.
        """
        shape = len(q), *self.box.outputs[0].shape
        if twin is None:
            return q.new_zeros(shape)
        below = twin(self.unknowns.bounded(q)[0])
        if below.shape != shape:
            raise ConfigurationError(
                f"sample, twin: expected the shape of the box's answers, {shape}, got {tuple(below.shape)}. "
                "Give a function of the unknowns that stands for the same box."
            )
        return below.double()

    def potential(self, q: Tensor, answers: Tensor) -> Tensor:
        """Minus the logarithm of the density of q, `(rows,)`; infinite where it or an answer is not finite.

        Raises:
            ConfigurationError: the potential has another shape.
        """
        x, slope = self.unknowns.bounded(q)
        potential = self._potential(x, answers.clone())  # which may write into them
        if not isinstance(potential, Tensor) or potential.shape != (len(q),):
            got = tuple(potential.shape) if isinstance(potential, Tensor) else type(potential).__name__
            raise ConfigurationError(
                f"sample, potential: expected one number for each row, a tensor of shape ({len(q)},), got "
                f"{got}. Sum over the unknowns and the answers of a row alone."
            )
        whole = potential - slope
        return torch.where(whole.isfinite() & finite_rows((answers.detach(),)), whole, torch.inf)

    @torch.enable_grad()
    def refuse_cut(self, q: Tensor, answers: Tensor, twin: Callable[[Tensor], Tensor] | None) -> None:
        """Refuse a potential or a twin that autograd does not go through.

        Args:
            q: rows at which they are finite, `(rows, size)`.
            answers: the box's answers there.
            twin: the twin; None for none.

        Raises:
            ConfigurationError: one of them has no graph; no force would go by it, and nothing would say so.
        """
        x, y = (t.detach().requires_grad_() for t in (self.unknowns.bounded(q)[0], answers))
        calls: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]
        calls = {"potential": (self._potential, (x, y))} | ({"twin": (twin, (x,))} if twin else {})
        for name, (function, arguments) in calls.items():
            try:
                result = function(*[t.clone() for t in arguments])  # which it may write into
                got = "a result without a graph"
                goes = result.requires_grad or torch.equal(
                    result, function(*[1.01 * t.detach() + 0.01 for t in arguments])
                )  # what is constant has no graph, and no force
            except RuntimeError as error:  # of what cannot be done to a tensor with a graph
                goes, got = False, f"an error ({str(error).rstrip('.')})"
            if not goes:
                raise ConfigurationError(
                    f"sample, {name}: expected torch operations, which autograd goes through, got {got}. "
                    "Leave out NumPy and .detach()."
                )


class Model:
    """A model of the box, which gives the potential and its gradient for no row.

    Args:
        target: the target that it stands for.
        tangent: a tangent; a copy of it learns the answers less the twin's.
        twin: a differentiable function of the unknowns, `(rows, size)` to the box's answers; None for zero.
        q: rows to learn, `(rows, size)`.
        answers: the answers of the box, finite.
    """

    def __init__(
        self,
        target: Target,
        tangent: ValueTangent,
        twin: Callable[[Tensor], Tensor] | None,
        q: Tensor,
        answers: Tensor,
    ) -> None:
        self._target, self._twin = target, twin
        self._rest = deepcopy(tangent)
        self._rest.fit(q, (answers - target.below(twin, q)).reshape(len(q), -1).detach())

    def answers(self, q: Tensor) -> Tensor:
        """The box's, as the model has them, with a graph."""
        rest = self._rest.values(q, q.new_zeros(len(q), 0))
        below = self._target.below(self._twin, q)
        return below + rest.reshape(below.shape)

    def __call__(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The potential `(rows,)` and its gradient `(rows, size)`; one fixed function of q.

        Where the twin raises, as a factorisation far out may, the potential is infinite. Where one of the two
        is not finite the gradient is zero: a trajectory goes straight through, and back the same way, so that
        places which only the box knows can be entered as well as left.
        """
        try:
            return self._force(q)
        except (ArithmeticError, ValueError, RuntimeError):  # LinAlgError is one of these
            if len(q) > 1:
                potentials, gradients = zip(*map(self, q.split(1)), strict=True)
                return torch.cat(potentials), torch.cat(gradients)
            return q.new_full((1,), torch.inf), torch.zeros_like(q)

    def _force(self, q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            q = q.detach().requires_grad_(True)
            potential = self._target.potential(q, self.answers(q))
            (gradient,) = torch.autograd.grad(potential.sum(), q)
            finite = potential.isfinite() & gradient.isfinite().all(1)
        return potential.detach(), torch.where(finite[:, None], gradient, 0)
