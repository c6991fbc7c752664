"""`BlackBoxFunction`: the contract of code that can be called but not differentiated, and the call.

What a subclass declares comes first, then the call, then what is refused. `blackbox.running` runs the rows.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from blackbox import calls
from blackbox.arrays import RowArrays, failed_outputs, finite_rows, in_order, to_rows, warn_of_other_units
from blackbox.checks import check_choice, check_count
from blackbox.errors import (
    DefinitionError,
    NonFiniteInputError,
    NotDifferentiableError,
    OutputError,
    RowFailedError,
)
from blackbox.failures import (
    POLICIES,
    FailedRow,
    Failure,
    Outcome,
    Policy,
    inputs_in_short,
    note,
    whereabouts,
)
from blackbox.ledger import Ledger
from blackbox.lost_digits import warn_of_lost_digits
from blackbox.running import mark_non_finite, run_blocks, run_each
from blackbox.spec import ArraySpec, check_specs
from blackbox.words import counted

Method = TypeVar("Method", bound=Callable[..., Any])


def placeholder(method: Method) -> Method:
    """Mark a method of the base class that a subclass is to define."""
    method.is_placeholder = True  # pyright: ignore[reportFunctionMemberAccess]
    return method


class BlackBoxFunction(ABC):
    """A function of arrays that has values and no derivative.

    Subclass it, declare inputs and outputs, and define one of two methods:

        class Pendulum(BlackBoxFunction):
            inputs = (ArraySpec("state", shape=(2,)),)
            outputs = (ArraySpec("state", shape=(2,)),)

            def evaluate(self, state):            # one row: NumPy array (2,) -> (2,)
                ...
            # or, where the simulator takes many at once:
            def evaluate_rows(self, state):       # all rows: (rows, 2) -> (rows, 2)
                ...

    `box(*arrays)` takes NumPy arrays or torch tensors with any leading axes, on any device, and returns the
    same kind, device and leading axes. Arrays may be given by the names of their specs too, as in
    `pendulum(state=array)`. The methods receive a copy, so they may write to it. With several outputs they
    return a tuple. If an output spec has no dtype, they may return any float of 64 bits or less, and the
    caller gets the precision of the (differentiable) inputs.

    Attributes:
        inputs: one spec for each input array; set in ALL subclasses, on the class or in `__init__`.
        outputs: one spec for each output array; set in ALL subclasses, on the class or in `__init__`.
        arrays: set in SOME: "torch" gives the methods torch tensors on the caller's device instead of NumPy
            arrays.
        max_rows: set in SOME: the most rows that `evaluate_rows` receives at once, which limits memory;
            larger calls run block after block. None for all rows of a call.
        deterministic: set in SOME: False if equal inputs may give different outputs.
        settable: set in SOME: False if a row goes on from another row's answer, as in `Session`, so that the
            box cannot be evaluated at inputs of one's choice. Estimators that perturb inputs are refused.
        alike: set in SOME: the axis, in all arrays with a gradient, that counts places of the same kind, such
            as columns, cells or agents: an input has the same effect at each.
        earlier: set in SOME: the names of inputs that come from an earlier step of a program, which answers
            may depend on or not, as in stages of a scheme (`Hosted`). Models find out.
        remembers: set in SOME: how many calls back an answer depends on inputs, for rows that go on from
            other rows' answers.
        of_process: set in SOME: True if rows go on from answers that this process got, as of programs that
            call the network (`Hosted`): answers that another process has kept are of no use here.
        environment_variables: set in SOME: the names of environment variables that answers depend on, so
            that a cache (`Cached`) asks again where they have other values.
        failures: what happens to failed rows, those that raise or return a value that is not finite. "raise"
            (default): the call raises `RowFailedError`. "keep": the row's output is NaN and it is counted;
            rows whose *input* is not finite are then not run at all. If all outputs are integers, nothing can
            be marked NaN, and "keep" raises as "raise" does.
        isolates: set by wrappers that need to know for each row whether it failed: `run_rows` then leaves no
            row out, even under "raise", where it may otherwise stop at the first failure.

    Raises:
        DefinitionError: when the class is created, if it is not complete; for what `__init__` sets, at the
            first call.
    """

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    arrays: Literal["numpy", "torch"] = "numpy"
    max_rows: int | None = None
    deterministic: bool = True
    settable: bool = True
    alike: int | None = None
    earlier: frozenset[str] = frozenset()
    remembers: int = 0
    of_process: bool = False
    environment_variables: tuple[str, ...] = ()
    failures: Policy = "raise"
    isolates: bool = False

    def __init_subclass__(cls, abstract: bool = False, **keywords: Any) -> None:
        """Refuse an incomplete subclass where it is written; `abstract=True` for a common parent."""
        super().__init_subclass__(**keywords)
        for name in ("inputs", "outputs"):
            if name in cls.__dict__ and not hasattr(cls.__dict__[name], "__get__"):  # no property
                check_specs(cls.__name__, name, cls.__dict__[name])
        check_arrays(cls.__name__, cls.arrays)
        if not abstract:
            check_methods(cls)

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Give every instance its ledger, also where a subclass forgets `super().__init__()`."""
        box = super().__new__(cls)
        box._ledger = Ledger()
        return box

    _ledger: Ledger

    def __init__(self, *, failures: Policy | None = None) -> None:
        """Set the policy for failed rows; None keeps the class's own."""
        if failures is not None:
            self.failures = failures
        check_policy(self)

    @placeholder
    def evaluate(self, *arrays: Any) -> Any:
        """One row: arrays of the specs' shapes in, an array (or tuple) of the output specs' out."""
        raise TypeError(f"{type(self).__name__} gives evaluate_rows, not evaluate.")

    @placeholder
    def evaluate_rows(self, *arrays: Any) -> Any:
        """All rows: arrays `(rows, *spec.shape)` in, `(rows, *spec.shape)` for each output out."""
        raise TypeError(f"{type(self).__name__} gives evaluate, not evaluate_rows.")

    @property
    def ledger(self) -> Ledger:
        """The counts of this box; a wrapper returns its inner box's, so a stack has one ledger."""
        return self._ledger

    def __call__(self, /, *arrays: Any, **named: Any) -> Any:
        """Evaluate every row.

        Args:
            *arrays: one per input spec, each `(*leading, *spec.shape)`, all NumPy or all torch.
            **named: the rest of them, by the names of their specs, in any order.

        Returns:
            One array per output spec, `(*leading, *spec.shape)`; alone, not in a tuple, if there is one.

        Raises:
            InputError: count, name, dtype, shape, or under "raise" a non-finite input; nothing was run.
            NotDifferentiableError: a tensor requires a gradient, which the box cannot pass on.
            RowFailedError: under "raise", a row failed.
            OutputError: the box broke its output specs.
        """
        if named:
            check_complete(self)
            arrays = in_order(repr(self), self.inputs, arrays, named)
        handler = calls.current()
        if handler is not None:
            return handler(self, arrays)
        return self._call(arrays, refuse_graph=True)

    def call(self, *arrays: Any) -> Any:
        """Evaluate as `box(*arrays)` does where no handler of `blackbox.calls.intercepted` replaces it.

        It is for such handlers. Gradients that arrays require are silently not passed on.
        """
        return self._call(arrays, refuse_graph=False)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run rows whose inputs are checked and finite; failures are values here, never raised.

        This is what wrappers override. Inputs `(rows, *spec.shape)` are not written to.
        """
        started = perf_counter()
        try:
            run = run_blocks if defines(type(self), "evaluate_rows") else run_each
            return run(self, inputs)
        finally:
            self.ledger.count(seconds=perf_counter() - started)

    def rows_to_run(self, inputs: tuple[Tensor, ...]) -> int:
        """Return how many of these rows `run_rows` would evaluate; fewer than all if some are cached."""
        return len(inputs[0])

    def answered(self, outputs: tuple[Tensor, ...]) -> Tensor | None:
        """Say which rows have an answer that a model of the box can learn from, `(rows,)` bool; None for all.

        Rows of a run that is over have no answer: their outputs only give arrays a shape.

        Args:
            outputs: the outputs of the box, `(rows, *spec.shape)` each.
        """
        return None

    def __repr__(self) -> str:
        """The class's name; boxes with settings show them."""
        return type(self).__name__

    def _call(self, arrays: tuple[Any, ...], *, refuse_graph: bool) -> Any:
        check_complete(self)
        if refuse_graph:
            self._refuse_graph(arrays)
        with calls.intercepted(None):
            rows = to_rows(repr(self), self.inputs, arrays)
            if not self.ledger.calls:
                warn_of_other_units(repr(self), self.inputs, rows.inputs)
            self.ledger.count(calls=1, rows_asked=rows.count)
            return rows.give_back(self._outputs(rows))

    def _outputs(self, rows: RowArrays) -> tuple[Tensor, ...]:
        """The outputs of all rows, `(rows, *spec.shape)` each; NaN, or 0 for integers, where a row failed."""
        finite = finite_rows(rows.inputs)
        if not finite.all() and not keeps_failed_rows(self):
            raise NonFiniteInputError(self._non_finite_message(rows, finite))
        run = torch.nonzero(finite).flatten()
        skipped = rows.count - len(run)
        if skipped:
            self.ledger.count(rows_skipped=skipped)
        outputs = None
        if len(run):
            index = slice(None) if len(run) == rows.count else run.to(rows.device)
            inputs, runner = tuple(t[index] for t in rows.inputs), calls.runner()
            outcome = self.run_rows(inputs) if runner is None else runner(self, inputs)
            answers, pairs = outcome.outputs, zip(self.outputs, outcome.outputs, strict=True)
            outcome.outputs = tuple(p.to(rows.device, spec.torch_dtype or rows.dtype) for spec, p in pairs)
            warn_of_lost_digits(self, self.outputs, answers, outcome.outputs, self.ledger)
            self._refuse_lengths(outcome, inputs)
            if not outcome.failed or self.failures == "keep":  # else rows may have been left out
                mark_non_finite(outcome)  # again: 1e300 is finite in float64 and infinite in float32
            if not skipped and not outcome.failed:  # copies: what a wrapper gives may be what it keeps
                return tuple(t.clone(memory_format=torch.contiguous_format) for t in outcome.outputs)
            self._count_failed(run, outcome, inputs)
            outputs = failed_outputs(self.outputs, rows.inputs, rows.dtype)
            failed = run[list(outcome.failed)].to(rows.device)
            for spec, whole, part in zip(self.outputs, outputs, outcome.outputs, strict=True):
                whole[index] = part
                whole[failed] = float("nan") if spec.floating else 0
        if skipped:
            note({0: FailedRow(Failure.SKIPPED)})
        return failed_outputs(self.outputs, rows.inputs, rows.dtype) if outputs is None else outputs

    def _whereabouts(
        self, inputs: tuple[Tensor, ...], outcome: Outcome, row: int, number: int | None = None
    ) -> str:
        """Describe a failed row of an outcome: its number, its inputs in short, and its outputs."""
        broken = [
            spec.name
            for spec, part in zip(self.outputs, outcome.outputs, strict=True)
            if outcome.failed[row].failure is Failure.NON_FINITE and not part[row].isfinite().all()
        ]
        return whereabouts(self.inputs, inputs, row, row if number is None else number, broken)

    def _refuse_lengths(self, outcome: Outcome, inputs: tuple[Tensor, ...]) -> None:
        """Raise where no row ever had the lengths of the specs: those are wrong, and not the rows."""
        count = len(inputs[0])
        if len(outcome.failed) < count:
            self.ledger.note_answer()
        errors = [why.error for why in outcome.failed.values()]
        if not self.ledger.has_answered and all(isinstance(error, OutputError) for error in errors):
            where = whereabouts(self.inputs, inputs, 0, 0, ())
            raise OutputError(
                f"{errors[0]} That was {where} of {counted(count, 'row')}. No row has had the declared "
                "lengths yet; where runs end early, begin with at least one input whose run does not."
            ) from errors[0]

    def _count_failed(self, run: Tensor, outcome: Outcome, inputs: tuple[Tensor, ...]) -> None:
        """Count failed rows; where they cannot be kept, raise."""

        def where(row: int) -> str:
            return self._whereabouts(inputs, outcome, row, int(run[row]))

        self.ledger.count_failed(outcome.failed, where)
        note(outcome.failed, lambda row: f"{self!r}, {where(row)}")
        if not outcome.failed or keeps_failed_rows(self):
            return
        first = min(outcome.failed)
        failed = outcome.failed[first]
        which = f"row {int(run[first])}"
        input_note = f" Row {int(run[first])} was given {inputs_in_short(self.inputs, inputs, first)}."
        if len(outcome.failed) > 1:
            which = f"{len(outcome.failed)} of {len(run)} rows, the first of them {which},"
            if all(why is failed for why in outcome.failed.values()):  # one error: no telling whose
                which, input_note = f"a block of {len(outcome.failed):,} rows", ""
        raise RowFailedError(
            f"{self!r}: {which} failed: {failed.sentence()}.{input_note} {self._hint(failed)}"
            f"Mend the box, or {how_to_mend(self)}"
        ) from failed.error

    def _hint(self, failed: FailedRow) -> str:
        """Return a further hint on a row that failed, such as the way to call a box of this kind."""
        return ""

    def _refuse_graph(self, arrays: tuple[Any, ...]) -> None:
        """Refuse inputs that carry a gradient: of autograd's graph, or of forward mode."""
        for spec, array in zip(self.inputs, arrays, strict=False):
            if not spec.differentiable or not isinstance(array, Tensor):
                continue
            tracked = array.requires_grad and torch.is_grad_enabled()
            if tracked or forward_ad.unpack_dual(array).tangent is not None:
                raise NotDifferentiableError(
                    f"{self!r}, input {spec.name!r}: expected a tensor that requires no gradient, got one "
                    "that does. A black box has no derivative: its outputs would be cut from the graph, and "
                    "training through them would be wrong without a word. For the gradient of a network's "
                    "weights take zo.LossGradient or zo.TangentGradient; for a box that autograd runs "
                    "through, zo.differentiable(box, ...); for the values alone give "
                    f"{spec.name}.detach(), or call the box under torch.no_grad()."
                )

    def _non_finite_message(self, rows: RowArrays, finite: Tensor) -> str:
        row = int(torch.nonzero(~finite)[0])
        bad = next(
            spec.name
            for spec, t in zip(self.inputs, rows.inputs, strict=True)
            if not finite_rows((t[row : row + 1],)).all()
        )
        return (
            f"{self!r}, input {bad!r}: expected finite numbers, got NaN or infinity in row {row} "
            f"({int((~finite).sum())} of {counted(rows.count, 'row')}). Nothing was run. "
            f"Look for what made it, or {how_to_mend(self)}"
        )


