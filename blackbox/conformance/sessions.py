"""The check of simulators that are reset and stepped: what a reset or a snapshot forgets."""

from __future__ import annotations

from typing import Any

import numpy as np

from blackbox.conformance.probe import Probe
from blackbox.conformance.report import Finding, Verdict
from blackbox.errors import SessionError
from blackbox.function import BlackBoxFunction

NAME = "sessions"


def session_of(box: BlackBoxFunction) -> Any:
    """The box inside of all wrappers, if it says what it forgets, as `Session` does; None otherwise."""
    inside: Any = box
    while not hasattr(inside, "forgets"):
        inside = getattr(inside, "box", None)
        if inside is None:
            return None
    return inside


def sessions(probe: Probe) -> Finding:
    """Whether an environment answers as a new one does, after other rows and where snapshots were loaded.

    Rows alone do not show it: live environments answer most of them by what they gave last.
    """
    session = session_of(probe.box)
    if session is None:
        return Finding(NAME, Verdict.SKIPPED, "Not measured: the box does not say how it is reset.")
    try:
        forgotten = session.forgets(probe.samples[-1], np.random.default_rng(0), probe.drawn)
    except SessionError as error:
        forgotten = str(error)
    except Exception as error:
        words = f"Not measured: the simulator raised {type(error).__name__}: {error}."
        return Finding(NAME, Verdict.SKIPPED, words)
    if forgotten is None:
        return Finding(NAME, Verdict.OK, "Environments answer as new ones do, after other rows as well.")
    return Finding(
        NAME,
        Verdict.FAULT,
        f"Expected the answers of a new environment, but {forgotten}. Let reset put back all that a step "
        "changes, and save and load hold all of it.",
    )
