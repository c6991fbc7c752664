"""The autograd function of a black box's call: values in forward, queries in backward, no more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.autograd import Function

from blackbox import BlackBoxFunction
from zo.errors import DerivativeError

Tensors: TypeAlias = tuple[Tensor, ...]
PullBack: TypeAlias = Callable[[tuple[bool, ...], Tensors, Tensors, tuple[Tensor | None, ...]], Tensors]
"""`(needed, inputs, outputs, cotangents)` to the gradients of the needed inputs."""


class _Refusing(Function):
    """Refuses what function values do not give."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> NoReturn:
        """Refused."""
        refuse("torch.func.vmap", "Call it on the whole batch: any leading axes are rows")

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> NoReturn:
        """Refused."""
        refuse("forward mode (jvp)", "Differentiate in reverse, with loss.backward()")


class BlackBoxCall(_Refusing):
    """`apply(box, pull_back, *inputs)` gives a tuple with the box's outputs."""

    @staticmethod
    def forward(box: BlackBoxFunction, pull_back: PullBack, *inputs: Tensor) -> Tensors:
        """The base, the only evaluation of forward."""
        outputs = box(*inputs)
        # copies: autograd lets nobody write to what is a view, as rows in further axes are
        return tuple(out.clone() for out in (outputs if isinstance(outputs, tuple) else (outputs,)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Keep the base for backward, so that it is not evaluated again."""
        box, ctx.pull_back = inputs[:2]
        fixed = [out for spec, out in zip(box.outputs, output, strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)  # None marks an output that the loss does not use
        ctx.save_for_backward(*inputs[2:], *(out.clone() for out in output))  # users may write to theirs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """The queries, as a second function: that one cannot be differentiated."""
        if any(c is not None and is_legacy_batchedtensor(c) for c in cotangents):
            refuse(
                "several at once (is_grads_batched=True, or jacobian(vectorize=True))",
                "Take one after another, as jacobian(vectorize=False) does",
            )
        needed = ctx.needs_input_grad[2:]
        gradients = iter(Queries.apply(ctx.pull_back, needed, *ctx.saved_tensors, *cotangents))
        return None, None, *(next(gradients) if needs else None for needs in needed)


class Queries(_Refusing):
    """`apply(pull_back, needed, *inputs, *outputs, *cotangents)` gives the needed gradients."""

    @staticmethod
    def forward(pull_back: PullBack, needed: tuple[bool, ...], *tensors: Tensor | None) -> Tensors:
        """Take tensors apart: inputs, as many outputs as there are cotangents, and the cotangents."""
        count_in = len(needed)
        count_out = (len(tensors) - count_in) // 2
        inputs, outputs, cotangents = (
            tensors[:count_in],
            tensors[count_in : count_in + count_out],
            tensors[count_in + count_out :],
        )
        return pull_back(needed, inputs, outputs, cotangents)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        """Nothing is kept: there is no backward."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        """Refused."""
        refuse("a derivative of its gradient (double backward)", "Detach the gradient where it enters a loss")


def refuse(what: str, mend: str) -> NoReturn:
    """Refuse what function values do not give.

    Raises:
        DerivativeError: always.
    """
    raise DerivativeError(f"differentiable: expected one reverse pass over a black box, got {what}. {mend}.")
