"""The faults that a round inflicts: drawn from a seed, so that a failure can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from benchmarks.soak.orders import KINDS as ROW_KINDS

PROCESSES = {
    "worker killed": "SIGKILL to one of the processes",
    "all killed": "SIGKILL to all processes at once, as a power cut",
    "launcher killed": "SIGKILL to the process that started the workers",
    "SIGUSR1": "the news of a cluster that time is nearly up",
    "SIGTERM": "the request to end",
    "worker frozen": "SIGSTOP to one of several processes, for longer than --timeout",
}
DISKS = {
    "file size limit": "RLIMIT_FSIZE of the process that writes, set while it runs",
    "full disk": "a tmpfs that something else has filled",
    "read-only folder": "the run's folder, mounted read-only while it is in use",
}
DAMAGES = {
    "truncated checkpoint": "all killed, and the newest checkpoint cut short",
    "altered checkpoint": "all killed, and a bit of the newest checkpoint changed",
    "torn metrics": "all killed, and the last line of the metrics cut short",
    "altered journal": "all killed, and a bit of the journal changed, or noise in its place",
}
ROWS = {
    "nan": "a row that is not finite",
    "raise": "a row that raises",
    "hang": "a row that sleeps beyond its limit",
    "die": "a row whose process ends",
}
assert tuple(ROWS) == ROW_KINDS
STOPPING = PROCESSES | DISKS | DAMAGES  # after these the run has to be resumed
MOUNTED = ("full disk", "read-only folder")
SLOW = ("worker frozen",)  # half a minute of grace, and the timeout before
EACH_ROUND = 5  # faults that stop the run


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: of `STOPPING` or `ROWS`.
        at: the part of the run's lines of metrics at which it is due; None: `delay` after the next start.
        delay: seconds that it is late, so that it comes anywhere in a step.
        choice: in [0, 1): which process, which byte.
        workers: processes with which the run goes on.
    """

    kind: str
    at: float | None
    delay: float
    choice: float
    workers: int

    @property
    def stops(self) -> bool:
        """Whether the run ends by it."""
        return self.kind in STOPPING


def plan(
    seed: int, number: int, *, rows: bool, mounts: bool, slow: bool, workers: int, step: float
) -> list[Fault]:
    """The faults of a round, in their order; they hang on the arguments alone.

    Args:
        seed: of the soak.
        number: of the round among those of its task; kinds that stop a run take turns over the rounds.
        rows: whether the box takes orders.
        mounts: whether file systems can be mounted.
        slow: whether the kinds that take long are wanted.
        workers: the most processes to go on with.
        step: seconds by which a fault is late at most.
    """
    kinds = [kind for kind in STOPPING if (mounts or kind not in MOUNTED) and (slow or kind not in SLOW)]
    turns: list[str] = []
    cycle = 0
    while len(turns) < (number + 1) * EACH_ROUND:
        random.Random(f"{seed} cycle {cycle}").shuffle(kinds)
        turns += kinds
        cycle += 1
    draws = random.Random(f"{seed} round {number}")
    wanted = turns[number * EACH_ROUND : (number + 1) * EACH_ROUND]
    if rows:
        wanted += [draws.choice(list(ROWS)) for _ in range(2)] + list(ROWS)
    draws.shuffle(wanted)
    places = sorted(draws.uniform(0.02, 0.92) for _ in wanted)
    found = []
    for kind, place in zip(wanted, places, strict=True):
        killed = kind in ("worker killed", "all killed", "launcher killed")
        early = killed and draws.random() < 0.25
        delay = draws.uniform(0.0, 8.0) if early else draws.uniform(0.0, step)
        place_or_start = None if early else place
        found.append(Fault(kind, place_or_start, delay, draws.random(), draws.randint(1, workers)))
    return _with_company(found, workers)


def _with_company(faults: list[Fault], workers: int) -> list[Fault]:
    """The same, but several processes wherever the next fault needs others to notice it."""
    needed = False
    found = []
    for fault in reversed(faults):
        if fault.stops:
            found.append(replace(fault, workers=max(2, workers)) if needed else fault)
            needed = fault.kind in ("worker frozen", "launcher killed")
        else:
            found.append(fault)
    return found[::-1]
