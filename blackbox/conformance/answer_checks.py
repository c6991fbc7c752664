"""Checks of the answers: the same for equal calls, and for a row whatever else is in its call."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.lines import NUMBERS, precision
from blackbox.conformance.probe import Arrays, BoxRaisedError, Probe, more_rows

ROUNDING = 200  # units of the outputs' rounding that another order of summation may make
SERIOUS = 1e-5  # of an output's size: no rounding of double precision
SERIOUS_UNITS = 8000  # units of the outputs' rounding, 1e-3 in float32
MANY, PART = 129, 10  # rows of one large call, beyond usual blocks of solvers: at most a tenth of those left


@dataclass(frozen=True)
class AnswerDifference:
    """The largest difference of two answers.

    Attributes:
        relative: its size over the output's largest number; infinite where NaN stands beside a number.
        excess: its size over what equal calls differ by; infinite where equal calls are equal.
        output: the name of the output.
        row: the row.
        precision: the rounding unit of the output.
    """

    relative: float
    excess: float
    output: str
    row: int
    precision: float

    @property
    def verdict(self) -> Verdict:
        """Ok to rounding, or to three times the box's own randomness."""
        if self.relative <= ROUNDING * self.precision or self.excess <= 3:
            return Verdict.OK
        serious = max(SERIOUS, SERIOUS_UNITS * self.precision)
        return Verdict.FAULT if self.relative > serious else Verdict.WARNING

    def words(self) -> str:
        """The size of the difference and where it is."""
        if self.relative == 0:
            return "equal to the bit"
        size = (
            "a failed row beside a good one"
            if np.isinf(self.relative)
            else f"{self.relative:.1e} of its size"
        )
        return f"output {self.output!r} differs by {size} in row {self.row}"


def compare(probe: Probe, first: Arrays, second: Arrays) -> AnswerDifference:
    """The largest difference of two answers, row by row, `(rows, *spec.shape)` for each output."""
    worst = AnswerDifference(0.0, 0.0, probe.box.outputs[0].name, 0, 0.0)
    outputs = zip(probe.box.outputs, first, second, probe.base, probe.jitter, strict=True)
    for spec, one, other, base, jitter in outputs:
        away, size = distances(one, other), largest(base)
        row = int(np.argmax(away))
        relative = float(away[row]) / size
        if relative > worst.relative:
            excess = float(away[row]) / jitter if jitter > 0 else np.inf
            worst = AnswerDifference(relative, excess, spec.name, row, precision(one))
    return worst


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference in each row, `(rows,)` float64; infinite where only one of two is finite."""
    with np.errstate(all="ignore"):
        away = np.abs(one.astype(np.float64) - other.astype(np.float64)).reshape(len(one), -1)
    finite = [np.isfinite(array).reshape(len(array), -1) for array in (one, other)]
    away[~finite[0] & ~finite[1]] = 0.0
    away[finite[0] != finite[1]] = np.inf
    return away.max(axis=1)


def largest(values: np.ndarray) -> float:
    """The largest finite absolute value; 1 where there is none but zeros."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def finding(check: str, difference: AnswerDifference, good: str, bad: str, more: str = "") -> Finding:
    """A finding about two answers that should be equal: `good` if they are, else `bad` with the mend.

    Of `bad` and `more` the one is in front of the difference, the other behind it.
    """
    verdict = difference.verdict
    sentence = f"{bad}: {difference.words()}. {more}".strip()
    if verdict is Verdict.OK:
        sentence = f"{good} ({difference.words()})."
    return Finding(check, verdict, sentence, difference.relative, "of the output's size")


ROWS, PLACED = 8, 11  # rows of a call, and of one whose places are looked at: "10" is sorted before "2"
STEPPED = (
    "A simulator that goes on from its last call, and that can be reset and stepped but not set, becomes a "
    "function of its inputs as a blackbox.adapters.Session."
)

