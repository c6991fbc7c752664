"""The commands of the console script and their arguments, made from a problem's settings by tyro."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from tasks import names
from tasks.errors import ConfigurationError

Debug = Annotated[bool, arg(help="Show the traceback of an error instead of a sentence.")]
Folder = Annotated[Positional[Path], arg(help="Folder of the run.", metavar="FOLDER")]
Tensorboard = Annotated[bool, arg(help="Write the metrics as TensorBoard event files too.")]
Workers = Annotated[
    int, arg(help="Processes on this machine that share the queries out; on several, start it by torchrun.")
]
Timeout = Annotated[
    float, arg(help="Seconds after which a process of several that does not answer is given up.")
]
Trust = Annotated[bool, arg(help="Execute the code that the run names, although it came from elsewhere.")]
_TOP = (
    "Train PyTorch networks through code that cannot be differentiated.\n\n"
    "First steps: `blackbox new NAME` writes a problem of your own; `blackbox list` names what there is; "
    "`blackbox run PROBLEM --help` lists the presets, methods and settings; `blackbox --version` gives the "
    "version."
)
_BOUNDS: dict[str, tuple[float, float]] = {
    "seeds": (1, 10_000),
    "workers": (1, max(16, 4 * (os.cpu_count() or 1))),
    "timeout": (0.001, 30 * 86_400),
    "rows": (1, 2**48),
    "seed": (0, 2**63 - 1),
    "port": (0, 65_535),
    "threads": (1, 1024),
}


@dataclass(frozen=True)
class RunCommand:
    """A problem to run; tyro fills a subclass that is made for the problem and the preset at hand."""

    preset: str
    seeds: Annotated[int, arg(help="How many seeds: 0, 1, ..., one training each.")] = 1
    runs: Annotated[Path, arg(help="Where run folders are made.")] = Path("runs")
    data: Annotated[Path, arg(help="Where the problem's data is kept.")] = Path("data")
    tensorboard: Tensorboard = False
    workers: Workers = 1
    timeout: Timeout = 1800.0
    dry_run: Annotated[bool, arg(help="Say what it will cost, and train nothing.")] = False
    debug: Debug = False
    config: Any = None

    task: ClassVar[str]
    where: ClassVar[str]
    """Where the problem's class is, as `tasks.problems.find` takes it."""
    kind: ClassVar[type[Any]]
    """The problem's class."""


@dataclass(frozen=True)
class NewCommand:
    """Write a small working problem and its test, to be changed into your own."""

    name: Annotated[Positional[str], arg(help="What it is called, such as brusselator or my-problem.")]
    kind: Annotated[
        Literal["correct", "design", "program"],
        arg(
            help="A solver in a loop that a network corrects; a design that a box scores; or a program that "
            "reads and writes files."
        ),
    ] = "correct"
    folder: Annotated[Path, arg(help="Where the two files are written.")] = Path(".")
    debug: Debug = False


@dataclass(frozen=True)
class ResumeCommand:
    """Go on with a run that was stopped or killed, to the result that it would have had.

    The file that the run's problem is in is executed.
    """

    folder: Folder
    data: Annotated[Path | None, arg(help="Folder of the problem's data, if it moved.")] = None
    rows: Annotated[int | None, arg(help="A larger budget of rows, in the place of the run's.")] = None
    tensorboard: Tensorboard = False
    workers: Workers = 1
    timeout: Timeout = 1800.0
    trust: Trust = False
    debug: Debug = False


@dataclass(frozen=True)
class ReportCommand:
    """Rebuild report and pictures of a finished run.

    What the problem itself adds to the report takes its code, which is executed.
    """

    folder: Folder
    export: Annotated[
        Literal["netcdf", "vtk"] | None,
        arg(help="Write the arrays of the run's evaluation for other programs, into the folder's `export`."),
    ] = None
    trust: Trust = False
    debug: Debug = False