def defines(cls: type, method: str) -> bool:
    """Say whether a class has a method of its own, not the base's placeholder."""
    return not getattr(getattr(cls, method), "is_placeholder", False)


def _markable(box: BlackBoxFunction) -> bool:
    return any(spec.floating for spec in box.outputs)


def keeps_failed_rows(box: BlackBoxFunction) -> bool:
    """Say whether a failed row is kept, as NaN."""
    # Integers have no NaN: a kept row would pass for an answer of 0.
    return box.failures == "keep" and _markable(box)


def how_to_mend(box: BlackBoxFunction) -> str:
    """Say how to go on with rows that fail: the end of a message."""
    if _markable(box):
        return "let such rows pass as NaN with failures='keep'."
    return "give an output a float dtype: integers cannot be marked NaN, so such rows cannot be kept."


def check_policy(box: BlackBoxFunction) -> None:
    """Refuse a policy for failed rows that does not exist."""
    if box.failures not in POLICIES:  # a box may take long to say what it is
        check_choice(repr(box), "failures", box.failures, POLICIES)


def check_complete(box: BlackBoxFunction) -> None:
    """Refuse an instance whose `__init__` left something out, at its first call."""
    for name in ("inputs", "outputs"):
        check_specs(type(box).__name__, name, getattr(box, name, None))
    check_copies(type(box).__name__, box.inputs, box.outputs)
    check_arrays(type(box).__name__, box.arrays)
    if box.max_rows is not None:
        check_count(type(box).__name__, "max_rows", box.max_rows)
    check_policy(box)
    _check_method(type(box))