SAME_STATE = (
    "Start every call from the same state: make anew what a run uses up (an iterator, a file that is read to "
    "its end), and initialise before the first call."
)
NOW_AND_THEN = (
    "Equal calls give different answers now and then: look for what counts calls, fills up or is renewed (a "
    "log, a cache, a connection)."
)


def determinism(probe: Probe) -> Finding:
    """The same two calls, three times over; the second's answers must be equal."""
    count = _count(probe)
    same, other_rows = probe.rows(0, count), probe.rows(count, count)
    answers: list[Arrays] = []
    for _ in range(3):
        probe(other_rows)  # the same history before each: what a box remembers is another check's
        answers.append(probe(same))
    pairs = [(answers[0], answers[1]), (answers[0], answers[2])]
    worst = max((compare(probe, *pair) for pair in pairs), key=lambda difference: difference.relative)
    for place in range(len(probe.box.outputs)):
        gaps = [distances(one[place], two[place]) for one, two in pairs]
        probe.jitter[place] = float(np.max(gaps))
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
            f"Equal calls agree to rounding only: {worst.words()}. A fixed number of threads, and sums in a "
            "fixed order, give equal bits."
        )
        return Finding("determinism", Verdict.WARNING, sentence, worst.relative, "of the output's size")
    sentence = (
        f"Equal calls give different answers: {worst.words()}. Seed what is random from the input, or say "
        f"deterministic = False, so that no cache takes one answer for all. {STEPPED}"
    )
    return Finding("determinism", Verdict.FAULT, sentence, worst.relative, "of the output's size")


def memory(probe: Probe) -> Finding:
    """The same rows after other rows, and after themselves."""
    count = _count(probe)
    same, other_rows = probe.rows(0, count), probe.rows(count, count)
    probe(other_rows)
    after_other = probe(same)
    after_itself = probe(same)
    return finding(
        "memory",
        compare(probe, after_other, after_itself),
        "An answer does not depend on the call before",
        "Answers depend on the call before; start every call from the same state, and fill every buffer anew",
        STEPPED,
    )


def first_call(probe: Probe) -> Finding:
    """The rows of the very first call, asked once more: what was used up, warmed up or initialised by it."""
    return _asked_again(
        probe,
        "first call",
        "The first answer of a new box is the same as a later one",
        "The first call of the box gave other answers than a later one",
        SAME_STATE,
    )


def drift(probe: Probe) -> Finding:
    """The rows of the very first call after all other checks: what grows, or goes with the time."""
    probe.kept_back = max(0, probe.kept_back - 1)
    return _asked_again(
        probe,
        "drift",
        "The rows of the first call are answered as before at the end",
        f"The rows of the first call are answered otherwise after {probe.spent:,} others",
        "Look for a clock, a counter, what adds up, and what is renewed after some calls.",
    )


def _asked_again(probe: Probe, name: str, good: str, bad: str, mend: str) -> Finding:
    if probe.called_before or probe.first is None:
        sentence = (
            "Not measured: the box had been called before, so its first answer is gone. Check a new one."
        )
        return Finding(name, Verdict.SKIPPED, sentence)
    arrays, first = probe.first
    try:
        again = probe(arrays)
    except BoxRaisedError as raised:
        sentence = f"Not measured: the first row raises an error ({raised.__cause__})."
        return Finding(name, Verdict.SKIPPED, sentence)
    if isinstance(first, str):
        sentence = f"The first call of the box raised an error ({first}), the same one now does not. {mend}"
        return Finding(name, Verdict.FAULT, sentence)
    return finding(name, compare(probe, first, again), good, bad, mend)


