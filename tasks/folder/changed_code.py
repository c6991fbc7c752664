"""Notices of changes in code, programs or files of a run since it began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blackbox import BlackBoxFunction
from blackbox.notices import warn
from blackbox.wrappers.sources import files_of
from tasks.errors import CheckpointWarning
from tasks.folder.machine import changes
from tasks.folder.run import Run

MIXED = " What is trained from here on is trained by it: the result is of both."


def warn_of_changes(run: Run, code: Mapping[str, str] | None = None) -> None:
    """Say that the file in which a run's problem or loop is has changed since the run began, or its class.

    Args:
        run: Its folder.
        code: Digests of the problem's class as it is now, by its name; None for none.

    Warns:
        CheckpointWarning: Naming the file.
    """
    _warn(run, "its code has", in_words(run, code))


def in_words(run: Run, code: Mapping[str, str] | None = None) -> str:
    """Describe the changes of a run's code since it began; "" for none. See `warn_of_changes`."""
    return changes(run.versions, {**run.code_versions(), **(code or {})})


def note_files(run: Run, boxes: Iterable[BlackBoxFunction]) -> str:
    """Write down the versions of the programs and files that a run's boxes name, for who holds its lock.

    Returns:
        Those that have changed since the run began, in words; "" for none.

    Warns:
        CheckpointWarning: Naming them.
    """
    files = dict.fromkeys(path for box in boxes for path in files_of(box))
    changed = run.note_files(list(files))
    _warn(run, "a program or file of its box has", changed)
    return changed


def warn_of_data(run: Run, what: str, reason: str) -> None:
    """Say that a run's data have changed, and what they may come from.

    Args:
        run: Its folder.
        what: The part of the data, in words.
        reason: What they may come from, in words.

    Warns:
        CheckpointWarning: Naming both.
    """
    with run.noting():
        warn(
            f"{run.path}: {what} have changed since the run began. What they may come from: {reason}. "
            f"They are taken as they are now.{MIXED}",
            CheckpointWarning,
        )


def _warn(run: Run, what: str, changed: str) -> None:
    if changed:
        with run.noting():
            warn(
                f"{run.path}: {what} changed since the run began: {changed} (digits of its SHA-256). It is "
                f"taken as it is now.{'' if run.finished else MIXED}",
                CheckpointWarning,
            )
