"""Runs from a script or a notebook: `run`, `load`, and what a run has found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from html import escape
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from blackbox.failures import exits_as_errors
from tasks import methods, problems, report, spending
from tasks.callbacks import Callback, Told
from tasks.configuration import to_dict
from tasks.errors import (
    ConfigurationError,
    NotApplicableError,
    ProblemError,
    RunFolderError,
    TrustError,
)
from tasks.interruption import ending_interrupts
from tasks.problem import Problem
from tasks.progress import Progress, make_progress, print_table
from tasks.report.findings import Findings
from tasks.runs import checkpoint
from tasks.runs.folder import Run, check_seeds, differences, discard, stage_name
from tasks.runs.result import NOT_APPLICABLE, Result
from tasks.setup import Trained
from tasks.terminal import plain, say
from tasks.work import checked, setup_of, work
from tasks.workers import group

if TYPE_CHECKING:
    import pandas


_ONE_AT_A_TIME = RLock()  # of the threads of a process, whose draws come from one generator


class FinishedRun:
    """What a run has found. `tasks.run` and `tasks.load` give one.

    Args:
        run: Its folder, with a result.
        problem: What was trained; None where the code is not at hand, then `network` is refused.
        untrusted: Why, where the run is from elsewhere.

    Attributes:
        path: The run's folder.
        result: The table and what it was made with, as in `result.json`.
        problem: What was trained.
        untrusted: The error that names the code, where it is not at hand since the run is from elsewhere.
    """

    def __init__(self, run: Run, problem: Problem | None, untrusted: TrustError | None = None) -> None:
        self.path, self.problem, self.untrusted = run.path, problem, untrusted
        self.result = Result.read(run.path)
        self._run = run

    @cached_property
    def table(self) -> pandas.DataFrame:
        """A line for each method and seed: the figure, rows, queries, seconds, and all further figures."""
        return report.frame(self.result)

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """The lines of `metrics.jsonl`: stage, step, loss, validation, rows, queries, seconds."""
        import pandas

        return pandas.DataFrame(self._run.metrics())

    @property
    def report(self) -> Path:
        """The report's page; made anew if it is not there."""
        page = self.path / report.NAME
        return page if page.is_file() else report.write(self._run, self.problem)

    def network(self, method: str, seed: int = 0) -> nn.Module:
        """The network that a method trained, with the weights that validation chose.

        It is on the device of the settings; that of a run on a GPU on the CPU, where there is none.

        Raises:
            ConfigurationError: The run has no such method or seed.
            NotApplicableError: The method had nothing to go by with this seed.
            ProblemError: The problem's code is not at hand.
        """
        if self.problem is None:
            mend = "Load it with trust=True." if self._run.problem else _how_to_go_on(self._run)
            told = f"{self.path}: expected the problem's code, got none. {mend}"
            raise ProblemError(told) from self.untrusted
        with _ONE_AT_A_TIME, torch.random.fork_rng(devices=()):
            return self._network(method, seed, self.problem)

    def _network(self, method: str, seed: int, problem: Problem) -> nn.Module:
        judged = self._judged(method, seed)
        if problem.config.device == "cuda" and not torch.cuda.is_available():  # the run is from elsewhere
            problem = type(problem)(problem.config, folder=problem.folder, device="cpu")
        problem.begin(self.path)
        found: dict[str, Trained] = {}
        wanted = methods.named(problem, problem.config.methods)
        for name, each in wanted.items():  # methods may start from what those before have trained
            if name not in judged:
                continue
            setup = setup_of(problem, self._run, name, seed, Progress(), found)
            found[name] = each.train(setup)
            if name == method:
                break
        return found[method].network

    def fields(self, method: str, seed: int = 0) -> dict[str, np.ndarray]:
        """The arrays that the problem's `evaluate` gave for a method.

        Raises:
            ConfigurationError: The run has no such method or seed.
            NotApplicableError: The method had nothing to go by with this seed.
        """
        self._judged(method, seed)
        kept = checkpoint.load_evaluation(self.path, stage_name(seed, method))["fields"]
        return {name: tensor.numpy() for name, tensor in kept.items()}

    def _judged(self, method: str, seed: int) -> list[str]:
        """The methods that were applicable with a seed, one of which is the method asked for."""
        rows = {row.method: row for row in self.result.table if row.seed == seed}
        if method not in rows:
            known = ", ".join(dict.fromkeys(row.method for row in self.result.table))
            raise ConfigurationError(
                f"{self.path}: expected one of the methods {known} and of the seeds {self._run.seeds}, got "
                f"{method!r} and {seed!r}."
            )
        if NOT_APPLICABLE in rows[method].extra:
            raise NotApplicableError(str(rows[method].extra[NOT_APPLICABLE]))
        return [name for name, row in rows.items() if NOT_APPLICABLE not in row.extra]

    def export(self, kind: Literal["netcdf", "vtk"]) -> Path:
        """Write the arrays that `evaluate` gave for other programs; see `tasks.report.export`.

        Raises:
            MissingExtraError: xarray or meshio is not installed.
            ProblemError: There are no such arrays; or the problem names their axes wrongly.
        """
        from tasks.report.export import export

        return export(Findings(self._run, self.result), self.problem, kind)

    def show(self) -> None:
        """Print the table, what has to be known to read it, and where report and run are."""
        print_table(report.shown(self.result))
        for sentence in report.untouched(self.result):
            say(sentence)
        say(f"Report: {self.report}\nRun folder: {self.path}")

    def _repr_html_(self) -> str:
        """In a notebook: the table, and where report and run are."""
        table = report.shown(self.result).to_html(index=False, border=0)
        page = self.path / report.NAME
        told = f"Report: {escape(str(page))}<br>" if page.is_file() else ""
        return f"{table}<p>{told}Run folder: {escape(str(self.path))}</p>"

    def __repr__(self) -> str:
        """The folder and the table."""
        return plain(f"{self.path}\n{report.shown(self.result).to_string(index=False)}")


