"""Hidden weights: a check that an objective reads them only where the variants' weights stand in for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import RLock, local
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from zo.batches import map_tensors, memory_of
from zo.evaluators.forwards import Forward, replaced
from zo.evaluators.versions import put_version, renew, version_of


class _Backwards:
    """Contexts of each thread around the backward passes of autograd, whose engine all threads share.

    Autograd's engine is watched from the first block that asks for it to the last, whatever threads they are
    in: a thread that put back what it had found would put back another one's watch, for good.
    """

    def __init__(self) -> None:
        self._lock, self._blocks = RLock(), 0
        self._engine: Callable[..., Any] = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]
        self._of_thread = local()

    @contextmanager
    def each_in(self, around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """A block in which each backward pass of this thread runs inside of a context."""
        with self._lock:
            self._blocks += 1
            if self._blocks == 1:
                self._engine = torch.autograd._engine_run_backward  # pyright: ignore[reportPrivateImportUsage]
                torch.autograd._engine_run_backward = self._run  # pyright: ignore[reportPrivateImportUsage]
        stack = self._own()
        stack.append(around)
        try:
            yield
        finally:
            stack.pop()
            with self._lock:
                self._blocks -= 1
                if self._blocks == 0:
                    torch.autograd._engine_run_backward = self._engine  # pyright: ignore[reportPrivateImportUsage]

    def _own(self) -> list[Callable[[], AbstractContextManager[None]]]:
        if not hasattr(self._of_thread, "contexts"):
            self._of_thread.contexts = []
        return self._of_thread.contexts

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as contexts:
            for around in reversed(self._own()):
                contexts.enter_context(around())
            return self._engine(*args, **kwargs)


_backwards = _Backwards()


@contextmanager
def hidden(tensors: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Weights are NaN inside the block, except while the forward of one of the modules that hold them runs.

    Any other read of them gives NaN: a penalty on the weights in the objective, a functional call with a
    layer's weight. Such a read sees the base's weights in a stacked evaluation, and the gradient would lack
    its part, however small or inactive it is when the evaluators are compared. The weights are shown while
    autograd runs backward inside the block, as for a force that is the gradient of an energy: autograd's
    inputs have been read before, and are NaN where they were read elsewhere.

    Args:
        tensors: the weights to hide.
        modules: the modules whose forward knows the variants; none where nothing may read the weights.
    """
    copies = {id(tensor): (tensor, tensor.detach().clone(), version_of(tensor)) for tensor in tensors}
    memories = {memory_of(tensor) for tensor, _, _ in copies.values()}
    running: Counter[int] = Counter()  # by tensor: how many forwards that may read it
    inside = 0

    def hide(key: int) -> None:
        with temporarily_clear_interpreter_stack():  # torch.func refuses to write what it differentiates
            copies[key][0].data.fill_(float("nan"))
            renew(copies[key][0])

    def show(key: int) -> None:
        tensor, value, version = copies[key]
        with temporarily_clear_interpreter_stack():
            tensor.data.copy_(value)
            put_version(tensor, version)

    def apart(tensor: Tensor) -> Tensor:
        """Copy a tensor that may be the weight itself, as one expanded to rows, so that it stays readable."""
        return tensor.clone() if memory_of(tensor) in memories else tensor

    def shown(module: nn.Module, forward: Forward) -> Forward:
        keys = [id(tensor) for tensor in module.parameters() if id(tensor) in copies]

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

    @contextmanager
    def awake() -> Iterator[None]:
        asleep = [key for key in copies if not running[key]]
        for key in asleep:
            show(key)
        try:
            yield
        finally:
            for key in asleep:
                hide(key)

    forwards = {module: shown(module, module.forward) for module in modules}
    with replaced(forwards), _backwards.each_in(awake):
        for key in copies:
            hide(key)
        try:
            yield
        finally:
            for key in copies:
                show(key)
