"""What black boxes have answered in work that a checkpoint does not have: making data, a validation, a test.

A process that goes on after a kill does that work again from its beginning, but asks only for rows that were
not answered. An answer is known by the box, the row, and how many times that row was asked before, so that a
noisy box stays one. Rows that failed are not kept: they are asked again.
"""

from __future__ import annotations

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor

from blackbox import BlackBoxFunction, Budgeted, ConfigurationError, Ledger, Outcome, Parallel
from blackbox.calls import intercepted
from blackbox.definition import gives
from blackbox.running import pick, place, stops, unanswered
from blackbox.wrappers.identity import identity, name_of
from blackbox.wrappers.wrapper import Wrapper
from tasks.errors import CheckpointError, CheckpointWarning
from tasks.runs import atomic, checkpoint
from tasks.runs.pace import Pace
from tasks.tally import stack
from zo import SharedRows

FOLDER = "answers"
MOST = 2**28  # bytes of a piece of work that are kept: what comes after that is asked again
LONG = 0.5  # seconds that rows may take which are run together, where they can be run apart

Before: TypeAlias = Callable[[BlackBoxFunction, int], None]


@dataclass
class _Entry:
    keys: list[str]
    lengths: list[int]
    outputs: list[Tensor]
    extra: int

    def parts(self) -> Iterator[tuple[str, tuple[Tensor, ...], int]]:
        """Each key with its outputs, and how many rows were run for them."""
        pieces = zip(*(output.split(self.lengths) for output in self.outputs), strict=True)
        for number, (key, outputs) in enumerate(zip(self.keys, pieces, strict=True)):
            yield key, outputs, self.lengths[number] + (0 if number else self.extra)


