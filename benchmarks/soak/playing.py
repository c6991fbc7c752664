"""A round: a run under faults, from its start to its result, resumed after each that stops it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak import disk, inflicting, orders
from benchmarks.soak.attempt import Attempt, sentences
from benchmarks.soak.faults import Fault
from benchmarks.soak.jobs import Job, several
from blackbox import BlackBoxError

TIMEOUT = 20.0  # seconds: --timeout, after which a process that does not answer is given up
STUCK = 300.0  # seconds without a word or a line of metrics after which a run counts as hanging


@dataclass
class Inflicted:
    """A fault as it happened.

    Attributes:
        fault: as planned.
        second: of the round.
        progress: the part of all lines of metrics that had been written.
        what: was done, in words.
        damaged: name of the checkpoint that was damaged.
        status: with which the run ended by it; None if it went on.
        said: sentences of it that a user would read.
        recovered: how.
        as_promised: whether it ended, and said how to go on, as documented.
    """

    fault: Fault
    second: float
    progress: float
    what: str
    damaged: str = ""
    status: int | None = None
    said: list[str] = field(default_factory=list)
    recovered: str = ""
    as_promised: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        own = {name: value for name, value in vars(self).items() if name != "fault"}
        return {**asdict(self.fault), **own}


class BrokenRunError(BlackBoxError, RuntimeError):
    """A run under faults ended, or went on, otherwise than it should; its words are in the message."""


class Playing:
    """One round.

    Args:
        job: to run.
        folder: of the round; made.
        data: folder of the tasks' data.
        lines: of metrics that an undisturbed run has; None if this is it.
        workers: processes to begin with.

    Attributes:
        inflicted: faults so far.
        track: (second, lines) now and then.
        attempts: starts of the console script.
    """

    def __init__(self, job: Job, folder: Path, data: Path, lines: int | None, workers: int) -> None:
        self.job, self.folder, self._lines = job, folder, lines
        self.inflicted: list[Inflicted] = []
        self.track: list[tuple[float, int]] = []
        self.attempts = 0
        self._workers, self._data = workers, data
        self._began = time.monotonic()
        self._orders = folder / "orders"
        self._orders.mkdir(parents=True)
        self.runs = folder / "runs"
        self.runs.mkdir()
        if disk.can_mount():
            disk.mount(self.runs)

    def play(self, faults: Sequence[Fault], until: float) -> Path:
        """Run to the end; gives the run's folder.

        Args:
            faults: in their order.
            until: of `time.monotonic`: no fault begins after it.

        Raises:
            BrokenRunError: the run ended by itself, or hangs.
        """
        words = self.job.words(self._workers, TIMEOUT)
        attempt = self._start([*words, "--runs", "runs", "--data", str(self._data)])
        try:
            for fault in faults:
                if not self._wait_until_due(attempt, fault, until):
                    break
                one = self._note(fault)
                if not fault.stops:
                    orders.give(self._orders, len(self.inflicted), fault.kind)
                    one.what, one.recovered = "ordered to the next row", "row run again"
                    continue
                if not inflicting.inflict(attempt, one, self.run, self.runs):
                    continue
                attempt = self._go_on(attempt, one, fault.workers)
            self._wait(attempt, None, None)
            if attempt.process.returncode != 0:
                raise BrokenRunError(self._words("ended by itself", attempt))
        finally:
            attempt.close()
        for order in sorted(self._orders.iterdir()):  # no row was left to take it
            number = int(order.stem)
            self.inflicted[number - 1].recovered = "not inflicted: no row was left"
        return self._run_folder()

    @property
    def run(self) -> Path | None:
        """The run's folder, once there is one."""
        return next(iter(self.runs.glob("*-*")), None)

    def close(self) -> None:
        """Take the file system away, and the run with it."""
        if disk.can_mount():
            disk.unmount(self.runs)

    def lines(self) -> int:
        """Lines of metrics that hang on no clock, so far."""
        path = None if self.run is None else self.run / "metrics.jsonl"
        if path is None or not path.is_file():
            return 0
        return sum(b'"seconds_left"' not in line for line in path.read_bytes().split(b"\n")[:-1])

    def _go_on(self, attempt: Attempt, one: Inflicted, workers: int) -> Attempt:
        """Resume what has ended, as its last words say."""
        text = attempt.close()
        one.status, one.said = attempt.process.returncode, sentences(text)
        inflicting.judge(one, text, several_at_work="--workers 1" not in " ".join(attempt.words))
        if self.run is None:  # it was killed before it had a folder
            one.recovered = "started anew"
            words = self.job.words(workers, TIMEOUT)
            return self._start([*words, "--runs", "runs", "--data", str(self._data)])
        again = ["resume", str(self.run.relative_to(self.folder)), *several(workers, TIMEOUT)]
        following = self._start(again)
        one.recovered = f"resumed with {workers} worker{'s' if workers > 1 else ''}"
        return self._past_damage(following, one, again) if one.damaged else following

    def _past_damage(self, attempt: Attempt, one: Inflicted, again: list[str]) -> Attempt:
        """See that the checkpoint before is used, with a warning; where there is none do what is said."""
        until = time.monotonic() + STUCK
        while not (attempt.ended or "CheckpointWarning" in attempt.text or time.monotonic() > until):
            time.sleep(0.1)
        if attempt.ended and "expected one checkpoint that is whole" in attempt.close():
            one.said += sentences(attempt.text)
            assert self.run is not None
            (self.run / "checkpoints" / one.damaged).unlink()
            one.recovered += ", after deleting the only checkpoint, as it said"
            return self._start(again)
        one.said += sentences(attempt.text)
        one.as_promised = one.as_promised and "CheckpointWarning" in attempt.text
        one.recovered += ", from the checkpoint before"
        return attempt

    def _start(self, words: list[str]) -> Attempt:
        self.attempts += 1
        return Attempt(words, self.folder, self._orders)

    def _note(self, fault: Fault) -> Inflicted:
        progress = self.lines() / max(1, self._lines or 1)
        self.inflicted.append(Inflicted(fault, time.monotonic() - self._began, progress, ""))
        return self.inflicted[-1]

    def _wait_until_due(self, attempt: Attempt, fault: Fault, until: float) -> bool:
        """Wait for the moment of a fault; False where the run ends before, or time is up."""
        if fault.at is None:
            return self._wait(attempt, None, attempt.started + fault.delay) and time.monotonic() < until
        wanted = int(fault.at * (self._lines or 0))
        if not self._wait(attempt, wanted, until):
            return False
        return self._wait(attempt, None, time.monotonic() + fault.delay) and time.monotonic() < until

    def _wait(self, attempt: Attempt, wanted: int | None, until: float | None) -> bool:
        """Wait for so many lines, or a moment; False where the run ends before, or no line came in time."""
        last, said, moved = -1, -1, time.monotonic()
        while not attempt.ended:
            now, found = time.monotonic(), self.lines()
            if found != last:
                self.track.append((now - self._began, found))
            if (found, len(attempt.text)) != (last, said):
                last, said, moved = found, len(attempt.text), now
            if wanted is not None and found >= wanted:
                return True
            if until is not None and now >= until:
                return wanted is None
            if now - moved > STUCK:
                raise BrokenRunError(self._words(f"said nothing for {STUCK:.0f} s", attempt))
            time.sleep(0.05)
        self.track.append((time.monotonic() - self._began, self.lines()))
        return False

    def _run_folder(self) -> Path:
        assert self.run is not None
        return self.run

    def _words(self, what: str, attempt: Attempt) -> str:
        before = [f"{one.fault.kind}: {one.what}" for one in self.inflicted[-3:]]
        return (
            f"{self.job.name} in {self.folder}: {' '.join(attempt.words)} {what}, status "
            f"{attempt.process.returncode}, after {before}. It said:\n{attempt.text[-3000:]}"
        )
