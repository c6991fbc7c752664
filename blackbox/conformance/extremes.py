"""Checks with NaN and with extreme inputs: how a row fails, and whether others suffer."""

from __future__ import annotations

import numpy as np

from blackbox.conformance.comparing import compare
from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, BoxRaisedError, Probe
from blackbox.conformance.processes import in_process, pickled

SIZES = {"zero": 0.0, "tiny": 1e-30, "large": 1e6, "huge": 1e30}


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


def extreme_inputs(probe: Probe) -> Finding:
    """Rows of zeros, tiny, large and huge numbers; in a process of their own where the box can go there."""
    name = "extreme inputs"
    batches = {kind: _filled(probe, size) for kind, size in SIZES.items()}
    if not any(spec.floating for spec in probe.box.inputs):
        return Finding(name, Verdict.SKIPPED, "Whole numbers have no extremes.")
    box = pickled(probe.box) if probe.processes else None
    words: dict[str, str] = {}
    if isinstance(box, bytes):
        ordinary = probe.rows(
            0, 1
        )  # first, to tell inputs that end a process from a box that cannot go there
        probe.spend(1 + sum(len(batch[0]) for batch in batches.values()))
        reply = in_process(box, [ordinary, *batches.values()], workers=1)[0]
        answered = reply.answers[1:]
        words = {kind: _how(answer) for kind, answer in zip(batches, answered, strict=False)}
        if reply.answers and reply.died:
            kind = list(batches)[len(answered)].capitalize()
            sentence = (
                f"{kind} inputs end the process ({reply.died}). Refuse such inputs, or run the box in a "
                "process of its own, with a timeout."
            )
            return Finding(name, Verdict.FAULT, sentence, float(len(answered)), "kinds survived")
    if not words:
        for kind, batch in batches.items():
            try:
                words[kind] = _how(probe(batch))
            except BoxRaisedError as raised:
                words[kind] = _how(raised.__cause__)
        difference = compare(probe, probe.base, probe(probe.samples))
        if difference.verdict is Verdict.FAULT:
            sentence = (
                f"After extreme inputs ordinary answers are others: {difference.words()}. "
                "Start every call from the same state."
            )
            return Finding(name, Verdict.FAULT, sentence, difference.relative, "of the output's size")
    said = "; ".join(f"{kind} ({SIZES[kind]:g}): {how}" for kind, how in words.items())
    finite = sum(how == "finite" for how in words.values())
    return Finding(name, Verdict.OK, f"{said}.", float(finite), "kinds answered")


def _filled(probe: Probe, size: float) -> Arrays:
    """One row whose float inputs with a derivative are all of this size; others as in the samples."""
    arrays = probe.rows(0, 1)
    for spec, array in zip(probe.box.inputs, arrays, strict=True):
        if spec.differentiable:
            array[...] = size
    return arrays


def _how(answer: Arrays | BaseException | str | None) -> str:
    if isinstance(answer, tuple):
        return "finite" if all(np.isfinite(array).all() for array in answer) else "fails as a row"
    return "refused" if isinstance(answer, str) else f"refused ({type(answer).__name__})"
