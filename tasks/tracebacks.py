"""Whose an error is: a problem's own code gets one sentence and its own part of the traceback."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import TracebackType

from blackbox.errors import ExecutorError

_HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("blackbox", "simulators", "tasks", "zo")
_NOT_USERS = [
    *(_HERE / name for name in (*PACKAGES, "blackbox_coupling.py")),
    *(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")),
]
# of a user's own packages (pip install --user), of the system below an environment, of a path in PYTHONPATH
_INSTALLED = {"site-packages", "dist-packages"}
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Unable to allocate",
    "Storage size calculation overflowed",
)


def of_user(error: BaseException) -> str | None:
    """An error of the user's own code: a sentence, and the user's part of the traceback; None if it is ours.

    Args:
        error: Any, with its traceback.
    """
    frames = _users(error)
    if frames:
        file, where = frames[-1].tb_frame.f_code.co_filename, place(error)
        whole = traceback.TracebackException(type(error), error, frames[0])
        of_users = [frame for frame in whole.stack if _is_users(frame.filename)]  # --debug shows all
        whole.stack = traceback.StackSummary.from_list(of_users)
        shown = "".join(whole.format())
    elif isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        file, where = error.filename, f"{error.filename}, line {error.lineno}"
        shown = "".join(traceback.format_exception_only(error))
    else:
        return None
    said = " ".join(str(error).split())
    colon = ": " if said else ""
    return (
        f"{where}: your code raised {type(error).__name__}{colon}{said}"
        f"{_namesake(error, Path(file).parent)}{_doubles(said)}\n{shown}"
    )


def place(error: BaseException) -> str:
    """Where in the user's own code an error arose: "file.py, line 3, in pictures"; "" if not there."""
    for last in _users(error)[-1:]:
        code = last.tb_frame.f_code
        inside = "" if code.co_name == "<module>" else f", in {code.co_name}"
        return f"{code.co_filename}, line {last.tb_lineno}{inside}"
    return ""


def of_resources(error: BaseException) -> str | None:
    """Memory that is not there, or a process that died, in one sentence; None for other errors."""
    said = " ".join(str(error).split("\n")[0].split())
    if isinstance(error, BrokenExecutor | ExecutorError):
        return (
            f"expected processes that go on to the end, got one that died: {said or type(error).__name__} "
            "Look for what killed it, often a lack of memory."
        )
    memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in said for sign in _NO_MEMORY)
    )
    if not memory:
        return None
    return (
        f"expected memory for what the settings ask for, got {said!r}. "
        "Lower what makes it large, such as --batch."
    )


def is_ours(cls: type) -> bool:
    """Whether a class is one of this project's."""
    return cls.__module__.partition(".")[0] in PACKAGES


def _users(error: BaseException) -> list[TracebackType]:
    return [trace for trace in _traces(error) if _is_users(trace.tb_frame.f_code.co_filename)]


def _traces(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_users(file: str) -> bool:
    """Whether a file is neither this project's nor an installed package's."""
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    return _INSTALLED.isdisjoint(path.parts) and not any(path.is_relative_to(place) for place in _NOT_USERS)


def _namesake(error: BaseException, folder: Path) -> str:
    """Where a file wants its own `tasks`, or another of this project's names: which file to rename."""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    name = error.name.partition(".")[0]
    places = dict.fromkeys([folder, Path.cwd(), *map(Path, sys.path)])
    for place in places if name in PACKAGES else ():
        for path in (place / f"{name}.py", place / name):
            if path.exists() and not path.resolve().is_relative_to(_HERE / name):
                return f". {name!r} means this project's package there: rename your {path}"
    return ""


def _doubles(said: str) -> str:
    """How to mend what torch says where numbers from NumPy, in float64, meet weights in float32."""
    if "dtype" not in said or not ("Double" in said and "Float" in said):
        return ""
    return (
        ". NumPy's numbers are float64, and weights float32 unless they are made otherwise: convert data, "
        "torch.as_tensor(x, dtype=torch.float32), or the network, network.double()."
    )
