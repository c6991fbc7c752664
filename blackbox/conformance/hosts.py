"""The check of a program that calls the network: does it repeat itself, and does it show what it goes by."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.adapters.hosted import Hosted, HostedRun
from blackbox.conformance.layout import is_open, places_of, told
from blackbox.conformance.report import Finding, Report, Verdict
from blackbox.errors import BlackBoxError

RUNS, REPEATED, SIDE, ANSWERS, STATE, COST = "runs", "repeats", "side by side", "answers", "state", "cost"
MOST = 96  # numbers that a call may show, for the state to be looked at: it takes as many runs
BEYOND = 4  # runs more than numbers
NEAR, FAR = 1e-5, 1e-3  # of an answer's scale: what it is moved by, in double and in single precision
HIDDEN = 0.02  # of what a call sees that is not explained by what the call before has shown


def check_host(host: Hosted, cases: Sequence[int] = (0, 1, 2), *, calls: int = 8, seed: int = 0) -> Report:
    """Examine a program that calls the network: is it fit to be trained through?

    Answers are drawn: standard normal numbers times the scale of their spec, or 1.

    Args:
        host: the program.
        cases: cases that training has too; two or more.
        calls: how many calls of a run are answered.
        seed: of all draws.

    Returns:
        What was found: whether the same case and answers give the same run, also beside others; whether what
        is answered changes what is seen later; whether what a call shows determines what follows; and what an
        exchange costs.
    """
    began, before = time.monotonic(), host.counts.exchanges
    said, host.said_early = host.said_early, True  # runs may be shorter than these calls
    policy, host.failures = host.failures, "raise"  # a run that fails is a finding
    try:
        findings = [*_findings(_DrawnAnswers(host, calls, seed), [int(case) for case in cases])]
    finally:
        host.said_early, host.failures = said, policy
        host.close()
    return Report(
        box=repr(host),
        findings=tuple(findings),
        recommendations=(),
        drawn=False,
        rows=host.counts.exchanges - before,
        taken=len(cases),
        offered=len(cases),
        seconds=time.monotonic() - began,
    )


class _DrawnAnswers:
    """Runs with answers that are drawn, not computed: the n-th of a call is the same in each run.

    Args:
        host: the program.
        calls: how many are answered.
        seed: of the draws.
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
            torch.as_tensor(
                draws.standard_normal(spec.shape)
                * (1.0 if spec.scale is None else np.reshape(spec.scale, spec.shape))
            )
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
        return tuple(array + part.view_as(array) for array, part in zip(arrays, parts, strict=True))


def _findings(drawn: _DrawnAnswers, cases: list[int]) -> list[Finding]:
    host = drawn.host
    try:
        started = time.monotonic()
        first = drawn.run(cases)
        took = time.monotonic() - started
    except BlackBoxError as error:
        return [Finding(RUNS, Verdict.FAULT, f"A run failed: {error}")]
    asked = sum(int(first[name].mask.sum()) for name in first)
    findings = [Finding(RUNS, Verdict.OK, "The program runs and asks.", asked / len(cases), "calls a run")]
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
    apart = all(
        torch.equal(one[row : row + 1, : other.shape[1]], other)
        for row, run in enumerate(alone)
        for one, other in zip(_seen(first), _seen(run), strict=True)
    )
    if same:
        findings.append(
            Finding(SIDE, Verdict.OK, "A run is the same alone and beside others.")
            if apart
            else Finding(
                SIDE,
                Verdict.FAULT,
                "A run beside others is another than alone: they share a file, a port or a lock. Each has a "
                "folder of its own; let it write there alone.",
            )
        )
        findings += _responses(drawn, cases[0])
    numbers = host.form.size
    cost = 1000 * took / max(1, asked)
    findings.append(
        Finding(COST, Verdict.OK, f"A row has {numbers:,} numbers; starts are in it.", cost, "ms a call")
    )
    return findings


def _responses(drawn: _DrawnAnswers, case: int) -> list[Finding]:
    """Whether answers change what is seen later, and whether what is shown determines what follows."""
    base, silent = drawn.run([case]), list[str]()
    for name in base:
        draw = torch.randn(1, len(drawn.scales(name)), generator=torch.Generator().manual_seed(0)).double()
        moved = drawn.run([case], {(name, 0): 1e-3 * drawn.scales(name) * draw})
        same = zip(_seen(base), _seen(moved), strict=True)
        if all(torch.equal(one, other) for one, other in same):
            silent.append(name)
    if silent:
        words = (
            f"Nothing that the program sends in {drawn.calls} calls depends on the answer to "
            f"{' and '.join(map(repr, silent))}. See that the program uses it, and sends what it changes."
        )
        return [Finding(ANSWERS, Verdict.FAULT, words)]
    changes = Finding(ANSWERS, Verdict.OK, "What is answered changes what is seen later.")
    return [changes, *_layouts(drawn, case), _state(drawn, case)]


