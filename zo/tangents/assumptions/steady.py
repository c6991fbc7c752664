"""`Steady`: a block in which what is drawn is the same in each row, so that rows can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from zo.evaluators.operations import Operations, draws

LEVELS = (0.3, 0.7, 0.05, 0.95)  # one after another; decision 106
_DROPOUT = ("dropout_p", "dropout")  # the argument of attention and recurrent layers of one kernel


class Steady(Operations):
    """A block in which each draw is one number for all rows, and dropout drops nothing.

    So an objective that treats all rows the same gives them the same results in other places. A draw stays in
    its range: its first number stands for all. Draws that choose among rows, such as a permutation of them,
    stay as they are.

    Uniform numbers are often compared with a chance, to keep or to drop a row. At one level all rows may be
    dropped, which hides any effect on them; at another level they are not.

    Args:
        rows: how many rows the batch has.
        level: where in their range uniform numbers are, from 0 to 1.

    Attributes:
        chooses: whether rows may have been drawn by their place, so that nothing can be said.
        eps: the machine epsilon of the coarsest floats in the computation: results are rounded to that.
    """

    def __init__(self, rows: int, level: float) -> None:
        super().__init__()
        self._rows, self._level = rows, level
        self.chooses = False
        self.eps = 0.0

    def gave(self, operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Any:
        """Look at the floats, and put the same number everywhere in what was drawn."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        name = operation.overloadpacket.__name__
        if not draws(operation):
            return result
        by_name = _by_name(operation, arguments)
        if name == "native_dropout":
            return by_name["input"].clone(), torch.ones_like(by_name["input"], dtype=torch.bool)
        if any(argument in by_name for argument in _DROPOUT):
            if not any(by_name.get(argument) for argument in _DROPOUT):
                return result
            return operation(**{key: 0.0 if key in _DROPOUT else value for key, value in by_name.items()})
        if not isinstance(result, Tensor) or name.startswith("rrelu"):
            self.chooses = True
        elif name.startswith("bernoulli"):
            result.fill_(1)  # what is kept, as in a dropout that is written out
        elif name.startswith(("rand_like", "uniform")) or name == "rand":
            low, high = by_name.get("from", 0.0), by_name.get("to", 1.0)
            result.fill_(low + self._level * (high - low))
        elif result.is_floating_point() or self._is_no_choice(name, by_name):
            if result.numel():
                result.copy_(result.reshape(-1)[0].clone())
        return result

    def _is_no_choice(self, name: str, by_name: dict[str, Any]) -> bool:
        """Say whether rows may all draw the same integers: not if these may be places of rows or features."""
        if name == "randperm":
            self.chooses |= by_name["n"] == self._rows
            return False
        high = by_name.get("high", by_name.get("to"))
        self.chooses |= name == "multinomial" or high == self._rows
        return not self.chooses


def _by_name(operation: Any, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    places, keywords = arguments
    names = [argument.name for argument in operation._schema.arguments]
    return dict(zip(names, places, strict=False)) | keywords
