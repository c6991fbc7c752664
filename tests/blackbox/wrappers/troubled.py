"""A box for workers that does what its rows tell it, writes down every row it runs, and how it was made."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from blackbox import BlackBoxFunction
from tests.blackbox.boxes import STATE

FINE, RAISE, NAN, SHAPE, KILL, KILL_ONCE, HANG, PICKY, PAUSE, SLOW, KILL_LATER, SLEEP = range(12)


class UnpicklableError(Exception):
    """Pickles, and cannot be made again: the constructor wants two words."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Troubled(BlackBoxFunction):
    """Row (x, what) to (sin(3 x) + mean of the block's x, x^2 / 3): rows of a block are not independent."""

    inputs = (STATE,)
    outputs = (STATE,)

    def __init__(self, folder: Path) -> None:
        super().__init__(failures="keep")
        self.folder = folder
        self.offset: Any = 0.0

    def evaluate_rows(self, state: Any) -> Any:
        with (self.folder / "rows").open("a") as log:
            log.write("".join(f"{os.getpid()} {x!r}\n" for x in state[:, 0].tolist()))
        for what in state[:, 1].astype(int).tolist():
            self.act(what)
        if (state[:, 1] == SHAPE).any():
            return state[:, :1]
        x = state[:, 0]
        answer = np.stack([np.sin(3 * x) + x.mean(), x**2 / 3], 1) + self.offset
        answer[state[:, 1] == NAN] = np.nan
        return answer

    def act(self, what: int) -> None:
        if what == RAISE:
            raise FloatingPointError("this row does not converge")
        if what == PICKY:
            raise UnpicklableError("two", "words")
        if what == KILL or (what == KILL_ONCE and self.first("killed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == HANG:
            time.sleep(3600)
        if what == PAUSE:
            time.sleep(0.1)
        if what == SLEEP:  # longer than a test's limit, and ends with it
            time.sleep(6)
        if what == SLOW:
            time.sleep(1.5)
        if what == KILL_LATER:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

    def first(self, name: str) -> bool:
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        with (self.folder / "made").open("a") as log:
            log.write(f"{os.getpid()}\n")

    def rows_run(self) -> list[float]:
        """The first entries of all rows that were run, in any process."""
        return [float(line.split()[1]) for line in self._lines("rows")]

    def workers(self) -> list[int]:
        """The processes that ran rows, each once."""
        return sorted({int(line.split()[0]) for line in self._lines("rows")})

    def made(self) -> list[int]:
        """The process of each unpickling."""
        return [int(line) for line in self._lines("made")]

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


def rows(*what: int) -> np.ndarray:
    """One row for each: x is 1, 2, 3, ... over 7."""
    return np.stack([np.arange(1, len(what) + 1) / 7, np.array(what, float)], 1)


def in_blocks(folder: Path, state: np.ndarray, block: int) -> np.ndarray:
    """The answers of the box in this process, called with such blocks."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    return np.concatenate([Troubled(own)(state[i : i + block]) for i in range(0, len(state), block)])


def alive(process: int) -> bool:
    """Whether a process runs; one that is dead and not collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def hear_no_wish_to_end() -> None:
    """In a worker: it can only be killed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
