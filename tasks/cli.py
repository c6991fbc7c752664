"""`blackbox`: run a task from a preset, resume it, rebuild its report; load data; check and serve boxes.

Nothing heavy is imported before a command is at work, so that help comes at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from blackbox.errors import BlackBoxError
from tasks import box_commands, names
from tasks.commands import (
    CheckCommand,
    Command,
    CompareCommand,
    DataCommand,
    InfoCommand,
    ListCommand,
    ReportCommand,
    ResumeCommand,
    RunCommand,
    ServeCommand,
    parse,
)
from tasks.errors import ConfigurationError, RunFolderError, StorageError, WorkersError

if TYPE_CHECKING:
    import pandas

    from tasks.api import FinishedRun
    from tasks.runs.folder import Run


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 0, 1 failed, 2 wrong use, 130 stopped by the user.

    Under torchrun, which starts again what does not end with 0, a run that was stopped ends with 0 too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        from tasks.runs.machine import PACKAGE, version

        print(f"{PACKAGE} {version(PACKAGE)}")
        return 0
    debug = "--debug" in arguments
    at_work: list[Run] = []  # the run that a `blackbox resume` would go on with
    try:
        return _do(parse(arguments, names.tasks()), ["blackbox", *arguments], at_work)
    except SystemExit as stop:  # how tyro leaves, after help as well
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        from tasks.workers import elastic, group

        if group.rank() == 0:  # of several processes one has the run's folder, and the last word
            print(f"{str(stop) or 'Stopped.'}{_how_to_resume(at_work)}", file=sys.stderr)
        return elastic.STOPPED if elastic.launch_id() is not None else 130
    except Exception as error:
        # Ours first: some are of the system's kind too, such as a server that is not there.
        if not debug and isinstance(error, BlackBoxError):
            broken = isinstance(error, StorageError | WorkersError) or type(error).__name__ == "RanksError"
            if not broken and arguments[0] == "run":
                _discard_untouched(at_work)
            advice = _how_to_resume(at_work) if broken else ""
            print(f"blackbox: {error}{advice}", file=sys.stderr)
            return 2 if isinstance(error, ConfigurationError | RunFolderError) else 1
        if debug or not isinstance(error, OSError):
            raise
        from tasks.runs.storage import mend

        advice = f" {mend(error)}" if at_work else " Mend that, or give another folder."
        said = f"{_sentence(error)}{advice}{_how_to_resume(at_work)}"
        print(f"blackbox: {said}", file=sys.stderr)
        return 1


def _do(command: Command, line: list[str], at_work: list[Run]) -> int:
    match command:
        case RunCommand():
            return _run(command, line, at_work)
        case ResumeCommand():
            return _resume(command, line, at_work)
        case ReportCommand():
            return _report(command)
        case CompareCommand():
            _compare(command)
        case CheckCommand():
            return box_commands.check(command)
        case ServeCommand():
            return box_commands.serve(command)
        case DataCommand():
            from tasks.image_classification.data.cifar import SOURCES
            from tasks.image_classification.data.download import fetch

            fetch(SOURCES[command.name], command.data)
        case ListCommand():
            print(names.listing())
        case InfoCommand():
            from tasks.installation import report

            print(report())
    return 0


def _run(command: RunCommand, line: list[str], at_work: list[Run]) -> int:
    from tasks.runs.folder import Run
    from tasks.workers import elastic

    if command.seeds < 1:
        raise ConfigurationError(f"--seeds: expected at least 1, got {command.seeds}. Give how many to run.")

    if command.dry_run:
        return _dry_run(command)

    def made() -> Run:
        before = elastic.restarted(command.runs, command.task)
        if before is not None:
            print(f"Going on with {before}.", flush=True)
            return Run.open(before)
        run = Run.create(
            command.runs,
            command.task,
            command.preset,
            command.config,
            range(command.seeds),
            data=command.data,
            command=line,
            problem=command.where,
        )
        elastic.note(run.path)
        return run

    return _together(command, line, made, at_work)


def _dry_run(command: RunCommand) -> int:
    """Say what a run will cost."""
    from tasks import cost, methods, problems
    from tasks.work import prepare

    kind, _ = problems.find(command.where)
    problem = kind(command.config, folder=command.data)
    wanted = methods.chosen(problem)
    prepare(problem)
    print("\n".join(cost.lines(problem, wanted, command.seeds, timed=True)))
    return 0


def _resume(command: ResumeCommand, line: list[str], at_work: list[Run]) -> int:
    from tasks.runs.folder import Run

    def made() -> Run:
        run = Run.open(command.folder)
        if run.finished:
            print("This run is finished; rebuilding its report.")
        return run

    return _together(command, line, made, at_work)


def _together(
    command: RunCommand | ResumeCommand, line: list[str], made: Callable[[], Run], at_work: list[Run]
) -> int:
    """Work on a run, in this process or in several that are started here; or as one of those."""
    from tasks.workers import group, launch

    if command.workers < 1:
        raise ConfigurationError(f"--workers: expected at least 1, got {command.workers}.")
    if command.workers > 1 and not group.is_member():
        return launch.launch(line[1:], command.workers)
    with group.joined(command.timeout), group.shared_run(made) as run:
        data = command.data or Path(run.data)
        if group.rank() > 0:
            return _help(run, data)
        at_work.append(run)
        return _work(run, data, command.tensorboard)


def _report(command: ReportCommand) -> int:
    from tasks.runs.folder import Run

    run = Run.open(command.folder)
    if not run.finished:
        raise RunFolderError(
            f"{run.path}: expected a finished run, got one without result.json. "
            f"Finish it with: blackbox resume {run.path}"
        )
    if run.problem:
        from tasks import api, report

        report.write(run, api.problem_of(run))
        _print(api.load(run.path))
        return 0
    return _show(run)


def _work(run: Run, data: Path, tensorboard: bool) -> int:
    """Run what is left of a run, and show what came out."""
    from tasks.interruption import ending_interrupts

    if run.problem:
        return _work_on_problem(run, data, tensorboard)
    package = _package(run)
    with ending_interrupts(), run.lock():
        if not run.finished:
            from tasks.progress import make_progress

            task = names.part(package, "task")
            with run.tensorboard(tensorboard), make_progress() as progress:
                progress.say(f"Run folder: {run.path}")
                task.run(run, progress, data)
        return _show(run)


def _work_on_problem(run: Run, data: Path, tensorboard: bool) -> int:
    from tasks import api

    problem = api.problem_of(run)
    problem.folder = data
    _print(api.finish(run, problem, tensorboard=tensorboard))
    return 0


def _compare(command: CompareCommand) -> None:
    from tasks.report.compare import compare

    found = compare(command.folders, command.page)
    for run in found.runs.to_dict("records"):
        print(f"{run['run']}: {run['folder']} ({run['problem']}; seeds {run['seeds']}; {run['state']})")
    for sentence in found.sentences:
        print(sentence)
    _print_table(found.figures)
    if not found.settings.empty:
        _print_table(found.settings)
    print(f"Page: {found.page}")


def _print(found: FinishedRun) -> None:
    from tasks import report

    _print_table(report.shown(found.result))
    print(f"Report: {found.report}\nRun folder: {found.path}")


def _print_table(lines: pandas.DataFrame) -> None:
    """Numbers and text to the right, the first column to the left."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for place, name in enumerate(lines.columns):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for line in lines.to_numpy().tolist():
        table.add_row(*map(str, line))
    Console().print(table, markup=False, highlight=False)


