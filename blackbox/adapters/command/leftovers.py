"""Ends the processes that a run of a program has left behind, known by a mark in their environment.

A process can leave its group (`setsid`), and its parents can die before it, but the environment that it was
started with stays. Run as a script, this file waits until its standard input ends, which it does when the
process at the other end dies, in whatever way; then it ends all processes that carry the mark, and removes
the folders whose names it has read there and that were not withdrawn. It imports nothing that takes long.
"""

import os
import signal
import stat
import sys
import time

VARIABLE = "BLACKBOX_RUN"
_ROUNDS, _PAUSE = 100, 0.01  # what is being killed may have started another in the meantime
_STARTING = 5  # rounds that a process without an environment is waited for: it may be about to get one


def end(mark: str, after: int = 0) -> None:
    """Kill all processes of this user whose variable starts with the mark. Only Linux lets them be found.

    Args:
        mark: the beginning of the variable.
        after: the number of a process that began not long before them: lower numbers are looked at only if
            they have come round since, which makes the search some ten times cheaper.
    """
    if sys.platform != "linux":
        return
    waited = 0
    for _ in range(_ROUNDS):
        processes, starting = _marked(f"\0{VARIABLE}={mark}".encode(), after if after <= _newest() else 0)
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        waited = 0 if processes else waited + 1
        if not processes and (not starting or waited > _STARTING):
            return
        time.sleep(_PAUSE)


def remove(folder: str) -> None:
    """Remove a folder, with what a program made read-only in it."""
    import shutil

    try:
        shutil.rmtree(folder, ignore_errors=True)
        if os.path.isdir(folder):
            _open_up(folder)
            for path, inside, _ in os.walk(folder):
                for name in inside:
                    _open_up(os.path.join(path, name))
            shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a thousand folders in each other stay
        pass


def _open_up(folder: str) -> None:
    try:
        if not os.path.islink(folder):
            os.chmod(folder, stat.S_IRWXU)
    except OSError:  # it is another user's
        pass


def written(folder: bytes) -> bytes:
    """The name of a folder as a line has it, in which it may not end one."""
    return folder.replace(b"%", b"%25").replace(b"\n", b"%0A")


def _read(line: bytes) -> bytes:
    return line.replace(b"%0A", b"\n").replace(b"%25", b"%")


def _newest() -> int:
    """The number of the process that was started last; 0 where the system does not say."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[-1])
    except (OSError, ValueError, IndexError):
        return 0


def _marked(entry: bytes, after: int) -> tuple[list[int], bool]:
    """The processes with an entry in their environment, and whether another is about to get its own.

    Between the start of a program and its first instruction the system shows no environment at all.
    """
    processes, starting = [], False
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > after and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    environment = file.read()
                if entry in b"\0" + environment:
                    processes.append(int(name))
                elif not environment:
                    os.readlink(f"/proc/{name}/exe")  # an error for what has ended, and for the system's own
                    starting = True
            except OSError:  # it has ended, or is another user's
                pass
    return processes, starting


if __name__ == "__main__":
    folders: set[bytes] = set()
    with open(0, "rb") as announcements:
        for line in announcements:  # "+folder" when one is made, "-folder" when it is gone or to be kept
            (folders.add if line[:1] == b"+" else folders.discard)(_read(line[1:-1]))
    end(sys.argv[1])
    for folder in folders:
        remove(os.fsdecode(folder))
