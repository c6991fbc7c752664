"""`metrics.jsonl`: what a run writes down of each step and validation, a line at a time."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.folder import atomic, reading

NAME = "metrics.jsonl"


def log(folder: Path, stage: str, step: int, values: Mapping[str, float | int | str]) -> None:
    """Add one line; it survives if the process is killed right after."""
    line = json.dumps(atomic.strict({"stage": stage, "step": step, **values}), allow_nan=False)
    atomic.append_line(folder / NAME, line.encode())


def read(folder: Path, stage: str | None = None) -> list[dict[str, Any]]:
    """The lines of one stage or of all, NaN for what was not finite.

    Raises:
        RunFolderError: a line other than a torn last one cannot be read.
    """
    lines, _torn = _lines(folder / NAME)
    return [
        {name: math.nan if value is None else value for name, value in values.items()}
        for _, values in lines
        if stage in (None, values["stage"])
    ]


def truncate(folder: Path, stage: str, step: int, *, judged: bool = True) -> None:
    """Drop the lines of `stage` past `step`, so that going on from there repeats none.

    Args:
        folder: The run's.
        stage: The stage whose lines are dropped.
        step: The last one that is done.
        judged: Whether its validation is, too.
    """

    def past(values: Mapping[str, Any]) -> bool:
        again = not judged and values["step"] == step and "validation" in values
        return values["stage"] == stage and (values["step"] > step or again)

    lines, torn = _lines(folder / NAME)
    valid_lines = [line for line, values in lines if not past(values)]
    if torn or len(valid_lines) < len(lines):  # each stays as it was to the byte
        atomic.write_bytes(folder / NAME, b"".join(line + b"\n" for line in valid_lines))


def sync(folder: Path) -> None:
    """Bring the lines to the disk, before a checkpoint that relies on them."""
    if (folder / NAME).exists():
        with open(folder / NAME, "rb+") as stream:
            os.fsync(stream.fileno())


def _lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], bytes]:
    return reading.json_lines(path, ("stage",), "stage and step", steps=True)
