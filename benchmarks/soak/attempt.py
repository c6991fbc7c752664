"""A start of the console script under the soak: its processes, what it says, and signals to any of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.soak import orders

ROOT = Path(__file__).parents[2]


class Attempt:
    """The console script with some words, in a folder.

    Args:
        words: after `blackbox`.
        folder: to run in.
        orders_in: folder of the orders to its black box; also what its processes are known by.
    """

    def __init__(self, words: Sequence[str], folder: Path, orders_in: Path) -> None:
        self.words, self.orders_in = list(words), orders_in
        environment = {orders.VARIABLE: str(orders_in), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.cli", *words],
            cwd=folder,
            env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C is the soak's own
        )
        self.started = time.monotonic()
        self._lines: list[str] = []
        streams = self.process.stdout, self.process.stderr
        self._readers = [threading.Thread(target=self._read, args=(s,), daemon=True) for s in streams if s]
        for reader in self._readers:
            reader.start()

    @property
    def text(self) -> str:
        """What it has said so far."""
        return "".join(self._lines)

    @property
    def ended(self) -> bool:
        """Whether the process that was started is gone."""
        return self.process.poll() is not None

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of those at work; a process alone is rank 0."""
        own = {pid: found["RANK"] for pid, found in self._own().items() if "RANK" in found}
        # what a black box started has the same environment
        ranks = {int(rank): pid for pid, rank in own.items() if b"tasks.cli" in _line(pid)}
        return ranks or ({} if self.ended else {0: self.process.pid})

    def signal(self, number: signal.Signals, *pids: int) -> None:
        """Send a signal to processes, as fast as that goes; one that is gone is none."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill_all(self) -> None:
        """Kill every process of this attempt, those that a black box started included."""
        self.signal(signal.SIGKILL, self.process.pid, *self._own())

    def wait(self, seconds: float) -> bool:
        """Wait until the process that was started has ended; False where it does not."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for_ranks(self, seconds: float) -> bool:
        """Wait until no rank is left, though the process that started them is gone."""
        until = time.monotonic() + seconds
        while self.ranks():
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        return True

    def close(self) -> str:
        """Kill what is left, and give all that was said."""
        self.kill_all()
        self.process.wait()
        for reader in self._readers:
            reader.join(10.0)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return self.text

    def _own(self) -> Mapping[int, Mapping[str, str]]:
        """Process id -> environment, of all that were started with this attempt's orders."""
        return processes_with(orders.VARIABLE, str(self.orders_in))

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.append(line)


def processes_with(variable: str, value: str) -> dict[int, dict[str, str]]:
    """Process id -> environment, of all processes whose environment has a variable of this value."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            words = (folder / "environ").read_bytes().split(b"\0")
            ended = (folder / "stat").read_bytes().rpartition(b") ")[2][:1] in (b"Z", b"X")
        except OSError:  # gone meanwhile, or another user's
            continue
        pairs = (word.decode(errors="replace").partition("=") for word in words)
        environment = {name: text for name, _, text in pairs}
        if not ended and environment.get(variable) == value:
            found[int(folder.name)] = environment
    return found


def _line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def sentences(text: str) -> list[str]:
    """What a user would read of an output: errors and warnings of ours."""
    own = re.compile(r"blackbox: |Stopped|.*CheckpointWarning|.*Error: ")
    return [line.strip()[:400] for line in text.splitlines() if own.match(line)]
