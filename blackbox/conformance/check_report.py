"""`Report`: the findings about a black box, for programs, as JSON, and for people."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from blackbox.terminal import plain
from blackbox.words import counted, plural


class Verdict(Enum):
    """The result of a check; the value is the word that people read."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    SKIPPED = "not measured"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: the name of the check, such as "batch-mates".
        verdict: the verdict. A fault spoils training or breaks the contract; a warning limits how the box can
            be used.
        sentence: the finding, and the mend of a fault.
        number: the measurement; None where there is nothing to measure.
        unit: the unit of the number, in words.
    """

    check: str
    verdict: Verdict
    sentence: str
    number: float | None = None
    unit: str = ""

    @property
    def measured(self) -> str:
        """The number with its unit, as the table shows it; empty where there is none."""
        if self.number is None:
            return ""
        whole = abs(self.number) < 1e15 and self.number == int(self.number)
        return f"{self.number:{',.0f' if whole else '.2g'}} {self.unit}".strip()


# Of a mu: the input's own unit, its spec's scale, or the spread of each of its numbers over the samples.
Unit = Literal["own", "scale", "spread"]


@dataclass(frozen=True)
class Steps:
    """The best steps along one kind of line, and what they leave wrong.

    Attributes:
        forward: mu for forward differences.
        central: mu for central differences.
        forward_error: the expected error of a forward slope, over the slopes' root mean square.
        central_error: the expected error of a central slope, over the slopes' root mean square.
        linear: whether no curvature was distinguishable from noise, up to the input's own spread. Then
            `forward` is that spread, and smaller steps only let in more noise.
    """

    forward: float
    central: float
    forward_error: float
    central_error: float
    linear: bool


@dataclass(frozen=True)
class Recommendation:
    """The recommended mu for one input.

    Attributes:
        input: the name of the input.
        size: how many numbers the input has.
        coordinates: the steps along single coordinates, for `CGE`.
        unit: the unit of the steps: "own", the input's own unit; "scale", its spec's scale, in which
            `zo.differentiable` takes its mu; or "spread", the spread of each number over the samples. The
            last is for an input without a scale whose spreads are so far apart that no single mu is right in
            its own unit; put the spreads into its spec as `scale=`.
        directions: the steps along directions of unit length, for `RowRGE` with "orthogonal" or "sphere".
            Directions of "gaussian" and "rademacher" are longer by the square root of `size`, so their mu is
            smaller by as much: `long_directions`.
    """

    input: str
    size: int
    coordinates: Steps
    directions: Steps
    unit: Unit = "own"

    @property
    def long_directions(self) -> tuple[float, float]:
        """The mu of forward and central differences for Gaussian and Rademacher directions."""
        return self.directions.forward / math.sqrt(self.size), self.directions.central / math.sqrt(self.size)


IN_UNIT: dict[Unit, str] = {"own": "", "scale": " scales", "spread": " spreads"}  # after a length
NOT_SEEN = (
    "No check sees a box that is random and seeds itself anew in each call: it passes for deterministic, and "
    "its noise, the same every time, for a part of the function. Nor state that changes later or on a "
    "schedule, nor what lies beside the samples and the lines through them."
)
NOT_SETTABLE = "Not measured: the box cannot be set to inputs other than those that it has led to."
STOPPED = "Not measured: the check was stopped before."
NO_SAMPLES = "Not measured: fewer than two samples were answered."
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "bold red", Verdict.SKIPPED: "dim"}


@dataclass(frozen=True)
class Report:
    """The findings of `check_black_box`.

    Attributes:
        box: the black box's repr.
        findings: one of each check, in the order of the checks.
        recommendations: which mu to take, for each differentiable input where that could be measured.
        drawn: whether the inputs were standard draws, not samples of the user's.
        rows: how many rows the checks asked for, those of other processes included.
        taken: how many samples the checks began with.
        offered: how many samples the user gave; 0 where they were drawn.
        seconds: how long the checks took.
        limits: the most rows and the most seconds that were allowed; None for no limit.
        interrupted: whether Ctrl-C ended it before the last check.
    """

    box: str
    findings: tuple[Finding, ...]
    recommendations: tuple[Recommendation, ...]
    drawn: bool
    rows: int
    taken: int = 0
    offered: int = 0
    seconds: float = 0.0
    limits: tuple[int | None, float | None] = (None, None)
    interrupted: bool = False

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that spoil training or break the contract."""
        return self.of(Verdict.FAULT)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that limit how the box can be used."""
        return self.of(Verdict.WARNING)

    def of(self, verdict: Verdict) -> tuple[Finding, ...]:
        """The findings with this verdict."""
        return tuple(finding for finding in self.findings if finding.verdict is verdict)

    def finding(self, check: str) -> Finding:
        """The finding of one check.

        Raises:
            KeyError: no check of that name was made.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r} is not among {', '.join(finding.check for finding in self.findings)}.")

    def to_json(self) -> str:
        """The report as JSON: no NaN or infinity in it, which are null."""
        content = {
            "box": self.box,
            "rows": self.rows,
            "seconds": self.seconds,
            "most_rows": self.limits[0],
            "most_seconds": self.limits[1],
            "interrupted": self.interrupted,
            "not_seen": NOT_SEEN,
            "samples": "drawn" if self.drawn else "given",
            "samples_taken": self.taken,
            "samples_given": self.offered,
            "findings": [asdict(finding) | {"verdict": finding.verdict.value} for finding in self.findings],
            "recommendations": [
                asdict(recommendation) | {"long_directions": recommendation.long_directions}
                for recommendation in self.recommendations
            ],
        }
        return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"

    def summary(self) -> str:
        """One line: how many faults and warnings, and what it cost."""
        faults, warnings = len(self.faults), len(self.warnings)
        verdicts = f"{_count(faults, 'fault')}, {_count(warnings, 'warning')}"
        sentence = f"{self.box}: {verdicts}, {counted(self.rows, 'row')}."
        failure = next(
            (finding for finding in self.findings if finding.check == "answers" and finding.number), None
        )
        if self.drawn and failure is None:
            sentence += (
                f" Inputs were {self.taken} standard normal draws, times their scale; "
                "samples of your problem say more."
            )
        elif self.taken < self.offered:
            sentence += f" {self.taken} of the {self.offered:,} samples were taken, spread over all of them."
        left_out = len(self.of(Verdict.SKIPPED))
        if left_out:
            sentence += f" {_count(left_out, 'line')} not measured."
        if self.interrupted:
            sentence += f" Stopped after {self.seconds:.2g} s; this is what was found so far."
        return sentence if failure is None else f"{sentence}\n{failure.sentence}"

    def __rich__(self) -> RenderableType:
        """The summary, a table, and what no check sees, for people."""
        table = Table(box=None, pad_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        # No least width: rich cuts off what then exceeds a narrow terminal.
        table.add_column("number", justify="right", max_width=22)
        table.add_column("what was seen", overflow="fold")
        for finding in self.findings:
            if finding.verdict is Verdict.SKIPPED and finding.sentence == NO_SAMPLES:
                continue  # the summary says why, once
            headline = finding.check == "answers" and finding.number
            table.add_row(
                Text(finding.check),
                Text(finding.verdict.value, style=COLOURS[finding.verdict]),
                Text(plain(finding.measured)),
                Text("See above." if headline else plain(finding.sentence)),
            )
        return Group(Text(plain(self.summary())), table, Text(NOT_SEEN, style="dim"))

    def __str__(self) -> str:
        """The table as plain text, 110 columns wide."""
        console = Console(width=110, no_color=True, force_terminal=False)
        with console.capture() as text:
            console.print(self)
        return text.get()


class CheckInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a check; its message is the table of the findings so far.

    Not an `Exception`: an `except Exception` on the way up would go on with what the user has stopped.

    Args:
        report: the report with the findings so far.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(f"the check was stopped.\n{report}")
        self.report = report

    def __reduce__(self) -> tuple[type[CheckInterrupted], tuple[Report]]:
        return type(self), (self.report,)


def _count(number: int, noun: str) -> str:
    return counted(number, noun) if number else f"no {plural(noun)}"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
