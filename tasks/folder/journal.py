"""The journal of optimiser steps that take long: their finished queries, so that a kill loses seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from blackbox import Ledger
from blackbox.notices import warn
from tasks.errors import CheckpointError, CheckpointWarning, StoppedInside
from tasks.folder import atomic, checkpoint
from tasks.folder.checkpoint import file_name
from tasks.folder.pace import OFTEN, Pace

EVERY = OFTEN  # seconds between writes, see `Pace`; the first one comes sooner
FOLDER = "journal"


class Counted(Protocol):
    """A counter of the rows of black boxes: a `blackbox.Ledger`, or several of them together."""

    def copy(self) -> Ledger:
        """The counts as they stand now."""
        ...

    def since(self, earlier: Ledger, /) -> Ledger:
        """Return the counts since a copy was taken."""
        ...


class Journal:
    """The queries that were finished since the last checkpoint, in `journal` of a run folder.

    Entries are kept in memory and written every few seconds, to a small file of their own that appears as a
    whole or not at all. The file goes when a checkpoint has the results. An entry also has the black box's
    counts meanwhile. Where this process uses an entry of an earlier process, its counts are added to `used`:
    the step has taken these rows too.

    Each of several processes writes files, and the first one reads and deletes all of them.

    Args:
        folder: the folder of the run, which all processes must reach.
        stage: the name of the stage.
        ledger: the ledger of the black box that steps call; None if it is not known.
        every: seconds between writes; `EVERY` if None.
        clock: a function that gives seconds; the system's if None.
        rank: the number of this process among the run's.
        of: further data that entries belong to, beside their keys, such as a checksum of the code; entries of
            other data are not found.

    Attributes:
        stop: a function that is asked at each entry; True ends a step there that has any on the disk.
        tears: a function that is asked at entries with failed rows; those for which it is True are not kept.
        used: the counts of earlier processes for the entries that were used in this step.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        ledger: Counted | None = None,
        every: float | None = None,
        clock: Callable[[], float] | None = None,
        rank: int = 0,
        of: str = "",
    ) -> None:
        self._of = of
        self._folder, self._stage, self._rank = folder / FOLDER, stage, rank
        self._start = f"{file_name(stage)}.step-"
        self._ledger = ledger
        self._pace = Pace(clock, EVERY if every is None else every)
        self.stop: Callable[[], bool] = lambda: False
        self.tears: Callable[[], bool] = lambda: False
        self._step, self._failed = 0, False
        self._mark, self.used = Ledger(), Ledger()
        self._entries: dict[str, dict[str, Any]] | None = None  # None before the first step
        self._waiting: dict[str, dict[str, Any]] = {}  # made bytes when written: most steps never are
        self._on_disk = False  # whether anything of the step is on the disk

    def begin(self, step: int) -> None:
        """The step of this number (from 0) begins; the first time, what an earlier process left is read."""
        self._step, self.used = step, Ledger()
        if self._entries is None:
            self._entries = {}
            self._pace.begin()
            for number, path in self._files() if self._rank == 0 else []:
                if number < step:
                    continue
                entries = _entries(path, number)
                if entries is None:
                    path.unlink()  # its queries are evaluated again
                else:
                    self._entries |= entries
        self._on_disk = any(entry["step"] == step for entry in self._entries.values())

    def end(self, covered: bool = True) -> None:
        """The step is done.

        Args:
            covered: Whether a checkpoint has it: then its journal goes, and those of earlier ones; later
                ones wait for their step. Else all is kept, for a process that takes the step again.
        """
        if not covered:
            return
        self._entries = {
            key: entry for key, entry in (self._entries or {}).items() if entry["step"] > self._step
        }
        self._waiting = {}
        self._pace.begin()
        if self._rank > 0 or not self._folder.is_dir():
            return
        past = [path for step, path in self._files() if step <= self._step]
        # not those of later steps, which another process may be writing
        torn = atomic.leftovers(self._folder, f"{self._start}{self._step + 1:08d}.")
        for path in [*past, *torn]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # others are in it, or come in at this moment
            self._folder.rmdir()

    def get(self, key: str) -> Mapping[str, Any] | None:
        """Return the value put under `key` in this step, by this process or an earlier one."""
        entry = (self._entries or {}).get(f"{self._of}{key}")
        entry = entry if entry is not None and entry["step"] == self._step else None
        if self._ledger is not None:
            self._mark = self._ledger.copy()
        if entry is not None and entry["counts"] is not None:
            self.used.add(Ledger(**entry["counts"]))
        return None if entry is None else entry["value"]

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep what was computed since `get` was asked for it, with what the box counted meanwhile.

        Raises:
            StoppedInside: what is kept of the step is on the disk, and `stop` says so.
        """
        counts = None if self._ledger is None else asdict(self._ledger.since(self._mark))
        # a scheduler's signal reaches the programs of boxes too
        if counts is None or not counts["rows_failed"] or not self.tears():
            self._waiting[f"{self._of}{key}"] = {"value": dict(value), "counts": counts, "step": self._step}
        stopping = self.stop()
        if self._waiting and (self._pace.due or (self._on_disk and stopping)):
            self._write()
        if self._on_disk and stopping and not self._failed:
            raise StoppedInside

    def _write(self) -> None:
        if self._failed:
            self._waiting = {}
            return
        # no other group of entries begins with the same one
        mark = sha256(next(iter(self._waiting)).encode()).hexdigest()[:16]
        path = self._folder / f"{self._start}{self._step + 1:08d}.{mark}{checkpoint.ENDING}"
        started = self._pace.now()
        try:
            self._folder.mkdir(exist_ok=True)
            checkpoint.save(path, self._waiting)
        except OSError as error:
            # the step itself needs no disk; if that does not mend itself the checkpoint will say so
            self._failed = True
            warn(
                f"{path}: expected to write the finished queries of step {self._step + 1} of "
                f"{self._stage}, got {error.strerror!r}. If the step is cut short, they are lost.",
                CheckpointWarning,
            )
            return
        self._on_disk, self._waiting = True, {}
        self._pace.wrote(started)

    def _files(self) -> list[tuple[int, Path]]:
        pattern = re.compile(re.escape(self._start) + rf"(\d+)\.[0-9a-f]+{re.escape(checkpoint.ENDING)}")
        paths = sorted(self._folder.glob("*")) if self._folder.is_dir() else []
        return [
            (int(match[1]) - 1, path) for path in paths if (match := pattern.fullmatch(path.name)) is not None
        ]


def _entries(path: Path, step: int) -> dict[str, dict[str, Any]] | None:
    """Read a file's entries, each with its step; None where it is damaged, or no file of a journal."""
    try:
        entries = {key: {"step": step} | entry for key, entry in checkpoint.load(path).items()}
        for entry in entries.values():
            if not isinstance(entry["value"], dict) or not isinstance(entry["step"], int):
                return None
            if entry["counts"] is not None:
                Ledger().add(Ledger(**entry["counts"]))
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return entries


@contextmanager
def journaled(
    folder: Path, name: str, ledger: Counted | None = None, rank: int = 0, of: str = ""
) -> Iterator[Journal]:
    """The journal of one piece of work outside of the steps, such as finding layer ratios.

    Entries of an earlier process are read when the block begins, and go when it ends without an error.

    Args:
        folder: the folder of the run.
        name: the name of the work; no stage of the run may have it.
        ledger: the ledger of the black box that the work calls; None if it is not known.
        rank: the number of this process among the run's.
        of: further data that entries belong to, beside their keys.
    """
    journal = Journal(folder, name, ledger, rank=rank, of=of)
    journal.begin(0)
    yield journal
    journal.end()
