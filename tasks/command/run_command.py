"""`blackbox run PROBLEM`: its arguments, made from the problem's settings, and the work on runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from blackbox.terminal import say
from tasks.errors import ConfigurationError

if TYPE_CHECKING:
    from tasks.folder.run import Run

Folder = Annotated[Positional[Path], arg(help="Folder of the run.", metavar="FOLDER")]
Trust = Annotated[
    bool,
    arg(help="Execute the code that the run and its settings name, although it came from elsewhere."),
]
Tensorboard = Annotated[bool, arg(help="Write the metrics as TensorBoard event files too.")]
Workers = Annotated[
    int, arg(help="Processes on this machine that share the queries out; on several, start it by torchrun.")
]
Timeout = Annotated[
    float, arg(help="Seconds after which a process of several that does not answer is given up.")
]


@dataclass
class Invocation:
    """The words after `blackbox`, and the run that it is at work on; None before there is one."""

    words: Sequence[str] = ()
    run: Run | None = None

    def note(self, run: Run) -> None:
        """Say which run it is at work on."""
        self.run = run


@contextmanager
def invoked(words: Sequence[str]) -> Iterator[Invocation]:
    """A block in which a command line is at work."""
    invocation = Invocation(words)
    token = _invocation.set(invocation)
    try:
        yield invocation
    finally:
        _invocation.reset(token)


_invocation: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


@dataclass(frozen=True)
class RunCommand:
    """A problem to run; tyro fills a subclass that is made for the problem and the preset at hand."""

    preset: str
    config: Any = None
    seeds: Annotated[int, arg(help="How many seeds: 0, 1, ..., one training each.")] = 1
    runs: Annotated[Path, arg(help="Where run folders are made.")] = Path("runs")
    data: Annotated[Path, arg(help="Where the problem's data is kept.")] = Path("data")
    tensorboard: Tensorboard = False
    workers: Workers = 1
    timeout: Timeout = 1800.0
    dry_run: Annotated[bool, arg(help="Say what it will cost, and train nothing.")] = False
    by_hand: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """Settings that the words name."""

    task: ClassVar[str]
    where: ClassVar[str]
    """Where the problem's class is, as `tasks.problem.problems.find` takes it."""
    kind: ClassVar[type[Any]]
    """The problem's class."""


def parse(target: str, words: Sequence[str]) -> RunCommand:
    """The run that a command line asks for; `SystemExit` for help and mistakes, as tyro does it.

    Raises:
        ConfigurationError: The problem's name or settings are wrong.
    """
    kind, about = _problem_command(target, words)
    # parsed on its own, with the problem in `prog`: messages then point to the right help
    program = f"blackbox run {target}"
    command = tyro.cli(kind, prog=program, description=about, args=list(words), config=(FlagCreatePairsOff,))
    names = [field.name for field in dataclasses.fields(command.config)]
    refuse_twice(words, {name for name in names if isinstance(getattr(command.config, name), tuple)})
    settings: Any = type(command.config).__base__
    config = settings(**{name: getattr(command.config, name) for name in names})
    options = _options(words)
    return dataclasses.replace(
        command, config=config, by_hand=tuple(name for name in names if name in options)
    )


def _options(words: Sequence[str]) -> list[str]:
    """The options among words, by the names of settings."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [option.removeprefix("--").replace("-", "_") for option in options]


def refuse_twice(words: Sequence[str], names: Collection[str]) -> None:
    """Refuse a second list of an option: it would take the place of the first, and seem to be added to it.

    Args:
        words: The words of the command line.
        names: Settings that are lists.

    Raises:
        ConfigurationError: One of them is there twice.
    """
    options = _options(words)
    for name in names:
        if options.count(name) > 1:
            option = f"--{name.replace('_', '-')}"
            raise ConfigurationError(
                f"{option}: expected all values behind one {option}, got {options.count(name)} of it, of "
                f"which the last would count alone. Write {option} ONE OTHER."
            )


def _problem_command(target: str, words: Sequence[str]) -> tuple[Any, str]:
    """The dataclass of `run` for a problem and the preset that the words name, and its description.

    The preset is found before tyro parses: it is the default from which `--SETTING` departs.
    """
    from tasks.methods import by_name
    from tasks.problem import anew, problems

    problem, where = problems.find(target)
    anew.refuse_ignored(problem, problem.Config)
    presets = dict(problem.presets) or {"default": problem.Config()}
    preset = _preset(presets, words)
    arguments = {field.name for field in dataclasses.fields(RunCommand)} - {"config"}
    reserved = arguments & {field.name for field in dataclasses.fields(problem.Config)}
    if reserved:
        raise ConfigurationError(
            f"{problem.__name__}.Config: expected names that `blackbox run` has not itself, got "
            f"{', '.join(sorted(reserved))}. Rename that setting."
        )
    settings = _with_its_own_first(presets[preset])
    literal: Any = Literal
    fields: list[Any] = [
        ("preset", Annotated[literal[tuple(presets)], arg(help="Where the settings start from.")], preset),
        ("config", Annotated[type(settings), arg(name="")], settings),
    ]
    lines = [f"  {name}: {method.about}" for name, method in by_name.methods_of(problem).items()]
    defaults = f"The defaults below are those of the preset {preset!r}; --debug shows tracebacks of errors."
    about = "\n".join([problem.about(), "", "Methods:", *lines, "", defaults])
    namespace = {"task": problem.name(), "where": where, "kind": problem}
    kind = dataclasses.make_dataclass("Run", fields, bases=(RunCommand,), frozen=True, namespace=namespace)
    return kind, about


def _with_its_own_first(config: Any) -> Any:
    """The settings as help lists them, of a subclass: those of the problem before those of all problems."""
    from tasks.configuration import Config

    kind = type(config)
    fields, common = kind.__dataclass_fields__, Config.__dataclass_fields__
    in_order = {name: fields[name] for name in sorted(fields, key=lambda name: name in common)}
    listed = type(kind.__name__, (kind,), {"__dataclass_fields__": in_order, "__module__": kind.__module__})
    return listed(**{name: getattr(config, name) for name in fields})


def _preset(presets: Mapping[str, Any], words: Sequence[str]) -> str:
    """The preset that is asked for; the first one where it is wrong, for tyro refuses it with the choices."""
    preset = None
    for index, word in enumerate(words):  # the last one if given twice
        if word == "--preset" and index + 1 < len(words):
            preset = words[index + 1]
        elif word.startswith("--preset="):
            preset = word.removeprefix("--preset=")
    return preset if preset is not None and preset in presets else next(iter(presets))


def run(command: RunCommand) -> int:
    """Train and judge a problem, or say what that will cost."""
    from tasks.running import start, together

    plan = start.planned(
        command.kind(command.config, folder=command.data),
        range(command.seeds),
        preset=command.preset,
        where=command.where,
        by_hand=command.by_hand,
    )
    if command.dry_run:
        from tasks.running import dry_run

        sentences = dry_run.sentences(plan)
        say("\n".join(sentences))
        return int(dry_run.nothing_came_back(sentences))
    invocation = at_work()
    together.work_on(
        lambda: together.new(plan, command.runs, invocation.words),
        invocation.note,
        invocation.words,
        tensorboard=command.tensorboard,
        workers=command.workers,
        timeout=command.timeout,
    )
    return 0


def at_work() -> Invocation:
    """The call that is at work; one without words where none is, as in a test."""
    return _invocation.get() or Invocation()