def precisions(probe: Probe) -> Finding:
    """The same numbers in single and in double precision, where the specs leave it open."""
    name, arrays = "precisions", probe.rows(0, _count(probe))
    left_open = [spec.differentiable and spec.dtype is None for spec in probe.box.inputs]
    if not any(left_open):
        return Finding(name, Verdict.OK, "The specs say in which precision inputs come.")

    def in_precision(dtype: str) -> Arrays:
        pairs = zip(left_open, arrays, strict=True)
        return tuple(a.astype("float32").astype(dtype) if is_open else a for is_open, a in pairs)

    difference = compare(probe, probe(in_precision("float32")), probe(in_precision("float64")))
    if difference.relative <= SERIOUS_UNITS * np.finfo(np.float32).eps or difference.excess <= 3:
        words = f"The same numbers in float32 and float64 have the same answers ({difference.words()})."
        return Finding(name, Verdict.OK, words, difference.relative, "of the output's size")
    words = (
        f"The same numbers in float32 and float64 have other answers: {difference.words()}. Compute in one "
        "precision inside, or say dtype= in the ArraySpec."
    )
    return Finding(name, Verdict.WARNING, words, difference.relative, "of the output's size")


def batch_mates(probe: Probe) -> Finding:
    """Rows in their places, once with other rows beside them."""
    few = len(probe.samples[0]) < 2 * PLACED - ROWS // 2  # too few to be all of the others
    count = _count(probe, ROWS if few else PLACED)
    half = min(count, ROWS) // 2  # rows that stay; the fewer, the more others
    index = np.arange(count)
    index[half:] = (index[half:] + count - half) % max(len(probe.samples[0]), count)
    index %= len(probe.samples[0])
    mates = probe.pick(index)
    if len(probe.samples[0]) < 2 * count - half:  # no others: the same ones the other way round
        mates = tuple(np.concatenate([array[:half], array[half:][::-1]]) for array in probe.rows(0, count))
    first, second = probe(probe.rows(0, count)), probe(mates)
    return finding(
        "batch-mates",
        compare(probe, _head(first, half), _head(second, half)),
        "A row's answer does not depend on the rows beside it",
        "A row's answer changes with the rows beside it; take no mean, maximum or step size over rows",
    )


def row_order(probe: Probe) -> Finding:
    """The same rows in another order."""
    count = _count(probe, PLACED)
    order = np.roll(np.arange(count)[::-1], 1)
    arrays = probe.rows(0, count)
    first, second = probe(arrays), probe(tuple(array[order] for array in arrays))
    return finding(
        "row order",
        compare(probe, tuple(array[order] for array in first), second),
        "A row's answer does not depend on its place in the call",
        "A row's answer changes with its place in the call; use nothing that counts rows",
    )


def batch_size(probe: Probe) -> Finding:
    """The same rows alone, in halves and together; and several times in one large call, if rows are left."""
    count = _count(probe, PLACED)
    arrays, half = probe.rows(0, count), count // 2
    whole = probe(arrays)
    blocks = [slice(0, half), slice(half, count)], [slice(row, row + 1) for row in range(_count(probe))]
    differences = []
    for sizes in blocks:
        parts = [probe(tuple(array[block] for array in arrays)) for block in sizes]
        joined = tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))
        differences.append(compare(probe, _head(whole, len(joined[0])), joined))
    small, roomy = MANY * sum(array[0].size for array in arrays) <= NUMBERS, probe.left > PART * MANY
    if small and roomy:
        large, places = probe(probe.rows(0, MANY)), np.arange(MANY) % len(probe.samples[0])
        has_more = places < count
        parts = tuple(array[places[has_more]] for array in whole), tuple(array[has_more] for array in large)
        differences.append(compare(probe, *parts))
    result = finding(
        "batch size",
        max(differences, key=lambda difference: difference.relative),
        "A row's answer does not depend on how many rows are in its call",
        "A row's answer changes with the number of rows; divide by no row count, and compute rows one by one",
    )
    if (small and roomy) or result.verdict is Verdict.FAULT:
        return result
    more = f": take more, such as {more_rows(probe, probe.rows_left > PART * MANY)}" if small else ""
    return replace(result, sentence=f"{result.sentence} Not tried in a call of {MANY} rows{more}.")


def _count(probe: Probe, rows: int = ROWS) -> int:
    return min(rows, len(probe.samples[0]))


def _head(answers: Arrays, rows: int) -> Arrays:
    return tuple(array[:rows] for array in answers)
