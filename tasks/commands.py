"""The commands of the console script and their arguments, made from the presets by tyro."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from tasks import names

Debug = Annotated[bool, arg(help="Show the traceback of an error instead of a sentence.")]
Folder = Annotated[Positional[Path], arg(help="Folder of the run.", metavar="FOLDER")]
Tensorboard = Annotated[bool, arg(help="Write the metrics as TensorBoard event files too.")]
Workers = Annotated[
    int, arg(help="Processes on this machine that share the queries out; on several, start it by torchrun.")
]
Timeout = Annotated[
    float, arg(help="Seconds after which a process of several that does not answer is given up.")
]
_TOP = (
    "Train PyTorch networks through code that cannot be differentiated.\n\n"
    "First steps: `blackbox list` names what there is; `blackbox run TASK --help` lists the presets and "
    "every setting of a task; `blackbox --version` gives the version."
)


class RunCommand:
    """A task to run; the dataclass that tyro fills is made for the task and preset at hand."""

    task: str
    preset: str
    seeds: int
    runs: Path
    data: Path
    config: Any
    tensorboard: bool
    workers: int
    timeout: float
    dry_run: bool
    debug: bool
    where: str
    """Where the problem's class is, as `tasks.problems.find` takes it; "" for a task of the old kind."""


@dataclass(frozen=True)
class ResumeCommand:
    """Go on with a run that was stopped or killed, to the result that it would have had."""

    folder: Folder
    data: Annotated[Path | None, arg(help="Folder of the task's data, if it moved.")] = None
    tensorboard: Tensorboard = False
    workers: Workers = 1
    timeout: Timeout = 1800.0
    debug: Debug = False


@dataclass(frozen=True)
class ReportCommand:
    """Rebuild report and pictures of a finished run."""

    folder: Folder
    debug: Debug = False


@dataclass(frozen=True)
class CompareCommand:
    """Set runs side by side: settings that differ, figures, one plot; no code of a problem is executed."""

    folders: Annotated[
        Positional[tuple[Path, ...]], arg(help="Folders of two runs or more.", metavar="FOLDER")
    ]
    page: Annotated[Path, arg(help="HTML file to write.")] = Path("comparison.html")
    debug: Debug = False


Target = Annotated[
    Positional[str],
    arg(help="A name of `blackbox list`, module:Class, or file.py:Class.", metavar="TARGET"),
]
Arguments = Annotated[
    Positional[tuple[str, ...]],
    arg(help="What it is made with: numbers, true, false, null or text.", metavar="NAME=VALUE"),
]


@dataclass(frozen=True)
class CheckCommand:
    """Examine a black box: is it fit to be trained through, and with which mu?

    The exit status is 0 where no fault was found, 1 otherwise.
    """

    target: Target
    arguments: Arguments = ()
    samples: Annotated[
        Path | None, arg(help="Rows such as training will meet: .npy, or .npz with an array for each input.")
    ] = None
    out: Annotated[Path | None, arg(help="File for the report as JSON; - for standard output.")] = None
    rows: Annotated[int | None, arg(help="The most rows to run.")] = None
    processes: Annotated[bool, arg(help="Whether to try it in other processes too.")] = True
    seed: Annotated[int, arg(help="Of all draws.")] = 0
    debug: Debug = False


@dataclass(frozen=True)
class ServeCommand:
    """Serve a black box by the UM-Bridge protocol, until Ctrl-C."""

    target: Target
    arguments: Arguments = ()
    host: Annotated[
        str, arg(help="Address to listen at; the default is reached from this machine alone.")
    ] = "127.0.0.1"
    port: Annotated[int, arg(help="Port to listen at; 0 takes a free one, and prints it.")] = 4242
    token: Annotated[
        str | None,
        arg(help="What requests must bear. Others can read it here: better set BLACKBOX_TOKEN."),
    ] = None
    name: Annotated[str | None, arg(help="Of the model, for clients; None for its class's.")] = None
    threads: Annotated[int, arg(help="Evaluations at a time, for a box that may run in threads.")] = 1
    timeout: Annotated[
        float | None, arg(help="Seconds after which an evaluation is answered with an error; None waits.")
    ] = None
    debug: Debug = False


@dataclass(frozen=True)
class DataCommand:
    """Load a data set from its own site, going on where an earlier attempt broke off, and check it."""

    name: Annotated[Positional[Literal["cifar10", "cifar100"]], arg(help="The data set.")]
    data: Annotated[Path, arg(help="Where data is kept; `blackbox run` has the same option.")] = Path("data")
    debug: Debug = False


@dataclass(frozen=True)
class ListCommand:
    """List the names of black boxes and tasks, those of other packages included."""

    debug: Debug = False


@dataclass(frozen=True)
class InfoCommand:
    """Show versions, devices, and which optional packages are missing."""

    debug: Debug = False


_OTHERS = {
    "resume": ResumeCommand,
    "report": ReportCommand,
    "compare": CompareCommand,
    "check": CheckCommand,
    "serve": ServeCommand,
    "data": DataCommand,
    "list": ListCommand,
    "info": InfoCommand,
}
Command = (
    RunCommand
    | ResumeCommand
    | ReportCommand
    | CompareCommand
    | CheckCommand
    | ServeCommand
    | DataCommand
    | ListCommand
    | InfoCommand
)


