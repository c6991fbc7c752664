"""Live simulators, each at its own history: the one that a row goes on from, or a replay if none fits."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from blackbox.adapters.session.environment import (
    Answer,
    Live,
    SessionCounts,
    Snapshot,
    close_quietly,
    first_unlike,
    same_answer,
)
from blackbox.adapters.session.history import History, is_seen, key
from blackbox.errors import BlackBoxError, SessionError
from blackbox.failures import exits_as_errors
from blackbox.notices import Notice, Notices

ANEW = (
    "another environment, made and reset in the same way, and stepped in turn with one of another seed, "
    "gives another answer"
)
USED = "an environment that was used before gives another answer than a new one, so reset forgets:"
LOADED = "an environment that a snapshot was loaded into gives another answer, of after"
SEEDS, SAME_ACTION = 4, 8  # so many seeds are compared at the first step, over so many steps
AHEAD = 4  # a comparison at n actions holds for histories of fewer than 2 n + AHEAD


class LiveEnvironments:
    """Up to `most` environments, each known by the history that it has lived through.

    Safe for threads, which take turns. After a fork each process has its own.

    Args:
        owner: the name of the box in messages.
        make: makes an environment.
        read: converts a simulator's answer to arrays: `read(answer, with_outputs)`.
        act: converts an action's bytes to the argument of `step`.
        width: the bytes of one action.
        steps: the most steps after a reset.
        most: the most environments that are kept.
        save: `save(environment)` gives a snapshot; None if there are none.
        load: `load(environment, snapshot)` puts the environment back.
        snapshots: how many snapshots are kept.
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
        self._longest, self._steps = len(key(0, b"")) + steps * width, steps
        self._most, self._save, self._load, self._snapshots = most, save, load, snapshots
        self._lock = threading.RLock()
        self.counts = SessionCounts()
        self._notices = Notices()
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._live: OrderedDict[bytes, Live] = OrderedDict()  # those used last at the end
        self._states: OrderedDict[bytes, Snapshot] = OrderedDict()
        self._starts: dict[int, Answer] | None = {}  # of the first seeds; None once they are compared
        self._evicted, self._compared = 0, -1

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
            if self._starts is not None and len(self._starts) < SEEDS:
                self._starts[seed] = live.answer
            return live.answer

    def step(self, history: History, action: bytes) -> Answer:
        """Take an action after a history, and return the simulator's answer.

        An environment that raises is thrown away, and a new one tries once more.

        Raises:
            SessionError: the simulator does not repeat itself, or the history is of another one.
            Exception: a new environment raises it after the same actions.
        """
        with self._turn():
            if self._starts is not None and len(self._starts) > 1:
                self._look_at_seeds(self._starts, action)
            next_key = history.key + action
            if (live := self._known(next_key)) is not None:
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
            self._keep(next_key, live)
            return live.answer

    def forgets(self, seed: int, actions: Sequence[bytes], before: tuple[int, Sequence[bytes]]) -> str | None:
        """Describe what is forgotten on one way of actions; a new environment's answers are the right ones.

        They are compared with three others: the answers of a second environment, which takes turns with a
        third one on another way; of that third one after its reset; and of the third one where a snapshot of
        the first is loaded half-way and before the last step.

        Args:
            seed: the seed of the reset.
            actions: the bytes of the actions, one by one.
            before: seed and actions of the other way.

        Returns:
            A sentence that says which one answers differently, and after how many actions; None if all agree.

        Raises:
            Exception: an environment raises it.
        """
        with self._turn():
            first, second, third = self._made(), self._made(), self._made()
            try:
                places = sorted({len(actions) // 2, len(actions) - 1}) if self._save is not None else []
                expected, states = self._lived(first, seed, actions, places)
                steps_of_third = self._stepping(third, *before)
                turns, _ = self._lived(second, seed, actions, beside=steps_of_third)
                deque(steps_of_third, maxlen=0)  # to their end
                again = turns, self._lived(third, seed, actions)[0]
                for answers, what in zip(again, (ANEW, USED), strict=True):
                    if (at := first_unlike(expected, answers)) is not None:
                        return f"{what} {at} actions after seed {seed}"
                for place in places:
                    live = self._restored(third, seed, states[place])
                    loaded_answers = [*expected[: place + 1]]
                    for action in actions[place:]:
                        live = self._stepped(live, action)
                        loaded_answers.append(live.answer)
                    if (at := first_unlike(expected, loaded_answers)) is not None:
                        return f"{LOADED} {place} actions {at} actions after seed {seed}"
            finally:
                for environment in (first, second, third):
                    close_quietly(environment)
        return None

    def alike(self, seeds: Sequence[int], actions: Sequence[bytes]) -> bool:
        """Say whether the simulator answers these actions in the same way after each of these seeds."""
        with self._turn():
            steps, environment, ways = self.counts.steps, self._free(), []
            try:
                for seed in seeds:
                    live = self._reset(environment, seed)
                    ways.append([live.answer, *(self._gone_on(live, action) for action in actions)])
            finally:
                close_quietly(environment)
            self.counts.compared += 1
            self.counts.compared_steps += self.counts.steps - steps
            return all(first_unlike(ways[0], way) is None for way in ways[1:])

    def _look_at_seeds(self, starts: dict[int, Answer], action: bytes) -> None:
        """Say it where rows of other seeds are copies: they begin alike, and go on alike."""
        self._starts, (first, *further_starts) = None, starts.values()
        if not all(same_answer(first, answer) for answer in further_starts):
            return
        alike = False
        with suppress(Exception):  # the row that waits will say what is wrong
            alike = self.alike(list(starts), min(SAME_ACTION, self._steps) * [action])
        words = f"{self._owner}, reset: {copies(starts)}"
        self._notices.say(Notice("seeds", words, RuntimeWarning) if alike else None)

    def _stepping(self, environment: Any, seed: int, actions: Sequence[bytes]) -> Iterator[Live]:
        """An environment that is reset, and goes on by a step whenever it is asked to."""
        live = self._reset(environment, seed)
        yield live
        for action in actions:
            live = self._stepped(live, action)
            yield live

    def _lived(
        self,
        environment: Any,
        seed: int,
        actions: Sequence[bytes],
        places: Sequence[int] = (),
        beside: Iterator[Live] | None = None,
    ) -> tuple[list[Answer], dict[int, Snapshot]]:
        """All answers from a reset on, and snapshots after so many actions; others take turns with it."""
        live, states = self._reset(environment, seed), dict[int, Snapshot]()
        answers = [live.answer]
        for number, action in enumerate(actions):
            if number in places:
                state = self._save(environment)  # pyright: ignore[reportOptionalCall]
                states[number] = Snapshot(state, live.answer)
            if beside is not None:
                next(beside, None)
            live = self._stepped(live, action)
            answers.append(live.answer)
        return answers, states

    def close(self) -> None:
        """Close all environments that can be closed, and forget them and the snapshots."""
        with self._turn():
            for live in self._live.values():
                close_quietly(live.environment)
            self._forget()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._process != os.getpid():  # the lock, too, may be another's
            self._lock = threading.RLock()
            self._forget()
        with self._lock:
            yield

    def _known(self, name: bytes) -> Live | None:
        live = self._live.get(name)
        if live is not None and len(name) < self._longest:
            self._live.move_to_end(name)
        return live

    def _keep(self, name: bytes, live: Live) -> None:
        if self._save is not None:  # first: where it raises, the environment is closed
            with self._guarded(live.environment):
                self._states[name] = Snapshot(self._save(live.environment), live.answer)
            while len(self._states) > self._snapshots:
                self._states.popitem(last=False)
        self._live[name] = live
        if len(name) >= self._longest:  # it goes nowhere from here, and is the first to be used anew
            self._live.move_to_end(name, last=False)

    def _at(self, history: History) -> Live:
        """An environment that has lived through a history: a live one, or by a snapshot, or by replay."""
        live = self._live.get(history.key)
        if live is not None:
            if not is_seen(live.answer[0], history.seen):
                raise self._unlike(history)
            return self._live.pop(history.key)
        with suppress(SessionError):
            return self._replayed(self._free(), history)
        return self._replayed(self._new(), history)  # `reset` may have left something of before

    def _replayed(self, environment: Any, history: History, snapshots: bool = True) -> Live:
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

    def _restored(self, environment: Any, seed: int, snapshot: Snapshot) -> Live:
        """An environment at a snapshot, reset before: what `load` leaves does not come from other rows."""
        self._reset(environment, seed)
        with self._guarded(environment):
            self._load(environment, snapshot.state)  # pyright: ignore[reportOptionalCall]
        return Live(environment, snapshot.answer)

    def _unlike(self, history: History) -> SessionError:
        return SessionError(
            f"{self._owner}: expected a simulator that gives the same observations whenever it is reset to a "
            f"seed and takes the same actions, got another one after seed {history.seed} and "
            f"{len(history.actions) // self._width} actions. Seed all that is random from reset(seed), let "
            "reset put back all else, and hand on histories of this session alone."
        )

    def _compare(self, live: Live, history: History, action: bytes) -> None:
        """Hold snapshots against a replay, up to histories of about twice this length.

        What `save` or `load` forgets may show only in later steps. So another environment is set by a
        snapshot before each of its steps, and goes on with the row's action to the length from which the next
        comparison is made.
        """
        self._compared = 2 * (len(history.actions) // self._width) + AHEAD
        try:
            parted = self._parted(live, history, action)
        except BlackBoxError:
            raise
        except Exception:
            parted = 0
        if parted is not None:  # once more: a simulator may break off, and what is forgotten shows again
            parted = self._parted(live, history, action)
        if parted is not None:
            self._compared = -1
            self._discard(live.environment)
            raise SessionError(
                f"{self._owner}, load: expected an environment that goes on as the one of the snapshot did, "
                f"got another answer than by a replay after seed {history.seed} and {parted} actions. Save a "
                "copy of all that a step changes, what wrappers count included, or leave save and load out: "
                "then actions are replayed."
            )

    def _parted(self, live: Live, history: History, action: bytes) -> int | None:
        """Return after how many actions snapshots and a replay part; None where they do not."""
        count, steps, restored = len(history.actions) // self._width, self.counts.steps, self.counts.restored
        plain, other, ahead = self._made(), self._made(), 1
        try:
            replayed = self._stepped(self._replayed(plain, history, snapshots=False), action)
            going = self._stepped(self._replayed(other, history), action)
            same = same_answer(live.answer, replayed.answer) and same_answer(going.answer, replayed.answer)
            while same and count + ahead < min(self._compared, self._steps):
                with self._guarded(other):
                    state = self._save(other)  # pyright: ignore[reportOptionalCall]
                going = self._restored(other, history.seed, Snapshot(state, going.answer))
                ahead += 1
                answers = self._gone_on(going, action), self._gone_on(replayed, action)
                same = same_answer(*answers)
                if answers[1] is None:
                    break
        except SessionError:  # what the history saw last is another observation by replay
            same = False
        finally:
            close_quietly(plain)
            close_quietly(other)
            self.counts.restored = restored
            self.counts.compared += 1
            self.counts.compared_steps += self.counts.steps - steps
        return None if same else count + ahead - 1

    def _gone_on(self, live: Live, action: bytes) -> Answer | None:
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

    def _reset(self, environment: Any, seed: int) -> Live:
        with self._guarded(environment):
            answer = environment.reset(seed)
            self.counts.resets += 1
            return Live(environment, self._read(answer, False))

    def _stepped(self, live: Live, action: bytes) -> Live:
        with self._guarded(live.environment):
            answer = live.environment.step(self._act(action))
            self.counts.steps += 1
            return Live(live.environment, self._read(answer, True))

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
        close_quietly(environment)

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
            close_quietly(self._live.popitem(last=False)[1].environment)
        return self._made()

    def _made(self) -> Any:
        self.counts.made += 1
        return self._make()

    def _tell(self) -> None:
        """Say once that most steps are replays because too few environments are kept."""
        counts = self.counts
        if not self._evicted or counts.steps < 1000 or 2 * counts.replayed_steps < counts.steps:
            return
        words = (
            f"{self._owner}: {counts.replayed_steps:,} of {counts.steps:,} steps were replays: more rows are "
            f"under way at a time than the {self._most:,} environments that are kept. Give a larger live=, "
            "smaller chunks, or save= and load= if the simulator has snapshots."
        )
        self._notices.say(Notice("replays", words, RuntimeWarning))


def copies(seeds: Collection[int]) -> str:
    """Explain the fault of seeds after which a simulator gives the same answers."""
    return (
        "expected a simulator that begins or goes on otherwise after another seed, got the same answers to "
        f"the same actions after {len(seeds)} seeds ({', '.join(map(str, seeds))}). The rows of a batch are "
        "then copies of one another. Draw all that is random from a generator that reset(seed) makes; where "
        "nothing is random, one seed is enough."
    )