class Answers:
    """The answers to one piece of work, in `answers` of a run's folder.

    They are written every few seconds, so a piece of work that is soon done writes none.

    Args:
        name: Of the work, as that of a file.
        folder: Of the run; None while there is none, see `attach`.
        rank: See `attach`.
        code: See `attach`.

    Attributes:
        recalled: What earlier processes have counted for the answers that were used.
        process_group: Of the processes that all do this work; None for this one alone.
    """

    def __init__(
        self, name: str, folder: Path | None = None, rank: int = 0, code: Mapping[str, str] | None = None
    ) -> None:
        self._name, self._rank, self._code = checkpoint.file_name(name), 0, dict[str, str]()
        self._folder: Path | None = None
        self._known: dict[str, deque[tuple[tuple[Tensor, ...], int]]] = {}
        self._waiting: list[_Entry] = []
        self._bytes, self._number, self.full = 0, 0, False
        self._names: dict[int, tuple[BlackBoxFunction, bytes]] = {}
        self._asked: dict[int, tuple[BlackBoxFunction, BlackBoxFunction]] = {}
        self._pace = Pace()
        self.recalled = Ledger()
        self.process_group: Any = None
        if folder is not None:
            self.attach(folder, rank, code or {})

    def attach(self, folder: Path, rank: int, code: Mapping[str, str], *, only_read: bool = False) -> None:
        """There is a folder from here on; what earlier processes have left there is read.

        Args:
            folder: Of the run.
            rank: Number of this process among those of the run: each writes files of its own, and reads all.
            code: The versions of the code that answers depend on: those of other code are not used.
            only_read: Whether nothing may be written or deleted, since a process may be working on the run,
                or will; the folder can then be attached again.
        """
        if self._folder is not None:
            return
        place = folder.absolute() / FOLDER  # a box may change the working directory
        self._rank, self._code, self._known, self._bytes = rank, dict(code), {}, 0
        if not only_read:
            self._folder = place
            self._tidy()
        for path in self._files(place):
            entries = _entries(path, self._code)
            if entries is None:
                if not only_read:
                    path.unlink()
                continue
            for entry in entries:
                self._bytes += _size(entry.outputs)
                for key, outputs, run in entry.parts():
                    self._known.setdefault(key, deque()).append((outputs, run))
            self._number = max(self._number, int(path.name.split(".")[-2]) + 1)

    @contextmanager
    def used(
        self, before: Before | None = None, aside: Callable[[BlackBoxFunction], bool] | None = None
    ) -> Iterator[None]:
        """A block in which boxes are asked only for rows that were not answered.

        Args:
            before: Is told, right before rows are run, of which box and how many.
            aside: Of which boxes answers are not counted in `recalled`; of none if None.
        """

        def ask(box: BlackBoxFunction, arrays: tuple[Any, ...]) -> Any:  # noqa: ANN401
            with intercepted(None):
                return self._asking(box, before, aside)(*arrays)

        with intercepted(ask):
            yield

    def _asking(
        self,
        box: BlackBoxFunction,
        before: Before | None,
        aside: Callable[[BlackBoxFunction], bool] | None,
    ) -> BlackBoxFunction:
        """A box that answers as this one, and remembers: of several processes the one that runs the rows."""
        if id(box) not in self._asked:
            if isinstance(box, SharedRows):
                inside = _Recalling(box.box, self, before, aside)
                made = SharedRows(inside, box.process_group, box.block)
            else:
                made = _Recalling(box, self, before, aside)
                made = made if self.process_group is None else SharedRows(made, self.process_group)
            self._asked[id(box)] = box, made
        return self._asked[id(box)][1]

    def name_of(self, box: BlackBoxFunction) -> bytes:
        """What is known of a box by which its answers are told from those of others."""
        if id(box) not in self._names:
            try:
                told = identity(box)
            except ConfigurationError:
                told = f"{name_of(type(box))}, {box.inputs!r} -> {box.outputs!r}"
            self._names[id(box)] = box, blake2b(told.encode(), digest_size=16).digest()
        return self._names[id(box)][1]

    def known(self, key: str) -> tuple[tuple[Tensor, ...], int] | None:
        """The outputs of a key, the next that were kept under it, and how many rows were run for them."""
        found = self._known.get(key)
        return found.popleft() if found else None

    @property
    def any_known(self) -> bool:
        """Whether there is anything to look up."""
        return bool(self._known)

    def keep(
        self, keys: Sequence[str], lengths: Sequence[int], outputs: tuple[Tensor, ...], extra: int
    ) -> None:
        """Keep the outputs of some keys.

        Args:
            keys: What the outputs are known by.
            lengths: Rows of each key.
            outputs: Of all keys, one after another, `(rows, ...)`.
            extra: By how many more rows were run than those.
        """
        self._bytes += _size(outputs)
        if self._bytes > MOST:
            self.full = True
            return
        entry = _Entry(list(keys), list(lengths), [output.detach().cpu() for output in outputs], extra)
        self._waiting.append(entry)
        if self._pace.due:
            self.write()

    def write(self) -> None:
        """Write what waits."""
        if not self._waiting or self._folder is None:
            return
        started = self._pace.now()
        path = self._folder / f"{self._name}.{self._rank}.{self._number}{checkpoint.ENDING}"
        entries = [vars(entry) for entry in self._waiting]
        try:
            self._folder.mkdir(exist_ok=True)
            checkpoint.save(path, {"code": self._code, "entries": entries})
        except OSError as error:  # it is an aid; what must not be lost says so by itself
            self.full = True
            warnings.warn(
                f"{path}: expected to write what black boxes answered, got {error.strerror!r}. If the run is "
                "cut short, they are asked again.",
                CheckpointWarning,
                stacklevel=2,
            )
        self._waiting, self._number = [], self._number + 1
        self._pace.wrote(started)

    def end(self) -> None:
        """The work is done, and what came of it is on the disk: its answers go."""
        self._waiting, self._known, self._bytes, self.full = [], {}, 0, False
        self._pace.begin()
        if self._folder is None:
            return
        self._tidy()
        found = self._files(self._folder)
        for path in found:
            if self._rank in (0, int(path.name.split(".")[-3])):  # the first process deletes those of all
                path.unlink(missing_ok=True)
        if found:
            with suppress(OSError):  # others' are in it, or another process was first
                self._folder.rmdir()

    def _tidy(self) -> None:
        """Remove what this process's earlier life left half written."""
        if self._folder is not None and self._folder.is_dir():
            for path in atomic.leftovers(self._folder, f"{self._name}.{self._rank}."):
                path.unlink(missing_ok=True)

    def _files(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            return []
        pattern = re.compile(re.escape(self._name) + r"\.(\d+)\.(\d+)" + re.escape(checkpoint.ENDING))
        found = [(match, path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
        return [path for _, path in sorted(found, key=lambda pair: (int(pair[0][2]), int(pair[0][1])))]


def _entries(path: Path, code: Mapping[str, str]) -> list[_Entry] | None:
    """What a file holds; None where it is damaged, of other code, or no file of answers."""
    try:
        content = checkpoint.load(path)
        if content["code"] != code:
            return None
        found = [_Entry(**each) for each in content["entries"]]
        for entry in found:
            for key, outputs, run in entry.parts():
                if not isinstance(key, str) or not isinstance(run, int) or _size(outputs) < 0:
                    return None
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return found


class _Recalling(Wrapper):
    """Runs the rows whose answers are not kept, in parts that a kill may come between."""

    transparent = True

    def __init__(
        self,
        box: BlackBoxFunction,
        answers: Answers,
        before: Before | None,
        aside: Callable[[BlackBoxFunction], bool] | None,
    ) -> None:
        super().__init__(box)
        self._answers, self._before, self._aside = answers, before, aside
        self._each = _divisible(box)

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Answer from what is kept, and run the rest: as many rows together as take about a second."""
        rows, answers = len(inputs[0]), self._answers
        each = min(self._each or rows, rows)
        parts = [list(range(at, min(at + each, rows))) for at in range(0, rows, each)]
        outcome, missing = unanswered(self.box, inputs), parts
        if answers.any_known:
            missing = []
            for part in parts:
                kept = answers.known(self._key(pick(inputs, part)))
                if kept is None:
                    missing.append(part)
                else:
                    place(outcome, part, Outcome(kept[0]))
                    if self._aside is None or not self._aside(self.box):
                        answers.recalled.count(rows_run=kept[1])
        if missing == [list(range(rows))]:
            return self._run(inputs, missing)
        # a call that a budget does not allow is to be refused before any of its rows is run
        bounded = any(isinstance(part, Budgeted) and part.rows_left < rows for part in stack(self.box))
        together = len(missing) if bounded else 1
        while missing and not stops(self.box, outcome):
            some, missing, started = missing[:together], missing[together:], perf_counter()
            here = [row for part in some for row in part]
            place(outcome, here, self._run(pick(inputs, here), some))
            together = 2 * together if perf_counter() - started < LONG else 1
        return outcome

    def _run(self, inputs: tuple[Tensor, ...], parts: Sequence[Sequence[int]]) -> Outcome:
        """Run rows, and keep the answers to parts none of whose rows has failed."""
        answers, ledger = self._answers, self.ledger
        if self._before is not None:
            self._before(self.box, self.box.rows_to_run(inputs))
        before, at = ledger.rows_run, 0
        found, whole = self.box.run_rows(inputs), list[list[int]]()
        for part in parts:
            here = list(range(at, at + len(part)))
            at += len(part)
            if not found.failed.keys() & set(here):
                whole.append(here)
        run, lengths = ledger.rows_run - before, [len(here) for here in whole]
        if whole and not answers.full:
            kept = pick(found.outputs, [row for here in whole for row in here])
            extra = run - at if len(whole) == len(parts) else 0  # run again, or cached
            answers.keep([self._key(pick(inputs, here)) for here in whole], lengths, kept, extra)
        return found

    def __repr__(self) -> str:
        """As the box, whose answers they are."""
        return repr(self.box)

    def _key(self, inputs: tuple[Tensor, ...]) -> str:
        found = blake2b(self._answers.name_of(self.box), digest_size=20)
        for tensor in inputs:
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()


def _divisible(box: BlackBoxFunction) -> int | None:
    """Rows that a box runs together whatever the call: parts then have a whole's bits. None for all."""
    while isinstance(box, Wrapper):
        if isinstance(box, Parallel) or not box.transparent:  # parts would leave workers without work
            return None
        box = box.box
    return box.max_rows if gives(type(box), "evaluate_rows") else 1


def _size(outputs: Iterable[Tensor]) -> int:
    return sum(output.numel() * output.element_size() for output in outputs)