def parse(arguments: Sequence[str], tasks: Mapping[str, str]) -> Command:
    """The command that a command line asks for; `SystemExit` for help and mistakes, as tyro does it.

    Args:
        arguments: the words after `blackbox`.
        tasks: task -> its package, whose `config` module gives `PRESETS` and `DESCRIPTION`.
    """
    if (
        arguments[:1] == ["run"]
        and len(arguments) > 1
        and not arguments[1].startswith("-")
        and arguments[1] not in tasks
    ):
        target, words = arguments[1], arguments[2:]
        kind, about = _problem_command(target, words)
        return _tyro(kind, f"blackbox run {target}", about, words)
    place = _place_of_task(arguments, tasks)
    if place is not None:
        task, words = arguments[place], [*arguments[1:place], *arguments[place + 1 :]]
        kind, about = _run_command(task, tasks[task], words)
        # parsed on its own, with the task in `prog`: messages then point to the right help
        return _tyro(kind, f"blackbox run {task}", about, words)

    def named(kind: Any, name: str, description: str) -> Any:  # noqa: ANN401
        return Annotated[kind, tyro.conf.subcommand(name=name, description=description, prefix_name=False)]

    about = (
        f"Run a task from a preset. Tasks: {', '.join(tasks)}; "
        "`blackbox run TASK --help` lists presets and settings."
    )
    literal: Any = Literal
    which = Annotated[literal[tuple(tasks)], arg(help="What to run, before any option.")]
    run: Any = dataclasses.make_dataclass("Run", [("task", Positional[which])])
    commands = [named(kind, name, kind.__doc__ or "") for name, kind in _OTHERS.items()]
    union: Any = Union
    return _tyro(union[(named(run, "run", about), *commands)], "blackbox", _TOP, arguments)


def _tyro(kind: Any, program: str, about: str, words: Sequence[str]) -> Any:  # noqa: ANN401
    return tyro.cli(kind, prog=program, description=about, args=list(words), config=(FlagCreatePairsOff,))


def _place_of_task(arguments: Sequence[str], tasks: Mapping[str, str]) -> int | None:
    """Where in `run ... TASK ...` the task is named; a folder may have the same name."""
    if list(arguments[:1]) != ["run"]:
        return None
    places = (place for place, word in enumerate(arguments) if word in tasks)
    return next((place for place in places if arguments[place - 1] not in ("--runs", "--data")), None)


def _run_command(task: str, package: str, words: Sequence[str]) -> tuple[Any, str]:
    """The dataclass of `run` for a task and the preset that the words name, and its description.

    The preset is found before tyro parses: it is the default from which `--config.SETTING` departs.
    """
    module = names.part(package, "config")
    presets = module.PRESETS
    asked = _option(words, "--preset")
    preset = asked if asked in presets else next(iter(presets))  # tyro refuses a wrong name, with the choices
    literal: Any = Literal
    choices = Annotated[literal[tuple(presets)], arg(help="Where the settings start from.")]
    fields: list[Any] = [
        ("preset", choices, preset),
        ("seeds", Annotated[int, arg(help="How many seeds: 0, 1, ..., one training each.")], 1),
        ("runs", Annotated[Path, arg(help="Where run folders are made.")], Path("runs")),
        ("data", Annotated[Path, arg(help="Where the task's data is kept.")], Path("data")),
        ("tensorboard", Tensorboard, False),
        ("workers", Workers, 1),
        ("timeout", Timeout, 1800.0),
        ("debug", Debug, False),
        ("config", type(presets[preset]), presets[preset]),
    ]
    about = f"{module.DESCRIPTION}\n\nThe defaults below are those of the preset {preset!r}."
    kind = dataclasses.make_dataclass(
        "Run",
        fields,
        bases=(RunCommand,),
        frozen=True,
        namespace={"task": task, "where": "", "dry_run": False},
    )
    return kind, about


def _problem_command(target: str, words: Sequence[str]) -> tuple[Any, str]:
    """The dataclass of `run` for a problem and the preset that the words name, and its description."""
    from tasks import methods, problems

    problem, where = problems.find(target)
    presets = dict(problem.presets) or {"default": problem.Config()}
    asked = _option(words, "--preset")
    preset = asked if asked in presets else next(iter(presets))
    literal: Any = Literal
    choices = Annotated[literal[tuple(presets)], arg(help="Where the settings start from.")]
    fields: list[Any] = [
        ("preset", choices, preset),
        ("seeds", Annotated[int, arg(help="How many seeds: 0, 1, ..., one training each.")], 1),
        ("runs", Annotated[Path, arg(help="Where run folders are made.")], Path("runs")),
        ("data", Annotated[Path, arg(help="Where data is kept.")], Path("data")),
        ("tensorboard", Tensorboard, False),
        ("workers", Workers, 1),
        ("timeout", Timeout, 1800.0),
        ("dry_run", Annotated[bool, arg(help="Say what it will cost, and run nothing.")], False),
        ("debug", Debug, False),
        ("config", Annotated[type(presets[preset]), arg(name="")], presets[preset]),
    ]
    lines = [f"  {name}: {method.about}" for name, method in methods.methods_of(problem).items()]
    about = "\n".join(
        [
            problem.about(),
            "",
            "Methods:",
            *lines,
            "",
            f"The defaults below are those of the preset {preset!r}.",
        ]
    )
    namespace = {"task": problem.name(), "where": where}
    kind = dataclasses.make_dataclass("Run", fields, bases=(RunCommand,), frozen=True, namespace=namespace)
    return kind, about


def _option(arguments: Sequence[str], name: str) -> str | None:
    """The value of `--name VALUE` or `--name=VALUE`, the last one if given twice."""
    found = None
    for index, word in enumerate(arguments):
        if word == name and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found