def _layouts(drawn: _DrawnAnswers, case: int) -> list[Finding]:
    """Of each call that sees and gives a vector of one length: whether they are a line of cells."""
    findings: list[Finding] = []
    for name, call in drawn.host.form.calls.items():
        if len(call.seen) != 1 or len(call.given) != 1:
            continue
        seen, given = call.seen[0], call.given[0]
        if not (is_open(seen) and is_open(given) and seen.shape == given.shape):
            continue
        places = places_of(given.shape[0])
        moves = torch.zeros(len(places), given.shape[0], dtype=torch.float64)
        moves[range(len(places)), places] = 0.1 * drawn.scales(name)[places]
        runs = drawn.run([case] * len(places), {(name, 0): moves})[name][seen.name]
        response = runs - drawn.run([case])[name][seen.name]
        shown = next((each for each in response[:, 1:4].unbind(1) if bool(each.any())), None)
        if shown is not None:  # of the first call that shows the answer
            findings.append(told([(given.name, shown.numpy(), places)], [seen.name]))
    return findings


def _state(drawn: _DrawnAnswers, case: int) -> Finding:
    """Whether changes of what a call shows determine those of what is seen next, whatever made them.

    Earlier answers are moved, more of them than a call shows numbers. So some of these moves cancel in what
    is shown, and what is seen next must not show them either.
    """
    form, generator = drawn.host.form, torch.Generator().manual_seed(1)
    slots = [slot for name in form.calls for slot in form.seen[name]] + [*form.remembered()]
    slots = [slot for slot in slots if slot.spec.floating]
    size = sum(math.prod(slot.spec.shape) for slot in slots)
    rounds = drawn.calls // len(form.kinds) - 2  # the last answers are not moved
    moved = {name: max(0, rounds) * call.stages for name, call in form.calls.items()}
    count = min(size + BEYOND, sum(n * len(drawn.scales(name)) for name, n in moved.items()))
    if size > MOST or count <= 1:
        why = f"{size:,} numbers are many" if size > MOST else "so few answers are"
        return Finding(STATE, Verdict.SKIPPED, f"Not measured: {why} to look at one by one.")
    single = any(
        spec.dtype == "float32" for call in form.calls.values() for spec in (*call.seen, *call.given)
    )
    length = FAR if single else NEAR
    moves = [
        {
            (name, number): length * drawn.scales(name) * _normal(len(drawn.scales(name)), generator)
            for name, times in moved.items()
            for number in range(times)
        }
        for _ in range(count)
    ]
    ways = [_way(drawn, case, move) for move in ({}, *moves)]
    last = min(map(len, ways)) - 2
    before, after = (np.stack([way[place] for way in ways]) for place in (last, last + 1))
    if last < 1 or any(len(set(part[:, 0])) > 1 for part in (before, after)) or after[0, 0] < 0:
        return Finding(STATE, Verdict.SKIPPED, "Not measured: how many calls are made depends on answers.")
    shown = {slot.name for slot in form.remembered(form.kinds[int(before[0, 0])])}
    shown |= {slot.name for name in form.calls for slot in form.seen[name]}
    slots = [slot for slot in slots if slot.name in shown]
    d, e = (
        np.hstack([part[1:, slot.place] - part[0, slot.place] for slot in slots]) for part in (before, after)
    )
    e = e[:, : sum(math.prod(slot.spec.shape) for name in form.calls for slot in form.seen[name])]
    d, e = (part[:, np.abs(part).max(axis=0) > 0] for part in (d, e))
    d, e = d / np.abs(d).max(axis=0), e / np.abs(e).max(axis=0)
    cancelled = _cancelled(d, 10 * length)
    if not e.size or not cancelled.shape[1]:
        return Finding(
            STATE, Verdict.SKIPPED, "Not measured: more answers have to be moved, by a larger calls=."
        )
    hidden = float(
        np.linalg.norm(cancelled.T @ e) / np.linalg.norm(e) * math.sqrt(len(d) / cancelled.shape[1])
    )
    if hidden <= HIDDEN:
        words = "What a call shows, and its answer, determine what is seen next."
        return Finding(STATE, Verdict.OK, words, hidden, "of it hidden")
    words = (
        "What is seen next depends on earlier answers by more than what the call shows, and that has no "
        "derivative. Send what the program goes by; or show the last calls: Call(memory=1), 2, ...; or say "
        "how often a step asks: Call(stages=2), ..."
    )
    return Finding(STATE, Verdict.WARNING, words, hidden, "of it hidden")


def _cancelled(d: np.ndarray[Any, Any], tolerance: float) -> np.ndarray[Any, Any]:
    """Combinations of rows that are zero to a tolerance, `(rows, combinations)`."""
    u, sizes, _ = np.linalg.svd(d)
    return u[:, int((sizes > tolerance * sizes[0]).sum()) :] if len(sizes) else u


def _normal(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, generator=generator, dtype=torch.float64)


def _way(
    drawn: _DrawnAnswers, case: int, moves: Mapping[tuple[str, int], Tensor]
) -> list[np.ndarray[Any, Any]]:
    """The vectors of a run, from its first call on."""
    host, numbers = drawn.host, dict.fromkeys(drawn.host.form.calls, 0)
    with host.programs.turn():
        place = host.programs.first(case)
        vectors = [place.vector]
        while place.vector[0] >= 0 and place.count < drawn.calls:
            name, _ = host.form.kinds[int(place.vector[0])]
            given = torch.cat([part.flatten() for part in drawn.answers(name, numbers[name])])
            given = given + moves.get((name, numbers[name]), 0.0)
            numbers[name] += 1
            place = host.programs.after(place, given.numpy())
            vectors.append(place.vector)
        host.programs.release([case])
    return vectors


def _seen(run: HostedRun) -> list[Tensor]:
    """All that runs have sent."""
    return [run[name][array] for name in run for array in run[name].seen_names] + [*run.outputs.values()]
