"""Which runs may execute code unasked: those whose code this user has run, and those of installed problems.

`config.json` names the file in which a run's problem is, and its settings may name more (`tasks.code`);
`blackbox resume` executes both. A folder that came from elsewhere could name any. So what this user runs is
written down, with what it is called with, in a file that only this user can write: `blackbox/trusted` in
`$XDG_STATE_HOME`, or in `~/.local/state`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tasks import names


def note(code: str, arguments: Sequence[str] = ()) -> None:
    """Write down that this user runs `code`; where that cannot be kept, its runs are asked about.

    Args:
        code: Where a problem's class is, a script, or what a setting names.
        arguments: What it is called with: the same program with others does other things.
    """
    with suppress(OSError, RuntimeError):
        if not is_own(code, arguments):
            path = _file()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(f"{_line(code, arguments)}\n")


def is_own(code: str, arguments: Sequence[str] = ()) -> bool:
    """Whether `code` is nothing, the problem of an installed package, or what this user has run."""
    if not code or (not arguments and code in names.problems().values()):
        return True
    try:
        status = _file().stat()
        safe = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return safe and _line(code, arguments) in _file().read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, ValueError):
        return False


def _line(code: str, arguments: Sequence[str]) -> str:
    """A file is trusted wherever one is; a module where it was run: its name may be another's elsewhere."""
    place = Path(code.rpartition(":")[0] or code)
    line = code if place.is_absolute() else [code, str(Path.cwd())]
    return json.dumps({"code": line, "arguments": list(arguments)} if arguments else line)


def _file() -> Path:
    """The list; `RuntimeError` where there is no home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "blackbox" / "trusted"
