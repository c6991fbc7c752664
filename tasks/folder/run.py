"""`Run`: a run is a folder, with its configuration, metrics, checkpoints, result and report."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
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
from tasks.errors import ConfigurationError, ProblemError, RunFolderError, RunLockedError, TrustError
from tasks.folder import atomic, calls, reading, warning_notes
from tasks.folder.machine import changes, digest_of_files, machine, stamp_of, versions
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

FORMAT = 4  # of config.json; raise it when older folders can no longer be read. 0.2.0 wrote 3
CHECKPOINTS, LOCK = "checkpoints", ".lock"

C = TypeVar("C")


@dataclass(frozen=True)
class InProcess:
    """What a process has of a run that is in no file of its folder; all values of the run share it.

    Attributes:
        callbacks: What else happens while stages of the run train; see `tasks.Callback`.
        callbacks_said: Of which exceptions of callbacks the user has been warned.
        notes: What the run has warned of, and at which stage and step it is.
        watched: Programs and other files that the boxes name, which count among its versions: their times and
            sizes, and contents, when they were last looked at; None once they changed. See `Run.note_files`.
    """

    callbacks: list[Any] = field(default_factory=list)
    callbacks_said: Notices = field(default_factory=Notices)
    notes: WarningNotes = field(default_factory=WarningNotes)
    watched: dict[Path, tuple[Any, ...] | None] = field(default_factory=dict)


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
            root: where runs lie; made if missing.
            terms: what the run is begun with; this user runs its code from here on.
            command: how the run was started; the process's own command line if not given.

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
        root.mkdir(parents=True, exist_ok=True)
        path = _new_folder(root, f"{terms.task}-{terms.preset}-{now.astimezone():%Y%m%d-%H%M%S}")
        (path / CHECKPOINTS).mkdir()
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
            if (path / CHECKPOINTS).is_dir() and not any((path / CHECKPOINTS).iterdir()):  # made first
                mend = "Nothing was done in it, if `blackbox run` was killed there: delete it, and run again."
            raise RunFolderError(f"{path}: expected a run folder, got {came}. {mend}") from None
        written = content.get("format")
        if written != FORMAT:
            raise RunFolderError(
                f"{path / CONFIG}: expected format {FORMAT}, got {written!r}. "
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
        """The files of the script or problem, and of what settings name, with digits of their SHA-256."""
        code = [] if self.code is None else [self.code]
        return trust.versions([*code, *map(trust.named, self.named)])

    @property
    def callbacks(self) -> list[Any]:
        """What else happens while stages of the run train; see `tasks.Callback`."""
        return self.here.callbacks

    @property
    def notes(self) -> WarningNotes:
        """What the run has warned of, and at which stage and step it is."""
        return self.here.notes

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
        before = self.config.get("rows")
        if self.script or before is None or rows < before:
            had = "none" if before is None else f"one of {before:,}"
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
        watched = self.here.watched
        watched.clear()
        watched.update((path, (stamp_of(path), digest_of_files([path]))) for path in files)
        before, now = self._written()["versions"], digest_of_files(files)
        if new := {name: value for name, value in now.items() if name not in before}:
            self._write({"versions": {**before, **new}})
        return changes({**before, **new}, now)

    def changed_files(self) -> list[str]:
        """The names of files that boxes name which have changed since `note_files`, each of them once.

        A look at times and sizes; contents are read only of those where these changed.
        """
        changed, watched = [], self.here.watched
        for path, seen in list(watched.items()):
            now = stamp_of(path)
            if seen is None or now in (seen[0], None):  # gone: it may be about to be replaced
                continue
            if digest_of_files([path]) == seen[1]:
                watched[path] = now, seen[1]
            else:
                watched[path] = None
                changed.append(path.name)
        return changed

    def _with(self, changed: Mapping[str, object]) -> Run:
        with self.lock():
            self._write(changed)
        return Run.open(self.path)

    def _written(self) -> dict[str, Any]:
        return reading.json_object(self.path / CONFIG, "Start the run anew.")

    def _write(self, changed: Mapping[str, object]) -> None:
        write_terms(self.path, {**self._written(), **changed})

    def changed(self, terms: Terms) -> str:
        """In what it departs from other terms, in words; "" where it is of these."""
        before, now = {"name": self.task, "seeds": list(self.seeds), **self.config}, terms.written()
        return differences(before, {"name": now["task"], "seeds": now["seeds"], **now["config"]})

    @property
    def begun(self) -> bool:
        """Whether some step of it is done."""
        return self._metrics.is_file()

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / "result.json").is_file()

    def finish(self, table: Sequence[Row], *, left_out: Sequence[tuple[str, int]] = ()) -> Result:
        """Write `result.json`, which finishes the run: what came out, on which machine, with which versions.

        Args:
            table: A line for each method and seed; `Row.of` makes one of a training's outcome. Metrics of
                methods that turned out not to be applicable are dropped.
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
        watched = list(self.here.watched) if finished else []  # which may take long to read
        return Result(
            task=self.task,
            preset=self.preset,
            config=self.config,
            seeds=self.seeds,
            table=tuple(table),
            machine=machine(),
            versions=versions() | self.code_versions() | digest_of_files(watched),
            command=self.command,
            started=self.started,
            finished=finished,
            calls=calls.read(self.path),
            warnings=tuple(warning_notes.of_stages(self.path, stages)),
        )

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A block whose warnings are noted in the folder, as they come; of a finished run they are not."""
        with nullcontext() if self.finished else self.notes.noting(self.path):
            yield

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; `RunLockedError` names the other process that has it."""
        with _exclusive(self.path):
            atomic.sweep(self.path)
            if not os.path.lexists(self.path / BEGUN):  # of an older version, or killed before it was written
                atomic.write_json(self.path / BEGUN, lasting(self._written()))
            yield

    def log(self, stage: str, step: int, **values: float | int | str) -> None:
        """Add one line to `metrics.jsonl`; it survives if the process is killed right after."""
        line = json.dumps(atomic.strict({"stage": stage, "step": step, **values}), allow_nan=False)
        atomic.append_line(self._metrics, line.encode())

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, of one stage or of all, NaN for what was not finite.

        Raises:
            RunFolderError: a line other than a torn last one cannot be read.
        """
        lines, _torn = self._lines()
        return [values for _, values in lines if stage in (None, values["stage"])]

    def truncate_metrics(self, stage: str, step: int, *, judged: bool = True) -> None:
        """Drop the lines of `stage` past `step`, and its warnings, so that going on from there repeats none.

        Args:
            stage: The stage whose lines are dropped.
            step: The last one that is done.
            judged: Whether its validation is, too.
        """

        def past(values: Mapping[str, Any]) -> bool:
            again = not judged and values["step"] == step and "validation" in values
            return values["stage"] == stage and (values["step"] > step or again)

        lines, torn = self._lines()
        kept = [line for line, values in lines if not past(values)]
        if torn or len(kept) < len(lines):  # each stays as it was to the byte
            atomic.write_bytes(self._metrics, b"".join(line + b"\n" for line in kept))
        self.notes.forget(self.path, stage, step)

    def sync_metrics(self) -> None:
        """Bring the metrics to the disk, before a checkpoint that relies on them."""
        if self._metrics.exists():
            with open(self._metrics, "rb+") as stream:
                os.fsync(stream.fileno())

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _lines(self) -> tuple[list[tuple[bytes, dict[str, Any]]], bytes]:
        """The lines of the metrics with their values, and a last one without its end, torn by a kill."""
        if not self._metrics.exists():
            return [], b""
        *lines, torn = self._metrics.read_bytes().split(b"\n")
        return [(line, self._parsed(number, line)) for number, line in enumerate(lines, start=1)], torn

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
            whole = isinstance(values, dict) and isinstance(values["stage"], str)
            if not (whole and isinstance(values["step"], int) and 0 <= values["step"] < 2**48):
                raise ValueError("no stage and step")
        except (ValueError, KeyError, RecursionError) as error:
            raise RunFolderError(
                f"{self._metrics}, line {number}: expected a JSON object with stage and step, got "
                f"{line[:80]!r} ({error}). Delete that line."
            ) from None
        return {name: math.nan if value is None else value for name, value in values.items()}


def _code(problem: str, script: str, command: Sequence[str]) -> trust.Code | None:
    if script:
        return trust.Script(Path(script), tuple(command[1:]))
    return trust.problem(problem) if problem else None


def stage_name(seed: int, method: str) -> str:
    """Of a method in metrics and checkpoints: "seed-0/sparse-cge", of rge@500 "seed-0/rge.500"."""
    return f"seed-{seed}/{re.sub('[^a-z0-9.-]', '.', method.lower().replace(' ', '-'))}"


def discard(folder: Path) -> bool:
    """Delete a run's folder if nothing was done in it: no metrics, checkpoints, or other files but warnings.

    Args:
        folder: made by `Run.create` in this very process, with no one else at work on it.

    Returns:
        Whether it is gone; not where the system refuses, which must not hide why the run was.
    """
    try:
        if {path.name for path in folder.iterdir()} - {
            CONFIG,
            BEGUN,
            CHECKPOINTS,
            LOCK,
            warning_notes.NAME,
        } or any((folder / CHECKPOINTS).iterdir()):
            return False
        shutil.rmtree(folder)
    except OSError:
        return False
    return True


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock file stays behind, empty of meaning once its process is gone.

    Raises:
        RunLockedError: another process holds it; the message gives its id.
    """
    # "a+": opening must not wipe the other process's id
    with open(folder / LOCK, "a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunLockedError(
                f"{folder}: expected a run that no process is working on, but process {holder} is. "
                "Wait for it, or stop it, and try again."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _new_folder(root: Path, name: str) -> Path:
    """Make `root/name`, or `root/name-2` and so on where two runs start in the same second."""
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path
