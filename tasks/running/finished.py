"""A finished run, from Python: `load`, and its tables, curves, networks, arrays and report."""

from __future__ import annotations

from functools import cached_property
from html import escape
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from blackbox.terminal import plain, print_table, say
from blackbox.words import counted
from tasks import report
from tasks.errors import ConfigurationError, NotApplicableError, ProblemError, TrustError
from tasks.folder import checkpoint
from tasks.folder.result import NOT_APPLICABLE, Result
from tasks.folder.run import Run, stage_name
from tasks.methods import by_name
from tasks.problem.problem import Problem
from tasks.problem.silence import Silence
from tasks.problem.trained import Trained
from tasks.report import incomplete, lead
from tasks.report.findings import Findings, warned_of
from tasks.rows.binding import Bound
from tasks.running.resume import how_to_go_on, is_gone, problem_of
from tasks.training.setup import setup_of

if TYPE_CHECKING:
    import pandas

ONE_AT_A_TIME = RLock()  # of the threads of a process, whose draws come from one generator


class FinishedRun:
    """A run with a result; `tasks.run` and `tasks.load` return one.

    Args:
        run: The run's folder, with a result.
        problem: The problem; None where the code is not at hand, then `network` is refused.
        untrusted: The reason for that, where the run is from elsewhere.

    Attributes:
        path: The run's folder.
        result: The result, as in `result.json`.
        problem: The problem.
        untrusted: The error that names the code, where it is not at hand since the run is from elsewhere.
    """

    def __init__(self, run: Run, problem: Problem | None, untrusted: TrustError | None = None) -> None:
        self.path, self.problem, self.untrusted = run.path, problem, untrusted
        self.result = Result.read(run.path, so_far=True)
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

        It is on the device of the settings; on the CPU if that is a GPU and there is none.

        Raises:
            ConfigurationError: The run has no such method or seed.
            NotApplicableError: The method was not applicable with this seed.
            ProblemError: The problem's code is not at hand.
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
        trained: dict[str, Trained] = {}
        alone = len(self.result.table) == 1  # no other training has left its weights in the network
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
        self._judged(method, seed)
        tensors = checkpoint.load_evaluation(self.path, stage_name(seed, method))["fields"]
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def _judged(self, method: str, seed: int) -> list[str]:
        """The methods that were applicable with a seed; the method asked for has to be one of them."""
        rows = {row.method: row for row in self.result.table if row.seed == seed}
        if method not in rows:
            names = ", ".join(dict.fromkeys(row.method for row in self.result.table))
            raise ConfigurationError(
                f"{self.path}: expected one of the methods {names} and of the seeds {self._run.seeds}, got "
                f"{method!r} and {seed!r}."
            )
        if NOT_APPLICABLE in rows[method].extra:
            raise NotApplicableError(str(rows[method].extra[NOT_APPLICABLE]))
        return [name for name, row in rows.items() if NOT_APPLICABLE not in row.extra]

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
    """A finished run.

    The code that the run names, its problem's and what settings name, is executed where you have run it, or
    trust it.

    Args:
        folder: The run's folder.
        trust: Whether to execute that code although the run came from elsewhere; without it such a run has
            tables and curves, and no networks.

    Raises:
        RunFolderError: It is no run's folder, or the run is not finished.
    """
    run = Run.open(Path(folder))
    Result.read(run.path)
    return loaded(run, trust)


def loaded(run: Run, trust: bool) -> FinishedRun:
    """A run as `load` gives it, or what there is of one that is not finished.

    Raises:
        RunFolderError: No method is finished.
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
