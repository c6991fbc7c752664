"""Checks of the contract: shapes and dtypes, arrays left alone, the empty batch, NaN inputs."""

from __future__ import annotations

import numpy as np
import torch

from blackbox.arrays import finite_rows
from blackbox.conformance.probe import Arrays, BoxRaisedError, Probe
from blackbox.conformance.report import Finding, Verdict
from blackbox.definition import gives
from blackbox.errors import OutputError
from blackbox.wrappers.wrapper import Wrapper

SHAPES = "shapes and dtypes"


def answers(probe: Probe) -> list[Finding]:
    """All samples in one call, or where that raises row by row; those that failed are examined no further."""
    count = len(probe.samples[0])
    broken: OutputError | None = None
    other: BaseException | None = None
    try:
        given, alive = probe(probe.samples), np.ones(count, bool)
    except BoxRaisedError as raised:
        parts: list[Arrays | None] = []
        broken, other = _sorted_by_kind(raised.__cause__, broken, other)
        for row in range(count):
            try:
                parts.append(probe(probe.rows(row, 1)))
            except BoxRaisedError as alone:
                broken, other = _sorted_by_kind(alone.__cause__, broken, other)
                parts.append(None)
        alive = np.array([part is not None for part in parts])
        good = [part for part in parts if part is not None]
        given = tuple(np.concatenate(pieces) for pieces in zip(*good, strict=True)) if good else ()
    if given:
        finite = finite_rows(tuple(torch.from_numpy(array) for array in given)).numpy()
        given = tuple(array[finite] for array in given)
        alive[alive] = finite
    why = "" if other is None else f"{type(other).__name__}: {other}"
    if not why and not alive.all():
        why = _why(probe, tuple(array[~alive][:1] for array in probe.samples))
    probe.samples = tuple(array[alive] for array in probe.samples)
    probe.base = given
    return [_shapes(probe, broken), _answered(int(alive.sum()), count, why, broken is not None)]


def _why(probe: Probe, row: Arrays) -> str:
    """Why a row fails, in the words that the ledger's errors use."""
    try:
        failed = probe.below_the_call(row).failed
    except BoxRaisedError as raised:
        return f"{type(raised.__cause__).__name__}: {raised.__cause__}"
    return failed[0].sentence() if 0 in failed else "not when run alone"


def _sorted_by_kind(
    cause: BaseException | None, broken: OutputError | None, other: BaseException | None
) -> tuple[OutputError | None, BaseException | None]:
    return (cause, other) if isinstance(cause, OutputError) else (broken, cause or other)


def _shapes(probe: Probe, broken: OutputError | None) -> Finding:
    if broken is None and len(probe.samples[0]):
        try:
            probe(probe.rows(0, 1))  # an output that is squeezed loses its axis of one row
        except BoxRaisedError as raised:
            broken = raised.__cause__ if isinstance(raised.__cause__, OutputError) else None
    if broken is not None:
        return Finding(SHAPES, Verdict.FAULT, str(broken))
    if not len(probe.samples[0]):
        return Finding(SHAPES, Verdict.SKIPPED, "No row was answered.")
    return Finding(SHAPES, Verdict.OK, "Outputs keep their specs, for one row and for many.")


def _answered(alive: int, count: int, why: str, broken: bool) -> Finding:
    failed = count - alive
    if not failed and not why:
        return Finding("answers", Verdict.OK, f"All {count} samples are answered.", 0.0, "of the rows failed")
    if failed:
        said = f"{failed} of {count} samples failed: {why or 'their shapes or dtypes are broken'}."
    else:
        said = f"A call of {count} rows raised, each row alone did not: {why}."
    mend = "Mend the box, or give samples that it is made for: check_black_box(box, samples=...)."
    fault = not failed or (alive < 2 and not broken)
    verdict = Verdict.FAULT if fault else Verdict.WARNING
    return Finding("answers", verdict, f"{said} {mend}", failed / count, "of the rows failed")


