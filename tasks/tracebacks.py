"""The owner of an error: a problem's own code gets one sentence and its own part of the traceback."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import TracebackType

from blackbox.errors import ExecutorError
from blackbox.named_code import hint
from blackbox_coupling import PACKAGES

_HERE = Path(__file__).resolve().parents[1]
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
# what torch says where labels are floats: of gather, of losses, of indices, of one_hot
_WHOLE = (
    "int64 for index",
    "dtype to be Long",
    "tensors used as indices must be",
    "index tensor of type Long",
    "expected scalar type Long",
)


def of_user(error: BaseException) -> str | None:
    """An error of the user's own code: a sentence, and the lines that led to it; None if it is ours.

    A sentence that says how to mend it does without the lines.

    Args:
        error: Any, with its traceback.
    """
    frames = _users(error)
    if frames:
        file, where = frames[-1].tb_frame.f_code.co_filename, place(error)
        traceback_text = "".join(_lines_of_user(error).format())
    elif isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        file, where = error.filename, f"{error.filename}, line {error.lineno}"
        traceback_text = "".join(traceback.format_exception_only(error))
    else:
        return None
    message = " ".join(str(error).split())
    colon = ": " if message else ""
    mended = _dtypes(message)
    return (
        f"{where}: your code raised {type(error).__name__}{colon}{message}"
        f"{_namesake(error, Path(file).parent)}{hint(error)}{mended}\n{'' if mended else traceback_text}"
    )


def place(error: BaseException) -> str:
    """Name the user's own code where an error arose: "file.py, line 3, in pictures"; "" if there is none."""
    for last in _users(error)[-1:]:
        code = last.tb_frame.f_code
        inside = "" if code.co_name == "<module>" else f", in {code.co_name}"
        return f"{code.co_filename}, line {last.tb_lineno}{inside}"
    return ""


def of_resources(error: BaseException) -> str | None:
    """Memory that is not there, or a process that died, in one sentence; None for other errors."""
    message = " ".join(str(error).split("\n")[0].split())
    if isinstance(error, BrokenExecutor | ExecutorError):
        return (
            f"expected processes that go on to the end, got one that died: {message or type(error).__name__} "
            "Look for what killed it, often a lack of memory."
        )
    memory = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in message for sign in _NO_MEMORY)
    )
    if not memory:
        return None
    return (
        f"expected memory for what the settings ask for, got {message!r}. "
        "Lower what makes it large, such as --batch."
    )


def _lines_of_user(error: BaseException) -> traceback.TracebackException:
    """The traceback of an error, and of the errors that led to it, without the frames of packages."""
    summary: traceback.TracebackException = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = summary
    while link is not None:
        link.stack = traceback.StackSummary.from_list([f for f in link.stack if _is_users(f.filename)])
        link = link.__cause__ or link.__context__
    return summary


def _users(error: BaseException) -> list[TracebackType]:
    return [trace for trace in _traces(error) if _is_users(trace.tb_frame.f_code.co_filename)]


def _traces(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_users(file: str) -> bool:
    """Say whether a file is neither this project's nor an installed package's."""
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    return _INSTALLED.isdisjoint(path.parts) and not any(path.is_relative_to(place) for place in _NOT_USERS)


def _namesake(error: BaseException, folder: Path) -> str:
    """Name the user's file that hides this project's `tasks`, or another of its names; "" if none does."""
    if not isinstance(error, ImportError) or error.name is None:
        return ""
    name = error.name.partition(".")[0]
    places = dict.fromkeys([folder, Path.cwd(), *map(Path, sys.path)])
    for place in places if name in PACKAGES else ():
        for path in (place / f"{name}.py", place / name):
            if path.exists() and not path.resolve().is_relative_to(_HERE / name):
                return f". {name!r} means this project's package there: rename your {path}"
    return ""


def _dtypes(said: str) -> str:
    """Advise on torch's error about dtypes that problems often have by mistake; "" for all else."""
    if "dtype" in said and "Double" in said and "Float" in said:
        return (
            ". NumPy's numbers are float64, and weights float32 unless they are made otherwise: convert "
            "data, torch.as_tensor(x, dtype=torch.float32), or the network, network.double()."
        )
    if any(sign in said for sign in _WHOLE):
        return ". What chooses or names a class is a whole number: convert it, labels.long()."
    return ""
