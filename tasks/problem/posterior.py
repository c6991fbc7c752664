"""`Posterior`: the user's class that `blackbox sample` draws from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from blackbox import BlackBoxFunction
from tasks.errors import ProblemError
from tasks.problem.hyphens import hyphenated
from zo.tangents.models.values import ValueTangent


class Posterior:
    """A density of unknowns, given what was measured, whose likelihood is a box without a derivative.

        class Decay(tasks.Posterior):
            "A rate and an amplitude of a decay that was measured at eight times."

            unknowns = ("rate", "amplitude")
            bounds = (0.0, torch.inf)

            def box(self): return Solver()
            def potential(self, x, y): return ((y - MEASURED) / 0.1).square().sum(1) / 2 + x.sum(1)
            def start(self, rows, generator): return 0.5 + torch.rand(rows, 2, generator=generator)

    `blackbox new NAME --kind posterior` writes such a file, and `blackbox sample` draws from it by
    {py:func}`zo.sample`, whose arguments these are. It takes none itself: `Decay()`.

    Attributes:
        unknowns: Their names, one each; () for x[0], x[1], ...
        bounds: Lower and upper ones, each one number for all or one for each; None for none at all.
    """

    unknowns: ClassVar[Sequence[str]] = ()
    bounds: ClassVar[tuple[Any, Any] | None] = None

    def box(self) -> BlackBoxFunction:
        """The black box, with one input `(size,)` and one output, wrapped or not."""
        raise ProblemError(
            f"{type(self).__name__}: expected a method box(self) that returns a BlackBoxFunction."
        )

    def potential(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the logarithm of prior and likelihood, but for a constant, of torch operations.

        Args:
            x: Unknowns, `(rows, size)` float64.
            y: The box's answers to them, `(rows, *shape)` float64; NaN where a row failed.

        Returns:
            One number for each row, `(rows,)`.
        """
        raise ProblemError(
            f"{type(self).__name__}: expected a method potential(self, x, y) that returns one number for "
            "each row: minus the logarithm of the density."
        )

    def start(self, rows: int, generator: torch.Generator) -> Tensor:
        """Rows to begin from, `(rows, size)`, drawn by the generator, such as draws of the prior."""
        raise ProblemError(
            f"{type(self).__name__}: expected a method start(self, rows, generator) that returns "
            "(rows, size) numbers, such as draws of the prior."
        )

    def twin(self) -> Callable[[Tensor], Tensor] | None:
        """A differentiable function of unknowns that stands for the box and costs less. Optional: none.

        Returns:
            A function of `(rows, size)` to the shape of the box's answers. The model learns what is left.
        """
        return None

    def tangent(self) -> ValueTangent | None:
        """The model that learns the box. Optional: the one of `zo.sample`."""
        return None

    @classmethod
    def name(cls) -> str:
        """Return the name on the command line and in folders: "HeatSource" is "heat-source"."""
        return hyphenated(cls.__name__)

    @classmethod
    def about(cls) -> str:
        """Return the description for the report: the class's docstring."""
        return " ".join((cls.__doc__ or "").split())