def check_copies(owner: str, inputs: tuple[ArraySpec, ...], outputs: tuple[ArraySpec, ...]) -> None:
    """Refuse an output that is declared a copy of an input that it cannot copy."""
    for spec in inputs:
        if spec.copy_of is not None:
            raise DefinitionError(
                f"{owner}, input {spec.name!r}, copy_of: expected it of an output, which may be an input "
                "unchanged. Leave it out."
            )
    for spec in outputs:
        if spec.copy_of is None:
            continue
        shapes = {one.name: one.shape for one in inputs if one.differentiable}
        if not spec.differentiable or shapes.get(spec.copy_of) != spec.shape:
            raise DefinitionError(
                f"{owner}, output {spec.name!r}, copy_of: expected the name of a differentiable input "
                f"of shape {spec.shape}, got {spec.copy_of!r}. Leave it out where the output is another."
            )


def check_arrays(owner: str, arrays: object) -> None:
    """Refuse a kind of array that does not exist."""
    if arrays not in ("numpy", "torch"):
        raise DefinitionError(f"{owner}.arrays: expected 'numpy' or 'torch', got {arrays!r}. Write one.")


def _check_method(cls: type[BlackBoxFunction]) -> None:
    if not (defines(cls, "evaluate") or defines(cls, "evaluate_rows")):
        raise DefinitionError(
            f"{cls.__name__}: expected a method evaluate (one row) or evaluate_rows (all rows), found "
            f"neither. Define one, or write class {cls.__name__}(..., abstract=True) for a common parent."
        )


def check_methods(cls: type[BlackBoxFunction]) -> None:
    """Refuse a class with no method, or with one that cannot take one array per input spec."""
    _check_method(cls)
    name = "evaluate_rows" if defines(cls, "evaluate_rows") else "evaluate"
    method, inputs = inspect.getattr_static(cls, name), getattr(cls, "inputs", None)
    if not (inspect.isfunction(method) and isinstance(inputs, tuple)):
        return  # a static or foreign method, or specs that only __init__ knows
    try:
        inspect.signature(method).bind(None, *inputs)
    except TypeError as error:
        expected = ", ".join(spec.name for spec in inputs)
        raise DefinitionError(
            f"{cls.__name__}.{name}: expected a method that takes one array for each input "
            f"(self, {expected}), but {error}. Name them in that order, or mend the specs."
        ) from None
