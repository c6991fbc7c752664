"""Floats of 16 bits between weights and losses, inside of functions: what mu changes is rounded away in them.

Modules that give 16 bits, and autocast around layers, are refused as the base runs (`zo.autocast`). A cast in
the middle of a forward, as for an attention kernel, shows in no module's output.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blackbox import BudgetError
from zo.base import Base
from zo.errors import NoiseWarning
from zo.evaluators.loop import Loop
from zo.evaluators.memory import is_narrow
from zo.objective import uncompiled
from zo.perturbation import Directions

LENGTH = 0.1  # of the step that shows what depends on weights: far above 16 bits' rounding


def tell_narrow(base: Base, step: int) -> bool:
    """Warn where numbers of 16 bits depend on the weights; takes two queries.

    Args:
        base: The step's, which has seen such numbers.
        step: Its number, for the message.

    Returns:
        Whether it did.

    Warns:
        NoiseWarning: There are some.
    """
    problem, found = base.problem, []
    weights = problem.parameters.flat()
    for length in (0.0, LENGTH):
        seen = _Narrow()
        problem.tally.queries += 1
        try:
            with uncompiled(), seen:
                Loop().begin(problem, base.losses)(Directions((length * (weights.abs() + 1))[None]))
        except BudgetError:
            raise
        except Exception:  # a step as long may be more than the objective bears
            return False
        found.append(seen.results)
    moved = [name for (name, own), (_, other) in zip(*found, strict=False) if own != other]
    if moved:
        warnings.warn(
            f"Step {step}: expected float32 or float64 between the weights and the losses, got "
            f"{moved[0]}, in which most of what a step of mu changes is rounded away: the gradient may "
            "be off by as much as its size. Convert by .float() before, leave autocast out there, "
            "or take a larger mu.",
            NoiseWarning,
            stacklevel=4,
        )
    return bool(moved)


class _Narrow(TorchDispatchMode):
    """Notes what operations give in 16 bits or less.

    Attributes:
        results: In order, the operation with its dtype, and the sum of what it gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, float]] = []

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and look at what it gave."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and is_narrow(tensor):
                total = float(tensor.detach().double().nan_to_num().sum())
                self.results.append((f"{str(tensor.dtype)[6:]} from {func.overloadpacket.__name__}", total))
        return result
