"""Checks of the contract: shapes and dtypes, inputs left alone, NaN inputs."""

from __future__ import annotations

import numpy as np
import torch

from blackbox.arrays import finite_rows
from blackbox.conformance.probe import Arrays, BoxRaisedError, Probe
from blackbox.conformance.report import Finding, Verdict
from blackbox.errors import OutputError

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


def inputs_left_alone(probe: Probe) -> Finding:
    """The caller's inputs after a call; a box gets copies, so only a wrapper can write to them."""
    size = min(4, len(probe.samples[0]))
    given, arrays = probe.rows(0, size), probe.rows(0, size)
    probe(given)
    for spec, before, after in zip(probe.box.inputs, arrays, given, strict=True):
        if (changed := after != before).any():
            sentence = (
                f"The caller's input {spec.name!r} was written to by a call. Copy it first; in a wrapper, "
                "run_rows must not write to its inputs."
            )
            number = float(changed.sum())
            return Finding("inputs left alone", Verdict.FAULT, sentence, number, "numbers changed")
    sentence = "The caller's inputs are not written to."
    return Finding("inputs left alone", Verdict.OK, sentence, 0.0, "numbers changed")


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