@dataclass(frozen=True)
class CompareCommand:
    """Set runs side by side: settings that differ, figures, one plot; no code of a problem is executed."""

    folders: Annotated[
        Positional[tuple[Path, ...]],
        arg(help="Folders of two runs or more.", metavar="FOLDER FOLDER ...", help_behavior_hint=""),
    ]
    page: Annotated[Path, arg(help="HTML file to write.")] = Path("comparison.html")
    debug: Debug = False


Target = Annotated[
    Positional[str],
    arg(
        help="A name of `blackbox list`, module:Class, or file.py:Class; a function that makes a black box "
        "may stand in the class's place.",
        metavar="TARGET",
    ),
]
Arguments = Annotated[
    Positional[tuple[str, ...]],
    arg(
        help="What it is made with: numbers, true, false, null or text.",
        metavar="NAME=VALUE ...",
        help_behavior_hint="(default: nothing)",
    ),
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
    rows: Annotated[int, arg(help="The most rows to run; some 6,000 measure every line.")] = 1000
    processes: Annotated[
        bool, arg(help="Do not try it in other processes.", help_behavior_hint="(default: it is tried)")
    ] = True
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
class TesseractCommand:
    """Write a black box as a Tesseract: schemas, `apply`, and a derivative from function values."""

    target: Target
    folder: Annotated[Positional[Path], arg(help="Where the files are written.", metavar="FOLDER")]
    arguments: Arguments = ()
    derivative: Annotated[
        Literal["differences", "probes", "values"],
        arg(
            help="Central differences: two rows for each number of the inputs. Or a tangent that is learned "
            "over the calls: from two probes beside each solve, or from the values of the solves alone."
        ),
    ] = "differences"
    mu: Annotated[float, arg(help="How far a difference moves a number, in the scale of its input.")] = 1e-3
    vectorized: Annotated[bool, arg(help="Whether arrays have an open first axis, for many rows a call.")] = (
        False
    )
    debug: Debug = False


@dataclass(frozen=True)
class DataCommand:
    """Load a data set from its own site, and check it."""

    name: Annotated[Positional[Literal["cifar10", "cifar100"]], arg(help="The data set.")]
    data: Annotated[Path, arg(help="Where data is kept; `blackbox run` has the same option.")] = Path("data")
    debug: Debug = False


@dataclass(frozen=True)
class ListCommand:
    """List the names of black boxes and problems, those of other packages included."""

    debug: Debug = False


@dataclass(frozen=True)
class InfoCommand:
    """Show versions, devices, and which optional packages are missing."""

    debug: Debug = False


Command = (
    RunCommand
    | NewCommand
    | ResumeCommand
    | ReportCommand
    | CompareCommand
    | CheckCommand
    | ServeCommand
    | TesseractCommand
    | DataCommand
    | ListCommand
    | InfoCommand
)
_OTHERS = {kind.__name__.removesuffix("Command").lower(): kind for kind in get_args(Command)[1:]}


def parse(arguments: Sequence[str]) -> Command:
    """The command that a command line asks for; `SystemExit` for help and mistakes, as tyro does it.

    Args:
        arguments: The words after `blackbox`.

    Raises:
        ConfigurationError: A number is out of its range, or a problem's name or settings are wrong.
    """
    if list(arguments[:1]) == ["run"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        target, words = arguments[1], arguments[2:]
        kind, about = _problem_command(target, words)
        _refuse_values_of_flags(kind, words)
        # parsed on its own, with the problem in `prog`: messages then point to the right help
        command = _tyro(kind, f"blackbox run {target}", about, words)
        from tasks import methods

        methods.named(kind.kind, command.config.methods)  # before there is a folder
        return _in_bounds(command)

    if arguments and arguments[0] in _OTHERS:
        _refuse_values_of_flags(_OTHERS[arguments[0]], arguments[1:])

    def named(kind: Any, name: str, description: str) -> Any:  # noqa: ANN401
        return Annotated[kind, tyro.conf.subcommand(name=name, description=description, prefix_name=False)]

    about = (
        "Train and judge a network by several methods, and write a report. PROBLEM is a name, module:Class, "
        "or file.py:Class; a file is executed. "
        f"Names: {', '.join(names.problems())}; `blackbox run PROBLEM --help` lists "
        "presets, methods and settings."
    )
    which = Annotated[str, arg(help="What to run, before any option.", metavar="PROBLEM")]
    run: Any = dataclasses.make_dataclass("Run", [("problem", Positional[which])])
    commands = [named(kind, name, " ".join((kind.__doc__ or "").split())) for name, kind in _OTHERS.items()]
    union: Any = Union
    return _in_bounds(_tyro(union[(named(run, "run", about), *commands)], "blackbox", _TOP, arguments))


def _tyro(kind: Any, program: str, about: str, words: Sequence[str]) -> Any:  # noqa: ANN401
    return tyro.cli(kind, prog=program, description=about, args=list(words), config=(FlagCreatePairsOff,))


def _refuse_values_of_flags(kind: Any, words: Sequence[str]) -> None:  # noqa: ANN401
    """Say how a flag is written, where one has a value: tyro only says that it does not know that word.

    Raises:
        ConfigurationError: Naming the flag.
    """
    flags: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(kind)}
    if "config" in flags:
        flags |= dataclasses.asdict(flags["config"])
    for word, after in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        name, value = option.removeprefix("--").removeprefix("no-"), value if equals else after
        default = flags.get(name.replace("-", "_"))
        if option.startswith("--") and isinstance(default, bool) and value.lower() in ("true", "false"):
            raise ConfigurationError(
                f"{option}: expected a flag without a value, got {value!r}. Without it that is "
                f"{str(default).lower()}; --{'no-' * default}{name} makes it {str(not default).lower()}."
            )


def _in_bounds(command: Command) -> Command:
    """The command, if none of its numbers is absurd."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(command, name, None)
        if value is not None and not low <= value <= high:  # not so for NaN either
            raise ConfigurationError(f"--{name}: expected {low:,} to {high:,}, got {value!r}.")
    return command


def _problem_command(target: str, words: Sequence[str]) -> tuple[Any, str]:
    """The dataclass of `run` for a problem and the preset that the words name, and its description.

    The preset is found before tyro parses: it is the default from which `--SETTING` departs.
    """
    from tasks import methods, problems

    problem, where = problems.find(target)
    presets = dict(problem.presets) or {"default": problem.Config()}
    preset = _preset(presets, words)
    own = {field.name for field in dataclasses.fields(RunCommand)} - {"config"}
    taken = own & {field.name for field in dataclasses.fields(problem.Config)}
    if taken:
        raise ConfigurationError(
            f"{problem.__name__}.Config: expected names that `blackbox run` has not itself, got "
            f"{', '.join(sorted(taken))}. Rename that setting."
        )
    literal: Any = Literal
    fields: list[Any] = [
        ("preset", Annotated[literal[tuple(presets)], arg(help="Where the settings start from.")], preset),
        ("config", Annotated[type(presets[preset]), arg(name="")], presets[preset]),
    ]
    lines = [f"  {name}: {method.about}" for name, method in methods.methods_of(problem).items()]
    defaults = f"The defaults below are those of the preset {preset!r}."
    about = "\n".join([problem.about(), "", "Methods:", *lines, "", defaults])
    namespace = {"task": problem.name(), "where": where, "kind": problem}
    kind = dataclasses.make_dataclass("Run", fields, bases=(RunCommand,), frozen=True, namespace=namespace)
    return kind, about


def _preset(presets: Mapping[str, Any], words: Sequence[str]) -> str:
    """The preset that is asked for; the first one where it is wrong, for tyro refuses it with the choices."""
    asked = None
    for index, word in enumerate(words):  # the last one if given twice
        if word == "--preset" and index + 1 < len(words):
            asked = words[index + 1]
        elif word.startswith("--preset="):
            asked = word.removeprefix("--preset=")
    return asked if asked is not None and asked in presets else next(iter(presets))
