"""`Undifferentiated`: what a box answers has no derivative that the objective could take itself."""

from __future__ import annotations

from typing import Any, NoReturn

from torch.autograd import Function

from blackbox import BlackBoxFunction
from zo.errors import TangentError


def refuse_derivative_inside(box: BlackBoxFunction) -> NoReturn:
    """Refuse a derivative through a box that the objective takes itself.

    Of a tangent the derivative is an estimate, which has none of its own; and in most steps it is learned
    from the very calls of the objective, so there is none yet.

    Raises:
        TangentError: always.
    """
    raise TangentError(
        f"objective: expected losses of the answers of {box!r}, got a derivative through it, as of a "
        "gradient penalty, a residual or a sensitivity. While the objective runs, only values of a box are "
        "known. Take that derivative in front of the box or behind it (with .detach() of the box's input or "
        "output), or by differences: call the box at inputs next to each other."
    )


class Undifferentiated(Function):
    """`apply(box, count, *outputs, *inputs)`: so many outputs as they are, and no derivative of them."""

    @staticmethod
    def forward(box: BlackBoxFunction, count: int, *arrays: Any) -> tuple[Any, ...]:
        """Give copies of the outputs: autograd lets nobody write to what is a view."""
        return tuple(output.clone() for output in arrays[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep whose they are."""
        ctx.box = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        """Refused."""
        refuse_derivative_inside(ctx.box)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        """Refused."""
        refuse_derivative_inside(ctx.box)
