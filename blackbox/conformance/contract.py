"""Checks of the contract: shapes and dtypes, unchanged inputs, NaN inputs, traces that a call leaves."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from blackbox.arrays import finite_rows
from blackbox.conformance.check_report import NO_SAMPLES, Finding, Verdict
from blackbox.conformance.probe import Arrays, BoxRaisedError, CallEndedError, Probe
from blackbox.conformance.samples import how_to_give_samples
from blackbox.errors import OutputError, SessionError
from blackbox.failures import whereabouts
from blackbox.words import counted

PATIENCE = 10.0  # seconds for a row of NaN, beside a hundred times what rows take
SHAPES = "shapes and dtypes"


def answers(probe: Probe) -> list[Finding]:
    """All samples in one call, or where that raises row by row; those that failed are examined no further."""
    count = len(probe.samples[0])
    causes: list[BaseException | None] = []
    try:
        outputs, alive = probe(probe.samples), np.ones(count, bool)
    except BoxRaisedError as raised:
        causes.append(raised.__cause__)
        parts: list[Arrays | None] = []
        for row in range(count):
            try:
                parts.append(probe(probe.rows(row, 1)))
            except BoxRaisedError as alone:
                causes.append(alone.__cause__)
                parts.append(None)
        alive = np.array([part is not None for part in parts])
        good = [part for part in parts if part is not None]
        outputs = tuple(np.concatenate(pieces) for pieces in zip(*good, strict=True)) if good else ()
    broken = next((cause for cause in causes if isinstance(cause, OutputError)), None)
    other = next((cause for cause in causes if not isinstance(cause, OutputError)), None)
    if outputs:
        finite = finite_rows(tuple(torch.from_numpy(array) for array in outputs)).numpy()
        outputs = tuple(array[finite] for array in outputs)
        alive[alive] = finite
    why = "" if other is None else f"{type(other).__name__}: {other}"
    session = any(isinstance(cause, SessionError) for cause in causes)
    if not alive.all():
        first = int(np.flatnonzero(~alive)[0])
        row = tuple(array[first : first + 1] for array in probe.samples)
        why, error = _why(probe, row, int(probe.places[first]), why)
        broken = broken or (error if isinstance(error, OutputError) else None)
        session = session or isinstance(error, SessionError)
    probe.samples = tuple(array[alive] for array in probe.samples)
    probe.base = outputs
    return [
        _shapes(probe, broken),
        _answered(probe, int(alive.sum()), count, why, broken is not None, session),
    ]


def _why(probe: Probe, row: Arrays, number: int, raised: str) -> tuple[str, BaseException | None]:
    """Describe the failed row and the reason, in the ledger's words, and return the error kept of it."""
    tensors = tuple(torch.from_numpy(array) for array in row)
    which = whereabouts(probe.box.inputs, tensors, 0, number, ())
    if raised:
        return f"{which}: {raised}", None
    try:
        outcome = probe.below_the_call(row)
    except BoxRaisedError as error:
        return f"{which}: {type(error.__cause__).__name__}: {error.__cause__}", None
    if 0 not in outcome.failed:
        return f"{which}: not when run alone", None
    which = probe.box._whereabouts(tensors, outcome, 0, number)
    return f"{which}: {outcome.failed[0].sentence()}", outcome.failed[0].error


def _shapes(probe: Probe, broken: OutputError | None) -> Finding:
    if broken is None and len(probe.samples[0]):
        try:
            probe(probe.rows(0, 1))  # an output that is squeezed loses its axis of one row
        except BoxRaisedError as raised:
            broken = raised.__cause__ if isinstance(raised.__cause__, OutputError) else None
    if broken is not None:
        return Finding(SHAPES, Verdict.FAULT, str(broken))
    if not len(probe.samples[0]):
        return Finding(SHAPES, Verdict.SKIPPED, NO_SAMPLES)
    return Finding(SHAPES, Verdict.OK, "Outputs keep their specs, for one row and for many.")