def _help(run: Run, data: Path) -> int:
    """Do what the first process does, in a folder that no one will see."""
    from tasks.interruption import ending_interrupts
    from tasks.progress import Progress

    if run.problem:
        from tasks import api
        from tasks.work import work

        problem = api.problem_of(run)
        problem.folder = data
        with ending_interrupts():
            if not run.finished:
                work(problem, run, Progress())
        return 0
    with ending_interrupts():
        if not run.finished:
            names.part(_package(run), "task").run(run, Progress(), data)
    return 0


def _show(run: Run) -> int:
    """Write the report and print the table and where things are."""
    from rich.console import Console

    report = names.part(_package(run), "report")
    page = report.write_report(run)
    Console().print(report.summary(run), markup=False, highlight=False)
    print(f"Report: {page}\nRun folder: {run.path}")
    return 0


def _package(run: Run) -> str:
    known = names.tasks()
    if run.task not in known:
        from tasks.configuration import nearest

        raise RunFolderError(
            f"{run.path}: expected a task that is installed, got {run.task!r}. {nearest(run.task, known)}"
        )
    return known[run.task]


def _discard_untouched(at_work: list[Run]) -> None:
    """Leave no folder of a new run that was refused before anything was done: there is nothing to resume."""
    from tasks.runs.untouched import discard
    from tasks.workers import elastic

    if at_work and elastic.launch_id() is None and discard(at_work[0].path):
        print(f"Nothing was begun; {at_work[0].path} is removed.")


def _how_to_resume(at_work: list[Run]) -> str:
    return f" Resume with: blackbox resume {quote(str(at_work[0].path))}" if at_work else ""


def _sentence(error: OSError) -> str:
    """What the system refused, on one line; h5py gives neither a file nor a reason, but a long text."""
    reason = " ".join((error.strerror or str(error) or type(error).__name__).split())
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}expected a file or folder that can be read and written, got {reason!r}."


if __name__ == "__main__":
    sys.exit(main())
