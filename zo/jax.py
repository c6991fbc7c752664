"""A black box as a function of JAX, which `jit`, `grad` and `vmap` pass through; the host evaluates it.

What is asked and how gradients are made of it is `zo.differentiable`'s; here is what lies between it and JAX.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from blackbox import ArraySpec, BlackBoxFunction
from blackbox.arrays import as_tensor, in_order, to_rows
from blackbox.errors import DtypeError
from blackbox.extras import import_extra
from blackbox.notices import warn
from blackbox.spec import DTYPES
from zo.box_gradient.autograd_function import refuse
from zo.box_gradient.differentiable import differentiable as for_torch
from zo.box_gradient.differentiable_box import DifferentiableBox
from zo.box_gradient.row_rge import RowRGE
from zo.errors import ConfigurationError
from zo.estimators.cge import CGE
from zo.estimators.rge import RGE
from zo.frozen_box import FrozenBox
from zo.tangents.tangent import Tangent

__all__ = ["JaxBox", "differentiable"]

LAST = 2**31 - 1  # numbers of calls go through the graph in 32 bits, from 1 on


def differentiable(
    box: BlackBoxFunction,
    estimator: RGE | RowRGE | CGE | None = None,
    *,
    tangent: Tangent | None = None,
    seed: int | None = None,
    max_rows: int | None = None,
    max_dropped: float = 0.1,
    check: bool = True,
) -> JaxBox:
    """A black box as a function of JAX with a derivative in reverse mode: `zo.differentiable` for JAX.

        solve = zo.jax.differentiable(box, zo.box_gradient.RowRGE(mu=1e-3, q=8), seed=0)

        @jax.jit
        def step(weights, x, y):
            loss = lambda weights: jnp.mean((solve(network(weights, x)) - y) ** 2)
            value, gradient = jax.value_and_grad(loss)(weights)
            return value, jax.tree.map(lambda w, g: w - 0.01 * g, weights, gradient)

    Values, gradients, warnings, counts and draws are those of `zo.differentiable` with the same settings, to
    the bit. The base is evaluated once in the forward pass, all queries of all rows in one call in the
    backward pass. An input whose gradient nobody wants is not moved; no gradient, no queries.

    Rows: any leading axes, as with the box itself. `vmap` adds a leading axis, and so does a `vmap` around
    it: however deep, the box is called once for all rows. An array that `vmap` does not map is repeated for
    each row, and JAX sums its gradients. `jacrev` takes one row for each number of the output, with queries
    of its own.

    Arrays: inputs and outputs in the order of the specs, or by name, `solve(**tree)` for a dictionary of
    them. Several outputs are a tuple. Where JAX has no 64 bits, a box whose specs say "float64" or "int64" is
    given them all the same: its inputs are widened on the host, and its answers kept in full for the
    differences of the backward pass, whatever JAX sees of them. A box without a dtype gets what JAX has, so
    float32 by default: `ArraySpec(..., dtype="float64")` on inputs and outputs spares the differences that.
    Integers, and inputs and outputs with `differentiable=False`, have a derivative of zero (`float0`).

    State: counts, and what a tangent has learned, are held in the object and not in the function's arguments,
    since it is the box's answers that change them. Tracing changes nothing of it, and evaluates nothing. What
    is learned in a step is there in the next, compiled or not; `solve.solver.state_dict()` has it all. JAX
    returns before a step is done: read counts and state after `jax.block_until_ready` of its results.

    Rows that XLA leaves out or adds: what nobody uses is not evaluated. In a loop a call whose inputs do not
    change may run once for all steps, so a noisy box gives them one answer: put repetitions in rows.
    `jax.checkpoint` evaluates twice, and draws by the second call. With the policy
    `jax.checkpoint_policies.save_only_these_names("zo.jax")` it keeps the box's answers instead, and counts
    and draws are those without it.

    A frozen box (`zo.frozen`) takes no estimator and no tangent: `solve = zo.jax.differentiable(frozen)`. Its
    derivative costs no row, and nothing is drawn or counted.

    Numbers of calls: draws depend on the seed and the number of the call, which goes through the graph, so
    that each backward pass has the number of its own forward one. By default calls are numbered as they run.
    Calls that depend on each other, as in a rollout or a `scan`, run in that order. Of calls in one compiled
    function that do not, XLA decides anew each time, so their draws may be another's: `solve.numbered` gives
    them numbers; better, put their rows in one call. A tangent learns in the order of the backward passes.

    Failed rows: as `zo.differentiable` has them. An error of the box (`RowFailedError`, `BudgetError`) is
    raised as it is. Out of a compiled function comes an error of JAX that ends with its words: a
    `jax.errors.JaxRuntimeError` in the function's first call, a `ValueError` in later ones. Catch both.

    Refused: forward mode (`jvp`, `jacfwd`), which implicit solvers take too, by JAX's own `TypeError` where
    it goes through `jit`, `scan`, `checkpoint` or `linearize`; a second derivative (`hessian`), `pmap` and
    `shard_map`.

    Several devices: rows that `jit` has on several are asked in one call. JAX takes a mesh whose axes are of
    `AxisType.Auto`; on those of `Explicit`, `jax.make_mesh`'s default, it refuses some. A `jit` that returns
    the box's own outputs needs `out_shardings`.

    Args:
        box: a box with at least one differentiable input and output.
        estimator: `RGE`, `RowRGE` or `CGE`; None with a tangent, and of a frozen box.
        tangent: is copied, and the copy learns from values; None with an estimator.
        seed: of all draws; None is a seed of its own. Give each box of a run another one: of equal seeds
            nobody warns here.
        max_rows: the most rows of one call in the backward pass; None for no limit.
        max_dropped: the fraction of a backward pass's queries that may fail before it raises an error.
        check: whether some queries are asked again, to see whether they give slopes.

    Raises:
        ConfigurationError: a value is out of range.
        MissingExtraError: JAX is not installed.
    """
    if isinstance(box, FrozenBox) and estimator is None and tangent is None:
        return JaxBox(FrozenSolver(box))
    settings = {"max_rows": max_rows, "max_dropped": max_dropped, "check": check}
    return JaxBox(for_torch(box, estimator, tangent=tangent, seed=seed, **settings))


class FrozenSolver:
    """A frozen box as a `JaxBox` asks it for values and gradients; see `DifferentiableBox`."""

    def __init__(self, box: FrozenBox) -> None:
        self.box = box

    def evaluate(
        self, inputs: tuple[Tensor, ...], *, recorded: bool, number: int | None = None
    ) -> tuple[tuple[Tensor, ...], int]:
        """The box's outputs, and a number that says nothing."""
        answer = self.box.call(*inputs)
        return tuple(out.clone() for out in (answer if isinstance(answer, tuple) else (answer,))), number or 0

    def pull_back(
        self,
        call: int,
        needed: tuple[bool, ...],
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, ...]:
        """The frozen J^T v of the needed inputs; zero in rows that failed."""
        arrays = [array.detach().requires_grad_(needs) for array, needs in zip(inputs, needed, strict=True)]
        with torch.enable_grad():
            followed = self.box.followed(arrays, outputs)
        pairs = [(out, c) for out, c in zip(followed, cotangents, strict=True) if c is not None]
        moved = [array for array, needs in zip(arrays, needed, strict=True) if needs]
        arrived, arriving = zip(*pairs, strict=True)
        return torch.autograd.grad(arrived, moved, arriving, materialize_grads=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenSolver:
        return FrozenSolver(self.box)

    def extra_repr(self) -> str:
        """The box."""
        return repr(self.box)


class JaxBox:
    """A black box as a function of JAX; made by `zo.jax.differentiable`, which explains it.

    It is no pytree: close over it, or let `equinox` hold it as a field. A deep copy counts and learns by
    itself, around the same box.

    Args:
        solver: the box made differentiable for torch, which it refers to.

    Attributes:
        solver: has what is counted and learned: `counts`, `box.ledger`, `trust`, `metrics()`, `tangent`,
            `state_dict()` and `load_state_dict()`.
    """

    def __init__(self, solver: DifferentiableBox | FrozenSolver) -> None:
        self.solver = solver
        self._jax: Any = import_extra("zo.jax.differentiable", "jax", "jax")
        self._named = import_extra("zo.jax.differentiable", "jax.ad_checkpoint", "jax").checkpoint_name
        _warn_of_one_core(self._jax)
        self._one = Lock()  # XLA calls from several threads, and a tangent learns from one call at a time
        self._function = self._jax.custom_vjp(self._values)
        self._function.defvjp(self._forward, self._backward, symbolic_zeros=True)

    def __call__(self, /, *arrays: Any, **named: Any) -> Any:
        """Evaluate every row; as the box itself, with arrays of JAX or what JAX takes for arrays.

        Raises:
            CountError, DtypeError, ShapeError: where the call is traced.
            DerivativeError: a derivative in forward mode or of second order, or `pmap`.
        """
        return self._call(None, arrays, named)

    def numbered(self, number: Any, /, *arrays: Any, **named: Any) -> Any:
        """The same, as a call of a given number, on which its draws depend, and not on what ran before it.

        Args:
            number: one for all rows, from 0 to 2**31 - 2, such as the number of the step, or twice that and
                0 or 1 for two calls in a step. Calls of equal numbers draw the same directions. Some queries
                are asked again in calls 0, 1, 10, 100 and so on.
            *arrays: the inputs.
            **named: the rest of them, by name.
        """
        number = self._jax.numpy.asarray(number)
        if number.shape or str(number.dtype) not in ("int32", "int64"):
            raise ConfigurationError(
                f"{self!r}, numbered: expected the number of the call, a whole one, got an array of shape "
                f"{number.shape} and {number.dtype}. Count steps or calls, and give that first."
            )
        return self._call(number, arrays, named)

    def __repr__(self) -> str:
        """The box, and how its gradient is estimated."""
        return f"JaxBox({self.solver.extra_repr()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return JaxBox, (self.solver,)

    def _call(self, number: Any, arrays: tuple[Any, ...], named: dict[str, Any]) -> Any:
        box = self.solver.box
        if named:
            arrays = in_order(repr(box), box.inputs, arrays, named)
        try:
            arrays = tuple(map(self._jax.numpy.asarray, arrays))
        except (TypeError, ValueError) as error:  # of JAX, about a conversion that nobody asked for
            kinds = ", ".join(type(array).__name__ for array in arrays)
            raise DtypeError(
                f"{box!r}: expected an array for each input, got {kinds}. Give a dictionary of arrays by "
                "name, solve(**tree), and a tuple in order, solve(*arrays)."
            ) from error
        self._form(arrays)
        if self._jax.sharding.get_abstract_mesh().manual_axes:
            refuse("pmap or shard_map", "Call it outside of them, on the rows of all devices, as under jit")
        try:
            outputs = self._function(number, *arrays)
        except TypeError as error:  # of JAX, before anything is run
            if "forward-mode" not in str(error):
                raise
            refuse("forward mode (jvp, jacfwd)", "Differentiate in reverse, with jax.grad or jax.jacrev")
        return outputs[0] if len(outputs) == 1 else outputs

    # What JAX calls, with arrays that have numbers or are traced

    def _values(self, number: Any, *arrays: Any) -> tuple[Any, ...]:
        """The outputs, without a derivative."""
        form = self._form(arrays)
        return self._on_host(HostCall(self._evaluate, (form,)), self._shaped(form.shapes, form.seen), arrays)

    def _forward(self, number: Any, *primals: Any) -> tuple[tuple[Any, ...], Any]:
        """The outputs, and what the backward pass needs: which gradients are wanted, and the base."""
        specs, arrays = self.solver.box.inputs, tuple(primal.value for primal in primals)
        pairs = zip(specs, primals, strict=True)
        # of no array, so that they are known while the backward pass is traced
        marks = [() if spec.differentiable and primal.perturbed else None for spec, primal in pairs]
        if not any(mark is not None for mark in marks):
            return self._values(None, *arrays), None
        form = self._form(arrays)
        shapes = self._shaped(form.shapes, form.seen), self._shaped(form.kept_shapes, form.kept)
        shapes = *shapes, self._jax.ShapeDtypeStruct((), np.int32)
        number = None if number is None else number.value
        results = self._on_host(HostCall(self._record, (form,)), shapes, number, arrays)
        # by this name a policy of jax.checkpoint keeps them, instead of asking the box again
        values, outputs, number = self._named(results, "zo.jax")
        return values, (marks, number, arrays, outputs)

    def _backward(self, base: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        """The gradients of the inputs that want one; None is zero."""
        inputs, outputs = self.solver.box.inputs, self.solver.box.outputs
        zero = self._jax.custom_derivatives.SymbolicZero  # of an output that the loss does not use
        pairs = zip(outputs, cotangents, strict=True)
        arriving = [c if spec.differentiable and not isinstance(c, zero) else None for spec, c in pairs]
        if base is None or all(cotangent is None for cotangent in arriving):
            return (None,) * (1 + len(inputs))
        marks, number, arrays, kept = base
        needed = tuple(mark is not None for mark in marks)
        arrays_to_move = [array for array, needs in zip(arrays, needed, strict=True) if needs]
        shapes = self._shaped(
            [array.shape for array in arrays_to_move], [array.dtype for array in arrays_to_move]
        )
        function = HostCall(self._pull_back, (self._form(arrays), needed))
        gradients = iter(self._on_host(function, shapes, number, arrays, kept, arriving))
        return None, *(next(gradients) if needs else None for needs in needed)

    def _on_host(self, function: Callable[..., Any], shapes: Any, *arguments: Any) -> Any:
        """Call a function of NumPy arrays: at once, or, if something is traced, when the trace runs."""
        jax = self._jax

        def run(*arguments: Any) -> Any:
            leaves = [*jax.tree.leaves(arguments), jax.lax.optimization_barrier(0)]  # traced by jit always
            if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                return jax.pure_callback(function, shapes, *arguments, vmap_method="broadcast_all")
            return jax.tree.map(jax.numpy.asarray, function(*arguments))

        once = jax.custom_jvp(run)
        once.defjvp(_refuse_second)
        return once(*arguments)

    def _form(self, arrays: Sequence[Any]) -> JaxForm:
        return JaxForm.of(self.solver.box, arrays, self._jax.dtypes.canonicalize_dtype)

    def _shaped(self, shapes: Sequence[Any], dtypes: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(map(self._jax.ShapeDtypeStruct, shapes, dtypes))

    # What runs on the host. Under vmap all arrays have further axes in front.

    def _evaluate(self, form: JaxForm, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs, as JAX sees them."""
        tensors = form.tensors(arrays)
        with self._one:
            outputs, _ = self.solver.evaluate(tensors, recorded=False)
        return form.as_seen(outputs)

    def _record(self, form: JaxForm, number: Any, arrays: Sequence[Any]) -> tuple[Any, Any, Any]:
        """The outputs as JAX sees them, as the backward pass needs them, and the number of the call."""
        tensors = form.tensors(arrays)
        call = None if number is None else _one_number(number)
        with self._one:
            outputs, call = self.solver.evaluate(tensors, recorded=True, number=call)
        mapped = form.leading_of(tensors[0])[: -len(form.leading) or None]
        # from 1 on: a branch of `cond` that `vmap` does not take leaves zeros to the backward pass
        return form.as_seen(outputs), form.as_kept(outputs), np.full(mapped, call + 1, dtype=np.int32)

    def _pull_back(
        self,
        form: JaxForm,
        needed: tuple[bool, ...],
        number: Any,
        arrays: Sequence[Any],
        kept: Sequence[Any],
        cotangents: Sequence[Any],
    ) -> list[Any]:
        """The gradients of the needed inputs; zero where the forward pass took another branch."""
        numbers = np.asarray(number)
        called = numbers > 0
        gradients = [np.zeros_like(array) for array, needs in zip(arrays, needed, strict=True) if needs]
        if not called.any():
            return gradients
        arrays, kept, cotangents = (
            [None if array is None else np.asarray(array)[called] for array in several]
            for several in (arrays, kept, cotangents)
        )
        tensors, outputs, arriving = form.tensors(arrays), form.outputs(kept), form.cotangents(cotangents)
        call = _one_number(numbers[called] - 1)
        with self._one:
            parts = self.solver.pull_back(call, needed, tensors, outputs, arriving)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient[called] = part.numpy()
        return gradients


@dataclass(frozen=True)
class HostCall:
    """A function of NumPy arrays that JAX calls; equal ones are compiled once, also by `vmap` without `jit`.

    Attributes:
        function: takes the settings, and then the arrays.
        settings: what is known while the call is traced.
    """

    function: Callable[..., Any]
    settings: tuple[Any, ...]

    def __call__(self, *arrays: Any) -> Any:
        """The function's results."""
        return self.function(*self.settings, *arrays)


@dataclass(frozen=True)
class JaxForm:
    """The shapes and dtypes of a call, which are known while it is traced.

    Attributes:
        inputs: the box's specs.
        leading: the axes of rows, without those that `vmap` adds.
        taken: the dtypes of the box's inputs.
        shapes: the shapes of the outputs.
        given: the dtypes of the box's outputs.
        seen: the dtypes of the outputs in JAX, with 32 bits in the place of 64 where JAX has no more.
    """

    inputs: tuple[ArraySpec, ...]
    leading: tuple[int, ...]
    taken: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    given: tuple[np.dtype[Any], ...]
    seen: tuple[np.dtype[Any], ...]

    @classmethod
    def of(cls, box: BlackBoxFunction, arrays: Sequence[Any], in_jax: Callable[[Any], Any]) -> JaxForm:
        """Return the form of a call with these arrays; only their shapes and dtypes are used.

        Args:
            box: the box that is called.
            arrays: its inputs.
            in_jax: the dtype that JAX has for one of NumPy's.

        Raises:
            CountError, DtypeError, ShapeError: they are not what the box takes.
        """
        if len(arrays) != len(box.inputs):
            to_rows(repr(box), box.inputs, tuple(arrays))  # which refuses them
        pairs = list(zip(box.inputs, arrays, strict=True))
        input_dtypes = tuple(_dtype_taken(repr(box), spec, array, in_jax) for spec, array in pairs)
        empty = (
            torch.empty(array.shape, dtype=dtype, device="meta")
            for dtype, (_, array) in zip(input_dtypes, pairs, strict=True)
        )
        rows = to_rows(repr(box), box.inputs, tuple(empty))
        output_dtypes = tuple(_numpy_dtype(spec.torch_dtype or rows.dtype) for spec in box.outputs)
        shapes = tuple((*rows.leading, *spec.shape) for spec in box.outputs)
        return cls(
            box.inputs, rows.leading, input_dtypes, shapes, output_dtypes, tuple(map(in_jax, output_dtypes))
        )

    @property
    def kept(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes that carry what the box gave: floats that JAX has by half go as words of 32 bits."""
        pairs = zip(self.given, self.seen, strict=True)
        return tuple(
            np.dtype(np.uint32) if seen != given and given.kind == "f" else seen for given, seen in pairs
        )

    @property
    def kept_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Their shapes."""
        pairs = zip(self.shapes, self.kept, strict=True)
        return tuple((*shape, 2) if dtype == np.uint32 else shape for shape, dtype in pairs)

    def leading_of(self, first: Tensor) -> tuple[int, ...]:
        """All leading axes of the first input, those of `vmap` in front."""
        return tuple(first.shape[: first.ndim - len(self.inputs[0].shape)])

    def tensors(self, arrays: Sequence[Any]) -> tuple[Tensor, ...]:
        """The inputs, as the box takes them."""
        pairs = zip(arrays, self.taken, strict=True)
        return tuple(as_tensor(np.asarray(array)).to(dtype) for array, dtype in pairs)

    def as_seen(self, outputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """The box's outputs, as JAX sees them."""
        return tuple(out.numpy().astype(dtype) for out, dtype in zip(outputs, self.seen, strict=True))

    def as_kept(self, outputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """The box's outputs, as the backward pass needs them."""
        return tuple(
            np.ascontiguousarray(out.numpy()[..., None]).view(dtype)
            if dtype == np.uint32
            else out.numpy().astype(dtype)
            for out, dtype in zip(outputs, self.kept, strict=True)
        )

    def outputs(self, kept: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the outputs that `as_kept` was made of."""
        arrays = map(np.ascontiguousarray, kept)
        return tuple(
            as_tensor(array.view(dtype)[..., 0] if array.dtype == np.uint32 else array.astype(dtype))
            for array, dtype in zip(arrays, self.given, strict=True)
        )

    def cotangents(self, cotangents: Sequence[Any]) -> tuple[Tensor | None, ...]:
        """Return the cotangents of the outputs, in their dtypes; None where there is none."""
        pairs = zip(cotangents, self.given, strict=True)
        return tuple(None if c is None else as_tensor(np.asarray(c).astype(dtype)) for c, dtype in pairs)


def _dtype_taken(owner: str, spec: ArraySpec, array: Any, in_jax: Callable[[Any], Any]) -> torch.dtype:
    """The dtype in which the box takes an array: its own, or a wider one that the spec asks for."""
    name = str(array.dtype)
    if name in DTYPES:
        dtype = np.dtype(spec.dtype or name)
        if (
            dtype.kind == np.dtype(name).kind
            and np.can_cast(name, dtype)
            and spec.accepts(DTYPES[str(dtype)])
        ):
            return DTYPES[str(dtype)]
    dtype = spec.dtype or "float32"
    raise DtypeError(
        f"{owner}, input {spec.name!r}: expected {spec.dtype or 'float32 or float64'}, got {name}. "
        f"Convert it first: {spec.name}.astype('{in_jax(np.dtype(dtype))}')."
    )


def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    return np.dtype(str(dtype).removeprefix("torch."))


def _one_number(number: Any) -> int:
    """The number of a call, which all rows of it have."""
    numbers = np.unique(np.asarray(number))
    if len(numbers) > 1 or (len(numbers) and not 0 <= numbers[0] < LAST):
        raise ConfigurationError(
            f"zo.jax.differentiable: expected one number >= 0 for all rows of a call, below {LAST:,}, got "
            f"{numbers.tolist()}. Count steps, and map over the arrays alone, not over the numbers."
        )
    return int(numbers[0]) if len(numbers) else 0


def _warn_of_one_core(jax: Any) -> None:
    """Warn where JAX's one thread runs the callback that waits for it: a hang that says nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cores == 1 and jax.config.read("jax_cpu_enable_async_dispatch"):
        warn(
            "zo.jax.differentiable: expected a process with two cores, got one, on which a compiled function "
            "may wait for ever for the arrays of a black box, from some thousand numbers on. Write "
            'jax.config.update("jax_cpu_enable_async_dispatch", False) before the first array, or give it '
            "another core.",
            RuntimeWarning,
        )


def _refuse_second(primals: Any, tangents: Any) -> NoReturn:
    refuse(
        "a derivative of its gradient (hessian, grad of grad)",
        "Take jax.lax.stop_gradient of the gradient where it enters a loss",
    )
