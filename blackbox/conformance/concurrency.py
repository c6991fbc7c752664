"""Checks of calls of a black box from several threads, and from several processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import numpy as np

from blackbox.conformance.answer_checks import NOW_AND_THEN, SAME_STATE, compare
from blackbox.conformance.check_report import Finding, Verdict
from blackbox.conformance.probe import (
    Arrays,
    BoxRaisedError,
    OutOfRowsError,
    OutOfSecondsError,
    Probe,
    keeping,
)
from blackbox.ending import end_with
from blackbox.function import BlackBoxFunction

THREADS, WORKERS, ROUNDS = 4, 2, 3
MEETINGS = 40  # of the threads: those of a quick box meet inside it in one call of twenty
SECONDS = 300.0  # for a worker to start and answer; importing and compiling may take long, a hang is longer
LATE = "no answer in time"
WORK = f"import sys; from {__name__} import work; work(*sys.argv[1:])"  # what a worker process runs


def thread_safety(probe: Probe) -> Finding:
    """Four threads, each with other rows, 40 calls each; three where rows are limited."""
    count = _count(probe)
    rounds = MEETINGS if _roomy(probe) else ROUNDS
    probe.spend(THREADS * (1 + rounds) * count)
    batches = [probe.rows(count * thread + thread, count) for thread in range(THREADS)]
    alone = [probe.uncounted(batch) for batch in batches]
    together = Barrier(THREADS)

    def in_a_thread(batch: Arrays) -> list[Arrays | str]:
        received: list[Arrays | str] = []
        for _ in range(rounds):
            try:
                together.wait()
                received.append(probe.uncounted(batch))
            except BoxRaisedError as raised:
                received.append(f"{type(raised.__cause__).__name__}: {raised.__cause__}")
            except BrokenBarrierError:
                break  # another thread was stopped
            except BaseException:
                together.abort()  # the others would wait for this thread
                raise
        return received

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            answers = list(pool.map(in_a_thread, batches))
        except BaseException:  # Ctrl-C: no thread begins another call
            together.abort()
            raise
    bad = [wrong for pair in zip(alone, answers, strict=True) for wrong in _wrong(probe, *pair)]
    unit = f"of {THREADS * rounds} calls differ"
    if not bad:
        sentence = "Calls from several threads give what they give one after the other."
        return Finding("thread safety", Verdict.OK, sentence, 0, unit)
    if without := _differing_alone(probe, batches, alone, rounds):
        sentence = f"Calls differ without threads too: {without[0]}. {NOW_AND_THEN}"
        return Finding("thread safety", Verdict.FAULT, sentence, len(without), unit)
    sentence = (
        f"Calls from several threads disturb each other: {bad[0]}. Give each call its own work arrays, or "
        "use processes, not threads, in Parallel."
    )
    return Finding("thread safety", Verdict.WARNING, sentence, len(bad), unit)


def _differing_alone(
    probe: Probe, batches: Sequence[Arrays], alone: Sequence[Arrays], rounds: int
) -> list[str]:
    """Describe the differences in as many calls made in sequence, where rows are left for them."""
    try:
        probe.spend(rounds * sum(len(batch[0]) for batch in batches))
        answers = [[probe.uncounted(batch) for _ in range(rounds)] for batch in batches]
    except (OutOfRowsError, BoxRaisedError):
        return []
    return [wrong for pair in zip(alone, answers, strict=True) for wrong in _wrong(probe, *pair)]


@dataclass(frozen=True)
class CheckReply:
    """The reply of one worker process.

    Attributes:
        answers: the answer to each round; a string is the error that the call raised. None of a process that
            died.
        rebuilt: whether the box was rebuilt from its pickle.
        died: how the process ended before its last answer; empty if it did not.
    """

    answers: list[Arrays | str]
    rebuilt: bool
    died: str


def pickled(box: BlackBoxFunction) -> bytes | Exception:
    """The box as bytes that another process can read, or why it cannot."""
    if type(box).__module__ == "__main__":
        return pickle.PicklingError(
            f"{type(box).__name__} is defined in __main__, which no other process has"
        )
    try:
        return pickle.dumps(box)
    except Exception as error:
        return error


def process_safety(probe: Probe) -> list[Finding]:
    """A pickled box, rebuilt in two processes that evaluate the same rows at the same time."""
    names = ("picklability", "process safety")
    not_sent = Finding(names[1], Verdict.SKIPPED, "Not measured: it cannot be sent to another process.")
    box = pickled(probe.box)
    if isinstance(box, Exception):
        sentence = (
            f"The box cannot be pickled ({type(box).__name__}: {box}). Rebuild what it holds in __reduce__, "
            "define its class in a module, or give Parallel a function that makes the box."
        )
        return [Finding(names[0], Verdict.WARNING, sentence), not_sent]
    if not probe.processes:
        sentence = "It can be pickled; whether it can be rebuilt, another process would have to show."
        return [
            Finding(names[0], Verdict.OK, sentence, len(box), "bytes"),
            Finding(names[1], Verdict.SKIPPED, "Not measured: no processes were to be started."),
        ]
    count = _count(probe)
    probe.spend((1 + WORKERS * ROUNDS) * count)
    arrays = probe.rows(0, count)
    here = probe.uncounted(arrays)
    allowed = min(SECONDS, probe.seconds_left / 2)
    replies = in_processes(box, arrays, allowed)
    if allowed < SECONDS and any(reply.died == LATE for reply in replies):
        raise OutOfSecondsError(
            f"other processes had not answered after {allowed:.2g} s, half of what was left"
        )
    if not any(reply.rebuilt for reply in replies):
        sentence = (
            f"Another process could not rebuild the box from its pickle ({replies[0].died}). Rebuild in "
            "__reduce__ what lives in this process alone, or give Parallel a function that makes the box."
        )
        return [Finding(names[0], Verdict.FAULT, sentence), not_sent]
    return [_same(probe, here, replies, len(box)), _safe(probe, here, replies)]


def _count(probe: Probe) -> int:
    """Rows of a call: half as many where rows are limited, so that some are left for later checks."""
    return min(8 if _roomy(probe) else 4, len(probe.samples[0]))


def _roomy(probe: Probe) -> bool:
    """Say whether a sixth of the rows left is enough for all meetings of the threads."""
    return probe.left >= 6 * THREADS * (1 + MEETINGS) * 8


def _same(probe: Probe, here: Arrays, replies: list[CheckReply], size: int) -> Finding:
    """The best of all answers: what is wrong in every one of them is wrong with the rebuilt box."""
    answers = [answer for reply in replies for answer in reply.answers]
    differences = [compare(probe, here, answer) for answer in answers if not isinstance(answer, str)]
    if not differences:
        errors = [*(str(answer) for answer in answers), *(reply.died for reply in replies)]
        sentence = f"The rebuilt box gives no answer: {errors[0]}. Mend __reduce__."
        return Finding("picklability", Verdict.FAULT, sentence, size, "bytes")
    best = min(differences, key=lambda difference: difference.relative)
    if best.verdict is Verdict.OK:
        sentence = f"Rebuilt in another process it gives the same answers ({best.words()})."
        return Finding("picklability", Verdict.OK, sentence, size, "bytes")
    sentence = (
        f"Rebuilt in another process it gives other answers: {best.words()}. Pickle all of its settings."
    )
    return Finding("picklability", Verdict.FAULT, sentence, size, "bytes")


def _safe(probe: Probe, here: Arrays, replies: list[CheckReply]) -> Finding:
    bad = [wrong for reply in replies for wrong in _wrong(probe, here, reply.answers)]
    bad += [reply.died for reply in replies if reply.died]
    if not bad:
        sentence = "Two processes at the same time give the answers of one."
        return Finding("process safety", Verdict.OK, sentence, 0, "calls differ")
    firsts = [wrong for reply in replies for wrong in _wrong(probe, here, reply.answers[:1])]
    if len(firsts) == len(replies) == len(bad):
        sentence = (
            f"The first call in another process gives other answers than those after it: {bad[0]}. "
            f"{SAME_STATE}"
        )
        return Finding("process safety", Verdict.FAULT, sentence, len(bad), "calls differ")
    sentence = (
        f"Two processes at the same time disturb each other: {bad[0]}. Give each its own scratch folder, "
        "port or device."
    )
    return Finding("process safety", Verdict.FAULT, sentence, len(bad), "calls differ")


def _wrong(probe: Probe, expected: Arrays, answers: Sequence[Arrays | str]) -> list[str]:
    """Describe each answer that is not as expected; a string is the error that a call raised."""
    bad = []
    for answer in answers:
        if isinstance(answer, str):
            bad.append(answer)
        elif (difference := compare(probe, expected, answer)).verdict is not Verdict.OK:
            bad.append(difference.words())
    return bad


def in_processes(box: bytes, arrays: Arrays, seconds: float = SECONDS) -> list[CheckReply]:
    """The answers of a pickled box in two other processes, which call it at the same time, three times each.

    No module of the caller's is run again, as `multiprocessing` would: a script without a guard is safe.

    Args:
        box: the bytes that `pickled` gives.
        arrays: the rows of each call.
        seconds: the time after which what still runs is killed, with all that it has started.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "task").write_bytes(pickle.dumps((box, arrays)))
        running = [_start(folder, number) for number in range(WORKERS)]
        try:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not all(
                (folder / f"ready-{number}").exists() or process.poll() is not None
                for number, process in enumerate(running)
            ):
                time.sleep(0.01)
            (folder / "go").touch()
            return [_reply(folder, number, process, deadline) for number, process in enumerate(running)]
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(folder: Path, number: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with (folder / f"log-{number}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", WORK, str(folder), str(number), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # a group of its own, so that a solver it has started ends with it
        )


def _reply(folder: Path, number: int, process: subprocess.Popen[bytes], deadline: float) -> CheckReply:
    """Return the reply of a process when it ends."""
    rebuilt = (folder / f"ready-{number}").exists()
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return CheckReply([], rebuilt, LATE)
    if status == 0:
        return CheckReply(pickle.loads((folder / f"answers-{number}").read_bytes()), rebuilt, "")
    end = f"killed by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    log = (folder / f"log-{number}").read_text(errors="replace").strip().splitlines()
    return CheckReply([], rebuilt, ": ".join([end, *log[-1:]]))


def work(name: str, number: str, parent: str) -> None:
    """The other end of `in_processes`: answer the rows in a folder when the word comes.

    Args:
        name: the folder. Only this user can write to it.
        number: the number of this worker; it names the files.
        parent: the process that waits for the answers; this process ends with it.
    """
    end_with(int(parent))
    folder = Path(name)
    packed, arrays = pickle.loads((folder / "task").read_bytes())
    box = pickle.loads(packed)
    (folder / f"ready-{number}").touch()
    while not (folder / "go").exists():
        if not folder.exists():
            return
        time.sleep(0.002)
    warnings.simplefilter("ignore")
    answers: list[Arrays | str] = []
    with keeping(box), np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            try:
                answer = box(*arrays)
                answers.append(answer if isinstance(answer, tuple) else (answer,))
            except Exception as error:
                answers.append(f"{type(error).__name__}: {error}")
    (folder / f"answers-{number}").write_bytes(pickle.dumps(answers))
