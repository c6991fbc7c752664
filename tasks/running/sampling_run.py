"""The way of a sampling: its folder, its plan in words, draws that go on after a kill, and its files."""

from __future__ import annotations

import shutil
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shlex import join
from typing import Any

from torch import Tensor

import zo
from blackbox import BlackBoxFunction
from blackbox.failures import exits_as_errors
from blackbox.notices import warn
from blackbox.terminal import say
from blackbox.wrappers.sources import files_of
from tasks.configuration import trust
from tasks.errors import CheckpointWarning, ConfigurationError, Interrupted, ProblemError, RunFolderError
from tasks.folder import atomic, place, reading
from tasks.folder.machine import changes, digest_of_files, machine, versions
from tasks.folder.terms import CONFIG
from tasks.listeners.progress import Progress
from tasks.problem.posterior import Posterior
from tasks.report import posterior_page
from tasks.training.interruption import StopRequest, same_directory
from zo.estimators import Key
from zo.posterior.sampling import LEAST_START, learned_from, refuse_few_rows

DRAWS, CHECKPOINT = "posterior.nc", "sampling.pt"
START = 50  # rows that are drawn at first, at most, and no more than a quarter of those learned; decision 206


@dataclass(frozen=True)
class Sampling:
    """The order of `blackbox sample`.

    Attributes:
        posterior: An object of the user's class.
        where: The place of that class, as a text that names it.
        rows: The number of all rows of the box.
        chains: The number of chains side by side.
        seed: The seed of all draws.
        learn: Rows before the model is frozen; None for as many as `zo.sample` takes.
        command: The words of the command line after `blackbox`.
    """

    posterior: Posterior
    where: str
    rows: int
    chains: int
    seed: int
    learn: int | None
    command: tuple[str, ...]


def _folder(sampling: Sampling, out: Path | None) -> Path:
    """The folder to draw in: a new one below `runs`, or the one that is asked for."""
    if out is None:
        stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
        return place.new(Path("runs"), f"{sampling.posterior.name()}-posterior-{stamp}")
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out}: expected a folder, got a file. Give another --out.")
    if out.is_dir():
        reading.refuse_strange_files(out)
        begun = {place.SAMPLING, place.LOCK} & {path.name for path in out.iterdir()}
        if (out / CONFIG).exists() or (not begun and any(out.iterdir())):
            raise RunFolderError(
                f"{out}: expected an empty folder, or one that `blackbox sample` began, got one with other "
                "files. Give another --out."
            )
    out.mkdir(parents=True, exist_ok=True)
    return out


def carry_out(sampling: Sampling, out: Path | None, progress: Progress) -> None:
    """Print the plan, draw, and leave draws and a report in the folder.

    Args:
        sampling: The order.
        out: A folder, where it goes on if it was begun; None for a new one, which goes if nothing was begun.
        progress: The progress that the user sees.

    Raises:
        Interrupted: The user stopped it; the draws so far, and a report of them, are kept.
        ConfigurationError: A value is out of range, or the folder has a sampling of another problem.
        RunFolderError: The folder has other files.
        ProblemError: The problem gives no box, or no name for each unknown.
    """
    box = _box(sampling.posterior)
    size = box.inputs[0].shape[0] if box.inputs[0].shape else 1
    _refuse_names(sampling.posterior, size)
    folder = _folder(sampling, out)
    try:
        for line in _plan(sampling, folder, box, size):
            say(line)
        _draw(sampling, folder, box, size, progress)
    except Exception:
        if out is None and not (folder / CHECKPOINT).exists():
            shutil.rmtree(folder)  # made by this process
        raise


def _draw(sampling: Sampling, folder: Path, box: BlackBoxFunction, size: int, progress: Progress) -> None:
    with ExitStack() as stack:
        stack.enter_context(place.held(folder))
        atomic.sweep(folder)
        begun = _begun(sampling, folder, box, size)
        start = sampling.posterior.start(begun["start"], Key(sampling.seed, 0).generator())
        stack.enter_context(same_directory())
        stack.enter_context(exits_as_errors("the problem"))
        stop = stack.enter_context(StopRequest())
        display = _Shown(progress, stop, begun["learn"], sampling.rows)
        stack.enter_context(progress)
        again = f"Go on with: {_again(sampling, folder)}"

        def potential(x: Tensor, y: Tensor) -> Tensor:
            if stop.requested and not y.isfinite().all():
                raise KeyboardInterrupt  # the signal may have ended the box's programs: no rejection
            return sampling.posterior.potential(x, y)

        try:
            data = zo.sample(
                potential,
                box,
                start,
                rows=sampling.rows,
                chains=sampling.chains,
                seed=sampling.seed,
                bounds=sampling.posterior.bounds,
                tangent=sampling.posterior.tangent(),
                twin=sampling.posterior.twin(),
                learn=begun["learn"],
                checkpoint=folder.absolute() / CHECKPOINT,
                progress=display,
            )
        except KeyboardInterrupt:
            raise Interrupted(f"Stopped before there were 20 draws of each chain. {again}") from None
        finally:
            display.end()
    if not data.attrs["rows_run_by_ledger"]:
        progress.say(
            f"The sampling has {data.attrs['rows']:,} of {sampling.rows:,} rows already: none was run, and "
            "the draws are those of before. Give more --rows for further ones."
        )
    data = _named(data, sampling.posterior, size)
    _write(data, folder / DRAWS)
    page = posterior_page.write(
        folder,
        data,
        title=sampling.posterior.name().replace("-", " ").capitalize(),
        about=sampling.posterior.about(),
        asked=sampling.rows,
        causes=box.ledger.causes,
        machine={**machine(), **begun["versions"]},
        footer=" ".join(("blackbox", *sampling.command)),
    )
    for sentence in posterior_page.sentences(data, sampling.rows):
        progress.say(sentence)
    progress.say(f"Draws: {folder / DRAWS}\nReport: {page}")
    if data.attrs["stopped"]:
        raise Interrupted(f"Stopped; the draws so far are in {folder}. {again}")


