"""A run in this process or in several: started here, or by torchrun, which may start them again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from blackbox.terminal import say
from tasks.folder import atomic
from tasks.folder.run import Run
from tasks.listeners.tensorboard import FOLDER, TensorBoard
from tasks.planning.plan import Plan
from tasks.running.resume import plan_in
from tasks.running.start import finish, take_part
from tasks.workers import group, launch

LAUNCH = "launch.json"  # in the folder of a run that torchrun started


def work_on(
    begun: Callable[[], tuple[Run, Plan]],
    at_work: Callable[[Run], None],
    words: Sequence[str],
    *,
    tensorboard: bool,
    workers: int,
    timeout: float,
    without: Sequence[str] = (),
) -> None:
    """Work on a run, in this process or in several that are started here; or as one of these.

    Args:
        begun: Makes or opens the run, and refuses one whose code is not trusted; called in the first process.
            The others have a copy of the folder, with its written plan.
        at_work: A function that is called with the run in the first process, before any work on it.
        words: The words of the command line, after `blackbox`, which the others have too.
        tensorboard: Whether metrics are written as event files, too.
        workers: The number of processes to start.
        timeout: Seconds after which a process that does not answer is given up.
        without: Methods that the plan of `begun` leaves out.
    """
    first: tuple[Run, Plan] | None = None

    def first_folder() -> Path:
        nonlocal first
        first = begun()
        return first[0].path

    processes = launch.started(words, 1 if group.is_member() else workers)
    with processes, group.joined(timeout), group.shared_folder(first_folder) as folder:
        if first is None:
            take_part(Run.open(folder), without)
            return
        run, plan = first
        at_work(run)
        if tensorboard or (run.path / FOLDER).is_dir():
            run.here.callbacks.append(TensorBoard())
        finish(run, plan).show()


def new(plan: Plan, root: Path, words: Sequence[str]) -> tuple[Run, Plan]:
    """A new run, or where torchrun has started this launch again, the run that it had before.

    Args:
        plan: The plan of the run.
        root: The folder in which run folders are made.
        words: The words of the command line, after `blackbox`.
    """
    old_run = restarted(root, plan.problem.name())
    if old_run is not None:
        say(f"Going on with {old_run}.")
        return taken_up(Run.open(old_run))
    run = Run.create(root, plan.terms, command=["blackbox", *words])
    note_launch(run.path)
    return run, plan


def taken_up(run: Run, *, trusted: bool = False, without: Sequence[str] = ()) -> tuple[Run, Plan]:
    """A run that goes on, and the plan that its folder has in writing.

    Args:
        run: Its folder.
        trusted: Whether the code that it names is executed without asking whether this user trusts it, as
            where it was asked before.
        without: Methods that are left out.
    """
    return run, plan_in(run, trusted=trusted).without(without)


def note_launch(folder: Path) -> None:
    """Write down which launch made the run in a folder."""
    if (launched := launch.launch_id()) is not None:
        atomic.write_json(folder / LAUNCH, {"launch": launched})


def restarted(root: Path, task: str) -> Path | None:
    """The folder of the run that this launch made before it was restarted; None if it is no restart."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not root.is_dir():
        return None
    launched = launch.launch_id()
    notes = sorted(root.glob(f"{task}-*/{LAUNCH}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path.parent for path in notes if json.loads(path.read_text())["launch"] == launched), None)
