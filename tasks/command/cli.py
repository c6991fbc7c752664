"""`blackbox`: write, run, resume and report problems; load data; check and serve boxes, hand them on.

Nothing heavy is imported before a command is at work, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from shlex import quote

from blackbox.errors import BlackBoxError, BudgetError, OutputError
from blackbox.terminal import open_what_is_closed, plain, say, short
from tasks.command.commands import call
from tasks.command.run_command import Invocation, invoked
from tasks.errors import (
    CheckpointError,
    ConfigurationError,
    NonFiniteLossError,
    NotApplicableError,
    ProblemError,
    RunFolderError,
    RunLockedError,
    WorkersError,
)

# what would come again if the run went on as it is
_FOR_GOOD = (
    CheckpointError,
    ConfigurationError,
    NonFiniteLossError,
    NotApplicableError,
    ProblemError,
    RunFolderError,
    RunLockedError,
)
_FAILED = "FailedBatchError", "FailedQueriesError"  # of zo, whose import takes seconds


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of a command line: 0, 1 failed, 2 wrong use, 130 stopped by the user.

    Under torchrun, which starts again what does not end with 0, a run that was stopped ends with 0 too. One
    whose output nobody reads any more, as under `| head`, ends with 141.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_what_is_closed()
    try:
        with contextlib.nullcontext() if "--debug" in arguments else warnings_as_sentences():
            status = _main(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain at its end
        return 128 + signal.SIGPIPE


@contextlib.contextmanager
def warnings_as_sentences() -> Iterator[None]:
    """A block in which this project's warnings are shown without a file, a line and a category of Python."""
    usual_format = warnings.formatwarning

    def sentence(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category.__module__.split(".")[0] in ("blackbox", "simulators", "tasks", "zo"):
            return plain(f"blackbox: warning: {message}\n")
        return usual_format(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = usual_format


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from tasks.folder.machine import PACKAGE, version

        say(f"{PACKAGE} {version(PACKAGE)}")
        return 0
    if any(word.partition("=")[0] == "--workers" for word in arguments):
        # several processes, each with as many threads as there are cores, hinder each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "agg")  # reports open no window
    if os.path.lexists("matplotlibrc"):  # of the current folder: matplotlib reads it as it is imported
        with contextlib.chdir("/"):
            importlib.import_module("matplotlib")
    with invoked(arguments) as invocation:
        return _status(invocation)


def _status(invocation: Invocation) -> int:
    """The exit status of a command, whose errors become sentences."""
    arguments = list(invocation.words)
    try:
        return _call(arguments)
    except SystemExit as stop:  # how tyro leaves, after help as well
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        from tasks.workers import group, launch

        if group.rank() == 0:  # of several processes one has the run's folder, and the last word
            ways = f"{_how_to_load(invocation)}{_how_to_resume(invocation)}"
            say(f"{str(stop) or 'Stopped.'} {ways}".rstrip(), sys.stderr)
        return launch.STOPPED if launch.launch_id() is not None else 130
    except Exception as error:
        sentence = None if "--debug" in arguments else _words(error, invocation.run is not None)
        if sentence is None:
            raise
        several = isinstance(error, WorkersError) or type(error).__name__ == "RanksError"
        path = invocation.run and invocation.run.path
        if arguments[0] == "run" and not several and _discarded(invocation):
            advice = f"Nothing was begun; {path} is removed."
        elif arguments[0] == "run" and not several and _of_code(error) and _discarded(invocation, timed=True):
            advice = f"Nothing was trained; {path} is removed. Mend that, and run it again."
        else:
            advice = "" if isinstance(error, _FOR_GOOD) else _how_to_resume(invocation)
            if advice and isinstance(error, BudgetError):
                advice = f"{advice} --rows {error.enough or 'N'}"
            mend = None
            if type(error).__name__ in _FAILED:
                mend = "Resuming repeats this step: mend the box or the data (settings take a new run), then"
            elif isinstance(error, OutputError):
                mend = "Resuming asks for the same again: mend the box, then"
            if advice and mend is not None:
                advice = advice.replace("Resume with", mend, 1)
        gap = " " if advice and not sentence.endswith("\n") else ""
        say(f"blackbox: {short(sentence)}{gap}{advice}".rstrip("\n"), sys.stderr)
        return 2 if isinstance(error, ConfigurationError | RunFolderError) else 1


def _call(arguments: list[str]) -> int:
    """The command; that the user's own code calls `sys.exit`, while its file is read, is an error."""
    try:
        return call(arguments)
    except SystemExit as stop:
        from blackbox.failures import exit_error
        from tasks import tracebacks

        if not tracebacks.place(stop):
            raise
        raise exit_error("it", stop) from None


def _words(error: Exception, at_work: bool) -> str | None:
    """Return the user's sentence for an error; None for an unforeseen one, which keeps its traceback."""
    if isinstance(error, BlackBoxError) and type(error).__name__ != "ExecutorError":
        return str(error)  # first: some are of the system's kind too, such as a server that is not there
    if isinstance(error, BrokenPipeError) and not at_work:
        return None
    from tasks import tracebacks

    sentence = tracebacks.of_resources(error) or tracebacks.of_user(error)
    if sentence is None and isinstance(error, OSError):
        from tasks.folder.atomic import mend, refusal

        refused = refusal(error, "a file or folder that can be read and written")
        sentence = f"{refused} {mend(error) if at_work else 'Mend that, or give another folder.'}"
    return sentence


def _of_code(error: Exception) -> bool:
    """Say whether an error comes again until the user's own code is mended."""
    from tasks import tracebacks

    if isinstance(error, BlackBoxError):
        return type(error).__name__ == "ObjectiveError"  # of zo, too
    may_pass = isinstance(error, OSError) or tracebacks.of_resources(error) is not None
    return not may_pass and bool(tracebacks.place(error))


def _discarded(invocation: Invocation, *, timed: bool = False) -> bool:
    """Leave no folder of a new run that ended before anything was done: there is nothing to resume.

    Args:
        invocation: The command.
        timed: Whether rows of the first batch, run for their time, are nothing either.
    """
    from tasks.folder.place import discard
    from tasks.workers import launch

    run = invocation.run
    return run is not None and launch.launch_id() is None and discard(run.path, timed=timed)


def _how_to_resume(invocation: Invocation) -> str:
    run = invocation.run
    return "" if run is None else f"Resume with: blackbox resume {quote(str(run.path))}"


def _how_to_load(invocation: Invocation) -> str:
    """Advise on the network by now; "" where there is no checkpoint of one."""
    from tasks.folder.place import CHECKPOINTS

    run = invocation.run
    if run is None or not any((run.path / CHECKPOINTS).glob("*.pt")):
        return ""
    return f"Load with: tasks.load({str(run.path)!r}). "


if __name__ == "__main__":
    sys.exit(main())
