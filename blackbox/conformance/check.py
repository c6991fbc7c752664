"""`check_black_box`, and what `blackbox check` does, `command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from blackbox.checks import check_count, check_positive
from blackbox.conformance.answer_checks import (
    NOW_AND_THEN,
    batch_mates,
    batch_size,
    determinism,
    drift,
    first_call,
    memory,
    precisions,
    row_order,
)
from blackbox.conformance.check_report import (
    NO_SAMPLES,
    NOT_SETTABLE,
    STOPPED,
    CheckInterrupted,
    Finding,
    Report,
    Verdict,
)
from blackbox.conformance.concurrency import process_safety, thread_safety
from blackbox.conformance.contract import (
    SHAPES,
    Left,
    answers,
    global_state,
    inputs_left_alone,
    nan_inputs,
    watched,
    with_all_failures,
)
from blackbox.conformance.layout_check import layout
from blackbox.conformance.mu import noise_and_mu
from blackbox.conformance.noise import quantisation
from blackbox.conformance.probe import (
    BoxRaisedError,
    OutOfRowsError,
    Probe,
    keeping,
    not_measured,
)
from blackbox.conformance.samples import (
    Samples,
    TakenSamples,
    checked_samples,
    read_samples,
    standard_draws,
)
from blackbox.conformance.sessions import NAME as SESSIONS
from blackbox.conformance.sessions import sessions
from blackbox.conformance.sizes import output_sizes
from blackbox.conformance.smoothness import smoothness
from blackbox.errors import ConfigurationError, OutputError
from blackbox.function import BlackBoxFunction

WIDTH = 100  # of the table where there is no terminal
ROWS, SECONDS = 10_000, 60.0  # that a check may take
PART = 4  # a call of all samples may take one such part of the seconds
Check = Callable[[Probe], Finding | list[Finding]]

# These move inputs away from the samples, which a box that cannot be set refuses.
MOVES = {"NaN inputs", "precisions", "quantisation", "noise level", "smoothness", "layout"}
COMPARED = {"memory", "batch-mates", "row order", "batch size"}  # a fault of these is there each time
# What takes few rows comes first, so that a small budget is spent on it. Determinism is before all checks
# that compare answers, quantisation before noise and smoothness.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("determinism", determinism),
    ("memory", memory),
    ("first call", first_call),
    ("batch-mates", batch_mates),
    ("row order", row_order),
    ("batch size", batch_size),
    ("precisions", precisions),
    ("inputs left alone", inputs_left_alone),
    ("thread safety", thread_safety),
    ("process safety", process_safety),
    ("layout", layout),
    ("output sizes", output_sizes),
    ("quantisation", quantisation),
    ("noise level", noise_and_mu),
    ("smoothness", smoothness),
    ("drift", drift),
    ("NaN inputs", nan_inputs),  # last: a solver that is given NaN may never return
)


def check_black_box(
    box: BlackBoxFunction,
    samples: Samples | None = None,
    *,
    rows: int | None = ROWS,
    seconds: float | None = SECONDS,
    processes: bool = True,
    seed: int = 0,
) -> Report:
    """Examine a black box: is it fit for training, and with which mu?

    Where standard error is a terminal, a line there shows how far it is.

    Args:
        box: the black box, with the wrappers that training will use. Around a `Cached`, many checks see the
            cache instead; check the box inside.
        samples: for each input an array `(rows, *spec.shape)` of inputs like those in training, in the dtype
            of training; one array for a single input. At least 2 rows; 32 are enough. At most 64 are used,
            spread over all; the report says so. None draws standard normal numbers in float32, times the
            scale of the input's spec if it has one, which say little about a solver in physical units.
        rows: the most rows to run. With few, checks that do not fit are left out, and noise, mu and jumps are
            looked for along fewer lines; with many, jumps along more. None for no limit: from 5,500 to 7,000
            rows in float32 and from 7,800 to 9,700 in float64 for one differentiable input, and for each
            further one from 3,600 to 5,400 or from 6,000 to 8,200 more, whatever its size; of scalars some
            4,400 or 5,500, and 2,800 or 4,000 more.
        seconds: the most seconds to take, judged before each call by what calls took so far. A call that
            takes far longer is ended after a quarter more, and its check was not measured; compiled code
            ends where it comes back to Python. Where rows are dear, fewer samples and lines are taken and
            checks that do not fit are left out; the report says so. What is looked at then depends on the
            machine. None for no limit.
        processes: whether the box may be sent to other processes, to test that it works there.
        seed: the seed of all draws.

    Returns:
        The report: `print(report)`, `report.faults`, `report.recommendations`.

    Raises:
        InputError: the samples do not fit the box.
        ConfigurationError: a setting is out of range, or `box` is not a black box.
        CheckInterrupted: Ctrl-C; a `KeyboardInterrupt` whose `report` has the findings so far.
    """
    if not isinstance(box, BlackBoxFunction):
        raise ConfigurationError(
            f"check_black_box, box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make it a subclass of BlackBoxFunction, or wrap it with an adapter."
        )
    if rows is not None:
        check_count("check_black_box", "rows", rows)
    if seconds is not None:
        seconds = check_positive("check_black_box", "seconds", seconds)
    if samples is None:
        draws = standard_draws(box, np.random.default_rng(seed))
        drawn_samples = TakenSamples(draws, np.arange(len(draws[0])), 0)
    else:
        drawn_samples = checked_samples(box, samples)
    if rows is not None and rows < 4 * len(drawn_samples.places):  # most of them are for the checks
        drawn_samples = drawn_samples.thinned(max(2, rows // 16))
    probe = Probe(box, drawn_samples.arrays, rows, seed, processes, seconds)
    probe.places, probe.drawn = drawn_samples.places, samples is None
    findings: list[Finding] = []

    def report(interrupted: bool) -> Report:
        return Report(
            box=repr(box),
            findings=tuple(with_all_failures(probe, finding) for finding in findings),
            recommendations=tuple(probe.recommendations),
            drawn=samples is None,
            rows=probe.spent,
            taken=len(probe.places),
            offered=drawn_samples.offered,
            seconds=probe.elapsed,
            limits=(rows, seconds),
            interrupted=interrupted,
        )

    try:
        with keeping(box), _shown(probe) as probe.progress:
            _find(probe, findings)
            findings.extend(learned_derivative(box))
    except KeyboardInterrupt as stop:
        check_names = {finding.check for finding in findings}
        findings += [
            Finding(name, Verdict.SKIPPED, STOPPED)
            for name in ("answers", "global state", *(name for name, _ in CHECKS))
            if name not in check_names
        ]
        raise CheckInterrupted(report(True)) from stop
    return report(False)


@contextmanager
def _shown(probe: Probe) -> Iterator[Callable[[str, int], None]]:
    """A way to show progress in a line on standard error; it shows nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda check, rows: None
        return
    with Console(stderr=True).status("checking") as line:

        def show(check: str, rows: int) -> None:
            most = "" if probe.limit is None else f" of at most {probe.limit:,}"
            time = "" if probe.seconds is None else f" of at most {probe.seconds:g}"
            line.update(f"{check}: {rows:,}{most} rows run, {probe.elapsed:.0f}{time} s")

        yield show


