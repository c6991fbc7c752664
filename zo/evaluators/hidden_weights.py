"""Hidden weights: whether an objective reads them only where a stacked evaluator shows it the variants'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from zo.batches import map_tensors
from zo.evaluators.forwards import Forward, replaced


@contextmanager
def hidden(tensors: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Weights are NaN inside the block, except while the forward of one of the modules runs.

    What else reads them comes out NaN: a penalty on the weights in the objective, a functional call
    with a layer's weight. Such a read sees the base's weights in a stacked evaluation, and the
    gradient would lack its part, however small or asleep it is when the evaluators are compared.

    Args:
        tensors: the weights.
        modules: those whose forward knows the variants; none where nothing is to read the weights.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
    inside = 0

    def show() -> None:
        for tensor, values in kept:
            tensor.data.copy_(values)

    def hide() -> None:
        for tensor, _ in kept:
            tensor.data.fill_(float("nan"))

    def shown(forward: Forward) -> Forward:
        def replacement(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nonlocal inside
            inside += 1
            show()
            try:
                result = forward(*args, **kwargs)
                # It may be the weight itself, expanded to rows; as a copy it stays in sight.
                return map_tensors(Tensor.clone, result) if inside == 1 else result
            finally:
                inside -= 1
                if inside == 0:
                    hide()

        return replacement

    with replaced({module: shown(module.forward) for module in modules}):
        hide()
        try:
            yield
        finally:
            show()
