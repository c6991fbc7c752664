"""How each fault that stops a run is done, what is cleaned up after it, and what the run should have said."""

from __future__ import annotations

import re
import resource
import signal
from pathlib import Path
from typing import Protocol

from benchmarks.soak import damage, disk
from benchmarks.soak.attempt import Attempt
from benchmarks.soak.faults import DAMAGES, DISKS, Fault

PATIENCE = 180.0  # seconds within which a run ends by a fault, on a machine with other work
NEWS = {"SIGUSR1": signal.SIGUSR1, "SIGTERM": signal.SIGTERM}


class One(Protocol):
    """What is filled in of a fault."""

    fault: Fault
    what: str
    damaged: str
    status: int | None
    recovered: str
    as_promised: bool


def inflict(attempt: Attempt, one: One, run: Path | None, root: Path) -> bool:
    """Do it and wait for the end of the run; False where the run has outlived it.

    Args:
        attempt: at work.
        one: the fault; what was done is noted there.
        run: the run's folder; None while there is none.
        root: folder of the run's folder, a file system of its own where these can be mounted.
    """
    fault, ranks = one.fault, attempt.ranks()
    if fault.kind in DISKS:
        return _disk(attempt, one, run, root)
    if fault.kind in NEWS:
        one.what = f"{fault.kind} to the process that was started"
        attempt.signal(NEWS[fault.kind], attempt.process.pid)
    elif fault.kind == "launcher killed":
        one.what = "SIGKILL to the process that was started"
        attempt.signal(signal.SIGKILL, attempt.process.pid)
    elif fault.kind in ("worker killed", "worker frozen"):
        rank = sorted(ranks)[int(fault.choice * len(ranks))] if ranks else 0
        stop = fault.kind == "worker frozen"
        one.what = f"{'SIGSTOP' if stop else 'SIGKILL'} to process {rank} of {len(ranks)}"
        attempt.signal(signal.SIGSTOP if stop else signal.SIGKILL, ranks.get(rank, attempt.process.pid))
    else:
        one.what = f"SIGKILL to {len(ranks)} processes at once"
        attempt.kill_all()
    if not attempt.wait(PATIENCE):
        one.as_promised = False
        one.recovered = "killed, since it did not end"
        attempt.kill_all()
        return True
    if fault.kind == "launcher killed" and not attempt.wait_for_ranks(PATIENCE):
        one.as_promised = False
        one.recovered = "killed, since the workers went on without their launcher"
    if fault.kind in DAMAGES:
        _damage(one, run)
    return True


def _disk(attempt: Attempt, one: One, run: Path | None, root: Path) -> bool:
    fault = one.fault
    if run is None:
        one.what, one.recovered = "nothing: there is no folder yet", "went on"
        return False
    if fault.kind == "file size limit":
        newest = damage.newest_checkpoint(run)
        size = 1 + int(fault.choice * (4096 if newest is None else newest.stat().st_size))
        pid = attempt.ranks().get(0, attempt.process.pid)
        one.what = f"no file of process 0 beyond {size} bytes"
        try:
            hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
        except ProcessLookupError:
            pass
        undo = None
    elif fault.kind == "full disk":
        disk.fill(root)
        one.what, undo = "every byte of the file system taken", lambda: disk.free(root)
    else:
        disk.make_read_only(run)
        one.what, undo = "the folder mounted read-only", lambda: disk.unmount(run)
    try:
        ended = attempt.wait(PATIENCE)
    finally:
        if undo is not None:
            undo()
    if not ended:
        one.as_promised, one.recovered = False, "killed, since it went on for long"
        attempt.kill_all()
    return True


def _damage(one: One, run: Path | None) -> None:
    fault = one.fault
    newest = None if run is None else damage.newest_checkpoint(run)
    if run is None or not (run / "metrics.jsonl").is_file():
        one.what += "; there were no files yet to damage"
    elif fault.kind == "torn metrics":
        one.what = damage.tear_metrics(run, fault.choice)
    elif fault.kind == "altered journal":
        one.what = damage.spoil_journal(run, fault.choice)
    elif newest is None:
        one.what += "; there was no checkpoint yet to damage"
    else:
        spoil = damage.truncate if fault.kind == "truncated checkpoint" else damage.flip
        one.what, one.damaged = spoil(newest, fault.choice), newest.name


def judge(one: One, text: str, *, several_at_work: bool) -> None:
    """Hold the end of a run against what is documented: its status, and how it says to go on."""
    kind, status = one.fault.kind, one.status
    resume = re.search(r"Resume with: blackbox resume \S+", text) is not None
    if kind in NEWS:
        good = status == 130 and resume and "Stopped" in text
    elif kind in DISKS:
        good = status == 1 and resume and "expected" in text
    elif kind in ("worker killed", "worker frozen"):
        good = status not in (0, None) and (resume or not several_at_work)
    else:
        good = status == -signal.SIGKILL
    begun = "Run folder:" in text  # before that there is nothing to resume
    outlived = status == 0  # it was done before it noticed
    one.as_promised = one.as_promised and (good or outlived or not begun)