def _answered(probe: Probe, alive: int, count: int, why: str, broken: bool, session: bool) -> Finding:
    failed = count - alive
    if not failed and not why:
        return Finding("answers", Verdict.OK, f"All {count} samples are answered.", 0.0, "of the rows failed")
    if failed:
        sentence = (
            f"{failed} of {counted(count, 'row')} failed: {why or 'their shapes or dtypes are broken'}."
        )
    else:
        sentence = f"A call of {counted(count, 'row')} raised, each row alone did not: {why}."
    if session:  # no row fails of itself: the simulator does not repeat what it gave
        return Finding(
            "answers", Verdict.FAULT, sentence.replace("..", "."), failed / count, "of the rows failed"
        )
    note = "Inputs were standard normal draws: give rows of your problem,"
    mend = note if probe.drawn else "Mend the box, or give samples that it is made for:"
    mend = f"{mend} {how_to_give_samples(probe.box)}."
    fault = not failed or (alive < 2 and not broken)
    verdict = Verdict.FAULT if fault else Verdict.WARNING
    return Finding("answers", verdict, f"{sentence} {mend}", failed / count, "of the rows failed")


def with_all_failures(probe: Probe, finding: Finding) -> Finding:
    """The finding of the answers, with failures among the other rows that the whole check ran."""
    if finding.check != "answers" or finding.verdict is not Verdict.OK or not probe.failed:
        return finding
    total = probe.spent
    sentence = (
        f"{finding.sentence.rstrip('.')}, but {probe.failed:,} of all {counted(total, 'row')} that the check "
        f"ran near them failed; the first: {probe.first_failure.rstrip('.')}. Training meets such rows too: "
        "mend the box, or see that it has inputs that it is made for."
    )
    return Finding("answers", Verdict.WARNING, sentence, probe.failed / total, "of the rows failed")


def inputs_left_alone(probe: Probe) -> Finding:
    """The caller's inputs after a call; a box gets copies, so only a wrapper can write to them."""
    size = min(4, len(probe.samples[0]))
    passed, arrays = probe.rows(0, size), probe.rows(0, size)
    probe(passed)
    for spec, array, array_after in zip(probe.box.inputs, arrays, passed, strict=True):
        if (changed := array_after != array).any():
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
    swallowed, endless = [], []
    probe.kept_back = 0
    patience = PATIENCE + 100 * probe.expected(2)
    floats = [place for place, spec in enumerate(probe.box.inputs) if spec.floating]
    if not floats or not any(spec.floating for spec in probe.box.outputs):
        return Finding("NaN inputs", Verdict.SKIPPED, "Not measured: whole numbers have no NaN.")
    for place in floats:
        arrays = probe.rows(0, 2)
        arrays[place][1] = np.nan
        try:
            outcome = probe.below_the_call(arrays, patience)
        except CallEndedError as ended:
            endless.append((probe.box.inputs[place].name, str(ended)))
            continue
        except BoxRaisedError:
            continue  # refused: as good as NaN
        if 1 not in outcome.failed:  # programs and trees do so, whose code is not the user's to mend
            swallowed.append(probe.box.inputs[place].name)
    if endless:
        names = ", ".join(repr(name) for name, _ in endless)
        sentence = (
            f"With NaN in {names} {endless[0][1]}. Calls hold such rows back, but a run that blows up inside "
            "may never end in the same way. Raise where a number is not finite, or bound the solver's steps."
        )
        return Finding("NaN inputs", Verdict.WARNING, sentence, len(endless), "inputs")
    if swallowed:
        sentence = (
            f"NaN in {', '.join(map(repr, swallowed))} comes out as finite numbers. Calls hold such rows "
            "back, but a run that blows up inside may pass for an answer in the same way. Let NaN through, "
            "or raise."
        )
        return Finding("NaN inputs", Verdict.WARNING, sentence, len(swallowed), "inputs")
    return Finding("NaN inputs", Verdict.OK, "NaN comes out as NaN, or is refused.", 0, "inputs")


