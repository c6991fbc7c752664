"""Boxes' answers in work that no checkpoint has yet: making data, steps, validations, a test.

A process that goes on after a kill does that work again from its beginning, but asks only for rows that were
not answered. An answer is known by the box, the row, and how many times that row was asked before, so that a
noisy box stays one. Of rows that failed only the place is kept, as outputs of no row: they are asked again.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from blackbox import BlackBoxFunction, Ledger
from blackbox.calls import intercepted, rows_run_by
from blackbox.failures import Outcome
from blackbox.notices import warn
from tasks.errors import CheckpointError, CheckpointWarning
from tasks.folder import atomic, checkpoint
from tasks.folder.pace import Pace
from tasks.folder.run import Run
from tasks.rows import first_rows
from tasks.rows.recalling import Attributes, Before, Recalling
from tasks.workers import group
from zo.execution import SharedRows

FOLDER = "answers"
FIRST = 1  # the place of a training's first step
MOST = 2**28  # bytes of a piece of work that are kept: what comes after that is asked again
LEAST = 0.1  # seconds of a call in a step of which nothing is kept: looking up would slow fast boxes down


@dataclass
class _KeptCall:
    """One call's answer: keys, rows of each, outputs of all; rows run beside; its place."""

    keys: list[str]
    lengths: list[int]
    outputs: list[Tensor]
    extra: int
    place: int

    def parts(self) -> Iterator[tuple[str, tuple[Tensor, ...], int]]:
        """Each key with its outputs, and how many rows were run for them."""
        pieces = zip(*(output.split(self.lengths) for output in self.outputs), strict=True)
        for number, (key, outputs) in enumerate(zip(self.keys, pieces, strict=True)):
            yield key, outputs, self.lengths[number] + (0 if number else self.extra)


