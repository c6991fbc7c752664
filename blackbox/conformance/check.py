"""`check_black_box`, and what `blackbox check` does, `command`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import numpy as np
from rich.console import Console

from blackbox.checks import check_count
from blackbox.conformance.calls import process_safety, thread_safety
from blackbox.conformance.contract import (
    SHAPES,
    Left,
    answers,
    global_state,
    inputs_left_alone,
    nan_inputs,
    watched,
)
from blackbox.conformance.mu import noise_and_mu
from blackbox.conformance.noise import quantisation
from blackbox.conformance.probe import (
    BoxRaisedError,
    OutOfRowsError,
    Probe,
    Samples,
    given_samples,
    keeping,
    not_measured,
    read_samples,
    standard_draws,
)
from blackbox.conformance.report import NO_SAMPLES, NOT_SETTABLE, Finding, Report, Verdict
from blackbox.conformance.rows import batch_mates, batch_size, determinism, memory, row_order
from blackbox.conformance.smoothness import smoothness
from blackbox.errors import ConfigurationError, OutputError
from blackbox.function import BlackBoxFunction

WIDTH = 100  # of the table where there is no terminal
Check = Callable[[Probe], Finding | list[Finding]]

# What takes few rows comes first, so that a small budget is spent on it. Determinism is before all checks
# that compare answers, quantisation before noise and smoothness.
MOVES = {"NaN inputs", "quantisation", "noise level", "smoothness"}  # inputs away from the samples
CHECKS: tuple[tuple[str, Check], ...] = (
    ("determinism", determinism),
    ("memory", memory),
    ("batch-mates", batch_mates),
    ("row order", row_order),
    ("batch size", batch_size),
    ("inputs left alone", inputs_left_alone),
    ("NaN inputs", nan_inputs),
    ("thread safety", thread_safety),
    ("process safety", process_safety),
    ("quantisation", quantisation),
    ("noise level", noise_and_mu),
    ("smoothness", smoothness),
)


def check_black_box(
    box: BlackBoxFunction,
    samples: Samples | None = None,
    *,
    rows: int | None = None,
    processes: bool = True,
    seed: int = 0,
    progress: Callable[[str, int], None] | None = None,
) -> Report:
    """Examine a black box: is it fit for training, and with which mu?

    Args:
        box: the black box, with the wrappers that training will use. Around a `Cached`, many checks see the
            cache instead; check the box inside.
        samples: for each input an array `(rows, *spec.shape)` of inputs like those in training, in the dtype
            of training; one array for a single input. At least 2 rows; 32 are enough. At most 64 are used,
            spread over all; the report says so. None draws standard normal numbers in float32, times the
            scale of the input's spec if it has one, which say little about a solver in physical units.
        rows: the most rows to run. With few, checks that do not fit are left out; with many, jumps are
            searched for along more lines. None takes about 5,700 in float32, 7,900 in float64, and two thirds
            as many for each further differentiable input.
        processes: whether the box may be sent to other processes, to test that it works there.
        seed: the seed of all draws.
        progress: called before each check: `progress(name, rows run so far)`.

    Returns:
        The report: `print(report)`, `report.faults`, `report.recommendations`.

    Raises:
        InputError: the samples do not fit the box.
        ConfigurationError: a setting is out of range, or `box` is not a black box.
    """
    if not isinstance(box, BlackBoxFunction):
        raise ConfigurationError(
            f"check_black_box, box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make it a subclass of BlackBoxFunction, or wrap it with an adapter."
        )
    if rows is not None:
        check_count("check_black_box", "rows", rows)
    if samples is None:
        inputs = standard_draws(box, np.random.default_rng(seed))
        places, given = np.arange(len(inputs[0])), 0
    else:
        inputs, places, given = given_samples(box, samples)
    if rows is not None and rows < 4 * len(inputs[0]):  # most of them are for the checks
        kept = np.unique(np.linspace(0, len(places) - 1, max(2, rows // 16)).astype(int))
        inputs, places = tuple(array[kept] for array in inputs), places[kept]
    taken = len(places)
    probe = Probe(box, inputs, rows, seed, processes)
    probe.places, probe.drawn = places, samples is None
    with keeping(box):
        findings = _all_findings(probe, progress or (lambda check, rows: None))
    measured = tuple(probe.measured.recommendations)
    return Report(repr(box), tuple(findings), measured, samples is None, probe.spent, taken, given)


def _all_findings(probe: Probe, progress: Callable[[str, int], None]) -> list[Finding]:
    left = Left()
    progress("answers", 0)
    try:
        with watched() as left:
            findings = answers(probe)
    except OutOfRowsError as out:
        return [not_measured(probe, "answers", out)]
    if len(probe.samples[0]) < 2 or not probe.base:
        return [*findings, *(Finding(name, Verdict.SKIPPED, NO_SAMPLES) for name, _ in CHECKS)]
    state: Check = lambda probe: global_state(probe, left)  # noqa: E731
    for name, check in (("global state", state), *CHECKS):
        progress(name, probe.spent)
        if name in MOVES and not probe.box.settable:
            findings.append(Finding(name, Verdict.SKIPPED, NOT_SETTABLE))
            continue
        try:
            with watched():
                found = check(probe)
        except OutOfRowsError as out:
            found = not_measured(probe, name, out)
        except BoxRaisedError as raised:
            found = _raised(name, raised.__cause__)
        findings += found if isinstance(found, list) else [found]
    return findings


def _raised(name: str, cause: BaseException | None) -> Finding:
    if isinstance(cause, OutputError):
        return Finding(name, Verdict.FAULT, f"{SHAPES.capitalize()} are broken: {cause}")
    sentence = f"A call raised {type(cause).__name__}: {cause}. Mend the box, or give other samples."
    return Finding(name, Verdict.FAULT, sentence)


def command(
    box: BlackBoxFunction,
    samples: Samples | str | Path | None = None,
    out: str | Path | None = None,
    *,
    rows: int | None = None,
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
        rows: the most rows to run; None for as many as `check_black_box` takes without a limit.
        processes: whether the box may be sent to other processes.
        seed: the seed of all draws.
        console: where the table goes; None for standard output.

    Returns:
        The exit status: 0 if there are no faults, 1 if there are. Warnings do not count.
    """
    given = read_samples(box, samples) if isinstance(samples, str | Path) else samples
    with redirect_stdout(sys.stderr) if out == "-" else nullcontext():  # what the box prints is no JSON
        with Console(stderr=True).status("checking") as shown:  # on a terminal; nothing elsewhere

            def progress(check: str, spent: int) -> None:
                shown.update(f"{check}: {spent:,}{'' if rows is None else f' of at most {rows:,}'} rows run")

            report = check_black_box(box, given, rows=rows, processes=processes, seed=seed, progress=progress)
    if out == "-":
        print(report.to_json(), end="")
    else:
        # Without a terminal rich takes 80 columns, of which the table leaves 25 for sentences.
        wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
        (console or Console(width=wide)).print(report)
        if out is not None:
            Path(out).write_text(report.to_json(), encoding="utf-8")
    return 1 if report.faults else 0
