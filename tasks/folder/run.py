"""`Run`: a run is a folder, with its configuration, metrics, checkpoints, result and report."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from blackbox.notices import Notices
from tasks.configuration import NOT_WRITTEN, from_dict, trust
from tasks.configuration.code import named
from tasks.errors import ConfigurationError, ProblemError, RunFolderError, TrustError
from tasks.folder import atomic, metrics_file, place, reading, row_counts, warning_notes
from tasks.folder.machine import changes, digest_of_files, machine, versions
from tasks.folder.result import NOT_APPLICABLE, SO_FAR, Result, Row
from tasks.folder.terms import (
    BEGUN,
    CONFIG,
    Terms,
    check_seeds,
    differences,
    lasting,
    refuse_edited,
    write_terms,
)
from tasks.folder.warning_notes import WarningNotes
from tasks.folder.watched_files import WatchedFiles

FORMAT = 4  # of config.json; raise it when older folders can no longer be read. 0.2.0 wrote 3

C = TypeVar("C")


@dataclass(frozen=True)
class InProcess:
    """The part of a run that a process has in no file of its folder; all values of the run share it.

    Attributes:
        callbacks: The callbacks while stages of the run train; see `tasks.Callback`.
        callbacks_said: The exceptions of callbacks that the user has been warned of.
        notes: The run's warnings, and its present stage and step.
        watched: Programs and other files that the boxes name, see `Run.note_files`.
        only_read: Whether nothing is trained here: trainings that are not finished are refused.
    """

    callbacks: list[Any] = field(default_factory=list)
    callbacks_said: Notices = field(default_factory=Notices)
    notes: WarningNotes = field(default_factory=WarningNotes)
    watched: WatchedFiles = field(default_factory=WatchedFiles)
    only_read: bool = False


@dataclass(frozen=True)
class Run:
    """A run on disk. Make one with `Run.create`, find one again with `Run.open`.

    The folder holds `config.json`, `metrics.jsonl`, `checkpoints`, where there were any `warnings.jsonl`,
    `so_far.json` once a method is finished, and when all are `result.json` in its place, `report.html` and
    the report's pictures.
    """

    path: Path
    task: str
    preset: str
    config: dict[str, Any]
    """The settings as JSON values; `configuration` gives them as the task's dataclass."""
    seeds: tuple[int, ...]
    data: str
    """Folder of the task's data, absolute."""
    command: tuple[str, ...]
    versions: dict[str, str]
    started: str
    """ISO 8601, UTC."""
    problem: str = ""
    """Where the problem's class is: `module:Class`, or `/folder/file.py:Class`."""
    script: str = ""
    """The script with a loop of its own that made the run; a run has this, a problem, or neither."""
    named: tuple[str, ...] = ()
    """The code that settings name, such as a network of the user's own."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Settings that follow from the budget, see `planning.plan`; None until the run has chosen."""
    here: InProcess = field(default_factory=InProcess, repr=False, compare=False, metadata=NOT_WRITTEN)
    """What this process has of it beside the folder."""

    @classmethod
    def create(cls, root: Path, terms: Terms, command: Sequence[str] | None = None) -> Run:
        """Make a new folder `root/<task>-<preset>-<date>-<time>`; an existing one is never touched.

        Args:
            root: the folder of runs; made if missing.
            terms: the terms of the run; this user runs its code from here on.
            command: the command that started the run; the process's own command line if not given.

        Raises:
            ConfigurationError: the settings cannot be written as JSON.
        """
        now, arguments = datetime.now(UTC), list(sys.argv if command is None else command)
        code_of_run = _code(terms.problem, terms.script, arguments)
        codes = [*([] if code_of_run is None else [code_of_run]), *(named.code for named in terms.named)]
        for part in codes:
            trust.note(part)
        content = {
            "format": FORMAT,
            **terms.written(),
            "command": arguments,
            "versions": versions() | trust.versions(codes) | dict({} if code_of_run else terms.code),
            "started": now.isoformat(timespec="seconds"),
        }
        path = place.new(root, f"{terms.task}-{terms.preset}-{now.astimezone():%Y%m%d-%H%M%S}")
        write_terms(path, content)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in a folder.

        Raises:
            RunFolderError: the folder is missing or no run, its `config.json` is cut short, or it
                was written in another format; its settings were changed since the run began; or there is a
                link, a pipe or a device in it.
        """
        reading.refuse_strange_files(path)
        try:
            content = reading.json_object(path / CONFIG, "The run cannot be resumed; start it anew.")
        except (FileNotFoundError, NotADirectoryError):
            came = f"a folder without {CONFIG}" if path.is_dir() else "no such folder"
            mend = "Give one that `blackbox run` made."
            checkpoints = path / place.CHECKPOINTS
            if (path / place.SAMPLING).is_file():
                mend = f"It is one of a sampling: `blackbox sample PROBLEM --rows N --out {path}` goes on."
            if checkpoints.is_dir() and not any(checkpoints.iterdir()):  # made first
                mend = "Nothing was done in it, if `blackbox run` was killed there: delete it, and run again."
            raise RunFolderError(f"{path}: expected a run folder, got {came}. {mend}") from None
        file_format = content.get("format")
        if file_format != FORMAT:
            raise RunFolderError(
                f"{path / CONFIG}: expected format {FORMAT}, got {file_format!r}. "
                "Use the version of this package that wrote it, or start the run anew."
            )
        values = {name: value for name, value in content.items() if name != "format"}
        try:
            run = from_dict(cls, {**values, "path": str(path)}, where=CONFIG)
            check_seeds(run.seeds)
        except ConfigurationError as error:
            raise RunFolderError(f"{path}: {error}") from None
        if run.script and run.problem:
            raise RunFolderError(f"{path / CONFIG}: expected a script or a problem, got both. Leave one out.")
        try:
            run.code  # noqa: B018  a text that cannot be code of a run is refused where it is read
        except ConfigurationError as error:
            raise RunFolderError(f"{path / CONFIG}: {error}") from None
        refuse_edited(path, content)
        return run

    @property
    def code(self) -> trust.Code | None:
        """The problem or script of the run, which is code; None for what is in a notebook or terminal."""
        return _code(self.problem, self.script, self.command)

    @property
    def problem_code(self) -> trust.Shipped | trust.Named | None:
        """The problem, as code; None for one in a notebook or terminal, and for a script."""
        return trust.problem(self.problem) if self.problem else None

    def code_versions(self) -> dict[str, str]:
        """The files of the script or problem, and of settings' code, with digits of their SHA-256."""
        code = [] if self.code is None else [self.code]
        return trust.versions([*code, *map(trust.named, self.named)])

    def absolute(self) -> Run:
        """The run by its absolute path, wherever the working directory is moved."""
        return replace(self, path=self.path.absolute())

    def reread(self) -> Run:
        """The run as its folder has it by now."""
        return replace(Run.open(self.path), here=self.here)

    def refuse_untrusted(self) -> None:
        """Refuse a run whose script or problem this user has not run, and no installed package has.

        What its settings name, `configuration` refuses.

        Raises:
            TrustError: Naming the code.
        """
        if self.code is not None and not trust.is_own(self.code):
            raise self._untrusted(str(self.code))

    def configuration(self, kind: type[C], *, trusted: bool = False) -> C:
        """The settings as the task's dataclass.

        Args:
            kind: The dataclass.
            trusted: Whether settings may name code that this user has not run; see `NamesCode`.

        Raises:
            ConfigurationError: They do not fit it.
            TrustError: One names code that is not trusted.
        """
        try:
            config = from_dict(kind, self.config, where=str(self.path / CONFIG))
        except ConfigurationError as error:
            raise ConfigurationError(
                f"{error} If the run is of earlier code, go on with that code, or start the run anew."
            ) from None
        for part in named(config):
            if not (trusted or trust.is_own(part.code)):
                raise self._untrusted(str(part))
        return config

    def _untrusted(self, executed: str) -> TrustError:
        folder = quote(str(self.path))
        error = TrustError(
            f"{self.path}: expected a run that you made, got one from elsewhere, and to resume it is to "
            f"execute {executed}. Look at that; then load it with trust=True, or: blackbox resume {folder} "
            "--trust"
        )
        error.code = executed
        return error

    def with_budget(self, rows: int) -> Run:
        """The run with a larger budget of rows, also in its `config.json`.

        Raises:
            ConfigurationError: it has no budget, or a larger one.
            RunLockedError: another process is working on it.
        """
        old_rows = self.config.get("rows")
        if self.script or old_rows is None or rows < old_rows:
            had = "none" if old_rows is None else f"one of {old_rows:,}"
            mend = "Change it in the script." if self.script else "Leave out --rows, or raise it."
            raise ConfigurationError(
                f"--rows: expected at least the budget of {self.path}, which has {had}, got {rows:,}. {mend}"
            )
        return self._with({"config": {**self.config, "rows": rows}})

    def with_data(self, data: Path) -> Run:
        """The run with another folder of its problem's data, also in its `config.json`.

        Raises:
            RunLockedError: another process is working on it.
        """
        return self._with({"data": str(data.resolve())})

    def choose(self, settings: Mapping[str, Any]) -> None:
        """Write values for the settings of `chosen` down, for `reread`; for who holds the lock."""
        if settings != self.chosen:
            self._write({"chosen": dict(settings), "config": {**self.config, **settings}})

    def note_files(self, files: Sequence[Path]) -> str:
        """Write down the versions of files that boxes name, such as programs; for who holds the lock.

        Returns:
            What has changed since they were first written down, in words; "" for nothing.
        """
        self.here.watched.begin(files)
        old_versions, now = self._written()["versions"], digest_of_files(files, self.code_versions())
        if new := {name: value for name, value in now.items() if name not in old_versions}:
            self._write({"versions": {**old_versions, **new}})
        return changes({**old_versions, **new}, now)

    def _with(self, changed: Mapping[str, object]) -> Run:
        with self.lock():
            self._write(changed)
        return Run.open(self.path)

    def _written(self) -> dict[str, Any]:
        return reading.json_object(self.path / CONFIG, "Start the run anew.")

    def _write(self, changed: Mapping[str, object]) -> None:
        write_terms(self.path, {**self._written(), **changed})

    def changed(self, terms: Terms) -> str:
        """Describe its differences from other terms; "" if there is none."""
        old_terms, now = {"name": self.task, "seeds": list(self.seeds), **self.config}, terms.written()
        return differences(old_terms, {"name": now["task"], "seeds": now["seeds"], **now["config"]})

    @property
    def begun(self) -> bool:
        """True if some step of it is done."""
        return (self.path / metrics_file.NAME).is_file()

    @property
    def finished(self) -> bool:
        """True if the run has its result."""
        return (self.path / "result.json").is_file()

    def finish(self, table: Sequence[Row], *, left_out: Sequence[tuple[str, int]] = ()) -> Result:
        """Write `result.json`, which finishes the run: the figures, the machine, and the versions.

        Args:
            table: A line for each method and seed; `Row.of` makes one from a training's outcome. Metrics of
                methods that were not applicable are dropped.
            left_out: Methods and seeds without a line, see `Result`.
        """
        if not table:
            raise ProblemError(
                f"{self.path}: expected a tasks.Row for each method and seed, got none. Give at least one."
            )
        stages = {stage_name(row.seed, row.method): row for row in table}
        for stage, row in stages.items():
            if NOT_APPLICABLE in row.extra:
                self.truncate_metrics(stage, -1)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        result = replace(self._result(table, now), left_out=tuple(left_out))
        result.write(self.path)
        (self.path / SO_FAR).unlink(missing_ok=True)
        return result

    def note(self, table: Sequence[Row]) -> None:
        """Write `so_far.json`: the lines of the methods and seeds that are finished by now."""
        self._result(table, "").write(self.path)

    def _result(self, table: Sequence[Row], finished: str) -> Result:
        stages = {stage_name(row.seed, row.method): row for row in table}
        code = self.code_versions()
        watched = list(self.here.watched) if finished else []  # which may take long to read
        return Result(
            task=self.task,
            preset=self.preset,
            config=self.config,
            seeds=self.seeds,
            table=tuple(table),
            machine=machine(),
            versions=versions() | code | digest_of_files(watched, code),
            command=self.command,
            started=self.started,
            finished=finished,
            calls=row_counts.read(self.path),
            warnings=tuple(warning_notes.of_stages(self.path, stages)),
        )

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A block whose warnings are noted in the folder, as they come; of a finished run they are not."""
        with nullcontext() if self.finished or self.here.only_read else self.here.notes.noting(self.path):
            yield

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; `RunLockedError` names the other process that has it."""
        with place.held(self.path):
            atomic.sweep(self.path)
            if not os.path.lexists(self.path / BEGUN):  # of an older version, or killed before it was written
                atomic.write_json(self.path / BEGUN, lasting(self._written()))
            yield

    def log(self, stage: str, step: int, **values: float | int | str) -> None:
        """Add one line to `metrics.jsonl`; it survives if the process is killed right after."""
        metrics_file.log(self.path, stage, step, values)

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, of one stage or of all, NaN for what was not finite.

        Raises:
            RunFolderError: a line other than a torn last one cannot be read.
        """
        return metrics_file.read(self.path, stage)

    def truncate_metrics(self, stage: str, step: int, *, judged: bool = True) -> None:
        """Drop the lines of `stage` past `step`, and its warnings, see `metrics_file.truncate`."""
        metrics_file.truncate(self.path, stage, step, judged=judged)
        self.here.notes.forget(self.path, stage, step)


def _code(problem: str, script: str, command: Sequence[str]) -> trust.Code | None:
    if script:
        return trust.Script(Path(script), tuple(command[1:]))
    return trust.problem(problem) if problem else None


def stage_name(seed: int, method: str) -> str:
    """Name a method in metrics and checkpoints: "seed-0/sparse-cge", for rge@500 "seed-0/rge.500"."""
    return f"seed-{seed}/{re.sub('[^a-z0-9.-]', '.', method.lower().replace(' ', '-'))}"
