"""The folder that a run has for itself: safe file names in, checked files out, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from blackbox.errors import ConfigurationError


def checked_name(where: str, name: object) -> str:
    """A file name for use inside the folder, in its plain form.

    Raises:
        ConfigurationError: it leads elsewhere.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts or "\0" in str(name):
        raise ConfigurationError(
            f"{where}: expected the name of a file in the run's own folder, got {name!r}. "
            "Give a relative name without '..'."
        )
    return str(path)


def output(folder: Path, name: str, max_bytes: int) -> Path:
    """A file that the program left in the folder, safe to open.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a symbolic link leads out of the folder, it is no plain file, or it is too large.
    """
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError):  # the second: links in a circle
        there = ", ".join(sorted(item.name for item in folder.iterdir())[:20])
        raise FileNotFoundError(f"expected the program to write {name}, found only {there}.") from None
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: expected a file in the run's own folder, got a link that leads out of it.")
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{name}: expected a plain file, got a folder, a device or a pipe.")
    if found.st_size > max_bytes:
        raise ValueError(f"{name}: expected at most {max_bytes:,} bytes, got {found.st_size:,}.")
    return path


def copy_into(folder: Path, name: str, source: Path) -> None:
    """Copy a file or a whole folder to a name in the folder."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


@contextmanager
def scratch_folder(parent: Path | None, keep_failed: bool) -> Iterator[Path]:
    """A new folder, removed at the end; kept when an error passes through and `keep_failed` is set."""
    folder = Path(tempfile.mkdtemp(prefix="blackbox-", dir=parent))
    kept = False
    try:
        yield folder
    except Exception as error:
        kept = keep_failed
        if kept and getattr(error, "errno", None) is None:  # else the system's own words, set in stone
            error.args = (f"{error} The run's folder: {folder}",)
        raise
    finally:
        if not kept:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, those included that the program made read-only."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        os.chmod(folder, stat.S_IRWXU)
        for parent, names, _ in os.walk(folder):  # walks no links
            for name in names:
                if not os.path.islink(os.path.join(parent, name)):
                    os.chmod(os.path.join(parent, name), stat.S_IRWXU)
        shutil.rmtree(folder, ignore_errors=True)
