"""Live simulators, each somewhere on its way: which goes on from a row, and what is replayed if none does."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from blackbox.adapters.session.history import History, is_seen, key
from blackbox.errors import BlackBoxError, SessionError
from blackbox.failures import exits_as_errors
from blackbox.notices import warn

Array = np.ndarray[Any, Any]
Answer = tuple[Array, ...]  # what a simulator gave: the observation, and the further outputs

ANEW = "another environment, made and reset in the same way, gives another answer"
USED = "an environment that was used before gives another answer than a new one, so reset forgets:"
LOADED = "an environment that a snapshot was loaded into gives another answer, of after"
AHEAD = 4  # a comparison at n actions holds for histories of fewer than 2 n + AHEAD


class Environment(Protocol):
    """A simulator that cannot be set; in the order of calls that a `Session` makes."""

    def reset(self, seed: int, /) -> Any:
        """Begin anew, the same way for the same seed, whatever was before; returns the first observation."""

    def step(self, action: Any, /) -> Any:
        """Go on by one step; returns the next observation, or a tuple of it and further outputs."""


@dataclass
class SessionCounts:
    """What a `Session` has done, beside the rows that its ledger counts.

    Attributes:
        made: environments that were made.
        resets: calls of `reset`.
        steps: calls of `step`, those of replays included.
        replays: rows for which actions had to be taken once more, as no live environment was where they
            begin.
        replayed_steps: calls of `step` in them.
        restored: rows that went on from a snapshot.
        compared: comparisons of a snapshot with a replay, of the first restored row and as histories grow.
        compared_steps: calls of `step` in them.
        repeated: rows that were answered by what a live environment gave last.
        crashes: environments that raised an error and were thrown away.
    """

    made: int = 0
    resets: int = 0
    steps: int = 0
    replays: int = 0
    replayed_steps: int = 0
    restored: int = 0
    compared: int = 0
    compared_steps: int = 0
    repeated: int = 0
    crashes: int = 0


@dataclass(frozen=True)
class _Snapshot:
    """What `save` gave of an environment, and its last answer then."""

    state: Any
    answer: Answer


@dataclass
class _Live:
    environment: Any
    answer: Answer  # the last one
    before: bytes = b""  # `seen` of the observation that the last step went on from


class LiveEnvironments:
    """Up to `most` environments, each known by the history that it has lived through.

    Safe for threads, which take turns. After a fork each process has its own.

    Args:
        owner: how messages call the box.
        make: makes an environment.
        read: what a simulator gave as arrays: `read(answer, with_outputs)`.
        act: an action's bytes as what `step` takes.
        width: bytes of one action.
        steps: the most after a reset.
        most: environments that are kept.
        save: `save(environment)` gives a snapshot; None if there are none.
        load: `load(environment, snapshot)` puts the environment back.
        snapshots: how many are kept.
    """

    def __init__(
        self,
        owner: str,
        make: Callable[[], Any],
        read: Callable[[Any, bool], Answer],
        act: Callable[[bytes], Any],
        width: int,
        steps: int,
        most: int,
        save: Callable[[Any], Any] | None,
        load: Callable[[Any, Any], Any] | None,
        snapshots: int,
    ) -> None:
        self._owner, self._make, self._read, self._act, self._width = owner, make, read, act, width
        self._longest = len(key(0, b"")) + steps * width
        self._most, self._save, self._load, self._snapshots = most, save, load, snapshots
        self._lock = threading.RLock()
        self.counts = SessionCounts()
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._live: OrderedDict[bytes, _Live] = OrderedDict()  # those used last at the end
        self._states: OrderedDict[bytes, _Snapshot] = OrderedDict()
        self._evicted, self._warned, self._compared = 0, False, -1

    def __len__(self) -> int:
        return len(self._live)

    def reset(self, seed: int) -> Answer:
        """The first observation, alone in a tuple."""
        with self._turn():
            history = History(seed, b"", b"")
            if (live := self._known(history.key)) is not None:
                return live.answer
            try:
                live = self._reset(self._free(), seed)
            except BlackBoxError:
                raise
            except Exception:  # it may be the environment that broke, not the seed
                live = self._reset(self._new(), seed)
            self._keep(history.key, live)
            return live.answer

    def step(self, history: History, action: bytes) -> Answer:
        """What the simulator gives for an action after a history.

        An environment that raises is thrown away, and a new one tries once more.

        Raises:
            SessionError: the simulator does not repeat itself, or the history is of another one.
            Exception: what a new environment raises after the same actions.
        """
        with self._turn():
            after = history.key + action
            if (live := self._known(after)) is not None:
                if live.before != history.seen:
                    raise self._unlike(history)
                self.counts.repeated += 1
                return live.answer
            restored = self.counts.restored
            try:
                live = self._stepped(self._at(history), action)
            except BlackBoxError:  # of what it gave, or that it does not repeat itself
                raise
            except Exception:
                live = self._stepped(self._replayed(self._new(), history), action)
            count = len(history.actions) // self._width
            if self.counts.restored > restored and count >= self._compared:
                self._compare(live, history, action)
            live.before = history.seen
            self._keep(after, live)
            return live.answer

    def forgets(self, seed: int, actions: Sequence[bytes], before: tuple[int, Sequence[bytes]]) -> str | None:
        """What is forgotten on one way of actions: answers of an environment anew are those that count.

        They are held against those of a second one, of one that has lived through another way before it was
        reset, and of that one where a snapshot of the first is loaded half-way and before the last step.

        Args:
            seed: of the reset.
            actions: their bytes, one by one.
            before: seed and actions of the other way.

        Returns:
            In words what answers otherwise, and after how many actions; None where nothing does.

        Raises:
            Exception: what an environment raises.
        """
        with self._turn():
            first, second, used = self._made(), self._made(), self._made()
            try:
                places = sorted({len(actions) // 2, len(actions) - 1}) if self._save is not None else []
                expected, states = self._lived(first, seed, actions, places)
                self._lived(used, *before)
                again = self._lived(second, seed, actions)[0], self._lived(used, seed, actions)[0]
                for answers, what in zip(again, (ANEW, USED), strict=True):
                    if (at := _first_unlike(expected, answers)) is not None:
                        return f"{what} {at} actions after seed {seed}"
                for place in places:
                    live, gone = self._restored(used, seed, states[place]), [*expected[: place + 1]]
                    for action in actions[place:]:
                        live = self._stepped(live, action)
                        gone.append(live.answer)
                    if (at := _first_unlike(expected, gone)) is not None:
                        return f"{LOADED} {place} actions {at} actions after seed {seed}"
            finally:
                for environment in (first, second, used):
                    _close(environment)
        return None

    def _lived(
        self, environment: Any, seed: int, actions: Sequence[bytes], places: Sequence[int] = ()
    ) -> tuple[list[Answer], dict[int, _Snapshot]]:
        """All answers from a reset on, and snapshots after so many actions."""
        live, states = self._reset(environment, seed), {}
        answers = [live.answer]
        for number, action in enumerate(actions):
            if number in places:
                state = self._save(environment)  # pyright: ignore[reportOptionalCall]
                states[number] = _Snapshot(state, live.answer)
            live = self._stepped(live, action)
            answers.append(live.answer)
        return answers, states

    def close(self) -> None:
        """Close all environments that can be closed, and forget them and the snapshots."""
        with self._turn():
            for live in self._live.values():
                _close(live.environment)
            self._forget()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._process != os.getpid():  # the lock, too, may be another's
            self._lock = threading.RLock()
            self._forget()
        with self._lock:
            yield

    def _known(self, name: bytes) -> _Live | None:
        live = self._live.get(name)
        if live is not None and len(name) < self._longest:
            self._live.move_to_end(name)
        return live

    def _keep(self, name: bytes, live: _Live) -> None:
        self._live[name] = live
        if len(name) >= self._longest:  # it goes nowhere from here, and is the first to be used anew
            self._live.move_to_end(name, last=False)
        if self._save is not None:
            with self._guarded(live.environment):
                self._states[name] = _Snapshot(self._save(live.environment), live.answer)
            while len(self._states) > self._snapshots:
                self._states.popitem(last=False)

    def _at(self, history: History) -> _Live:
        """An environment that has lived through a history: a live one, or by a snapshot, or by replay."""
        live = self._live.get(history.key)
        if live is not None:
            if not is_seen(live.answer[0], history.seen):
                raise self._unlike(history)
            return self._live.pop(history.key)
        with suppress(SessionError):
            return self._replayed(self._free(), history)
        return self._replayed(self._new(), history)  # `reset` may have left something of before

    def _replayed(self, environment: Any, history: History, snapshots: bool = True) -> _Live:
        count = len(history.actions) // self._width
        places = range(count, -1, -1) if snapshots and self._states else ()
        first = next((n for n in places if self._key(history, n) in self._states), None)
        if first is None:
            live, first = self._reset(environment, history.seed), 0
        else:
            live = self._restored(environment, history.seed, self._states[self._key(history, first)])
            self.counts.restored += 1
        for number in range(first, count):
            live = self._stepped(live, history.actions[number * self._width : (number + 1) * self._width])
        if count > first:
            self.counts.replays += 1
            self.counts.replayed_steps += count - first
            self._tell()
        if not is_seen(live.answer[0], history.seen):
            self._discard(live.environment)
            raise self._unlike(history)
        return live

    def _restored(self, environment: Any, seed: int, snapshot: _Snapshot) -> _Live:
        """An environment at a snapshot, reset before: what `load` leaves does not come from other rows."""
        self._reset(environment, seed)
        with self._guarded(environment):
            self._load(environment, snapshot.state)  # pyright: ignore[reportOptionalCall]
        return _Live(environment, snapshot.answer)

    def _unlike(self, history: History) -> SessionError:
        return SessionError(
            f"{self._owner}: expected a simulator that gives the same observations whenever it is reset to a "
            f"seed and takes the same actions, got another one after seed {history.seed} and "
            f"{len(history.actions) // self._width} actions. Seed all that is random from reset(seed), let "
            "reset put back all else, and hand on histories of this session alone."
        )

    def _compare(self, live: _Live, history: History, action: bytes) -> None:
        """Hold snapshots against a replay, up to histories of about twice this length.

        What `save` or `load` forgets may show only in later steps. So another environment is set by a
        snapshot before each of its steps, and goes on with the row's action to the length from which the next
        comparison is made.
        """
        count, steps, restored = len(history.actions) // self._width, self.counts.steps, self.counts.restored
        self._compared = 2 * count + AHEAD
        most = (self._longest - len(key(0, b""))) // self._width
        plain, other, ahead = self._made(), self._made(), 1
        try:
            replayed = self._stepped(self._replayed(plain, history, snapshots=False), action)
            going = self._stepped(self._replayed(other, history), action)
            same = _same(live.answer, replayed.answer) and _same(going.answer, replayed.answer)
        except SessionError:  # what the history saw last is another observation by replay
            same = False
        while same and count + ahead < min(self._compared, most):
            with self._guarded(other):
                snapshot = _Snapshot(self._save(other), going.answer)  # pyright: ignore[reportOptionalCall]
            going = self._restored(other, history.seed, snapshot)
            ahead += 1
            answers = self._gone_on(going, action), self._gone_on(replayed, action)
            same = _same(*answers)
            if answers[1] is None:
                break
        _close(plain)
        _close(other)
        self.counts.restored = restored
        self.counts.compared += 1
        self.counts.compared_steps += self.counts.steps - steps
        if not same:
            self._compared = -1
            self._discard(live.environment)
            raise SessionError(
                f"{self._owner}, load: expected an environment that goes on as the one of the snapshot did, "
                f"got another answer than by a replay after seed {history.seed} and "
                f"{count + ahead - 1} actions. Save a copy of all that a step changes, what wrappers count "
                "included, or leave save and load out: then actions are replayed."
            )

    def _gone_on(self, live: _Live, action: bytes) -> Answer | None:
        """One more step of an environment that no row waits for; None where it raises."""
        try:
            with exits_as_errors("the simulator"):
                live.answer = self._read(live.environment.step(self._act(action)), True)
        except BlackBoxError:
            raise
        except Exception:  # such as one that may not be stepped after its end
            return None
        self.counts.steps += 1
        return live.answer

    def _key(self, history: History, count: int) -> bytes:
        return key(history.seed, history.actions[: count * self._width])

    def _reset(self, environment: Any, seed: int) -> _Live:
        with self._guarded(environment):
            answer = environment.reset(seed)
            self.counts.resets += 1
            return _Live(environment, self._read(answer, False))

    def _stepped(self, live: _Live, action: bytes) -> _Live:
        with self._guarded(live.environment):
            answer = live.environment.step(self._act(action))
            self.counts.steps += 1
            return _Live(live.environment, self._read(answer, True))

    @contextmanager
    def _guarded(self, environment: Any) -> Iterator[None]:
        """Nobody goes on with an environment that raised, or that Ctrl-C has stopped half-way."""
        try:
            with exits_as_errors("the simulator"):
                yield
        except BaseException:
            self._discard(environment)
            raise

    def _discard(self, environment: Any) -> None:
        self.counts.crashes += 1
        _close(environment)

    def _free(self) -> Any:
        """An environment that may be reset: one at its end, a new one, or the one used longest ago."""
        oldest = next(iter(self._live), b"")
        if len(oldest) < self._longest:
            if len(self._live) < self._most:
                return self._new()
            self._evicted += 1
        return self._live.popitem(last=False)[1].environment

    def _new(self) -> Any:
        while len(self._live) >= self._most:
            _close(self._live.popitem(last=False)[1].environment)
        return self._made()

    def _made(self) -> Any:
        self.counts.made += 1
        return self._make()

    def _tell(self) -> None:
        """Say once that most steps are replays because too few environments are kept."""
        counts = self.counts
        if (
            self._warned
            or not self._evicted
            or counts.steps < 1000
            or 2 * counts.replayed_steps < counts.steps
        ):
            return
        self._warned = True
        warn(
            f"{self._owner}: {counts.replayed_steps:,} of {counts.steps:,} steps were replays: more rows are "
            f"under way at a time than the {self._most:,} environments that are kept. Give a larger live=, "
            "smaller chunks, or save= and load= if the simulator has snapshots.",
            RuntimeWarning,
        )


def _same(one: Answer | None, other: Answer | None) -> bool:
    """Whether two answers are equal; None, of a step that raised, is equal to None alone."""
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, other, strict=True))


def _first_unlike(expected: Sequence[Answer], answers: Sequence[Answer]) -> int | None:
    pairs = zip(expected, answers, strict=True)
    return next((number for number, both in enumerate(pairs) if not _same(*both)), None)


def _close(environment: Any) -> None:
    close = getattr(environment, "close", None)
    if callable(close):
        with suppress(Exception), exits_as_errors("the simulator"):
            close()
