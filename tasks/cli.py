"""`blackbox`: write, run, resume and report problems; load data; check and serve boxes, hand them on.

Nothing heavy is imported before a command is at work, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from blackbox.errors import BlackBoxError, BudgetError
from tasks import names
from tasks.commands import (
    CheckCommand,
    Command,
    CompareCommand,
    DataCommand,
    InfoCommand,
    ListCommand,
    NewCommand,
    ReportCommand,
    ResumeCommand,
    RunCommand,
    ServeCommand,
    TesseractCommand,
    parse,
)
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

if TYPE_CHECKING:
    from blackbox import BlackBoxFunction
    from tasks.runs.folder import Run

TOKEN = "BLACKBOX_TOKEN"  # the environment variable with what requests to a served box must bear
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


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of a command line: 0, 1 failed, 2 wrong use, 130 stopped by the user.

    Under torchrun, which starts again what does not end with 0, a run that was stopped ends with 0 too. One
    whose output nobody reads any more, as under `| head`, ends with 141.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
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
    before = warnings.formatwarning

    def sentence(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if category.__module__.split(".")[0] in ("blackbox", "simulators", "tasks", "zo"):
            return f"blackbox: {message}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = before


def _main(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from tasks.runs.machine import PACKAGE, version

        print(f"{PACKAGE} {version(PACKAGE)}")
        return 0
    if any(word.partition("=")[0] == "--workers" for word in arguments):
        # several processes, each with as many threads as there are cores, hinder each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    at_work: list[Run] = []  # the run that a `blackbox resume` would go on with
    try:
        return _do(parse(arguments), ["blackbox", *arguments], at_work)
    except SystemExit as stop:  # how tyro leaves, after help as well
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as stop:
        from tasks.workers import group, launch

        if group.rank() == 0:  # of several processes one has the run's folder, and the last word
            print(f"{str(stop) or 'Stopped.'} {_how_to_resume(at_work)}".rstrip(), file=sys.stderr)
        return launch.STOPPED if launch.launch_id() is not None else 130
    except Exception as error:
        said = None if "--debug" in arguments else _words(error, bool(at_work))
        if said is None:
            raise
        several = isinstance(error, WorkersError) or type(error).__name__ == "RanksError"
        if arguments[0] == "run" and not several and _discarded(at_work):
            advice = f"Nothing was begun; {at_work[0].path} is removed."
        else:
            advice = "" if isinstance(error, _FOR_GOOD) else _how_to_resume(at_work)
            if advice and isinstance(error, BudgetError):
                advice = f"{advice} --rows N"
            if advice and type(error).__name__ == "FailedQueriesError":  # its import takes seconds
                mend = "Resuming repeats this step: mend the box or the data (settings take a new run), then"
                advice = advice.replace("Resume with", mend, 1)
        gap = " " if advice and not said.endswith("\n") else ""
        print(f"blackbox: {said}{gap}{advice}".rstrip("\n"), file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError | RunFolderError) else 1


def _words(error: Exception, at_work: bool) -> str | None:
    """What the user is told of an error; None for those that nobody foresaw, which keep their traceback."""
    if isinstance(error, BlackBoxError) and type(error).__name__ != "ExecutorError":
        return str(error)  # first: some are of the system's kind too, such as a server that is not there
    if isinstance(error, BrokenPipeError) and not at_work:
        return None
    from tasks import tracebacks

    found = tracebacks.of_resources(error) or tracebacks.of_user(error)
    if found is None and isinstance(error, OSError):
        from tasks.runs.atomic import mend, told

        refused = told(error, "a file or folder that can be read and written")
        found = f"{refused} {mend(error) if at_work else 'Mend that, or give another folder.'}"
    return found


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
            return _check(command)
        case ServeCommand():
            return _serve(command)
        case TesseractCommand():
            print(_tesseract(command))
        case DataCommand():
            from tasks.image_classification.data.cifar import SOURCES, fetch

            fetch(SOURCES[command.name], command.data)
        case NewCommand():
            from tasks import new

            print(new.write(command.name, command.folder, command.kind))
        case ListCommand():
            print(names.listing())
        case InfoCommand():
            from tasks.installation import report

            print(report())
    return 0


def _run(command: RunCommand, line: list[str], at_work: list[Run]) -> int:
    from tasks.runs.folder import Run
    from tasks.workers import launch

    if command.dry_run:
        return _dry_run(command)

    def made() -> Run:
        before = launch.restarted(command.runs, command.task)
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
        launch.note_launch(run.path)
        return run

    return _together(command, line, made, at_work)


def _dry_run(command: RunCommand) -> int:
    """Say what a run will cost."""
    from tasks import cost, problems
    from tasks.tally import Tally, unnoted
    from tasks.work import checked, prepare

    kind, _ = problems.find(command.where)
    problem = kind(command.config, folder=command.data)
    wanted = checked(problem)
    boxes = list(problem.boxes.values())
    before = Tally(boxes).copy()
    before.rows_run -= unnoted(boxes)
    prepare(problem, wanted)
    print("\n".join(cost.lines(problem, wanted, command.seeds, timed=True, before=before)))
    return 0


def _resume(command: ResumeCommand, line: list[str], at_work: list[Run]) -> int:
    from tasks.runs.folder import Run
    from tasks.workers import group

    def made() -> Run:
        run = Run.open(command.folder)
        if not (command.trust or run.is_own):
            raise RunFolderError(
                f"{run.path}: expected a run that you made, got one from elsewhere, and to resume it is to "
                f"execute {run.code}. Look at that file, then: blackbox resume {quote(str(run.path))} --trust"
            )
        return run if command.rows is None else run.with_budget(command.rows)

    if not group.is_member():
        if Run.open(command.folder).finished:
            print("This run is finished; rebuilding its report.")
            return _report(ReportCommand(command.folder, trust=command.trust))
        run = made()
        if run.script:
            from tasks import own_loop

            own_loop.execute(run, command.workers)
    return _together(command, line, made, at_work)


def _together(
    command: RunCommand | ResumeCommand, line: list[str], made: Callable[[], Run], at_work: list[Run]
) -> int:
    """Work on a run, in this process or in several that are started here; or as one of those."""
    from tasks.workers import group, launch

    others = launch.started(line[1:], 1 if group.is_member() else command.workers)
    with others, group.joined(command.timeout), group.shared_run(made) as run:
        from tasks import api, tensorboard
        from tasks.interruption import ending_interrupts
        from tasks.progress import Progress
        from tasks.work import work

        first = group.rank() == 0
        if first:
            at_work.append(run)
        problem = api.problem_of(run)
        problem.folder = command.data or Path(run.data)
        if first:
            if command.tensorboard or (run.path / tensorboard.FOLDER).is_dir():
                run.callbacks.append(tensorboard.TensorBoard())
            api.finish(run, problem).show()
        elif not run.finished:  # as the first process does, in a folder that no one will see
            with ending_interrupts():
                work(problem, run, Progress())
    return 0


def _report(command: ReportCommand) -> int:
    from tasks.runs.folder import Run

    run = Run.open(command.folder)
    if not run.finished:
        raise RunFolderError(
            f"{run.path}: expected a finished run, got one without result.json. "
            f"Finish it with: blackbox resume {run.path}"
        )
    from tasks import api, report

    found = api.load(run.path, trust=command.trust)
    if run.problem and found.problem is None:
        print(
            f"The problem's own part is not made anew, for which {run.problem} would be executed: the run "
            "came from elsewhere, or the file is gone. If you trust it, add --trust."
        )
    if command.export is not None:
        print(f"Exported: {found.export(command.export)}")
    report.write(run, found.problem)
    found.show()
    return 0


def _compare(command: CompareCommand) -> None:
    from tasks.progress import print_table
    from tasks.report.compare import compare

    found = compare(command.folders, command.page)
    for run in found.runs.to_dict("records"):
        print(f"{run['run']}: {run['folder']} ({run['problem']}; seeds {run['seeds']})")
    for sentence in found.sentences:
        print(sentence)
    print_table(found.figures)
    if not found.settings.empty:
        print_table(found.settings)
    print(f"Page: {found.page}")


def _check(command: CheckCommand) -> int:
    """Print what was found; the exit status is 1 where a fault was."""
    from blackbox import conformance

    if command.samples is not None and not command.samples.is_file():
        raise ConfigurationError(
            f"--samples: no such file {command.samples}. Save rows with numpy.save, or by the inputs' names "
            "with numpy.savez."
        )
    box = _box(command)
    out = None if command.out is None else str(command.out)
    return conformance.command(
        box, command.samples, out, rows=command.rows, processes=command.processes, seed=command.seed
    )


def _serve(command: ServeCommand) -> int:
    """Serve until told to stop."""
    from blackbox.adapters import um_bridge

    box = _box(command)
    um_bridge.serve(
        box if command.name is None else {command.name: box},
        host=command.host,
        port=command.port,
        token=command.token or os.environ.get(TOKEN) or None,
        threads=command.threads,
        timeout=command.timeout,
    )
    return 0


def _tesseract(command: TesseractCommand) -> str:
    """Write a Tesseract, and say what to do with it."""
    from blackbox.registry_arguments import parse
    from tasks import tesseract

    return tesseract.write(
        _box(command),
        command.target,
        parse(command.arguments),
        command.folder,
        derivative=command.derivative,
        vectorized=command.vectorized,
        mu=command.mu,
    )


def _box(command: CheckCommand | ServeCommand | TesseractCommand) -> BlackBoxFunction:
    """The black box that a command names."""
    from blackbox.registry import make
    from blackbox.registry_arguments import parse

    names.check_single(command.target)
    return make(command.target, parse(command.arguments), names.functions())


def _discarded(at_work: list[Run]) -> bool:
    """Leave no folder of a new run that ended before anything was done: there is nothing to resume."""
    from tasks.runs.folder import discard
    from tasks.workers import launch

    return bool(at_work) and launch.launch_id() is None and discard(at_work[0].path)


def _how_to_resume(at_work: list[Run]) -> str:
    return f"Resume with: blackbox resume {quote(str(at_work[0].path))}" if at_work else ""


if __name__ == "__main__":
    sys.exit(main())
