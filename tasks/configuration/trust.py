"""Trust in code: code that this user has run, and problems of installed packages, may be executed unasked.

`config.json` names the problem or script of a run, and its settings may name more (see `code`); `blackbox
resume` executes both, and a folder that came from elsewhere could name any. So each text that names code is
parsed once, where it is read, into a `Shipped` problem, a `Script`, or code that is `Named`. Trust is asked
of that value. The code that executes it takes the same value and no text. So no text can pass for one thing
here and be another there.

The code that this user runs is written down, with its arguments, in a file that only this user can write:
`blackbox/trusted` in `$XDG_STATE_HOME`, or in `~/.local/state`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from blackbox.registry import Target, target_of
from blackbox.wrappers.sources import imported
from tasks.configuration import names
from tasks.errors import ConfigurationError


@dataclass(frozen=True)
class Shipped:
    """A problem of this project or of an installed package, found where packages are installed.

    Attributes:
        target: Its class in its module.
    """

    target: Target

    def __str__(self) -> str:
        """Show it as a refusal does."""
        return str(self.target)


@dataclass(frozen=True)
class Named:
    """Code in a file or module, such as a problem's class or the code of a setting.

    Attributes:
        target: The file or module, and the name in it.
        arguments: Its arguments: the same program with other arguments does other things.
    """

    target: Target
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Show it as a refusal does."""
        return " ".join((str(self.target), *self.arguments))


@dataclass(frozen=True)
class Script:
    """A script with a loop of its own.

    Attributes:
        path: The absolute path, so that it is the same file from wherever it is executed.
        arguments: The arguments of the script.

    Raises:
        ConfigurationError: The path is not absolute.
    """

    path: Path
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a path that is another file in each folder."""
        if not self.path.is_absolute():
            raise ConfigurationError(
                f"script: expected the absolute path of a script, got {str(self.path)!r}. Put it back."
            )

    def __str__(self) -> str:
        """Show it as a refusal does."""
        return " ".join((str(self.path), *self.arguments))


Code: TypeAlias = Shipped | Named | Script


def problem(text: str) -> Shipped | Named:
    """Parse a problem's name, `module:Class`, `file.py:Class` or `file.py`."""
    problems = names.problems()
    target = target_of(text, problems)
    # by its module alone: what an entry point calls a file would be another one in each folder
    shipped = isinstance(target.place, str) and str(target) in problems.values()
    return Shipped(replace(target, installed=True)) if shipped else Named(target)


def named(text: str) -> Named:
    """Parse `module:Name`, `file.py:Name` or `file.py`, which is called without arguments."""
    return Named(target_of(text))


def note(code: Code) -> None:
    """Write down that this user runs `code`; where that cannot be kept, its runs are asked about."""
    with suppress(OSError, RuntimeError):
        if not isinstance(code, Shipped) and not is_own(code):
            path = _file()
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with open(handle, "w", encoding="utf-8") as stream:
                stream.write(f"{_line(code)}\n")


def is_own(code: Code) -> bool:
    """Say whether `code` is the problem of an installed package, or this user has run it."""
    if isinstance(code, Shipped):
        return True
    try:
        status = _file().stat()
        safe = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return safe and _line(code) in _file().read_text(encoding="utf-8").splitlines()
    except (OSError, RuntimeError, ValueError):
        return False


def versions(codes: Iterable[Code]) -> dict[str, str]:
    """The files of code and those beside them that they import, with the first digits of their SHA-256.

    By name; by path where an earlier one has that name. Modules that are named have none.
    """
    digests: dict[str, str] = {}
    places = [code.path if isinstance(code, Script) else code.target.place for code in codes]
    paths = [
        path for path in places if isinstance(path, Path) and path.suffix == ".py" and os.path.isfile(path)
    ]
    for file in dict.fromkeys(file for path in paths for file in _with_imports(path)):
        name = str(file) if file.name in digests else file.name
        digests[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return digests


def _with_imports(path: Path) -> list[Path]:
    """A file, and the files of its folder that it imports, or that these do; found without importing them."""
    files, waiting = dict[Path, None](), [path]
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        files[file] = None
        try:
            names = imported(file.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # who runs it says so
            continue
        for name in names:
            level = len(name) - len(name.lstrip("."))
            folder = file.parents[min(level, len(file.parents)) - 1] if level else path.parent
            for part in name.strip(".").split("."):
                waiting += filter(os.path.isfile, (folder / f"{part}.py", folder / part / "__init__.py"))
                folder = folder / part
    return list(files)


def _line(code: Named | Script) -> str:
    """A file is trusted wherever one is; a module where it was run: its name may be another's elsewhere."""
    if isinstance(code, Script):
        what = {"script": str(code.path)}
    elif isinstance(code.target.place, Path):
        what = {"file": str(code.target.place), "name": code.target.attribute}
    else:
        what = {"module": code.target.place, "name": code.target.attribute, "folder": str(Path.cwd())}
    return json.dumps({**what, "arguments": list(code.arguments)})


def _file() -> Path:
    """The list; `RuntimeError` where there is no home."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    return (state if state.is_absolute() else Path.home() / ".local" / "state") / "blackbox" / "trusted"
