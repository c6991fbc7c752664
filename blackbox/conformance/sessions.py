"""The check of simulators that are reset and stepped: resets and snapshots must forget nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.contract import watched
from blackbox.conformance.probe import Probe
from blackbox.errors import SessionError
from blackbox.function import BlackBoxFunction

NAME = "sessions"
PART = 4  # one way of actions may take one such part of the seconds


def session_of(box: BlackBoxFunction) -> Any:
    """The box inside of all wrappers, if it says what it forgets, as `Session` does; None otherwise."""
    inside: Any = box
    while not hasattr(inside, "forgets"):
        inside = getattr(inside, "box", None)
        if inside is None:
            return None
    return inside


def sessions(probe: Probe) -> Finding:
    """Check that an environment answers as a new one does, after other rows and after loaded snapshots.

    Rows alone do not show it: live environments answer most of them by what they gave last.
    """
    session = session_of(probe.box)
    if session is None:
        return Finding(NAME, Verdict.SKIPPED, "Not measured: the box does not say how it is reset.")
    histories, generator = probe.samples[-1], np.random.default_rng(0)
    try:
        with watched() as traces:
            forgotten = session.forgets(
                histories, generator if probe.drawn else None, probe.seconds_left / PART
            )
            alike = None if forgotten else session.copies(histories)
    except SessionError as error:
        forgotten, alike = str(error), None
    except Exception as error:
        words = f"Not measured: the simulator raised {type(error).__name__}: {error}."
        return Finding(NAME, Verdict.SKIPPED, words)
    note = f" It draws from the global generator of {', '.join(traces.random)}, which all environments share."
    note = note if traces.random else ""
    if forgotten is not None:
        return Finding(
            NAME,
            Verdict.FAULT,
            f"Expected the answers of a new environment, but {forgotten}.{note} "
            "Let reset put back all that a step changes, draw from a generator that reset(seed) makes, and "
            "let save and load hold all of it.",
        )
    if alike is not None:
        return Finding(NAME, Verdict.WARNING, f"{alike[0].upper()}{alike[1:]}")
    if note:
        words = f"{note[1:]} What else draws from it depends on the number of steps. Use one of your own."
        return Finding(NAME, Verdict.WARNING, words)
    return Finding(NAME, Verdict.OK, "Environments answer as new ones do, after other rows as well.")
