"""`Program`: one run of a program that asks for calls, from its start to its end."""

from __future__ import annotations

import math
import os
import select
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from blackbox.adapters.command.process import Running, said, scratch_folder
from blackbox.adapters.hosted import wire
from blackbox.adapters.hosted.program_call import ENDED, VectorForm, check_shapes, sent_arrays
from blackbox.ending import ended_by
from blackbox.words import counted

Array = np.ndarray[Any, Any]
VARIABLE = "BLACKBOX_HOST"
GRACE = 60.0  # seconds that a program may take to end after it has closed, where there is no time limit
READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


class Start:
    """The start of a run.

    Attributes:
        arguments: the program and its arguments.
        environment: the environment variables of the program, without the socket's.
        prepare: puts files into the run's folder.
        results: reads the program's results there at its end, by output.
        kind: the class that runs it.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        prepare: Callable[[Path], object] = lambda folder: None,
        results: Callable[[Path], dict[str, Array]] = lambda folder: {},
        kind: Callable[[list[str], Path, dict[str, str]], Running] = Running,
    ) -> None:
        self.arguments, self.environment = arguments, environment
        self.prepare, self.results, self.kind = prepare, results, kind


class Program:
    """A running program; it waits for an answer, or is at its end.

    Args:
        form: the layout of a row's vector.
        start: the start of the run.
        timeout: the seconds that may pass between two messages; None for any time.
        shared_bytes: the size of the largest message.
        scratch: the folder in which the run's folder is made.
        keep_failed: whether the folder of a failed run is kept.
    """

    def __init__(
        self,
        form: VectorForm,
        start: Start,
        timeout: float | None,
        shared_bytes: int,
        scratch: Path | None,
        keep_failed: bool,
    ) -> None:
        self._form, self._start, self._timeout, self._shared_bytes = form, start, timeout, shared_bytes
        self._stack, self._lines = ExitStack(), list[wire.Line]()
        self._listener: socket.socket | None = None
        self._running: Running | None = None
        self._waiting_call: tuple[str, int] | None = None
        self._counts = dict.fromkeys(form.calls, 0)
        self._history: dict[str, deque[Array]] = {
            name: deque(maxlen=max(1, len(rounds))) for name, rounds in form.before.items()
        }
        self._present: Array | None = None  # what is seen at the call that waits
        self._outputs: dict[str, dict[Any, wire.Part]] = {}  # the last of each process and place in the whole
        self._message_specs = {(wire.CALL, name): call.seen for name, call in form.calls.items()}
        self._message_specs |= {(wire.OUTPUT, slot.name): (slot.spec,) for slot in form.outputs}
        self._closed = False
        self._handle: int | None = None
        self._parts: list[wire.Part | None] = []
        try:
            self._begin(scratch, keep_failed)
        except BaseException as error:
            self._leave(error if isinstance(error, Exception) else None)
            raise

    def _begin(self, scratch: Path | None, keep_failed: bool) -> None:
        self.folder = self._stack.enter_context(scratch_folder(scratch, keep_failed))
        place = self.folder / "bb"
        if len(str(place)) > 90:  # a socket's path has at most some hundred bytes
            short = tempfile.mkdtemp(prefix="bb-", dir="/tmp" if Path("/tmp").is_dir() else None)
            self._stack.callback(shutil.rmtree, short, ignore_errors=True)
            place = Path(short) / "bb"
        self._start.prepare(self.folder)
        self._listener = wire.listen(str(place))
        environment = {**self._start.environment, VARIABLE: str(place)}
        self._running = self._start.kind(self._start.arguments, self.folder, environment)
        self._poll = select.poll()
        self._poll.register(self._listener, READABLE)
        self._handle = _handle(self._running.pid)
        if self._handle is not None:
            self._poll.register(self._handle, READABLE)

    @property
    def is_at_end(self) -> bool:
        """True if the run is over."""
        return self._closed

    def read(self) -> Array:
        """Read the program's next call, or the results that it has left at its end, as a vector of the form.

        Raises:
            RuntimeError, ValueError: it failed, or sent what is not expected; it has been ended then.
            TimeoutError: it took too long.
        """
        try:
            with ended_by(self._kill):
                return self._read()
        except BaseException as error:
            self._leave(error if isinstance(error, Exception) else None)
            raise

    def answer(self, given: Array) -> None:
        """Answer the call that waits.

        Args:
            given: the numbers of all arrays that are given, one behind the other, float64.

        Raises:
            RuntimeError: nothing waits, or the program has gone.
        """
        if self._waiting_call is None:
            raise RuntimeError("the program waits for no answer")
        name, _ = self._waiting_call
        call, arrays, at = self._form.calls[name], dict[str, Array](), 0
        for spec in call.given:
            size = int(np.prod(spec.shape, dtype=int))
            arrays[spec.name] = given[at : at + size].reshape(spec.shape).astype(spec.dtype or np.float64)
            at += size
        assert self._present is not None
        self._history[name].appendleft(np.concatenate([self._present, given[:at]]))
        self._waiting_call = None
        try:
            for line, part in zip(self._lines, self._shares(arrays), strict=True):
                line.answer(part)
        except wire.WireError:
            pass  # it has ended: the next look at it says how

    def end(self) -> None:
        """End the program, wherever it is."""
        self._leave(None)

    def _shares(self, arrays: dict[str, Array]) -> list[dict[str, Array]]:
        """Return each process's share of arrays: its own part of those as large as the whole that it sent."""
        shares = []
        for part in self._parts:
            if part is None:
                shares.append(arrays)
                continue
            place, n = wire.placed(part), len(part.whole)
            shares.append(
                {
                    name: array[(..., *place)] if array.shape[-n:] == part.whole else array
                    for name, array in arrays.items()
                }
            )
        return shares

    def _read(self) -> Array:
        end = None if self._timeout is None else time.monotonic() + self._timeout
        try:
            vector = self._asked_next(end)
        except ValueError as error:
            text = f"{error}, {self._how_far()}"
            for line in self._lines:
                line.refuse(f"{text}. Mend the program, or the specs")
            raise ValueError(text) from None
        return self._at_end(end) if vector is None else vector

    def _asked_next(self, end: float | None) -> Array | None:
        """Return the program's next call; None where it asks no more.

        Raises:
            ValueError: it is not what is expected.
        """
        messages = self._messages(end)
        if messages is None:
            return None
        first = messages[0]
        if any((m.kind, m.name) != (first.kind, first.name) for m in messages):
            raise wire.WireError(
                "the program's processes ask for different things at a time: "
                + ", ".join(sorted({m.name or "the end" for m in messages}))
            )
        if first.kind == wire.CLOSE:
            return None
        names = [name for name, _ in first.parts]
        if any([name for name, _ in m.parts] != names for m in messages):
            raise wire.WireError(f"{first.name}: the program's processes sent different arrays")
        columns = [[part for _, part in m.parts] for m in messages]
        arrays = {
            name: wire.joined(name or first.name, parts)
            for name, parts in zip(names, map(list, zip(*columns, strict=True)), strict=True)
        }
        self._parts = [next((part for _, part in m.parts if part.first is not None), None) for m in messages]
        return self._call(first.name, arrays)

    def _call(self, name: str, arrays: dict[str, Array]) -> Array:
        form = self._form
        arrays_seen = sent_arrays(name, form.calls[name].seen, arrays)
        stage = self._counts[name] % form.calls[name].stages
        self._counts[name] += 1
        self._waiting_call = name, stage
        self._present = np.concatenate([array.ravel().astype(np.float64) for array in arrays_seen])
        vector = self._with_history(form.kinds.index((name, stage)))
        vector[form.seen[name][0].place.start : form.seen[name][-1].place.stop] = self._present
        return vector

    def _how_far(self) -> str:
        return f"after {counted(sum(self._counts.values()), 'call')}"

    def _with_history(self, asked: int) -> Array:
        vector = np.zeros(self._form.size)
        vector[0] = asked
        for name, rounds in self._form.before.items():
            for slots, earlier in zip(rounds, self._history[name], strict=False):
                vector[slots[0].place.start : slots[-1].place.stop] = earlier
        return vector

    def _at_end(self, end: float | None) -> Array:
        running, folder = self._running, self.folder
        assert running is not None
        seconds_left = GRACE if end is None else max(0.0, end - time.monotonic())
        if not running.wait(seconds_left):
            raise TimeoutError(
                f"{running.name} has closed its connection and still runs after {seconds_left:.3g} s, and "
                f"was killed{running.last_words(folder)}"
            )
        status = running.end()
        self._running = None
        if status:
            raise RuntimeError(f"{running.name} {said(status)} {self._how_far()}{running.last_words(folder)}")
        if not any(self._counts.values()):
            raise RuntimeError(
                f"{running.name} ended without a call: let it call bb_exchange of bb_host, which `blackbox "
                f"host DIR` writes, or in a function host.exchange{running.last_words(folder)}"
            )
        sent = {name: wire.joined(name, [*parts.values()]) for name, parts in self._outputs.items()}
        arrays = sent | self._start.results(folder)
        vector = self._with_history(ENDED)
        for slot in self._form.outputs:
            if slot.name not in arrays:
                raise ValueError(f"output {slot.name!r}: the program ended without it; see bb_output")
            (values,) = sent_arrays("output", [slot.spec], {slot.name: arrays[slot.name]})
            vector[slot.place] = values.ravel()
        self._leave(None)
        return vector

    def _messages(self, end: float | None) -> list[wire.Message] | None:
        """A message of each process; None where the program has ended, or all have closed."""
        messages: dict[int, wire.Message] = {}
        closed_lines: set[int] = set()
        while True:
            self._check_time(end, {self._lines[number].rank for number in messages})
            for number, line in enumerate(self._lines):
                if number not in messages and number not in closed_lines:
                    try:
                        message = self._received(line, end)
                    except wire.Gone:
                        closed_lines.add(number)
                        continue
                    if message is not None:
                        messages[number] = message
            self._check_numbers()
            if self._lines and len(self._lines) == self._lines[0].size and len(messages) == len(self._lines):
                return [messages[number] for number in range(len(self._lines))]
            if closed_lines:
                if messages and self._running is not None and not self._running.wait(5.0):
                    raise wire.WireError("a process of the program has gone, and another asks")
                return None
            ready = [handle for handle, _ in self._poll.poll(self._milliseconds(end))]
            if self._listener is not None and self._listener.fileno() in ready:
                self._accept()
            if self._handle in ready or (not ready and self._has_ended()):
                # what it has sent before is still to be read
                for number, line in enumerate(self._lines):
                    with suppress(wire.Gone):
                        if number not in messages and (message := self._received(line, end)) is not None:
                            messages[number] = message
                if self._lines and len(messages) == len(self._lines) == self._lines[0].size:
                    return [messages[number] for number in range(len(self._lines))]
                return None

    def _received(self, line: wire.Line, end: float | None) -> wire.Message | None:
        """A call, or the end; outputs on the way to it are kept."""
        while (message := line.receive()) is not None and message.kind == wire.OUTPUT:
            for _, part in message.parts:
                self._keep(message.name, line.rank, part)
            self._check_time(end)
        return message

    def _is_wanted(self, kind: int, name: str, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Say whether arrays of a message are wanted; raise a ValueError where they are not as expected."""
        specs = self._message_specs.get((kind, name))
        if specs is not None:
            check_shapes(name if kind == wire.CALL else "output", specs, shapes)
        elif kind == wire.CALL:
            raise ValueError(
                f"expected the calls {', '.join(self._form.calls)}, and the program asks for {name!r}"
            )
        return specs is not None

    def _keep(self, name: str, rank: int, part: wire.Part) -> None:
        """Keep what was sent of an output: the last whole array, or the last of each part."""
        parts = self._outputs.setdefault(name, {})
        if part.first is None or None in parts:
            parts.clear()
        if part.first is None:
            parts[None] = part
            return
        parts[rank, part.first] = part
        if sum(entry.values.size for entry in parts.values()) > math.prod(part.whole):
            wire.joined(name, [*parts.values()])  # says that they overlap

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._lines.append(wire.Line(connection, self._shared_bytes, self._is_wanted, self._timeout))
        self._poll.register(connection, READABLE)

    def _milliseconds(self, end: float | None) -> float | None:
        looks = None if self._handle is not None else 0.1  # no handle tells of its end
        seconds_left = None if end is None else max(0.0, end - time.monotonic())
        times = [seconds for seconds in (looks, seconds_left) if seconds is not None]
        return 1000 * min(times) if times else None

    def _has_ended(self) -> bool:
        """Say whether it has ended, where nothing came and no handle tells."""
        assert self._running is not None
        return self._handle is None and self._running.wait(0.0)

    def _check_numbers(self) -> None:
        """Refuse processes that call themselves by one number, as those do that open no part."""
        known = [line for line in self._lines if line.is_welcomed]
        if len({line.rank for line in known}) < len(known) or len({line.size for line in known}) > 1:
            names = ", ".join(f"{line.rank} of {line.size}" for line in known[:8])
            raise wire.WireError(
                f"the program's processes call themselves {names}: let one of them ask, or let each call "
                "bb_open_part(rank, size) before it asks"
            )

    def _check_time(self, end: float | None, asking: Set[int] = frozenset()) -> None:
        """Raise where the time is over, with the processes that others, which are `asking`, wait for."""
        assert self._running is not None
        if end is not None and time.monotonic() >= end:
            size = self._lines[0].size if self._lines else 1
            silent = sorted({*range(size)} - asking)
            whose = "" if size == 1 else f" from {len(silent)} of its {size} processes, such as {silent[0]},"
            raise TimeoutError(
                f"{self._running.name} sent nothing for {self._timeout:g} s{whose} and was killed"
                f"{self._running.last_words(self.folder)}"
            )

    def _kill(self) -> None:
        if self._running is not None:
            self._running.kill()

    def _leave(self, error: Exception | None) -> None:
        """End all; the folder is kept where an error asks for that."""
        if self._closed:
            return
        self._closed = True
        if error is not None and self._running is not None:
            error = self._with_last_words(error)
        for line in self._lines:
            line.close()
        if self._listener is not None:
            self._listener.close()
        if self._running is not None:
            self._running.end()
            self._running = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if error is None:
            self._stack.close()
        else:
            with suppress(Exception):
                self._stack.__exit__(type(error), error, error.__traceback__)

    def _with_last_words(self, error: Exception) -> Exception:
        if isinstance(error, wire.WireError | ValueError) and self._running is not None:
            self._running.wait(0.2)  # it may have something to say of it
            error.args = (f"{error}{self._running.last_words(self.folder)}",)
        return error


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or one that refuses
        return None
