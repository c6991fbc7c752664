"""Check of smoothness: jumps on lines through the samples, closed in on by bisection.

Between points a distance h apart the second difference falls with h^2 where the box is smooth, and with h at
a kink, which finite differences average over. Across a jump it does not fall. So a grid on each line shows
where to look. The places with the most unusual second differences are bisected, always towards the largest
one, until it is as small as noise or has not fallen for long enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blackbox.conformance.check_report import IN_UNIT, Finding, Verdict
from blackbox.conformance.lines import Lines, Responses, draw_lines
from blackbox.conformance.probe import Probe

LINES, FEWEST, MOST = 24, 2, 400  # without a limit of rows; within a small one; within a large one
POINTS = 33  # of the grid on a line
PLACES = 2  # that are bisected on each line
BISECTIONS = 20
JUMP, BEND = 1e-4, 1e-6  # of an output's spread: no smaller jump is reported, no smaller difference bisected
LAST = 4  # bisections that decide
CONSTANT = 2.0  # a jump's second difference falls by less in all of them
BESIDE, CALM = 5, 0.2  # points on either side of a jump, and what their differences may be beside its own


@dataclass(frozen=True)
class Jump:
    """A place where an output jumps.

    Attributes:
        height: how far, in the output's units.
        output: which output.
        line: which line.
        length: how far from the sample of the line, in the input's units.
    """

    height: float
    output: int
    line: int
    length: float


def smoothness(probe: Probe) -> Finding:
    """Lines in random directions through samples, for each differentiable input."""
    inputs = [place for place, spec in enumerate(probe.box.inputs) if spec.differentiable]
    if not inputs or not any(spec.differentiable for spec in probe.box.outputs):
        return Finding("smoothness", Verdict.SKIPPED, "Not measured: no derivative is wanted of this box.")
    responses, rows_before = Responses(probe), probe.spent
    count = _affordable_lines(probe, len(inputs))
    jumps_at: list[tuple[str, Jump]] = []  # each with where it is, in words
    lengths, failed = [], 0.0
    for place in inputs:
        name, lines = probe.box.inputs[place].name, draw_lines(probe, place, count, "directions")
        jumps, share = _search(responses, lines)
        unit = IN_UNIT[probe.unit(place)[1]]
        jumps_at += [(f"along {name!r}, {abs(jump.length):.3g}{unit} from", jump) for jump in jumps]
        lengths.append(f"{2 * lines.longest:.2g}{unit} in {name!r}")
        failed = max(failed, share)
    where = f"on {count} lines of length {', '.join(lengths)}, in {probe.spent - rows_before:,} rows"
    if failed:
        where += f" ({100 * failed:.2g} % of the points on them failed)"
    if not jumps_at:
        steps = " and the steps of quantised outputs" if any(probe.quanta) else ""
        sentence = f"Found no jump {where}. Jumps below {JUMP:g} of an output's spread{steps} do not count."
        return Finding("smoothness", Verdict.OK, sentence, 0, "jumps")
    location, worst = max(jumps_at, key=lambda item: item[1].height / responses.spread[item[1].output])
    if worst.height == 0:
        sentence = (
            f"Output {probe.box.outputs[worst.output].name!r} jumped {location} a sample, and did not when "
            f"the same rows were asked again, {where}. Answers depend on what was asked before: start every "
            "call from the same state, such as an iteration from the same guess."
        )
        return Finding("smoothness", Verdict.WARNING, sentence, len(jumps_at), "jumps")
    sentence = (
        f"Output {probe.box.outputs[worst.output].name!r} jumps by {worst.height:.2g} {location} a "
        f"sample; found {len(jumps_at)} jump{'s' if len(jumps_at) > 1 else ''} "
        f"{where}. A difference across a jump is no slope. Look for an if, an impact, a table, a mesh or a "
        "number of iterations that changes, and smooth it if you can. The mu above is for slopes between "
        "jumps; a much larger one averages over them."
    )
    return Finding("smoothness", Verdict.WARNING, sentence, len(jumps_at), "jumps")


def _affordable_lines(probe: Probe, inputs: int) -> int:
    """Return as many lines as the rows that are left allow."""
    if math.isinf(probe.left):
        return LINES
    dearest = POINTS + PLACES * (2 * BISECTIONS + 2 * BESIDE + 1)  # which most lines do not cost
    return int(min(MOST, max(FEWEST, probe.left / inputs / dearest)))


def _search(responses: Responses, lines: Lines) -> tuple[list[Jump], float]:
    """Jumps at the places of each line that stand out most, and the share of points that failed."""
    probe = responses.probe
    noise = np.maximum(1.5 * np.array(probe.quanta), 3 * np.array(probe.jitter)) / responses.spread
    # Not the measured noise level: where equal calls agree it may come from a table with many small jumps.
    floor = np.maximum(np.maximum(BEND, 10 * responses.rounding), noise[responses.output])
    grid = np.linspace(-1, 1, POINTS) * lines.longest
    values = responses.along(lines, grid)
    places = _standing_out(responses, lines, grid, values, floor)
    candidates = []
    for place, row in enumerate(places.bisect(floor[places.column])):
        bends = row[np.isfinite(row)]
        if len(bends) > LAST and bends[-1] > JUMP and bends[-LAST - 1] < CONSTANT * bends[-1]:
            candidates.append(place)
    jumps: list[Jump] = []
    for jump in sorted(places.confirmed(candidates), key=lambda jump: -jump.height):
        if all(old.line != jump.line or abs(old.length - jump.length) > grid[1] - grid[0] for old in jumps):
            jumps.append(jump)
    return jumps, float(np.isnan(values).any(axis=2).mean())


@dataclass
class Places:
    """Places under bisection: three equally spaced points each, and one number of the responses there.

    Attributes:
        responses: the numbers that are looked at.
        lines: the lines through the samples.
        line: `(places,)`, the line of each.
        column: `(places,)`, the number of the responses that is followed.
        start: `(places,)`, the length of the first point.
        step: `(places,)`, the distance between the points.
        values: `(places, 3)`, the number at the points.
    """

    responses: Responses
    lines: Lines
    line: np.ndarray
    column: np.ndarray
    start: np.ndarray
    step: np.ndarray
    values: np.ndarray

    def at(self, which: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The numbers of the places `which`, `(n,)`, at these lengths, `(n, points)`."""
        count = lengths.shape[1]
        answers = self.responses.at(self.lines, np.repeat(self.line[which], count), lengths.ravel())
        return answers.reshape(len(which), count, -1)[np.arange(len(which)), :, self.column[which]]

    def bisect(self, floor: np.ndarray) -> np.ndarray:
        """Halve the step until second differences are at the floor, or the input's rounding shows.

        Args:
            floor: `(places,)`.

        Returns:
            `(places, bisections + 1)`, the second differences; NaN from where a place was done.
        """
        bends = [np.abs(np.diff(self.values, n=2, axis=1))[:, 0]]
        for _ in range(BISECTIONS):
            active = np.flatnonzero((bends[-1] > floor) & (self.step > self.lines.shortest))
            if not len(active):
                break
            step = self.step[active] / 2
            between = self.at(active, self.start[active, None] + step[:, None] * np.array([1, 3]))
            five = np.insert(self.values[active], [1, 2], between, axis=1)
            bend = np.abs(np.diff(five, n=2, axis=1))
            best = np.argmax(bend, axis=1)  # NaN, a failed row, is the largest and ends it
            self.start[active] += best * step
            self.step[active] = step
            self.values[active] = np.take_along_axis(five, best[:, None] + np.arange(3), axis=1)
            bends.append(np.full(len(floor), np.nan))
            bends[-1][active] = np.take_along_axis(bend, best[:, None], axis=1)[:, 0]
        return np.stack(bends, axis=1)

    def confirmed(self, candidates: Sequence[int]) -> list[Jump]:
        """The places that stand alone among their neighbours, which neither noise nor a steep front does.

        All other differences of neighbours must be small beside the largest.

        Args:
            candidates: the places.
        """
        if not candidates:
            return []
        which = np.array(candidates)
        step, centre = self.step[which], self.start[which] + self.step[which]
        values = self.at(which, centre[:, None] + step[:, None] * np.arange(-BESIDE, BESIDE + 1))
        differences = np.sort(np.abs(np.diff(values, axis=1)), axis=1)
        jumps = []
        for place, length, sizes in zip(which, centre, differences, strict=True):
            if sizes[-2] <= CALM * sizes[-1]:  # not where a row failed, beside which nothing is known
                output = int(self.responses.output[self.column[place]])
                height = float(sizes[-1]) * self.responses.spread[output]
                jumps.append(Jump(height, output, int(self.line[place]), float(length)))
        return jumps


