"""Checks of what a call leaves behind in the process: settings, the working folder, random generators."""

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

from blackbox.conformance.probe import Probe
from blackbox.conformance.report import Finding, Verdict


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _set_handler(handler: Any) -> None:  # noqa: ANN401 - of signal
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


# What it is, how to read it, how to put it back. The generator of numpy.random is the one that a box may use.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "working folder": (os.getcwd, os.chdir),
    "environment": (lambda: dict(os.environ), _set_environment),
    "default dtype of torch": (torch.get_default_dtype, torch.set_default_dtype),
    "gradient mode of torch": (torch.is_grad_enabled, torch.set_grad_enabled),
    "threads of torch": (torch.get_num_threads, torch.set_num_threads),
    "deterministic algorithms of torch": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "floating-point errors of NumPy": (np.geterr, lambda state: np.seterr(**state)),
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
    return {name: read() for name, (read, _) in (_SETTINGS | _GENERATORS).items()}


@dataclass
class Left:
    """What a call left behind: the names of changed `settings` and of `random` generators."""

    settings: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)


@contextlib.contextmanager
def watched() -> Iterator[Left]:
    """What the block leaves behind, known after it; all is put back: a check leaves the process as it was."""
    left, before = Left(), _now()
    try:
        yield left
    finally:
        after = _now()
        changed = [name for name, value in before.items() if after[name] != value]
        left.settings = [_named(name, before[name], after[name]) for name in changed if name in _SETTINGS]
        left.random = [name for name in changed if name in _GENERATORS]
        for name in changed:
            _, put_back = (_SETTINGS | _GENERATORS)[name]
            put_back(before[name])


def global_state(probe: Probe, first: Left) -> list[Finding]:
    """The first call of all (`first`) and one more, with two more where random numbers were drawn."""
    with watched() as left:
        probe(probe.rows(0, 2))
    settings = list(dict.fromkeys(first.settings + left.settings))
    generators = list(dict.fromkeys(first.random + left.random))
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
