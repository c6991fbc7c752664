"""The autograd function of a black box's call: values in forward, queries in backward, no more than that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import Tensor
from torch.autograd import Function

from zo.errors import DerivativeError

if TYPE_CHECKING:
    from zo.box_gradient.differentiable import DifferentiableBox


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
    """`apply(solver, call, *inputs)` gives a tuple with the box's outputs."""

    @staticmethod
    def forward(solver: DifferentiableBox, call: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The base, the only evaluation of forward."""
        outputs = solver.box(*inputs)
        # copies: autograd lets nobody write to what is a view, as rows in further axes are
        return tuple(out.clone() for out in (outputs if isinstance(outputs, tuple) else (outputs,)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
        """Keep the base for backward, so that it is not evaluated again."""
        ctx.solver, ctx.call = inputs[:2]
        specs = ctx.solver.box.outputs
        fixed = [out for spec, out in zip(specs, output, strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed)
        ctx.set_materialize_grads(False)  # None tells an output that the loss does not use
        ctx.save_for_backward(*inputs[2:], *(out.clone() for out in output))  # users may write to theirs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """The queries, as a function of their own: it is that one which cannot be differentiated."""
        needed = ctx.needs_input_grad[2:]
        found = iter(PullBack.apply(ctx.solver, ctx.call, needed, *ctx.saved_tensors, *cotangents))
        return None, None, *(next(found) if needs else None for needs in needed)


class PullBack(_Refusing):
    """`apply(solver, call, needed, *inputs, *outputs, *cotangents)` gives the needed gradients."""

    @staticmethod
    def forward(
        solver: DifferentiableBox, call: int, needed: tuple[bool, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The queries."""
        given, came = len(needed), len(solver.box.outputs)
        inputs, outputs, cotangents = tensors[:given], tensors[given : given + came], tensors[given + came :]
        return solver.pull_back(call, needed, inputs, outputs, cotangents)  # pyright: ignore[reportArgumentType]

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
