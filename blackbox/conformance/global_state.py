"""Checks of what a call leaves behind in the process: random numbers, settings, folder, printed lines."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from blackbox.conformance.probe import Probe
from blackbox.conformance.report import Finding, Verdict

_SETTERS: dict[str, Any] = {
    "working folder": os.chdir,
    "default dtype of torch": torch.set_default_dtype,
    "gradient mode of torch": torch.set_grad_enabled,
    "threads of torch": torch.set_num_threads,
    "floating-point errors of NumPy": lambda state: np.seterr(**state),
}


@dataclass
class GlobalState:
    """Process-wide state as it is now: `settings` by their names, and the `random` generators' states."""

    settings: dict[str, Any]
    random: dict[str, Any]

    @classmethod
    def now(cls) -> GlobalState:
        """Look."""
        settings = {
            "working folder": os.getcwd(),
            "environment": dict(os.environ),
            "default dtype of torch": torch.get_default_dtype(),
            "gradient mode of torch": torch.is_grad_enabled(),
            "threads of torch": torch.get_num_threads(),
            "deterministic algorithms of torch": torch.are_deterministic_algorithms_enabled(),
            "floating-point errors of NumPy": np.geterr(),
            "handler of Ctrl-C": signal.getsignal(signal.SIGINT),
        }
        legacy: Any = np.random.get_state()  # noqa: NPY002 - the one that a box may have used
        generators = {
            "random": random.getstate(),
            "numpy.random": (legacy[1].tobytes(), *legacy[2:]),
            "torch": torch.get_rng_state().numpy().tobytes(),
        }
        return cls(settings, generators)

    def restore(self) -> None:
        """Put back all that is no longer so: a check leaves the process as it was."""
        random.setstate(self.random["random"])
        key, *rest = self.random["numpy.random"]
        np.random.set_state(("MT19937", np.frombuffer(key, np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(torch.frombuffer(bytearray(self.random["torch"]), dtype=torch.uint8))
        for name, value in GlobalState.now().settings.items():
            if value != self.settings[name]:
                if name in _SETTERS:
                    _SETTERS[name](self.settings[name])
                elif name == "environment":
                    os.environ.clear()
                    os.environ.update(self.settings[name])
                elif name == "deterministic algorithms of torch":
                    torch.use_deterministic_algorithms(self.settings[name])
                elif threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGINT, self.settings[name])


@dataclass
class Left:
    """What a call left behind: names of changed `settings` and `random` generators, and what it `printed`."""

    settings: list[str]
    random: list[str]
    printed: str = ""


@contextlib.contextmanager
def watched() -> Iterator[Left]:
    """What the block leaves behind, known after it; all is put back, and printed lines are not shown."""
    left, before = Left([], []), GlobalState.now()
    try:
        with _captured() as printed:
            yield left
    finally:
        left.printed = printed.getvalue()
        after = GlobalState.now()
        left.settings = [
            _named(name, value, after.settings[name])
            for name, value in before.settings.items()
            if after.settings[name] != value
        ]
        left.random = [name for name, value in before.random.items() if after.random[name] != value]
        before.restore()


def global_state(probe: Probe, first: Left) -> list[Finding]:
    """The first call of all (`first`) and one more, with two more where random numbers were drawn."""
    with watched() as left:
        probe(probe.rows(0, 2))
    settings = list(dict.fromkeys(first.settings + left.settings))
    generators = list(dict.fromkeys(first.random + left.random))
    return [_settings(settings), _random(probe, generators), _printed(first.printed or left.printed)]


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
        ends.append(GlobalState.now().random)
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


def _printed(text: str) -> Finding:
    if not text:
        return Finding("printing", Verdict.OK, "Nothing is printed.", 0, "characters")
    line = text.strip().splitlines()[0] if text.strip() else ""
    sentence = (
        f"A call prints ({line[:60]!r}): over thousands of calls that buries all other lines. Write to a log."
    )
    return Finding("printing", Verdict.WARNING, sentence, len(text), "characters")


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """Standard output of the block, Python's and, where there is one, that of foreign code below it."""
    text = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(text))
        try:
            sys.__stdout__.flush() if sys.__stdout__ else None
            saved = os.dup(1)
        except OSError:  # no standard output at all
            yield text
            return
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                yield text
            finally:
                os.dup2(saved, 1)
                os.close(saved)
                file.seek(0)
                text.write(file.read().decode(errors="replace"))
