"""The autograd function of a black box's call: values in forward, queries in backward, no more than that."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from torch import Tensor
from torch.autograd import Function

from blackbox import BlackBoxFunction
from zo.errors import DerivativeError


class Caller(Protocol):
    """What makes calls, and estimates their vector-Jacobian products."""

    box: BlackBoxFunction

    def pull_back(
        self,
        call: int,
        needed: tuple[bool, ...],
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """Gradients of the inputs that are needed, from those of the outputs (None: not used)."""
        ...


class _Refusing(Function):
    """Refuses what function values do not give."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> NoReturn:  # noqa: ANN401
        """Refused."""
        _refuse("torch.func.vmap", "Call it on the whole batch: any leading axes are rows")

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> NoReturn:  # noqa: ANN401
        """Refused."""
        _refuse("forward mode (jvp)", "Differentiate in reverse, with loss.backward()")


class BlackBoxCall(_Refusing):
    """`apply(caller, call, *inputs)` gives a tuple with the box's outputs."""

    @staticmethod
    def forward(caller: Caller, call: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The base, the only evaluation of forward."""
        outputs = caller.box(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Keep the base for backward, so that it is not evaluated again."""
        ctx.caller, ctx.call = inputs[:2]
        specs = ctx.caller.box.outputs
        fixed = [out for spec, out in zip(specs, output, strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)  # None tells an output that the loss does not use
        ctx.save_for_backward(*inputs[2:], *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The queries, as a function of their own: it is that one which cannot be differentiated."""
        needed = ctx.needs_input_grad[2:]
        found = iter(PullBack.apply(ctx.caller, ctx.call, needed, *ctx.saved_tensors, *cotangents))
        return None, None, *(next(found) if needs else None for needs in needed)


class PullBack(_Refusing):
    """`apply(caller, call, needed, *inputs, *outputs, *cotangents)` gives the needed gradients."""

    @staticmethod
    def forward(
        caller: Caller, call: int, needed: tuple[bool, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The queries."""
        given, came = len(needed), len(caller.box.outputs)
        inputs, outputs, cotangents = tensors[:given], tensors[given : given + came], tensors[given + came :]
        return caller.pull_back(call, needed, inputs, outputs, cotangents)  # pyright: ignore[reportArgumentType]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Nothing is kept: there is no backward."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:  # noqa: ANN401
        """Refused."""
        _refuse(
            "a derivative of its gradient (double backward)", "Detach the gradient where it enters a loss"
        )


def _refuse(what: str, mend: str) -> NoReturn:
    raise DerivativeError(f"differentiable: expected one reverse pass over a black box, got {what}. {mend}.")