def _plan(sampling: Sampling, folder: Path, box: BlackBoxFunction, size: int) -> list[str]:
    """Describe the plan, in at most three lines; refuse too few rows for it."""
    learn = _read(folder).get("learn") or _learned(sampling, size)[0]
    refuse_few_rows(sampling.rows, learn, sampling.chains)
    draws = max(0, sampling.rows - learn - 2) // sampling.chains
    lines = [
        f"{sampling.posterior.name()}: {size} unknowns, {sampling.rows:,} rows of {box!r}: {learn:,} to "
        f"learn where the posterior lies, then {draws:,} proposals of each of {sampling.chains} chains.",
        f"Folder: {folder}. Stopped or killed, it goes on with the same command and --out {folder}",
    ]
    return [*lines, "It goes on from where it was."] if (folder / CHECKPOINT).exists() else lines


class _Shown:
    """Tells rows and effective samples, and stops where the user asked for it."""

    def __init__(self, progress: Progress, stop: StopRequest, learn: int, rows: int) -> None:
        self._progress, self._stop, self._learn, self._rows = progress, stop, learn, rows
        self._stage = ""

    def __call__(self, rows: int, effective: float) -> None:
        learning = rows <= self._learn + 2  # one row is asked twice more
        stage, most = ("learn", self._learn) if learning else ("sample", self._rows)
        if stage != self._stage:
            self.end()
            self._stage = stage
            self._progress.begin(stage, most, done=min(rows, most), unit="row")
        self._progress.update(min(rows, most), {"effective": effective} if effective else None)
        if self._stop.requested:
            raise KeyboardInterrupt

    def end(self) -> None:
        if self._stage:
            self._progress.end()
        self._stage = ""


def _box(posterior: Posterior) -> BlackBoxFunction:
    box = posterior.box()
    if not isinstance(box, BlackBoxFunction):
        raise ProblemError(
            f"{type(posterior).__name__}.box: expected a BlackBoxFunction, got {type(box).__name__}. "
            "Make its class a subclass of blackbox.BlackBoxFunction, or use an adapter."
        )
    return box


def _refuse_names(posterior: Posterior, size: int) -> None:
    if len(posterior.unknowns) not in (0, size):
        raise ProblemError(
            f"{type(posterior).__name__}.unknowns: expected {size} names, got {len(posterior.unknowns)}. "
            "Give one for each."
        )


def _learned(sampling: Sampling, size: int) -> tuple[int, int]:
    """Rows that are learned, and those of them that are drawn at first."""
    twin = sampling.posterior.twin() is not None
    learn = sampling.learn or learned_from(sampling.rows, size, LEAST_START, twin)
    return learn, max(LEAST_START, min(START, learn // 4))


def _read(folder: Path) -> dict[str, Any]:
    """Read the beginning of a folder, or nothing."""
    try:
        begun = reading.json_object(folder / place.SAMPLING, "Give another --out.")
    except FileNotFoundError:
        return {}
    kinds = {"problem": str, "learn": int, "start": int, "versions": dict}
    for name, kind in kinds.items():
        if type(begun.get(name)) is not kind:
            raise RunFolderError(
                f"{folder / place.SAMPLING}: expected {name!r} as `blackbox sample` writes it, got "
                f"{begun.get(name)!r}. Give another --out."
            )
    if not LEAST_START <= begun["start"] <= begun["learn"] <= 2**48:
        raise RunFolderError(
            f"{folder / place.SAMPLING}: expected rows to begin from, got others. Give another --out."
        )
    return begun


def _begun(sampling: Sampling, folder: Path, box: BlackBoxFunction, size: int) -> dict[str, Any]:
    """Return the beginning of the folder; written now if it is new."""
    code = trust.versions([trust.problem(sampling.where)])
    now = versions() | code | digest_of_files(files_of(box), code)
    begun = _read(folder)
    if not begun:
        learn, start = _learned(sampling, size)
        begun = {
            "problem": sampling.where,
            "learn": learn,
            "start": start,
            "command": list(sampling.command),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": now,
        }
        atomic.write_json(folder / place.SAMPLING, begun)
        return begun
    if sampling.learn not in (None, begun["learn"]):
        raise ConfigurationError(
            f"--learn: expected the {begun['learn']} that {folder} was begun with, got {sampling.learn}. "
            "Leave it out, or give another --out."
        )
    if changed := changes(begun["versions"], now):
        warn(
            f"{folder}: code, programs or packages have changed since the sampling began: {changed}. Draws "
            "are of one density only if the box and the potential give what they gave.",
            CheckpointWarning,
        )
    return begun


def _again(sampling: Sampling, folder: Path) -> str:
    """The command that goes on."""
    words = list(sampling.command)
    return join(["blackbox", *words, *([] if "--out" in words else ["--out", str(folder)])])


def _named(data: Any, posterior: Posterior, size: int) -> Any:
    names = list(posterior.unknowns) or [f"x[{number}]" for number in range(size)]
    data = data.rename({"x_dim_0": "unknown"}, groups="posterior")
    data.posterior = data.posterior.assign_coords(unknown=names)
    return data


def _write(data: Any, path: Path) -> None:
    """Write draws as NetCDF, at once or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of xarray's later versions
        data.to_netcdf(str(temporary))
    temporary.replace(path)
