"""`Compiled`: a small function of tensors, compiled for the shapes it meets, or as it is if that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from zo.errors import EvaluatorWarning


class Compiled:
    """A function of tensors that Inductor fuses, one program for each set of shapes, strides and dtypes.

    The function is traced and handed to Inductor directly: `torch.compile` takes some 30 microseconds more
    a call to see whether its program still holds, and gives up on a function that it met in many shapes.
    Shapes are static and nothing is tuned by timing, so equal inputs give equal bits. Where compiling
    fails (no C++ compiler on the machine, say) the function itself runs, as do all others from there on,
    and one warning in the life of the process says so.

    Args:
        function: of tensors without a graph, in torch operations, without side effects.
    """

    works: bool = True  # of all of them: what one cannot compile another cannot either
    programs: int = 0  # compiled so far in this process
    unfused: bool = False  # run the functions as they are, such as while memory is measured

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:  # noqa: ANN401
        """The function's result; called under `no_grad`."""
        if Compiled.unfused:
            return self.function(*tensors)
        key = tuple([(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors])
        program = self._programs.get(key)
        if program is None:
            program = self._programs[key] = self._made(tensors)
        return program(*tensors)

    def _made(self, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
        if not Compiled.works:
            return self.function
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own imports
                import torch._inductor  # seconds, so only where it is used

                graph = make_fx(self.function)(*tensors)
                program = cast(Callable[..., Any], torch._inductor.compile(graph, list(tensors)))
            program(*tensors)  # some of what may fail fails only now
        except Exception as error:
            Compiled.works = False
            said = str(error).strip().splitlines()
            warnings.warn(
                "Evaluator Difference: expected a C++ compiler that works, for its fused kernels, got "
                f"{type(error).__name__}{': ' + said[0] if said else ''}. Queries are right but several "
                "times slower than they could be. Install a compiler.",
                EvaluatorWarning,
                stacklevel=2,
            )
            return self.function
        Compiled.programs += 1
        return program
