"""Checks in other processes: pickling, the answers of the box rebuilt there, and of two at the same time."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blackbox.conformance.comparing import compare
from blackbox.conformance.findings import Finding, Verdict
from blackbox.conformance.probe import Arrays, Probe
from blackbox.function import BlackBoxFunction

SECONDS = 300.0  # for a worker to start and answer; importing and compiling may take long, a hang is longer


@dataclass(frozen=True)
class Reply:
    """What one worker process gave back.

    Attributes:
        answers: one for each batch that it came to; a string is the error that left the call.
        died: how it ended before its last batch; empty if it did not.
    """

    answers: list[Arrays | str]
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
    box = pickled(probe.box)
    if isinstance(box, Exception):
        sentence = (
            f"The box cannot be pickled ({type(box).__name__}: {box}). Rebuild what it holds in __reduce__, "
            "define its class in a module, or give Parallel a function that makes the box."
        )
        return [
            Finding(names[0], Verdict.WARNING, sentence),
            Finding(names[1], Verdict.SKIPPED, "It cannot be sent to another process."),
        ]
    if not probe.processes:
        twin = pickle.loads(box)
        sentence = "Pickled and read again in this process; others were not to be started."
        return [
            Finding(names[0], Verdict.OK, sentence, len(box), "bytes")
            if type(twin) is type(probe.box)
            else Finding(
                names[0], Verdict.FAULT, f"It comes back as {type(twin).__name__}. Mend __reduce__."
            ),
            Finding(names[1], Verdict.SKIPPED, "No processes were to be started."),
        ]
    count, rounds = min(8, len(probe.samples[0])), 3
    arrays = probe.rows(0, count)
    here = probe(arrays)
    probe.spend(2 * rounds * count)
    replies = in_process(box, [arrays] * rounds, workers=2)
    loaded = [reply for reply in replies if reply.answers]
    if not loaded:
        sentence = (
            f"A process that was sent the box could not use it ({replies[0].died}). Rebuild in __reduce__ "
            "what lives in this process alone, or give Parallel a function that makes the box."
        )
        return [
            Finding(names[0], Verdict.FAULT, sentence),
            Finding(names[1], Verdict.SKIPPED, "It cannot be sent to another process."),
        ]
    return [_same(probe, here, replies, len(box)), _safe(probe, here, replies)]


def _same(probe: Probe, here: Arrays, replies: list[Reply], size: int) -> Finding:
    """The best of all answers: what is wrong in every one of them is wrong with the rebuilt box."""
    answers = [answer for reply in replies for answer in reply.answers if isinstance(answer, tuple)]
    if not answers:
        error = next(answer for reply in replies for answer in reply.answers)
        return Finding("picklability", Verdict.FAULT, f"The rebuilt box raises: {error}. Mend __reduce__.")
    best = min((compare(probe, here, answer) for answer in answers), key=lambda d: d.relative)
    if best.verdict is Verdict.OK:
        sentence = f"Rebuilt in another process it gives the same answers ({best.words()})."
        return Finding("picklability", Verdict.OK, sentence, size, "bytes")
    sentence = (
        f"Rebuilt in another process it gives other answers: {best.words()}. Pickle all of its settings."
    )
    return Finding("picklability", Verdict.FAULT, sentence, size, "bytes")


def _safe(probe: Probe, here: Arrays, replies: list[Reply]) -> Finding:
    worst, bad, total = None, 0, 0
    for reply in replies:
        total += len(reply.answers) + bool(reply.died)
        bad += bool(reply.died)
        for answer in reply.answers:
            if isinstance(answer, str):
                bad += 1
                worst = worst or answer
            elif compare(probe, here, answer).verdict is not Verdict.OK:
                bad += 1
                worst = worst or compare(probe, here, answer).words()
    if not bad:
        sentence = "Two processes at the same time give the answers of one."
        return Finding("process safety", Verdict.OK, sentence, 0, f"of {total} calls differ")
    worst = worst or next(reply.died for reply in replies if reply.died)
    sentence = (
        f"Two processes at the same time disturb each other: {worst}. Give each its own scratch folder, "
        "port or device."
    )
    return Finding("process safety", Verdict.FAULT, sentence, bad, f"of {total} calls differ")


def in_process(box: bytes, batches: list[Arrays], workers: int, seconds: float = SECONDS) -> list[Reply]:
    """The answers of a pickled box in other processes, which start on the batches together.

    No module of the caller's is run again, as `multiprocessing` would: a script without a guard is safe.

    Args:
        box: from `pickled`.
        batches: calls to make, in order, in each process.
        workers: how many processes.
        seconds: after which what still runs is killed, with all that it has started.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "box").write_bytes(box)
        numbered = {f"{i}-{k}": array for i, batch in enumerate(batches) for k, array in enumerate(batch)}
        np.savez(folder / "batches.npz", count=np.array(len(batches)), **numbered)  # pyright: ignore
        running = [_start(folder, number) for number in range(workers)]
        try:
            deadline = time.monotonic() + seconds
            while not all(
                (folder / f"ready-{number}").exists() or process.poll() is not None
                for number, process in enumerate(running)
            ):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            (folder / "go").touch()
            ends = [_end(process, deadline) for process in running]
            return [_read(folder, number, len(batches), end) for number, end in enumerate(ends)]
        finally:
            for process in running:
                _kill(process)


def _start(folder: Path, number: int) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with (folder / f"log-{number}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "blackbox.conformance.worker", str(folder), str(number)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # a group of its own, so that a solver it has started ends with it
        )


def _end(process: subprocess.Popen[bytes], deadline: float) -> str:
    try:
        status = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "no answer in time"
    if status < 0:
        return f"killed by signal {signal.Signals(-status).name}"
    return f"exit status {status}" if status else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _read(folder: Path, number: int, batches: int, end: str) -> Reply:
    answers: list[Arrays | str] = []
    for place in range(batches):
        answer, error = folder / f"answer-{number}-{place}", folder / f"error-{number}-{place}"
        if answer.exists():
            with np.load(answer, allow_pickle=False) as content:
                answers.append(tuple(content[f"arr_{k}"] for k in range(len(content.files))))
        elif error.exists():
            answers.append(error.read_text())
        else:
            log = (folder / f"log-{number}").read_text(errors="replace").strip().splitlines()
            return Reply(answers, ": ".join(filter(None, [end or "ended early", log[-1] if log else ""])))
    return Reply(answers, "")