# What a call leaves behind: settings, the working folder, random generators.


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _set_handler(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


# What it is, how to read it, how to put it back. The generator of numpy.random is the one that a box may use.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "working folder": (os.getcwd, os.chdir),
    "environment": (lambda: dict(os.environ), _set_environment),
    "gradient mode of torch": (torch.is_grad_enabled, torch.set_grad_enabled),
    "threads of torch": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms of torch": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "handler of Ctrl-C": (lambda: signal.getsignal(signal.SIGINT), _set_handler),
}
_GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "random": (random.getstate, random.setstate),
    "numpy.random": (
        lambda: tuple(
            part.tolist() if isinstance(part, np.ndarray) else part
            for part in np.random.get_state()  # noqa: NPY002
        ),
        np.random.set_state,
    ),
    "torch": (
        lambda: torch.get_rng_state().tolist(),
        lambda state: torch.set_rng_state(torch.tensor(state, dtype=torch.uint8)),
    ),
}


def _now() -> dict[str, Any]:
    return {name: getter() for name, (getter, _) in (_SETTINGS | _GENERATORS).items()}


@dataclass
class Left:
    """Traces that a call left: the names of changed `settings` and of `random` generators."""

    settings: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched() -> Iterator[Left]:
    """Collect the block's traces, known after it; all is put back: a check leaves the process as it was."""
    traces, settings = Left(), _now()
    try:
        yield traces
    finally:
        now = _now()
        changed = [name for name, value in settings.items() if now[name] != value]
        traces.settings = [_named(name, settings[name], now[name]) for name in changed if name in _SETTINGS]
        traces.random = [name for name in changed if name in _GENERATORS]
        for name in changed:
            _, put_back = (_SETTINGS | _GENERATORS)[name]
            put_back(settings[name])


def global_state(probe: Probe, first: Left) -> list[Finding]:
    """The first call of all (`first`) and one more, with two more where random numbers were drawn."""
    with watched() as traces:
        probe(probe.rows(0, 2))
    settings = list(dict.fromkeys(first.settings + traces.settings))
    generators = list(dict.fromkeys(first.random + traces.random))
    return [_settings(settings), _random(probe, generators)]


def _named(name: str, before: object, after: object) -> str:
    if isinstance(before, dict) and isinstance(after, dict):
        differ = [key for key in before | after if before.get(key) != after.get(key)]
        return f"{name} ({', '.join(sorted(differ))})"
    return name


def _settings(changed: list[str]) -> Finding:
    if not changed:
        return Finding("global state", Verdict.OK, "Settings of the process stay as they are.", 0, "settings")
    sentence = f"A call changes the {', the '.join(changed)}. Put back what was there before returning."
    # A library that is imported by the first call may set variables for itself; nothing else depends on them.
    harmless = all(name.startswith("environment") for name in changed)
    verdict = Verdict.WARNING if harmless else Verdict.FAULT
    return Finding("global state", verdict, sentence, len(changed), "settings")


def _random(probe: Probe, changed: list[str]) -> Finding:
    name = "random numbers"
    if not changed:
        return Finding(name, Verdict.OK, "Global random generators are not touched.", 0, "generators")
    ends = []
    for _ in range(2):  # from another state each time
        for draw in (random.random, np.random.random, lambda: torch.rand(())):
            draw()
        probe(probe.rows(0, 2))
        ends.append(_now())
    seeded = [generator for generator in changed if ends[0][generator] == ends[1][generator]]
    if seeded:
        sentence = (
            f"A call seeds the global generator of {', '.join(seeded)}: whoever draws next gets the same "
            "numbers every time. Use a generator of your own."
        )
        return Finding(name, Verdict.FAULT, sentence, len(changed), "generators")
    sentence = (
        f"A call draws from the global generator of {', '.join(changed)}: what other code draws from it "
        "then depends on the number of calls. Use a generator of your own."
    )
    return Finding(name, Verdict.WARNING, sentence, len(changed), "generators")
