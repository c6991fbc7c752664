"""Orders to a black box to fail: files in a folder, each carried out by the one row that takes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

VARIABLE = "BLACKBOX_SOAK_ORDERS"  # names the folder; without it nothing is carried out
KINDS = ("nan", "raise", "hang", "die")  # what a row can be told
HANG = 3600.0  # seconds: whoever waits for the row must give it up long before


class Refused(RuntimeError):
    """What a row raises that was told to."""


def give(folder: Path, number: int, kind: str) -> Path:
    """Tell the next row that looks what to do; gives the file, which is gone once a row took it."""
    path = folder / f"{number:06d}.{kind}"
    path.touch()
    return path


def taken(path: Path) -> bool:
    """Whether a row has taken an order."""
    return not path.exists()


def obey() -> bool:
    """Carry the oldest order out, if there is one; True where the row shall give NaN.

    Raises:
        Refused: that was the order.
    """
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return False
    for name in sorted(os.listdir(folder)):
        path = Path(folder) / name
        try:
            path.rename(Path(folder).parent / f"taken-{name}")  # one row alone can do that
        except FileNotFoundError:
            continue  # another process was faster
        kind = path.suffix.removeprefix(".")
        if kind == "raise":
            raise Refused("expected nothing wrong, got the order to raise. Ask again.")
        if kind == "hang":
            time.sleep(HANG)
        if kind == "die":
            os._exit(9)
        return kind == "nan"
    return False
