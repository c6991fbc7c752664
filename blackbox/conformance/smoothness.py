"""Check of smoothness along random lines: jumps and kinks, found and closed in on by second differences."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.lines import Lines, Responses, draw_lines
from blackbox.conformance.probe import Probe

POINTS, INSIDE = 33, 17  # on the whole line; in each window around the largest second difference
LINES, WINDOWS, ROUNDS = 3, 3, 3
KINK = 24  # falls by less are a kink's: between its 8 and the 64 of a smooth bend


@dataclass(frozen=True)
class Rough:
    """A place where outputs are not smooth: how far they jump (0 at a kink), in which, at which length."""

    jump: float
    output: int
    length: float


def smoothness(probe: Probe) -> Finding:
    """33 points on three lines for each differentiable input, and closer looks at three places of each."""
    inputs = [place for place, spec in enumerate(probe.box.inputs) if spec.differentiable]
    if not inputs or not any(spec.differentiable for spec in probe.box.outputs):
        return Finding("smoothness", Verdict.SKIPPED, "No derivative is wanted of this box.")
    responses = Responses(probe)
    floor = np.array(
        [
            max(
                10 * np.nan_to_num(probe.measured.noise[p]),
                1.5 * probe.measured.quanta[p],
                probe.measured.jitter[p],
            )
            / responses.spread[p]
            for p in responses.output
        ]
    )
    jumps, kinks = [], []
    for place in inputs:
        lines = draw_lines(probe, place, LINES, "directions")
        for rough in _search(probe, responses, lines, floor):
            (jumps if rough.jump else kinks).append((place, rough))
    if jumps:
        place, worst = max(jumps, key=lambda item: item[1].jump)
        size = worst.jump * responses.spread[worst.output]
        sentence = (
            f"Output {probe.box.outputs[worst.output].name!r} jumps by {size:.2g} along "
            f"{probe.box.inputs[place].name!r}, {worst.length:.3g} from a sample ({len(jumps)} jumps on "
            f"{LINES * len(inputs)} lines). A step across one is no slope: look for an if, a mesh or an "
            "iteration count that changes, or take a mu that spans many."
        )
        return Finding("smoothness", Verdict.WARNING, sentence, len(jumps), "jumps")
    said = (
        f"No jumps; {len(kinks)} kinks, which a step of mu rounds off." if kinks else "No jumps and no kinks."
    )
    return Finding("smoothness", Verdict.OK, said, 0, "jumps")


def _search(probe: Probe, responses: Responses, lines: Lines, floor: np.ndarray) -> list[Rough]:
    lengths = np.linspace(-1, 1, POINTS) * lines.longest
    values = responses.along(probe, lines, lengths)
    found = []
    for line in range(len(lines.rows)):
        one = Lines(lines.place, lines.rows[line : line + 1], lines.directions[line : line + 1], 0.0, 0.0)
        bends = np.nan_to_num(np.abs(np.diff(values[line], n=2, axis=0)) - floor)
        for column, point in _largest(bends):
            rough = _close_in(
                probe, responses, one, lengths[point : point + 3], column, bends[point, column], floor
            )
            if rough and not any(abs(rough.length - old.length) < lengths[1] - lengths[0] for old in found):
                found.append(rough)
    return found


def _largest(bends: np.ndarray) -> list[tuple[int, int]]:
    """Columns and places of the largest second differences over their column's median, kept apart."""
    typical = np.median(bends, axis=0) + 1e-3 * bends.max(initial=1e-300)
    over = (bends / typical).copy()
    picked = []
    for _ in range(WINDOWS):
        point, column = np.unravel_index(int(np.argmax(over)), over.shape)
        if over[point, column] <= 0:
            break
        picked.append((int(column), int(point)))
        over[max(0, point - 2) : point + 3] = 0
    return picked


def _close_in(
    probe: Probe,
    responses: Responses,
    line: Lines,
    window: np.ndarray,
    column: int,
    first_bend: float,
    floor: np.ndarray,
) -> Rough | None:
    """Divide a window by eight, three times: a smooth bend falls by 64 each time, a kink's by 8."""
    bends, low, high = [first_bend], float(window[0]), float(window[-1])
    changes = np.zeros(INSIDE - 1)
    for _ in range(ROUNDS):
        inside = np.linspace(low, high, INSIDE)
        values = responses.along(probe, line, inside)[0, :, column]
        bend, changes = np.abs(np.diff(values, n=2)), np.abs(np.diff(values))
        if not np.isfinite(bend).all():
            return None  # failed rows beside good ones are the edge of where the box works
        bends.append(float(bend.max()))
        point = int(np.argmax(bend))
        low, high = inside[point], inside[point + 2]
    lone, next_to_it = np.sort(changes)[[-1, -2]]
    if lone > floor[column] and next_to_it <= 0.2 * lone and lone > 0.2 * first_bend:
        return Rough(float(lone), int(responses.output[column]), low)
    # Two divisions, after which rounding is still far below the bend of a kink that matters.
    if bends[2] > 2 * floor[column] and all(b > a / KINK for a, b in pairwise(bends[:3])):
        return Rough(0.0, int(responses.output[column]), low)
    return None
