"""The warnings of a run, kept in its folder as they come: once each, with the stage and the step."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from threading import RLock
from typing import Any, TextIO

from blackbox.words import counted
from tasks.folder import atomic, reading
from tasks.folder.result import Row, RunWarning

NAME = "warnings.jsonl"
MOST = 100  # of a stage and a kind: what a box says in other words each time is no list that anybody reads
LONGEST = 4000  # characters of one
# one that stands alone: "0.weight" and "2.weight" are two things, "step 10" and "step 20" may be said of one
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,.]*(?:e[-+]?\d+)?(?![\w.])")


class WarningNotes:
    """The warnings of a run, and the place at which the next one is noted.

    Attributes:
        stage: The stage at work, as in the metrics: "seed-0/rge"; "" outside of stages, where data are made.
        step: The optimiser step at hand, from 1; 0 before the first; None outside of steps, as in the test.
    """

    def __init__(self) -> None:
        self.stage, self.step = "", None
        self._folder: Path | None = None
        self._keys: set[tuple[str, str, str]] = set()
        self._noted, self._more = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
        self._shown: set[tuple[object, ...]] = set()
        self._lock = RLock()  # boxes may warn in threads of their own

    @contextmanager
    def noting(self, folder: Path) -> Iterator[None]:
        """A block whose warnings are noted in a run's folder, and shown as ever: each once, while it lasts.

        Warnings that a filter of Python ignores, or makes errors, are not noted. An inner block of this kind
        changes nothing.

        Args:
            folder: The run's folder.

        Raises:
            RunFolderError: The earlier notes there cannot be read.
        """
        if self._folder is not None:
            yield
            return
        self._take_in(read(folder))
        self._folder, usual_show = folder, warnings.showwarning
        self._shown.clear()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            self._note(category.__name__, str(message))
            place = (category, str(message), filename, lineno)
            if place not in self._shown:
                self._shown.add(place)
                usual_show(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        try:
            with self.at(self.stage, self.step):
                yield
        finally:
            if warnings.showwarning is show:
                warnings.showwarning = usual_show
            self._folder = None

    @contextmanager
    def at(self, stage: str, step: int | None = None) -> Iterator[None]:
        """A block in which what is warned of belongs to a stage, also what an earlier stage had said."""
        old_place = self.stage, self.step
        if stage != old_place[0]:
            self._say_how_many_more(old_place[0])
        self.stage, self.step = stage, step
        # Python gives no warning twice from one place, until filters may have changed
        with warnings.catch_warnings():
            try:
                yield
            finally:
                if stage != old_place[0]:
                    self._say_how_many_more(stage)
                self.stage, self.step = old_place

    def forget(self, folder: Path, stage: str, step: int) -> None:
        """Drop what was noted of a stage past a step, from where it goes on; all of it where that is -1."""
        with self._lock:
            lines = read(folder)
            valid_lines = [line for line in lines if not _is_past(line, stage, step)]
            if len(valid_lines) < len(lines):
                text = "".join(f"{json.dumps(line)}\n" for line in valid_lines)
                atomic.write_bytes(folder / NAME, text.encode())
            self._take_in(valid_lines)

    def _take_in(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._keys = {_key(line) for line in lines}
        self._noted = Counter((line["stage"], line["kind"]) for line in lines)

    def _note(self, kind: str, text: str) -> None:
        line = {"stage": self.stage, "step": self.step, "kind": kind, "text": text[:LONGEST]}
        with self._lock:
            if self._folder is None or _key(line) in self._keys:
                return
            if self._noted[self.stage, kind] < MOST:
                self._append(self._folder, line)
            else:
                self._more[self.stage, kind] += 1

    def _say_how_many_more(self, stage: str) -> None:
        """Note how many warnings of a stage are not in the list, when it is left."""
        with self._lock:
            for of_stage, kind in list(self._more):
                if of_stage == stage and self._folder is not None:
                    more = counted(self._more.pop((stage, kind)), "further warning")
                    text = f"{more} of this kind came in other words each time: not listed."
                    self._append(self._folder, {"stage": stage, "step": None, "kind": kind, "text": text})

    def _append(self, folder: Path, line: Mapping[str, Any]) -> None:
        self._keys.add(_key(line))
        self._noted[line["stage"], line["kind"]] += 1
        with suppress(OSError):  # a full disk is said where metrics are written; a row must not fail for it
            atomic.append_line(folder / NAME, json.dumps(line).encode())


def read(folder: Path) -> list[dict[str, Any]]:
    """Read the notes in a folder, in the order in which they came; a last line that a kill tore is left out.

    Raises:
        RunFolderError: Another line cannot be read.
    """
    texts, columns = ("stage", "kind", "text"), "stage, step, kind and text"
    lines, _torn = reading.json_lines(folder / NAME, texts, columns, steps=False)
    return [values for _, values in lines]


def of_stages(folder: Path, stages: Mapping[str, Row]) -> list[RunWarning]:
    """Collect the warnings for a result: outside of stages, then in the order of stages and of steps.

    Args:
        folder: The run's folder.
        stages: The lines of the table, by their stages; a loop of one's own may have others besides.

    Raises:
        RunFolderError: A line of the notes cannot be read.
    """
    places = {"": -1, **{stage: place for place, stage in enumerate(stages)}}
    warned = []
    for line in read(folder):
        stage, step = line["stage"], line["step"]
        row = stages.get(stage)
        method, seed = (stage, None) if row is None else (row.method, row.seed)
        order = places.get(stage, len(stages)), math.inf if step is None else step
        warned.append((order, RunWarning(line["text"], line["kind"], method, seed, step)))
    return [warning for _, warning in sorted(warned, key=itemgetter(0))]


def _key(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return a warning's key, equal for the same warning: stage, kind, and words without numbers."""
    return line["stage"], line["kind"], without_numbers(line["text"])


def without_numbers(text: str) -> str:
    """Return a text without its numbers; warnings that differ only in numbers count as the same one."""
    return _NUMBER.sub("#", text)


def _is_past(line: Mapping[str, Any], stage: str, step: int) -> bool:
    return line["stage"] == stage and (step < 0 or (line["step"] is not None and line["step"] > step))