class KeptAnswers:
    """The answers to one piece of work, in `answers` of a run's folder.

    They are written every few seconds, so a piece of work that is soon done writes none.

    Args:
        name: The name of the work, which its files have; for folder, rank and code see `attach`.

    Attributes:
        attributes: What is known of the boxes' attributes.
        place: The process's place in the work, a number that grows; `end` says up to where it is done.
        recalled: The counts of earlier processes for the answers that were used.
        process_group: The group of processes that all do this work; None for this one alone.
    """

    def __init__(
        self, name: str, folder: Path | None = None, rank: int = 0, code: Mapping[str, str] | None = None
    ) -> None:
        self._name, self._rank, self._code = checkpoint.file_name(name), 0, dict[str, str]()
        self._folder: Path | None = None
        self._by_key: dict[str, deque[tuple[tuple[Tensor, ...], int, int]]] = {}
        self._waiting: list[_KeptCall] = []
        self._bytes, self._number, self.full = 0, 0, False
        self._recallers: dict[int, tuple[BlackBoxFunction, Recalling]] = {}
        self._shared: dict[int, SharedRows] = {}
        self._pace, self.place, self.attributes = Pace(), 0, Attributes()
        self.recalled = Ledger()
        self.process_group: Any = None
        if folder is not None:
            self.attach(folder, rank, code or {})

    def attach(self, folder: Path, rank: int, code: Mapping[str, str], *, only_read: bool = False) -> None:
        """There is a folder from here on; what earlier processes have left there is read.

        Args:
            folder: The run's folder.
            rank: Number of this process among those of the run: each writes files of its own, and reads all.
            code: The versions of the code that answers depend on: those of other code are not used.
            only_read: Whether nothing may be written or deleted, since a process may be working on the run,
                or will; the folder can then be attached again.
        """
        if self._folder is not None:
            return
        place = folder.absolute() / FOLDER  # a box may change the working directory
        self._rank, self._code, self._by_key = rank, dict(code), {}
        self._bytes = sum(_size(entry.outputs) for entry in self._waiting)
        if not only_read:
            self._folder = place
            self._tidy()
        for path, _ in self._files(place):
            entries = _entries(path, self._code)
            if entries is None:
                if not only_read:
                    path.unlink(missing_ok=True)  # another process of the run was first
                continue
            for entry in entries:
                self._bytes += _size(entry.outputs)
                for key, outputs, run in entry.parts():
                    self._by_key.setdefault(key, deque()).append((outputs, run, entry.place))
            self._number = max(self._number, int(path.name.split(".")[-2]) + 1)

    def attach_to(self, run: Run, *, only_read: bool = False) -> None:
        """Attach them to the folder of a run, and to its code as it is now; see `attach`."""
        self.attach(group.journal_folder(run.path), group.rank(), run.code_versions(), only_read=only_read)

    @contextmanager
    def used(
        self,
        before: Before | None = None,
        aside: Callable[[BlackBoxFunction], bool] | None = None,
        least: float = 0.0,
    ) -> Iterator[None]:
        """A block in which boxes are asked only for rows that were not answered.

        Args:
            before: A function that is called right before rows are run, with the box and their number.
            aside: Names the boxes whose answers are not counted in `recalled`; None for none.
            least: Rows that a call runs in its first `least` seconds are not kept, nor rows of a box whose
                last call was shorter. 0 to keep all.
        """

        def ask(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:
            if self.process_group is not None and not isinstance(box, SharedRows):
                box = self._shared.setdefault(id(box), SharedRows(box, self.process_group))
            with intercepted(None):
                return box(*arrays)

        def run(box: BlackBoxFunction, inputs: tuple[Tensor, ...]) -> Outcome:
            # a mode measures what an evaluation takes, which must not depend on what is known
            if _get_current_dispatch_mode() is not None:
                return box.run_rows(inputs)
            recalled = False
            if isinstance(box, SharedRows):  # which asks the box for its share
                recalled = self.any_known
                outcome = box.run_rows(inputs)
            elif box.of_process:  # a run of a program that has ended is begun again
                if before is not None:
                    before(box, box.rows_to_run(inputs))
                with rows_run_by(None):
                    outcome = box.run_rows(inputs)
            else:
                if id(box) not in self._recallers:
                    self._recallers[id(box)] = box, Recalling(box, self)
                with rows_run_by(None):
                    outcome, recalled = self._recallers[id(box)][1].answer(inputs, before, aside, least)
            if (watching := first_rows.at_hand()) is not None and not recalled:
                watching.saw(box, inputs, outcome)
            return outcome

        with intercepted(ask), rows_run_by(run):
            yield

    def known(self, key: str) -> tuple[tuple[Tensor, ...], int] | None:
        """The outputs of a key, the next that were kept under it, and how many rows were run for them."""
        entries = self._by_key.get(key)
        if not entries:
            return None
        outputs, run, _ = entries.popleft()
        if not entries:
            del self._by_key[key]
        return outputs, run

    @property
    def any_known(self) -> bool:
        """True if there is anything to look up."""
        return bool(self._by_key)

    @property
    def rows_known(self) -> int:
        """Rows that were run for the answers that can be looked up."""
        return sum(run for entries in self._by_key.values() for _, run, _ in entries)

    def keep(
        self, keys: Sequence[str], lengths: Sequence[int], outputs: tuple[Tensor, ...], extra: int
    ) -> None:
        """Keep the outputs of some keys.

        Args:
            keys: The keys of the outputs.
            lengths: The number of rows of each key.
            outputs: The outputs of all keys, one after another, `(rows, ...)`.
            extra: How many further rows were run.
        """
        self._bytes += _size(outputs)
        if self._bytes > MOST:
            self.full = True
            return
        plain = [output.detach().cpu() for output in outputs]
        entry = _KeptCall(list(keys), list(lengths), plain, extra, self.place)
        self._waiting.append(entry)
        if self._pace.due:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if not self._waiting or self._folder is None:
            return
        started = self._pace.now()
        last = max(entry.place for entry in self._waiting)
        path = self._folder / f"{self._name}.{last}.{self._rank}.{self._number}{checkpoint.ENDING}"
        entries = [vars(entry) for entry in self._waiting]
        try:
            self._folder.mkdir(exist_ok=True)
            checkpoint.save(path, {"code": self._code, "entries": entries})
        except OSError as error:  # it is an aid; what must not be lost says so by itself
            self.full = True
            warn(
                f"{path}: expected to write what black boxes answered, got {error.strerror!r}. If the run is "
                "cut short, they are asked again.",
                CheckpointWarning,
            )
        self._waiting, self._number = [], self._number + 1
        self._pace.wrote(started)

    def end(self, place: int | None = None) -> None:
        """The work up to a place is done, and what came of it is on the disk: its answers go.

        Args:
            place: The last one; None for all.
        """
        remaining = {
            key: deque(entry for entry in entries if place is not None and entry[2] > place)
            for key, entries in self._by_key.items()
        }
        self._by_key = {key: entries for key, entries in remaining.items() if entries}
        self._bytes = sum(_size(outputs) for entries in self._by_key.values() for outputs, _, _ in entries)
        self._waiting, self.full = [], False
        self._pace.begin()
        if self._folder is None:
            return
        self._tidy()
        files = self._files(self._folder)
        past = [(path, rank) for path, (last, rank) in files if place is None or last <= place]
        for path, rank in past:
            if self._rank in (0, rank):  # the first process deletes those of all
                path.unlink(missing_ok=True)
        if past:
            with suppress(OSError):  # others' are in it, or another process was first
                self._folder.rmdir()

    def _tidy(self) -> None:
        """Remove what this process's earlier life left half written."""
        if self._folder is not None and self._folder.is_dir():
            of_this_process = re.compile(re.escape(f".{self._name}") + rf"\.\d+\.{self._rank}\.\d+\.")
            for path in atomic.leftovers(self._folder, f"{self._name}."):
                if of_this_process.match(path.name):
                    path.unlink(missing_ok=True)

    def _files(self, folder: Path) -> list[tuple[Path, tuple[int, int]]]:
        """The files of the work in their order, each with its last place and its process."""
        if not folder.is_dir():
            return []
        pattern = re.compile(re.escape(self._name) + r"\.(\d+)\.(\d+)\.(\d+)" + re.escape(checkpoint.ENDING))
        files = [
            (path, tuple(map(int, match.groups())))
            for path in folder.iterdir()
            if (match := pattern.fullmatch(path.name))
        ]
        files.sort(key=lambda pair: (pair[1][2], pair[1][1]))
        return [(path, (last, rank)) for path, (last, rank, _) in files]


def _entries(path: Path, code: Mapping[str, str]) -> list[_KeptCall] | None:
    """Read a file's entries; None where it is damaged, of other code, or no file of answers."""
    try:
        content = checkpoint.load(path)
        if content["code"] != code:
            return None
        entries = [_KeptCall(**fields) for fields in content["entries"]]
        for entry in entries:
            for key, outputs, run in entry.parts():
                plain = all(
                    tensor.layout is torch.strided and tensor.device.type == "cpu" for tensor in outputs
                )
                if not (plain and isinstance(key, str) and isinstance(run, int) and run >= 0):
                    return None
            if not isinstance(entry.place, int):
                return None
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return entries


def _size(outputs: Iterable[Tensor]) -> int:
    return sum(output.numel() * output.element_size() for output in outputs)
