"""Notices of changes in code, programs or files of a run since it began."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blackbox import BlackBoxFunction
from blackbox.notices import warn
from blackbox.wrappers.sources import files_of
from tasks.errors import CheckpointWarning
from tasks.folder.machine import changes
from tasks.folder.run import Run


def warn_of_changes(run: Run, code: Mapping[str, str] | None = None) -> None:
    """Say that the file in which a run's problem or loop is has changed since the run began, or its class.

    Args:
        run: Its folder.
        code: Digests of the problem's class as it is now, by its name; None for none.

    Warns:
        CheckpointWarning: Naming the file.
    """
    _warn(run, "its code has", changes(run.versions, {**run.code_versions(), **(code or {})}))


def note_files(run: Run, boxes: Iterable[BlackBoxFunction]) -> None:
    """Write down the versions of the programs and files that a run's boxes name, for who holds its lock.

    Warns:
        CheckpointWarning: Naming those that have changed since the run began.
    """
    files = dict.fromkeys(path for box in boxes for path in files_of(box))
    _warn(run, "a program or file of its box has", run.note_files(list(files)))


def _warn(run: Run, what: str, changed: str) -> None:
    if changed:
        mixed = " What is trained from here on is trained by it: the result is of both."
        with run.noting():
            warn(
                f"{run.path}: {what} changed since the run began: {changed} (digits of its SHA-256). It is "
                f"taken as it is now.{'' if run.finished else mixed}",
                CheckpointWarning,
            )
