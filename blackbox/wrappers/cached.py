"""`Cached`: a row that was answered once is never asked for again, in this run or in a later one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blackbox.arrays import as_tensor, finite_rows
from blackbox.checks import check_count
from blackbox.errors import ConfigurationError
from blackbox.failures import Outcome
from blackbox.function import BlackBoxFunction
from blackbox.notices import Notices
from blackbox.running import rows_of, unanswered, write_rows
from blackbox.wrappers.answers import AnswerFile, digest
from blackbox.wrappers.identity import Leave, joined, parts
from blackbox.wrappers.wrapper import Wrapper

# What an answer may be stored as; other floats (bfloat16) are widened.
_STORED = {
    name: np.dtype(name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")
}


class Cached(Wrapper):
    """Store the answer of every row in a file, and return it instead of running the row again.

    A row is identified by the exact bytes of its inputs, so 0.0 and -0.0 are two rows, as are float32 and
    float64, and by its box: class, specs, code, values and `version`. One file may serve many boxes and
    processes. It holds the answers, a digest of each row's inputs, the box's class and specs, and digests of
    the rest; neither inputs nor values are in it. Failed rows are not stored. Equal rows of one call run
    once. Rows from the file, and equal rows, count as cached and cost no budget.

    Code counts by its files, whole: an edit, be it of a comment, makes another box. Counted are the file of
    the box's class, those of its parents and of functions that it holds, and those of your modules that they
    import. A function of a notebook counts by its text. Values are what the box, its class and its functions
    hold or name: numbers, texts, arrays, weights, functions, and objects of your own classes. A path or text
    that names a file counts with the file's content. Variables of the environment count where the box names
    them in `environment_variables`. A box that holds anything else is refused, unless `version` is given.

    The box's own changes while it runs (counts, prepared values) are left out. A box that somebody else
    changes is another box from then on, and a warning says so once. All arrays and weights of the box are
    read in each call (a second for 1.5 GB). A box with large ones can have an attribute `identity`, a text
    that stands for code and values.

    Not seen are installed packages and their versions, services, code that is found by a text
    (`import_module(name)`, `exec`), programs and files that the code itself names, and the contents of a
    folder: change `version` with these. Files of code are read when a process first looks at a box that uses
    them. Do not edit them between the start of a process and then.

    Unknown rows go to the box together, or `block` at a time. Each such block is on disk before the next one
    runs, so a killed run that starts again pays for at most one block twice. With `Parallel(Cached(box,
    path), ...)`, workers store their own answers as they finish. An answer comes from the batch in which a
    row first ran: if a box's rows depend on their batch-mates, another filling agrees only up to rounding.
    Two processes that request the same new row at the same time both run it.

    Args:
        box: the black box whose answers are worth keeping.
        path: the file, on a disk of this machine.
        version: a text of your own that is part of the box's identity, and stands for values that cannot be
            described; None to refuse these.
        block: how many rows run and are then stored at a time; None for all at once.

    Raises:
        ConfigurationError: the box holds a value that cannot be described, is not deterministic, or the file
            is something else, as one of version 0.2 is; in a call, the box now holds such a value.
    """

    transparent = True

    def __init__(
        self,
        box: BlackBoxFunction,
        path: str | os.PathLike[str],
        *,
        version: str | None = None,
        block: int | None = None,
    ) -> None:
        """Check, then wrap."""
        super().__init__(box)
        if not box.deterministic:
            raise ConfigurationError(
                f"Cached, box: expected one that gives equal rows the same answer, got {box!r}, which says "
                "that it is not deterministic. To keep its first answers set box.deterministic = True."
            )
        self.block = None if block is None else check_count("Cached", "block", block)
        if not isinstance(version, str | None):
            raise ConfigurationError(
                f"Cached, version: expected a text, got {version!r}. Write version={str(version)!r}."
            )
        self.version = version
        self._parts = parts(box, self._leave())
        self._parts["as version"] = repr(version)
        self._named()
        self._watch()
        if not isinstance(path, str | os.PathLike):
            raise ConfigurationError(
                f"Cached, path: expected the path of a file, got {path!r}. Give one on a disk of "
                "this machine."
            )
        self.path = Path(path).absolute()
        self._answers = AnswerFile(self.path)
        self.isolates = True

    def run_rows(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Known rows from the file, each other one once from the box."""
        box, identity = self._look()
        keys = self._keys(inputs, box)
        outcome = unanswered(self, inputs)
        rows_by_key = self._fill_known(outcome, keys)
        keys_to_run = list(rows_by_key)
        block = self.block or max(1, len(keys_to_run))
        for start in range(0, len(keys_to_run), block):
            some = keys_to_run[start : start + block]
            part = self._run(rows_of(inputs, [rows_by_key[key][0] for key in some]))
            finite = finite_rows(part.outputs).tolist()
            good_rows = [new for new in range(len(some)) if finite[new] and new not in part.failed]
            answers = _encoded(part.outputs)
            self._answers.write(box, identity, {some[new]: answers(new) for new in good_rows})
            self.ledger.count(rows_cached=sum(len(rows_by_key[some[new]]) - 1 for new in good_rows))
            source = [new for new, key in enumerate(some) for _ in rows_by_key[key]]  # equal rows: one answer
            failed = {row: part.failed[new] for row, new in enumerate(source) if new in part.failed}
            expanded = Outcome(tuple(t[source] for t in part.outputs), failed)
            write_rows(outcome, [row for key in some for row in rows_by_key[key]], expanded)
        return outcome

    def rows_to_run(self, inputs: tuple[Tensor, ...]) -> int:
        """Distinct rows that are not in the file."""
        keys = self._keys(inputs, self._look()[0])
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        answers = self._answers.read(list(first))
        rows = sorted(row for key, row in first.items() if key not in answers)
        return self.box.rows_to_run(rows_of(inputs, rows)) if rows else 0

    def rows_kept(self) -> int:
        """Count the answers of this box in the file; counting reads through the whole file."""
        return self._answers.count(self._look()[0])

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        self._answers.close()

    def _keys(self, inputs: tuple[Tensor, ...], box: bytes) -> list[bytes]:
        """A key for each row of this box."""
        heads = [str(t.dtype).encode() for t in inputs]  # shapes are in the identity
        arrays = [np.ascontiguousarray(t.cpu().numpy()) for t in inputs]
        return [
            digest(
                box,
                *(part for head, a in zip(heads, arrays, strict=True) for part in (head, a[row].tobytes())),
            )
            for row in range(len(inputs[0]))
        ]

    # Which box it is, call after call

    def _named(self) -> None:
        self.identity = joined(self._parts)
        self._box_key = digest(self.identity.encode())

    def _watch(self) -> None:
        self._lock = Lock()
        self._running = 0  # calls of the box that have not come back, of all threads
        self._last: dict[str, str] | None = None  # the box's parts as it left them itself
        self._notices = Notices()

    def _look(self) -> tuple[bytes, str]:
        """The box's key and identity as they are now."""
        with self._lock:
            if not self._running:
                now = self._now()
                last, self._last = self._last, now
                if last is not None and last != now:
                    self._changed(last, now)
            return self._box_key, self.identity

    def _now(self) -> dict[str, str]:
        """The box's parts, where what cannot be described is known by the object that it is."""
        return parts(self.box, lambda value: str(id(value)))

    def _changed(self, last: dict[str, str], now: dict[str, str]) -> None:
        """Take note that somebody other than the box has changed these parts of it."""
        changed = sorted(key for key in last.keys() | now.keys() if last.get(key) != now.get(key))
        self._last = last
        new_parts = parts(self.box, self._leave(), changed)
        self._last = now
        self._parts = {key: words for key, words in self._parts.items() if key not in changed} | new_parts
        self._named()
        inner = self.box
        while isinstance(inner, Wrapper):
            inner.box_changed()
            inner = inner.box
        self._notices.once(
            "changed",
            f"{self!r}: the box has changed since its last call ({', '.join(changed)}). From here on it is "
            "another box, whose answers are asked for and kept as such.",
        )

    def _leave(self) -> Leave | None:
        return None if self.version is None else lambda value: f"to version {self.version!r}"

    def _run(self, inputs: tuple[Tensor, ...]) -> Outcome:
        """Run rows; what the box changes of itself meanwhile does not make it another one."""
        with self._lock:
            self._running += 1
        try:
            return self.box.run_rows(inputs)
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._last = self._now()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle it without this process's own parts: a copy is the same box, whatever happens on its way."""
        of_this_process = ("_lock", "_running", "_last", "_notices")
        return {name: value for name, value in vars(self).items() if name not in of_this_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore it with an identity that is still to be computed."""
        vars(self).update(state)
        self._watch()

    def _fill_known(self, outcome: Outcome, keys: list[bytes]) -> dict[bytes, list[int]]:
        """Write known answers to their rows, and return the rows of each key that is not known."""
        places: dict[bytes, list[int]] = {}
        for row, key in enumerate(keys):
            places.setdefault(key, []).append(row)
        damaged = 0
        for key, answer in self._answers.read(list(places)).items():
            values = self._decoded(answer)
            if values is None:
                damaged += 1
                continue
            rows = places.pop(key)
            for target, value in zip(outcome.outputs, values, strict=True):
                target[rows] = value.to(target.device, target.dtype)
            self.ledger.count(rows_cached=len(rows))
        self._answers.tell_damaged(damaged)
        return places

    def _decoded(self, answer: bytes) -> list[Tensor] | None:
        """The outputs of one row; None if these are none, in a file that is not of our making."""
        names, _, body = answer.partition(b"\n")
        values, start = [], 0
        try:
            for spec, name in zip(self.outputs, names.decode().split(","), strict=True):
                array = np.frombuffer(body, _STORED[name], math.prod(spec.shape), start)
                values.append(as_tensor(array.reshape(spec.shape)))
                start += array.nbytes
        except (ValueError, KeyError):
            return None
        return values if start == len(body) and all(value.isfinite().all() for value in values) else None

    def __repr__(self) -> str:
        """Show the box and the file's name."""
        return f"Cached({self.box!r}, {self.path.name!r})"


def _encoded(outputs: tuple[Tensor, ...]) -> Callable[[int], bytes]:
    """Return a function from a row to its answer: dtypes' names, and the numbers as they lie in memory."""
    stored = [t.cpu() if _name(t) in _STORED else t.cpu().to(torch.float64) for t in outputs]
    names = ",".join(_name(t) for t in stored).encode() + b"\n"
    arrays = [np.ascontiguousarray(t.numpy()) for t in stored]
    return lambda row: names + b"".join(array[row].tobytes() for array in arrays)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
