"""Runs with a loop of one's own, in a script, whose folder resumes and reports as any other.

with tasks.own_run("pump", Settings(steps=200)) as run:
    outcome = tasks.methods.train(run, "seed-0/adam", steps=200, step=step, state=state, model="network")
    run.finish([tasks.Row.of(outcome, {"test error": error(network)})])

`blackbox resume` executes the script again: `own_run` then gives the run of that folder, `train` of
`tasks.methods` loads stages that are finished and goes on with the one that is not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import NoReturn

from blackbox.terminal import say
from tasks import report
from tasks.errors import ConfigurationError, ProblemError, RunFolderError, RunLockedError
from tasks.folder import changed_code
from tasks.folder.place import discard
from tasks.folder.run import Run
from tasks.folder.terms import Terms
from tasks.problem import problems
from tasks.running.finished import load
from tasks.training.interruption import ending_interrupts, same_directory

VARIABLE = "BLACKBOX_RUN"  # the environment variable with the folder to go on with


@contextmanager
def own_run(
    name: str,
    config: object,
    *,
    seeds: Sequence[int] = (0,),
    runs: Path | str = "runs",
    data: Path | str = "data",
) -> Iterator[Run]:
    """A block that works on a run: a new one, or the one that is resumed. A script has one such block.

    At its end the report is written and the table printed. Ctrl-C, SIGTERM and SIGUSR1 end the script with
    status 130 after a checkpoint, and with the line that resumes it.

    Args:
        name: The run's name, in its folder's name and in the report.
        config: The settings: a dataclass of plain values, such as a subclass of `tasks.Config`.
        seeds: The seeds of draws; there is one training with each.
        runs: The folder in which the run's folder is made.
        data: The folder for the script's data; noted in the run's configuration.

    Raises:
        ConfigurationError: The settings cannot be written as JSON.
        RunFolderError: The folder that is resumed is of another name or of other settings.
        RunLockedError: Another process is working on it.
        ProblemError: The block ended without `run.finish`.
    """
    problems.refuse_while_executing("tasks.own_run")
    old_variable = os.environ.pop(VARIABLE, None)  # not for programs that the script starts
    terms = Terms(name, "own", config, seeds, Path(data), script=_script())
    if old_variable is None:
        run = Run.create(Path(runs), terms)
    else:
        run = Run.open(Path(old_variable))
        if changes := run.changed(terms):
            raise RunFolderError(
                f"{run.path}: expected the settings that it was begun with, got others: {changes}. Put them "
                "back in the script, or execute it by itself for a new run."
            )
        changed_code.warn_of_changes(run)
    say(f"Run folder: {run.path}")
    resume = f"Resume with: blackbox resume {quote(str(run.path))}" if run.script else ""
    try:
        run = run.absolute()
        with ending_interrupts(), run.lock(), same_directory():
            with run.noting():
                yield run
            if not run.finished:
                raise ProblemError(
                    f"{run.path}: expected run.finish(rows) before the end of the block, got none. Give it a "
                    "tasks.Row for each method and seed."
                )
            report.write(run, None)
    except KeyboardInterrupt as stop:
        say(f"{str(stop) or 'Stopped.'} {resume}", sys.stderr)
        if not run.script:  # a notebook's process goes on
            raise
        raise SystemExit(130) from None
    except (Exception, SystemExit) as error:
        # another process may be at work on what is resumed
        if old_variable is not None or isinstance(error, RunLockedError) or not discard(run.path):
            say(resume, sys.stderr)
        raise
    load(run.path).show()


def execute(run: Run, workers: int = 1) -> NoReturn:
    """Go on with a run by executing its script, in the place of this process.

    Args:
        run: One that a script made.
        workers: Processes that were asked for.

    Raises:
        ConfigurationError: More than one process was asked for.
        RunFolderError: The script is gone.
    """
    if workers > 1:
        raise ConfigurationError("--workers: expected 1 for a run of a script, which has a loop of its own.")
    if not os.path.isfile(run.script):
        raise RunFolderError(f"{run.path}: expected the script {run.script}, found none. Put it back.")
    sys.stdout.flush()
    environment = os.environ | {VARIABLE: str(run.path.resolve())}
    os.execve(sys.executable, [sys.executable, run.script, *run.command[1:]], environment)


def _script() -> str:
    file = getattr(sys.modules["__main__"], "__file__", None)  # a notebook has none
    return "" if file is None else str(Path(file).resolve())
