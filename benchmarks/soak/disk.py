"""Disks that go wrong under a run: a small file system of its own, filled up or made read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SIZE = 64  # MiB of the file system
_INSIDE = "BLACKBOX_SOAK_MOUNTS"
FILLER = "filler"


def can_mount() -> bool:
    """Whether this process may mount file systems: only where `in_own_namespace` started it."""
    return _INSIDE in os.environ


def in_own_namespace(module: str, words: Sequence[str]) -> int | None:
    """Run a module again where its mounts are its own, and go with it; None where the system forbids that.

    Args:
        module: to run as a script.
        words: for it.

    Returns:
        Its exit status; None too if this process is there already.
    """
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if can_mount() or not sys.platform.startswith("linux"):
        return None
    try:
        trial = "mount -t tmpfs -o size=1m none /mnt"
        subprocess.run([*unshare, "sh", "-c", trial], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    again = [*unshare, sys.executable, "-m", module, *words]
    return subprocess.run(again, env=os.environ | {_INSIDE: "1"}).returncode


def mount(folder: Path) -> None:
    """A file system of `SIZE` MiB on a folder."""
    _run("mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "none", str(folder))


def unmount(folder: Path) -> None:
    """Take the uppermost one away, in use or not."""
    _run("umount", "--lazy", str(folder))


def fill(folder: Path) -> None:
    """Take all the space that is left."""
    handle = os.open(folder / FILLER, os.O_WRONLY | os.O_CREAT)
    try:
        for block in (2**20, 2**12):  # one page at a time in the end, until not one is left
            try:
                while True:
                    os.write(handle, b"\1" * block)
            except OSError:
                continue
    finally:
        os.close(handle)


def free(folder: Path) -> None:
    """Give the space back."""
    (folder / FILLER).unlink()


def make_read_only(folder: Path) -> None:
    """Put the folder over itself, read-only; files that are open for writing stay so."""
    _run("mount", "--bind", str(folder), str(folder))
    _run("mount", "-o", "remount,bind,ro", str(folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