def run(
    problem: Problem,
    *,
    seeds: int | Sequence[int] | None = None,
    runs: Path | str = "runs",
    resume: Path | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,  # noqa: ANN401
) -> FinishedRun:
    """Train and judge a problem by every method that its settings name, and write the report.

        run = tasks.run(Brusselator(unroll=6), methods=["none", "tangents"], steps=300)
        run.table

    The folder is as one of `blackbox run`: killed, it goes on with `blackbox resume`, or with `resume=`.

    Args:
        problem: What is trained.
        seeds: How many trainings of each method, or which seeds; None for one, or those of `resume`.
        runs: Where the run's folder is made.
        resume: A folder to go on with, of the same problem, settings and seeds; `rows` may be larger.
        progress: What the user sees; bars in a terminal or notebook, lines elsewhere, if None.
        callbacks: What is told while the run trains, beside those that the problem's class names.
        **settings: Settings that depart from those of `problem`.

    Raises:
        ConfigurationError: A setting or method is unknown or out of its range; no row was run.
        BudgetError: The budget of rows is spent.
    """
    problems.refuse_while_executing("tasks.run")
    if "folder" in settings:
        raise ConfigurationError(
            "tasks.run: no setting is named 'folder'. Give runs= for where the run's folder is made, and the "
            "problem its folder= for where its data are."
        )
    problem = type(problem)(problem.config, folder=problem.folder, **settings)
    config, chosen = spending.spends(type(problem), problem.config, [*settings, *_departing(problem)])
    problem = type(problem)(config, folder=problem.folder)
    numbers: Sequence[int] = (0,)
    if seeds is not None:
        numbers = range(int(seeds)) if isinstance(seeds, int | np.integer) else seeds
    check_seeds(numbers)
    checked(problem)  # before a folder is made
    if resume is None:
        made = Run.create(
            Path(runs),
            problem.name(),
            _preset(problem),
            problem.config,
            numbers,
            data=problem.folder,
            problem=problems.where_is(type(problem)),
            chosen=chosen,
        )
    else:
        made, rows = Run.open(Path(resume)), problem.config.rows
        if made.script or made.task != problem.name():
            of = "a script with a loop of its own" if made.script else made.task
            raise RunFolderError(
                f"{made.path}: expected a run of {problem.name()}, got one of {of}. Give its own folder, or "
                "leave resume out for a new run."
            )
        where = problems.where_is(type(problem))
        if where and made.problem not in ("", where) and not _is_gone(made):
            raise RunFolderError(
                f"{made.path}: expected the problem that it was begun with, {made.problem}, got {where}. "
                "Give that class, or leave resume out for a new run."
            )
        if rows is not None and made.config.get("rows") not in (None, rows):
            made = made.with_budget(rows)
        if sorted(made.chosen) == sorted(chosen) and None not in made.chosen.values():
            problem = type(problem)(problem.config, folder=problem.folder, **made.chosen)
        settings, now = dict(made.config), to_dict(problem.config)
        if seeds is not None:
            settings["seeds"], now["seeds"] = list(made.seeds), list(numbers)
        if told := differences(settings, now):
            raise RunFolderError(
                f"{made.path}: expected the settings of that run, got others: {told}. Take its settings, or "
                "leave resume out for a new run."
            )
        problems.warn_of_changes(made)
    made.callbacks.extend(callbacks)
    try:
        return finish(made, problem, progress)
    except Exception:
        if resume is None:
            discard(made.path)  # if nothing was begun
        raise


