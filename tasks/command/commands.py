"""The commands of the console script, each a function whose arguments tyro reads off its signature.

`blackbox run PROBLEM` is parsed apart, for its arguments are the problem's settings; see
`run_command`. Nothing heavy is imported before a command is at work, so that help comes at once.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from blackbox.terminal import say
from tasks.command import box_commands, run_command
from tasks.command.output_files import refuse_unwritable
from tasks.command.run_command import Folder, Tensorboard, Timeout, Trust, Workers
from tasks.configuration import names
from tasks.errors import CheckpointWarning, ConfigurationError, TrustError

if TYPE_CHECKING:
    from tasks.folder.run import Run

_TOP = (
    "Train PyTorch networks through code that cannot be differentiated.\n\n"
    "First steps: `blackbox new NAME` writes a problem of your own; `blackbox list` names what there is; "
    "`blackbox run PROBLEM --help` lists the presets, methods and settings; `blackbox --version` gives the "
    "version. With --debug a command shows the traceback of an error instead of a sentence."
)
_BOUNDS: dict[str, tuple[float, float]] = {
    "seeds": (1, 10_000),
    "workers": (1, max(16, 4 * (os.cpu_count() or 1))),
    "timeout": (0.001, 30 * 86_400),
    "rows": (1, 2**48),
    "chains": (1, 10_000),
    "learn": (1, 2**48),
    "seed": (0, 2**63 - 1),
    "port": (0, 65_535),
    "threads": (1, 1024),
}


def call(arguments: Sequence[str]) -> int:
    """The exit status of a command; `SystemExit` for help and mistakes, as tyro does it.

    Raises:
        ConfigurationError: A number is out of its range, or a problem's name or settings are wrong.
    """
    words = [word for word in arguments if word != "--debug"]
    if words[:1] == ["run"] and len(words) > 1 and not words[1].startswith("-"):
        command = run_command.parse(words[1], words[2:])
        _refuse_absurd(vars(command))
        return run_command.run(command)
    abouts = {name: " ".join((command.__doc__ or "").split()) for name, command in _COMMANDS.items()}
    abouts["run"] += (
        f" Names: {', '.join(names.problems())}; `blackbox run PROBLEM --help` lists presets, methods and "
        "settings."
    )
    if words and words[0] in _COMMANDS:
        if words[0] == "resume":
            run_command.refuse_twice(words, {"without"})
        return _tyro(_bounded(_COMMANDS[words[0]]), f"blackbox {words[0]}", abouts[words[0]], words[1:])
    union: Any = Union  # of what only has names: tyro says what there is
    nothing = dataclasses.make_dataclass("Nothing", [])
    parts = (Annotated[nothing, subcommand(name, description=about)] for name, about in abouts.items())
    return _tyro(union[tuple(parts)], "blackbox", _TOP, words)


def _tyro(command: Any, program: str, about: str, words: Sequence[str]) -> int:
    return tyro.cli(command, prog=program, description=about, args=words, config=(FlagCreatePairsOff,))


def _bounded(command: Callable[..., int]) -> Callable[..., int]:
    """The command, which refuses numbers that are absurd."""

    @wraps(command)
    def bounded(*positional: Any, **named: Any) -> int:
        _refuse_absurd(named)
        return command(*positional, **named)

    return bounded


def _refuse_absurd(values: Mapping[str, Any]) -> None:
    for name, (low, high) in _BOUNDS.items():
        value = values.get(name)
        if value is not None and not low <= value <= high:  # not so for NaN either
            raise ConfigurationError(f"--{name}: expected {low:,} to {high:,}, got {value!r}.")


def run(
    problem: Annotated[Positional[str], arg(help="What to run, before any option.", metavar="PROBLEM")],
) -> int:
    """Train and judge a network by several methods, and write a report.

    PROBLEM is a name, module:Class, or file.py:Class; a file is executed.
    """
    raise ConfigurationError(f"run: expected a problem before any option, got {problem!r} behind one.")


def new(
    name: Annotated[
        Positional[str], arg(help="What it is called, such as brusselator or my-problem.", metavar="NAME")
    ],
    *,
    kind: Annotated[
        Literal["correct", "design", "program", "hosted", "classifier", "posterior"],
        arg(
            help="correct: a network corrects a solver in a loop. design: it proposes what a box scores. "
            "program: it sets a program that reads and writes files. hosted: a program in C, C++ or Fortran "
            "calls it. classifier: it stands before a classifier that only answers. posterior: unknowns of a "
            "box that was measured, to be drawn by `blackbox sample`."
        ),
    ] = "correct",
    folder: Annotated[Path, arg(help="Where the files are written.")] = Path("."),
) -> int:
    """Write a small working problem and its test, to be changed into your own."""
    from tasks.command import new

    say(new.write(name, folder, kind))
    return 0


def resume(
    folder: Folder,
    *,
    data: Annotated[Path | None, arg(help="Folder of the problem's data, if it moved.")] = None,
    rows: Annotated[int | None, arg(help="A larger budget of rows, in the place of the run's.")] = None,
    without: Annotated[
        tuple[str, ...],
        arg(
            help="Methods of which no more is done; what is finished of them stays in the table.",
            metavar="METHOD ...",
            help_behavior_hint="(default: none)",
        ),
    ] = (),
    tensorboard: Tensorboard = False,
    workers: Workers = 1,
    timeout: Timeout = 1800.0,
    trust: Trust = False,
) -> int:
    """Go on with a run that was stopped or killed, to the result that it would have had.

    The code that the run names, its problem's and what settings name, is executed.
    """
    from tasks.folder.run import Run
    from tasks.report.page import NAME
    from tasks.workers import group

    def opened() -> Run:
        run = Run.open(folder)
        if not trust:
            _refuse_untrusted(run)
        if rows is not None:
            run = run.with_budget(rows)
        return run if data is None else run.with_data(data)

    if not group.is_member():
        old_run = Run.open(folder)
        # without a page callbacks do not have the result yet, and they are code
        if old_run.finished and ((folder / NAME).is_file() or not (trust or _is_own(old_run))):
            if data is not None:
                old_run.with_data(data)
            asked = [*["--rows"] * (rows is not None), *["--without"] * bool(without)]
            unread = f"{' and '.join(asked)} change{'s' * (len(asked) == 1)} nothing, " if asked else ""
            say(f"This run is finished; {unread}rebuilding its report.")
            return report(folder, trust=trust)
        run = opened()
        if run.script:
            if without:
                raise ConfigurationError(
                    "--without: expected none for a script, which has a loop of its own."
                )
            from tasks.running import own_loop

            own_loop.execute(run, workers)

    from tasks.running import together

    invocation = run_command.at_work()
    together.work_on(
        # `opened` has refused what is not trusted
        lambda: together.taken_up(opened(), trusted=True, without=without),
        invocation.note,
        invocation.words,
        tensorboard=tensorboard,
        workers=workers,
        timeout=timeout,
        without=without,
    )
    return 0


def _refuse_untrusted(run: Run) -> None:
    """Raise a `TrustError` where the code that the run names came from elsewhere."""
    if run.problem:
        from tasks.running.resume import problem_of

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # of code that has changed: the plan says so
            problem_of(run)
    else:
        run.refuse_untrusted()


def _is_own(run: Run) -> bool:
    try:
        _refuse_untrusted(run)
    except TrustError:
        return False
    return True


def report(
    folder: Folder,
    *,
    export: Annotated[
        bool,
        arg(help="Write the arrays of the run's evaluation as NetCDF files, into the folder's `export`."),
    ] = False,
    trust: Trust = False,
) -> int:
    """Rebuild report and pictures of a run: of a finished one, or of what one has that was stopped.

    What the problem itself adds to the report takes its code, which is executed.
    """
    from tasks import report
    from tasks.folder.run import Run
    from tasks.running.finished import loaded

    run = Run.open(folder)
    finished = loaded(run, trust)
    if run.problem and finished.problem is None:
        code = run.problem if finished.untrusted is None else finished.untrusted.code
        say(
            f"The page stays as it is: to make it anew would execute {code}, and the run came from "
            "elsewhere, or the file is gone. If you trust it, add --trust."
        )
    if export:
        say(f"Exported: {finished.export()}")
    report.write(run, finished.problem)
    finished.show()
    return 0


def sample(
    problem: Annotated[Positional[str], arg(help="What to draw from.", metavar="PROBLEM")],
    *,
    rows: Annotated[int, arg(help="Rows of the box in all; more than before prolong the chains.")],
    chains: Annotated[int, arg(help="Chains side by side, in one call of the box.")] = 8,
    seed: Annotated[int, arg(help="Of all that is drawn.")] = 0,
    learn: Annotated[
        int | None,
        arg(help="Rows to learn from: if left out, 50 and 25 (with a twin 5) an unknown, at most a fifth."),
    ] = None,
    out: Annotated[
        Path | None, arg(help="Folder; where a sampling was begun it goes on. A new one in runs if left out.")
    ] = None,
) -> int:
    """Draw an exact posterior through a box that gives values alone, and write draws and a report.

    PROBLEM is module:Class or file.py:Class, a tasks.Posterior; a file is executed.
    """
    from tasks.listeners.progress import make_progress
    from tasks.problem import problems
    from tasks.problem.posterior import Posterior
    from tasks.running import sampling_run

    kind, where = problems.found(problem, Posterior)
    words = tuple(run_command.at_work().words)
    job = sampling_run.Sampling(kind(), where, rows, chains, seed, learn, words)
    sampling_run.carry_out(job, out, make_progress())
    return 0


def compare(
    folders: Annotated[
        Positional[tuple[Path, ...]],
        arg(help="Folders of two runs or more.", metavar="FOLDER FOLDER ...", help_behavior_hint=""),
    ],
    *,
    page: Annotated[Path, arg(help="HTML file to write.")] = Path("comparison.html"),
) -> int:
    """Set runs side by side: settings that differ, figures, one plot; no code of a problem is executed."""
    from blackbox.terminal import print_table
    from tasks.report.compare import compare

    refuse_unwritable("--page", page, ".html")
    comparison = compare(folders, page)
    for run in comparison.runs.to_dict("records"):
        say(f"{run['run']}: {run['folder']} ({run['problem']}; seeds {run['seeds']})")
    for sentence in comparison.sentences:
        say(sentence)
    say(comparison.caption)
    print_table(comparison.figures)
    if not comparison.settings.empty:
        print_table(comparison.settings)
    say(f"Page: {comparison.page}")
    return 0


def data(
    name: Annotated[Positional[Literal["cifar10", "cifar100"]], arg(help="The data set.")],
    *,
    data: Annotated[Path, arg(help="Where data is kept; `blackbox run` has the same option.")] = Path("data"),
) -> int:
    """Load a data set from its own site, and check it."""
    from blackbox.registry import find

    find(names.DATA_SETS[name], {})(name, data)
    return 0


def list_names() -> int:
    """List the names of black boxes and problems, those of other packages included."""
    say(names.listing())
    return 0


def info() -> int:
    """Show versions and the machine."""
    from tasks.command.installation import report

    say(report())
    return 0


_COMMANDS: dict[str, Callable[..., int]] = {
    "run": run,
    "sample": sample,
    "new": new,
    "resume": resume,
    "report": report,
    "compare": compare,
    "check": box_commands.check,
    "serve": box_commands.serve,
    "host": box_commands.host,
    "tesseract": box_commands.tesseract,
    "data": data,
    "list": list_names,
    "info": info,
}