def arrays_left_alone(probe: Probe) -> Finding:
    """The caller's inputs after a call, NumPy and torch, and an answer after the next call."""
    name, size = "arrays left alone", min(4, len(probe.samples[0]))
    arrays = probe.rows(0, size)
    for kind, convert in (("NumPy", np.copy), ("torch", torch.tensor)):
        given = tuple(convert(array) for array in arrays)
        probe.spend(size)
        try:
            probe.box(*given)
        except Exception as error:
            raise BoxRaisedError from error
        for spec, before, after in zip(probe.box.inputs, arrays, given, strict=True):
            changed = np.asarray(after) != before
            if changed.any():
                sentence = (
                    f"The caller's {kind} input {spec.name!r} was written to by a call. "
                    "Copy it first; in a wrapper, run_rows must not write to its inputs."
                )
                return Finding(name, Verdict.FAULT, sentence, float(changed.sum()), "numbers changed")
    kept = probe(arrays)
    before = [array.copy() for array in kept]
    probe(probe.rows(size, size))
    for spec, old, now in zip(probe.box.outputs, before, kept, strict=True):
        if not np.array_equal(old, now, equal_nan=spec.floating):
            sentence = (
                f"An answer {spec.name!r} changed when the box was called again: it is a buffer of the box's "
                "own. Return a copy."
            )
            return Finding(name, Verdict.FAULT, sentence, float((old != now).sum()), "numbers changed")
    return Finding(name, Verdict.OK, "Inputs and earlier answers are not written to.", 0.0, "numbers changed")


def empty_batch(probe: Probe) -> Finding:
    """No rows, by a call and below it."""
    none = tuple(array[:0] for array in probe.samples)
    try:
        shapes = [array.shape for array in probe(none)]
    except BoxRaisedError as raised:
        sentence = f"A call without rows raises {raised.__cause__!r}. Give back outputs of shape (0, ...)."
        return Finding("empty batch", Verdict.FAULT, sentence)
    expected = [(0, *spec.shape) for spec in probe.box.outputs]
    if shapes != expected:
        sentence = (
            f"A call without rows gives {shapes}, expected {expected}. Give back outputs of shape (0, ...)."
        )
        return Finding("empty batch", Verdict.FAULT, sentence)
    inner = probe.box
    while isinstance(inner, Wrapper):
        inner = inner.box
    if gives(type(inner), "evaluate_rows"):
        try:
            inner.evaluate_rows(*(torch.from_numpy(a) if inner.arrays == "torch" else a for a in none))
        except Exception as error:
            sentence = (
                "Calls without rows are answered for the box; its own evaluate_rows raises on them "
                f"({type(error).__name__}: {error}). Return early if there are no rows."
            )
            return Finding("empty batch", Verdict.WARNING, sentence)
    return Finding("empty batch", Verdict.OK, "No rows in, no rows out.")


def nan_inputs(probe: Probe) -> Finding:
    """A row of NaN in each float input, past the call's own check that would hold it back."""
    swallowed = []
    floats = [place for place, spec in enumerate(probe.box.inputs) if spec.floating]
    if not floats or not any(spec.floating for spec in probe.box.outputs):
        return Finding("NaN inputs", Verdict.SKIPPED, "Whole numbers have no NaN.")
    for place in floats:
        arrays = probe.rows(0, 2)
        arrays[place][1] = np.nan
        try:
            outcome = probe.below_the_call(arrays)
        except BoxRaisedError:
            continue  # refused: as good as NaN
        if 1 not in outcome.failed:
            swallowed.append(probe.box.inputs[place].name)
    if swallowed:
        sentence = (
            f"NaN in {', '.join(map(repr, swallowed))} comes out as finite numbers: a run that blew up would "
            "pass for an answer. Let NaN through, or raise."
        )
        return Finding("NaN inputs", Verdict.FAULT, sentence, len(swallowed), "inputs")
    return Finding("NaN inputs", Verdict.OK, "NaN comes out as NaN, or is refused.", 0, "inputs")
