"""Hidden weights: whether an objective reads them only where a stacked evaluator shows it the variants'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from zo.batches import map_tensors, memory_of
from zo.evaluators.forwards import Forward, replaced
from zo.evaluators.versions import put_version, renew, version_of


@contextmanager
def hidden(tensors: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Weights are NaN inside the block, except while the forward of one of the modules that hold them runs.

    What else reads them comes out NaN: a penalty on the weights in the objective, a functional call
    with a layer's weight. Such a read sees the base's weights in a stacked evaluation, and the
    gradient would lack its part, however small or asleep it is when the evaluators are compared.
    They are shown while autograd runs backward inside the block, as for a force that is the gradient of an
    energy: what it differentiates has been read before, and is NaN where it was read elsewhere.

    Args:
        tensors: the weights to hide.
        modules: those whose forward knows the variants; none where nothing is to read the weights.
    """
    kept = {id(tensor): (tensor, tensor.detach().clone(), version_of(tensor)) for tensor in tensors}
    memories = {memory_of(tensor) for tensor, _, _ in kept.values()}
    running: Counter[int] = Counter()  # by tensor: how many forwards that may read it
    inside = 0

    def hide(key: int) -> None:
        with temporarily_clear_interpreter_stack():  # torch.func refuses to write what it differentiates
            kept[key][0].data.fill_(float("nan"))
            renew(kept[key][0])

    def show(key: int) -> None:
        tensor, value, version = kept[key]
        with temporarily_clear_interpreter_stack():
            tensor.data.copy_(value)
            put_version(tensor, version)

    def apart(tensor: Tensor) -> Tensor:
        """A copy of what may be the weight itself, as one expanded to rows, so that it stays readable."""
        return tensor.clone() if memory_of(tensor) in memories else tensor

    def shown(module: nn.Module, forward: Forward) -> Forward:
        keys = [id(tensor) for tensor in module.parameters() if id(tensor) in kept]

        def replacement(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            inside += 1
            for key in keys:
                running[key] += 1
                if running[key] == 1:
                    show(key)
            try:
                result = forward(*args, **kwargs)
                return map_tensors(apart, result) if inside == 1 else result
            finally:
                inside -= 1
                for key in keys:
                    running[key] -= 1
                    if not running[key]:
                        hide(key)

        return replacement

    def backward(*args: Any, **kwargs: Any) -> Any:
        asleep = [key for key in kept if not running[key]]
        for key in asleep:
            show(key)
        try:
            return engine(*args, **kwargs)
        finally:
            for key in asleep:
                hide(key)

    forwards = {module: shown(module, module.forward) for module in modules}
    engine = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]
    with replaced(forwards), patch.object(torch.autograd, "_engine_run_backward", backward):
        for key in kept:
            hide(key)
        try:
            yield
        finally:
            for key in kept:
                show(key)
