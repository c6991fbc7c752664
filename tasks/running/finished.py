"""A run from Python, finished or not: `load`, and its tables, curves, networks, arrays and report."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from shlex import quote
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from blackbox.notices import warn
from blackbox.terminal import plain, print_table, say
from blackbox.words import counted
from tasks import report
from tasks.errors import CheckpointWarning, ConfigurationError, NotApplicableError, ProblemError, TrustError
from tasks.folder import checkpoint
from tasks.folder.result import NOT_APPLICABLE, UNDER_WAY
from tasks.folder.run import InProcess, Run, stage_name
from tasks.folder.under_way import result_so_far
from tasks.methods import by_name
from tasks.problem.problem import Problem
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from tasks.report import incomplete, lead
from tasks.report.findings import Findings, warned_of
from tasks.rows.binding import Bound
from tasks.running.resume import how_to_go_on, is_gone, problem_of
from tasks.running.unfinished import load_into
from tasks.training.setup import setup_of

if TYPE_CHECKING:
    import pandas

ONE_AT_A_TIME = RLock()  # of the threads of a process, whose draws come from one generator


class FinishedRun:
    """A run with a result; `tasks.run` and `tasks.load` return one.

    Of a run that is not finished it has what there is: the methods that are, and the trainings under way.

    Args:
        run: The run's folder.
        problem: The problem; None where the code is not at hand, then `network` is refused.
        untrusted: The reason for that, where the run is from elsewhere.

    Attributes:
        path: The run's folder.
        result: The result, as in `result.json`; a training under way has a line without a figure.
        problem: The problem.
        untrusted: The error that names the code, where it is not at hand since the run is from elsewhere.
    """

    def __init__(self, run: Run, problem: Problem | None, untrusted: TrustError | None = None) -> None:
        self.path, self.problem, self.untrusted = run.path, problem, untrusted
        self.result = result_so_far(run)
        self._run = run if self.result.finished else replace(run, here=InProcess(only_read=True))

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

        Of a training under way it is that of the last checkpoint, with the weights that a training which
        ended there would keep, as far as these are known without a row; else the best in validation so far.

        It is on the device of the settings; on the CPU if that is a GPU and there is none.

        Raises:
            ConfigurationError: The run has no such method or seed.
            NotApplicableError: The method was not applicable with this seed.
            ProblemError: The problem's code is not at hand.
            CheckpointError: The checkpoint is damaged, or of another network.

        Warns:
            CheckpointWarning: The training is under way: at which step of how many, and how to go on.
        """
        if self.problem is None:
            mend = "Load it with trust=True." if self._run.problem else how_to_go_on(self._run)
            sentence = f"{self.path}: expected the problem's code, got none. {mend}"
            raise ProblemError(sentence) from self.untrusted
        with ONE_AT_A_TIME, torch.random.fork_rng(devices=()):
            return self._network(method, seed, self.problem)

    def _network(self, method: str, seed: int, problem: Problem) -> nn.Module:
        judged = self._judged(method, seed)
        if problem.config.device == "cuda" and not torch.cuda.is_available():  # the run is from elsewhere
            problem = type(problem)(problem.config, folder=problem.folder, device="cpu")
        problem.begin(self.path)
        alone = len(self.result.table) == 1  # no other training has left its weights in the network
        if method not in judged:
            setup = setup_of(problem, self._run, method, seed, Silence(), {}, again=alone)
            step, steps = load_into(setup.network, self._run, problem, method, seed)
            warn(
                f"{self.path}: the training of {method} with seed {seed} is not finished: its network is "
                f"that by step {step:,} of {steps:,}. {self._go_on}",
                CheckpointWarning,
            )
            return setup.network
        trained: dict[str, Trained] = {}
        methods = by_name.methods_named(problem)
        for name, way in methods.items():  # methods may start from what those before have trained
            if name not in judged:
                continue
            setup = setup_of(problem, self._run, name, seed, Silence(), trained, again=alone)
            trained[name] = way.train(setup)
            if name == method:
                break
        return trained[method].network

    def fields(self, method: str, seed: int = 0) -> dict[str, np.ndarray]:
        """The arrays that the problem's `evaluate` gave for a method.

        Raises:
            ConfigurationError: The run has no such method or seed.
            NotApplicableError: The method was not applicable with this seed.
        """
        if method not in self._judged(method, seed):
            raise ConfigurationError(
                f"{self.path}: expected a method that was tested, got {method}, which is under way. "
                f"{self._go_on}"
            )
        tensors = checkpoint.load_evaluation(self.path, stage_name(seed, method))["fields"]
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    @property
    def _go_on(self) -> str:
        """Advise on how the run goes on."""
        if not (self._run.problem or self._run.script):
            return how_to_go_on(self._run)
        return f"Go on with: blackbox resume {quote(str(self.path))}"

    def warn_of_unfinished(self) -> None:
        """Say that the run is not finished, and how far trainings under way are.

        Warns:
            CheckpointWarning: It is so.
        """
        if not self.result.finished:
            under_way = [
                f" {row.method} with seed {row.seed} is under way: {row.extra[UNDER_WAY]}."
                for row in self.result.table
                if UNDER_WAY in row.extra
            ]
            warn(
                f"{self.path}: this run is not finished.{''.join(under_way)} {self._go_on}", CheckpointWarning
            )

    def _judged(self, method: str, seed: int) -> list[str]:
        """The methods that are finished with a seed, and were applicable.

        The method asked for has to be one of them, or under way.
        """
        rows = {row.method: row for row in self.result.table if row.seed == seed}
        if method not in rows:
            if method in map(str, self._run.config.get("methods") or ()):
                path = checkpoint.of_stage(self.path, stage_name(seed, method))
                if path.is_file():  # one that cannot be read
                    checkpoint.load(path)
            names = ", ".join(dict.fromkeys(row.method for row in self.result.table))
            raise ConfigurationError(
                f"{self.path}: expected one of the methods {names} and of the seeds {self._run.seeds}, got "
                f"{method!r} and {seed!r}."
            )
        if NOT_APPLICABLE in rows[method].extra:
            raise NotApplicableError(str(rows[method].extra[NOT_APPLICABLE]))
        return [name for name, row in rows.items() if not {NOT_APPLICABLE, UNDER_WAY} & row.extra.keys()]

    def export(self) -> Path:
        """Write the arrays that `evaluate` gave as NetCDF files for xarray and ParaView; return their folder.

        Raises:
            MissingExtraError: xarray is not installed.
            ProblemError: There are no such arrays; or the problem names their axes wrongly.
        """
        from tasks.report.netcdf import export

        return export(Findings(self._run, self.result), self.problem)

    def show(self) -> None:
        """Print the table, what has to be known to read it, and where report and run are."""
        comparable = incomplete.comparable(self.result)
        print_table(report.shown(comparable))
        for sentence in [
            *lead.doubts(comparable),
            *incomplete.sentences(self._run, self.result),
            *report.untouched(self.result),
        ]:
            say(sentence)
        if warned := warned_of(self.result):
            say(f"{counted(len(warned), 'warning')}, with methods, seeds and steps in the report.")
        say(f"Report: {self.report}\nRun folder: {self.path}")

    def _repr_html_(self) -> str:
        """Show it in a notebook: the table, and where report and run are."""
        table = report.shown(incomplete.comparable(self.result)).to_html(index=False, border=0)
        page = self.path / report.NAME
        line = f"Report: {escape(str(page))}<br>" if page.is_file() else ""
        return f"{table}<p>{line}Run folder: {escape(str(self.path))}</p>"

    def __repr__(self) -> str:
        """The folder and the table."""
        return plain(
            f"{self.path}\n{report.shown(incomplete.comparable(self.result)).to_string(index=False)}"
        )


