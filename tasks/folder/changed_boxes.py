"""Notices of boxes that had changed when a run was resumed, kept in its folder for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.errors import RunFolderError
from tasks.folder import atomic, reading

NAME = "changed_boxes.json"


def read(folder: Path) -> list[str]:
    """Read the notices of boxes that had changed when a run was resumed, in sentences.

    Raises:
        RunFolderError: The file cannot be read.
    """
    try:
        names = reading.json_object(folder / NAME, "Delete it.").get("changed")
    except FileNotFoundError:
        return []
    if not isinstance(names, list) or not all(isinstance(sentence, str) for sentence in names):
        raise RunFolderError(f"{folder / NAME}: expected a list of sentences, got others. Delete it.")
    return names


def add(folder: Path, sentences: Sequence[str]) -> None:
    """Add sentences to the kept ones, each once.

    Raises:
        OSError: The sentences cannot be written.
        RunFolderError: The kept sentences cannot be read.
    """
    names = read(folder)
    new = [sentence for sentence in sentences if sentence not in names]
    atomic.write_json(folder / NAME, {"changed": [*names, *new]})
