"""The running programs, each at some place of a run; and the known places, for rows asked again."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blackbox.adapters.hosted.program import Program
from blackbox.errors import SessionError
from blackbox.notices import Notices

Array = np.ndarray[Any, Any]
KEY = 16  # bytes by which a place is known
ROOM = 2**29  # bytes of answers and states that are remembered


@dataclass
class HostCounts:
    """The counts of the programs of a `Hosted`, beside the rows that its boxes' ledgers count.

    Attributes:
        started: runs that were started.
        exchanges: calls that were answered, those of replays included.
        replays: rows for which a run was started once more, as no program was where they begin.
        replayed_exchanges: calls that were answered in them.
        repeated: rows that were answered from memory.
        crashes: runs that failed.
    """

    started: int = 0
    exchanges: int = 0
    replays: int = 0
    replayed_exchanges: int = 0
    repeated: int = 0
    crashes: int = 0


@dataclass(eq=False)
class Place:
    """A place of a run: a case, and the answers to its calls so far.

    Attributes:
        key: the identity of the place: the case, and its number among its parent's children, all the way up.
        case: the case of the run.
        parent: the place before the last answer; None at the run's first call.
        given: that answer, as numbers.
        vector: the known numbers there, see `VectorForm`.
        count: how many calls were answered.
        children: the places after it.
        born: how many children there were ever.
        program: a program that waits there; None if there is none.
        waiting: an answer that the program has got, while nobody has read its outcome.
    """

    key: bytes
    case: int
    parent: Place | None
    given: Array
    vector: Array
    count: int
    children: list[Place] = field(default_factory=list)
    born: int = 0
    program: Program | None = None
    waiting: Array | None = None

    def child(self, given: Array) -> Place | None:
        """The place after an answer; None if it is not known."""
        return next((place for place in self.children if np.array_equal(place.given, given)), None)

    @property
    def bytes(self) -> int:
        """The size of its arrays."""
        return self.vector.nbytes + self.given.nbytes + 200


class Programs:
    """Up to `most` programs at a time, and the places that were reached, the oldest runs forgotten first.

    Safe for threads, which take turns. After a fork each process has its own.

    Args:
        owner: how messages call the host.
        start: starts a run of a case.
        most: programs that run at a time.
        room: bytes of places that are remembered.
    """

    def __init__(self, owner: str, start: Callable[[int], Program], most: int, room: int = ROOM) -> None:
        self._owner, self._start, self._most, self._room = owner, start, most, room
        self.counts = HostCounts()
        self._lock = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._places: OrderedDict[bytes, Place] = OrderedDict()
        self._roots: OrderedDict[int, Place] = OrderedDict()
        self._running: OrderedDict[bytes, Place] = OrderedDict()  # those used last at the end
        self._starting: dict[int, list[Program]] = {}
        self._active: set[int] = set()  # cases of runs that are under way
        self._size = 0
        self._notices = Notices()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A block in which no other thread asks."""
        if self._process != os.getpid():
            self._lock = threading.RLock()
            self._forget()
        with self._lock:
            yield

    def begin(self, cases: Sequence[int]) -> None:
        """Start runs whose first calls `first` will ask for, so that they run side by side."""
        self._active.update(cases)
        for case in dict.fromkeys(cases):
            if case not in self._roots and len(self._running) + self._started() < self._most:
                self._starting.setdefault(case, []).append(self._new(case))

    def first(self, case: int) -> Place:
        """The place of a case's first call.

        Raises:
            Exception: the error of the program.
        """
        root = self._roots.get(case)
        if root is not None:
            self.counts.repeated += 1
            return root
        program = self._fresh(case)
        place = Place(_key(b"", case), case, None, np.empty(0), self._read(program), 0)
        self._roots[case] = place
        self._remember(place, program)
        return place

    def go_on(self, moves: Sequence[tuple[Place, Array]]) -> None:
        """Answer programs whose outcomes `after` will ask for, so that they go on side by side."""
        for place, answer in moves:
            if place.child(answer) is not None:
                continue
            if place.program is not None and place.waiting is None:
                place.program.answer(answer)
                place.waiting = answer
            elif place.parent is None and len(self._running) + self._started() < self._most:
                self._starting.setdefault(place.case, []).append(self._new(place.case))

    def after(self, place: Place, given: Array) -> Place:
        """The place that an answer leads to.

        Raises:
            SessionError: the program does not repeat itself.
            Exception: the error of a new run of the program.
        """
        child = place.child(given)
        if child is not None:
            self.counts.repeated += 1
            return child
        answered = place.waiting is not None and np.array_equal(place.waiting, given)
        program = self._at(place, given)
        place.waiting = None
        vector = self._outcome(program) if answered else self._answered(program, given)
        key = _key(place.key, place.born)
        place.born += 1
        new_place = Place(key, place.case, place, given, vector, place.count + 1)
        place.children.append(new_place)
        self._remember(new_place, program)
        return new_place

    def find(self, key: bytes) -> Place | None:
        """The place of a key; None for one that is not remembered."""
        return self._places.get(key)

    def release(self, cases: Sequence[int]) -> None:
        """End the programs of some cases, since nobody will go on from where they are."""
        with self.turn():
            ended = set(cases)
            self._active -= ended
            for place in [place for place in self._running.values() if place.case in ended]:
                self._end(place)
            for case in ended & set(self._starting):
                for program in self._starting.pop(case):
                    program.end()

    def close(self) -> None:
        """End all programs, and forget all places."""
        with self.turn():
            for place in [*self._running.values()]:
                self._end(place)
            for programs in self._starting.values():
                for program in programs:
                    program.end()
            self._forget()

    def _at(self, place: Place, given: Array) -> Program:
        """A program that waits at a place, which it leaves."""
        if place.program is not None and (place.waiting is None or np.array_equal(place.waiting, given)):
            program, place.program = place.program, None
            self._running.pop(place.key, None)
            return program
        self._end(place)  # it has gone another way
        way: list[Place] = []
        step: Place | None = place
        while step is not None:
            way.append(step)
            step = step.parent
        way.reverse()
        begun = self.counts.exchanges
        program = self._fresh(place.case)
        vector = self._read(program)
        for stop, next_stop in zip(way, [*way[1:], None], strict=True):
            if not np.array_equal(vector, stop.vector):
                program.end()
                raise SessionError(
                    f"{self._owner}: expected a program that does the same whenever it runs a case and gets "
                    f"the same answers, got another in case {place.case} after {stop.count} calls. Seed all "
                    "that is random from the case, and let no run read what another has written."
                )
            if next_stop is not None:
                vector = self._answered(program, next_stop.given)
        if place.parent is not None:
            self.counts.replays += 1
            self.counts.replayed_exchanges += self.counts.exchanges - begun
            self._tell()
        return program

    def _fresh(self, case: int) -> Program:
        """A run that was started and whose first call nobody has read yet."""
        waiting = self._starting.get(case)
        if waiting:
            program = waiting.pop()
            if not waiting:
                del self._starting[case]
            return program
        return self._new(case)

    def _new(self, case: int) -> Program:
        while self._running and len(self._running) + self._started() >= self._most:
            self._end(next(iter(self._running.values())))
        self.counts.started += 1
        return self._start(case)

    def _started(self) -> int:
        return sum(map(len, self._starting.values()))

    def _answered(self, program: Program, given: Array) -> Array:
        program.answer(given)
        return self._outcome(program)

    def _outcome(self, program: Program) -> Array:
        self.counts.exchanges += 1
        return self._read(program)

    def _read(self, program: Program) -> Array:
        try:
            vector = program.read()
        except BaseException:
            self.counts.crashes += 1
            raise
        vector.setflags(write=False)
        return vector

    def _remember(self, place: Place, program: Program) -> None:
        self._places[place.key] = place
        self._size += place.bytes
        if not program.is_at_end:
            place.program = program
            self._running[place.key] = place
        for key, oldest in list(self._places.items()) if self._size > self._room else ():
            if self._size <= self._room:
                break
            if self._is_needed(oldest):
                continue
            del self._places[key]
            self._size -= oldest.bytes
            if oldest.parent is not None:
                oldest.parent.children.remove(oldest)
            if oldest.parent is None and self._roots.get(oldest.case) is oldest:
                del self._roots[oldest.case]

    def _is_needed(self, place: Place) -> bool:
        """Say whether a row may be asked from there: at the end of a run that is under way, or one before."""
        leaf = not place.children or any(not child.children for child in place.children)
        return place.program is not None or (leaf and place.case in self._active)

    def _end(self, place: Place) -> None:
        self._running.pop(place.key, None)
        program, place.program, place.waiting = place.program, None, None
        if program is not None:
            program.end()

    def _tell(self) -> None:
        counts = self.counts
        if counts.exchanges < 1000 or 2 * counts.replayed_exchanges < counts.exchanges:
            return
        self._notices.once(
            "replays",
            f"{self._owner}: {counts.replayed_exchanges:,} of {counts.exchanges:,} answers were replays: "
            f"more rows are under way at a time than the {self._most:,} programs that may run. Give a larger "
            "live=, or smaller batches.",
        )


def _key(before: bytes, number: int) -> bytes:
    return hashlib.blake2b(before + number.to_bytes(8, "little", signed=True), digest_size=KEY).digest()