def _fit_samples(probe: Probe) -> None:
    """Leave out samples where all of them in a call would take too much of the time, seen by one or two rows.

    Two, since the first call may import or compile. Rows that fail say nothing; the next one is asked.
    """
    count = len(probe.samples[0])
    if probe.seconds is None:
        with suppress(BoxRaisedError):
            probe(probe.rows(0, 1))  # alone, to be compared with a later call
        return
    for row in np.unique(np.linspace(0, count - 1, 4).astype(int))[:3]:
        elapsed = probe.elapsed
        is_timed = bool(probe.took)
        with suppress(BoxRaisedError):
            probe(probe.pick(np.array([row])))
        quick = count * (probe.elapsed - elapsed) <= probe.seconds / PART
        if probe.took and (is_timed or quick):
            break
        if probe.expected(1) > probe.seconds_left:
            break
    affordable = probe.seconds_left / PART / probe.pace if probe.pace else count
    if affordable < count:
        places = np.unique(np.linspace(0, count - 1, max(2, int(affordable))).astype(int))
        probe.samples, probe.places = probe.pick(places), probe.places[places]


def _find(probe: Probe, findings: list[Finding]) -> None:
    """Make all checks, and append what each found as soon as it is known."""
    traces = Left()
    probe.progress("answers", 0)
    try:
        with watched() as traces:
            _fit_samples(probe)
            findings += answers(probe)
    except OutOfRowsError as out:
        findings.append(not_measured(probe, "answers", out))
        return
    if len(probe.samples[0]) < 2 or not probe.base:
        findings += [Finding(name, Verdict.SKIPPED, NO_SAMPLES) for name, _ in CHECKS]
        return
    of_sessions = () if probe.box.settable else ((SESSIONS, sessions),)
    for name, check in (("global state", partial(global_state, first=traces)), *of_sessions, *CHECKS):
        probe.check = name
        probe.progress(name, probe.spent)
        if name in MOVES and not probe.box.settable:
            findings.append(Finding(name, Verdict.SKIPPED, NOT_SETTABLE))
            continue
        try:
            with watched():
                finding = check(probe)
                if name in COMPARED and isinstance(finding, Finding):
                    finding = _tried_again(finding, check, probe)
        except OutOfRowsError as out:
            finding = not_measured(probe, name, out)
        except BoxRaisedError as raised:
            finding = _raised(name, raised.__cause__)
        findings += finding if isinstance(finding, list) else [finding]


