"""`BlackBoxFunction`: the contract of code that can be called but not differentiated, and the call."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from blackbox import calls
from blackbox.arrays import Rows, failed_outputs, finite_rows, to_rows
from blackbox.definition import Definition, check_complete, gives, keeps, mend
from blackbox.errors import NonFiniteInputError, NotDifferentiableError, RowFailedError
from blackbox.failures import FailedRow, Failure, Outcome, note, whereabouts
from blackbox.running import mark_non_finite, run_blocks, run_each
from blackbox.words import counted


class BlackBoxFunction(Definition, abstract=True):
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
    same kind, device and leading axes. The methods receive a copy, so they may write to it. With several
    outputs they return a tuple. If an output spec has no dtype, they may return any float of 64 bits or less,
    and the caller gets the precision of the (differentiable) inputs.

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

    def __call__(self, *arrays: Any) -> Any:  # noqa: ANN401
        """Evaluate every row.

        Args:
            *arrays: one per input spec, each `(*leading, *spec.shape)`, all NumPy or all torch.

        Returns:
            One array per output spec, `(*leading, *spec.shape)`; alone, not in a tuple, if there is one.

        Raises:
            InputError: count, dtype, shape, or under "raise" a non-finite input; nothing was run.
            NotDifferentiableError: a tensor requires a gradient, which the box cannot pass on.
            RowFailedError: under "raise", a row failed.
            OutputError: the box broke its output specs.
        """
        handler = calls.current()
        if handler is not None:
            return handler(self, arrays)
        check_complete(self)
        self._refuse_graph(arrays)
        return self.call(*arrays)

    def call(self, *arrays: Any) -> Any:  # noqa: ANN401
        """What `box(*arrays)` does unless a handler of `blackbox.calls.intercepted` replaces it.

        For such handlers. Gradients that arrays require are silently not passed on.
        """
        with calls.intercepted(None):
            return self._call(arrays)

    def _call(self, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
        name = repr(self)
        check_complete(self)
        rows = to_rows(name, self.inputs, arrays)
        ledger = self.ledger
        ledger.count(calls=1, rows_asked=rows.count)
        finite = finite_rows(rows.inputs)
        if not finite.all() and not keeps(self):
            raise NonFiniteInputError(self._non_finite_message(name, rows, finite))
        run = torch.nonzero(finite).flatten()
        skipped = rows.count - len(run)
        if skipped:
            ledger.count(rows_skipped=skipped)
        outputs = failed_outputs(self.outputs, rows.inputs, rows.dtype) if skipped or not len(run) else ()
        if len(run):
            index = slice(None) if len(run) == rows.count else run.to(rows.device)
            kept, runner = tuple(t[index] for t in rows.inputs), calls.runner()
            outcome = self.run_rows(kept) if runner is None else runner(self, kept)
            given = zip(self.outputs, outcome.outputs, strict=True)
            outcome.outputs = tuple(p.to(rows.device, spec.torch_dtype or rows.dtype) for spec, p in given)
            if not outcome.failed or self.failures == "keep":  # else rows may have been left out
                mark_non_finite(outcome)  # again: 1e300 is finite in float64 and infinite in float32
            if not skipped and not outcome.failed:
                # copies: what a wrapper has kept is its own
                return rows.give_back(
                    tuple(part.clone(memory_format=torch.contiguous_format) for part in outcome.outputs)
                )
            outputs = outputs or failed_outputs(self.outputs, rows.inputs, rows.dtype)
            self._count_failed(name, run, outcome, kept)
            failed = run[list(outcome.failed)].to(rows.device)
            for spec, whole, part in zip(self.outputs, outputs, outcome.outputs, strict=True):
                whole[index] = part
                whole[failed] = float("nan") if spec.floating else 0
        if skipped:
            note([FailedRow(Failure.SKIPPED)])
        return rows.give_back(outputs)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run rows whose inputs are checked and finite; failures are values here, never raised.

        This is what wrappers override. Inputs `(rows, *spec.shape)` are not written to.
        """
        started = perf_counter()
        try:
            return run_blocks(self, inputs) if gives(type(self), "evaluate_rows") else run_each(self, inputs)
        finally:
            self.ledger.count(seconds=perf_counter() - started)

    def rows_to_run(self, inputs: tuple[Tensor, ...]) -> int:
        """How many of these rows `run_rows` would evaluate; fewer than all if some are cached."""
        return len(inputs[0])

    def _whereabouts(
        self, inputs: tuple[Tensor, ...], outcome: Outcome, row: int, number: int | None = None
    ) -> str:
        """Which row of an outcome failed: its number, its inputs in short, and its outputs."""
        broken = [
            spec.name
            for spec, part in zip(self.outputs, outcome.outputs, strict=True)
            if outcome.failed[row].failure is Failure.NON_FINITE and not part[row].isfinite().all()
        ]
        return whereabouts(self.inputs, inputs, row, row if number is None else number, broken)

    def _count_failed(self, name: str, run: Tensor, outcome: Outcome, inputs: tuple[Tensor, ...]) -> None:
        """Count failed rows; where they cannot be kept, raise."""
        self.ledger.count_failed(
            outcome.failed, lambda row: self._whereabouts(inputs, outcome, row, int(run[row]))
        )
        note(outcome.failed[row] for row in sorted(outcome.failed))
        if not outcome.failed or keeps(self):
            return
        first = min(outcome.failed)
        failed = outcome.failed[first]
        which = f"row {int(run[first])}"
        if len(outcome.failed) > 1:
            which = f"{len(outcome.failed)} of {len(run)} rows, the first of them {which},"
            if all(why is failed for why in outcome.failed.values()):  # one error: no telling whose
                which = f"a block of {len(outcome.failed):,} rows"
        raise RowFailedError(
            f"{name}: {which} failed: {failed.sentence()}. Mend the box, or {mend(self)}"
        ) from failed.error

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

    def _non_finite_message(self, name: str, rows: Rows, finite: Tensor) -> str:
        row = int(torch.nonzero(~finite)[0])
        bad = next(
            spec.name
            for spec, t in zip(self.inputs, rows.inputs, strict=True)
            if not finite_rows((t[row : row + 1],)).all()
        )
        return (
            f"{name}, input {bad!r}: expected finite numbers, got NaN or infinity in row {row} "
            f"({int((~finite).sum())} of {counted(rows.count, 'row')}). Nothing was run. "
            f"Look for what made it, or {mend(self)}"
        )
