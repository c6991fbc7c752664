"""The check of a program that calls the network: it must repeat itself, and show all that it depends on."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.hosted.hosted import Hosted
from blackbox.adapters.hosted.program_call import VectorForm
from blackbox.adapters.hosted.record import HostedRun
from blackbox.conformance.check import tell
from blackbox.conformance.check_report import Finding, Report, Verdict
from blackbox.conformance.layout_check import is_open, places_of, told
from blackbox.errors import BlackBoxError, RowFailedError

Array = np.ndarray[Any, Any]
RUNS, REPEATED, SIDE, ANSWERS, STATE, COST = "runs", "repeats", "side by side", "answers", "state", "cost"
LEAST, ROUNDS = 8, 3  # calls of a run, and rounds of all calls and stages, where nobody says how many
MOST = 192  # numbers that a call shows and is given, for the state to be looked at: it takes as many runs
BEYOND = 4  # runs more than numbers
NEAR, FAR = 1e-5, 1e-3  # of an answer's scale: what it is moved by, in double and in single precision
HIDDEN = 0.003  # of what answers do, what is not explained by what a call shows
FAINT = 0.1  # of all changes of what is seen, what the answers of a round do at least
ROUNDED = 4  # units in the last place that a program's own rounding may change a number by


def check_host(
    host: Hosted, cases: Sequence[int] = (0, 1, 2), *, calls: int | None = None, seed: int = 0
) -> Report:
    """Examine a program that calls the network: is it fit to be trained through?

    Answers are drawn: standard normal numbers times the scale of their spec, or 1.

    Args:
        host: the program.
        cases: cases that training has too; two or more.
        calls: how many calls of a run are answered; None for 8, or for three rounds of all calls and stages.
        seed: the seed of all draws.

    Returns:
        Findings on four questions: whether the same case and answers give the same run, also beside other
        runs; whether answers change later calls; whether a call's arrays determine the rest of the run; and
        the cost of an exchange.
    """
    calls = max(LEAST, ROUNDS * len(host.form.kinds)) if calls is None else calls
    began, exchanges = time.monotonic(), host.counts.exchanges
    notices = set(host.notices.said)
    host.notices.settle("early", "zeros")  # runs may be shorter than these calls, or longer
    policy, host.failures = host.failures, "raise"  # a run that fails is a finding
    try:
        findings = [*_findings(_DrawnAnswers(host, calls, seed), [int(case) for case in cases])]
    finally:
        host.notices.said, host.failures = notices, policy
        host.close()
    return Report(
        box=repr(host),
        findings=tuple(findings),
        recommendations=(),
        drawn=False,
        rows=host.counts.exchanges - exchanges,
        taken=len(cases),
        offered=len(cases),
        seconds=time.monotonic() - began,
    )


def command(host: Hosted, out: str | Path | None = None, *, seed: int = 0) -> int:
    """Check a program that calls the network, as `blackbox.conformance.command` does a black box."""
    with redirect_stdout(sys.stderr) if out == "-" else nullcontext():
        report = check_host(host, seed=seed)
    return tell(report, out, None)


class _DrawnAnswers:
    """Runs with answers that are drawn, not computed: the n-th of a call is the same in each run.

    Args:
        host: the program.
        calls: how many calls are answered.
        seed: the seed of the draws.
    """

    def __init__(self, host: Hosted, calls: int, seed: int) -> None:
        self.host, self.calls, self._seed = host, calls, seed

    def run(self, cases: Sequence[int], moves: Mapping[tuple[str, int], Tensor] | None = None) -> HostedRun:
        """A row for each case; `moves` are added to the n-th answer of a call, `(rows, numbers)`."""
        networks = {name: _Answers(self, name, moves or {}) for name in self.host.form.calls}
        with torch.no_grad():
            return self.host.run([*cases], calls=self.calls, dtype=torch.float64, **networks)

    def answers(self, name: str, number: int) -> list[Tensor]:
        """The n-th answer to a call: an array for each that is given."""
        call, key = self.host.form.calls[name], [self._seed, number, *name.encode()]
        draws = np.random.default_rng(key)
        return [
            torch.as_tensor(spec.usual_numbers(draws), dtype=spec.torch_dtype or torch.float64)
            for spec in call.given
        ]

    def scales(self, name: str) -> Tensor:
        """The scale of each number that is given to a call."""
        parts = [
            np.ones(math.prod(spec.shape)) if spec.scale is None else np.asarray(spec.scale, dtype=float)
            for spec in self.host.form.calls[name].given
        ]
        return torch.as_tensor(np.concatenate(parts))


class _Answers:
    """Answers one call, whatever it sees."""

    def __init__(self, drawn: _DrawnAnswers, name: str, moves: Mapping[tuple[str, int], Tensor]) -> None:
        self._drawn, self._name, self._moves, self._number = drawn, name, moves, 0

    def __call__(self, *seen: Tensor) -> tuple[Tensor, ...]:
        number, rows = self._number, len(seen[0])
        self._number += 1
        arrays = [array.expand(rows, *array.shape) for array in self._drawn.answers(self._name, number)]
        move = self._moves.get((self._name, number))
        if move is None or len(move) != rows:
            return tuple(arrays)
        parts = move.split([array[0].numel() for array in arrays], dim=1)
        return tuple(
            (array + part.view_as(array)).to(array.dtype) for array, part in zip(arrays, parts, strict=True)
        )


def _findings(drawn: _DrawnAnswers, cases: list[int]) -> list[Finding]:
    host = drawn.host
    try:
        started = time.monotonic()
        first = drawn.run(cases)
        took = time.monotonic() - started
    except BlackBoxError as error:
        return [Finding(RUNS, Verdict.FAULT, f"A run failed: {error}")]
    answers = sum(int(first[name].mask.sum()) for name in first)
    findings = [Finding(RUNS, Verdict.OK, "The program runs and asks.", answers / len(cases), "calls a run")]
    host.close()  # what is remembered would answer in the place of new runs
    try:
        again = drawn.run(cases[::-1])
        alone = []
        for case in cases:
            host.close()
            alone.append(drawn.run([case]))
    except BlackBoxError as error:
        return [*findings, Finding(REPEATED, Verdict.FAULT, f"A second run failed: {error}")]
    backwards = torch.arange(len(cases) - 1, -1, -1)
    same = all(
        torch.equal(one, other[backwards]) for one, other in zip(_seen(first), _seen(again), strict=True)
    )
    findings.append(
        Finding(REPEATED, Verdict.OK, "The same case with the same answers gives the same run.")
        if same
        else Finding(
            REPEATED,
            Verdict.FAULT,
            "The same case with the same answers gives another run. Seed all that is random from the case, "
            "and let no run read what another has written.",
        )
    )
    unaffected = all(
        torch.equal(one[(slice(row, row + 1), *map(slice, other.shape[1:]))], other)
        for row, run in enumerate(alone)
        for one, other in zip(_seen(first), _seen(run), strict=True)
    )
    if same:
        findings.append(
            Finding(SIDE, Verdict.OK, "A run is the same alone and beside others.")
            if unaffected
            else Finding(
                SIDE,
                Verdict.FAULT,
                "A run beside others is another than alone: they share a file, a port or a lock. Each has a "
                "folder of its own; let it write there alone.",
            )
        )
        try:
            for finding in _responses(drawn, cases[0]):
                findings.append(finding)
        except BlackBoxError as error:
            checks = {finding.check for finding in findings}
            words = (
                f"A run with other answers failed: {error} Mend the program, or say in the specs of its "
                "answers how large they are (scale=)."
            )
            findings.append(Finding(STATE if ANSWERS in checks else ANSWERS, Verdict.FAULT, words))
    numbers = host.form.size
    cost = 1000 * took / max(1, answers)
    findings.append(
        Finding(COST, Verdict.OK, f"A row has {numbers:,} numbers; starts are in it.", cost, "ms a call")
    )
    return findings


def _responses(drawn: _DrawnAnswers, case: int) -> Iterator[Finding]:
    """Check that answers change later calls, and that the arrays shown determine what follows."""
    base, effects = drawn.run([case]), dict[str, tuple[bool, bool]]()
    for name in base:
        moved = [_moved(drawn, case, name, length) for length in (FAR, 1.0)]
        effects[name] = any(_differ(base, moved[0])), any(_differ(base, moved[1]))
    silent = [name for name, (_, far) in effects.items() if not far]
    steps = [name for name, (near, far) in effects.items() if far and not near]
    if silent and drawn.calls <= len(drawn.host.form.kinds):
        words = f"Not measured: a round has {len(drawn.host.form.kinds)} calls. Give a larger calls=."
        yield Finding(ANSWERS, Verdict.SKIPPED, words)
        return
    if silent:
        words = (
            f"Nothing that the program sends in {drawn.calls} calls depends on the answer to "
            f"{' and '.join(map(repr, silent))}. See that the program uses it, and sends what it changes."
        )
        yield Finding(ANSWERS, Verdict.FAULT, words)
        return
    changes = Finding(ANSWERS, Verdict.OK, "What is answered changes what is seen later.")
    if steps:
        words = (
            f"An answer to {' and '.join(map(repr, steps))} changes what is seen later, and a thousandth of "
            "it changes nothing: the program rounds it or goes by a threshold, and has no derivative there. "
            "Let it go by the number itself, or train by values alone."
        )
        changes = Finding(ANSWERS, Verdict.WARNING, words)
    yield changes
    yield from _layouts(drawn, case)
    yield _state(drawn, case)


def _moved(drawn: _DrawnAnswers, case: int, name: str, length: float) -> HostedRun:
    """A run in which all answers to a call are moved by so much of their scale."""
    scales, generator = drawn.scales(name), torch.Generator().manual_seed(0)
    moves = {
        (name, number): length * scales * _normal(len(scales), generator)[None]
        for number in range(drawn.calls)
    }
    return drawn.run([case], moves)


def _differ(one: HostedRun, other: HostedRun) -> list[bool]:
    """Say for each sent array whether it differs."""
    return [not torch.equal(a, b) for a, b in zip(_seen(one), _seen(other), strict=True)]


def _layouts(drawn: _DrawnAnswers, case: int) -> list[Finding]:
    """Check each call that sees and gives a vector of one length: it may be a line of cells."""
    findings: list[Finding] = []
    for name, call in drawn.host.form.calls.items():
        if len(call.seen) != 1 or len(call.given) != 1:
            continue
        spec_seen, spec_given = call.seen[0], call.given[0]
        if not (is_open(spec_seen) and is_open(spec_given) and spec_seen.shape == spec_given.shape):
            continue
        places = places_of(spec_given.shape[0])
        moves = torch.zeros(len(places), spec_given.shape[0], dtype=torch.float64)
        moves[range(len(places)), places] = 0.1 * drawn.scales(name)[places]
        runs = drawn.run([case] * len(places), {(name, 0): moves})[name][spec_seen.name]
        response = runs - drawn.run([case])[name][spec_seen.name]
        visible = next((of_call for of_call in response[:, 1:4].unbind(1) if bool(of_call.any())), None)
        if visible is not None:  # of the first call that shows the answer
            findings.append(told([(spec_given.name, visible.numpy(), places)], [spec_seen.name]))
    return findings


def _state(drawn: _DrawnAnswers, case: int) -> Finding:
    """Check that changes of a call's shown arrays and answer determine those of the next shown ones.

    All answers are moved, in more runs than a call has numbers. So some of these moves cancel in what is
    shown and answered, and what is seen next must not show them either, at none of the calls.
    """
    form, generator = drawn.host.form, torch.Generator().manual_seed(1)
    slots = [slot for name in form.calls for slot in form.seen[name]] + [*form.remembered()]
    size = sum(math.prod(slot.spec.shape) for slot in slots if slot.spec.floating) + form.width
    if size > MOST:
        return Finding(
            STATE, Verdict.SKIPPED, f"Not measured: {size:,} numbers are many to look at one by one."
        )
    base = _way(drawn, case, {})
    single = _is_single(base)
    length = FAR if single else NEAR
    ways = [base]
    for _ in range(min(size + BEYOND, sum(map(len, base.answers)))):
        moves = {
            (name, number): length * drawn.scales(name) * _normal(len(drawn.scales(name)), generator)
            for name in form.calls
            for number in range(drawn.calls)
        }
        ways.append(_way(drawn, case, moves))
    hidden = _hidden(form, ways, length, float(np.finfo(np.float32 if single else np.float64).eps))
    if isinstance(hidden, str):
        return Finding(STATE, Verdict.SKIPPED, f"Not measured: {hidden}.")
    if hidden <= HIDDEN + 10 * length:
        words = "What a call shows, and its answer, determine what is seen next."
        return Finding(STATE, Verdict.OK, words, hidden, "of it hidden")
    words = (
        "What is seen next depends on earlier answers by more than what the call shows, and that has no "
        "derivative. Send what the program goes by"
    )
    if any(call.same is not None for call in form.calls.values()):  # memory= and stages= are refused then
        words += " as an array of the call."
    else:
        words += "; or show the last calls: Call(memory=1), 2, ...; or say how often a step asks: "
        words += "Call(stages=2), ..."
    return Finding(STATE, Verdict.WARNING, words, hidden, "of it hidden")


class _Way(NamedTuple):
    """A run: what is known of it at its first call and after each answer, and the answers."""

    vectors: list[Array]
    answers: list[Array]


def _way(drawn: _DrawnAnswers, case: int, moves: Mapping[tuple[str, int], Tensor]) -> _Way:
    """A run whose n-th answer to a call is moved by so much."""
    host, numbers = drawn.host, dict.fromkeys(drawn.host.form.calls, 0)
    with _failing(host, case), host.programs.turn():
        place = host.programs.first(case)
        way = _Way([place.vector], [])
        while place.vector[0] >= 0 and place.count < drawn.calls:
            name, _ = host.form.kinds[int(place.vector[0])]
            arrays = [array.flatten() for array in drawn.answers(name, numbers[name])]
            move = moves.get((name, numbers[name]), torch.zeros(sum(map(len, arrays))))
            parts = zip(arrays, move.split([*map(len, arrays)]), strict=True)
            answer = torch.cat([(array + part).to(array.dtype).double() for array, part in parts]).numpy()
            numbers[name] += 1
            place = host.programs.after(place, answer)
            way.vectors.append(place.vector)
            way.answers.append(answer)
        host.programs.release([case])
    return way


@contextmanager
def _failing(host: Hosted, case: int) -> Iterator[None]:
    """A block in which what a program fails by is a `RowFailedError`."""
    try:
        yield
    except BlackBoxError:
        raise
    except Exception as error:
        raise RowFailedError(f"{host!r}: case {case} failed: {error}.") from error


def _is_single(way: _Way) -> bool:
    """Say whether all sent numbers are of single precision, whatever the spec says of them."""
    sent = np.concatenate(way.vectors)
    return bool((sent == sent.astype(np.float32)).all())


def _hidden(form: VectorForm, ways: Sequence[_Way], length: float, eps: float) -> float | str:
    """The largest hidden share, over calls, of the effect of one round's answers; or why it is unknown.

    Args:
        form: the layout of the vectors.
        ways: runs, the first without moves.
        length: the length of the moves.
        eps: the last place of a program's numbers, to which it rounds.
    """
    effects, shares, why = (
        dict[int, Array](),
        list[float](),
        "more answers have to be moved, by a larger calls=",
    )
    for place in range(len(form.kinds) - 1, min(len(way.answers) for way in ways)):
        kinds = {(int(way.vectors[place][0]), int(way.vectors[place + 1][0])) for way in ways}
        kind, next_kind = kinds.pop()
        if kinds:
            why = "how many calls are made depends on answers"
        if kinds or next_kind < 0:
            continue
        slots = [*form.seen[form.kinds[kind][0]], *form.remembered(form.kinds[kind])]
        parts = [_changes(ways, place, slot.place) for slot in slots if slot.spec.floating]
        answers = np.stack([way.answers[place] for way in ways])
        d = np.hstack([*parts, answers[1:] - answers[0]])
        sent = [slot for slot in form.seen[form.kinds[next_kind][0]] if slot.spec.floating]
        e = np.hstack([_changes(ways, place + 1, slot.place) for slot in sent])
        rounding = (
            ROUNDED * eps * np.abs(np.hstack([ways[0].vectors[place + 1][slot.place] for slot in sent]))
        )
        spread = np.sqrt(np.square(e).mean(axis=0))
        effects.setdefault(next_kind, spread)  # of a round's answers alone
        moves = sum(map(len, ways[0].answers[: place + 1]))
        if not (moved := spread > rounding).any():
            why = "small changes of answers change nothing"
            continue
        residual = _left(d, e, moves, 10 * length)
        if residual is None:
            continue
        residual = (
            np.sqrt(np.maximum(residual**2 - rounding**2, 0))[moved]
            / np.maximum(effects[next_kind], FAINT * spread)[moved]
        )
        shares.append(float(np.sqrt(np.square(residual).mean())))
    return max(shares) if shares else why


def _changes(ways: Sequence[_Way], place: int, numbers: slice) -> Array:
    """Return the moves of the vectors' numbers at a place, `(ways less the first, numbers)`."""
    return np.stack([way.vectors[place][numbers] for way in ways[1:]]) - ways[0].vectors[place][numbers]


def _left(d: Array, e: Array, moves: int, tolerance: float) -> Array | None:
    """Return for each column of e its spread beside combinations of d's columns; None if nothing can be left.

    Args:
        d: changes of the known numbers, `(rows, numbers)`.
        e: changes of the next numbers.
        moves: how many numbers were moved.
        tolerance: the tolerance for combinations that cancel.
    """
    d = d[:, np.abs(d).max(axis=0) > 0]
    u, sizes, _ = np.linalg.svd(d / np.abs(d).max(axis=0))
    rank = int((sizes > tolerance * sizes[0]).sum())
    free = min(len(d), moves) - rank
    return np.linalg.norm(u[:, rank:].T @ e, axis=0) / math.sqrt(free) if free > 0 else None


def _normal(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _seen(run: HostedRun) -> list[Tensor]:
    """All that runs have sent."""
    return [run[name][array] for name in run for array in run[name].seen_names] + [*run.outputs.values()]
