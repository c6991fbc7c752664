"""Atomic writes: a file is either the old one or the new one, whenever the process or the machine stops.

A write that the disk refuses becomes an error that says how to mend it, with the last good state (`writing`).
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any

from tasks.errors import StorageError

_ELSEWHERE = "Make it writable, or copy the run's folder elsewhere and resume that one."
_MENDS = {
    errno.ENOSPC: "Free some space there.",
    errno.EDQUOT: "Free some of your quota there.",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f).",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
}


def write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Write a file through `fill(stream)`; on any error `path` stays as it was and nothing is left over.

    The bytes go to a temporary name in the same folder (a rename between file systems is not
    atomic), reach the disk, and only then take the name.

    Raises:
        OSError: the file cannot be written; the error names `path`, also where a disk is full.
    """
    # with the process's id, so that two processes that write one file do not mix their bytes
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            fill(stream)
            stream.flush()
            # without it a power cut may leave the new name on an empty file
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the error that matters is the first one
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # else its words are all there is
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def leftovers(folder: Path, start: str) -> list[Path]:
    """Temporary files, of names that begin with `start`, that killed processes left in a folder."""
    return sorted(folder.glob(f".{escape(start)}*.tmp"))


def sweep(folder: Path) -> None:
    """Remove temporary files that killed processes left in a folder that this process holds alone."""
    for path in folder.rglob(".*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdigit() and not _is_alive(int(number)):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    """Say whether there is such a process; this one counts as none, which has written nothing yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    write(path, lambda stream: stream.write(content))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented; NaN and infinity become null."""
    write_bytes(path, (json.dumps(strict(value), indent=2, allow_nan=False) + "\n").encode())


def append_line(path: Path, content: bytes) -> None:
    """Add a line to a file; it survives if the process is killed right after.

    A last line that a kill tore goes, or the next one would be glued to it.
    """
    with open(path, "ab+") as stream:
        _drop_torn_line(stream.fileno())
        stream.write(content + b"\n")


def _drop_torn_line(handle: int) -> None:
    size = os.lseek(handle, 0, os.SEEK_END)
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    content = os.pread(handle, size, 0)
    os.ftruncate(handle, content.rfind(b"\n") + 1)


def strict(value: Any) -> Any:
    """`value` with null for NaN and infinity: JSON has no such numbers, and other readers refuse them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(what: str, last_good: Callable[[], str]) -> Iterator[None]:
    """Turn an error of the system, raised while a part of a run is written, into a sentence.

    Args:
        what: the part that is written: "the checkpoint after step 12".
        last_good: a function that describes the state on the disk; called only then.

    Raises:
        StorageError: the system refused the write; it replaces an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{refusal(error, f'to write {what}')} {mend(error)} {last_good()}") from error


def refusal(error: OSError, expected: str) -> str:
    """Describe the system's refusal, on one line; h5py gives neither a file nor a reason, but a long text."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}expected {expected}, got {reason!r}."


def mend(error: OSError) -> str:
    """Advise on an error of the system, in a sentence."""
    return _MENDS.get(error.errno or 0, "Mend that.")
