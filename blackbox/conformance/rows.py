"""Checks of the answers: the same for equal calls, and for a row whatever else is in its call."""

from __future__ import annotations

import numpy as np

from blackbox.conformance.comparing import compare, distances, finding
from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, Probe

ROWS = 8


def determinism(probe: Probe) -> Finding:
    """The same two calls, three times over; the second's answers must be equal."""
    count = _count(probe)
    same, other = probe.rows(0, count), probe.rows(count, count)
    answers: list[Arrays] = []
    for _ in range(3):
        probe(other)  # the same history before each: what a box remembers is another check's
        answers.append(probe(same))
    pairs = [(answers[0], answers[1]), (answers[0], answers[2])]
    worst = max((compare(probe, *pair) for pair in pairs), key=lambda difference: difference.relative)
    for place in range(len(probe.box.outputs)):
        apart = [distances(one[place], two[place]) for one, two in pairs]
        probe.measured.jitter[place] = float(np.max(apart))
    if worst.relative == 0:
        return finding("determinism", worst, "Equal calls give equal answers", "")
    if not probe.box.deterministic:
        sentence = (
            f"Equal calls differ, as the box says (deterministic = False): {worst.words()}. "
            "The noise level below says which mu that asks for."
        )
        return Finding("determinism", Verdict.WARNING, sentence, worst.relative, "of the output's size")
    if worst.relative <= 200 * worst.precision:
        sentence = (
            f"Equal calls agree to rounding only: {worst.words()}. Fix threads or atomics for equal bits."
        )
        return Finding("determinism", Verdict.WARNING, sentence, worst.relative, "of the output's size")
    sentence = (
        f"Equal calls give different answers: {worst.words()}. Seed what is random from the input, or set "
        "deterministic = False, so that no cache keeps one answer of many."
    )
    return Finding("determinism", Verdict.FAULT, sentence, worst.relative, "of the output's size")


def memory(probe: Probe) -> Finding:
    """The same rows after other rows, and after themselves."""
    count = _count(probe)
    same, other = probe.rows(0, count), probe.rows(count, count)
    probe(other)
    after_other = probe(same)
    after_itself = probe(same)
    return finding(
        "memory",
        compare(probe, after_other, after_itself),
        "A call does not hang on the one before",
        "Answers hang on the call before; start every call from the same state, and fill every buffer anew",
    )


def batch_mates(probe: Probe) -> Finding:
    """Rows in their places, once with other rows beside them."""
    count = _count(probe)
    kept = count // 2
    index = np.arange(count)
    index[kept:] = (index[kept:] + count - kept) % max(len(probe.samples[0]), count)
    index %= len(probe.samples[0])
    mates = probe.pick(index)
    if len(probe.samples[0]) < 2 * count - kept:  # no others: the same ones the other way round
        mates = tuple(np.concatenate([array[:kept], array[kept:][::-1]]) for array in probe.rows(0, count))
    first, second = probe(probe.rows(0, count)), probe(mates)
    return finding(
        "batch-mates",
        compare(probe, _head(first, kept), _head(second, kept)),
        "A row's answer does not hang on the rows beside it",
        "A row's answer changes with the rows beside it; take no mean, maximum or step size over rows",
    )


def row_order(probe: Probe) -> Finding:
    """The same rows in another order."""
    count = _count(probe)
    order = np.roll(np.arange(count)[::-1], 1)
    arrays = probe.rows(0, count)
    first, second = probe(arrays), probe(tuple(array[order] for array in arrays))
    return finding(
        "row order",
        compare(probe, tuple(array[order] for array in first), second),
        "A row's answer does not hang on its place",
        "A row's answer changes with its place in the call; use nothing that counts rows",
    )


def batch_size(probe: Probe) -> Finding:
    """The same rows alone, in halves and together."""
    count = _count(probe)
    arrays, half = probe.rows(0, count), count // 2
    whole = probe(arrays)
    blocks = [slice(0, half), slice(half, count)], [slice(row, row + 1) for row in range(count)]
    differences = []
    for sizes in blocks:
        parts = [probe(tuple(array[block] for array in arrays)) for block in sizes]
        joined = tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        differences.append(compare(probe, whole, joined))
    return finding(
        "batch size",
        max(differences, key=lambda difference: difference.relative),
        "A row's answer does not hang on how many rows are in its call",
        "A row's answer changes with the number of rows; divide by no row count, and compute rows one by one",
    )


def _count(probe: Probe) -> int:
    return min(ROWS, len(probe.samples[0]))


def _head(answers: Arrays, rows: int) -> Arrays:
    return tuple(array[:rows] for array in answers)
