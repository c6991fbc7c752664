"""`metrics.jsonl`: one JSON object a line, appended while training, readable after any sudden end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import RunFolderError
from tasks.runs import atomic


class Metrics:
    """The file of a run's metrics; NaN and infinity are null in it and NaN when read back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: Mapping[str, float | int | str]) -> None:
        """Add a line and hand it to the system."""
        line = json.dumps(atomic.strict(values), allow_nan=False).encode() + b"\n"
        with open(self.path, "ab+") as stream:
            _drop_torn_line(stream.fileno())
            stream.write(line)

    def read(self) -> list[dict[str, Any]]:
        """All lines; a last one without its end, torn by a kill, is left out.

        Raises:
            RunFolderError: another line cannot be read.
        """
        if not self.path.exists():
            return []
        *lines, _torn = self.path.read_bytes().split(b"\n")
        return [self._parse(number, line) for number, line in enumerate(lines, start=1)]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrite the file atomically with the wanted lines, each as it was to the byte."""
        if not self.path.exists():
            return
        *lines, torn = self.path.read_bytes().split(b"\n")
        kept = [line for number, line in enumerate(lines, start=1) if wanted(self._parse(number, line))]
        if torn or len(kept) < len(lines):
            atomic.write_bytes(self.path, b"".join(line + b"\n" for line in kept))

    def sync(self) -> None:
        """Bring what was appended to the disk."""
        if self.path.exists():
            with open(self.path, "rb+") as stream:
                os.fsync(stream.fileno())

    def _parse(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
            whole = isinstance(values, dict) and isinstance(values["stage"], str)
            if not (whole and isinstance(values["step"], int)):
                raise ValueError("no stage and step")
        except (ValueError, KeyError) as error:
            raise RunFolderError(
                f"{self.path}, line {number}: expected a JSON object with stage and step, got "
                f"{line[:80]!r} ({error}). Delete that line."
            ) from None
        return {name: math.nan if value is None else value for name, value in values.items()}


def _drop_torn_line(handle: int) -> None:
    """Cut the file after its last whole line, or the next line would be glued to a torn one."""
    size = os.lseek(handle, 0, os.SEEK_END)
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    content = os.pread(handle, size, 0)
    os.ftruncate(handle, content.rfind(b"\n") + 1)