def _standing_out(
    responses: Responses, lines: Lines, grid: np.ndarray, values: np.ndarray, floor: np.ndarray
) -> Places:
    """The places of each line whose second difference is least like those beside it.

    Args:
        responses: the numbers that are looked at.
        lines: the lines through the samples.
        grid: `(points,)`, lengths.
        values: `(lines, points, columns)`, the responses there.
        floor: `(columns,)`, second differences that are noise.
    """
    second = np.diff(values, n=2, axis=1)
    # The fourth difference holds little of curvature that the grid resolves, and a jump three times.
    unlike = np.abs(np.diff(np.pad(second, [(0, 0), (1, 1), (0, 0)], "edge"), n=2, axis=1))
    unlike = np.where(np.abs(second) > floor, unlike, 0.0)  # 0 for NaN too
    score = np.nan_to_num(unlike / (np.median(unlike, axis=1, keepdims=True) + floor))
    places = []
    for line in range(len(values)):
        for _ in range(PLACES):
            point, column = np.unravel_index(int(np.argmax(score[line])), score[line].shape)
            if score[line, point, column] > 0:
                places.append((line, point, column))
                score[line, max(0, point - 1) : point + 2] = 0.0
    line, point, column = np.array(places, int).reshape(-1, 3).T
    triples = np.stack([values[line, point + k, column] for k in range(3)], axis=1)
    step = np.full(len(line), grid[1] - grid[0])
    return Places(responses, lines, line, column, grid[point], step, triples)