def finish(run: Run, problem: Problem, progress: Progress | None = None) -> FinishedRun:
    """Do what is left of a run in this process, and write its report."""
    shown: AbstractContextManager[Progress] = make_progress() if progress is None else progress
    named, run = run, run.absolute()
    with _ONE_AT_A_TIME, ending_interrupts(), run.lock(), same_directory():
        run.callbacks.extend(problem.callbacks)
        if not run.finished:
            with shown as told:
                told.say(f"Run folder: {named.path}")
                if not run.problem:
                    told.say(_how_to_go_on(run))
                with exits_as_errors("the problem"):  # status 0 would pass for a result
                    work(problem, run, told)
        if not (run.path / report.NAME).is_file():  # a kill in between leaves no page: they are told again
            Told(run).tell("on_result", run, Result.read(run.path))
        report.write(run, problem)
    return FinishedRun(named, problem)


@contextmanager
def same_directory() -> Iterator[None]:
    """A block after which the working directory is where it was, also where a box has moved it."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


def load(folder: Path | str, *, trust: bool = False) -> FinishedRun:
    """A finished run.

    The code that the run names, its problem's and what settings name, is executed where you have run it, or
    trust it.

    Args:
        folder: Of the run.
        trust: Whether to execute that code although the run came from elsewhere; without it such a run has
            tables and curves, and no networks.

    Raises:
        RunFolderError: It is no run's folder, or the run is not finished.
    """
    run = Run.open(Path(folder))
    if not run.problem or (not trust and _is_gone(run)):
        return FinishedRun(run, None)
    try:
        return FinishedRun(run, problem_of(run, trusted=trust))
    except TrustError as error:
        return FinishedRun(run, None, error)


def _is_gone(run: Run) -> bool:
    """Whether the file that its problem was in is no more there."""
    place = Path(run.problem.rpartition(":")[0])
    return place.suffix == ".py" and not place.is_file()


def problem_of(run: Run, *, trusted: bool = False) -> Problem:
    """The problem of a run with its settings; executes the code that the run names.

    Args:
        run: Its folder.
        trusted: Whether to execute code that this user has not run.

    Raises:
        RunFolderError: The run does not say where its problem is.
        TrustError: It names code that is not trusted.
    """
    if not trusted:
        run.refuse_untrusted()
    if not run.problem:
        raise RunFolderError(
            f"{run.path}: expected a run that says where its problem's class is, got one of a notebook or a "
            f"terminal. {_how_to_go_on(run)}"
        )
    problems.warn_of_changes(run)
    kind, _ = problems.find(run.problem)
    problem = kind(run.configuration(kind.Config, trusted=trusted), folder=Path(run.data))
    folder = group.journal_folder(run.path)
    problem.making.answers.attach(folder, group.rank(), run.code_versions(), only_read=True)
    return problem


def _how_to_go_on(run: Run) -> str:
    """For a problem whose class is nowhere but in a notebook or terminal."""
    return (
        "Its problem is in a notebook or terminal, where no other process finds it. To go on with it there, "
        f"repeat the call of tasks.run with resume={str(run.path)!r}."
    )


def _departing(problem: Problem) -> list[str]:
    """The settings that are not those of the problem's class."""
    usual = type(problem).Config()
    names = [field.name for field in dataclasses.fields(usual)]
    return [name for name in names if getattr(usual, name) != getattr(problem.config, name)]


def _preset(problem: Problem) -> str:
    known: Mapping[str, Any] = problem.presets
    return next((name for name, config in known.items() if config == problem.config), "own")