def _tried_again(finding: Finding, check: Check, probe: Probe) -> Finding:
    """A fault in how rows are put together, which is there each time, or else what happens now and then."""
    if finding.verdict is not Verdict.FAULT:
        return finding
    try:
        again = check(probe)
    except (OutOfRowsError, BoxRaisedError):
        return finding
    if isinstance(again, list) or again.verdict is not Verdict.OK:
        return finding
    words = f"{finding.sentence} That was not so when it was tried again. {NOW_AND_THEN}"
    return replace(finding, sentence=words)


def _raised(name: str, cause: BaseException | None) -> Finding:
    if isinstance(cause, OutputError):
        return Finding(name, Verdict.FAULT, f"{SHAPES.capitalize()} are broken: {cause}")
    sentence = f"A call raised {type(cause).__name__}: {cause}. Mend the box, or give other samples."
    return Finding(name, Verdict.FAULT, sentence)


def learned_derivative(box: BlackBoxFunction) -> tuple[Finding, ...]:
    """The finding of a box with a frozen derivative: how wrong it is. Other boxes have none."""
    info = getattr(box, "derivative_info", None)
    if info is None:
        return ()
    if not info["frozen"]:
        sentence = "Its derivative has not been learned yet, and is refused until then. Call learn(rows)."
        return (Finding("learned derivative", Verdict.WARNING, sentence),)
    errors = ", ".join(f"{name} {error:.2g}" for name, error in info["errors"].items())
    sentence = (
        f"{info['tangent']} learned from {info['rows']:,} rows and is fixed; errors of its values on "
        f"{info['held_out']:,} held-out rows, in spreads of the answers: {errors}."
    )
    worst = max(info["errors"].values())
    return (Finding("learned derivative", Verdict.OK, sentence, worst, "spreads off"),)


def command(
    box: BlackBoxFunction,
    samples: Samples | str | Path | None = None,
    out: str | Path | None = None,
    *,
    rows: int | None = ROWS,
    seconds: float | None = SECONDS,
    processes: bool = True,
    seed: int = 0,
    console: Console | None = None,
) -> int:
    """Check a black box for a person or for CI.

    Args:
        box: the black box.
        samples: inputs such as training will meet, as `check_black_box` takes them, or the path of an `.npz`
            or `.npy` file with them.
        out: a file for the report as JSON; "-" writes it to standard output in place of the table.
        rows: the most rows to run, as `check_black_box` takes them.
        seconds: the most seconds to take, as `check_black_box` takes them.
        processes: whether the box may be sent to other processes.
        seed: the seed of all draws.
        console: where the table goes; None for standard output.

    Returns:
        The exit status: 0 if there are no faults, 1 if there are, 130 after Ctrl-C, with what was found so
        far. Warnings do not count.
    """
    inputs = read_samples(box, samples) if isinstance(samples, str | Path) else samples
    with redirect_stdout(sys.stderr) if out == "-" else nullcontext():  # what the box prints is no JSON
        try:
            report = check_black_box(box, inputs, rows=rows, seconds=seconds, processes=processes, seed=seed)
        except CheckInterrupted as stop:
            report = stop.report
    return tell(report, out, console)


def tell(report: Report, out: str | Path | None, console: Console | None) -> int:
    """Print a report, or write it; the exit status."""
    if out == "-":
        print(report.to_json(), end="")
    else:
        # Without a terminal rich takes 80 columns, of which the table leaves 25 for sentences.
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
        (console or Console(width=wide)).print(report)
        if out is not None:
            Path(out).write_text(report.to_json(), encoding="utf-8")
    if report.interrupted:
        return 130
    return 1 if report.faults else 0