def load(folder: Path | str, *, trust: bool = False) -> FinishedRun:
    """A run: a finished one, or what there is of one that was stopped, or is under way.

    A training that has not ended gives its network from its last checkpoint; no row is run, and the folder
    stays as it is.

    The code that the run names, its problem's and what settings name, is executed where you have run it, or
    trust it.

    Args:
        folder: The run's folder.
        trust: Whether to execute that code although the run came from elsewhere; without it such a run has
            tables and curves, and no networks.

    Raises:
        RunFolderError: It is no run's folder, or no method of the run is finished or has a checkpoint.

    Warns:
        CheckpointWarning: The run is not finished: at which step trainings are, and how to go on.
    """
    found = loaded(Run.open(Path(folder)), trust)
    found.warn_of_unfinished()
    return found


def loaded(run: Run, trust: bool) -> FinishedRun:
    """A run as `load` gives it, or what there is of one that is not finished.

    Raises:
        RunFolderError: No method is finished or under way.
    """
    if not run.problem or (not trust and is_gone(run)):
        return FinishedRun(run, None)
    try:
        return FinishedRun(run, with_answers(run, problem_of(run, trusted=trust)))
    except TrustError as error:
        return FinishedRun(run, None, error)


def with_answers(run: Run, problem: Problem) -> Problem:
    """The problem of a run, which asks for no row of its data that the run's folder has answers to."""
    bound = Bound.of(problem)
    bound.ledger.answers.attach_to(run, only_read=True)
    return bound.problem
