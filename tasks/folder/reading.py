"""Files of a run's folder, which may be anyone's: read as what they should be, or refused in a sentence."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tasks.errors import RunFolderError

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_strange_files(folder: Path) -> None:
    """Refuse a folder with links, which could lead anywhere, or pipes and devices, whose reading may not end.

    Raises:
        RunFolderError: Naming the first.
    """
    # not by glob, which may stumble over a folder that a process at work deletes
    for path in (Path(place, name) for place, *kinds in os.walk(folder) for name in chain(*kinds)):
        try:
            kind = _KINDS.get(stat.S_IFMT(path.lstat().st_mode))
        except FileNotFoundError:
            continue
        if kind == "a link":
            raise RunFolderError(
                f"{path}: expected a file or folder of the run itself, got a link to {path.readlink()}. Put "
                "a copy of what it leads to in its place, if that is the run's."
            )
        if kind is not None:
            raise RunFolderError(
                f"{path}: expected a file or folder of the run, got {kind}. Remove it, or put back the file "
                "that was there."
            )


def json_object(path: Path, mend: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: The path of the file.
        mend: The mend where it is no such file, as a sentence.

    Raises:
        RunFolderError: It is no JSON object, or a folder.
        OSError: The system does not let it be read, such as `FileNotFoundError`.
    """
    if path.is_dir():
        raise RunFolderError(f"{path}: expected a file, got a folder. {mend}")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise RunFolderError(f"{path}: expected JSON, got lists in lists without end. {mend}") from None
    except ValueError as error:
        raise RunFolderError(
            f"{path}: expected JSON, got text that cannot be read ({error}). {mend}"
        ) from None
    if not isinstance(content, dict):
        raise RunFolderError(f"{path}: expected a JSON object, got a {type(content).__name__}. {mend}")
    return content


def json_lines(
    path: Path, texts: Sequence[str], wanted: str, *, steps: bool
) -> tuple[list[tuple[bytes, dict[str, Any]]], bytes]:
    """The lines of a file that grows, with their values, and a last one without its end, torn by a kill.

    Args:
        path: The path of the file; without a file there are no lines.
        texts: The names of entries that are texts.
        wanted: The expected entries of an object, in words.
        steps: Whether each line has a step; if not, the step may be None.

    Raises:
        RunFolderError: A line is no JSON object with these entries and a step.
    """
    if not path.exists():
        return [], b""
    *lines, torn = path.read_bytes().split(b"\n")
    entries = list[tuple[bytes, dict[str, Any]]]()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            step = values["step"]
            if not all(isinstance(values[name], str) for name in texts):
                raise ValueError("another kind of entry")
            if not (step is None and not steps) and not (type(step) is int and 0 <= step < 2**48):
                raise ValueError("no step")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunFolderError(
                f"{path}, line {number}: expected a JSON object with {wanted}, got {line[:80]!r} ({error}). "
                "Delete that line."
            ) from None
        entries.append((line, values))
    return entries, torn


def gaps(lines: Sequence[Mapping[str, Any]], steps: int) -> str:
    """The optimiser steps of a stage, up to a number, without a line in its metrics: "steps 1 to 20".

    Args:
        lines: The metrics of the stage.
        steps: How many steps were done.
    """
    loss_steps = sorted({line["step"] for line in lines if "loss" in line and 1 <= line["step"] <= steps})
    ends = zip([0, *loss_steps], [*loss_steps, steps + 1], strict=True)
    parts = [(low + 1, high - 1) for low, high in ends if high - low > 1]
    if not parts:
        return ""
    (first, last), more = parts[0], len(parts) - 1
    words = f"step {first}" if first == last else f"steps {first} to {last}"
    return words + (f" and {more} more gaps" if more else "")
