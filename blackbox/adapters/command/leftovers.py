"""Ends the processes that a run of a program has left behind, found by a mark in their environment.

A process can leave its group (`setsid`), and its parents can die before it, but the environment that it was
started with stays. Run as a script, this file waits until its standard input ends, which it does when the
process at the other end dies, in whatever way; then it ends all processes that carry the mark. It imports
nothing that takes long.
"""

import os
import signal
import sys
import time

VARIABLE = "BLACKBOX_RUN"
_ROUNDS, _PAUSE = 100, 0.01  # what is being killed may have started another in the meantime


def end(mark: str) -> None:
    """Kill all processes of this user whose variable starts with the mark. Only Linux lets them be found."""
    if sys.platform != "linux":
        return
    for _ in range(_ROUNDS):
        found = _marked(f"\0{VARIABLE}={mark}".encode())
        for process in found:
            try:
                os.kill(process, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        if not found:
            return
        time.sleep(_PAUSE)


def _marked(entry: bytes) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if entry in b"\0" + file.read():
                        found.append(int(name))
            except OSError:  # it has ended, or is another user's
                pass
    return found


if __name__ == "__main__":
    while os.read(0, 4096):
        pass
    end(sys.argv[1])
