"""`custom_op`: a box that autograd passes through, as an operator into which no compiler looks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.library import custom_op as define

from blackbox import BlackBoxFunction
from blackbox.arrays import to_rows
from zo.box_gradient.autograd_function import Queries
from zo.box_gradient.differentiable_box import DifferentiableBox
from zo.errors import ConfigurationError

_numbers = count()


def custom_op(solver: DifferentiableBox, name: str | None = None) -> Callable[..., Any]:
    """A box that autograd passes through as a custom operator of torch, for `torch.compile`.

        solver = zo.differentiable(box, zo.CGE(mu=1e-3), seed=0)
        solve = zo.box_gradient.custom_op(solver)

        @torch.compile(fullgraph=True)
        def loss(x, y):
            return (solve(network(x)) - y).square().mean()

    Compilers look into `solver` alone: it breaks a compiled graph many times, slowly, and what a tangent
    learns in a compiled step may differ; with `fullgraph=True` it is refused. The operator is one node of
    the graph, whose shapes and dtypes come from the specs, so compilers never look into the box.
    Values, gradients, counts and draws are the solver's, to the bit, compiled or not, and under
    `torch.func.vjp` and `grad` where these are not compiled. A compiler may evaluate calls on equal tensors
    once, as it does with all operators. The outputs that the gradient needs are kept as they are, not copied:
    do not write to them.

    Args:
        solver: the module that `zo.differentiable` returned. The operator refers to it, and counts and
            learning go on there. The operator stays registered until the process ends.
        name: the name of the operator, such as "mylab::pump"; None makes one from the class of the box and a
            number. An operator that was registered here under the same name is replaced.

    Returns:
        A function of the box's inputs, tensors with any leading axes, that gives its outputs.

    Raises:
        ConfigurationError: `solver` is not of `zo.differentiable`, or the name is not one of torch.
    """
    if not isinstance(solver, DifferentiableBox):
        raise ConfigurationError(
            f"custom_op, solver: expected what zo.differentiable gives, got {type(solver).__name__}. "
            "Make the box differentiable first."
        )
    box, inputs, outputs = solver.box, solver.box.inputs, solver.box.outputs
    called = f"blackbox::{_word(type(box).__name__)}_{next(_numbers)}" if name is None else name
    if not isinstance(called, str) or not re.fullmatch(r"[A-Za-z_]\w*::[A-Za-z_]\w*", called):
        raise ConfigurationError(
            f"custom_op, name: expected a namespace and a name, such as 'mylab::pump', got {called!r}. "
            "Use letters, digits and underscores."
        )

    # The number of the call, which the draws depend on, goes through the graph beside the outputs: what is
    # done when the graph is traced is not done when it is run.
    places = range(len(inputs))
    parameters = ", ".join(f"Tensor x{place}" for place in places)
    answers = ", ".join(["Tensor"] * (len(outputs) + 1))

    @define(called, mutates_args=(), schema=f"({parameters}, bool recorded) -> ({answers})")
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *arrays, recorded = arguments
        results, number = solver.evaluate(tuple(arrays), recorded=recorded)
        return *results, torch.tensor(number)

    @forward.register_fake
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        return *_empty(box, arguments[:-1]), torch.empty((), dtype=torch.int64)

    @define(
        f"{called}_backward",
        mutates_args=(),
        schema="(Tensor number, Tensor[] arrays, Tensor[] results, Tensor?[] cotangents, bool[] needed) "
        "-> Tensor[]",
    )
    def backward(
        number: Tensor,
        arrays: Sequence[Tensor],
        results: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> list[Tensor]:
        tensors, kept, arriving = tuple(arrays), tuple(results), tuple(cotangents)
        return list(solver.pull_back(int(number), tuple(needed), tensors, kept, arriving))

    @backward.register_fake
    def _(
        number: Tensor,
        arrays: Sequence[Tensor],
        results: Sequence[Tensor],
        cotangents: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> list[Tensor]:
        return [
            torch.empty_like(array, memory_format=torch.contiguous_format)
            for array, needs in zip(arrays, needed, strict=True)
            if needs
        ]

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        fixed = [out for spec, out in zip(outputs, output[:-1], strict=True) if not spec.differentiable]
        ctx.mark_non_differentiable(*fixed, output[-1])
        ctx.set_materialize_grads(False)  # None marks an output that the loss does not use
        ctx.save_for_backward(*inputs[:-1], *output)

    def pull_back(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *kept, number = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[: len(inputs)])
        arriving = [
            cotangent if spec.differentiable else None
            for spec, cotangent in zip(outputs, cotangents[:-1], strict=True)
        ]
        gradients = iter(backward(number, kept[: len(inputs)], kept[len(inputs) :], arriving, needed))
        return *(next(gradients) if needs else None for needs in needed), None

    forward.register_autograd(pull_back, setup_context=setup)
    backward.register_autograd(Queries.backward)  # which refuses

    def solve(*arrays: Any) -> Any:
        if len(arrays) != len(inputs) or not all(isinstance(array, Tensor) for array in arrays):
            return solver(*arrays)  # NumPy arrays carry no gradient; all else is the box's to refuse
        if not torch.compiler.is_compiling() and peek_interpreter_stack() is not None:
            return solver(*arrays)  # transforms of torch.func do not go through operators with autograd
        pairs = zip(inputs, arrays, strict=True)
        tensors = [array if spec.differentiable else array.detach() for spec, array in pairs]
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        results = forward(*tensors, recorded)[:-1]
        return results[0] if len(results) == 1 else results

    solve.__name__ = solve.__qualname__ = called
    solve.__doc__ = f"{box!r} as an operator of torch, made by `zo.box_gradient.custom_op`."
    return solve


def _empty(box: BlackBoxFunction, arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs of the shapes and dtypes that a call of the box gives, for tensors that hold no numbers."""
    rows = to_rows(repr(box), box.inputs, arrays)
    return tuple(
        arrays[0].new_empty((*rows.leading, *spec.shape), dtype=spec.torch_dtype or rows.dtype)
        for spec in box.outputs
    )


def _word(name: str) -> str:
    return re.sub(r"\W", "_", name)
